"""The method "iterative": conjugate gradients on the exact kernel, which is computed anew in every iteration.

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
from jax import lax
from jax.sharding import PartitionSpec as P

from nngp_dag.errors import InputError
from nngp_dag.kernels._kernel import kernel as exact_kernel
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocks import BlockKernel, Entries
from nngp_dag.large.checkpoint import Store
from nngp_dag.large.landmarks import chosen
from nngp_dag.large.mesh import ROWS, Team
from nngp_dag.large.result import Solution
from nngp_dag.large.ring import Ring
from nngp_dag.large.rows import Sampled
from nngp_dag.large.selection import lower_factor
from nngp_dag.large.uncertainty import Uncertain, between, exact_posterior
from nngp_dag.theory._cholesky import cholesky, inverse_diagonal

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


class _Preconditioner:
    """The compiled parts of the preconditioner."""

    def __init__(self, team: Team, kernel: Entries, dtype: np.dtype) -> None:
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
        self.factor = team.shard(factor, (all_, local, local, all_, all_), local)
        self.gram = team.shard(gram, (local,), all_)
        self.inverse = team.shard(inverse, (all_, local, all_, local), local)


_preconditioner = functools.lru_cache(maxsize=16)(_Preconditioner)


class _Operator(Ring):
    """Products with the kernel of some rows, and with the preconditioner.

    Attributes:
      dimension: tr(F F^T (F F^T + ridge I)^-1), the effective dimension of the preconditioner's kernel.
    """

    def __init__(self, team: Team, kernel: BlockKernel, x: np.ndarray, landmarks: np.ndarray, ridge: float) -> None:
        super().__init__(team, kernel, x, ridge)
        self._programs = _preconditioner(team, kernel.entries, kernel.dtype)
        inside: Any = exact_kernel(kernel.network, landmarks, get=kernel.kind, dtype="float64")
        lower = lower_factor(np.asarray(getattr(inside, kernel.kind)))
        marks, triangle = (team.everywhere(v.astype(kernel.dtype)) for v in (landmarks, lower))
        self._f = self._programs.factor(self.weights, self.x, self.mask, marks, triangle)
        whole = team.fetched(self._programs.gram(self._f)) + ridge * np.eye(len(landmarks))
        factor = cholesky(np.asfortranarray(whole), clean=True)
        self._lower = team.everywhere(factor)
        self.entries += self.rows * len(landmarks)
        # A copy: on a CPU the device may share the memory of the factor, which would be overwritten.
        self.dimension = len(whole) - ridge * float(inverse_diagonal(factor.copy(order="F")).sum())

    def inverse(self, r: jax.Array) -> jax.Array:
        """Returns the preconditioner times R."""
        return self._programs.inverse(self.ridge, self._f, self._lower, r)


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
    test: np.ndarray | None,
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
      test: Test inputs whose posterior is asked for, (Nt, ...), or None.
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
    wanted = y if test is None else np.concatenate([y, between(kernel, x, test, kernel.kind)], axis=1)
    right, asked = np.concatenate([wanted, signs], axis=1), wanted.shape[1]
    with precision_of(np.dtype(np.float64)):
        operator = _Operator(team, kernel, x, marks.x, ridge)
        seconds["preconditioner"], start = time.monotonic() - start, time.monotonic()
        b = operator.dealt(right)
        sizes = np.linalg.norm(right, axis=0)
        a, iterations, left = _descended(team, operator, b, sizes, tolerance, most, store, report)
        solution, left = operator.fetched(a), operator.fetched(left)[:, :asked]
        estimates = _dimensions(operator, signs, solution[:, asked:], ridge)
    entries = operator.entries + marks.entries
    seconds["iterations"], start = time.monotonic() - start, time.monotonic()
    residuals = np.linalg.norm(left, axis=0) / np.where(sizes > 0, sizes, 1)[:asked]
    uncertain = Uncertain()
    if test is not None:
        del operator, a, b  # their memory is needed
        uncertain = exact_posterior(team, kernel, x, test, ridge, solution[:, :asked], wanted, left)
        seconds["covariance"] = time.monotonic() - start
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
        residual=float(residuals.max()),
        effective_dimension=float(estimates.mean()),
        effective_dimension_std=float(estimates.std(ddof=1) / math.sqrt(_PROBES)),
        training_rmse=float(np.sqrt(np.mean(wrong**2))),
        posterior=uncertain.posterior,
        variance_errors=uncertain.errors,
        iterations=iterations,
        entries=entries + uncertain.entries,
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
) -> tuple[jax.Array, int, jax.Array]:
    """Returns solutions, the number of iterations, and residuals, which one more product proves."""
    scale = np.where(sizes > 0, sizes, 1)

    def begun(a: jax.Array, r: jax.Array) -> _State:
        z = operator.inverse(r)
        return _State(a, r, z, operator.sums(r, z))

    def save(state: _State, done: int, restarts: int) -> None:
        arrays = {name: operator.fetched(getattr(state, name)) for name in state._fields}
        store.save("iteration", {**arrays, "done": done, "restarts": restarts})

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
                if (residuals > tolerance).any():
                    save(state, done, 0)  # from where a call with more iterations goes on
                return state.a, done, true
            restarts += 1
            state = begun(state.a, true)
            continue
        kp = operator.product(state.p)
        state = _stepped(state, kp, operator.sums(state.p, kp), team.everywhere(active))
        z = operator.inverse(state.r)
        state, done = _turned(state, z, operator.sums(state.r, z)), done + 1
        report("iterations", done, most)
        if store.several_due(team):
            save(state, done, restarts)


def check_fits(value: float) -> float:
    """Returns a tolerance, checked to be a number between 0 and 1.

    Raises:
      InputError: It is not.
    """
    if not 0 < value < 1:
        raise InputError(f"Expected `tolerance` to be between 0 and 1, got {value:g}; 1e-6 is usual")
    return value
