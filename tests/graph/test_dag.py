"""`Dag`, `Edge` and `Op`: validation, identity and invariance."""

import dataclasses

import numpy as np
import pytest
from graph_cases import assert_same_network, dags
from hypothesis import given, settings
from hypothesis import strategies as st

import nngp_dag as nd
from nngp_dag.architecture import normal_form
from nngp_dag.errors import GraphError
from nngp_dag.graph import Dag, Edge, Op


def with_dead_node(dag, at, into, out_of, fed):
    """Returns the graph with a dead node before node `at`: no edge leaves it (`fed`), or no edge enters it."""
    moved = {node: node + (node >= at) for node in range(dag.num_nodes)}
    edges = [Edge(moved[e.source], moved[e.target], e.op) for e in dag.edges]
    if fed:
        edges += [Edge(moved[s], at, op) for s, op in into if s < at]
    else:
        edges += [Edge(at, moved[t], op) for t, op in out_of if at <= t < dag.num_nodes]
    return Dag(dag.num_nodes + 1, tuple(edges))


def with_split_edge(dag, index, skip_first):
    """Returns the graph with an edge replaced by two edges through a new node, one of them a skip."""
    edge, middle = dag.edges[index], dag.edges[index].target
    moved = {node: node + (node >= middle) for node in range(dag.num_nodes)}
    rest = [Edge(moved[e.source], moved[e.target], e.op) for i, e in enumerate(dag.edges) if i != index]
    first, second = (Op.SKIP, edge.op) if skip_first else (edge.op, Op.SKIP)
    return Dag(dag.num_nodes + 1, (*rest, Edge(edge.source, middle, first), Edge(middle, middle + 1, second)))


ends = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(Op)), max_size=5)


@settings(max_examples=80, deadline=None)
@given(dags(), st.data(), ends, ends, st.booleans())
def test_a_dead_node_changes_nothing(dag, data, into, out_of, fed):
    at = data.draw(st.integers(1, dag.num_nodes - 1))
    larger = with_dead_node(dag, at, into, out_of, fed)
    assert_same_network(larger, dag)
    assert normal_form(larger).shared_skips == normal_form(dag).shared_skips


@settings(max_examples=80, deadline=None)
@given(dags(), st.data(), st.booleans())
def test_splitting_an_edge_by_a_skip_changes_nothing(dag, data, skip_first):
    index = data.draw(st.integers(0, len(dag.edges) - 1))
    larger = with_split_edge(dag, index, skip_first)
    assert larger.num_nodes == dag.num_nodes + 1
    assert_same_network(larger, dag)


@pytest.mark.parametrize("order", ["linear-act", "act-linear"])
def test_equal_networks_have_equal_kernels_through_the_public_call(order, drawn_inputs):
    dag = Dag.from_code("2_12_112")
    nodes = [(t, Op.SKIP) for t in range(4)] + [(t, Op.WEIGHTED) for t in range(4)]
    equals = [with_split_edge(dag, i, first) for i in range(len(dag.edges)) for first in (True, False)]
    equals += [with_dead_node(dag, at, nodes, nodes, fed) for at in (1, 2, 3) for fed in (True, False)]
    expected = nd.kernel(dag, drawn_inputs, order=order)
    for same in equals:
        k = nd.kernel(same, drawn_inputs, order=order)
        np.testing.assert_allclose(k.nngp, expected.nngp, rtol=1e-10)
        np.testing.assert_allclose(k.ntk, expected.ntk, rtol=1e-10)


def test_graphs_with_the_same_edges_are_one():
    one = Dag(3, (Edge(0, 1, Op.WEIGHTED), Edge(1, 2, Op.SKIP), Edge(0, 2, Op.SKIP)))
    other = Dag(3, (Edge(0, 2, Op.SKIP), Edge(1, 2, Op.SKIP), Edge(0, 1, Op.WEIGHTED)), allow_disconnected=True)
    assert one == other
    assert len({one, other, Dag.from_code("2_11")}) == 1
    assert one.edges == tuple(sorted(one.edges))


@pytest.mark.parametrize("other", ["2_12", "2_01", "2_11_001", "1_11"])
def test_graphs_with_other_edges_differ(other):
    assert Dag.from_code("2_11") != Dag.from_code(other)


def test_a_parallel_edge_counts():
    single = Dag(2, (Edge(0, 1, Op.WEIGHTED),))
    double = Dag(2, (Edge(0, 1, Op.WEIGHTED), Edge(0, 1, Op.WEIGHTED)))
    assert single != double
    assert double.num_paths == 2


@pytest.mark.parametrize("name", ["num_nodes", "edges", "num_paths", "depth_histogram"])
def test_a_dag_cannot_be_changed(name):
    dag = Dag.from_code("2_21")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(dag, name, 5)


def test_a_histogram_handed_out_is_a_copy():
    dag = Dag.from_code("2_21")
    dag.depth_histogram.clear()
    assert dag.depth_histogram == {1: 2}


def test_text_is_the_code_or_else_the_edges():
    assert repr(Dag.from_code("2_21")) == "Dag('2_21')"
    parallel = Dag(2, (Edge(0, 1, Op.WEIGHTED), Edge(0, 1, Op.SKIP)))
    assert str(parallel) == "0->1:skip,0->1:weighted"
    assert len(repr(nd.zoo.ladder(100))) < 80


@pytest.mark.parametrize("num_nodes", [1, 0, -3])
def test_a_graph_needs_an_input_and_an_output(num_nodes):
    with pytest.raises(GraphError, match=f"`num_nodes` to be at least 2 .* got {num_nodes}"):
        Dag(num_nodes, ())


@pytest.mark.parametrize(("source", "target"), [(2, 1), (1, 1), (0, 3), (-1, 1)])
def test_an_edge_leads_from_a_lower_to_a_higher_node(source, target):
    with pytest.raises(GraphError, match=rf"lower to a higher node out of 0\.\.2, got {source}->{target}"):
        Dag(3, (Edge(0, 2, Op.SKIP), Edge(source, target, Op.SKIP)))


@pytest.mark.parametrize("edges", [(), (Edge(0, 1, Op.SKIP),), (Edge(1, 2, Op.SKIP),)])
def test_an_output_that_no_path_reaches_is_refused(edges):
    with pytest.raises(GraphError, match="path from node 0 to the output node 2, got none"):
        Dag(3, edges)
    dag = Dag(3, edges, allow_disconnected=True)
    with pytest.raises(GraphError, match="path from node 0 to the output node 2, got none"):
        dag.require_connected()


def test_a_disconnected_graph_has_no_kernel(drawn_inputs):
    with pytest.raises(GraphError, match="got none in 0_00"):
        nd.kernel(Dag(3, (), allow_disconnected=True), drawn_inputs)


@pytest.mark.parametrize("value", [Op.WEIGHTED, 2, "2", "weighted", "Weighted"])
def test_an_operation_has_several_spellings(value):
    assert Op.parse(value) is Op.WEIGHTED
    assert Dag.from_edges([(0, 1, value)]).edges == (Edge(0, 1, Op.WEIGHTED),)


@pytest.mark.parametrize("value", [0, 3, "0", "", "conv", 2.0, False])
def test_an_unknown_operation_is_refused(value):
    with pytest.raises(GraphError, match=r"`op` to be 'skip' \(1\) or 'weighted' \(2\)"):
        Op.parse(value)
    with pytest.raises(GraphError, match="leave absent edges out"):
        Dag.from_edges([(0, 1, value)])


def test_an_unknown_operation_on_an_edge_is_refused(unchecked):
    with pytest.raises(GraphError, match="got 'pool'"):
        Dag(2, (Edge(0, 1, "pool"),))  # pyright: ignore[reportArgumentType]
