"""Cholesky factors and symmetric products on the host, of matrices of any size.

OpenBLAS, which the wheels of NumPy and SciPy bring, ends the process where several threads work on a large symmetric
matrix: version 0.3.30 crashes on two threads in `potrf` of 16,384 rows, and in `syrk`, which NumPy calls for A A^T, of
16,384 rows and 2,048 columns, but in neither of 12,000 rows. Similar reports are OpenBLAS issues 352, 1413 and 2821. So
large matrices are computed in blocks here.
"""

import numpy as np
import scipy.linalg

# Rows up to which LAPACK factorizes at once.
_ROWS = 8192
# Columns of a block of larger matrices.
_BLOCK = 1024


def cholesky(matrix: np.ndarray, clean: bool = False, *, rows: int = _ROWS, block: int = _BLOCK) -> np.ndarray:
    """Returns the lower Cholesky factor of a matrix, in its place if it is float64 in Fortran order.

    Args:
      matrix: A symmetric matrix, (N, N), of which the lower triangle is read. It is overwritten.
      clean: Whether entries above the diagonal are set to 0; without, they are arbitrary.
      rows: Rows up to which LAPACK factorizes at once.
      block: Columns of a block of larger matrices.

    Raises:
      numpy.linalg.LinAlgError: The matrix is not positive definite.
    """
    n = len(matrix)
    if n <= rows and clean:
        return scipy.linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    if n <= rows:
        return scipy.linalg.cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)[0]
    matrix = np.asfortranarray(matrix, np.float64)
    for start in range(0, n, block):
        stop = min(start + block, n)
        column = matrix[start:, start:stop]
        column -= matrix[start:, :start] @ matrix[start:stop, :start].T
        corner = scipy.linalg.cholesky(column[: stop - start], lower=True, check_finite=False)
        below = column[stop - start :]
        below[:] = scipy.linalg.solve_triangular(corner, below.T, lower=True, check_finite=False).T
        column[: stop - start] = corner
        if clean:
            matrix[:start, start:stop] = 0
    return matrix


def outer(a: np.ndarray, *, rows: int = _ROWS) -> np.ndarray:
    """Returns A A^T, (N, N), a block of rows after another.

    Args:
      a: A matrix, (N, K).
      rows: Rows of a block. NumPy calls `syrk` where one block has all of them.
    """
    found = np.empty((len(a), len(a)), a.dtype)
    for start in range(0, len(a), rows):
        np.matmul(a[start : start + rows], a.T, out=found[start : start + rows])
    return found


def inverse_diagonal(factor: np.ndarray, *, rows: int = _ROWS, block: int = _BLOCK) -> np.ndarray:
    """Returns the diagonal of A^-1, (N,), for the lower Cholesky factor L of A, which may be overwritten.

    These are the sums of squares of the columns of L^-1.

    Args:
      factor: The factor, (N, N); entries above the diagonal are not read.
      rows: Rows up to which LAPACK inverts at once.
      block: Columns of a block of larger matrices.
    """
    n = len(factor)
    if n <= rows:
        (potri,) = scipy.linalg.get_lapack_funcs(("potri",), (factor,))
        inverse, _ = potri(factor, lower=1, overwrite_c=1)
        return np.diagonal(inverse).copy()
    found = np.empty(n)
    for start in range(0, n, block):
        stop = min(start + block, n)
        unit = np.eye(n - start, stop - start, order="F")
        solved = scipy.linalg.solve_triangular(
            factor[start:, start:], unit, lower=True, overwrite_b=True, check_finite=False
        )
        found[start:stop] = np.einsum("ij,ij->j", solved, solved)
    return found
