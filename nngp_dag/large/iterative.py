"""The method "iterative": conjugate gradients on the exact kernel, which is computed anew in every iteration.

Every device holds its share of the inputs. In a product K V the inputs and vectors of the columns pass around a ring of
devices, so that no device holds more than two shares. Entries have the precision of the inputs; vectors are
float64.

The preconditioner is (F F^T + ridge I)^-1 for the partial Cholesky factor F = K_Nm L^-T of some landmarks, by the
identity of Woodbury (Diaz, Epperly, Frangella, Tropp and Webber 2023).
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax
from jax.sharding import PartitionSpec as P

from nngp_dag.errors import InputError, NumericalWarning, warn
from nngp_dag.kernels._kernel import kernel as exact_kernel
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocks import BlockKernel, Entries
from nngp_dag.large.checkpoint import Store
from nngp_dag.large.landmarks import chosen
from nngp_dag.large.mesh import ROWS, Team, padded
from nngp_dag.large.result import Solution
from nngp_dag.large.rows import Sampled
from nngp_dag.large.selection import lower_factor

# Rows and columns of a tile of the kernel.
_TILE = 512
# Random vectors that estimate the effective dimension. They are right-hand sides like the targets, and take little
# time beside the kernel.
_PROBES = 8
# How often a solution whose recomputed residual is too large is improved by another run.
_RESTARTS = 3


class _State(NamedTuple):
    """The state of conjugate gradients, which a checkpoint holds.

    Attributes:
      a: Solutions, (N, C).
      r: Residuals, (N, C).
      p: Directions, (N, C).
      rz: Squared sizes of the residuals in the norm of the preconditioner, (C,).
    """

    a: Any
    r: Any
    p: Any
    rz: Any


class _Programs:
    """The compiled products of every device with the rows."""

    def __init__(self, team: Team, kernel: Entries, dtype: np.dtype, share: int, tile: int) -> None:
        starts = np.arange(0, share, tile)
        # Tiles below the diagonal are those above it, transposed.
        upper = np.stack(np.triu_indices(len(starts)), axis=1) * tile
        every = np.stack(np.meshgrid(starts, starts, indexing="ij"), axis=-1).reshape(-1, 2)
        ring = [(j, (j + 1) % team.size) for j in range(team.size)]

        def at(values: jax.Array, i: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(values, i, tile)

        def added(sums: jax.Array, i: jax.Array, more: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(sums, at(sums, i) + more, i, 0)

        def own(weights: Any, x: jax.Array, v: jax.Array) -> jax.Array:
            pairs = jnp.asarray(upper)

            def pair(k: jax.Array, sums: jax.Array) -> jax.Array:
                i, j = pairs[k, 0], pairs[k, 1]
                left = at(x, i)
                # Inputs have angle 0 with themselves, whatever the rounding of their products.
                found = lax.cond(
                    i == j, lambda: kernel.within(weights, left), lambda: kernel.between(weights, left, at(x, j))
                ).astype(jnp.float64)
                sums = added(sums, i, found @ at(v, j))
                return lax.cond(i == j, lambda: sums, lambda: added(sums, j, found.T @ at(v, i)))

            return lax.fori_loop(0, len(upper), pair, jnp.zeros_like(v))

        def others(weights: Any, x: jax.Array, x2: jax.Array, v2: jax.Array) -> jax.Array:
            pairs = jnp.asarray(every)

            def pair(k: jax.Array, sums: jax.Array) -> jax.Array:
                i, j = pairs[k, 0], pairs[k, 1]
                found = kernel.between(weights, at(x, i), at(x2, j)).astype(jnp.float64)
                return added(sums, i, found @ at(v2, j))

            return lax.fori_loop(0, len(every), pair, jnp.zeros_like(v2))

        def product(weights: Any, ridge: jax.Array, x: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
            v = v * mask

            def turn(_: jax.Array, passed: tuple) -> tuple:
                sums, x2, v2 = passed
                x2, v2 = (lax.ppermute(of, ROWS, ring) for of in (x2, v2))
                return sums + others(weights, x, x2, v2), x2, v2

            sums = own(weights, x, v)
            if team.size > 1:
                sums, *_ = lax.fori_loop(1, team.size, turn, (sums, x, v))
            return (sums + ridge * v) * mask

        def factor(weights: Any, x: jax.Array, mask: jax.Array, z: jax.Array, lower: jax.Array) -> jax.Array:
            found = kernel.between(weights, x, z) * mask.astype(dtype)
            return jax.scipy.linalg.solve_triangular(lower, found.T, lower=True).T

        def gram(f: jax.Array) -> jax.Array:
            wide = f.astype(jnp.float64)
            return lax.psum(wide.T @ wide, ROWS)

        def inverse(ridge: jax.Array, f: jax.Array, lower: jax.Array, r: jax.Array) -> jax.Array:
            wide = f.astype(jnp.float64)
            inner = jax.scipy.linalg.cho_solve((lower, True), lax.psum(wide.T @ r, ROWS))
            return (r - wide @ inner) / ridge

        local, all_ = P(ROWS), P()
        self.product = team.shard(product, (all_, all_, local, local, local), local)
        self.factor = team.shard(factor, (all_, local, local, all_, all_), local)
        self.gram = team.shard(gram, (local,), all_)
        self.inverse = team.shard(inverse, (all_, local, all_, local), local)
        self.sums = jax.jit(lambda u, v: jnp.sum(u * v, axis=0), out_shardings=team.whole)


_programs = functools.lru_cache(maxsize=16)(_Programs)


class _Operator:
    """Products with the kernel of some rows, and with the preconditioner.

    Attributes:
      rows: Number of rows of vectors, with those that fill up the shares of devices.
      entries: Number of kernel entries that were computed.
      dimension: tr(F F^T (F F^T + ridge I)^-1), the effective dimension of the preconditioner's kernel.
    """

    def __init__(self, team: Team, kernel: BlockKernel, x: np.ndarray, landmarks: np.ndarray, ridge: float) -> None:
        self._team, self._count = team, len(x)
        count = self._count
        share = -(-count // team.size)
        tile = min(share, kernel.entries.columns if kernel.bytes_of_block else _TILE)
        share = -(-share // tile) * tile
        self.rows, self.entries, parts = share * team.size, 0, share // tile
        self._of_product = share**2 * team.size * (team.size - 1) + team.size * tile**2 * parts * (parts + 1) // 2
        self._programs = _programs(team, kernel.entries, kernel.dtype, share, tile)
        self._x, self._weights = team.dealt(padded(x, self.rows)), jax.tree.map(team.everywhere, kernel.weights)
        self._mask = team.dealt((np.arange(self.rows) < count).astype(np.float64)[:, None])
        self._ridge = team.everywhere(np.float64(ridge))
        inside: Any = exact_kernel(kernel.network, landmarks, get=kernel.kind, dtype="float64")
        lower = lower_factor(np.asarray(getattr(inside, kernel.kind)))
        marks, triangle = (team.everywhere(v.astype(kernel.dtype)) for v in (landmarks, lower))
        self._f = self._programs.factor(self._weights, self._x, self._mask, marks, triangle)
        whole = team.fetched(self._programs.gram(self._f)) + ridge * np.eye(len(landmarks))
        self._lower = team.everywhere(scipy.linalg.cholesky(whole, lower=True))
        self.entries += self.rows * len(landmarks)
        self.dimension = len(whole) - ridge * float(np.trace(scipy.linalg.inv(whole)))

    def product(self, v: jax.Array) -> jax.Array:
        """Returns (K + ridge I) V."""
        self.entries += self._of_product
        return self._programs.product(self._weights, self._ridge, self._x, v, self._mask)

    def inverse(self, r: jax.Array) -> jax.Array:
        """Returns the preconditioner times R."""
        return self._programs.inverse(self._ridge, self._f, self._lower, r)

    def sums(self, u: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the sums over rows of U V, (C,)."""
        return self._programs.sums(u, v)

    def dealt(self, values: np.ndarray) -> jax.Array:
        """Returns columns (N, C) with zeros in the rows that fill up the shares."""
        missing = self.rows - len(values)
        return self._team.dealt(np.concatenate([values, np.zeros((missing, values.shape[1]))]))

    def fetched(self, values: jax.Array) -> np.ndarray:
        """Returns columns (N, C), or sums over rows, on the host."""
        found = self._team.fetched(values)
        return found[: self._count] if found.ndim > 1 else found


@jax.jit
def _stepped(state: _State, kp: jax.Array, pkp: jax.Array, active: jax.Array) -> _State:
    # A column that has converged stays; its step of 0 / 0 would be NaN.
    step = jnp.where(active, state.rz / jnp.where(active, pkp, 1), 0)[None]
    return state._replace(a=state.a + step * state.p, r=state.r - step * kp)


@jax.jit
def _turned(state: _State, z: jax.Array, rz: jax.Array) -> _State:
    ratio = jnp.where(state.rz > 0, rz / jnp.where(state.rz > 0, state.rz, 1), 0)[None]
    return state._replace(p=z + ratio * state.p, rz=rz)


def solve_by_iterations(
    team: Team,
    kernel: BlockKernel,
    x: np.ndarray,
    y: np.ndarray,
    sampled: Sampled,
    ridge: float,
    count: int,
    tolerance: float,
    most: int,
    seed: int,
    store: Store,
    report: Callable[[str, int, int], None],
) -> Solution:
    """Solves a regression by preconditioned conjugate gradients, with a proven residual.

    Args:
      team: The devices.
      kernel: The kernel.
      x: All inputs, (N, ...).
      y: All targets, (N, C).
      sampled: Candidates for the landmarks of the preconditioner.
      ridge: The ridge.
      count: Number of landmarks.
      tolerance: Largest relative residual of every output.
      most: Largest number of iterations.
      seed: Seed of the landmarks and of random vectors.
      store: The files of the call.
      report: Function of (task, done, total).
    """
    seconds, start = {}, time.monotonic()
    kernel.check(x)
    marks = chosen(team, kernel, sampled, count, seed, store, report)
    outputs = y.shape[1]
    signs = np.random.default_rng([seed, 2]).choice([-1.0, 1.0], (len(x), _PROBES))
    right = np.concatenate([y, signs], axis=1)
    with precision_of(np.dtype(np.float64)):
        operator = _Operator(team, kernel, x, marks.x, ridge)
        seconds["preconditioner"], start = time.monotonic() - start, time.monotonic()
        b = operator.dealt(right)
        sizes = np.linalg.norm(right, axis=0)
        a, iterations, residuals = _descended(team, operator, b, sizes, tolerance, most, store, report)
        # One more product proves the residual, and gives the outputs on the training inputs.
        solution = operator.fetched(a)
        estimates = _dimensions(operator, signs, solution[:, outputs:], ridge)
    seconds["iterations"] = time.monotonic() - start
    largest = float(residuals[:outputs].max())
    if largest > tolerance:
        warn(
            f"the iterations end with the relative residual {largest:.1e}, above {tolerance:.1e}, after {iterations}; "
            "raise `ridge`, `landmarks` or `max_iterations`, or pass inputs of float64",
            NumericalWarning,
        )
    # y - K a = ridge a + r, and r is below the tolerance.
    wrong = ridge * solution[:, :outputs]
    return Solution(
        method="iterative",
        kind=kernel.kind,
        ridge=ridge,
        network=kernel.network,
        rows=len(x),
        basis=x,
        coefficients=solution[:, :outputs],
        residual=largest,
        effective_dimension=float(estimates.mean()),
        effective_dimension_std=float(estimates.std(ddof=1) / math.sqrt(_PROBES)),
        training_rmse=float(np.sqrt(np.mean(wrong**2))),
        iterations=iterations,
        entries=operator.entries + marks.entries,
        seconds=seconds,
    )


def _dimensions(operator: _Operator, signs: np.ndarray, solved: np.ndarray, ridge: float) -> np.ndarray:
    """Returns estimates of tr(K (K + ridge I)^-1), one for every random vector.

    Each is that of the preconditioner's kernel, which is known, plus an estimate of the difference.
    """
    known = operator.fetched(operator.inverse(operator.dealt(signs)))
    return operator.dimension - ridge * np.sum(signs * (solved - known), axis=0)


def _descended(
    team: Team,
    operator: _Operator,
    b: jax.Array,
    sizes: np.ndarray,
    tolerance: float,
    most: int,
    store: Store,
    report: Callable[[str, int, int], None],
) -> tuple[jax.Array, int, np.ndarray]:
    """Returns solutions, the number of iterations, and recomputed relative residuals."""
    scale = np.where(sizes > 0, sizes, 1)

    def begun(a: jax.Array, r: jax.Array) -> _State:
        z = operator.inverse(r)
        return _State(a, r, z, operator.sums(r, z))

    done, restarts = 0, 0
    if (saved := store.load("iteration")) is None:
        state = begun(jnp.zeros_like(b), b)
    else:
        done, restarts = int(saved["done"]), int(saved["restarts"])
        a, r, p = (operator.dealt(saved[name]) for name in ("a", "r", "p"))
        state = _State(a, r, p, team.everywhere(saved["rz"]))
    # The recursion's residual drifts from the true one, so it aims lower.
    aim = tolerance / 4
    while True:
        squares = team.fetched(operator.sums(state.r, state.r))
        active = np.sqrt(squares) / scale > aim
        if not active.any() or done >= most:
            true = b - operator.product(state.a)
            residuals = np.sqrt(team.fetched(operator.sums(true, true))) / scale
            if (residuals <= tolerance).all() or done >= most or restarts == _RESTARTS:
                return state.a, done, residuals
            restarts += 1
            state = begun(state.a, true)
            continue
        kp = operator.product(state.p)
        state = _stepped(state, kp, operator.sums(state.p, kp), team.everywhere(active))
        z = operator.inverse(state.r)
        state, done = _turned(state, z, operator.sums(state.r, z)), done + 1
        report("iterations", done, most)
        if store.several_due(team):
            arrays = {name: operator.fetched(getattr(state, name)) for name in state._fields}
            store.save("iteration", {**arrays, "done": done, "restarts": restarts})


def check_fits(value: float) -> float:
    """Returns a tolerance, checked to be a number between 0 and 1.

    Raises:
      InputError: It is not.
    """
    if not 0 < value < 1:
        raise InputError(f"Expected `tolerance` to be between 0 and 1, got {value:g}; 1e-6 is usual")
    return value
