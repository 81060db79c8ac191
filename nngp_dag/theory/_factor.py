"""The Cholesky factor of a kernel with noise, which posteriors, evidence and leave-one-out share."""

from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError, NumericalWarning, warn
from nngp_dag.theory._algebra import Algebra
from nngp_dag.theory.symmetric import check_noise, check_outputs, check_symmetric, check_targets, row_blocks


class Factored(NamedTuple):
    """A kernel with noise, factorized, and the targets minus their prior mean."""

    factor: Any
    """Lower Cholesky factor, (N, N); entries above the diagonal are arbitrary."""
    residuals: Any
    """Targets minus the prior mean, (N, C)."""
    targets: Any
    """Targets, (N, C)."""
    noise: Any
    """Noise, a number or (N,)."""


def factorized(
    what: str, name: str, matrix: ArrayLike, y: ArrayLike, noise: ArrayLike, mean: ArrayLike, algebra: Algebra
) -> Factored:
    """Returns the Cholesky factor of a kernel with noise, and the targets; all arguments are checked.

    Args:
      what: Name of the result, for the warning.
      name: Name of the matrix, for messages.
      matrix: The kernel of the training inputs, (N, N).
      y: Targets, (N,) or (N, C).
      noise: Noise on the diagonal, a number or (N,).
      mean: Prior mean of the targets, a number, (N,) or (N, C).
      algebra: The algebra for these arguments.

    Raises:
      InputError: An argument is refused, or the matrix with noise is singular and known.
    """
    values = check_symmetric(name, matrix, traced=algebra.traced)
    n = len(values)
    noise = check_noise(noise, n, traced=algebra.traced)
    targets = algebra.array(check_targets("y", y, n, traced=algebra.traced))
    prior = algebra.array(check_outputs("mean", mean, n, targets.shape[1], traced=algebra.traced))
    residuals = targets - algebra.xp.broadcast_to(prior, targets.shape)
    if algebra.traced:
        return Factored(algebra.cholesky(algebra.with_noise(values, noise)), residuals, targets, noise)
    return Factored(checked_cholesky(what, f"`{name}`", values, noise, algebra), residuals, targets, noise)


def checked_cholesky(
    what: str,
    name: str,
    values: np.ndarray,
    noise: Any,
    algebra: Algebra,
    duplicates: str = "duplicate inputs",
    argument: str = "noise",
) -> np.ndarray:
    """Returns the lower Cholesky factor of a known kernel with noise, in float64, after a check of its condition.

    Args:
      what: Name of the result, for the warning.
      name: Name of the matrix, for messages.
      values: The kernel, (N, N).
      noise: Noise on the diagonal, a number or (N,).
      algebra: The algebra for known values.
      duplicates: Name of inputs that occur twice, for the remedy.
      argument: Name of the argument for the noise, for messages.

    Returns:
      The factor, (N, N); entries above the diagonal are arbitrary. A `NumericalWarning` is issued where the condition
      number is too large for the precision of the entries.

    Raises:
      InputError: The matrix with noise is singular. The message names a noise that is enough.
    """
    n, with_noise = len(values), algebra.with_noise(values, noise)
    # The matrix is in Fortran order, and symmetric: the sums of its columns are those of its rows.
    norm = max(float(np.abs(with_noise.T[rows]).sum(axis=1).max()) for rows in row_blocks(with_noise))
    condition = Condition(what, name, n, values.dtype, norm, noise, duplicates, argument)
    try:
        factor = algebra.cholesky(with_noise)
    except np.linalg.LinAlgError:
        raise condition.singular() from None
    (pocon,) = scipy.linalg.get_lapack_funcs(("pocon",), (factor,))
    condition.check(pocon(factor, norm, uplo="L")[0])
    return factor


class Condition(NamedTuple):
    """What says whether a kernel with noise can be factorized, and how well it is resolved.

    Attributes:
      what: Name of the result, for the warning.
      name: Name of the matrix, for messages.
      n: Number of rows.
      dtype: Precision of the entries. The factor is in float64, but they carry the rounding error of this one.
      norm: Largest sum of the absolute entries of a row, with the noise.
      noise: Noise on the diagonal, a number or (N,).
      duplicates: Name of inputs that occur twice, for the remedy.
      argument: Name of the argument for the noise, for messages.
    """

    what: str
    name: str
    n: int
    dtype: np.dtype
    norm: float
    noise: Any
    duplicates: str = "duplicate inputs"
    argument: str = "noise"

    @property
    def _eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    @property
    def _stated(self) -> str:
        noise = self.noise
        return f"{noise:.3g}" if np.ndim(noise) == 0 else f"{np.min(noise):.3g} to {np.max(noise):.3g}"

    @property
    def _remedy(self) -> str:
        # LAPACK estimates the condition number in the 1-norm. There the inverse may be a few times as large as in the
        # 2-norm, hence the factor 4.
        enough = 4 * self.n * self._eps * self.norm
        wider = "" if self.dtype == np.float64 else ", compute the kernels with dtype='float64'"
        return f"pass a `{self.argument}` of about {enough:.1g} or more{wider}, or drop {self.duplicates}"

    def singular(self) -> InputError:
        """Returns the error that the matrix is not positive definite. It names a noise that is enough."""
        return InputError(
            f"Expected {self.name} with `{self.argument}` {self._stated} on its diagonal to be positive definite, got "
            f"a singular {self.n} x {self.n} matrix; {self._remedy}"
        )

    def check(self, reciprocal: float) -> None:
        """Warns where the reciprocal condition number is too small for the precision of the entries."""
        if reciprocal < self.n * self._eps:
            warn(
                f"{self.what} is not resolved: {self.name} with {self.argument} {self._stated} has reciprocal "
                f"condition number {reciprocal:.1e}, below {self.n} eps of {self.dtype}; {self._remedy}",
                NumericalWarning,
            )


def scalar(value: Any) -> Any:
    """Returns a number as a float of Python, unless it is traced."""
    return value if isinstance(value, jax.Array) else float(value)
