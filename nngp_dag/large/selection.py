"""Landmarks by randomly pivoted Cholesky, in blocks of pivots.

A partial Cholesky factor F of the kernel, K = F F^T + R, grows by one column for every pivot. A row becomes the next
pivot with a probability in proportion to the diagonal of the residual R (Chen, Epperly, Tropp and Webber 2025,
Algorithm 1). For one pivot at a time that is m passes over F. Here a block of pivots is drawn from one diagonal, and
each of them is then accepted with the ratio of its residual now to that at the start of the block. That gives
exactly the distribution of single pivots, with matrix products (Epperly, Tropp and Webber 2024, Algorithm 2.1).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from nngp_dag.errors import InputError
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocks import BlockKernel, Entries
from nngp_dag.large.mesh import ROWS, Team, padded
from nngp_dag.theory._cholesky import cholesky

# Pivots that are drawn at once.
_BLOCK = 256
# A pivot's residual must exceed this many roundings of its kernel, which the products of the factor add up.
_ROUNDINGS = 64


class Landmarks(NamedTuple):
    """Chosen rows.

    Attributes:
      rows: Their numbers among the candidates, in the order of choice, (m,).
      x: Their inputs, (m, ...).
      unexplained: The share of the trace of the candidates' kernel that the landmarks leave unexplained.
      entries: Number of kernel entries that the choice took.
    """

    rows: np.ndarray
    x: np.ndarray
    unexplained: float
    entries: int


def choose_landmarks(
    team: Team,
    kernel: BlockKernel,
    x: np.ndarray,
    count: int,
    seed: int,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Landmarks:
    """Chooses landmarks among candidates.

    Args:
      team: The devices, to which the candidates are dealt.
      kernel: The kernel.
      x: The candidates, (M, ...).
      count: Number of landmarks; fewer are chosen where they explain the kernel up to rounding.
      seed: Seed of the draws.
      report: Function of ("landmarks", chosen, wanted).

    Raises:
      InputError: The kernel of the candidates is 0 or not finite.
    """
    random = np.random.default_rng([seed, 1])
    rows, count = len(x), min(count, len(x))
    block = min(_BLOCK, count)
    held = -(-rows // team.size)
    with precision_of(np.dtype(np.float64)):
        programs = _programs(team, kernel.entries, kernel.dtype, held, block)
        data = team.dealt(padded(x, held * team.size))
        # The factor has room for a whole block behind the last landmark.
        width = (-(-count // block) + 1) * block
        factor = team.zeros((held * team.size, width), kernel.dtype)
        weights = jax.tree.map(team.everywhere, kernel.weights)
        start = team.fetched(programs.diagonal(weights, data))[:rows].astype(np.float64)
        if not (np.isfinite(start).all() and start.max() > 0):
            raise InputError("Expected a kernel that is finite and not 0, got another; rescale the inputs")
        # A row whose kernel is 0 needs no landmark.
        least = _ROUNDINGS * np.finfo(kernel.dtype).eps * start
        left, chosen, entries = start.copy(), np.zeros(0, np.int64), rows
        report("landmarks", 0, count)
        while len(chosen) < count:
            left[left <= least] = 0
            if not left.any():
                break
            drawn = random.choice(rows, block, p=left / left.sum())
            limits = random.random(block)
            at = team.everywhere(drawn)
            inside, columns, of_factor = programs.drawn(weights, data, factor, at)
            taken, triangle = _accepted(team.fetched(inside), left[drawn], limits, least[drawn], count - len(chosen))
            if not len(taken):
                continue
            # Unused columns of the block repeat the first pivot; the mask makes them 0.
            order = np.concatenate([taken, np.full(block - len(taken), taken[0])])
            lower = np.eye(block)
            lower[: len(taken), : len(taken)] = triangle
            mask = np.arange(block) < len(taken)
            factor, gone = programs.grown(
                weights,
                data,
                factor,
                columns,
                of_factor,
                *map(team.everywhere, (order, lower.astype(kernel.dtype), mask, np.int64(len(chosen)))),
            )
            left = np.maximum(left - team.fetched(gone)[:rows], 0)
            chosen = np.concatenate([chosen, drawn[taken]])
            left[chosen] = 0
            entries += block * (rows + block)
            report("landmarks", len(chosen), count)
    return Landmarks(chosen, x[chosen], float(left.sum() / start.sum()), entries)


def _accepted(
    inside: np.ndarray, before: np.ndarray, limits: np.ndarray, least: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Accepts pivots of a block one after another.

    Args:
      inside: The residual kernel of the drawn pivots with themselves, (b, b).
      before: The diagonal from which they were drawn, (b,).
      limits: Uniform random numbers, (b,).
      least: Residuals that count as 0, (b,).
      most: Largest number of pivots to accept.

    Returns:
      The accepted pivots, (q,), and the lower Cholesky factor of their residual kernel, (q, q).
    """
    left = (inside + inside.T) / 2
    columns, taken = [], []
    for i in range(len(before)):
        if len(taken) == most:
            break
        if left[i, i] > least[i] and limits[i] * before[i] <= left[i, i]:
            column = left[:, i] / np.sqrt(left[i, i])
            left = left - np.outer(column, column)
            columns.append(column)
            taken.append(i)
    found = np.array(taken, np.int64)
    return found, np.tril(np.array(columns).T[found]) if taken else np.zeros((0, 0))


class _Programs:
    """The compiled steps of the choice."""

    def __init__(self, team: Team, kernel: Entries, dtype: np.dtype, held: int, block: int) -> None:
        def gathered(values: jax.Array, at: jax.Array) -> jax.Array:
            """Returns rows, which one device holds, on all devices."""
            own = at - lax.axis_index(ROWS) * held
            mine = (own >= 0) & (own < held)
            rows = values[jnp.clip(own, 0, held - 1)]
            return lax.psum(jnp.where(mine.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0), ROWS)

        def drawn(weights: Any, x: jax.Array, factor: jax.Array, at: jax.Array) -> tuple[jax.Array, ...]:
            columns, of_factor = gathered(x, at), gathered(factor, at)
            wide = of_factor.astype(jnp.float64)
            residual = kernel.within(weights, columns).astype(jnp.float64) - wide @ wide.T
            return residual, columns, of_factor

        def grown(
            weights: Any,
            x: jax.Array,
            factor: jax.Array,
            columns: jax.Array,
            of_factor: jax.Array,
            order: jax.Array,
            lower: jax.Array,
            mask: jax.Array,
            done: jax.Array,
        ) -> tuple[jax.Array, jax.Array]:
            columns, of_factor = columns[order], of_factor[order]
            new = kernel.between(weights, x, columns)

            def less(j: jax.Array, new: jax.Array) -> jax.Array:
                # Only the columns in use count, so the product takes half the time on average.
                left, right = (lax.dynamic_slice_in_dim(v, j * block, block, 1) for v in (factor, of_factor))
                return new - jnp.matmul(left, right.T, precision=lax.Precision.HIGHEST)

            new = lax.fori_loop(0, (done + block - 1) // block, less, new)
            new = jax.scipy.linalg.solve_triangular(lower, new.T, lower=True).T * mask[None].astype(dtype)
            gone = jnp.sum(new.astype(jnp.float64) ** 2, axis=1)
            zero = jnp.zeros_like(done)
            return lax.dynamic_update_slice(factor, new, (zero, done)), gone

        local, all_ = P(ROWS), P()
        self.diagonal = team.shard(kernel.diagonal, (all_, local), local)
        self.drawn = team.shard(drawn, (all_, local, local, all_), (all_, all_, all_))
        self.grown = team.shard(
            grown, (all_, local, local, all_, all_, all_, all_, all_, all_), (local, local), donate=(2,)
        )


_programs = functools.lru_cache(maxsize=16)(_Programs)


def lower_factor(matrix: np.ndarray) -> np.ndarray:
    """Returns the lower Cholesky factor of the kernel of landmarks, in float64.

    Raises:
      InputError: It is singular.
    """
    try:
        return cholesky(np.array(matrix, np.float64, order="F"), clean=True)
    except np.linalg.LinAlgError:
        raise InputError(
            f"Expected {len(matrix):,} landmarks whose kernel is positive definite, got a singular one; lower "
            "`landmarks`, or pass inputs of float64"
        ) from None
