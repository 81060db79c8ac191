"""Searches over graphs: the relaxation at its corners, its gradient, the objectives, the codes found, and the files."""

import dataclasses
import importlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from compiled import programs

import nngp_dag as nd
from nngp_dag.cli import main
from nngp_dag.errors import GraphError, InputError, NumericalWarning, OutputError
from nngp_dag.report.search_objectives import OBJECTIVES, Settings
from nngp_dag.report.search_space import SearchSpace

search_module = importlib.import_module("nngp_dag.report._search")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5))
Y = np.sin(2 * X[:, :1]) + X[:, 1:2]
SETTINGS = Settings(noise=0.1, loss_steps=7, rate=1.0)
SMALL: dict[str, Any] = {"num_nodes": 3, "starts": 3, "steps": 10}


def space_of(num_nodes, **architecture):
    return SearchSpace(nd.Network(SearchSpace.complete_graph(num_nodes), **architecture))


@pytest.fixture(scope="module")
def problem():
    return search_module._Problem(space_of(3), OBJECTIVES["marginal-likelihood"], SETTINGS, X, Y)


STAGES: list[tuple[str, int, int]] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("search") / "found"


@pytest.fixture(scope="module")
def found(folder):
    return nd.search_graph(X, Y, exhaustive=True, out=folder, on_progress=lambda *now: STAGES.append(now), **SMALL)


@pytest.mark.unit
@pytest.mark.parametrize("num_nodes", [2, 3, 4])
def test_valid_codes_are_those_with_a_path(num_nodes):
    space = space_of(num_nodes)
    expected = set()
    for code in nd.zoo.codes(num_nodes - 1):
        try:
            nd.Dag.from_code(code)
        except GraphError:
            continue
        expected.add(code)
    assert {space.code(digits) for digits in space.valid()} == expected
    assert all(space.code(digits).replace("_", "") == "".join(map(str, digits)) for digits in space.valid())


@pytest.mark.unit
def test_neighbors_differ_in_one_pair_and_have_a_path_where_no_node_is_idle():
    space = space_of(3)
    # Of 2_02 every edge can change, but the path needs both of its edges.
    assert {space.code(one) for one in space.neighbors((2, 0, 2))} == {"1_02", "2_12", "2_22", "2_01"}


@pytest.mark.unit
def test_an_idle_node_makes_a_weighted_edge_deeper():
    space = space_of(4)

    def deeper(code):
        digits = tuple(map(int, code.replace("_", "")))
        found = {
            space.code(one)
            for one in space.neighbors(digits)
            if sum(a != b for a, b in zip(one, digits, strict=True)) > 1
        }
        assert all(space.is_valid(one) for one in space.neighbors(digits))
        return found

    # One layer, with both nodes idle; two layers, with node 1 or node 2 idle; no idle node; a skip.
    assert deeper("0_00_200") == {"2_00_020", "0_20_002"}
    assert deeper("0_20_002") == {"2_02_002"}
    assert deeper("2_01_020") == {"2_02_002"}
    assert deeper("2_02_002") == set()
    assert deeper("0_00_100") == set()
    # Edges of an idle node vanish with its new place.
    assert deeper("1_01_200") == {"2_00_020", "1_20_002"}


@pytest.mark.unit
def test_rounding_keeps_an_edge_into_every_node():
    weights = np.array([[0.8, 0.15, 0.05], [0.9, 0.02, 0.08], [0.6, 0.1, 0.3]])
    space = space_of(3)
    assert space.code(space.rounded(weights)) == "1_02"
    space = space_of(4)
    for weights in RNG.dirichlet([1, 1, 1], size=(100, 6)):
        assert space.is_valid(space.rounded(weights))


@pytest.mark.slow
@pytest.mark.unit
def test_shares_at_a_corner_are_the_code_and_sum_to_one_elsewhere():
    space = space_of(3)
    for digits in space.valid():
        weights = np.asarray(space.weights(jnp.asarray(space.corner(digits))))
        np.testing.assert_array_equal(weights, np.eye(3)[list(digits)])
    log_p = np.log(RNG.dirichlet([1, 1, 1], size=3))
    weights = np.asarray(space.weights(jnp.asarray(log_p)))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    # The strongest edge into each node has full strength.
    assert weights[0, 0] == pytest.approx(0, abs=1e-6)
    assert weights[1:, 0].min() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(weights[1:, 1] / weights[1:, 2], np.exp(log_p[1:, 1] - log_p[1:, 2]), rtol=1e-5)


@pytest.mark.parametrize("num_nodes", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_relaxed_kernel_at_a_corner_is_that_of_the_code(num_nodes):
    space = space_of(num_nodes)

    @jax.jit
    def relaxed(log_p):
        return nd.kernel(space.network, X, parameters=space.parameters(log_p), dtype="float64")

    every = list(space.valid())
    for digits in every if num_nodes == 3 else every[::23]:
        with jax.enable_x64(True):
            k = relaxed(space.corner(digits))
        exact = nd.kernel(space.code(digits), X)
        for one, other in ((k.nngp, exact.nngp), (k.ntk, exact.ntk)):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
def test_the_gradient_equals_central_differences(problem):
    logits = RNG.normal(size=(3, 3, 3))
    _, gradient = problem.relaxed(logits, 0.5)
    numeric = np.empty_like(logits)
    for index in np.ndindex(3, 3):
        step = np.zeros_like(logits)
        step[(slice(None), *index)] = 1e-6
        difference = problem.relaxed(logits + step, 0.5)[0] - problem.relaxed(logits - step, 0.5)[0]
        numeric[(slice(None), *index)] = difference / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)
    # Logits may move together.
    np.testing.assert_allclose(gradient.sum(axis=2), 0, atol=1e-12)


def by_hand(name, k):
    """Returns an objective from the library's functions outside of transformations."""
    if name == "marginal-likelihood":
        return nd.log_marginal_likelihood(k, Y, SETTINGS.noise)
    if name == "leave-one-out":
        return nd.leave_one_out(k, Y, SETTINGS.noise).log_predictive_density
    if name == "expected-loss":
        return nd.expected_loss(k, Y, 1 / np.linalg.eigvalsh(k.ntk)[-1], SETTINGS.loss_steps)[-1]
    eigenvalues = np.linalg.eigvalsh(getattr(k, name[: name.index("-")]))
    return eigenvalues[0] / eigenvalues.mean()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_equal_the_functions_of_the_library(name):
    k = nd.kernel("2_12", X)
    objective = OBJECTIVES[name]
    with jax.enable_x64(True):
        traced = jax.jit(lambda nngp, ntk: objective.value(nd.Kernel(nngp, ntk), Y, SETTINGS))(k.nngp, k.ntk)
    assert float(traced) == pytest.approx(by_hand(name, k), rel=1e-10)


@pytest.mark.slow
def test_all_steps_share_one_program_and_each_code_is_scored_once(problem):
    problem.relaxed(RNG.normal(size=(3, 3, 3)), 0.7)
    assert programs(problem.gradients) == 1
    scores = problem.scored(problem.space.valid())
    assert programs(problem.values) == 1
    seen = []
    assert problem.scored(problem.space.valid(), lambda *done: seen.append(done)) == scores
    assert not seen


@pytest.mark.nightly
def test_the_lowest_expected_loss_of_two_codes():
    result = nd.search_graph(X, Y, objective="expected-loss", exhaustive=True, num_nodes=2, starts=2, steps=2)
    values = {}
    for code in ("1", "2"):
        k = nd.kernel(code, X)
        rate = 0.5 * nd.largest_stable_learning_rate(k.ntk)
        values[code] = nd.expected_loss(k, Y, rate, 100)[-1]
    assert not result.maximized
    assert result.table == pytest.approx(values, rel=1e-9)
    assert result.code == min(values, key=values.__getitem__)
    assert result.value == pytest.approx(values[result.code], rel=1e-9)


def test_a_search_returns_codes_of_its_own_table(found):
    frame: Any = found.to_frame()
    assert found.table is not None
    assert len(found.table) == 22
    for row in frame.itertuples():
        assert row.gradient_value == found.table[row.gradient_code]
        assert row.value == found.table[row.code]
        assert row.value >= row.gradient_value
        for code in found.table:
            differing = sum(a != b for a, b in zip(code, row.code, strict=True))
            assert differing != 1 or found.table[code] <= row.value + 1e-9
    assert found.value == max(found.values)
    assert found.network == nd.Network(found.code)
    assert found.value == pytest.approx(nd.log_marginal_likelihood(nd.kernel(found.network, X), Y, 0.1), rel=1e-10)
    table: Any = found.codes_frame()
    assert table["rank"].iloc[0] == 1
    assert (table.value.diff().dropna() <= 1e-9).all()
    assert set(frame["rank"]) <= set(table["rank"])
    assert (table.end_rank <= table["rank"]).all()
    assert set(frame.code) <= set(table.end)
    assert table.end[0] == table.code[0]
    assert found.share_within(1.0) == 1.0
    assert found.share_within(0.1) == np.mean(frame["rank"] <= 2)
    assert found.share_within(0.1, polished=False) == np.mean(frame.gradient_rank <= 2)


@pytest.mark.slow
def test_a_search_keeps_the_weights_of_its_best_start(found):
    assert found.weights.shape == (11, 3, 3)
    np.testing.assert_allclose(found.weights.sum(axis=2), 1, rtol=1e-12)
    frame = found.weights_frame()
    assert len(frame) == 33
    row = frame[(frame.step == 10) & (frame.target == 2) & (frame.source == 1)].iloc[0]
    assert row[["none", "skip", "weighted"]].tolist() == found.weights[10, 2].tolist()
    rounded = space_of(3).rounded(found.weights[-1])
    assert space_of(3).code(rounded) == found.gradient_codes[found.best]
    np.testing.assert_allclose(found.temperatures[[0, 5, 10]], [4.0, 0.4**0.5, 0.1], rtol=1e-12)
    assert f"code='{found.code}'" in repr(found)
    assert "of 22 codes" in repr(found)


@pytest.mark.slow
def test_the_objective_of_relaxed_networks_rises(found):
    assert (found.relaxed[-1] > found.relaxed[0]).all()
    assert found.relaxed.shape == (11, 3)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_eigenvalues_agree_with_a_sweep(kind):
    result = nd.search_graph(X, objective=f"{kind}-lambda-min", exhaustive=True, **SMALL)
    assert result.table is not None
    table: Any = nd.sweep(list(result.table), X)
    expected = table[f"{kind}_lambda_min"] / (table[f"{kind}_trace"] / len(X))
    resolved = table[f"{kind}_resolved"]
    values = np.array(list(result.table.values()))
    assert resolved.any()
    np.testing.assert_allclose(values[resolved], expected[resolved], rtol=1e-9)
    # Kernels of skips alone have rank 5 here, and no smallest eigenvalue above rounding.
    assert (abs(values[~resolved]) < 1e-12).all()
    assert result.value == pytest.approx(expected.max(), rel=1e-9)


@pytest.mark.nightly
def test_the_expected_loss_is_minimized():
    result = nd.search_graph(X, Y, objective="expected-loss", exhaustive=True, **SMALL)
    assert not result.maximized
    assert result.table is not None
    assert result.value == min(result.values)
    best = result.codes_frame().code[0]
    rate = 0.5 * nd.largest_stable_learning_rate(nd.kernel(best, X).ntk)
    exact = nd.expected_loss(nd.kernel(best, X), Y, rate, 100)[-1]
    assert result.table[best] == pytest.approx(exact, rel=1e-9)
    assert (result.relaxed[-1] < result.relaxed[0]).all()


@pytest.mark.nightly
def test_large_problems_run_in_parts(monkeypatch, problem):
    monkeypatch.setattr(search_module, "_BUDGET", 2 * search_module._BYTES * len(X) ** 2)
    parts = search_module._Problem(problem.space, OBJECTIVES["marginal-likelihood"], SETTINGS, X, Y)
    logits = RNG.normal(size=(3, 3, 3))
    for found, expected in zip(parts.relaxed(logits, 0.5), problem.relaxed(logits, 0.5), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    codes = list(problem.space.valid())
    found, expected = (list(one.scored(codes).values()) for one in (parts, problem))
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.slow
def test_a_result_without_a_table_says_so(found):
    plain = dataclasses.replace(found, table=None, ends=None)
    assert list(plain.to_frame().columns)[-1] == "value"
    for call in (plain.codes_frame, plain.share_within):
        with pytest.raises(InputError, match="pass `exhaustive=True`"):
            call()
    with pytest.raises(InputError, match="Expected `fraction` above 0 and at most 1"):
        found.share_within(0.0)
    # A value that is not finite is the worst of all.
    assert found._ranks(np.array([np.nan])).tolist() == [23]


@pytest.mark.slow
def test_files_hold_the_result(found, folder):
    files = {path.name for path in folder.iterdir()}
    assert files >= {"search.csv", "weights.csv", "codes.csv", "search.png", "search.json"}
    for name, frame in (
        ("search", found.to_frame()), ("weights", found.weights_frame()), ("codes", found.codes_frame())
    ):  # fmt: skip
        read = pandas.read_csv(folder / f"{name}.csv")
        pandas.testing.assert_frame_equal(read, frame, rtol=1e-12, check_dtype=False)
    document = json.loads((folder / "search.json").read_text())
    assert document["settings"]["objective"] == "marginal-likelihood"
    assert document["settings"]["seed"] == 0
    assert {stage[0].split(",")[0] for stage in STAGES} == {"gradient", "discrete descent", "all codes"}
    assert all(done <= total for _, done, total in STAGES)
    assert (folder / "search.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(OutputError, match="got an existing one"):
        nd.search_graph(X, Y, out=folder, **SMALL)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "loss"}, "Expected `objective` to be one of"),
        ({"noise": 0.0}, "Expected `noise` above 0, got 0"),
        ({"rate": 2.0}, "Expected `rate` below 2"),
        ({"num_nodes": 5, "exhaustive": True}, "Expected `num_nodes` of at most 4"),
        ({"num_nodes": 1}, "`num_nodes`"),
        ({"temperature": (1.0, 0.0)}, "Expected `temperature` above 0"),
        ({"y": None}, "Expected `y` for the objective 'marginal-likelihood', got None"),
        ({"objective": "ntk-lambda-min"}, "Expected no `y` for the objective"),
        ({"y": np.arange(6)}, "Expected `y`"),
        ({"aggregation": "mean"}, "Expected `aggregation` to be 'sum', got 'mean'"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    change = {**change}
    with pytest.raises((InputError, GraphError), match=message):
        nd.search_graph(X, change.pop("y", Y), **{**SMALL, **change})


@pytest.mark.unit
def test_a_temperature_is_a_pair():
    with pytest.raises(InputError, match=r"Expected `temperature` to be a pair of numbers, first and last, got 1\.0"):
        search_module._schedule(1.0, 3)


@pytest.mark.unit
def test_a_start_without_a_finite_gradient_stays_and_is_counted(problem, monkeypatch):
    def relaxed(logits, temperature):
        gradient = np.ones((2, 3, 3))
        gradient[1] = np.nan if temperature < 1 else 1
        return np.zeros(2), gradient

    monkeypatch.setattr(problem, "relaxed", relaxed)
    with pytest.warns(NumericalWarning, match="got 1 of 2 starts without; they stay where they were"):
        path, _ = search_module._descended(
            problem, np.zeros((2, 3, 3)), np.array([2.0, 1.0, 0.5, 0.25]), 0.1, lambda *_: None
        )
    # Adam moves by its learning rate along a constant gradient, uphill.
    np.testing.assert_allclose(path[:, 0, 0, 0], [0, 0.1, 0.2, 0.3], rtol=1e-5)
    np.testing.assert_allclose(path[:, 1, 0, 0], [0, 0.1, 0.2, 0.2], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.unit
def test_an_objective_that_is_nowhere_finite_is_refused(problem, monkeypatch):
    monkeypatch.setattr(problem, "scored", lambda codes, report=None: dict.fromkeys(codes, np.nan))
    path = np.zeros((2, 1, 3, 3))
    with pytest.raises(InputError, match="Expected an objective that float64 can hold, got nan for"):
        search_module._finished(
            problem, "marginal-likelihood", path, np.zeros((2, 1)), np.array([1.0, 0.1]), False, lambda *_: None
        )


@pytest.mark.slow
def test_the_command_prints_and_writes_the_best_code(tmp_path, capsys, found):
    np.savez(tmp_path / "my.npz", x=X, y=Y)
    options = ["--data", str(tmp_path / "my.npz"), "--num-nodes", "3", "--starts", "3", "--steps", "10"]
    arguments = ["search", *options, "--no-scale-inputs", "--exhaustive", "--out", str(tmp_path / "found")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--json"])
    assert stop.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["code"] == found.code
    assert document["value"] == pytest.approx(found.value, rel=1e-9)
    assert [row["gradient_code"] for row in document["starts"]] == list(found.gradient_codes)
    assert all((tmp_path / "found" / name).is_file() for name in ("search.csv", "codes.csv", "search.png"))
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--overwrite"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"best: {found.code}, marginal-likelihood" in shown
    assert "within the best 2 % of 22 codes" in shown
    for wrong, message in (
        (["--rate", "3"], "Expected --rate below 2"),
        (["--noise", "0"], "Expected --noise above 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--overwrite", *wrong])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
