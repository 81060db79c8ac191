"""Predictions of linearized networks on test inputs after a finite time of training."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError, shown, within_memory
from nngp_dag.kernels import Kernel
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.theory._algebra import Algebra, algebra_for, full_precision
from nngp_dag.theory._factor import factorized
from nngp_dag.theory._modes import check_learning_rate, check_semi_definite, without_rounding
from nngp_dag.theory._posterior import Posterior, checked_kernels, covariance_after
from nngp_dag.theory._propagators import moved_after, moved_after_traced
from nngp_dag.theory.bounds import check_steps
from nngp_dag.theory.dynamics import (
    check_covariance,
    check_descent,
    largest_stable_learning_rate,
    stability_limit,
    warn_of_divergence,
)
from nngp_dag.theory.symmetric import (
    array_of,
    check_cross,
    check_outputs,
    check_same_network,
    check_symmetric,
    check_targets,
)

_NTK = "k_train_train.ntk"


@within_memory("`linearized_prediction`", "take fewer inputs")
def linearized_prediction(
    k_train_train: Kernel,
    k_test_train: Kernel,
    k_test_test: Kernel | None,
    y: ArrayLike,
    learning_rate: ArrayLike,
    steps: int | float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    flow: bool = False,
    initial: tuple[ArrayLike, ArrayLike] | None = None,
) -> Posterior:
    """Returns mean and covariance of a linearized network's outputs on test inputs after some steps of training.

    The loss is L = 0.5 ||y - f||^2, summed over samples and output columns, as for `loss_curve`. Let Theta be the NTK,
    K the NNGP, x the training inputs and t the test inputs. After k steps

        f_t(k) = f_t(0) + W_k (y - f(0)),   W_k = -Theta_tx V diag(h_k) V^T,

    with the eigenvectors V of Theta and the factors h_k of `loss_curve`. At random initialization (f(0), f_t(0)) is
    Gaussian with covariance NNGP, and so

        mean         W_k y
        covariance   K_tt + W_k K W_k^T - W_k K_xt - K_tx W_k^T

    These are Equations (18b) and (23) of docs/mathematics.md. As k grows, W_k becomes Theta_tx Theta^-1 and the result
    that of `posterior` for kind "ntk". Predictions on the training inputs are those for a test set that equals it.

    Everything is computed in float64, in O(N^3 + steps N + Nt N (N + Nt)) time, with about five N x N matrices of
    float64. Infinitely many steps take one Cholesky factor instead, one such matrix.

    Inside transformations of JAX the kernels, targets, learning rate and initial outputs may be traced. The results are
    then JAX arrays in the dtype of the traced kernels. As in `loss_curve`, the recursion runs on matrices, in
    O(steps N^3) time, and has derivatives of every order also where eigenvalues repeat. Reverse-mode derivatives keep
    O(sqrt(steps) N^2) numbers. Gradient flow takes one matrix exponential of 2N rows.

    Args:
      k_train_train: The kernel of the training inputs, after the readout, (N, N).
      k_test_train: The kernel of test against training inputs, (Nt, N).
      k_test_test: The kernel of the test inputs, (Nt, Nt); only its NNGP is used. It may be None with `initial`.
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      learning_rate: Learning rate eta of gradient descent on L as above, not on a mean over samples.
      steps: Number of steps; `math.inf` for the limit of training.
      momentum: Coefficient mu of the momentum, in [0, 1).
      nesterov: Whether momentum is Nesterov's.
      flow: Whether to follow gradient flow until the time eta * steps instead of steps.
      initial: Outputs f(0) and f_t(0) of one network on training and test inputs, each a number, (N,) or (N, C). The
        NNGPs are not used then. None stands for random initialization.

    Returns:
      A `Posterior`. With `initial` its covariance is 0. Above the stability limit a `NumericalWarning` is issued,
      unless arguments are traced.

    Raises:
      InputError: Shapes do not match, a value is not finite, or an option is out of range. The NTK has a negative
        eigenvalue, the three kernels belong to different inputs or networks, or `y` holds class labels. With infinitely
        many steps, the NTK is singular, or the learning rate is not below the stability limit.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> k = nd.Kernel(nngp=np.eye(2), ntk=np.diag([1.0, 0.5]))
      >>> result = linearized_prediction(k, k, k, np.array([1.0, 1.0]), learning_rate=1.0, steps=2)
      >>> result.mean.ravel(), result.variance  # the modes of the error have shrunk by (1 - eta lambda)^2
      (array([1.  , 0.75]), array([0.    , 0.0625]))

    Reference: Lee et al., NeurIPS 2019, Section 2.2, equations 10 and 11 for gradient flow.
    """
    endless = isinstance(steps, (float, np.floating)) and math.isinf(steps) and steps > 0
    if not endless:
        check_steps(steps)  # type: ignore[arg-type]
    learning_rate = check_learning_rate(learning_rate, traced=True)
    momentum, nesterov, flow = check_descent(momentum, nesterov, flow)
    options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "flow": flow}
    kernels = {"k_train_train": k_train_train, "k_test_train": k_test_train, "k_test_test": k_test_test}
    if initial is not None:
        del kernels["k_test_test"]
    check_same_network(("ntk",) if initial is not None else ("nngp", "ntk"), **kernels)  # type: ignore[arg-type]
    algebra = algebra_for(y, learning_rate, initial, kernels=kernels)
    with full_precision(), np.errstate(over="ignore", invalid="ignore"):
        ntk = check_symmetric(_NTK, k_train_train.ntk, traced=algebra.traced)
        targets = algebra.array(check_targets("y", y, len(ntk), traced=algebra.traced))
        if initial is None:
            of, cross = checked_kernels(algebra, **kernels, kind="ntk", n=len(ntk))  # type: ignore[arg-type]
            if not algebra.traced:
                check_covariance(of.shared, of.prior, np.diag(of.nngp))
            weights = _weights(algebra, ntk, cross, learning_rate, math.inf if endless else int(steps), options)
            return Posterior(weights @ targets, covariance_after(algebra, of, weights), kind="ntk")
        moved = array_of("k_test_train.ntk", k_test_train.ntk, algebra.traced)
        cross = check_cross("k_test_train.ntk", moved, (len(moved), len(ntk)), traced=algebra.traced)
        weights = _weights(
            algebra, ntk, algebra.array(cross), learning_rate, math.inf if endless else int(steps), options
        )
        f, f_test = _initial(algebra, initial, targets.shape[1], len(ntk), len(moved))
        covariance = algebra.xp.zeros((len(moved), len(moved)), algebra.dtype)
        return Posterior(f_test + weights @ (targets - f), covariance, kind="ntk")


def _weights(
    algebra: Any, ntk: Any, cross: Any, learning_rate: Any, steps: int | float, options: dict[str, Any]
) -> Any:
    """Returns W = -Theta_tx H, (Nt, N), for the checked NTKs."""
    if math.isinf(steps):
        _check_convergence(algebra, ntk, learning_rate, options)
        factor = factorized("the prediction", _NTK, ntk, np.zeros(len(ntk)), 0.0, 0.0, algebra).factor
        return algebra.solve(factor, cross.T).T
    if algebra.traced:
        if isinstance(ntk, np.ndarray):
            check_semi_definite(_NTK, ntk)
        rate = algebra.array(learning_rate)
        return -cross @ moved_after_traced(algebra.symmetric(ntk), rate, int(steps), **options)
    with precision_of(np.dtype(np.float64)):
        found, vectors = map(np.asarray, jnp.linalg.eigh(jnp.asarray(ntk, jnp.float64)))
    eigenvalues = without_rounding(_NTK, ntk, found)
    if not options["flow"]:
        limit = stability_limit(eigenvalues[-1], options["momentum"], options["nesterov"])
        warn_of_divergence(learning_rate, limit)
    return -((cross @ vectors) * moved_after(eigenvalues, learning_rate, int(steps), **options)) @ vectors.T


def _check_convergence(algebra: Algebra, ntk: Any, learning_rate: Any, options: dict[str, Any]) -> None:
    """Raises an `InputError` where a known learning rate is not below the stability limit."""
    if options["flow"] or algebra.traced:
        return
    limit = largest_stable_learning_rate(ntk, momentum=options["momentum"], nesterov=options["nesterov"])
    if learning_rate >= limit:
        raise InputError(
            f"Expected `learning_rate` below the stability limit {limit:.6g} for infinitely many steps, got "
            f"{learning_rate:.6g}; lower it, or pass a finite number of steps"
        )


def _initial(algebra: Algebra, initial: Any, columns: int, n: int, n_test: int) -> list[Any]:
    """Returns the checked initial outputs on training and test inputs, (n, columns) and (n_test, columns)."""
    if not isinstance(initial, (tuple, list)) or len(initial) != 2:
        raise InputError(
            f"Expected `initial` to be the outputs on training and on test inputs, got {shown(initial)}; pass "
            "(f_train, f_test)"
        )
    outputs = []
    for i, (values, rows) in enumerate(zip(initial, (n, n_test), strict=True)):
        given = check_outputs(f"initial[{i}]", values, rows, columns, traced=algebra.traced)
        outputs.append(algebra.xp.broadcast_to(algebra.array(given), (rows, columns)))
    return outputs
