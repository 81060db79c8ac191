"""Sums of the streamed pass: equal to the products of the whole matrix, and accurate where its mean is large."""

import jax
import numpy as np
import pytest
import scipy.linalg

import nngp_dag as nd
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team, padded
from nngp_dag.large.sums import Sums, compiled, directions, products, zeros

_NET = nd.Network("2_12")


def _summed(x, y, marks, dtype, v, block):
    team, kernel = Team(), BlockKernel(_NET, "ntk", x.shape[1:], np.dtype(dtype))
    with precision_of(np.dtype(np.float64)):
        steps = compiled(team, kernel.entries, kernel.dtype, len(marks), v.shape[1])
        total, own = steps.start(zeros(len(marks), v.shape[1], y.shape[1]))
        for i in range(0, len(x), block):
            part, mask = x[i : i + block], np.zeros(block)
            mask[: len(part)] = 1
            given = padded(part.astype(dtype), block), padded(y[i : i + block], block), mask
            own = steps.add(own, kernel.weights, *map(team.dealt, given), marks.astype(dtype), v.astype(dtype))
        total, _ = steps.flush(total, own)
        return Sums(*map(np.asarray, jax.tree.leaves(total)))


def test_sums_are_the_products_of_the_whole_matrix():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(130, 4)), random.normal(size=(130, 3))
    # More landmarks than a panel of columns has.
    marks = random.normal(size=(600, 4))
    c = np.asarray(nd.kernel(_NET, x, marks).ntk)
    v = np.linalg.qr(random.normal(size=(600, 5)))[0]
    sums = _summed(x, y, marks, "float64", v, 50)
    whole, cross = products(sums, v)
    np.testing.assert_allclose(whole, c.T @ c, rtol=1e-11)
    np.testing.assert_allclose(cross, c.T @ y, atol=1e-10)
    np.testing.assert_allclose(sums.yy, (y**2).sum(axis=0))
    assert sums.rows == 130


@pytest.mark.slow
def test_small_directions_survive_a_large_mean():
    # Inputs with a common part, as images have: nearly all of C^T C is one direction.
    random = np.random.default_rng(0)
    x, marks = (1 + 0.3 * random.normal(size=(n, 20)) for n in (2000, 100))
    x, marks = x.astype(np.float32), marks.astype(np.float32)
    inside = np.asarray(nd.kernel(_NET, marks, dtype="float64").ntk)
    c = np.asarray(nd.kernel(_NET, x, marks, dtype="float64").ntk)
    lower = np.linalg.cholesky(inside)

    def size(wrong):
        """Returns the error in the system that is solved, whose other part is the ridge."""
        whitened = scipy.linalg.solve_triangular(lower, wrong, lower=True)
        return np.linalg.norm(scipy.linalg.solve_triangular(lower, whitened.T, lower=True), 2)

    def error(v):
        found, _ = products(_summed(x, np.zeros((2000, 1)), marks, "float32", v, 250), v)
        return size(found - c.T @ c)

    v = directions(inside, np.dtype(np.float32)).astype(np.float32).astype(np.float64)
    plain, better = error(np.zeros((100, 0))), error(v)
    assert better < plain / 5
    # The sums add no more than the rounding of the entries themselves.
    rounded = np.asarray(nd.kernel(_NET, x, marks).ntk, np.float64)
    assert better < 3 * size(rounded.T @ rounded - c.T @ c)


def test_directions_span_the_largest_ones():
    random = np.random.default_rng(0)
    factor = random.normal(size=(200, 300)) * np.geomspace(1, 1e-3, 300)
    matrix = factor @ factor.T
    v = directions(matrix, np.dtype(np.float32))
    assert v.shape == (200, 64)
    np.testing.assert_allclose(v.T @ v, np.eye(64), atol=1e-12)
    values = np.linalg.eigvalsh(matrix)[::-1]
    left = matrix - v @ (v.T @ matrix)
    # Two steps of subspace iteration come close to the best 64 directions.
    assert values[64] < np.linalg.norm(left, 2) < 2 * values[64] < values[0] / 10
    assert directions(matrix, np.dtype(np.float64)).shape == (200, 0)
