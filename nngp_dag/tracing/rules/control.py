"""Rules of loops and branches."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from nngp_dag.tracing.arrays import Num, Rand, Value
from nngp_dag.tracing.reader import Reader, described, rule
from nngp_dag.tracing.rules.shapes import joined, reshape_to, taken

# A loop is read step by step.
_MOST_STEPS = 10_000


@rule("scan")
def scan(reader: Reader, equation: Any, arguments: list[Any]) -> list[Value]:
    """Unrolls a loop of known length."""
    params = equation.params
    length, reverse, body = params["length"], params["reverse"], params["jaxpr"]
    if length > _MOST_STEPS:
        reader.refuse(f"a loop of at most {_MOST_STEPS:,} steps", f"{length:,}", "shorten the loop")
    consts, carry, columns = _split(arguments, params["num_consts"], params["num_carry"])
    rows: list[list[Value]] = [[] for _ in range(len(body.jaxpr.outvars) - len(carry))]
    for i in reversed(range(length)) if reverse else range(length):
        step = [taken(reader, array, 0, i) for array in columns]
        results = reader.read(body.jaxpr, body.consts, [*consts, *carry, *step])
        carry = results[: len(carry)]
        for row, result in zip(rows, results[len(carry) :], strict=True):
            row.append(result)
    if reverse:
        rows = [row[::-1] for row in rows]
    return [*carry, *(_stacked(reader, row) for row in rows)]


def _split(arguments: list[Any], consts: int, carry: int) -> tuple[list[Any], list[Any], list[Any]]:
    return arguments[:consts], arguments[consts : consts + carry], arguments[consts + carry :]


def _stacked(reader: Reader, row: list[Value]) -> Value:
    if not all(isinstance(a, (Num, Rand)) for a in row):
        reader.refuse("values to be stacked", described(row), "stack values only")
    wide = [reshape_to(reader, a, (1, *a.shape)) for a in row]
    if any(isinstance(a, Rand) for a in wide):
        return joined(reader, wide, 0)
    nums = [a for a in wide if isinstance(a, Num)]
    number = reader.values.computed(
        ("stack", len(nums)), lambda *arrays: jnp.concatenate(arrays), *(reader.whole(a) for a in nums)
    )
    return Num(number, (len(nums), *row[0].shape), (False,) * len(wide[0].shape))


@rule("cond")
def cond(reader: Reader, equation: Any, arguments: list[Any]) -> list[Value]:
    """Takes the branch that a known number chooses."""
    index, *operands = arguments
    chosen = index.scalar if isinstance(index, Num) else None
    if chosen is None and isinstance(index, Num) and index.number.known is not None:
        chosen = float(np.asarray(index.number.known))
    if chosen is None:
        if all(isinstance(a, Num) for a in arguments):
            return reader.of_numbers(equation, arguments)  # type: ignore[return-value]
        reader.refuse("a branch that is known", "control flow that depends on the data", "use `jnp.where` on numbers")
    branches = equation.params["branches"]
    branch = branches[min(max(int(chosen), 0), len(branches) - 1)]  # type: ignore[arg-type]
    return reader.read(branch.jaxpr, branch.consts, operands)


@rule("while")
def while_(reader: Reader, equation: Any, arguments: list[Any]) -> Any:
    """Refuses loops of unknown length, unless all their values are numbers."""
    if all(isinstance(a, Num) for a in arguments):
        return reader.of_numbers(equation, arguments)
    params = equation.params
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    test_consts, body_consts = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body = arguments[:test_consts], arguments[test_consts : test_consts + body_consts]
    carry = list(arguments[test_consts + body_consts :])
    for _ in range(_MOST_STEPS):
        (going,) = reader.read(test.jaxpr, test.consts, [*of_test, *carry])
        if not isinstance(going, Num) or going.number.known is None:
            reader.refuse(
                "a loop of known length", "a loop whose length depends on the data", "use `jax.lax.scan` or `range`"
            )
        if not bool(np.asarray(going.number.known)):
            return carry
        carry = reader.read(body.jaxpr, body.consts, [*of_body, *carry])
    return reader.refuse(f"a loop of at most {_MOST_STEPS:,} steps", "a longer one", "shorten the loop")
