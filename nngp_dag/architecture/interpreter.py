"""The recursion over a program's steps, written once; an algebra defines the values that it carries.

The same recursion serves several kinds of values: covariances of a block of a kernel, moments of inputs with
themselves, kernels as functions of an angle, and bounds on eigenvalues. For covariances it is Equations (5) to (7) and
(9) of docs/mathematics.md.
"""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from nngp_dag.architecture.program import Structure
from nngp_dag.graph.operations import EdgeOperation


class Sum(NamedTuple):
    """The weighted sum that a step computes.

    Attributes:
      step: The step; in a compiled loop, a row of the loop's tables.
      weights: Weights of its terms; in a compiled loop, one array.
      values: Values of its terms; in a compiled loop, arrays with a leading axis over terms.
    """

    step: Any
    weights: Any
    values: Any


class Algebra(abc.ABC):
    """The values that a run of a program carries, and the operations on them."""

    @abc.abstractmethod
    def add(self, of: Sum) -> Any:
        """Returns the value of a step, the weighted sum of its terms."""

    def at_node(self, step: Any, total: Any, mean: Any) -> Any:
        """Returns a node's value from its sum and its mean, which is None for 0; by default the sum."""
        del step, mean
        return total

    @abc.abstractmethod
    def apply(self, operation: int, slot: int, of: Sum, node: Any, mean: Any) -> tuple[Any, Any]:
        """Applies a weighted operation to a node.

        Args:
          operation: Number of the operation in `Program.operations`.
          slot: Slot of the resulting field.
          of: The node's sum before `at_node`, for algebras that add it up once more instead of reading it.
          node: The node's value.
          mean: The node's mean, or None for 0.

        Returns:
          Value and mean of the field; the mean is None for 0.
        """

    def pool(self, mean: Any, pool: EdgeOperation) -> Any:
        """Returns a mean after pooling; only images need it."""
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
      weights: Weights of the terms of all steps, one after another.
      mean_weights: Weights of the terms of all means, one after another; None if no means are to be computed.
      fields: Values of the stems' fields.
      means: Means of the stems' fields, each None for 0.
      algebra: The operations on values.

    Returns:
      A dictionary {node: value} of the nodes that have a step.
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
        # A value is dropped after its last use, so that memory holds only the values that are still needed.
        for slot in {term.slot for term in step.terms}:
            if last_read[slot] == index:
                del slots[slot]
        if step.node is None:
            continue
        # A node without a step has no covariance of its own, but later means may still depend on its mean. So means are
        # computed for all nodes up to this one: m(t) = sum of B mu, Equation (5) of docs/mathematics.md.
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
