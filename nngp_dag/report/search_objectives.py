"""The objectives of a search over graphs: functions of a kernel and the targets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from nngp_dag.kernels import Kernel
from nngp_dag.theory import largest_stable_learning_rate, leave_one_out, log_marginal_likelihood, spectrum


class Settings(NamedTuple):
    """Numbers on which objectives depend.

    Attributes:
      noise: Variance of the noise on the targets.
      loss_steps: Number of steps of gradient descent.
      rate: Learning rate as a multiple of 1 / lambda_max of the graph's own NTK.
    """

    noise: float
    loss_steps: int
    rate: float


class Objective(NamedTuple):
    """An objective.

    Attributes:
      value: The objective as a function of kernel, targets and settings; JAX may trace the first two.
      text: Description with a symbol, for labels.
      get: The matrices of the kernel that it reads.
      maximize: Whether larger values are better.
      needs_targets: Whether it depends on the targets.
    """

    value: Callable[[Kernel, Any, Settings], Any]
    text: str
    get: str | tuple[str, ...]
    maximize: bool = True
    needs_targets: bool = True


def _marginal_likelihood(k: Kernel, y: Any, settings: Settings) -> Any:
    return log_marginal_likelihood(k, y, settings.noise)


def _leave_one_out(k: Kernel, y: Any, settings: Settings) -> Any:
    return leave_one_out(k, y, settings.noise).log_predictive_density


def _least_eigenvalue(kind: str) -> Callable[[Kernel, Any, Settings], Any]:
    def value(k: Kernel, y: Any, settings: Settings) -> Any:
        found = spectrum(getattr(k, kind))
        return found.lambda_min * len(y) / found.trace

    return value


def _expected_loss(k: Kernel, y: Any, settings: Settings) -> Any:
    # The last value of `expected_loss`, Equation (17) of docs/mathematics.md. A power of a matrix takes a logarithmic
    # number of products, and the curve would take one for every step.
    ntk: Any = k.ntk
    rate = settings.rate * largest_stable_learning_rate(ntk) / 2
    power = jnp.linalg.matrix_power(jnp.eye(len(y), dtype=ntk.dtype) - rate * ntk, settings.loss_steps)
    return 0.5 * (y.shape[1] * jnp.sum(power * (power @ k.nngp)) + jnp.sum((power @ y) ** 2))


OBJECTIVES: dict[str, Objective] = {
    "marginal-likelihood": Objective(_marginal_likelihood, "log marginal likelihood", "nngp"),
    "leave-one-out": Objective(_leave_one_out, "leave-one-out log predictive density", "nngp"),
    "nngp-lambda-min": Objective(
        _least_eigenvalue("nngp"), "λmin of the NNGP over its mean eigenvalue", "nngp", needs_targets=False
    ),
    "ntk-lambda-min": Objective(
        _least_eigenvalue("ntk"), "λmin of the NTK over its mean eigenvalue", "ntk", needs_targets=False
    ),
    "expected-loss": Objective(_expected_loss, "expected loss", ("nngp", "ntk"), maximize=False),
}
"""The objectives by name."""
