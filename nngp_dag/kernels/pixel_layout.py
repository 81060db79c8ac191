"""The pixel layout of covariances: the order of their axes, and the action of convolutions and pooling on them.

Arrays have batch axes first, (N1, N2) for a block of a kernel or (N,) for inputs with themselves. The axes of pixels
follow:

- none for vectors;
- one axis per spatial axis if only covariances of equal pixels are kept ("diagonal");
- two adjacent axes per spatial axis if covariances of all pairs of pixels are kept ("full"). The first of the two
  counts the pixels of the first input.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nngp_dag.errors import InputError
from nngp_dag.graph import AvgPool, EdgeOperation, Pool
from nngp_dag.graph.operations import Window


class PixelLayout(NamedTuple):
    """The axes of covariances.

    Attributes:
      ndim: Number of spatial axes; 0 for vectors.
      full: Whether covariances of different pixels are kept.
      paired: Whether there are only covariances of inputs with themselves, with one batch axis; otherwise there are
        two.
    """

    ndim: int = 0
    full: bool = False
    paired: bool = False

    @property
    def batch(self) -> int:
        """Number of batch axes."""
        return 1 if self.paired else 2

    def left(self, v: jax.Array) -> jax.Array:
        """Reshapes vectors (N, *pixels) of the first input so that they broadcast against covariances."""
        return self._spread(v, batch=0, pixel=0)

    def right(self, v: jax.Array) -> jax.Array:
        """Reshapes vectors (N, *pixels) of the second input so that they broadcast against covariances."""
        return self._spread(v, batch=1, pixel=1)

    def _spread(self, v: jax.Array, batch: int, pixel: int) -> jax.Array:
        pixels = v.shape[1:]
        if self.full:
            pixels = tuple(n for size in pixels for n in ((size, 1) if pixel == 0 else (1, size)))
        rows = (v.shape[0],) if self.paired else (v.shape[0], 1) if batch == 0 else (1, v.shape[0])
        return v.reshape(*rows, *pixels)

    def vector(self, v: jax.Array) -> jax.Array:
        """Undoes `left` or `right`: returns vectors (N, *pixels)."""
        size = v.shape[0] if self.paired else max(v.shape[:2])
        pixels = v.shape[self.batch :]
        if self.full:
            pixels = tuple(max(pixels[i : i + 2]) for i in range(0, len(pixels), 2))
        return v.reshape(size, *pixels)

    def diagonal(self, v: jax.Array) -> jax.Array:
        """Returns the variances (N, *pixels) in paired covariances."""
        if self.full:
            for _ in range(self.ndim):
                v = jnp.diagonal(v, axis1=1, axis2=2)
        return v

    def _axes(self, i: int, sides: str) -> tuple[int, ...]:
        if not self.full:
            return (self.batch + i,)
        first = self.batch + 2 * i
        return {"both": (first, first + 1), "left": (first,), "right": (first + 1,)}[sides]

    def convolve(self, v: jax.Array, over: Window, sides: str = "both") -> jax.Array:
        """Averages over the filter's pixels, which yields the covariance of a convolution with unit weight variance."""
        for i, (size, stride) in enumerate(zip(over.shape, over.strides, strict=True)):
            v = window_mean(v, self._axes(i, sides), size, stride, over.padding)
        return v

    def pool(self, v: jax.Array, op: EdgeOperation | None, sides: str) -> jax.Array:
        """Applies pooling to the pixels of one input ("left" or "right") of a full covariance."""
        return v if op is None else pool(op, v, [self._axes(i, sides)[0] for i in range(self.ndim)])

    def read_out(self, v: jax.Array, how: str) -> jax.Array:
        """Averages over equal pixels ("flatten") or over all pairs of pixels ("global-average")."""
        if how == "flatten":
            for _ in range(self.ndim if self.full else 0):
                v = jnp.diagonal(v, axis1=self.batch, axis2=self.batch + 1)
        return v.mean(axis=tuple(range(self.batch, v.ndim))) if v.ndim > self.batch else v


@functools.singledispatch
def pool(op: EdgeOperation, v: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Applies an operation that mixes pixels along the given axes, one per spatial axis, but not its factor.

    Raises:
      InputError: No rule is registered for the class of `op`.
    """
    raise InputError(f"Expected an operation on pixels with a rule for kernels, got {op!r}; register one with `pool`")


@pool.register
def _pool_windows(op: Pool, v: jax.Array, axes: Sequence[int]) -> jax.Array:
    return _window_means(op, v, axes)


@pool.register
def _pool_average(op: AvgPool, v: jax.Array, axes: Sequence[int]) -> jax.Array:
    return _window_means(op, v, axes, op.normalize_edges)


def _window_means(op: Pool, v: jax.Array, axes: Sequence[int], normalize_edges: bool = False) -> jax.Array:
    for axis, size, stride in zip(axes, op.window.shape, op.window.strides, strict=True):
        v = window_mean(v, (axis,), size, stride, op.window.padding, normalize_edges)
    return v


def window_mean(
    v: jax.Array, axes: tuple[int, ...], size: int, stride: int, padding: str, normalize_edges: bool = False
) -> jax.Array:
    """Averages over a window that moves along all `axes` at once, with zeros around the edges."""
    shifted, inside = _shifted(v, axes, size, stride, padding)
    total = shifted[0]
    for other in shifted[1:]:
        total = total + other
    if not normalize_edges:
        return total / size
    shape = [1] * v.ndim
    shape[axes[0]] = len(inside)
    return total / jnp.asarray(inside, v.dtype).reshape(shape)


def window_means(values: Any, axis: int, size: int, stride: int, padding: str) -> tuple[list[Any], int]:
    """Returns the shifted values at each offset of a window along an axis, one pytree each, and the window's size."""
    leaves, tree = jax.tree.flatten(values)
    shifted = zip(*(_shifted(v, (axis,), size, stride, padding)[0] for v in leaves), strict=True)
    return [jax.tree.unflatten(tree, of) for of in shifted], size


def _shifted(
    v: jax.Array, axes: tuple[int, ...], size: int, stride: int, padding: str
) -> tuple[list[jax.Array], list[int]]:
    """Returns the shifted array at each offset of a window along `axes`, and every window's pixels inside the image."""
    pixels = v.shape[axes[0]]
    (low, high) = lax.padtype_to_pads((pixels,), (size,), (stride,), padding)[0]
    count = (pixels + low + high - size) // stride + 1
    inside = [min(start + size, pixels) - max(start, 0) for start in (stride * i - low for i in range(count))]
    if size == stride == 1:
        return [v], inside
    pads = [(low, high, 0) if axis in axes else (0, 0, 0) for axis in range(v.ndim)]
    padded = lax.pad(v, jnp.zeros((), v.dtype), pads)

    def at(offset: int) -> jax.Array:
        for_axis = dict.fromkeys(axes, (offset, offset + stride * (count - 1) + 1, stride))
        return padded[tuple(slice(*for_axis[axis]) if axis in for_axis else slice(None) for axis in range(v.ndim))]

    return [at(offset) for offset in range(size)], inside
