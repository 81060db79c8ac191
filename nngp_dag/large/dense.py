"""The method "dense": the whole kernel and its Cholesky factor, on one device."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from nngp_dag.errors import within_memory
from nngp_dag.kernels._kernel import kernel as exact_kernel
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.result import Solution
from nngp_dag.theory._algebra import Algebra
from nngp_dag.theory._factor import checked_cholesky

# The trace of the inverse takes twice the time of the factor, so it is estimated for more rows than these.
_EXACT = 4096
_PROBES = 64


def solve_dense(
    kernel: BlockKernel,
    x: np.ndarray,
    y: np.ndarray,
    ridge: float,
    seed: int,
    report: Callable[[str, int, int], None],
) -> Solution:
    """Solves a regression by a Cholesky factor in float64.

    Args:
      kernel: The kernel.
      x: All inputs, (N, ...).
      y: All targets, (N, C).
      ridge: The ridge.
      seed: Seed of the random vectors that estimate the effective dimension.
      report: Function of (task, done, total).
    """
    seconds, start, algebra = {}, time.monotonic(), Algebra()
    with within_memory(f"the kernel of {len(x):,} inputs and its factor", "pass `method='iterative'` or 'landmarks'"):
        report("parts", 0, 3)
        found: Any = exact_kernel(kernel.network, x, get=kernel.kind, dtype=str(kernel.dtype))
        matrix = np.asarray(getattr(found, kernel.kind))
        seconds["kernel"], start = time.monotonic() - start, time.monotonic()
        report("parts", 1, 3)
        name = f"the {kernel.kind.upper()} of the inputs"
        factor = checked_cholesky("the solution", name, matrix, ridge, algebra, argument="ridge")
        seconds["factor"], start = time.monotonic() - start, time.monotonic()
        report("parts", 2, 3)
        a = algebra.solve(factor, y)
        left = y - algebra.applied(matrix, a, ridge)
    sizes, wrong = np.linalg.norm(y, axis=0), np.linalg.norm(left, axis=0)
    residual = np.max(np.divide(wrong, sizes, out=np.zeros_like(wrong), where=sizes > 0))
    dimension, std = _dimension(factor, ridge, algebra, seed)
    seconds["solution"] = time.monotonic() - start
    report("parts", 3, 3)
    return Solution(
        method="dense",
        kind=kernel.kind,
        ridge=ridge,
        network=kernel.network,
        rows=len(x),
        basis=x,
        coefficients=a,
        residual=float(residual),
        effective_dimension=dimension,
        effective_dimension_std=std,
        training_rmse=float(np.sqrt(np.mean((ridge * a + left) ** 2))),
        entries=len(x) ** 2,
        seconds=seconds,
    )


def _dimension(factor: np.ndarray, ridge: float, algebra: Algebra, seed: int) -> tuple[float, float]:
    """Returns tr(K (K + ridge I)^-1), and the standard error of an estimate."""
    n = len(factor)
    if n <= _EXACT:
        return n - ridge * float(algebra.inverse_diagonal(factor).sum()), 0.0
    signs = np.random.default_rng([seed, 2]).choice([-1.0, 1.0], (n, _PROBES))
    half = scipy.linalg.solve_triangular(factor, signs, lower=True, check_finite=False)
    values = n - ridge * np.sum(half**2, axis=0)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(_PROBES))
