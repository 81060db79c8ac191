"""Every experiment runs at a small size, and writes the files that it promises."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import nngp_dag as nd

FOLDER = Path(__file__).parents[1] / "experiments"
PNG = b"\x89PNG\r\n\x1a\n"


def run(name, arguments):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(arguments)
    return module


def files_of(out):
    assert out.with_suffix(".png").read_bytes()[:8] == PNG
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
    return json.loads(out.with_suffix(".json").read_text()), rows


@pytest.mark.slow
def test_brackets(tmp_path, capsys):
    out = tmp_path / "new" / "brackets"
    module = run("brackets", ["--n", "5", "--datasets", "digits", "--every", "200", "--out", str(out)])
    assert len(list(module.codes())) == 686
    document, rows = files_of(out)
    assert len(rows) == 2 * 4
    for row in rows:
        assert float(row["lower"]) <= float(row["exact"]) <= float(row["upper"])
    assert document["summaries"]["digits, NTK"]["codes"] == 4
    assert "ratio to the exact value" in capsys.readouterr().out


@pytest.mark.nightly
def test_width_convergence(tmp_path, capsys):
    out = tmp_path / "width"
    widths = ["64", "128", "256", "512"]
    options = ["--dag", "2", "--activations", "erf", "--n", "6", "--steps", "6", "--out", str(out)]
    run("width_convergence", [*options, "--widths", *widths])
    document, rows = files_of(out)
    assert [row["width"] for row in rows] == widths
    # Fluctuations shrink as width^-1/2. With 64 networks of 4 widths the fitted exponent is off by at most 0.1.
    assert document["slopes"]["erf"]["network_gap"] == pytest.approx(-0.5, abs=0.15)
    assert "slopes, erf: single networks" in capsys.readouterr().out


@pytest.mark.slow
def test_width_effects(tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "effects"
    options = ["--graphs", "chain of 2", "DAG#3", "--datasets", "digits", "--n", "12", "--width", "256", "--steps", "5"]
    module = run("width_effects", [*options, "--networks", "3", "--out", str(out)])
    assert len(module.GRAPHS) == 10
    document, rows = files_of(out)
    assert [(row["dataset"], row["graph"], row["step"]) for row in rows] == [
        ("digits", "chain of 2", "5"),
        ("digits", "DAG#3", "5"),
    ]
    assert document["summary"]["cases"] == 2
    assert document["refused"] == {}
    for name, case in document["cases"]["digits"].items():
        assert len(case["deviations"]) == 6, name
        assert all(at["low"] <= at["predicted"] <= at["high"] for at in case["deviations"])
        assert {at["holds"] for at in case["deviations"]} <= {True, False}
    assert "predictions hold" in capsys.readouterr().out
    # The same command takes finished cases from their files.
    first = out.with_suffix(".csv").read_bytes()
    monkeypatch.setattr(module, "run_case", None)
    module.main([*options, "--networks", "3", "--out", str(out)])
    assert out.with_suffix(".csv").read_bytes() == first


@pytest.mark.slow
def test_width_spread(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    out = tmp_path / "new" / "spread"
    options = ["--graphs", "chain of 2", "--activations", "relu", "--orders", "linear-act", "--width", "64"]
    options += ["--networks", "500", "--out", str(out)]
    module = run("width_spread", [*options, "--kinds", "nngp", "--datasets", "digits"])
    document, rows = files_of(out)
    assert [row["functional"] for row in rows] == list(module.FUNCTIONALS)
    for row in rows:
        # 500 networks tell their standard deviation to 4 %.
        assert float(row["miss_error"]) < 0.06, row
        assert abs(float(row["measured"]) / float(row["predicted"]) - 1 - float(row["departure"])) < 0.2, row
        assert abs(float(row["shift"]) - float(row["bias"])) < 4 * float(row["shift_error"]), row
    counts = document["summaries"]["nngp, all"]
    assert (counts["predictions"], counts["refused"]) == (5, 0)
    assert counts["unflagged"] == sum(row["trusted"] == "True" for row in rows)
    assert "Misses of the unflagged predictions" in capsys.readouterr().out
    # Finished cases are taken from their files.
    first = out.with_suffix(".csv").read_bytes()
    monkeypatch.setattr(module, "predicted", None)
    monkeypatch.setattr(module, "draw", lambda *_: None)
    module.main([*options, "--finished"])
    assert out.with_suffix(".csv").read_bytes() == first
    # What counts as a miss of 5 %.
    row = {"miss": -0.06, "miss_error": 0.01}
    verdicts = [module.verdict(row | changed) for changed in ({}, {"miss_error": 0.004}, {"miss": 0.05})]
    assert verdicts == ["within 2 errors", "beyond", "within"]


@pytest.mark.slow
def test_large_mnist(tmp_path, capsys):
    out = tmp_path / "new" / "large"
    options = ["--dataset", "digits", "--rows", "500", "4000", "--landmarks", "100", "--work", str(tmp_path / "work")]
    module = run("large_mnist", [*options, "--out", str(out)])
    assert [module.offsets()[i] for i in (0, 1, 24)] == [(0, 0), (-1, 0), (2, 2)]
    document, rows = files_of(out)
    assert [(row["rows"], row["landmarks"]) for row in rows] == [("500", "100"), ("4000", "100")]
    assert document["images"] == 1500
    assert all(float(row["test_accuracy"]) > 0.8 for row in rows)
    assert "Kernel regression on shifted digits" in capsys.readouterr().out
    image = np.arange(12.0, dtype=np.float32).reshape(1, 3, 4, 1)
    moved = module.shifted(image, (1, -2))[0, :, :, 0]
    np.testing.assert_array_equal(moved, [[0, 0, 0, 0], [2, 3, 0, 0], [6, 7, 0, 0]])


@pytest.mark.nightly
def test_figure3(tmp_path, capsys):
    out = tmp_path / "figure3"
    options = ["--datasets", "digits", "--width", "32", "--subset", "256", "--epochs", "3", "--seeds", "2"]
    run("figure3", [*options, "--lr", "0.003", "--draws", "3", "--threshold", "0.2", "--out", str(out)])
    document, rows = files_of(out)
    assert [(row["dag"], row["kind"]) for row in document["rows"]] == [
        (dag, kind) for dag in ("DAG#1", "DAG#2", "DAG#3") for kind in ("measured", "predicted")
    ]
    # 3 graphs, 4 points, 2 networks and 3 draws.
    assert len(rows) == 3 * 4 * 5
    assert all(row["share_left"] < 1 for row in document["rows"])
    assert "1,350" not in document["data"]["digits"]
    first = out.with_suffix(".csv").read_bytes()
    # The same command returns the same curves, whether or not it was interrupted.
    run("figure3", [*options, "--lr", "0.003", "--draws", "3", "--threshold", "0.2", "--out", str(out)])
    assert out.with_suffix(".csv").read_bytes() == first
    assert "predicted" in capsys.readouterr().out


@pytest.mark.nightly
def test_no_free_lunch(tmp_path, capsys):
    out = tmp_path / "no_free_lunch"
    options = ["--dataset", "digits", "--subset", "500", "--width", "16", "--epochs", "12", "--seeds", "2"]
    options += ["--lr", "0.03", "--sample", "5", "--kernel-images", "32", "--resamples", "50", "--out", str(out)]
    run("no_free_lunch", options)
    document, rows = files_of(out)
    assert len(rows) == 5
    assert document
    assert "Kendall" in capsys.readouterr().out
    # Finished graphs are not trained again.
    before = out.with_suffix(".csv").read_bytes()
    run("no_free_lunch", options)
    assert out.with_suffix(".csv").read_bytes() == before


@pytest.mark.nightly
def test_naswot_search(tmp_path, capsys, golden_dir):
    out = tmp_path / "search"
    options = ["--dataset", "digits", "--batch", "16", "--channels", "4", "--stage-cells", "1", "--cells", "30"]
    options += ["--scores", "naswot", "parameters", "--sample", "10", "--repeats", "20", "--out", str(out)]
    run("naswot_search", options)
    document, rows = files_of(out)
    methods = ["random", *["naswot"] * 3, *["parameters"] * 3, "best of the sample", "best of all"]
    assert [row["method"] for row in rows] == methods
    assert sum(document["status"].values()) == 30
    assert 0 < float(rows[2]["skipped"]) < 1
    assert "best of all" in capsys.readouterr().out
    # Scores are not computed again.
    kept = (tmp_path / "search-scores" / "scores-naswot.csv").read_bytes()
    run("naswot_search", options)
    assert (tmp_path / "search-scores" / "scores-naswot.csv").read_bytes() == kept


@pytest.mark.slow
def test_pruning_search(tmp_path, capsys, tfds_dir):
    out = tmp_path / "pruned"
    options = ["--dataset", "digits", "--measures", "exact", "--batch", "8", "--seeds", "2", "--repeats", "1"]
    options += ["--accuracies", str(tfds_dir.parent / "nasbench201_cifar10.csv"), "--out", str(out)]
    run("pruning_search", options)
    document, rows = files_of(out)
    assert [row["shortcut"] for row in rows] == ["False", "False", "True", "True"]
    assert document["summary"]["shortcut"]["evaluated"] < document["summary"]["all"]["evaluated"]
    assert document["summary"]["shortcut"]["skipped"] > 0
    assert "networks measured" in capsys.readouterr().out
    # A finished search is read, not run again, so that its seconds stay the same.
    run("pruning_search", options)
    assert files_of(out)[1] == rows


@pytest.mark.slow
def test_tables(tmp_path, capsys):
    out = tmp_path / "tables"
    models = ["RBF", "arc-cosine", "NTK, DAG#3"]
    module = run("tables", ["--tables", "iris", "--models", *models, "--out", str(out)])
    document, rows = files_of(out)
    assert [row["model"] for row in rows] == [model for model in models for _ in range(5)]
    assert list(document["iris"]) == models
    for mean, deviation in document["iris"].values():
        assert 0.02 < mean < 0.15
        assert deviation < 0.1
    assert "arc-cosine" in capsys.readouterr().out
    # A network of one activated layer has this kernel, up to the factor of its weights.
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(2 / 3 * module.ArcCosine()(x), nd.kernel("1", x).nngp, rtol=1e-6)
    np.testing.assert_allclose(module.ArcCosine().diag(x), np.sum(x**2, axis=1), rtol=1e-12)


@pytest.mark.nightly
def test_graph_search(tmp_path, capsys, tfds_dir):
    out = tmp_path / "search"
    options = ["--n", "8", "--starts", "6", "--steps", "30", "--nodes", "3", "--datasets", "diabetes", "digits"]
    run("graph_search", [*options, "--data-dir", str(tfds_dir), "--out", str(out)])
    document, rows = files_of(out)
    assert len(rows) == 2 * 2 * 6
    for summary in document["summaries"].values():
        assert summary["codes"] == 22
        assert 0 <= summary["by_gradient"] <= summary["after_descent"] <= 6
    assert "after the descent" in capsys.readouterr().out


@pytest.mark.slow
def test_shapes(tmp_path, capsys):
    module = run("shapes", ["--data-dir", str(tmp_path), "--train", "20", "--test", "10", "--size", "32"])
    assert f"wrote {tmp_path / 'shapes'}" in capsys.readouterr().out
    assert nd.data.load_stream("shapes", data_dir=tmp_path, size=16).sizes == {"train": 18, "validation": 2, "test": 10}
    # Shapes cover between a hundredth and half of an image, and differ from the ground by more than the noise.
    rng = np.random.default_rng(0)
    for shape in module.SHAPES:
        image = module.draw(shape, rng, 224).astype(float)
        corner = np.median(image.reshape(-1, 3), axis=0)
        share = (np.linalg.norm(image - corner, axis=2) > 65).mean()
        assert 0.01 < share < 0.5
