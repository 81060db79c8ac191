"""The recursion of a network's NTK: forward moments of neurons, then backward moments of derivatives.

To first order in 1 / width, the NTK is a functional of the joint empirical distribution of all forward and backward
draws at one index of neurons. Forward and backward draws are independent.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.kernels.layer_rules import Layer
from nngp_dag.width.backward import Behind, circuit_of, derivatives, expected_moments, network_message
from nngp_dag.width.neurons import Group, HandedOn, Passed, Plan, passed, plan_of, propagate, root
from nngp_dag.width.recursion import AnyRecursion, Limit, influences_of


class TangentRecursion(AnyRecursion):
    """The recursion of a network's NTK in compiled form; the data are arguments.

    Attributes:
      plan: The network.
      circuit: Its backward pass.
      vectors: See `AnyRecursion`; those of the forward pass come first, the readout's last.
      spare: See `AnyRecursion`; the message of a bias.
      nodes: See `AnyRecursion`; the derivatives of an edge are those of the neurons of its target.
    """

    spare = 1

    def __init__(self, network: Network, channels: tuple[int, ...]) -> None:
        """Plans the recursion, see `plan_of` and `circuit_of`; `channels` has the number of features of each input."""
        self.plan: Plan = plan_of(network)
        self.circuit = circuit_of(self.plan)
        self.vectors = 2 * self.plan.draws + 1 - self.plan.inputs
        self.nodes = (*(s for s, _ in self.plan.groups), *(wire.target for wire in self.circuit.wires.values()))
        self._channels = channels
        self._influences, self._drawn = jax.jit(self._of_influences), jax.jit(self._of_draws)

    def limit(self, k_in: list[jax.Array], slope: jax.Array) -> Limit:
        """Returns the network at infinite width; see `AnyRecursion`."""
        plan, circuit, rows = self.plan, self.circuit, len(k_in[0])

        # Not compiled as a whole, see `Recursion.limit`.
        def of_deviations(deviations: dict[Group, jax.Array]) -> tuple[jax.Array, tuple]:
            expected: dict[Group, jax.Array] = {}
            forward: dict[Group, jax.Array] = {}

            def deviating(key: Group, moments: jax.Array) -> jax.Array:
                expected[key] = moments
                return moments + deviations[key]

            def hand_on(handed: HandedOn) -> jax.Array:
                forward[handed.group] = deviating(handed.group, handed.expected)
                return forward[handed.group]

            def hand_back(number: int, moments: jax.Array) -> jax.Array:
                return deviating(_back(number), moments)

            _, algebra = propagate(plan, k_in, hand_on)
            backward, messages = expected_moments(plan, circuit, algebra.arguments, hand_back, rows)
            roots = {group: root(p) for group, p in algebra.covariances.items()}
            roots |= {_back(number): root(p) for number, p in messages.items() if number < plan.draws}
            return self._ntk(k_in, forward, backward), (expected, roots)

        zeros = {key: jnp.zeros_like(k_in[0]) for key in (*plan.groups, *map(_back, circuit.wires))}
        ntk, pull, (moments, roots) = jax.vjp(of_deviations, zeros, has_aux=True)
        (slopes,) = pull(slope)
        return Limit(ntk, moments, roots, {key: (d + d.T) / 2 for key, d in slopes.items()})

    def influences(self, limit: Limit, draws: np.ndarray) -> jax.Array:
        """Returns the influence of every neuron; see `AnyRecursion`."""
        return self._influences(limit, draws)

    def drawn(self, k_in: list[jax.Array], draws: np.ndarray) -> jax.Array:
        """Returns the NTKs of networks; see `AnyRecursion`."""
        return self._drawn(k_in, draws)

    def _ntk(self, k_in: list[jax.Array], forward: dict[Group, jax.Array], backward: dict[int, jax.Array]) -> jax.Array:
        """Returns the NTK, given the moments that groups hand on and those of derivatives."""
        plan = self.plan

        def scaled(layer: Layer, moments: jax.Array, fan_in: int | None) -> jax.Array:
            weight, bias = plan.layers.rules.tangent_weights(layer, fan_in)
            return weight * moments + bias

        assert plan.layers.readout is not None
        total = scaled(plan.layers.readout, forward[plan.readout], None)
        for number, wire in self.circuit.wires.items():
            stem = number < plan.inputs
            moments = k_in[number] if stem else forward[wire.group]
            total += scaled(wire.layer, moments, self._channels[number] if stem else None) * backward[number]
        return total

    def _of_influences(self, limit: Limit, draws: jax.Array) -> jax.Array:
        forward = passed(self.plan, draws, lambda group, _: limit.roots[group])

        def message_of(number: int, d: jax.Array | None) -> jax.Array:
            fresh = self._backward(draws, number)
            return self._of_readout(fresh) if d is None else fresh @ limit.roots[_back(number)].T

        backward = derivatives(self.plan, self.circuit, forward, message_of)
        return influences_of(limit, forward.values | {_back(number): d for number, d in backward.items()})

    def _of_draws(self, k_in: list[jax.Array], draws: jax.Array) -> jax.Array:
        return jax.lax.map(functools.partial(self._of_network, k_in), draws)

    def _of_network(self, k_in: list[jax.Array], draws: jax.Array) -> jax.Array:
        """Returns the NTK of one network, exactly in distribution."""
        plan, n = self.plan, draws.shape[1] - self.spare
        roots: dict[Group, jax.Array] = {}

        def root_of(group: Group, values: jax.Array | None) -> jax.Array:
            layer = plan.layers.stem if values is None else plan.layer(group)
            assert layer is not None
            handed = k_in[group[0]] if values is None else _mean_product(values)
            roots[group] = root(layer.variance * handed + (0.0 if layer.bias is None else layer.bias))
            return roots[group]

        forward: Passed = passed(plan, draws[:, :n], root_of)

        def message_of(number: int, d: jax.Array | None) -> jax.Array:
            fresh = self._backward(draws, number)
            if d is None:
                return self._of_readout(fresh[:n])
            group, layer, *_ = self.circuit.wires[number]
            behind = Behind(layer, forward.values[group], roots[group], draws[number, :n])
            return network_message(behind, d, root(_mean_product(d)), fresh)

        backward = derivatives(plan, self.circuit, forward, message_of)
        moments = {group: _mean_product(values) for group, values in forward.values.items()}
        return self._ntk(k_in, moments, {number: _mean_product(d) for number, d in backward.items()})

    def _backward(self, draws: jax.Array, number: int) -> jax.Array:
        return draws[self.plan.draws + number - self.plan.inputs]

    def _of_readout(self, fresh: jax.Array) -> jax.Array:
        """Returns the readout's message, its weights: one number per neuron."""
        assert self.plan.layers.readout is not None
        return self.plan.layers.readout.variance**0.5 * fresh[:, :1]


def _back(number: int) -> Group:
    """Returns the key of what an edge hands back, see `Limit`."""
    return number, -2


def _mean_product(values: jax.Array) -> jax.Array:
    return jnp.matmul(values.T, values, precision="highest") / len(values)


@functools.lru_cache(maxsize=64)
def tangent_recursion_of(network: Network, channels: tuple[int, ...]) -> TangentRecursion:
    """Returns the recursion of a network's NTK, and keeps its compiled functions."""
    return TangentRecursion(network, channels)
