"""Layers that the networks of both spaces share: convolutions, batch norm, pooling, initial weights."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from nngp_dag.errors import InputError
from nngp_dag.kernels.device import on_cpu

# PyTorch's default. The padding of strided convolutions follows PyTorch too, and averages leave out padded pixels.
_EPSILON = 1e-5
# Random numbers per draw, see `_drawn`.
_BLOCK = 1 << 14


@jax.custom_vjp
def in_memory(x: Array) -> Array:
    """Returns x, and keeps XLA from computing x again for each of its readers; the same holds for the gradient.

    XLA would fuse a computation with each of its readers, and so compile and compute it once per reader. On CPU, XLA
    drops optimization barriers before it fuses, but it keeps conditionals; `backends.unrolled` does the same. The
    condition here is a constant: under `jax.vmap` a condition on an argument would become a selection.
    """
    if not on_cpu():
        return lax.optimization_barrier(x)
    true = lax.optimization_barrier(jnp.array(True))
    return lax.cond(true, lambda value: value, jnp.zeros_like, x)


in_memory.defvjp(lambda x: (in_memory(x), None), lambda _, gradient: (in_memory(gradient),))


Normalize = Callable[[Array, Array, Array], Array]
"""A batch normalization of (x, scale, shift), such as `normalized`."""


class ConvNorm(nnx.Module):
    """Convolution without bias, then batch normalization by the statistics of the batch.

    Attributes:
      kernel: Kernel of the convolution, (side, side, channels in, channels out).
      scale: Scales of batch norm, (channels out,).
      shift: Shifts of batch norm, (channels out,).
    """

    def __init__(self, c_in: int, c_out: int, *, side: int = 3, rngs: nnx.Rngs):
        """Draws the weights."""
        self.kernel = nnx.Param(he_normal(rngs, (side, side, c_in, c_out)))
        self.scale = nnx.Param(jnp.ones(c_out))
        self.shift = nnx.Param(jnp.zeros(c_out))

    def __call__(self, x: Array, normalize: Normalize, stride: int = 1) -> Array:
        """Returns the normalized convolution."""
        return normalize(convolved(x, self.kernel[...], stride), self.scale[...], self.shift[...])


def he_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    """Draws normal weights of variance 2 / fan-out."""
    fan_out = shape[-1] * math.prod(shape[-4:-2])
    return _drawn(jax.random.normal, rngs, shape) * (2 / fan_out) ** 0.5


def torch_uniform(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    """Draws weights that are uniform between -1 and 1 over the root of fan-in, as PyTorch draws those of its layers."""
    return (2 * _drawn(jax.random.uniform, rngs, shape) - 1) * math.prod(shape[:-1]) ** -0.5


def _drawn(draw: Callable[[Array, tuple[int]], Array], rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    # In blocks of one size, because XLA takes seconds to compile a draw of every new shape.
    size = math.prod(shape)
    blocks = [draw(rngs.params(), (_BLOCK,)) for _ in range(-(-size // _BLOCK))]
    return jnp.concatenate(blocks)[:size].reshape(shape)


def convolved(x: Array, kernel: Array, stride: int = 1, dilation: int = 1) -> Array:
    """Returns the convolution with zero padding on all sides, as PyTorch pads.

    The padding "SAME" of XLA would read other pixels at stride 2.

    Args:
      x: Images, (n, height, width, channels).
      kernel: (side, side, channels, channels out) with an odd side. (side, side, 1, channels) is a depthwise filter;
        (1, 1, channels / g, channels out) is a product within each of g groups.
      stride: Distance between the pixels that are kept.
      dilation: Distance between the pixels that a filter reads.
    """
    groups = x.shape[3] // kernel.shape[2]
    if groups > 1 and not _per_channel(x, kernel):
        # One product with zeros between groups: on CPU many small products take longer.
        blocks = kernel.reshape(1, kernel.shape[2], groups, -1) * jnp.eye(groups)[:, None, :, None]
        kernel = blocks.reshape(1, 1, x.shape[3], -1)
    return _convolution(x, kernel, stride, dilation)  # type: ignore[return-value]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    if _per_channel(x, kernel):
        # A sum of shifted images: XLA's grouped convolution takes ten times as long on CPU.
        pixels = _shifted(x, kernel.shape[:2], stride, dilation, in_memory)
        weights = kernel.reshape(-1, *kernel.shape[2:])
        read = [pixel * weight[None, None] for pixel, weight in zip(pixels, weights, strict=True)]
        return functools.reduce(jnp.add, read)
    padding = [(dilation * (side // 2), dilation * (side // 2)) for side in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _per_channel(x: Array, kernel: Array) -> bool:
    return kernel.shape[2] == 1 and kernel.shape[3] == x.shape[3]


def _shifted(
    x: Array, sides: tuple[int, ...], stride: int, dilation: int, apart: Callable[[Array], Array]
) -> list[Array]:
    """Returns the shifted images that each pixel of a filter reads, (n, height out, width out, channels) each.

    `apart` keeps XLA from computing x again at every pixel of the filter.
    """
    _, height, width, _ = x.shape
    padded = apart(jnp.pad(x, [(0, 0), *((dilation * (side // 2),) * 2 for side in sides), (0, 0)]))
    places = [(dilation * i, dilation * j) for i in range(sides[0]) for j in range(sides[1])]
    return [padded[:, i : i + height : stride, j : j + width : stride] for i, j in places]


def _convolved_forwards(x: Array, kernel: Array, stride: int, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return convolved(x, kernel, stride, dilation), (x, kernel)


def _convolved_backwards(stride: int, dilation: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Returns both gradients; unlike XLA's own, they run in a loop on CPU as fast as outside it."""
    x, kernel = kept
    per_channel, gradient = _per_channel(x, kernel), lax.optimization_barrier(gradient)
    even_sides = x.shape[1] % 2 == x.shape[2] % 2 == 0
    if not per_channel and (stride, dilation, *kernel.shape[:2]) == (2, 1, 3, 3) and even_sides:
        back = _interleaved(gradient, kernel)
    else:
        spread = gradient
        if stride > 1:
            spread = jnp.zeros((*x.shape[:3], gradient.shape[3]), gradient.dtype)
            spread = spread.at[:, ::stride, ::stride].set(gradient)
        turned = jnp.flip(kernel, (0, 1))
        back = convolved(spread, turned if per_channel else turned.swapaxes(2, 3), 1, dilation)

    def products(x: Array, gradient: Array) -> Array:
        if per_channel:
            pixels = _shifted(x, kernel.shape[:2], stride, dilation, in_memory)
            return jnp.stack([(pixel * gradient).sum(axis=(0, 1, 2)) for pixel in pixels])
        pixels = _shifted(x, kernel.shape[:2], stride, dilation, lax.optimization_barrier)
        contract = functools.partial(jnp.einsum, "nhwc,nhwd->cd", precision=lax.Precision.HIGHEST)
        return jnp.stack([contract(pixel, gradient) for pixel in pixels])

    found = (products if per_channel else _one_by_one(products))(x, gradient)
    return back, found.reshape(kernel.shape)


def _one_by_one(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Returns a bilinear function that, on CPU, `jax.vmap` over both arguments computes one after another.

    There many small products at once take up to three times as long.
    """
    if not on_cpu():
        return function
    found = jax.custom_batching.custom_vmap(function)

    @found.def_vmap
    def _(axis_size: int, batched: Sequence[bool], *arguments: Array) -> tuple[Array, bool]:
        del axis_size
        if all(batched):
            return lax.map(lambda pair: found(*pair), arguments), True
        return jax.vmap(function, [0 if each else None for each in batched])(*arguments), True

    # A function with a rule for `jax.vmap` has no derivative, so that it needs a rule for that too.
    bilinear = jax.custom_jvp(found)

    @bilinear.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, y), (dx, dy) = primals, tangents
        return bilinear(x, y), function(dx, y) + function(x, dy)

    return bilinear


def _interleaved(gradient: Array, kernel: Array) -> Array:
    """Returns the gradient with respect to the images of a 3 x 3 convolution of stride 2.

    The center of the filter reads even pixels only, its two sides odd pixels only. So even and odd pixels are computed
    apart. A convolution of the gradient with zeros between its pixels would take four times the products.
    """
    even, odd = (slice(1, 2), (0, 0)), (slice(None, None, -2), (0, 1))
    rows = []
    for taps, padding in (even, odd):
        columns = [
            lax.conv_general_dilated(
                gradient,
                kernel[taps, across].swapaxes(2, 3),
                (1, 1),
                (padding, beside),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=lax.Precision.HIGHEST,
            )
            for across, beside in (even, odd)
        ]
        rows.append(jnp.stack(columns, axis=3))
    n, height, width, _ = gradient.shape
    return jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, kernel.shape[2])


_convolution.defvjp(_convolved_forwards, _convolved_backwards)


def normalized(x: Array, scale: Array, shift: Array, over: str | None = None, channels: int = 3) -> Array:
    """Batch normalization by mean and variance over images and pixels.

    Args:
      x: Images, (n, height, width, channels), or with another axis of channels.
      scale: Scales, (channels,).
      shift: Shifts, (channels,).
      over: Name of a mapped axis of images. The statistics are then those of all these images, and have no gradient.
      channels: The axis of channels.
    """
    others = tuple(axis for axis in range(4) if axis != channels)

    def mean(value: Array) -> Array:
        found = value.mean(axis=others, keepdims=True)
        return found if over is None else lax.stop_gradient(lax.pmean(found, over))

    centered = x - mean(x)
    scale, shift = (jnp.expand_dims(value, others) for value in (scale, shift))
    return centered * (lax.rsqrt(mean(jnp.square(centered)) + _EPSILON) * scale) + shift


def unchanged(x: Array, scale: Array, shift: Array) -> Array:
    """Returns x as it is, for networks without batch norm."""
    return x


def averaged(x: Array) -> Array:
    """Returns the mean over 3 x 3 pixels; pixels outside the image do not count."""
    # Sums of shifted images: the windowed reductions of XLA take five times as long on CPU.
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)])
        total = sum(lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
        inside = 3 - (jnp.arange(size) == 0) - (jnp.arange(size) == size - 1)
        x = total / inside.reshape([size if i == axis else 1 for i in range(4)])
    return x


def halved(x: Array) -> Array:
    """Returns the mean over blocks of 2 x 2 pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def classified(features: Float[Array, "n d"], kernel: Float[Array, "d k"], bias: Float[Array, " k"]) -> Array:
    """Returns the logits of features."""
    return jnp.dot(features, kernel, precision=lax.Precision.HIGHEST) + bias[None]


def check_sizes(**sizes: int) -> None:
    """Refuses sizes below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"Expected `{name}` to be at least 1, got {size}")


def check_without_stem(channels: int, in_channels: int) -> None:
    """Refuses images whose channels are not those of the first cell, where no stem changes them."""
    if in_channels != channels:
        raise InputError(
            f"Expected `in_channels` to be `channels`, {channels}, without a stem, got {in_channels}; add the stem"
        )


def check_images(x: Array, channels: int, sides: int) -> None:
    """Refuses images with other channels, or with sides that are not multiples of `sides`."""
    if x.ndim != 4 or x.shape[-1] != channels or x.shape[1] % sides or x.shape[2] % sides:
        raise InputError(
            f"Expected `x` to have shape (N, height, width, {channels}), with sides that are multiples of {sides}, "
            f"got {x.shape}"
        )
