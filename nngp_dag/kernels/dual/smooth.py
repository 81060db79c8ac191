"""Duals of smooth functions in closed form."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nngp_dag.activations import Erf, Exp, Gabor, Gaussian, Polynomial, Sin
from nngp_dag.kernels.dual.arcsine import polynomial
from nngp_dag.kernels.dual.base import (
    Pair,
    Triple,
    gap_of_series,
    mean,
    odd_factorial,
    register_smooth,
    series,
    size,
    widened,
)


@register_smooth(Erf, parity=lambda phi: 1)
def _dual_erf(phi: Erf, pair: Pair) -> Triple:
    # Williams 1997, eq. (11): 2 / pi times the arcsine of rho = 2 b^2 k / sqrt((1 + 2 b^2 q1) (1 + 2 b^2 q2)). The
    # angle comes from rho and its cofactor by arctan2, because an arcsine loses digits where rho is close to 1.
    scale, factor = 2 * phi.b**2, 2 / math.pi * phi.a**2
    with_noise = widened(scale, pair)
    rho, cofactor = with_noise.rho, with_noise.cofactor
    half_distance = jnp.zeros_like(pair.k)
    for rho1, cofactor1, rise in (with_noise.own1, with_noise.own2):
        # The difference arcsin(rho1) - arcsin(rho) as one angle, whose sine does not cancel.
        sine = rise * (cofactor1 + rho1 * (rho1 + rho) / (cofactor + cofactor1))
        half_distance += factor / 2 * jnp.arctan2(sine, rho1 * rho + cofactor1 * cofactor)
    slope = factor * (scale / with_noise.sigma1 / with_noise.sigma2 / cofactor)
    return factor * jnp.arctan2(rho, cofactor), half_distance, slope


@mean.register(Erf)
def _mean_erf(phi: Erf, q: jax.Array) -> jax.Array:
    return jnp.full_like(q, phi.c)


def _difference_of_exponentials(x: jax.Array, y: jax.Array, difference: jax.Array) -> jax.Array:
    """Returns |exp(x) - exp(y)|, given an accurate x - y."""
    return jnp.exp(jnp.maximum(x, y)) * -jnp.expm1(-jnp.abs(difference))


def _sin_and_cos(x: Any) -> tuple[Any, Any]:
    """Returns sine and cosine; those of a Python float are computed in float64 even if arrays are float32."""
    return (math.sin(x), math.cos(x)) if isinstance(x, float) else (jnp.sin(x), jnp.cos(x))


@register_smooth(Sin, lambda phi: phi.parity)
def _dual_sin(phi: Sin, pair: Pair) -> Triple:
    # 2 sin(x) sin(y) = cos(x - y) - cos(x + y), and E[cos(b (u - v))] = exp(-b^2 D) with the half distance D. For u + v
    # the exponent has half the mean squared sum, S.
    b2, k = phi.b**2, pair.k
    sin, cos = _sin_and_cos(phi.c)
    sin2, cos2, cos_of_2c = sin**2, cos**2, _sin_and_cos(2 * phi.c)[1]
    half_sum = pair.above + pair.difference**2 / 2
    # The larger exponential is factored out, so that no factor overflows.
    outer = jnp.exp(-b2 * jnp.where(k < 0, half_sum, pair.half_distance)) / 2
    once, twice = jnp.expm1(-b2 * size(k)), jnp.expm1(-2 * b2 * size(k))
    odd = jnp.where(k < 0, outer * twice, -outer * twice)
    c = cos2 * odd + sin2 * outer * once**2
    slope = cos2 * outer * (2 + twice) + sin2 * odd
    # E[cos(2 b u)] = exp(-2 b^2 q1). Half the sum of two such numbers is their geometric mean plus half the
    # squared difference of their roots. The means a sin(c) exp(-b^2 q1 / 2) are treated in the same way.
    spread, apart = (
        _difference_of_exponentials(-factor * pair.q1, -factor * pair.q2, factor * (pair.q1 - pair.q2))
        for factor in (b2, b2 / 2)
    )
    even = 2 * cos2 + cos_of_2c * jnp.expm1(-b2 * half_sum)
    half_distance = -jnp.expm1(-b2 * pair.half_distance) * even - cos_of_2c * spread**2 / 2 - sin2 * apart**2
    return phi.a**2 * c, phi.a**2 / 2 * half_distance, phi.a**2 * b2 * slope


@mean.register(Sin)
def _mean_sin(phi: Sin, q: jax.Array) -> jax.Array:
    return phi.a * _sin_and_cos(phi.c)[0] * jnp.exp(-(phi.b**2) / 2 * q)


@register_smooth(Exp)
def _dual_exp(phi: Exp, pair: Pair) -> Triple:
    b2, (k, q1, q2) = phi.b**2, pair[:3]
    product_of_means = phi.a**2 * jnp.exp(b2 * (q1 + q2) / 2)
    f = phi.a**2 * jnp.exp(b2 * ((q1 + q2) / 2 + k))
    spread, apart = (
        _difference_of_exponentials(factor * q1, factor * q2, factor * (q1 - q2)) for factor in (b2, b2 / 2)
    )
    half_distance = phi.a**2 / 2 * (spread**2 - apart**2) + f * jnp.expm1(b2 * pair.half_distance)
    # The larger exponential is factored out, so that no factor overflows.
    c = jnp.where(k < 0, product_of_means * jnp.expm1(b2 * k), -f * jnp.expm1(-b2 * k))
    return c, half_distance, b2 * f


@mean.register(Exp)
def _mean_exp(phi: Exp, q: jax.Array) -> jax.Array:
    return phi.a * jnp.exp(phi.b**2 / 2 * q)


@register_smooth(Gaussian, parity=lambda phi: -1)
def _dual_gaussian(phi: Gaussian, pair: Pair) -> Triple:
    # For x = (u, v), E[exp(-x^T x scale / 2)] = det(I + scale Sigma)^(-1/2) = 1 / (sigma1 sigma2 cofactor). Means are
    # 1 / sigma.
    scale = -2 * phi.b
    sigma1, sigma2, rho, cofactor, own1, own2 = widened(scale, pair)
    product = sigma1 * sigma2
    excess = rho**2 / (cofactor * (1 + cofactor))
    # Cofactors may be as small as 1 / sigma, so only the products of a sigma and a cofactor are sure to stay in range.
    # `ahead` is sigma2 - sigma1.
    ahead = scale * (pair.q2 - pair.q1) / (sigma1 + sigma2)
    half_distance = jnp.zeros_like(rho)
    for (rho1, cofactor1, rise), sigma, lead in ((own1, sigma1, ahead), (own2, sigma2, -ahead)):
        # `fall` and the next term add up to excess1 / sigma^2 - excess / product, without cancellation.
        fall = rise * (rho1 + rho) / (sigma * (cofactor + cofactor1)) / (sigma * cofactor) / cofactor1
        half_distance += fall + excess * (lead / product) / sigma
    slope = (scale / product) * (rho / (product * cofactor) / cofactor) / cofactor
    return phi.a**2 * (excess / product), phi.a**2 / 2 * half_distance, phi.a**2 * slope


@mean.register(Gaussian)
def _mean_gaussian(phi: Gaussian, q: jax.Array) -> jax.Array:
    return phi.a / jnp.sqrt(1 - 2 * phi.b * q)


@register_smooth(Gabor, parity=lambda phi: 1)
def _dual_gabor(phi: Gabor, pair: Pair) -> Triple:
    # Let M = det(I + 2 Sigma). exp(-u^2 - v^2) times the normal density is M^(-1/2) times another normal density. Its
    # covariance is Sigma (I + 2 Sigma)^-1 = [[q1 + 2 det, k], [k, q2 + 2 det]] / M with det = det(Sigma). Under it,
    # cos(u - v) - cos(u + v) has a mean as for `Sin`.
    k, q1, q2 = pair[:3]
    with_noise = widened(2.0, pair)
    whole = with_noise.sigma1 * with_noise.sigma2 * with_noise.cofactor
    y = 1 / whole
    area = (pair.below * y) * (pair.above * y)
    kappa = k * y * y
    total = (q1 + q2) * y * y
    decay = y * jnp.exp(-(total / 2 + 2 * area))
    f = decay * jnp.sinh(kappa)
    slope = decay * (4 * kappa * (1 + y * y + total) * jnp.sinh(kappa) + (1 + 8 * k * kappa) * y * y * jnp.cosh(kappa))
    apart = pair.half_distance * y * y + 2 * area
    half_distance = jnp.zeros_like(k)
    for q, other in ((q1, q2), (q2, q1)):
        part = jnp.sqrt(1 + 4 * q)
        y1 = 1 / part
        # `excess` is (M - M1) / M, and `fall` is y1 - y.
        excess = 2 * (other - q) * y * y + 4 * area
        fall = (2 * (other - q) / (part + whole) + 4 * pair.below * (pair.above / (part + whole))) * y1 * y
        # The exponent of cos(u + v) is `together`, 2 q / M1, for the input with itself. For the pair it exceeds that by
        # `more`.
        together = 2 * (q * y1 * y1)
        more = (other - q - pair.half_distance) * y * y + 2 * area - together * excess
        terms = -jnp.expm1(-apart) + jnp.exp(-together) * jnp.expm1(-more)
        half_distance += (terms * y1 + 2 * (f * whole) * fall) / 4
    return f, half_distance, slope


@mean.register(Gabor)
def _mean_gabor(phi: Gabor, q: jax.Array) -> jax.Array:
    return jnp.zeros_like(q)


def _parity_of_polynomial(phi: Polynomial) -> int:
    # Coefficients equal to 0 belong to the structure (see `activations.Activation`), so they are never traced.
    present = [not (isinstance(c, float) and c == 0) for c in phi.coefficients]
    odd, even = any(present[1::2]), any(present[2::2])
    return 0 if odd and even else -1 if even else 1


@register_smooth(Polynomial, _parity_of_polynomial, returns="gap")
def _dual_polynomial(phi: Polynomial, pair: Pair) -> Triple:
    # C = sum_(l > 0) A_l(q1) A_l(q2) k^l / l! with A_l(q) = E[phi^(l)(u)]. It is a Taylor series in
    # k: its derivatives at k = 0 follow from Price's theorem, applied l times.
    zero = jnp.zeros_like(pair.q1 + pair.q2)
    left, right = ([zero, *_mean_derivatives(phi.coefficients, q)[1:]] for q in (pair.q1, pair.q2))
    c, slope, quotient = series(left, right, pair.k, pair.r)
    left, right = ([a * v**n for n, a in enumerate(side)] for side, v in ((left, pair.s1), (right, pair.s2)))
    return c, gap_of_series(pair.below * quotient, left, right), slope


@mean.register(Polynomial)
def _mean_polynomial(phi: Polynomial, q: jax.Array) -> jax.Array:
    return _mean_derivatives(phi.coefficients, q)[0]


def _mean_derivatives(coefficients: Sequence[float | jax.Array], q: jax.Array) -> list[jax.Array]:
    """Returns E[phi^(l)(u)] / sqrt(l!) for l = 0, 1, ..., up to the degree."""
    results = []
    for order in range(len(coefficients)):
        halves = coefficients[order::2]
        moments = [
            c * math.perm(order + 2 * i, order) * odd_factorial(i) / math.sqrt(math.factorial(order))
            for i, c in enumerate(halves)
        ]
        results.append(polynomial(moments, q))
    return results
