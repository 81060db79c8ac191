"""The backward pass of a network of finite width as a recursion of moments, for its NTK.

With one output f, let d_k = sqrt(n) df/du_k for the preactivations u_k = W v + b of a weighted edge e. Then

    NTK = sum over weighted edges e of (a_w G_e + a_b) D_e + a_w G_readout + a_b,   D_e = 1/n sum_k d_k d_k^T

elementwise, with the second moments G_e that the edge's source hands on. So the NTK reads every edge's two means over
neurons, and no other function of its weights.

Backwards, a weighted edge hands a message to its source, m_k = w_std / sqrt(n) sum_l W_lk d_l. A node's B is the sum of
the messages of its edges (times phi', if the activation comes first) and of the B that skips pass on to the same index;
the output node receives one number per neuron, its weight of the readout, for all inputs. And d = B phi'(u), or B.

Given the forward pass, W is known on the span of v. Elsewhere it is fresh, so that a message is a draw of
N(0, w_std^2 D_e) up to terms with 1/n sum_l u_l d_l. These have the size n^-1/2, and their signs are those of the
readout's weights. They enter D_e by products of two, of order 1 / n: the mean of the NTK at first order, its variance
not before second order. `network_message` keeps them, so that networks are drawn exactly in distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg

from nngp_dag.activations import Activation
from nngp_dag.errors import InputError
from nngp_dag.kernels.layer_rules import Layer
from nngp_dag.width.neurons import Group, Passed, Plan, first_activation, last_activation, traced_slope


class Wire(NamedTuple):
    """A weighted edge, or a stem, as the backward pass reads it.

    Attributes:
      group: The group that hands moments to it; (i, -1) for a stem.
      layer: Its operation.
      target: The node that it leads to.
      factor: Its factor in the node's sum.
    """

    group: Group
    layer: Layer
    target: int
    factor: float


class Circuit(NamedTuple):
    """The backward pass of a network.

    Attributes:
      wires: Weighted edges and stems by the numbers of their draws, the last target first.
      received: For each node, the factors of the messages that it receives, by the number of the edge; the number of
        draws stands for the readout.
    """

    wires: dict[int, Wire]
    received: tuple[dict[int, float], ...]


def circuit_of(plan: Plan) -> Circuit:
    """Returns the backward pass of a network.

    Raises:
      InputError: The network has no readout.
    """
    if plan.layers.readout is None:
        raise InputError(
            "Expected a network with a readout for the spread of the NTK, got one without: the NTK of a single neuron "
            "is no mean over neurons"
        )
    group_of = {number: group for group, numbers in plan.edges.items() for number in numbers}
    wires: dict[int, Wire] = {}
    received: list[dict[int, float]] = [{} for _ in plan.nodes]
    received[plan.output][plan.draws] = 1.0
    for target in reversed(range(len(plan.nodes))):
        for part in plan.nodes[target]:
            if part.node is not None:
                for message, factor in received[target].items():
                    beside = received[part.node].get(message, 0.0)
                    received[part.node][message] = beside + part.factor * factor
                continue
            group = group_of.get(part.draw, (target, -1))
            layer = plan.layers.stem if group[1] < 0 else plan.layer(group)
            assert layer is not None
            wires[part.draw] = Wire(group, layer, target, part.factor)
            if group[1] >= 0:
                received[group[0]][part.draw] = 1.0
    return Circuit(wires, tuple(received))


def expected_moments(
    plan: Plan,
    circuit: Circuit,
    arguments: dict[Group, jax.Array],
    hand_back: Callable[[int, jax.Array], jax.Array],
    rows: int,
) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
    """Returns the moments D of all edges, and the covariances of all messages, at infinite width.

    Args:
      plan: The network.
      circuit: Its backward pass.
      arguments: Covariances of what activations act on, see `Neurons`.
      hand_back: Function of an edge's number and its expected moments, (N, N), that returns what takes their place.
      rows: Number N of inputs.
    """

    def times_slope(phi: Activation | None, group: Group, moments: jax.Array) -> jax.Array:
        return moments if phi is None else moments * traced_slope(phi, arguments[group])

    readout = plan.layers.readout
    assert readout is not None
    moments: dict[int, jax.Array] = {}
    messages = {plan.draws: readout.variance * jnp.ones((rows, rows))}
    terms = {plan.draws: times_slope(first_activation(readout), plan.readout, messages[plan.draws])}
    for number, (group, layer, target, factor) in circuit.wires.items():
        total = sum(of**2 * terms[message] for message, of in circuit.received[target].items())
        expected = factor**2 * times_slope(last_activation(layer), group, total)  # type: ignore[arg-type]
        moments[number] = hand_back(number, expected)
        if number >= plan.inputs:
            messages[number] = layer.variance * moments[number]
            terms[number] = times_slope(first_activation(layer), group, messages[number])
    return moments, messages


def derivatives(
    plan: Plan, circuit: Circuit, forward: Passed, message_of: Callable[[int, jax.Array | None], jax.Array]
) -> dict[int, jax.Array]:
    """Returns d of drawn neurons by the number of the edge, (M, N) each.

    Args:
      plan: The network.
      circuit: Its backward pass.
      forward: The drawn neurons.
      message_of: Function of an edge's number and its d, or of the readout's number and None, that returns the message
        to the source, (M, N), or (M, 1) where all inputs have the same.
    """

    def times_slope(phi: Activation | None, u: jax.Array, value: jax.Array) -> jax.Array:
        return value if phi is None else value * jax.jvp(phi, (u,), (jnp.ones_like(u),))[1]

    found: dict[int, jax.Array] = {}
    output = forward.nodes[plan.output]
    message = jnp.broadcast_to(message_of(plan.draws, None), output.shape)
    terms = {plan.draws: times_slope(first_activation(plan.layers.readout), output, message)}
    for number, (group, layer, target, factor) in circuit.wires.items():
        total = sum(of * terms[message] for message, of in circuit.received[target].items())
        d = times_slope(last_activation(layer), forward.affine[number], factor * total)  # type: ignore[operator]
        found[number] = d
        if number >= plan.inputs:
            terms[number] = times_slope(first_activation(layer), forward.nodes[group[0]], message_of(number, d))
    return found


class Behind(NamedTuple):
    """What the forward pass knows of the weights of an edge.

    Attributes:
      layer: The operation.
      values: The inputs of the weights, (n, N).
      factor: Cholesky factor R of the covariance of preactivations.
      normals: The preactivations are normals R^T, (n, N).
    """

    layer: Layer
    values: jax.Array
    factor: jax.Array
    normals: jax.Array


def network_message(behind: Behind, d: jax.Array, root_of_moments: jax.Array, fresh: jax.Array) -> jax.Array:
    """Returns the message of an edge with real weights, given the forward pass, exactly in distribution.

    With the features F = (w_std v / sqrt(n), b_std), (n + 1, N), and F^T F = R R^T, the forward pass has fixed weights
    and biases on the span of Q = F R^-T, where they are `normals`. The rest is fresh.

    Args:
      behind: Facts of the forward pass.
      d: The derivatives d, (n, N).
      root_of_moments: Cholesky factor of D.
      fresh: Standard normal numbers, (n + 1, N).
    """
    layer, n = behind.layer, len(d)
    w = layer.variance**0.5
    bias = jnp.full((1, d.shape[1]), 0.0 if layer.bias is None else layer.bias**0.5)
    features = jnp.concatenate([w * behind.values / n**0.5, bias])
    q = jax.scipy.linalg.solve_triangular(behind.factor, features.T, lower=True).T
    unknown = fresh @ root_of_moments.T
    known = behind.normals.T @ d / n**0.5
    return w * (unknown + q @ (known - q.T @ unknown))[:-1]
