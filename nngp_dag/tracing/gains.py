"""Trained parameters that multiply values below a nonlinearity, and their share in the NTK.

By Price's theorem, the tangent of E f(u) g(v) along a covariance is E f' g' times the tangent of the covariance. That
is the NTK of every parameter whose gradient, before f, is independent of u: weights and biases. The gradient of a gain
c in u = c h + r is h f'(u), and h is not independent of u. Its share is computed from the derivative itself instead:

    T_c(u, v) = E (D u) (D v),  D (c h) = h,  D f(u) = f'(u) D u,

with D u of one channel alone, up to the next product with a weight. f'(u) D u is a function of one Gaussian value if
D u is a number, or proportional to u (r = 0, as after a norm); it is a product of independent values if D u does not
depend on u. For other gains, the share is computed as if h were independent of f'(u), if it is of order 1 / width: that
is the order of all that a kernel of infinite width leaves out. Otherwise the NTK is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.tracing.parameters import Weight
from nngp_dag.tracing.values import Fixed, Linear, Node, Nonlinear, Parameter, Product, Sum, Times, Values, operands

# Matrices whose entries have at most this variance, times the fan-in, have NTKs that grow with the width.
_FEW = 4.0

Gains = dict[int, tuple[tuple[Weight, Node], ...]]


class _Unknown(Exception):  # noqa: N818
    """The derivative has no second moments in closed form."""


@dataclass
class _Derivatives:
    """The derivatives of nodes in one parameter."""

    values: Values
    parameter: Parameter
    done: dict[int, Node | None] = field(default_factory=dict)

    def of(self, node: Node) -> Node | None:
        """Returns the derivative of a node, or None where it is 0."""
        if not node.sources & self.parameter.sources:
            return None
        if node.id not in self.done:
            self.done[node.id] = self._of(node)
        return self.done[node.id]

    def _of(self, node: Node) -> Node | None:
        values = self.values
        match node:
            case Parameter():
                return values.fixed(values.known(np.ones((1,) * len(node.shape))), node.shape)
            case Sum():
                terms = [(c, d) for c, child in node.terms if (d := self.of(child)) is not None]
                return values.sum(terms) if terms else None
            case Linear():
                inner = self.of(node.node)
                if inner is None:
                    return None
                return values.linear(("like", node.id), inner, node.shape, node.map, node.numbers)
            case Times():
                terms = []
                for one, other in ((node.left, node.right), (node.right, node.left)):
                    if (d := self.of(one)) is not None:
                        terms.append((1.0, values.times(d, other, node.place)))
                return values.sum(terms) if terms else None
            case Nonlinear():
                return self._of_function(node)
        return None

    def _of_function(self, node: Nonlinear) -> Node | None:
        inner = self.of(node.node)
        if inner is None:
            return None
        value = self.parameter.weight.distribution.mean
        slope = _slope(node)
        if not inner.random:
            return self.values.times(inner, self._apply(node, slope, "slope"), node.place)
        if not live(inner) & live(node.node):
            return self.values.times(self._apply(node, slope, "slope"), inner, node.place)
        if value and _is_proportional(node.node, self.parameter) and node.node.offset == 0:
            steep = self._apply(node, lambda t: t * slope(t), "t slope")
            return self.values.sum([(1 / value, steep)])
        raise _Unknown(node.place)

    def _apply(self, node: Nonlinear, function: Any, key: str) -> Node:
        label = f"{node.label or 'a function'}' at {node.place}"
        return self.values.nonlinear((key, node.key), node.node, function, node.place, label)


def _slope(node: Nonlinear) -> Any:
    return lambda t: jax.jvp(node.function, (t,), (jnp.ones_like(t),))[1]


def live(node: Node) -> int:
    """Returns the sources on which a node's values depend at initialization, as a bit mask."""
    match node:
        case Product():
            return node.sources
        case Parameter():
            return node.sources if node.random else 0
        case Times() if 0.0 in (fixed_value(node.left), fixed_value(node.right)):
            return 0
        case _:
            mask = 0
            for operand in operands(node):
                mask |= live(operand)
            return mask


def fixed_value(node: Node) -> float | None:
    """Returns the value of a node that is one known number, else None."""
    return node.offset if not node.random else None


def _is_proportional(node: Node, parameter: Parameter) -> bool:
    """Whether all random parts of a linear combination are multiplied by the parameter once."""
    match node:
        case Sum():
            return all(
                _is_proportional(child, parameter) for _, child in node.terms if live(child) or child.offset != 0
            )
        case Linear():
            return _is_proportional(node.node, parameter)
        case Times():
            for one, other in ((node.left, node.right), (node.right, node.left)):
                if not one.random and one.sources == parameter.sources and not other.sources & parameter.sources:
                    return True
        case _:
            pass
    return False


def gains_of(nodes: Sequence[Node], output: Node, values: Values) -> tuple[Gains, frozenset[Any], tuple[str, ...], str]:
    """Returns the derivatives of the operands of products in gains below nonlinearities.

    Args:
      nodes: The nodes of a program.
      output: Its output.
      values: The maker of nodes.

    Returns:
      For the number of each operand (and of the output), the gains with the derivatives; the keys of the weights that
      are such gains; the names of gains whose shares are of order 1 / width and approximate; and the reason for which
      there is no NTK, or "".
    """
    factors = {p.weight.key: p for node in nodes if isinstance(node, Times) for p in _parameters(node)}
    gains = [p for p in factors.values() if p.weight.trained and not _is_exact(nodes, p, values)]
    ends = {o.id: o for node in nodes if isinstance(node, Product) for o in operands(node)} | {output.id: output}
    found: dict[int, list[tuple[Weight, Node]]] = {}
    reason, exact, approximate = "", [], []
    small = _are_small(nodes)
    for parameter in gains:
        derivatives = _Derivatives(values, parameter)
        try:
            if int(np.prod(parameter.shape)) != 1:
                raise _Unknown(parameter.weight.place)
            own = [(end.id, d) for end in ends.values() if (d := derivatives.of(end)) is not None]
            for end, derivative in own:
                found.setdefault(end, []).append((parameter.weight, derivative))
            exact.append(parameter.weight.key)
        except _Unknown as place:
            if small:
                approximate.append(parameter.weight.name)
                continue
            reason = (
                f"{place}: Expected trained gains to multiply all of what a function is applied to, got "
                f"`{parameter.weight.name}`, whose gradient depends on other summands, too; ask for the NNGP alone "
                "(get='nngp'), or put a matrix product between"
            )
    return {i: tuple(pairs) for i, pairs in found.items()}, frozenset(exact), tuple(approximate), reason


def _are_small(nodes: Sequence[Node]) -> bool:
    """Whether the shares of gains are of order 1 / width: all matrices have entries of variance of that order."""
    products = [node for node in nodes if isinstance(node, Product) and node.weight.trained]
    inner = [(node, n) for node in products for n, operand in node.operands if isinstance(operand, Node)]
    return bool(inner) and all(n * node.weight.distribution.std**2 <= _FEW for node, n in inner)


def _parameters(node: Node) -> list[Parameter]:
    """Returns the parameters in the factors of a product of values, without those below other products."""
    found, waiting = [], list(operands(node))
    while waiting:
        one = waiting.pop()
        if isinstance(one, Parameter):
            found.append(one)
        elif isinstance(one, (Sum, Linear)):
            waiting += operands(one)
    return found


def _is_exact(nodes: Sequence[Node], parameter: Parameter, values: Values) -> bool:
    """Whether Price's theorem alone yields the share of a gain: its gradient is independent of what it meets."""
    for node in nodes:
        if not node.sources & parameter.sources:
            continue
        if isinstance(node, Nonlinear):
            try:
                derivative = _Derivatives(values, parameter).of(node.node)
            except _Unknown:
                return False
            if derivative is None or not derivative.random:
                continue
            if live(derivative) & live(node.node) or int(np.prod(parameter.shape)) != 1:
                return False
        if isinstance(node, Times) and not isinstance(node.left, Fixed) and not isinstance(node.right, Fixed):
            dependent = node.left.sources & node.right.sources
            if dependent and node.left.random and node.right.random:
                return False
    return True
