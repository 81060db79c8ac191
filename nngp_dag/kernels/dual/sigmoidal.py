"""The dual of tanh, a double sum of duals of erf in closed form."""

import math

import jax
import jax.numpy as jnp

from nngp_dag.activations import Tanh
from nngp_dag.kernels.dual.arcsine import acute
from nngp_dag.kernels.dual.base import Pair, Triple, mean, register_smooth
from nngp_dag.kernels.dual.logistic import double_sum


@register_smooth(Tanh, parity=lambda phi: 1)
def _dual_tanh(phi: Tanh, pair: Pair) -> Triple:
    c, half_distance, slope = double_sum(_dual_of_terms, 2 * abs(phi.b), pair)
    return phi.a**2 * c, phi.a**2 * half_distance, phi.a**2 * slope


@mean.register(Tanh)
def _mean_tanh(phi: Tanh, q: jax.Array) -> jax.Array:
    return jnp.full_like(q, phi.c)


def _dual_of_terms(a: jax.Array, b: jax.Array, pair: Pair) -> Triple:
    """Returns the dual of 2 Phi(a u) - 1 and 2 Phi(b v) - 1: 2 / pi times an arcsine, as for erf."""
    k, q1, q2 = pair[:3]
    ab, a2, b2 = a * b, a**2, b**2
    y1, y2 = 1 / (1 + a2 * q1), 1 / (1 + b2 * q2)
    # No product of two variances is formed, because it might overflow.
    inverse = jnp.sqrt(y1) * jnp.sqrt(y2)
    cofactor = jnp.sqrt(y1 + y2 * (a2 * q1 * y1) + (ab * pair.below * inverse) * (ab * pair.above * inverse))
    delta, rho = cofactor / inverse, ab * k * inverse
    beta = acute(rho, cofactor)
    turns = []
    for q, other, step, q_minus_k in (
        (q1, q2, b2, pair.s1 * pair.difference + pair.below),
        (q2, q1, a2, -pair.s2 * pair.difference + pair.below),
    ):
        inverse1 = 1 / jnp.sqrt(1 + a2 * q) / jnp.sqrt(1 + b2 * q)
        delta1 = jnp.sqrt(1 + (a2 + b2) * q)
        rho1, cofactor1 = ab * q * inverse1, delta1 * inverse1
        rise = step * (other - q) / (delta1 + delta) + ab**2 * pair.below * (pair.above / (delta1 + delta))
        sin = rho1 * (rise * inverse) + (ab * q_minus_k * inverse) * cofactor1
        turns.append((sin, rho1 * rho + cofactor1 * cofactor, acute(rho1, cofactor1)))
    (sin1, cos1, beta1), (sin2, cos2, beta2) = turns
    # The half distance is the sum of the two angles from the pair to each input with itself. Where the sum is small it
    # comes from its sine, since differences of angles would cancel.
    sin, cos = sin1 * cos2 + cos1 * sin2, cos1 * cos2 - sin1 * sin2
    small = (cos > 0.5) & (k > 0)
    turn = jnp.where(small, acute(jnp.where(small, sin, 0), jnp.where(small, cos, 1)), (beta1 - beta) + (beta2 - beta))
    return 2 / math.pi * beta, turn / math.pi, 2 / math.pi * ab / delta
