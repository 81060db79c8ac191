"""The method "landmarks": regression on the kernel functions of m chosen rows, from one pass over all rows.

With C = K_Nm and K_mm the prediction is K_tm a, where a minimizes |y - C a|^2 + ridge a^T K_mm a:

    (C^T C + ridge K_mm) a = C^T y.

With K_mm = L L^T, b = L^T a and W = L^-1 C^T C L^-T, this is (W + ridge I) b = L^-1 C^T y. The condition of that system
is that of the kernel with the ridge, and not its square.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg

from nngp_dag.distributed import rows_here, spread
from nngp_dag.errors import InputError
from nngp_dag.kernels._kernel import kernel as exact_kernel
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.checkpoint import Store
from nngp_dag.large.mesh import Team, padded
from nngp_dag.large.result import Solution, held_out_errors
from nngp_dag.large.rows import Rows, Sampled
from nngp_dag.large.selection import Landmarks, choose_landmarks, lower_factor
from nngp_dag.large.sums import FLUSH, Sums, compiled, directions, products, zeros
from nngp_dag.large.uncertainty import between, covariance_by_landmarks
from nngp_dag.theory import Posterior
from nngp_dag.theory._cholesky import cholesky, inverse_diagonal, outer

Report = Callable[[str, int, int], None]


class _Fitted(NamedTuple):
    """The solution of the system of the landmarks, for the targets and for further right-hand sides."""

    solution: np.ndarray
    more: np.ndarray
    residual: float
    dimension: float
    squared_error: float


def chosen(
    team: Team, kernel: BlockKernel, sampled: Sampled, count: int, seed: int, store: Store, report: Report
) -> Landmarks:
    """Returns the landmarks that an earlier call has chosen, or chooses them."""
    if (found := store.load("landmarks")) is not None:
        rows = found["rows"]
        return Landmarks(rows, sampled.x[rows], float(found["unexplained"]), int(found["entries"]))
    marks = choose_landmarks(team, kernel, sampled.x, count, seed, report)
    store.save("landmarks", {"rows": marks.rows, "unexplained": marks.unexplained, "entries": marks.entries})
    return marks


def solve_by_landmarks(
    team: Team,
    kernel: BlockKernel,
    rows: Rows,
    sampled: Sampled,
    test: np.ndarray | None,
    ridge: float,
    count: int,
    block: int,
    seed: int,
    store: Store,
    report: Report,
) -> Solution:
    """Solves a regression on landmarks.

    Args:
      team: The devices.
      kernel: The kernel.
      rows: All rows.
      sampled: Candidates, and rows that are held out.
      test: Test inputs whose posterior is asked for, (Nt, ...), or None.
      ridge: The ridge.
      count: Number of landmarks.
      block: Rows of a block on one device.
      seed: Seed of the choice.
      store: The files of the call.
      report: Function of (task, done, total).
    """
    seconds, start = {}, time.monotonic()
    marks = chosen(team, kernel, sampled, count, seed, store, report)
    kernel.check(marks.x)
    seconds["choice of landmarks"], start = time.monotonic() - start, time.monotonic()
    # Entries of float32 are enough for the sums, but the factor of the landmarks' kernel divides by small pivots.
    inside = exact_kernel(kernel.network, marks.x, get=kernel.kind, dtype="float64")
    inside = np.asarray(getattr(inside, kernel.kind), np.float64)
    v = directions(inside, kernel.dtype).astype(kernel.dtype)
    total = _summed(team, kernel, rows, sampled, marks, v, block, store, report)
    seconds["pass over the rows"], start = time.monotonic() - start, time.monotonic()
    (w, cross), squares = products(total, v.astype(np.float64)), float(total.yy.sum())
    del total
    if not (np.isfinite(w).all() and np.isfinite(cross).all()):
        raise InputError("Expected sums of kernels that float64 can hold, got infinity; rescale the inputs")
    lower, own = lower_factor(inside), np.trace(inside) / len(inside)
    del inside

    def whitened(matrix: np.ndarray) -> np.ndarray:
        return scipy.linalg.solve_triangular(lower, matrix, lower=True, check_finite=False)

    # Each of these matrices has m^2 numbers, so that none is kept longer than it is needed.
    w = whitened(w)
    w, right, held_out = whitened(w.T), whitened(cross), None
    if len(sampled.held_out):
        found: Any = exact_kernel(kernel.network, sampled.x_held_out, marks.x, get=kernel.kind, dtype=str(kernel.dtype))
        outside = whitened(np.asarray(getattr(found, kernel.kind), np.float64).T)
        # The result itself sees all rows; only its error is that of a solution without these.
        outputs = outside.T @ _fitted(w, right, squares, ridge, right[:, :0]).solution
        held_out = held_out_errors(outputs, sampled.y_held_out)
        w += outer(outside)
        right += outside @ sampled.y_held_out
        squares += float(np.sum(sampled.y_held_out**2))
    of_test = right[:, :0] if test is None else whitened(between(kernel, marks.x, test, kernel.kind, "float64"))
    fitted, posterior, errors = _fitted(w, right, squares, ridge, of_test), None, None
    if test is not None:
        covariance, left = covariance_by_landmarks(kernel, test, of_test, ridge * fitted.more)
        # What landmarks leave unexplained counts as known in training rows, and as unknown in test inputs.
        errors = np.maximum(marks.unexplained * own, left)
        posterior = Posterior(of_test.T @ fitted.solution, covariance, kind=kernel.kind)
    coefficients = scipy.linalg.solve_triangular(lower.T, fitted.solution, lower=False, check_finite=False)
    seconds["solution"] = time.monotonic() - start
    count, share = len(marks.rows), "" if len(sampled.x) == sampled.total else f" among {len(sampled.x):,} rows"
    return Solution(
        method="landmarks",
        kind=kernel.kind,
        ridge=ridge,
        network=kernel.network,
        rows=sampled.total,
        basis=marks.x,
        coefficients=coefficients,
        residual=fitted.residual,
        effective_dimension=fitted.dimension,
        effective_dimension_std=0.0,
        training_rmse=float(np.sqrt(max(0, fitted.squared_error) / (sampled.total * rows.columns))),
        posterior=posterior,
        variance_errors=errors,
        approximated=f"predictions are combinations of the kernels of {count:,} landmarks, chosen{share}, which leave "
        f"{marks.unexplained:.2g} of the trace of the kernel unexplained",
        unexplained=marks.unexplained,
        held_out=held_out,
        entries=marks.entries + sampled.total * count,
        seconds=seconds,
    )


def _summed(
    team: Team,
    kernel: BlockKernel,
    rows: Rows,
    sampled: Sampled,
    marks: Landmarks,
    v: np.ndarray,
    block: int,
    store: Store,
    report: Report,
) -> Sums:
    """Returns the sums over all rows but those held out; continues where a checkpoint ends."""
    # Each process reads the rows of its own devices.
    whole = block * team.size
    here = rows_here(team.mesh, whole)
    with precision_of(np.dtype(np.float64)):
        steps = compiled(team, kernel.entries, kernel.dtype, len(marks.x), v.shape[1])
        begun, done = zeros(len(marks.x), v.shape[1], rows.columns), 0
        if (saved := store.load("sums")) is not None:
            begun, done = Sums(*(saved[name] for name in Sums._fields)), int(saved["done"])
        total, own = steps.start(begun)
        weights, landmarks, vectors = (
            jax.tree.map(team.everywhere, of) for of in (kernel.weights, marks.x.astype(kernel.dtype), v)
        )
        out, waiting = np.zeros(sampled.total, bool), 0
        out[sampled.held_out] = True
        report("rows", done, sampled.total)
        for first, x, y in rows.blocks(whole, done, here):
            given, targets = np.zeros((0, *rows.shape), rows.dtype), np.zeros((0, rows.columns))
            at, local = first + here.start, here.stop - here.start
            if len(x):
                given, targets = rows.checked(at, x, y)
                sampled.check_again(at, given, targets)
                kernel.check(given)
            mask = np.zeros(local)
            mask[: len(given)] = ~out[at : at + len(given)]
            dealt = [spread(v, team.mesh, whole) for v in (padded(given, local), padded(targets, local), mask)]
            # The devices work while the next block is read, but not further ahead than that.
            jax.block_until_ready(own.rows)
            own = steps.add(own, weights, *dealt, landmarks, vectors)
            waiting, done = waiting + 1, min(first + whole, sampled.total)
            if waiting == FLUSH:
                total, own, waiting = *steps.flush(total, own), 0
                if store.due():
                    store.save("sums", {**_fetched(team, total)._asdict(), "done": done})
            report("rows", done, sampled.total)
        if waiting:
            total, own = steps.flush(total, own)
        found = _fetched(team, total)
    wanted = sampled.total - len(sampled.held_out)
    if int(found.rows) != wanted:
        raise InputError(f"Expected {wanted:,} rows in the pass over the data, got {int(found.rows):,}")
    if saved is None or waiting:
        store.save("sums", {**found._asdict(), "done": done})
    return found


def _fetched(team: Team, total: Sums) -> Sums:
    return jax.tree.map(team.fetched, total)


def _fitted(w: np.ndarray, right: np.ndarray, squares: float, ridge: float, more: np.ndarray) -> _Fitted:
    """Solves (W + ridge I) b = c, and says how well.

    Raises:
      InputError: The system is not positive definite, since W has rounding errors.
    """
    system = w + w.T
    system /= 2
    system[np.diag_indices_from(system)] += ridge
    try:
        factor = cholesky(np.array(system, order="F"))
    except np.linalg.LinAlgError:
        raise InputError(
            f"Expected a `ridge` above the rounding of the sums over rows, got {ridge:g}; raise it, lower `landmarks`, "
            "or pass inputs of float64"
        ) from None
    b = scipy.linalg.cho_solve((factor, True), right, check_finite=False)
    solved = scipy.linalg.cho_solve((factor, True), more, check_finite=False)
    applied = system @ b
    sizes, wrong = np.linalg.norm(right, axis=0), np.linalg.norm(applied - right, axis=0)
    residual = float(np.max(np.divide(wrong, sizes, out=np.zeros_like(wrong), where=sizes > 0)))
    dimension = len(w) - ridge * float(inverse_diagonal(factor).sum())
    # |y - C a|^2 = |y|^2 - 2 b^T c + b^T W b.
    squared_error = squares - 2 * np.sum(b * right) + np.sum(b * applied) - ridge * np.sum(b**2)
    return _Fitted(b, solved, residual, dimension, float(squared_error))
