"""The order of evaluation of a network's kernels: a sequence of sums and fields without branches.

A field is the output of a weighted edge; its covariance is a function of that of its source node. The covariance of a
node is a sum over fields, Equation (6) of docs/mathematics.md. There are three plans to evaluate these sums:

- dense: the tables A and B with all H + 1 columns, zeros included, so that all DAGs of one size share one program;
- rows: only the nonzero entries of A and B;
- pairs: Cov(t, u) for pairs of nodes whose sums meet through edges without weights, from the pairs of predecessors:
  Cov(t, u) = sum over s -> t of a Cov(s, u). The number of terms is linear in the edges for residual networks and
  ladders, where rows grow with every node. It is the only plan for pooling, which is no multiplication by a number.

The planner takes the cheaper of rows and pairs. Rows have at most one entry for every pair of a node and a field, which
bounds the cost of every graph. Graphs with skips between all nodes have about as many edges as rows have entries.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from nngp_dag.architecture._normal_form import EdgeKind, normal_form, rows
from nngp_dag.architecture.network import Network
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import Dense, EdgeOperation, Op, Operation


class Term(NamedTuple):
    """One summand: the value in a slot, which may be pooled.

    Attributes:
      slot: Slot of the value.
      left: Pooling of the first input's pixels, or None.
      right: Pooling of the second input's pixels, or None.
    """

    slot: int
    left: EdgeOperation | None = None
    right: EdgeOperation | None = None


class MeanTerm(NamedTuple):
    """One summand of a node's mean: the mean of a field, or the mean of an earlier node, which may be pooled.

    Attributes:
      slot: Slot of the field, or None.
      node: The earlier node, or None.
      pool: Pooling of the earlier node's mean, or None.
    """

    slot: int | None
    node: int | None
    pool: EdgeOperation | None = None


class Field(NamedTuple):
    """A field that leaves a node.

    Attributes:
      op: Number of the weighted operation in `Program.operations`.
      slot: Slot of the field.
    """

    op: int
    slot: int


class Step(NamedTuple):
    """A sum of covariances, then the fields that leave the node.

    Attributes:
      terms: The summands.
      slot: Slot of the sum.
      node: The node whose covariance the sum is; None for the covariance between two nodes.
      fields: The fields that leave the node.
    """

    terms: tuple[Term, ...]
    slot: int
    node: int | None
    fields: tuple[Field, ...]


class Structure(NamedTuple):
    """The hashable part of a program, on which its compiled form depends.

    Attributes:
      num_inputs: Number of input nodes; the first slots hold the fields of their stems.
      num_slots: Number of slots.
      steps: The steps in order. The terms of all steps, one after another, have the weights `Program.weights`.
      means: The summands of every node's mean; empty where all means are 0.
      outputs: The output nodes.
    """

    num_inputs: int
    num_slots: int
    steps: tuple[Step, ...]
    means: tuple[tuple[MeanTerm, ...], ...]
    outputs: tuple[int, ...]


class Program(NamedTuple):
    """A structure with its numbers and operations.

    Attributes:
      structure: The hashable part.
      weights: Weights of the terms of all steps, float64.
      mean_weights: Weights of the summands of all means, float64.
      operations: The weighted operations of the fields.
    """

    structure: Structure
    weights: np.ndarray
    mean_weights: np.ndarray
    operations: tuple[Dense, ...]


# Graphs of skips and plain weighted edges with at most this many nodes share the dense program of their size.
DENSE_NODES = 4


@functools.lru_cache(maxsize=4096)
def program(network: Network) -> Program:
    """Plans the evaluation of a network's kernels.

    Raises:
      GraphError: A skip multiplicity exceeds float64.

    Examples:
      >>> from nngp_dag.graph import Dag
      >>> steps = program(Network(Dag.from_code("2_02"))).structure.steps
      >>> [step.node for step in steps]
      [0, 1, 2]
    """
    dag = network.dag
    plain = all(isinstance(edge.op, Op) for edge in dag.live_edges)
    if plain and dag.num_nodes <= DENSE_NODES and dag.num_inputs == len(dag.outputs) == 1 and network.has_stem:
        return _dense(network)
    if network.pools:
        pairs = _Planner(network).plan_pairs()
        assert pairs is not None
        return pairs
    # Negative scales may cancel. Rows add multiplicities exactly, before they multiply rounded covariances; pairs would
    # subtract rounded covariances.
    cancels = any(network.multiplicity(edge) < 0 for edge in network.edges)
    pairs = None if cancels else _Planner(network, limit=2 * len(network.edges)).plan_pairs()
    if pairs is not None:
        return pairs
    by_rows = _Planner(network).plan_rows()
    # Graphs with skips between all nodes have many more pairs than rows have entries: the limit stops planning early.
    pairs = None if cancels else _Planner(network, limit=len(by_rows.weights)).plan_pairs()
    return pairs or by_rows


@functools.lru_cache(maxsize=4096)
def program_by_rows(network: Network) -> Program:
    """Plans by rows: every node is a sum of independent fields with nonnegative weights. The network must not pool."""
    return _Planner(network).plan_rows()


def program_by_pairs(network: Network, multiplicity: Callable[[Edge], Any]) -> Program:
    """Plans by pairs with other multiplicities of edges, such as numbers that JAX traces.

    Args:
      network: The network; its structure alone determines that of the program.
      multiplicity: The factor of each edge's output in the sum at its target.

    Returns:
      A program whose weights are lists of numbers.
    """
    pairs = _Planner(network, multiplicity=multiplicity).plan_pairs()
    assert pairs is not None
    return pairs


def _dense(network: Network) -> Program:
    tables = normal_form(network.dag, network.aggregation)
    count = network.dag.num_nodes
    # Slots: the stem's field, then for every node its sum and its field.
    field_slots = [0, *range(2, 2 * count, 2)]
    steps, means = [], []
    for node in range(count):
        fields = (Field(0, 2 * node + 2),) if node < count - 1 else ()
        steps.append(Step(tuple(map(Term, field_slots[: node + 1])), 2 * node + 1, node, fields))
        means.append(tuple(MeanTerm(slot, None) for slot in field_slots[: node + 1]))
    lower = np.tril_indices(count)
    structure = Structure(1, 2 * count, tuple(steps), tuple(means) if network.has_means else (), (count - 1,))
    mean_weights = tables.B[lower] if network.has_means else np.zeros(0)
    return Program(structure, tables.A[lower], mean_weights, (network.layer,))


def _mixing(op: Operation) -> EdgeOperation | None:
    """Returns the operation if it mixes pixels, else None."""
    return op if isinstance(op, EdgeOperation) and op.mixes_pixels else None


class _Planner:
    """Hands out slots and collects steps while a plan is made."""

    def __init__(self, network: Network, limit: int | None = None, multiplicity: Callable[[Edge], Any] | None = None):
        """Starts an empty plan; a plan of pairs with more than `limit` terms is given up."""
        self.network, self.dag, self.limit = network, network.dag, limit
        self.multiplicity = multiplicity or network.multiplicity
        # Multiplicities that JAX traces stay in a list, which the caller stacks.
        self.array: Callable[[list], Any] = list if multiplicity else lambda weights: np.array(weights, float)
        self.slots = self.dag.num_inputs
        self.steps: list[Step] = []
        self.weights: list[float | int] = []
        self.operations: dict[Dense, int] = {}
        self.field_slot: dict[EdgeKind, int] = {(i, None): i for i in range(self.dag.num_inputs)}
        # The slot is None where no field reaches both nodes, so that their covariance is 0.
        self.sum_slot: dict[tuple[int, int], int | None] = {}
        self.leaving: list[dict[Dense, None]] = [{} for _ in range(self.dag.num_nodes)]
        for edge in network.edges:
            if isinstance(edge.op, Dense):
                self.leaving[edge.source][edge.op] = None

    def new_slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def add(self, key: tuple[int, int], terms: Iterable[tuple[Term, float | int]]) -> None:
        """Adds the step that computes Cov(key), and for a single node the fields that leave it."""
        left, right = key
        merged: dict[Term, float | int] = {}
        for term, weight in terms:
            merged[term] = merged.get(term, 0) + weight
        if not merged:
            self.sum_slot[key] = None
            return
        self.sum_slot[key] = slot = self.new_slot()
        fields = []
        for op in self.leaving[left] if left == right else ():
            self.field_slot[left, op] = self.new_slot()
            fields.append(Field(self.operations.setdefault(op, len(self.operations)), self.field_slot[left, op]))
        self.weights += merged.values()
        self.steps.append(Step(tuple(merged), slot, left if left == right else None, tuple(fields)))

    def finish(self, sums: list[dict[MeanTerm, float | int]]) -> Program:
        """Returns the program, given the summands of every node's mean."""
        means = tuple(tuple(terms) for terms in sums)
        mean_weights = [weight for terms in sums for weight in terms.values()]
        structure = Structure(self.dag.num_inputs, self.slots, tuple(self.steps), means, self.dag.outputs)
        return Program(structure, self.array(self.weights), self.array(mean_weights), tuple(self.operations))

    def _means_by_edge(self) -> list[dict[MeanTerm, float | int]]:
        sums = []
        for node, into in enumerate(self.network.into if self.network.has_means else ()):
            merged: dict[MeanTerm, float | int] = {}
            if node < self.dag.num_inputs:
                merged[MeanTerm(node, None)] = 1
            for edge in into:
                if isinstance(edge.op, Dense):
                    term = MeanTerm(self.field_slot[edge.source, edge.op], None)
                else:
                    term = MeanTerm(None, edge.source, _mixing(edge.op))
                weight = self.multiplicity(edge)
                merged[term] = merged.get(term, 0) + weight
            sums.append(merged)
        return sums

    def plan_rows(self) -> Program:
        table, _ = rows(self.network)
        for node in sorted(table):
            a, _ = table[node]
            self.add((node, node), [(Term(self.field_slot[kind]), weight) for kind, weight in a.items()])
        sums: list[dict[MeanTerm, float | int]] = []
        for node in range(self.dag.num_nodes if self.network.has_means else 0):
            _, b = table.get(node, ({}, {}))
            sums.append({MeanTerm(self.field_slot[kind], None): weight for kind, weight in b.items()})
        return self.finish(sums)

    def plan_pairs(self) -> Program | None:
        """Plans by pairs; returns None if that takes more terms than the limit."""
        needed = self._needed_pairs()
        if needed is None:
            return None
        for node in range(self.dag.num_nodes):
            # The node's own covariance comes first: its fields do not depend on the pairs.
            for key in sorted(needed[node], key=lambda key: (key != (node, node), key)):
                self.add(key, self._variance(node) if key[0] == key[1] else self._covariance(key))
            if self._beyond(len(self.weights)):
                return None
        return self.finish(self._means_by_edge())

    def _beyond(self, terms: int) -> bool:
        return self.limit is not None and terms > self.limit + self.dag.num_inputs

    def _key(self, left: int, right: int) -> tuple[int, int]:
        # Without pooling Cov(t, u) = Cov(u, t), so one order of the nodes is enough.
        return (left, right) if self.network.pools else (max(left, right), min(left, right))

    def _unweighted(self, node: int) -> list[tuple[int, float | int, EdgeOperation | None]]:
        """Returns source, multiplicity and pooling of every edge without weights into a node."""
        return [
            (edge.source, self.multiplicity(edge), _mixing(edge.op))
            for edge in self.network.into[node]
            if not isinstance(edge.op, Dense)
        ]

    def _needed_pairs(self) -> list[set[tuple[int, int]]] | None:
        """Returns the pairs that a field or output depends on, by their later node; None beyond the limit."""
        count = 0
        needed: list[set[tuple[int, int]]] = [set() for _ in range(self.dag.num_nodes)]
        for node in {*self.dag.outputs, *(edge.source for edge in self.network.edges if isinstance(edge.op, Dense))}:
            needed[node].add((node, node))
        for node in reversed(range(self.dag.num_nodes)):
            sources = {source for source, _, _ in self._unweighted(node)}
            for left, right in list(needed[node]):
                lefts = sources if left == node else {left}
                rights = sources if right == node else {right}
                for s in lefts:
                    for u in rights:
                        pairs = needed[max(s, u)]
                        before = len(pairs)
                        pairs.add(self._key(s, u))
                        count += len(pairs) - before
                    if self._beyond(count):
                        return None
        return needed

    def _variance(self, node: int) -> Iterable[tuple[Term, float | int]]:
        if node < self.dag.num_inputs:
            yield Term(node), 1
        for edge in self.network.into[node]:
            if isinstance(edge.op, Dense):
                yield Term(self.field_slot[edge.source, edge.op]), self.multiplicity(edge) ** 2
        for source, weight, pool in self._unweighted(node):
            for other, other_weight, other_pool in self._unweighted(node):
                slot = self.sum_slot[self._key(source, other)]
                if slot is not None:
                    yield Term(slot, pool, other_pool), weight * other_weight

    def _covariance(self, key: tuple[int, int]) -> Iterable[tuple[Term, float | int]]:
        left, right = key
        for source, weight, pool in self._unweighted(max(key)):
            slot = self.sum_slot[self._key(source, right) if left > right else self._key(left, source)]
            if slot is not None:
                yield (Term(slot, pool, None) if left > right else Term(slot, None, pool)), weight
