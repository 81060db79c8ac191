"""How well a kernel explains its training targets: marginal likelihood and leave-one-out prediction, in closed form."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from nngp_dag import forms
from nngp_dag.errors import within_memory
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_option
from nngp_dag.kernels import Kernel
from nngp_dag.theory._algebra import algebra_for, full_precision, module_of, safe_sqrt
from nngp_dag.theory._factor import factorized, scalar
from nngp_dag.theory.symmetric import check_kernel

if TYPE_CHECKING:
    import pandas

KINDS = ("nngp", "ntk")

# The unions with Any: a transformation of JAX may put values of another shape, or None, in the place of arrays.
_Outputs = Float[Array | np.ndarray, "n c"] | Any
_Variances = Float[Array | np.ndarray, " n"] | Any


@within_memory("`log_marginal_likelihood`", "take fewer inputs")
def log_marginal_likelihood(k: Kernel | ArrayLike, y: ArrayLike, noise: ArrayLike, *, mean: ArrayLike = 0.0) -> Any:
    """Returns the logarithm of the marginal likelihood of the targets, log p(y | x).

    Let A = K + diag(noise), with the NNGP K of the N training inputs, and m the prior mean. For each column of y

        log p(y) = -1/2 (y - m)^T A^-1 (y - m) - 1/2 log det A - N/2 log 2 pi,

    Equation (20) of docs/mathematics.md. Columns are independent, so that their values add up.

    The work is one Cholesky factor in float64, N^3 / 3 operations. The memory is one matrix of float64, 8 N^2 bytes,
    beside the kernel. Memory-mapped kernels, as `nngp_dag.gram` with `out` makes them, are read once.

    Inside transformations of JAX the kernel, targets, noise and mean may be traced. The result is then a JAX array in
    the dtype of the traced kernel, with derivatives of every order. It is NaN where A is not positive definite.

    Args:
      k: The kernel of the training inputs, after the readout, whose NNGP is used, or that matrix, (N, N).
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      noise: Variance of independent noise on the targets, one number or one per input, (N,).
      mean: Prior mean of the outputs at the training inputs: a number, (N,), or (N, C).

    Returns:
      The logarithm of a density, a float.

    Raises:
      InputError: Shapes do not match, a value is not finite, or `noise` is negative. The matrix with noise is singular,
        or `y` holds class labels.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> round(log_marginal_likelihood(np.eye(2), np.array([1.0, -1.0]), noise=1.0), 6)
      -3.031024

    Reference: Rasmussen and Williams 2006, equation 2.30.
    """
    name, matrix = _matrix(k, "nngp")
    algebra = algebra_for(y, noise, mean, kernels=matrix)
    with full_precision():
        factored = factorized("the marginal likelihood", name, matrix, y, noise, mean, algebra)
        factor, residuals, xp = factored.factor, factored.residuals, algebra.xp
        n, columns = residuals.shape
        fit = xp.sum(residuals * algebra.solve(factor, residuals))
        half_log_det = xp.sum(xp.log(xp.diagonal(factor)))
        return scalar(-0.5 * fit - columns * half_log_det - 0.5 * n * columns * math.log(2 * math.pi))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "variance", "errors", "accuracy", "kare"],
    meta_fields=["kind"],
)
@dataclass(frozen=True, repr=False)
class LeaveOneOut(Described):
    """Predictions of each training target from all the others, a JAX pytree.

    Attributes:
      mean: Prediction of each target by a fit to the other N - 1 samples, (N, C).
      variance: Predictive variance of each left-out target, its noise included, (N,); it is the same for every column.
        None for kind "ntk", which predicts no target's distribution.
      errors: Targets minus predictions, (N, C).
      accuracy: For one-hot targets, shifted by a constant or not, the share of rows whose largest prediction is that
        of their class; NaN for other targets.
      kare: Kernel alignment risk estimator, an estimate of the squared error of a new sample, summed over columns.
        None where the noise differs between samples, for which it is not defined.
      kind: "nngp" or "ntk", the kernel that was used.

    Examples:
      >>> result = leave_one_out(np.eye(2), np.array([1.0, -2.0]), noise=1.0)
      >>> result.mean.ravel() + 0.0, result.variance, result.mean_squared_error
      (array([0., 0.]), array([2., 2.]), 2.5)
    """

    mean: _Outputs
    variance: _Variances
    errors: _Outputs
    accuracy: float | Any
    kare: float | Any
    kind: str | None = field(default=None, kw_only=True)

    @property
    def std(self) -> Any:
        """Standard deviation of each left-out target, (N,); None for kind "ntk"."""
        return None if self.variance is None else safe_sqrt(module_of(self.variance), self.variance)

    @property
    def mean_squared_error(self) -> Any:
        """Mean over samples of the squared error, summed over columns, a float."""
        total = module_of(self.errors).sum(self.errors**2, axis=(-2, -1))
        return scalar(total / self.errors.shape[-2]) if np.ndim(total) == 0 else total / self.errors.shape[-2]

    @property
    def log_predictive_density(self) -> Any:
        """Sum over samples and columns of log p(y_i | all other targets), a float; None for kind "ntk"."""
        if self.variance is None:
            return None
        xp, variance = module_of(self.variance), self.variance[..., None]
        each = -0.5 * self.errors**2 / variance - 0.5 * xp.log(2 * math.pi * variance)
        total = xp.sum(each, axis=(-2, -1))
        return scalar(total) if np.ndim(total) == 0 else total

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table in long form, with one row for every sample and each of its outputs.

        Its columns are `input` and `output`, counted from 0, `mean`, `error`, and for kind "nngp" `std`.

        Examples:
          >>> leave_one_out(np.eye(1), np.array([3.0]), noise=0.0).to_frame()
             input  output  mean  error  std
          0      0       0   0.0    3.0  1.0
        """
        import pandas

        inputs, outputs = np.indices(self.mean.shape)
        columns = {"input": inputs, "output": outputs, "mean": np.asarray(self.mean), "error": np.asarray(self.errors)}
        if self.variance is not None:
            columns["std"] = np.broadcast_to(np.asarray(self.std)[:, None], self.mean.shape)
        return pandas.DataFrame({name: values.ravel() for name, values in columns.items()})

    def _facts(self) -> dict[str, str]:
        if not forms.is_known(self.errors, 2):
            return forms.shapes(self)
        facts = {"mean": forms.array(self.mean), "mean_squared_error": forms.number(self.mean_squared_error)}
        facts |= {} if math.isnan(self.accuracy) else {"accuracy": forms.number(float(self.accuracy))}
        if self.variance is not None:
            facts["log_predictive_density"] = forms.number(self.log_predictive_density)
        facts |= {} if self.kare is None else {"kare": forms.number(float(self.kare))}
        return facts | {"kind": repr(self.kind)}


@within_memory("`leave_one_out`", "take fewer inputs")
def leave_one_out(
    k: Kernel | ArrayLike, y: ArrayLike, noise: ArrayLike, *, kind: str = "nngp", mean: ArrayLike = 0.0
) -> LeaveOneOut:
    """Returns the predictions of each training target from all the others, in closed form.

    Let A be the kernel of the N training inputs with the noise on its diagonal: the NNGP or the NTK, by `kind`. Let m
    be the prior mean. The N fits to N - 1 samples follow from the one inverse of A, with a = A^-1 (y - m):

        error of sample i       y_i - mu_i = a_i / (A^-1)_ii
        variance of y_i         s_i^2 = 1 / (A^-1)_ii
        log density             sum over i of -(y_i - mu_i)^2 / (2 s_i^2) - 1/2 log(2 pi s_i^2)
        KARE                    N |a|^2 / (tr A^-1)^2

    These are Equations (21), (21a) and (22) of docs/mathematics.md. For "ntk" the predictions are those of `posterior`:
    means over initializations of networks that are trained without sample i for infinite time.

    A small error does not say that a network will learn well. Scores of this kind are often used to rank
    architectures. On NAS-Bench-201 the leave-one-out error of the exact NTK ranks the trained accuracies of cells with
    a rank correlation of 0.77, and with shuffled labels of 0.765. So it measures the shape of the kernel there, not
    what can be learned from the labels. KARE is built from the same two quantities. Compare either with its value for
    shuffled labels before you draw a conclusion.

    The work is one Cholesky factor in float64 and the diagonal of its inverse, N^3 operations. The memory is one matrix
    of float64, 8 N^2 bytes, beside the kernel. Memory-mapped kernels are read once.

    Inside transformations of JAX the kernel, targets, noise and mean may be traced. The results are then JAX arrays in
    the dtype of the traced kernel, with derivatives of every order but for the accuracy, which is constant in pieces.
    They are NaN where A is not positive definite.

    Args:
      k: The kernel of the training inputs, after the readout, or the matrix of `kind`, (N, N).
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      noise: Variance of independent noise on the targets, one number or one per input, (N,). For "ntk" a ridge, see
        `posterior`.
      kind: "nngp" or "ntk".
      mean: Prior mean of the outputs at the training inputs: a number, (N,), or (N, C).

    Returns:
      A `LeaveOneOut`.

    Raises:
      InputError: Shapes do not match, a value is not finite, `kind` is unknown, or `noise` is negative. The matrix with
        noise is singular, or `y` holds class labels.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> result = leave_one_out(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([1.0, 3.0]), noise=0.0)
      >>> result.mean.ravel(), result.variance  # each is half the other, with the variance 2 - 1/2
      (array([1.5, 0.5]), array([1.5, 1.5]))

    Reference: Rasmussen and Williams 2006, equations 5.10 to 5.12; Jacot et al., NeurIPS 2020 (KARE).
    """
    check_option("kind", kind, KINDS)
    name, matrix = _matrix(k, kind)
    algebra = algebra_for(y, noise, mean, kernels=matrix)
    with full_precision():
        factored = factorized("leave-one-out", name, matrix, y, noise, mean, algebra)
        xp = algebra.xp
        weights = algebra.solve(factored.factor, factored.residuals)
        diagonal = algebra.inverse_diagonal(factored.factor)
        errors = weights / diagonal[:, None]
        predictions = factored.targets - errors
        per_sample = np.ndim(factored.noise) > 0
        kare = None if per_sample else scalar(len(weights) * xp.sum(weights**2) / xp.sum(diagonal) ** 2)
        return LeaveOneOut(
            mean=predictions,
            variance=1 / diagonal if kind == "nngp" else None,
            errors=errors,
            accuracy=_accuracy(xp, factored.targets, predictions),
            kare=kare,
            kind=kind,
        )


def _matrix(k: Kernel | ArrayLike, kind: str) -> tuple[str, Any]:
    """Returns the name and the matrix of one kind."""
    several = isinstance(k, (tuple, list)) and len(k) > 0 and isinstance(k[0], Kernel)
    if isinstance(k, Kernel) or several:
        check_kernel("k", k, (kind,))  # type: ignore[arg-type]
        return f"k.{kind}", getattr(k, kind)
    return "k", k


def _accuracy(xp: Any, targets: Any, predictions: Any) -> Any:
    """Returns the share of rows whose largest prediction is that of their class; NaN unless targets are one-hot."""
    if targets.shape[1] < 2:
        return math.nan
    # A shift of all entries, as by 1 / C for centered targets, leaves a pattern of the least and the largest number.
    low, high = targets.min(), targets.max()
    ones = xp.sum((targets == high).astype(int), axis=1)
    is_one_hot = xp.all((targets == low) | (targets == high)) & xp.all(ones == 1)
    agree = xp.argmax(predictions, axis=1) == xp.argmax(targets, axis=1)
    return scalar(xp.where(is_one_hot, xp.mean(agree.astype(predictions.dtype)), math.nan))
