"""The steps of a long program as one compiled loop, whose time to compile does not grow with the graph.

`nngp_dag.architecture.interpreter` unrolls a program. Here every turn of the loop reads a row of tables (see
`loop_tables`) and applies the same algebra. The terms of a sum lie along a leading axis. The loop serves vectors only:
all turns have values of one shape, while images change their shape from node to node.
"""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nngp_dag.architecture.interpreter import Algebra, Sum
from nngp_dag.kernels import layer_rules
from nngp_dag.kernels.backends.loop_tables import Tables, Turns
from nngp_dag.kernels.layer_rules import KernelState, Layers, Marginals, Summand
from nngp_dag.kernels.pixel_layout import PixelLayout


class _Vectors(Algebra):
    """The algebra of covariances of vectors; subclasses supply variances and means."""

    layout: PixelLayout

    def __init__(self, layers: Layers) -> None:
        """Keeps the operations."""
        self.layers = layers

    @abc.abstractmethod
    def marginals(self, turn: Turns, node: KernelState, mean: jax.Array | None) -> Marginals:
        """Returns the variances and means of a node."""

    def apply(
        self, operation: int, slot: int, of: Sum, node: KernelState, mean: jax.Array | None
    ) -> tuple[KernelState, jax.Array | None]:
        """Applies a weighted operation."""
        del slot
        value, marginals = layer_rules.apply(
            self.layers.edges[operation], node, self.marginals(of.step, node, mean), self.layout, self.layers.rules
        )
        return value, marginals.m1


class _OwnVectors(_Vectors):
    """The variances of inputs, (N,); stacks hold no gap, because it is 0 between an input and itself."""

    layout = PixelLayout(paired=True)

    def add(self, of: Sum) -> KernelState:
        """Adds up the terms of a turn."""
        return layer_rules.add_up(Summand(of.weights[:, None], of.values, None, None))

    def at_node(self, step: Turns, total: KernelState, mean: jax.Array | None) -> KernelState:
        """Adds the gap of 0, which the layer rules expect."""
        del step, mean
        return total._replace(gap=jnp.zeros_like(total.k))

    def apply(
        self, operation: int, slot: int, of: Sum, node: KernelState, mean: jax.Array | None
    ) -> tuple[KernelState, jax.Array | None]:
        """Applies a weighted operation."""
        value, mean = super().apply(operation, slot, of, node, mean)
        return value._replace(gap=None), mean

    def marginals(self, turn: Turns, node: KernelState, mean: jax.Array | None) -> Marginals:
        """Returns the variances and means of a node."""
        del turn
        return Marginals(node.k, node.k) if mean is None else Marginals(node.k, node.k, mean, mean)


class _BlockVectors(_Vectors):
    """A block of the kernel, (N1, N2), given the variances by place and the means by node of its rows and columns."""

    layout = PixelLayout()

    def __init__(self, layers: Layers, first: Any, second: Any, equal_norms: bool) -> None:
        """Keeps operations and moments; with `equal_norms`, all inputs have the same shares of summands in a sum."""
        super().__init__(layers)
        self._first, self._second, self._equal_norms = first, second, equal_norms

    def add(self, of: Sum) -> KernelState:
        """Adds up the terms of a turn."""
        turn, weights = of.step, of.weights[:, None, None]
        if self._equal_norms:
            return layer_rules.add_up(Summand(weights, of.values, None, None))
        shares = self._first.v[turn.term_places][:, :, None], self._second.v[turn.term_places][:, None]
        return layer_rules.add_up(Summand(weights, of.values, *shares), *self._variances(turn))

    def marginals(self, turn: Turns, node: KernelState, mean: jax.Array | None) -> Marginals:
        """Returns the variances and means of a node."""
        del node, mean
        if self._first.m is None:
            return Marginals(*self._variances(turn))
        means = self._first.m[turn.node][:, None], self._second.m[turn.node][None]
        return Marginals(*self._variances(turn), *means)

    def _variances(self, turn: Turns) -> tuple[jax.Array, jax.Array]:
        return self._first.v[turn.place][:, None], self._second.v[turn.place][None]


def _start(fields: Sequence[Any], size: int) -> Any:
    """Returns stacks with `size` slots; the first ones hold the stems' fields."""
    return jax.tree.map(
        lambda *v: jnp.concatenate([jnp.stack(v), jnp.zeros((size - len(v), *v[0].shape), v[0].dtype)]),
        *fields,
    )


def _put(stack: jax.Array, value: Any, index: Any) -> jax.Array:
    return lax.dynamic_update_index_in_dim(stack, value, index, 0)


def _run(
    tables: Tables, fields: Sequence[KernelState], means: jax.Array | None, algebra: _Vectors, every: bool
) -> tuple[KernelState, jax.Array | None, Any]:
    """Runs all turns.

    Args:
      tables: The program.
      fields: The stems' fields.
      means: Means by place, or None if no means are to be computed.
      algebra: The operations on values.
      every: Whether the values of all turns are returned.

    Returns:
      The slots and the means after the last turn, and the sums and fields of every turn or None.
    """

    def turn(state: tuple[KernelState, Any], row: Turns) -> tuple[tuple[KernelState, Any], Any]:
        stacks, mu = state
        of = Sum(row, row.weights, jax.tree.map(lambda stack: stack[row.terms], stacks))
        total = algebra.add(of)
        # m(t) = sum of B mu, Equation (5) of docs/mathematics.md. A sum and no matrix product, which might run in TF32.
        mean = None if mu is None else jnp.sum(row.mean_weights[:, None] * mu[row.mean_terms], axis=0)

        def apply(operation: int, of: Sum, node: KernelState, mean: jax.Array | None) -> tuple[KernelState, Any]:
            value, of_field = algebra.apply(operation, 0, of, node, mean)
            if mean is None:
                return value, None
            return value, jnp.zeros_like(mean) if of_field is None else of_field

        def nothing(*_: Any) -> tuple[KernelState, Any]:
            return jax.tree.map(jnp.zeros_like, (total, mean))

        # One branch for every operation, and one for turns without an operation. All must return arrays of one
        # structure.
        branches = [
            *(lambda *args, op=op: apply(op, *args) for op in range(len(algebra.layers.edges))),
            nothing,
        ]
        field, field_mean = lax.switch(row.op, branches, of, algebra.at_node(row, total, mean), mean)
        stacks = jax.tree.map(lambda stack, v, f: _put(_put(stack, v, row.store), f, row.field), stacks, total, field)
        if mu is not None:
            mu = _put(_put(mu, mean, row.mean), field_mean, row.field_mean)
        return (stacks, mu), (total, field) if every else None

    (stacks, means), values = lax.scan(turn, (_start(fields, tables.slots.shape[0]), means), tables.turns)
    return stacks, means, values


def run_loop_moments(
    tables: Tables, fields: Sequence[KernelState], means: Sequence[jax.Array] | None, layers: Layers
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the recursion for inputs with themselves.

    Args:
      tables: The program.
      fields: The covariances of the stems' fields, (N,) each.
      means: The means of the stems' fields, (N,) each; None if all means of the network are 0.
      layers: The operations.

    Returns:
      The variances by place, (places, N), and the means by node, (nodes, N). Nodes that are not computed have means of
      0. The second is None if all means are 0.
    """
    count, num_nodes, like = len(fields), tables.nodes.shape[0], fields[0].k
    mu = None
    if means is not None:
        mu = jnp.zeros((tables.mean_places.shape[0], *like.shape), like.dtype)
        mu = mu.at[num_nodes : num_nodes + count].set(jnp.stack(list(means)))
    own = [KernelState(field.k, None, None) for field in fields]
    _, mu, (totals, found) = _run(tables, own, mu, _OwnVectors(layers), every=True)
    by_turn = jnp.stack([totals.k, found.k], axis=1).reshape(-1, *like.shape)
    v = jnp.concatenate([jnp.stack([field.k for field in own]), by_turn])
    return v, None if mu is None else mu[:num_nodes]


def run_loop(
    tables: Tables, fields: Sequence[KernelState], first: Any, second: Any, layers: Layers, equal_norms: bool
) -> KernelState:
    """Runs the recursion for a block of the kernel.

    Args:
      tables: The program.
      fields: The covariances of the stems' fields, (N1, N2) each.
      first: The variances by place and means by node of the rows, (places, N1) and (nodes, N1); see `run_loop_moments`.
      second: The variances and means of the columns.
      layers: The operations.
      equal_norms: Whether all inputs have the same shares of summands in a sum.

    Returns:
      The covariances of the output nodes, (outputs, N1, N2).
    """
    stacks, *_ = _run(tables, fields, None, _BlockVectors(layers, first, second, equal_norms), every=False)
    return jax.tree.map(lambda stack: stack[jnp.asarray(tables.outputs)], stacks)


def marginals_of_outputs(tables: Tables, first: Any, second: Any) -> Marginals:
    """Returns the variances and means of the output nodes, (outputs, N1, 1) and (outputs, 1, N2)."""
    places, nodes = jnp.asarray(tables.output_places), jnp.asarray(tables.output_nodes)
    v = first.v[places][:, :, None], second.v[places][:, None, :]
    return Marginals(*v) if first.m is None else Marginals(*v, first.m[nodes][:, :, None], second.m[nodes][:, None, :])
