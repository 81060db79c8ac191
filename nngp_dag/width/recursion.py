"""The compiled functions of one network, which all functionals share."""

import abc
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.width.neurons import Group, HandedOn, Plan, passed, plan_of, propagate, root

Seed = int | np.random.SeedSequence
"""A seed, or one of the streams that `np.random.SeedSequence.spawn` makes of a seed."""

# Numbers that a batch of draws may hold.
_BATCH = 1 << 22


class Limit(NamedTuple):
    """A network at infinite width.

    Attributes:
      kernel: The NNGP or the NTK, (N, N).
      moments: Second moments that every group hands on, (N, N); for the NTK also those that every weighted edge hands
        back, with the key (number of its draw, -2).
      roots: Cholesky factors of the covariances of preactivations of every stem, (i, -1), and behind every group. For
        the NTK also those of messages, with the keys of `moments`.
      slopes: The derivatives of a functional of the kernel in these moments, (N, N).
    """

    kernel: jax.Array
    moments: dict[Group, jax.Array]
    roots: dict[Group, jax.Array]
    slopes: dict[Group, jax.Array]


class AnyRecursion(abc.ABC):
    """What the influence of neurons and the simulation of networks read of a recursion.

    Attributes:
      vectors: Number of vectors of standard normal numbers that each index of neurons draws.
      spare: Number of indices that a network draws beyond its width.
      nodes: The node of every influence.
    """

    vectors: int
    spare: int
    nodes: tuple[int, ...]

    @abc.abstractmethod
    def limit(self, k_in: list[jax.Array], slope: jax.Array) -> Limit:
        """Returns the network at infinite width.

        Args:
          k_in: Second moments of the data, x_i . x_j / d, of every input node, (N, N).
          slope: The derivative of a functional in the kernel, (N, N).
        """

    @abc.abstractmethod
    def influences(self, limit: Limit, draws: np.ndarray) -> jax.Array:
        """Returns the influence of every neuron, (influences, M), for draws (vectors, M, N)."""

    @abc.abstractmethod
    def drawn(self, k_in: list[jax.Array], draws: np.ndarray) -> jax.Array:
        """Returns the kernels of networks, (networks, N, N), for draws (networks, vectors, width + spare, N)."""


def influences_of(limit: Limit, values: dict[Group, jax.Array]) -> jax.Array:
    """Returns v^T D v - <D, G> of all moments with derivatives D, (moments, M), for values v of neurons, (M, N)."""
    return jnp.stack(
        [
            (jnp.matmul(v, limit.slopes[s], precision="highest") * v).sum(axis=1)
            - (limit.slopes[s] * limit.moments[s]).sum()
            for s, v in values.items()
        ]
    )


class Recursion(AnyRecursion):
    """The recursion of a network's NNGP in compiled form; the data are arguments.

    Attributes:
      plan: The network.
      vectors: See `AnyRecursion`.
      spare: See `AnyRecursion`.
      nodes: See `AnyRecursion`.
    """

    spare = 0

    def __init__(self, network: Network) -> None:
        """Plans the recursion, see `plan_of`."""
        self.plan: Plan = plan_of(network)
        self.vectors, self.nodes = self.plan.draws, tuple(node for node, _ in self.plan.groups)
        self._influences = jax.jit(self._of_influences)
        self._nngps = jax.jit(self._of_draws)

    def limit(self, k_in: list[jax.Array], slope: jax.Array) -> Limit:
        """Returns the network at infinite width; see `AnyRecursion`."""
        plan = self.plan

        # Not compiled as a whole: the layers share compiled functions and derivatives, here and in other networks.
        def of_deviations(deviations: dict[Group, jax.Array]) -> tuple[jax.Array, tuple]:
            moments: dict[Group, jax.Array] = {}

            def hand_on(handed: HandedOn) -> jax.Array:
                moments[handed.group] = handed.expected
                return handed.expected + deviations[handed.group]

            nngp, algebra = propagate(plan, k_in, hand_on)
            return nngp, (moments, {group: root(p) for group, p in algebra.covariances.items()})

        zeros = {group: jnp.zeros_like(k_in[0]) for group in plan.groups}
        nngp, pull, (moments, roots) = jax.vjp(of_deviations, zeros, has_aux=True)
        (slopes,) = pull(slope)
        return Limit(nngp, moments, roots, {group: (d + d.T) / 2 for group, d in slopes.items()})

    def influences(self, limit: Limit, draws: np.ndarray) -> jax.Array:
        """Returns the influence h_s of every group and neuron, (groups, M), for draws (vectors, M, N)."""
        return self._influences(limit, draws)

    def nngps(self, k_in: list[jax.Array], draws: np.ndarray, t: Any) -> jax.Array:
        """Returns the NNGPs of networks whose nodes hand on a mixture, (networks, N, N).

        Every node hands on (1 - t) times the expected moments plus t times those of M neurons. At t = 1 this is a
        network of width M, exactly in distribution.

        Args:
          k_in: Second moments of the data, as in `limit`.
          draws: Standard normal numbers, (networks, draws of an index, M, N).
          t: The share of the drawn neurons, a number.
        """
        return self._nngps(k_in, draws, jnp.asarray(t, jnp.float64), True)

    def drawn(self, k_in: list[jax.Array], draws: np.ndarray) -> jax.Array:
        """Returns the NNGPs of networks, (networks, N, N)."""
        return self.nngps(k_in, draws, 1.0)

    def _of_influences(self, limit: Limit, draws: jax.Array) -> jax.Array:
        return influences_of(limit, passed(self.plan, draws, lambda group, _: limit.roots[group]).values)

    def _of_draws(self, k_in: list[jax.Array], draws: jax.Array, t: jax.Array, true: jax.Array) -> jax.Array:
        def one(of_one: jax.Array) -> jax.Array:
            def hand_on(handed: HandedOn) -> jax.Array:
                assert handed.values is not None
                drawn = jnp.matmul(handed.values.T, handed.values, precision="highest") / len(handed.values)
                return (1 - t) * handed.expected + t * drawn

            return propagate(self.plan, k_in, hand_on, of_one, true)[0]

        return jax.lax.map(one, draws)


@functools.lru_cache(maxsize=64)
def recursion_of(network: Network) -> Recursion:
    """Returns the recursion of a network, and keeps its compiled functions; see `plan_of` for what is refused."""
    return Recursion(network)


def batches(recursion: AnyRecursion, rows: int, networks: int, width: int, seed: Seed) -> Iterator[np.ndarray]:
    """Yields draws of networks, (networks, vectors, width, rows), in batches of bounded size."""
    vectors, rng = recursion.vectors, np.random.default_rng(seed)
    most = max(1, _BATCH // (rows * max(vectors * width, rows)))
    for start in range(0, networks, most):
        yield rng.standard_normal((min(most, networks - start), vectors, width, rows))
