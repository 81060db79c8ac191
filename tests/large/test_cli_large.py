"""The commands solve and plan."""

import json

import numpy as np
import pytest
from cli_cases import run

import nngp_dag as nd

_NETWORK = ("--dag", "2_12")


def _data(tmp_path, y):
    random = np.random.default_rng(0)
    x, x_test = random.normal(size=(120, 4)), random.normal(size=(30, 4))
    np.savez(tmp_path / "my.npz", x=x, y=y(x), x_test=x_test, y_test=y(x_test))
    return tmp_path / "my.npz"


def test_solve_prints_errors_and_writes_the_solution(capsys, tmp_path):
    data, out = _data(tmp_path, lambda x: (x[:, 0] > 0).astype(int)), tmp_path / "out"
    options = ("solve", *_NETWORK, "--data", data, "--ridge", "0.1", "--dtype", "float64", "--out", out)
    status, text, err = run(capsys, *options, "--json")
    assert (status, err) == (0, "")
    found = json.loads(text)
    with np.load(data) as of:
        x, x_test = (nd.data.scale_to_sphere(of[name]) for name in ("x", "x_test"))
        labels, tests = of["y"], of["y_test"]
    expected = nd.solve("2_12", x, np.eye(2)[labels] - 0.5, 0.1)
    outputs = expected.predict(x_test)
    assert found["test_accuracy"] == pytest.approx(nd.classification_accuracy(outputs, tests))
    assert found["test_rmse"] == pytest.approx(np.sqrt(np.mean((outputs - np.eye(2)[tests] + 0.5) ** 2)), rel=1e-6)
    assert found["method"] == "dense"
    assert (out / "solution.npz").exists()
    assert "effective dimension" in run(capsys, *options)[1]
    again = [part.replace("0.1", "0.2") if isinstance(part, str) else part for part in options]
    status, _, err = run(capsys, *again)
    assert status == 2
    assert "got others: solve.ridge 0.1 before, 0.2 now" in err
    assert run(capsys, *again, "--overwrite")[0] == 0


@pytest.mark.slow
def test_solve_takes_targets_of_a_regression(capsys, tmp_path):
    data = _data(tmp_path, lambda x: x[:, 0] + 0.5)
    options = ("solve", *_NETWORK, "--data", data, "--ridge", "0.1", "--kind", "nngp", "--test-std", "20", "--json")
    status, text, _ = run(capsys, *options, "--out", tmp_path / "o")
    assert status == 0
    assert "test_accuracy" not in (found := json.loads(text))
    with np.load(tmp_path / "o" / "solution.npz") as solution:
        assert solution["test_covariance"].shape == (20, 20)
        assert found["mean_test_std"] == pytest.approx(np.sqrt(np.diag(solution["test_covariance"])).mean())
    x, y = np.random.default_rng(1).normal(size=(9, 4)), np.ones(9)
    np.savez(tmp_path / "alone.npz", x=x, y=y)
    again = [tmp_path / "alone.npz" if part == data else part for part in options]
    assert "`x_test` and `y_test` for --test-std" in run(capsys, *again, "--out", tmp_path / "p")[2]


def test_plan(capsys):
    options = ("plan", *_NETWORK, "--shape", "1000000x784", "--landmarks", "4096", "--no-calibrate")
    status, text, _ = run(capsys, *options)
    assert status == 0
    assert "4,096 landmarks out of 65,536 rows" in text
    found = json.loads(run(capsys, *options, "--json")[1])
    assert (found["method"], found["rates"]) == ("landmarks", None)
    assert [method["method"] for method in found["methods"]] == ["dense", "iterative", "landmarks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", *_NETWORK, "--shape", "9"), "Expected --shape to be a shape such as 1000000x784, got '9'"),
        (("plan", *_NETWORK, "--shape", "9x9", "--memory-budget", "6"), "Expected --memory-budget"),
        (("plan", *_NETWORK, "--shape", "9999999x9", "--method", "dense"), "raise --memory-budget"),
        (("solve", *_NETWORK, "--ridge", "0"), "Expected --ridge to be above 0"),
        (("solve", *_NETWORK, "--ridge", "1", "--method", "exact"), "--method"),
    ],
)
def test_errors_name_options(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert message in err
