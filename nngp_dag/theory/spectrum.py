"""Extreme eigenvalues of a kernel matrix, with the limit of what its precision can resolve."""

import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError, NumericalWarning


@dataclass(frozen=True)
class Spectrum:
    """Extreme eigenvalues of a symmetric positive semi-definite matrix.

    Attributes:
      lambda_min: Smallest eigenvalue. Rounding noise, not a result, where `resolved` is False.
      lambda_max: Largest eigenvalue.
      floor: The smallest eigenvalue that the entries' precision can resolve: N eps lambda_max, where eps belongs to
        the dtype of the matrix (the criterion of numerical rank).
    """

    lambda_min: float
    lambda_max: float
    floor: float

    @property
    def resolved(self) -> bool:
        """Whether `lambda_min` lies above the floor."""
        return self.lambda_min > self.floor

    @property
    def condition_number(self) -> float:
        """Ratio lambda_max / lambda_min; infinite where `lambda_min` is not resolved."""
        return self.lambda_max / self.lambda_min if self.resolved else float("inf")


def spectrum(matrix: ArrayLike) -> Spectrum:
    """Returns the extreme eigenvalues of a kernel matrix, computed in float64.

    The matrix is decomposed densely, in O(N^3) time and O(N^2) memory.

    Args:
      matrix: A symmetric kernel, (N, N).

    Returns:
      A `Spectrum`. Where the smallest eigenvalue lies below the resolution floor, which depends on the dtype of
      `matrix`, it says so and a `NumericalWarning` is issued.

    Raises:
      InputError: `matrix` is not a square, symmetric, finite matrix.

    Example:
      >>> import numpy as np
      >>> s = spectrum(np.diag([1.0, 2.0, 4.0]))
      >>> s.lambda_min, s.lambda_max, s.condition_number
      (1.0, 4.0, 4.0)

    Reference: Golub and Van Loan, Matrix Computations, section 5.4 (numerical rank), for the floor.
    """
    values = check_symmetric("matrix", matrix)
    with jax.enable_x64(True):
        eigenvalues = np.asarray(jnp.linalg.eigvalsh(jnp.asarray(values, jnp.float64)))
    lambda_max = float(eigenvalues[-1])
    floor = len(eigenvalues) * eps_of(values) * abs(lambda_max)
    result = Spectrum(float(eigenvalues[0]), lambda_max, floor)
    if not result.resolved:
        warnings.warn(
            f"lambda_min is not resolved: it lies below the floor {floor:.2e} of a {values.dtype} matrix; "
            "compute the kernel in float64, or drop duplicate inputs",
            NumericalWarning,
            stacklevel=2,
        )
    return result


def eps_of(values: np.ndarray) -> float:
    """Returns the machine epsilon of the dtype that the entries came in."""
    return float(np.finfo(values.dtype).eps)


def check_symmetric(name: str, matrix: ArrayLike) -> np.ndarray:
    """Returns `matrix` as a NumPy array of float32 or float64, checked to be square, finite and symmetric."""
    values = np.asarray(matrix)
    if values.dtype.kind in "biu":
        values = values.astype(np.float64)
    if values.dtype not in (np.float32, np.float64):
        raise InputError(
            f"Expected `{name}` in float32 or float64, got {values.dtype}; compute the kernel in one of them"
        )
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.size == 0:
        raise InputError(f"Expected `{name}` to be a square matrix, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; check the kernel's inputs")
    asymmetry, scale = np.abs(values - values.T).max(), np.abs(values).max()
    if asymmetry > 100 * eps_of(values) * max(scale, np.finfo(values.dtype).tiny) * len(values) ** 0.5:
        raise InputError(
            f"Expected `{name}` to be symmetric, got entries that differ from their mirror by {asymmetry:.2e}; "
            "pass the kernel of one set of inputs"
        )
    return values
