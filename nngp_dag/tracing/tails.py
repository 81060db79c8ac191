"""How far values are from Gaussian that sum finitely many random numbers: products with features, and added parameters.

Weights need not be Gaussian where infinitely many are summed. A sum over the d features of an input, v = sum_j W_j z_j,
has the exact variance s^2 |z|^2 all the same, but an excess kurtosis k sum_j z_j^4 / |z|^4 if that of W_j is k. To
first order it changes the second moment of a function of v by

    E f(v)^2 - E f(g)^2 = (excess kurtosis) / 24 E[f(g)^2 He_4(g / sd)],  g Gaussian of the same variance

(Gram-Charlier series), with He_4 the fourth Hermite polynomial. Kernels leave that out; it is estimated here.
"""

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.tracing.distributions import Distribution
from nngp_dag.tracing.functions import Function
from nngp_dag.tracing.values import Fixed, Linear, Node, Nonlinear, Number, Parameter, Product, Sum, Times, operands

_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(100)
_HERMITE = _POINTS**4 - 6 * _POINTS**2 + 3


def excess(distribution: Distribution) -> float:
    """Returns the size of a distribution's excess kurtosis; 0 where it is unknown, which the summary states."""
    size = abs(distribution.excess_kurtosis)
    return 0.0 if math.isnan(size) or distribution.std == 0 else size


def has_tails(node: Node) -> bool:
    """Whether a linear combination sums finitely many random numbers that are not Gaussian."""
    match node:
        case Product():
            return any(isinstance(o, Number) for _, o in node.operands) and excess(node.weight.distribution) > 0
        case Parameter():
            return excess(node.weight.distribution) > 0
        case Sum():
            return any(has_tails(child) for _, child in node.terms)
        case Linear():
            return has_tails(node.node)
        case Times():
            return any(has_tails(child) for _, child in _gained(node))
        case _:
            return False


def _gained(node: Times) -> list[tuple[float, Node]]:
    """Returns the factor of a product whose other factor is one known number, such as a gain, with that number."""
    for one, other in ((node.left, node.right), (node.right, node.left)):
        if not one.random and one.offset is not None:
            return [(one.offset, other)]
    return []


def weights_with_tails(node: Node) -> list[str]:
    """Returns the names of the weights and parameters that `has_tails` finds."""
    if isinstance(node, (Product, Parameter)):
        return [node.weight.name] if has_tails(node) else []
    children = operands(node) if isinstance(node, (Sum, Linear, Times)) else []
    return list(dict.fromkeys(name for child in children for name in weights_with_tails(child)))


class Strayed(NamedTuple):
    """A value that counts as Gaussian and is not.

    Attributes:
      node: The node that takes a function of it.
      inner: The value.
      mean_only: Whether the program takes only the mean of that function, as of the squares in a norm.
    """

    node: Node
    inner: Node
    mean_only: bool


def strayed(output: Node) -> list[Strayed]:
    """Returns the values of a program that count as Gaussian and are not."""
    found: dict[tuple[int, int], Strayed] = {}
    # Nodes whose second moments enter, and nodes whose means do.
    seen: set[tuple[int, bool]] = set()
    waiting: list[tuple[Node | Number, bool]] = [(output, False)]
    while waiting:
        node, mean_only = waiting.pop()
        if (node.id, mean_only) in seen:
            continue
        seen.add((node.id, mean_only))
        if isinstance(node, Number):
            waiting += [(one, False) for one in (*node.arguments, *(node.pair or ()))]
            waiting += [(node.mean, True)] if node.mean is not None else []
            continue
        # Means of sums are those of the summands; functions and products below them have second moments.
        passes = mean_only and isinstance(node, (Sum, Linear))
        waiting += [(one, passes) for one in operands(node)]
        waiting += [(one, False) for one in node.numbers] if isinstance(node, Linear) else []
        waiting += [(node.number, False)] if isinstance(node, Fixed) else []
        if isinstance(node, Product):
            waiting += [(one, False) for _, one in node.operands if isinstance(one, Number)]
        # Of independent factors, second moments suffice; of a product of two, the mean is a second moment.
        dependent = isinstance(node, Times) and not mean_only and bool(node.left.sources & node.right.sources)
        if isinstance(node, Nonlinear) or dependent:
            for one in operands(node):
                if one.gaussian and has_tails(one):
                    old = found.get((node.id, one.id))
                    found[node.id, one.id] = Strayed(node, one, mean_only and (old is None or old.mean_only))
    return sorted(found.values(), key=lambda one: one.node.id)


def fourth_cumulant(node: Node, sums: Callable[[Product], Any]) -> Any:
    """Returns a bound on the fourth cumulant of a linear combination, of the node's shape.

    Those of different weights add up. For one weight, its fourth root is a norm of the features, so that it is at most
    the sum of those of the summands.

    Args:
      node: The linear combination.
      sums: The sums of fourth powers of the features that a product multiplies.
    """
    roots = _fourth_roots(node, sums)
    return sum((root**4 for root in roots.values()), jnp.zeros(node.shape))


def _fourth_roots(node: Node, sums: Callable[[Product], Any]) -> dict[Hashable, Any]:
    match node:
        case Product() | Parameter() if has_tails(node):
            distribution = node.weight.distribution
            powers = sums(node) if isinstance(node, Product) else jnp.ones(node.shape)
            return {node.weight.key: distribution.std * (excess(distribution) * powers) ** 0.25}
        case Sum() | Times():
            total: dict[Hashable, Any] = {}
            for c, child in node.terms if isinstance(node, Sum) else _gained(node):
                for key, root in _fourth_roots(child, sums).items():
                    total[key] = total.get(key, 0.0) + abs(c) * root
            return total
        case Linear() if not node.numbers:
            return {key: jnp.abs(node.map(root)) for key, root in _fourth_roots(node.node, sums).items()}
        case _:
            return {}


@functools.lru_cache(maxsize=1024)
def sensitivity(function: Function, variance: float, *, mean_only: bool = False) -> float:
    """Returns the relative change of E f(v)^2 or E f'(v)^2, the larger one, for an excess kurtosis of 1; at least 1/24.

    Args:
      function: The function f.
      variance: The variance of v.
      mean_only: Whether to return the change of E f(v) instead, which may be 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nngp_dag.tracing.functions import recognize
      >>> round(sensitivity(recognize(jnp.square), 2.0), 6)  # E v^4 = (3 + excess kurtosis) q^2
      0.333333
    """
    with jax.enable_x64(True):
        at = jnp.asarray(math.sqrt(variance) * _POINTS)
        values, slopes = (np.asarray(one) for one in jax.jvp(function.fn, (at,), (jnp.ones_like(at),)))
    if mean_only:
        return _change(values)
    return max(_change(values**2), _change(slopes**2), 1 / 24)


def _change(values: np.ndarray) -> float:
    """Returns the relative change of the mean of values at the points for an excess kurtosis of 1."""
    total, size = float(_WEIGHTS @ values), float(_WEIGHTS @ abs(values))
    return abs(float(_WEIGHTS @ (values * _HERMITE))) / 24 / max(abs(total), 1e-3 * size) if size else 0.0
