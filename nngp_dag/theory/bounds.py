"""The rate bound on the training loss, and the learning rates for which it is a theorem."""

import math

import numpy as np
from jaxtyping import Float

from nngp_dag.errors import InputError, shown
from nngp_dag.theory.symmetric import is_number


def rate_bound(
    lambda_min: float, learning_rate: float, steps: int, initial_loss: float
) -> Float[np.ndarray, "{steps}+1"]:
    """Returns the loss that gradient descent cannot exceed: (1 - eta lambda_min / 2)^k L(0) for k = 0..steps.

    L(k) = 0.5 ||y - f(k)||^2, summed over samples and output columns, under full-batch gradient descent on L. This is
    Equation (16) of docs/mathematics.md. The theorem holds for a small enough eta and a wide enough network;
    `rate_bound_holds_for` checks the condition on eta.

    Args:
      lambda_min: Smallest eigenvalue of the NNGP at the last node, K(H), before the readout.
      learning_rate: Learning rate eta of gradient descent on the summed loss L.
      steps: Number of steps.
      initial_loss: Loss before the first step, L(0), in the unit of the squared targets.

    Returns:
      The bound before the first step and after each one, (steps + 1,), in the unit of `initial_loss`.

    Raises:
      InputError: An argument is negative or not finite, or eta lambda_min / 2 exceeds 1.

    Examples:
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
    # Powers of a negative rate alternate in sign and bound no loss.
    if rate < 0:
        raise InputError(
            f"Expected `learning_rate` to be at most 2 / lambda_min = {2 / lambda_min:.3g}, got {learning_rate}; "
            "lower it"
        )
    return initial_loss * rate ** np.arange(steps + 1)


def rate_bound_holds_for(
    lambda_min_nngp: float, lambda_min_ntk: float, lambda_max_ntk: float, learning_rate: float
) -> bool:
    """Whether the rate bound is a theorem for linearized training at this learning rate.

    A step multiplies the loss of a mode by (1 - eta lambda_i)^2, where lambda_i are the eigenvalues of the NTK after
    the readout. So the bound holds for every y and f(0) exactly if the slowest mode obeys it:

        max_i (1 - eta lambda_i)^2 <= 1 - eta lambda_min(K(H)) / 2.

    The theorem's other condition, on the width, has unknown constants, so no formula can check it. `compare` sets the
    bound beside measured curves instead.

    Args:
      lambda_min_nngp: Smallest eigenvalue of K(H), the NNGP before the readout.
      lambda_min_ntk: Smallest eigenvalue of the NTK after the readout.
      lambda_max_ntk: Largest eigenvalue of the NTK after the readout.
      learning_rate: Learning rate eta of gradient descent on the summed loss.

    Returns:
      True where the slowest mode obeys the bound.

    Examples:
      >>> rate_bound_holds_for(0.1, 0.5, 10.0, learning_rate=0.1), rate_bound_holds_for(0.1, 0.5, 10.0, 0.3)
      (True, False)

    Reference: Equation (17) of docs/mathematics.md for the modes; Chen et al., NeurIPS 2022, Section 3.3, for the
    bound.
    """
    # (1 - x)^2 is convex, so its maximum over the eigenvalues is attained at one of the two extreme ones.
    slowest = max((1 - learning_rate * value) ** 2 for value in (lambda_min_ntk, lambda_max_ntk))
    return bool(slowest <= 1 - learning_rate * lambda_min_nngp / 2)


def check_steps(steps: int) -> None:
    """Raises an `InputError` unless `steps` is a whole number of at least 0."""
    if not (is_number("steps", steps) and math.isfinite(steps) and steps >= 0 and int(steps) == steps):
        raise InputError(f"Expected `steps` to be a whole number of at least 0, got {shown(steps)}")
