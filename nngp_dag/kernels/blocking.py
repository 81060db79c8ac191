"""Evaluation of kernels on data, or on the kernels of preceding layers.

The work is done in blocks of rows or in tiles, so that only the results have N x N entries. Second moments of the data
are computed with the gap of Equation (10) of docs/mathematics.md, which keeps the angles of nearly parallel inputs.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.kernels.backends import chebyshev
from nngp_dag.kernels.backends.unrolled import (
    Kernels,
    Moments,
    Spec,
    Weights,
    evaluated_once,
    moments_of,
    propagate,
    second_moments_of,
)
from nngp_dag.kernels.dual import gap_of, root
from nngp_dag.kernels.dual import size as absolute
from nngp_dag.kernels.layer_rules import KernelState
from nngp_dag.kernels.pixel_layout import PixelLayout
from nngp_dag.kernels.products import (
    areas,
    center_of,
    gap_of_area,
    images,
    inverse_of,
    is_long,
    norms,
    over,
    parts,
    products,
    shifts,
    with_distances,
)
from nngp_dag.kernels.tiles import by_rows, by_tiles, mirrored


class _Inputs(NamedTuple):
    """One set of inputs, prepared for the computation of kernels.

    Attributes:
      data: The data of every input node, vectors (N, d) or images (N, *pixels, channels).
      norms: The norms of every input node's vectors, (N,); for images, the scales.
      scale: The numbers by which inputs are divided, and by whose products kernels are multiplied in the end, (N,).
      q: The second moments of every input node's scaled data, (N, *pixels).
      moments: The variances and means of all nodes.

    The arrays `q` and `moments` have length 1 where all inputs share their values.
    """

    data: Sequence[jax.Array]
    norms: Sequence[jax.Array]
    scale: jax.Array
    q: list[jax.Array]
    moments: Moments


def _prepare(weights: Weights, data: Sequence[jax.Array], spec: Spec, layout: PixelLayout) -> _Inputs:
    paired = layout._replace(paired=True)
    # A homogeneous network's kernels scale with the norms of the inputs. Inputs over their norms keep all intermediate
    # values of order 1, in range of the dtype, and share the variances of every node.
    scale = norms(data) if spec.homogeneous else jnp.ones(data[0].shape[0], data[0].dtype)
    of_nodes = [scale if layout.ndim else norms([x]) for x in data]
    values = []
    for x, norm in zip(data, of_nodes, strict=True):
        if layout.full:
            scaled = x * inverse_of(scale, x.ndim)
            k = jax.vmap(lambda image: images(image[None], image[None], layout)[0, 0])(scaled)
            values.append(KernelState(k, None, None))
            continue
        if layout.ndim:
            k = jnp.mean((x * inverse_of(scale, x.ndim)) ** 2, axis=-1)
        else:
            # All vectors over their norms have second moment 1. Vectors of zeros are treated alike; their scale of 0
            # sets their kernels to 0 in the end.
            k = jnp.ones(1, x.dtype) if spec.equal_norms else (norm * inverse_of(scale)) ** 2
        values.append(KernelState(k, jnp.zeros_like(k), None))
    moments, _ = moments_of(spec, weights, values, paired, [x.shape[-1] for x in data])
    return _Inputs(data, of_nodes, scale, [paired.diagonal(value.k) for value in values], moments)


@functools.partial(jax.jit, static_argnames=("spec", "layout"))
def second_moments(
    weights: Weights, x: Sequence[jax.Array], *, spec: Spec, layout: PixelLayout
) -> tuple[list[jax.Array], Any]:
    """Returns E[X^2] of every input node's data and of every computed node; arguments are as in `kernel_of_inputs`.

    An array has length 1 if all inputs share its value, see `_Inputs`.
    """
    prepared = _prepare(weights, x, spec, layout)
    return prepared.q, second_moments_of(spec, weights, prepared.moments)


@functools.partial(jax.jit, static_argnames=("spec", "layout"))
def kernel_of_inputs(
    weights: Weights, x1: Sequence[jax.Array], x2: Sequence[jax.Array] | None, *, spec: Spec, layout: PixelLayout
) -> Kernels:
    """Computes the kernels of a network on data.

    Args:
      weights: The numbers of the program.
      x1: The data of every input node, (N1, d), or images (N1, *pixels, channels).
      x2: The second inputs, (N2, ...), or None for `x1`.
      spec: The structure of the compiled program.
      layout: The axes of covariances in blocks.

    Returns:
      NNGP and NTK of every output, (N1, N2) each; the NTK is None unless the spec asks for it. A stacked spec yields
      one pair of arrays (outputs, N1, N2).
    """
    if x2 is None and not layout.ndim and len(x1[0]) >= 2 * _tile(spec):
        return (_in_registers if spec.fused else _symmetric)(spec, weights, x1)
    first = _prepare(weights, x1, spec, layout)
    second = first if x2 is None else _prepare(weights, x2, spec, layout)
    between = _Between(spec, layout, weights, first, symmetric=x2 is None)
    columns, indices = between.ready(between.by_row(second)), jnp.arange(len(second.scale))
    size = spec.blocks.product // (len(indices) * between.pixels)
    found = by_rows(
        between.by_row(first),
        len(first.scale),
        size,
        lambda rows, i: between.kernels(between.ready(rows), i, columns, indices),
        spec.blocks,
        axis=int(spec.stacked),
    )
    return jax.tree.map(mirrored, found) if x2 is None else found


def _tile(spec: Spec) -> int:
    return spec.blocks.stacked_tile if spec.stacked else spec.blocks.tile


def _symmetric(spec: Spec, weights: Weights, x: Sequence[jax.Array], fused: bool = False) -> Kernels:
    """Computes the kernels of inputs with themselves in tiles; if `fused`, one GPU kernel runs all steps of a tile."""
    prepared = _prepare(weights, x, spec, PixelLayout())
    between = _Between(spec, PixelLayout(), weights, prepared, symmetric=True)
    count, dtype = x[0].shape[0], x[0].dtype
    sizes = spec.blocks
    # The last tile is moved back to end with the last row, over entries that other tiles compute, too. Tiles of about
    # equal size keep this overlap small; on CPUs their number of rows is an odd multiple (see `BlockSizes`).
    times = -(-count // (sizes.multiple * -(-count // _tile(spec))))
    size = sizes.multiple * (times + 1 if sizes.odd and times % 2 == 0 else times)
    outputs = len(spec.structure.outputs)
    shape = jax.ShapeDtypeStruct((outputs, count, count) if spec.stacked else (count, count), dtype)
    shapes = [(shape, shape if spec.with_ntk else None)] * (1 if spec.stacked else outputs)

    def put(results: Any, rows: tuple, i: jax.Array, columns: tuple, j: jax.Array) -> Any:
        indices = i + jnp.arange(size), j + jnp.arange(size)
        if fused:
            from nngp_dag.kernels.backends.pallas import write_tile  # imports Pallas

            values = between.values(rows, indices[0], columns, indices[1])
            marginals, channels = (rows[1:], columns[1:]), between.channels
            return write_tile(results, values, *marginals, (i, j), spec=spec, weights=weights, channels=channels)

        def both(into: jax.Array, tile: jax.Array) -> jax.Array:
            outputs = (0,) * (tile.ndim - 2)
            into = lax.dynamic_update_slice(into, jnp.swapaxes(tile, -1, -2), (*outputs, j, i))
            return lax.dynamic_update_slice(into, tile, (*outputs, i, j))

        return jax.tree.map(both, results, between.kernels(rows, indices[0], columns, indices[1]))

    # Chebyshev series are not used inside transformations (see `nngp_dag.kernels.choose`), so they need no derivatives.
    return by_tiles(between.by_row(prepared), count, size, shapes, between.ready, put, sizes, weights.series is None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _in_registers(spec: Spec, weights: Weights, x: Sequence[jax.Array]) -> Kernels:
    plain = functools.partial(_symmetric, spec)
    # The data may be on another device than JAX's default one, where the GPU kernel does not run.
    return lax.platform_dependent(weights, x, cuda=functools.partial(plain, fused=True), default=plain)


@_in_registers.defjvp
def _in_registers_jvp(spec: Spec, primals: tuple, tangents: tuple) -> tuple:
    return jax.jvp(functools.partial(_symmetric, spec), primals, tangents)


# The error of a correlation enters its angle with the factor 1 / sin(theta). For correlations farther than this from 1
# and -1, at angles over 0.18, the factor is below six. For closer ones, squared distances are summed directly.
_CLOSE = 0.0168
# The area of two pixels' vectors is a sum over pairs of channels, which is short up to this many channels.
_FEW_CHANNELS = 4


class _Between:
    """The computations between rows and columns of inputs, both in the form that `ready` returns."""

    def __init__(self, spec: Spec, layout: PixelLayout, weights: Weights, first: _Inputs, symmetric: bool) -> None:
        """Keeps the program and the centers of the data; `first` are the inputs of the rows."""
        x = first.data
        self.spec, self.layout, self.weights, self.symmetric = spec, layout, weights, symmetric
        self.channels = [v.shape[-1] for v in x]
        self.pixels = math.prod(x[0].shape[1:-1]) ** (2 if layout.full else 1)
        self.centers = [
            center_of(v, norm) if is_long(v) and not layout.ndim else None
            for v, norm in zip(x, first.norms, strict=True)
        ]

    def by_row(self, prepared: _Inputs) -> tuple:
        """Adds the shifts of centered inputs, and puts the axis over inputs first; the loop's arrays have it second."""
        data, of_nodes, scale, q, moments = prepared
        of_centers = [
            None if c is None else shifts(x, norm, c) for x, norm, c in zip(data, of_nodes, self.centers, strict=True)
        ]
        if self.spec.loop:
            moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments)
        return (data, of_centers, of_nodes), scale, q, moments

    def ready(self, taken: tuple) -> tuple:
        """Scales and centers the data of a block; so no scaled copy of all data is kept."""
        (data, of_centers, of_nodes), scale, q, moments = taken
        # A division, and no product with the inverse norm: a single number over its size is then exactly 1 or -1.
        over_norms = [over(x, norm, scale) for x, norm in zip(data, of_nodes, strict=True)]
        if not self.layout.ndim:
            centers = zip(over_norms, self.centers, strict=True)
            over_norms = [parts(x) if c is None else parts(x - c[None], centered=True) for x, c in centers]
        return list(zip(over_norms, of_centers, strict=True)), scale, q, moments

    def values(self, rows: tuple, i: jax.Array, columns: tuple, j: jax.Array) -> list[KernelState]:
        """Returns the second moments of every input node's data; i and j are the indices of rows and columns."""
        (x, _, q1, _), (z, _, q2, _) = rows, columns
        return [self._value(*of, i, j) for of in zip(x, z, q1, q2, strict=True)]

    def _value(self, first: Any, second: Any, q1: jax.Array, q2: jax.Array, i: jax.Array, j: jax.Array) -> KernelState:
        (x, shift1), (z, shift2) = first, second
        layout = self.layout
        left, right = layout.left(q1), layout.right(q2)
        if layout.ndim:
            diagonal = self._on_diagonal(i, j)
            diagonal = diagonal.reshape(*diagonal.shape, *[1] * layout.ndim)
            k = images(x, z, layout)
            if layout.full:
                return KernelState(k, None, None)
            k = jnp.where(diagonal, left, k)
            # q1 q2 - k^2, the squared area, is a sum of squares, so the gap from it does not cancel.
            area = areas(x, z) if x.shape[-1] <= _FEW_CHANNELS else None
            gap = gap_of(k, left, right) if area is None else gap_of_area(area, k, left, right)
            return KernelState(k, jnp.where(diagonal, 0, gap), None)

        def correlation(x: Any, z: Any, shift1: Any, shift2: Any, i: jax.Array, j: jax.Array) -> jax.Array:
            # An input has correlation 1 with itself, whatever the rounding of its products.
            return jnp.where(self._on_diagonal(i, j), 1, products(x, z, shift1, shift2))

        rho = evaluated_once(self.weights.true, correlation, x, z, shift1, shift2, i, j)
        coarse = 1 - absolute(rho)

        # A function, because XLA compares again faster than it reads a stored mask from memory.
        def close(opposite: bool) -> jax.Array:
            side = rho < 0 if opposite else rho > 0
            return (coarse < _CLOSE) & side & ~self._on_diagonal(i, j)

        def summed() -> jax.Array:
            cell = self.spec.blocks.cell
            gap = with_distances(coarse, close(False), x, z, cell)
            return with_distances(gap, close(True), *self._opposite(first, second), cell)

        # The subtraction in `coarse` leaves a small gap (Equation (10) of docs/mathematics.md) with a large relative
        # error. Only such gaps are summed directly, since that costs more than a matrix product.
        gap = lax.cond(jnp.any(close(False) | close(True)), summed, lambda: coarse)
        if self.spec.equal_norms:
            return KernelState(rho, gap, None)
        # A vector of zeros was divided by its scale and not by its norm. The factor 1 in place of its norm 0 leaves its
        # kernel 0, but keeps the derivative.
        s1, s2 = root(left), root(right)
        k = jnp.where(self._on_diagonal(i, j), left, jnp.where(s1 > 0, s1, 1) * jnp.where(s2 > 0, s2, 1) * rho)
        return KernelState(k, jnp.where((s1 > 0) & (s2 > 0), s1 * s2 * gap, s1 * s2 - absolute(k)), None)

    def _opposite(self, first: Any, second: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns rows and negated columns, without centering: a center does not cancel in sums of inputs."""
        (x, _), (z, _) = first, second
        center = [0] if self.centers[0] is None else parts(self.centers[0][None], centered=True)
        left, right = ([v + c for v, c in zip(side, center, strict=True)] for side in (x, z))
        return left, [-v for v in right]

    def _positions(self, first: Any, second: Any, i: jax.Array, j: jax.Array) -> jax.Array:
        """Returns the positions at which the Chebyshev series are evaluated, see `chebyshev.position`."""
        (x, shift1), (z, shift2) = first, second

        def position(x: Any, z: Any, shift1: Any, shift2: Any, i: jax.Array, j: jax.Array) -> jax.Array:
            half_distance = jnp.where(self._on_diagonal(i, j), 0, 1 - products(x, z, shift1, shift2))
            return chebyshev.position(half_distance)

        coarse = evaluated_once(self.weights.true, position, x, z, shift1, shift2, i, j)
        limit = chebyshev.position(jnp.asarray(_CLOSE, coarse.dtype))

        def summed(positions: jax.Array, x: Sequence[jax.Array], z: Sequence[jax.Array]) -> jax.Array:
            close = (positions < limit) & ~self._on_diagonal(i, j)
            return with_distances(positions, close, x, z, self.spec.blocks.cell, chebyshev.position)

        def corrected() -> jax.Array:
            # Negating one of two inputs negates their position. So nearly opposite inputs are treated as nearly equal
            # inputs with one of them negated.
            return -summed(-summed(coarse, x, z), *self._opposite(first, second))

        extreme = (abs(coarse) > -limit) & ~self._on_diagonal(i, j)
        return lax.cond(jnp.any(extreme), corrected, lambda: coarse)

    def _on_diagonal(self, i: jax.Array, j: jax.Array) -> jax.Array:
        return (i[:, None] == j[None, :]) & self.symmetric

    def kernels(self, rows: tuple, i: jax.Array, columns: tuple, j: jax.Array) -> Kernels:
        """Returns NNGP and NTK of every output."""
        spec, (_, scale2, q2, moments2) = self.spec, columns
        if spec.loop:
            moments2 = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments2)

        def recursion(taken: tuple, indices: jax.Array) -> Kernels:
            del indices
            values, scale, q, moments = taken
            moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments) if spec.loop else moments
            results = propagate(spec, self.weights, values, (q, q2), (moments, moments2), self.layout, self.channels)
            back = scale[:, None] * scale2[None, :]
            back = back[None] if spec.stacked else back
            return [(k * back, None if ntk is None else ntk * back) for k, ntk in results]

        def series(taken: tuple, indices: jax.Array) -> Kernels:
            del indices
            positions, scale, *_ = taken
            assert self.weights.series is not None
            return chebyshev.kernels(self.weights.series, positions, scale[:, None] * scale2[None, :], spec)

        if self.weights.series is None:
            values, block = self.values(rows, i, columns, j), recursion
        else:
            values, block = self._positions(rows[0][0], columns[0][0], i, j), series
        size = _rows_of_a_block(spec, self.weights, len(j) * self.pixels, scale2.dtype)
        return by_rows((values, *rows[1:]), len(i), size, block, spec.blocks, axis=int(spec.stacked))


def _rows_of_a_block(spec: Spec, weights: Weights, entries: int, dtype: np.dtype) -> int:
    """Returns the number of rows, of `entries` entries each, that the recursion or the series take at once."""
    if spec.stacked and weights.series is not None:
        return spec.blocks.series // (entries * weights.series.shape[-1])
    # The memory of the loop grows with the number of outputs.
    entries *= 1 + len(spec.structure.outputs) // 4
    if not spec.loop:
        return spec.blocks.block // entries
    # XLA's loop takes ten times as long for a single long row as for two rows.
    return max(2, spec.blocks.loop // (entries * dtype.itemsize))


@functools.partial(jax.jit, static_argnames=("spec", "layout", "channels"))
def kernel_of_kernel(
    weights: Weights,
    inputs: Sequence[tuple[jax.Array, jax.Array | None]],
    variances1: Sequence[jax.Array],
    variances2: Sequence[jax.Array] | None,
    *,
    spec: Spec,
    layout: PixelLayout,
    channels: Sequence[int],
) -> Kernels:
    """Computes the kernels of a network from the kernels of its inputs.

    The angle of two inputs that nearly coincide is only as accurate as the rounding of the given kernels allows.

    Args:
      weights: The numbers of the program.
      inputs: NNGP and NTK of every input node, (N1, N2, *pixels).
      variances1: The covariances of the rows with themselves, at every input node, (N1, *pixels).
      variances2: The covariances of the columns with themselves, (N2, *pixels), or None if the columns are the rows.
      spec: The structure of the compiled program.
      layout: The axes of covariances in blocks.
      channels: Fan-in of every stem.

    Returns:
      NNGP and NTK of every output, (N1, N2, *pixels).
    """
    paired = layout._replace(paired=True)
    spec = spec._replace(homogeneous=False)  # inputs are not scaled

    def moments(variances: Sequence[jax.Array]) -> tuple[list[jax.Array], Moments]:
        values = [KernelState(k, None if layout.full else jnp.zeros_like(k), None) for k in variances]
        return [paired.diagonal(k) for k in variances], moments_of(spec, weights, values, paired, channels)[0]

    q1, moments1 = moments(variances1)
    q2, moments2 = (q1, moments1) if variances2 is None else moments(variances2)
    count1, count2 = inputs[0][0].shape[:2]

    def block(taken: tuple, indices: jax.Array) -> Kernels:
        kernels, q, moments = taken
        moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments) if spec.loop else moments
        diagonal = (indices[:, None] == jnp.arange(count2)[None, :]) & (variances2 is None)
        diagonal = diagonal.reshape(*diagonal.shape, *[1] * (kernels[0][0].ndim - 2))
        values = []
        for (k, ntk), left, right in zip(kernels, map(layout.left, q), map(layout.right, q2), strict=True):
            k = k if layout.full else jnp.where(diagonal, left, k)
            gap = None if layout.full else jnp.where(diagonal, 0, gap_of(k, left, right))
            values.append(KernelState(k, gap, ntk))
        return propagate(spec, weights, values, (q, q2), (moments, moments2), layout, channels)

    moments_by_row = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments1) if spec.loop else moments1
    k = inputs[0][0]
    size = _rows_of_a_block(spec, weights, max(1, k.size // count1), k.dtype)
    return by_rows((list(inputs), q1, moments_by_row), count1, size, block, spec.blocks)


@functools.partial(jax.jit, static_argnames=("spec", "layout", "channels"))
def variances_of_outputs(
    weights: Weights, variances: Sequence[jax.Array], *, spec: Spec, layout: PixelLayout, channels: tuple[int, ...]
) -> list[jax.Array]:
    """Returns the second moments of every output node for inputs with themselves, (N, *pixels).

    The arguments are those of `kernel_of_kernel`.
    """
    paired = layout._replace(paired=True)
    values = [KernelState(k, None if layout.full else jnp.zeros_like(k), None) for k in variances]
    moments, variance_of = moments_of(spec._replace(homogeneous=False), weights, values, paired, channels)
    results = []
    for output in spec.structure.outputs:
        k = variance_of(output)
        if weights.tables is not None:
            output = weights.tables.output_nodes[output]
        if moments.m is not None and (spec.loop or output in moments.m):
            k = k + paired.left(moments.m[output]) * paired.right(moments.m[output])
        results.append(k)
    return results
