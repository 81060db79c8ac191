"""Pictures: their texts and layout, also in extreme cases."""

import json

import numpy as np
import pandas
import pytest
from pictures import check, drawn, texts, ticks

import nngp_dag as nd
from nngp_dag import style
from nngp_dag.cli import main
from nngp_dag.errors import InputError
from nngp_dag.graph import zoo
from nngp_dag.graph.codes import nasbench201_edges
from nngp_dag.graph.drawing import plot_dag
from nngp_dag.nas import AccuracyTable, Cell, Genotype, sample_cells
from nngp_dag.nas.pruning.plots import plot_cell, plot_trajectory
from nngp_dag.nas.studies.plots import plot_depth_and_width, plot_scores
from nngp_dag.report import plot_kernel, plot_sweep
from nngp_dag.training import History
from nngp_dag.training.plots import plot_training

CELL = "|nor_conv_3x3~0|+|avg_pool_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|"


@pytest.fixture
def figures(monkeypatch):
    return drawn(monkeypatch)


def words(figure):
    return [text.get_text() for text in texts(figure)]


# --- style ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2000, ["1", "10", "100", "1,000"]),
        (0.1, 0.5, ["0.1", "0.2", "0.5"]),
        (6.1, 6.9, ["6.2", "6.4", "6.6", "6.8"]),
        (1e-12, 1e-9, ["$10^{-12}$", "$10^{-11}$", "$10^{-10}$", "$10^{-9}$"]),
        (2e-9, 7e-9, ["2e-9", "3e-9", "4e-9", "6e-9"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_plain_numbers(low, high, expected):
    figure = style.new_figure(4, 3)
    axes = figure.add_subplot()
    axes.plot([low, high])
    style.log_axis(axes, "y")
    axes.set_ylim(low, high)
    figure.draw_without_rendering()
    assert [text.get_text() for text in ticks(axes.yaxis)] == expected


def test_a_logarithmic_axis_of_many_decades_has_few_ticks():
    assert 3 <= len(style.LogTicks().tick_values(1e-300, 1e300)) <= 8
    assert style.LogTicks().tick_values(-1, 3) == []


def test_only_positive_numbers_have_a_place():
    assert np.isnan(style.positive([0, -1, np.nan, np.inf])).all()
    assert style.positive([2.0]).tolist() == [2.0]


def test_long_titles_are_cut():
    lines = style.fit("word " * 1000, 5, 10, lines=2).split("\n")
    assert len(lines) == 2
    assert lines[1].endswith("...")


# --- graphs ---------------------------------------------------------------------------------------

GRAPHS = {
    "one edge": nd.Dag.from_code("2"),
    "code": nd.Dag.from_code("2_21_112"),
    "60 nodes": zoo.ladder(59),
    "parallel": nd.Dag.from_edges([(0, 1, 2), (0, 1, 2), (0, 1, 1), (0, 1, 1), (1, 2, 1)]),
    "operations": nd.Dag.from_edges(
        [
            (0, 1, nd.Conv(filter_shape=(3, 3))), (0, 1, nd.AvgPool((3, 3))), (0, 2, nd.Scale(-0.5)), (0, 2, "skip"),
            (1, 2, nd.Dense(activation="erf", order="act-linear", layer_norm=True)), (1, 3, "skip"), (2, 3, 2),
        ]
    ),
}  # fmt: skip


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(figures, tmp_path, name):
    plot_dag(GRAPHS[name], tmp_path / "dag.png")
    check(figures[0])
    assert {"weighted edge", "skip"} & set(words(figures[0]))


def test_operations_stand_on_their_edges(figures, tmp_path):
    plot_dag(GRAPHS["operations"], tmp_path / "dag.png")
    assert {"conv(3x3)-relu", "avg pool(3x3)", "scale(-0.5)", "layer norm-erf-dense", "pooling"} <= set(
        words(figures[0])
    )
    # A graph with 200 edges has no room for the operations, so that the legend lists them.
    many = [(i, i + 1, nd.Dense(activation="erf") if i % 2 else nd.Dense()) for i in range(200)]
    plot_dag(nd.Dag.from_edges(many), tmp_path / "dag.png")
    assert "weighted edge: dense-relu, dense-erf" in words(figures[1])


def test_pooling_of_a_cell_is_no_skip(figures, tmp_path, capsys):
    dag = nd.Dag.from_nasbench201(CELL)
    plot_dag(dag, tmp_path / "dag.png", operations=nasbench201_edges(CELL))
    plot_cell(Cell.parse(CELL), tmp_path / "cell.png")
    for figure in figures:
        check(figure)
        found = words(figure)
        assert found.count("avg pool 3x3") == 2
        assert found.count("conv 3x3") == found.count("conv 1x1") == 1
        assert "pooling, counted as a skip" in found
    with pytest.raises(SystemExit) as stop:
        main(["show", CELL])
    assert stop.value.code == 0
    assert "0 (avg_pool_3x3), 1 (skip_connect)" in capsys.readouterr().out


def test_cells_without_a_path_and_genotypes(figures, tmp_path):
    plot_cell(Cell.from_index(0), tmp_path / "cell.png")
    # A node may read one input twice.
    pairs = [("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 0), ("max_pool_3x3", 2)]
    pairs += [("sep_conv_5x5", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 4), ("avg_pool_3x3", 1)]
    plot_cell(Genotype.from_pairs(pairs, pairs), tmp_path / "genotype.png")
    for figure in figures:
        check(figure)
    found = words(figures[1])
    assert found.count("sep conv 3x3") == 4
    assert found.count("max pool 3x3") == 2
    assert found.count("concat") == 8


# --- kernels, training and sweeps ------------------------------------------------------------------


def kernel(n):
    root = np.random.default_rng(0).normal(size=(n, n))
    return nd.Kernel(nngp=root @ root.T, ntk=root @ root.T + np.eye(n))


@pytest.mark.sample(1)
@pytest.mark.parametrize("names", [range(10), [f"class {i}" for i in range(40)], ["only"]])
def test_rows_of_kernels_are_named_by_class(figures, tmp_path, names):
    labels = np.resize(np.array(list(names)), 40)
    plot_kernel(kernel(40), tmp_path / "kernel.png", "a title that is long " * 8, labels=labels)
    [figure] = figures
    check(figure)
    for axes in figure.axes[::2]:
        assert "class" in axes.get_xlabel()
        assert next(text.get_text() for text in ticks(axes.xaxis)) == str(min(names))
        assert len(axes.lines) == 2 * (len(names) - 1)
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), kernel(40).nngp[np.ix_(order, order)])


@pytest.mark.slow
def test_rows_of_kernels_are_named_as_the_classes_of_a_file(figures, tmp_path):
    names = ("-1", "10", "2", "a name that is long", "$\\no$")
    plot_kernel(kernel(40), tmp_path / "kernel.png", "title", labels=np.arange(40) % 5, classes=names)
    [figure] = figures
    check(figure)
    shown = [text.get_text() for text in ticks(figure.axes[0].yaxis)]
    assert shown[:3] == ["-1", "10", "2"]
    assert len(shown[3]) == 12


@pytest.mark.slow
def test_kernels_without_classes(figures, tmp_path):
    plot_kernel(kernel(4), tmp_path / "kernel.png", "title")
    check(figures[0])
    with pytest.raises(InputError, match=r"`labels` of all rows and columns of a kernel of shape \(4, 4\), got 3"):
        plot_kernel(kernel(4), tmp_path / "kernel.png", "title", labels=[0, 1, 1])


def history(name, epochs, last_loss):
    values = np.full((epochs + 1, 3, 3, 2), 0.5)
    values[:, :, 0] = np.geomspace(2.4, 1.9, epochs + 1)[:, None, None]
    values[-1, :, 0] = last_loss
    return History(name, (0, 1), 3, np.ones(epochs), values)


@pytest.mark.sample(1)
@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_curves_name_the_loss(figures, tmp_path, loss):
    plot_training([history("a long name " * 9, 3, 0.0), history("b", 3, 1.9)], tmp_path / "a.png", "t " * 99, loss=loss)
    check(figures[0])
    label = {"cross-entropy": "cross entropy", "squared": "½‖y − f‖²"}[loss]
    assert f"{label},\nmean per example" in words(figures[0])
    assert [text.get_text() for text in ticks(figures[0].axes[2].xaxis)] == ["0", "1", "2", "3"]


@pytest.mark.sample(0, slow=2)
@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("paths", [1, 10**20])
def test_sweeps(figures, tmp_path, scale, paths):
    table = pandas.DataFrame(
        {
            "valid": True,
            "nngp_resolved": [True, True, True, False],
            "ntk_resolved": [True, True, True, False],
            "effective_depth": [0.0, 1.0, 1.0, 2.0],
            "num_paths": pandas.Series([1, 2, 2 * paths, 3], dtype=object),
            "kernel_class": list("abca"),
            "nngp_lambda_min": np.array([0.31, 0.33, 0.37, 0.0]) * scale,
            "ntk_lambda_min": np.array([1.0, 2.0, 30.0, -1.0]) * scale,
        }
    )
    plot_sweep(table, tmp_path / "sweep.png", "title")
    check(figures[0])
    assert "DAGs: 3 of 4; different kernels: 3\nthe others have no kernel, or no resolved λmin of the NTK" in words(
        figures[0]
    )


# --- searches -------------------------------------------------------------------------------------


@pytest.fixture
def scores():
    cells = sample_cells(60, seed=0)
    rng = np.random.default_rng(0)
    table = pandas.DataFrame(
        {
            "cell": [str(cell) for cell in cells],
            "status": [cell.status for cell in cells],
            "effective_depth": [cell.dag.effective_depth for cell in cells],
            "parameters": np.arange(60) * 2.5e4 + 1e6,
            "naswot": rng.normal(size=60),
            "ntk_condition": 10.0 ** np.linspace(1, 9, 60),
            "synflow": np.nan,
        }
    )
    accuracy = np.linspace(80, 94, 60)
    # The training of the first cell with a path failed.
    accuracy[int(np.flatnonzero(table.status != "disconnected")[0])] = 10.0
    return table, AccuracyTable(tuple(cells), {"accuracy": accuracy})


@pytest.mark.slow
def test_scores_show_all_cells_and_how_well_they_rank(figures, tmp_path, scores):
    table, accuracies = scores
    plot_scores(table, accuracies, ["parameters", "naswot", "ntk_condition", "synflow"], tmp_path / "s.png")
    [figure] = figures
    check(figure)
    n = int((table.status != "disconnected").sum())
    first = figure.axes[0]
    assert sum(len(points.get_offsets()) for points in first.collections) == n
    label, correlation, left_out = first.get_title().split("\n")
    assert label == first.get_xlabel() == "parameters in millions"
    kept = table[table.status != "disconnected"].index
    rho = pandas.Series(accuracies.column()).loc[kept].corr(table.parameters[kept], method="spearman")
    assert correlation == f"Spearman's rank correlation {rho:.3f}, n = {n}"
    assert left_out.startswith("▼ 1 below 7")
    assert "no cell with this score" in figure.axes[3].get_title()
    with pytest.raises(InputError, match="scores that were computed, got 'flops'; run nngp-dag nas score with it"):
        plot_scores(table, accuracies, ["flops"], tmp_path / "s.png")


def test_depth_and_width(figures, tmp_path, scores):
    plot_depth_and_width(scores[1], tmp_path / "d.png")
    check(figures[0])
    assert "kept by the filter of the released code" in words(figures[0])


def test_trajectories(figures, tmp_path):
    rows = [{"exact": 9 + i**2, "depth": [1.0], "width": [1.0]} for i in range(4)]
    two = [{"ntk": 5e3 * 0.5 ** (i // 2), "regions": 100.0 - i // 2, "depth": [1.0]} for i in range(8)]
    two[3]["ntk"] = None
    for trajectory in (rows, two, json.loads(json.dumps([{"ntk": None, "regions": 3}]))):
        plot_trajectory(trajectory, tmp_path / "t.png", "Search of nasbench201 by pruning")
        check(figures[-1])
        assert "Search of nasbench201 by pruning" in words(figures[-1])
    assert [text.get_text() for text in ticks(figures[0].axes[0].xaxis)] == ["0", "1", "2", "3"]
    assert not figures[0].axes[0].texts
    # Rounds at the same place share a number.
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["0", "2", "4", "6"]
    assert "in rounds: 3" in figures[1].axes[0].get_title()
