"""Graphs over nodes of any name, to and from the numbered nodes of a `Dag`, with networkx's algorithms."""

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from nngp_dag.errors import GraphError
from nngp_dag.graph.edge import Edge, Op

if TYPE_CHECKING:
    import networkx


def from_edges(
    edges: Iterable[Sequence[Hashable]], source: Hashable | None, output: Hashable | None
) -> tuple[int, tuple[Edge, ...]]:
    """Numbers the nodes of (source, target, op) triples; see `Dag.from_edges`."""
    import networkx as nx

    graph = nx.MultiDiGraph()
    for item in edges:
        try:
            tail, head, op = item
            graph.add_edge(tail, head, op=op)
        except (TypeError, ValueError):
            raise GraphError(
                f"Expected every edge to be (source, target, op) with hashable nodes other than None, got {item!r}"
            ) from None
    return from_networkx(graph, source, output)


def from_networkx(
    graph: "networkx.DiGraph", source: Hashable | None, output: Hashable | None
) -> tuple[int, tuple[Edge, ...]]:
    """Numbers the nodes of a networkx graph in topological order; see `Dag.from_networkx`."""
    import networkx as nx

    if not graph.is_directed():
        raise GraphError(f"Expected `graph` to be directed, got a {type(graph).__name__}; use a DiGraph")
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(repr(step[0]) for step in nx.find_cycle(graph))
        raise GraphError(f"Expected an acyclic graph, got the cycle {cycle}; remove one of its edges")
    source = _pick("source", source, graph, graph.in_degree())
    output = _pick("output", output, graph, graph.out_degree())
    if source == output:
        raise GraphError(f"Expected `source` and `output` to differ, got {source!r} for both")
    order = {node: i for i, node in enumerate(graph)}
    middle = [
        node
        for node in nx.lexicographical_topological_sort(graph, key=order.__getitem__)
        if node not in (source, output)
    ]
    number = {node: i for i, node in enumerate([source, *middle, output])}
    numbered = []
    for tail, head, op in graph.edges(data="op"):
        if op is None:
            raise GraphError(
                f"Expected edge {tail!r}->{head!r} to carry the attribute `op`, got none; "
                "set op='skip' or op='weighted'"
            )
        numbered.append(Edge(number[tail], number[head], Op.parse(op)))
    return len(number), tuple(numbered)


def to_networkx(num_nodes: int, edges: Sequence[Edge]) -> "networkx.MultiDiGraph":
    """Builds a `MultiDiGraph` that names its source and output; see `Dag.to_networkx`."""
    import networkx as nx

    graph = nx.MultiDiGraph(source=0, output=num_nodes - 1)
    graph.add_nodes_from(range(num_nodes))
    for edge in edges:
        graph.add_edge(edge.source, edge.target, op=edge.op.name.lower())
    return graph


def _pick(
    role: str, chosen: Hashable | None, graph: "networkx.DiGraph", degrees: Iterable[tuple[Hashable, int]]
) -> Hashable:
    ends = [node for node, degree in degrees if degree == 0]
    if chosen is None:
        chosen = graph.graph.get(role)
    direction = "incoming" if role == "source" else "outgoing"
    if chosen is None:
        if len(ends) != 1:
            raise GraphError(
                f"Expected one node without {direction} edges, got {len(ends)} ({ends[:5]!r}); name it with `{role}`"
            )
        return ends[0]
    if chosen not in ends:
        raise GraphError(f"Expected `{role}` to be a node without {direction} edges, got {chosen!r}")
    return chosen
