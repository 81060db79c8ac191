"""The rate bound on the training loss, and when it may be believed."""

import math

import numpy as np
from jaxtyping import Float

from nngp_dag.errors import InputError, shown
from nngp_dag.theory.symmetric import is_number


def rate_bound(
    lambda_min: float, learning_rate: float, steps: int, initial_loss: float
) -> Float[np.ndarray, "{steps}+1"]:
    """Returns the loss that gradient descent cannot exceed: (1 - eta lambda_min / 2)^k L(0) for k = 0..steps.

    L(k) = 0.5 ||y - f(k)||^2, summed over samples and output columns, under full-batch gradient descent on L. The
    theorem holds for eta small enough and a network wide enough; see `rate_bound_holds_for` for what can be checked of
    that.

    Args:
      lambda_min: Smallest eigenvalue of the NNGP at the last node, K(H), before the readout.
      learning_rate: eta.
      steps: Number of steps.
      initial_loss: L(0).

    Returns:
      The bound before the first step and after each one, (steps + 1,).

    Raises:
      InputError: An argument is negative or not finite, or eta lambda_min / 2 exceeds 1.

    Example:
      >>> rate_bound(lambda_min=0.5, learning_rate=0.4, steps=2, initial_loss=100.0)
      array([100.,  90.,  81.])

    Reference: Chen et al., NeurIPS 2022, Section 3.3; Du et al., ICML 2019, Theorem 5.1.
    """
    for name, value in (
        ("lambda_min", lambda_min),
        ("learning_rate", learning_rate),
        ("initial_loss", initial_loss),
    ):
        if not (is_number(name, value) and math.isfinite(value) and value >= 0):
            raise InputError(f"Expected `{name}` to be finite and at least 0, got {shown(value)}")
    check_steps(steps)
    rate = 1 - learning_rate * lambda_min / 2
    if rate < 0:
        raise InputError(
            f"Expected `learning_rate` to be at most 2 / lambda_min = {2 / lambda_min:.3g}, got {learning_rate}"
        )
    return initial_loss * rate ** np.arange(steps + 1)


def rate_bound_holds_for(
    lambda_min_nngp: float, lambda_min_ntk: float, lambda_max_ntk: float, learning_rate: float
) -> bool:
    """Whether the rate bound is a theorem for linearized training at this learning rate.

    Every mode of the error shrinks by (1 - eta lambda_i)^2 a step, lambda_i the eigenvalues of the NTK after the
    readout, so the bound holds for every y and f(0) exactly if the slowest mode obeys it:
    max_i (1 - eta lambda_i)^2 <= 1 - eta lambda_min(K(H)) / 2. The theorem's other condition, on the width, has unknown
    constants and cannot be checked by a formula: comparing with measured curves is what `compare` is for.

    Args:
      lambda_min_nngp: Smallest eigenvalue of K(H).
      lambda_min_ntk: Smallest eigenvalue of the NTK after the readout.
      lambda_max_ntk: Its largest eigenvalue.
      learning_rate: eta.

    Example:
      >>> rate_bound_holds_for(0.1, 0.5, 10.0, learning_rate=0.1), rate_bound_holds_for(0.1, 0.5, 10.0, 0.3)
      (True, False)
    """
    slowest = max((1 - learning_rate * value) ** 2 for value in (lambda_min_ntk, lambda_max_ntk))
    return bool(slowest <= 1 - learning_rate * lambda_min_nngp / 2)


def check_steps(steps: int) -> None:
    """Raises an `InputError` unless `steps` is a whole number of at least 0."""
    if not (is_number("steps", steps) and math.isfinite(steps) and steps >= 0 and int(steps) == steps):
        raise InputError(f"Expected `steps` to be a whole number of at least 0, got {shown(steps)}")
