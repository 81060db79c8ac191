"""The influence of one neuron on a functional of the NNGP, to first and to second order in 1 / width.

A network of width n is a function T of the empirical distribution of its n neurons' standard normal draws z, which are
independent. Let T(t) be its value where every node hands on (1 - t) times the expected moments plus t times those of
one neuron z. Then, with h(z) = dT/dt and c(z) = d2T/dt2 at t = 0,

    variance = E h^2 / n + O(1/n^2),    bias = E c / (2 n) + O(1/n^2)

(von Mises 1947). By the chain rule h is the sum of h_s over the groups s that hand moments on,

    h_s = v_s^T D_s v_s - <D_s, G_s>,    D_s = d functional / d G_s,

and one reverse pass finds all matrices D_s.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.width.functionals import Functional
from nngp_dag.width.neurons import jitter
from nngp_dag.width.recursion import AnyRecursion, Limit, Recursion, Seed, batches

# Neurons of one batch.
_NEURONS = 4096

# Step of t in difference quotients of second order.
_STEP = 1e-4


class Influence(NamedTuple):
    """The influence of one neuron, to first order.

    Attributes:
      variance: E h^2, the variance of the functional times the width.
      error: Standard error of `variance`.
      covariances: Cov(h_s, h) by node; they add up to `variance`.
    """

    variance: float
    error: float
    covariances: dict[int, float]


def influence_of(recursion: AnyRecursion, limit: Limit, neurons: int, seed: Seed) -> Influence:
    """Estimates the variance of the influence from drawn neurons; its mean is known to be 0."""
    rows = len(limit.kernel)
    found, second, fourth = np.zeros(len(recursion.nodes)), 0.0, 0.0
    for draws in batches(recursion, rows, -(-neurons // _NEURONS), _NEURONS, seed):
        for one in draws:
            h = np.asarray(recursion.influences(limit, one))
            total = h.sum(axis=0)
            found += h @ total
            second += float((total**2).sum())
            fourth += float((total**4).sum())
    drawn = -(-neurons // _NEURONS) * _NEURONS
    second, fourth = second / drawn, fourth / drawn
    covariances: dict[int, float] = {}
    for node, share in zip(recursion.nodes, found / drawn, strict=True):
        covariances[node] = covariances.get(node, 0.0) + float(share)
    return Influence(second, float(np.sqrt(max(fourth - second**2, 0.0) / drawn)), covariances)


class Curvature(NamedTuple):
    """The second-order size E c / 2, the bias times the width, and its standard error."""

    mean: float
    error: float


def curvature_of(
    recursion: Recursion, k_in: list[jax.Array], functional: Functional, value: float, neurons: int, seed: Seed
) -> Curvature:
    """Estimates the second-order size from drawn neurons, by difference quotients in t."""
    of_each = jax.jit(jax.vmap(functional))
    found = []
    for draws in batches(recursion, len(k_in[0]), neurons, 1, seed):
        # One-sided, since moments need not be positive definite for t < 0; the error is of order step^2.
        at = [np.asarray(of_each(recursion.nngps(k_in, draws, k * _STEP))) for k in (1, 2, 3)]
        found.append((2 * value - 5 * at[0] + 4 * at[1] - at[2]) / _STEP**2 / 2)
    halves = np.concatenate(found)
    return Curvature(float(halves.mean()), float(halves.std(ddof=1) / np.sqrt(len(halves))))


def rounding_of(limit: Limit) -> float:
    """Returns the size of the change of the functional by the numbers that Cholesky factors add to diagonals."""
    return sum(float(jitter(limit.moments[s]) * abs(jnp.linalg.eigvalsh(d)).sum()) for s, d in limit.slopes.items())
