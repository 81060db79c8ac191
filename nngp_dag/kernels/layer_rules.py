"""The layer rules: maps of second moments by one weighted operation at infinite width.

Weights have variance w_std^2 / fan-in, and biases have variance b_std^2. The rules for K and the NTK T are:

    linear        K -> w_std^2 K + b_std^2                T -> a_w K + a_b + w_std^2 T
    activation    K -> F = E[phi(u) phi(v)]               T -> F' T,  F' = E[phi'(u) phi'(v)]
    layer norm    K -> C_ij / sqrt(C_ii C_jj)             T -> T_ij / sqrt(C_ii C_jj),  C = K - m m^T

(a_w, a_b) is (w_std^2, b_std^2) in the NTK parameterization, and (fan-in, 1) in the standard one. A convolution
averages over its filter first. The order "linear-act" applies the linear rule first and yields Equation (7) of
docs/mathematics.md. The order "act-linear" applies the rule of the activation first and yields Equation (9).

Sources: Lee et al. 2018 and Jacot et al. 2018 (linear, activation); Novak et al. 2019 (convolutions); Yang 2020,
  "Tensor
Programs II" (layer norm).
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nngp_dag.activations import Activation, get_activation
from nngp_dag.architecture import Network
from nngp_dag.graph import Dense
from nngp_dag.graph.operations import Window
from nngp_dag.kernels.dual import dual, gap_of, mean, ratio, root, traced_variance
from nngp_dag.kernels.pixel_layout import PixelLayout, window_means

# The value of neural-tangents. It keeps an input of zeros at zero.
LAYER_NORM_EPS = 1e-12


# `jit` traces the dual once for a class of activations and given shapes, although many layers call it.
_dual = jax.jit(dual, inline=True)


class KernelState(NamedTuple):
    """The kernels of two sets of inputs at a node or a field.

    Attributes:
      k: Covariances Cov[X(x_i), X(x_j)], or second moments after `uncenter`, (N1, N2, *pixels).
      gap: The gap sqrt(v_i v_j) - |k|, Equation (10) of docs/mathematics.md, with the variances v. It is carried beside
        k, because k rounds away the angle of nearly parallel or opposite inputs. None where covariances of different
        pixels are kept.
      ntk: The NTK, or None if it is not requested.
    """

    k: jax.Array
    gap: jax.Array | None
    ntk: jax.Array | None


_STRUCTURE: dict[str, Any] = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    """A weighted operation as a pytree, whose leaves are the numbers that compiled programs take as inputs.

    Attributes:
      variance: w_std^2.
      bias: b_std^2, or None for a layer without biases.
      activation: The activation, or None.
      order: "linear-act" or "act-linear".
      layer_norm: Whether the input is normalized first.
      window: The filter's window of a convolution, or None.
    """

    variance: Any
    bias: Any
    activation: Activation | None
    order: str = dataclasses.field(default="linear-act", metadata=_STRUCTURE)
    layer_norm: bool = dataclasses.field(default=False, metadata=_STRUCTURE)
    window: Window | None = dataclasses.field(default=None, metadata=_STRUCTURE)


def layer_of(op: Dense) -> Layer:
    """Returns an operation as a pytree; standard deviations are squared in float64, before they are rounded."""
    phi = None if op.activation is None else get_activation(op.activation)
    bias = None if op.b_std is None else op.b_std**2
    return Layer(op.w_std**2, bias, phi, op.order, op.layer_norm, op.window)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """The parameterization, which defines the parameters that gradients are taken with respect to.

    Attributes:
      width: Fan-in of weighted edges in channels, for the standard parameterization; None for the NTK parameterization.
      parameterization: "ntk" or "standard".
    """

    width: Any = None
    parameterization: str = dataclasses.field(default="ntk", metadata=_STRUCTURE)

    def tangent_weights(self, layer: Layer, fan_in: Any = None) -> tuple[Any, Any]:
        """Returns (a_w, a_b) of a linear layer, see the module."""
        if self.parameterization == "ntk":
            return layer.variance, 0.0 if layer.bias is None else layer.bias
        channels = self.width if fan_in is None else fan_in
        return channels * float(math.prod(layer.window.shape if layer.window else ())), float(layer.bias is not None)


class Layers(NamedTuple):
    """The weighted operations of a program, as a pytree.

    Attributes:
      stem: The operation on the data, or None if the data themselves are node 0.
      edges: The operations of edges, by their numbers in the program.
      readout: The operation on the output nodes, or None.
      rules: The parameterization.
    """

    stem: Layer | None
    edges: tuple[Layer, ...]
    readout: Layer | None
    rules: Rules


def layers_of(network: Network, operations: Sequence[Dense], *, reads_out: bool) -> Layers:
    """Returns the layers of a network: the stem, the given operations of edges, and the readout if `reads_out`."""
    standard = network.parameterization == "standard"
    return Layers(
        layer_of(network.stem_op) if network.has_stem else None,
        tuple(map(layer_of, operations)),
        layer_of(network.readout_op) if reads_out else None,
        Rules(network.width, "standard") if standard else Rules(),
    )


class Marginals(NamedTuple):
    """Variances and means of both inputs, with axes that broadcast against covariances.

    Attributes:
      v1: Variances at the first input.
      v2: Variances at the second input.
      m1: Means at the first input, or None where all means are 0.
      m2: Means at the second input, or None where all means are 0.
    """

    v1: jax.Array
    v2: jax.Array
    m1: jax.Array | None = None
    m2: jax.Array | None = None


class Summand(NamedTuple):
    """One summand of `add_up`.

    Attributes:
      weight: Its weight, not negative.
      value: Its covariances.
      v1: Its variances at the first input; None where all inputs have equal shares, so that they do not matter.
      v2: Its variances at the second input, or None.
    """

    weight: Any
    value: KernelState
    v1: jax.Array | None
    v2: jax.Array | None


def add_up(
    summands: Sequence[Summand] | Summand, v1: jax.Array | None = None, v2: jax.Array | None = None
) -> KernelState:
    """Adds up independent fields with nonnegative weights, as Equation (6) of docs/mathematics.md does.

    Let v be the variance of the sum at an input and r = sqrt(v1 v2). Let g_s = sqrt(w_s v_s / v), whose square is the
    share of summand s in the variance. Then the gap of the sum is

        r - |k| = sum_s w_s (r_s - |k_s|) + sum_s w_s (|k_s| - sgn(k) k_s) + r / 2 sum_s (g1_s - g2_s)^2.

    No term is negative, so no digits cancel.

    Args:
      summands: The summands; or one summand of arrays with a leading axis, along which they are added up.
      v1: Variances of the sum at the first input; None if the shares at both inputs agree, so that the last sum is 0.
      v2: Variances of the sum at the second input, or None.
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
    """Returns |k| - sgn(of_sum) k; its derivative at 0 is that from the positive side, as for the gap."""
    return 2 * jnp.where(of_sum < 0, jnp.where(k < 0, 0, k), jnp.where(k < 0, -k, 0))


def _square_of_shares(summand: Summand, v1: jax.Array, v2: jax.Array) -> jax.Array:
    assert summand.v1 is not None
    assert summand.v2 is not None
    return (root(ratio(summand.weight * summand.v1, v1)) - root(ratio(summand.weight * summand.v2, v2))) ** 2


def gap_from(value: KernelState, marginals: Marginals) -> jax.Array:
    """Returns the gap of covariances; it is computed by subtraction if the state does not carry it."""
    return gap_of(value.k, marginals.v1, marginals.v2) if value.gap is None else value.gap


def _convolve(
    value: KernelState, marginals: Marginals, over: Window, layout: PixelLayout
) -> tuple[KernelState, Marginals]:
    """Averages second moments over the filter's pixels."""
    if value.gap is None:
        k, ntk = (None if v is None else layout.convolve(v, over) for v in (value.k, value.ntk))
        assert k is not None
        return KernelState(k, None, ntk), Marginals(
            layout.convolve(marginals.v1, over, "left"), layout.convolve(marginals.v2, over, "right")
        )

    # The gap of an average needs the shares of its terms, so the offsets of the window are summands of `add_up`, one
    # axis after another.
    for axis, (size, stride) in enumerate(zip(over.shape, over.strides, strict=True)):
        terms, pixels = window_means((value, marginals), layout.batch + axis, size, stride, over.padding)
        marginals = Marginals(
            *(
                functools.reduce(operator.add, v) / pixels
                for v in ([of.v1 for _, of in terms], [of.v2 for _, of in terms])
            )
        )
        value = add_up([Summand(1 / pixels, of, s.v1, s.v2) for of, s in terms], marginals.v1, marginals.v2)
    return value, marginals


def linear(
    layer: Layer, value: KernelState, marginals: Marginals, layout: PixelLayout, rules: Rules, fan_in: Any = None
) -> tuple[KernelState, Marginals]:
    """Applies the linear rule to covariances and means; the output is a centered Gaussian process."""
    weight, bias = layer.variance, layer.bias
    a_w, a_b = rules.tangent_weights(layer, fan_in)
    if layer.window is not None:
        value, marginals = _convolve(*uncenter(value, marginals), layer.window, layout)
    # The products of means stay a summand of their own, so that the gap of the second moments does not cancel.
    second = _second_moments(value, marginals)
    v1, v2 = (weight * functools.reduce(operator.add, of) for of in _variances(second))
    ntk = None
    if value.ntk is not None:
        ntk = a_w * functools.reduce(operator.add, [s.value.k for s in second]) + a_b + weight * value.ntk
    summands = [s._replace(weight=weight, value=s.value._replace(ntk=None)) for s in second]
    if bias is not None:
        v1, v2 = v1 + bias, v2 + bias
        # A bias adds one number to all covariances and variances: a summand with gap 0.
        same = jnp.full((1,) * value.k.ndim, bias, value.k.dtype)
        summands.append(
            Summand(1, KernelState(same, None if value.gap is None else jnp.zeros_like(same), None), same, same)
        )
    return add_up(summands, v1, v2)._replace(ntk=ntk), Marginals(v1, v2)


def activate(
    phi: Activation, value: KernelState, marginals: Marginals, layout: PixelLayout
) -> tuple[KernelState, Marginals]:
    """Applies the activation to a centered Gaussian process, Equation (4) of docs/mathematics.md.

    Returns:
      Covariances of the output, and its variances and means.
    """
    if layout.paired and value.gap is not None:  # inputs with themselves, whose gap is 0
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
    """Applies layer normalization over channels to covariances; means are subtracted, so the output has none."""
    std1, std2 = jnp.sqrt(marginals.v1 + LAYER_NORM_EPS), jnp.sqrt(marginals.v2 + LAYER_NORM_EPS)
    scaled = jax.tree.map(lambda v: v / (std1 * std2), value)
    return scaled, Marginals(marginals.v1 / std1**2, marginals.v2 / std2**2)


def _second_moments(value: KernelState, marginals: Marginals) -> list[Summand]:
    """Returns the summands of second moments: covariances, and products of means if there are any."""
    summands = [Summand(1, value, marginals.v1, marginals.v2)]
    if marginals.m1 is not None and marginals.m2 is not None:
        product = marginals.m1 * marginals.m2
        gap = None if value.gap is None else jnp.zeros_like(product)
        summands.append(Summand(1, KernelState(product, gap, None), marginals.m1**2, marginals.m2**2))
    return summands


def _variances(summands: Sequence[Summand]) -> tuple[list[Any], list[Any]]:
    return [s.v1 for s in summands], [s.v2 for s in summands]


def uncenter(value: KernelState, marginals: Marginals) -> tuple[KernelState, Marginals]:
    """Adds the products of means: covariances become second moments, and so do the variances in `marginals`."""
    summands = [s._replace(value=s.value._replace(ntk=None)) for s in _second_moments(value, marginals)]
    q1, q2 = (functools.reduce(operator.add, of) for of in _variances(summands))
    return add_up(summands, q1, q2)._replace(ntk=value.ntk), Marginals(q1, q2)


def apply(
    layer: Layer, value: KernelState, marginals: Marginals, layout: PixelLayout, rules: Rules, fan_in: Any = None
) -> tuple[KernelState, Marginals]:
    """Applies a weighted operation to covariances; the output has means only if it ends with an activation."""
    if layer.layer_norm:
        value, marginals = normalize(value, marginals)
    if layer.order == "act-linear" and layer.activation is not None:
        value, marginals = activate(layer.activation, *uncenter(value, marginals), layout)
    value, marginals = linear(layer, value, marginals, layout, rules, fan_in)
    if layer.order == "linear-act" and layer.activation is not None:
        value, marginals = activate(layer.activation, value, marginals, layout)
    return value, marginals
