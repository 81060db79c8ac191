"""Named and random DAGs."""

import pytest

from nngp_dag.errors import GraphError
from nngp_dag.graph import Dag, Op, zoo


@pytest.mark.parametrize(
    ("name", "code"), [("DAG#1", "2_02_002"), ("DAG#2", "1_01_222"), ("DAG#3", "2_21_112"), ("dag#3", "2_21_112")]
)
def test_figure_3_by_name(name, code):
    assert zoo.named(name) == Dag.from_code(code)


@pytest.mark.parametrize("name", ["", "DAG#4", "2_21_112"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(GraphError, match="`name` to be one of DAG#1, DAG#2, DAG#3, got"):
        zoo.named(name)


def test_a_chain_is_one_path():
    assert zoo.chain(3) == zoo.named("DAG#1")
    assert zoo.chain(50).depth_histogram == {50: 1}


def test_a_ladder_has_a_weighted_edge_and_a_skip_into_every_node():
    assert zoo.ladder(2).code == "2"
    assert zoo.ladder(5).code == "2_12_012_0012"
    assert zoo.ladder(14).num_paths == 377


@pytest.mark.parametrize("make", [lambda: zoo.chain(0), lambda: zoo.ladder(1), lambda: zoo.random_dag(1, seed=0)])
def test_a_graph_of_one_node_is_refused(make):
    with pytest.raises(GraphError, match="`num_nodes` to be at least 2"):
        make()


def test_a_seed_draws_one_connected_graph():
    drawn = [zoo.random_dag(6, seed) for seed in range(50)]
    assert drawn == [zoo.random_dag(6, seed) for seed in range(50)]
    assert len(set(drawn)) > 45
    assert all(dag.num_nodes == 6 and dag.num_paths > 0 for dag in drawn)


def test_every_edge_is_absent_a_skip_or_weighted_with_equal_probability():
    edges = [edge.op for seed in range(400) for edge in zoo.random_dag(8, seed).edges]
    # There are 11,200 pairs of nodes, so that 4 standard errors of a share of a third are 0.018.
    for op in Op:
        assert abs(edges.count(op) / 11200 - 1 / 3) < 0.018
