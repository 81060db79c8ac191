"""The result of `kernel`: two matrices, and the network that they belong to."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Array, Float

from nngp_dag import forms
from nngp_dag.activations import ABRelu, Exp, Polynomial, get_activation
from nngp_dag.architecture import Network
from nngp_dag.errors import InputError, shorten, shown
from nngp_dag.forms import Described
from nngp_dag.graph import Dense, Operation
from nngp_dag.kernels.inputs import precision_of

# The message names a cause of an overflow if it alone takes up this share of the dtype's range of exponents.
_SHARE = 0.25


# The union with Any: a matrix that was not requested is None, and a type checker would demand a test at every use.
Matrix = Float[Array | np.ndarray, "n1 n2"] | Any


class OfKernel:
    """A model other than a `Network` to which kernels may belong; equal models have equal kernels."""


# Transformations drop `network` and `output`. Otherwise functions of kernels would compile anew for every network, and
# `jax.tree.map` would refuse kernels of two networks.
@partial(
    jax.tree_util.register_dataclass, data_fields=["nngp", "ntk"], meta_fields=[], drop_fields=["network", "output"]
)
@dataclass(frozen=True, repr=False)
class Kernel(Described):
    """The infinite-width kernels of a network, a JAX pytree.

    Attributes:
      nngp: The NNGP kernel E[f_k(x_i) f_k(x_j)], the mean over initializations for one output unit k, (N1, N2). None if
        it was not requested.
      ntk: The neural tangent kernel, (N1, N2); None if it was not requested.
      network: The network or traced model, which `nngp_dag.kernel` and `nngp_dag.gram` record. Functions of several
        kernels refuse kernels of different networks. None for kernels that a user builds, and for results of
        transformations such as `jax.jit` and `jax.tree.map`, which are not compared.
      output: The number of the network's output that the kernels belong to, counted from 0.

    Raises:
      InputError: `network` is neither a `Network`, nor a traced model, nor None.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> k = nd.kernel("2_12", np.eye(3))
      >>> k.ntk.shape, str(k.network)
      ((3, 3), '2_12 (dense-relu, sum)')
      >>> nd.Kernel(nngp=np.eye(2), ntk=None).network is None
      True

    Reference: Lee et al., ICLR 2018 (NNGP); Jacot et al., NeurIPS 2018 (NTK).
    """

    nngp: Matrix
    ntk: Matrix
    network: Network | OfKernel | None = field(default=None, compare=False, repr=False, kw_only=True)
    output: int = field(default=0, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the type of `network`."""
        if not isinstance(self.network, (Network, OfKernel, NoneType)):
            raise InputError(f"Expected `network` to be a `Network`, a traced model or None, got {shown(self.network)}")

    def _facts(self) -> dict[str, str]:
        facts = {name: forms.array(getattr(self, name)) for name in ("nngp", "ntk")}
        facts |= {} if self.network is None else {"network": repr(self.network)}
        return facts | ({"output": str(self.output)} if self.output else {})

    def difference(self, other: "Kernel") -> str:
        """Returns a text with the first option in which two kernels' networks differ; it is empty if they agree."""
        one, two = self.network, other.network
        if one is None or two is None:
            return ""
        if not (isinstance(one, Network) and isinstance(two, Network)):
            return "" if one == two else f"{shorten(repr(one), 160)} and {shorten(repr(two), 160)}"
        # Edges that are not live do not affect kernels, so they may differ.
        first, second = (
            {"dag": dataclasses.replace(k.dag, edges=k.dag.live_edges), **k.kernel_options} for k in (one, two)
        )
        pairs = [(name, first.get(name), second.get(name)) for name in first | second]
        pairs.append(("output", self.output, other.output))
        return next(
            (f"`{name}` {shorten(str(a), 160)} and {shorten(str(b), 160)}" for name, a, b in pairs if a != b), ""
        )


@jax.jit
def _is_finite(values: Any) -> jax.Array:
    """Whether all entries of an array are finite; XLA fuses the sum, so no array of that size is allocated."""
    return (0 * values).sum() == 0


def finished(
    nngp: jax.Array,
    ntk: jax.Array | None,
    dtype: np.dtype,
    wanted: Sequence[str],
    network: Network | None,
    output: int,
    inputs: Sequence[np.ndarray | jax.Array],
) -> Kernel:
    """Returns the requested matrices, after a check that they are finite.

    Args:
      nngp: The NNGP kernel, (N1, N2).
      ntk: The NTK, (N1, N2), or None.
      dtype: The precision of both.
      wanted: The requested matrices: "nngp", "ntk" or both.
      network: The network; None if JAX traces its numbers, so that no network has them.
      output: The number of the network's output.
      inputs: The inputs of the kernels, from which the message names a cause of an overflow.

    Raises:
      InputError: A requested matrix has entries that are not finite; the message names a cause and a remedy.
    """
    results: dict[str, jax.Array | np.ndarray | None] = {"nngp": nngp, "ntk": ntk}
    if network is not None and not isinstance(nngp, jax.core.Tracer):
        # Inputs and weights have been checked to be in range, but products along a graph may still overflow.
        with precision_of(dtype):
            broken = [name for name in wanted if not _is_finite(results[name])]
        if broken:
            what = " and ".join(f"an {name.upper()}" for name in broken)
            raise InputError(
                f"Expected kernels that {dtype} can hold, got {what} with entries that are not finite; "
                f"{_cause(network, inputs, dtype)}"
            )
        if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
            results = {name: None if v is None else np.asarray(v) for name, v in results.items()}
    return Kernel(
        **{name: v if name in wanted else None for name, v in results.items()}, network=network, output=output
    )


def _cause(network: Network, inputs: Sequence[np.ndarray | jax.Array], dtype: np.dtype) -> str:
    """Returns a text with the causes of an overflow of a network's kernels, and with remedies."""
    along = partial(_most_along_a_path, network)
    depth = along(lambda op: isinstance(op, Dense))
    largest = max(float(abs(np.asarray(x, np.float64)).max()) for x in inputs)
    stds = [op.w_std for op in network.weighted_operations]
    scaling = sorted({f"`{type(edge.op).__name__}`" for edge in network.edges if abs(edge.op.factor) > 1})
    # For each possible cause: the powers of 2 that it may contribute to a kernel, its description, and the remedy.
    causes = [
        (
            along(lambda op: math.log2(_gain(op)) if isinstance(op, Dense) else 0),
            f"gradients and variances grow along its {depth:,.0f} weighted edges in a row, at `w_std` {max(stds):g}",
            "lower `w_std`, or take fewer layers",
        ),
        (
            2 * math.log2(max(1, network.dag.num_paths)) if network.aggregation == "sum" else 0,
            f"its {_count(network.dag.num_paths)} paths, through skips and parallel edges, add up",
            "aggregation='mean' or 'scaled-sum', or fewer parallel skips",
        ),
        (
            along(lambda op: 2 * math.log2(abs(op.factor)) if op.factor else 0),
            f"the factors of its edges ({', '.join(scaling)}) multiply",
            "smaller factors",
        ),
        (2 * math.log2(max(1.0, largest)), f"entries of the inputs reach {largest:.3g}", "rescale the inputs"),
    ]
    found = [cause for cause in causes if cause[0] > _SHARE * np.finfo(dtype).maxexp]
    if not found:
        steep = [
            phi for phi in map(get_activation, (op.activation for op in network.weighted_operations)) if _grows(phi)
        ]
        grow = (
            f"the activation {steep[0].name} grows faster than its input"
            if steep
            else "its values grow along the graph"
        )
        found = [(0, grow, "lower `w_std`, scale the inputs down, or take fewer layers")]
    needed = sum(powers for powers, *_ in causes)
    wider = ["dtype='float64'"] if dtype == np.float32 and found[0][0] and needed < np.finfo(np.float64).maxexp else []
    reasons, remedies = zip(*(cause[1:] for cause in sorted(found, reverse=True)), strict=True)
    return f"{' and '.join(reasons)}: {', or '.join([*remedies, *wider])}"


def _most_along_a_path(network: Network, size: Callable[[Operation], float]) -> float:
    """Returns the largest sum of `size` over the operations of a path to an output."""
    most = [0.0] * network.dag.num_nodes
    for node, into in enumerate(network.into):
        most[node] = max((most[edge.source] + size(edge.op) for edge in into), default=0.0)
    return max(most[output] for output in network.dag.outputs)


def _gain(op: Dense) -> float:
    """Returns the factor of a layer in squared gradients: exact for ReLU-type activations, else for a slope of 1."""
    phi = get_activation(op.activation)
    return op.w_std**2 * ((phi.a**2 + phi.b**2) / 2 if isinstance(phi, ABRelu) else 1)


def _grows(phi: Any) -> bool:
    return isinstance(phi, Exp) or (isinstance(phi, Polynomial) and len(phi.coefficients) > 2)


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**9 else f"10^{math.log10(number):.0f}"
