"""One weighted operation at infinite width: what it makes of the second moments of its input.

With weights of variance w_std^2 / fan-in and biases of variance b_std^2, in the order of their application:

    linear        K -> w_std^2 K + b_std^2                T -> a_w K + a_b + w_std^2 T
    activation    K -> F = E[phi(u) phi(v)]               T -> Fd T,  Fd = E[phi'(u) phi'(v)]
    layer norm    K -> C_ij / sqrt(C_ii C_jj)             T -> T_ij / sqrt(C_ii C_jj),  C = K - m m^T

(a_w, a_b) = (w_std^2, b_std^2) in the NTK parameterisation and (fan-in, 1) in the standard one. A convolution averages
over its filter first. Sources: Lee et al. 2018 and Jacot et al. 2018 (linear, activation); Novak et al. 2019
(convolutions); Yang 2020, "Tensor Programs II" (layer norm).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nngp_dag.activations import get_activation
from nngp_dag.graph import Conv, Dense
from nngp_dag.kernels.dual import dual, mean
from nngp_dag.kernels.space import Space

# As in neural-tangents; keeps an input of zeros at zero.
LAYER_NORM_EPS = 1e-12


# Traced once for equal activations, which are hashable, and shapes.
_dual = jax.jit(dual, static_argnums=0, inline=True)


class Value(NamedTuple):
    """Second moments of two sets of inputs at some place of the network.

    Attributes:
      k: E[X(x_i) X(x_j)], or a covariance, (N1, N2, *pixels).
      half_distance: (q_i + q_j) / 2 - k, kept apart because k rounds away the angle of inputs that nearly coincide;
        None where covariances of different pixels are kept, since zeros around images spoil the recursion.
      ntk: The NTK, or None where it is not wanted.
    """

    k: jax.Array
    half_distance: jax.Array | None
    ntk: jax.Array | None


class Rules(NamedTuple):
    """What gradients are taken with respect to.

    Attributes:
      parameterisation: "ntk" or "standard".
      width: Fan-in of weighted edges, in channels.
    """

    parameterisation: str = "ntk"
    width: int = 1

    def tangent_weights(self, op: Dense, fan_in: int | None = None) -> tuple[float, float]:
        """(a_w, a_b) of a linear layer."""
        if self.parameterisation == "ntk":
            return op.w_std**2, (op.b_std or 0.0) ** 2
        channels = self.width if fan_in is None else fan_in
        return float(channels * (math.prod(op.filter_shape) if isinstance(op, Conv) else 1)), float(
            op.b_std is not None
        )


class Sides(NamedTuple):
    """Vectors of both inputs, with axes that broadcast against covariances: second moments q and means m."""

    q1: jax.Array
    q2: jax.Array
    m1: jax.Array | None = None
    m2: jax.Array | None = None


def half_distance_of(value: Value, sides: Sides) -> jax.Array:
    """Returns D, by subtraction where it is not kept."""
    return (sides.q1 + sides.q2) / 2 - value.k if value.half_distance is None else value.half_distance


def linear(
    op: Dense, value: Value, sides: Sides, space: Space, rules: Rules, fan_in: int | None = None
) -> tuple[Value, Sides]:
    """Applies fresh weights; the output is a centred Gaussian process."""
    variance, bias = op.w_std**2, (op.b_std or 0.0) ** 2
    a_w, a_b = rules.tangent_weights(op, fan_in)
    k, half_distance, ntk = (None if v is None else space.convolve(v, op) for v in value)
    assert k is not None
    ntk = None if ntk is None else a_w * k + a_b + variance * ntk
    half_distance = None if half_distance is None else variance * half_distance
    q1, q2 = space.convolve(sides.q1, op, "left"), space.convolve(sides.q2, op, "right")
    return Value(variance * k + bias, half_distance, ntk), Sides(variance * q1 + bias, variance * q2 + bias)


def activate(activation: object, value: Value, sides: Sides) -> tuple[Value, Sides]:
    """Applies the activation to a centred Gaussian process, and gives the means of what comes out."""
    phi = get_activation(activation)  # type: ignore[arg-type]
    f, half_distance, fd = _dual(phi, value.k, half_distance_of(value, sides), sides.q1, sides.q2)
    zero1, zero2 = jnp.zeros_like(sides.q1), jnp.zeros_like(sides.q2)
    q1, q2 = _dual(phi, sides.q1, zero1, sides.q1, sides.q1)[0], _dual(phi, sides.q2, zero2, sides.q2, sides.q2)[0]
    ntk = None if value.ntk is None else fd * value.ntk
    half_distance = None if value.half_distance is None else half_distance
    return Value(f, half_distance, ntk), Sides(q1, q2, mean(phi, sides.q1), mean(phi, sides.q2))


def normalise(value: Value, sides: Sides) -> tuple[Value, Sides]:
    """Applies layer normalisation over channels."""
    value = centre(value, sides)
    var1, var2 = sides.q1, sides.q2
    if sides.m1 is not None and sides.m2 is not None:
        var1, var2 = var1 - sides.m1**2, var2 - sides.m2**2
    std1, std2 = jnp.sqrt(var1 + LAYER_NORM_EPS), jnp.sqrt(var2 + LAYER_NORM_EPS)
    scale = std1 * std2
    half_distance = value.half_distance
    if half_distance is not None:
        # (c_i + c_j) / 2 - C_ij over the scales, with c = var / std^2 below 1 by LAYER_NORM_EPS / std^2 only.
        half_distance = (half_distance - (std1 - std2) ** 2 / 2) / scale
    ntk = None if value.ntk is None else value.ntk / scale
    return Value(value.k / scale, half_distance, ntk), Sides(var1 / std1**2, var2 / std2**2)


def centre(value: Value, sides: Sides) -> Value:
    """Turns second moments into covariances."""
    if sides.m1 is None or sides.m2 is None:
        return value
    half_distance = value.half_distance
    if half_distance is not None:
        half_distance = half_distance - (sides.m1 - sides.m2) ** 2 / 2
    return Value(value.k - sides.m1 * sides.m2, half_distance, value.ntk)


def uncentre(value: Value, sides: Sides) -> Value:
    """Turns covariances into second moments."""
    if sides.m1 is None or sides.m2 is None:
        return value
    half_distance = value.half_distance
    if half_distance is not None:
        half_distance = half_distance + (sides.m1 - sides.m2) ** 2 / 2
    return Value(value.k + sides.m1 * sides.m2, half_distance, value.ntk)


def apply(
    op: Dense, value: Value, sides: Sides, space: Space, rules: Rules, fan_in: int | None = None
) -> tuple[Value, Sides]:
    """Applies a weighted operation to second moments; what comes out has means only after an activation."""
    if op.layer_norm:
        value, sides = normalise(value, sides)
    if op.order == "act-linear" and op.activation is not None:
        value, sides = activate(op.activation, value, sides)
    value, sides = linear(op, value, sides, space, rules, fan_in)
    if op.order == "linear-act" and op.activation is not None:
        value, sides = activate(op.activation, value, sides)
    return value, sides
