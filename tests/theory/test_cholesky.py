"""Cholesky factors and symmetric products in blocks, for matrices that OpenBLAS cannot be trusted with."""

import subprocess
import sys

import numpy as np
import pytest

from nngp_dag.theory._cholesky import cholesky, inverse_diagonal, outer

pytestmark = pytest.mark.unit


def _matrix(n, order="F"):
    half = np.random.default_rng(0).normal(size=(n, n + 5))
    return np.asfortranarray(half @ half.T) if order == "F" else half @ half.T


@pytest.mark.parametrize("block", [7, 10, 40, 64])
@pytest.mark.parametrize("rows", [10, 100])
@pytest.mark.parametrize("order", ["F", "C"])
def test_the_factor_is_that_of_numpy(block, rows, order):
    matrix = _matrix(40, order)
    wanted, inverse = np.linalg.cholesky(matrix), np.linalg.inv(matrix)
    for clean in (True, False):
        found = cholesky(matrix.copy(order="K"), clean, rows=rows, block=block)
        np.testing.assert_allclose(found if clean else np.tril(found), wanted, atol=1e-12)
    np.testing.assert_allclose(inverse_diagonal(found, rows=rows, block=block), np.diag(inverse), rtol=1e-10)


def test_the_factor_takes_the_place_of_the_matrix():
    matrix = _matrix(40)
    assert np.shares_memory(cholesky(matrix, rows=10, block=7), matrix)


@pytest.mark.parametrize("rows", [10, 100])
def test_matrices_that_are_not_positive_definite_have_none(rows):
    matrix = _matrix(40)
    matrix[30, 30] = -1
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(matrix, rows=rows, block=7)


@pytest.mark.parametrize("rows", [7, 10, 100])
@pytest.mark.parametrize("order", ["F", "C"])
def test_symmetric_products_are_those_of_numpy(rows, order):
    a = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32 if rows == 7 else np.float64, order=order)
    found = outer(a, rows=rows)
    np.testing.assert_allclose(found, np.einsum("ik,jk->ij", a, a), rtol=1e-5, atol=1e-6 if rows == 7 else 1e-14)
    assert found.dtype == a.dtype


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "n = 16384; a = np.zeros((n, n), order='F'); a[np.diag_indices(n)] = 2; a[1:, 0] = a[0, 1:] = 1e-3; "
            "c = cholesky(a); print(c[-1, -1])",
            np.sqrt(2 - 0.5e-6),
        ),
        ("a = np.zeros((16384, 2048)); a[-1] = 1; c = outer(a); print(c[-1, -1])", 2048),
    ],
    ids=["factor", "product"],
)
def test_large_matrices_by_several_threads(code, expected):
    # A process of its own, which OpenBLAS would end.
    code = f"import numpy as np; from nngp_dag.theory._cholesky import cholesky, outer\n{code}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1200)
    assert float(ran.stdout) == pytest.approx(expected, abs=1e-6)
