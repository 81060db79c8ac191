"""The method "dense": the whole kernel and its Cholesky factor, on the host or dealt to devices."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from nngp_dag.errors import within_memory
from nngp_dag.kernels._kernel import kernel as exact_kernel
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocked import BlockedFactor
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.result import Solution
from nngp_dag.large.ring import Ring
from nngp_dag.large.uncertainty import Uncertain, between, exact_posterior
from nngp_dag.theory._algebra import Algebra
from nngp_dag.theory._factor import Condition, checked_cholesky

# The trace of the inverse takes twice the time of the factor, so it is estimated for more rows than these.
_EXACT = 4096
_PROBES = 64


class _Work(NamedTuple):
    """A regression, see `solve_dense`, and what its progress is told to."""

    kernel: BlockKernel
    x: np.ndarray
    right: np.ndarray
    ridge: float
    seed: int
    seconds: "_Seconds"
    report: Callable[[str, int, int], None]

    @property
    def name(self) -> str:
        """The matrix, for messages."""
        return f"the {self.kernel.kind.upper()} of the inputs"


class _Solved(NamedTuple):
    """What a factorization gives.

    Attributes:
      a: Solutions, one column for every right-hand side.
      left: Residuals of the same shape.
      dimension: The effective dimension.
      std: Its standard error.
      entries: Number of kernel entries that were computed.
    """

    a: np.ndarray
    left: np.ndarray
    dimension: float
    std: float
    entries: int


def solve_dense(
    team: Team,
    kernel: BlockKernel,
    x: np.ndarray,
    y: np.ndarray,
    test: np.ndarray | None,
    ridge: float,
    seed: int,
    report: Callable[[str, int, int], None],
) -> Solution:
    """Solves a regression by a Cholesky factor in float64.

    Args:
      team: The devices.
      kernel: The kernel.
      x: All inputs, (N, ...).
      y: All targets, (N, C).
      test: Test inputs whose posterior is asked for, (Nt, ...), or None.
      ridge: The ridge.
      seed: Seed of the random vectors that estimate the effective dimension.
      report: Function of (task, done, total).
    """
    outputs = y.shape[1]
    uncertain, remedy = Uncertain(), "pass `method='iterative'` or 'landmarks', or take fewer test inputs"
    with within_memory(f"the kernel of {len(x):,} inputs and its factor", remedy):
        right = y if test is None else np.concatenate([y, between(kernel, x, test, kernel.kind)], axis=1)
        work = _Work(kernel, x, right, ridge, seed, _Seconds(), report)
        found = _on_devices(work, team) if team.factors else _on_host(work)
        if test is not None:
            uncertain = exact_posterior(team, kernel, x, test, ridge, found.a, right, found.left)
            work.seconds.end("covariance")
    sizes, wrong = np.linalg.norm(right, axis=0), np.linalg.norm(found.left, axis=0)
    residual = np.max(np.divide(wrong, sizes, out=np.zeros_like(wrong), where=sizes > 0))
    coefficients = found.a[:, :outputs]
    report("parts", 3, 3)
    return Solution(
        method="dense",
        kind=kernel.kind,
        ridge=ridge,
        network=kernel.network,
        rows=len(x),
        basis=x,
        coefficients=coefficients,
        residual=float(residual),
        effective_dimension=found.dimension,
        effective_dimension_std=found.std,
        training_rmse=float(np.sqrt(np.mean((ridge * coefficients + found.left[:, :outputs]) ** 2))),
        posterior=uncertain.posterior,
        variance_errors=uncertain.errors,
        entries=found.entries + uncertain.entries,
        seconds=dict(work.seconds),
    )


class _Seconds(dict[str, float]):
    """The times of the parts of the work."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic()

    def end(self, name: str) -> None:
        """Takes the time since the last part."""
        now = time.monotonic()
        self[name], self._start = now - self._start, now


def _on_host(work: _Work) -> _Solved:
    """Solves by LAPACK."""
    (kernel, x, right, ridge, seed, seconds, report), algebra = work, Algebra()
    report("parts", 0, 3)
    found: Any = exact_kernel(kernel.network, x, get=kernel.kind, dtype=str(kernel.dtype))
    matrix = np.asarray(getattr(found, kernel.kind))
    seconds.end("kernel")
    report("parts", 1, 3)
    factor = checked_cholesky("the solution", work.name, matrix, ridge, algebra, argument="ridge")
    seconds.end("factor")
    report("parts", 2, 3)
    a = algebra.solve(factor, right)
    left = right - algebra.applied(matrix, a, ridge)
    dimension, std = _dimension(factor, ridge, algebra, seed)
    seconds.end("solution")
    return _Solved(a, left, dimension, std, len(x) ** 2)


def _on_devices(work: _Work, team: Team) -> _Solved:
    """Solves by a factor that is dealt to the devices. The residual is that of a kernel computed anew."""
    kernel, x, right, ridge, seed, seconds, report = work
    kernel.check(x)
    n = len(x)
    with precision_of(np.dtype(np.float64)):
        report("parts", 0, 3)
        factor = BlockedFactor(team, kernel, x, ridge)
        condition = Condition("the solution", work.name, n, kernel.dtype, factor.norm, ridge, argument="ridge")
        if not factor.exists:
            raise condition.singular()
        condition.check(factor.reciprocal_condition(seed))
        seconds.end("kernel and factor")
        report("parts", 1, 3)
        a = factor.solve(right)
        dimension, std = _estimated(factor.half, n, ridge, seed)
        seconds.end("solution")
        report("parts", 2, 3)
        del factor
        ring = Ring(team, kernel, x, ridge)
        left = right - ring.fetched(ring.product(ring.dealt(a)))
        seconds.end("residual")
    return _Solved(a, left, dimension, std, n * (n + 1) // 2 + ring.entries)


def _dimension(factor: np.ndarray, ridge: float, algebra: Algebra, seed: int) -> tuple[float, float]:
    """Returns tr(K (K + ridge I)^-1), and the standard error of an estimate."""
    n = len(factor)
    if n <= _EXACT:
        return n - ridge * float(algebra.inverse_diagonal(factor).sum()), 0.0

    def half(signs: np.ndarray) -> np.ndarray:
        return scipy.linalg.solve_triangular(factor, signs, lower=True, check_finite=False)

    return _estimated(half, n, ridge, seed)


def _estimated(half: Callable[[np.ndarray], np.ndarray], n: int, ridge: float, seed: int) -> tuple[float, float]:
    """Returns an estimate of tr(K (K + ridge I)^-1) from L^-1 V for random vectors V, and its standard error."""
    signs = np.random.default_rng([seed, 2]).choice([-1.0, 1.0], (n, _PROBES))
    values = n - ridge * np.sum(half(signs) ** 2, axis=0)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(_PROBES))
