"""`kernel`: the NNGP and NTK of a DAG on data."""

import contextlib
from dataclasses import dataclass

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import Dag, normal_form
from nngp_dag.kernels.dual import get_activation
from nngp_dag.kernels.engine import check_order, kernel_of_inputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """The infinite-width kernels of one network, a JAX pytree.

    Attributes:
      nngp: E[f_k(x_i) f_k(x_j)] over initialisations, for one output unit k, (N1, N2).
      ntk: The neural tangent kernel in the NTK parameterisation, (N1, N2).
    """

    nngp: Float[Array | np.ndarray, "n1 n2"]
    ntk: Float[Array | np.ndarray, "n1 n2"]


def kernel(
    dag: Dag,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    activation: str = "relu",
    order: str = "linear-act",
    readout: bool = True,
) -> Kernel:
    """Computes the exact NNGP and NTK of the infinitely wide network with the connectivity of `dag`.

    The network, with He initialisation (weight variance 2 / fan-in, no bias): a stem from the flattened
    input to node 0; X(t) = sum over edges s -> t of op(X(s)); a readout from node H. A weighted edge is
    phi(W x) in the order "linear-act" (stem Linear + phi, readout Linear; the order of Chen et al. 2022) and
    W phi(x) in the order "act-linear" (stem Linear, readout phi + Linear). Sums of activated branches and skips that
    share an ancestor are exact: see `nngp_dag.graph.normal_form`.

    Memory grows as N1 N2: the two results, and no temporary of that size. The first call for a number of nodes and
    input shape compiles; every DAG with as many nodes then runs the same program.

    Accuracy follows the dtype of the input: float64 input gives float64 results whether or not `jax_enable_x64` is
    set; integers and floats narrower than float32 are computed in float32. Inputs that nearly coincide are no
    exception: their distance is then summed directly, at a higher cost (see `nngp_dag.kernels.engine`). Entries of
    inputs that are nearly opposite, which are nearly 0, keep half of their digits. Results are JAX
    arrays, but float64 ones are NumPy arrays while `jax_enable_x64` is off, since JAX would then round them in the
    next operation.

    Args:
      dag: The connectivity.
      x1: Inputs, (N1, ...); features are flattened to d, and K(in) = x1 x2^T / d.
      x2: Inputs, (N2, ...) with as many features, or None for x1.
      activation: The nonlinearity phi; "relu".
      order: "linear-act" or "act-linear".
      readout: Whether to apply the readout; otherwise kernels are those of X(H).

    Returns:
      A `Kernel` with `nngp` and `ntk`, (N1, N2) each. An input that is all zero has zero rows.

    Raises:
      GraphError: No path leads through `dag`, or the dtype cannot hold its skip multiplicities.
      InputError: An input is empty, not finite, entirely zero, too large or small for its dtype or has the wrong
        number of features, or an option is unknown.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> k = nd.kernel(nd.Dag.from_code("2_21_112"), np.eye(3) * 3**0.5)
      >>> k.nngp.shape, float(k.nngp[0, 0].round(3))
      ((3, 3), 14.681)

    Reference: Chen et al., NeurIPS 2022 (the architecture); Lee et al., ICLR 2018 (NNGP); Jacot et al., NeurIPS 2018
    (NTK); Cho and Saul, NeurIPS 2009, eq. (6) (dual activation of ReLU).
    """
    check_order(order)
    get_activation(activation)
    tables = normal_form(dag)
    inputs1 = _flatten("x1", x1)
    inputs2 = None if x2 is None else _flatten("x2", x2)
    if inputs2 is not None and inputs2.shape[1] != inputs1.shape[1]:
        raise InputError(
            f"Expected `x1` and `x2` to have equally many features, got {inputs1.shape[1]} and {inputs2.shape[1]}"
        )
    dtype = _compute_dtype(*(x for x in (inputs1, inputs2) if x is not None))
    if tables.A.max() > np.finfo(dtype).max:
        raise GraphError(
            f"Expected skip multiplicities whose squares {dtype} can hold, got {tables.A.max():g}; pass float64 inputs"
        )
    with precision_of(dtype):
        nngp, ntk = kernel_of_inputs(
            jnp.asarray(tables.A, dtype),
            jnp.asarray(tables.B, dtype),
            jnp.asarray(inputs1, dtype),
            None if inputs2 is None else jnp.asarray(inputs2, dtype),
            order=order,
            activation=activation,
            readout=readout,
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64") and not isinstance(nngp, jax.core.Tracer):
        return Kernel(np.asarray(nngp), np.asarray(ntk))
    return Kernel(nngp, ntk)


def precision_of(dtype: np.dtype) -> contextlib.AbstractContextManager:
    """Returns a context in which JAX computes in `dtype`: enables float64 locally where it must."""
    return jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()


def _compute_dtype(*arrays: np.ndarray | jax.Array) -> np.dtype:
    # Inside a transformation JAX's own arrays decide: NumPy constants there are float64 only by habit.
    deciding = [array for array in arrays if isinstance(array, jax.core.Tracer)] or arrays
    double = any(array.dtype == np.float64 for array in deciding)
    return np.dtype(np.float64 if double else np.float32)


def _flatten(name: str, x: ArrayLike) -> np.ndarray | jax.Array:
    """Returns `x` as (N, d), checked; values inside a transformation cannot be seen and are not checked."""
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"Expected `{name}` to hold real numbers, got dtype {array.dtype}")
    if array.ndim < 2 or array.size == 0:
        raise InputError(
            f"Expected `{name}` to have shape (N, features...) with N >= 1 and a feature, got {array.shape}"
        )
    array = array.reshape(array.shape[0], -1)
    if isinstance(array, jax.core.Tracer):
        return array
    largest = np.asarray(abs(array).max(axis=1), np.float64)
    if not np.isfinite(largest).all():
        row = int(np.flatnonzero(~np.isfinite(largest))[0])
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity in row {row}; drop or repair that input")
    if not largest.any():
        raise InputError(f"Expected `{name}` to hold a nonzero input, got zeros only; its kernels would all be 0")
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
