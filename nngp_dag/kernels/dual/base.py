"""The functions `dual` and `mean` that every activation implements, and helpers that their formulas share."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from nngp_dag.activations import Activation
from nngp_dag.errors import InputError
from nngp_dag.kernels.dual.arcsine import double_arcsine


class Dual(NamedTuple):
    """The Gaussian expectations of an activation for pairs of inputs, of the shape of `k`.

    Attributes:
      covariance: The covariance C = Cov[phi(u), phi(v)].
      gap: The gap sqrt(C11 C22) - |C|.
      slope: The expectation F' = E[phi'(u) phi'(v)].
    """

    covariance: jax.Array
    gap: jax.Array
    slope: jax.Array


class Pair(NamedTuple):
    """Second moments of two inputs, and differences of them that subtraction would round away.

    Attributes:
      k: The covariance E[u v].
      q1: The variance E[u^2].
      q2: The variance E[v^2].
      s1: The root sqrt(q1).
      s2: The root sqrt(q2).
      r: The product s1 s2, the largest possible k.
      difference: The difference s1 - s2.
      below: The difference r - k.
      above: The sum r + k.
    """

    k: jax.Array
    q1: jax.Array
    q2: jax.Array
    s1: jax.Array
    s2: jax.Array
    r: jax.Array
    difference: jax.Array
    below: jax.Array
    above: jax.Array

    @property
    def half_distance(self) -> jax.Array:
        """The half distance E[(u - v)^2] / 2, a sum of two numbers that are not negative."""
        return self.below + self.difference**2 / 2


def root(x: jax.Array) -> jax.Array:
    """Returns the square root, with derivative 0 at 0; an infinite derivative would make gradients of `where` NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x / y, and 0 where y is not positive."""
    positive = y > 0
    return jnp.where(positive, x / jnp.where(positive, y, 1), 0)


def size(k: jax.Array) -> jax.Array:
    """Returns |k|, with derivative 1 at 0."""
    return jnp.where(k < 0, -k, k)


def difference_of_roots(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Returns sqrt(q1) - sqrt(q2) without cancellation; a difference of rounded roots would lose digits if q1 ~ q2."""
    return ratio(q1 - q2, root(q1) + root(q2))


def gap_of(k: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Returns sqrt(q1 q2) - |k| by subtraction; it is exactly 0 where q1 = q2 = |k|.

    The angle of nearly parallel inputs keeps only half of its digits, because k is already rounded.
    """
    r = root(q1) * root(q2)
    # For close inputs, r would bring in the rounding of two roots. The half distance needs no roots of q1 and q2.
    half_distance = (q1 + q2) / 2 - size(k)
    close = half_distance < r / 2
    return positive_part(jnp.where(close, half_distance - difference_of_roots(q1, q2) ** 2 / 2, r - size(k)))


@functools.singledispatch
def dual(phi: Activation, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array) -> Dual:
    """Computes the dual of an activation.

    Args:
      phi: The activation.
      k: The covariance E[u v].
      gap: The gap sqrt(q1 q2) - |k|; it must be exactly 0 where u = v or u = -v.
      q1: The variance E[u^2], of the rank of `k`.
      q2: The variance E[v^2], of the rank of `k`.

    Returns:
      Covariance, gap and slope, of the shape of `k`.

    Raises:
      InputError: No dual is known for the class of `phi`.
    """
    raise _without_formula("dual", phi)


@functools.singledispatch
def mean(phi: Activation, q: jax.Array) -> jax.Array:
    """Computes the mean mu = E[phi(u)] for u ~ N(0, q).

    Raises:
      InputError: No dual is known for the class of `phi`.
    """
    raise _without_formula("mean", phi)


def _without_formula(what: str, phi: Activation) -> InputError:
    return InputError(
        f"Expected an activation whose {what} is known, got one of class {type(phi).__name__}; register its {what} "
        "(see docs/extending.md), or wrap it in `activations.Quadrature`"
    )


@functools.singledispatch
def variance(phi: Activation, q: jax.Array) -> jax.Array:
    """Computes the variance of phi(u) for u ~ N(0, q)."""
    return dual(phi, q, jnp.zeros_like(q), q, q).covariance


# `jit` traces the variance once for a class of activations and a shape; duals and layer rules both need it.
traced_variance = jax.jit(variance, inline=True)


# C, the distance or gap of the outputs, and F'.
Triple = tuple[jax.Array, jax.Array, jax.Array]
Formula = Callable[[Any, Pair], Triple]


def register_smooth(
    cls: type[Activation],
    parity: Callable[[Any], int] = lambda phi: 0,
    returns: Literal["distance", "scaled distance", "gap"] = "distance",
) -> Callable[[Formula], Formula]:
    """Registers the dual of a smooth function from a formula.

    Args:
      cls: The class of the activation.
      parity: A function of the activation: 1 if phi - phi(0) is odd, -1 if phi is even, else 0. With a parity, nearly
        opposite inputs are computed as nearly equal ones.
      returns: The second number of the formula. "distance" is the half distance (C11 + C22) / 2 - C. "scaled distance"
        is that of outputs over the norms of inputs, r (C11 / q1 + C22 / q2) / 2 - C with r = sqrt(q1 q2). "gap" is
        sqrt(C11 C22) - C. The formula must return 0 for inputs that coincide, and must not subtract nearly equal
        numbers for inputs close to that.

    Returns:
      A decorator of a formula (phi, pair) -> (C, second number, F').
    """

    def decorator(formula: Formula) -> Formula:
        @dual.register(cls)
        def of_inputs(phi: Activation, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array) -> Dual:
            sign = parity(phi)
            opposite = k < 0
            s1, s2 = root(q1), root(q2)
            r = s1 * s2
            # A function with a parity needs k >= 0 only; the sign is restored below. Otherwise the gap is the small one
            # of r - k and r + k, and the other is a sum without cancellation.
            if sign:
                k, below, above = size(k), gap, r + size(k)
            else:
                below, above = jnp.where(opposite, r - k, gap), jnp.where(opposite, gap, r + k)
            pair = Pair(k, q1, q2, s1, s2, r, difference_of_roots(q1, q2), below, above)
            c, distance, slope = formula(phi, pair)
            own1, own2 = traced_variance(phi, q1), traced_variance(phi, q2)
            r_of_outputs = root(own1) * root(own2)
            if returns == "gap":
                found = jnp.where(c < 0, r_of_outputs + c, distance)
            else:
                # A half distance is the gap plus a part for the difference of norms. If that part dominates, the
                # subtraction would cancel; the gap is large then, and comes from C itself.
                if returns == "distance":
                    rest = difference_of_roots(own1, own2) ** 2 / 2
                else:
                    rest = r / 2 * difference_of_roots(ratio(own1, q1), ratio(own2, q2)) ** 2
                found = jnp.where(distance < r_of_outputs / 2, distance - rest, r_of_outputs - size(c))
            # The gap of inputs that coincide is 0, whatever the rounding of the variances.
            found = jnp.where((below == 0) & (q1 == q2), 0, positive_part(found))
            if sign > 0:
                c = jnp.where(opposite, -c, c)
            elif sign < 0:
                slope = jnp.where(opposite, -slope, slope)
            return Dual(c, found, slope)

        @variance.register(cls)
        def of_input(phi: Activation, q: jax.Array) -> jax.Array:
            zero = jnp.zeros_like(q)
            return formula(phi, Pair(q, q, q, root(q), root(q), q, zero, zero, 2 * q))[0]

        return formula

    return decorator


def gap_of_series(rise: jax.Array, left: Sequence[jax.Array], right: Sequence[jax.Array]) -> jax.Array:
    """Returns sqrt(C11 C22) - C for C = sum_n left[n] right[n] rho^n, without cancellation.

    The remainder sqrt(C11 C22) - C(rho = 1) is sqrt(C11 C22) / 2 times the squared distance of two unit vectors. They
    are `left` and `right`, divided by their norms.

    Args:
      rise: The difference C(rho = 1) - C.
      left: The coefficients of the first input.
      right: The coefficients of the second input.
    """
    norm1, norm2 = (root(sum((a**2 for a in side), start=jnp.zeros_like(side[0]))) for side in (left, right))
    apart = jnp.zeros_like(rise)
    for a, b in zip(left, right, strict=True):
        apart += (ratio(a, norm1) - ratio(b, norm2)) ** 2
    return rise + norm1 * norm2 / 2 * apart


def positive_part(x: jax.Array) -> jax.Array:
    """Returns max(x, 0) with derivative 1 at 0, so that gaps of 0, those on the diagonal, keep their derivatives."""
    return jnp.where(x < 0, 0, x)


class Widened(NamedTuple):
    """Two inputs whose second moments are multiplied by `scale`, with independent noise of variance 1 added.

    Attributes:
      sigma1: The standard deviation sqrt(1 + scale q1).
      sigma2: The standard deviation sqrt(1 + scale q2).
      rho: The correlation of the pair, scale k / (sigma1 sigma2).
      cofactor: The cofactor sqrt(1 - rho^2).
      own1: Correlation and cofactor of the first input with itself (under independent noise), and that correlation
        minus `rho`.
      own2: The three numbers of `own1` for the second input.
    """

    sigma1: jax.Array
    sigma2: jax.Array
    rho: jax.Array
    cofactor: jax.Array
    own1: tuple[jax.Array, jax.Array, jax.Array]
    own2: tuple[jax.Array, jax.Array, jax.Array]


def widened(scale: float | jax.Array, pair: Pair) -> Widened:
    """Returns the pair with noise; no product of two variances is formed, because it might overflow."""
    sigma1, sigma2 = (jnp.sqrt(1 + scale * q) for q in (pair.q1, pair.q2))
    y1, y2 = 1 / sigma1**2, 1 / sigma2**2
    below, above, k = (scale * (v / sigma1 / sigma2) for v in (pair.below, pair.above, pair.k))
    cofactor = jnp.sqrt(y1 + y2 * (scale * pair.q1 * y1) + below * above)
    # `rise` is s1 / sigma1 - s2 / sigma2. It comes from s1 - s2, since it is small where the norms nearly agree.
    omega1, omega2 = pair.s1 / sigma1, pair.s2 / sigma2
    rise = pair.difference * ratio(pair.s1 + pair.s2, omega1 + omega2) * y1 * y2
    own = []
    for q, y, apart in ((pair.q1, y1, omega1 * rise), (pair.q2, y2, -omega2 * rise)):
        rho = scale * q * y
        own.append((rho, jnp.sqrt(y * (1 + rho)), scale * apart + below))
    return Widened(sigma1, sigma2, k, cofactor, *own)


def angle(k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, ...]:
    """Returns r = sqrt(q1 q2), cos(theta), sin(theta), min(theta, pi - theta), and 1 - |cos(theta)|.

    All of them come from the gap, since r (1 - |cos(theta)|) is the gap. An input of zeros counts as orthogonal to
    other inputs, and as equal to another input of zeros.
    """
    r = root(q1) * root(q2)
    positive = r > 0
    apart = jnp.where((q1 > 0) | (q2 > 0), jnp.ones((), k.dtype), 0)
    near = jnp.where(positive, ratio(gap, r), apart)
    cos = jnp.where(positive & (k < 0), near - 1, 1 - near)
    square = near / 2
    return r, cos, root(near * (2 - near)), double_arcsine(square, root(square)), near


def odd_factorial(n: int) -> int:
    """Returns (2 n - 1)!! = E[z^(2 n)]."""
    return math.prod(range(1, 2 * n, 2))


def series(
    left: Sequence[jax.Array], right: Sequence[jax.Array], x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns P(x), P'(x) and (P(y) - P(x)) / (y - x) for P(x) = sum_n left[n] right[n] x^n, by Horner's scheme.

    The quotient does not cancel where y is close to x.
    """
    value, derivative, quotient = (jnp.zeros_like(x) for _ in range(3))
    for a, b in zip(reversed(left), reversed(right), strict=True):
        # The partial values of Horner's scheme at x are the coefficients of the quotient.
        derivative, quotient = derivative * x + value, quotient * y + value
        value = value * x + a * b
    return value, derivative, quotient
