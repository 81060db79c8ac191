"""NASWOT and the empirical NTK: the published numbers, and a count by hand."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.nas import Cell, MacroNet, Setting, empirical_ntk, log_determinant, pattern_kernel, score_cells
from nngp_dag.nas.cells import CONVOLUTIONS
from nngp_dag.nas.patterns import gates


def test_the_pattern_kernel_is_the_published_one_exactly(published):
    kernel = pattern_kernel(published.net, published.x, published.cell, counting="reference")
    np.testing.assert_array_equal(kernel, published.values["naswot_K"])
    assert log_determinant(kernel) == pytest.approx(float(published.values["naswot_hook_logdet"]), abs=1e-6)
    # Correct counting: no dead edge here, so every ReLU - convolution - batch norm once instead of twice, and the last.
    correct = pattern_kernel(published.net, published.x, published.cell)
    last = 2 * correct - kernel
    assert (last.diagonal() == 64 * 8 * 8).all()
    assert (np.linalg.eigvalsh(last) > -1e-6).all()


@pytest.mark.slow
def test_the_ntk_is_the_published_one(published):
    ntk = empirical_ntk(published.net, published.x, published.cell)
    expected = published.values["ntk"]
    np.testing.assert_allclose(ntk, expected, atol=1e-4 * abs(expected).max())
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
    # 0 -> 1 -> 2 is dead: counted by the reference, so that node 1 is needed, but not node 2.
    dead = Cell.parse("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|nor_conv_1x1~0|none~1|none~2|")
    operations, weights = gates(dead, "correct")
    assert list(operations) == [0, 0, 0, 2, 0, 0]
    assert list(weights) == [1, 0, 0, 1, 1]
    operations, weights = gates(dead, "reference")
    assert list(operations) == [3, 0, 0, 2, 0, 0]
    assert list(weights) == [4, 2, 0, 2, 1]


@pytest.mark.slow
def test_patterns_are_counted_as_defined():
    """Against x x' + (1 - x)(1 - x)' over every array that enters a ReLU, observed one by one."""
    net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 3)), jnp.float32)
    cell = Cell.parse("|nor_conv_1x1~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|")
    operations, weights = gates(cell, "correct")

    def compared(value, weight):
        on = (value.reshape(5, -1) > 0).astype(np.float32)
        return weight * (on @ on.T + (1 - on) @ (1 - on).T)

    _, expected = net.observed(x, jnp.array(operations), compared, jnp.array(weights), jnp.zeros((5, 5)))
    np.testing.assert_array_equal(pattern_kernel(net, x, cell), expected)


def test_a_kernel_that_tells_no_images_apart_is_refused():
    with pytest.raises(InputError, match="patterns that tell 4 images apart, got a kernel of rank 1"):
        log_determinant(np.full((4, 4), 7))
    net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="`counting` to be one of"):
        pattern_kernel(net, np.ones((2, 8, 8, 3), np.float32), Cell.from_index(0), counting="twice")


@pytest.mark.slow
def test_scores_rank_cells_as_the_published_ones_do(golden_dir, tfds_dir):
    from scipy.stats import spearmanr

    rows = [
        row
        for row in csv.DictReader((golden_dir / "naswot_scores.csv").read_text().splitlines())
        if np.isfinite(float(row["score"]))
    ]
    images = nd.data.normalise(nd.data.load_dataset("cifar10", data_dir=tfds_dir, subset=128))
    some = [Cell.parse(row["arch_str"]) for row in rows]
    published = np.array([float(row["score"]) for row in rows])
    # Dead ReLUs tell images apart in the released counting even where no output depends on them; ours leaves them out.
    dead = np.array([sum(name in CONVOLUTIONS for name in c.operations) for c in some])
    dead -= [sum(name in CONVOLUTIONS for name in c.live.operations) for c in some]
    for name, alike in (("naswot_reference", np.ones(len(some), bool)), ("naswot", dead == 0)):
        ours = np.array([scored.values[name] for scored in score_cells(some, [name], Setting(images))])
        assert np.isfinite(ours[alike]).all()
        assert alike.sum() >= 19
        assert spearmanr(ours[alike], published[alike])[0] > 0.95
    assert np.isnan(ours[[cell.status == "disconnected" for cell in some]]).all()
