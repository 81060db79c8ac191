"""The numbers of a program in the precision of a call, and checks that the precision can hold them."""

import jax
import numpy as np

from nngp_dag.architecture.program import Program
from nngp_dag.errors import GraphError, InputError
from nngp_dag.kernels.backends.loop_tables import Sizes, tables
from nngp_dag.kernels.backends.unrolled import Spec, Weights
from nngp_dag.kernels.choose import Plan

_WIDER = ", or pass dtype='float64'"


def weights_of(plan: Plan, dtype: np.dtype, least: Sizes | None = None) -> Weights:
    """Returns the numbers of a program in a dtype.

    Args:
      plan: The plan of the computation.
      dtype: The dtype of the numbers.
      least: The smallest sizes of a loop's tables.

    Raises:
      GraphError: The dtype cannot hold a weight.
    """
    check_range(plan.program, dtype)
    loop = tables(plan.program, dtype, least) if plan.spec.loop else None
    terms, means = (v[:0] if loop else v for v in (plan.program.weights, plan.program.mean_weights))
    layers = np.array(jax.tree.leaves(plan.layers), np.float64)
    true = None if plan.spec.blocks.gpu and not plan.layout.ndim else np.asarray(True)
    # Compiled functions accept NumPy arrays. Their conversion to JAX arrays would compile a program for each shape.
    with np.errstate(over="ignore"):  # an overflow makes the kernels infinite, which `finished` reports
        return Weights(terms.astype(dtype), means.astype(dtype), layers.astype(dtype), loop, true)


def weights_of_series(series: np.ndarray, spec: Spec, dtype: np.dtype) -> Weights:
    """Returns the numbers of a program whose outputs are Chebyshev series in the angle, see `backends.chebyshev`."""
    empty = np.zeros(0, dtype)
    with np.errstate(over="ignore"):  # an overflow makes the kernels infinite, which `finished` reports
        return Weights(empty, empty, empty, None, None if spec.blocks.gpu else np.asarray(True), series.astype(dtype))


def check_range(program: Program, dtype: np.dtype) -> None:
    """Checks that a dtype can hold a program's weights.

    Raises:
      GraphError: A weight exceeds the dtype.
    """
    largest = max(np.abs(part).max(initial=0) for part in (program.weights, program.mean_weights))
    if largest > np.finfo(dtype).max:
        raise GraphError(
            f"Expected multiplicities of skips and scales whose squares {dtype} can hold, got {largest:g}; use smaller "
            f"scales or fewer parallel skips{'' if dtype == np.float64 else _WIDER}"
        )


def check_least(series: np.ndarray, dtype: np.dtype) -> None:
    """Checks that a dtype can hold Chebyshev series with all their digits.

    Series that underflow are refused for inputs whose squares have mean 1, the scale on which they are stored.

    Raises:
      InputError: A series is so small that the dtype would lose digits of it.
    """
    largest = np.abs(series).max(axis=2)
    lost = (largest > 0) & (largest < np.finfo(dtype).tiny / np.finfo(dtype).eps)
    if lost.any():
        raise InputError(
            f"Expected kernels that {dtype} can hold, got {largest[lost].min():g} for inputs with mean square "
            f"1; use larger weights{'' if dtype == np.float64 else _WIDER}"
        )
