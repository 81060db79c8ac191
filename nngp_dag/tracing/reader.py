"""Reads a program of JAX: every equation becomes numbers and nodes, by the rule of its primitive.

A rule takes the reader, the equation and its arguments, and returns the result. A rule for numbers alone is not needed:
the primitive itself is kept and evaluated for every input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import ModelError
from nngp_dag.tracing import jaxprs
from nngp_dag.tracing.arrays import Grown, Num, Outer, Par, Rand, Squares, Sums, Value
from nngp_dag.tracing.models import Leaf
from nngp_dag.tracing.parameters import Weights, entries_of
from nngp_dag.tracing.values import Number, Product, Values

Rule = Callable[["Reader", Any, list[Any]], Any]

# The rules by primitive. Modules of rules fill it in.
RULES: dict[str, Rule] = {}

# The rule of all operations on outer products of channels; see `rules.outer`.
OUTER = "outer product"
# The rule of all operations on sums and squares of a parameter's entries; see `rules.standardization`.
SUMS = "sums of a parameter"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass
class Reader:
    """Reads the equations of one program.

    Attributes:
      leaves: The model's parameters.
      values: The nodes and numbers that were made.
      weights: The parts of parameters that were read.
      place: The line of the model that is being read.
      label: The name of the library's function that is being read, such as "relu", or "".
      infinite: The sizes of the axes that were taken to be infinite, by parameter or line.
      wider: The shapes of the results of every equation at twice the width, by the equation's `id`; None if unknown.
      no_ntk: The reason for which the model has no NTK here, or "".
      averaged: The places of means over channels, with the products whose units they average, unless it is known that
        the units grow with the width.
      norms: The entries over which norms of parameters were taken, (norms, entries), with the places, by parameter.
      summed: The entries that products sum over, (rows, columns), and whether over channels, by parameter.
      rows: The channels at which the parts of a value ended that a parameter was multiplied with.
    """

    leaves: tuple[Leaf, ...]
    values: Values = field(default_factory=Values)
    weights: Weights = field(init=False)
    place: str = ""
    label: str = ""
    infinite: dict[str, int] = field(default_factory=dict)
    wider: dict[int, list[tuple[int, ...]]] | None = None
    no_ntk: str = ""
    averaged: list[tuple[str, set[Product]]] = field(default_factory=list)
    norms: dict[int, list[tuple[str, np.ndarray]]] = field(default_factory=dict)
    summed: dict[int, list[tuple[np.ndarray, bool]]] = field(default_factory=dict)
    rows: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Starts without any weight."""
        self.weights = Weights(self.leaves)

    def parameters(self) -> list[Par]:
        """Returns the parameters, untouched."""
        return [
            Par(i, entries_of(leaf.shape), leaf.shape, (False,) * len(leaf.shape)) for i, leaf in enumerate(self.leaves)
        ]

    def input(self, shape: tuple[int, ...]) -> Num:
        """Returns the input."""
        return Num(self.values.input(), shape, (False,) * len(shape))

    def known(self, array: Any) -> Num:
        """Returns a known array."""
        array = np.asarray(array)
        return Num(self.values.known(array), array.shape, (False,) * array.ndim)

    def refuse(self, expected: str, got: str, remedy: str) -> NoReturn:
        """Raises a `ModelError` that names the line of the model."""
        raise ModelError(f"{self.place}: Expected {expected}, got {got}; {remedy}")

    def read(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Returns the outputs of a program for given arguments."""
        equations, used = jaxprs.needed(jaxpr)
        known: dict[Any, Value] = {v: self.known(c) for v, c in zip(jaxpr.constvars, consts, strict=True) if v in used}
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def value(variable: Any) -> Value:
            if isinstance(variable, jax.extend.core.Literal):
                return self.known(variable.val)
            return known[variable]

        outer, label = self.place, self.label
        # The lines of a library's function are those of the first model that called it.
        own = not outer or not jaxprs.of_library(jaxpr)
        self.label = "" if own else label or jaxprs.name_of(jaxpr)
        for equation in equations:
            self.place = jaxprs.place(equation) if own else outer
            results = self.apply(equation, [value(v) for v in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        self.place, self.label = outer, label
        return [value(v) for v in jaxpr.outvars]

    def apply(self, equation: Any, arguments: list[Value]) -> list[Value]:
        """Returns the results of one equation."""
        name = equation.primitive.name
        if (called := jaxprs.body(equation)) is not None:
            known = all(isinstance(a, Num) for a in arguments)
            if not known and not self.no_ntk and not jaxprs.has_own_derivative(equation):
                self.no_ntk = (
                    f"{self.place}: Expected functions whose derivative is that of their values, got one with another "
                    "rule, by `jax.custom_jvp` or `jax.custom_vjp`; ask for the NNGP alone (get='nngp')"
                )
            return self.read(*called, arguments)
        if any(isinstance(a, (Squares, Sums)) for a in arguments):
            return [RULES[SUMS](self, equation, arguments)]
        if any(isinstance(a, (Outer, Grown)) for a in arguments):
            result = RULES[OUTER](self, equation, arguments)
        elif name in RULES:
            result = RULES[name](self, equation, arguments)
        elif all(isinstance(a, Num) for a in arguments):
            result = self.of_numbers(equation, arguments)
        else:
            self.refuse(
                "an operation that keeps values Gaussian, or an elementwise function of one of them",
                f"`{name}` of {described(arguments)}",
                "docs/guides/trace.md lists the operations that have a rule",
            )
        return result if isinstance(result, list) else [result]

    def of_numbers(self, equation: Any, arguments: list[Any]) -> list[Any]:
        """Keeps an equation whose arguments are all numbers; it is evaluated for every input."""
        if equation.effects or equation.primitive.name.startswith("random_"):
            self.refuse("a function of parameters and input alone", f"`{equation.primitive.name}`", "remove it")
        arrays = [self.whole(a) for a in arguments]
        results: list[Num] = []
        for i, variable in enumerate(equation.outvars):

            def evaluate(*inputs: Any, i: int = i) -> Any:
                found = equation.primitive.bind(*map(jnp.asarray, inputs), **equation.params)
                return found[i] if equation.primitive.multiple_results else found

            number = self.values.computed((id(equation), i), evaluate, *arrays)
            shape = tuple(variable.aval.shape)
            results.append(Num(number, shape, (False,) * len(shape)))
        # The key above is the equation's address, so the equation must live as long as the values.
        self.values.made[("equation", id(equation))] = equation
        return results

    def grown(self, equation: Any) -> list[bool] | None:
        """Returns for every axis of an equation's first result whether it grows with the width; None if unknown."""
        if self.wider is None or id(equation) not in self.wider:
            return None
        shape = equation.outvars[0].aval.shape
        return [a != b for a, b in zip(shape, self.wider[id(equation)][0], strict=True)]

    def whole(self, num: Num) -> Number:
        """Returns a number with all its axes stored in full.

        Raises:
          ModelError: The number is a sum over channels that still grows with the width.
        """
        self.settle(num)
        if not any(num.constant):
            return num.number
        return self.values.computed(("whole", num.shape), lambda a: jnp.broadcast_to(a, num.shape), num.number)

    def settle(self, num: Num) -> None:
        """Refuses a sum over an infinite axis that is not divided by the number of its entries."""
        if num.growth is not None and not num.growth.bounded:
            self.refuse(
                "a sum over an infinite axis to be divided by its size before it is used",
                f"a sum of {num.growth.size} channels times {num.growth.factor:.3g}, whose limit is not one number "
                "(arXiv 2506.00846 for attention with 1 / sqrt(d))",
                "divide by the size first: take a mean, or scale attention by 1 / d",
            )


def described(arguments: Sequence[Value]) -> str:
    """Returns the kinds of arguments in words, for messages."""
    words = {
        Num: "a number",
        Par: "a parameter",
        Rand: "a random value",
        Outer: "an outer product of channels",
        Grown: "a sum over channels",
        Squares: "squares of a parameter",
        Sums: "sums of a parameter",
    }
    return " and ".join(words[type(a)] for a in arguments)
