"""Kernels of many rows, regression on them, and their spectrum, on one device, several, or several processes."""

from nngp_dag.large._leading import LeadingEigenvalues, leading_eigenvalues
from nngp_dag.large._plan import Plan, plan
from nngp_dag.large._sharded import sharded_kernel
from nngp_dag.large._solve import solve
from nngp_dag.large.result import HeldOut, Solution

__all__ = [
    "HeldOut",
    "LeadingEigenvalues",
    "Plan",
    "Solution",
    "leading_eigenvalues",
    "plan",
    "sharded_kernel",
    "solve",
]
