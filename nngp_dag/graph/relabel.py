"""Conversion between graphs over nodes of any name and the numbered nodes of a `Dag`, with networkx."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nngp_dag.errors import GraphError
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import Op, parse

if TYPE_CHECKING:
    import networkx


# The arguments of a `Dag`: number of nodes, edges, allow_disconnected, number of inputs, outputs.
Parts = tuple[int, tuple[Edge, ...], bool, int, tuple[int, ...]]

# One node, a list of several nodes, or None.
Ends = Hashable | list[Any] | None


def from_edges(edges: Iterable[Sequence[Any]], source: Ends, output: Ends) -> Parts:
    """Numbers the nodes of (source, target, op) triples; see `Dag.from_edges`."""
    import networkx as nx

    graph = nx.MultiDiGraph()
    for index, item in enumerate(edges):
        try:
            tail, head, op = item
            for inner in _inlined(index, tail, head, op):
                graph.add_edge(*inner[:2], op=inner[2])
        except (TypeError, ValueError) as error:
            if isinstance(error, GraphError):
                raise
            raise GraphError(
                f"Expected every edge to be (source, target, op) with hashable nodes other than None, got {item!r}"
            ) from None
    return from_networkx(graph, source, output)


def _inlined(index: int, tail: Hashable, head: Hashable, op: Any) -> Iterator[tuple[Hashable, Hashable, Any]]:
    """Yields an edge, or the live edges of the graph that it carries and a skip from its output to the head."""
    if not hasattr(op, "live_edges"):
        yield tail, head, op
        return
    if op.num_inputs > 1 or len(op.outputs) > 1:
        raise GraphError(
            f"Expected a graph on edge {tail!r}->{head!r} to have one input and one output, got {op.num_inputs} and "
            f"{len(op.outputs)}"
        )
    # The inner input is the tail itself. Other inner nodes get names that no caller can use, since `_INNER` is private.
    names = {0: tail} | {node: (index, node, _INNER) for node in range(1, op.num_nodes)}
    if not op.live_edges:
        return
    for edge in op.live_edges:
        yield names[edge.source], names[edge.target], edge.op
    yield names[op.outputs[0]], head, Op.SKIP


_INNER = object()


def from_networkx(graph: "networkx.DiGraph", source: Ends, output: Ends) -> Parts:
    """Numbers the nodes of a networkx graph in topological order; see `Dag.from_networkx`."""
    import networkx as nx

    if not graph.is_directed():
        raise GraphError(f"Expected `graph` to be directed, got a {type(graph).__name__}; use a DiGraph")
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(repr(step[0]) for step in nx.find_cycle(graph))
        raise GraphError(f"Expected an acyclic graph, got the cycle {cycle}; remove one of its edges")
    sources = _pick("source", source, graph, graph.in_degree())
    outputs = _pick("output", output, graph, graph.out_degree())
    both = [node for node in sources if node in outputs]
    if both:
        raise GraphError(f"Expected `source` and `output` to differ, got {both[0]!r} for both")
    order = {node: i for i, node in enumerate(graph)}
    ordered = nx.lexicographical_topological_sort(graph, key=order.__getitem__)
    middle = [node for node in ordered if node not in sources]
    if graph.out_degree(outputs[-1]) == 0:
        # A single output is the last node, as in paper codes.
        middle = [node for node in middle if node != outputs[-1]] + [outputs[-1]]
    number = {node: i for i, node in enumerate([*sources, *middle])}
    numbered = []
    for tail, head, op in graph.edges(data="op"):
        if op is None:
            raise GraphError(
                f"Expected edge {tail!r}->{head!r} to carry the attribute `op`, got none; "
                "set op='skip' or op='weighted'"
            )
        numbered.append(Edge(number[tail], number[head], parse(op)))
    return len(number), tuple(numbered), False, len(sources), tuple(number[node] for node in outputs)


def to_networkx(
    num_nodes: int, edges: Sequence[Edge], num_inputs: int, outputs: Sequence[int]
) -> "networkx.MultiDiGraph":
    """Builds a `MultiDiGraph` that names its sources and outputs; see `Dag.to_networkx`."""
    import networkx as nx

    source, output = list(range(num_inputs)), list(outputs)
    graph = nx.MultiDiGraph(
        source=source[0] if len(source) == 1 else source, output=output[0] if len(output) == 1 else output
    )
    graph.add_nodes_from(range(num_nodes))
    for edge in edges:
        graph.add_edge(edge.source, edge.target, op=edge.op.name.lower() if isinstance(edge.op, Op) else edge.op)
    return graph


def _pick(
    role: str, chosen: Ends, graph: "networkx.DiGraph", degrees: Iterable[tuple[Hashable, int]]
) -> list[Hashable]:
    """Returns the source or output nodes: the given ones, else those that the graph names, else the only end."""
    ends = [node for node, degree in degrees if degree == 0]
    if chosen is None:
        chosen = graph.graph.get(role)
    direction = "incoming" if role == "source" else "outgoing"
    if chosen is None:
        if len(ends) != 1:
            raise GraphError(
                f"Expected one node without {direction} edges, got {len(ends)} ({ends[:5]!r}); name it with `{role}`"
            )
        return ends
    if isinstance(chosen, list):
        # Input nodes have no incoming edges, but one of several outputs may also feed other nodes.
        known = ends if role == "source" else list(graph)
        unknown = [node for node in chosen if node not in known]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise GraphError(f"Expected `{role}` to list different nodes of the graph, got {chosen!r}")
        return chosen
    if chosen not in ends:
        raise GraphError(f"Expected `{role}` to be a node without {direction} edges, got {chosen!r}")
    return [chosen]
