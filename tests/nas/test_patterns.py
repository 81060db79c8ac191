"""NASWOT and the empirical NTK: the published numbers, and a count by hand."""

import csv
import importlib
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from compiled import programs
from flax import nnx

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.nas import Cell, MacroNet, Setting, empirical_ntk, log_determinant, pattern_kernel, score_cells
from nngp_dag.nas.scores.patterns import _counted, gates
from nngp_dag.nas.spaces.cells import CONVOLUTIONS

ONE_THREAD = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) == 1

SEVERAL = [
    Cell.parse("|nor_conv_1x1~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|"),
    Cell.parse("|nor_conv_1x1~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"),
    Cell.from_index(15_624),
    Cell.from_index(0),
    Cell(("nor_conv_3x3",) * 6),
]


@pytest.mark.slow
def test_the_pattern_kernel_is_the_published_one_exactly(published):
    kernel = pattern_kernel(published.net, published.x, published.cell, counting="reference")
    # On one thread sums are in another order. This moves the input of one ReLU of one image, which counts twice, to the
    # other side of 0.
    off = np.abs(kernel - published.values["naswot_K"])
    image = int(off.sum(axis=1).argmax())
    assert off.max() in ((0, 2) if ONE_THREAD else (0,))
    assert not np.delete(np.delete(off, image, axis=0), image, axis=1).any()
    expected = float(published.values["naswot_hook_logdet"])
    assert log_determinant(published.values["naswot_K"]) == pytest.approx(expected, abs=1e-6)
    assert log_determinant(kernel) == pytest.approx(expected, abs=1e-3 if off.any() else 1e-6)
    # With correct counting every ReLU - convolution - batch norm counts once instead of twice. No edge is dead here.
    correct = pattern_kernel(published.net, published.x, published.cell)
    last = 2 * correct - kernel
    assert (last.diagonal() == 64 * 8 * 8).all()
    assert (np.linalg.eigvalsh(last) > -1e-6).all()


@pytest.mark.nightly
def test_the_ntk_is_the_published_one(published):
    ntk = empirical_ntk(published.net, published.x, published.cell)
    expected = published.values["ntk"]
    # Where this ReLU changes its sign, entries change by 3e-4 of the largest.
    np.testing.assert_allclose(ntk, expected, atol=(1e-3 if ONE_THREAD else 1e-4) * abs(expected).max())
    eigenvalues = np.linalg.eigvalsh(ntk.astype(np.float64))
    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(float(published.values["ntk_cond"]), rel=0.01)


def test_units_are_those_of_the_published_cells(golden_dir):
    rows = list(csv.DictReader((golden_dir / "naswot_scores.csv").read_text().splitlines()))
    assert len(rows) == 60
    side, size = 32 * 32 * 16, 5 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64)
    blocks = side + side // 2 + side // 2 + side // 4
    for row in rows:
        _, weights = gates(Cell.parse(row["arch_str"]), "reference")
        counted = int(weights[:3].sum()) * size + weights[3] * blocks + weights[4] * side // 4
        assert counted == float(row["K_diag_units"])


def test_only_what_is_read_or_counted_is_computed():
    # The path 0 -> 1 -> 2 is dead. The reference counts its ReLUs, so that node 1 is needed, but not node 2.
    dead = Cell.parse("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|nor_conv_1x1~0|none~1|none~2|")
    operations, weights = gates(dead, "correct")
    assert list(operations) == [0, 0, 0, 2, 0, 0]
    assert list(weights) == [1, 0, 0, 1, 1]
    operations, weights = gates(dead, "reference")
    assert list(operations) == [3, 0, 0, 2, 0, 0]
    assert list(weights) == [4, 2, 0, 2, 1]


@pytest.mark.slow
def test_patterns_are_counted_as_defined(monkeypatch):
    """Compares with a plain network of NAS-Bench-201, whose ReLUs are compared one by one."""
    benchmark = importlib.import_module("naswot")
    net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 3)), jnp.float32)
    for cell in SEVERAL:
        expected = benchmark.by_definition(net, x, cell)
        # Two programs may round the input of a ReLU to different sides of 0.
        np.testing.assert_allclose(pattern_kernel(net, x, cell), expected, atol=1)
        np.testing.assert_array_equal(pattern_kernel(net, x, cell).diagonal(), expected.diagonal())
        benchmark.check(net, x, cell)
    monkeypatch.setattr(benchmark, "pattern_kernel", lambda *_: pattern_kernel(net, x, Cell.from_index(0)))
    with pytest.raises(SystemExit, match=r"the kernel of patterns is off by .*; nothing is timed"):
        benchmark.check(net, x, SEVERAL[0])


@pytest.mark.slow
def test_several_cells_at_once_score_as_one_by_one():
    images = np.random.default_rng(0).normal(size=(7, 8, 8, 3)).astype(np.float32)
    one, three = (Setting(images, channels=4, cells=1, cells_at_once=at_once) for at_once in (None, 3))
    assert (one.at_once, three.at_once) == (1, 3)
    before = programs(_counted)
    found = [list(score_cells(SEVERAL, ["naswot"], setting)) for setting in (one, three)]
    # There is one program for single cells, and one for three at once, whose last call is padded.
    assert programs(_counted) == before + 2
    assert len(SEVERAL) % 3
    for alone, together in zip(*found, strict=True):
        assert alone.cell == together.cell
        assert together.values["naswot"] == pytest.approx(alone.values["naswot"], abs=1e-3, nan_ok=True)
        assert alone.reasons == together.reasons
    # A block is timed as a whole.
    assert len({scored.seconds for scored in found[1]}) == 2


def test_a_kernel_that_tells_no_images_apart_is_refused():
    with pytest.raises(InputError, match="patterns that tell 4 images apart, got a kernel of rank 1"):
        log_determinant(np.full((4, 4), 7))
    net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="`counting` to be one of"):
        pattern_kernel(net, np.ones((2, 8, 8, 3), np.float32), Cell.from_index(0), counting="twice")


@pytest.mark.nightly
def test_scores_rank_cells_as_the_published_ones_do(golden_dir, tfds_dir):
    from scipy.stats import spearmanr

    rows = [
        row
        for row in csv.DictReader((golden_dir / "naswot_scores.csv").read_text().splitlines())
        if np.isfinite(float(row["score"]))
    ]
    images = nd.data.normalize(nd.data.load_dataset("cifar10", data_dir=tfds_dir, subset=128))
    some = [Cell.parse(row["arch_str"]) for row in rows]
    published = np.array([float(row["score"]) for row in rows])
    # The released counting includes dead ReLUs, on which no output depends. Correct counting leaves them out.
    dead = np.array([sum(name in CONVOLUTIONS for name in c.operations) for c in some])
    dead -= [sum(name in CONVOLUTIONS for name in c.live.operations) for c in some]
    for name, alike, least in (("naswot_reference", np.ones(len(some), bool), 0.98), ("naswot", dead == 0, 0.95)):
        ours = np.array([scored.values[name] for scored in score_cells(some, [name], Setting(images))])
        assert np.isfinite(ours[alike]).all()
        assert alike.sum() >= 19
        correlation: Any = spearmanr(ours[alike], published[alike])
        assert correlation.statistic > least
    assert np.isnan(ours[[cell.status == "disconnected" for cell in some]]).all()
