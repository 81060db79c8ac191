"""Checks of what kernels are computed on, and in which precision."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError
from nngp_dag.graph import Network


def precision_of(dtype: np.dtype) -> contextlib.AbstractContextManager:
    """Returns a context in which JAX computes in `dtype`: enables float64 locally where it must."""
    return jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()


def compute_dtype(*arrays: np.ndarray | jax.Array) -> np.dtype:
    """Returns the precision in which kernels of these inputs are computed."""
    # Inside a transformation JAX's own arrays decide: NumPy constants there are float64 only by habit.
    deciding = [array for array in arrays if isinstance(array, jax.core.Tracer)] or arrays
    double = any(array.dtype == np.float64 for array in deciding)
    return np.dtype(np.float64 if double else np.float32)


def check_inputs(name: str, x: ArrayLike | Sequence[ArrayLike], network: Network) -> list[np.ndarray | jax.Array]:
    """Returns one checked array per input node; see `_check`.

    Raises:
      InputError: One of them is empty, not finite or out of range, or they do not fit the network.
    """
    num_inputs = network.dag.num_inputs
    several = isinstance(x, (list, tuple)) and num_inputs > 1
    given: list[Any] = list(x) if isinstance(x, (list, tuple)) and several else [x] * num_inputs
    if len(given) != num_inputs:
        raise InputError(f"Expected `{name}` to list {num_inputs} arrays, one per input node, got {len(given)}")
    if all(array is given[0] for array in given):
        # One array stays one: kernels are then functions of one angle.
        arrays = [_check(f"{name}[0]" if several else name, given[0], network)] * num_inputs
    else:
        arrays = [_check(f"{name}[{i}]", array, network) for i, array in enumerate(given)]
    if len({len(array) for array in arrays}) > 1:
        raise InputError(f"Expected all arrays of `{name}` to hold equally many inputs, got {[*map(len, arrays)]}")
    if network.image_operations:
        shapes = {array.shape[1:-1] for array in arrays}
        if len(shapes) > 1:
            raise InputError(f"Expected all arrays of `{name}` to hold images of one shape, got {sorted(shapes)}")
        network.pixels(*shapes)
    return arrays


def _check(name: str, x: ArrayLike, network: Network) -> np.ndarray | jax.Array:
    """Returns `x` as (N, d), or as images; values inside a transformation cannot be seen and are not checked."""
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"Expected `{name}` to hold real numbers, got dtype {array.dtype}")
    if array.ndim < 2 or array.size == 0:
        raise InputError(
            f"Expected `{name}` to have shape (N, features...) with N >= 1 and a feature, got {array.shape}"
        )
    if network.image_operations:
        if array.ndim < 3:
            raise InputError(
                f"Expected `{name}` to hold images (N, *pixels, channels) for convolutions or pooling, got "
                f"{array.shape}"
            )
    else:
        array = array.reshape(array.shape[0], -1)
    if isinstance(array, jax.core.Tracer):
        return array
    # A constant inside a transformation is looked at, too.
    with precision_of(array.dtype), jax.ensure_compile_time_eval():
        ranges = _ranges_of_array(array) if isinstance(array, jax.Array) else _ranges(array, np)
        finite, largest = map(np.asarray, ranges)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity in row {row}; drop or repair that input")
    largest = largest.astype(np.float64)
    # Squares of entries outside of this range, or their sums, leave the range of the dtype.
    limit = 1e150 if array.dtype == np.float64 else 1e17
    outside = (largest > limit) | ((largest > 0) & (largest < 1 / limit))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise InputError(
            f"Expected the largest entry of every row of `{name}` between {1 / limit:g} and {limit:g}, got "
            f"{largest[row]:g} in row {row}; rescale the inputs, or pass them in float64"
        )
    return array


def _ranges(x: Any, module: Any) -> tuple[Any, Any]:
    """Returns for every row whether it is finite, and its largest entry."""
    # Not by the largest entry: jax 0.10's maximum on CPUs loses a NaN among many numbers.
    features = tuple(range(1, x.ndim))
    return module.isfinite(x).all(axis=features), abs(x).max(axis=features)


_ranges_of_array = jax.jit(functools.partial(_ranges, module=jnp))
