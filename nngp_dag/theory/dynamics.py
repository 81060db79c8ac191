"""Exact loss curves of linearized training at infinite width."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from nngp_dag import forms
from nngp_dag.errors import InputError, NumericalWarning, warn, within_memory
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_flag
from nngp_dag.kernels import Kernel
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.theory._algebra import algebra_for, full_precision, is_traced, module_of, safe_sqrt
from nngp_dag.theory._modes import (
    Eigenbasis,
    check_learning_rate,
    check_semi_definite,
    checked_training,
    eigenbasis,
    without_rounding,
)
from nngp_dag.theory._propagators import State, descent_factors, flow_factors, propagated, training_step
from nngp_dag.theory.bounds import check_steps
from nngp_dag.theory.symmetric import (
    check_cross,
    check_kernel,
    check_same_network,
    check_symmetric,
    check_targets,
    is_number,
)

if TYPE_CHECKING:
    import pandas


# The unions with Any: a transformation of JAX may put arrays with more axes, or None, in the place of these.
_Curve = Float[Array | np.ndarray, " points"] | Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["steps", "mean", "std", "test_mean", "test_std", "learning_rate", "stable_learning_rate"],
    meta_fields=[],
)
@dataclass(frozen=True, repr=False)
class LossCurve(Described):
    """The distribution of the loss of linearized training over random initializations, a JAX pytree.

    The loss is L = 0.5 ||y - f||^2, summed over samples and output columns. One step is a step of full-batch gradient
    descent on L. The NTK is that of the parameterization which the kernel was computed with. K is the number of steps.

    Attributes:
      steps: Number of steps taken, 0, 1, ..., K, (K + 1,).
      mean: Mean of the training loss before the first step and after each one, (K + 1,); infinite where float64
        overflows.
      std: Standard deviation of the training loss, (K + 1,).
      test_mean: Mean of the loss on the test set, (K + 1,), or None.
      test_std: Standard deviation of the loss on the test set, (K + 1,), or None.
      learning_rate: Learning rate eta.
      stable_learning_rate: Stability limit, the largest eta with which no mode grows; infinite for gradient flow.

    Examples:
      >>> k = Kernel(nngp=np.eye(2), ntk=np.diag([1.0, 0.5]))
      >>> curve = loss_curve(k, np.array([1.0, 0.0]), learning_rate=0.5, steps=3)
      >>> curve.times, curve.diverges
      (array([0. , 0.5, 1. , 1.5]), False)

    Reference: Equation (18) of docs/mathematics.md.
    """

    steps: Int[Array | np.ndarray, " points"] | Any
    mean: _Curve
    std: _Curve
    test_mean: _Curve | None
    test_std: _Curve | None
    learning_rate: float | Any
    stable_learning_rate: float | Any

    @property
    def times(self) -> _Curve:
        """Time of gradient flow, eta times the number of steps, (K + 1,)."""
        return self.learning_rate * self.steps

    @property
    def diverges(self) -> Any:
        """Whether eta is above the stability limit, so that the loss grows without bound; an array if traced."""
        return self.learning_rate > self.stable_learning_rate

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with the columns `step`, `mean`, `std`, and where they are known `test_mean`, `test_std`.

        Examples:
          >>> import nngp_dag as nd
          >>> k = nd.Kernel(nngp=np.eye(2), ntk=np.diag([1.0, 0.5]))
          >>> nd.loss_curve(k, np.array([1.0, 0.0]), learning_rate=1.0, steps=2).to_frame()[["step", "mean"]]
             step     mean
          0     0  1.50000
          1     1  0.12500
          2     2  0.03125
        """
        import pandas

        columns = {"step": self.steps, "mean": self.mean, "std": self.std}
        tested = {"test_mean": self.test_mean, "test_std": self.test_std}
        return pandas.DataFrame(columns | {name: values for name, values in tested.items() if values is not None})

    def _facts(self) -> dict[str, str]:
        if not forms.is_known(self.mean, 1):
            return forms.shapes(self)
        facts = {"steps": forms.number(int(self.steps[-1]))}
        for name, mean, std in (("loss", self.mean, self.std), ("test_loss", self.test_mean, self.test_std)):
            if mean is not None and std is not None:
                facts[name] = f"{forms.spread(mean[0], std[0])} → {forms.spread(mean[-1], std[-1])}"
        facts |= {name: forms.number(getattr(self, name)) for name in ("learning_rate", "stable_learning_rate")}
        return facts | {"diverges": str(self.diverges)}


@within_memory("`loss_curve`", "take fewer inputs")
def loss_curve(
    k: Kernel,
    y: ArrayLike,
    learning_rate: ArrayLike,
    steps: int,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    flow: bool = False,
    k_test_train: Kernel | None = None,
    k_test_test: Kernel | None = None,
    y_test: ArrayLike | None = None,
) -> LossCurve:
    """Returns mean and standard deviation of the loss over initializations, exact for linearized training.

    The loss is L = 0.5 ||y - f||^2, summed over samples and output columns. At infinite width the error e = f - y obeys

        e(k + 1) = e(k) - eta NTK e(k),   f(0) ~ N(0, NNGP) independently per column,

    Equation (17) of docs/mathematics.md. After k steps its mode along the eigenpair (lambda, v) of the NTK is
    multiplied by p_k(lambda):

        gradient descent      p_k = (1 - eta lambda)^k
        with momentum mu      p_(k+1) = p_k - eta lambda m_k, m_k = p_k + mu m_(k-1), as `optax.sgd(eta, mu)` does;
          and Nesterov's      p_(k+1) = p_k - eta lambda (p_k + mu m_k)
        gradient flow         p_k = exp(-lambda t) at the time t = eta k

    Test errors follow: e_t(k) = e_t(0) + NTK_tx V diag(h_k) V^T e(0), with h_k = (p_k - 1) / lambda. All errors are
    Gaussian, so both moments of the loss have closed forms, Equation (18). Above the stability limit the same formulas
    describe how the loss grows.

    Everything is computed in float64, in O(N^3 + steps N^2) time and O(N^2 + steps N) memory. The test loss of Nt
    inputs takes another O(steps Nt N max(Nt, N)) time.

    Inside transformations of JAX the kernels, targets and learning rate may be traced. The results are then JAX arrays
    in the dtype of the traced kernels. Eigenvectors have no derivatives where eigenvalues repeat, as for duplicate
    inputs. So the recursions run on matrices instead: H_k = V diag(h_k) V^T has derivatives of every order everywhere.
    This takes O(steps N^3) time. Reverse-mode derivatives keep O(sqrt(steps) N^2) numbers. The derivative of a standard
    deviation of 0 is returned as 0.

    Args:
      k: The kernel of the training inputs, after the readout, (N, N).
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      learning_rate: Learning rate eta of gradient descent on L as above, not on a mean over samples.
      steps: Number of steps.
      momentum: Coefficient mu of the momentum, in [0, 1).
      nesterov: Whether momentum is Nesterov's.
      flow: Whether to follow gradient flow, from time 0 to eta * steps, instead of steps.
      k_test_train: The kernel of test against training inputs, (Nt, N). The test loss needs this and the next two.
      k_test_test: The kernel of the test inputs, (Nt, Nt); only its NNGP is used.
      y_test: Test targets, (Nt,) or (Nt, C).

    Returns:
      A `LossCurve`. Above the stability limit its `diverges` is True and a `NumericalWarning` is issued; for traced
      arguments there is no warning.

    Raises:
      InputError: Shapes do not match, a value is not finite, or an option is out of range. NNGP or NTK has a negative
        eigenvalue, `k_test_train` does not fit the other kernels, or `y` holds class labels. Some of the three
        arguments for the test loss are given, but not all.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> k = nd.Kernel(nngp=np.eye(2), ntk=np.diag([1.0, 0.5]))
      >>> curve = loss_curve(k, np.array([1.0, 0.0]), learning_rate=1.0, steps=2)
      >>> curve.mean, curve.std.round(4), curve.stable_learning_rate
      (array([1.5    , 0.125  , 0.03125]), array([1.4142, 0.1768, 0.0442]), 2.0)

    Reference: Lee et al., NeurIPS 2019, Section 2.2 (linearized training); Polyak, USSR Comput. Math. Math. Phys. 1964
    (momentum). The moments are those of a quadratic form of a Gaussian vector.
    """
    return _loss_curve(
        k,
        y,
        learning_rate,
        steps,
        momentum=momentum,
        nesterov=nesterov,
        flow=flow,
        test=(k_test_train, k_test_test, y_test),
    )


@within_memory("`expected_loss`", "take fewer inputs")
def expected_loss(
    k: Kernel,
    y: ArrayLike,
    learning_rate: ArrayLike,
    steps: int,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    flow: bool = False,
) -> Any:
    """Returns the mean training loss over random initializations, exact for linearized gradient descent.

    This is `loss_curve(...).mean`. For gradient descent, with the eigenpairs (lambda_i, v_i) of the NTK, an output
    column contributes

        E ||y - f(k)||^2 = sum_i (1 - eta lambda_i)^(2k) ((v_i . y)^2 + v_i^T NNGP v_i),

    the mean in Equation (18) of docs/mathematics.md. Inside transformations of JAX the arguments may be traced, as for
    `loss_curve`, which takes O(steps N^3) time.

    Args:
      k: The kernel of the training inputs, after the readout, (N, N).
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      learning_rate: Learning rate eta of gradient descent on L = 0.5 ||y - f||^2, summed over samples and columns.
      steps: Number of steps.
      momentum: Coefficient mu of the momentum, in [0, 1).
      nesterov: Whether momentum is Nesterov's.
      flow: Whether to follow gradient flow instead of steps.

    Returns:
      The mean of L before the first step and after each one, (steps + 1,). Above the stability limit it grows, and a
      `NumericalWarning` is issued.

    Raises:
      InputError: `loss_curve` refuses an argument.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> k = nd.Kernel(nngp=np.eye(2), ntk=np.diag([1.0, 0.5]))
      >>> nd.expected_loss(k, np.array([1.0, 0.0]), learning_rate=1.0, steps=2)
      array([1.5    , 0.125  , 0.03125])

    Reference: Lee et al., NeurIPS 2019, Section 2.2 (linearized training). The mean over f(0) is elementary.
    """
    return _loss_curve(k, y, learning_rate, steps, momentum=momentum, nesterov=nesterov, flow=flow).mean


@within_memory("`largest_stable_learning_rate`", "take fewer inputs")
def largest_stable_learning_rate(ntk: Kernel | ArrayLike, *, momentum: float = 0.0, nesterov: bool = False) -> Any:
    """Returns the learning rate above which linearized training diverges.

    In a mode of eigenvalue lambda, a step maps (p, m) of `loss_curve` linearly. Both eigenvalues of this map lie within
    the unit circle if and only if |trace| < 1 + det and |det| < 1 (Jury). With x = eta lambda:

        momentum         trace, determinant                  condition
        mu               1 + mu - x, mu                      x < 2 (1 + mu)
        Nesterov's mu    (1 + mu) (1 - x), mu (1 - x)        x < 2 (1 + mu) / (1 + 2 mu)

    Args:
      ntk: The NTK of the training inputs after the readout, (N, N), or the `Kernel` that holds it.
      momentum: Coefficient mu of the momentum, in [0, 1).
      nesterov: Whether momentum is Nesterov's.

    Returns:
      The bound on x divided by lambda_max, for gradient descent on L = 0.5 ||y - f||^2, summed over samples and
      columns. It is infinite where the NTK is zero. For a traced NTK it is a JAX array; its derivative is right where
      lambda_max is a simple eigenvalue.

    Raises:
      InputError: `ntk` is not square, symmetric, finite and positive semi-definite, or `momentum` is out of range.

    Examples:
      >>> import numpy as np
      >>> ntk = np.diag([1.0, 4.0])
      >>> [largest_stable_learning_rate(ntk, momentum=0.5, nesterov=n) for n in (False, True)]
      [0.75, 0.375]

    Reference: Polyak, USSR Comput. Math. Math. Phys. 1964 (momentum); Jury, Theory and Application of the
    z-Transform Method, 1964 (the condition).
    """
    _check_momentum(momentum)
    nesterov = check_flag("nesterov", nesterov)
    if isinstance(ntk, Kernel):
        check_kernel("ntk", ntk, ("ntk",))
    name, matrix = ("ntk.ntk", ntk.ntk) if isinstance(ntk, Kernel) else ("ntk", ntk)
    values = check_symmetric(name, matrix, traced=True)
    if is_traced(values):
        return stability_limit(jnp.linalg.eigvalsh(values)[-1], momentum, nesterov)
    with precision_of(np.dtype(np.float64)):
        eigenvalues = np.asarray(jnp.linalg.eigvalsh(jnp.asarray(values, jnp.float64)))
    return stability_limit(without_rounding(name, values, eigenvalues)[-1], momentum, nesterov)


def _loss_curve(
    k: Kernel,
    y: ArrayLike,
    learning_rate: ArrayLike,
    steps: int,
    *,
    momentum: float,
    nesterov: bool,
    flow: bool,
    test: tuple[Kernel | None, Kernel | None, ArrayLike | None] = (None, None, None),
) -> LossCurve:
    check_steps(steps)
    steps = int(steps)
    rate = check_learning_rate(learning_rate, traced=True)
    momentum, nesterov, flow = check_descent(momentum, nesterov, flow)
    given = sum(value is not None for value in test)
    if given not in (0, 3):
        raise InputError(
            f"Expected `k_test_train`, `k_test_test` and `y_test` together, got {given} of them; pass all or none"
        )
    if given:
        check_same_network(k=k, k_test_train=test[0], k_test_test=test[1])  # type: ignore[arg-type]
    options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "flow": flow}
    if is_traced(k, y, rate, test):
        with full_precision():
            return _traced_curve(k, y, rate, steps, options, *test)
    basis = eigenbasis(k, y)
    limit = math.inf if flow else stability_limit(basis.eigenvalues[-1], momentum, nesterov)
    warn_of_divergence(rate, limit)
    # Above the stability limit the loss grows until float64 overflows; `_finished` turns that into infinity.
    with np.errstate(over="ignore", invalid="ignore"):
        p, h = factors(basis.eigenvalues, rate, steps, **options)
        mean, std = _training_moments(basis, p)
        test_mean, test_std = (None, None) if not given else _test_moments(basis, h, *test)  # type: ignore[arg-type]
    return LossCurve(np.arange(steps + 1), mean, std, test_mean, test_std, rate, limit)


def _traced_curve(
    k: Kernel,
    y: ArrayLike,
    learning_rate: Any,
    steps: int,
    options: dict[str, Any],
    k_test_train: Kernel | None,
    k_test_test: Kernel | None,
    y_test: ArrayLike | None,
) -> LossCurve:
    """Returns the curve inside a transformation of JAX, without eigenvectors."""
    algebra = algebra_for(y, learning_rate, y_test, kernels=(k, k_test_train, k_test_test))
    ntk, nngp, targets = checked_training(k, y, traced=True)
    if isinstance(ntk, np.ndarray):
        check_semi_definite("k.ntk", ntk)
    ntk, nngp, targets = algebra.symmetric(ntk), algebra.symmetric(nngp), algebra.array(targets)
    on_test = None
    if k_test_train is not None and k_test_test is not None and y_test is not None:
        checked = _checked_test(k_test_train, k_test_test, y_test, *targets.shape, traced=True)
        on_test = _Test(*map(algebra.array, checked))
    rate = algebra.array(learning_rate)

    def unit(values: jax.Array) -> jax.Array:
        # Both moments are homogeneous, so that their derivatives do not depend on the unit.
        return lax.stop_gradient(jnp.maximum(1, abs(values).max()))

    def observe(state: State) -> tuple:
        size = unit(state.p)
        p = state.p / size
        losses = _moments(size, *_loss_moments(p @ targets, p @ nngp @ p.T))
        if on_test is None:
            return losses
        size = unit(state.h)
        error = _error_on_test(on_test, on_test.moving @ (state.h / size), on_test.shared, nngp, targets, size)
        return *losses, *_moments(size, *_loss_moments(*error))

    start, step = training_step(ntk, rate, **options, moving=on_test is not None)
    _, curves = propagated(start, step, steps, observe)
    mean, std, test_mean, test_std = (*curves, None, None)[:4]
    limit = jnp.full_like(rate, math.inf)
    if not options["flow"]:
        limit = stability_limit(jnp.linalg.eigvalsh(ntk)[-1], options["momentum"], options["nesterov"])
    return LossCurve(np.arange(steps + 1), mean, std, test_mean, test_std, rate, limit)


def factors(
    eigenvalues: np.ndarray, learning_rate: float, steps: int, *, momentum: float, nesterov: bool, flow: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns p_k and h_k = (p_k - 1) / lambda of every mode before and after each step, (steps + 1, N) each."""
    if flow:
        return flow_factors(eigenvalues, learning_rate * np.arange(steps + 1))
    return descent_factors(eigenvalues, learning_rate, steps, momentum, nesterov)


def _training_moments(basis: Eigenbasis, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of 0.5 ||diag(p) V^T e(0)||^2 for every row of p.

    A column e ~ N(m, S) of the error, in the eigenbasis, adds to them

        E 0.5 ||e||^2 = 0.5 (tr S + |m|^2),   Var 0.5 ||e||^2 = 0.5 tr S^2 + m^T S m,

    Equation (18) of docs/mathematics.md, with S = diag(p) V^T NNGP V diag(p) and m = -diag(p) V^T y.
    """
    columns, outer = basis.targets.shape[1], basis.targets @ basis.targets.T
    # Rounding may make a variance of 0 negative.
    of_mean = 0.5 * (columns * np.maximum(np.diag(basis.nngp), 0.0) + np.diag(outer))
    of_variance = basis.nngp * (0.5 * columns * basis.nngp + outer)
    # The variance holds fourth powers of p and would overflow long before the mean, hence the unit max |p|.
    scale = np.maximum(1.0, np.abs(p).max(axis=1))
    d = (p / scale[:, None]) ** 2
    return _finished(scale, d @ of_mean, np.sum((d @ of_variance) * d, axis=1))


class _Test(NamedTuple):
    """The checked kernels and targets of a test set."""

    prior: Any
    """NNGP of the test inputs, (Nt, Nt)."""
    moving: Any
    """NTK of test against training inputs, (Nt, N)."""
    shared: Any
    """NNGP of test against training inputs, (Nt, N)."""
    targets: Any
    """Targets, (Nt, C)."""


def _checked_test(
    k_test_train: Kernel, k_test_test: Kernel, y_test: ArrayLike, rows: int, columns: int, *, traced: bool = False
) -> _Test:
    prior = check_symmetric("k_test_test.nngp", k_test_test.nngp, traced=traced)
    shape = (len(prior), rows)
    moving = check_cross("k_test_train.ntk", k_test_train.ntk, shape, traced=traced)
    shared = check_cross("k_test_train.nngp", k_test_train.nngp, shape, traced=traced)
    return _Test(prior, moving, shared, check_targets("y_test", y_test, len(prior), columns, traced=traced))


def _test_moments(
    basis: Eigenbasis, h: np.ndarray, k_test_train: Kernel, k_test_test: Kernel, y_test: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of 0.5 ||e_t(0) + NTK_tx V diag(h) V^T e(0)||^2 for every row of h."""
    test = _checked_test(k_test_train, k_test_test, y_test, *basis.targets.shape)
    test = test._replace(prior=test.prior.astype(np.float64))
    # The variances are the diagonal of the training NNGP, recovered from its rotated form.
    check_covariance(test.shared, test.prior, np.sum((basis.vectors @ basis.nngp) * basis.vectors, axis=1))
    moving, shared = test.moving @ basis.vectors, test.shared @ basis.vectors
    # h may be large even where training is stable, and fourth powers of it enter the variance.
    scale = np.maximum(1.0, np.abs(h).max(axis=1))

    def moments() -> Iterator[tuple[float, float]]:
        for row, size in zip(h, scale, strict=True):
            g = moving * (row / size)
            yield _loss_moments(*_error_on_test(test, g, shared, basis.nngp, basis.targets, size))

    mean, variance = np.array(list(moments())).T
    return _finished(scale, mean, variance)


def _finished(scale: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation without the scaling; NaN, the result of overflow, becomes infinity."""
    return tuple(np.where(np.isnan(v), np.inf, v) for v in _moments(scale, mean, variance))  # type: ignore[return-value]


def check_covariance(shared: np.ndarray, prior: np.ndarray, variances: np.ndarray) -> None:
    """Raises an `InputError` where covariances of test and training outputs exceed the bound of their variances."""
    # By Cauchy-Schwarz. The tolerance is wide enough for kernels in float32.
    if (shared**2 > (1 + 1e-4) * np.outer(np.diag(prior), variances) + 1e-30).any():
        raise InputError(
            "Expected `k_test_train.nngp` to be the covariance of test and training outputs, got entries above the "
            "root of the product of their variances; compute all kernels with the same network and inputs"
        )


def _error_on_test(test: _Test, g: Any, shared: Any, nngp: Any, targets: Any, size: Any) -> tuple[Any, Any]:
    """Returns mean and covariance of e_t(0) + size g e(0), up to the sign of the mean, in units of size and size^2.

    Here `shared`, `nngp` and `targets` are in one basis with the columns of g: that of the inputs, or of the modes.
    """
    # The cross terms are the covariance of e_t(0) and e(0), the NNGP between test and training inputs.
    s = test.prior / size**2 + (g @ nngp + shared / size) @ g.T + g @ (shared.T / size)
    return test.targets / size + g @ targets, s


def _loss_moments(m: Any, s: Any) -> tuple[Any, Any]:
    """Returns mean and variance of 0.5 ||e||^2 for independent columns e ~ N(m_c, S), as in Equation (18)."""
    columns = m.shape[1]
    return (
        0.5 * ((m**2).sum() + columns * s.trace()),
        0.5 * columns * (s**2).sum() + (m * (s @ m)).sum(),
    )


def _moments(scale: Any, mean: Any, variance: Any) -> tuple[Any, Any]:
    """Returns mean and standard deviation without the scaling."""
    return scale**2 * mean, scale**2 * safe_sqrt(module_of(variance), variance)


def stability_limit(largest: Any, momentum: float, nesterov: bool) -> Any:
    """Returns the stability limit for the largest eigenvalue, which `largest_stable_learning_rate` derives."""
    bound = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)
    if isinstance(largest, jax.Array):
        positive = largest > 0
        return jnp.where(positive, bound / jnp.where(positive, largest, 1), math.inf)
    return bound / float(largest) if largest > 0 else math.inf


def warn_of_divergence(learning_rate: float, limit: float) -> None:
    """Issues a `NumericalWarning` where the learning rate is above the stability limit."""
    if learning_rate > limit:
        warn(
            f"gradient descent diverges: learning_rate {learning_rate:.6g} is above the stability limit {limit:.6g}",
            NumericalWarning,
        )


def check_descent(momentum: float, nesterov: bool, flow: bool) -> tuple[float, bool, bool]:
    """Returns the options of gradient descent or gradient flow, checked."""
    _check_momentum(momentum)
    if flow and (momentum or nesterov):
        raise InputError(f"Expected no `momentum` with `flow`, got {momentum}; gradient flow has none")
    return float(momentum), check_flag("nesterov", nesterov), check_flag("flow", flow)


def _check_momentum(momentum: float) -> None:
    if not (is_number("momentum", momentum) and 0 <= momentum < 1):
        raise InputError(f"Expected `momentum` to be at least 0 and below 1, got {momentum}; 0 is plain descent")
