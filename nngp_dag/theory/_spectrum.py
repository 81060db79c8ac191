"""Extreme eigenvalues of kernel matrices, and the smallest eigenvalue that their precision can resolve."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from nngp_dag import forms
from nngp_dag.errors import InputError, NumericalWarning, shown, warn, within_memory
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_flag, check_option
from nngp_dag.kernels.device import on_cpu
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.theory._algebra import is_traced
from nngp_dag.theory._cholesky import cholesky
from nngp_dag.theory.symmetric import (
    check_symmetric,
    eps_of,
    in_unit,
    largest_entry,
    resolution_floor,
    row_blocks,
    symmetric_part,
    with_rows_together,
)

if TYPE_CHECKING:
    import pandas

METHODS = ("auto", "dense", "iterative")

# Beyond this size Lanczos iterations on a Cholesky factor are faster on the CPU than a dense decomposition.
_DENSE_ROWS = 512

# On an H200 decompositions took 25 ms for 1,024 rows and 428 ms for 4,096, the largest size measured. Iterations on the
# CPU took 284 and 944 ms.
_DENSE_ROWS_ON_GPU = 4096

# Up to this size computing all eigenvectors costs less than the extra calls that find only two.
_SMALL_ROWS = 32

# Relative accuracy of Lanczos iterations.
_TOLERANCE = 1e-10

# Number of vectors that Lanczos iterations keep between restarts. SciPy's default of 20 takes 2 to 3 times as many
# products where eigenvalues crowd at the wanted end. More vectors take longer where that end is isolated.
_VECTORS = 48

# ARPACK continues from a random vector where it meets an invariant subspace, for example with the identity. SciPy 1.17
# added the argument that seeds this vector.
_SEEDED: dict[str, Any] = {"rng": 0} if "rng" in inspect.signature(scipy.sparse.linalg.eigsh).parameters else {}

# BLAS and LAPACK both come from SciPy. The threads of NumPy's BLAS wait in a busy loop after each call, and would keep
# the cores from SciPy's LAPACK meanwhile.
_blas: Any = scipy.linalg.get_blas_funcs(("gemm", "symv", "trsv"), dtype=np.float64)
_gemm, _symv, _trsv = _blas

# Entries of the matrices that are decomposed in one batch.
_BATCH_ENTRIES = 1 << 25


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("lambda_min", "lambda_max", "floor", "residual_min", "residual_max", "trace", "effective_rank"),
        *("eigenvalues", "simple_min", "simple_max"),
    ],
    meta_fields=[],
)
@dataclass(frozen=True, repr=False)
class Spectrum(Described):
    """Eigenvalues lambda_1 <= ... <= lambda_N of a symmetric positive semi-definite matrix, with their accuracy.

    It is a JAX pytree. Inside transformations of JAX its numbers and properties are arrays.

    All numbers have the unit of the matrix's entries, but for the effective rank, which has none.

    Attributes:
      lambda_min: Smallest eigenvalue. It is rounding noise, not a result, where `resolved` is False.
      lambda_max: Largest eigenvalue.
      floor: Resolution floor, the smallest eigenvalue that can be told from 0: 16 eps max_i sum_j |K_ij| +
        N eps64 lambda_max. The first term bounds the effect of relative errors of 16 eps in the entries, the second
        that of the solver, which for a traced float32 matrix works in float32, with its eps. A third term, N times the
        smallest positive number of the dtype, matters only for known matrices with entries below 1e-31 in float32 or
        1e-292 in float64.
      residual_min: Residual |K v - lambda_min v| of the unit vector v that was found. An eigenvalue of K lies this
        close to `lambda_min`, up to the rounding of K v, which `floor` covers. It is 0 for a traced matrix, for which
        it is not measured.
      residual_max: Residual of `lambda_max`, with the same meaning.
      trace: Sum of all eigenvalues.
      effective_rank: Participation ratio (sum lambda)^2 / sum lambda^2, between 1 and N; 0 for the zero matrix.
      eigenvalues: All eigenvalues in ascending order, (N,), or None unless they were asked for.
      simple_min: For a traced matrix, whether `lambda_min` differs from the next eigenvalue by more than `floor`. Only
        then is its derivative right. None for a known matrix.
      simple_max: The same for `lambda_max`.

    Examples:
      >>> s = spectrum(np.diag([1.0, 4.0]))
      >>> s.resolved, s.condition_number, s.effective_rank
      (True, 4.0, 1.47...)

    Reference: Equation (12) of docs/mathematics.md (resolution floor).
    """

    # The unions with Any: in transformations of JAX these are arrays, traced or with more axes, or None.
    lambda_min: float | Any
    lambda_max: float | Any
    floor: float | Any
    residual_min: float | Any = 0.0
    residual_max: float | Any = 0.0
    trace: float | Any = math.nan
    effective_rank: float | Any = math.nan
    eigenvalues: Float[Array | np.ndarray, " n"] | Any | None = None
    simple_min: bool | Any | None = field(default=None, compare=False, kw_only=True)
    simple_max: bool | Any | None = field(default=None, compare=False, kw_only=True)

    @property
    def resolved(self) -> Any:
        """Whether `lambda_min` lies above the resolution floor by more than its residual."""
        return self.lambda_min - self.residual_min > self.floor

    @property
    def residual(self) -> Any:
        """Larger one of the two residuals: `lambda_min` and `lambda_max` are this close to eigenvalues of K."""
        if isinstance(self.residual_min, jax.Array):
            return jnp.maximum(self.residual_min, self.residual_max)
        return max(self.residual_min, self.residual_max)

    @property
    def condition_number(self) -> Any:
        """Condition number lambda_max / lambda_min; infinite where `lambda_min` is not resolved."""
        if isinstance(self.lambda_min, jax.Array):
            # Without the inner choice, a derivative at lambda_min = 0 would be NaN instead of 0.
            known = self.resolved
            return jnp.where(known, self.lambda_max / jnp.where(known, self.lambda_min, 1), math.inf)
        return self.lambda_max / self.lambda_min if self.resolved else float("inf")

    def to_frame(self) -> "pandas.DataFrame":
        """Returns all eigenvalues, ascending, as a table with the column `eigenvalue`.

        Raises:
          InputError: They were not asked for.

        Examples:
          >>> spectrum(np.diag([1.0, 2.0, 4.0]), eigenvalues=True).to_frame().eigenvalue.tolist()
          [1.0, 2.0, 4.0]
        """
        if self.eigenvalues is None:
            raise InputError(
                "Expected a spectrum with all `eigenvalues`, got one with the extreme ones only; pass "
                "`eigenvalues=True` to `spectrum`"
            )
        import pandas

        return pandas.DataFrame({"eigenvalue": self.eigenvalues})

    def _facts(self) -> dict[str, str]:
        if not forms.is_known(self.lambda_min, 0):
            return forms.shapes(self)
        facts = {
            "lambda_min": forms.eigenvalue(float(self.lambda_min), float(self.floor), bool(self.resolved)),
            "lambda_max": forms.number(self.lambda_max),
            "condition_number": f"{self.condition_number:.4g}",
            "floor": f"{self.floor:.1e}",
        }
        facts |= {} if math.isnan(self.effective_rank) else {"effective_rank": f"{self.effective_rank:.4g}"}
        return facts | ({} if self.eigenvalues is None else {"eigenvalues": forms.array(self.eigenvalues)})


def spectrum(matrix: ArrayLike, *, method: str = "auto", eigenvalues: bool = False) -> Spectrum:
    """Returns the extreme eigenvalues of a kernel matrix, computed in float64.

    The method "dense" reduces the matrix to tridiagonal form. It takes 4/3 N^3 operations and two more matrices of its
    size in float64. On a GPU it runs there instead and takes 9 N^3 operations.

    The method "iterative" computes one Cholesky factor, in N^3 / 3 operations and one matrix of float64 in all. Then
    ARPACK's Lanczos iteration runs on the inverse, whose largest eigenvalue is 1 / lambda_min, and on the matrix
    itself. A matrix that is singular to rounding has no such factor; it is shifted by twice its resolution floor.
    Memory-mapped matrices are read in blocks.

    Inside transformations of JAX the matrix may be traced. The result then has JAX arrays in the dtype of the matrix,
    from a dense decomposition. The derivative of an eigenvalue is right where it is simple, as `simple_min` and
    `simple_max` say for the two ends. Elsewhere eigenvalues have only one-sided derivatives, and JAX returns one that
    depends on the eigenvectors that were found. Second derivatives need all eigenvalues to be simple. The floor is
    constant, without a derivative.

    Args:
      matrix: A symmetric positive semi-definite kernel, (N, N), float32 or float64.
      method: "dense", "iterative" or "auto". "auto" is dense up to 512 rows (4,096 on a GPU) and whenever all
        eigenvalues are wanted.
      eigenvalues: Whether to return the whole spectrum.

    Returns:
      A `Spectrum`. Where the smallest eigenvalue lies below the resolution floor, its `resolved` is False and a
      `NumericalWarning` is issued. The floor depends on the dtype of `matrix`.

    Raises:
      InputError: `matrix` is not square, symmetric and finite, has an eigenvalue below minus the resolution floor, or
        may have one that overflows. The iteration does not converge, or all eigenvalues are asked of "iterative", which
        finds only two.
      OutOfMemoryError: The decomposition does not fit into memory.

    Examples:
      >>> import numpy as np
      >>> s = spectrum(np.diag([1.0, 2.0, 4.0]), eigenvalues=True)
      >>> s.lambda_min, s.lambda_max, s.condition_number, s.trace, s.eigenvalues
      (1.0, 4.0, 4.0, 7.0, array([1., 2., 4.]))

    Reference: Higham, Accuracy and Stability of Numerical Algorithms, section 6.2 (entrywise errors, for the
    resolution floor); Ericsson and Ruhe, Math. Comp. 1980 (Lanczos on the inverse).
    """
    check_option("method", method, METHODS)
    eigenvalues = check_flag("eigenvalues", eigenvalues)
    if eigenvalues and method == "iterative":
        raise InputError(
            "Expected `method` 'dense' or 'auto' where all eigenvalues are wanted, got 'iterative'; leave `method` out"
        )
    if is_traced(matrix):
        return _traced(matrix, method, eigenvalues)
    values = _checked("matrix", matrix)
    with within_memory(f"a decomposition of {len(values):,} rows", "take fewer inputs, or method='iterative'"):
        result = _semi_definite("matrix", _decomposed("matrix", values, method, eigenvalues))
    if not result.resolved:
        warn(_unresolved(result, values.dtype), NumericalWarning)
    return result


def spectra(matrices: ArrayLike | Iterable[ArrayLike], *, eigenvalues: bool = False) -> tuple[Spectrum, ...]:
    """Returns the extreme eigenvalues of many kernels, computed as by `spectrum`.

    On a GPU, kernels of equal shape that are too small for the iteration are decomposed in batches.

    Args:
      matrices: Kernels, (M, N, N), or a list of M square matrices, whose sizes may differ.
      eigenvalues: Whether to return whole spectra.

    Returns:
      One `Spectrum` per matrix. One `NumericalWarning` is issued if any smallest eigenvalue is not resolved.

    Raises:
      InputError: The list is empty, or `spectrum` refuses one of the matrices.

    Examples:
      >>> import numpy as np
      >>> [s.lambda_min for s in spectra(np.stack([np.eye(2), 3 * np.eye(2)]))]
      [1.0, 3.0]
    """
    if not isinstance(matrices, Iterable) or getattr(matrices, "ndim", 1) < 1:
        raise InputError(f"Expected `matrices` to be a list of matrices, got {shown(matrices)}; pass [k.nngp, k.ntk]")
    checked = [_checked(f"matrices[{i}]", matrix) for i, matrix in enumerate(matrices)]  # type: ignore[arg-type]
    if not checked:
        raise InputError("Expected `matrices` to hold at least one kernel, got none")
    if len({values.shape for values in checked}) == 1 and len(checked[0]) <= _dense_rows():
        per_batch = max(1, _BATCH_ENTRIES // checked[0].size)
        batches = (checked[start : start + per_batch] for start in range(0, len(checked), per_batch))
        results = [result for batch in batches for result in _dense(batch, eigenvalues)]
    else:
        results = [_decomposed(f"matrices[{i}]", v, "auto", eigenvalues) for i, v in enumerate(checked)]
    for i, result in enumerate(results):
        _semi_definite(f"matrices[{i}]", result)
    if unresolved := [i for i, result in enumerate(results) if not result.resolved]:
        first, others = unresolved[0], len(unresolved) - 1
        which = f"matrices[{first}]" + (f" and {others} others" if others else "")
        warn(f"{which}: {_unresolved(results[first], checked[first].dtype)}", NumericalWarning)
    return tuple(results)


def _traced(matrix: ArrayLike, method: str, wanted: bool) -> Spectrum:
    """Returns the spectrum of a matrix that a transformation of JAX traces."""
    if method == "iterative":
        raise InputError(
            "Expected `method` 'dense' or 'auto' inside a transformation of JAX, got 'iterative'; leave `method` out"
        )
    values = check_symmetric("matrix", matrix, traced=True)
    values = (values + values.T) / 2
    eigenvalues = jnp.linalg.eigvalsh(values)
    least, largest, zero = eigenvalues[0], eigenvalues[-1], jnp.zeros((), values.dtype)
    row_sum = abs(values).sum(axis=1).max()
    floor = lax.stop_gradient(resolution_floor(values, row_sum, largest) + _solver_floor(values, largest))
    trace, squares = jnp.trace(values), jnp.sum(values**2)
    several = len(values) > 1
    return Spectrum(
        least,
        largest,
        floor,
        zero,
        zero,
        trace,
        jnp.where(squares > 0, trace**2 / jnp.where(squares > 0, squares, 1), 0),
        eigenvalues if wanted else None,
        simple_min=eigenvalues[1] - least > floor if several else jnp.asarray(True),
        simple_max=largest - eigenvalues[-2] > floor if several else jnp.asarray(True),
    )


def _solver_floor(values: jax.Array, lambda_max: jax.Array) -> jax.Array:
    """Returns the error of a solver in float32, which `resolution_floor` leaves out: it assumes one in float64."""
    if values.dtype == np.float64:
        return jnp.zeros_like(lambda_max)
    return len(values) * eps_of(values) * abs(lambda_max)


def _checked(name: str, matrix: ArrayLike) -> np.ndarray:
    values = check_symmetric(name, matrix)
    scale = largest_entry(values)
    if scale > np.finfo(np.float64).max / (2 * len(values)):
        raise InputError(
            f"Expected `{name}` to have eigenvalues in the range of float64, got entries of {scale:.1e}; scale it down"
        )
    return values


def _semi_definite(name: str, result: Spectrum) -> Spectrum:
    if result.lambda_min < -result.floor:
        raise _indefinite(name, f"the eigenvalue {result.lambda_min:.3g}", result.floor)
    return result


def _unresolved(result: Spectrum, dtype: np.dtype) -> str:
    reason = f"its residual {result.residual_min:.2e} reaches" if result.lambda_min > result.floor else "it lies"
    wider = "" if dtype == np.float64 else "compute the kernel with dtype='float64', "
    return (
        f"lambda_min is not resolved: {reason} below the resolution floor {result.floor:.2e} of a {dtype} matrix; "
        f"{wider}drop duplicate inputs, or add a noise of {3 * result.floor:.1g} or more to the diagonal"
    )


def _indefinite(name: str, what: str, floor: float) -> InputError:
    return InputError(
        f"Expected `{name}` to be positive semi-definite, got {what} below -{floor:.1e}; "
        "pass the kernel of one set of inputs"
    )


class _Scaled(NamedTuple):
    """A kernel with a power of 2 as its unit, in which no entry exceeds 1, and three sums in that unit.

    Products and squares then neither overflow nor underflow, and a power of 2 adds no rounding.
    """

    values: np.ndarray
    exponent: int
    """Exponent of the unit 2^exponent."""
    row: float
    """Largest row sum, max_i sum_j |K_ij|."""
    trace: float
    squares: float
    """Sum of the squared entries, sum_ij K_ij^2."""

    @classmethod
    def of(cls, values: np.ndarray) -> tuple["_Scaled", np.ndarray]:
        """Returns the scaled kernel and its matrix in the unit, in float64 and exactly symmetric."""
        exponent = math.frexp(largest_entry(values))[1]
        part = symmetric_part(values, exponent)
        row = squares = 0.0
        for rows in row_blocks(part):
            block = np.abs(part[rows])
            row = max(row, float(block.sum(axis=1).max()))
            squares += float(np.einsum("ij,ij->", block, block))
        return cls(values, exponent, row, float(np.diagonal(part).sum()), squares), part

    def floor(self, lambda_max: float) -> float:
        """Returns the resolution floor in the unit; `lambda_max` is in the unit too."""
        # Entries near the smallest numbers of the dtype have absolute errors, which the relative ones do not cover.
        smallest = math.ldexp(float(np.finfo(self.values.dtype).smallest_subnormal), -self.exponent)
        return resolution_floor(self.values, self.row, lambda_max) + len(self.values) * smallest

    def applied(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the product of the matrix in the unit and vectors, (N, k), by blocks of rows."""
        # (K + K^T) / 2 without forming it: the given matrix may be asymmetric by rounding, and may be memory-mapped.
        result = np.zeros(vectors.shape)
        for rows in row_blocks(self.values):
            columns = in_unit(self.values[rows], self.exponent).T
            result[rows] += _gemm(1.0, columns, vectors, trans_a=1)
            result += _gemm(1.0, columns, vectors[rows])
        return result / 2

    def spectrum(
        self, ends: Sequence[float], residuals: Sequence[float], eigenvalues: np.ndarray | None = None
    ) -> Spectrum:
        """Returns the result in the kernel's own unit."""
        return Spectrum(
            *(self.restored(value) for value in ends),
            floor=self.restored(self.floor(ends[1])),
            residual_min=self.restored(residuals[0]),
            residual_max=self.restored(residuals[1]),
            trace=self.restored(self.trace),
            effective_rank=self.trace**2 / self.squares if self.squares else 0.0,
            eigenvalues=None if eigenvalues is None else np.ldexp(eigenvalues, self.exponent),
        )

    def restored(self, value: float) -> float:
        return math.ldexp(value, self.exponent)


def _decomposed(name: str, values: np.ndarray, method: str, eigenvalues: bool) -> Spectrum:
    if method == "dense" or eigenvalues or len(values) <= (_dense_rows() if method == "auto" else 2):
        (result,) = _dense([values], eigenvalues)
        return result
    return _iterative(name, values)


def _dense_rows() -> int:
    return _DENSE_ROWS if on_cpu() else _DENSE_ROWS_ON_GPU


def _dense(batch: Sequence[np.ndarray], wanted: bool) -> list[Spectrum]:
    if on_cpu():
        return [_by_lapack(values, wanted) for values in batch]
    scaled, parts = zip(*map(_Scaled.of, batch), strict=True)
    with precision_of(np.dtype(np.float64)):
        eigenvalues, residuals = (np.asarray(v) for v in _eigenvalues_and_residuals(jnp.asarray(np.stack(parts))))
    return [
        s.spectrum([float(w[0]), float(w[-1])], r.tolist(), w if wanted else None)
        for s, w, r in zip(scaled, eigenvalues, residuals, strict=True)
    ]


def _by_lapack(values: np.ndarray, wanted: bool) -> Spectrum:
    values = with_rows_together(values)
    kernel, part = _Scaled.of(values)
    try:
        eigenvalues, ends = _tridiagonal(part, wanted) if len(part) > _SMALL_ROWS else _all(part)
    except np.linalg.LinAlgError:
        # A safeguard: no such failure is known. The matrix is built anew, since the reduction has overwritten it.
        eigenvalues, ends = _all(symmetric_part(values, kernel.exponent))
    outer = [float(eigenvalues[0]), float(eigenvalues[-1])]
    residuals = np.linalg.norm(kernel.applied(ends) - outer * ends, axis=0)
    return kernel.spectrum(outer, residuals.tolist(), eigenvalues if wanted else None)


def _all(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    eigenvalues, vectors = np.linalg.eigh(part)
    return eigenvalues, vectors[:, [0, -1]]


def _tridiagonal(part: np.ndarray, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two extreme eigenvalues, or all of them, and the two extreme vectors, by a tridiagonal form.

    The reduction is nearly all of the work. It overwrites `part`: the transpose of an array in C order is one in
    Fortran order, which LAPACK takes without a copy.
    """
    n = len(part)
    routines: Any = scipy.linalg.get_lapack_funcs(("sytrd", "sytrd_lwork", "ormqr"), (part,))
    sytrd, sytrd_lwork, ormqr = routines
    lwork = int(sytrd_lwork(n, lower=1)[0])
    reflectors, diagonal, beside, factors, _ = sytrd(part.T, lower=1, lwork=lwork, overwrite_a=1)
    # SciPy's default driver, bisection, fails where the diagonal is nearly constant and the off-diagonal entries are
    # tiny.
    found = [
        scipy.linalg.eigh_tridiagonal(diagonal, beside, select="i", select_range=(i, i), lapack_driver="stemr")
        for i in (0, n - 1)
    ]
    # The reflectors are applied to two vectors. Forming their product would take another 4/3 N^3 operations.
    ends = np.asfortranarray(np.concatenate([vector for _, vector in found], axis=1))
    ends[1:], *_ = ormqr("L", "N", reflectors[1:, :-1], factors, ends[1:], lwork=lwork)
    every: Any = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside, lapack_driver="sterf") if wanted else None
    return (np.concatenate([value for value, _ in found]) if every is None else every), ends


@jax.jit
def _eigenvalues_and_residuals(stack: jax.Array) -> tuple[jax.Array, jax.Array]:
    eigenvalues, vectors = jnp.linalg.eigh(stack, symmetrize_input=False)
    ends, outer = eigenvalues[:, jnp.array([0, -1])], vectors[:, :, jnp.array([0, -1])]
    applied = jnp.matmul(stack, outer, precision=lax.Precision.HIGHEST)
    return eigenvalues, jnp.linalg.norm(applied - ends[:, None, :] * outer, axis=1)


def _iterative(name: str, values: np.ndarray) -> Spectrum:
    # `part` is the only matrix that this function allocates. Its transpose is in Fortran order, so LAPACK overwrites it
    # with the factor.
    kernel, part = _Scaled.of(values)
    if kernel.row == 0:
        return kernel.spectrum([0.0, 0.0], [0.0, 0.0])
    n = len(values)
    lambda_max, top = _largest(name, lambda v: _symv(1.0, part.T, v, lower=1), n)
    residual_max = float(np.linalg.norm(_symv(1.0, part.T, top, lower=1) - lambda_max * top))
    floor, shift = kernel.floor(lambda_max), 0.0
    factor = _factor(part)
    if factor is None or np.diagonal(factor).min() ** 2 <= floor:
        # The squared least pivot is at least lambda_min, so lambda_min is not resolved here. A shift by twice the
        # resolution floor makes every kernel positive definite whose eigenvalues all lie above -floor.
        shift = 2 * floor
        del part, factor
        part = symmetric_part(values, kernel.exponent)
        np.einsum("ii->i", part)[...] += shift
        factor = _factor(part)
        if factor is None:
            raise _indefinite(name, "an eigenvalue", kernel.restored(shift))

    def solve(vector: np.ndarray) -> np.ndarray:
        return _trsv(factor, _trsv(factor, vector, lower=1), lower=1, trans=1)

    inverse, bottom = _largest(name, solve, n)
    lambda_min = 1 / inverse - shift
    # The iteration leaves errors of 1e-10 along the other eigenvectors, and K multiplies each by its eigenvalue. One
    # more inverse step damps the large ones, so that the residual measures the eigenvalue and not the tolerance.
    bottom = solve(bottom)
    bottom /= np.linalg.norm(bottom)
    residual_min = float(np.linalg.norm(kernel.applied(bottom[:, None])[:, 0] - lambda_min * bottom))
    return kernel.spectrum([lambda_min, lambda_max], [residual_min, residual_max])


def _factor(part: np.ndarray) -> np.ndarray | None:
    """Returns the Cholesky factor in the place of a symmetric matrix; None where there is none."""
    try:
        return cholesky(part.T)
    except np.linalg.LinAlgError:
        return None


def _largest(name: str, apply: Callable[[np.ndarray], np.ndarray], n: int) -> tuple[float, np.ndarray]:
    """Returns the largest eigenvalue of a linear map and its vector, from a fixed starting vector."""
    start = np.random.default_rng(0).normal(size=n)
    options = {"which": "LA", "v0": start, "tol": _TOLERANCE, "ncv": min(n, _VECTORS)} | _SEEDED
    make: Any = scipy.sparse.linalg.LinearOperator  # pyright reads the arguments of its __init__, not of its __new__
    try:
        value, vector = scipy.sparse.linalg.eigsh(make((n, n), matvec=apply, dtype=np.float64), k=1, **options)
    except scipy.sparse.linalg.ArpackError as error:
        raise InputError(
            f"Expected Lanczos iterations on `{name}` to converge, got: {error}; pass method='dense'"
        ) from None
    return float(value[0]), vector[:, 0]
