"""Programs with a cell as an argument: compiled once, and run for one cell after another or for several at once."""

import functools
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
from jaxtyping import Array


def compiled(function: Callable[..., Array]) -> Callable[..., Array]:
    """Compiles function(graph, *shared, *of_cell), to be called as run(graph, shared, of_cell).

    Where the arrays of `of_cell` have one more axis in front, it is an axis of cells, and the result has it too. A
    `lax.switch` then computes all its branches and selects.

    Args:
      function: The function to compile. For one cell, the first array of `of_cell` has one axis.

    Returns:
      The compiled program, with `graph` as a static argument.
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
    """Yields the result of a compiled program for every cell, in order.

    Args:
      run: A program that `compiled` returned.
      graph: The static argument of the program.
      shared: Arguments that all cells share.
      of_cells: Arguments of each cell.
      at_once: Number of cells per call. The last call repeats its last cell, so that all calls share a compilation.
    """
    left = iter(of_cells)
    while some := list(islice(left, at_once)):
        if at_once == 1:
            yield np.asarray(run(graph, shared, some[0]))
        else:
            filled = some + some[-1:] * (at_once - len(some))
            stacked = tuple(map(np.stack, zip(*filled, strict=True)))
            yield from np.asarray(run(graph, shared, stacked))[: len(some)]
