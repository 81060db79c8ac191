"""Layers of the supernet of NAS-Bench-201, on images (channels, n, height, width).

With channels last, as in `layers`, the inner loops on CPU run over channels, and TE-NAS has only three. With channels
first they run over images and pixels. A convolution is then a product with the matrix of shifted images.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from nngp_dag.nas.networks import layers


def normalized(x: Array, scale: Array, shift: Array, over: str | None = None) -> Array:
    """Batch normalization by the statistics of the batch; see `layers.normalized`."""
    return layers.normalized(x, scale, shift, over, channels=0)


def convolved(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Returns the convolution with zero padding on all sides, as PyTorch pads.

    The padding "SAME" of XLA would read other pixels at stride 2.

    Args:
      x: Images, (channels, n, height, width). Height and width are even where the stride is 2.
      kernel: (3, 3, channels, channels out), or (1, 1, channels, channels out) where the stride is 1.
      stride: Distance between the pixels that are kept, 1 or 2.

    Returns:
      Images, (channels out, n, height / stride, width / stride).
    """
    return _convolved(x, kernel, stride)  # type: ignore[return-value]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolved(x: Array, kernel: Array, stride: int) -> Array:
    return _forwards(x, kernel, stride)[0]


def _forwards(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    (_, n, height, width), (side, _, channels, channels_out) = x.shape, kernel.shape
    out = _product(kernel.reshape(side**2 * channels, channels_out), _read(x, side, stride), 0, 0)
    return out.reshape(channels_out, n, height // stride, width // stride), (x, kernel)


def _read(x: Array, side: int, stride: int) -> Array:
    """Returns the matrix of shifted images, (pixels of the filter times channels, pixels of the output)."""
    channels, n, height, width = x.shape
    if side == 3:
        padded = _padded(x)
        shifted = [padded[:, :, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
        x = jnp.concatenate(shifted)
    return x.reshape(side**2 * channels, n * (height // stride) * (width // stride))


def _backwards(stride: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    side, _, channels, channels_out = kernel.shape
    read = _read(x, side, stride)
    pixels = gradient.reshape(channels_out, read.shape[1])
    of_kernel = _product(read, pixels, 1, 1).reshape(kernel.shape)
    sent = _product(kernel.reshape(side**2 * channels, channels_out), pixels, 1, 0)
    sent = sent.reshape(side, side, channels, *gradient.shape[1:])
    if side == 1:
        return sent[0, 0], of_kernel
    return (_interleaved(sent) if stride == 2 else _added(sent)), of_kernel


_convolved.defvjp(_forwards, _backwards)


def _product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), precision=lax.Precision.HIGHEST)


def _padded(x: Array) -> Array:
    return jnp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])


def _added(sent: Array) -> Array:
    """Sums the gradients of the filter's pixels, (3, 3, channels, n, height, width), at the pixels that they read."""
    *_, channels, n, height, width = sent.shape
    total = jnp.zeros((channels, n, height + 2, width + 2), sent.dtype)
    for i in range(3):
        for j in range(3):
            # A sum of padded terms would make XLA test at every pixel whether it lies inside.
            there = lax.slice(total, (0, 0, i, j), (channels, n, i + height, j + width))
            total = lax.dynamic_update_slice(total, there + sent[i, j], (0, 0, i, j))
    return total[:, :, 1:-1, 1:-1]


def _interleaved(sent: Array) -> Array:
    """Sums the gradients of the filter's pixels as `_added` does, for a convolution of stride 2.

    The center of the filter reads even pixels only, its two sides odd pixels only. So the sums for even and for odd
    pixels are computed apart and interleaved.
    """

    def both(taps: Sequence[Array] | Array, axis: int) -> list[Array]:
        before, center, after = taps
        widths = [(0, int(i == axis)) for i in range(before.ndim)]
        next_one = lax.slice_in_dim(jnp.pad(before, widths), 1, None, axis=axis)
        return [center, after + next_one]

    by_column = [both(sent[:, j], 2) for j in range(3)]
    rows = [jnp.stack(both(columns, 3), axis=4) for columns in zip(*by_column, strict=True)]
    channels, n, height, width, _ = rows[0].shape
    return jnp.stack(rows, axis=3).reshape(channels, n, 2 * height, 2 * width)


@jax.custom_vjp
def averaged(x: Array) -> Array:
    """Returns the mean over 3 x 3 pixels; pixels outside the image do not count."""
    return _summed(x) / _inside(x)


averaged.defvjp(lambda x: (averaged(x), None), lambda _, gradient: (_summed(gradient / _inside(gradient)),))


def _summed(x: Array) -> Array:
    height, width = x.shape[2:]
    padded = _padded(x)
    rows = padded[:, :, :height] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return rows[..., :width] + rows[..., 1:-1] + rows[..., 2:]


def _inside(x: Array) -> Array:
    """Returns how many of the 3 x 3 pixels lie inside the image, (1, 1, height, width)."""
    rows, columns = (3 - (jnp.arange(size) == 0) - (jnp.arange(size) == size - 1) for size in x.shape[2:])
    return (rows[:, None] * columns[None]).astype(x.dtype)[None, None]


def halved(x: Array) -> Array:
    """Returns the mean over blocks of 2 x 2 pixels."""
    channels, n, height, width = x.shape
    return x.reshape(channels, n, height // 2, 2, width // 2, 2).mean(axis=(3, 5))
