"""Predictions at infinite width: Bayesian posteriors and infinitely trained ensembles."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from nngp_dag import forms
from nngp_dag.errors import InputError, within_memory
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_option, check_whole
from nngp_dag.kernels import Kernel
from nngp_dag.theory._algebra import Algebra, algebra_for, full_precision, module_of, safe_sqrt
from nngp_dag.theory._factor import factorized
from nngp_dag.theory.symmetric import (
    check_cross,
    check_outputs,
    check_same_network,
    check_symmetric,
    eps_of,
    row_blocks,
)

if TYPE_CHECKING:
    import pandas

KINDS = ("nngp", "ntk")


# The union with Any: a transformation of JAX may put arrays with more axes, or None, in the place of these.
@partial(jax.tree_util.register_dataclass, data_fields=["mean", "covariance"], meta_fields=["kind"])
@dataclass(frozen=True, repr=False)
class Posterior(Described):
    """The Gaussian distribution of the outputs on test inputs, a JAX pytree.

    Attributes:
      mean: Mean of the outputs, one row per test input and one column per output, (Nt, C).
      covariance: Covariance between test inputs, (Nt, Nt). It is the same for every column; columns are independent.
      kind: "nngp" or "ntk", the argument of `posterior` that made it; "ntk" for `linearized_prediction`. None if it is
        not known.

    Examples:
      >>> result = Posterior(mean=np.zeros((2, 1)), covariance=np.diag([4.0, -1e-17]))
      >>> result.variance, result.std
      (array([4., 0.]), array([2., 0.]))
    """

    mean: Float[Array | np.ndarray, "nt c"] | Any
    covariance: Float[Array | np.ndarray, "nt nt"] | Any
    kind: str | None = field(default=None, compare=False, kw_only=True)

    @property
    def variance(self) -> Any:
        """Diagonal of the covariance, (Nt,), with 0 in place of entries that only rounding made negative."""
        xp = module_of(self.covariance)
        return xp.maximum(xp.diagonal(self.covariance, axis1=-2, axis2=-1), 0.0)

    @property
    def std(self) -> Any:
        """Standard deviation of the outputs, the square root of the variance, (Nt,).

        Where it is 0 it has no derivative, and `jax.grad` returns 0.
        """
        return safe_sqrt(module_of(self.covariance), self.variance)

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
        std = np.broadcast_to(np.asarray(self.std)[:, None], self.mean.shape)
        columns = {"input": inputs, "output": outputs, "mean": np.asarray(self.mean), "std": std}
        return pandas.DataFrame({name: values.ravel() for name, values in columns.items()})

    def _facts(self) -> dict[str, str]:
        if not forms.is_known(self.covariance, 2):
            return forms.shapes(self)
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
    noise: ArrayLike = 0.0,
    mean: ArrayLike | None = None,
    mean_test: ArrayLike | None = None,
) -> Posterior:
    """Returns mean and covariance of the outputs on test inputs, given the training targets.

    Let K be the NNGP, Theta the NTK, x the training inputs and t the test inputs. The weights of the targets are

        "nngp"   W = K_tx (K + noise I)^-1           the Bayesian posterior of f_t, all layers drawn from the prior
        "ntk"    W = Theta_tx (Theta + noise I)^-1   networks trained for infinite time on 0.5 ||y - f||^2

    The mean is W y in both cases: the posterior mean, or the mean over initializations. With the prior means m and m_t
    of the outputs on training and test inputs it is m_t + W (y - m). The covariance is

        "nngp"   K_tt - W K_xt
        "ntk"    K_tt + W K W^T - W K_xt - K_tx W^T   of the trained outputs f_t(0) + W (y - f(0))

    This is Equation (19) of docs/mathematics.md. The covariance is that of noise-free outputs; an observation adds the
    noise to it. All is computed in float64 with a Cholesky factor, in O(N^3 + Nt N (N + Nt)) time. The memory is one
    N x N matrix of float64 beside the kernels, and a few of Nt x N. Memory-mapped kernels are read in blocks. Where the
    kernels do not fit, `nngp_dag.solve` has the posterior of its `x_test`.

    Inside transformations of JAX the kernels, targets, noise and prior means may be traced. The results are then JAX
    arrays in the dtype of the traced kernels, with derivatives of every order. They are NaN where the matrix with noise
    is not positive definite.

    Args:
      k_train_train: The kernel of the training inputs, after the readout, (N, N).
      k_test_train: The kernel of test against training inputs, (Nt, N).
      k_test_test: The kernel of the test inputs, (Nt, Nt); only its NNGP is used.
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      kind: "nngp" or "ntk".
      noise: For "nngp", the variance of independent noise on the targets. For "ntk", a ridge: training minimizes
        0.5 ||y - f||^2 + 0.5 noise ||theta - theta(0)||^2 over weights theta of the kernel's parameterization. The
        covariance is then that over initializations alone, without noise on the targets. Either may be one number per
        training input, (N,): training then minimizes 0.5 sum_i (y_i - f_i)^2 / noise_i + 0.5 ||theta - theta(0)||^2.
      mean: Prior mean m of the outputs at the training inputs: a number, (N,), or (N, C). None stands for 0.
      mean_test: Prior mean m_t at the test inputs: a number, (Nt,), or (Nt, C). It is given together with `mean`.

    Returns:
      A `Posterior`. A `NumericalWarning` is issued where the condition number is too large for the precision of the
      entries.

    Raises:
      InputError: Shapes do not match, a value is not finite, `kind` is unknown, or `noise` is negative. The matrix with
        noise is singular, the three kernels belong to different inputs or networks, or `y` holds class labels. One of
        `mean` and `mean_test` is given without the other.

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
    if (mean is None) != (mean_test is None):
        raise InputError(
            f"Expected `mean` and `mean_test` together, got `{'mean' if mean_test is None else 'mean_test'}` alone; "
            "pass the prior mean of both sets of inputs"
        )
    kernels = {"k_train_train": k_train_train, "k_test_train": k_test_train, "k_test_test": k_test_test}
    check_same_network(("nngp", kind), **kernels)
    algebra = algebra_for(y, noise, mean, mean_test, kernels=kernels)
    with full_precision():
        matrix = getattr(k_train_train, kind)
        factored = factorized(
            "the posterior", f"k_train_train.{kind}", matrix, y, noise, 0.0 if mean is None else mean, algebra
        )
        of, cross = checked_kernels(algebra, **kernels, kind=kind, n=len(matrix))
        # One factor serves mean and covariance. Solving with it is more accurate than multiplying by an explicit
        # inverse.
        weights = algebra.solve(factored.factor, cross.T).T
        # One formula serves both kinds. For "nngp" it equals K_tt - W K_xt, but errors of W enter only squared (the
        # Joseph form of the Kalman filter's update). For "ntk" the ridge changes W alone: the outputs f(0) before
        # training, whose covariance is the NNGP, carry no noise.
        covariance = covariance_after(algebra, of, weights, factored.noise if kind == "nngp" else 0.0)
        outputs = cross @ algebra.solve(factored.factor, factored.residuals)
        if mean_test is not None:
            given = check_outputs("mean_test", mean_test, *outputs.shape, traced=algebra.traced)
            outputs += algebra.xp.broadcast_to(algebra.array(given), outputs.shape)
        return Posterior(outputs, covariance, kind=kind)


class Covariances(NamedTuple):
    """Covariances of the outputs before training, checked: K, K_tx and K_tt."""

    nngp: Any
    shared: Any
    prior: Any


def checked_kernels(
    algebra: Algebra, k_train_train: Kernel, k_test_train: Kernel, k_test_test: Kernel, *, kind: str, n: int
) -> tuple[Covariances, Any]:
    """Returns the checked NNGPs of n training inputs and of test inputs, and the kernel of one kind between them."""
    traced = algebra.traced
    prior = check_symmetric("k_test_test.nngp", k_test_test.nngp, traced=traced)
    nngp = check_symmetric("k_train_train.nngp", k_train_train.nngp, traced=traced)
    if nngp.shape != (n, n):
        raise InputError(
            f"Expected `k_train_train.nngp` to have shape {(n, n)}, got {nngp.shape}; "
            "pass NNGP and NTK of the same inputs"
        )
    shape = (len(prior), n)
    cross = check_cross(f"k_test_train.{kind}", getattr(k_test_train, kind), shape, traced=traced)
    shared = check_cross("k_test_train.nngp", k_test_train.nngp, shape, traced=traced)
    return Covariances(nngp, algebra.array(shared), prior), algebra.array(cross)


def covariance_after(algebra: Algebra, of: Covariances, weights: Any, noise: Any = 0.0) -> Any:
    """Returns the covariance of f_t + W (y - f), with independent noise on y, for weights W, (Nt, N).

    It is K_tt + W (K + noise) W^T - W K_xt - K_tx W^T, Equation (19) of docs/mathematics.md.
    """
    half = weights @ (0.5 * algebra.applied(of.nngp, weights.T, noise) - of.shared.T)
    covariance = algebra.array(of.prior) + (half + half.T)  # in this order, exactly symmetric
    if algebra.traced:
        return covariance
    # A variance may fall below 0 by rounding, in proportion to the terms that cancel; beyond that the kernels disagree.
    spread = np.zeros_like(weights)
    for rows in row_blocks(of.nngp):
        block = np.abs(of.nngp[rows].astype(np.float64))
        np.einsum("ii->i", block[:, rows])[...] += np.broadcast_to(noise, len(of.nngp))[rows]
        spread += np.abs(weights[:, rows]) @ block
    sizes = np.abs(np.diag(of.prior)) + np.sum(spread * np.abs(weights), axis=1)
    rounding = 100 * max(eps_of(of.prior), eps_of(of.nngp)) * sizes
    if (excess := np.diag(covariance) + rounding).min() < 0:
        at = int(np.argmin(excess))
        raise InputError(
            f"Expected the three kernels to be those of the same inputs, got the negative variance "
            f"{covariance[at, at]:.3g} of test input {at}; compute them with the same options"
        )
    return covariance


@within_memory("`kernel_regression_accuracy`", "take fewer inputs")
def kernel_regression_accuracy(
    k_train_train: Kernel,
    k_test_train: Kernel,
    labels: ArrayLike,
    test_labels: ArrayLike,
    num_classes: int,
    *,
    kind: str = "nngp",
    noise: ArrayLike = 0.0,
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
    centered = np.eye(num_classes)[train] - 1 / num_classes
    name, matrix, algebra = f"k_train_train.{kind}", getattr(k_train_train, kind), Algebra()
    factored = factorized("the posterior", name, matrix, centered, noise, 0.0, algebra)
    cross = check_cross(f"k_test_train.{kind}", getattr(k_test_train, kind), (len(test), len(train)))
    return classification_accuracy(cross @ algebra.solve(factored.factor, factored.residuals), test)


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
