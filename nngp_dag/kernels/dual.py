"""Dual activations: Gaussian expectations of a nonlinearity.

For (u, v) ~ N(0, [[q1, k], [k, q2]]) and an activation phi:

    F   = E[phi(u) phi(v)]                        second moment of its output
    Fd  = E[phi'(u) phi'(v)] = dF / dk            what multiplies the NTK (Price's theorem)
    D_F = E[(phi(u) - phi(v))^2] / 2              half distance of its outputs, (F11 + F22) / 2 - F
    mu  = E[phi(u)]                               mean of its output

Beside k goes the half distance D = E[(u - v)^2] / 2 = (q1 + q2) / 2 - k. For two inputs that nearly coincide, k has
rounded their angle away, and D still holds it. So every formula here takes small differences from D, and returns a
D_F that is 0 exactly where D is and no difference of nearly equal numbers close to it: a next layer with a kink is
linear in the angle, the square root of D_F. Signs of the terms are such that sums do not cancel, and roots come before
products, so that scales from 1e-12 to 1e12 pass in float32.

Everything is elementwise in k: `k`, `half_distance`, `q1` and `q2` have equal ranks and broadcast to the shape of `k`.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.activations import (
    ABRelu,
    Activation,
    Erf,
    Exp,
    Gabor,
    Gaussian,
    Gelu,
    Polynomial,
    Quadrature,
    RectifiedMonomial,
    Sign,
    Sin,
)
from nngp_dag.errors import InputError

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


def _positive_part(x: jax.Array) -> jax.Array:
    # Unlike that of `maximum`, its derivative at 0 is 1, as on the diagonal, where the determinant is 0, it must be.
    return jnp.where(x < 0, 0, x)


def _clip(x: jax.Array) -> jax.Array:
    # To [-1, 1], with derivative 1 at both ends, for the same reason.
    return jnp.where(x > 1, 1, jnp.where(x < -1, -1, x))


def _lengths(k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, ...]:
    """Returns s1 = sqrt(q1), s2, s1 - s2, r = s1 s2, r - k, and where r - k comes from D, not from r and k."""
    s1, s2 = root(q1), root(q2)
    # Roots before the product, so that two tiny numbers do not underflow.
    r, total = s1 * s2, s1 + s2
    # Exact where the norms are nearly equal, which the difference of the two rounded roots is not.
    difference = (q1 - q2) / jnp.where(total > 0, total, 1)
    close = half_distance < r / 2
    remainder = jnp.where(close, half_distance - difference**2 / 2, r - k)
    return s1, s2, difference, r, _positive_part(remainder), close


def _determinant(k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Returns q1 q2 - k^2."""
    *_, r, remainder, close = _lengths(k, half_distance, q1, q2)
    return _positive_part(jnp.where(close, remainder * (r + k), q1 * q2 - k**2))


def _angle(k: jax.Array, r: jax.Array, remainder: jax.Array, half_distance: jax.Array) -> tuple[jax.Array, ...]:
    """Returns cos(theta), sin(theta), 1 - cos(theta), and min(theta, pi - theta).

    An input 0 is taken to be orthogonal to others and to coincide with another input 0.
    """
    positive = r > 0
    safe_r = jnp.where(positive, r, 1)
    gap = jnp.where(positive, jnp.minimum(remainder / safe_r, 2), jnp.where(half_distance > 0, 1, 0))
    cos = jnp.where(positive, _clip(k / safe_r), 1 - gap)
    sin = root(gap * (1 + cos))
    return cos, sin, gap, jnp.arctan2(sin, jnp.where(cos < 0, -cos, cos))


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
    *_, r, remainder, _ = _lengths(k, half_distance, q1, q2)
    cos, _, _, t = _angle(k, r, remainder, half_distance)
    r_h = r * _h(t)
    obtuse = cos < 0
    f = a * b * k + bent * (r_h + jnp.where(obtuse, 0, k))
    half_distance_f = straight * half_distance - bent * (r_h - jnp.where(obtuse, k, 0))
    return f, half_distance_f, a * b + bent * jnp.where(obtuse, t / jnp.pi, 1 - t / jnp.pi)


@mean.register(ABRelu)
def _mean_ab_relu(phi: ABRelu, q: jax.Array) -> jax.Array:
    return (phi.b - phi.a) / math.sqrt(2 * math.pi) * root(q)


@dual.register(Sign)
def _dual_sign(phi: Sign, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    *_, r, remainder, _ = _lengths(k, half_distance, q1, q2)
    cos, sin, _, t = _angle(k, r, remainder, half_distance)
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
    s1, s2, difference, r, remainder, _ = _lengths(k, half_distance, q1, q2)
    cos, sin, gap, t = _angle(k, r, remainder, half_distance)
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
    half_distance_f = _odd_factorial(n) / 4 * powers**2 + r**n * e / 2
    return r**n * j / 2, half_distance_f, n**2 * r ** (n - 1) * lower / 2


@mean.register(RectifiedMonomial)
def _mean_rectified(phi: RectifiedMonomial, q: jax.Array) -> jax.Array:
    if phi.degree == 0:
        return jnp.where(q > 0, 0.5, 1).astype(q.dtype)
    return 2 ** (phi.degree / 2 - 1) * math.gamma((phi.degree + 1) / 2) / math.sqrt(math.pi) * root(q) ** phi.degree


def _odd_factorial(n: int) -> int:
    """Returns (2 n - 1)!! = E[z^(2 n)]."""
    return math.prod(range(1, 2 * n, 2))


def _arc_cosine(n: int, cos: jax.Array, sin: jax.Array, gap: jax.Array, t: jax.Array) -> Triple:
    """Returns J_(n-1) / pi, J_n / pi and (2 n - 1)!! - J_n / pi, with the J of Cho and Saul 2009, eq. (4).

    From their eq. (4) follow dJ_n / dcos = n^2 J_(n-1) and
    J_(n+1) = (2 n + 1) cos J_n + n^2 sin^2 J_(n-1), a sum of positive terms up to pi / 2; so is the recurrence that it
    gives the complement E_n = (2 n - 1)!! - J_n / pi, which is small at small angles. Beyond pi / 2, J_n is
    2 w^(n + 1/2) prod_j j^2 / (j / 2 + 1/4) 2F1(1/2, 1/2; n + 3/2; w), w = (1 + cos) / 2, again of positive terms.
    """
    acute_cos = _positive_part(cos)
    j = [1 - t / jnp.pi, acute_cos + _h(t)]
    e = [t / jnp.pi, gap - _h(t)]
    for m in range(1, n):
        j.append((2 * m + 1) * acute_cos * j[m] + m**2 * sin**2 * j[m - 1])
        bracket = _odd_factorial(m - 1) * gap * (2 * m**2 - 1 + m**2 * gap)
        e.append((2 * m + 1) * acute_cos * e[m] + m**2 * sin**2 * e[m - 1] + bracket)
    obtuse = cos < 0
    w = jnp.where(obtuse, (1 + cos) / 2, 0.5)

    def beyond(m: int) -> jax.Array:
        coefficients = [2 / math.pi * math.prod(i**2 / (i / 2 + 0.25) for i in range(1, m + 1))]
        for i in range(200):
            coefficients.append(coefficients[-1] * (i + 0.5) ** 2 / ((m + 1.5 + i) * (i + 1)))
            if coefficients[-1] * 0.5 ** (i + 1) < jnp.finfo(w.dtype).eps / 8 * coefficients[0]:
                break
        return w**m * root(w) * _polynomial(coefficients, w)

    lower, upper = (jnp.where(obtuse, beyond(m), j[m]) if m >= 0 else j[0] for m in (n - 1, n))
    return lower, upper, jnp.where(obtuse, _odd_factorial(n) - upper, e[n])


def _polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """Returns sum_n coefficients[n] x^n."""
    value = jnp.zeros_like(x)
    for c in reversed(coefficients):
        value = value * x + c
    return value


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
    widening = scale**2 * _determinant(k, half_distance, q1, q2)
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
    determinant = _determinant(k, half_distance, q1, q2)
    delta = jnp.sqrt(1 + q1 + q2 + determinant)
    y1, y2 = 1 / (1 + q1), 1 / (1 + q2)
    alpha = jnp.arctan2(delta, -k)
    f = k * alpha + (k * y1) * (k * y2) / delta + (q1 * y1) * (q2 * y2) * delta
    # The first form does not cancel; the second, whose terms differ by little, gives D_F.
    total = jnp.zeros_like(k)
    for q, other, y in ((q1, q2, y1), (q2, q1, y2)):
        delta1 = jnp.sqrt(1 + 2 * q)
        q_minus_k = half_distance + (q - other) / 2
        rise = (other - q + determinant) / (delta1 + delta)
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
    half_sum = _positive_part((q1 + q2) / 2 + k)
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
    determinant = _determinant(k, half_distance, q1, q2)
    whole = jnp.sqrt(1 + scale * (q1 + q2) + scale**2 * determinant)
    own = []
    for q, other in ((q1, q2), (q2, q1)):
        part = jnp.sqrt(1 + 2 * scale * q)
        excess = scale * (other - q) + scale**2 * determinant
        own.append((q, 1 / part, excess / (part + whole) / part / whole, excess))
    return 1 / whole, determinant, own


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
    y, determinant, own = _inverse_root(2.0, k, half_distance, q1, q2)
    kappa = k * y * y
    total = q1 + q2
    decay = y * jnp.exp(-(total / 2 + 2 * determinant) * y * y)
    f = decay * jnp.sinh(kappa)
    fd = decay * (
        4 * kappa * (1 + (1 + total) * y * y) * jnp.sinh(kappa) + (1 + 8 * k * kappa) * y * y * jnp.cosh(kappa)
    )
    apart = (half_distance + 2 * determinant) * y * y
    half_distance_f = jnp.zeros_like(k)
    for (q, y1, fall, excess), other in zip(own, (q2, q1), strict=True):
        # The exponents of cos(u + v): 2 q / M1 for the input with itself, and by how much more for the pair.
        together = 2 * q * y1 * y1
        more = (other - q - half_distance + 2 * determinant) * y * y - together * excess * y * y
        terms = -jnp.expm1(-apart) + jnp.exp(-together) * jnp.expm1(-more)
        half_distance_f += (terms * y1 + 2 * f / y * fall) / 4
    return f, half_distance_f, fd


@mean.register(Gabor)
def _mean_gabor(phi: Gabor, q: jax.Array) -> jax.Array:
    return jnp.zeros_like(q)


def _series(
    left: Sequence[jax.Array], right: Sequence[jax.Array], x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns P(x), P'(x) and (P(y) - P(x)) / (y - x) for P(x) = sum_n left[n] right[n] x^n, by Horner's scheme."""
    value, derivative, quotient = (jnp.zeros_like(x) for _ in range(3))
    for a, b in zip(reversed(left), reversed(right), strict=True):
        # The partial values of Horner's scheme at x are the coefficients of the quotient.
        derivative, quotient = derivative * x + value, quotient * y + value
        value = value * x + a * b
    return value, derivative, quotient


@dual.register(Polynomial)
def _dual_polynomial(phi: Polynomial, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    # F = sum_l A_l(q1) A_l(q2) k^l / l!, with A_l(q) = E[phi^(l)(u)]; Price's theorem l times at k = 0.
    s1, s2, _, r, remainder, _ = _lengths(k, half_distance, q1, q2)
    left, right = (_mean_derivatives(phi.coefficients, q) for q in (q1, q2))
    f, fd, quotient = _series(left, right, k, r)
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
            c * math.perm(order + 2 * i, order) * _odd_factorial(i) / math.sqrt(math.factorial(order))
            for i, c in enumerate(halves)
        ]
        results.append(_polynomial(moments, q))
    return results


@dual.register(Quadrature)
def _dual_quadrature(phi: Quadrature, k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array) -> Triple:
    """Uses the Hermite series (Mehler) F = sum_n a_n(q1) a_n(q2) rho^n, a_n(q) = E[phi(sqrt(q) z) h_n(z)].

    The a_n come from Gauss-Hermite quadrature on the vectors of variances, so only the sum runs over the matrix; Fd is
    the same sum for phi'. The error of F is at most sqrt(res(q1) res(q2)), res(q) = E[phi^2] - sum_n a_n^2
    (Parseval and Cauchy-Schwarz) and largest where |rho| = 1; `quadrature_error` measures it.
    """
    s1, s2, _, r, remainder, _ = _lengths(k, half_distance, q1, q2)
    positive = r > 0
    safe_r = jnp.where(positive, r, 1)
    rho = jnp.where(positive, _clip(k / safe_r), 0)
    left, right = (_hermite_coefficients(phi.fn, phi.degree, s) for s in (s1, s2))
    f, _, quotient = _series(left, right, rho, jnp.ones_like(rho))
    squares = jnp.zeros_like(k)
    for a, b in zip(left, right, strict=True):
        squares += (a - b) ** 2
    half_distance_f = squares / 2 + jnp.where(positive, remainder / safe_r, 0) * quotient
    left, right = (_hermite_coefficients(_derivative(phi.fn), phi.degree, s) for s in (s1, s2))
    fd, _, _ = _series(left, right, rho, rho)
    return f, jnp.where(half_distance > 0, half_distance_f, 0), fd


@mean.register(Quadrature)
def _mean_quadrature(phi: Quadrature, q: jax.Array) -> jax.Array:
    return _hermite_coefficients(phi.fn, phi.degree, root(q))[0]


def quadrature_error(phi: Quadrature, q: jax.Array) -> jax.Array:
    """Bounds the relative truncation error of the dual of a `Quadrature`, for u ~ N(0, q).

    Returns the larger of res(q) / E[phi(u)^2] and the same for phi', which the NTK needs. The geometric mean of the
    values at q1 and q2 bounds the errors of F and Fd, relative to the geometric mean of their values on the diagonal,
    where the bound is the error. The series converges the faster, the farther phi is analytic beside the real line, in
    units of sqrt(q). At degree 64, in float64:

        q           0.25    1       4
        tanh        1e-17   9e-9    3e-4
        swish       1e-28   1e-17   4e-9
        softplus    1e-29   3e-20   4e-11

    (the other errors, of rounding, stay near 1e-15). Functions with a kink or a jump converge slowly and stand out:
    relu has 0.02 and sign 0.05 at every q.

    Args:
      phi: The activation.
      q: Variances, of any shape.
    """
    bounds = []
    for fn in (phi.fn, _derivative(phi.fn)):
        squares = [a**2 for a in _hermite_coefficients(fn, 4 * phi.degree, root(q), nodes=4 * phi.degree)]
        # The orders that the series leaves out, summed: a difference of sums could not be smaller than rounding.
        kept, left_out = (sum(part, start=jnp.zeros_like(q)) for part in (squares[: phi.degree], squares[phi.degree :]))
        total = kept + left_out
        bounds.append(jnp.where(total > 0, left_out / jnp.where(total > 0, total, 1), 0))
    return jnp.maximum(*bounds)


def _derivative(fn: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


def _hermite_coefficients(
    fn: Callable[[jax.Array], jax.Array], terms: int, s: jax.Array, nodes: int | None = None
) -> list[jax.Array]:
    """Returns E[fn(s z) h_n(z)] for n < terms, h_n = He_n / sqrt(n!), each of the shape of `s`."""
    points, weights = _gauss_hermite(4 * terms if nodes is None else nodes, terms)
    z = jnp.asarray(points, s.dtype).reshape(*[1] * s.ndim, -1)
    values = fn(s[..., None] * z)
    # A TF32 product would leave an error of 1e-3.
    coefficients = jnp.tensordot(values, jnp.asarray(weights, s.dtype), 1, precision=lax.Precision.HIGHEST)
    return [coefficients[..., n] for n in range(terms)]


@functools.lru_cache(maxsize=16)
def _gauss_hermite(nodes: int, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns quadrature points z_i, (p,), and w_i h_n(z_i), (p, terms), for z ~ N(0, 1).

    Points are eigenvalues of the Jacobi matrix (Golub and Welsch 1969), weights the Christoffel numbers
    1 / sum_n h_n(z_i)^2, which keep their digits at the ends, where the eigenvectors' weights would be rounding.
    The functions psi_n = h_n exp(-z^2 / 4) are bounded, so their recursion is stable and does not overflow.
    """
    off_diagonal = np.sqrt(np.arange(1.0, nodes))
    z = np.linalg.eigvalsh(np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    z = (z - z[::-1]) / 2
    psi = np.zeros((nodes, nodes))
    psi[0] = np.exp(-(z**2) / 4)
    for n in range(nodes - 1):
        psi[n + 1] = (z * psi[n] - np.sqrt(n) * psi[max(n - 1, 0)]) / np.sqrt(n + 1)
    weights = psi[0] / np.sum(psi**2, axis=0) * psi[:terms]
    # Far out the weights are nothing, and a function that grows fast might overflow and make NaN of it.
    inner = psi[0] > np.finfo(np.float32).tiny
    return z[inner], weights[:, inner].T
