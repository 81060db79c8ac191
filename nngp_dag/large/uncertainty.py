"""Covariances of the outputs on test inputs, by further right-hand sides of the methods of `solve`.

With M = K + ridge I, B = K_xt, a solution A of M A = B and its residual R = B - M A, the NNGP's posterior needs

    B^T M^-1 B = A^T B + R^T A + R^T M^-1 R.

The last term is left out. It is of second order in the residual, and at most |R|^2 / ridge for every test input.

A standard deviation of trained networks is the norm of f_t - a^T f, for the prior f of covariance K and the weights a.
It is off by the norm of D^T f at most, with the error D = M^-1 R of the weights, where M holds the NTK. Training the
readout alone would give the NTK K. So the NTK T is at least K, and D^T K D <= R^T M^-1 T M^-1 R <= |R|^2 / (4 ridge),
since s / (s + ridge)^2 <= 1 / (4 ridge) for eigenvalues s. In the standard parameterization, or without readout, the
bound is tr K |R|^2 / ridge^2.

Rounding of the entries adds to R, and to the terms of the variance itself. Its size is an estimate, for errors of
entries that are independent.

Landmarks have the covariance of the "deterministic training conditional": training inputs have the landmarks' kernel as
their prior, and test inputs their own.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, Equation (2.24) and Section 8.3.4 (there:
projected process approximation).
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import InputError, NumericalWarning, warn
from nngp_dag.kernels._kernel import kernel as exact_kernel
from nngp_dag.kernels.inputs import check_inputs, host_array, precision_of
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.ring import Ring
from nngp_dag.large.rows import Rows
from nngp_dag.theory import Posterior

# Training inputs whose kernels with the test inputs are computed at once, and whose diagonal entries are.
_ROWS, _DIAGONAL = 8192, 1 << 14
# Rounding of an entry, in units of the precision, as for the resolution floor of eigenvalues.
_ROUNDINGS = 16
# Errors of variances are reported from this share on.
_SHARE = 0.1


def checked_test(x_test: Any, rows: Rows) -> np.ndarray | None:
    """Returns the test inputs in the precision of kernels, or None where none are given.

    Raises:
      InputError: They do not fit the rows.
    """
    if x_test is None:
        return None
    test = np.asarray(
        check_inputs("x_test", host_array("x_test", x_test), rows.network, str(rows.dtype))[0], rows.dtype
    )
    if test.shape[1:] != rows.shape:
        raise InputError(
            f"Expected `x_test` to have rows of shape {rows.shape}, got {test.shape[1:]}; pass inputs like those of `x`"
        )
    return test


def digest_of(test: np.ndarray) -> str:
    """Returns a text by which a resumed call recognizes its test inputs."""
    found = hashlib.sha256(repr((test.shape, str(test.dtype))).encode())
    found.update(np.ascontiguousarray(test).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def between(kernel: BlockKernel, x: np.ndarray, test: np.ndarray, get: str, dtype: str | None = None) -> np.ndarray:
    """Returns NNGP or NTK of training and test inputs in float64, (N, Nt)."""
    parts = []
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        found: Any = exact_kernel(kernel.network, rows, test, get=get, dtype=dtype or str(kernel.dtype))
        parts.append(np.asarray(getattr(found, get), np.float64))
    return np.concatenate(parts)


class Uncertain(NamedTuple):
    """A posterior, how far its variances may be off, (Nt,), and the number of kernel entries that it took."""

    posterior: Posterior | None = None
    errors: np.ndarray | None = None
    entries: int = 0


def exact_posterior(
    team: Team,
    kernel: BlockKernel,
    x: np.ndarray,
    test: np.ndarray,
    ridge: float,
    solved: np.ndarray,
    right: np.ndarray,
    left: np.ndarray,
) -> Uncertain:
    """Returns the posterior of an exact method.

    Args:
      team: The devices. They compute the NNGP of all rows for the kind "ntk".
      kernel: The kernel.
      x: Training inputs, (N, ...).
      test: Test inputs, (Nt, ...).
      ridge: The ridge.
      solved: Solutions for the C targets, and for the kernels of the test inputs, (N, C + Nt).
      right: The right-hand sides, (N, C + Nt).
      left: Their residuals, (N, C + Nt).
    """
    count = solved.shape[1] - len(test)
    a, b, r = (columns[:, count:] for columns in (solved, right, left))
    prior, eps = _prior(kernel, test), _ROUNDINGS * np.finfo(kernel.dtype).eps
    nngp = BlockKernel(kernel.network, "nngp", kernel.shape, kernel.dtype, kernel.memory)
    sizes = np.sqrt(diagonal_of(nngp, x))
    of_kind, of_test = (np.sqrt(diagonal_of(kernel, of)) for of in (x, test))
    errors = eps * (np.sqrt(np.diag(prior)) + np.linalg.norm(sizes[:, None] * a, axis=0)) ** 2
    # Rounding of entries changes what is left like a residual.
    rounding = of_test + np.linalg.norm(of_kind[:, None] * a, axis=0)
    wrong = np.linalg.norm(r, axis=0) + eps * np.linalg.norm(of_kind) * rounding
    entries = float(len(test) * (len(x) + len(test)))
    if kernel.kind == "nngp":
        half = -0.5 * (a.T @ b + r.T @ a)
        errors += wrong**2 / ridge
    else:
        shared = between(kernel, x, test, "nngp")
        with precision_of(np.dtype(np.float64)):
            ring = Ring(team, nngp, x, 0.0)
            applied = ring.fetched(ring.product(ring.dealt(a)))
        half = a.T @ (0.5 * applied - shared)
        entries += ring.entries + shared.size
        below = kernel.network.readout and kernel.network.parameterization == "ntk"
        of_std = wrong / (2 * np.sqrt(ridge)) if below else wrong * np.linalg.norm(sizes) / ridge
        variances = np.maximum(np.diag(prior) + 2 * np.diag(half), 0) + errors
        errors += 2 * np.sqrt(variances) * of_std + of_std**2
    posterior = Posterior(b.T @ solved[:, :count], prior + (half + half.T), kind=kernel.kind)
    return Uncertain(posterior, errors, int(entries))


def diagonal_of(kernel: BlockKernel, x: np.ndarray) -> np.ndarray:
    """Returns the kernel of inputs with themselves in float64, (N,)."""
    diagonal = jax.jit(kernel.entries.diagonal)
    size = min(_DIAGONAL, len(x))
    parts = []
    with precision_of(np.dtype(np.float64)):
        for start in range(0, len(x), size):
            # The last block has the shape of the others; its first rows are counted already.
            first = min(start, len(x) - size)
            found = diagonal(kernel.weights, jnp.asarray(x[first : first + size], kernel.dtype))
            parts.append(np.asarray(found, np.float64)[start - first :])
    return np.concatenate(parts)


def check_variances(found: Uncertain, method: str, dtype: np.dtype) -> None:
    """Warns where the error of a variance may be more than a tenth of it."""
    if found.posterior is None or found.errors is None:
        return
    errors = found.errors
    wrong = errors > _SHARE * np.diag(found.posterior.covariance)
    if not wrong.any():
        return
    size = f"{errors[wrong].max():.1e}"
    if method == "landmarks":
        why, remedies = (
            f"landmarks leave a variance of up to {size} unexplained",
            ["take more of them", "another method"],
        )
    else:
        why, remedies = f"the residual and rounding may change them by up to {size}", ["raise `ridge`"]
        remedies += ["lower `tolerance`"] if method == "iterative" else []
        remedies += ["use inputs of float64"] if dtype == np.float32 else []
    count = f"{wrong.sum():,} of {len(errors):,} variances may be off by more than {_SHARE:.0%}"
    warn(f"{count}: {why}; {' or '.join(remedies)}", NumericalWarning)


def covariance_by_landmarks(
    kernel: BlockKernel, test: np.ndarray, outside: np.ndarray, inner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the covariance of regression on landmarks, (Nt, Nt), and what they leave of each prior variance, (Nt,).

    Args:
      kernel: The kernel.
      test: Test inputs, (Nt, ...).
      outside: O = L^-1 K_mt for the factor L of the landmarks' kernel, (m, Nt).
      inner: ridge (W + ridge I)^-1 O, (m, Nt), with the matrix W of the landmarks' system.
    """
    half, prior = 0.5 * outside.T @ (inner - outside), _prior(kernel, test)
    return prior + (half + half.T), np.maximum(np.diag(prior) - np.sum(outside**2, axis=0), 0)


def _prior(kernel: BlockKernel, test: np.ndarray) -> np.ndarray:
    """Returns the NNGP of test inputs, (Nt, Nt)."""
    found: Any = exact_kernel(kernel.network, test, get="nngp", dtype="float64")
    return np.asarray(found.nngp, np.float64)
