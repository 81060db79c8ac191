"""Duals of smooth functions with a closed form."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nngp_dag.activations import Erf, Exp, Gabor, Gaussian, Gelu, Polynomial, Sin
from nngp_dag.kernels.dual.arcsine import polynomial
from nngp_dag.kernels.dual.base import (
    Triple,
    determinant,
    dual,
    lengths,
    mean,
    odd_factorial,
    positive_part,
    series,
)


def _arcsine_difference(
    x1: jax.Array, x: jax.Array, x1_minus_x: jax.Array, delta1: jax.Array, delta: jax.Array, rise: jax.Array
) -> jax.Array:
    """Returns arctan(x1 / delta1) - arctan(x / delta), given x1 - x and `rise` = delta - delta1."""
    return jnp.arctan2(x1 * rise + x1_minus_x * delta1, x1 * x + delta1 * delta)


@dual.register(Erf)
def _dual_erf(phi: Erf, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # Williams 1997, eq. (11): the arcsine of 2 b^2 k / sqrt((1 + 2 b^2 q1) (1 + 2 b^2 q2)).
    scale = 2 * phi.b**2
    factor = 2 / math.pi * phi.a**2
    x = scale * k
    widening = scale**2 * determinant(k, half_distance, q1, q2)
    delta = jnp.sqrt(1 + scale * (q1 + q2) + widening)
    half_distance_f = jnp.zeros_like(k)
    for q, other in ((q1, q2), (q2, q1)):
        x1, delta1 = scale * q, jnp.sqrt(1 + 2 * scale * q)
        rise = (scale * (other - q) + widening) / (delta1 + delta)
        x1_minus_x = scale * (half_distance + (q - other) / 2)
        half_distance_f += factor / 2 * _arcsine_difference(x1, x, x1_minus_x, delta1, delta, rise)
    return factor * jnp.arctan2(x, delta) + phi.c**2, half_distance_f, factor * scale / delta


@mean.register(Erf)
def _mean_erf(phi: Erf, q: jax.Array) -> jax.Array:
    return jnp.full_like(q, phi.c)


@dual.register(Gelu)
def _dual_gelu(phi: Gelu, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # Tsuchida et al. 2021 (arXiv:2002.08517), rewritten: with y = 1 / (1 + q), delta^2 = 1 + q1 + q2 + q1 q2 - k^2 and
    # alpha = pi / 2 + arctan(k / delta),
    # 2 pi F = k alpha + k^2 y1 y2 / delta + q1 q2 y1 y2 delta = k alpha + 1 / delta + delta (1 - y1 - y2).
    area = determinant(k, half_distance, q1, q2)
    delta = jnp.sqrt(1 + q1 + q2 + area)
    y1, y2 = 1 / (1 + q1), 1 / (1 + q2)
    alpha = jnp.arctan2(delta, -k)
    f = k * alpha + (k * y1) * (k * y2) / delta + (q1 * y1) * (q2 * y2) * delta
    # The first form does not cancel; the second, whose terms differ by little, gives D_F.
    total = jnp.zeros_like(k)
    for q, other, y in ((q1, q2, y1), (q2, q1, y2)):
        delta1 = jnp.sqrt(1 + 2 * q)
        q_minus_k = half_distance + (q - other) / 2
        rise = (other - q + area) / (delta1 + delta)
        turn = _arcsine_difference(q, k, q_minus_k, delta1, delta, rise)
        total += q_minus_k * jnp.arctan2(delta1, -q) + k * turn + rise * (1 / (delta1 * delta) - 1 + 2 * y)
    fd = alpha + k / delta * (1 / delta**2 + y1 + y2)
    return f / (2 * jnp.pi), total / (4 * jnp.pi), fd / (2 * jnp.pi)


@mean.register(Gelu)
def _mean_gelu(phi: Gelu, q: jax.Array) -> jax.Array:
    return q / jnp.sqrt(2 * jnp.pi * (1 + q))


def _difference_of_exponentials(x: jax.Array, y: jax.Array, difference: jax.Array) -> jax.Array:
    """Returns |exp(x) - exp(y)|, given x - y."""
    return jnp.exp(jnp.maximum(x, y)) * -jnp.expm1(-jnp.abs(difference))


@dual.register(Sin)
def _dual_sin(phi: Sin, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # 2 sin(x) sin(y) = cos(x - y) - cos(x + y), and E[cos(b (u -+ v))] = exp(-b^2 D), exp(-b^2 S).
    b2 = phi.b**2
    half_sum = positive_part((q1 + q2) / 2 + k)
    near, far = jnp.exp(-b2 * half_distance), jnp.exp(-b2 * half_sum)
    # near - far, with the larger one outside, so that neither factor overflows.
    ahead = k >= 0
    shrink = jnp.expm1(-2 * b2 * jnp.where(ahead, k, -k))
    odd = jnp.where(ahead, -near * shrink, far * shrink)
    sin2, cos2, cos_of_2c = math.sin(phi.c) ** 2, math.cos(phi.c) ** 2, math.cos(2 * phi.c)
    f = sin2 * near + cos_of_2c / 2 * odd
    fd = cos2 * near - cos_of_2c / 2 * odd
    # E[cos(2 b u)] = exp(-2 b^2 q1); half the sum of two such is their geometric mean and a square.
    spread = _difference_of_exponentials(-b2 * q1, -b2 * q2, b2 * (q1 - q2))
    even = 2 * cos2 + cos_of_2c * jnp.expm1(-b2 * half_sum)
    half_distance_f = -jnp.expm1(-b2 * half_distance) * even - cos_of_2c * spread**2 / 2
    return phi.a**2 * f, phi.a**2 / 2 * half_distance_f, phi.a**2 * b2 * fd


@mean.register(Sin)
def _mean_sin(phi: Sin, q: jax.Array) -> jax.Array:
    return phi.a * math.sin(phi.c) * jnp.exp(-(phi.b**2) / 2 * q)


@dual.register(Exp)
def _dual_exp(phi: Exp, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    b2 = phi.b**2
    f = phi.a**2 * jnp.exp(b2 * ((q1 + q2) / 2 + k))
    spread = _difference_of_exponentials(b2 * q1, b2 * q2, b2 * (q1 - q2))
    return f, phi.a**2 / 2 * spread**2 + f * jnp.expm1(b2 * half_distance), b2 * f


@mean.register(Exp)
def _mean_exp(phi: Exp, q: jax.Array) -> jax.Array:
    return phi.a * jnp.exp(phi.b**2 / 2 * q)


def _inverse_root(
    scale: float, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array, list[tuple[jax.Array, jax.Array, jax.Array, jax.Array]]]:
    """Returns M^(-1/2) for M = det(I + scale Sigma), det(Sigma), and what a difference from the diagonal needs.

    That is for each input (q, y, y - M^(-1/2), M - M1), where M1 = 1 + 2 scale q and y = M1^(-1/2) are those of the
    input with itself.
    """
    area = determinant(k, half_distance, q1, q2)
    whole = jnp.sqrt(1 + scale * (q1 + q2) + scale**2 * area)
    own = []
    for q, other in ((q1, q2), (q2, q1)):
        part = jnp.sqrt(1 + 2 * scale * q)
        excess = scale * (other - q) + scale**2 * area
        own.append((q, 1 / part, excess / (part + whole) / part / whole, excess))
    return 1 / whole, area, own


@dual.register(Gaussian)
def _dual_gaussian(phi: Gaussian, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # E[exp(-x^T x scale / 2)] = det(I + scale Sigma)^(-1/2).
    scale = -2 * phi.b
    y, _, ((_, _, fall1, _), (_, _, fall2, _)) = _inverse_root(scale, k, half_distance, q1, q2)
    return phi.a**2 * y, phi.a**2 / 2 * (fall1 + fall2), phi.a**2 * scale**2 * (k * y * y * y)


@mean.register(Gaussian)
def _mean_gaussian(phi: Gaussian, q: jax.Array) -> jax.Array:
    return phi.a / jnp.sqrt(1 - 2 * phi.b * q)


@dual.register(Gabor)
def _dual_gabor(phi: Gabor, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # exp(-u^2 - v^2) turns Sigma into Sigma (I + 2 Sigma)^-1 = [[q1 + 2 det, k], [k, q2 + 2 det]] / M and leaves
    # M^(-1/2), M = det(I + 2 Sigma); under it cos(u - v) - cos(u + v) has a mean as for `Sin`.
    y, area, own = _inverse_root(2.0, k, half_distance, q1, q2)
    kappa = k * y * y
    total = q1 + q2
    decay = y * jnp.exp(-(total / 2 + 2 * area) * y * y)
    f = decay * jnp.sinh(kappa)
    fd = decay * (
        4 * kappa * (1 + (1 + total) * y * y) * jnp.sinh(kappa) + (1 + 8 * k * kappa) * y * y * jnp.cosh(kappa)
    )
    apart = (half_distance + 2 * area) * y * y
    half_distance_f = jnp.zeros_like(k)
    for (q, y1, fall, excess), other in zip(own, (q2, q1), strict=True):
        # The exponents of cos(u + v): 2 q / M1 for the input with itself, and by how much more for the pair.
        together = 2 * q * y1 * y1
        more = (other - q - half_distance + 2 * area) * y * y - together * excess * y * y
        terms = -jnp.expm1(-apart) + jnp.exp(-together) * jnp.expm1(-more)
        half_distance_f += (terms * y1 + 2 * f / y * fall) / 4
    return f, half_distance_f, fd


@mean.register(Gabor)
def _mean_gabor(phi: Gabor, q: jax.Array) -> jax.Array:
    return jnp.zeros_like(q)


@dual.register(Polynomial)
def _dual_polynomial(phi: Polynomial, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # F = sum_l A_l(q1) A_l(q2) k^l / l!, with A_l(q) = E[phi^(l)(u)]; Price's theorem l times at k = 0.
    s1, s2, _, r, remainder, _ = lengths(k, half_distance, q1, q2)
    left, right = (_mean_derivatives(phi.coefficients, q) for q in (q1, q2))
    f, fd, quotient = series(left, right, k, r)
    squares = jnp.zeros_like(k)
    for n, (a, b) in enumerate(zip(left, right, strict=True)):
        squares += (a * s1**n - b * s2**n) ** 2
    return f, jnp.where(half_distance > 0, squares / 2 + remainder * quotient, 0), fd


@mean.register(Polynomial)
def _mean_polynomial(phi: Polynomial, q: jax.Array) -> jax.Array:
    return _mean_derivatives(phi.coefficients, q)[0]


def _mean_derivatives(coefficients: Sequence[float], q: jax.Array) -> list[jax.Array]:
    """Returns E[phi^(l)(u)] / sqrt(l!) for l = 0, 1, ..."""
    results = []
    for order in range(len(coefficients)):
        halves = coefficients[order::2]
        moments = [
            c * math.perm(order + 2 * i, order) * odd_factorial(i) / math.sqrt(math.factorial(order))
            for i, c in enumerate(halves)
        ]
        results.append(polynomial(moments, q))
    return results
