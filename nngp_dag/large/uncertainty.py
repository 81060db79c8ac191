"""Covariances of the outputs on test inputs, by further right-hand sides of the methods of `solve`.

With M = K + ridge I, B = K_xt, a solution A of M A = B and its residual R = B - M A, the NNGP's posterior needs

    B^T M^-1 B = A^T B + R^T A + R^T M^-1 R.

The last term is left out. It is of second order in the residual, and at most |R|^2 / ridge for every test input. So a
residual of 1e-6 leaves more than six digits. Landmarks have the covariance of the "deterministic training conditional":
training inputs have the landmarks' kernel as their prior, and test inputs their own.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, Equation (2.24) and Section 8.3.4 (there:
projected process approximation).
"""

import hashlib
from typing import Any

import numpy as np

from nngp_dag.errors import InputError, NumericalWarning, warn
from nngp_dag.kernels._kernel import kernel as exact_kernel
from nngp_dag.kernels.inputs import check_inputs, precision_of
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.ring import Ring
from nngp_dag.large.rows import Rows
from nngp_dag.theory import Posterior

# Training inputs whose kernels with the test inputs are computed at once.
_ROWS = 8192


def checked_test(x_test: Any, rows: Rows) -> np.ndarray | None:
    """Returns the test inputs in the precision of kernels, or None where none are given.

    Raises:
      InputError: They do not fit the rows.
    """
    if x_test is None:
        return None
    test = np.asarray(check_inputs("x_test", x_test, rows.network, str(rows.dtype))[0], rows.dtype)
    if test.shape[1:] != rows.shape:
        raise InputError(
            f"Expected `x_test` to have rows of shape {rows.shape}, got {test.shape[1:]}; pass inputs like those of `x`"
        )
    return test


def check_has_covariance(method: str, kind: str) -> None:
    """Raises an `InputError` where a method has no covariance for a kind of kernel."""
    if method == "landmarks" and kind == "ntk":
        raise InputError(
            "Expected kind='nngp' for covariances by landmarks, got 'ntk', for which the NNGP of all rows is needed; "
            "pass `method='iterative'`, or leave `x_test` out"
        )


def digest_of(test: np.ndarray) -> str:
    """Returns a text by which a resumed call recognizes its test inputs."""
    return hashlib.sha256(
        repr((test.shape, str(test.dtype))).encode() + np.ascontiguousarray(test).tobytes()
    ).hexdigest()


def between(kernel: BlockKernel, x: np.ndarray, test: np.ndarray, get: str, dtype: str | None = None) -> np.ndarray:
    """Returns NNGP or NTK of training and test inputs in float64, (N, Nt)."""
    parts = []
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        found: Any = exact_kernel(kernel.network, rows, test, get=get, dtype=dtype or str(kernel.dtype))
        parts.append(np.asarray(getattr(found, get), np.float64))
    return np.concatenate(parts)


def exact_posterior(
    team: Team, kernel: BlockKernel, x: np.ndarray, test: np.ndarray, solved: np.ndarray, right: np.ndarray, left: Any
) -> Posterior:
    """Returns the posterior of an exact method.

    Args:
      team: The devices. They compute the NNGP of all rows for the kind "ntk".
      kernel: The kernel.
      x: Training inputs, (N, ...).
      test: Test inputs, (Nt, ...).
      solved: Solutions for the C targets, and for the kernels of the test inputs, (N, C + Nt).
      right: The right-hand sides, (N, C + Nt).
      left: Their residuals, (N, C + Nt).
    """
    count = solved.shape[1] - len(test)
    a, b, r = (columns[:, count:] for columns in (solved, right, left))
    prior = _prior(kernel, test)
    if kernel.kind == "nngp":
        half = -0.5 * (a.T @ b + r.T @ a)
    else:
        shared = between(kernel, x, test, "nngp")
        with precision_of(np.dtype(np.float64)):
            nngp = BlockKernel(kernel.network, "nngp", kernel.shape, kernel.dtype)
            ring = Ring(team, nngp, x, 0.0)
            half = a.T @ (0.5 * ring.fetched(ring.product(ring.dealt(a))) - shared)
    covariance = prior + (half + half.T)
    # Every entry of a kernel is off by up to a rounding of its size.
    rounding = np.finfo(kernel.dtype).eps * np.diag(prior).max() * (1 + np.abs(a).sum(axis=0)) ** 2
    if (below := np.diag(covariance) < rounding).any():
        warn(
            f"{below.sum():,} of {len(test):,} variances are so small that the rounding of {kernel.dtype} kernels may "
            f"decide them, which is up to {rounding[below].max():.1e}; pass inputs of float64, or raise `ridge`",
            NumericalWarning,
        )
    return Posterior(b.T @ solved[:, :count], covariance, kind=kernel.kind)


def covariance_by_landmarks(
    kernel: BlockKernel, test: np.ndarray, outside: np.ndarray, inner: np.ndarray
) -> np.ndarray:
    """Returns the covariance of regression on landmarks for the NNGP, (Nt, Nt).

    Args:
      kernel: The kernel.
      test: Test inputs, (Nt, ...).
      outside: O = L^-1 K_mt for the factor L of the landmarks' kernel, (m, Nt).
      inner: ridge (W + ridge I)^-1 O, (m, Nt), with the matrix W of the landmarks' system.
    """
    half = 0.5 * outside.T @ (inner - outside)
    return _prior(kernel, test) + (half + half.T)


def _prior(kernel: BlockKernel, test: np.ndarray) -> np.ndarray:
    """Returns the NNGP of test inputs, (Nt, Nt)."""
    found: Any = exact_kernel(kernel.network, test, get="nngp", dtype="float64")
    return np.asarray(found.nngp, np.float64)
