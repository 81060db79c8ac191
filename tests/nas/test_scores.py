"""Scores of cells: the registry, degenerate cells, and each score against a second computation."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.nas import (
    BUILT_IN,
    SCORES,
    Cell,
    Score,
    Setting,
    cells,
    flops,
    get_score,
    goodness,
    parameters,
    register,
    score_cells,
)
from nngp_dag.nas.scores.gradients import sum_of_norms, synflow
from nngp_dag.nas.spaces.costs import _kernels

NOTHING = Cell.from_index(0)
POOLS = Cell.from_index(15_624)
RICH = Cell.parse("|nor_conv_1x1~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|")


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 8, 8, 3)).astype(np.float32)
    return Setting(images, rng.integers(0, 10, 6), channels=4, cells=1, ntk_images=6)


def values_of(setting, *names):
    found = [{}, {}, {}]
    reasons = [{}, {}, {}]
    some: list[Any] = [NOTHING, POOLS, RICH]
    for scored in score_cells(some, names, setting):
        found[some.index(scored.cell)].update(scored.values)
        reasons[some.index(scored.cell)].update(scored.reasons)
    return found, reasons


def test_parameters_are_those_of_the_published_weights(published):
    counted = sum(
        value.size
        for name, value in published.weights.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert parameters(published.cell, cells=1) == counted


def test_costs_of_the_smallest_and_the_largest_network_are_those_of_nasbench201():
    # NAS-Bench-201 lists 0.073306 and 1.531546 million parameters, and 7.78 and 220.12 million multiply-adds.
    largest = Cell(("nor_conv_3x3",) * 6)
    assert (parameters(NOTHING), parameters(largest)) == (73_306, 1_531_546)
    assert flops(NOTHING) / 2e6 == pytest.approx(7.78, abs=0.005)
    assert flops(largest) / 2e6 == pytest.approx(220.12, abs=0.005)
    # By hand for C = 1 and N = 1 on images of 4 x 4 x 2: the stem, and 3 x 3, 3 x 3, 1 x 1 of both residual blocks.
    convolutions = 16 * 9 * 2 + 4 * (9 * 2 + 9 * 4 + 2) + (9 * 8 + 9 * 16 + 8)
    assert flops(NOTHING, (4, 4, 2), channels=1, cells=1, classes=7) == 2 * (convolutions + 4 * 7) + 7
    dead = Cell(("nor_conv_3x3", "none", "none", "skip_connect", "none", "none"))
    assert parameters(dead) == parameters(NOTHING)
    assert sum(1 for _ in _kernels(RICH, 4, 2, 3, "cifar")) == 1 + 6 + 3 * 2 * 2


@pytest.mark.slow
def test_wiring_scores_are_those_of_sweep(setting):
    found, reasons = values_of(setting, "nngp_lambda_min_exact", "ntk_condition_exact", "ntk_logdet_exact")
    x = nd.data.scale_to_sphere(setting.images.astype(np.float64))
    table = nd.sweep([str(NOTHING), str(POOLS), str(RICH)], x)
    for row in (1, 2):
        assert found[row]["nngp_lambda_min_exact"] == pytest.approx(table.nngp_lambda_min[row], rel=1e-10)
        assert found[row]["ntk_condition_exact"] == pytest.approx(table.ntk_condition_number[row], rel=1e-10)
    k = nd.kernel(RICH.dag, x)
    assert found[2]["ntk_logdet_exact"] == pytest.approx(np.linalg.slogdet(np.asarray(k.ntk))[1], rel=1e-10)
    assert "path from node 0" in reasons[0]["ntk_logdet_exact"]
    assert str(NOTHING) in reasons[0]["ntk_logdet_exact"]


@pytest.fixture(scope="module")
def gradient_scores(setting):
    return values_of(setting, "grad_norm", "synflow", "jacob_cov", "ntk_condition")


@pytest.mark.nightly
def test_degenerate_cells_say_why(gradient_scores):
    found, reasons = gradient_scores
    assert all(np.isnan(value) for value in found[0].values())
    for name, reason in reasons[0].items():
        assert reason.startswith(f"{name} of {NOTHING}: Expected")
    assert not reasons[2]
    assert np.isfinite(list(found[2].values())).all()


def test_norms_are_those_of_single_kernels_also_in_a_stack():
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 3, 3, 2, 4), (3, 3, 2, 4), (4, 5)]
    gradients = [rng.normal(size=shape) for shape in shapes]
    kernels = [*gradients[0].reshape(6, -1), *gradients[1:]]
    expected = sum(np.linalg.norm(kernel.ravel()) for kernel in kernels)
    assert float(sum_of_norms(map(jnp.asarray, gradients))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.nightly
def test_the_gradient_norm_is_a_sum_over_kernels(setting, gradient_scores):
    x, labels = jnp.asarray(setting.images), jax.nn.one_hot(setting.labels, 10)

    def loss(net):
        return -(labels * jax.nn.log_softmax(net(x, RICH))).sum() / 6

    gradient = nnx.grad(loss)(setting.network())
    stages = gradient["stages"]
    kernels = [stages[i][kind][...][0, edge] for i in range(3) for kind in ("conv1", "conv3") for edge in range(6)]
    kernels += [gradient["stem"]["kernel"][...], gradient["kernel"][...]]
    for i in range(2):
        block = gradient["reductions"][i]
        kernels += [block["conv_a"]["kernel"][...], block["conv_b"]["kernel"][...], block["shortcut"][...]]
    norms = [float(jnp.linalg.norm(kernel)) for kernel in kernels]
    # Kernels with a gradient: stem, classifier, 6 in the residual blocks, and 2 live edges in each of 3 cells.
    assert sum(norm > 0 for norm in norms) == 2 + 6 + 6
    assert gradient_scores[0][2]["grad_norm"] == pytest.approx(sum(norms), rel=1e-4)


@pytest.mark.slow
def test_synflow_counts_the_layers_of_a_network_without_branches(setting):
    """R is homogeneous of degree 1 in every kernel that all paths use: a chain of L such layers has log(L R)."""
    [scored] = score_cells([POOLS], ["synflow"], setting)
    net = nnx.clone(setting.network(batch_norm=False))
    for layer in (net.stem.kernel, net.kernel):
        layer[...] = abs(layer[...])
    for block in net.reductions:
        for param in (block.conv_a.kernel, block.conv_b.kernel, block.shortcut):
            param[...] = abs(param[...])
    run = nnx.jit(type(net).__call__)
    total = lambda: float(run(net, jnp.ones((1, 8, 8, 3)), jnp.array(POOLS.codes)).sum())  # noqa: E731
    output = total()
    # Stem and classifier lie on all paths, the kernels of a block on some. Their part of R vanishes without them.
    flow = 2 * output
    for block in net.reductions:
        for param, layers in ((block.shortcut, 1), (block.conv_b.kernel, 2)):
            kept = param[...]
            param[...] = jnp.zeros_like(kept)
            flow += layers * (output - total())
            param[...] = kept
    assert scored.values["synflow"] == pytest.approx(np.log(flow), rel=1e-5)


def test_every_score_has_a_direction_a_cost_and_a_reference():
    assert set(BUILT_IN) <= set(SCORES)
    assert len(BUILT_IN) == 17
    for name in BUILT_IN:
        assert SCORES[name].reference
    lower = {name for name in BUILT_IN if not SCORES[name].higher_is_better}
    assert lower == {"ntk_condition", "nngp_condition_exact", "ntk_condition_exact", "leave_one_out"}


def test_the_registry_refuses_duplicates_and_unknown_names(setting):
    naswot = SCORES["naswot"]
    with pytest.raises(InputError, match="a new name for a score, got 'naswot', which is taken"):
        register(naswot)
    with pytest.raises(InputError, match=r"`cost` of 'mine' to be one of wiring, kernel, .*, got 'much'"):
        register(Score("mine", True, "much", "", naswot.measure))
    assert "mine" not in SCORES
    with pytest.raises(InputError, match=r"a score out of naswot, .*, got 'best'"):
        get_score("best")
    with pytest.raises(InputError, match="at least one score"):
        list(score_cells([RICH], [], setting))


def test_a_measure_that_crashes_names_score_and_cell(setting, monkeypatch):
    def crashing(cells, setting):
        yield {"mine": 1.0}
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr("nngp_dag.nas.scores.registry._registered", {})
    register(Score("mine", True, "wiring", "", crashing))
    with pytest.raises(InputError, match=re.escape(f"Expected mine of {POOLS}, got ZeroDivisionError: nothing to")):
        list(score_cells([RICH, POOLS], ["mine"], setting))
    other = Score("other", True, "wiring", "", lambda cells, setting: iter(()))
    register(other)
    with pytest.raises(InputError, match="whose name no other measure has, got <lambda>"):
        register(Score("third", True, "wiring", "", lambda cells, setting: iter(())))


def test_a_degenerate_cell_never_ranks_above_a_sound_one():
    disconnected = next(cell for cell in cells() if cell.status == "disconnected")
    assert POOLS.status == "unweighted"
    some = [disconnected, RICH, POOLS, RICH, RICH, RICH]
    for name, top, best in (("naswot", 1e9, 3), ("ntk_condition", -5.0, 1)):
        found = goodness(get_score(name), [top, 1.0, top, 3.0, np.inf, np.nan], some)
        assert found.argmax() == best
        assert np.isneginf(found[[0, 2, 4, 5]]).all()
        assert np.isfinite(found[[1, 3]]).all()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("synflow", 1e-10),
        ("grad_norm", 1e-4),
        ("jacob_cov", 1e-3),
        ("ntk_condition", 1e-2),
    ],
)
def test_gradients_of_several_cells_at_once_are_those_of_one_by_one(setting, gradient_scores, name, tolerance):
    found, reasons = values_of(replace(setting, cells_at_once=2), name)
    assert reasons[2] == gradient_scores[1][2] == {}
    for row in range(3):
        assert found[row][name] == pytest.approx(gradient_scores[0][row][name], rel=tolerance, nan_ok=True), row


@pytest.mark.slow
def test_leaving_synflow_leaves_no_float64_behind(setting, monkeypatch):
    monkeypatch.setattr("nngp_dag.nas.scores.gradients._flow", lambda graph, shared, of_cell: jnp.float64(1.0))
    running = synflow([RICH, POOLS], setting)
    assert next(running) == {"synflow": 0.0}
    assert not jax.config.read("jax_enable_x64")


def test_a_cell_is_one_row_as_soon_as_its_scores_are_known(setting, monkeypatch):
    begun = []

    def first(cells, setting):
        for cell in cells:
            begun.append(cell)
            yield {"a": float(cell.index)}

    def second(cells, setting):
        yield from ({"b": 2.0, "c": "no path" if cell == NOTHING else 1.0} for cell in cells)

    monkeypatch.setattr("nngp_dag.nas.scores.registry._registered", {})
    for name, measure in (("a", first), ("b", second), ("c", second)):
        register(Score(name, True, "forward", "", measure))
    running = score_cells([NOTHING, RICH], ["c", "a", "b"], setting)
    row = next(running)
    # The kernels are computed once to compile, and once for the row.
    assert begun == [NOTHING] * 2
    assert row.cell == NOTHING
    assert list(row.values) == ["c", "a", "b"]
    assert np.isnan(row.values["c"])
    assert list(row.reasons) == ["c"]
    [other] = running
    assert dict(other.values) == {"c": 1.0, "a": RICH.index, "b": 2.0}
    assert not other.reasons


def test_kernels_are_timed_once_compiled_and_shared(setting, monkeypatch):
    """The first pass, which compiles, shares neither cells nor results with the timed pass."""
    passes = []

    def slow_at_first(cells, setting):
        passes.append((list(map(id, cells)), setting.memo))
        time.sleep(0.5 if len(passes) == 1 else 0.02)
        yield from ({"mine": 1.0} for _ in cells)

    monkeypatch.setattr("nngp_dag.nas.scores.registry._registered", {})
    register(Score("mine", True, "kernel", "", slow_at_first))
    found = list(score_cells([RICH, POOLS], ["mine"], setting, timed=True))
    assert [scored.seconds for scored in found] == [pytest.approx(0.01, rel=0.9)] * 2
    assert len(passes) == 2
    assert not set(passes[0][0]) & set(passes[1][0])
    assert passes[0][1] is not setting.memo
    assert passes[1][1] is setting.memo


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 6, 8, 3), np.float32)}, "`images` to be finite, of shape"),
        ({"images": np.full((2, 8, 8, 3), np.nan, np.float32)}, "`images` to be finite"),
        ({"labels": np.array([0, 10])}, "`labels` to be 2 numbers in 0 to 9"),
        ({"labels": np.array([0])}, "`labels` to be 2 numbers"),
        ({"ntk_images": 1}, "`ntk_images` to be a whole number, at least 2, got 1"),
        ({"images": np.ones((1, 8, 8, 3), np.float32)}, "`images` to hold at least 2"),
        ({"channels": 0}, "`channels` to be a whole number, at least 1, got 0"),
        ({"cells_at_once": 0}, "`cells_at_once` to be at least 1, got 0"),
        ({"seed": -1}, "`seed` to be a whole number, at least 0, got -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message, unchecked):
    with pytest.raises(InputError, match=message):
        Setting(**({"images": np.ones((2, 8, 8, 3), np.float32)} | change))


def test_a_gpu_computes_several_cells_at_once(setting, monkeypatch):
    assert setting.at_once == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert setting.at_once == 16
    assert replace(setting, cells_at_once=2).at_once == 2


def test_a_score_that_needs_labels_asks_for_them(setting):
    with pytest.raises(InputError, match=re.escape("Expected `labels` in the setting for grad_norm, got None")):
        list(score_cells([RICH], ["grad_norm"], Setting(setting.images)))


@pytest.mark.slow
def test_scores_of_installed_packages_join(tmp_path, monkeypatch):
    module = """
from nngp_dag.nas import Score, register
def of_plugin(cells, setting):
    for cell in cells:
        yield {"of_plugin": 1.0}
register(Score("of_plugin", True, "wiring", "nobody", of_plugin))
"""
    (tmp_path / "my_scores.py").write_text(module)
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1.0\n")
    entries = "[nngp_dag.scores]\nbroken = not_there\nmine = my_scores\n"
    (tmp_path / "mine-1.0.dist-info" / "entry_points.txt").write_text(entries)
    done = subprocess.run(
        [sys.executable, "-m", "nngp_dag", "list", "scores"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "of_plugin" in done.stdout
    assert "Expected the scores of entry point 'broken' to load, got" in done.stderr
