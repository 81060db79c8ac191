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

    Node t computes X(t) = sum over edges s -> t of op(X(s)). Nodes are numbered in topological order. Several edges may
    join the same two nodes; each weighted edge draws its own weights. Nodes that lie on no path from an input to an
    output are allowed, and change nothing.

    A graph may have several inputs, each with a stem of its own, and several outputs, each with a readout of its own.
    Path statistics then count the paths from all inputs to all outputs.

    Attributes:
      num_nodes: Number of nodes, H + 1, the input and output nodes included.
      edges: The present edges, sorted.
      allow_disconnected (bool): Whether a graph is accepted although no path reaches one of its outputs, such as a cell
        of a search space. Path statistics of a graph without paths are zero; networks and kernels refuse it.
      num_inputs: Number of input nodes. Nodes 0 to `num_inputs` - 1 hold the outputs of stems; no edge may enter them.
      outputs: The nodes that feed a readout; by default node H alone.

    Raises:
      GraphError: The graph has fewer than two nodes or an unreachable output. Or an edge does not lead from a lower to
        a higher node, or carries an unknown operation.

    Examples:
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
        """Validates the graph once, so that all other code may rely on it."""
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
        """Checks that a path leads from an input to every output.

        Raises:
          GraphError: No path leads to one of the outputs.
        """
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

        Functions that take a graph take these texts, too.

        Raises:
          GraphError: `text` is none of these forms, or no path leads to the output of a code. (A cell without a path
            is accepted.)

        Examples:
          >>> Dag.parse("DAG#3") == Dag.parse("2_21_112") == Dag.from_code("2_21_112")
          True
        """
        return cls(*codes.parse_text(text))

    @classmethod
    def from_code(cls, code: str) -> "Dag":
        """Reads a paper code such as `2_21_112`: block t lists the edges into node t from nodes 0..t-1.

        The digit of an edge is 0 if it is absent, 1 if it is a skip, and 2 if it is weighted.

        Raises:
          GraphError: `code` is malformed, or no path leads to its output.

        Examples:
          >>> Dag.from_code("2_01").edges
          (Edge(source=0, target=1, op=<Op.WEIGHTED: 2>), Edge(source=1, target=2, op=<Op.SKIP: 1>))

        Reference: Chen et al., NeurIPS 2022.
        """
        return cls(*codes.parse_code(code))

    @classmethod
    def from_nasbench201(cls, cell: str) -> "Dag":
        """Reads the wiring of a NAS-Bench-201 cell.

        Convolutions become weighted edges; skip_connect and avg_pool_3x3 become skips, as in Chen et al. 2022. A cell
        without a path to its output is a valid element of the search space, so it is accepted.

        Raises:
          GraphError: `cell` is malformed or names an unknown operation.

        Examples:
          >>> Dag.from_nasbench201("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+"
          ...                      "|skip_connect~0|nor_conv_3x3~1|skip_connect~2|").code
          '2_21_121'

        Reference: Dong and Yang, ICLR 2020 (the cells).
        """
        return cls(*codes.parse_nasbench201(cell), allow_disconnected=True)

    @classmethod
    def from_darts(cls, cell: Sequence[Sequence[object]]) -> "Dag":
        """Reads the wiring of a DARTS cell: two inputs, and two (operation, input) pairs for every further node.

        The inputs are nodes 0 and 1. Pairs 2i and 2i + 1 describe the edges into node i + 2. The cell concatenates
        these nodes; here a skip leads from each of them to the output. Convolutions become weighted edges; skip_connect
        and pooling become skips, as Chen et al. 2022 count them.

        Raises:
          GraphError: `cell` is malformed, or names an unknown operation or a later node. (A cell whose operations are
            all "none" is accepted; it has no paths.)

        Examples:
          >>> dag = Dag.from_darts([("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 0), ("max_pool_3x3", 2)])
          >>> dag.num_inputs, dag.num_nodes, dag.depth_histogram
          (2, 5, {0: 2, 1: 3})

        Reference: Liu, Simonyan and Yang, ICLR 2019 (DARTS).
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
          edges: Triples. `op` is "skip" or "weighted" (or 1, 2), an operation such as
            `nngp_dag.Dense(activation="erf")`, or a `Dag` with one input and one output. A `Dag` takes the place of the
            edge.
          source: The node that holds the stem's output, or a list of several such nodes; by default the only node
            without incoming edges.
          output: The node that feeds the readout, or a list of several such nodes; by default the only node without
            outgoing edges.

        Raises:
          GraphError: A triple is malformed, the edges form a cycle, or source or output is not unique.

        Examples:
          >>> Dag.from_edges([("in", "a", "weighted"), ("a", "out", "weighted"), ("in", "out", "skip")]).code
          '2_12'
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

        Nodes are numbered in a topological order that keeps the graph's own order where it can.

        Args:
          graph: The graph. The attribute `op` of an edge is one of the operations of `from_edges`, but no `Dag`.
          source: The node, or nodes, of `from_edges`; by default the graph attribute "source", if there is one.
          output: The node, or nodes, of `from_edges`; by default the graph attribute "output", if there is one.

        Raises:
          GraphError: An `op` is missing or unknown, the graph has a cycle, or source or output is not unique.

        Examples:
          >>> dag = Dag.from_code("2_21_112")
          >>> Dag.from_networkx(dag.to_networkx()) == dag
          True
        """
        return cls(*relabel.from_networkx(graph, source, output))

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """Returns a networkx `MultiDiGraph` over nodes 0..H; an edge's `op` is "skip", "weighted" or its operation.

        Examples:
          >>> Dag.from_code("2_01").to_networkx().number_of_edges()
          2
        """
        return relabel.to_networkx(self.num_nodes, self.edges, self.num_inputs, self.outputs)

    @property
    def _graph(self) -> tuple[int, tuple[Edge, ...], int, tuple[int, ...]]:
        return self.num_nodes, self.edges, self.num_inputs, self.outputs

    @property
    def code(self) -> str:
        """The paper code, such as `2_21_112`.

        Raises:
          GraphError: No code can express the graph.
        """
        if self.num_inputs > 1 or self.outputs != (self.num_nodes - 1,):
            raise GraphError(
                f"Expected one input, and node {self.num_nodes - 1} as the only output, for a paper code, got "
                f"{self.num_inputs} inputs and the outputs {self.outputs}; use `edges` or `to_networkx()` instead"
            )
        return codes.format_code(self.num_nodes, self.edges)

    @functools.cached_property
    def path_counts(self) -> topology.PathCounts:
        """Exact counts of the paths from inputs to outputs and of their depths."""
        return topology.path_counts(*self._graph)

    @property
    def num_paths(self) -> int:
        """The exact number P of paths from inputs to outputs."""
        return self.path_counts.paths

    @functools.cached_property
    def live_edges(self) -> tuple[Edge, ...]:
        """The edges that lie on a path from an input to an output; no other edge affects the outputs."""
        return topology.live_edges(*self._graph)

    @functools.cached_property
    def _depth_histogram(self) -> dict[int, int]:
        return topology.depth_histogram(*self._graph)

    @property
    def depth_histogram(self) -> dict[int, int]:
        """The exact number of paths by depth: {number of weighted edges on a path: number of such paths}."""
        return dict(self._depth_histogram)

    @property
    def effective_depth(self) -> float:
        """The mean number of weighted edges on a path; `path_counts` has the exact fraction.

        Reference: Chen et al., NeurIPS 2022.
        """
        return float(self.path_counts.effective_depth)

    @property
    def effective_width(self) -> float:
        """The number of paths with a weighted edge, divided by the effective depth.

        It is infinite if it exceeds float64, which takes over 1e308 paths; `path_counts` has the exact fraction.

        Reference: Chen et al., NeurIPS 2022.
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

        Raises:
          InputError: `axes` are not two-dimensional axes of matplotlib, or `operations` do not name edges of the graph.

        Examples:
          >>> from matplotlib.figure import Figure
          >>> axes = Dag.from_code("2_21_112").plot(Figure().add_subplot())
          >>> [text.get_text() for text in axes.texts], len(axes.patches)
          (['0', '1', '2', '3'], 6)
        """
        from nngp_dag.graph.drawing import plot_on

        return plot_on(axes, self, operations)

    def _repr_svg_(self) -> str | None:
        """The picture that notebooks show, of graphs with up to 60 nodes and 150 edges."""
        from nngp_dag.graph.drawing import svg_of

        return svg_of(self)

    def _repr_html_(self) -> str | None:
        """The numbers that notebooks show of larger graphs."""
        from nngp_dag.graph.drawing import facts_of, is_drawn

        return None if is_drawn(self) else forms.facts_html(repr(self), facts_of(self))

    def __str__(self) -> str:
        """Returns the paper code if there is one, else the edges."""
        try:
            return self.code
        except GraphError:
            return ",".join(map(str, self.edges))

    def __repr__(self) -> str:
        """Returns a short description, such as `Dag('2_21_112')`."""
        return f"Dag({codes.shorten(str(self))!r})"


def _node(value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise GraphError(
            f"Expected nodes to be whole numbers, got {shown(value)}; use `Dag.from_edges` for names"
        ) from None
