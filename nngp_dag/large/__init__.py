"""Kernel regression on many rows: a plan, and three methods, on one device, several, or several processes."""

from nngp_dag.large._plan import Plan, plan
from nngp_dag.large._solve import solve
from nngp_dag.large.result import HeldOut, Solution

__all__ = ["HeldOut", "Plan", "Solution", "plan", "solve"]
