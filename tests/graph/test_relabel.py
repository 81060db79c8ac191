"""Graphs over nodes of any name, and networkx."""

from collections import Counter

import networkx as nx
import numpy as np
import pytest
from graph_cases import assert_same_network, dags
from hypothesis import given, settings
from hypothesis import strategies as st

import nngp_dag as nd
from nngp_dag.errors import GraphError
from nngp_dag.graph import Dag, Edge, Op

NAMED = [("stem", "a", "weighted"), ("a", "out", "skip"), ("stem", "out", "weighted")]


@settings(max_examples=80, deadline=None)
@given(dags(), st.data())
def test_new_names_and_another_order_of_edges_change_nothing(dag, data):
    names = data.draw(st.permutations([f"n{i}" for i in range(dag.num_nodes)]))
    triples = data.draw(st.permutations([(names[e.source], names[e.target], e.op) for e in dag.edges]))
    again = Dag.from_edges(triples, source=names[0], output=names[-1])
    assert_same_network(again, dag)
    assert Counter(edge.op for edge in again.edges) == Counter(edge.op for edge in dag.edges)


@pytest.mark.parametrize("order", ["linear-act", "act-linear"])
def test_another_numbering_has_the_same_kernels_through_the_public_call(order, drawn_inputs):
    # No edge joins nodes 1 and 2, so that they may be swapped.
    one, other = Dag.from_code("2_10_121_0212"), Dag.from_code("1_20_112_0122")
    assert one != other
    ours, theirs = (nd.kernel(dag, drawn_inputs, order=order) for dag in (one, other))
    np.testing.assert_allclose(ours.nngp, theirs.nngp, rtol=1e-10)
    np.testing.assert_allclose(ours.ntk, theirs.ntk, rtol=1e-10)


@settings(max_examples=80, deadline=None)
@given(dags())
def test_networkx_round_trip_is_exact(dag):
    assert Dag.from_networkx(dag.to_networkx()) == dag


def test_networkx_round_trip_keeps_isolated_nodes_and_parallel_edges():
    dag = Dag(5, (Edge(0, 3, Op.WEIGHTED), Edge(0, 3, Op.WEIGHTED), Edge(0, 3, Op.SKIP), Edge(3, 4, Op.SKIP)))
    graph = dag.to_networkx()
    assert list(graph) == [0, 1, 2, 3, 4]
    assert graph.number_of_edges(0, 3) == 3
    assert graph.graph == {"source": 0, "output": 4}
    assert sorted(op for *_, op in graph.edges(data="op")) == ["skip", "skip", "weighted", "weighted"]
    assert Dag.from_networkx(graph) == dag


def test_names_and_digits_mean_the_same():
    assert Dag.from_edges(NAMED) == Dag.from_code("2_21")
    assert Dag.from_edges([(("x", 0), 7, 2), (7, frozenset(), "1"), (("x", 0), frozenset(), Op.WEIGHTED)]) == (
        Dag.from_code("2_21")
    )


def test_nodes_keep_the_order_of_the_graph_where_they_can():
    graph = nx.DiGraph()
    graph.add_nodes_from(["out", "z", "a", "stem", "m"])
    for node, op in (("z", "weighted"), ("a", "skip"), ("m", "weighted")):
        graph.add_edge("stem", node, op=op)
        graph.add_edge(node, "out", op="skip")
    assert Dag.from_networkx(graph).code == "2_10_200_0111"


def test_the_source_may_be_named_where_several_nodes_have_no_input():
    edges = [*NAMED, ("other", "out", "skip")]
    with pytest.raises(GraphError, match=r"one node without incoming edges, got 2 \(.*\); name it with `source`"):
        Dag.from_edges(edges)
    assert Dag.from_edges(edges, source="stem").num_paths == 2
    assert Dag.from_edges(edges, source="other").num_paths == 1


def test_the_output_may_be_named_where_several_nodes_have_no_successor():
    edges = [*NAMED, ("a", "loose", "skip")]
    with pytest.raises(GraphError, match=r"one node without outgoing edges, got 2 \(.*\); name it with `output`"):
        Dag.from_edges(edges)
    assert Dag.from_edges(edges, output="out").num_paths == 2
    assert Dag.from_edges(edges, output="loose").num_paths == 1


def test_an_argument_goes_before_the_attribute_of_the_graph():
    graph = Dag.from_edges([*NAMED, ("a", "loose", "skip")], output="out").to_networkx()
    loose = next(node for node in graph if graph.out_degree(node) == 0 and node != graph.graph["output"])
    assert Dag.from_networkx(graph).num_paths == 2
    assert Dag.from_networkx(graph, output=loose).num_paths == 1


@pytest.mark.parametrize(
    ("role", "direction", "node"),
    [("source", "incoming", "a"), ("source", "incoming", "absent"), ("output", "outgoing", "a")],
)
def test_a_source_or_output_inside_the_graph_is_refused(role, direction, node):
    with pytest.raises(GraphError, match=f"`{role}` to be a node without {direction} edges, got '{node}'"):
        Dag.from_edges(NAMED, **{role: node})


def test_one_isolated_node_is_no_source_and_output():
    graph = nx.DiGraph()
    graph.add_node("only")
    with pytest.raises(GraphError, match="`source` and `output` to differ, got 'only' for both"):
        Dag.from_networkx(graph)


def test_no_edges_are_no_graph():
    with pytest.raises(GraphError, match="one node without incoming edges, got 0"):
        Dag.from_edges([])


def test_a_cycle_is_named():
    edges = [("s", "a", "skip"), ("a", "b", "skip"), ("b", "a", "weighted"), ("b", "t", "skip")]
    with pytest.raises(GraphError, match=r"Expected an acyclic graph, got the cycle '[ab]' -> '[ab]'"):
        Dag.from_edges(edges)
    with pytest.raises(GraphError, match="cycle 1"):
        Dag.from_edges([(0, 1, "skip"), (1, 1, "skip"), (1, 2, "skip")])


@pytest.mark.parametrize("triple", [(0, 1), (0, 1, "skip", 4), (), 5, ([], 1, "skip"), (None, 1, "skip")])
def test_an_edge_is_a_triple_of_hashable_nodes(triple, unchecked):
    with pytest.raises(
        GraphError, match=r"every edge to be \(source, target, op\) with hashable nodes other than None"
    ):
        Dag.from_edges([triple])


def test_an_undirected_graph_is_refused(unchecked):
    with pytest.raises(GraphError, match="`graph` to be directed, got a Graph; use a DiGraph"):
        Dag.from_networkx(nx.path_graph(3))


def test_an_edge_without_operation_is_named():
    with pytest.raises(GraphError, match="Expected edge 0->1 to carry the attribute `op`, got none"):
        Dag.from_networkx(nx.path_graph(3, create_using=nx.DiGraph))


def test_named_ends_that_no_path_joins_are_refused():
    with pytest.raises(GraphError, match="path from node 0 to the output node 3"):
        Dag.from_edges([("s", "t", "skip"), ("u", "v", "skip")], source="s", output="v")
