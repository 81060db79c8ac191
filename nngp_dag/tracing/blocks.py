"""Kernels of many inputs in blocks, so that temporary arrays stay within a budget."""

import math
from typing import Any

import jax
import jax.core
import numpy as np


def square(found: tuple[Any, Any]) -> tuple[Any, Any]:
    """Returns kernels between positions as matrices, one row for each position."""

    def one(block: Any) -> Any:
        if block is None:
            return None
        half = block.ndim // 2
        return block.reshape(math.prod(block.shape[:half]), math.prod(block.shape[half:]))

    return one(found[0]), one(found[1])


def in_blocks(between: Any, first: Any, second: Any, rows: int, ntk: bool) -> tuple[Any, Any]:
    """Returns kernels in blocks of rows and columns; the blocks below the diagonal are those above it, transposed.

    Args:
      between: The kernels of two sets of inputs, from what each input determines.
      first: The values that the first inputs determine, arrays with a leading axis of inputs.
      second: The values that the second inputs determine, or None if they are the first ones.
      rows: The number of inputs in a block.
      ntk: Whether there is an NTK.
    """
    symmetric = second is None
    second = first if symmetric else second
    shape = _length(first), _length(second)
    if max(shape) <= rows or isinstance(jax.tree.leaves((first, second))[0], jax.core.Tracer):
        return between(first, second)
    results = [np.empty(shape), np.empty(shape) if ntk else None]
    for i in range(0, shape[0], rows):
        left = _taken(first, i, rows)
        for j in range(i if symmetric else 0, shape[1], rows):
            block = between(left, _taken(second, j, rows))
            for result, part in zip(results, block, strict=True):
                if result is None:
                    continue
                a, b = min(rows, shape[0] - i), min(rows, shape[1] - j)
                result[i : i + rows, j : j + rows] = np.asarray(part)[:a, :b]
                if symmetric and j > i:
                    result[j : j + rows, i : i + rows] = np.asarray(part)[:a, :b].T
    return results[0], results[1]


def in_parts(function: Any, xs: Any, size: int) -> Any:
    """Returns a function of inputs in parts of `size`, the last one filled up."""
    parts = [function(_taken(xs, i, size)) for i in range(0, len(xs), size)]
    return jax.tree.map(lambda *v: np.concatenate([np.asarray(a) for a in v])[: len(xs)], *parts)


def _length(values: Any) -> int:
    return len(jax.tree.leaves(values)[0])


def _taken(values: Any, start: int, rows: int) -> Any:
    """Returns the values of `rows` inputs, the last one repeated, so that all blocks share a compiled program."""
    index = np.minimum(np.arange(start, start + rows), _length(values) - 1)
    return jax.tree.map(lambda v: v[index], values)
