"""Checks that the series behind `activations.Quadrature` is accurate at the variances that a network reaches."""

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

# Relative to the largest entries of a kernel. The rounding of float32 inputs hides eigenvalues below that, too.
TOLERANCE = 1e-6
# Functions with a kink or a jump have errors of 0.04 to 0.2 and are still useful. Functions that vary faster than the
# points of the quadrature have errors of 0.3 to 3, and their kernels are meaningless.
REFUSED = 0.25
_REMEDY = "raise `degree`, reduce `w_std`, or use a closed form"


def check_quadratures(
    network: Network, weights: Weights, x: Sequence[jax.Array], spec: Spec, layout: PixelLayout
) -> None:
    """Warns of an activation whose series is inaccurate at the variances of its inputs, or refuses it.

    The data determine the variances, so this check can only follow the computation of a kernel.

    Args:
      network: The network.
      weights: The numbers of its program.
      x: The data of every input node.
      spec: The compiled program's structure.
      layout: The axes of covariances.

    Raises:
      InputError: The function is not finite or grows too fast, or the relative error exceeds a quarter.
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
            # A convolution averages variances. Zeros around images lower some averages, where the series converges
            # faster.
            variance = op.w_std**2 * variance + (op.b_std or 0.0) ** 2
        reached = _spread(float(variance.min()), float(variance.max()))
        errors = quadrature_error(phi, reached, variance.dtype)
        error, at = float(errors.max()), float(reached[errors.argmax()])
        if error > REFUSED:
            raise InputError(
                f"Expected the quadrature of {phi.name} at {where} to have an error of at most {REFUSED:.0%}, got "
                f"{error:.2g} of E[phi(u)^2] or E[phi'(u)^2] at variance {at:.3g}; {_REMEDY}"
            )
        if error > worst[0]:
            worst = error, f"of {phi.name} at {where}", at
    error, what, at = worst
    if error > TOLERANCE:
        warnings.warn(
            f"Expected the quadrature {what} to be accurate to {TOLERANCE:g}, got an error of up to {error:.1g} of "
            f"E[phi(u)^2] or E[phi'(u)^2] at variance {at:.3g}; {_REMEDY}",
            NumericalWarning,
            stacklevel=3,
        )


def _spread(least: float, largest: float) -> np.ndarray:
    """Returns the least and the largest variance, and up to six between: the error may be largest inside the range."""
    if not 0 < least < largest:
        return np.unique([least, largest])
    return np.geomspace(least, largest, 2 + min(6, int(np.log2(largest / least))))
