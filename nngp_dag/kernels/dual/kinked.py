"""Duals of functions with a kink or a jump at 0, which are functions of the angle between two inputs."""

import math

import jax
import jax.numpy as jnp

from nngp_dag.activations import ABRelu, RectifiedMonomial, Sign
from nngp_dag.kernels.dual.arcsine import polynomial
from nngp_dag.kernels.dual.base import (
    Dual,
    angle,
    dual,
    mean,
    odd_factorial,
    positive_part,
    root,
)


def sine_less_arc(t: jax.Array) -> jax.Array:
    """Returns (sin(t) - t cos(t)) / pi for 0 <= t <= pi / 2, by its Taylor series; the difference would cancel."""
    value = jnp.zeros_like(t)
    for n in range(6 if t.dtype.itemsize <= 4 else 11, 0, -1):
        value = (-1) ** (n + 1) * 2 * n / math.factorial(2 * n + 1) / math.pi + t**2 * value
    return t**3 * value


@dual.register(ABRelu)
def _dual_ab_relu(phi: ABRelu, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array) -> Dual:
    # Cho and Saul 2009, eq. (6) at n = 1 and n = 0. relu has E[phi(u) phi(v)] = r (cos(theta) + h(theta)) / 2 with
    # h(t) = (sin(t) - t cos(t)) / pi. In general a min(x, 0) + b max(x, 0) = (a + b) x / 2 + (b - a) |x| / 2. Beyond
    # pi / 2, cos(theta) + h(theta) = h(pi - theta), which does not cancel.
    a, b = phi.a, phi.b
    straight, bent = (a**2 + b**2) / 2, (b - a) ** 2 / 2
    if isinstance(bent, float) and bent == 0:
        return Dual(straight * k, straight * gap, jnp.full_like(k, straight))
    r, *_, t, _ = angle(k, gap, q1, q2)
    bent_h = bent * (r * sine_less_arc(t))
    obtuse = k < 0
    # The gap where C >= 0, which is sqrt(E[phi(u)^2] E[phi(v)^2]) - E[phi(u) phi(v)]: means add as much to its first
    # term as to its second. For inputs of equal norms it is half the mean squared distance of the outputs.
    below = jnp.where(obtuse, (a + b) ** 2 / 2 * r - a * b * gap, straight * gap) - bent_h
    product_of_means = bent / jnp.pi * r
    c = a * b * k + jnp.where(obtuse, 0, bent * k) + bent_h - product_of_means
    # The gap where C < 0, which is sqrt(C11 C22) + C.
    above = jnp.where(obtuse, bent * r + a * b * gap, straight * (2 * r - gap)) + bent_h - 2 * product_of_means
    gap = positive_part(jnp.where(c < 0, above, below))
    return Dual(c, gap, a * b + bent * jnp.where(obtuse, t / jnp.pi, 1 - t / jnp.pi))


@mean.register(ABRelu)
def _mean_ab_relu(phi: ABRelu, q: jax.Array) -> jax.Array:
    return (phi.b - phi.a) / math.sqrt(2 * math.pi) * root(q)


@dual.register(Sign)
def _dual_sign(phi: Sign, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array) -> Dual:
    r, cos, sin, t, _ = angle(k, gap, q1, q2)
    positive = r > 0
    c = jnp.where(positive, jnp.arctan2(cos, sin) / (jnp.pi / 2), 0)
    # sign(0) = 0, so the output for an input of zeros has no variance.
    return Dual(c, jnp.where(positive, t / (jnp.pi / 2), 0), jnp.zeros_like(k))


@mean.register(Sign)
def _mean_sign(phi: Sign, q: jax.Array) -> jax.Array:
    return jnp.zeros_like(q)


@dual.register(RectifiedMonomial)
def _dual_rectified(phi: RectifiedMonomial, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array) -> Dual:
    n = phi.degree
    if n == 1:
        return _dual_ab_relu(ABRelu(0, 1), k, gap, q1, q2)
    r, cos, sin, t, near = angle(k, gap, q1, q2)
    obtuse = k < 0
    lower, j, e = _arc_cosine(n, obtuse, cos, sin, near, t)
    if n == 0:
        # The step is 1 at 0, so the output for an input of zeros is constant and has no covariance. The outputs of
        # opposite inputs add up to 1, so that their gap is 0 as well.
        c, gap = (jnp.where(r > 0, v, 0) for v in ((j - e) / 4, jnp.where(obtuse, j, e) / 2))
        return Dual(c, gap, jnp.zeros_like(k))
    power = r**n
    squared_mean = _mean_of_unit(n) ** 2
    c = power * (j / 2 - squared_mean)
    above = power * (odd_factorial(n) / 2 + j / 2 - 2 * squared_mean)
    return Dual(c, jnp.where(c < 0, above, power * (e / 2)), n**2 * r ** (n - 1) * lower / 2)


def _mean_of_unit(n: int) -> float:
    """Returns E[max(z, 0)^n] for z ~ N(0, 1)."""
    return 2 ** (n / 2 - 1) * math.gamma((n + 1) / 2) / math.sqrt(math.pi)


@mean.register(RectifiedMonomial)
def _mean_rectified(phi: RectifiedMonomial, q: jax.Array) -> jax.Array:
    if phi.degree == 0:
        return jnp.where(q > 0, 0.5, 1).astype(q.dtype)
    return _mean_of_unit(phi.degree) * root(q) ** phi.degree


def _arc_cosine(
    n: int, obtuse: jax.Array, cos: jax.Array, sin: jax.Array, near: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns J_(n-1) / pi, J_n / pi and E_n = (2 n - 1)!! - J_n / pi, with J of Cho and Saul 2009, eq. (4).

    Their eq. (4) implies dJ_n / dcos = n^2 J_(n-1) and the recurrence

        J_(n+1) = (2 n + 1) cos J_n + n^2 sin^2 J_(n-1).

    Its terms are positive up to pi / 2. The same holds for the recurrence of the complement E_n, which is small at
    small angles. Beyond pi / 2, with w = (1 + cos) / 2,

        J_n = 2 w^(n + 1/2) prod_j j^2 / (j / 2 + 1/4) 2F1(1/2, 1/2; n + 3/2; w),

    which also has positive terms.
    """
    acute_cos = jnp.where(obtuse, 0, cos)
    j = [1 - t / jnp.pi, acute_cos + sine_less_arc(t)]
    e = [t / jnp.pi, near - sine_less_arc(t)]
    for m in range(1, n):
        j.append((2 * m + 1) * acute_cos * j[m] + m**2 * sin**2 * j[m - 1])
        bracket = odd_factorial(m - 1) * near * (2 * m**2 - 1 + m**2 * near)
        e.append((2 * m + 1) * acute_cos * e[m] + m**2 * sin**2 * e[m - 1] + bracket)
    w = jnp.where(obtuse, near / 2, 0.5)

    def beyond(m: int) -> jax.Array:
        coefficients = [2 / math.pi * math.prod(i**2 / (i / 2 + 0.25) for i in range(1, m + 1))]
        for i in range(200):
            coefficients.append(coefficients[-1] * (i + 0.5) ** 2 / ((m + 1.5 + i) * (i + 1)))
            if coefficients[-1] * 0.5 ** (i + 1) < jnp.finfo(w.dtype).eps / 8 * coefficients[0]:
                break
        return w**m * root(w) * polynomial(coefficients, w)

    lower, upper = (jnp.where(obtuse, beyond(m), j[m]) if m >= 0 else j[0] for m in (n - 1, n))
    return lower, upper, jnp.where(obtuse, odd_factorial(n) - upper, e[n])
