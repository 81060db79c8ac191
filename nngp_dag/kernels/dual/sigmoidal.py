"""Duals of tanh, silu and softplus, whose slopes are made of the logistic function: sums of duals in closed form.

The logistic distribution is a mixture of centred normal ones (Andrews and Mallows 1974; Stefanski 1991), so that

    1 / (1 + exp(-x)) = sum_n p_n Phi(x / s_n),

with the normal distribution function Phi, a sum of few terms up to a small error. With it tanh is a sum of functions
erf, silu of x Phi(a x), and softplus of x Phi(a x) + Phi'(a x) / a, and their duals are double sums of closed forms.
All weights are positive: nothing cancels, and half distances of nearly equal inputs are as good as for erf and gelu.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.activations import Silu, Softplus, Tanh
from nngp_dag.kernels.dual.arcsine import double_arcsine
from nngp_dag.kernels.dual.base import Pair, mean, register_smooth

# C, D_C and Fd, see `nngp_dag.kernels.dual`.
Triple = tuple[jax.Array, jax.Array, jax.Array]

# Pairs (s_n, p_n): the Gauss rules, in log(s), of the mixing density, where s is twice Kolmogorov's variable; found in
# 50 digits. Duals at variances from 1e-6 to 1e6 are off by 6e-8 and by 5e-15 of the roots of their diagonals at most.
_FLOAT32 = (
    (0.76751295449921118, 0.0074847151422980195),
    (1.0458260195885156, 0.13130282973515148),
    (1.4394128684692153, 0.39785672379425119),
    (2.0114754080268566, 0.35767481797947936),
    (2.8063576421270335, 0.10042087022320553),
    (3.8871781307111989, 0.0052600431256144229),
)
_FLOAT64 = (
    (0.51600692168542837, 6.0775626104046542e-7),
    (0.61868800972798052, 8.8321811746525573e-5),
    (0.73596762312652394, 0.0022546957763316194),
    (0.87783263793738627, 0.01999636656279343),
    (1.053944905585888, 0.082395070724233213),
    (1.2753185367241906, 0.18642697624914542),
    (1.5540625329432308, 0.25860690022766324),
    (1.9015900319288742, 0.23582944281054695),
    (2.3257007211070489, 0.14417290208627051),
    (2.8301713476475674, 0.056300471662034294),
    (3.4193237275246329, 0.012541675176245237),
    (4.1038467437260319, 0.0013357624113994549),
    (4.9108093722662207, 5.0466588562658288e-5),
    (5.9219916364899005, 3.4015676639666448e-7),
)


class _Terms(NamedTuple):
    """One of the closed forms: for Phi(a u) and Phi(b v).

    Attributes:
      ab: a b.
      a2: a^2.
      b2: b^2.
      y1: 1 / (1 + a^2 q1).
      y2: 1 / (1 + b^2 q2).
      inverse: sqrt(y1 y2).
      cofactor: sqrt(1 - (a b k)^2 y1 y2).
      delta: The root of det(I + diag(a^2, b^2) Sigma), cofactor / inverse.
      alpha: pi / 2 + arctan(a b k / delta), that is 2 pi E[Phi(a u) Phi(b v)].
      own: For either input q - k, its y with a and with b, its delta and alpha, and the rise from its delta to that
        of the pair.
      turn: alpha of the first input, plus that of the second, less 2 alpha.
    """

    ab: jax.Array
    a2: jax.Array
    b2: jax.Array
    y1: jax.Array
    y2: jax.Array
    inverse: jax.Array
    cofactor: jax.Array
    delta: jax.Array
    alpha: jax.Array
    own: list[tuple[jax.Array, ...]]
    turn: jax.Array


def _scales(dtype: np.dtype) -> tuple[tuple[float, float], ...]:
    return _FLOAT32 if dtype.itemsize <= 4 else _FLOAT64


def _acute(sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Returns the angle, from -pi / 2 to pi / 2, of a sine and a cosine."""
    root_of_y = sin / jnp.sqrt(2 * (1 + cos))
    return double_arcsine(root_of_y**2, root_of_y)


def _terms(a: jax.Array, b: jax.Array, pair: Pair) -> _Terms:
    k, q1, q2 = pair[:3]
    ab, a2, b2 = a * b, a**2, b**2
    y1, y2 = 1 / (1 + a2 * q1), 1 / (1 + b2 * q2)
    # Products of two variances, which might overflow, are never formed.
    inverse = jnp.sqrt(y1) * jnp.sqrt(y2)
    cofactor = jnp.sqrt(y1 + y2 * (a2 * q1 * y1) + (ab * pair.below * inverse) * (ab * pair.above * inverse))
    delta, rho = cofactor / inverse, ab * k * inverse
    beta = _acute(rho, cofactor)
    own, turns = [], []
    for q, other, step, q_minus_k in (
        (q1, q2, b2, pair.s1 * pair.difference + pair.below),
        (q2, q1, a2, -pair.s2 * pair.difference + pair.below),
    ):
        y_a, y_b = 1 / (1 + a2 * q), 1 / (1 + b2 * q)
        inverse1 = jnp.sqrt(y_a) * jnp.sqrt(y_b)
        delta1 = jnp.sqrt(1 + (a2 + b2) * q)
        rho1, cofactor1 = ab * q * inverse1, delta1 * inverse1
        beta1 = _acute(rho1, cofactor1)
        rise = step * (other - q) / (delta1 + delta) + ab**2 * pair.below * (pair.above / (delta1 + delta))
        own.append((q_minus_k, y_a, y_b, delta1, beta1 + math.pi / 2, rise))
        sine = rho1 * (rise * inverse) + (ab * q_minus_k * inverse) * cofactor1
        turns.append((sine, rho1 * rho + cofactor1 * cofactor, beta1))
    (sin1, cos1, beta1), (sin2, cos2, beta2) = turns
    # The sum of both turns: where it is small by their sine, else by what it is a difference of.
    sin, cos = sin1 * cos2 + cos1 * sin2, cos1 * cos2 - sin1 * sin2
    small = (cos > 0.5) & (k > 0)
    turn = jnp.where(small, _acute(jnp.where(small, sin, 0), jnp.where(small, cos, 1)), (beta1 - beta) + (beta2 - beta))
    return _Terms(ab, a2, b2, y1, y2, inverse, cofactor, delta, beta + math.pi / 2, own, turn)


# Traced once for a function and shapes, also by calls outside of other compiled functions.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _double_sum(formulas: Callable[[_Terms, Pair], Triple], factor: float, pair: Pair) -> Triple:
    """Sums C, D_F and Fd of all pairs of terms, with a = factor / s_m and b = factor / s_n."""
    dtype = pair.k.dtype
    s, p = np.transpose(_scales(dtype))
    slopes = [jnp.asarray(factor / v, dtype) for v in (np.repeat(s, len(s)), np.tile(s, len(s)))]
    weights = jnp.asarray(np.outer(p, p).ravel(), dtype)

    @jax.checkpoint  # otherwise gradients keep what every pair computes
    def of_terms(n: jax.Array, pair: Pair) -> Triple:
        c, half_distance, slope = formulas(_terms(slopes[0][n], slopes[1][n], pair), pair)
        return weights[n] * c, weights[n] * half_distance, weights[n] * slope

    # A loop: written out, hundreds of pairs would take long to compile.
    def add(n: jax.Array, sums: Triple) -> Triple:
        c, half_distance, slope = of_terms(n, pair)
        return sums[0] + c, sums[1] + half_distance, sums[2] + slope

    zero = jnp.zeros_like(pair.k)
    return lax.fori_loop(0, len(weights), add, (zero, zero, zero))


def _tanh(terms: _Terms, pair: Pair) -> Triple:
    # tanh(b x) = sum_n p_n (2 Phi(2 b x / s_n) - 1).
    return 2 / math.pi * (terms.alpha - math.pi / 2), terms.turn / math.pi, 2 / math.pi * terms.ab / terms.delta


def _silu(terms: _Terms, pair: Pair) -> Triple:
    # By Stein's lemma, as for gelu, which is the case a = b = 1:
    # 2 pi F = k alpha + a b y1 y2 (k^2 / delta + q1 q2 delta) = k alpha + (1 / delta + delta (1 - y1 - y2)) / (a b).
    # The product of the means is a b q1 q2 sqrt(y1 y2) / (2 pi).
    k, q1, q2 = pair.k, pair.q1, pair.q2
    ab, a2, b2, y1, y2, inverse, cofactor, delta, alpha, own, turn = terms
    rho = ab * k * inverse
    c = k * alpha + ab * ((k * inverse) * (k * inverse) / delta - q1 * (q2 * inverse) * (rho * rho / (1 + cofactor)))
    slope = alpha + ab * k / delta * (1 / delta**2 + y1 + y2)
    # The first form does not cancel; the second, whose terms differ by little, gives D_F.
    total = k * turn
    for q_minus_k, y_a, y_b, delta1, alpha1, rise in own:
        total += q_minus_k * alpha1 + rise * (1 / delta1 / delta - 1 + y_a + y_b) / ab
    # What is left of delta (y1 + y2), after those of (a, b) and of (b, a) are added, is of second order in q1 - q2.
    (_, y1a, y1b, *_), (_, y2a, y2b, *_) = own
    share = (a2 - b2) * ((q1 - q2) / delta)
    spread = share / (1 + jnp.sqrt(jnp.maximum(1 - share / delta, (1 / delta) ** 2))) * (q1 - q2)
    total += (b2 * spread * y1b * y2b - a2 * spread * y1a * y2a) / (2 * ab)
    return c / (2 * math.pi), total / (4 * math.pi), slope / (2 * math.pi)


def _softplus(terms: _Terms, pair: Pair) -> Triple:
    # 2 pi F = k alpha + delta / (a b), whose slope in k is alpha: that of softplus is the logistic function. The
    # product of the means, which dominates where variances are small, is 1 / (2 pi a b sqrt(y1 y2)).
    k = pair.k
    total = k * terms.turn
    for q_minus_k, _, _, _, alpha1, rise in terms.own:
        total += q_minus_k * alpha1 - rise / terms.ab
    c = k * (terms.alpha - terms.ab * k * terms.inverse / (1 + terms.cofactor))
    return c / (2 * math.pi), total / (4 * math.pi), terms.alpha / (2 * math.pi)


@register_smooth(Tanh, parity=lambda phi: 1)
def _dual_tanh(phi: Tanh, pair: Pair) -> Triple:
    c, half_distance, slope = _double_sum(_tanh, 2 * abs(phi.b), pair)
    return phi.a**2 * c, phi.a**2 * half_distance, phi.a**2 * slope


@mean.register(Tanh)
def _mean_tanh(phi: Tanh, q: jax.Array) -> jax.Array:
    return jnp.full_like(q, phi.c)


def _without_means(pair: Pair, mean: Callable[[jax.Array], jax.Array], of_values: Triple) -> Triple:
    """Turns D_F into D_C."""
    c, half_distance, slope = of_values
    return c, half_distance - (mean(pair.q1) - mean(pair.q2)) ** 2 / 2, slope


@register_smooth(Silu)
def _dual_silu(phi: Silu, pair: Pair) -> Triple:
    return _without_means(pair, functools.partial(_mean_silu, phi), _double_sum(_silu, 1.0, pair))


@mean.register(Silu)
def _mean_silu(phi: Silu, q: jax.Array) -> jax.Array:
    terms = [p / s * q / jnp.sqrt(2 * math.pi * (1 + q / s**2)) for s, p in _scales(q.dtype)]
    return sum(terms, start=jnp.zeros_like(q))


@register_smooth(Softplus)
def _dual_softplus(phi: Softplus, pair: Pair) -> Triple:
    return _without_means(pair, functools.partial(_mean_softplus, phi), _double_sum(_softplus, 1.0, pair))


@mean.register(Softplus)
def _mean_softplus(phi: Softplus, q: jax.Array) -> jax.Array:
    terms = [p * s * jnp.sqrt((1 + q / s**2) / (2 * math.pi)) for s, p in _scales(q.dtype)]
    return sum(terms, start=jnp.zeros_like(q))
