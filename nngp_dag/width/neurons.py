"""Networks of finite width as a perturbed recursion: what every node hands on, and the values of its neurons.

At finite width n, a weighted edge e out of node s sees only the mean over neurons k of the products of two inputs,

    G_e[i, j] = 1/n sum_k v_k(x_i) v_k(x_j),   v = X(s), or phi(X(s)) in the order "act-linear".

Given G_e, the preactivations of all neurons behind e are independent draws of N(0, w_std^2 G_e + b_std^2). So a network
is this recursion: draw the neurons, hand on their second moments, draw the next ones. At infinite width G_e is the
expectation. The class `Neurons` is the algebra of both, for the one interpreter of programs: it carries the exact
covariances as kernels do, and replaces what is handed on by a function of it and of the neurons' values.

A neuron has an index: skips pass values on to the same index, and weighted edges mix all indices. So the values of all
nodes at one index are one joint draw.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.activations import Activation
from nngp_dag.architecture import Network
from nngp_dag.architecture.interpreter import Algebra, Sum, run
from nngp_dag.architecture.program import Program, program_by_rows
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import Dense
from nngp_dag.kernels.backends.unrolled import evaluated_once
from nngp_dag.kernels.dual import dual, gap_of, mean
from nngp_dag.kernels.dual.base import traced_variance
from nngp_dag.kernels.layer_rules import Layer, Layers, layers_of

_dual = jax.jit(dual, inline=True)
_mean = jax.jit(mean, inline=True)

Group = tuple[int, int]
"""What hands moments on: a node, and the number of the operation that takes them; the readout's comes last."""


class Part(NamedTuple):
    """One summand of a node's neurons: a field, or the neurons of an earlier node.

    Attributes:
      factor: The factor of the summand.
      draw: Number of the field's draw, for a field.
      node: The earlier node, or None.
    """

    factor: float
    draw: int = -1
    node: int | None = None


class Plan(NamedTuple):
    """A network as the recursion reads it.

    Attributes:
      program: The network's program by rows.
      layers: Its operations.
      nodes: For each node, the summands of its neurons.
      edges: For each group, the numbers of the draws of the edges that take its moments.
      draws: Number of stems and weighted edges: each index of neurons draws so many vectors of preactivations.
      output: The output node.
    """

    program: Program
    layers: Layers
    nodes: tuple[tuple[Part, ...], ...]
    edges: dict[Group, tuple[int, ...]]
    draws: int
    output: int

    @property
    def inputs(self) -> int:
        """Number of input nodes, whose stems have the first draws."""
        return self.program.structure.num_inputs

    @property
    def readout(self) -> Group:
        """The group of the readout."""
        return self.output, len(self.program.operations)

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, the readout's last."""
        return (*self.edges, self.readout)

    def layer(self, group: Group) -> Layer | None:
        """Returns the operation that takes a group's moments; None where there is no readout."""
        return self.layers.readout if group == self.readout else self.layers.edges[group[1]]


def plan_of(network: Network) -> Plan:
    """Returns the recursion of a network.

    Raises:
      GraphError: The network has several outputs, or an activation acts on a node that is not Gaussian.
      InputError: The network has convolutions, pooling or layer norm.
    """
    dag = network.dag
    if network.image_operations:
        raise InputError(
            f"Expected fully connected layers, got {network.image_operations[0]!r}; the spread of convolutional and "
            "pooled networks is not known here"
        )
    if normalized := [op for op in network.weighted_operations if op.layer_norm]:
        raise InputError(
            f"Expected layers without layer norm, got {normalized[0].describe()}: their spread is not known here; "
            "set `layer_norm` False, or take the spread of networks that you draw, by `nngp_dag.empirical`"
        )
    output, *others = dag.outputs
    if others:
        raise GraphError(f"Expected a graph with one output, got {len(dag.outputs)}; take the outputs one by one")
    network.check_gaussian(input_is_gaussian=True, reads_out=True)
    program = program_by_rows(network)
    number_of = {op: number for number, op in enumerate(program.operations)}
    edges: dict[Group, list[int]] = {
        (step.node, operation): []
        for step in program.structure.steps
        if step.node is not None
        for operation, _ in step.fields
    }
    draws, nodes = dag.num_inputs, [[Part(1.0, node)] if node < dag.num_inputs else [] for node in range(dag.num_nodes)]
    for edge in network.edges:
        factor = float(network.multiplicity(edge))
        if isinstance(edge.op, Dense):
            edges[edge.source, number_of[edge.op]].append(draws)
            nodes[edge.target].append(Part(factor, draws))
            draws += 1
        else:
            nodes[edge.target].append(Part(factor, node=edge.source))
    layers = layers_of(network, program.operations, reads_out=bool(network.readout))
    takers = {group: tuple(numbers) for group, numbers in edges.items()}
    return Plan(program, layers, tuple(map(tuple, nodes)), takers, draws, output)


class HandedOn(NamedTuple):
    """What a group hands on, and the neurons behind it.

    Attributes:
      group: The group.
      expected: Second moments at infinite width, given the moments handed on before, (N, N).
      values: Values of the drawn neurons, (M, N), or None where none are drawn.
    """

    group: Group
    expected: jax.Array
    values: jax.Array | None


class Neurons(Algebra):
    """The algebra of covariances in which every node hands on other second moments than the expected ones.

    Attributes:
      covariances: Covariances of the preactivations of every stem, (i, -1), and behind every group, (N, N).
      arguments: Covariances of what the activation of every stem and group acts on, (N, N).
      means: Means of every node, (N,), or None for 0.
    """

    def __init__(
        self,
        plan: Plan,
        hand_on: Callable[[HandedOn], jax.Array],
        draws: jax.Array | None,
        true: jax.Array | None,
    ) -> None:
        """Takes the arguments of `propagate`."""
        self._plan, self._hand_on, self._draws, self._true = plan, hand_on, draws, true
        self.covariances: dict[Group, jax.Array] = {}
        self.arguments: dict[Group, jax.Array] = {}
        self.means: dict[int, jax.Array | None] = {}
        self._fields: dict[int, jax.Array] = {}
        self._nodes: dict[int, jax.Array] = {}

    def stem(self, number: int, k_in: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns covariance and mean of an input node's field, given the second moments of its data."""
        assert self._plan.layers.stem is not None
        return self._field((number, -1), self._plan.layers.stem, k_in, [number])

    def add(self, of: Sum) -> jax.Array:
        """Adds up covariances of independent fields."""
        return functools.reduce(operator.add, map(operator.mul, of.weights, of.values))

    def at_node(self, step: Any, total: jax.Array, mean: jax.Array | None) -> jax.Array:
        """Keeps the mean."""
        self.means[step.node] = mean
        return total

    def apply(
        self, operation: int, slot: int, of: Sum, node: jax.Array, mean: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Hands a node's moments on to the edges of one operation."""
        del slot
        plan, group = self._plan, (of.step.node, operation)
        moments = self.handed_on(group, node, mean)
        return self._field(group, plan.layers.edges[operation], moments, plan.edges[group])

    def handed_on(self, group: Group, covariance: jax.Array, mean: jax.Array | None) -> jax.Array:
        """Returns the second moments that a group hands on."""
        layer = self._plan.layer(group)
        phi = first_activation(layer)
        if phi is not None:
            self.arguments[group] = covariance
            covariance, mean = self._activated(phi, covariance)
        expected = covariance if mean is None else covariance + mean[:, None] * mean[None, :]
        values = None if self._draws is None else self.values(group)
        return self._hand_on(HandedOn(group, expected, values))

    def values(self, group: Group) -> jax.Array:
        """Returns the drawn neurons' values whose products a group hands on, (M, N)."""
        phi = first_activation(self._plan.layer(group))
        return activate(phi, self._node(group[0]))

    def _field(
        self, group: Group, layer: Layer, moments: jax.Array, draws: Sequence[int]
    ) -> tuple[jax.Array, jax.Array | None]:
        covariance = layer.variance * moments + (0.0 if layer.bias is None else layer.bias)
        self.covariances[group] = covariance
        phi = last_activation(layer)
        if self._draws is not None:
            factor = root(covariance)
            for number in draws:
                self._fields[number] = activate(phi, self._draws[number] @ factor.T)
        if phi is None:
            return covariance, None
        self.arguments[group] = covariance
        return self._activated(phi, covariance)

    def _activated(self, phi: Activation, covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self._true is None:
            return activated(phi, covariance)
        return evaluated_once(self._true, activated, phi, covariance)

    def _node(self, node: int) -> jax.Array:
        return _node(self._plan, self._fields, self._nodes, node)


def _node(plan: Plan, fields: dict[int, jax.Array], nodes: dict[int, jax.Array], node: int) -> jax.Array:
    """Returns the neurons' values at a node from drawn fields, (M, N), and keeps those of nodes."""
    # From the first node on, without recursion: a chain of skips may be long.
    for t, parts in enumerate(plan.nodes[: node + 1]):
        if t not in nodes and parts:
            terms = (part.factor * (fields[part.draw] if part.node is None else nodes[part.node]) for part in parts)
            nodes[t] = functools.reduce(operator.add, terms)
    return nodes[node]


class Passed(NamedTuple):
    """Drawn neurons, (M, N) each.

    Attributes:
      affine: Preactivations of the fields, by the numbers of their draws.
      nodes: Values at the nodes.
      values: Values whose products every group hands on.
    """

    affine: dict[int, jax.Array]
    nodes: dict[int, jax.Array]
    values: dict[Group, jax.Array]


def passed(plan: Plan, draws: jax.Array, root_of: Callable[[Group, jax.Array | None], jax.Array]) -> Passed:
    """Returns neurons with given covariances.

    Args:
      plan: The network.
      draws: Standard normal numbers, (draws of an index, M, N).
      root_of: Function of a stem, (i, -1), and None, or of a group and its neurons' values. It returns the Cholesky
        factor of the covariance of the preactivations behind it, (N, N).
    """
    found, fields = Passed({}, {}, {}), {}

    def take(layer: Layer, factor: jax.Array, numbers: Sequence[int]) -> None:
        for number in numbers:
            found.affine[number] = draws[number] @ factor.T
            fields[number] = activate(last_activation(layer), found.affine[number])

    assert plan.layers.stem is not None
    for number in range(plan.inputs):
        take(plan.layers.stem, root_of((number, -1), None), [number])
    for group in plan.groups:
        layer, node = plan.layer(group), _node(plan, fields, found.nodes, group[0])
        found.values[group] = activate(first_activation(layer), node)
        if layer is not None and group != plan.readout:
            take(layer, root_of(group, found.values[group]), plan.edges[group])
    return found


def first_activation(layer: Layer | None) -> Activation | None:
    """Returns the activation that a layer applies before its weights, or None."""
    return None if layer is None or layer.order == "linear-act" else layer.activation


def last_activation(layer: Layer | None) -> Activation | None:
    """Returns the activation that a layer applies after its weights, or None."""
    return None if layer is None or layer.order != "linear-act" else layer.activation


def activate(phi: Activation | None, u: jax.Array) -> jax.Array:
    """Returns phi(u), or u if there is no activation."""
    return u if phi is None else phi(u)


@jax.jit
def activated(phi: Activation, covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns covariance and mean of phi(u) for u ~ N(0, covariance), with derivatives of higher order."""
    v, own = jnp.diagonal(covariance), jnp.eye(len(covariance), dtype=bool)
    # On the diagonal the dual has no second derivative in the angle, and none is needed: the variance has one number.
    k = jnp.where(own, 0, covariance)
    v1, v2 = v[:, None], v[None, :]
    c = _dual(phi, k, gap_of(k, v1, v2), v1, v2).covariance
    return jnp.where(own, traced_variance(phi, v)[:, None], c), _mean(phi, v)


@jax.jit
def traced_slope(phi: Activation, covariance: jax.Array) -> jax.Array:
    """Returns E[phi'(u) phi'(v)] for (u, v) ~ N(0, covariance), with first derivatives, as `activated` does."""
    v, own = jnp.diagonal(covariance), jnp.eye(len(covariance), dtype=bool)
    k = jnp.where(own, 0, covariance)
    v1, v2 = v[:, None], v[None, :]
    # The diagonal has one number, too: its derivative is that along k = v1 = v2, and the gap stays 0.
    of_own = _dual(phi, v, jnp.zeros_like(v), v, v).slope
    return jnp.where(own, of_own[:, None], _dual(phi, k, gap_of(k, v1, v2), v1, v2).slope)


def jitter(covariance: jax.Array) -> jax.Array:
    """Returns the number that is added to the diagonal, so that a singular matrix has a Cholesky factor."""
    rows = abs(covariance).sum(axis=1).max()
    return 16 * len(covariance) * jnp.finfo(covariance.dtype).eps * rows + jnp.finfo(covariance.dtype).tiny


@jax.jit
def root(covariance: jax.Array) -> jax.Array:
    """Returns the lower Cholesky factor."""
    added = jax.lax.stop_gradient(jitter(covariance))
    return jnp.linalg.cholesky(covariance + added * jnp.eye(len(covariance), dtype=covariance.dtype))


def propagate(
    plan: Plan,
    k_in: Sequence[jax.Array],
    hand_on: Callable[[HandedOn], jax.Array],
    draws: jax.Array | None = None,
    true: jax.Array | None = None,
) -> tuple[jax.Array, Neurons]:
    """Runs the recursion of a network.

    Args:
      plan: The network.
      k_in: Second moments of the data, x_i . x_j / d, of every input node, (N, N).
      hand_on: Returns the moments that are handed on in place of the expected ones.
      draws: Standard normal numbers, (draws of an index, M, N), or None if no neurons are drawn.
      true: True in a form that XLA cannot know, see `evaluated_once`. None outside of compiled functions, where all
        layers with one class of activations share their compiled functions and derivatives.

    Returns:
      The NNGP after the readout, (N, N), and the algebra with its neurons.
    """
    algebra, program = Neurons(plan, hand_on, draws, true), plan.program
    stems = [algebra.stem(number, k) for number, k in enumerate(k_in)]
    fields, means = zip(*stems, strict=True)
    nodes = run(program.structure, program.weights.tolist(), program.mean_weights.tolist(), fields, means, algebra)
    moments = algebra.handed_on(plan.readout, nodes[plan.output], algebra.means[plan.output])
    readout = plan.layers.readout
    if readout is None:
        return moments, algebra
    return readout.variance * moments + (0.0 if readout.bias is None else readout.bias), algebra


def moments_of(data: np.ndarray) -> jax.Array:
    """Returns x_i . x_j / d of an array of inputs, (N, d)."""
    x = jnp.asarray(data, jnp.float64)
    return jnp.matmul(x, x.T, precision="highest") / x.shape[1]
