"""Predictions at infinite width: Bayesian posteriors and infinitely trained ensembles."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
from jaxtyping import ArrayLike, Float

from nngp_dag import forms
from nngp_dag.errors import InputError, NumericalWarning, shown, warn, within_memory
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_option, check_whole
from nngp_dag.kernels import Kernel
from nngp_dag.theory.symmetric import (
    check_cross,
    check_same_network,
    check_symmetric,
    check_targets,
    eps_of,
    is_number,
)

if TYPE_CHECKING:
    import pandas

KINDS = ("nngp", "ntk")


@dataclass(frozen=True, repr=False)
class Posterior(Described):
    """The Gaussian distribution of the outputs on test inputs.

    Attributes:
      mean: Mean of the outputs, one row per test input and one column per output, (Nt, C).
      covariance: Covariance between test inputs, (Nt, Nt). It is the same for every column; columns are independent.
      kind: "nngp" or "ntk", the argument of `posterior` that made it; None if it is not known.

    Examples:
      >>> result = Posterior(mean=np.zeros((2, 1)), covariance=np.diag([4.0, -1e-17]))
      >>> result.variance, result.std
      (array([4., 0.]), array([2., 0.]))
    """

    mean: Float[np.ndarray, "nt c"]
    covariance: Float[np.ndarray, "nt nt"]
    kind: str | None = field(default=None, compare=False, kw_only=True)

    @property
    def variance(self) -> Float[np.ndarray, " nt"]:
        """Diagonal of the covariance, (Nt,), with 0 in place of entries that only rounding made negative."""
        return np.maximum(np.diag(self.covariance), 0.0)

    @property
    def std(self) -> Float[np.ndarray, " nt"]:
        """Standard deviation of the outputs, the square root of the variance, (Nt,)."""
        return np.sqrt(self.variance)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table in long form, with one row for every test input and each of its outputs.

        Its columns are `input` and `output`, counted from 0, `mean` and `std`. Covariances are left out.

        Examples:
          >>> Posterior(mean=np.array([[1.0, 2.0]]), covariance=np.array([[4.0]])).to_frame()
             input  output  mean  std
          0      0       0   1.0  2.0
          1      0       1   2.0  2.0
        """
        import pandas

        inputs, outputs = np.indices(self.mean.shape)
        std = np.broadcast_to(self.std[:, None], self.mean.shape)
        columns = {"input": inputs, "output": outputs, "mean": self.mean, "std": std}
        return pandas.DataFrame({name: values.ravel() for name, values in columns.items()})

    def _facts(self) -> dict[str, str]:
        facts = {"mean": forms.array(self.mean), "std": forms.span(self.std)}
        return facts | ({} if self.kind is None else {"kind": repr(self.kind)})


@within_memory("`posterior`", "take fewer inputs")
def posterior(
    k_train_train: Kernel,
    k_test_train: Kernel,
    k_test_test: Kernel,
    y: ArrayLike,
    *,
    kind: str = "nngp",
    noise: float = 0.0,
) -> Posterior:
    """Returns mean and covariance of the outputs on test inputs, given the training targets.

    Let K be the NNGP, Theta the NTK, x the training inputs and t the test inputs. The weights of the targets are

        "nngp"   W = K_tx (K + noise I)^-1           the Bayesian posterior of f_t, all layers drawn from the prior
        "ntk"    W = Theta_tx (Theta + noise I)^-1   networks trained for infinite time on 0.5 ||y - f||^2

    The mean is W y in both cases: the posterior mean, or the mean over initializations. The covariance is

        "nngp"   K_tt - W K_xt
        "ntk"    K_tt + W K W^T - W K_xt - K_tx W^T   of the trained outputs f_t(0) + W (y - f(0))

    This is Equation (19) of docs/mathematics.md. The covariance is that of noise-free outputs; an observation adds the
    noise to it. All is computed in float64 with a Cholesky factor, in O(N^3 + Nt N (N + Nt)) time.

    Args:
      k_train_train: The kernel of the training inputs, after the readout, (N, N).
      k_test_train: The kernel of test against training inputs, (Nt, N).
      k_test_test: The kernel of the test inputs, (Nt, Nt); only its NNGP is used.
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      kind: "nngp" or "ntk".
      noise: For "nngp", the variance of independent noise on the targets. For "ntk", a ridge: training minimizes
        0.5 ||y - f||^2 + 0.5 noise ||theta - theta(0)||^2 over weights theta of the kernel's parameterization. The
        covariance is then that over initializations alone, without noise on the targets.

    Returns:
      A `Posterior`. A `NumericalWarning` is issued where the condition number is too large for the precision of the
      entries.

    Raises:
      InputError: Shapes do not match, a value is not finite, `kind` is unknown, or `noise` is negative. The matrix with
        noise is singular, the three kernels belong to different inputs or networks, or `y` holds class labels.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> train, test = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0]])
      >>> dag = nd.Dag.from_code("2")
      >>> kernels = nd.kernel(dag, train), nd.kernel(dag, test, train), nd.kernel(dag, test)
      >>> result = posterior(*kernels, np.array([3.0, 4.0]))
      >>> result.mean.round(6), result.std.round(6)  # half the input, half the output: ReLU without biases
      (array([[2.]]), array([0.]))

    Reference: Rasmussen and Williams 2006, equations 2.23 and 2.24 ("nngp"); Lee et al., NeurIPS 2019, Corollary 1 at
    infinite time ("ntk").
    """
    check_option("kind", kind, KINDS)
    check_same_network(("nngp", kind), k_train_train=k_train_train, k_test_train=k_test_train, k_test_test=k_test_test)
    factor, targets = _factorized(k_train_train, y, kind, noise)
    prior = check_symmetric("k_test_test.nngp", k_test_test.nngp)
    nngp = check_symmetric("k_train_train.nngp", k_train_train.nngp)
    shape = (len(prior), len(targets))
    if nngp.shape != (shape[1], shape[1]):
        raise InputError(
            f"Expected `k_train_train.nngp` to have shape {(shape[1], shape[1])}, got {nngp.shape}; "
            "pass NNGP and NTK of the same inputs"
        )
    cross = check_cross(f"k_test_train.{kind}", getattr(k_test_train, kind), shape)
    shared = check_cross("k_test_train.nngp", k_test_train.nngp, shape)
    # One factor serves mean and covariance. Solving with it is more accurate than multiplying by an explicit inverse.
    weights = scipy.linalg.cho_solve(factor, cross.T).T
    # One formula serves both kinds. For "nngp" it equals K_tt - W K_xt, but errors of W enter only squared (the Joseph
    # form of the Kalman filter's update).
    middle = nngp.astype(np.float64)
    # For "ntk" the ridge changes W alone: the outputs f(0) before training, which middle describes, carry no noise.
    if kind == "nngp":
        middle[np.diag_indices_from(middle)] += noise
    half = weights @ (0.5 * middle @ weights.T - shared.T)
    covariance = prior + (half + half.T)  # in this order, exactly symmetric
    # A variance may fall below 0 by rounding, in proportion to the terms that cancel; beyond that the kernels disagree.
    sizes = np.abs(np.diag(prior)) + np.sum((np.abs(weights) @ np.abs(middle)) * np.abs(weights), axis=1)
    rounding = 100 * max(eps_of(prior), eps_of(nngp)) * sizes
    if (excess := np.diag(covariance) + rounding).min() < 0:
        at = int(np.argmin(excess))
        raise InputError(
            f"Expected the three kernels to be those of the same inputs, got the negative variance "
            f"{covariance[at, at]:.3g} of test input {at}; compute them with the same options"
        )
    return Posterior(cross @ scipy.linalg.cho_solve(factor, targets), covariance, kind=kind)


@within_memory("`kernel_regression_accuracy`", "take fewer inputs")
def kernel_regression_accuracy(
    k_train_train: Kernel,
    k_test_train: Kernel,
    labels: ArrayLike,
    test_labels: ArrayLike,
    num_classes: int,
    *,
    kind: str = "nngp",
    noise: float = 0.0,
) -> float:
    """Returns the accuracy of classification by regression on centered one-hot targets, one_hot - 1 / C.

    Args:
      k_train_train: The kernel of the training inputs, after the readout, (N, N).
      k_test_train: The kernel of test against training inputs, (Nt, N).
      labels: Classes of the training inputs, whole numbers from 0 to C - 1, (N,).
      test_labels: Classes of the test inputs, whole numbers from 0 to C - 1, (Nt,).
      num_classes: Number of classes C, at least 2.
      kind: "nngp" or "ntk", see `posterior`.
      noise: Variance of the noise, or ridge, see `posterior`.

    Returns:
      The share of test inputs whose largest output is that of their class, between 0 and 1.

    Raises:
      InputError: A label is out of range, or `posterior` refuses the kernels or the options.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x, dag = np.random.default_rng(0).normal(size=(60, 3)), nd.Dag.from_code("2")
      >>> labels = (x[:, 0] > 0).astype(int)
      >>> kernels = nd.kernel(dag, x[:40]), nd.kernel(dag, x[40:], x[:40])
      >>> kernel_regression_accuracy(*kernels, labels[:40], labels[40:], num_classes=2, kind="ntk", noise=1e-2)
      0.95

    Reference: Lee et al., ICLR 2018, Section 3 (regression on one-hot targets).
    """
    num_classes = check_whole("num_classes", num_classes, 1)
    if num_classes < 2:
        raise InputError(f"Expected `num_classes` to be at least 2, got {num_classes}; pass the number of classes")
    check_option("kind", kind, KINDS)
    check_same_network((kind,), k_train_train=k_train_train, k_test_train=k_test_train)
    train, test = _labels("labels", labels, num_classes), _labels("test_labels", test_labels, num_classes)
    if len(train) != (rows := len(getattr(k_train_train, kind))):
        raise InputError(f"Expected `labels` of the {rows} training inputs, got {len(train)}; pass one per input")
    # The prior has mean 0. Centered targets keep it neutral: an output of 0 prefers no class.
    factor, targets = _factorized(k_train_train, np.eye(num_classes)[train] - 1 / num_classes, kind, noise)
    cross = check_cross(f"k_test_train.{kind}", getattr(k_test_train, kind), (len(test), len(train)))
    return classification_accuracy(cross @ scipy.linalg.cho_solve(factor, targets), test)


def classification_accuracy(mean: ArrayLike, labels: ArrayLike) -> float:
    """Returns the share of rows whose largest output is that of their label.

    Where several outputs of a row are largest, the first of them counts.

    Args:
      mean: Outputs, one column per class, (N, C) with C at least 2.
      labels: Classes, whole numbers from 0 to C - 1, (N,).

    Returns:
      The accuracy, between 0 and 1.

    Raises:
      InputError: Shapes do not match, outputs are not finite, or a label is out of range.

    Examples:
      >>> import numpy as np
      >>> classification_accuracy(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1]))
      0.666...
    """
    outputs = np.asarray(mean, np.float64)
    if outputs.ndim != 2 or outputs.shape[1] < 2 or len(outputs) == 0:
        raise InputError(
            f"Expected `mean` to have shape (N, C) with C at least 2, got {outputs.shape}; pass one column per class"
        )
    if not np.isfinite(outputs).all():
        raise InputError("Expected `mean` to be finite, got NaN or infinity; check the kernels")
    classes = _labels("labels", labels, outputs.shape[1])
    if len(classes) != len(outputs):
        raise InputError(f"Expected `labels` to hold {len(outputs)} labels, got {len(classes)}; pass one per row")
    return float(np.mean(outputs.argmax(axis=1) == classes))


def _factorized(k: Kernel, y: ArrayLike, kind: str, noise: float) -> tuple[tuple[np.ndarray, bool], np.ndarray]:
    """Returns the Cholesky factor of the kernel with noise, and the checked targets."""
    if not (is_number("noise", noise) and math.isfinite(noise) and noise >= 0):
        raise InputError(f"Expected `noise` to be finite and at least 0, got {shown(noise)}; pass a variance")
    noise = float(noise)
    name = f"k_train_train.{kind}"
    values = check_symmetric(name, getattr(k, kind))
    targets = check_targets("y", y, len(values))
    matrix = values.astype(np.float64)
    matrix[np.diag_indices_from(matrix)] += noise
    norm = float(np.linalg.norm(matrix, 1))
    # The factor is in float64, but the entries carry the rounding error of the dtype that they were given in.
    eps = eps_of(values)
    # LAPACK estimates the condition number in the 1-norm. There the inverse may be a few times as large as in the
    # 2-norm, hence the factor 4.
    enough = 4 * len(values) * eps * norm
    wider = "" if values.dtype == np.float64 else ", compute the kernels with dtype='float64'"
    remedy = f"pass a `noise` of about {enough:.1g} or more{wider}, or drop duplicate inputs"
    try:
        factor, _ = scipy.linalg.cho_factor(matrix, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError:
        raise InputError(
            f"Expected `{name}` with `noise` {noise:.3g} on its diagonal to be positive definite, got a singular "
            f"{len(values)} x {len(values)} matrix; {remedy}"
        ) from None
    (pocon,) = scipy.linalg.get_lapack_funcs(("pocon",), (factor,))
    reciprocal, _ = pocon(factor, norm, uplo="L")
    if reciprocal < len(values) * eps:
        warn(
            f"the posterior is not resolved: `{name}` with noise {noise:.3g} has reciprocal condition number "
            f"{reciprocal:.1e}, below {len(values)} eps of {values.dtype}; {remedy}",
            NumericalWarning,
        )
    # The flag that `cho_factor` returned may be a NumPy number; `cho_solve` is typed for a bool.
    return (factor, True), targets


def _labels(name: str, labels: ArrayLike, num_classes: int) -> np.ndarray:
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0:
        raise InputError(
            f"Expected `{name}` to be whole numbers of shape (N,), got {values.dtype} of shape {values.shape}; "
            "pass classes, not one-hot vectors"
        )
    if values.min() < 0 or values.max() >= num_classes:
        raise InputError(
            f"Expected `{name}` to lie between 0 and {num_classes - 1}, got {values.min()} to {values.max()}; "
            "number the classes from 0"
        )
    return values
