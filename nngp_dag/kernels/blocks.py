"""Evaluation on data, or on the kernels of what comes before: in blocks of rows, so that only results are N x N."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.kernels.engine import Moments, Spec, Weights, evaluated_once, moments_of, propagate
from nngp_dag.kernels.law import Value
from nngp_dag.kernels.products import images, norms, parts, products, scaled, with_distances
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


def _prepare(
    weights: Weights, data: Sequence[jax.Array], spec: Spec, space: Space
) -> tuple[list[jax.Array], jax.Array, list[jax.Array], Moments]:
    """Returns the data, their scales, the variances of the data over these, and the nodes' moments."""
    paired = space._replace(paired=True)
    scale = norms(data) if spec.homogeneous else jnp.ones(data[0].shape[0], data[0].dtype)
    values = []
    for x in data:
        x = scaled(x, scale)
        if space.full:
            k = jax.vmap(lambda image: images(image[None], image[None], space)[0, 0])(x)
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
            k = images(x, z, space)
            half_distance = None if space.full else (left + right) / 2 - k
            diagonal = diagonal.reshape(*diagonal.shape, *[1] * space.ndim)
        else:
            k = evaluated_once(weights.true, products, x, z)
            # Smaller distances come out of the subtraction with large relative errors. Then, and only then, they are
            # summed directly, which costs more than a matrix product.
            half_distance = (left + right) / 2 - k
            close = (half_distance < closeness * (left + right)) & ~diagonal
            coarse, cell = half_distance, block_sizes().cell
            half_distance = lax.cond(jnp.any(close), lambda: with_distances(coarse, close, x, z, cell), lambda: coarse)
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
        over_scale = [scaled(x, scale) for x in data]
        return over_scale if space.ndim else [parts(x) for x in over_scale], scale, q, moments

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
    moments, variance_of = moments_of(spec, weights, values, paired, channels)
    results = []
    for output in spec.structure.outputs:
        k = variance_of(output)
        if weights.tables is not None:
            output = weights.tables.output_nodes[output]
        if spec.loop or output in moments.m:
            k = k + paired.left(moments.m[output]) * paired.right(moments.m[output])
        results.append(k)
    return results
