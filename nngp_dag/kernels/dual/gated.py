"""Duals of gelu, silu and softplus: sums of functions u Phi(a u), or of u Phi(a u) + Phi'(a u) / a.

gelu is u Phi(a u) with a = 1. A sum of such functions is silu, and a sum of functions of the second kind is softplus;
see `nngp_dag.kernels.dual.logistic`. For (u, v) ~ N(0, [[q1, k], [k, q2]]) let

    y1 = 1 / (1 + a^2 q1),  y2 = 1 / (1 + b^2 q2),  delta^2 = 1 / (y1 y2) - (a b k)^2,
    alpha = pi / 2 + arctan(a b k / delta).

The expectations of the product of two such functions, with parameters a and b, are then 1 / (2 pi) times

    k alpha + (1 / delta + delta (1 - y1 - y2)) / (a b)      (Stein's lemma; gelu: Tsuchida et al. 2021, 2002.08517)
    k alpha + delta / (a b)                                  (its derivative in k is alpha)

At large variances these functions are ReLU except near 0, so the angle of their outputs must be as accurate as for
ReLU. Distances are therefore those of outputs over the norms of the inputs. Such a distance is a sum of two positive
terms. The first is C(r) - C(k), the excess of parallel inputs with these norms. The second is the half distance of
these parallel inputs. For them u = s1 z and v = s2 z. The half distance is a double integral over two slopes: one runs
from a s2 to a s1, the other from b s2 to b s1. Its integrand is

    d/da d/db E[z Phi(a z) z Phi(b z)] = 3 (1 + a^2 + b^2)^(-5/2) / (2 pi).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nngp_dag.activations import Activation, Gelu, Silu, Softplus
from nngp_dag.kernels.dual.arcsine import acute, less_arctan
from nngp_dag.kernels.dual.base import Pair, Triple, mean, ratio, register_smooth
from nngp_dag.kernels.dual.logistic import double_sum, mixture


@register_smooth(Gelu, returns="scaled distance")
def _dual_gelu(phi: Gelu, pair: Pair) -> Triple:
    return _without_means(phi, pair, _gated(1.0, 1.0, pair))


@register_smooth(Silu, returns="scaled distance")
def _dual_silu(phi: Silu, pair: Pair) -> Triple:
    return _without_means(phi, pair, double_sum(_gated, 1.0, pair))


@register_smooth(Softplus, returns="scaled distance")
def _dual_softplus(phi: Softplus, pair: Pair) -> Triple:
    return double_sum(_ramp, 1.0, pair)


@mean.register(Gelu)
def _mean_gelu(phi: Gelu, q: jax.Array) -> jax.Array:
    return q / jnp.sqrt(2 * math.pi * (1 + q))


@mean.register(Silu)
def _mean_silu(phi: Silu, q: jax.Array) -> jax.Array:
    terms = [p / s * q / jnp.sqrt(2 * math.pi * (1 + q / s**2)) for s, p in mixture(q.dtype)]
    return sum(terms, start=jnp.zeros_like(q))


@mean.register(Softplus)
def _mean_softplus(phi: Softplus, q: jax.Array) -> jax.Array:
    terms = [p * s * jnp.sqrt((1 + q / s**2) / (2 * math.pi)) for s, p in mixture(q.dtype)]
    return sum(terms, start=jnp.zeros_like(q))


def _without_means(phi: Activation, pair: Pair, of_values: Triple) -> Triple:
    """Removes the contribution of the means from the distance of the values."""
    c, distance, slope = of_values
    apart = ratio(mean(phi, pair.q1), pair.s1) - ratio(mean(phi, pair.q2), pair.s2)
    return c, distance - pair.r / 2 * apart**2, slope


class _Terms(NamedTuple):
    """The terms that both kinds of functions share, see the module.

    Attributes:
      ab: The product a b.
      y1: The number 1 / (1 + a^2 q1).
      y2: The number 1 / (1 + b^2 q2).
      inverse: The root sqrt(y1 y2).
      cofactor: The product delta sqrt(y1 y2).
      delta: The number delta of the pair.
      delta_of_r: The number delta of parallel inputs with the same norms.
      rise: The difference delta - delta_of_r.
      alpha: The angle alpha of the pair.
      turned: The number k alpha of parallel inputs, minus that of the pair.
    """

    ab: jax.Array | float
    y1: jax.Array
    y2: jax.Array
    inverse: jax.Array
    cofactor: jax.Array
    delta: jax.Array
    delta_of_r: jax.Array
    rise: jax.Array
    alpha: jax.Array
    turned: jax.Array


def _terms(a: jax.Array | float, b: jax.Array | float, pair: Pair) -> _Terms:
    k, q1, q2 = pair[:3]
    ab, a2, b2 = a * b, a**2, b**2
    y1, y2 = 1 / (1 + a2 * q1), 1 / (1 + b2 * q2)
    # No product of two variances is formed, because it might overflow.
    inverse = jnp.sqrt(y1) * jnp.sqrt(y2)
    at_r = y1 + y2 * (a2 * q1 * y1)
    area = (ab * pair.below * inverse) * (ab * pair.above * inverse)
    cofactor, cofactor_of_r = jnp.sqrt(at_r + area), jnp.sqrt(at_r)
    rho, rho_of_r = ab * k * inverse, ab * pair.r * inverse
    beta, beta_of_r = acute(rho, cofactor), acute(rho_of_r, cofactor_of_r)
    fall = area / (cofactor + cofactor_of_r)
    # The angle from the pair to parallel inputs. Where it is small it comes from its sine, since a difference of two
    # angles would cancel.
    sin, cos = (ab * pair.below * inverse) * cofactor_of_r + rho_of_r * fall, rho_of_r * rho + cofactor_of_r * cofactor
    small = (cos > 0.5) & (k > 0)
    turn = jnp.where(small, acute(jnp.where(small, sin, 0), jnp.where(small, cos, 1)), beta_of_r - beta)
    turned = pair.below * (beta_of_r + math.pi / 2) + k * turn
    delta, delta_of_r, rise = (v / inverse for v in (cofactor, cofactor_of_r, fall))
    return _Terms(ab, y1, y2, inverse, cofactor, delta, delta_of_r, rise, beta + math.pi / 2, turned)


def _gated(a: jax.Array | float, b: jax.Array | float, pair: Pair) -> Triple:
    """Returns C of u Phi(a u) and v Phi(b v), their half distance with means included, and F'."""
    k, q1, q2 = pair[:3]
    t = _terms(a, b, pair)
    # The product of the means is a b q1 q2 sqrt(y1 y2) / (2 pi).
    rho = t.ab * k * t.inverse
    of_means = q1 * (q2 * t.inverse) * (rho * rho / (1 + t.cofactor))
    c = k * t.alpha + t.ab * ((k * t.inverse) * (k * t.inverse) / t.delta - of_means)
    missing = t.turned - t.rise / t.ab * (1 - t.y1 - t.y2 - 1 / t.delta / t.delta_of_r)
    # The double integral over the rectangle of slopes is an integral along its four sides. Both (a, b)
    # and (b, a) are summed, and exchanging a and b exchanges two sides with the two others. So two sides are enough.
    around = _side(b * pair.s2, a * pair.s1, a * pair.s2) - _side(b * pair.s1, a * pair.s1, a * pair.s2)
    slope = t.alpha + t.ab * k / t.delta * (1 / t.delta**2 + t.y1 + t.y2)
    return c / (2 * math.pi), (missing + pair.r * around) / (2 * math.pi), slope / (2 * math.pi)


def _side(b: jax.Array, a1: jax.Array, a2: jax.Array) -> jax.Array:
    """Integrates (1 + a^2 + b^2)^(-3/2) over the angle that the line from (a2, b) to (a1, b) spans at the origin."""
    delta1, delta2 = (jnp.sqrt(1 + a**2 + b**2) for a in (a1, a2))
    # All terms are divided by delta1 delta2, so that they do not overflow.
    aa, bb, one = (a1 / delta1) * (a2 / delta2), (b / delta1) * (b / delta2), 1 / delta1 / delta2
    squares = (a1 / delta1) * (a1 / delta2) + (a2 / delta1) * (a2 / delta2)
    opening = (a1 - a2) * ratio(a1 + a2, a1 * delta2 + a2 * delta1)
    tangent = opening * ratio(b * (one + bb), b**2 + aa)
    return tangent * (squares + one + bb) / (delta1 * delta2 * (1 + aa)) - less_arctan(tangent)


def _ramp(a: jax.Array, b: jax.Array, pair: Pair) -> Triple:
    """Returns C of u Phi(a u) + Phi'(a u) / a and the same with b and v, their half distance, and F'."""
    k = pair.k
    t = _terms(a, b, pair)
    # The product of the means is 1 / (2 pi a b sqrt(y1 y2)). It dominates at small variances, so C is formed without
    # it.
    c = k * (t.alpha - t.ab * k * t.inverse / (1 + t.cofactor))
    missing = t.turned - t.rise / t.ab
    apart = _step(a * pair.s1, b * pair.s1, b * pair.s2) - _step(a * pair.s2, b * pair.s1, b * pair.s2)
    return c / (2 * math.pi), missing / (2 * math.pi) + pair.r / (4 * math.pi) * apart, t.alpha / (2 * math.pi)


def _step(a: jax.Array, b1: jax.Array, b2: jax.Array) -> jax.Array:
    """Returns S(a, b1) - S(a, b2), where S(a, b) / (2 pi) is a covariance of two functions of one normal variable z.

    The functions are z Phi(a z) + Phi'(a z) / a and the same with b. It is S = alpha + w with
    w = (delta - sqrt((1 + a^2) (1 + b^2))) / (a b). The number t = delta / (a b) is the cotangent of alpha - pi / 2.
    """
    delta1, delta2 = (jnp.sqrt(1 + a**2 + b**2) for b in (b1, b2))
    aa, one = (a / delta1) * (a / delta2), 1 / delta1 / delta2
    inverse_of_tt = aa * b1 * b2
    opening = (b1 - b2) * ratio(b1 + b2, b2 * delta1 + b1 * delta2)
    # The tangent of the difference of both angles alpha.
    tangent = opening * (a * (one + aa)) / (1 + inverse_of_tt)
    root_a, root_b1, root_b2 = (jnp.sqrt(1 + v**2) for v in (a, b1, b2))
    spread = (b1 - b2) * ratio(b1 + b2, b2 * root_b1 + b1 * root_b2)
    # Where a b < delta, alpha changes by that angle, and w is -a b / total, which does not cancel.
    total1, total2 = delta1 + root_a * root_b1, delta2 + root_a * root_b2
    near = tangent - less_arctan(tangent) - (a / total1) * (root_a / total2) * (root_a * opening + spread)
    # Elsewhere the changes of alpha and of t nearly cancel, so their sum is formed directly. The rest of w is the
    # product of two means.
    far = inverse_of_tt > 1
    a, b1, b2, inverse_of_tt = (jnp.where(far, v, 1) for v in (a, b1, b2, inverse_of_tt))
    of_means = (root_a / a) * (spread / b1 / b2)
    return jnp.where(far, of_means - tangent / inverse_of_tt - less_arctan(tangent), near)
