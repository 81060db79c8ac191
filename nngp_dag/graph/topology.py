"""Exact path statistics of a DAG, by one sweep over its nodes and without an enumeration of paths.

All functions take the number of nodes and the edges. By default node 0 is the only input and the last node is the only
output; several inputs are the first nodes. Results are Python integers and fractions, so they are exact for any number
of paths.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from nngp_dag.graph.edge import Edge


def outgoing_edges(num_nodes: int, edges: Iterable[Edge]) -> list[list[Edge]]:
    """Returns the edges that leave each node."""
    outgoing: list[list[Edge]] = [[] for _ in range(num_nodes)]
    for edge in edges:
        outgoing[edge.source].append(edge)
    return outgoing


@dataclass(frozen=True)
class PathCounts:
    """Exact sums over the paths from an input to an output.

    Attributes:
      paths: The number P of paths.
      weighted: The number of paths with a weighted edge.
      depths: The sum of the depths d_p, the numbers of weighted edges on a path.
    """

    paths: int
    weighted: int
    depths: int

    @property
    def effective_depth(self) -> Fraction:
        """The mean depth of a path, d = (sum over paths of d_p) / P; 0 if there is no path.

        Reference: Chen et al. 2022, Definition of effective depth.
        """
        return Fraction(self.depths, self.paths) if self.paths else Fraction(0)

    @property
    def effective_width(self) -> Fraction:
        """The number of paths with a weighted edge over the mean depth, w = #{paths with d_p > 0} / d; 0 if d = 0.

        Reference: Chen et al. 2022, Definition of effective width.
        """
        return self.weighted / self.effective_depth if self.depths else Fraction(0)


def path_counts(
    num_nodes: int, edges: Sequence[Edge], num_inputs: int = 1, outputs: Sequence[int] | None = None
) -> PathCounts:
    """Counts the paths from an input to an output; the sweep keeps three numbers for each node.

    Examples:
      >>> from nngp_dag.graph.operations import Op
      >>> path_counts(3, [Edge(0, 1, Op.SKIP), Edge(0, 2, Op.SKIP), Edge(1, 2, Op.WEIGHTED)])
      PathCounts(paths=2, weighted=1, depths=1)
    """
    paths = [1] * num_inputs + [0] * (num_nodes - num_inputs)
    weighted, depths = [0] * num_nodes, [0] * num_nodes
    for node, leaving in enumerate(outgoing_edges(num_nodes, edges)):
        for edge in leaving:
            paths[edge.target] += paths[node]
            weighted[edge.target] += paths[node] if edge.weighted else weighted[node]
            depths[edge.target] += depths[node] + (paths[node] if edge.weighted else 0)
    ends = outputs or (num_nodes - 1,)
    return PathCounts(*(sum(counts[output] for output in ends) for counts in (paths, weighted, depths)))


def live_edges(
    num_nodes: int, edges: Sequence[Edge], num_inputs: int = 1, outputs: Sequence[int] | None = None
) -> tuple[Edge, ...]:
    """Returns the edges that lie on a path from an input to an output, in the given order.

    Examples:
      >>> from nngp_dag.graph.operations import Op
      >>> len(live_edges(3, [Edge(0, 2, Op.SKIP), Edge(1, 2, Op.SKIP)]))  # nothing leads into node 1
      1
    """
    outgoing = outgoing_edges(num_nodes, edges)
    reached, reaching = set(range(num_inputs)), set(outputs or (num_nodes - 1,))
    for node in range(num_nodes):
        if node in reached:
            reached.update(edge.target for edge in outgoing[node])
    for node in reversed(range(num_nodes)):
        if any(edge.target in reaching for edge in outgoing[node]):
            reaching.add(node)
    return tuple(edge for edge in edges if edge.source in reached and edge.target in reaching)


def depth_histogram(
    num_nodes: int, edges: Sequence[Edge], num_inputs: int = 1, outputs: Sequence[int] | None = None
) -> dict[int, int]:
    """Counts the paths from an input to an output by depth, the number of weighted edges on a path.

    The sweep keeps one polynomial for each node, whose k-th coefficient counts the paths of depth k into that node. A
    weighted edge multiplies it by z. A polynomial is packed into one integer, with a fixed number of bytes for each
    coefficient (Kronecker substitution). So an edge costs a single shift and addition.

    Returns:
      A dictionary {depth: number of paths}, sorted by depth, without zeros; empty if no path reaches the output.

    Examples:
      >>> from nngp_dag.graph.operations import Op
      >>> depth_histogram(3, [Edge(0, 1, Op.SKIP), Edge(0, 2, Op.SKIP), Edge(1, 2, Op.WEIGHTED)])
      {0: 1, 1: 1}
    """
    outputs = outputs or (num_nodes - 1,)
    total = path_counts(num_nodes, edges, num_inputs, outputs).paths
    if total == 0:
        return {}
    # Along live edges, different paths into a node extend to different paths to an output. So no coefficient exceeds
    # `total`, and none overflows into the bytes of the next.
    field = (total.bit_length() + 7) // 8
    outgoing = outgoing_edges(num_nodes, live_edges(num_nodes, edges, num_inputs, outputs))
    pending = dict.fromkeys(range(num_inputs), 1)
    polynomial = 0
    for node in range(num_nodes):
        paths = pending.pop(node, 0)
        for edge in outgoing[node]:
            pending[edge.target] = pending.get(edge.target, 0) + (paths << (8 * field) if edge.weighted else paths)
        if node in outputs:
            polynomial += paths
    packed = polynomial.to_bytes(field * (polynomial.bit_length() // (8 * field) + 1), "little")
    counts = (int.from_bytes(packed[i : i + field], "little") for i in range(0, len(packed), field))
    return {depth: count for depth, count in enumerate(counts) if count}


def to_float(value: int | Fraction) -> float:
    """Converts an exact positive number to a float, which is infinite if the number exceeds float64."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")
