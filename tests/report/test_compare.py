import csv
import dataclasses
import hashlib
import io
import json
import shutil
from typing import Any

import numpy as np
import pytest
from pictures import check, drawn
from rich.console import Console

import nngp_dag as nd
from nngp_dag import forms
from nngp_dag.data import load_dataset, normalize, one_hot, scale_to_sphere
from nngp_dag.errors import CheckpointError, GraphError, InputError, NumericalWarning, OutputError
from nngp_dag.graph.drawing import plot_dag
from nngp_dag.report import compare, plot_compare, plot_kernel
from nngp_dag.report._compare import learning_rates
from nngp_dag.report.compare_files import write_curves, write_json
from nngp_dag.report.tables import compare_table, dag_table, format_lambda_min

DATA = load_dataset("digits", subset=12)
X, Y = scale_to_sphere(normalize(DATA)), one_hot(DATA.labels, 10)
SMALL = {"width": 64, "seeds": [0, 1], "steps": 4}


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def results():
    dags = {name: nd.zoo.named(name) for name in ("DAG#1", "DAG#3")}
    return compare(dags, X, Y, **SMALL)


def text_of(renderable, width=80):
    file = io.StringIO()
    Console(width=width, file=file).print(renderable)
    return file.getvalue()


@pytest.mark.slow
def test_comparison_agrees_with_the_library(results):
    for result in results:
        k, node = nd.kernel(result.dag, X), nd.kernel(result.dag, X, readout=False)
        ntk = np.linalg.eigvalsh(np.asarray(k.ntk, np.float64))
        nngp = np.linalg.eigvalsh(np.asarray(node.nngp, np.float64))
        assert result.ntk.lambda_max == pytest.approx(ntk[-1], rel=1e-5)
        assert result.learning_rate == pytest.approx(1 / ntk[-1], rel=1e-5)
        assert result.nngp.lambda_min == pytest.approx(nngp[0], rel=1e-3)
        assert result.bound_rate == 1 - result.learning_rate * result.nngp.lambda_min / 2
        np.testing.assert_allclose(result.bound, result.mean[0] * result.bound_rate ** np.arange(5))
        assert result.curves.shape == (2, 5)
        assert result.conditions_met
        assert result.bound_violations == 0
        np.testing.assert_allclose(result.expected.mean, nd.expected_loss(k, Y, result.learning_rate, 4), rtol=1e-5)
        assert (np.diff(result.expected.mean) < 0).all()
        for s, bracket in ((result.nngp, result.nngp_bracket), (result.ntk, result.ntk_bracket)):
            assert 0 < bracket.lower <= s.lambda_min <= bracket.upper
        assert result.path_bound.is_bound == result.ntk_path_bound.is_bound == (result.name == "DAG#1")
        if result.path_bound.is_bound:
            assert result.ntk.lambda_min <= result.ntk_path_bound.value


@pytest.mark.slow
def test_violations_are_counted_per_seed_and_step(results):
    curves = results[0].curves.copy()
    curves[0, 2] = 1.01 * curves[0, 0]
    curves[1, 3:] = 1.01 * curves[1, 0]
    assert dataclasses.replace(results[0], curves=curves).bound_violations == 3


@pytest.mark.slow
def test_every_flagged_formula_has_its_reason_in_table_and_row():
    # With the activation before the weights, paths of different depth meet at the readout, but not at the last node.
    (result,) = compare({"2_12": nd.Dag.from_code("2_12")}, X, Y, order="act-linear", **SMALL)
    assert result.path_bound is not None
    assert result.ntk_path_bound is not None
    assert result.path_bound.is_bound
    assert not result.ntk_path_bound.is_bound
    reason = "paths of unequal depth meet before a weighted edge"
    assert result.as_row()["path_bound_violated_assumptions"] == []
    assert result.as_row()["ntk_path_bound_violated_assumptions"] == [reason]
    text = " ".join(text_of(compare_table([result]), width=160).split())
    assert f"* 2_12, NTK: the path formula may not be a bound: {reason}" in text
    assert "2_12, K(H)" not in text


@pytest.mark.slow
def test_equal_reasons_are_one_note(results):
    formulas = [formula for r in results for formula in (r.path_bound, r.ntk_path_bound) if not formula.is_bound]
    reasons = {"; ".join(formula.violated_assumptions) for formula in formulas}
    text = text_of(compare_table(results), width=160)
    assert text.count("may not be a bound") == len(reasons) < len(formulas)


def test_learning_rates(results):
    spectra = {r.name: r.ntk for r in results}
    own = learning_rates(spectra, "auto")
    assert own == {r.name: r.learning_rate for r in results}
    assert own["DAG#1"] > own["DAG#3"]
    assert learning_rates(spectra, "shared") == dict.fromkeys(spectra, own["DAG#3"])
    assert learning_rates(spectra, 1e-4) == dict.fromkeys(spectra, 1e-4)
    for rate in ("auto", "shared", 0.1):
        with pytest.raises(InputError, match=r"Expected lambda_max\(NTK\) of a above 0, got 0"):
            learning_rates({"a": nd.Spectrum(0.0, 0.0, 0.0)}, rate)


def test_the_verdict_says_what_was_found(results):
    result = results[0]
    gaps = result.mean / result.expected.mean - 1
    worst = int(np.abs(gaps).argmax())
    assert result.as_row()["largest_relative_gap"] == abs(gaps[worst])
    expected = f"conditions of the rate bound met, 0 violations, largest gap to the expectation {gaps[worst]:+.1%}"
    assert result.verdict.startswith(f"{expected} at step {worst} (sampling error ")
    curves = result.curves.copy()
    curves[0, 2] = 1.01 * curves[0, 0]
    broken = dataclasses.replace(result, curves=curves, conditions_met=False).verdict
    assert broken.startswith("η too large for the rate bound, 1 violation, largest gap")


@pytest.mark.slow
def test_the_standard_parameterization():
    options = {"parameterization": "standard", "width": 512}
    lambda_max = np.linalg.eigvalsh(np.asarray(nd.kernel(nd.zoo.chain(1), X, **options).ntk, np.float64))[-1]
    (result,) = compare(
        {"chain": nd.zoo.chain(1)}, X, Y, seeds=range(4), steps=4, learning_rate=0.2 / lambda_max, **options
    )
    assert result.ntk.lambda_max == pytest.approx(lambda_max, rel=1e-5)
    assert result.ntk_path_bound is None
    assert result.ntk_bracket.lower == 0
    # The expected loss falls by half. With the NTK of the other parameterization it would hardly change.
    assert result.expected.mean[-1] < 0.6 * result.expected.mean[0]
    assert np.abs(result.gaps).max() < 0.25


@pytest.mark.slow
def test_conditions_are_flagged_where_the_step_is_too_long_for_the_bound():
    dag = {"chain": nd.zoo.chain(1)}
    eta = 1.999 / nd.spectrum(nd.kernel(dag["chain"], X.astype(np.float64)).ntk).lambda_max
    (result,) = compare(dag, X, Y, learning_rate=eta, **SMALL)
    assert not result.conditions_met
    assert result.as_row()["bound_conditions_met"] is False
    assert "†" in text_of(compare_table([result]))


def test_what_is_unmet_is_named(results):
    met, small = results[0], {"lambda_min": results[0].nngp.lambda_min / 8}
    assert met.unmet == ""
    long = dataclasses.replace(met, name="long", conditions_met=False)
    weak = dataclasses.replace(long, name="weak", ntk=dataclasses.replace(met.ntk, **small))
    text = text_of(compare_table([met, weak, long]), width=160)
    assert "† λmin(NTK) too small for the rate bound to be a theorem" in text
    assert "‡ η too large for the rate bound to be a theorem" in text
    assert "weak: λmin(NTK) too small for the rate bound, 0 violations" in text
    # Where the flag is set, no step is small enough; elsewhere one is.
    for result, holds in ((weak, False), (long, True)):
        eigenvalues = result.nngp.lambda_min, result.ntk.lambda_min, result.ntk.lambda_max
        assert nd.rate_bound_holds_for(*eigenvalues, 1e-6 / result.ntk.lambda_max) is holds
    assert "to be a theorem" not in text_of(compare_table([met]), width=160)


def test_an_eigenvalue_below_the_floor_is_withheld():
    x = X.copy()
    x[1] = x[0]
    with pytest.warns(NumericalWarning, match="lambda_min is not resolved"):
        (result,) = compare({"chain": nd.zoo.chain(1)}, x, Y, **SMALL)
    row = result.as_row()
    assert row["nngp_lambda_min"] is None
    assert row["ntk_lambda_min"] is None
    assert result.bound_rate == 1
    assert "not resolved" in text_of(compare_table([result]), width=160)


@pytest.mark.slow
def test_inputs_of_unequal_norm_have_path_bounds():
    (result,) = compare({"chain": nd.zoo.chain(1)}, normalize(DATA).reshape(12, -1), Y, **SMALL)
    for bound, s in ((result.path_bound, result.nngp), (result.ntk_path_bound, result.ntk)):
        assert bound is not None
        assert bound.is_bound
        assert s.lambda_min <= bound.value


def test_files(results, tmp_path):
    write_json(tmp_path / "compare.json", results, {"dataset": "digits"})
    write_curves(tmp_path / "curves.csv", results)
    document = json.loads((tmp_path / "compare.json").read_text())
    assert document["config"] == {"dataset": "digits"}
    fields = {
        "name",
        "dag",
        "num_paths",
        "effective_depth",
        "effective_width",
        "nngp_lambda_min",
        "ntk_lambda_min",
        "learning_rate",
        "bound_rate",
        "loss_initial_mean",
        "loss_final_mean",
        "loss_final_std",
        "loss_final_expected",
        "bound_violations",
    }
    assert all(fields <= row.keys() for row in document["rows"])
    assert [row["dag"] for row in document["rows"]] == ["2_02_002", "2_21_112"]
    assert [(next(iter(row)), row["name"]) for row in document["rows"]] == [("name", "DAG#1"), ("name", "DAG#3")]
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    columns = ["name", "dag", "step", "bound", "expected", "empirical_mean", "empirical_std", "expected_std"]
    assert list(rows[0]) == columns + [
        f"predicted_{name}" for name in ("mean", "low", "high", "std", "frozen", "trusted")
    ]
    assert not rows[0]["predicted_mean"]
    assert len(rows) == 2 * 5
    last = rows[-1]
    assert (last["name"], last["dag"], last["step"]) == ("DAG#3", "2_21_112", "4")
    assert float(last["empirical_mean"]) == pytest.approx(document["rows"][1]["loss_final_mean"], rel=1e-6)
    assert float(last["expected"]) == pytest.approx(results[1].expected.mean[-1], rel=1e-6)
    assert float(last["expected_std"]) == pytest.approx(results[1].expected.std[-1], rel=1e-6)
    assert float(last["empirical_std"]) == pytest.approx(results[1].curves[:, -1].std(ddof=1), rel=1e-6)


@pytest.mark.slow
def test_pictures(results, tmp_path):
    five_panels = [*results, *results, results[0]]
    plot_compare(five_panels, tmp_path / "compare.png", "title")
    plot_dag(nd.Dag.from_edges([(0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 2, 1)]), tmp_path / "dag.png")
    plot_kernel(nd.kernel(nd.zoo.chain(1), X), tmp_path / "kernel.png", "title")
    for name in ("compare", "dag", "kernel"):
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_nothing_hides_the_curves(results, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    steps = np.arange(results[0].curves.shape[1])
    broken = dataclasses.replace(
        results[0],
        name="a long name of a graph " * 5,
        conditions_met=False,
        curves=np.where(steps > 1, np.nan, results[0].curves),
    )
    gone = dataclasses.replace(results[1], curves=np.where(steps > 1, 0.0, results[1].curves))
    for shown in ([results[0]], [broken, gone], [*results, broken, gone, *results]):
        plot_compare(shown, tmp_path / "compare.png", "title " * 40)
        check(figures[-1])
        curves = [axes for axes in figures[-1].axes if axes.axison]
        assert len(curves) == len(shown)
        for axes, result in zip(curves, shown, strict=True):
            assert not axes.texts
            assert ("η too large" in axes.get_title()) is not result.conditions_met


@pytest.mark.slow
def test_tables_fit_a_terminal(results):
    # Numbers with as many digits as those of the default run.
    results = [
        dataclasses.replace(r, curves=r.curves * 200, learning_rate=0.0003951, bound=r.bound * 200) for r in results
    ]
    text = text_of(compare_table(results))
    assert "DAG#3 2_21_112" in text
    assert "…" not in text
    text = text_of(dag_table(nd.zoo.ladder(2000)))
    assert "4.224e417" in text
    assert "inf" not in text


def test_networks_of_one_graph_are_told_apart(results):
    named = [dataclasses.replace(results[0], name=f"a network that is {what}") for what in ("wide", "deep")]
    text = text_of(compare_table(named), width=160)
    for result in named:
        assert f"{result.name} 2_02_002" in text
        assert f"\n{result.name}: conditions" in text
    assert "that is wide" not in text_of(compare_table(named[:1]), width=160)


def test_counts_and_eigenvalues_as_text():
    assert forms.count(12_345) == "12,345"
    assert forms.count(10**20) == "1.000e20"
    assert forms.count(123_456 * 10**500) == "1.234e505"
    assert format_lambda_min(nd.Spectrum(lambda_min=1e-20, lambda_max=1.0, floor=1e-13)) == "< 1.0e-13 (not resolved)"


def test_bad_arguments():
    chain = nd.zoo.chain(1)
    with pytest.raises(InputError, match="Expected at least one network, got none"):
        compare({}, X, Y, **SMALL)
    with pytest.raises(InputError, match="Expected distinct networks, got a, b"):
        compare({"a": chain, "b": chain}, X, Y, **SMALL)
    with pytest.raises(InputError, match="Expected at least 2 inputs to compare, got 1"):
        compare({"a": chain}, X[:1], Y[:1], **SMALL)
    with pytest.raises(InputError, match=r"Expected `learning_rate` between 0 and 2 / lambda_max"):
        compare({"a": chain}, X, Y, learning_rate=10.0, **SMALL)


@pytest.mark.parametrize(
    ("dag", "ends"),
    [
        (nd.Dag.from_edges([(0, 2, "weighted"), (1, 2, "skip")], source=[0, 1], output=2), "2 and 1"),
        (nd.Dag.from_edges([(0, 1, "weighted"), (1, 2, "weighted")], source=0, output=[1, 2]), "1 and 2"),
    ],
)
def test_graphs_of_several_ends_are_refused_before_anything_is_computed(dag, ends):
    with pytest.raises(
        GraphError, match=f"Expected graphs with one input and one output to compare, got {ends} in two"
    ):
        compare({"two": dag}, X, Y, on_progress=lambda task, *_: pytest.fail(task), **SMALL)


@pytest.mark.slow
def test_networks_of_any_activation_biases_and_sums(tmp_path):
    """Such networks have no theorems, but an exact expectation; missing values survive an interruption."""
    layer = nd.Dense(activation="erf", order="act-linear", b_std=0.3)
    networks = {"erf": nd.Network("2_12", layer, aggregation="mean"), "relu": "2"}
    options: dict[str, Any] = {"width": 64, "seeds": 2, "steps": 3}

    def stop(task, done, total):
        if task == "training relu":
            raise StoppedError

    with pytest.raises(StoppedError):
        compare(networks, X, Y, out=tmp_path / "out", on_progress=stop, **options)
    results = compare(networks, X, Y, out=tmp_path / "out", resume=True, **options)
    erf, relu = compare(networks, X, Y, **options)
    for resumed, result in zip(results, (erf, relu), strict=True):
        assert resumed.network == result.network
        assert resumed.as_row() == result.as_row()
        np.testing.assert_array_equal(resumed.curves, result.curves)
    assert erf.network == nd.Network("2_12", layer, aggregation="mean", width=64)
    k = nd.kernel(erf.network, X.astype(np.float64))
    assert erf.ntk.lambda_min == pytest.approx(nd.spectrum(k.ntk).lambda_min, rel=1e-9)
    expected = nd.expected_loss(k, Y, erf.learning_rate, 3)
    np.testing.assert_allclose(erf.expected.mean, expected, rtol=1e-9)
    for s, bracket in ((erf.nngp, erf.nngp_bracket), (erf.ntk, erf.ntk_bracket)):
        assert 0 == bracket.lower < s.lambda_min <= bracket.upper
    assert erf.path_bound is erf.ntk_path_bound is erf.as_row()["path_bound"] is None
    assert relu.path_bound is not None
    assert relu.path_bound.is_bound
    assert 0 < relu.ntk_bracket.lower <= relu.ntk.lambda_min
    assert text_of(compare_table([erf]), width=160).count(" n/a ") == 2


def files_in(folder):
    """Returns all files except settings.json, which records that a comparison has been resumed."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "settings.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the arguments and the folder of a comparison. The shared learning rate depends on all DAGs."""
    dags = {"one": "1", "chain": nd.zoo.chain(2)}
    options = {"width": 8, "seeds": 2, "steps": 3, "learning_rate": "shared", "config": {"dataset": "digits"}}
    out = tmp_path_factory.mktemp("whole") / "out"
    nd.compare(dags, X, Y, out=out, **options)
    return dags, options, out


@pytest.fixture(scope="module")
def _cut(whole, tmp_path_factory):
    dags, options, _ = whole
    out = tmp_path_factory.mktemp("cut") / "out"

    def stop(task, done, total):
        if task == "training chain":
            raise StoppedError

    with pytest.raises(StoppedError):
        nd.compare(dags, X, Y, out=out, on_progress=stop, **options)
    return out


@pytest.fixture
def cut(_cut, tmp_path):
    """Returns the folder of the same comparison, stopped when the second DAG begins to train."""
    return shutil.copytree(_cut, tmp_path / "out")


@pytest.mark.slow
def test_a_stopped_comparison_resumes_to_the_same_files(whole, cut):
    dags, options, out = whole
    assert {file.name for file in (cut / "dags").iterdir()} == {"settings.json", "0.json"}
    with pytest.raises(OutputError, match="got an existing one; pass `resume=True` to go on with it, `overwrite=True`"):
        nd.compare(dags, X, Y, out=cut, **options)
    trained = []
    nd.compare(dags, X, Y, out=cut, resume=True, on_progress=lambda task, *_: trained.append(task), **options)
    assert {"training chain"} == {task for task in trained if task.startswith("training")}
    assert files_in(cut) == files_in(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"width": 9},
            r"in .*settings\.json, got others: settings\.networks\.one\.width 8 before, 9 now; pass the old",
        ),
        ({"activation": "erf"}, r'networks\.one\.layer\.Dense\.activation "relu" before, "erf" now; pass the old ones'),
        ({"config": {"dataset": "mnist"}}, r'settings\.dataset "digits" before, "mnist" now; pass the old ones'),
        ({"x": X + 1}, r'settings\.sha256\.x "\w{64}" before, "\w{64}" now'),
        (
            {"networks": {"chain": "2_02", "one": "1"}},
            r'settings\.names \["one", "chain"\] before, \["chain", "one"\] now; pass the old ones',
        ),
    ],
)
def test_another_comparison_is_not_resumed(whole, cut, change, message):
    dags, options, _ = whole
    arguments = {"networks": dags, "x": X, "y": Y, **options, **change}
    before = files_in(cut / "dags")
    with pytest.raises(CheckpointError, match=message):
        nd.compare(out=cut, resume=True, **arguments)
    assert files_in(cut / "dags") == before


def test_a_damaged_journal_is_found(whole, cut):
    dags, options, _ = whole
    file = cut / "dags" / "0.json"
    file.write_text(file.read_text().replace("4", "5", 1))
    with pytest.raises(CheckpointError, match="to hold what was written there, got something else; delete it"):
        nd.compare(dags, X, Y, out=cut, resume=True, **options)
    (cut / "dags" / "settings.json").write_text("[")
    with pytest.raises(CheckpointError, match="to describe a comparison, got Expecting value"):
        nd.compare(dags, X, Y, out=cut, resume=True, **options)


def test_a_finished_comparison_resumes_to_itself(whole, tmp_path):
    dags, options, out = whole
    again, said = shutil.copytree(out, tmp_path / "out"), []
    (again / "compare.json").unlink()
    found = nd.compare(dags, X, Y, out=again, resume=True, on_progress=lambda task, *_: said.append(task), **options)
    assert [result.name for result in found] == [*dags]
    assert not any(task.startswith("training") for task in said)
    assert files_in(again) == files_in(out)


def test_a_finished_dag_under_the_name_of_another_is_found(whole, cut):
    dags, options, _ = whole
    shutil.copy(cut / "dags" / "0.json", cut / "dags" / "1.json")
    with pytest.raises(
        CheckpointError, match=r'1\.json to describe chain, got something else: name "one" before, "chain" now; del'
    ):
        nd.compare(dags, X, Y, out=cut, resume=True, **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda result: [1], r"got \[1\] for result, not an object; delete it"),
        (lambda result: {**result, "path_bound": {}}, r"got no result\.path_bound\.value; delete it"),
        (lambda result: {**result, "ntk": {**result["ntk"], "floor": "1"}}, r"for result\.ntk\.floor, not a number"),
        (
            lambda result: {**result, "curves": [[1.0], [1.0, 2.0]]},
            r"to describe one, got something else: points \[1, 2, 4\] before, \[4\] now; delete it",
        ),
    ],
)
def test_a_damaged_result_with_its_digest_is_found(whole, cut, damage, message):
    dags, options, _ = whole
    file = cut / "dags" / "0.json"
    result = damage(json.loads(file.read_text())["result"])
    file.write_text(json.dumps({"result": result, "sha256": hashlib.sha256(json.dumps(result).encode()).hexdigest()}))
    with pytest.raises(CheckpointError, match=message):
        nd.compare(dags, X, Y, out=cut, resume=True, **options)


def test_files_that_cannot_be_read_are_named_without_numbers_of_errors(whole, cut):
    dags, options, _ = whole
    (cut / "dags" / "0.json").unlink()
    (cut / "dags" / "0.json").mkdir()
    with pytest.raises(CheckpointError, match="to describe a finished DAG, got Is a directory; delete it"):
        nd.compare(dags, X, Y, out=cut, resume=True, **options)


@pytest.mark.parametrize("beside", [False, True])
def test_only_a_comparison_is_overwritten(whole, tmp_path, beside):
    dags, options, out = whole
    mine = tmp_path / "out" / "dags"
    mine.mkdir(parents=True)
    if beside:
        shutil.copy(out / "compare.json", tmp_path / "out")
    for name in ("thesis.txt", "0.json"):
        (mine / name).write_text("mine")
    with pytest.raises(OutputError, match=r"dags to hold a comparison to replace, got other files"):
        nd.compare(dags, X, Y, out=tmp_path / "out", overwrite=True, **options)
    assert {path.name for path in mine.iterdir()} == {"thesis.txt", "0.json"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="other to hold a comparison to replace, got other files; choose another"):
        nd.compare(dags, X, Y, out=tmp_path / "other", overwrite=True, **options)


def test_an_unfinished_comparison_is_overwritten_without_files_beside_it(whole, cut):
    _, options, _ = whole
    (cut / "dags" / "7.json").write_text("{}")
    (cut / "dags" / "notes.txt").write_text("mine")
    nd.compare("1", X, Y, out=cut, overwrite=True, **options)
    assert {path.name for path in (cut / "dags").iterdir()} == {"0.json", "settings.json", "notes.txt"}
    assert len(json.loads((cut / "compare.json").read_text())["rows"]) == 1


def test_what_has_not_begun_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="2 / lambda_max"):
        nd.compare("1", X, Y, out=tmp_path / "new" / "out", learning_rate=10.0, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_graphs_and_seeds_in_every_form(results):
    found = nd.compare([nd.zoo.named("DAG#1"), "dag#3"], X, Y, width=64, seeds=2, steps=4)
    assert [result.name for result in found] == ["2_02_002", "dag#3"]
    for mine, theirs in zip(found, results, strict=True):
        np.testing.assert_array_equal(mine.curves, theirs.curves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"networks": ["2", nd.zoo.chain(1)]},
            "Expected networks whose texts differ, got 2, 2; pass",
        ),
        (
            {"networks": [nd.Network("2", width=8), nd.Network("2", width=9)]},
            r"Expected networks whose texts differ, got 2 \(.*\), 2 \(.*\); pass {name: network}",
        ),
        ({"networks": "2", "activation": "rleu"}, "got 'rleu'; did you mean 'relu'"),
        ({"networks": "2", "activation": np.tanh}, "Expected `activation` to be a name or an `Activation`, got tanh"),
        ({"networks": "2", "readout": False}, "Expected networks with a readout to compare, got 2 without"),
        (
            {"networks": "2", "layer": nd.Conv(filter_shape=(3, 3))},
            "without convolutions and pooling .* in 2; they can be trained",
        ),
        ({"networks": "2_2x"}, "Expected block 2 of `code` to hold 2 digits"),
        ({"y": DATA.labels}, r"`y` to be numbers to regress on, got integers from 0 to 9, .*one_hot\(y, 10\) for cl"),
        ({"y": DATA.labels[:, None]}, "which look like class labels"),
        ({"x": X[:3]}, r"Expected `y` to have shape \(3,\) or \(3, C\), got \(12, 10\)"),
        ({"x": X.reshape(12, 8, 8)}, r"Expected `x` to have shape \(N, d\), got \(12, 8, 8\); flatten images"),
        ({"x": np.ma.masked_greater(X, 1)}, "Expected `x` without masked entries"),
        ({"y": Y + 1j}, "Expected `y` to hold real numbers, got dtype complex64"),
        ({"x": np.zeros((12, 64))}, "Expected `x` to hold an input that is not 0, got only zeros"),
        ({"x": np.where(X.max() == X, np.nan, X)}, "Expected `x` to be finite, got NaN"),
        ({"x": np.array([["a"]])}, "Expected `x` to hold real numbers, got dtype <U1"),
        ({"seeds": 0}, "Expected at least one seed, all distinct and from 0 to 2\\^32 - 1, got 0"),
        ({"seeds": [1, 1]}, "Expected at least one seed"),
        ({"seeds": 10**12}, "Expected at most 100,000 seeds, got 1000000000000; take fewer"),
        ({"seeds": range(10**12)}, "Expected at most 100,000 seeds, got range"),
        ({"width": 0}, "Expected `width` to be a whole number, at least 1, got 0"),
        ({"config": {"at": float("nan")}}, "Expected `config` to hold what JSON can, got .*Out of range"),
        ({"resume": True}, "Expected `out` to name the comparison to resume, got None; pass its folder"),
        ({"resume": True, "overwrite": True, "out": "out"}, "got both"),
    ],
)
def test_wrong_arguments_are_one_line(change, message):
    arguments = {"networks": "1", "x": X, "y": Y, "steps": 2, **change}
    with pytest.raises(InputError if change.get("networks") != "2_2x" else GraphError, match=message):
        nd.compare(**arguments)
