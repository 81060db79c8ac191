"""The operations of the DARTS space."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from nngp_dag.nas.networks.layers import ConvNorm, Normalize, convolved, he_normal


class Separable(nnx.Module):
    """ReLU, a filter per channel, a convolution over 1 x 1 pixels, batch norm; or several of them side by side.

    Attributes:
      depthwise: (side, side, 1, groups C).
      pointwise: (1, 1, C, groups C).
      scale: (groups C,).
      shift: (groups C,).
    """

    def __init__(self, channels: int, side: int, dilation: int = 1, groups: int = 1, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.depthwise = nnx.Param(_side_by_side(rngs, groups, (side, side, 1, channels)))
        self.pointwise = nnx.Param(_side_by_side(rngs, groups, (1, 1, channels, channels)))
        self.scale = nnx.Param(jnp.ones(groups * channels))
        self.shift = nnx.Param(jnp.zeros(groups * channels))
        self.dilation = dilation

    def __call__(self, x: Array, normalize: Normalize, stride: int = 1) -> Array:
        """Applies it to images of groups C channels."""
        x = convolved(nnx.relu(x), self.depthwise[...], stride, self.dilation)
        return normalize(convolved(x, self.pointwise[...]), self.scale[...], self.shift[...])


class FactorizedReduce(nnx.Module):
    """ReLU, two convolutions over 1 x 1 pixels that read every second pixel, one shifted by a pixel, batch norm.

    Several of them side by side read the same images.
    """

    def __init__(self, c_in: int, c_out: int, groups: int = 1, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.groups = groups
        self.even = nnx.Param(_side_by_side(rngs, groups, (1, 1, c_in, c_out // 2)))
        self.odd = nnx.Param(_side_by_side(rngs, groups, (1, 1, c_in, c_out - c_out // 2)))
        self.scale = nnx.Param(jnp.ones(groups * c_out))
        self.shift = nnx.Param(jnp.zeros(groups * c_out))

    def __call__(self, x: Array, normalize: Normalize) -> Array:
        """Applies it; of an odd side, the shifted convolution reads a row of zeros last."""
        x = nnx.relu(x)
        shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        parts = convolved(x, self.even[...], 2), convolved(shifted, self.odd[...], 2)
        shape = *parts[0].shape[:3], self.groups, -1
        joined = jnp.concatenate([part.reshape(shape) for part in parts], axis=-1).reshape(*shape[:3], -1)
        return normalize(joined, self.scale[...], self.shift[...])


def _side_by_side(rngs: nnx.Rngs, groups: int, shape: tuple[int, int, int, int]) -> Array:
    return jnp.moveaxis(he_normal(rngs, (groups, *shape)), 0, 3).reshape(*shape[:3], groups * shape[3])


class Preprocess(nnx.Module):
    """ReLU, a convolution over 1 x 1 pixels, batch norm: gives an input of a cell the cell's channels."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.block = ConvNorm(c_in, c_out, side=1, rngs=rngs)

    def __call__(self, x: Array, normalize: Normalize) -> Array:
        """Applies it."""
        return self.block(nnx.relu(x), normalize)


def largest(x: Array) -> Array:
    """Maximum over 3 x 3 pixels, as maxima of shifted images: on CPU windowed reductions take longer."""
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], constant_values=-jnp.inf)
        first, second, third = (lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x
