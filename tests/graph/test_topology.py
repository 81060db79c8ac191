"""Path statistics against a walk along every path, closed forms and the reference tables."""

import csv
import itertools
import math
from fractions import Fraction

import pytest
from graph_cases import any_dags, walk, walked_histogram
from hypothesis import given, settings

from nngp_dag.graph import Dag, Edge, Op, codes, topology, zoo


@settings(max_examples=80, deadline=None)
@given(any_dags())
def test_statistics_are_those_of_the_enumerated_paths(dag):
    paths = walk(dag, 0, dag.num_nodes - 1)
    histogram = walked_histogram(dag)
    assert dag.num_paths == len(paths)
    assert dag.depth_histogram == histogram
    assert list(dag.depth_histogram) == sorted(histogram)
    total = sum(depth * count for depth, count in histogram.items())
    depth = Fraction(total, len(paths)) if paths else Fraction(0)
    width = Fraction(sum(n for d, n in histogram.items() if d)) / depth if depth else Fraction(0)
    assert (dag.path_counts.effective_depth, dag.path_counts.effective_width) == (depth, width)
    assert (dag.effective_depth, dag.effective_width) == (float(depth), float(width))


@settings(max_examples=80, deadline=None)
@given(any_dags())
def test_live_edges_are_those_on_a_path(dag):
    on_a_path = set(itertools.chain(*walk(dag, 0, dag.num_nodes - 1)))
    assert dag.live_edges == tuple(edge for i, edge in enumerate(dag.edges) if i in on_a_path)


def test_the_mixed_dag_by_hand():
    # Paths 0-3 (skip), 0-1-3 (weighted, skip), 0-2-3 (both weighted), 0-1-2-3 (weighted, skip, weighted).
    dag = Dag.from_code("2_21_112")
    assert dag.num_paths == 4
    assert dag.depth_histogram == {0: 1, 1: 1, 2: 2}
    assert (dag.effective_depth, dag.effective_width) == (5 / 4, 12 / 5)


def test_skips_alone_have_paths_but_no_depth_and_no_width():
    dag = Dag.from_code("1_11")
    assert dag.depth_histogram == {0: 2}
    assert (dag.effective_depth, dag.effective_width) == (0.0, 0.0)


def test_a_disconnected_graph_has_no_statistics():
    dag = Dag(3, (Edge(0, 1, Op.WEIGHTED),), allow_disconnected=True)
    assert (dag.num_paths, dag.depth_histogram, dag.live_edges) == (0, {}, ())
    assert (dag.effective_depth, dag.effective_width) == (0.0, 0.0)


def test_histogram_fields_do_not_overflow_into_each_other():
    # 256 paths of one depth need one more bit than a byte has.
    doubled = tuple(Edge(t, t + 1, op) for t in range(8) for op in (Op.SKIP, Op.WEIGHTED))
    assert Dag(9, doubled).depth_histogram == {k: math.comb(8, k) for k in range(9)}
    parallel = (Edge(0, 1, Op.WEIGHTED),) * 255
    assert Dag(2, parallel).depth_histogram == {1: 255}
    assert Dag(2, (*parallel, Edge(0, 1, Op.WEIGHTED))).depth_histogram == {1: 256}


def test_a_ladder_of_1000_nodes_is_exact_where_enumeration_would_never_end():
    num_nodes = 1000
    dag = zoo.ladder(num_nodes)
    histogram = dag.depth_histogram
    # k weighted steps of length 1 and j skips of length 2, in any order, cover the ladder.
    assert histogram == {
        k: math.comb(k + j, k)
        for k in range(num_nodes)
        for j in [(num_nodes - 1 - k) // 2]
        if k + 2 * j == num_nodes - 1
    }
    counts = (
        sum(histogram.values()),
        sum(n for k, n in histogram.items() if k),
        sum(k * n for k, n in histogram.items()),
    )
    assert dag.path_counts == topology.PathCounts(*counts)
    assert dag.num_paths == counts[0] > 10**200


@pytest.mark.slow
def test_depth_and_width_need_no_histogram(monkeypatch):
    """Effective depth and width need three numbers per node; a histogram has one for each depth."""
    num_nodes = 4000
    dag = zoo.ladder(num_nodes)
    monkeypatch.setattr(topology, "depth_histogram", None)
    # The last step is weighted, from the node before, or a skip from the one before that.
    numbers, depths = [1, 1], [0, 1]
    for _ in range(num_nodes - 2):
        depths.append(depths[-1] + numbers[-1] + depths[-2])
        numbers.append(numbers[-1] + numbers[-2])
    paths = numbers[-1]
    assert dag.num_paths == paths > 10**800
    assert dag.path_counts == topology.PathCounts(paths, paths, depths[-1])
    assert dag.effective_depth == float(Fraction(depths[-1], paths))
    assert dag.effective_width == float("inf")


@pytest.mark.slow
def test_every_reference_cell_has_the_depth_and_width_of_the_authors(golden_dir):
    with (golden_dir / "nb201_effective_depth_width.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1563
    for row in rows:
        dag = Dag.from_nasbench201(row["arch_str"])
        assert (dag.effective_depth, dag.effective_width) == (float(row["depth"]), float(row["width"])), row


def test_the_reference_codes_have_the_reference_statistics(golden_kernels):
    assert len(golden_kernels["dags"]) == 10
    for row in golden_kernels["dags"]:
        dag = Dag.from_code(row["code"])
        assert dag.num_paths == row["num_paths"]
        assert dag.depth_histogram == {int(depth): count for depth, count in row["depth_histogram"].items()}
        assert dag.effective_depth == row["effective_depth"]
        assert dag.effective_width == row["effective_width"]


def test_341_cells_are_disconnected_and_1642_have_paths_but_no_weight():
    cells = disconnected = weightless = kept = 0
    for digits in itertools.product("012", repeat=6):
        a, b, c, d, e, f = digits
        dag = Dag(*codes.parse_code(f"{a}_{b}{c}_{d}{e}{f}"), allow_disconnected=True)
        # Two operations of the space are skips and two are weighted, so that a code stands for 2^edges cells.
        count = 2 ** len(dag.edges)
        cells += count
        disconnected += count * (dag.num_paths == 0)
        weightless += count * (set(dag.depth_histogram) == {0})
        kept += count * (0.99 <= dag.effective_depth <= 2.51 and 0.99 <= dag.effective_width <= 3.01)
    assert (cells, disconnected, weightless) == (15625, 341, 1642)
    assert kept == 8226  # the number that the released filter of the authors keeps
