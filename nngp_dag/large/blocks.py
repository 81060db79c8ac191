"""Blocks of a kernel inside `jax.jit` and `shard_map`, by the back end that `nngp_dag.kernel` would take.

What does not depend on the rows, such as the coefficients of a Chebyshev series, is computed once. The compiled program
of a block then serves all blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.architecture import Network
from nngp_dag.kernels._gram import numbers_per_column
from nngp_dag.kernels._kernel import planned
from nngp_dag.kernels.accuracy import check_quadratures
from nngp_dag.kernels.backends.unrolled import Spec
from nngp_dag.kernels.blocking import kernel_of_inputs
from nngp_dag.kernels.choose import Problem, choose
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.kernels.pixel_layout import PixelLayout

# Columns that are computed together. A row with a nearly parallel column costs a sum over the features of all columns
# of its block, so blocks are narrow; they are wide enough for efficient matrix products.
_COLUMNS = 512
# Inputs whose kernels with each other are computed for the sake of the diagonal.
_TOGETHER = 32


class Entries(NamedTuple):
    """The hashable structure of a block of a kernel, by which compiled programs are shared between calls.

    Attributes:
      spec: The structure of the compiled program.
      layout: The axes of covariances.
      inputs: Number of input nodes that read the rows.
      with_ntk: Whether entries are those of the NTK, and not of the NNGP.
      columns: Largest number of columns that are computed together.
      pixels: Whether covariances of pixels exist at once.
    """

    spec: Spec
    layout: PixelLayout
    inputs: int
    with_ntk: bool
    columns: int
    pixels: bool

    def _pair(self, weights: Any, rows: jax.Array, columns: jax.Array | None) -> jax.Array:
        first = [rows] * self.inputs
        second = None if columns is None else [columns] * self.inputs
        [(nngp, ntk)] = kernel_of_inputs(weights, first, second, spec=self.spec, layout=self.layout)
        found = ntk if self.with_ntk else nngp
        assert found is not None
        return found

    def between(self, weights: Any, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """Returns the entries for rows (n1, ...) and columns (n2, ...), (n1, n2); for use in compiled functions."""
        count = len(columns)
        parts = -(-count // self.columns)
        size = -(-count // parts)
        if parts == 1:
            return self._pair(weights, rows, columns)
        # All parts have one shape; the last one is filled up by copies of the last column.
        taken = jnp.minimum(jnp.arange(parts * size), count - 1).reshape(parts, size)
        found = lax.map(lambda at: self._pair(weights, rows, columns[at]), taken)
        return jnp.swapaxes(found, 0, 1).reshape(len(rows), parts * size)[:, :count]

    def within(self, weights: Any, rows: jax.Array) -> jax.Array:
        """Returns the symmetric entries for rows with themselves, (n, n); for use in compiled functions."""
        if self.pixels and len(rows) > self.columns:
            return self.between(weights, rows, rows)
        return self._pair(weights, rows, None)

    def tile(self, weights: Any, rows: jax.Array, columns: jax.Array, same: jax.Array) -> jax.Array:
        """Returns the entries for rows and equally many columns, or for rows with themselves if `same`, in float64."""
        # Inputs have angle 0 with themselves, whatever the rounding of their products.
        found = lax.cond(same, lambda: self.within(weights, rows), lambda: self.between(weights, rows, columns))
        return found.astype(jnp.float64)

    def diagonal(self, weights: Any, rows: jax.Array) -> jax.Array:
        """Returns the entries of rows with themselves, (n,); for use in compiled functions."""
        count = len(rows)
        size = min(count, 1 if self.pixels else _TOGETHER)
        taken = jnp.minimum(jnp.arange(-(-count // size) * size), count - 1).reshape(-1, size)
        found = lax.map(lambda at: jnp.diagonal(self._pair(weights, rows[at], None)), taken)
        return found.reshape(-1)[:count]


class BlockKernel:
    """The kernel of one kind between rows and columns.

    Attributes:
      network: The network.
      kind: "nngp" or "ntk".
      dtype: Precision of the entries.
      shape: Shape of one input.
      entries: The structure of compiled programs.
      weights: The numbers of compiled programs.
      way: The name of the back end, as in `nngp_dag.explain`.
      memory: Bytes that covariances of pixels may take at once.
      bytes_of_block: Memory for covariances of pixels in one block; 0 for networks without images.
    """

    def __init__(
        self, network: Network, kind: str, shape: tuple[int, ...], dtype: np.dtype, memory: int = 2**30
    ) -> None:
        """Plans the computation.

        Args:
          network: The network.
          kind: "nngp" or "ntk".
          shape: Shape of one input: (features,), or of an image (*pixels, channels).
          dtype: Precision of the entries.
          memory: Bytes that covariances of pixels may take at once.
        """
        self.network, self.kind, self.dtype, self.shape, self.memory = network, kind, dtype, shape, memory
        problem = Problem(
            rows=1 << 12,
            columns=1 << 12,
            symmetric=False,
            features=shape[-1],
            dtype=dtype,
            with_ntk=kind == "ntk",
        )
        with precision_of(dtype):
            self._plan, self.weights = planned(network, problem, None)
        self.way = choose(network, problem).way.partition(";")[0]
        per_column = numbers_per_column(network, shape[:-1])
        # Where covariances of pixels exist at once, one row at a time is computed with as many columns as fit.
        fitting = memory // (dtype.itemsize * per_column) if per_column else _COLUMNS
        columns, spec = max(1, min(_COLUMNS, fitting)), self._plan.spec
        inputs = 1 if self._plan.series is not None else network.dag.num_inputs
        self.entries = Entries(spec, self._plan.layout, inputs, kind == "ntk", columns, per_column > 0)
        self.bytes_of_block = per_column * columns * dtype.itemsize

    def check(self, x: np.ndarray) -> None:
        """Refuses inputs, or warns, where the quadrature of an activation is inaccurate at their variances."""
        if self._plan.quadrature:
            with precision_of(self.dtype):
                data = [jnp.asarray(x, self.dtype)] * self.entries.inputs
                check_quadratures(self.network, self.weights, data, self._plan.spec, self._plan.layout)
