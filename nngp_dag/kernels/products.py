"""Second moments of inputs: products, and distances of those that nearly coincide."""

import functools
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nngp_dag.kernels.dual import ratio, root, size
from nngp_dag.kernels.pixel_layout import PixelLayout

# Blocks of squares that are computed where the first few do not do.
_LISTS = 16
# Features that a product in float32 adds up, one after another, which rounds the more the more there are: of 784 pixels
# with a common background 784 leave an error of 2e-6, 256 one of 5e-7 and 128 one of 3e-7.
_FEATURES = 128
# Of centered inputs more will do: the mean of two unlike backgrounds removes neither.
_CENTERED_FEATURES = 512


def norms(data: Sequence[jax.Array]) -> jax.Array:
    """Root of the mean square of every input, over all input nodes, (N,)."""
    return root(sum(jnp.mean(x.reshape(x.shape[0], -1) ** 2, axis=1) for x in data))  # type: ignore[arg-type]


def inverse_of(scale: jax.Array, ndim: int = 1) -> jax.Array:
    """One over scales (N,), with axes that broadcast against data of `ndim` axes; 0 for those of scale 0."""
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    return inverse.reshape(-1, *[1] * (ndim - 1))


def over(x: jax.Array, norm: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns inputs over their norms (N,); those of norm 0 over their scale, so that their derivative is kept."""
    divisor = jnp.where(norm > 0, norm, jnp.where(scale > 0, scale, 1))
    return x / divisor.reshape(-1, *[1] * (x.ndim - 1))


def is_long(x: jax.Array) -> bool:
    """Whether vectors have so many features that a product of all of them, one after another, rounds too much."""
    return x.dtype.itemsize < 8 and x.shape[1] > _FEATURES


def parts(x: jax.Array, centered: bool = False) -> list[jax.Array]:
    """Cuts features into parts, each an array of its own: products of slices would copy them in every block."""
    d = x.shape[1]
    count = min(32, -(-d // (_CENTERED_FEATURES if centered else _FEATURES))) if is_long(x) else 1
    size = -(-d // count)
    return [x[:, i : i + size] for i in range(0, d, size)]


def center_of(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Mean of inputs over their scales, (d,).

    Products of what differs from it round less: pixels of a common background, which add up one after another to large
    sums and round all in one direction, are gone. So they come in fewer parts.
    """
    return lax.stop_gradient(jnp.matmul(inverse_of(scale), x, precision=lax.Precision.HIGHEST) / x.shape[0])


def shifts(x: jax.Array, scale: jax.Array, center: jax.Array) -> jax.Array:
    """Returns s, (N,), with <x, z> / d = <x - c, z - c> / d + s(x) + s(z) for inputs over their scales."""
    d = len(center)
    # A column for each few features, since a sum of sums rounds less.
    few = math.isqrt(d)
    columns = jnp.where(jnp.arange(d)[:, None] // few == jnp.arange(-(-d // few))[None], center[:, None], 0)
    of_inputs, of_center = (
        jnp.matmul(v, columns, precision=lax.Precision.HIGHEST).sum(axis=1) / d for v in (x, center[None])
    )
    return of_inputs * inverse_of(scale) - of_center / 2


def products(
    x1: Sequence[jax.Array],
    x2: Sequence[jax.Array],
    shift1: jax.Array | None = None,
    shift2: jax.Array | None = None,
) -> jax.Array:
    """Mean over features of products, (N1, N2); inputs in parts, and what centered ones lack, (N1,) and (N2,)."""
    # A TF32 product would leave an error of 1e-3 in the correlations, and with it noise for lambda_min.
    of_parts = [jnp.matmul(x, z.T, precision=lax.Precision.HIGHEST) for x, z in zip(x1, x2, strict=True)]
    mean = functools.reduce(operator.add, of_parts) / sum(x.shape[1] for x in x1)
    return mean if shift1 is None or shift2 is None else mean + (shift1[:, None] + shift2[None, :])


def with_distances(
    coarse: jax.Array,
    close: jax.Array,
    x1: Sequence[jax.Array],
    x2: Sequence[jax.Array],
    cell: int,
    of: Callable[[jax.Array], jax.Array] = lambda v: v,
) -> jax.Array:
    """Puts a function of half the mean over features of squared distances, summed directly, where inputs are close.

    Args:
      coarse: What there is, (N1, N2).
      close: Where to sum, (N1, N2).
      x1: Inputs in parts, (N1, features) each.
      x2: The second inputs, (N2, features).
      cell: Side of the squares that are computed as a whole; 0: row by row, which compiles faster.
      of: The function, elementwise.
    """
    features = sum(x.shape[1] for x in x1)

    def distances(x1: Sequence[jax.Array], x2: Sequence[jax.Array]) -> jax.Array:
        sums = [jnp.sum((x - z) ** 2, axis=-1) for x, z in zip(x1, x2, strict=True)]
        return of(functools.reduce(operator.add, sums) / (2 * features))

    if cell:
        return _by_cells(coarse, close, x1, x2, cell, distances)

    def row(taken: tuple[Sequence[jax.Array], jax.Array, jax.Array]) -> jax.Array:
        x, coarse, close = taken
        computed = functools.partial(distances, [part[None] for part in x], x2)
        return lax.cond(jnp.any(close), lambda: jnp.where(close, computed(), coarse), lambda: coarse)

    return lax.map(row, (list(x1), coarse, close))


def _by_cells(
    half_distance: jax.Array,
    close: jax.Array,
    x1: Sequence[jax.Array],
    x2: Sequence[jax.Array],
    side: int,
    distances: Callable[[Sequence[jax.Array], Sequence[jax.Array]], jax.Array],
) -> jax.Array:
    """Lists the squares that have anything close, which is rare, and computes these as a whole."""
    n1, n2 = close.shape
    down, across = -(-n1 // side), -(-n2 // side)
    padded = jnp.pad(close, ((0, down * side - n1), (0, across * side - n2)))
    hit = jnp.any(padded.reshape(down, side, across, side), axis=(1, 3)).reshape(-1)
    count, cells = jnp.sum(hit), down * across

    def computed(half_distance: jax.Array, listed: jax.Array) -> jax.Array:
        rows = (listed // across * side)[:, None, None] + jnp.arange(side)[None, :, None]
        cols = (listed % across * side)[:, None, None] + jnp.arange(side)[None, None, :]
        direct = distances([x[rows] for x in x1], [z[cols] for z in x2])
        values = jnp.where(close[rows, cols], direct, half_distance[rows, cols])
        return half_distance.at[rows, cols].set(values, mode="drop")

    # The first few, then all others in blocks.
    few = min(cells, max(8, cells >> 10))
    size = -(-(cells - few) // _LISTS)
    listed = jnp.nonzero(hit, size=few + _LISTS * size, fill_value=cells)[0]
    half_distance = computed(half_distance, listed[:few])

    def more(i: jax.Array, half_distance: jax.Array) -> jax.Array:
        start = few + i * size
        part = lax.dynamic_slice_in_dim(listed, start, size)
        return lax.cond(start < count, lambda: computed(half_distance, part), lambda: half_distance)

    if not size:
        return half_distance
    return lax.cond(count > few, lambda: lax.fori_loop(0, _LISTS, more, half_distance), lambda: half_distance)


def images(x1: jax.Array, x2: jax.Array, layout: PixelLayout) -> jax.Array:
    """Mean over channels of products of pixels, (N1, N2, *pixels)."""
    letters = "hwd"[: layout.ndim]
    if not layout.full:
        subscripts = f"i{letters}c,j{letters}c->ij{letters}"
    else:
        others = "xyz"[: layout.ndim]
        subscripts = f"i{letters}c,j{others}c->ij{''.join(map(''.join, zip(letters, others, strict=True)))}"
    return jnp.einsum(subscripts, x1, x2, precision=lax.Precision.HIGHEST) / x1.shape[-1]


def areas(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """Returns q1 q2 - k^2 of pixels of few channels, (N1, N2, *pixels), by Lagrange's identity."""
    channels = x1.shape[-1]
    x, z = x1[:, None], x2[None]
    pairs = [(x[..., a] * z[..., b] - x[..., b] * z[..., a]) ** 2 for a in range(channels) for b in range(a)]
    nothing = jnp.zeros(jnp.broadcast_shapes(x.shape, z.shape)[:-1], x.dtype)
    return sum(pairs, start=nothing) / channels**2


def gap_of_area(area: jax.Array, k: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Returns sqrt(q1 q2) - |k| from q1 q2 - k^2."""
    return ratio(area, root(q1) * root(q2) + size(k))
