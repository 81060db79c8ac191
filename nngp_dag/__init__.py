"""Exact infinite-width kernels of networks with any DAG connectivity, their theory and finite counterparts."""

import importlib
from types import ModuleType

# Graphs
from nngp_dag.graph import Dag, Edge, Op, zoo

# Kernels
from nngp_dag.kernels import Kernel, kernel

# Theory
from nngp_dag.theory import (
    PathBound,
    Spectrum,
    expected_loss,
    path_bound,
    rate_bound,
    rate_bound_holds_for,
    spectrum,
)

__all__ = [
    "Dag",
    "Edge",
    "Kernel",
    "Op",
    "PathBound",
    "Spectrum",
    "expected_loss",
    "kernel",
    "path_bound",
    "rate_bound",
    "rate_bound_holds_for",
    "spectrum",
    "zoo",
]

# Loaded on first use, so that importing the package costs about what importing JAX does.
_LAZY = ("data", "nets", "report", "stax")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
