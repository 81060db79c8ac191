"""Evaluation on data, or on the kernels of what comes before: in blocks of rows, so that only results are N x N."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.kernels.dual import root
from nngp_dag.kernels.engine import Moments, Spec, Weights, evaluated_once, moments_of, propagate
from nngp_dag.kernels.law import Value
from nngp_dag.kernels.space import Space


class BlockSizes(NamedTuple):
    """How much is computed at once.

    Attributes:
      product: Entries of a block of rows of the product of inputs, large enough for matrix products.
      block: Entries of each value in the recursion that is written out; in a symmetric kernel, a whole tile.
      loop: Entries of each value in the loop, of which it keeps one for every node.
      tile: Rows that a tile of a symmetric kernel has at most: enough for matrix products, and small beside the kernel.
      cell: Side of the squares in which distances of inputs that nearly coincide are summed; 0: row by row.
    """

    product: int
    block: int
    loop: int
    tile: int
    cell: int


# On CPUs what the loop keeps is to stay in the caches; a GPU wants work for all its cores in every call, and waits some
# 25 microseconds for every condition.
_SIZES = {
    "cpu": BlockSizes(product=1 << 19, block=1 << 18, loop=1 << 14, tile=416, cell=0),
    "gpu": BlockSizes(product=1 << 26, block=1 << 26, loop=1 << 22, tile=4096, cell=16),
}


def block_sizes() -> BlockSizes:
    """Returns the sizes for JAX's default device."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    device = chosen or jax.devices()[0]
    return _SIZES["cpu" if getattr(device, "platform", device) == "cpu" else "gpu"]


_INDEX = jax.ShapeDtypeStruct((), np.int32)


def by_rows(
    rows: Any,
    count: int,
    size: int,
    block: Callable[[Any, jax.Array], list[tuple[jax.Array, jax.Array | None]]],
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes results in blocks of rows.

    Args:
      rows: A pytree of arrays with leading axis `count`.
      count: Number of rows.
      size: Rows of a block.
      block: (slice of `rows`, indices of its rows) -> for every output arrays with that many rows.

    Returns:
      For every output arrays with `count` rows.
    """
    size = min(count, max(1, size))

    # Compiled functions are traced once, for the shapes of their results and where they are called.
    @jax.jit
    def compute(start: jax.Array | int) -> list[tuple[jax.Array, jax.Array | None]]:
        return block(_taken(rows, start, size), start + jnp.arange(size))

    if size == count:
        return compute(0)
    empty = jax.tree.map(lambda v: jnp.zeros((count, *v.shape[1:]), v.dtype), jax.eval_shape(compute, _INDEX))

    def store(i: jax.Array, state: Any) -> Any:
        # The last block moves back to end with the last row; rows that two blocks share are computed twice.
        start = jnp.minimum(i * size, count - size)
        return jax.tree.map(lambda into, v: lax.dynamic_update_slice_in_dim(into, v, start, 0), state, compute(start))

    return lax.fori_loop(0, -(-count // size), store, empty)


def _taken(rows: Any, start: jax.Array | int, size: int) -> Any:
    return jax.tree.map(lambda v: lax.dynamic_slice_in_dim(v, start, size, 0), rows)


def by_tiles(
    data: Any,
    count: int,
    size: int,
    block: Callable[[Any, jax.Array, Any, jax.Array], list[tuple[jax.Array, jax.Array | None]]],
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes symmetric results in square tiles, those on and above the diagonal.

    Args:
      data: A pytree of arrays with leading axis `count`.
      count: Number of rows and columns.
      size: Rows of a tile, at most `count`.
      block: (slice of `data`, indices of its rows, likewise for the columns) -> for every output (size, size) arrays.

    Returns:
      For every output arrays (count, count).
    """

    @jax.jit
    def compute(i: jax.Array | int, j: jax.Array | int) -> list[tuple[jax.Array, jax.Array | None]]:
        left, right = (_taken(data, start, size) for start in (i, j))
        return block(left, i + jnp.arange(size), right, j + jnp.arange(size))

    shapes, treedef = jax.tree.flatten(jax.eval_shape(compute, _INDEX, _INDEX))
    # Overwritten, and of different numbers: XLA would fill one array and copy it, on one thread.
    empty = treedef.unflatten([jnp.full((count, count), i, v.dtype) for i, v in enumerate(shapes)])
    # The last tiles move back to end with the last row; what two tiles share is computed twice.
    starts = np.minimum(np.arange(-(-count // size)) * size, count - size)
    pairs = jnp.asarray([(starts[i], starts[j]) for i, j in zip(*np.triu_indices(len(starts)), strict=True)])

    def store(p: jax.Array, state: Any) -> Any:
        i, j = pairs[p, 0], pairs[p, 1]

        def put(into: jax.Array, tile: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice(lax.dynamic_update_slice(into, tile.T, (j, i)), tile, (i, j))

        return jax.tree.map(put, state, compute(i, j))

    return lax.fori_loop(0, len(pairs), store, empty)


def _norms(data: Sequence[jax.Array]) -> jax.Array:
    """Root of the mean square of every input, over all input nodes, (N,)."""
    return root(sum(jnp.mean(x.reshape(x.shape[0], -1) ** 2, axis=1) for x in data))  # type: ignore[arg-type]


def _scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    return x * inverse.reshape(-1, *[1] * (x.ndim - 1))


def _parts(x: jax.Array) -> list[jax.Array]:
    """Cuts features into parts, each an array of its own: products of slices would copy them in every block."""
    d = x.shape[1]
    # A product adds up features one after another: for 784 pixels with a common background in float32 that is wrong by
    # 2e-6. Parts of at most 128 features are ten times as accurate.
    count = min(32, -(-d // 128)) if x.dtype.itemsize < 8 else 1
    size = -(-d // count)
    return [x[:, i : i + size] for i in range(0, d, size)]


def _products(x1: Sequence[jax.Array], x2: Sequence[jax.Array]) -> jax.Array:
    """Mean over features of products, (N1, N2)."""
    # A TF32 product would leave an error of 1e-3 in the correlations, and with it noise for lambda_min.
    products = [jnp.matmul(x, z.T, precision=lax.Precision.HIGHEST) for x, z in zip(x1, x2, strict=True)]
    return functools.reduce(operator.add, products) / sum(x.shape[1] for x in x1)


def _with_distances(
    half_distance: jax.Array, close: jax.Array, x1: Sequence[jax.Array], x2: Sequence[jax.Array]
) -> jax.Array:
    """Puts half the mean over features of squared distances of inputs, summed directly, where `close`; (N1, N2)."""
    features = sum(x.shape[1] for x in x1)

    def distances(x1: Sequence[jax.Array], x2: Sequence[jax.Array]) -> jax.Array:
        sums = [jnp.sum((x - z) ** 2, axis=-1) for x, z in zip(x1, x2, strict=True)]
        return functools.reduce(operator.add, sums) / (2 * features)

    if block_sizes().cell:
        return _by_cells(half_distance, close, x1, x2, distances)

    def row(taken: tuple[Sequence[jax.Array], jax.Array, jax.Array]) -> jax.Array:
        x, coarse, close = taken
        computed = functools.partial(distances, [part[None] for part in x], x2)
        return lax.cond(jnp.any(close), lambda: jnp.where(close, computed(), coarse), lambda: coarse)

    return lax.map(row, (list(x1), half_distance, close))


def _by_cells(
    half_distance: jax.Array,
    close: jax.Array,
    x1: Sequence[jax.Array],
    x2: Sequence[jax.Array],
    distances: Callable[[Sequence[jax.Array], Sequence[jax.Array]], jax.Array],
) -> jax.Array:
    """Lists the squares that have anything close, which is rare, and computes these as a whole."""
    side, (n1, n2) = block_sizes().cell, close.shape
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
    size = -(-(cells - few) // 16)
    listed = jnp.nonzero(hit, size=few + 16 * size, fill_value=cells)[0]
    half_distance = computed(half_distance, listed[:few])

    def more(i: jax.Array, half_distance: jax.Array) -> jax.Array:
        start = few + i * size
        part = lax.dynamic_slice_in_dim(listed, start, size)
        return lax.cond(start < count, lambda: computed(half_distance, part), lambda: half_distance)

    if not size:
        return half_distance
    return lax.cond(count > few, lambda: lax.fori_loop(0, 16, more, half_distance), lambda: half_distance)


def _images(x1: jax.Array, x2: jax.Array, space: Space) -> jax.Array:
    """Mean over channels of products of pixels, (N1, N2, *pixels)."""
    letters = "hwd"[: space.ndim]
    if not space.full:
        subscripts = f"i{letters}c,j{letters}c->ij{letters}"
    else:
        others = "xyz"[: space.ndim]
        subscripts = f"i{letters}c,j{others}c->ij{''.join(map(''.join, zip(letters, others, strict=True)))}"
    return jnp.einsum(subscripts, x1, x2, precision=lax.Precision.HIGHEST) / x1.shape[-1]


def _prepare(
    weights: Weights, data: Sequence[jax.Array], spec: Spec, space: Space
) -> tuple[list[jax.Array], jax.Array, list[jax.Array], Moments]:
    """Returns the data, their scales, the variances of the data over these, and the nodes' moments."""
    paired = space._replace(paired=True)
    scale = _norms(data) if spec.homogeneous else jnp.ones(data[0].shape[0], data[0].dtype)
    values = []
    for x in data:
        x = _scaled(x, scale)
        if space.full:
            k = jax.vmap(lambda image: _images(image[None], image[None], space)[0, 0])(x)
            values.append(Value(k, None, None))
        else:
            k = jnp.mean(x**2, axis=-1)
            values.append(Value(k, jnp.zeros_like(k), None))
    moments, _ = moments_of(spec, weights, values, paired, [x.shape[-1] for x in data])
    return list(data), scale, [paired.diagonal(value.k) for value in values], moments


@functools.partial(jax.jit, static_argnames=("spec", "space"))
def second_moments(
    weights: Weights, x: Sequence[jax.Array], *, spec: Spec, space: Space
) -> tuple[list[jax.Array], Any]:
    """Returns E[X^2] of the data at every input node and at every node that is computed; see `kernel_of_inputs`."""
    _, _, q_in, moments = _prepare(weights, x, spec, space)
    return q_in, moments.q


@functools.partial(jax.jit, static_argnames=("spec", "space"))
def kernel_of_inputs(
    weights: Weights, x1: Sequence[jax.Array], x2: Sequence[jax.Array] | None, *, spec: Spec, space: Space
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes the kernels of a network on data.

    Args:
      weights: The numbers of the program.
      x1: For every input node the data, (N1, d), or images (N1, *pixels, channels).
      x2: Likewise (N2, ...), or None for x1.
      spec: The program.
      space: How axes lie, for blocks.

    Returns:
      For every output NNGP and NTK, (N1, N2) each; no NTK unless the spec asks for it. Stacked, one pair of
      (N1, outputs, N2).
    """
    symmetric = x2 is None
    channels = [x.shape[-1] for x in x1]

    first = _prepare(weights, x1, spec, space)
    second = first if x2 is None else _prepare(weights, x2, spec, space)
    scale1, scale2 = first[1], second[1]
    closeness = jnp.finfo(scale1.dtype).eps ** 0.3
    pixels = math.prod(x1[0].shape[1:-1]) ** (2 if space.full else 1)

    def value_of(x: Any, z: Any, q1: jax.Array, q2: jax.Array, diagonal: jax.Array) -> Value:
        left, right = space.left(q1), space.right(q2)
        if space.ndim:
            k = _images(x, z, space)
            half_distance = None if space.full else (left + right) / 2 - k
            diagonal = diagonal.reshape(*diagonal.shape, *[1] * space.ndim)
        else:
            k = evaluated_once(weights.true, _products, x, z)
            # Smaller distances come out of the subtraction with large relative errors. Then, and only then, they are
            # summed directly, which costs more than a matrix product.
            half_distance = (left + right) / 2 - k
            close = (half_distance < closeness * (left + right)) & ~diagonal
            coarse = half_distance
            half_distance = lax.cond(jnp.any(close), lambda: _with_distances(coarse, close, x, z), lambda: coarse)
        if half_distance is not None:
            # An input coincides with itself, whatever the rounding of its products.
            half_distance = jnp.where(diagonal, 0, half_distance)
            k = jnp.where(diagonal, left, k)
        return Value(k, half_distance, jnp.zeros_like(k) if spec.with_ntk else None)

    def block(first: tuple, i: jax.Array, second: tuple, j: jax.Array) -> list[tuple[jax.Array, jax.Array | None]]:
        (x, scale, q, moments), (z, scale2, q2, moments2) = first, second
        if spec.loop:
            moments2 = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments2)
        diagonal = (i[:, None] == j[None, :]) & symmetric
        values = [value_of(*of, diagonal) for of in zip(x, z, q, q2, strict=True)]

        def recursion(taken: tuple, indices: jax.Array) -> list[tuple[jax.Array, jax.Array | None]]:
            del indices
            values, scale, q, moments = taken
            moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments) if spec.loop else moments
            results = propagate(spec, weights, values, (q, q2), (moments, moments2), space, channels)
            back = scale[:, None] * scale2[None, :]
            back = back[:, None, :] if spec.stacked else back
            return [(k * back, None if ntk is None else ntk * back) for k, ntk in results]

        entries = len(j) * pixels
        return by_rows((values, scale, q, moments), len(i), _rows_of_a_block(spec, entries), recursion)

    def ready(taken: tuple) -> tuple:
        # Scaled late, so that no copy of all data is kept.
        data, scale, q, moments = taken
        scaled = [_scaled(x, scale) for x in data]
        return scaled if space.ndim else [_parts(x) for x in scaled], scale, q, moments

    # Stacks of the loop have the inputs second; rows are taken along the first axis.
    of_rows, of_columns = (
        (data, scale, q, jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments) if spec.loop else moments)
        for data, scale, q, moments in (first, second)
    )
    count1, count2 = len(scale1), len(scale2)
    if symmetric and not space.ndim and not spec.stacked and count1 >= 2 * block_sizes().tile:
        # As equal as multiples of 8 are, since the last tile moves back over what others have computed.
        size = 8 * -(-count1 // (8 * -(-count1 // block_sizes().tile)))
        return by_tiles(of_rows, count1, size, lambda rows, i, cols, j: block(ready(rows), i, ready(cols), j))
    columns, indices = ready(of_columns), jnp.arange(count2)
    size = block_sizes().product // (count2 * pixels)
    return by_rows(of_rows, count1, size, lambda rows, i: block(ready(rows), i, columns, indices))


def _rows_of_a_block(spec: Spec, entries: int) -> int:
    """How many rows, of so many entries each, the recursion takes at once."""
    # What the loop keeps grows with the outputs.
    entries *= 1 + len(spec.structure.outputs) // 4
    # Over a single long row XLA's loop is ten times as slow as over two.
    return max(2, block_sizes().loop // entries) if spec.loop else max(1, block_sizes().block // entries)


@functools.partial(jax.jit, static_argnames=("spec", "space", "channels"))
def kernel_of_kernel(
    weights: Weights,
    inputs: Sequence[tuple[jax.Array, jax.Array | None]],
    variances1: Sequence[jax.Array],
    variances2: Sequence[jax.Array] | None,
    *,
    spec: Spec,
    space: Space,
    channels: Sequence[int],
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes the kernels of a network from those of its inputs.

    The angle of inputs that nearly coincide is only as good as the rounding of those kernels.

    Args:
      weights: The numbers of the program.
      inputs: For every input node NNGP and NTK, (N1, N2, *pixels).
      variances1: For every input node the covariance of the rows' inputs with themselves, (N1, *pixels).
      variances2: Likewise of the columns, or None where they are the rows.
      spec: The program.
      space: How axes lie, for blocks.
      channels: Fan-in of every stem.

    Returns:
      For every output NNGP and NTK, (N1, N2, *pixels).
    """
    paired = space._replace(paired=True)

    def moments(variances: Sequence[jax.Array]) -> tuple[list[jax.Array], Moments]:
        values = [Value(k, None if space.full else jnp.zeros_like(k), None) for k in variances]
        return [paired.diagonal(k) for k in variances], moments_of(spec, weights, values, paired, channels)[0]

    q1, moments1 = moments(variances1)
    q2, moments2 = (q1, moments1) if variances2 is None else moments(variances2)
    count1, count2 = inputs[0][0].shape[:2]

    def block(taken: tuple, indices: jax.Array) -> list[tuple[jax.Array, jax.Array | None]]:
        kernels, q, moments = taken
        moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments) if spec.loop else moments
        diagonal = (indices[:, None] == jnp.arange(count2)[None, :]) & (variances2 is None)
        diagonal = diagonal.reshape(*diagonal.shape, *[1] * (kernels[0][0].ndim - 2))
        values = []
        for (k, ntk), left, right in zip(kernels, map(space.left, q), map(space.right, q2), strict=True):
            half_distance = None if space.full else jnp.where(diagonal, 0, (left + right) / 2 - k)
            values.append(Value(k if space.full else jnp.where(diagonal, left, k), half_distance, ntk))
        return propagate(spec, weights, values, (q, q2), (moments, moments2), space, channels)

    moments_by_row = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments1) if spec.loop else moments1
    size = _rows_of_a_block(spec, max(1, inputs[0][0].size // count1))
    return by_rows((list(inputs), q1, moments_by_row), count1, size, block)


@functools.partial(jax.jit, static_argnames=("spec", "space", "channels"))
def variances_of_outputs(
    weights: Weights, variances: Sequence[jax.Array], *, spec: Spec, space: Space, channels: tuple[int, ...]
) -> list[jax.Array]:
    """Returns the second moments of every output node for inputs with themselves, (N, *pixels).

    Arguments are as in `kernel_of_kernel`.
    """
    paired = space._replace(paired=True)
    values = [Value(k, None if space.full else jnp.zeros_like(k), None) for k in variances]
    moments, nodes = moments_of(spec, weights, values, paired, channels)
    results = []
    for output in spec.structure.outputs:
        k = nodes[output].k
        if weights.tables is not None:
            output = weights.tables.output_nodes[output]
        if spec.loop or output in moments.m:
            k = k + paired.left(moments.m[output]) * paired.right(moments.m[output])
        results.append(k)
    return results
