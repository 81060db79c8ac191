"""One weighted operation at infinite width: what it makes of the second moments of its input.

With weights of variance w_std^2 / fan-in and biases of variance b_std^2, in the order of their application:

    linear        K -> w_std^2 K + b_std^2                T -> a_w K + a_b + w_std^2 T
    activation    K -> F = E[phi(u) phi(v)]               T -> Fd T,  Fd = E[phi'(u) phi'(v)]
    layer norm    K -> C_ij / sqrt(C_ii C_jj)             T -> T_ij / sqrt(C_ii C_jj),  C = K - m m^T

(a_w, a_b) = (w_std^2, b_std^2) in the NTK parameterization and (fan-in, 1) in the standard one. A convolution averages
over its filter first. Sources: Lee et al. 2018 and Jacot et al. 2018 (linear, activation); Novak et al. 2019
(convolutions); Yang 2020, "Tensor Programs II" (layer norm).
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nngp_dag.activations import get_activation
from nngp_dag.architecture import Network
from nngp_dag.graph import Conv, Dense
from nngp_dag.kernels.dual import dual, gap_of, mean, ratio, root, traced_variance
from nngp_dag.kernels.pixel_layout import PixelLayout, window_means

# As in neural-tangents; keeps an input of zeros at zero.
LAYER_NORM_EPS = 1e-12


# Traced once for equal activations, which are hashable, and shapes.
_dual = jax.jit(dual, static_argnums=0, inline=True)


class KernelState(NamedTuple):
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
      parameterization: "ntk" or "standard".
      width: Fan-in of weighted edges, in channels.
    """

    parameterization: str = "ntk"
    width: int = 1

    def tangent_weights(self, op: Dense, fan_in: int | None = None) -> tuple[float, float]:
        """(a_w, a_b) of a linear layer."""
        if self.parameterization == "ntk":
            return op.w_std**2, (op.b_std or 0.0) ** 2
        channels = self.width if fan_in is None else fan_in
        return float(channels * (math.prod(op.filter_shape) if isinstance(op, Conv) else 1)), float(
            op.b_std is not None
        )


def rules_of(network: Network) -> Rules:
    """Returns the parameterization of a network; the width counts in the standard one only."""
    return Rules("standard", network.width) if network.parameterization == "standard" else Rules()


class Marginals(NamedTuple):
    """Vectors of both inputs, with axes that broadcast against covariances: variances v and means m."""

    v1: jax.Array
    v2: jax.Array
    m1: jax.Array | None = None
    m2: jax.Array | None = None


class Summand(NamedTuple):
    """What `add_up` adds: a weight, a value, and its variances at both inputs, which None says not to matter."""

    weight: Any
    value: KernelState
    v1: jax.Array | None
    v2: jax.Array | None


def add_up(
    summands: Sequence[Summand] | Summand, v1: jax.Array | None = None, v2: jax.Array | None = None
) -> KernelState:
    """Adds independent fields up, with weights that are not negative.

    With r = sqrt(v1 v2), and g = sqrt(w_s v_s / v), whose square is the share of a summand in the variance of an input,

        r - |k| = sum_s w_s (r_s - |k_s|) + sum_s w_s (|k_s| - sgn(k) k_s) + r / 2 sum_s (g1_s - g2_s)^2,

    sums of positive numbers, none of which cancels.

    Args:
      summands: What to add up; or one summand of arrays with a leading axis, along which it is added up.
      v1: Variances of the sum at the first input; None where all shares agree, so that the last sum is 0.
      v2: Those at the second input.
    """
    stacked = isinstance(summands, Summand)
    parts: Sequence[Summand] = [summands] if isinstance(summands, Summand) else summands

    def total(of: Callable[[Summand], jax.Array]) -> jax.Array:
        return of(parts[0]).sum(axis=0) if stacked else functools.reduce(operator.add, map(of, parts))

    def beside(v: jax.Array) -> jax.Array:
        return v[None] if stacked else v

    first = parts[0]
    k = total(lambda s: s.weight * s.value.k)
    ntk = None if first.value.ntk is None else total(lambda s: s.weight * s.value.ntk)  # type: ignore[operator]
    if first.value.gap is None:
        return KernelState(k, None, ntk)
    if not stacked and len(parts) == 1:
        return KernelState(k, first.weight * first.value.gap, ntk)
    gap = total(lambda s: s.weight * (s.value.gap + _against(s.value.k, beside(k))))  # type: ignore[operator]
    if v1 is not None and v2 is not None:
        of_sum = beside(v1), beside(v2)
        gap += root(v1) * root(v2) / 2 * total(lambda s: _square_of_shares(s, *of_sum))
    return KernelState(k, gap, ntk)


def _against(k: jax.Array, of_sum: jax.Array) -> jax.Array:
    """Returns |k| - sgn(of_sum) k; derivatives at 0 are those of positive numbers, as they are of `gap`."""
    return 2 * jnp.where(of_sum < 0, jnp.where(k < 0, 0, k), jnp.where(k < 0, -k, 0))


def _square_of_shares(summand: Summand, v1: jax.Array, v2: jax.Array) -> jax.Array:
    assert summand.v1 is not None
    assert summand.v2 is not None
    return (root(ratio(summand.weight * summand.v1, v1)) - root(ratio(summand.weight * summand.v2, v2))) ** 2


def gap_from(value: KernelState, marginals: Marginals) -> jax.Array:
    """Returns the gap, by subtraction where it is not kept."""
    return gap_of(value.k, marginals.v1, marginals.v2) if value.gap is None else value.gap


def _convolve(
    value: KernelState, marginals: Marginals, op: Dense, layout: PixelLayout
) -> tuple[KernelState, Marginals]:
    """Averages over the filter's pixels."""
    if not isinstance(op, Conv):
        return value, marginals
    if value.gap is None:
        k, ntk = (None if v is None else layout.convolve(v, op) for v in (value.k, value.ntk))
        assert k is not None
        return KernelState(k, None, ntk), Marginals(
            layout.convolve(marginals.v1, op, "left"), layout.convolve(marginals.v2, op, "right")
        )

    for axis, (size, stride) in enumerate(zip(op.filter_shape, op.strides or (), strict=True)):
        terms, pixels = window_means((value, marginals), layout.batch + axis, size, stride, op.padding)
        marginals = Marginals(
            *(
                functools.reduce(operator.add, v) / pixels
                for v in ([of.v1 for _, of in terms], [of.v2 for _, of in terms])
            )
        )
        value = add_up([Summand(1 / pixels, of, s.v1, s.v2) for of, s in terms], marginals.v1, marginals.v2)
    return value, marginals


def linear(
    op: Dense, value: KernelState, marginals: Marginals, layout: PixelLayout, rules: Rules, fan_in: int | None = None
) -> tuple[KernelState, Marginals]:
    """Applies fresh weights to covariances and means; the output is a centered Gaussian process."""
    weight, bias = op.w_std**2, (op.b_std or 0.0) ** 2
    a_w, a_b = rules.tangent_weights(op, fan_in)
    if isinstance(op, Conv):
        value, marginals = _convolve(*uncenter(value, marginals), op, layout)
    second = _second_moments(value, marginals)
    v1, v2 = (weight * functools.reduce(operator.add, of) + bias for of in _variances(second))
    ntk = None
    if value.ntk is not None:
        ntk = a_w * functools.reduce(operator.add, [s.value.k for s in second]) + a_b + weight * value.ntk
    summands = [s._replace(weight=weight, value=s.value._replace(ntk=None)) for s in second]
    if bias:
        same = jnp.full((1,) * value.k.ndim, bias, value.k.dtype)
        summands.append(
            Summand(1, KernelState(same, None if value.gap is None else jnp.zeros_like(same), None), same, same)
        )
    return add_up(summands, v1, v2)._replace(ntk=ntk), Marginals(v1, v2)


def activate(
    activation: object, value: KernelState, marginals: Marginals, layout: PixelLayout
) -> tuple[KernelState, Marginals]:
    """Applies the activation to a centered Gaussian process; returns covariances, variances and means of the output."""
    phi = get_activation(activation)  # type: ignore[arg-type]
    if layout.paired and value.gap is not None:  # inputs with themselves
        v, m = traced_variance(phi, marginals.v1), mean(phi, marginals.v1)
        return KernelState(v, value.gap, None), Marginals(v, v, m, m)
    c, gap, slope = _dual(phi, value.k, gap_from(value, marginals), marginals.v1, marginals.v2)
    ntk = None if value.ntk is None else slope * value.ntk
    return KernelState(c, None if value.gap is None else gap, ntk), Marginals(
        traced_variance(phi, marginals.v1),
        traced_variance(phi, marginals.v2),
        mean(phi, marginals.v1),
        mean(phi, marginals.v2),
    )


def normalize(value: KernelState, marginals: Marginals) -> tuple[KernelState, Marginals]:
    """Applies layer normalization over channels to covariances."""
    std1, std2 = jnp.sqrt(marginals.v1 + LAYER_NORM_EPS), jnp.sqrt(marginals.v2 + LAYER_NORM_EPS)
    scaled = jax.tree.map(lambda v: v / (std1 * std2), value)
    return scaled, Marginals(marginals.v1 / std1**2, marginals.v2 / std2**2)


def _second_moments(value: KernelState, marginals: Marginals) -> list[Summand]:
    """Returns what second moments are the sum of: covariances, and products of means where there are any."""
    summands = [Summand(1, value, marginals.v1, marginals.v2)]
    if marginals.m1 is not None and marginals.m2 is not None:
        product = marginals.m1 * marginals.m2
        gap = None if value.gap is None else jnp.zeros_like(product)
        summands.append(Summand(1, KernelState(product, gap, None), marginals.m1**2, marginals.m2**2))
    return summands


def _variances(summands: Sequence[Summand]) -> tuple[list[Any], list[Any]]:
    return [s.v1 for s in summands], [s.v2 for s in summands]


def uncenter(value: KernelState, marginals: Marginals) -> tuple[KernelState, Marginals]:
    """Turns covariances into second moments, with second moments in the place of variances."""
    summands = [s._replace(value=s.value._replace(ntk=None)) for s in _second_moments(value, marginals)]
    q1, q2 = (functools.reduce(operator.add, of) for of in _variances(summands))
    return add_up(summands, q1, q2)._replace(ntk=value.ntk), Marginals(q1, q2)


def apply(
    op: Dense, value: KernelState, marginals: Marginals, layout: PixelLayout, rules: Rules, fan_in: int | None = None
) -> tuple[KernelState, Marginals]:
    """Applies a weighted operation to covariances; the output has means only after an activation."""
    if op.layer_norm:
        value, marginals = normalize(value, marginals)
    if op.order == "act-linear" and op.activation is not None:
        value, marginals = activate(op.activation, *uncenter(value, marginals), layout)
    value, marginals = linear(op, value, marginals, layout, rules, fan_in)
    if op.order == "linear-act" and op.activation is not None:
        value, marginals = activate(op.activation, value, marginals, layout)
    return value, marginals
