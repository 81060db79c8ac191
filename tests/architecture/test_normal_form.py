"""The tables A and B: by hand, by counting skip-only paths, and through the reference kernels."""

import numpy as np
import pytest
from graph_cases import any_dags, assert_same_network, dags, kernels_of_tables, walk
from hypothesis import given, settings

import nngp_dag as nd
from nngp_dag.architecture import Network, normal_form
from nngp_dag.errors import GraphError
from nngp_dag.graph import Dag, Edge, Op

BY_HAND = {
    # The columns are the stem, then the weighted edges out of nodes 0, 1, 2.
    # X0 = stem, X2 = g(0->2) + g(0->1), X3 = X0 + g(0->1) + g(2->3); no weighted edge leaves node 1.
    "2_21_112": ([[1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0], [1, 1, 0, 1]], None, False),
    # X2 = X0 + X1 = 2 X0.
    "1_11": ([[0, 0, 0], [0, 0, 0], [4, 0, 0]], [[0, 0, 0], [0, 0, 0], [2, 0, 0]], True),
    # A chain: every node is one field.
    "2_02_002": (np.eye(4), None, False),
    # X0 = X1 = X2, X3 = g(0->3) + g(1->3) + g(2->3).
    "1_01_222": ([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1]], None, False),
    # X1 = g(0->1), X2 = X0 + X1, X3 = X0 + X1 + X2 = 2 X0 + 2 g.
    "2_11_111": ([[1, 0, 0, 0], *[[0] * 4] * 2, [4, 4, 0, 0]], [[1, 0, 0, 0], *[[0] * 4] * 2, [2, 2, 0, 0]], True),
}


@pytest.mark.parametrize("code", BY_HAND)
def test_tables_by_hand(code):
    A, B, shared = BY_HAND[code]
    tables = normal_form(Dag.from_code(code))
    np.testing.assert_array_equal(tables.A, A)
    np.testing.assert_array_equal(tables.B, A if B is None else B)
    assert tables.shared_skips is shared


@settings(max_examples=120, deadline=None)
@given(dags())
def test_tables_count_skip_only_paths(dag):
    output = dag.num_nodes - 1
    weighted = [edge for edge in dag.live_edges if edge.op is Op.WEIGHTED]
    fields = [(0, 0), *((edge.source + 1, edge.target) for edge in weighted)]
    A, B = np.zeros((2, dag.num_nodes, dag.num_nodes))
    pending, shared = [output], False
    while pending:
        node = pending.pop()
        if A[node].any():
            continue
        for column, head in fields:
            n = len(walk(dag, head, node, (Op.SKIP,)))
            A[node, column] += n**2
            B[node, column] += n
            shared |= n > 1
            if n and column:
                pending.append(column - 1)
    tables = normal_form(dag)
    np.testing.assert_array_equal(tables.A, A)
    np.testing.assert_array_equal(tables.B, B)
    assert tables.shared_skips is shared
    assert not np.triu(tables.A, 1).any()


def test_the_tables_give_the_reference_kernels(golden_kernels):
    x = np.array(golden_kernels["inputs"])
    # No edge enters node 1 of 0_22_012, where the reference divides 0 by 0. A test below covers it.
    rows = [row for row in golden_kernels["dags"] if row["code"] != "0_22_012"]
    assert len(rows) == 9
    for row in rows:
        k, t = kernels_of_tables(normal_form(Dag.from_code(row["code"])), x @ x.T / x.shape[1], "linear-act")
        np.testing.assert_allclose(k, row["nngp_node"], rtol=1e-10)
        reference = np.array(row["ntk_node"])
        # By arccos an angle of 0 has an error of 1e-8, and so has the diagonal of the reference.
        np.testing.assert_allclose(np.diag(t), np.diag(reference), rtol=5e-8)
        off_diagonal = ~np.eye(len(t), dtype=bool)
        np.testing.assert_allclose(t[off_diagonal], reference[off_diagonal], rtol=1e-10)


def test_a_node_that_nothing_feeds_is_zero():
    assert_same_network(Dag.from_code("0_22_012"), nd.zoo.chain(2))


@pytest.mark.parametrize("order", ["linear-act", pytest.param("act-linear", marks=pytest.mark.slow)])
def test_the_tables_give_the_kernels_of_the_public_call(order, drawn_inputs):
    k_in = drawn_inputs @ drawn_inputs.T / drawn_inputs.shape[1]
    for seed in range(20):
        dag = nd.zoo.random_dag(5, seed)
        k = nd.kernel(dag, drawn_inputs, order=order, readout=False)
        nngp, ntk = kernels_of_tables(normal_form(dag), k_in, order)
        np.testing.assert_allclose(k.nngp, nngp, rtol=1e-10)
        np.testing.assert_allclose(k.ntk, ntk, rtol=1e-10)


def test_the_dead_part_of_a_graph_leaves_no_trace():
    # No edge enters node 1, so that its weighted edge to the output carries zeros.
    dag = Dag(3, (Edge(0, 2, Op.WEIGHTED), Edge(1, 2, Op.WEIGHTED)))
    np.testing.assert_array_equal(normal_form(dag).A[-1], [0, 1, 0])
    # After node 1 all skips are doubled, which gives 2^600 skip-only paths that start at no input.
    unfed = [Edge(1, 2, Op.WEIGHTED), *(Edge(t, t + 1, Op.SKIP) for t in range(2, 602) for _ in range(2))]
    tables = normal_form(Dag(603, (Edge(0, 602, Op.SKIP), *unfed)))
    assert tables.A[-1].sum() == 1
    assert not tables.shared_skips


def test_tables_cannot_be_changed():
    tables = normal_form(Dag.from_code("2_21"))
    for table in (tables.A, tables.B):
        with pytest.raises(ValueError, match="read-only"):
            table[0, 0] = 5


@settings(max_examples=30, deadline=None)
@given(any_dags(max_nodes=4, max_edges=3))
def test_a_graph_has_tables_exactly_if_it_has_a_path(dag):
    if dag.num_paths:
        assert normal_form(dag).A[-1].any()
    else:
        with pytest.raises(GraphError, match="path from node 0 to the output"):
            normal_form(dag)


def doubled_skips(num_steps):
    return Dag(num_steps + 1, tuple(Edge(t, t + 1, Op.SKIP) for t in range(num_steps) for _ in range(2)))


def test_multiplicities_are_exact_up_to_the_range_of_float64():
    tables = normal_form(doubled_skips(511))
    assert tables.A[-1, 0] == 2.0**1022
    assert tables.B[-1, 0] == 2.0**511


@pytest.mark.parametrize("num_steps", [512, 1100])
def test_multiplicities_beyond_float64_are_refused(num_steps):
    with pytest.raises(GraphError, match=f"skip multiplicities of node {num_steps} whose squares float64 can hold"):
        normal_form(doubled_skips(num_steps))


def test_texts_are_read_and_networks_refused(unchecked):
    np.testing.assert_array_equal(normal_form("2_12").A, normal_form(Dag.from_code("2_12")).A)
    with pytest.raises(GraphError, match=r"got a Network; pass its `\.dag`"):
        normal_form(Network("2_12"))  # pyright: ignore[reportArgumentType]
