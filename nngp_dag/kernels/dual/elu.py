"""The dual of elu: an integral over the angle between two inputs, and one over a normal variable.

With g(u) = exp(min(u, 0)) - 1, elu is max(u, 0) + alpha g(u). Let u = s1 z1 and v = s2 z2, with normal variables z1
and z2 at an angle theta. Then k = r cos(theta) with r = s1 s2. On a ray, the distance R from 0 has the density
R exp(-R^2 / 2). Its Laplace transform is

    M(c) = E[exp(-c R)] = 1 - c m(c),   m(c) = sqrt(pi / 2) erfcx(c / sqrt(2)).

M is the mean of an exponential on a ray: c = s1 sin(psi) for exp(u), and c = s2 sin(psi) for exp(v). Here psi is the
angle between the ray and the line on which the exponential is 1. Let T(psi) = M(s1 sin(psi)) + M(s2 sin(psi)), and let
K = E[exp(u + v); u, v < 0], which is K0 for parallel inputs. Then

    2 pi F' = pi + int (alpha T - 1) + 2 pi alpha^2 K,   2 pi K = 2 pi K0 exp(k - r) - int exp(-r X) (T - 1)

with X(psi) = cos(psi) - cos(theta) and integrals over psi from 0 to theta. The second formula solves a differential
equation. By Price's theorem, dK / dk is K plus terms for the jump of g' at 0, which are values of M.

Since C = C(r) - int F' dk, the covariance of parallel inputs of these norms exceeds C by

    (r - k) / 2 + alpha^2 K0 (1 - exp(k - r)) + int [r X (alpha T - 1) - alpha^2 (1 - exp(-r X)) (T - 1)] / (2 pi).

At small angles the integral is of third order and the other terms are of second order, so nothing cancels. The distance
of parallel inputs is the variance of a difference of two functions of one normal variable. The difference is taken
before it is squared.

The integrals are sums over Gauss-Legendre points. The points lie denser towards the ends, where functions change within
1 / s. Some parts change faster than the points can resolve. Their integrals have closed forms, and the sums are over
remainders, whose integrands are small there.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.activations import Elu
from nngp_dag.kernels.dual.arcsine import polynomial
from nngp_dag.kernels.dual.base import Pair, Triple, angle, mean, positive_part, ratio, register_smooth, root, size
from nngp_dag.kernels.dual.kinked import sine_less_arc

# Coefficients in y = 2 w - 1 of M(c) / w^2 with w = 4 / (4 + c), interpolated at Chebyshev points in 40 digits. The
# exact polynomials have relative errors of at most 1.5e-8 and 9.4e-17.
_FLOAT32 = (
    0.21356187,
    0.311772555,
    0.269615946,
    0.154733431,
    0.0532136553,
    0.00381385029,
    -0.00559262482,
    -0.00186386555,
    0.000489245486,
    0.000332767181,
    -3.80942544e-5,
    -3.87612333e-5,
)
_FLOAT64 = (
    0.21356187338302927,
    0.31177255821094628,
    0.26961572209986958,
    0.15473318132772049,
    0.053216316616439427,
    0.0038168083442831868,
    -0.0056044410333278328,
    -0.0018768055152600357,
    0.00051385148080237611,
    0.00035905361519604013,
    -6.3853706454733071e-5,
    -6.4723598941306037e-5,
    1.3517432536827562e-5,
    1.1603178379255503e-5,
    -3.882528499347771e-6,
    -1.8779208263657375e-6,
    1.1415475889444083e-6,
    1.9288372400597107e-7,
    -3.0111301120836509e-7,
    2.4832168758959752e-8,
    6.5080313801647082e-8,
    -2.0088905392914217e-8,
    -1.00830208507433e-8,
    5.3517639219146608e-9,
    8.2373374765166378e-10,
    -6.202490510824741e-10,
)

# For numbers of 4 and of 8 bytes: number of points, end of the normal variable's range, largest steepness of a grading.
_POINTS = {4: (24, 6.0, 300.0), 8: (64, 8.6, 1e4)}


# `jit` traces the formula once for given shapes, also in calls outside other compiled functions.
@register_smooth(Elu, returns="scaled distance")
@functools.partial(jax.jit, inline=True)
def _dual_elu(phi: Elu, pair: Pair) -> Triple:
    alpha, r = phi.alpha, pair.r
    obtuse = pair.k < 0
    _, cos, sin, t, near = angle(pair.k, jnp.where(obtuse, pair.above, pair.below), pair.q1, pair.q2)
    sums = _integrals(pair, near)
    # The integrals of T and of X T = (1 - cos(theta)) cos T - cos(theta) (1 - cos) T. Beyond pi / 2, M at psi equals M
    # at pi - psi, and the integral up to pi has a closed form.
    of_t, of_xt = jnp.zeros_like(pair.k), jnp.zeros_like(pair.k)
    for s, rest in ((pair.s1, sums.rest1), (pair.s2, sums.rest2)):
        along = sin * _mean_of_m(s * sin)
        whole = math.pi * _half_normal(s)
        of_t += jnp.where(obtuse, whole - along - rest, along + rest)
        of_xt += near * along + size(cos) * (jnp.where(obtuse, whole, 0) - rest)
    of_x = math.pi * (sine_less_arc(t) + jnp.where(obtuse, -cos, 0))
    theta = jnp.where(obtuse, math.pi - t, t)
    k0, fall = _half_normal(pair.s1 + pair.s2) / 2, -jnp.expm1(-pair.below)
    # `fallen` is the integral of (1 - exp(-r X)) (T - 1), and `kept` that of exp(-r X) (T - 1).
    fallen = sums.fallen + sums.chord * (of_xt - of_x) - sums.share * fall
    kept = of_t - theta - fallen
    slope = (math.pi - theta + alpha * of_t - alpha**2 * kept) / (2 * math.pi) + alpha**2 * k0 * jnp.exp(-pair.below)
    missing = (r * (alpha * of_xt - of_x) - alpha**2 * fallen) / (2 * math.pi)
    missing += pair.below / 2 + alpha**2 * k0 * fall
    # `product` is 2 E[g(u) g(v)] of parallel inputs. At large norms it has a closed form that does not cancel.
    far = 1 - _half_normal(pair.s1) - _half_normal(pair.s2) + 2 * k0
    product = jnp.where(jnp.minimum(pair.s1, pair.s2) > 2, far, sums.product)
    c = r / 2 + alpha**2 / 2 * product - mean(phi, pair.q1) * mean(phi, pair.q2) - missing
    return c, missing + r * alpha**2 / 8 * (2 * sums.square - sums.apart**2), slope


@mean.register(Elu)
def _mean_elu(phi: Elu, q: jax.Array) -> jax.Array:
    s = root(q)
    return (1 - phi.alpha) / math.sqrt(2 * math.pi) * s + phi.alpha / 2 * _bend(s)


class _Integrals(NamedTuple):
    """The integrals as sums over points, and the coefficients of the parts that were subtracted from an integrand.

    Attributes:
      rest1: The integral of (1 - cos(psi)) M(s1 sin(psi)) from 0 to min(theta, pi - theta).
      rest2: The same integral with s2 in place of s1.
      chord: The value of (1 - exp(-r X)) / X at psi = 0.
      share: The difference T(theta) - 1, times about 1 / (r sin(theta)) if r sin(theta)^2 is large.
      fallen: The integral of (1 - exp(-r X) - chord X) (T - 1) + share r sin(psi) exp(-r X).
      product: The expectation E[g(-s1 |z|) g(-s2 |z|)].
      apart: The expectation E[d], where d is g(-s |z|) / s for the larger norm s minus the same for the smaller norm.
      square: The expectation E[d^2].
    """

    rest1: jax.Array
    rest2: jax.Array
    chord: jax.Array
    share: jax.Array
    fallen: jax.Array
    product: jax.Array
    apart: jax.Array
    square: jax.Array


def _integrals(pair: Pair, near: jax.Array) -> _Integrals:
    count, end, limit = _POINTS[8 if pair.k.dtype.itemsize > 4 else 4]
    r, obtuse = pair.r, pair.k < 0
    first, delta = pair.difference > 0, size(pair.difference)
    large, small = jnp.where(first, pair.s1, pair.s2), jnp.where(first, pair.s2, pair.s1)
    # Every function of the angle comes from tan(theta / 4). At a given X(0), C does not depend on it to first order. So
    # its derivatives, which are infinite at parallel and opposite inputs, may count as 0 there.
    below = jnp.where(obtuse, 2 - near, near)
    quarter = jnp.minimum(root(below / 2) / (1 + root((2 - below) / 2)), 1)
    sin_half, cos_half = 2 * quarter / (1 + quarter**2), (1 - quarter**2) / (1 + quarter**2)
    sin, cos = 2 * sin_half * cos_half, cos_half**2 - sin_half**2
    shift = jnp.where(obtuse, below - 2 * sin_half**2, 0)
    shift -= lax.stop_gradient(shift)  # 0, but with a derivative
    acute = root(near / (2 - near))
    chord = ratio(-jnp.expm1(-r * below), below)
    share = (_m_of_radius(pair.s1 * sin) + _m_of_radius(pair.s2 * sin) - 1) * sin / (1 + r * sin**2)
    # The variable of integration is the tangent of half an angle: sines and cosines are rational functions of it.
    whole, left = (_Grading.of(2 * v * large, limit) for v in (acute, quarter))
    right = _Grading.of(2 * quarter * (large + r * sin), limit)
    normal = _Grading.of(end * large, limit)
    points, weights = (jnp.asarray(v, r.dtype) for v in np.polynomial.legendre.leggauss(count))

    def to_end(sin_psi: jax.Array, x_of_psi: jax.Array) -> jax.Array:
        """Returns the integrand of `fallen`."""
        others = _m_of_radius(pair.s1 * sin_psi) + _m_of_radius(pair.s2 * sin_psi) - 1
        fall = -jnp.expm1(-r * x_of_psi)
        return (fall - chord * x_of_psi) * others + share * (r * sin_psi) * (1 - fall)

    @jax.checkpoint  # otherwise gradients would keep the values of all points
    def of_point(i: jax.Array) -> tuple[jax.Array, ...]:
        x, weight = (1 + points[i]) / 2, weights[i] / 2
        t, step = whole.at(x, acute)
        cut = 2 * t / (1 + t**2)
        w = weight * step * cut**2
        rest1, rest2 = (w * _m_of_radius(s * cut) for s in (pair.s1, pair.s2))
        # One half of the points lies between 0 and theta / 2, the other between theta / 2 and theta, from the end.
        t, step = left.at(x, quarter)
        sine = 2 * t / (1 + t**2)
        fallen = step * 2 / (1 + t**2) * to_end(sine, below - t * sine)
        t, step = right.at(x, quarter)
        sine = 2 * t / (1 + t**2)
        ahead = positive_part(sine * (sin - t * cos) + shift)
        fallen += step * 2 / (1 + t**2) * to_end(sin * (1 - t * sine) - cos * sine, ahead)
        z, step = normal.at(x, end)
        w = weight * step * math.sqrt(2 / math.pi) * jnp.exp(-(z**2) / 2)
        lost, more = -jnp.expm1(-small * z), -jnp.expm1(-delta * z)
        d = ratio(delta, large) * ratio(lost, small) - ratio((1 - lost) * more, large)
        return rest1, rest2, weight * fallen, w * lost * (lost + more - lost * more), w * d, w * d**2

    def add(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(sums, of_point(i), strict=True))

    rest1, rest2, *others = lax.fori_loop(0, count, add, (jnp.zeros_like(pair.k + r),) * 6)
    return _Integrals(rest1, rest2, chord, share, *others)


class _Grading(NamedTuple):
    """The map x -> sinh(extent x) / steepness of [0, 1] to itself, which moves points towards 0.

    Attributes:
      extent: The number arsinh(steepness).
      inverse: The number 1 / steepness.
    """

    extent: jax.Array
    inverse: jax.Array

    @classmethod
    def of(cls, rate: jax.Array, limit: float) -> "_Grading":
        """Returns the map for a function that changes within 1 / rate at 0."""
        # A bit less than half of the rate is steep enough. The lower limit avoids a division by 0 at rate 0.
        steepness = jnp.clip(0.4 * rate, 0.5, limit)
        return cls(jnp.arcsinh(steepness), 1 / steepness)

    def at(self, x: jax.Array, length: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        """Returns the map times a length, and its derivative."""
        power = jnp.exp(self.extent * x)
        scale = length / 2 * self.inverse
        return scale * (power - 1 / power), scale * self.extent * (power + 1 / power)


def _m_of_radius(c: jax.Array) -> jax.Array:
    """Returns M(c) for c >= 0, see the module."""
    w = 4 / (4 + c)
    return w**2 * polynomial(_FLOAT32 if c.dtype.itemsize <= 4 else _FLOAT64, 2 * w - 1)


def _half_normal(c: jax.Array) -> jax.Array:
    """Returns E[exp(-c |z|)] = erfcx(c / sqrt(2)); JAX's own erfcx and its derivatives are accurate to few digits."""
    near, series, x = _series(c, 0)
    return jnp.where(near, series, _erfcx_beyond(x))


def _mean_of_m(c: jax.Array) -> jax.Array:
    """Returns the mean of M over [0, c], sqrt(pi / 2) (1 - erfcx(c / sqrt(2))) / c."""
    near, series, x = _series(c, 1)
    return math.sqrt(math.pi) / 2 * jnp.where(near, -series, (1 - _erfcx_beyond(x)) / x)


def _bend(c: jax.Array) -> jax.Array:
    """Returns E[c |z| - 1 + exp(-c |z|)]."""
    near, series, x = _series(c, 2)
    return jnp.where(near, c**2 / 2 * series, 2 / math.sqrt(math.pi) * x - 1 + _erfcx_beyond(x))


def _series(c: jax.Array, start: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the parts of a function that has a series for x = c / sqrt(2) < 1 and a closed form for x >= 1.

    Returns:
      The mask x < 1. The series of erfcx without its terms below x^start, divided by x^start, where x < 1. And x, which
      is replaced by 1 where x < 1.
    """
    x = c / math.sqrt(2)
    near = x < 1
    terms = [(-1) ** n / math.gamma(n / 2 + 1) for n in range(start, 24 if c.dtype.itemsize <= 4 else 36)]
    return near, polynomial(terms, jnp.where(near, x, 0)), jnp.where(near, 1, x)


def _erfcx_beyond(x: jax.Array) -> jax.Array:
    """Returns erfcx(x) for x >= 1."""
    return (1 - _m_of_radius(math.sqrt(2) * x)) / (math.sqrt(math.pi) * x)
