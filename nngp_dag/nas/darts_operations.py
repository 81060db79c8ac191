"""The operations of the DARTS space."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from nngp_dag.nas.layers import ConvNorm, Layers, he_normal

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""What an edge may carry, in the order of DARTS."""

EDGES = tuple((source, target) for target in range(2, 6) for source in range(target))
"""(source, target) of the edges of a cell: nodes 0 and 1 are its inputs, 2 to 5 are concatenated."""


class Separable(nnx.Module):
    """ReLU, a filter per channel, a convolution over 1 x 1 pixels, batch norm.

    Attributes:
      depthwise: (side, side, 1, C).
      pointwise: (1, 1, C, C).
      scale: (C,).
      shift: (C,).
    """

    def __init__(self, channels: int, side: int, dilation: int = 1, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.depthwise = nnx.Param(he_normal(rngs, (side, side, 1, channels)))
        self.pointwise = nnx.Param(he_normal(rngs, (1, 1, channels, channels)))
        self.scale = nnx.Param(jnp.ones(channels))
        self.shift = nnx.Param(jnp.zeros(channels))
        self.dilation = dilation

    def __call__(self, x: Array, layers: Layers, stride: int = 1) -> Array:
        """Applies it."""
        x = layers.convolve(nnx.relu(x), self.depthwise[...], stride, self.dilation)
        return layers.normalise(layers.convolve(x, self.pointwise[...]), self.scale[...], self.shift[...])


class FactorizedReduce(nnx.Module):
    """ReLU, two convolutions over 1 x 1 pixels that read every second pixel, one shifted by a pixel, batch norm."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.even = nnx.Param(he_normal(rngs, (1, 1, c_in, c_out // 2)))
        self.odd = nnx.Param(he_normal(rngs, (1, 1, c_in, c_out - c_out // 2)))
        self.scale = nnx.Param(jnp.ones(c_out))
        self.shift = nnx.Param(jnp.zeros(c_out))

    def __call__(self, x: Array, layers: Layers) -> Array:
        """Applies it; of an odd side, the shifted convolution reads a row of zeros last."""
        x = nnx.relu(x)
        shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        parts = [layers.convolve(x, self.even[...], 2), layers.convolve(shifted, self.odd[...], 2)]
        return layers.normalise(jnp.concatenate(parts, axis=-1), self.scale[...], self.shift[...])


class Preprocess(nnx.Module):
    """ReLU, a convolution over 1 x 1 pixels, batch norm: gives an input of a cell the cell's channels."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.block = ConvNorm(c_in, c_out, side=1, rngs=rngs)

    def __call__(self, x: Array, layers: Layers) -> Array:
        """Applies it."""
        return layers.conv_norm(nnx.relu(x), self.block)


def largest(x: Array) -> Array:
    """Maximum over 3 x 3 pixels, as maxima of shifted images: on CPU windowed reductions take longer."""
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], constant_values=-jnp.inf)
        first, second, third = (lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x
