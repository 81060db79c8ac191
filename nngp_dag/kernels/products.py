"""Second moments of inputs: products of all pairs, and distances of pairs that nearly coincide.

A correlation close to 1 has lost the digits of the angle, which the NTK depends on linearly. So the gap of such pairs,
Equation (10) of docs/mathematics.md, comes from squared differences instead.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nngp_dag.kernels.dual import ratio, root, size
from nngp_dag.kernels.pixel_layout import PixelLayout

# Number of blocks in which the remaining squares are computed if the first few do not suffice.
_LISTS = 16
# The number of features that one product in float32 adds up. Sums of many features round more. Measured for images of
# 784 pixels with a common background, products of 784, 256 and 128 features have errors of 2e-6, 5e-7 and 3e-7.
_FEATURES = 128
# The number of features for centered inputs, whose products round less. Centering does not help if inputs have
# different backgrounds, so that their mean removes none of them; therefore the number has a limit here, too.
_CENTERED_FEATURES = 512


def norms(data: Sequence[jax.Array]) -> jax.Array:
    """Returns the root of the mean square of every input, summed over all input nodes, (N,)."""
    return root(sum(jnp.mean(x.reshape(x.shape[0], -1) ** 2, axis=1) for x in data))  # type: ignore[arg-type]


def inverse_of(scale: jax.Array, ndim: int = 1) -> jax.Array:
    """Returns 1 over scales (N,), or 0 for a scale of 0, with axes that broadcast against data of `ndim` axes."""
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    return inverse.reshape(-1, *[1] * (ndim - 1))


def over(x: jax.Array, norm: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns inputs over their norms (N,); an input of norm 0 is divided by its scale, to keep its derivative."""
    divisor = jnp.where(norm > 0, norm, jnp.where(scale > 0, scale, 1))
    return x / divisor.reshape(-1, *[1] * (x.ndim - 1))


def is_long(x: jax.Array) -> bool:
    """Whether vectors have so many features that a single product over all of them would round too much."""
    return x.dtype.itemsize < 8 and x.shape[1] > _FEATURES


def parts(x: jax.Array, centered: bool = False) -> list[jax.Array]:
    """Divides features into separate arrays; products of slices would copy the slices in every block."""
    d = x.shape[1]
    count = min(32, -(-d // (_CENTERED_FEATURES if centered else _FEATURES))) if is_long(x) else 1
    size = -(-d // count)
    return [x[:, i : i + size] for i in range(0, d, size)]


def center_of(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns the mean of inputs divided by their scales, (d,).

    Products of centered inputs round less. Pixels of a common background add up to large sums, whose rounding errors
    have one sign; centering removes them. So centered inputs need fewer parts.
    """
    # No derivative: `shifts` makes the products independent of the center.
    return lax.stop_gradient(jnp.matmul(inverse_of(scale), x, precision=lax.Precision.HIGHEST) / x.shape[0])


def shifts(x: jax.Array, scale: jax.Array, center: jax.Array) -> jax.Array:
    """Returns s, (N,), such that <x, z> / d = <x - c, z - c> / d + s(x) + s(z) for inputs divided by their scales."""
    d = len(center)
    # Every column of the matrix sums about sqrt(d) features. A sum of such sums rounds less than one long sum.
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
    """Returns the means over features of products, (N1, N2).

    Args:
      x1: The inputs in parts, (N1, features) each.
      x2: The second inputs in parts, (N2, features) each.
      shift1: The shifts of centered inputs, (N1,), see `shifts`; None for inputs that are not centered.
      shift2: The shifts of the second inputs, (N2,), or None.
    """
    # A TF32 product would leave an error of 1e-3 in the correlations. The smallest eigenvalues would drown in it.
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
    """Replaces the values of close pairs by a function of their half squared distance, which is summed directly.

    Args:
      coarse: The values of all pairs, (N1, N2).
      close: The mask of close pairs, (N1, N2).
      x1: The inputs in parts, (N1, features) each.
      x2: The second inputs in parts, (N2, features) each.
      cell: Side of the squares that are computed as a whole; 0 means row by row, which compiles faster.
      of: The elementwise function of half the mean over features of squared differences.

    Returns:
      The values of all pairs, (N1, N2).
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
    """Lists the squares with a close pair, which are few, and computes each of them as a whole."""
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

    # Shapes are static under `jit`, so the list has room for all squares. The first few are always computed, and the
    # others in blocks, each only if it holds a listed square.
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
    """Returns the means over channels of products of pixels, (N1, N2, *pixels)."""
    letters = "hwd"[: layout.ndim]
    if not layout.full:
        subscripts = f"i{letters}c,j{letters}c->ij{letters}"
    else:
        others = "xyz"[: layout.ndim]
        subscripts = f"i{letters}c,j{others}c->ij{''.join(map(''.join, zip(letters, others, strict=True)))}"
    return jnp.einsum(subscripts, x1, x2, precision=lax.Precision.HIGHEST) / x1.shape[-1]


def areas(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """Returns q1 q2 - k^2 for pixels with few channels, (N1, N2, *pixels), by Lagrange's identity: a sum of squares."""
    channels = x1.shape[-1]
    x, z = x1[:, None], x2[None]
    pairs = [(x[..., a] * z[..., b] - x[..., b] * z[..., a]) ** 2 for a in range(channels) for b in range(a)]
    nothing = jnp.zeros(jnp.broadcast_shapes(x.shape, z.shape)[:-1], x.dtype)
    return sum(pairs, start=nothing) / channels**2


def gap_of_area(area: jax.Array, k: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Returns sqrt(q1 q2) - |k| from q1 q2 - k^2."""
    return ratio(area, root(q1) * root(q2) + size(k))
