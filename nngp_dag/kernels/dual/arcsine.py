"""The arcsine as a rational function, which vectorizes; compiled code calls a library's arctan2 for single numbers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Coefficients in y of P and Q with arcsin(sqrt(y)) / sqrt(y) = 1 + y P(y) / Q(y) on [0, 1/2]. They were interpolated at
# Chebyshev points in 60 digits. The exact rational functions have relative errors of at most 6.0e-9 and 8.6e-17, less
# than half a unit in the last place.
_FLOAT32 = (
    (0.16666666497150637, -0.14972776041497682, 0.013333921005386539, 0.001646103249809392),
    (1.0, -1.3483680077941504, 0.41894340574558214),
)
_FLOAT64 = (
    (
        0.16666666666666666,
        -0.4351010695971627,
        0.40682916102757416,
        -0.16042660219953836,
        0.02290239107346275,
        -0.00032981019194008854,
        -1.2525514089769679e-05,
    ),
    (
        1.0,
        -3.060606417582986,
        3.5503907112215423,
        -1.922721809521096,
        0.47533173967075976,
        -0.04135236355787844,
    ),
)


def polynomial(coefficients: Sequence[float | jax.Array], x: jax.Array) -> jax.Array:
    """Returns sum_n coefficients[n] x^n."""
    value = jnp.zeros_like(x)
    for c in reversed(coefficients):
        value = value * x + c
    return value


def _excess(y: jax.Array) -> jax.Array:
    """Returns (arcsin(sqrt(y)) / sqrt(y) - 1) / y for 0 <= y <= 1/2."""
    p, q = (polynomial(c, y) for c in (_FLOAT32 if y.dtype.itemsize <= 4 else _FLOAT64))
    return p / q


def double_arcsine(y: jax.Array, root_of_y: jax.Array) -> jax.Array:
    """Returns 2 arcsin(sqrt(y)) for 0 <= y <= 1/2, to a few units in the last place.

    Args:
      y: The square of a sine.
      root_of_y: Its root.
    """
    p, q = (polynomial(c, y) for c in (_FLOAT32 if y.dtype.itemsize <= 4 else _FLOAT64))
    # The division comes last: XLA does not evaluate an operation of that cost again for every result that needs it.
    return 2 * root_of_y * (q + y * p) / q


def acute(sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Returns the angle in [-pi / 2, pi / 2] that has the given sine and cosine."""
    # The half angle has the sine sin / sqrt(2 (1 + cos)), which does not cancel and is at most sqrt(1/2).
    root_of_y = sin / jnp.sqrt(2 * (1 + cos))
    return double_arcsine(root_of_y**2, root_of_y)


def less_arctan(x: jax.Array) -> jax.Array:
    """Returns x - arctan(x), to a few units in the last place.

    Let theta = arctan(x) and y = sin(theta / 2)^2. Then tan(theta) - theta is y sqrt(y) times a function that is not
    small, so that nothing cancels at small x.
    """
    secant = jnp.sqrt(1 + x**2)
    root_of_y = x / jnp.sqrt(2 * secant * (1 + secant))
    y = root_of_y**2
    return 2 * root_of_y * y * (secant * (2 - 1 / (1 + jnp.sqrt(1 - y))) - _excess(y))
