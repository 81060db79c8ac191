"""Checks of the inputs of kernels, and the precision in which kernels are computed."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import ArrayLike

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError, InputWarning, shown, warn
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_option

DTYPES = ("float32", "float64")


@contextlib.contextmanager
def precision_of(dtype: np.dtype) -> Iterator[None]:
    """Returns a context in which JAX computes in `dtype`; it enables float64 locally if necessary.

    It also permits the transfers of the library's own constants and results, even if `jax.transfer_guard` forbids
    transfers in the caller's code.
    """
    with jax.transfer_guard("allow"), jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        yield


def compute_dtype(*arrays: np.ndarray | jax.Array, dtype: str | None = None, traced: bool = False) -> np.dtype:
    """Returns the precision in which kernels of these inputs are computed: `dtype`, or by default that of the inputs.

    Args:
      *arrays: The inputs.
      dtype: "float32", "float64" or None.
      traced: Whether a transformation of JAX traces numbers of the network. If `jax_enable_x64` is off, they are
        float32, and so are their kernels by default.

    Raises:
      InputError: `dtype` is "float64" inside a transformation of JAX while `jax_enable_x64` is off.
    """
    if dtype is not None:
        traced = traced or any(isinstance(array, jax.core.Tracer) for array in arrays)
        if traced and dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise InputError(
                "Expected `dtype` 'float32' inside a transformation of JAX, which would round float64 results, got "
                "'float64'; set jax_enable_x64, or leave the transformation"
            )
        return np.dtype(dtype)
    # Inside a transformation the traced arrays decide: NumPy constants there are float64 only by default.
    deciding = [array for array in arrays if isinstance(array, jax.core.Tracer)] or arrays
    double = any(array.dtype == np.float64 for array in deciding)
    double = double and (jax.config.read("jax_enable_x64") or not traced)
    return np.dtype(np.float64 if double else np.float32)


def real_array(name: str, x: Any) -> np.ndarray | jax.Array:
    """Returns an argument as an array of real numbers in native byte order; wider floats become float64.

    Raises:
      InputError: The argument is no array of real numbers, has masked entries, or is sharded over explicit axes of a
        mesh.
    """
    if isinstance(x, (Network, Dag, str)):
        raise InputError(
            f"Expected `{name}` to be an array, got {shown(x)}; one network comes first, and then the data"
        )
    if isinstance(x, np.ma.MaskedArray) and (masked := int(np.ma.getmaskarray(x).sum())):
        raise InputError(
            f"Expected `{name}` without masked entries, got {masked} of them; replace them, {name}.filled(value), or "
            "drop their rows"
        )
    try:
        array = x if isinstance(x, jax.Array) else np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Expected `{name}` to be an array, got a {type(x).__name__} that NumPy cannot read: {shown(str(error))}"
        ) from None
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"Expected `{name}` to hold real numbers, got dtype {array.dtype}")
    if isinstance(array, np.ndarray):
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    of = jax.typeof(array)
    if any(axis is not None for axis in of.sharding.spec) and AxisType.Explicit in of.sharding.mesh.axis_types:
        raise InputError(
            f"Expected `{name}` on one device, or on a mesh whose axes are of type Auto, got {of} on explicit axes; "
            f"pass jax.device_put({name}, sharding) for another mesh, or reshard it inside jax.jit"
        )
    return array


def host_array(name: str, x: Any) -> np.ndarray:
    """Returns an argument as a NumPy array of real numbers, for computations in NumPy.

    Raises:
      InputError: `real_array` refuses the argument, or a transformation of JAX traces it.
    """
    if isinstance(x, jax.core.Tracer):
        raise InputError(
            f"Expected `{name}` to be an array, got {shown(x)} inside a transformation of JAX; this function "
            "computes outside of them: pass the result of the transformed function"
        )
    return np.asarray(real_array(name, x))


def check_inputs(
    name: str, x: ArrayLike | Sequence[ArrayLike], network: Network, dtype: str | None = None
) -> list[np.ndarray | jax.Array]:
    """Returns one checked array per input node; see `_check`.

    Raises:
      GraphError: The network's operations do not fit the images.
      InputError: An array is empty, not finite or out of range, or the arrays do not fit the network.
    """
    if dtype is not None:
        check_option("dtype", dtype, DTYPES)
    num_inputs = network.dag.num_inputs
    several = isinstance(x, (list, tuple)) and num_inputs > 1
    given: list[Any] = list(x) if isinstance(x, (list, tuple)) and several else [x] * num_inputs
    if len(given) != num_inputs:
        raise InputError(f"Expected `{name}` to list {num_inputs} arrays, one per input node, got {len(given)}")
    if all(array is given[0] for array in given):
        # One array that all input nodes read stays one object: `choose` then knows that kernels depend on one angle.
        arrays = [_check(f"{name}[0]" if several else name, given[0], network, dtype)] * num_inputs
    else:
        arrays = [_check(f"{name}[{i}]", array, network, dtype) for i, array in enumerate(given)]
    if len({len(array) for array in arrays}) > 1:
        raise InputError(f"Expected all arrays of `{name}` to hold equally many inputs, got {[*map(len, arrays)]}")
    if network.image_operations:
        shapes = {array.shape[1:-1] for array in arrays}
        if len(shapes) > 1:
            raise InputError(f"Expected all arrays of `{name}` to hold images of one shape, got {sorted(shapes)}")
        network.pixels(*shapes)
    return arrays


def _check(name: str, x: ArrayLike, network: Network, dtype: str | None) -> np.ndarray | jax.Array:
    """Returns an input as (N, d), or as images; the values of traced arrays are unknown and not checked."""
    array = real_array(name, x)
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
    warn_of_likely_mistakes(name, array, network)
    if isinstance(array, jax.core.Tracer):
        return array
    # Evaluation at compile time checks the constants inside a transformation, too.
    with precision_of(array.dtype), jax.ensure_compile_time_eval():
        ranges = _ranges_of_array(array) if isinstance(array, jax.Array) else _ranges(array, np)
        finite, largest = map(np.asarray, ranges)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity in row {row}; drop or repair that input")
    largest = largest.astype(np.float64)
    # Squares of entries outside this range, or sums of such squares, would exceed the range of the dtype.
    double = np.dtype(dtype or array.dtype) == np.float64
    limit, wider = (1e150, "") if double else (1e17, ", or pass dtype='float64'")
    outside = (largest > limit) | ((largest > 0) & (largest < 1 / limit))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise InputError(
            f"Expected the largest entry of every row of `{name}` between {1 / limit:g} and {limit:g}, got "
            f"{largest[row]:g} in row {row}; rescale the inputs{wider}"
        )
    return array


def warn_of_likely_mistakes(name: str, x: np.ndarray | jax.Array, network: Network) -> None:
    """Warns of raw bytes, and of square images whose one or three channels come first."""
    if network.image_operations and x.ndim == 4 and x.shape[1] in (1, 3) and 4 < x.shape[2] == x.shape[3]:
        warn(
            f"Expected `{name}` to hold images (N, *pixels, channels), got {x.shape}, which reads as {x.shape[1]} x "
            f"{x.shape[2]} pixels of {x.shape[3]} channels; pass np.moveaxis({name}, 1, -1), or, if that is meant, "
            "ignore `nngp_dag.errors.InputWarning` by `warnings.filterwarnings`",
            InputWarning,
        )
    if x.dtype == np.uint8 and not isinstance(x, jax.core.Tracer) and (largest := int(x.max())) > 127:
        warn(
            f"Expected `{name}` to be scaled, got bytes up to {largest}, as raw images hold; shift and scale them, as "
            f"`nngp_dag.data.normalize` does, or pass {name}.astype(np.float32) if they are meant",
            InputWarning,
        )


def _ranges(x: Any, module: Any) -> tuple[Any, Any]:
    """Returns for every row whether it is finite, and its largest entry in absolute value."""
    # A NaN need not show in the largest entry: the maximum of jax 0.10 on CPUs loses a NaN among many numbers.
    features = tuple(range(1, x.ndim))
    return module.isfinite(x).all(axis=features), abs(x).max(axis=features)


_ranges_of_array = jax.jit(functools.partial(_ranges, module=jnp))
