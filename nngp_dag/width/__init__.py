"""Networks of finite width: spread over initializations, and gradient descent beside the exact expectation."""

from nngp_dag.width._effects import width_effects
from nngp_dag.width._spread import WidthSpread, width_spread
from nngp_dag.width.effects_result import Deviation, WideEnough, WidthEffects
from nngp_dag.width.functionals import FUNCTIONALS
from nngp_dag.width.readout import readout_noise

__all__ = [
    "FUNCTIONALS",
    "Deviation",
    "WideEnough",
    "WidthEffects",
    "WidthSpread",
    "readout_noise",
    "width_effects",
    "width_spread",
]
