"""Kernels of many networks on the same data, several at once: what they share is evaluated once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.graph import Dense, Network
from nngp_dag.graph.laws import Laws
from nngp_dag.graph.program import Program
from nngp_dag.kernels.angular import series_of, spec_of_series, together
from nngp_dag.kernels.blocks import kernel_of_inputs
from nngp_dag.kernels.engine import Spec
from nngp_dag.kernels.inputs import check_inputs, compute_dtype, precision_of
from nngp_dag.kernels.kernel import (
    Evaluation,
    is_homogeneous,
    weights_of,
    weights_of_series,
)
from nngp_dag.kernels.law import Rules
from nngp_dag.kernels.loop import Sizes, loop_structure, sizes_of
from nngp_dag.kernels.space import Space

# Kernels so small that some too many cost less than a compilation.
_SMALL_ENTRIES = 1 << 16


class Stack(NamedTuple):
    """Kernels of several networks.

    Attributes:
      laws: Their outputs' laws.
      nngp: E[f f'], (networks, N, N).
      ntk: The neural tangent kernels, likewise.
    """

    laws: tuple[str, ...]
    nngp: np.ndarray
    ntk: np.ndarray


def new_laws() -> Laws:
    """Returns `Laws` that know which operations are homogeneous."""
    return Laws(lambda op: is_homogeneous([op]))


def kernels_of_laws(
    laws: Laws, outputs: Sequence[str], network: Network, x: ArrayLike, *, readout: bool, rules: Rules, batch: int
) -> Iterator[Stack]:
    """Computes the kernels of networks without convolutions and pooling, in batches.

    All batches share one compiled program: of series in the angle where the networks have them, otherwise a loop over
    the laws of all nodes. Memory: that of a `Stack`, twice.

    Args:
      laws: Where the networks were taken in.
      outputs: The different laws of their outputs.
      network: One of them; all agree in stem, readout and layer.
      x: Inputs, (N, ...), for every input node.
      readout: Whether the readout follows.
      rules: The parameterisation.
      batch: How many kernels come at once.

    Yields:
      A `Stack` for each batch, in the order of `outputs`.

    Raises:
      GraphError: A multiplicity exceeds the dtype.
      InputError: As `nngp_dag.kernel`.
    """
    data = check_inputs("x", x, network)[0]
    dtype = compute_dtype(data)
    operation = _readout(network) if readout else None
    batches = [tuple(outputs[i : i + batch]) for i in range(0, len(outputs), batch)]
    size = min(batch, len(outputs))
    if len(data) ** 2 <= _SMALL_ENTRIES:
        # Filled up, so that sweeps of about equal size share a compilation.
        size = min(batch, max(8, 1 << (size - 1).bit_length()))
    programs = [laws.program(_filled(part, size), operation) for part in batches]
    least = Sizes(*map(max, *(sizes_of(program) for program in programs), Sizes()))
    plans = [_plan(program, network, rules) for program in programs]
    # All or none, and as long as the longest, so that batches share the compiled program.
    of_batches = [series_of(p.program, p.spec, data.shape[1], dtype) if p.spec.homogeneous else None for p in plans]
    series = together(of_batches)
    with precision_of(dtype):
        inputs: Any = jnp.asarray(data, dtype)
    for index, (part, plan) in enumerate(zip(batches, plans, strict=True)):
        with precision_of(dtype):
            weights, spec = weights_of(plan, dtype, least), plan.spec
            several = [inputs] * plan.program.structure.num_inputs
            if series is not None:
                weights, spec = weights_of_series(plan, series[index], dtype), spec_of_series(size, True, stacked=True)
                several = [inputs]
            [(nngp, ntk)] = kernel_of_inputs(weights, several, None, spec=spec, space=Space())
        assert ntk is not None
        yield Stack(part, *(np.asarray(v)[: len(part)] for v in (nngp, ntk)))
        del nngp, ntk


def _plan(program: Program, network: Network, rules: Rules) -> Evaluation:
    structure = loop_structure(program.structure)
    operations = [field.op for step in structure.steps for field in step.fields]
    spec = Spec(
        structure=structure,
        stem=network.stem_op if network.has_stem else None,
        readout=None,
        readout_activation=None,
        pixels=None,
        rules=rules,
        with_ntk=True,
        homogeneous=is_homogeneous([network.stem_op, *operations]),
        loop=True,
        stacked=True,
    )
    return Evaluation(program, spec, Space(), False)


def _readout(network: Network) -> Dense:
    layer = network.layer
    activation = layer.activation if network.reads_out_activated else None
    return Dense(activation=activation, order="act-linear", w_std=layer.w_std, b_std=layer.b_std)


def _filled(part: tuple[str, ...], size: int) -> tuple[str, ...]:
    return part + part[-1:] * (size - len(part))
