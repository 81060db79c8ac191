"""The Cholesky factor of a kernel whose rows are dealt to several devices, and solutions by it.

Blocks of rows are dealt in turn (block-cyclic), so that all devices have work until the end. Column after column of
blocks is computed from those on its left: its owner sends one row of blocks to all, and every device updates the rows
that it holds. In all N^2 / 2 numbers of float64 reach every device, and each computes N^3 / (3 P) products.

Source: Golub and Van Loan, Matrix Computations, 4th edition, 4.2.9 (block Cholesky) and 6.3 (block-cyclic
distribution).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.sharding import PartitionSpec as P

from nngp_dag.large.blocks import BlockKernel, Entries
from nngp_dag.large.mesh import ROWS, Team, padded

# Rows and columns of a block.
_BLOCK = 512
# The width of products grows in so many stages, which are compiled separately. With 8 of them the factor takes about a
# fifth more operations than it needs.
_STAGES = 8
# Inverse iterations that estimate the smallest eigenvalue, and their vectors.
_ITERATIONS, _VECTORS = 4, 8


class _Programs:
    """The compiled steps on the block rows that a device holds, for `count` blocks of `size` rows in all."""

    def __init__(self, team: Team, kernel: Entries, size: int, count: int) -> None:
        devices, per, n = team.size, count // team.size, count * size

        def here() -> jax.Array:
            # The type of the other numbers of blocks.
            return lax.axis_index(ROWS).astype(jnp.int64)

        def at(values: jax.Array, k: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(values, k * size, size)

        def block(matrix: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
            return lax.dynamic_slice(matrix, (i * size, j * size), (size, size))

        def put(matrix: jax.Array, found: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice(matrix, found, (i * size, j * size))

        def of_owner(values: jax.Array, k: jax.Array) -> jax.Array:
            # What the others hold may be infinite, or NaN.
            return lax.psum(jnp.where(here() == k % devices, values, 0), ROWS)

        def fill(weights: Any, ridge: jax.Array, x: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            def tile(i: jax.Array, j: jax.Array, filled: tuple) -> tuple:
                matrix, sums = filled
                g = i * devices + here()
                found = kernel.tile(weights, at(x, g), at(x, j), g == j)
                # Rows that fill up the last blocks are those of a unit matrix.
                real = [k * size + jnp.arange(size) < rows for k in (g, j)]
                found = jnp.where(real[0][:, None] & real[1][None], found, 0)
                found += jnp.where(g == j, jnp.diag(jnp.where(real[0], ridge, 1)), 0)
                sums = sums.at[g].add(jnp.abs(found).sum(axis=1))
                sums = sums.at[j].add(jnp.where(g == j, 0, jnp.abs(found).sum(axis=0)))
                return put(matrix, found, i, j), sums

            def row(i: jax.Array, filled: tuple) -> tuple:
                last = i * devices + here()
                return lax.fori_loop(0, last + 1, lambda j, filled: tile(i, j, filled), filled)

            zeros = jnp.zeros((per * size, n), jnp.float64), jnp.zeros((count, size), jnp.float64)
            matrix, sums = lax.fori_loop(0, per, row, zeros)
            return matrix, lax.psum(sums, ROWS).max()

        def factor(matrix: jax.Array) -> jax.Array:
            me = here()
            bounds = np.unique(np.linspace(0, count, max(1, min(_STAGES, count // 4)) + 1).round().astype(int))
            for first, last in itertools.pairwise(bounds.tolist()):
                matrix = lax.fori_loop(first, last, functools.partial(column, last * size, me), matrix)
            return matrix

        def column(wide: int, me: jax.Array, k: jax.Array, matrix: jax.Array) -> jax.Array:
            """Computes block column k of the factor from the `wide` columns that hold all those on its left."""

            def left(i: jax.Array) -> jax.Array:
                return lax.dynamic_slice(matrix, (i * size, 0), (size, wide))

            own = k // devices
            across = of_owner(jnp.where(jnp.arange(wide) < k * size, left(own), 0), k)
            corner = of_owner(block(matrix, own, k) - left(own) @ across.T, k)
            lower = jnp.linalg.cholesky(corner)

            def below(i: jax.Array, matrix: jax.Array) -> jax.Array:
                row = lax.dynamic_slice(matrix, (i * size, 0), (size, wide))
                found = solve_triangular(lower, (block(matrix, i, k) - row @ across.T).T, lower=True).T
                return put(matrix, found, i, k)

            matrix = put(matrix, jnp.where(me == k % devices, lower, block(matrix, own, k)), own, k)
            return lax.fori_loop(own + jnp.where(me > k % devices, 0, 1), per, below, matrix)

        def forward(matrix: jax.Array, b: jax.Array) -> jax.Array:
            def step(k: jax.Array, y: jax.Array) -> jax.Array:
                # Rows of y from k on are still 0.
                row = lax.dynamic_slice(matrix, (k // devices * size, 0), (size, n))
                right = at(b, k) - row @ y
                found = of_owner(solve_triangular(block(matrix, k // devices, k), right, lower=True), k)
                return lax.dynamic_update_slice_in_dim(y, found, k * size, 0)

            return lax.fori_loop(0, count, step, jnp.zeros_like(b))

        def backward(matrix: jax.Array, y: jax.Array) -> jax.Array:
            me = here()

            def step(i: jax.Array, x: jax.Array) -> jax.Array:
                k = count - 1 - i
                below = lax.dynamic_slice(matrix, (0, k * size), (per * size, size))
                # Rows of x up to k are still 0.
                own = x.reshape(per, devices, size, -1)[:, me].reshape(per * size, -1)
                right = at(y, k) - lax.psum(below.T @ own, ROWS)
                corner = of_owner(block(matrix, k // devices, k), k)
                found = solve_triangular(corner, right, lower=True, trans=1)
                return lax.dynamic_update_slice_in_dim(x, found, k * size, 0)

            return lax.fori_loop(0, count, step, jnp.zeros_like(y))

        def finite(matrix: jax.Array) -> jax.Array:
            """Whether the factor exists: a pivot that is not positive makes NaN of all that follows."""
            return lax.psum(jnp.where(jnp.isfinite(matrix).all(), 0, 1), ROWS) == 0

        local, all_ = P(ROWS), P()
        self.fill = team.shard(fill, (all_, all_, all_, all_), (local, all_))
        self.factor = team.shard(factor, (local,), local, donate=(0,))
        self.forward = team.shard(forward, (local, all_), all_)
        self.backward = team.shard(backward, (local, all_), all_)
        self.finite = team.shard(finite, (local,), all_)


_programs = functools.lru_cache(maxsize=16)(_Programs)


class BlockedFactor:
    """The Cholesky factor of a kernel plus a ridge, in float64, dealt to the devices of a team.

    Attributes:
      norm: The largest sum of the absolute entries of a row of the kernel with its ridge.
      exists: Whether the matrix is positive definite; without, nothing can be solved.
    """

    def __init__(self, team: Team, kernel: BlockKernel, x: np.ndarray, ridge: float) -> None:
        """Computes the kernel of inputs x, (N, ...), and its factor; must be called where float64 is on."""
        self._team, self._count = team, len(x)
        size = min(_BLOCK, -(-len(x) // team.size))
        if kernel.bytes_of_block:
            size = min(size, kernel.entries.columns)
        blocks = -(-len(x) // (size * team.size)) * team.size
        self._rows, self._programs = blocks * size, _programs(team, kernel.entries, size, blocks)
        weights = jax.tree.map(team.everywhere, kernel.weights)
        inputs = team.everywhere(padded(np.asarray(x, kernel.dtype), self._rows))
        numbers = team.everywhere(np.float64(ridge)), inputs, team.everywhere(np.int64(len(x)))
        matrix, norm = self._programs.fill(weights, *numbers)
        self.norm = float(team.fetched(norm))
        self._factor = self._programs.factor(matrix)
        self.exists = bool(team.fetched(self._programs.finite(self._factor)))

    def _applied(self, values: np.ndarray, *steps: Callable[[jax.Array, jax.Array], jax.Array]) -> np.ndarray:
        missing = np.zeros((self._rows - self._count, values.shape[1]))
        found = self._team.everywhere(np.concatenate([values, missing]))
        for step in steps:
            found = step(self._factor, found)
        return self._team.fetched(found)[: self._count]

    def half(self, values: np.ndarray) -> np.ndarray:
        """Returns L^-1 V for columns V, (N, C)."""
        return self._applied(values, self._programs.forward)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """Returns (L L^T)^-1 V for columns V, (N, C)."""
        return self._applied(values, self._programs.forward, self._programs.backward)

    def reciprocal_condition(self, seed: int) -> float:
        """Returns an estimate of the smallest eigenvalue over `norm`, from inverse iterations."""
        vectors = np.random.default_rng([seed, 3]).normal(size=(self._count, _VECTORS))
        for _ in range(_ITERATIONS):
            vectors = vectors / np.linalg.norm(vectors, axis=0)
            vectors = self.solve(vectors)
        return float(1 / (np.linalg.norm(vectors, axis=0).max() * self.norm))
