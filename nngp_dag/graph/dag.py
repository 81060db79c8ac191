"""The graph of a network: `Dag`, frozen, hashable and validated once."""

import functools
import operator
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any

from nngp_dag import forms
from nngp_dag.errors import GraphError, shown
from nngp_dag.graph import codes, relabel, topology
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import parse

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Dag:
    """A directed acyclic graph of network layers, from the stem's output (node 0) to the readout (node H).

    Node t computes X(t) = sum over edges s -> t of op(X(s)). Nodes are numbered in topological order. Several
    edges may join the same two nodes; each weighted one draws its own weights. Nodes off every path from input
    to output are allowed and change nothing.

    A graph may have several inputs, each with a stem of its own, and several outputs, each with a readout of its own;
    paths from every input to every output then count together.

    Attributes:
      num_nodes: H + 1, the input and output nodes included.
      edges: The present edges, sorted.
      allow_disconnected: Accepts a graph whose outputs no path reaches (cells of a search space). Its path
        statistics are zero; kernels and networks refuse it.
      num_inputs: Nodes 0 to `num_inputs` - 1 hold the outputs of stems; no edge may enter them.
      outputs: The nodes that feed a readout; by default node H alone.

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
    edges: tuple[Edge, ...] = ()
    allow_disconnected: InitVar[bool] = False
    num_inputs: int = 1
    outputs: tuple[int, ...] = ()

    def __post_init__(self, allow_disconnected: bool) -> None:
        """Validates once, so that everything else may trust the graph."""
        if isinstance(self.num_nodes, str) and not self.edges:
            raise GraphError(
                f"Expected `num_nodes` to be a whole number, got {shown(self.num_nodes)}; `Dag.parse` reads codes, "
                "names and cells"
            )
        if _node(self.num_nodes) < 2:
            raise GraphError(f"Expected `num_nodes` to be at least 2 (input and output), got {self.num_nodes}")
        if not isinstance(self.edges, Iterable) or not all(isinstance(edge, Edge) for edge in self.edges):
            raise GraphError(
                f"Expected `edges` to hold `Edge`s, got {shown(self.edges)}; use `Dag.from_edges` for triples"
            )
        outputs = tuple(_node(node) for node in self.outputs) or (self.num_nodes - 1,)
        if not 1 <= _node(self.num_inputs) < self.num_nodes:
            raise GraphError(
                f"Expected `num_inputs` between 1 and {self.num_nodes - 1}, one node at least for the output, got "
                f"{self.num_inputs}"
            )
        if len(set(outputs)) < len(outputs) or not all(self.num_inputs <= t < self.num_nodes for t in outputs):
            raise GraphError(
                f"Expected `outputs` to be different nodes out of {self.num_inputs}..{self.num_nodes - 1}, got "
                f"{outputs}"
            )
        edges = [Edge(_node(e.source), _node(e.target), parse(e.op)) for e in self.edges]
        for edge in edges:
            if not 0 <= edge.source < edge.target < self.num_nodes:
                raise GraphError(
                    f"Expected every edge to lead from a lower to a higher node out of 0..{self.num_nodes - 1}, got "
                    f"{edge.source}->{edge.target}; `Dag.from_edges` orders the nodes of any acyclic graph"
                )
            if edge.target < self.num_inputs:
                raise GraphError(
                    f"Expected no edge into the input nodes 0..{self.num_inputs - 1}, got {edge.source}->{edge.target}"
                )
        object.__setattr__(self, "edges", tuple(sorted(edges)))
        object.__setattr__(self, "outputs", outputs)
        if not allow_disconnected:
            self.require_connected()

    def require_connected(self) -> None:
        """Raises a `GraphError` where no path leads from an input to one of the outputs."""
        for output in self.outputs:
            if topology.path_counts(self.num_nodes, self.edges, self.num_inputs, (output,)).paths == 0:
                inputs = "node 0" if self.num_inputs == 1 else f"an input node (0..{self.num_inputs - 1})"
                raise GraphError(
                    f"Expected a path from {inputs} to the output node {output}, got none in "
                    f"{codes.shorten(str(self))}; add edges that join them"
                )

    @classmethod
    def parse(cls, text: str) -> "Dag":
        """Reads any text form of a graph: a paper code, a name of `zoo.FIGURE3` in any case, or a NAS-Bench-201 cell.

        Functions that take a graph take such texts, too.

        Raises:
          GraphError: `text` is none of them, or its output cannot be reached.

        Example:
          >>> Dag.parse("DAG#3") == Dag.parse("2_21_112") == Dag.from_code("2_21_112")
          True
        """
        return cls(*codes.parse_text(text))

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
    def from_darts(cls, cell: Sequence[Sequence[object]]) -> "Dag":
        """Reads the wiring of a DARTS cell: two inputs, and two (operation, input) pairs for every further node.

        Inputs are nodes 0 and 1; pair 2i and 2i + 1 enter node i + 2, and every such node goes to the output by a skip
        (the cell concatenates them). Convolutions become weighted edges; skip_connect and pooling become skips, as Chen
        et al. 2022 count them.

        Raises:
          GraphError: `cell` is malformed, or names an unknown operation or a node that comes later. (A cell without a
        path, all "none", is accepted, with zero paths.)

        Example:
          >>> dag = Dag.from_darts([("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 0), ("max_pool_3x3", 2)])
          >>> dag.num_inputs, dag.num_nodes, dag.depth_histogram
          (2, 5, {0: 2, 1: 3})
        """
        num_nodes, edges = codes.parse_darts(cell)
        return cls(num_nodes, edges, allow_disconnected=True, num_inputs=2)

    @classmethod
    def from_edges(
        cls,
        edges: Iterable[Sequence[Any]],
        *,
        source: Hashable | list[Any] | None = None,
        output: Hashable | list[Any] | None = None,
    ) -> "Dag":
        """Builds a DAG from (source, target, op) triples over nodes of any hashable kind.

        Args:
          edges: Triples; op is "skip" or "weighted" (or 1, 2), an operation such as
            `nngp_dag.Dense(activation="erf")`, or a `Dag` with one input and one output, whose nodes are then put in
            the place of the edge.
          source: The node that holds the stem's output, or a list of several; by default the only one without
            incoming edges.
          output: The node that feeds the readout, or a list of several; by default the only one without outgoing edges.

        Raises:
          GraphError: A malformed triple, a cycle, or no unique source or output.
        """
        return cls(*relabel.from_edges(edges, source, output))

    @classmethod
    def from_networkx(
        cls,
        graph: "networkx.DiGraph",
        *,
        source: Hashable | list[Any] | None = None,
        output: Hashable | list[Any] | None = None,
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
        """Returns a networkx `MultiDiGraph` over nodes 0..H; `op` of an edge is "skip", "weighted" or its operation."""
        return relabel.to_networkx(self.num_nodes, self.edges, self.num_inputs, self.outputs)

    @property
    def _graph(self) -> tuple[int, tuple[Edge, ...], int, tuple[int, ...]]:
        return self.num_nodes, self.edges, self.num_inputs, self.outputs

    @property
    def code(self) -> str:
        """The paper code, such as `2_21_112`; a `GraphError` where no code can express the graph."""
        if self.num_inputs > 1 or self.outputs != (self.num_nodes - 1,):
            raise GraphError(
                f"Expected one input, and node {self.num_nodes - 1} as the only output, for a paper code, got "
                f"{self.num_inputs} inputs and the outputs {self.outputs}; use `edges` or `to_networkx()` instead"
            )
        return codes.format_code(self.num_nodes, self.edges)

    @functools.cached_property
    def path_counts(self) -> topology.PathCounts:
        """How many paths lead from inputs to outputs and how deep they are, exact."""
        return topology.path_counts(*self._graph)

    @property
    def num_paths(self) -> int:
        """P, the number of paths from inputs to outputs, exact."""
        return self.path_counts.paths

    @functools.cached_property
    def live_edges(self) -> tuple[Edge, ...]:
        """The edges that lie on a path from input to output; no other changes the network's function."""
        return topology.live_edges(*self._graph)

    @functools.cached_property
    def _depth_histogram(self) -> dict[int, int]:
        return topology.depth_histogram(*self._graph)

    @property
    def depth_histogram(self) -> dict[int, int]:
        """{number of weighted edges on a path: number of such paths}, exact."""
        return dict(self._depth_histogram)

    @property
    def effective_depth(self) -> float:
        """Mean number of weighted edges on a path (`path_counts` has the exact fraction)."""
        return float(self.path_counts.effective_depth)

    @property
    def effective_width(self) -> float:
        """Number of paths with a weighted edge, over the effective depth.

        Infinite where float64 cannot hold it (over 1e308 paths); that of `path_counts` is exact.
        """
        return topology.to_float(self.path_counts.effective_width)

    def plot(self, axes: "Axes | None" = None, *, operations: Iterable[tuple[int, int, str]] = ()) -> "Axes":
        """Draws nodes on a line, weighted edges as arcs above it and all others below; edges on no path are gray.

        Args:
          axes: The matplotlib axes to draw on; by default those of a new pyplot figure, which notebooks show at once
            and scripts by `matplotlib.pyplot.show()`.
          operations: Names of the edges of a cell, (source, target, name), since a graph knows only that they are
            skips or weighted.

        Returns:
          The axes, for titles and for `axes.figure.savefig`.

        Example:
          >>> from matplotlib.figure import Figure
          >>> axes = Dag.from_code("2_21_112").plot(Figure().add_subplot())
          >>> [text.get_text() for text in axes.texts], len(axes.patches)
          (['0', '1', '2', '3'], 6)
        """
        from nngp_dag.graph.drawing import plot_on

        return plot_on(axes, self, tuple(operations))

    def _repr_svg_(self) -> str | None:
        """The picture that notebooks show, of graphs with up to 200 nodes and 500 edges."""
        from nngp_dag.graph.drawing import svg_of

        return svg_of(self)

    def _repr_html_(self) -> str | None:
        """The numbers that notebooks show of larger graphs."""
        from nngp_dag.graph.drawing import facts_of, is_drawn

        return None if is_drawn(self) else forms.facts_html(repr(self), facts_of(self))

    def __str__(self) -> str:
        """Returns the paper code where there is one, else the edges."""
        try:
            return self.code
        except GraphError:
            return ",".join(map(str, self.edges))

    def __repr__(self) -> str:
        """Returns a short description."""
        return f"Dag({codes.shorten(str(self))!r})"


def _node(value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise GraphError(
            f"Expected nodes to be whole numbers, got {shown(value)}; use `Dag.from_edges` for names"
        ) from None
