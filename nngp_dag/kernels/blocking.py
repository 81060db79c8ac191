"""Evaluation on data, or on the kernels of what comes before: in blocks of rows, so that only results are N x N."""

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
    """One set of inputs, made ready for kernels.

    Attributes:
      data: For every input node (N, d), or images (N, *pixels, channels).
      norms: For every input node the norms of its vectors, (N,); of images their scales.
      scale: By what kernels are scaled back, (N,).
      q: For every input node second moments of the data over their scales, (N, *pixels).
      moments: Those of the nodes.

    Second moments and moments have length 1 where all inputs share them.
    """

    data: Sequence[jax.Array]
    norms: Sequence[jax.Array]
    scale: jax.Array
    q: list[jax.Array]
    moments: Moments


def _prepare(weights: Weights, data: Sequence[jax.Array], spec: Spec, layout: PixelLayout) -> _Inputs:
    paired = layout._replace(paired=True)
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
            # Vectors over their norms have one second moment; those that are 0 get a scale of 0 in the end.
            k = jnp.ones(1, x.dtype) if spec.equal_norms else (norm * inverse_of(scale)) ** 2
        values.append(KernelState(k, jnp.zeros_like(k), None))
    moments, _ = moments_of(spec, weights, values, paired, [x.shape[-1] for x in data])
    return _Inputs(data, of_nodes, scale, [paired.diagonal(value.k) for value in values], moments)


@functools.partial(jax.jit, static_argnames=("spec", "layout"))
def second_moments(
    weights: Weights, x: Sequence[jax.Array], *, spec: Spec, layout: PixelLayout
) -> tuple[list[jax.Array], Any]:
    """Returns E[X^2] of the data at every input node and at every node that is computed; see `kernel_of_inputs`.

    Of length 1 where all inputs share it, see `_Inputs`.
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
      x1: For every input node the data, (N1, d), or images (N1, *pixels, channels).
      x2: The second inputs, (N2, ...), or None for x1.
      spec: The program.
      layout: How axes lie, for blocks.

    Returns:
      For every output NNGP and NTK, (N1, N2) each; no NTK unless the spec asks for it. Stacked, one pair of
      (outputs, N1, N2).
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
    """Computes the kernels of inputs with themselves in tiles; `fused`, each by a GPU kernel for all steps."""
    prepared = _prepare(weights, x, spec, PixelLayout())
    between = _Between(spec, PixelLayout(), weights, prepared, symmetric=True)
    count, dtype = x[0].shape[0], x[0].dtype
    sizes = spec.blocks
    # As equal as multiples are, since the last tile moves back over what others have computed.
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

    # Series are of no use inside a transformation, see `nngp_dag.kernels.choose`.
    return by_tiles(between.by_row(prepared), count, size, shapes, between.ready, put, sizes, weights.series is None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _in_registers(spec: Spec, weights: Weights, x: Sequence[jax.Array]) -> Kernels:
    plain = functools.partial(_symmetric, spec)
    # The data may lie on another device than JAX's default.
    return lax.platform_dependent(weights, x, cuda=functools.partial(plain, fused=True), default=plain)


@_in_registers.defjvp
def _in_registers_jvp(spec: Spec, primals: tuple, tangents: tuple) -> tuple:
    return jax.jvp(functools.partial(_symmetric, spec), primals, tangents)


# Inputs whose correlation is this close to 1 or -1, an angle of 0.18, get their distance summed: the angle of others
# carries less than six times the rounding of their product.
_CLOSE = 0.0168
_FEW_CHANNELS = 4


class _Between:
    """What is computed between rows and columns of inputs, both as `ready` gives them."""

    def __init__(self, spec: Spec, layout: PixelLayout, weights: Weights, first: _Inputs, symmetric: bool) -> None:
        """`first` are the rows."""
        x = first.data
        self.spec, self.layout, self.weights, self.symmetric = spec, layout, weights, symmetric
        self.channels = [v.shape[-1] for v in x]
        self.pixels = math.prod(x[0].shape[1:-1]) ** (2 if layout.full else 1)
        self.centers = [
            center_of(v, norm) if is_long(v) and not layout.ndim else None
            for v, norm in zip(x, first.norms, strict=True)
        ]

    def by_row(self, prepared: _Inputs) -> tuple:
        """Adds shifts, and puts inputs first; stacks of the loop have them second."""
        data, of_nodes, scale, q, moments = prepared
        of_centers = [
            None if c is None else shifts(x, norm, c) for x, norm, c in zip(data, of_nodes, self.centers, strict=True)
        ]
        if self.spec.loop:
            moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments)
        return (data, of_centers, of_nodes), scale, q, moments

    def ready(self, taken: tuple) -> tuple:
        """Scales and centers data, late, so that no copy of all of them is kept."""
        (data, of_centers, of_nodes), scale, q, moments = taken
        # A quotient: numbers over their sizes are exactly 1 or -1.
        over_norms = [over(x, norm, scale) for x, norm in zip(data, of_nodes, strict=True)]
        if not self.layout.ndim:
            centers = zip(over_norms, self.centers, strict=True)
            over_norms = [parts(x) if c is None else parts(x - c[None], centered=True) for x, c in centers]
        return list(zip(over_norms, of_centers, strict=True)), scale, q, moments

    def values(self, rows: tuple, i: jax.Array, columns: tuple, j: jax.Array) -> list[KernelState]:
        """Returns second moments for every input node; i and j are the inputs' indices."""
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
            # Of few channels the area between two pixels' vectors is a short sum of squares.
            area = areas(x, z) if x.shape[-1] <= _FEW_CHANNELS else None
            gap = gap_of(k, left, right) if area is None else gap_of_area(area, k, left, right)
            return KernelState(k, jnp.where(diagonal, 0, gap), None)

        def correlation(x: Any, z: Any, shift1: Any, shift2: Any, i: jax.Array, j: jax.Array) -> jax.Array:
            # An input coincides with itself, whatever the rounding of its products.
            return jnp.where(self._on_diagonal(i, j), 1, products(x, z, shift1, shift2))

        rho = evaluated_once(self.weights.true, correlation, x, z, shift1, shift2, i, j)
        coarse = 1 - absolute(rho)

        # A function: comparing again costs less than reading what was compared from memory.
        def close(opposite: bool) -> jax.Array:
            side = rho < 0 if opposite else rho > 0
            return (coarse < _CLOSE) & side & ~self._on_diagonal(i, j)

        def summed() -> jax.Array:
            cell = self.spec.blocks.cell
            gap = with_distances(coarse, close(False), x, z, cell)
            return with_distances(gap, close(True), *self._opposite(first, second), cell)

        # Smaller gaps come out of the subtraction with large relative errors. Then, and only then, they are summed
        # directly, which costs more than a matrix product.
        gap = lax.cond(jnp.any(close(False) | close(True)), summed, lambda: coarse)
        if self.spec.equal_norms:
            return KernelState(rho, gap, None)
        # An input 0 lies over its scale, not over its norm; what is rounded away elsewhere is its derivative here.
        s1, s2 = root(left), root(right)
        k = jnp.where(self._on_diagonal(i, j), left, jnp.where(s1 > 0, s1, 1) * jnp.where(s2 > 0, s2, 1) * rho)
        return KernelState(k, jnp.where((s1 > 0) & (s2 > 0), s1 * s2 * gap, s1 * s2 - absolute(k)), None)

    def _opposite(self, first: Any, second: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns rows, and columns with the other sign; both with their center, so that sums are symmetric."""
        (x, _), (z, _) = first, second
        center = [0] if self.centers[0] is None else parts(self.centers[0][None], centered=True)
        left, right = ([v + c for v, c in zip(side, center, strict=True)] for side in (x, z))
        return left, [-v for v in right]

    def _positions(self, first: Any, second: Any, i: jax.Array, j: jax.Array) -> jax.Array:
        """Returns where series in the angle are summed."""
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
            # Nearly opposite inputs nearly coincide but for a sign, and positions of opposite ones are opposite.
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
    """How many rows, of so many entries each, the recursion or the series take at once."""
    if spec.stacked and weights.series is not None:
        return spec.blocks.series // (entries * weights.series.shape[-1])
    # What the loop keeps grows with the outputs.
    entries *= 1 + len(spec.structure.outputs) // 4
    if not spec.loop:
        return spec.blocks.block // entries
    # Over a single long row XLA's loop is ten times as slow as over two.
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
    """Computes the kernels of a network from those of its inputs.

    The angle of inputs that nearly coincide is only as good as the rounding of those kernels.

    Args:
      weights: The numbers of the program.
      inputs: For every input node NNGP and NTK, (N1, N2, *pixels).
      variances1: For every input node the covariance of the rows' inputs with themselves, (N1, *pixels).
      variances2: Variances of the columns, or None where they are the rows.
      spec: The program.
      layout: How axes lie, for blocks.
      channels: Fan-in of every stem.

    Returns:
      For every output NNGP and NTK, (N1, N2, *pixels).
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

    Arguments are as in `kernel_of_kernel`.
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
