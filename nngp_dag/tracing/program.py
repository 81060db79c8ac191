"""A model's program at infinite width: the nodes on which its output depends, and their second moments."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from nngp_dag.errors import InputError, ModelError
from nngp_dag.tracing.arrays import Rand
from nngp_dag.tracing.functions import Function, recognize
from nngp_dag.tracing.gains import Gains, gains_of
from nngp_dag.tracing.moments import Moments, OneInput, Recorded
from nngp_dag.tracing.parameters import Weight, check_apart
from nngp_dag.tracing.shared import without_ntk
from nngp_dag.tracing.values import Fixed, Linear, Node, Nonlinear, Number, Parameter, Product, Values, operands


@dataclass(frozen=True, eq=False)
class Program:
    """A model's program at infinite width.

    Attributes:
      output: The node of one output unit.
      nodes: The nodes on which the output depends, operands first.
      numbers: The numbers on which it depends.
      functions: The functions of the nodes that are functions of Gaussian ones, by the numbers of the nodes.
      gains: The derivatives of operands in trained gains, see `nngp_dag.tracing.gains`, by the numbers of the operands.
      own_gains: The keys of these gains.
      tuned: The derivatives of functions in trained numbers on which they depend, by the numbers of the nodes.
      no_ntk: The reason for which there is no NTK, or "".
      approximate: The names of trained gains whose shares in the NTK are approximate, and of order 1 / width.
    """

    output: Node
    nodes: tuple[Node, ...]
    numbers: tuple[Number, ...]
    functions: dict[int, Function]
    gains: Gains = field(default_factory=dict)
    own_gains: frozenset[Any] = frozenset()
    tuned: dict[int, tuple[tuple[Weight, Function], ...]] = field(default_factory=dict)
    no_ntk: str = ""
    approximate: tuple[str, ...] = ()

    def alone(self, x: jax.Array) -> OneInput:
        """Returns what one input determines, computed in the order of the nodes, so that no recursion goes deep."""
        one = OneInput(x, self.functions)
        for operand in self._steps:
            one.moments.pair(operand, operand, 0, 0)
        return one

    def between(self, sides: tuple[Any, Any], seeds: Any, *, ntk: bool) -> tuple[Any, Any]:
        """Returns the second moments and the NTK of the output for two inputs, given what each determines."""
        moments = Moments(
            sides,
            lambda weight: 0.0 if weight.key in self.own_gains else seeds(weight),
            with_tangents=ntk,
            functions=self.functions,
            gains={i: [(weight.key, seeds(weight), d) for weight, d in pairs] for i, pairs in self.gains.items()},
            tuned={i: {w.key: (seeds(w), d) for w, d in pairs} for i, pairs in self.tuned.items()},
        )
        for operand in self._steps:
            moments.pair(operand, operand, 0, 1)
        m, t = moments.with_gains(self.output, self.output, 0, 1)
        zero = jnp.zeros((*self.output.shape, *self.output.shape))
        return zero if m is None else m, (zero if t is None else t) if ntk else None

    @functools.cached_property
    def _steps(self) -> list[Node]:
        """The operands of products and functions, in order."""
        found = {o.id: o for node in self.nodes if isinstance(node, (Product, Nonlinear)) for o in operands(node)}
        return [found[i] for i in sorted(found)]

    def needed(self, x: Any, *, ntk: bool) -> tuple[str, ...]:
        """Returns the names of the values of single inputs that `between` needs, given the shape of an input."""
        names: set[str] = set()

        def record(x: jax.Array) -> Any:
            sides = Recorded({}, self.alone(x)), Recorded({}, self.alone(x))
            found = self.between(sides, lambda weight: 1.0, ntk=ntk)
            names.update(sides[0].values, sides[1].values)
            return found

        jax.eval_shape(record, x)
        return tuple(sorted(names))

    def values(self, x: jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
        """Returns values that one input determines, by the names of `needed`."""
        one = self.alone(x)
        by_id: dict[int, Any] = {n.id: n for n in (*self.nodes, *self.numbers)}
        found = {}
        for name in names:
            kind, of = name.split()
            found[name] = getattr(one, kind)(by_id[int(of)])
        return found


def program_of(output: Rand, values: Values, no_ntk: str = "") -> Program:
    """Returns the program of a model's output, of one part, made of nodes of `values`."""
    node = output.node
    nodes, _ = _reached([node])
    check_apart(n.weight for n in nodes if isinstance(n, (Product, Parameter)))
    gains, own, approximate, reason = gains_of(nodes, node, values)
    nodes, numbers = _reached([node, *(d for pairs in gains.values() for _, d in pairs)])
    reason = no_ntk or reason or without_ntk(nodes, numbers)
    shared: dict[Any, Function] = {}
    functions = {n.id: _function_of(n, shared) for n in nodes if isinstance(n, Nonlinear)}
    tuned = {n.id: _derivatives_of(n, shared) for n in nodes if isinstance(n, Nonlinear) and n.tuned}
    return Program(node, nodes, numbers, functions, gains, own, tuned, reason, approximate)


def _reached(ends: Sequence[Node]) -> tuple[tuple[Node, ...], tuple[Number, ...]]:
    """Returns the nodes and numbers on which nodes depend, in order."""
    nodes: dict[int, Node] = {}
    numbers: dict[int, Number] = {}
    waiting: list[Node | Number] = list(ends)
    while waiting:
        one = waiting.pop()
        if one.id in nodes or one.id in numbers:
            continue
        if isinstance(one, Number):
            numbers[one.id] = one
            waiting += one.arguments
            waiting += [one.mean] if one.mean is not None else []
            waiting += list(one.pair or ())
        else:
            nodes[one.id] = one
            waiting += operands(one)
            if isinstance(one, Product):
                waiting += [o for _, o in one.operands]
            waiting += one.numbers if isinstance(one, Linear) else ()
            waiting += [one.number] if isinstance(one, Fixed) else []
    return tuple(nodes[i] for i in sorted(nodes)), tuple(numbers[i] for i in sorted(numbers))


def _function_of(node: Nonlinear, shared: dict[Any, Function]) -> Function:
    """Returns the function of a node, shifted by the mean of its operand; equal functions are one object."""
    shift, plain = node.node.offset, node.function
    key = node.key, shift
    if key not in shared:
        try:
            shared[key] = recognize((lambda t: plain(t + shift)) if shift else plain, node.label or node.place)
        except InputError as error:
            raise ModelError(f"{node.place}: {error}") from None
    return shared[key]


def _derivatives_of(node: Nonlinear, shared: dict[Any, Function]) -> tuple[tuple[Weight, Function], ...]:
    """Returns the derivatives of a node's function in trained numbers on which it depends."""
    found = []
    for parameter in node.tuned:
        weight = parameter.weight
        start = weight.distribution.mean

        def derivative(t: Any, key: Any = weight.key, start: float = start) -> Any:
            def at(value: Any) -> Any:
                return node.apply(t, {key: value})

            return jax.jvp(at, (jnp.asarray(start, t.dtype),), (jnp.ones((), t.dtype),))[1]

        one = dataclasses.replace(node, function=derivative, key=("derivative", weight.key, node.key), tuned=())
        found.append((weight, _function_of(dataclasses.replace(one, label=f"the derivative in {weight.name}"), shared)))
    return tuple(found)
