"""Checks of the theory's arguments: symmetric matrices, cross kernels and targets; and matrices read by blocks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from nngp_dag.errors import InputError, shown
from nngp_dag.graph.operations import check_not_traced
from nngp_dag.kernels import Kernel
from nngp_dag.kernels.inputs import host_array, real_array

# Relative error of a kernel's entries in units of eps, the machine epsilon of their dtype. `nngp_dag.kernel` keeps to
# it.
ENTRY_EPS = 16

# Bytes of a block of rows in float64: large enough for fast products, small beside a large matrix.
_BLOCK_BYTES = 64 << 20

# Side of the square tiles in which a matrix is compared with its transpose. Two tiles and the results computed from
# them fit into the cache of a core.
_TILE = 96


def eps_of(values: Any) -> float:
    """Returns the machine epsilon of the dtype of the entries."""
    return float(np.finfo(values.dtype).eps)


def resolution_floor(values: Any, row_sum: Any, lambda_max: Any) -> Any:
    """Returns a bound on the error of an eigenvalue by rounding, Equation (12) of docs/mathematics.md.

    Relative errors of 16 eps in the entries move an eigenvalue by at most 16 eps times the largest row sum of |K|. The
    reason is that row sums bound the spectral norm of the error. The solver adds N eps64 lambda_max.
    """
    return ENTRY_EPS * eps_of(values) * row_sum + len(values) * float(np.finfo(np.float64).eps) * abs(lambda_max)


def row_blocks(values: np.ndarray) -> Iterator[slice]:
    """Yields slices of rows that cover the matrix; the rows of one slice take up some 64 MiB in float64."""
    size = max(1, _BLOCK_BYTES // (8 * max(1, values.shape[-1])))
    for start in range(0, len(values), size):
        yield slice(start, start + size)


def with_rows_together(values: np.ndarray) -> np.ndarray:
    """Returns the matrix, copied to C order if it is small."""
    # Rows of a slice of a stack may lie a power of two apart. They then compete for the same few lines of the cache.
    return np.ascontiguousarray(values) if values.nbytes <= _BLOCK_BYTES else values


def largest_entry(values: np.ndarray) -> float:
    """Returns max |K_ij|, NaN if there is one."""
    # NumPy's max passes a NaN on; Python's would lose one that stands in a later block.
    return float(np.max([end for rows in row_blocks(values) for end in (values[rows].max(), -values[rows].min())]))


def in_unit(values: np.ndarray, exponent: int) -> np.ndarray:
    """Returns values / 2^exponent in float64."""
    # Two products take a tenth of the time of NumPy's `ldexp`. One would not do: 2^exponent may leave float64's range.
    half = exponent // 2
    result = np.multiply(values, 2.0**-half, dtype=np.float64)
    result *= 2.0 ** (half - exponent)
    return result


def symmetric_part(values: np.ndarray, exponent: int = 0) -> np.ndarray:
    """Returns (K + K^T) / 2^(1 + exponent) in float64 and C order, without another array of that size."""
    part = np.empty(values.shape, np.float64)
    for a, b in _tile_pairs(len(values)):
        tile, mirror = (np.asarray(v, np.float64) for v in (values[a, b], values[b, a]))
        part[a, b] = in_unit(tile + mirror.T, 1 + exponent)
        part[b, a] = part[a, b].T
    return part


def array_of(name: str, x: Any, traced: bool) -> Any:
    """Returns an argument as a NumPy array of real numbers; with `traced`, an array that JAX traces stays as it is."""
    return real_array(name, x) if traced and isinstance(x, jax.core.Tracer) else host_array(name, x)


def check_symmetric(name: str, matrix: ArrayLike, *, traced: bool = False) -> Any:
    """Returns `matrix` as a NumPy array of float32 or float64, checked to be square, finite and symmetric.

    With `traced` the matrix may be traced by a transformation of JAX. Its values are then unknown and not checked.
    """
    if isinstance(matrix, Kernel):
        raise InputError(f"Expected `{name}` to be one matrix, got a `Kernel`; pass its .nngp or .ntk")
    values = array_of(name, matrix, traced)
    if values.dtype.kind in "biu":
        values = values.astype(np.float64 if isinstance(values, np.ndarray) else jnp.result_type(float))
    if values.dtype not in (np.float32, np.float64):
        raise InputError(
            f"Expected `{name}` in float32 or float64, got {values.dtype}; compute the kernel in one of them"
        )
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.size == 0:
        raise InputError(f"Expected `{name}` to be a square matrix, got shape {values.shape}")
    if not isinstance(values, np.ndarray):
        return values
    near = with_rows_together(values)
    scale = largest_entry(near)
    if not np.isfinite(scale):
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; check the kernel's inputs")
    with np.errstate(over="ignore"):
        asymmetry = max(float(np.abs(near[a, b] - near[b, a].T).max()) for a, b in _tile_pairs(len(near)))
    if asymmetry > 100 * eps_of(values) * max(scale, float(np.finfo(values.dtype).tiny)) * len(values) ** 0.5:
        raise InputError(
            f"Expected `{name}` to be symmetric, got entries that differ from those of its transpose by "
            f"{asymmetry:.2e}; pass the kernel of one set of inputs"
        )
    return values


def check_targets(name: str, y: ArrayLike, rows: int, columns: int | None = None, *, traced: bool = False) -> Any:
    """Returns targets as float64, (rows, C), checked to be finite; C is `columns` unless that is None.

    Integers in one column are refused unless one is negative: they look like classes. The numbers of classes have no
    order or distance that a regression could use. With `traced` the targets may be traced by a transformation of JAX.
    Their values are then unknown, and integers in one column always refused.
    """
    given = array_of(name, y, traced)
    if not isinstance(given, np.ndarray):
        if given.dtype.kind in "biu" and given.ndim and given.size == len(given):
            raise InputError(
                f"Expected `{name}` to be numbers to regress on, got integers, which look like class labels; pass "
                f"one-hot vectors for classes, or {name}.astype(float) to regress on these numbers"
            )
        return _columns(name, given, given, rows, columns)
    if given.dtype.kind in "biu" and given.ndim and 0 < given.size == len(given) and (least := int(given.min())) >= 0:
        largest = int(given.max())
        raise InputError(
            f"Expected `{name}` to be numbers to regress on, got integers from {least} to {largest}, which look like "
            f"class labels; pass nngp_dag.data.one_hot({name}, {largest + 1}) for classes, or floats to regress on "
            "these numbers"
        )
    targets = _columns(name, given, given.astype(np.float64), rows, columns)
    if not np.isfinite(targets).all():
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; drop such samples")
    return targets


def _columns(name: str, given: Any, targets: Any, rows: int, columns: int | None) -> Any:
    """Returns targets with one column per output, after a check of their shape."""
    if targets.ndim == 1:
        targets = targets[:, None]
    if targets.ndim != 2 or len(targets) != rows or targets.shape[1] < 1 or columns not in (None, targets.shape[1]):
        wanted = f"({rows},) or ({rows}, C)" if columns in (None, 1) else f"({rows}, {columns})"
        raise InputError(f"Expected `{name}` to have shape {wanted}, got {given.shape}; pass one target per input")
    return targets


def check_noise(noise: Any, rows: int, *, traced: bool = False) -> Any:
    """Returns the noise as a float, or as one number per input, (rows,), checked to be finite and at least 0."""
    if getattr(noise, "ndim", 0) or isinstance(noise, (list, tuple)) or (traced and isinstance(noise, jax.core.Tracer)):
        values = array_of("noise", noise, traced)
        if values.shape not in ((), (rows,)):
            raise InputError(
                f"Expected `noise` to be a number or to have shape ({rows},), got {values.shape}; pass one variance "
                "per training input"
            )
        if not isinstance(values, np.ndarray):
            return values
        values = values.astype(np.float64)
        wrong = values[~(np.isfinite(values) & (values >= 0))]
        if wrong.size:
            raise InputError(f"Expected `noise` to be finite and at least 0, got {wrong[0]}; pass variances")
        return values
    if not (is_number("noise", noise) and math.isfinite(noise) and noise >= 0):
        raise InputError(f"Expected `noise` to be finite and at least 0, got {shown(noise)}; pass a variance")
    return float(noise)


def check_outputs(name: str, values: Any, rows: int, columns: int, *, traced: bool = False) -> Any:
    """Returns a number, values for all columns, (rows,), or (rows, columns), as float64 with two axes; all finite."""
    given = array_of(name, values, traced)
    if given.shape not in ((), (rows,), (rows, columns)):
        raise InputError(
            f"Expected `{name}` to be a number or to have shape ({rows},) or ({rows}, {columns}), got {given.shape}; "
            "pass one value per input"
        )
    outputs = given.reshape((1, 1) if given.ndim == 0 else (rows, -1))
    if not isinstance(outputs, np.ndarray):
        return outputs
    if not np.isfinite(outputs).all():
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity")
    return outputs.astype(np.float64)


def is_number(name: str, value: Any) -> bool:
    """Whether a value is one number of Python, NumPy or JAX; raises an `InputError` inside a JAX transformation."""
    check_not_traced(name, value)
    return not isinstance(value, str) and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"


def check_kernel(name: str, k: Kernel, wanted: Sequence[str] = ("nngp", "ntk")) -> None:
    """Raises an `InputError` unless `k` is a `Kernel` that holds the wanted matrices."""
    if isinstance(k, (tuple, list)) and k and isinstance(k[0], Kernel):
        raise InputError(
            f"Expected `{name}` to be one `Kernel`, got {len(k)}; pick that of one output, such as kernels[0]"
        )
    if not isinstance(k, Kernel):
        raise InputError(f"Expected `{name}` to be a `Kernel`, got {type(k).__name__}; `nngp_dag.kernel` returns one")
    held = [matrix for matrix in ("nngp", "ntk") if getattr(k, matrix) is not None]
    if not {*wanted} <= {*held}:
        what = "both kernels" if len({*wanted}) > 1 else f"the {wanted[0].upper()}"
        got = f"the {held[0].upper()} alone" if held else "none"
        raise InputError(f"Expected `{name}` to hold {what}, got {got}; call `nngp_dag.kernel` without `get`")


def check_same_network(wanted: Sequence[str] = ("nngp", "ntk"), /, **kernels: Kernel) -> None:
    """Raises an `InputError` unless all `Kernel`s hold the wanted matrices and belong to one network.

    A kernel without `Kernel.network` passes the second check. `k_test_test` needs only its NNGP.
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


def check_cross(name: str, matrix: Array | np.ndarray, shape: tuple[int, int], *, traced: bool = False) -> Any:
    """Returns the kernel of test against training inputs as float64, checked for shape and finiteness."""
    values = array_of(name, matrix, traced)
    if values.shape != shape:
        raise InputError(f"Expected `{name}` to have shape {shape}, got {values.shape}; pass test inputs first")
    if not isinstance(values, np.ndarray):
        return values
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; check the kernel's inputs")
    return values


def _tile_pairs(n: int) -> Iterator[tuple[slice, slice]]:
    """Yields the rows and columns of the tiles on and below the diagonal."""
    for row in range(0, n, _TILE):
        for column in range(0, row + 1, _TILE):
            yield slice(row, row + _TILE), slice(column, column + _TILE)
