"""Kernel matrices as the estimators use them: computed in few shapes, factorized once, with diagonals of their own."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError, shown
from nngp_dag.graph.operations import check_whole
from nngp_dag.kernels import kernel
from nngp_dag.theory._algebra import Algebra
from nngp_dag.theory._factor import checked_cholesky
from nngp_dag.theory.symmetric import is_number

# Steps between the numbers of rows for which programs are compiled are a quarter of the power of two below, at most
# this number.
_LARGEST_STEP = 512
# Rows of the blocks whose diagonals are kept. Small blocks waste little, and large ones need few calls.
_DIAGONAL_ROWS = 64


def few_sizes(rows: int) -> int:
    """Returns the number of rows for which a program is compiled, at least `rows`.

    Folds of a cross-validation, and blocks of test inputs, differ by some rows. Each number of rows would compile a
    program of its own, which takes far longer than to run it with some more rows.

    Examples:
      >>> [few_sizes(rows) for rows in (1, 5, 88, 89, 353, 354, 5000)]
      [1, 5, 96, 96, 384, 384, 5120]
    """
    step = min(max(2 ** (rows.bit_length() - 3), 1), _LARGEST_STEP)
    return -(-rows // step) * step


def padded(x: np.ndarray) -> np.ndarray:
    """Returns the inputs with copies of the first one behind them, so that few sizes occur."""
    missing = few_sizes(len(x)) - len(x)
    return x if missing == 0 else np.concatenate([x, np.broadcast_to(x[:1], (missing, *x.shape[1:]))])


def matrix(network: Network, x1: np.ndarray, x2: np.ndarray | None, kind: str, dtype: str | None) -> np.ndarray:
    """Returns the NNGP or NTK of inputs, (N1, N2); without `x2`, of `x1` among themselves."""
    others = None if x2 is None else padded(x2)
    values = np.asarray(getattr(kernel(network, padded(x1), others, get=kind, dtype=dtype), kind))
    return values[: len(x1), : len(x1 if x2 is None else x2)]


def diagonal(network: Network, x: np.ndarray, kind: str, dtype: str | None) -> np.ndarray:
    """Returns the diagonal of a kernel, (N,), in memory and time of order N."""
    blocks = [x[start : start + _DIAGONAL_ROWS] for start in range(0, len(x), _DIAGONAL_ROWS)]
    return np.concatenate([np.diag(matrix(network, block, None, kind, dtype)) for block in blocks])


def check_noise(noise: Any) -> float:
    """Returns the noise as a float; raises an `InputError` unless it is a finite number that is at least 0."""
    if not (is_number("noise", noise) and math.isfinite(noise) and noise >= 0):
        raise InputError(f"Expected `noise` to be finite and at least 0, got {shown(noise)}; pass a variance")
    return float(noise)


def check_shape(image_shape: object, features: int) -> tuple[int, ...]:
    """Returns the shape of images as a tuple; raises an `InputError` unless it fits the number of features."""
    if not isinstance(image_shape, (tuple, list)) or len(image_shape) < 2:
        raise InputError(
            f"Expected `image_shape` to be (height, width, channels), or None, got {shown(image_shape)}; channels "
            "come last"
        )
    shape = tuple(check_whole("image_shape", size, 1) for size in image_shape)
    if math.prod(shape) != features:
        raise InputError(
            f"Expected `image_shape` to hold the {features} features of a row of `X`, got {shape} with "
            f"{math.prod(shape)}; pass (height, width, channels) of an image"
        )
    return shape


def factorized(values: np.ndarray, noise: float) -> Float[np.ndarray, "n n"]:
    """Returns the lower Cholesky factor of a kernel with noise on its diagonal, in float64.

    Raises:
      InputError: The matrix is singular. The message names a noise that is enough.
    """
    return checked_cholesky("a prediction", "the kernel of `X`", values, noise, Algebra(), "duplicate rows of `X`")
