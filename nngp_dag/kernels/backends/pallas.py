"""The recursion for a tile of a symmetric kernel as one GPU kernel, which keeps all intermediate values in registers.

XLA would write the values of a step to memory, read them for the next step, and copy each tile twice into the results.
Here a program of the grid loads a rectangle of products, applies all steps, and stores the kernels in place. A second
GPU kernel stores their transposes. Pallas is experimental in JAX. The other back ends compute the same kernels without
it, only more slowly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from nngp_dag.kernels.backends.unrolled import Kernels, Moments, Spec, Weights, propagate
from nngp_dag.kernels.layer_rules import KernelState
from nngp_dag.kernels.pixel_layout import PixelLayout

# Rows and columns that a program of the grid computes, side of the squares that are transposed, and warps per program.
# Each thread has four entries: dozens of intermediate values of an entry fill its registers.
_DOWN, _ACROSS, _SIDE, _WARPS = 16, 32, 32, 4

_WHOLE = pl.BlockSpec(memory_space=pl.ANY)

# Scales, second moments of the data for every input node, and moments of the nodes; see `blocking._Inputs`.
Vectors = tuple[jax.Array, Sequence[jax.Array], Moments]


def write_tile(
    results: Kernels,
    values: Sequence[KernelState],
    rows: Vectors,
    columns: Vectors,
    starts: tuple[jax.Array, jax.Array],
    *,
    spec: Spec,
    weights: Weights,
    channels: Sequence[int],
    interpret: bool = False,
) -> Kernels:
    """Runs the recursion for a tile, and writes the kernels and their transposes into the results.

    Args:
      results: NNGP and NTK of every output, (N, N) each.
      values: The tile of the data's second moments for every input node, (size, size); size is a multiple of 32.
      rows: The vectors of the rows: scales, second moments of the data, and moments of the nodes. They have length
        `size`, or 1 where all rows share a value.
      columns: The vectors of the columns.
      starts: Row and column of the tile's first entry.
      spec: The structure of the compiled program.
      weights: The numbers of the program.
      channels: Fan-in of every stem.
      interpret: Whether Pallas interprets the kernel, slowly and without a GPU.

    Returns:
      The results with the tile.
    """
    size = len(rows[0])
    assert size % _SIDE == size % _DOWN == size % _ACROSS == 0, size
    numbers = jnp.concatenate([weights.terms, weights.means, weights.layers])
    squares = [(value.k, value.gap) for value in values]
    operands, tree = jax.tree.flatten((jnp.stack(starts), numbers, squares, rows, columns))
    outputs, output_tree = jax.tree.flatten(results)
    square = pl.BlockSpec((_DOWN, _ACROSS), lambda a, b: (a, b))
    in_specs = [_WHOLE, _WHOLE, *(2 * len(squares) * [square])]
    for axis, (count, side) in enumerate(((_DOWN, rows), (_ACROSS, columns))):
        part = pl.BlockSpec((count,), lambda *ids, axis=axis: (ids[axis],))
        shared = pl.BlockSpec((1,), lambda *ids: (0,))
        in_specs += [shared if len(v) == 1 else part for v in jax.tree.leaves(side)]

    def program(*refs: Any) -> None:
        starts, numbers, squares, rows, columns = jax.tree.unflatten(tree, refs[: len(operands)])
        into = refs[len(operands) + len(outputs) :]
        (scale1, q1, moments1), (scale2, q2, moments2) = (
            jax.tree.map(lambda ref: ref[...], s) for s in (rows, columns)
        )
        every = iter([numbers[i] for i in range(numbers.shape[0])])
        terms, means, layers = (
            [next(every) for _ in range(len(of))] for of in (weights.terms, weights.means, weights.layers)
        )
        kernels = propagate(
            spec,
            Weights(terms, means, layers, None, None),  # pyright: ignore[reportArgumentType]
            [KernelState(k[...], gap[...], None) for k, gap in squares],
            (q1, q2),
            (moments1, moments2),
            PixelLayout(),
            channels,
        )
        i = starts[0] + pl.program_id(0) * _DOWN
        j = starts[1] + pl.program_id(1) * _ACROSS
        for ref, kernel in zip(into, jax.tree.leaves(kernels), strict=True):
            ref[pl.ds(i, _DOWN), pl.ds(j, _ACROSS)] = kernel * (scale1[:, None] * scale2[None, :])

    written = _in_place(program, (size // _DOWN, size // _ACROSS), operands, in_specs, outputs, interpret)
    return jax.tree.unflatten(output_tree, _mirrored(written, operands[0], size, interpret))


def _mirrored(results: Sequence[jax.Array], starts: jax.Array, size: int, interpret: bool) -> list[jax.Array]:
    """Writes the transpose of a tile into the results.

    This is a GPU kernel of its own. In a single kernel, Triton's compiler would compute all steps again in the layout
    of the transpose. Its time to compile would then grow explosively with the number of steps.
    """

    def program(starts: Any, *refs: Any) -> None:
        i, j = starts[0] + pl.program_id(0) * _SIDE, starts[1] + pl.program_id(1) * _SIDE
        # Entries in both the tile and its transpose are already written; two programs must not write to one entry.
        r, c = i + jnp.arange(_SIDE)[:, None], j + jnp.arange(_SIDE)[None, :]
        beyond = (c < starts[0]) | (c >= starts[0] + size) | (r < starts[1]) | (r >= starts[1] + size)
        for ref in refs[len(results) :]:
            square = ref[pl.ds(i, _SIDE), pl.ds(j, _SIDE)]
            triton.store(ref.at[pl.ds(j, _SIDE), pl.ds(i, _SIDE)], square.T, mask=beyond.T)

    return _in_place(program, (size // _SIDE, size // _SIDE), [starts], [_WHOLE], results, interpret)


def _in_place(
    program: Callable[..., None],
    grid: tuple[int, int],
    operands: Sequence[jax.Array],
    in_specs: Sequence[pl.BlockSpec],
    results: Sequence[jax.Array],
    interpret: bool,
) -> list[jax.Array]:
    """Runs a program on references to the operands, to the results before the run, and to the results to be written."""
    written = pl.pallas_call(
        program,
        grid=grid,
        in_specs=[*in_specs, *(len(results) * [_WHOLE])],
        out_specs=len(results) * [_WHOLE],
        out_shape=[jax.ShapeDtypeStruct(v.shape, v.dtype) for v in results],
        input_output_aliases={len(operands) + i: i for i in range(len(results))},
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
    )(*operands, *results)
    return list(written)
