"""Kernels of many networks on the same data, in batches: nodes with equal kernels are evaluated once."""

from collections.abc import Callable, Iterator, Sequence
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

# Kernels of at most this many entries are so small that computing a few too many costs less than a compilation.
_SMALL_ENTRIES = 1 << 16
# The number of networks whose series are computed together; a series takes little memory.
_SERIES = 256


class Stack(NamedTuple):
    """Kernels of several networks.

    Attributes:
      digests: The digests of the classes of their outputs.
      nngp: The NNGP kernels E[f(x_i) f(x_j)], (networks, N, N).
      ntk: The neural tangent kernels, (networks, N, N).
    """

    digests: tuple[str, ...]
    nngp: np.ndarray
    ntk: np.ndarray


def new_kernel_classes() -> KernelClasses:
    """Returns empty `KernelClasses` that recognize homogeneous operations."""
    return KernelClasses(lambda op: is_homogeneous([op]))


def kernels_of_classes(
    kernel_classes: KernelClasses,
    outputs: Sequence[str],
    network: Network,
    x: ArrayLike,
    *,
    batch: int,
    known: frozenset[str] = frozenset(),
    takes: Callable[[Sequence[str]], bool] = lambda part: True,
) -> Iterator[Stack]:
    """Computes the kernels of networks without convolutions and pooling, in batches.

    All batches share one compiled program. Where the networks have Chebyshev series in the angle, it sums them;
    otherwise it is a loop over the classes of all nodes. The memory is twice that of a `Stack`.

    Args:
      kernel_classes: The classes to which the networks were added.
      outputs: The different classes of their outputs.
      network: One of the networks; all of them agree in everything but the graph.
      x: The inputs, (N, ...), which every input node reads.
      batch: The number of kernels of a batch.
      known: Outputs that are already known. A batch is left out if it holds no other outputs. The remaining batches do
        not depend on this argument, so their kernels have the same bits with and without it.
      takes: Function of the outputs of a batch that is not known. It returns whether the batch is computed here; other
        batches are left out, in several processes that share them.

    Yields:
      A `Stack` for each batch, in the order of `outputs`; batches of networks without series come last.

    Raises:
      GraphError: A skip multiplicity exceeds the dtype.
      InputError: `nngp_dag.kernel` would refuse the inputs.
      OutOfMemoryError: A batch does not fit into memory.
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
            digests = [with_series[i] for i in part]
            if known.issuperset(digests) or not takes(digests):
                continue
            with precision_of(dtype), _fitting(part, data):
                spec = spec_of_stacked_series(size)
                weights = weights_of_series(all_series[_filled(part, size)], spec, dtype)
                found = kernel_of_inputs(weights, [inputs], None, spec=spec, layout=PixelLayout())
            yield _stack(digests, found)
            del found

    without = [digest for digest in outputs if digest not in series]
    if not without:
        return
    size = _size(without, batch, data)
    programs = [kernel_classes.program(tuple(_filled(part, size)), operation) for part in _parts(without, batch)]
    least = Sizes(*map(max, *(sizes_of(program) for program in programs), Sizes()))
    for part, program in zip(_parts(without, batch), programs, strict=True):
        if known.issuperset(part) or not takes(part):
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
    """Returns the Chebyshev series of the classes that have one."""
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
    """Returns the number of kernels to which every batch is filled up."""
    size = min(batch, len(items))
    # The numbers of small kernels are rounded up to powers of 2, so that sweeps of about equal size share a
    # compilation.
    return min(batch, max(8, 1 << (size - 1).bit_length())) if len(data) ** 2 <= _SMALL_ENTRIES else size


def _filled(part: list[Any], size: int) -> list[Any]:
    return part + part[-1:] * (size - len(part))


def _stack(part: Sequence[str], found: Kernels) -> Stack:
    [(nngp, ntk)] = found
    return Stack(tuple(part), *(np.asarray(v)[: len(part)] for v in (nngp, ntk)))
