"""The two functions that every activation implements, and what their formulas share."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nngp_dag.activations import Activation
from nngp_dag.errors import InputError
from nngp_dag.kernels.dual.arcsine import double_arcsine

Triple = tuple[jax.Array, jax.Array, jax.Array]


def root(x: jax.Array) -> jax.Array:
    """Returns the square root, with derivative 0 at 0: infinity there would make gradients through a `where` NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


@functools.singledispatch
def dual(phi: Activation, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    """Computes the dual of an activation.

    Args:
      phi: The activation.
      k: E[u v].
      half_distance: E[(u - v)^2] / 2, exactly 0 where u = v.
      q1: E[u^2], of the rank of `k`.
      q2: E[v^2], of the rank of `k`.

    Returns:
      F, D_F and Fd, of the shape of `k`.

    Raises:
      InputError: No dual is known for the class of `phi`.
    """
    raise InputError(f"Expected an activation whose dual is known, got {phi!r}; wrap it in `activations.Quadrature`")


@functools.singledispatch
def mean(phi: Activation, q: jax.Array) -> jax.Array:
    """Computes the mean mu = E[phi(u)] for u ~ N(0, q).

    Raises:
      InputError: No dual is known for the class of `phi`.
    """
    raise InputError(f"Expected an activation whose mean is known, got {phi!r}; wrap it in `activations.Quadrature`")


def positive_part(x: jax.Array) -> jax.Array:
    """Returns max(x, 0), with derivative 1 at 0, as on the diagonal, where determinants are 0, it must be."""
    return jnp.where(x < 0, 0, x)


def clip(x: jax.Array) -> jax.Array:
    """Clips to [-1, 1], with derivative 1 at both ends, for the same reason."""
    return jnp.where(x > 1, 1, jnp.where(x < -1, -1, x))


def lengths(k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, ...]:
    """Returns s1 = sqrt(q1), s2, s1 - s2, r = s1 s2, r - k, and where r - k comes from D, not from r and k."""
    s1, s2 = root(q1), root(q2)
    # Roots before the product, so that two tiny numbers do not underflow.
    r, total = s1 * s2, s1 + s2
    # Exact where the norms are nearly equal, which the difference of the two rounded roots is not.
    difference = (q1 - q2) / jnp.where(total > 0, total, 1)
    close = half_distance < r / 2
    remainder = jnp.where(close, half_distance - difference**2 / 2, r - k)
    return s1, s2, difference, r, positive_part(remainder), close


def determinant(k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Returns q1 q2 - k^2."""
    *_, r, remainder, close = lengths(k, half_distance, q1, q2)
    return positive_part(jnp.where(close, remainder * (r + k), q1 * q2 - k**2))


def angle(k: jax.Array, r: jax.Array, remainder: jax.Array, half_distance: jax.Array) -> tuple[jax.Array, ...]:
    """Returns cos(theta), sin(theta), 1 - cos(theta), and min(theta, pi - theta).

    An input 0 is taken to be orthogonal to others and to coincide with another input 0.
    """
    positive = r > 0
    inverse = 1 / jnp.where(positive, r, 1)
    apart = jnp.where(half_distance > 0, jnp.ones((), k.dtype), 0)
    gap = jnp.where(positive, jnp.minimum(remainder * inverse, 2), apart)
    cos = jnp.where(positive, clip(k * inverse), 1 - gap)
    sin = root(gap * (1 + cos))
    # sin^2(t / 2), a quarter of the squared distance of the two directions, or of one and the opposite of the other.
    near = jnp.where(k < 0, positive_part(r + k), remainder)
    square = jnp.where(positive, near * inverse, apart) / 2
    return cos, sin, gap, double_arcsine(square, root(square))


def odd_factorial(n: int) -> int:
    """Returns (2 n - 1)!! = E[z^(2 n)]."""
    return math.prod(range(1, 2 * n, 2))


def series(
    left: Sequence[jax.Array], right: Sequence[jax.Array], x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns P(x), P'(x) and (P(y) - P(x)) / (y - x) for P(x) = sum_n left[n] right[n] x^n, by Horner's scheme."""
    value, derivative, quotient = (jnp.zeros_like(x) for _ in range(3))
    for a, b in zip(reversed(left), reversed(right), strict=True):
        # The partial values of Horner's scheme at x are the coefficients of the quotient.
        derivative, quotient = derivative * x + value, quotient * y + value
        value = value * x + a * b
    return value, derivative, quotient
