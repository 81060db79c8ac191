"""One weighted operation at infinite width: what it makes of the second moments of its input.

With weights of variance w_std^2 / fan-in and biases of variance b_std^2, in the order of their application:

    linear        K -> w_std^2 K + b_std^2                T -> a_w K + a_b + w_std^2 T
    activation    K -> F = E[phi(u) phi(v)]               T -> Fd T,  Fd = E[phi'(u) phi'(v)]
    layer norm    K -> C_ij / sqrt(C_ii C_jj)             T -> T_ij / sqrt(C_ii C_jj),  C = K - m m^T

(a_w, a_b) = (w_std^2, b_std^2) in the NTK parameterisation and (fan-in, 1) in the standard one. A convolution averages
over its filter first. Sources: Lee et al. 2018 and Jacot et al. 2018 (linear, activation); Novak et al. 2019
(convolutions); Yang 2020, "Tensor Programs II" (layer norm).
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nngp_dag.activations import get_activation
from nngp_dag.graph import Conv, Dense
from nngp_dag.kernels.dual import dual, gap_of, mean, ratio, root, variance
from nngp_dag.kernels.space import Space, window_means

# As in neural-tangents; keeps an input of zeros at zero.
LAYER_NORM_EPS = 1e-12


# Traced once for equal activations, which are hashable, and shapes.
_dual = jax.jit(dual, static_argnums=0, inline=True)


class Value(NamedTuple):
    """Covariances of two sets of inputs at some place of the network, or second moments where means are in.

    Attributes:
      k: Cov[X(x_i), X(x_j)], (N1, N2, *pixels).
      gap: sqrt(v_i v_j) - |k|, with the variances v, kept apart because k rounds away the angle of inputs that are
        nearly parallel or opposite; None where covariances of different pixels are kept.
      ntk: The NTK, or None where it is not wanted.
    """

    k: jax.Array
    gap: jax.Array | None
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
    """Vectors of both inputs, with axes that broadcast against covariances: variances v and means m."""

    v1: jax.Array
    v2: jax.Array
    m1: jax.Array | None = None
    m2: jax.Array | None = None


class Summand(NamedTuple):
    """What `add_up` adds: a weight, a value, and its variances at both inputs, which None says not to matter."""

    weight: Any
    value: Value
    v1: jax.Array | None
    v2: jax.Array | None


def total(terms: Sequence[Any]) -> Any:
    """Adds up; None where the terms are."""
    return None if terms[0] is None else functools.reduce(operator.add, terms)


def add_up(summands: Sequence[Summand], v1: jax.Array | None = None, v2: jax.Array | None = None) -> Value:
    """Adds independent fields up, with weights that are not negative.

    With r = sqrt(v1 v2), and g = sqrt(v_s / v) the share of the summand s in the variance of an input,

        r - |k| = sum_s w_s (r_s - |k_s|) + sum_s w_s (|k_s| - sgn(k) k_s) + r / 2 sum_s w_s (g1_s - g2_s)^2,

    sums of positive numbers, none of which cancels.

    Args:
      summands: What to add up.
      v1: Variances of the sum at the first input; None where all shares agree, so that the last sum is 0.
      v2: Those at the second input.
    """
    k = total([s.weight * s.value.k for s in summands])
    ntk = total([None if s.value.ntk is None else s.weight * s.value.ntk for s in summands])
    gap = total([None if s.value.gap is None else s.weight * s.value.gap for s in summands])
    if gap is not None and len(summands) > 1:
        gap += total([s.weight * _against(s.value.k, k) for s in summands])
        if v1 is not None and v2 is not None:
            gap += root(v1) * root(v2) / 2 * total([s.weight * _square_of_shares(s, v1, v2) for s in summands])
    return Value(k, gap, ntk)


def _against(k: jax.Array, of_sum: jax.Array) -> jax.Array:
    """Returns |k| - sgn(of_sum) k; derivatives at 0 are those of positive numbers, as they are of `gap`."""
    return 2 * jnp.where(of_sum < 0, jnp.where(k < 0, 0, k), jnp.where(k < 0, -k, 0))


def _square_of_shares(summand: Summand, v1: jax.Array, v2: jax.Array) -> jax.Array:
    assert summand.v1 is not None
    assert summand.v2 is not None
    return (root(ratio(summand.v1, v1)) - root(ratio(summand.v2, v2))) ** 2


def gap_from(value: Value, sides: Sides) -> jax.Array:
    """Returns the gap, by subtraction where it is not kept."""
    return gap_of(value.k, sides.v1, sides.v2) if value.gap is None else value.gap


def _convolve(value: Value, sides: Sides, op: Dense, space: Space) -> tuple[Value, Sides]:
    """Averages over the filter's pixels."""
    if not isinstance(op, Conv):
        return value, sides
    if value.gap is None:
        k, ntk = (None if v is None else space.convolve(v, op) for v in (value.k, value.ntk))
        assert k is not None
        return Value(k, None, ntk), Sides(space.convolve(sides.v1, op, "left"), space.convolve(sides.v2, op, "right"))

    for axis, (size, stride) in enumerate(zip(op.filter_shape, op.strides or (), strict=True)):
        terms, pixels = window_means((value, sides), space.batch + axis, size, stride, op.padding)
        sides = Sides(*(total([getattr(of, name) for _, of in terms]) / pixels for name in ("v1", "v2")))
        value = add_up([Summand(1 / pixels, of, s.v1, s.v2) for of, s in terms], sides.v1, sides.v2)
    return value, sides


def linear(
    op: Dense, value: Value, sides: Sides, space: Space, rules: Rules, fan_in: int | None = None
) -> tuple[Value, Sides]:
    """Applies fresh weights to second moments; the output is a centred Gaussian process."""
    weight, bias = op.w_std**2, (op.b_std or 0.0) ** 2
    a_w, a_b = rules.tangent_weights(op, fan_in)
    value, sides = _convolve(value, sides, op, space)
    ntk = None if value.ntk is None else a_w * value.k + a_b + weight * value.ntk
    v1, v2 = weight * sides.v1 + bias, weight * sides.v2 + bias
    summands = [Summand(weight, value._replace(ntk=None), sides.v1, sides.v2)]
    if bias:
        same = jnp.full((1,) * value.k.ndim, bias, value.k.dtype)
        summands.append(Summand(1, Value(same, None if value.gap is None else jnp.zeros_like(same), None), same, same))
    return add_up(summands, v1, v2)._replace(ntk=ntk), Sides(v1, v2)


def activate(activation: object, value: Value, sides: Sides) -> tuple[Value, Sides]:
    """Applies the activation to a centred Gaussian process; returns covariances, variances and means of the output."""
    phi = get_activation(activation)  # type: ignore[arg-type]
    c, gap, slope = _dual(phi, value.k, gap_from(value, sides), sides.v1, sides.v2)
    ntk = None if value.ntk is None else slope * value.ntk
    return Value(c, None if value.gap is None else gap, ntk), Sides(
        variance(phi, sides.v1), variance(phi, sides.v2), mean(phi, sides.v1), mean(phi, sides.v2)
    )


def normalise(value: Value, sides: Sides) -> tuple[Value, Sides]:
    """Applies layer normalisation over channels to covariances."""
    std1, std2 = jnp.sqrt(sides.v1 + LAYER_NORM_EPS), jnp.sqrt(sides.v2 + LAYER_NORM_EPS)
    scaled = jax.tree.map(lambda v: v / (std1 * std2), value)
    return scaled, Sides(sides.v1 / std1**2, sides.v2 / std2**2)


def uncentre(value: Value, sides: Sides) -> tuple[Value, Sides]:
    """Turns covariances into second moments, with second moments in the place of variances."""
    if sides.m1 is None or sides.m2 is None:
        return value, Sides(sides.v1, sides.v2)
    q1, q2 = sides.v1 + sides.m1**2, sides.v2 + sides.m2**2
    product = sides.m1 * sides.m2
    means = Value(product, None if value.gap is None else jnp.zeros_like(product), None)
    summands = [
        Summand(1, value._replace(ntk=None), sides.v1, sides.v2),
        Summand(1, means, sides.m1**2, sides.m2**2),
    ]
    return add_up(summands, q1, q2)._replace(ntk=value.ntk), Sides(q1, q2)


def apply(
    op: Dense, value: Value, sides: Sides, space: Space, rules: Rules, fan_in: int | None = None
) -> tuple[Value, Sides]:
    """Applies a weighted operation to covariances; the output has means only after an activation."""
    if op.layer_norm:
        value, sides = normalise(value, sides)
    value, sides = uncentre(value, sides)
    if op.order == "act-linear" and op.activation is not None:
        value, sides = uncentre(*activate(op.activation, value, sides))
    value, sides = linear(op, value, sides, space, rules, fan_in)
    if op.order == "linear-act" and op.activation is not None:
        value, sides = activate(op.activation, value, sides)
    return value, sides
