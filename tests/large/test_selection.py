"""Randomly pivoted Cholesky: the residual it states, the distribution of its pivots, and where it ends."""

import itertools

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.selection import _accepted, choose_landmarks

_X = np.random.default_rng(0).normal(size=(150, 5))


def _kernel(dtype="float64", network="2_12", kind="ntk"):
    return BlockKernel(nd.Network(network), kind, (5,), np.dtype(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_the_unexplained_share_is_that_of_the_projection(dtype, tolerance):
    found = choose_landmarks(Team(), _kernel(dtype), _X.astype(dtype), 40, seed=1)
    assert len(found.rows) == len(set(found.rows)) == 40
    np.testing.assert_array_equal(found.x, _X.astype(dtype)[found.rows])
    k = np.asarray(nd.kernel("2_12", _X).ntk)
    part = k[:, found.rows]
    left = k - part @ np.linalg.solve(part[found.rows], part.T)
    assert found.unexplained == pytest.approx(np.trace(left) / np.trace(k), rel=tolerance)
    # Uniform landmarks leave more, and the best possible subspace leaves less.
    values = np.linalg.eigvalsh(k)
    assert values[:-40].sum() / values.sum() < found.unexplained < 3 * values[:-40].sum() / values.sum()


@pytest.mark.slow
def test_more_landmarks_than_a_block_are_chosen():
    x = np.random.default_rng(1).normal(size=(700, 5))
    found = choose_landmarks(Team(), _kernel(), x, 400, seed=1)
    assert len(set(found.rows)) == 400
    k = np.asarray(nd.kernel("2_12", x).ntk)
    part = k[:, found.rows]
    left = k - part @ np.linalg.solve(part[found.rows], part.T)
    assert found.unexplained == pytest.approx(np.trace(left) / np.trace(k), rel=1e-6)


def test_landmarks_are_chosen_until_the_kernel_is_explained():
    # The kernel of a linear network has the rank of its inputs.
    kernel = BlockKernel(nd.Network("1", layer=nd.Dense(activation="identity")), "nngp", (5,), np.dtype(np.float64))
    found = choose_landmarks(Team(), kernel, _X, 40, seed=0)
    assert len(found.rows) == 5
    assert found.unexplained < 1e-13


def test_pivots_have_the_distribution_of_single_draws():
    # Three rows, two pivots: all six ordered pairs, by the definition, and by blocks with rejection.
    root = np.array([[1.0, 0.0, 0.0], [0.8, 0.7, 0.0], [0.3, -0.4, 0.6]])
    k = root @ root.T
    expected = {}
    for first, second in itertools.permutations(range(3), 2):
        left = np.diag(k) - k[:, first] ** 2 / k[first, first]
        expected[first, second] = np.diag(k)[first] / np.trace(k) * left[second] / left.sum()
    assert sum(expected.values()) == pytest.approx(1)
    random, counts, trials = np.random.default_rng(0), dict.fromkeys(expected, 0), 5_000
    share = np.diag(k) / np.trace(k)
    for _ in range(trials):
        # A block so long that it holds two accepted pivots.
        drawn = random.choice(3, 40, p=share)
        taken, _ = _accepted(k[np.ix_(drawn, drawn)], np.diag(k)[drawn], random.random(40), np.full(40, 1e-12), 2)
        counts[tuple(drawn[taken])] += 1
    for pair, share in expected.items():
        assert abs(counts[pair] / trials - share) < 4 * np.sqrt(share * (1 - share) / trials), pair


def test_the_factor_of_accepted_pivots_is_that_of_their_kernel():
    root = np.random.default_rng(0).normal(size=(8, 8))
    k = root @ root.T
    taken, lower = _accepted(k, np.diag(k), np.full(8, 0.01), np.zeros(8), 5)
    np.testing.assert_allclose(lower @ lower.T, k[np.ix_(taken, taken)], rtol=1e-10)
    assert (np.triu(lower, 1) == 0).all()
