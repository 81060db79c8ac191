"""Whether the series behind `activations.Quadrature` is accurate at the variances that a network reaches."""

import dataclasses
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.activations import Quadrature, get_activation
from nngp_dag.errors import NumericalWarning
from nngp_dag.graph import Dense, Network
from nngp_dag.kernels.blocks import second_moments
from nngp_dag.kernels.dual import quadrature_error
from nngp_dag.kernels.engine import Spec, Weights
from nngp_dag.kernels.space import Space

# Relative to the largest entries; a series this good is good enough for any spectrum that float32 inputs resolve.
TOLERANCE = 1e-6


def warn_if_inaccurate(
    network: Network, weights: Weights, x: Sequence[jax.Array], spec: Spec, space: Space, *, readout: bool
) -> None:
    """Warns where the series of an activation is truncated too early for the variances of its inputs.

    Args:
      network: The network.
      weights: The numbers of its program.
      x: The data of every input node.
      spec: The program.
      space: How axes lie.
      readout: Whether the readout follows.
    """
    q_in, q = second_moments(weights, x, spec=spec, space=space)
    uses: list[tuple[str, Dense, jax.Array]] = []
    if network.has_stem:
        uses += [("the stem", network.stem_op, value) for value in q_in]
    uses += [(f"edge {e}", e.op, q[e.source]) for e in network.edges if isinstance(e.op, Dense)]
    if readout and network.reads_out_activated:
        readout_op = dataclasses.replace(network.layer, layer_norm=False)
        uses += [("the readout", readout_op, q[output]) for output in network.dag.outputs]
    for where, op, variance in uses:
        phi = get_activation(op.activation)  # type: ignore[arg-type]
        if not isinstance(phi, Quadrature):
            continue
        if op.layer_norm:
            variance = jnp.ones_like(variance)
        if op.order == "linear-act":
            # A convolution averages variances; zeros around images make some of them smaller, which is easier.
            variance = op.w_std**2 * variance + (op.b_std or 0.0) ** 2
        extremes = jnp.stack([variance.min(), variance.max()])
        error = float(np.max(quadrature_error(phi, extremes)))
        if error > TOLERANCE:
            warnings.warn(
                f"Expected the quadrature of {phi.name} at {where} to be accurate to {TOLERANCE:g}, got a truncation "
                f"error of up to {error:.1g} at variances from {float(extremes[0]):.3g} to {float(extremes[1]):.3g}; "
                "raise `degree`, reduce `w_std`, or use a closed form",
                NumericalWarning,
                stacklevel=3,
            )
            return
