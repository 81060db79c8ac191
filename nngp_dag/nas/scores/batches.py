"""Programs that take a cell as an argument: compiled once, run for one cell after the other or for several at once."""

import functools
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
from jaxtyping import Array


def compiled(function: Callable[..., Array]) -> Callable[..., Array]:
    """Compiles function(graph, *shared, *of_cell), to be called as run(graph, shared, of_cell).

    Where arrays of `of_cell` have a further first axis, it is one of cells, and so is the result's. A `lax.switch` then
    computes all its branches and selects.

    Args:
      function: What to compile; the first array of `of_cell` has one axis.

    Returns:
      The program, whose `graph` is static.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def run(graph: Any, shared: tuple[Any, ...], of_cell: tuple[Any, ...]) -> Array:
        one = functools.partial(function, graph, *shared)
        return one(*of_cell) if of_cell[0].ndim == 1 else jax.vmap(one)(*of_cell)

    return run


def by_cells(
    run: Callable[..., Array],
    graph: Any,
    shared: tuple[Any, ...],
    of_cells: Iterable[tuple[np.ndarray, ...]],
    at_once: int,
) -> Iterator[np.ndarray]:
    """Yields what a compiled program says of every cell, in order.

    Args:
      run: What `compiled` returned.
      graph: Its first argument.
      shared: Arguments that all cells share.
      of_cells: Those of every cell.
      at_once: Cells of one call. The last call repeats its last cell to have as many, so that all share a compilation.
    """
    left = iter(of_cells)
    while some := list(islice(left, at_once)):
        if at_once == 1:
            yield np.asarray(run(graph, shared, some[0]))
        else:
            filled = some + some[-1:] * (at_once - len(some))
            stacked = tuple(map(np.stack, zip(*filled, strict=True)))
            yield from np.asarray(run(graph, shared, stacked))[: len(some)]
