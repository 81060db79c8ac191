"""Kernels of many networks on the same data, several at once: what they share is evaluated once."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.architecture import Network
from nngp_dag.architecture.equivalence import KernelClasses
from nngp_dag.errors import within_memory
from nngp_dag.graph import Dense
from nngp_dag.kernels.backends.chebyshev import together
from nngp_dag.kernels.backends.loop_tables import Sizes, sizes_of
from nngp_dag.kernels.backends.unrolled import Kernels
from nngp_dag.kernels.blocking import kernel_of_inputs
from nngp_dag.kernels.choose import is_homogeneous, plan_of_stack, series_of_stack, spec_of_stacked_series
from nngp_dag.kernels.inputs import check_inputs, compute_dtype, precision_of
from nngp_dag.kernels.pixel_layout import PixelLayout
from nngp_dag.kernels.weights import check_range, weights_of, weights_of_series

# Kernels so small that some too many cost less than a compilation.
_SMALL_ENTRIES = 1 << 16
# Kernels whose series are found at once; they need no memory to speak of.
_SERIES = 256


class Stack(NamedTuple):
    """Kernels of several networks.

    Attributes:
      digests: The classes of their outputs.
      nngp: E[f f'], (networks, N, N).
      ntk: The neural tangent kernels, in the same order.
    """

    digests: tuple[str, ...]
    nngp: np.ndarray
    ntk: np.ndarray


def new_kernel_classes() -> KernelClasses:
    """Returns `KernelClasses` that know which operations are homogeneous."""
    return KernelClasses(lambda op: is_homogeneous([op]))


def kernels_of_classes(
    kernel_classes: KernelClasses,
    outputs: Sequence[str],
    network: Network,
    x: ArrayLike,
    *,
    batch: int,
    known: frozenset[str] = frozenset(),
) -> Iterator[Stack]:
    """Computes the kernels of networks without convolutions and pooling, in batches.

    All batches share one compiled program: of series in the angle where the networks have them, otherwise a loop over
    the classes of all nodes. Memory: that of a `Stack`, twice.

    Args:
      kernel_classes: Where the networks were taken in.
      outputs: The different classes of their outputs.
      network: One of them; all agree in all but the graph.
      x: Inputs, (N, ...), for every input node.
      batch: How many kernels come at once.
      known: Outputs that are not wanted. Batches of nothing else are left out; the others are what they are without it,
        and so are the bits of their kernels.

    Yields:
      A `Stack` for each batch, in the order of `outputs`, but those that have no series last.

    Raises:
      GraphError: A multiplicity exceeds the dtype.
      InputError: As `nngp_dag.kernel`.
    """
    data = check_inputs("x", x, network)[0]
    dtype = compute_dtype(data)
    with precision_of(dtype):
        inputs: Any = jnp.asarray(data, dtype)
    operation = network.readout_op if network.readout else None
    series = _series(kernel_classes, outputs, network, operation, data.shape[1], dtype)
    with_series = [digest for digest in outputs if digest in series]
    if with_series:
        all_series, size = together([series[digest] for digest in with_series]), _size(with_series, batch, data)
        for part in _parts(range(len(with_series)), batch):
            if all(with_series[i] in known for i in part):
                continue
            with precision_of(dtype), _fitting(part, data):
                spec = spec_of_stacked_series(size)
                weights = weights_of_series(all_series[_filled(part, size)], spec, dtype)
                found = kernel_of_inputs(weights, [inputs], None, spec=spec, layout=PixelLayout())
            yield _stack([with_series[i] for i in part], found)
            del found

    without = [digest for digest in outputs if digest not in series]
    if not without:
        return
    size = _size(without, batch, data)
    programs = [kernel_classes.program(tuple(_filled(part, size)), operation) for part in _parts(without, batch)]
    least = Sizes(*map(max, *(sizes_of(program) for program in programs), Sizes()))
    for part, program in zip(_parts(without, batch), programs, strict=True):
        if known.issuperset(part):
            continue
        plan = plan_of_stack(program, network)
        with precision_of(dtype), _fitting(part, data):
            weights = weights_of(plan, dtype, least)
            several = [inputs] * program.structure.num_inputs
            found = kernel_of_inputs(weights, several, None, spec=plan.spec, layout=PixelLayout())
        yield _stack(part, found)
        del found


def _fitting(part: Sequence[Any], data: np.ndarray | jax.Array) -> AbstractContextManager[None]:
    return within_memory(
        f"{len(part)} kernels of {len(data):,} inputs at once", "lower `memory_budget`, or take fewer inputs"
    )


def _series(
    kernel_classes: KernelClasses,
    outputs: Sequence[str],
    network: Network,
    readout: Dense | None,
    channels: int,
    dtype: np.dtype,
) -> dict[str, np.ndarray]:
    """Returns the series of the classes that are evaluated by one."""
    found: dict[str, np.ndarray] = {}
    for part in _parts(outputs, _SERIES):
        plan = plan_of_stack(kernel_classes.program(tuple(part), readout), network)
        check_range(plan.program, dtype)
        series = series_of_stack(plan, channels, dtype)
        found |= {digest: v for digest, v in zip(part, series, strict=True) if v is not None}
    return found


def _parts(items: Sequence[Any], batch: int) -> list[list[Any]]:
    return [list(items[i : i + batch]) for i in range(0, len(items), batch)]


def _size(items: Sequence[Any], batch: int, data: np.ndarray | jax.Array) -> int:
    """How many kernels a batch is filled up to."""
    size = min(batch, len(items))
    # Of small ones so that sweeps of about equal size share a compilation.
    return min(batch, max(8, 1 << (size - 1).bit_length())) if len(data) ** 2 <= _SMALL_ENTRIES else size


def _filled(part: list[Any], size: int) -> list[Any]:
    return part + part[-1:] * (size - len(part))


def _stack(part: Sequence[str], found: Kernels) -> Stack:
    [(nngp, ntk)] = found
    return Stack(tuple(part), *(np.asarray(v)[: len(part)] for v in (nngp, ntk)))
