"""An edge of a graph: its two ends, and the operation that it applies."""

import dataclasses

from nngp_dag.graph.operations import Op, Operation, is_weighted


@dataclasses.dataclass(frozen=True)
class Edge:
    """An edge from `source` to `target` that applies `op`.

    Attributes:
      source: The node that the edge leaves.
      target: The node that the edge enters; in a `Dag` its number is greater than that of `source`.
      op: The operation: `Op.SKIP`, `Op.WEIGHTED`, or an operation with options, such as `Dense()`.

    Examples:
      >>> str(Edge(0, 2, Op.SKIP)), Edge(0, 2, Op.SKIP).weighted
      ('0->2:skip', False)
    """

    source: int
    target: int
    op: Operation

    @property
    def weighted(self) -> bool:
        """Whether the edge draws weights of its own."""
        return is_weighted(self.op)

    def __lt__(self, other: "Edge") -> bool:
        """Orders edges by source, target and operation; the operations of paper codes come first."""
        return self._sort_key < other._sort_key

    @property
    def _sort_key(self) -> tuple[int, int, bool, str]:
        return self.source, self.target, not isinstance(self.op, Op), str(self.op)

    def __str__(self) -> str:
        """Returns `source->target:operation`."""
        return f"{self.source}->{self.target}:{self.op.describe()}"
