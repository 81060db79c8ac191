"""The operations of the DARTS space."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from nngp_dag.nas.networks.layers import ConvNorm, Normalize, convolved, he_normal


class Separable(nnx.Module):
    """ReLU, a depthwise convolution, a 1 x 1 convolution and batch norm, for one or several groups of C channels.

    Attributes:
      depthwise: Kernel of the depthwise convolution, (side, side, 1, groups C).
      pointwise: Kernel of the 1 x 1 convolution within each group, (1, 1, C, groups C).
      scale: Scales of batch norm, (groups C,).
      shift: Shifts of batch norm, (groups C,).
    """

    def __init__(self, channels: int, side: int, dilation: int = 1, groups: int = 1, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.depthwise = nnx.Param(_side_by_side(rngs, groups, (side, side, 1, channels)))
        self.pointwise = nnx.Param(_side_by_side(rngs, groups, (1, 1, channels, channels)))
        self.scale = nnx.Param(jnp.ones(groups * channels))
        self.shift = nnx.Param(jnp.zeros(groups * channels))
        self.dilation = dilation

    def __call__(self, x: Array, normalize: Normalize, stride: int = 1) -> Array:
        """Returns the result for images with C channels per group."""
        weights = self.depthwise[...], self.pointwise[...], self.scale[...], self.shift[...]
        return separated(x, weights, normalize, stride, self.dilation)


class FactorizedReduce(nnx.Module):
    """ReLU, two 1 x 1 convolutions of stride 2, of which one is shifted by a pixel, and batch norm.

    With several groups, each has weights of its own, and all read the same images.
    """

    def __init__(self, c_in: int, c_out: int, groups: int = 1, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.groups = groups
        self.even = nnx.Param(_side_by_side(rngs, groups, (1, 1, c_in, c_out // 2)))
        self.odd = nnx.Param(_side_by_side(rngs, groups, (1, 1, c_in, c_out - c_out // 2)))
        self.scale = nnx.Param(jnp.ones(groups * c_out))
        self.shift = nnx.Param(jnp.zeros(groups * c_out))

    def __call__(self, x: Array, normalize: Normalize) -> Array:
        """Returns images of half the sides. Where a side is odd, the shifted convolution reads zeros at its end."""
        weights = self.even[...], self.odd[...], self.scale[...], self.shift[...]
        return reduced(x, weights, normalize, self.groups)


def separated(
    x: Array, weights: tuple[Array, Array, Array, Array], normalize: Normalize, stride: int = 1, dilation: int = 1
) -> Array:
    """Returns the separable convolution of the weights (depthwise, pointwise, scale, shift); see `Separable`."""
    depthwise, pointwise, scale, shift = weights
    x = convolved(nnx.relu(x), depthwise, stride, dilation)
    return normalize(convolved(x, pointwise), scale, shift)


def reduced(x: Array, weights: tuple[Array, Array, Array, Array], normalize: Normalize, groups: int = 1) -> Array:
    """Returns images of half the sides, for the weights (even, odd, scale, shift); see `FactorizedReduce`."""
    even, odd, scale, shift = weights
    x = nnx.relu(x)
    later = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    parts = convolved(x, even, 2), convolved(later, odd, 2)
    shape = *parts[0].shape[:3], groups, -1
    joined = jnp.concatenate([part.reshape(shape) for part in parts], axis=-1).reshape(*shape[:3], -1)
    return normalize(joined, scale, shift)


def _side_by_side(rngs: nnx.Rngs, groups: int, shape: tuple[int, int, int, int]) -> Array:
    return jnp.moveaxis(he_normal(rngs, (groups, *shape)), 0, 3).reshape(*shape[:3], groups * shape[3])


class Preprocess(nnx.Module):
    """ReLU, a 1 x 1 convolution and batch norm, which bring an input of a cell to the channels of the cell."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.block = ConvNorm(c_in, c_out, side=1, rngs=rngs)

    def __call__(self, x: Array, normalize: Normalize) -> Array:
        """Returns the images with the channels of the cell."""
        return self.block(nnx.relu(x), normalize)


def largest(x: Array) -> Array:
    """Returns the maximum over 3 x 3 pixels."""
    # Maxima of shifted images: the windowed reductions of XLA take longer on CPU.
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], constant_values=-jnp.inf)
        first, second, third = (lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x
