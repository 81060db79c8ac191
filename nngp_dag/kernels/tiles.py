"""Loops over blocks of rows, and over square tiles of symmetric results."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.kernels.device import BlockSizes, unwritten

_INDEX = jax.ShapeDtypeStruct((), np.int32)


def by_rows(
    rows: Any,
    count: int,
    size: int,
    block: Callable[[Any, jax.Array], Any],
    blocks: BlockSizes,
    axis: int = 0,
) -> Any:
    """Computes results in blocks of rows.

    Args:
      rows: A pytree of arrays with leading axis `count`, or 1 for values that all rows share.
      count: Number of rows.
      size: Number of rows of a block.
      block: A function of a slice of `rows` and the indices of its rows; it returns a pytree of arrays with as many
        rows.
      blocks: The sizes of blocks for the device.
      axis: The axis of rows in the results.

    Returns:
      A pytree of arrays with `count` rows.
    """
    size = min(count, max(1, size))

    # `jit` traces the function once, although both `eval_shape` and the loop call it. For derivatives every block is
    # computed again, because its intermediate values in memory would take many times the time and space of the results.
    @jax.jit
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def compute(start: jax.Array | int) -> Any:
        return block(_taken(rows, start, size), start + jnp.arange(size))

    if size == count:
        return compute(0)

    def whole(v: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*v.shape[:axis], count, *v.shape[axis + 1 :]), v.dtype)

    def store(i: jax.Array, state: Any) -> Any:
        # Blocks have one static size. The last one is moved back to end with the last row, so rows that it shares with
        # the one before are computed twice.
        start = jnp.minimum(i * size, count - size)
        return jax.tree.map(
            lambda into, v: lax.dynamic_update_slice_in_dim(into, v, start, axis), state, compute(start)
        )

    shapes = jax.tree.map(whole, jax.eval_shape(compute, _INDEX))
    return lax.fori_loop(0, -(-count // size), store, unwritten(shapes, blocks))


def _taken(rows: Any, start: jax.Array | int, size: int) -> Any:
    return jax.tree.map(lambda v: v if len(v) == 1 else lax.dynamic_slice_in_dim(v, start, size, 0), rows)


def by_tiles(
    data: Any,
    count: int,
    size: int,
    shapes: Any,
    ready: Callable[[Any], Any],
    put: Callable[..., Any],
    blocks: BlockSizes,
    differentiable: bool,
) -> Any:
    """Computes symmetric results in square tiles on and above the diagonal.

    Args:
      data: A pytree of arrays with leading axis `count`, or 1 for values that all rows share.
      count: Number of rows and columns.
      size: Number of rows of a tile, at most `count`.
      shapes: Shapes and dtypes of the results.
      ready: A function of a slice of `data` that prepares it.
      put: A function that writes a tile and its transpose: (results, prepared rows, first row, prepared columns, first
        column) -> results.
      blocks: The sizes of blocks for the device.
      differentiable: Whether derivatives must be possible. Otherwise rows are prepared once for all of their tiles;
        that loop has traced bounds, which reverse-mode differentiation does not support.

    Returns:
      The results.
    """
    # The last tiles are moved back to end with the last row; entries that two tiles share are computed twice.
    starts = np.minimum(np.arange(-(-count // size)) * size, count - size)

    def at(i: jax.Array) -> Any:
        return ready(_taken(data, i, size))

    if differentiable:
        pairs = jnp.asarray([(starts[i], starts[j]) for i, j in zip(*np.triu_indices(len(starts)), strict=True)])

        def tile(p: jax.Array, results: Any) -> Any:
            i, j = pairs[p, 0], pairs[p, 1]
            return put(results, at(i), i, at(j), j)

        return lax.fori_loop(0, len(pairs), tile, unwritten(shapes, blocks))

    firsts = jnp.asarray(starts)

    def row(a: jax.Array, results: Any) -> Any:
        rows = at(firsts[a])
        return lax.fori_loop(
            a, len(starts), lambda b, results: put(results, rows, firsts[a], at(firsts[b]), firsts[b]), results
        )

    return lax.fori_loop(0, len(starts), row, unwritten(shapes, blocks))


def mirrored(v: jax.Array) -> jax.Array:
    """Returns one or several square matrices, with the entries above the diagonal copied below it."""
    n = v.shape[-1]
    below = jnp.arange(n)[:, None] > jnp.arange(n)[None, :]
    return jnp.where(below, jnp.swapaxes(v, -1, -2), v)
