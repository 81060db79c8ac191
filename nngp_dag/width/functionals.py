"""Functionals of a kernel by name: numbers that an NNGP determines, as functions that JAX differentiates."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError, did_you_mean, shown
from nngp_dag.graph.operations import as_number
from nngp_dag.kernels.inputs import host_array

Functional = Callable[[jax.Array], jax.Array]
"""A function from a symmetric kernel, (N, N), to a number."""

FUNCTIONALS = ("entry", "trace", "log_det", "data_fit", "prediction", "alignment", "lambda_min")
"""The names of functionals that `nngp_dag.width_spread` knows."""
_WITH_TARGETS = ("data_fit", "prediction", "alignment")
_WITH_NOISE = ("log_det", "data_fit", "prediction")


def functional_of(
    functional: str | Functional,
    rows: int,
    *,
    index: Sequence[int] | None = None,
    y: ArrayLike | None = None,
    noise: float = 0.0,
) -> Functional:
    """Returns a functional as a function of the kernel; see `nngp_dag.width_spread` for the names.

    Args:
      functional: One of `FUNCTIONALS`, or a function of a symmetric kernel, (N, N), that JAX can differentiate.
      rows: Number N of inputs.
      index: The row and the column of "entry"; by default (0, 1).
      y: Targets of "data_fit" and "alignment", (N,), or of "prediction", (N - 1,).
      noise: The noise variance that "log_det", "data_fit" and "prediction" add to the diagonal.

    Returns:
      A function that reads only the symmetric part of its argument.

    Raises:
      InputError: The name is unknown, an argument is missing, has no meaning for it, or does not fit the kernel.
    """
    if (variance := as_number("noise", noise)) < 0:
        raise InputError(f"Expected `noise` to be a variance, at least 0, got {shown(noise)}; leave it out for none")
    if not isinstance(functional, str):
        if not callable(functional):
            raise InputError(
                f"Expected `functional` to be a name or a function of the kernel, got {shown(functional)}; known names "
                f"are {', '.join(FUNCTIONALS)}"
            )
        _check_unused("a function of your own", index=index, y=y, noise=variance or None)
        return _checked(functional, rows)
    if functional not in FUNCTIONALS:
        raise InputError(
            f"Expected `functional` to be one of {', '.join(FUNCTIONALS)}, or a function of the kernel, got "
            f"{shown(functional)}{did_you_mean(functional, FUNCTIONALS)}"
        )
    if functional not in _WITH_TARGETS:
        _check_unused(repr(functional), y=y)
    if functional not in _WITH_NOISE:
        _check_unused(repr(functional), noise=variance or None)
    if functional != "entry":
        _check_unused(repr(functional), index=index)
    targets = _targets(functional, y, rows) if functional in _WITH_TARGETS else np.zeros(0)
    i, j = _index(index, rows) if functional == "entry" else (0, 0)

    def of_symmetric(k: jax.Array) -> jax.Array:
        noisy = k + float(variance) * jnp.eye(rows, dtype=k.dtype)
        goal = jnp.asarray(targets, k.dtype)
        match functional:
            case "entry":
                return k[i, j]
            case "trace":
                return jnp.trace(k)
            case "log_det":
                return 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(noisy))).sum()
            case "data_fit":
                return goal @ _solve(noisy, goal)
            case "prediction":
                return noisy[-1, :-1] @ _solve(noisy[:-1, :-1], goal)
            case "alignment":
                return goal @ k @ goal / (jnp.sqrt((k**2).sum()) * (goal @ goal))
        return jnp.linalg.eigvalsh(k)[0]

    return _symmetric(of_symmetric)


def _solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), vector)


def _symmetric(functional: Functional) -> Functional:
    """Returns a function of the symmetric part, whose derivative is symmetric, too."""
    return lambda k: functional((k + k.T) / 2)


def _checked(functional: Functional, rows: int) -> Functional:
    """Returns a caller's function, after a check that JAX can trace it and that it returns one real number."""
    try:
        found = jax.eval_shape(functional, jax.ShapeDtypeStruct((rows, rows), jnp.result_type(float)))
    except Exception as error:  # whatever the caller's function does
        raise InputError(
            "Expected `functional` to be a function of an (N, N) kernel that JAX can trace, got "
            f"{type(error).__name__}: {shown(str(error))}; write it with `jax.numpy`"
        ) from error
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(f"Expected `functional` to return one real number, got {shown(found)}")
    return _symmetric(functional)


def _check_unused(what: str, **given: Any) -> None:
    if extra := [name for name, value in given.items() if value is not None]:
        raise InputError(f"Expected no `{extra[0]}` for {what}, got {shown(given[extra[0]])}; leave it out")


def _targets(functional: str, y: ArrayLike | None, rows: int) -> np.ndarray:
    count = rows - (functional == "prediction")
    if y is None:
        raise InputError(f"Expected `y`, {count} targets, for the functional '{functional}', got None; pass them")
    targets = host_array("y", y).astype(np.float64)
    if count < 1:
        raise InputError(f"Expected at least 2 inputs for 'prediction', got {rows}; the last one is predicted")
    if targets.shape != (count,):
        last = ": the last input is the one that is predicted" if functional == "prediction" else ""
        raise InputError(f"Expected `y` to have shape ({count},), got {targets.shape}{last}; pass {count} numbers")
    if not np.isfinite(targets).all() or not targets.any():
        raise InputError("Expected `y` to be finite and not all 0, got other targets; drop samples without one")
    return targets


def _index(index: Sequence[int] | None, rows: int) -> tuple[int, int]:
    given = (0, 1) if index is None else index
    pair = list(given) if isinstance(given, (tuple, list)) or getattr(given, "ndim", 0) == 1 else []
    if len(pair) != 2 or not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in pair):
        raise InputError(f"Expected `index` to be a row and a column, got {shown(index)}; (0, 1) is the default")
    i, j = map(int, pair)
    if not (-rows <= i < rows and -rows <= j < rows):
        hint = "" if index is not None else ", the default"
        raise InputError(
            f"Expected `index` inside a kernel of {rows} x {rows}, got {shown(given)}{hint}; pass row and column, from "
            f"0 to {rows - 1}"
        )
    return i, j
