"""Paper codes and NAS-Bench-201 cells: their graphs, round trips and refusals."""

import itertools

import pytest
from graph_cases import any_dags
from hypothesis import given, settings

from nngp_dag.errors import GraphError
from nngp_dag.graph import Dag, Edge, Op, codes

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"


def test_all_662_connected_codes_of_three_nodes_survive_the_round_trip():
    connected = 0
    for a, b, c, d, e, f in itertools.product("012", repeat=6):
        code = f"{a}_{b}{c}_{d}{e}{f}"
        dag = Dag(*codes.parse_code(code), allow_disconnected=True)
        assert dag.code == str(dag) == code
        if dag.num_paths:
            connected += 1
            assert Dag.from_code(code) == dag
        else:
            with pytest.raises(GraphError, match="path from node 0 to the output node 3"):
                Dag.from_code(code)
    assert connected == 662


@settings(max_examples=100, deadline=None)
@given(any_dags(parallel=False))
def test_a_drawn_graph_without_parallel_edges_survives_the_round_trip(dag):
    assert Dag(*codes.parse_code(dag.code), allow_disconnected=True) == dag


def test_a_code_lists_the_edges_into_each_node():
    assert Dag.from_code("2_10_021") == Dag(
        4,
        (Edge(0, 1, Op.WEIGHTED), Edge(0, 2, Op.SKIP), Edge(1, 3, Op.WEIGHTED), Edge(2, 3, Op.SKIP)),
    )


@pytest.mark.parametrize("code", ["", None, 5, ["2"]])
def test_a_code_that_is_no_text_is_refused(code, unchecked):
    with pytest.raises(GraphError, match="Expected `code` to be text"):
        Dag.from_code(code)


@pytest.mark.parametrize(
    ("code", "block"), [("2_2", 2), ("22", 1), ("_", 1), ("2_", 2), ("2_21_11", 3), ("2_13", 2), ("2_-1", 2), ("a", 1)]
)
def test_a_malformed_block_is_named(code, block):
    with pytest.raises(GraphError, match=f"Expected block {block} of `code` to hold {block} digits"):
        Dag.from_code(code)


def test_the_message_about_a_long_code_is_short():
    with pytest.raises(GraphError, match="digits") as caught:
        Dag.from_code("2_" * 5000)
    assert len(str(caught.value)) < 300


def test_parallel_edges_have_no_code():
    dag = Dag(2, (Edge(0, 1, Op.SKIP), Edge(0, 1, Op.WEIGHTED)))
    with pytest.raises(GraphError, match="at most one edge from node 0 to node 1"):
        _ = dag.code


def test_a_cell_reads_as_its_code():
    assert Dag.from_nasbench201(CELL).code == "2_21_121"


@pytest.mark.parametrize(
    ("op", "meaning"),
    [
        ("skip_connect", Op.SKIP),
        ("avg_pool_3x3", Op.SKIP),
        ("nor_conv_1x1", Op.WEIGHTED),
        ("nor_conv_3x3", Op.WEIGHTED),
    ],
)
def test_an_operation_of_a_cell_is_a_skip_or_weighted(op, meaning):
    assert Dag.from_nasbench201(f"|{op}~0|").edges == (Edge(0, 1, meaning),)


def test_a_disconnected_cell_is_returned_not_refused():
    dag = Dag.from_nasbench201("|none~0|+|none~0|skip_connect~1|")
    assert dag.num_nodes == 3
    assert dag.num_paths == 0


@pytest.mark.parametrize("cell", ["", None, 3])
def test_a_cell_that_is_no_text_is_refused(cell, unchecked):
    with pytest.raises(GraphError, match="Expected `cell` to be text"):
        Dag.from_nasbench201(cell)


@pytest.mark.parametrize(
    ("cell", "block"),
    [
        ("skip_connect~0", 1),
        ("|skip_connect~0", 1),
        ("|skip_connect|", 1),
        ("|skip_connect~1|", 1),
        ("|skip_connect~0|none~1|", 1),
        ("|skip_connect~0|+", 2),
        ("|skip_connect~0|+|none~0|", 2),
        ("|skip_connect~0|+|none~1|none~0|", 2),
        ("|skip_connect~0|+|none~0|none~0|", 2),
        ("|skip_connect~0|+|none~0|none~1|x", 2),
    ],
)
def test_a_malformed_cell_names_the_block(cell, block):
    with pytest.raises(GraphError, match=f"Expected block {block} of `cell`"):
        Dag.from_nasbench201(cell)


def test_an_unknown_operation_names_the_edge():
    with pytest.raises(GraphError, match=r"edge 1->2 of `cell` to be one of none, .*, got 'max_pool_3x3'"):
        Dag.from_nasbench201("|none~0|+|skip_connect~0|max_pool_3x3~1|")
