"""The numbers of a program in the precision of a call, and whether it can hold them."""

import jax
import numpy as np

from nngp_dag.architecture.program import Program
from nngp_dag.errors import GraphError, InputError
from nngp_dag.kernels.backends.loop_tables import Sizes, tables
from nngp_dag.kernels.backends.unrolled import Spec, Weights
from nngp_dag.kernels.choose import Plan

_WIDER = ", or pass dtype='float64'"


def weights_of(plan: Plan, dtype: np.dtype, least: Sizes | None = None) -> Weights:
    """Returns the numbers of a program in `dtype`; for a loop in tables of the sizes `least` or larger.

    Raises:
      GraphError: They do not fit into it.
    """
    check_range(plan.program, dtype)
    loop = tables(plan.program, dtype, least) if plan.spec.loop else None
    terms, means = (v[:0] if loop else v for v in (plan.program.weights, plan.program.mean_weights))
    layers = np.array(jax.tree.leaves(plan.layers), np.float64)
    true = None if plan.spec.blocks.gpu and not plan.layout.ndim else np.asarray(True)
    # Compiled functions take NumPy's arrays as they are; making JAX's of them would compile something for each shape.
    with np.errstate(over="ignore"):  # the kernels will not be finite, which is reported
        return Weights(terms.astype(dtype), means.astype(dtype), layers.astype(dtype), loop, true)


def weights_of_series(series: np.ndarray, spec: Spec, dtype: np.dtype) -> Weights:
    """Returns the numbers of a program whose outputs are series in the angle, see `backends.chebyshev`."""
    empty = np.zeros(0, dtype)
    with np.errstate(over="ignore"):  # the kernels will not be finite, which is reported
        return Weights(empty, empty, empty, None, None if spec.blocks.gpu else np.asarray(True), series.astype(dtype))


def check_range(program: Program, dtype: np.dtype) -> None:
    """Checks that a dtype holds a program's weights.

    Raises:
      GraphError: It does not.
    """
    largest = max(np.abs(part).max(initial=0) for part in (program.weights, program.mean_weights))
    if largest > np.finfo(dtype).max:
        raise GraphError(
            f"Expected multiplicities of skips and scales whose squares {dtype} can hold, got {largest:g}; use smaller "
            f"scales or fewer parallel skips{'' if dtype == np.float64 else _WIDER}"
        )


def check_least(series: np.ndarray, dtype: np.dtype) -> None:
    """Checks that kernels of inputs whose squares have mean 1 are not so small that a dtype loses digits of them.

    Raises:
      InputError: They are.
    """
    largest = np.abs(series).max(axis=2)
    lost = (largest > 0) & (largest < np.finfo(dtype).tiny / np.finfo(dtype).eps)
    if lost.any():
        raise InputError(
            f"Expected kernels that {dtype} can hold, got {largest[lost].min():g} for inputs whose squares have mean "
            f"1; use larger weights{'' if dtype == np.float64 else _WIDER}"
        )
