"""Cells of NAS-Bench-201: text, numbers, samples, wiring, filters and isomorphism."""

import collections
import csv
from fractions import Fraction

import pytest

from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import zoo
from nngp_dag.nas import FILTERS, Cell, Filter, cells, get_filter, sample_cells
from nngp_dag.nas.spaces.cells import EDGES, OPERATIONS

SKIPS = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"


@pytest.fixture(scope="module")
def every_cell():
    return list(cells())


def cell_of(**operations):
    """Returns a cell with operations on named edges, `e03="nor_conv_3x3"`, and none elsewhere."""
    return Cell(tuple(operations.get(f"e{source}{target}", "none") for source, target in EDGES))


@pytest.mark.slow
def test_text_number_and_order_agree(every_cell):
    assert list(map(str, every_cell)) == list(zoo.nasbench201())
    for number, cell in enumerate(every_cell):
        assert cell.index == number
        assert Cell.from_index(number) == cell
        assert Cell.parse(str(cell)) == cell


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_depth_and_width_are_the_authors_on_every_row(golden_dir, step):
    rows = list(csv.DictReader((golden_dir / "nb201_effective_depth_width.csv").read_text().splitlines()))
    assert len(rows) == 1563
    for number, row in [*enumerate(rows)][::step]:
        cell = Cell.parse(row["arch_str"])
        assert cell.index == 10 * number
        assert cell.dag.effective_depth == pytest.approx(float(row["depth"]), rel=1e-14)
        assert cell.dag.effective_width == pytest.approx(float(row["width"]), rel=1e-14)


@pytest.mark.nightly
def test_the_space_has_so_many_degenerate_cells_and_filters_keep_so_many(every_cell):
    counts = collections.Counter(cell.status for cell in every_cell)
    assert counts == {"connected": 13_642, "unweighted": 1_642, "disconnected": 341}
    kept = {name: [cell for cell in every_cell if f.keeps(cell.dag)] for name, f in FILTERS["nasbench201"].items()}
    assert {name: len(found) for name, found in kept.items()} == {"paper": 6_256, "released-code": 8_226}
    assert all(cell.status == "connected" for found in kept.values() for cell in found)


def test_the_ends_of_a_filter_belong_to_it():
    at_the_end = zoo.chain(1)
    one = Fraction(1)
    assert Filter("", (one, one), (one, one), "").keeps(at_the_end)
    for depth, width in (((one / 2, one * 99 / 100), (one, one)), ((one, one), (one * 101 / 100, one * 2))):
        assert not Filter("", depth, width, "").keeps(at_the_end)
    f = get_filter("paper")
    assert [*map(float, f.depth), *map(float, f.width)] == [0.9, 2.3, 1.3, 3.1]


@pytest.mark.slow
def test_a_live_cell_has_the_same_paths(every_cell):
    for cell in every_cell[::29]:
        assert cell.live.dag.depth_histogram == cell.dag.depth_histogram
        assert cell.live.live == cell.live
        assert cell.live.canonical_form == cell.canonical_form
    assert cell_of(e01="nor_conv_3x3", e02="avg_pool_3x3", e23="skip_connect").live.operations[0] == "none"


@pytest.mark.slow
def test_swapping_two_nodes_changes_no_network(every_cell):
    for cell in every_cell:
        e01, e02, e12, e03, e13, e23 = cell.operations
        if e12 == "none":
            assert Cell((e02, e01, e12, e03, e23, e13)).canonical_form == cell.canonical_form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # A skip through a node, and a skip around it.
        ({"e03": "nor_conv_3x3"}, {"e01": "skip_connect", "e13": "nor_conv_3x3"}),
        ({"e01": "nor_conv_3x3", "e13": "skip_connect"}, {"e02": "nor_conv_3x3", "e23": "skip_connect"}),
        # Pooling is linear.
        (
            {"e01": "nor_conv_1x1", "e02": "skip_connect", "e12": "skip_connect", "e23": "avg_pool_3x3"},
            {"e01": "nor_conv_1x1", "e13": "avg_pool_3x3", "e03": "avg_pool_3x3"},
        ),
    ],
)
def test_equal_functions_are_one_network(one, other):
    assert cell_of(**one).canonical_form == cell_of(**other).canonical_form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # One convolution read twice, and two of them.
        (
            {"e01": "nor_conv_3x3", "e13": "skip_connect", "e12": "skip_connect", "e23": "skip_connect"},
            {"e01": "nor_conv_3x3", "e13": "skip_connect", "e02": "nor_conv_3x3", "e23": "skip_connect"},
        ),
        # One convolution read twice, and two of them, after another convolution.
        (
            {"e01": "nor_conv_3x3", "e12": "nor_conv_3x3", "e13": "skip_connect", "e23": "skip_connect"},
            {"e01": "nor_conv_3x3", "e13": "nor_conv_3x3", "e02": "nor_conv_3x3", "e23": "skip_connect"},
        ),
        ({"e03": "nor_conv_3x3"}, {"e03": "nor_conv_1x1"}),
        # ReLU is not linear: a convolution of a sum is not a sum of convolutions.
        ({"e03": "nor_conv_3x3"}, {"e01": "avg_pool_3x3", "e13": "nor_conv_3x3"}),
    ],
)
def test_different_functions_are_different_networks(one, other):
    assert cell_of(**one).canonical_form != cell_of(**other).canonical_form


def test_networks_read_as_formulas():
    assert cell_of().canonical_form == "0"
    assert Cell.parse(SKIPS).canonical_form == "x"
    assert (
        cell_of(e01="skip_connect", e02="skip_connect", e12="skip_connect", e23="avg_pool_3x3").canonical_form
        == "2 pool(x)"
    )
    assert cell_of(e01="nor_conv_3x3", e12="nor_conv_1x1", e13="skip_connect", e23="skip_connect").canonical_form == (
        "a = 3x3(x), b = 1x1(a): a + b"
    )


@pytest.mark.nightly
def test_the_space_holds_so_many_networks(every_cell):
    members = collections.Counter(cell.canonical_form for cell in every_cell)
    assert len(members) == 5_044
    assert members["0"] == 341


@pytest.mark.slow
def test_a_seed_draws_different_cells():
    drawn = sample_cells(500, seed=3)
    assert drawn == sample_cells(500, seed=3)
    assert len(set(drawn)) == 500
    assert drawn != sample_cells(500, seed=4)
    assert sorted(cell.index for cell in sample_cells(15_625, seed=0)) == list(range(15_625))
    # Every operation is as likely as any other: 4 standard errors of a share of a fifth are 0.03.
    for name in OPERATIONS:
        assert abs(sum(cell.operations.count(name) for cell in drawn) / 3000 - 0.2) < 0.03


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cell(("none",) * 5), "`operations` to name 6 out of none, skip_connect"),
        (lambda: Cell(("none",) * 5 + ("max_pool",)), "`operations` to name 6"),
        (lambda: Cell.parse("|nor_conv_3x3~0|"), "`text` to be a cell of 3 blocks, got 1"),
        (lambda: Cell.parse("|max_pool~0|+|none~0|none~1|+|none~0|none~1|none~2|"), "edge 0->1 of `cell`"),
        (lambda: Cell.from_index(15_625), "`index` in 0 to 15,624, got 15625"),
        (lambda: Cell.from_index(-1), "`index` in 0 to 15,624, got -1"),
        (lambda: sample_cells(0, seed=0), "`count` in 1 to 15,625, got 0"),
    ],
)
def test_what_is_no_cell_is_refused(make, message):
    with pytest.raises(GraphError, match=message):
        make()


def test_an_unknown_filter_is_refused():
    with pytest.raises(InputError, match="`filter` to be one of paper, released-code, got 'none'"):
        get_filter("none")
