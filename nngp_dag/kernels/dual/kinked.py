"""Duals of functions with a kink or a jump at 0: functions of the angle between two inputs."""

import math

import jax
import jax.numpy as jnp

from nngp_dag.activations import ABRelu, RectifiedMonomial, Sign
from nngp_dag.kernels.dual.arcsine import polynomial
from nngp_dag.kernels.dual.base import (
    Triple,
    angle,
    dual,
    lengths,
    mean,
    odd_factorial,
    positive_part,
    root,
)


def _h(t: jax.Array) -> jax.Array:
    """Returns (sin(t) - t cos(t)) / pi for 0 <= t <= pi / 2, by its Taylor series, which does not cancel there."""
    value = jnp.zeros_like(t)
    for n in range(6 if t.dtype.itemsize <= 4 else 11, 0, -1):
        value = (-1) ** (n + 1) * 2 * n / math.factorial(2 * n + 1) / math.pi + t**2 * value
    return t**3 * value


@dual.register(ABRelu)
def _dual_ab_relu(phi: ABRelu, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # Cho and Saul 2009, eq. (6) at n = 1 and n = 0: relu has E = r (cos(theta) + h(theta)) / 2. In general
    # a min(x, 0) + b max(x, 0) = (a + b) x / 2 + (b - a) |x| / 2. Beyond pi / 2, cos(theta) + h(theta) = h(pi - theta),
    # which does not cancel.
    a, b = phi.a, phi.b
    straight, bent = (a**2 + b**2) / 2, (b - a) ** 2 / 2
    if bent == 0:
        return straight * k, straight * half_distance, jnp.full_like(k, straight)
    *_, r, remainder, _ = lengths(k, half_distance, q1, q2)
    *_, t = angle(k, r, remainder, half_distance)
    r_h = r * _h(t)
    obtuse = k < 0
    f = a * b * k + bent * (r_h + jnp.where(obtuse, 0, k))
    half_distance_f = straight * half_distance - bent * (r_h - jnp.where(obtuse, k, 0))
    return f, half_distance_f, a * b + bent * jnp.where(obtuse, t / jnp.pi, 1 - t / jnp.pi)


@mean.register(ABRelu)
def _mean_ab_relu(phi: ABRelu, q: jax.Array) -> jax.Array:
    return (phi.b - phi.a) / math.sqrt(2 * math.pi) * root(q)


@dual.register(Sign)
def _dual_sign(phi: Sign, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    *_, r, remainder, _ = lengths(k, half_distance, q1, q2)
    cos, sin, _, t = angle(k, r, remainder, half_distance)
    positive = r > 0
    f = jnp.where(positive, jnp.arctan2(cos, sin) / (jnp.pi / 2), 0)
    theta = jnp.where(cos < 0, jnp.pi - t, t)
    # sign(0) = 0, so an input 0 has no second moment.
    one_is_zero = (jnp.where(q1 > 0, 0.5, 0) + jnp.where(q2 > 0, 0.5, 0)).astype(k.dtype)
    return f, jnp.where(positive, theta / (jnp.pi / 2), one_is_zero), jnp.zeros_like(k)


@mean.register(Sign)
def _mean_sign(phi: Sign, q: jax.Array) -> jax.Array:
    return jnp.zeros_like(q)


@dual.register(RectifiedMonomial)
def _dual_rectified(
    phi: RectifiedMonomial, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array
) -> Triple:
    n = phi.degree
    if n == 1:
        return _dual_ab_relu(ABRelu(0, 1), k, half_distance, q1, q2)
    s1, s2, difference, r, remainder, _ = lengths(k, half_distance, q1, q2)
    cos, sin, gap, t = angle(k, r, remainder, half_distance)
    lower, j, e = _arc_cosine(n, cos, sin, gap, t)
    if n == 0:
        # The step has 1 at 0, so an input 0 is always on.
        zeros = jnp.where(q1 > 0, 0, 1) + jnp.where(q2 > 0, 0, 1)
        on_f, on_d = jnp.where(zeros == 1, 0.5, 1), jnp.where(zeros == 1, 0.25, 0)
        positive = r > 0
        f, half_distance_f = (
            jnp.where(positive, v / 2, on).astype(k.dtype) for v, on in zip((j, e), (on_f, on_d), strict=True)
        )
        return f, half_distance_f, jnp.zeros_like(k)
    powers = difference * sum((s1**i * s2 ** (n - 1 - i) for i in range(n)), start=jnp.zeros_like(r))
    half_distance_f = odd_factorial(n) / 4 * powers**2 + r**n * e / 2
    return r**n * j / 2, half_distance_f, n**2 * r ** (n - 1) * lower / 2


@mean.register(RectifiedMonomial)
def _mean_rectified(phi: RectifiedMonomial, q: jax.Array) -> jax.Array:
    if phi.degree == 0:
        return jnp.where(q > 0, 0.5, 1).astype(q.dtype)
    return 2 ** (phi.degree / 2 - 1) * math.gamma((phi.degree + 1) / 2) / math.sqrt(math.pi) * root(q) ** phi.degree


def _arc_cosine(n: int, cos: jax.Array, sin: jax.Array, gap: jax.Array, t: jax.Array) -> Triple:
    """Returns J_(n-1) / pi, J_n / pi and (2 n - 1)!! - J_n / pi, with the J of Cho and Saul 2009, eq. (4).

    From their eq. (4) follow dJ_n / dcos = n^2 J_(n-1) and
    J_(n+1) = (2 n + 1) cos J_n + n^2 sin^2 J_(n-1), a sum of positive terms up to pi / 2; so is the recurrence that it
    gives the complement E_n = (2 n - 1)!! - J_n / pi, which is small at small angles. Beyond pi / 2, J_n is
    2 w^(n + 1/2) prod_j j^2 / (j / 2 + 1/4) 2F1(1/2, 1/2; n + 3/2; w), w = (1 + cos) / 2, again of positive terms.
    """
    acute_cos = positive_part(cos)
    j = [1 - t / jnp.pi, acute_cos + _h(t)]
    e = [t / jnp.pi, gap - _h(t)]
    for m in range(1, n):
        j.append((2 * m + 1) * acute_cos * j[m] + m**2 * sin**2 * j[m - 1])
        bracket = odd_factorial(m - 1) * gap * (2 * m**2 - 1 + m**2 * gap)
        e.append((2 * m + 1) * acute_cos * e[m] + m**2 * sin**2 * e[m - 1] + bracket)
    obtuse = cos < 0
    w = jnp.where(obtuse, (1 + cos) / 2, 0.5)

    def beyond(m: int) -> jax.Array:
        coefficients = [2 / math.pi * math.prod(i**2 / (i / 2 + 0.25) for i in range(1, m + 1))]
        for i in range(200):
            coefficients.append(coefficients[-1] * (i + 0.5) ** 2 / ((m + 1.5 + i) * (i + 1)))
            if coefficients[-1] * 0.5 ** (i + 1) < jnp.finfo(w.dtype).eps / 8 * coefficients[0]:
                break
        return w**m * root(w) * polynomial(coefficients, w)

    lower, upper = (jnp.where(obtuse, beyond(m), j[m]) if m >= 0 else j[0] for m in (n - 1, n))
    return lower, upper, jnp.where(obtuse, odd_factorial(n) - upper, e[n])
