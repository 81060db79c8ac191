"""`kernel` computes the NNGP and NTK of a network on data; `explain` says how."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError, shown, within_memory
from nngp_dag.graph import Dag
from nngp_dag.kernels.accuracy import check_quadratures
from nngp_dag.kernels.backends.unrolled import Kernels, Weights
from nngp_dag.kernels.blocking import kernel_of_inputs
from nngp_dag.kernels.choose import Plan, Problem, choose
from nngp_dag.kernels.inputs import check_inputs, compute_dtype, precision_of
from nngp_dag.kernels.parametric import is_traced, parametric
from nngp_dag.kernels.result import finished
from nngp_dag.kernels.source import KernelSource
from nngp_dag.kernels.weights import check_least, check_range, weights_of, weights_of_series

GETS = ("nngp", "ntk")

# The largest number of features of an input of which only the shape is given, since one such input is allocated.
_MOST_FEATURES = 10**8


def kernel(
    network: Network | Dag | str | KernelSource,
    x1: ArrayLike | Sequence[ArrayLike],
    x2: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    get: str | tuple[str, ...] = GETS,
    dtype: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    **architecture: Unpack[Architecture],
) -> Any:
    """Computes the exact NNGP and NTK of an infinitely wide network of any connectivity.

    A stem leads from the input to node 0, and a readout follows node H. Node t is X(t) = sum over edges s -> t of
    op(X(s)). In the order "linear-act", that of Chen et al. 2022, a weighted edge applies phi(W x + b). The stem is
    such a layer then, and the readout is linear. In the order "act-linear", a weighted edge applies W phi(x) + b. The
    stem is linear then, and the readout starts with phi. Edges may carry operations of their own instead
    (`nngp_dag.Dense`, `Conv`, `AvgPool`, `SumPool`, `Scale`). By default weights have He variance, 2 / fan-in, and
    there are no biases. Sums of activated branches, and skips that share an ancestor, are exact. Equations (4) to (9)
    of docs/mathematics.md state the recursion.

    Without convolutions and pooling, inputs are flattened. With them, inputs are images (N, *pixels, channels), and the
    readout flattens the last node or averages over its pixels. Covariances of different pixels are kept only if pooling
    or that average needs them. Memory then grows with the square of the number of pixels.

    Memory grows as N1 N2. It holds the two results, and no temporary array of that size.

    `explain` names the back end that computes a kernel:

    - Chebyshev series in the angle, for ReLU-type activations without biases and one array of inputs. The kernels are
      then functions of the angle between two inputs, whose series are computed once for a network. The time for a pair
      of inputs does not grow with the graph, and all such graphs share one compiled program.
    - A loop over the nodes, for all other networks without convolutions and pooling. It also serves graphs so deep that
      their series are too long, and inputs inside transformations such as `jax.jit` and `jax.grad`. Its time to compile
      does not grow with the graph. Graphs of about equal size with equal operations share the compiled program.
    - Unrolled steps, for convolutions and pooling, and for graphs of up to 4 nodes with over half a million entries.
      They run faster than the loop, but each graph compiles for itself, in a time that grows with its edges. On recent
      NVIDIA GPUs the steps of large symmetric kernels run in one Pallas kernel.

    Standard deviations, scales, widths and parameters of activations are inputs of compiled programs, so another value
    of them does not compile anew. Kernels can be differentiated in all of them, and in a weight of every edge:
    transformations such as `jax.grad` may trace the numbers in `parameters`, and `w_std` and `b_std`.

    Accuracy follows the dtype of the input, unless `dtype` names one. Inputs of float64 and wider floats are computed
    in float64, whether or not `jax_enable_x64` is set; integers and narrower floats are computed in float32. Inputs
    that are nearly equal, parallel or opposite keep this accuracy at any norms. The squares of their differences or
    sums are then added up directly, at a higher cost. There are two exceptions, where angles below the root of the
    precision are lost. One is networks that keep covariances of all pairs of pixels (pooling, "global-average"). The
    other is convolutions of images with more than four channels. Results are JAX arrays; while `jax_enable_x64` is off,
    float64 results are NumPy arrays, because JAX would round them in the next operation.

    Args:
      network: The network: a `Network`, or its graph as a `Dag`, or as a code, name or cell that `Dag.parse` reads; or
        a model that `nngp_dag.trace` has read.
      x1: Inputs, (N1, ...). For a graph with several inputs, a list of such arrays, or one array that all of them read.
      x2: Inputs, (N2, ...), with as many features as `x1`, or None for `x1`.
      get: "nngp" or "ntk" for that matrix alone; by default both.
      dtype: The precision of the computation, "float32" or "float64"; by default that of the input.
      parameters: Numbers by name in place of the network's own, as in `Network.parameters`; those that are absent stay.
      **architecture: Fields of `nngp_dag.Network` (`layer`, `aggregation`, `stem`, `readout`, `image_readout`,
        `parameterization`, `width`), and of its layer (`activation`, `order`, `w_std`, `b_std`).

    Returns:
      A `Kernel` with `nngp` and `ntk`, (N1, N2) each; a matrix that `get` leaves out is None. A graph with several
      outputs yields a tuple of them. An input of zeros has zero rows if there are no biases and phi(0) = 0. An
      `InputWarning` is given if inputs look like raw bytes, or like images whose channels come first.

    Raises:
      GraphError: `network` is no graph, or no path leads to its output. Or an activation acts on a node that is not
        Gaussian, operations do not fit the images, or the dtype cannot hold skip multiplicities.
      InputError: An input is empty, not finite, too large or small for its dtype, or has the wrong number of features.
        Or an option is unknown, a `Quadrature` is inaccurate at the variances that the network reaches, or the kernels
        are not finite. Chebyshev series so small that the dtype would lose their digits are refused, too; other back
        ends return 0 where a kernel underflows.
      OutOfMemoryError: The results, or covariances of pixels, do not fit into memory.

    Examples:
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
    wanted = _wanted(get)
    if isinstance(network, KernelSource):
        if parameters is not None:
            raise InputError("Expected no `parameters` for a traced model, got some; trace it with other distributions")
        return network.with_options(**architecture).kernel(x1, x2, get=wanted, dtype=dtype)
    network, numbers = _with_numbers(network, parameters, architecture)
    inputs1, inputs2, problem = _checked(network, x1, x2, "ntk" in wanted, dtype, numbers=numbers)
    precision = problem.dtype
    with precision_of(precision):
        plan, weights = planned(network, problem, numbers)
    rows, columns = len(inputs1[0]), len((inputs2 or inputs1)[0])
    pixels = " and the covariances of all pairs of pixels" if plan.layout.full else ""
    needed = f"{len(wanted)} x {rows * columns * precision.itemsize / 2**30:.3g} GiB of kernels{pixels}"
    with within_memory(
        f"{needed} of {rows:,} x {columns:,} inputs",
        "`nngp_dag.gram` computes them in tiles within a memory budget, and on disk with `out`",
    ):
        results = _results(network, inputs1, inputs2, plan, weights, precision)
        inputs = (*inputs1, *(inputs2 or ()))
        of = None if numbers else network
        kernels = [finished(*pair, precision, wanted, of, i, inputs) for i, pair in enumerate(results)]
    return tuple(kernels) if len(kernels) > 1 else kernels[0]


def explain(
    network: Network | Dag | str | NetworkSource,
    x1: ArrayLike | Sequence[ArrayLike] | jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    x2: ArrayLike | Sequence[ArrayLike] | jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct] | None = None,
    *,
    dtype: str | None = None,
    **architecture: Unpack[Architecture],
) -> str:
    """Says how `kernel` would compute the kernels of a network, and why, without computing them.

    Args:
      network: The network, as in `kernel`. Of a traced model it is said how the network that it equals is computed.
      x1: The inputs, as in `kernel`, or shapes and dtypes in place of arrays.
      x2: The second inputs, given like `x1`, or None for the same inputs.
      dtype: The precision of the computation, as in `kernel`.
      **architecture: Options of the architecture, as in `kernel`.

    Returns:
      A text of the form "back end, dtype; blocks (reason)".

    Raises:
      GraphError: `kernel` would refuse the network.
      InputError: `kernel` would refuse an argument, or a shape has over 100 million features.
      ModelError: A traced model equals no network; its moments are then computed in blocks of inputs.

    Examples:
      >>> import jax, numpy as np, nngp_dag as nd
      >>> nd.explain("2_21_112", np.ones((300, 64))).split(", ")[0]
      'Chebyshev series in the angle'
      >>> print(nd.explain("2_21_112", jax.ShapeDtypeStruct((20000, 784), np.float32), b_std=0.1))
      4 unrolled steps, float32; symmetric tiles of about 360 rows (20,000 x 20,000 entries, and a graph of 4 steps)
    """
    network = as_network(network, "network", explain, **architecture)
    (one1, count1), (one2, count2) = _of_shape("x1", x1), _of_shape("x2", x2)
    *_, problem = _checked(network, one1, one2, True, dtype, counts=(count1, count2))
    plan = choose(network, problem)
    return f"{plan.way} ({plan.reason})"


def _of_shape(name: str, x: Any) -> tuple[Any, int | None]:
    """Returns one input of ones for each given shape, and the number of inputs that the shape states."""
    if isinstance(x, (list, tuple)) and any(isinstance(one, jax.ShapeDtypeStruct) for one in x):
        ones, counts = zip(*(_of_shape(name, one) for one in x), strict=True)
        return list(ones), counts[0]
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x, None
    if math.prod(x.shape[1:]) > _MOST_FEATURES:
        raise InputError(f"Expected `{name}` to have at most {_MOST_FEATURES:,} features, got shape {x.shape}")
    # A shape without inputs yields an empty array, which is refused later.
    return np.ones((*(min(1, size) for size in x.shape[:1]), *x.shape[1:]), x.dtype), x.shape[0] if x.shape else None


Arrays = Sequence[np.ndarray | jax.Array]


def _with_numbers(
    network: Any, parameters: Mapping[str, Any] | None, architecture: Architecture
) -> tuple[Network, Mapping[str, Any] | None]:
    """Returns the network with the given numbers, and those numbers if JAX traces some of them."""
    options = dict(architecture)
    traced = {name: options.pop(name) for name in ("w_std", "b_std") if is_traced(options.get(name))}
    if "b_std" in traced:
        options["b_std"] = 1.0  # the structure has biases; `traced` has their number
    found = as_network(network, "network", kernel, **options)  # type: ignore[arg-type]
    if not traced and parameters is None:
        return found, None
    given = {} if parameters is None else parameters
    of_layer = given.get("layer", {}) if isinstance(given, Mapping) else None
    if not isinstance(of_layer, Mapping):
        raise InputError(
            f"Expected `parameters` to be a dictionary of dictionaries, got {shown(parameters)}; `Network.parameters` "
            "shows its form"
        )
    if twice := traced.keys() & of_layer.keys():
        raise InputError(f"Expected `{min(twice)}` once, got it beside the one of `parameters`; leave one of them out")
    numbers = {**given, "layer": {**traced, **of_layer}}
    if not is_traced(numbers):
        return found.with_parameters(numbers), None
    return found, numbers


def _checked(
    network: Network,
    x1: Any,
    x2: Any,
    with_ntk: bool,
    dtype: str | None,
    *,
    counts: Sequence[int | None] = (None, None),
    numbers: Any = None,
) -> tuple[Arrays, Arrays | None, Problem]:
    """Returns checked inputs, and the problem that they pose; `counts` replace the inputs' numbers."""
    inputs1 = check_inputs("x1", x1, network, dtype)
    inputs2 = None if x2 is None else check_inputs("x2", x2, network, dtype)
    for first, second in zip(inputs1, inputs2 or (), strict=inputs2 is not None):
        if first.shape[1:] != second.shape[1:]:
            raise InputError(
                "Expected `x1` and `x2` to have equally many features, got "
                f"{'x'.join(map(str, first.shape[1:]))} and {'x'.join(map(str, second.shape[1:]))}"
            )
    both = (inputs1, inputs2 or inputs1)
    problem = Problem(
        rows=counts[0] or len(inputs1[0]),
        columns=counts[inputs2 is not None] or len(both[1][0]),
        symmetric=inputs2 is None,
        features=inputs1[0].shape[-1],
        dtype=compute_dtype(*inputs1, *(inputs2 or ()), dtype=dtype, traced=numbers is not None),
        with_ntk=with_ntk,
        one_array=all(x is side[0] for side in both for x in side),
        traced=any(isinstance(x, jax.core.Tracer) for side in both for x in side),
    )
    return inputs1, inputs2, problem


def planned(network: Network, problem: Problem, numbers: Mapping[str, Any] | None) -> tuple[Plan, Weights]:
    """Returns the plan for a kernel, and the numbers of its program; `numbers` are those that JAX traces."""
    if numbers is not None:
        return parametric(network, problem, numbers)
    plan, dtype = choose(network, problem), problem.dtype
    if plan.series is None:
        return plan, weights_of(plan, dtype)
    check_range(plan.program, dtype)
    check_least(plan.series, dtype)
    return plan, weights_of_series(plan.series, plan.spec, dtype)


def _results(
    network: Network, inputs1: Arrays, inputs2: Arrays | None, plan: Plan, weights: Weights, dtype: np.dtype
) -> Kernels:
    """Returns NNGP and NTK of every output for checked inputs."""
    with precision_of(dtype):
        data1 = [jnp.asarray(x, dtype) for x in inputs1]
        data2 = None if inputs2 is None else [jnp.asarray(x, dtype) for x in inputs2]
        if plan.series is not None:
            data1, data2 = data1[:1], data2 and data2[:1]
        results = kernel_of_inputs(weights, data1, data2, spec=plan.spec, layout=plan.layout)
        if plan.quadrature and not isinstance(results[0][0], jax.core.Tracer):
            for data in (data1, data2) if data2 is not None else (data1,):
                check_quadratures(network, weights, data, plan.spec, plan.layout)
    return results


def _wanted(get: str | tuple[str, ...]) -> tuple[str, ...]:
    wanted = (get,) if isinstance(get, str) else tuple(get) if isinstance(get, Iterable) else ()
    names = all(isinstance(name, str) for name in wanted)
    if not (wanted and names) or set(wanted) - set(GETS):
        raise InputError(f"Expected `get` to be 'nngp', 'ntk' or both of them, got {shown(get)}")
    return wanted
