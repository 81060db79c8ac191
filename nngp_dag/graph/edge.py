"""What an edge is: its two ends and the operation it applies."""

import dataclasses
import enum

from nngp_dag.errors import GraphError


class Op(enum.IntEnum):
    """The operation on a present edge; the value is its digit in a paper code (0 marks an absent edge)."""

    SKIP = 1
    WEIGHTED = 2

    @classmethod
    def parse(cls, value: object) -> "Op":
        """Reads an operation given as an `Op`, a digit (1, "2") or a name ("skip", "weighted").

        Raises:
          GraphError: `value` names no operation.

        Example:
          >>> Op.parse("weighted")
          <Op.WEIGHTED: 2>
        """
        text = str(int(value)) if isinstance(value, (int, Op)) else str(value).lower()
        for op in cls:
            if text in (str(op.value), op.name.lower()):
                return op
        raise GraphError(
            f"Expected an edge's operation `op` to be 'skip' (1) or 'weighted' (2), got {value!r}; "
            "leave absent edges out"
        )


@dataclasses.dataclass(frozen=True, order=True)
class Edge:
    """One edge `source -> target` that applies `op`; nodes are numbered in topological order."""

    source: int
    target: int
    op: Op
