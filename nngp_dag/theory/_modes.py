"""The modes of linearized training: the eigenbasis of the NTK, and the loss along each of its directions."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from nngp_dag import forms
from nngp_dag.errors import InputError, within_memory
from nngp_dag.forms import Described
from nngp_dag.kernels import Kernel
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.theory._algebra import is_traced
from nngp_dag.theory._cholesky import cholesky
from nngp_dag.theory.symmetric import check_kernel, check_symmetric, check_targets, is_number, resolution_floor

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Modes(Described):
    """The modes of linearized training: directions of the error that shrink independently.

    Attributes:
      eigenvalues: Eigenvalues of the NTK in descending order, lambda_1 >= ... >= lambda_N, (N,).
      losses: Contribution of each mode to the mean of the initial loss L = 0.5 ||y - f||^2, (N,).
      learning_rate: Learning rate eta, or None for gradient flow.

    Examples:
      >>> result = Modes(np.array([1.0, 0.5]), np.array([0.5, 1.0]), learning_rate=None)
      >>> result.factors.round(3), result.half_lives.round(3)
      (array([0.135, 0.368]), array([0.347, 0.693]))
    """

    eigenvalues: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    learning_rate: float | None

    @property
    def factors(self) -> Float[np.ndarray, " n"]:
        """Factor of each mode's loss per step, (1 - eta lambda)^2, or per unit of time, exp(-2 lambda), (N,)."""
        if self.learning_rate is None:
            return np.exp(-2 * self.eigenvalues)
        return (1 - self.learning_rate * self.eigenvalues) ** 2

    @property
    def half_lives(self) -> Float[np.ndarray, " n"]:
        """Number of steps, or time, until each mode's loss has halved, (N,); infinite where it does not shrink."""
        with np.errstate(divide="ignore"):
            if self.learning_rate is None:
                rates = 2 * self.eigenvalues
            else:
                # For slow modes 1 - x rounds to 1 and its logarithm to 0; log1p keeps the digits of x. Beyond x = 1 the
                # sign of the factor alternates, and |1 - x| = 1 - (2 - x).
                x = self.learning_rate * self.eigenvalues
                rates = -2 * np.log1p(-np.where(x > 1, 2 - x, x))
            return math.log(2) / np.maximum(rates, 0)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for every mode: `eigenvalue`, `loss`, `factor`, `half_life`.

        Examples:
          >>> Modes(np.array([1.0, 0.5]), np.array([0.5, 1.0]), learning_rate=1.0).to_frame()
             eigenvalue  loss  factor  half_life
          0         1.0   0.5    0.00        0.0
          1         0.5   1.0    0.25        0.5
        """
        import pandas

        columns = {"eigenvalue": self.eigenvalues, "loss": self.losses}
        return pandas.DataFrame(columns | {"factor": self.factors, "half_life": self.half_lives})

    def _facts(self) -> dict[str, str]:
        facts = {name: forms.span(getattr(self, name)) for name in ("eigenvalues", "losses", "half_lives")}
        rate = "None" if self.learning_rate is None else forms.number(self.learning_rate)
        return {"modes": str(len(self.eigenvalues)), **facts, "learning_rate": rate}


@within_memory("`modes`", "take fewer inputs")
def modes(k: Kernel, y: ArrayLike, learning_rate: float | None = None) -> Modes:
    """Splits linearized training into its modes: how fast each shrinks, and its share of the loss.

    A mode is a direction v_i of the error, for the eigenpair (lambda_i, v_i) of the NTK. The mean of its loss starts at

        0.5 sum over columns of ((v_i . y)^2 + v_i^T NNGP v_i),

    and each step multiplies it by (1 - eta lambda_i)^2: Equation (18) of docs/mathematics.md, one mode at a time.

    Args:
      k: The kernel of the training inputs, after the readout, (N, N).
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      learning_rate: Learning rate eta of gradient descent on L = 0.5 ||y - f||^2, summed over samples and columns.
        None stands for gradient flow.

    Returns:
      The eigenvalues, initial losses, factors and half-lives of all N modes.

    Raises:
      InputError: Shapes do not match, a value is not finite, or `learning_rate` is not above 0. NNGP or NTK has a
        negative eigenvalue, or `y` holds class labels.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> result = modes(nd.Kernel(nngp=np.eye(2), ntk=np.diag([0.5, 1.0])), np.array([1.0, 0.0]), learning_rate=1.0)
      >>> result.eigenvalues, result.losses, result.factors, result.half_lives
      (array([1. , 0.5]), array([0.5, 1. ]), array([0.  , 0.25]), array([0. , 0.5]))

    Reference: Lee et al., NeurIPS 2019, Section 2.2; Arora et al., ICML 2019, Theorem 4.1 (projections on
    eigenvectors).
    """
    if learning_rate is not None:
        learning_rate = check_learning_rate(learning_rate)
    basis = eigenbasis(k, y)
    losses = 0.5 * (basis.targets.shape[1] * np.diag(basis.nngp) + np.sum(basis.targets**2, axis=1))
    return Modes(basis.eigenvalues[::-1], losses[::-1], learning_rate)


class Eigenbasis(NamedTuple):
    """NNGP and targets in the eigenbasis of the NTK; eigenvalues ascend."""

    eigenvalues: np.ndarray
    vectors: np.ndarray
    nngp: np.ndarray
    targets: np.ndarray


def eigenbasis(k: Kernel, y: ArrayLike) -> Eigenbasis:
    """Returns the checked NNGP, targets and eigenvalues in the eigenbasis of the NTK, in float64."""
    ntk, nngp, targets = checked_training(k, y)
    # NNGP and NTK do not commute in general, so the rotated NNGP is a full matrix. Mean losses need only its diagonal,
    # the variance in Equation (18) of docs/mathematics.md needs all of it.
    with precision_of(np.dtype(np.float64)):
        eigenvalues, vectors = jnp.linalg.eigh(jnp.asarray(ntk, jnp.float64))
        rotated = np.asarray(vectors.T @ jnp.asarray(nngp, jnp.float64) @ vectors)
    vectors = np.asarray(vectors)
    return Eigenbasis(without_rounding("k.ntk", ntk, np.asarray(eigenvalues)), vectors, rotated, vectors.T @ targets)


def checked_training(k: Kernel, y: ArrayLike, *, traced: bool = False) -> tuple[Any, Any, Any]:
    """Returns the checked NTK, NNGP and targets; with `traced` they may be traced by a transformation of JAX."""
    check_kernel("k", k)
    ntk, nngp = check_symmetric("k.ntk", k.ntk, traced=traced), check_symmetric("k.nngp", k.nngp, traced=traced)
    if nngp.shape != ntk.shape:
        raise InputError(f"Expected `k.nngp` and `k.ntk` of one shape, got {nngp.shape} and {ntk.shape}")
    if isinstance(nngp, np.ndarray):
        check_semi_definite("k.nngp", nngp)
    return ntk, nngp, check_targets("y", y, len(ntk), traced=traced)


def without_rounding(name: str, values: np.ndarray, eigenvalues: np.ndarray) -> np.ndarray:
    """Returns the ascending eigenvalues, with 0 in place of those that only rounding made negative."""
    row_sum = float(np.abs(values).sum(axis=1, dtype=np.float64).max())
    floor = resolution_floor(values, row_sum, eigenvalues[-1])
    if eigenvalues[0] < -floor:
        raise InputError(
            f"Expected `{name}` to be positive semi-definite, got the eigenvalue {eigenvalues[0]:.3g} below "
            f"-{floor:.1e}; pass the kernel of one set of inputs"
        )
    return np.maximum(eigenvalues, 0.0)


def check_semi_definite(name: str, values: np.ndarray) -> None:
    """Raises an `InputError` where an eigenvalue is more negative than rounding can make it."""
    row_sum = float(np.abs(values).sum(axis=1, dtype=np.float64).max())
    # A Cholesky factor exists exactly if the shifted matrix is positive definite. It costs a fraction of the
    # eigenvalues. The largest row sum bounds lambda_max and stands in for it in Equation (12) of docs/mathematics.md.
    shifted = np.array(values, np.float64, order="F")
    np.einsum("ii->i", shifted)[...] += 2 * resolution_floor(values, row_sum, row_sum)
    try:
        if row_sum > 0:
            cholesky(shifted)
    except np.linalg.LinAlgError:
        raise InputError(
            f"Expected `{name}` to be positive semi-definite, got a negative eigenvalue; "
            "pass the kernel of one set of inputs"
        ) from None


def check_learning_rate(learning_rate: Any, *, traced: bool = False) -> Any:
    """Returns `learning_rate` as a float, checked to be finite and above 0; with `traced` it may be traced by JAX."""
    if traced and is_traced(learning_rate):
        if learning_rate.shape:
            raise InputError(
                f"Expected `learning_rate` to be one number, got shape {learning_rate.shape}; `jax.vmap` over several"
            )
        return learning_rate
    if not (is_number("learning_rate", learning_rate) and math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(
            f"Expected `learning_rate` to be finite and above 0, got {learning_rate}; "
            "pass a fraction of `largest_stable_learning_rate`"
        )
    # Scalars of JAX are float32 by default and would turn arrays of float64 into float32.
    return float(learning_rate)
