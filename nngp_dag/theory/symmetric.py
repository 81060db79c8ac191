"""What the theory takes, checked: symmetric matrices, which it reads in blocks of rows, cross kernels and targets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import check_not_traced
from nngp_dag.kernels import Kernel
from nngp_dag.kernels.inputs import host_array

# Relative accuracy of the entries of kernels, in units of the precision, which `nngp_dag.kernel` keeps to.
ENTRY_EPS = 16

# Bytes of a block of rows in float64.
_BLOCK_BYTES = 64 << 20

# Side of the tiles in which a matrix is compared with its mirror, so that both and what is computed of them stay in a
# core's cache.
_TILE = 96


def eps_of(values: np.ndarray) -> float:
    """Returns the machine epsilon of the dtype that the entries came in."""
    return float(np.finfo(values.dtype).eps)


def resolution_floor(values: np.ndarray, row_sum: float, lambda_max: float) -> float:
    """Returns what rounding can do to an eigenvalue.

    Relative errors of 16 eps in the entries move it by at most 16 eps times the largest row sum of |K|; the solver adds
    N eps64 lambda_max.
    """
    return ENTRY_EPS * eps_of(values) * row_sum + len(values) * float(np.finfo(np.float64).eps) * abs(lambda_max)


def row_blocks(values: np.ndarray) -> Iterator[slice]:
    """Yields slices of rows that cover the matrix; the rows of one take up some 64 MiB as float64."""
    size = max(1, _BLOCK_BYTES // (8 * max(1, values.shape[-1])))
    for start in range(0, len(values), size):
        yield slice(start, start + size)


def with_rows_together(values: np.ndarray) -> np.ndarray:
    """Returns the matrix, a small one in C order: rows a power of two apart, as in a stack, share few cache lines."""
    return np.ascontiguousarray(values) if values.nbytes <= _BLOCK_BYTES else values


def largest_entry(values: np.ndarray) -> float:
    """Returns max |K_ij|, NaN if there is one."""
    # Of Python's max, a NaN in a later block would be lost.
    return float(np.max([end for rows in row_blocks(values) for end in (values[rows].max(), -values[rows].min())]))


def in_unit(values: np.ndarray, exponent: int) -> np.ndarray:
    """Returns values / 2^exponent in float64; products do it in a tenth of the time of NumPy's `ldexp`."""
    # By two factors, since one may not be in the range of float64.
    half = exponent // 2
    result = np.multiply(values, 2.0**-half, dtype=np.float64)
    result *= 2.0 ** (half - exponent)
    return result


def symmetric_part(values: np.ndarray, exponent: int = 0) -> np.ndarray:
    """Returns (K + K^T) / 2^(1 + exponent) in float64 and C order; nothing else of its size is allocated."""
    part = np.empty(values.shape, np.float64)
    for a, b in _tile_pairs(len(values)):
        tile, mirror = (np.asarray(v, np.float64) for v in (values[a, b], values[b, a]))
        part[a, b] = in_unit(tile + mirror.T, 1 + exponent)
        part[b, a] = part[a, b].T
    return part


def check_symmetric(name: str, matrix: ArrayLike) -> np.ndarray:
    """Returns `matrix` as a NumPy array of float32 or float64, checked to be square, finite and symmetric."""
    if isinstance(matrix, Kernel):
        raise InputError(f"Expected `{name}` to be one matrix, got a `Kernel`; pass its .nngp or .ntk")
    values = host_array(name, matrix)
    if values.dtype.kind in "biu":
        values = values.astype(np.float64)
    if values.dtype not in (np.float32, np.float64):
        raise InputError(
            f"Expected `{name}` in float32 or float64, got {values.dtype}; compute the kernel in one of them"
        )
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.size == 0:
        raise InputError(f"Expected `{name}` to be a square matrix, got shape {values.shape}")
    near = with_rows_together(values)
    scale = largest_entry(near)
    if not np.isfinite(scale):
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; check the kernel's inputs")
    with np.errstate(over="ignore"):
        asymmetry = max(float(np.abs(near[a, b] - near[b, a].T).max()) for a, b in _tile_pairs(len(near)))
    if asymmetry > 100 * eps_of(values) * max(scale, float(np.finfo(values.dtype).tiny)) * len(values) ** 0.5:
        raise InputError(
            f"Expected `{name}` to be symmetric, got entries that differ from their mirror by {asymmetry:.2e}; "
            "pass the kernel of one set of inputs"
        )
    return values


def check_targets(name: str, y: ArrayLike, rows: int, columns: int | None = None) -> np.ndarray:
    """Returns targets as float64, (rows, C), checked to be finite; C is `columns` unless that is None.

    Whole numbers of an integer dtype in one column are refused unless one is negative: they look like classes, whose
    numbers mean nothing to a regression.
    """
    given = host_array(name, y)
    if given.dtype.kind in "biu" and given.ndim and 0 < given.size == len(given) and (least := int(given.min())) >= 0:
        largest = int(given.max())
        raise InputError(
            f"Expected `{name}` to be numbers to regress on, got integers from {least} to {largest}, which look like "
            f"class labels; pass nngp_dag.data.one_hot({name}, {largest + 1}) for classes, or floats to regress on "
            "these numbers"
        )
    targets = given.astype(np.float64)
    if targets.ndim == 1:
        targets = targets[:, None]
    if targets.ndim != 2 or len(targets) != rows or targets.shape[1] < 1 or columns not in (None, targets.shape[1]):
        wanted = f"({rows},) or ({rows}, C)" if columns in (None, 1) else f"({rows}, {columns})"
        raise InputError(f"Expected `{name}` to have shape {wanted}, got {given.shape}; pass one target per input")
    if not np.isfinite(targets).all():
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; drop such samples")
    return targets


def is_number(name: str, value: Any) -> bool:
    """Whether a value is one number, of Python, NumPy or JAX; raises an `InputError` inside a transformation."""
    check_not_traced(name, value)
    return not isinstance(value, str) and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"


def check_kernel(name: str, k: Kernel, wanted: Sequence[str] = ("nngp", "ntk")) -> None:
    """Raises an `InputError` unless `k` is a `Kernel` with the matrices that are wanted."""
    if isinstance(k, (tuple, list)) and k and isinstance(k[0], Kernel):
        raise InputError(f"Expected `{name}` to be one `Kernel`, got {len(k)}; pick one of the outputs, as kernels[0]")
    if not isinstance(k, Kernel):
        raise InputError(f"Expected `{name}` to be a `Kernel`, got {type(k).__name__}; `nngp_dag.kernel` returns one")
    held = [matrix for matrix in ("nngp", "ntk") if getattr(k, matrix) is not None]
    if not {*wanted} <= {*held}:
        what = "both kernels" if len({*wanted}) > 1 else f"the {wanted[0].upper()}"
        got = f"the {held[0].upper()} alone" if held else "none"
        raise InputError(f"Expected `{name}` to hold {what}, got {got}; call `nngp_dag.kernel` without `get`")


def check_same_network(wanted: Sequence[str] = ("nngp", "ntk"), /, **kernels: Kernel) -> None:
    """Raises an `InputError` unless these are `Kernel`s of one network, as far as they know (`Kernel.network`).

    They hold the matrices that are wanted; of `k_test_test` only the NNGP is ever used.
    """
    for name, k in kernels.items():
        check_kernel(name, k, ("nngp",) if name == "k_test_test" else wanted)
    known = [(name, k) for name, k in kernels.items() if k.network is not None]
    for name, k in known[1:]:
        first, expected = known[0]
        if difference := expected.difference(k):
            raise InputError(
                f"Expected `{first}` and `{name}` to be kernels of one network, got {difference}; compute them with "
                "the same graph and options"
            )


def check_cross(name: str, matrix: Array | np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the kernel of test against training inputs as float64, checked for shape and finiteness."""
    values = host_array(name, matrix).astype(np.float64)
    if values.shape != shape:
        raise InputError(f"Expected `{name}` to have shape {shape}, got {values.shape}; pass test inputs first")
    if not np.isfinite(values).all():
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; check the kernel's inputs")
    return values


def _tile_pairs(n: int) -> Iterator[tuple[slice, slice]]:
    """Yields the rows and columns of the tiles on and below the diagonal."""
    for row in range(0, n, _TILE):
        for column in range(0, row + 1, _TILE):
            yield slice(row, row + _TILE), slice(column, column + _TILE)
