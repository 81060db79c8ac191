"""The streamed pass: sums over all rows of the products of their kernels with the landmarks.

Let C = K_Nm be the kernel of the rows against the landmarks. The solution needs C^T C and C^T y. Products of blocks in
float32 are summed in float64. Yet rounding of the largest directions of C would hide the smallest ones: an entry of
C^T C carries the square of the mean kernel. So these directions, V, are taken out of every block first,

    C = E + P V^T,   P = C V,   C^T C = E^T E + V (P^T E) + (P^T E)^T V^T + V (P^T P) V^T,

and only E^T E, whose entries are small, is a product in float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from nngp_dag.large.blocks import Entries
from nngp_dag.large.mesh import ROWS, Team

# Directions that are taken out of float32 blocks.
_DIRECTIONS = 64
# The symmetric product is computed in panels of columns, on and above the diagonal.
_PANEL = 512
# Blocks after which the sums of the devices are added up. Checkpoints are taken only then, so that a resumed run adds
# the same numbers in the same order as an unbroken one.
FLUSH = 16


class Sums(NamedTuple):
    """Sums over rows, in float64.

    Attributes:
      ee: E^T E, of which only panels on and above the diagonal are filled, (m, m).
      pe: P^T E, (r, m).
      pp: P^T P, (r, r).
      ey: E^T y, (m, C).
      py: P^T y, (r, C).
      yy: Sums of the squared targets, (C,).
      rows: Number of rows.
    """

    ee: Any
    pe: Any
    pp: Any
    ey: Any
    py: Any
    yy: Any
    rows: Any


def directions(matrix: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns orthonormal vectors V that span roughly the largest directions of a landmarks' kernel, (m, r)."""
    m = len(matrix)
    if dtype == np.float64:
        return np.zeros((m, 0))
    vectors = np.random.default_rng(0).normal(size=(m, min(_DIRECTIONS, m)))
    for _ in range(2):
        vectors = np.linalg.qr(matrix @ vectors)[0]
    return vectors


def zeros(m: int, r: int, outputs: int) -> Sums:
    """Returns sums over no rows."""
    shapes = (m, m), (r, m), (r, r), (m, outputs), (r, outputs), (outputs,), ()
    return Sums(*map(np.zeros, shapes))


class Pass:
    """The compiled steps of the streamed pass.

    Args:
      team: The devices.
      kernel: The structure of the kernel.
      dtype: Precision of the entries.
      m: Number of landmarks.
      r: Number of directions that are taken out.
    """

    def __init__(self, team: Team, kernel: Entries, dtype: np.dtype, m: int, r: int) -> None:
        """Compiles nothing yet."""
        self._team = team
        panels = [(i, min(_PANEL, m - i)) for i in range(0, m, _PANEL)]
        exact = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)

        def add(
            sums: Sums, weights: Any, x: jax.Array, y: jax.Array, mask: jax.Array, landmarks: jax.Array, v: jax.Array
        ) -> Sums:
            sums = jax.tree.map(lambda s: s[0], sums)
            block = kernel.between(weights, x, landmarks) * mask[:, None].astype(dtype)
            targets = y * mask[:, None]
            p = exact(block, v)
            rest = block - exact(p, v.T) if r else block
            wide = p.astype(jnp.float64)
            ee = sums.ee
            for start, size in panels:
                left = rest[:, start : start + size]
                part = exact(left.T, rest[:, start:])
                ee = ee.at[start : start + size, start:].add(part.astype(jnp.float64))
            found = Sums(
                ee,
                sums.pe + wide.T @ rest.astype(jnp.float64) if r else sums.pe,
                sums.pp + wide.T @ wide,
                sums.ey + exact(rest.T, targets.astype(dtype)),
                sums.py + wide.T @ targets,
                sums.yy + jnp.sum(targets**2, axis=0),
                sums.rows + jnp.sum(mask),
            )
            return jax.tree.map(lambda s: s[None], found)

        def flush(total: Sums, sums: Sums) -> tuple[Sums, Sums]:
            total = jax.tree.map(lambda t, s: t + lax.psum(s[0], ROWS), total, sums)
            return total, jax.tree.map(jnp.zeros_like, sums)

        local, all_ = P(ROWS), P()
        self.add = team.shard(add, (local, all_, local, local, local, all_, all_), local, donate=(0,))
        self.flush = team.shard(flush, (all_, local), (all_, local), donate=(0, 1))

    def start(self, total: Sums) -> tuple[Sums, Sums]:
        """Returns the total on all devices, and zeros for the sums of every device."""
        size = self._team.size
        own = [self._team.zeros((size, *np.shape(v)), np.float64) for v in total]
        return Sums(*map(self._team.everywhere, total)), Sums(*own)


compiled = functools.lru_cache(maxsize=16)(Pass)


def products(sums: Sums, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns C^T C, (m, m), and C^T y, (m, C), in float64."""
    # In place: thousands of landmarks make each of these matrices large.
    whole = np.triu(sums.ee)
    whole += np.triu(whole, 1).T
    cross = v @ sums.pe
    whole += cross
    whole += cross.T
    whole += v @ sums.pp @ v.T
    return whole, sums.ey + v @ sums.py
