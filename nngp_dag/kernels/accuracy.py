"""Whether the series behind `activations.Quadrature` is accurate at the variances that a network reaches."""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.activations import Quadrature, get_activation
from nngp_dag.architecture import Network
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.graph import Dense
from nngp_dag.kernels.backends.unrolled import Spec, Weights
from nngp_dag.kernels.blocking import second_moments
from nngp_dag.kernels.dual import quadrature_error
from nngp_dag.kernels.pixel_layout import PixelLayout

# Relative to the largest entries; a series this good is good enough for any spectrum that float32 inputs resolve.
TOLERANCE = 1e-6
# Kinks and jumps are off by 0.04 to 0.2; functions that vary faster than the points of the quadrature by 0.3 to 3.
REFUSED = 0.25
_REMEDY = "raise `degree`, reduce `w_std`, or use a closed form"


def check_quadratures(
    network: Network, weights: Weights, x: Sequence[jax.Array], spec: Spec, layout: PixelLayout
) -> None:
    """Warns where the series of an activation is not accurate at the variances of its inputs, or refuses it.

    Args:
      network: The network.
      weights: The numbers of its program.
      x: The data of every input node.
      spec: The program.
      layout: How axes lie.

    Raises:
      InputError: A function is not finite there, grows too fast, or its kernel would be off by a quarter or more.
    """
    q_in, q = second_moments(weights, x, spec=spec, layout=layout)
    uses: list[tuple[str, Dense, jax.Array]] = []
    if network.has_stem:
        uses += [("the stem", network.stem_op, value) for value in q_in]
    uses += [(f"edge {e}", e.op, q[e.source]) for e in network.edges if isinstance(e.op, Dense)]
    if network.reads_out_activated:
        uses += [("the readout", network.readout_op, q[output]) for output in network.dag.outputs]
    worst = 0.0, "", 0.0
    for where, op, variance in uses:
        phi = get_activation(op.activation)  # type: ignore[arg-type]
        if not isinstance(phi, Quadrature):
            continue
        if op.layer_norm:
            variance = jnp.ones_like(variance)
        if op.order == "linear-act":
            # A convolution averages variances; zeros around images make some of them smaller, which is easier.
            variance = op.w_std**2 * variance + (op.b_std or 0.0) ** 2
        reached = _spread(float(variance.min()), float(variance.max()))
        errors = quadrature_error(phi, reached, variance.dtype)
        error, at = float(errors.max()), float(reached[errors.argmax()])
        if error > REFUSED:
            raise InputError(
                f"Expected the quadrature of {phi.name} at {where} to be off by at most {REFUSED:.0%}, got "
                f"{error:.2g} of its second moment, or of that of its slope, at variance {at:.3g}; {_REMEDY}"
            )
        if error > worst[0]:
            worst = error, f"of {phi.name} at {where}", at
    error, what, at = worst
    if error > TOLERANCE:
        warnings.warn(
            f"Expected the quadrature {what} to be accurate to {TOLERANCE:g}, got an error of up to {error:.1g} of its "
            f"second moment, or of that of its slope, at variance {at:.3g}; {_REMEDY}",
            NumericalWarning,
            stacklevel=3,
        )


def _spread(least: float, largest: float) -> np.ndarray:
    """Returns variances from the least to the largest: both, and up to six between, since errors need not grow."""
    if not 0 < least < largest:
        return np.unique([least, largest])
    return np.geomspace(least, largest, 2 + min(6, int(np.log2(largest / least))))
