"""Sweeps over spaces: rows against kernels one by one, flags, and files that resume."""

import importlib
import itertools
import json
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import nngp_dag as nd
from nngp_dag.cli import main
from nngp_dag.errors import CheckpointError, InputError, OutputError
from nngp_dag.graph import Dag, zoo
from nngp_dag.report import plot_sweep, rank_correlations
from nngp_dag.report.sweep_table import KERNELS

sweep_module = importlib.import_module("nngp_dag.report._sweep")

X = np.random.default_rng(0).normal(size=(10, 6))
CODES = ["2_02_002", "2_21_112", "1_11_111", "0_00_000", "2_02", "1_02_002"]


@pytest.fixture(scope="module")
def table():
    return nd.sweep(CODES, X)


@pytest.mark.slow
def test_rows_equal_spectra_of_single_kernels(table):
    assert list(table.dag) == CODES
    for row in table[table.valid].itertuples():
        dag = Dag.from_code(row.dag)
        k = nd.kernel(dag, X)
        for name, matrix in (("nngp", k.nngp), ("ntk", k.ntk)):
            s = nd.spectrum(matrix)
            found = [
                getattr(row, f"{name}_{field}")
                for field in ("lambda_min", "lambda_max", "condition_number", "trace", "floor")
            ]
            expected = [s.lambda_min, s.lambda_max, s.condition_number, s.trace, s.floor]
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13 * s.lambda_max)
            assert getattr(row, f"{name}_resolved")
        assert (row.num_paths, row.effective_depth, row.effective_width) == (
            dag.num_paths,
            dag.effective_depth,
            dag.effective_width,
        )
        assert row.code == dag.code


@pytest.mark.slow
def test_equal_kernels_are_said_to_be_equal(table):
    chain, _, _, _, short, long_way = table.kernel_class
    assert short == long_way != chain
    assert list(table.class_size) == [1, 1, 1, 0, 2, 2]
    columns = [name for name in table.columns if name.startswith(("nngp", "ntk"))]
    assert table.loc[4, columns].equals(table.loc[5, columns])


def test_an_invalid_dag_is_a_row_with_its_reason(table):
    row = table.loc[3]
    assert not row.valid
    assert row.reason.startswith("Expected a path from node 0 to the output node 3, got none")
    assert row.kernel_class == ""
    assert math.isnan(row.nngp_lambda_min)
    bad = nd.sweep(["2_9", "nonsense", "|none~0|", "2"], X)
    assert list(bad.valid) == [False, False, False, True]
    assert all(reason.startswith("Expected") for reason in bad.reason[:3])


@pytest.mark.slow
def test_nearly_opposite_inputs_are_as_good_as_others_in_any_blocks():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 8))
    x = np.concatenate([x, -x * (1 + 1e-8 * rng.normal(size=x.shape)), -1.3 * x])
    codes = ["2_02_002", "2_12", "2"]
    table, small = nd.sweep(codes, x), nd.sweep(codes, x, memory_budget="520 MiB")
    assert table.valid.all()
    for name in ("nngp", "ntk"):
        for end in ("lambda_min", "lambda_max"):
            found, expected = (t[f"{name}_{end}"] / table[f"{name}_lambda_max"] for t in (small, table))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert table.ntk_resolved.all()


@pytest.mark.slow
def test_networks_of_several_inputs_change_nothing_for_others():
    """They also change nothing for opposite inputs, whose angle depends on all digits of their product."""
    x = np.random.default_rng(2).normal(size=(4, 200))
    x[1] = -1.7 * x[0]
    edges = [(0, 2, "weighted"), (1, 2, "skip"), (2, 3, "weighted"), (1, 3, "skip")]
    two = nd.Dag.from_edges(edges, source=[0, 1], output=3)
    alone, beside = nd.sweep(["2_21_112"], x), nd.sweep([two, "2_21_112", two], x)
    assert beside.valid.tolist() == [True] * 3
    for name in ("ntk_lambda_min", "ntk_lambda_max", "nngp_lambda_min", "nngp_lambda_max"):
        assert beside.at[1, name] == pytest.approx(alone.at[0, name], rel=1e-12)


def test_order_and_company_change_nothing(table):
    columns = [name for name in table.columns if name not in ("class_size",)]
    backwards = nd.sweep(CODES[::-1], X).iloc[::-1].reset_index(drop=True)
    pandas.testing.assert_frame_equal(table.loc[:, columns], backwards.loc[:, columns], rtol=1e-12, check_exact=False)
    alone = pandas.concat([nd.sweep([code], X) for code in CODES], ignore_index=True)
    pandas.testing.assert_frame_equal(
        table.loc[:, columns].astype({"num_paths": float}),
        alone.loc[:, columns].astype({"num_paths": float}),
        rtol=1e-12,
    )


def test_names_dags_and_codes():
    dags = {"mine": Dag.from_code("2_12"), "theirs": "2_21"}
    assert list(nd.sweep(dags, X).dag) == ["mine", "theirs"]
    assert list(nd.sweep(list(dags.values()), X).dag) == ["2_12", "2_21"]


@pytest.mark.slow
def test_networks_of_different_options_in_one_sweep(tmp_path):
    erf = nd.Network("2_12", nd.Dense(activation="erf", b_std=0.5), aggregation="mean")
    networks = {
        "erf": erf,
        "text": "2_12",
        "network": nd.Network("2_12"),
        "dag": Dag.from_code("2_12"),
        "last node": nd.Network("2_12", readout=False),
    }
    found = nd.sweep(networks, X, out=tmp_path / "out")
    assert found.valid.all()
    assert list(found.code) == ["2_12"] * 5
    assert list(found.class_size) == [1, 3, 3, 3, 1]
    assert found.kernel_class.nunique() == 3
    for name, network in networks.items():
        row: Any
        [row] = found[found.dag == name].itertuples()
        k = nd.kernel(network, X)
        assert row.nngp_lambda_min == pytest.approx(nd.spectrum(k.nngp).lambda_min, rel=1e-9)
        assert row.ntk_lambda_max == pytest.approx(nd.spectrum(k.ntk).lambda_max, rel=1e-9)
    steps = []
    resumed = nd.sweep(networks, X, out=tmp_path / "out", resume=True, on_progress=lambda *step: steps.append(step[1:]))
    assert steps == [(3, 3)]
    pandas.testing.assert_frame_equal(resumed, found, check_exact=True)
    # Options of the sweep are those of every network in it.
    averaged = nd.sweep([erf, "2_12"], X, aggregation="scaled-sum")
    assert list(averaged.dag) == [str(erf), "2_12"]
    k = nd.kernel(erf, X, aggregation="scaled-sum")
    assert averaged.ntk_lambda_min[0] == pytest.approx(nd.spectrum(k.ntk).lambda_min, rel=1e-9)


@pytest.mark.slow
def test_degenerate_kernels_are_unresolved():
    """Duplicate inputs make an eigenvalue 0."""
    found = nd.sweep(["2_02", "1_01"], np.concatenate([X, X[:1]]))
    assert found.valid.all()
    for name in KERNELS:
        assert not np.any(found[f"{name}_resolved"])
        assert np.all(found[f"{name}_lambda_min"].isna())
        assert np.isinf(found[f"{name}_condition_number"]).all()
    # There are more inputs than features, and no activation before the last node.
    linear = nd.sweep([Dag.from_edges([(0, 1, nd.Dense(activation=None))])], X, stem=nd.Dense(activation=None))
    assert not linear.nngp_resolved[0]
    zero = nd.sweep(["2"], np.zeros((3, 2)))
    assert (zero.valid[0], zero.nngp_resolved[0], zero.nngp_lambda_max[0]) == (True, False, 0)


def test_one_kernel_that_overflows_stops_no_other():
    doubled = Dag.from_edges([(s, s + 1, "skip") for s in range(70) for _ in range(2)])
    squared = Dag.from_edges([(0, 1, nd.Scale(1.7e19)), (1, 2, "weighted")])
    found = nd.sweep({"chain": "2_02", "doubled": doubled, "squared": squared}, X.astype(np.float32), dtype="float32")
    assert list(found.valid) == [True, False, False]
    assert "whose squares float32 can hold" in found.reason[1]
    assert "finite" in found.reason[2]


@pytest.mark.slow
@pytest.mark.slow
def test_networks_that_are_evaluated_alone():
    images = np.random.default_rng(1).normal(size=(4, 4, 4, 2))
    layer = nd.Conv(filter_shape=(3, 3))
    pooled = Dag.from_edges([(0, 1, "weighted"), (1, 2, nd.AvgPool((2, 2)))])
    dags = {"conv": "2_12", "twin": "2_12_001", "pooled": pooled, "again": pooled}
    found = nd.sweep(dags, images, layer=layer, image_readout="global-average")
    assert found.valid.all()
    assert list(found.class_size) == [2, 2, 2, 2]
    for name, dag in (("conv", Dag.from_code("2_12")), ("pooled", pooled)):
        k = nd.kernel(dag, images, layer=layer, image_readout="global-average")
        row = found[found.dag == name].iloc[0]
        assert row.ntk_lambda_min == pytest.approx(nd.spectrum(k.ntk).lambda_min, rel=1e-9)
    fine, coarse = (nd.activations.Quadrature(jnp.sin, degree=degree) for degree in (80, 3))
    accurate, not_accurate = (nd.sweep(["2_02"], X, activation=phi) for phi in (fine, coarse))
    assert accurate.valid[0]
    assert not not_accurate.valid[0]
    assert "raise `degree`" in not_accurate.reason[0]


@pytest.mark.slow
def test_one_image_kernel_that_overflows_stops_no_other():
    images = np.random.default_rng(1).normal(size=(3, 2, 2, 2)).astype(np.float32)
    big = Dag.from_edges([(0, 1, nd.Scale(1.7e19)), (1, 2, "weighted")])
    found = nd.sweep({"big": big, "fine": "2"}, images, layer=nd.Conv(filter_shape=(1, 1)), dtype="float32")
    assert list(found.valid) == [False, True]
    assert "not finite" in found.reason[0]


@pytest.mark.filterwarnings("ignore:Expected `layer` for a graph whose edges have convolutions")
def test_what_does_not_fit_one_graph_is_said_of_that_graph():
    conv = Dag.from_edges([(0, 1, nd.Conv(filter_shape=(3, 3)))])
    unknown = Dag.from_edges([(0, 1, nd.Dense(activation="step"))])
    found = nd.sweep({"conv": conv, "unknown": unknown, "fine": "2"}, X)
    assert list(found.valid) == [False, False, True]
    assert "to hold images" in found.reason[0]
    assert "step" in found.reason[1]
    averaged = nd.sweep(["2"], X, image_readout="global-average")
    assert averaged.reason[0].startswith("Expected `image_readout` 'flatten' for a network without")


def test_graphs_without_a_closed_form():
    found = nd.sweep(["1_02", "2_12"], X, layer=nd.Dense(order="act-linear"), stem=nd.Dense(activation="relu"))
    assert not found.valid.any()
    assert found.reason.str.startswith("Expected node").all()


@pytest.mark.slow
def test_bounds_hold():
    found = nd.sweep(CODES, X, bounds=True)
    for name in KERNELS:
        rows = found.loc[found.valid]
        assert np.all(rows[f"{name}_lower"] <= rows[f"{name}_lambda_min"])
        assert np.all(rows[f"{name}_lambda_min"] <= rows[f"{name}_upper"])
    assert (found.nngp_upper[found.valid] > 0).all()
    # There are no bounds for other activations.
    assert nd.sweep(["2_02"], X, bounds=True, activation="erf").nngp_lower.isna().all()


def test_kernels_at_the_last_node_and_precision(table):
    found = nd.sweep(CODES, X, readout=False)
    np.testing.assert_allclose(2 * found.nngp_lambda_min, table.nngp_lambda_min, rtol=1e-9)
    single = nd.sweep(CODES, X, dtype="float32")
    np.testing.assert_allclose(single.ntk_lambda_min, table.ntk_lambda_min, rtol=1e-3)
    assert (single.ntk_floor[single.valid] > 1e6 * table.ntk_floor[table.valid]).all()


@pytest.mark.parametrize(
    ("dags", "options", "message"),
    [
        ([], {}, "at least one network to sweep, got none"),
        (["2"], {"dtype": "float16"}, "`dtype` to be one of .*, got 'float16'"),
        (["2"], {"get": "ntk"}, r"options of the network \(activation, .*\), got `get`"),
        (["2"], {"parameterization": "standard", "width": 0}, "`width` to be a whole number, at least 1, got 0"),
        (["2"], {"memory_budget": "1 MB"}, "`memory_budget` to hold the kernels of 10 inputs"),
        (["2"], {"memory_budget": "much"}, "`memory_budget` to be bytes, from 1 to 2.63, or a text"),
        (["2"], {"resume": True}, "`out` to name the sweep to resume, got None"),
        (["2"], {"activation": "step"}, "activation"),
        (["2"], {"image_readout": "max"}, "`image_readout` to be one of"),
    ],
)
def test_refused_options(dags, options, message):
    with pytest.raises(InputError, match=message):
        nd.sweep(dags, X, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.where(np.arange(10)[:, None] == 1, np.nan, X), "to be finite, got NaN or infinity in row 1"),
        (np.zeros((0, 3)), "with N >= 1"),
        (np.array([["a"]]), "to hold real numbers"),
        ([X, X], "to be one array, which all inputs of a graph read, got a list"),
    ],
)
def test_refused_inputs(x, message):
    with pytest.raises(InputError, match=message):
        nd.sweep(["2"], x)


def test_narrow_floats_are_widened():
    np.testing.assert_allclose(
        nd.sweep(["2"], jnp.asarray(X, jnp.bfloat16)).ntk_lambda_min,
        nd.sweep(["2"], np.asarray(jnp.asarray(X, jnp.bfloat16), np.float64)).ntk_lambda_min,
    )


# --- files ----------------------------------------------------------------------------------------


def test_files(table, tmp_path):
    found = nd.sweep(CODES, X, out=tmp_path / "out")
    pandas.testing.assert_frame_equal(found, table)
    back = pandas.read_csv(tmp_path / "out" / "sweep.csv", keep_default_na=False, na_values=[""])
    assert list(back.dag) == CODES
    np.testing.assert_array_equal(back.ntk_lambda_min, found.ntk_lambda_min)
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "out" / "sweep.parquet"), found)
    classes = pandas.read_csv(tmp_path / "out" / "classes.csv")
    assert len(classes) == found.kernel_class[found.valid].nunique()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["settings"]["inputs"]["shape"] == [10, 6]
    assert config["environment"]["jax"]


class StoppedError(Exception):
    pass


def test_an_interrupted_sweep_resumes_to_the_same_bits(tmp_path, monkeypatch):
    out, spectra, done = tmp_path / "out", sweep_module.spectra_of, []

    def counted(matrices):
        if len(done) == 2:
            raise StoppedError
        done.append(matrices)
        return spectra(matrices)

    kernels_of_classes, stacks = sweep_module.kernels_of_classes, []

    def recorded(*arguments, **options):
        for stack in kernels_of_classes(*arguments, **options):
            stacks.append(stack.digests)
            yield stack

    monkeypatch.setattr(sweep_module, "_MOST_KERNELS", 3)
    monkeypatch.setattr(sweep_module, "kernels_of_classes", recorded)
    table = nd.sweep(CODES, X)
    unbroken = stacks.copy()
    monkeypatch.setattr(sweep_module, "spectra_of", counted)
    with pytest.raises(StoppedError):
        nd.sweep(CODES, X, out=out)
    assert not (out / "sweep.csv").exists()
    # A killed process leaves the file in this state.
    with (out / "classes.csv").open("a") as file:
        file.write("0123,")
    done.clear()
    stacks.clear()
    monkeypatch.setattr(sweep_module, "spectra_of", lambda matrices: done.append(matrices) or spectra(matrices))
    steps = []
    resumed = nd.sweep(CODES, X, out=out, resume=True, on_progress=lambda *step: steps.append(step[1:]))
    assert len(done) == 2
    assert steps == [(2, 4), (3, 4), (4, 4)]
    # The batches are those of the uninterrupted run, whatever part of them is left.
    assert stacks == unbroken
    pandas.testing.assert_frame_equal(resumed, table, check_exact=True)
    # More DAGs on the same data.
    more = nd.sweep([*CODES, "2_22"], X, out=out, resume=True)
    assert len(done) == 3
    assert len(more) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "act-linear"}, r"options\.layer \"Dense\(.*'linear-act'.* before, \"Dense\(.*'act-linear'.* now"),
        ({"dtype": "float32"}, r'in .*config\.json, got others: settings\.dtype "float64" before, "float32" now; pass'),
        ({"readout": False}, r'settings\.options\.readout "True" before, "False" now; pass the old ones'),
        ({"x": X[:5]}, r"settings\.inputs\.shape \[10, 6\] before, \[5, 6\] now; pass the old ones"),
    ],
)
def test_another_sweep_is_not_resumed(tmp_path, options, message):
    x = options.pop("x", X)
    nd.sweep(["2"], X, out=tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        nd.sweep(["2"], x, out=tmp_path / "out", resume=True, **options)


def test_folders_that_are_not_free(tmp_path):
    nd.sweep(["2"], X, out=tmp_path / "out")
    with pytest.raises(OutputError, match="to be new or empty, got an existing one; pass `resume=True`"):
        nd.sweep(["2_02"], X, out=tmp_path / "out")
    assert len(nd.sweep(["2_02", "2"], X, out=tmp_path / "out", overwrite=True)) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="to hold a sweep to replace, got other files"):
        nd.sweep(["2"], X, out=tmp_path / "other", overwrite=True)
    # A folder of another kind, with a configuration of its own.
    (tmp_path / "other" / "config.json").write_text('{"settings": null, "recipe": {}}')
    with pytest.raises(OutputError, match="to hold a sweep to replace, got other files"):
        nd.sweep(["2"], X, out=tmp_path / "other", overwrite=True)
    with pytest.raises(CheckpointError, match="to describe a sweep, got null for settings, not an"):
        nd.sweep(["2"], X, out=tmp_path / "other", resume=True)
    with pytest.raises(CheckpointError, match="to describe a sweep, got none; leave out `resume=True` to start one"):
        nd.sweep(["2"], X, out=tmp_path / "nowhere", resume=True)
    with pytest.raises(OutputError, match="to be a directory, got a file"):
        nd.sweep(["2"], X, out=tmp_path / "other" / "thesis.tex")


def test_a_refused_option_touches_no_files(tmp_path):
    nd.sweep(["2"], X, out=tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    choices: tuple[dict[str, Any], ...] = (
        {"activation": "step"},
        {"memory_budget": "much"},
        {"image_readout": "max"},
        {"w_std": -1.0},
    )
    for options in choices:
        with pytest.raises(InputError):
            nd.sweep(["2"], X, out=tmp_path / "out", overwrite=True, **options)
        with pytest.raises(InputError):
            nd.sweep(["2"], X, out=tmp_path / "new", **options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_functions_are_not_resumed(tmp_path):
    phi = nd.activations.Quadrature(jnp.sin, degree=80)
    nd.sweep(["2"], X, out=tmp_path / "out", activation=phi)
    with pytest.raises(InputError, match="got a `Quadrature`, whose function cannot be compared"):
        nd.sweep(["2"], X, out=tmp_path / "out", activation=phi, resume=True)


# --- ranks, pictures and the command --------------------------------------------------------------


def test_rank_correlations_against_counting():
    rng = np.random.default_rng(0)
    table = pandas.DataFrame({"a": rng.integers(0, 5, 30), "b": rng.normal(size=30), "c": 1.0})
    table.loc[3, "b"] = np.nan
    found = rank_correlations(table, ["a"], ["b", "c"])
    a, b = (table.drop(3)[name].to_numpy(float) for name in "ab")
    pairs = list(itertools.combinations(range(29), 2))
    signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs]
    untied = sum(a[i] != a[j] for i, j in pairs)
    assert found.kendall[0] == pytest.approx(sum(signs) / math.sqrt(untied * len(pairs)))
    ranks = [pandas.Series(v).rank() for v in (a, b)]
    assert found.spearman[0] == pytest.approx(np.corrcoef(np.array(ranks))[0, 1])
    assert list(found.rows) == [29, 30]
    assert math.isnan(found.kendall[1])


@pytest.mark.slow
def test_pictures(table, tmp_path):
    for name, shown in (("all", table), ("one", table[:1]), ("none", table[3:4])):
        plot_sweep(shown, tmp_path / f"{name}.png", name)
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.mark.slow
def test_command(capsys, tmp_path):
    out = tmp_path / "out"
    arguments = ("sweep", "--nodes", 2, "--subset", 12, "--plot", "--out", out)
    status, text, _ = run(capsys, *arguments)
    assert status == 0
    assert "27 DAGs" in text
    assert "Kendall" in text
    assert "such as 0_00: Expected a path from node 0" in text
    names = {"sweep.csv", "sweep.parquet", "classes.csv", "config.json", "correlations.csv", "sweep.png"}
    assert {path.name for path in out.iterdir()} == names
    assert len(pandas.read_csv(out / "sweep.csv")) == 27
    before = (out / "sweep.csv").read_bytes()
    assert run(capsys, *arguments, "--resume")[0] == 0
    assert (out / "sweep.csv").read_bytes() == before


def test_command_on_a_file_and_on_named_dags(capsys, tmp_path):
    cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|"
    (tmp_path / "codes.txt").write_text(f"2_02\n\n{cell}\nwrong\n")
    assert run(capsys, "sweep", "--file", tmp_path / "codes.txt", "--subset", 8, "--out", tmp_path / "a")[0] == 0
    table = pandas.read_csv(tmp_path / "a" / "sweep.csv")
    assert list(table.dag) == ["2_02", cell, "wrong"]
    assert list(table.valid) == [True, True, False]
    status, *_ = run(capsys, "sweep", "--dag", "DAG#1", "--dag", "2_12", "--subset", 8, "--out", tmp_path / "b")
    assert status == 0
    assert list(pandas.read_csv(tmp_path / "b" / "sweep.csv").dag) == ["2_02_002", "2_12"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Expected one of --dag, --nodes, --file, --space, got none"),
        (("--nodes", 3, "--dag", "2"), "got --dag and --nodes"),
        (("--nodes", 9), "Expected 1 to 4 blocks"),
        (("--nodes", 0), "Expected 1 to 4 blocks"),
        (("--space", "darts"), "Expected --space to be one of 'nasbench201', got 'darts'"),
        (("--file", "nowhere.txt"), "Expected --file to be a readable text file"),
        (("--dag", "2", "--resume", "--overwrite"), "Expected --resume or --overwrite, got both"),
        (("--dag", "2", "--subset", -1), "subset"),
    ],
)
def test_bad_commands(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "sweep", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_spaces():
    cells = list(zoo.nasbench201())
    assert len(set(cells)) == 15625
    dags = {Dag.from_nasbench201(cell) for cell in cells[::70]}
    assert {dag.num_nodes for dag in dags} == {4}
    assert len(list(zoo.codes(4))) == 59049


@pytest.mark.slow
def test_a_stem_that_is_given_stays_where_options_change_the_layer():
    networks = {"none": nd.Network("2"), "relu": nd.Network("2", stem=nd.Dense())}
    table = nd.sweep(networks, X, activation="erf")
    assert table.kernel_class.nunique() == 2
    for name, found in zip(networks, table.ntk_trace, strict=True):
        assert found == pytest.approx(np.trace(nd.kernel(networks[name], X, activation="erf").ntk))
