"""The graph of a network: `Dag`, frozen, hashable and validated once."""

import functools
import operator
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING

from nngp_dag.errors import GraphError
from nngp_dag.graph import codes, relabel, topology
from nngp_dag.graph.edge import Edge, Op

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Dag:
    """A directed acyclic graph of network layers, from the stem's output (node 0) to the readout (node H).

    Node t computes X(t) = sum over edges s -> t of op(X(s)). Nodes are numbered in topological order. Several
    edges may join the same two nodes; each weighted one draws its own weights. Nodes off every path from input
    to output are allowed and change nothing.

    Attributes:
      num_nodes: H + 1, the input and output node included.
      edges: The present edges, sorted.
      allow_disconnected: Accepts a graph whose output no path reaches (cells of a search space). Its path
        statistics are zero; kernels and networks refuse it.

    Raises:
      GraphError: Fewer than two nodes, an edge that does not lead from a lower to a higher node, an unknown
        operation, or an unreachable output.

    Example:
      >>> dag = Dag.from_code("2_21_112")
      >>> dag.num_paths, dag.depth_histogram
      (4, {0: 1, 1: 1, 2: 2})
      >>> dag == Dag.from_edges([(0, 1, "weighted"), (0, 2, "weighted"), (1, 2, "skip"), (0, 3, "skip"),
      ...                        (1, 3, "skip"), (2, 3, "weighted")])
      True

    Reference: Chen, Huang, Gong, Hanin, Wang, "Deep Architecture Connectivity Matters for Its Convergence",
    NeurIPS 2022, Section 3.
    """

    num_nodes: int
    edges: tuple[Edge, ...]
    allow_disconnected: InitVar[bool] = False

    def __post_init__(self, allow_disconnected: bool) -> None:
        """Validates once, so that everything else may trust the graph."""
        if _node(self.num_nodes) < 2:
            raise GraphError(f"Expected `num_nodes` to be at least 2 (input and output), got {self.num_nodes}")
        if not all(isinstance(edge, Edge) for edge in self.edges):
            raise GraphError(f"Expected `edges` to hold `Edge`s, got {self.edges!r}; use `Dag.from_edges` for triples")
        edges = sorted(Edge(_node(e.source), _node(e.target), Op.parse(e.op)) for e in self.edges)
        for edge in edges:
            if not 0 <= edge.source < edge.target < self.num_nodes:
                raise GraphError(
                    f"Expected every edge to lead from a lower to a higher node out of 0..{self.num_nodes - 1}, got "
                    f"{edge.source}->{edge.target}; `Dag.from_edges` orders the nodes of any acyclic graph"
                )
        object.__setattr__(self, "edges", tuple(edges))
        if not allow_disconnected:
            self.require_connected()

    def require_connected(self) -> None:
        """Raises a `GraphError` where no path leads from node 0 to the output."""
        if self.num_paths == 0:
            raise GraphError(
                f"Expected a path from node 0 to the output node {self.num_nodes - 1}, got none in "
                f"{codes.shorten(str(self))}; add edges that join them"
            )

    @classmethod
    def from_code(cls, code: str) -> "Dag":
        """Reads a paper code such as `2_21_112`: block t lists the edges into node t from nodes 0..t-1.

        Digits: 0 absent, 1 skip, 2 weighted.

        Raises:
          GraphError: `code` is malformed or its output cannot be reached.
        """
        return cls(*codes.parse_code(code))

    @classmethod
    def from_nasbench201(cls, cell: str) -> "Dag":
        """Reads the wiring of a NAS-Bench-201 cell.

        Convolutions become weighted edges, skip_connect and avg_pool_3x3 skips, as in Chen et al. 2022. A
        disconnected cell is a valid element of the space, so it is returned with zero paths, not refused.

        Raises:
          GraphError: `cell` is malformed or names an unknown operation.

        Example:
          >>> Dag.from_nasbench201("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+"
          ...                      "|skip_connect~0|nor_conv_3x3~1|skip_connect~2|").code
          '2_21_121'
        """
        return cls(*codes.parse_nasbench201(cell), allow_disconnected=True)

    @classmethod
    def from_edges(
        cls,
        edges: Iterable[Sequence[Hashable]],
        *,
        source: Hashable | None = None,
        output: Hashable | None = None,
    ) -> "Dag":
        """Builds a DAG from (source, target, op) triples over nodes of any hashable kind.

        Args:
          edges: Triples; op is "skip" or "weighted" (or 1, 2).
          source: The node that holds the stem's output; by default the only one without incoming edges.
          output: The node that feeds the readout; by default the only one without outgoing edges.

        Raises:
          GraphError: A malformed triple, a cycle, or no unique source or output.
        """
        return cls(*relabel.from_edges(edges, source, output))

    @classmethod
    def from_networkx(
        cls, graph: "networkx.DiGraph", *, source: Hashable | None = None, output: Hashable | None = None
    ) -> "Dag":
        """Builds a DAG from a networkx `DiGraph` or `MultiDiGraph` whose edges carry an attribute `op`.

        Nodes are numbered in a topological order that keeps the graph's own order where it can. `source` and
        `output` are as in `from_edges`, and default to the graph attributes of the same names if present.

        Raises:
          GraphError: A missing or unknown `op`, a cycle, or no unique source or output.

        Example:
          >>> dag = Dag.from_code("2_21_112")
          >>> Dag.from_networkx(dag.to_networkx()) == dag
          True
        """
        return cls(*relabel.from_networkx(graph, source, output))

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """Returns a networkx `MultiDiGraph` over nodes 0..H with the attribute `op` on edges ("skip", "weighted")."""
        return relabel.to_networkx(self.num_nodes, self.edges)

    @property
    def code(self) -> str:
        """The paper code, such as `2_21_112`; a `GraphError` where two edges join the same nodes."""
        return codes.format_code(self.num_nodes, self.edges)

    @functools.cached_property
    def num_paths(self) -> int:
        """P, the number of paths from input to output, exact."""
        return topology.num_paths(self.num_nodes, self.edges)

    @functools.cached_property
    def live_edges(self) -> tuple[Edge, ...]:
        """The edges that lie on a path from input to output; no other changes the network's function."""
        return topology.live_edges(self.num_nodes, self.edges)

    @functools.cached_property
    def _depth_histogram(self) -> dict[int, int]:
        return topology.depth_histogram(self.num_nodes, self.edges)

    @property
    def depth_histogram(self) -> dict[int, int]:
        """{number of weighted edges on a path: number of such paths}, exact."""
        return dict(self._depth_histogram)

    @property
    def effective_depth(self) -> float:
        """Mean number of weighted edges on a path (`topology.effective_depth` gives the exact fraction)."""
        return float(topology.effective_depth(self._depth_histogram))

    @property
    def effective_width(self) -> float:
        """Number of paths with a weighted edge, over the effective depth.

        Infinite where float64 cannot hold it (over 1e308 paths); `topology.effective_width` is always exact.
        """
        return topology.to_float(topology.effective_width(self._depth_histogram))

    def __str__(self) -> str:
        """Returns the paper code where there is one, else the edges."""
        if len({(e.source, e.target) for e in self.edges}) == len(self.edges):
            return self.code
        return ",".join(f"{e.source}->{e.target}:{e.op.name.lower()}" for e in self.edges)

    def __repr__(self) -> str:
        """Returns a short description."""
        return f"Dag({codes.shorten(str(self))!r})"


def _node(value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise GraphError(f"Expected nodes to be whole numbers, got {value!r}; use `Dag.from_edges` for names") from None
