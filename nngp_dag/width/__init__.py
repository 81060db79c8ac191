"""Networks of finite width: the spread over initializations of whatever their NNGP determines."""

from nngp_dag.width._spread import WidthSpread, width_spread
from nngp_dag.width.functionals import FUNCTIONALS

__all__ = ["FUNCTIONALS", "WidthSpread", "width_spread"]
