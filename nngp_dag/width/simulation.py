"""Networks of finite width, drawn exactly in distribution from the recursion of moments, as a check of first order.

No weights are drawn: given what a group hands on, the preactivations of all n neurons behind it are independent draws
of one Gaussian. So a network takes n N^2 operations per weighted edge, in place of n^2 N.

The same draws give the first-order prediction for every network, L = 1/n sum_k h(z_k). It has mean 0 and variance
E h^2 / n, and is a control variate: only the rest, which is of second order, is left to chance. So a few hundred
networks tell mean and variance to every order in 1 / n.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from nngp_dag.width.functionals import Functional
from nngp_dag.width.recursion import AnyRecursion, Limit, Seed, batches

# Fewer networks tell no error: two lie on a line with any control variate.
_FEWEST = 8


class Simulated(NamedTuple):
    """Networks of one width.

    Attributes:
      values: The functional of every network, (networks,).
      first_order: Their first-order predictions L, (networks,).
    """

    values: np.ndarray
    first_order: np.ndarray


def simulated(
    recursion: AnyRecursion,
    k_in: list[jax.Array],
    functional: Functional,
    limit: Limit,
    width: int,
    networks: int,
    seed: Seed,
) -> Simulated:
    """Draws networks of one width."""
    of_each = jax.jit(jax.vmap(functional))
    values, first_order = [], []
    for draws in batches(recursion, len(limit.kernel), networks, width + recursion.spare, seed):
        values.append(np.asarray(of_each(recursion.drawn(k_in, draws))))
        first_order += [float(recursion.influences(limit, one[:, :width]).sum()) / width for one in draws]
    return Simulated(np.concatenate(values), np.array(first_order))


class Departure(NamedTuple):
    """Deviations of simulated networks from first order.

    Attributes:
      std: Standard deviation of the networks, over that of first order, minus 1.
      std_error: Standard error of `std`.
      bias: Mean of the networks minus the value at infinite width.
      bias_error: Standard error of `bias`.
    """

    std: float
    std_error: float
    bias: float
    bias_error: float


def departure_of(networks: Simulated, value: float, variance: float) -> Departure:
    """Compares simulated networks with first order.

    Args:
      networks: The networks.
      value: The functional at infinite width.
      variance: The variance of the functional to first order.
    """
    values, line = networks.values - value, networks.first_order
    # The means of L and of L^2 are known, so their deviations are subtracted, with the coefficients of least squares.
    mean = _controlled(values, line)
    squares = (values - values.mean()) ** 2 * (len(values) / (len(values) - 1))
    second = _controlled(squares / variance, line**2 / variance - 1)
    std = float(np.sqrt(np.maximum(second.mean, 0)))
    # d sqrt(v) = dv / (2 sqrt(v)); where nearly nothing is left of the variance, the larger error is that at v = 1/4.
    return Departure(std - 1, second.error / (2 * max(std, 0.5)), mean.mean, mean.error)


class _Mean(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


def _controlled(values: np.ndarray, control: np.ndarray) -> _Mean:
    """Returns the mean of some values by means of a control variate, whose expectation is 0."""
    centered = control - control.mean()
    slope = (values @ centered) / max(centered @ centered, np.finfo(float).tiny)
    rest = values - slope * control
    error = float(rest.std(ddof=2) / np.sqrt(len(rest))) if len(rest) >= _FEWEST else math.nan
    return _Mean(float(rest.mean()), error)
