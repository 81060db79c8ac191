"""The recursion over a program's steps, written once; what it carries is up to an algebra.

Covariances of a block of a kernel, moments of inputs with themselves, kernels as functions of an angle, and lower
bounds on eigenvalues all follow the same sums and the same weighted operations.
"""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from nngp_dag.architecture.program import Structure
from nngp_dag.graph.operations import EdgeOperation


class Sum(NamedTuple):
    """What a step adds up: its terms' weights and values.

    In a compiled loop, step is a row of tables, and weights and values are arrays with a leading axis of terms.
    """

    step: Any
    weights: Any
    values: Any


class Algebra(abc.ABC):
    """What a run of a program carries."""

    @abc.abstractmethod
    def add(self, of: Sum) -> Any:
        """Returns the value of a step."""

    def at_node(self, step: Any, total: Any, mean: Any) -> Any:
        """Returns a node's value, given its sum, and its mean or None for 0; by default the sum."""
        del step, mean
        return total

    @abc.abstractmethod
    def apply(self, operation: int, slot: int, of: Sum, node: Any, mean: Any) -> tuple[Any, Any]:
        """Returns value and mean, or None for 0, of a field: a weighted operation on a node's sum or value."""

    def pool(self, mean: Any, pool: EdgeOperation) -> Any:
        """Returns a mean after pooling; only of images."""
        raise NotImplementedError


def run(
    structure: Structure,
    weights: Sequence[Any],
    mean_weights: Sequence[Any] | None,
    fields: Sequence[Any],
    means: Sequence[Any],
    algebra: Algebra,
) -> dict[int, Any]:
    """Runs the steps of a program one after another.

    Args:
      structure: The steps.
      weights: Those of the terms of all steps together.
      mean_weights: Those of the terms of all means together, or None where no mean is to be known.
      fields: The value of every stem's field.
      means: Their means, each None for 0.
      algebra: What to do with them.

    Returns:
      {node: its value} for the nodes that are computed.
    """
    slots, mu = dict(enumerate(fields)), dict(enumerate(means))
    last_read = {term.slot: index for index, step in enumerate(structure.steps) for term in step.terms}
    nodes: dict[int, Any] = {}
    of_nodes: list[Any] = []
    position = mean_position = 0
    for index, step in enumerate(structure.steps):
        of = Sum(step, weights[position : position + len(step.terms)], [slots[term.slot] for term in step.terms])
        position += len(step.terms)
        total = slots[step.slot] = algebra.add(of)
        for slot in {term.slot for term in step.terms}:
            if last_read[slot] == index:
                del slots[slot]
        if step.node is None:
            continue
        # Steps come in the order of nodes; those without a step have means, too.
        for node in range(len(of_nodes), step.node + 1 if structure.means and mean_weights is not None else 0):
            parts = []
            for term in structure.means[node]:
                mean = mu.get(term.slot) if term.slot is not None else of_nodes[term.node]  # type: ignore[index]
                if mean is not None:
                    mean = mean if term.pool is None else algebra.pool(mean, term.pool)
                    parts.append(mean_weights[mean_position] * mean)  # type: ignore[index]
                mean_position += 1
            of_nodes.append(sum(parts[1:], start=parts[0]) if parts else None)
        mean = of_nodes[step.node] if of_nodes else None
        nodes[step.node] = algebra.at_node(step, total, mean)
        for operation, slot in step.fields:
            slots[slot], mu[slot] = algebra.apply(operation, slot, of, nodes[step.node], mean)
    return nodes
