"""What an edge is: its two ends and the operation it applies."""

import dataclasses

from nngp_dag.graph.operations import Op, Operation, is_weighted


@dataclasses.dataclass(frozen=True)
class Edge:
    """One edge `source -> target` that applies `op`; nodes are numbered in topological order."""

    source: int
    target: int
    op: Operation

    @property
    def weighted(self) -> bool:
        """Whether the edge draws weights of its own."""
        return is_weighted(self.op)

    def __lt__(self, other: "Edge") -> bool:
        """Orders edges by source, then target, then operation: those of paper codes first."""
        return self._sort_key < other._sort_key

    @property
    def _sort_key(self) -> tuple[int, int, bool, str]:
        return self.source, self.target, not isinstance(self.op, Op), str(self.op)

    def __str__(self) -> str:
        """Returns `source->target:operation`."""
        return f"{self.source}->{self.target}:{self.op.describe()}"
