"""`kernel`, the NNGP and NTK of a network on data, and `explain`, how it computes them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.architecture import Architecture, Network, as_network
from nngp_dag.errors import InputError, shown, within_memory
from nngp_dag.graph import Dag
from nngp_dag.kernels.accuracy import check_quadratures
from nngp_dag.kernels.backends.unrolled import Kernels
from nngp_dag.kernels.blocking import kernel_of_inputs
from nngp_dag.kernels.choose import Plan, Problem, choose
from nngp_dag.kernels.inputs import check_inputs, compute_dtype, precision_of
from nngp_dag.kernels.result import finished
from nngp_dag.kernels.weights import check_least, check_range, weights_of, weights_of_series

GETS = ("nngp", "ntk")

# Of inputs that are only described.
_MOST_FEATURES = 10**8


def kernel(
    network: Network | Dag | str,
    x1: ArrayLike | Sequence[ArrayLike],
    x2: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    get: str | tuple[str, ...] = GETS,
    dtype: str | None = None,
    **architecture: Unpack[Architecture],
) -> Any:
    """Computes the exact NNGP and NTK of the infinitely wide network of any connectivity.

    The network: a stem from the input to node 0; X(t) = sum over edges s -> t of op(X(s)); a readout from node H. A
    weighted edge is phi(W x + b) in the order "linear-act" (stem Linear + phi, readout Linear; the order of Chen et al.
    2022), and W phi(x) + b in the order "act-linear" (stem Linear, readout phi + Linear). Edges may carry operations of
    their own instead (`nngp_dag.Dense`, `Conv`, `AvgPool`, `Scale`). By default weights have He variance, 2 / fan-in,
    and there are no biases. Sums of activated branches and skips that share an ancestor are exact.

    Without convolutions and pooling, inputs are flattened. With them, inputs are images (N, *pixels, channels), and the
    readout flattens the last node or averages over its pixels. Covariances of different pixels are kept only where
    pooling or that average needs them: memory then grows with the square of the pixels.

    Memory grows as N1 N2: the two results, and no temporary of that size.

    ReLU networks without biases, with one array of inputs, have kernels that are functions of the angle between two
    inputs. They are found once for a network, as series (see `backends.chebyshev`): then no pair of inputs takes
    longer for a larger graph, and all such graphs share one compiled program. Other networks, inputs inside
    transformations such as `jax.jit` and `jax.grad`, and graphs so deep that their series do not end, take a loop over
    the nodes, which compiles in a time that does not grow with the graph; graphs of about equal size and equal
    operations share it. For kernels of over half a million entries, graphs of up to 4 nodes are unrolled, which runs
    faster. With convolutions every graph compiles for itself, in a time that grows with its edges.
    Standard deviations, scales, widths and parameters of activations are inputs of compiled programs: another value
    compiles nothing.

    Accuracy follows the dtype of the input, unless `dtype` names one: float64 input gives float64 results whether or
    not `jax_enable_x64` is set, and so do wider floats; integers and floats narrower than float32 are computed in
    float32. Inputs that are nearly equal, parallel or opposite are no exception, whatever their norms: the squares of
    their differences or sums are then added up directly, at a higher cost (see `nngp_dag.kernels.blocking`). Angles
    below the root of the precision are lost where covariances of all pixels are kept (pooling, "global-average"), and
    under convolutions of images with more than four channels. Results are JAX arrays, but float64 ones are NumPy
    arrays while `jax_enable_x64` is off, since JAX would then round them in the next operation.

    Args:
      network: The network: a `Network`, or its graph as a `Dag`, or as a code, name or cell that `Dag.parse` reads.
      x1: Inputs, (N1, ...). For a graph with several inputs a list of such arrays, or one that all of them read.
      x2: Inputs, (N2, ...) with as many features, or None for x1.
      get: "nngp" or "ntk" for that matrix alone, by default both.
      dtype: "float32" or "float64", the precision to compute in; by default that of the input.
      **architecture: Fields of `nngp_dag.Network` (`layer`, `aggregation`, `stem`, `readout`, `image_readout`,
        `parameterization`, `width`), and of its layer (`activation`, `order`, `w_std`, `b_std`).

    Returns:
      A `Kernel` with `nngp` and `ntk`, (N1, N2) each, None where it was not asked for; a tuple of them where the graph
      has several outputs. An `InputWarning` says where inputs look like raw bytes, or like images whose channels come
      first. An input that is all zero has zero rows where there are no biases and phi(0) = 0.

    Raises:
      GraphError: `network` is no graph or no path leads through it, an activation meets a node that is not Gaussian,
        operations do not fit the images, or the dtype cannot hold skip multiplicities.
      InputError: An input is empty, not finite, too large or small for its dtype or has the wrong number of features,
        an option is unknown, a `Quadrature` is worthless at the variances that are reached, or the kernels are not
        finite. Small ones are refused where they are series of which the dtype would lose digits; what underflows to 0
        altogether is 0.
      OutOfMemoryError: The results, or covariances of pixels, do not fit into memory.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> k = nd.kernel(nd.Dag.from_code("2_21_112"), np.eye(3) * 3**0.5)
      >>> k.nngp.shape, float(k.nngp[0, 0].round(3))
      ((3, 3), 14.681)
      >>> images = np.random.default_rng(0).normal(size=(2, 5, 5, 3))
      >>> nd.kernel(nd.Dag.from_code("2_12"), images, layer=nd.Conv(filter_shape=(3, 3))).ntk.shape
      (2, 2)

    Reference: Chen et al., NeurIPS 2022 (the architecture); Lee et al., ICLR 2018 (NNGP); Jacot et al., NeurIPS 2018
    (NTK); Novak et al., ICLR 2019 (convolutions and pooling); Cho and Saul, NeurIPS 2009 (dual activation of ReLU).
    """
    network = as_network(network, "network", kernel, **architecture)
    wanted = _wanted(get)
    inputs1, inputs2, plan, precision = _planned(network, x1, x2, "ntk" in wanted, dtype)
    rows, columns = len(inputs1[0]), len((inputs2 or inputs1)[0])
    pixels = " and the covariances of all pairs of pixels" if plan.layout.full else ""
    needed = f"{len(wanted)} x {rows * columns * precision.itemsize / 2**30:.3g} GiB of kernels{pixels}"
    with within_memory(
        f"{needed} of {rows:,} x {columns:,} inputs",
        "`nngp_dag.gram` computes them in tiles within a memory budget, and on disk with `out`",
    ):
        results = _results(network, inputs1, inputs2, plan, precision)
        inputs = (*inputs1, *(inputs2 or ()))
        kernels = [finished(*pair, precision, wanted, network, i, inputs) for i, pair in enumerate(results)]
    return tuple(kernels) if len(kernels) > 1 else kernels[0]


def explain(
    network: Network | Dag | str,
    x1: ArrayLike | Sequence[ArrayLike] | jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    x2: ArrayLike | Sequence[ArrayLike] | jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct] | None = None,
    *,
    dtype: str | None = None,
    **architecture: Unpack[Architecture],
) -> str:
    """Says how `kernel` would compute the kernels of a network, and why, without doing so.

    Args:
      network: As in `kernel`.
      x1: As in `kernel`, or shapes and dtypes in place of arrays.
      x2: As `x1`, or None for the same inputs.
      dtype: As in `kernel`.
      **architecture: As in `kernel`.

    Raises:
      GraphError, InputError: As `kernel`.

    Example:
      >>> import jax, numpy as np, nngp_dag as nd
      >>> nd.explain("2_21_112", np.ones((300, 64))).split(", ")[0]
      'Chebyshev series in the angle'
      >>> print(nd.explain("2_21_112", jax.ShapeDtypeStruct((20000, 784), np.float32), b_std=0.1))
      4 unrolled steps, float32; symmetric tiles of about 360 rows (20,000 x 20,000 entries, and a graph of 4 steps)
    """
    network = as_network(network, "network", explain, **architecture)
    (one1, count1), (one2, count2) = _of_shape("x1", x1), _of_shape("x2", x2)
    *_, plan, _ = _planned(network, one1, one2, True, dtype, (count1, count2))
    return f"{plan.way} ({plan.reason})"


def _of_shape(name: str, x: Any) -> tuple[Any, int | None]:
    """Returns one input of a shape, or of each of several, in the place of as many as it says, and how many."""
    if isinstance(x, (list, tuple)) and any(isinstance(one, jax.ShapeDtypeStruct) for one in x):
        ones, counts = zip(*(_of_shape(name, one) for one in x), strict=True)
        return list(ones), counts[0]
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x, None
    if math.prod(x.shape[1:]) > _MOST_FEATURES:
        raise InputError(f"Expected `{name}` to have at most {_MOST_FEATURES:,} features, got shape {x.shape}")
    # Of no inputs there is none, which is refused.
    return np.ones((*(min(1, size) for size in x.shape[:1]), *x.shape[1:]), x.dtype), x.shape[0] if x.shape else None


Arrays = Sequence[np.ndarray | jax.Array]


def _planned(
    network: Network, x1: Any, x2: Any, with_ntk: bool, dtype: str | None, counts: Sequence[int | None] = (None, None)
) -> tuple[Arrays, Arrays | None, Plan, np.dtype]:
    """Returns checked inputs, the way to compute their kernels (of `counts` inputs, if given), and the precision."""
    inputs1 = check_inputs("x1", x1, network, dtype)
    inputs2 = None if x2 is None else check_inputs("x2", x2, network, dtype)
    for first, second in zip(inputs1, inputs2 or (), strict=inputs2 is not None):
        if first.shape[1:] != second.shape[1:]:
            raise InputError(
                "Expected `x1` and `x2` to have equally many features, got "
                f"{'x'.join(map(str, first.shape[1:]))} and {'x'.join(map(str, second.shape[1:]))}"
            )
    both = (inputs1, inputs2 or inputs1)
    precision = compute_dtype(*inputs1, *(inputs2 or ()), dtype=dtype)
    problem = Problem(
        rows=counts[0] or len(inputs1[0]),
        columns=counts[inputs2 is not None] or len(both[1][0]),
        symmetric=inputs2 is None,
        features=inputs1[0].shape[-1],
        dtype=precision,
        with_ntk=with_ntk,
        one_array=all(x is side[0] for side in both for x in side),
        traced=any(isinstance(x, jax.core.Tracer) for side in both for x in side),
    )
    return inputs1, inputs2, choose(network, problem), precision


def _results(
    network: Network,
    inputs1: Sequence[np.ndarray | jax.Array],
    inputs2: Sequence[np.ndarray | jax.Array] | None,
    plan: Plan,
    dtype: np.dtype,
) -> Kernels:
    """Returns NNGP and NTK of every output, of inputs that have been checked."""
    with precision_of(dtype):
        data1 = [jnp.asarray(x, dtype) for x in inputs1]
        data2 = None if inputs2 is None else [jnp.asarray(x, dtype) for x in inputs2]
        if plan.series is not None:
            check_range(plan.program, dtype)
            check_least(plan.series, dtype)
            weights = weights_of_series(plan.series, plan.spec, dtype)
            data1, data2 = data1[:1], data2 and data2[:1]
        else:
            weights = weights_of(plan, dtype)
        results = kernel_of_inputs(weights, data1, data2, spec=plan.spec, layout=plan.layout)
        if plan.quadrature and not isinstance(results[0][0], jax.core.Tracer):
            for data in (data1, data2) if data2 is not None else (data1,):
                check_quadratures(network, weights, data, plan.spec, plan.layout)
    return results


def _wanted(get: str | tuple[str, ...]) -> tuple[str, ...]:
    wanted = (get,) if isinstance(get, str) else tuple(get) if isinstance(get, Iterable) else ()
    names = all(isinstance(name, str) for name in wanted)
    if not (wanted and names) or set(wanted) - set(GETS) or (wanted != (get,) and set(wanted) != set(GETS)):
        raise InputError(f"Expected `get` to be 'nngp', 'ntk' or both of them, got {shown(get)}")
    return wanted
