"""Exact infinite-width kernels of networks with any DAG connectivity, their theory and finite counterparts."""

import importlib
from typing import TYPE_CHECKING, Any

# Graphs and their operations
from nngp_dag import activations
from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Edge, Op, Scale, zoo

# Kernels
from nngp_dag.kernels import Kernel, gram, kernel

# Theory, sweeps, and training of finite networks
if TYPE_CHECKING:
    from nngp_dag.report import sweep
    from nngp_dag.theory import (
        Bracket,
        Brackets,
        LinearisedRuns,
        LossCurve,
        Modes,
        PathBound,
        Posterior,
        Spectrum,
        classification_accuracy,
        expected_loss,
        kernel_regression_accuracy,
        lambda_min_bracket,
        largest_stable_learning_rate,
        linearised_sgd,
        loss_curve,
        modes,
        ntk_path_bound,
        path_bound,
        posterior,
        principal_minor_bound,
        rate_bound,
        rate_bound_holds_for,
        spectra,
        spectrum,
    )
    from nngp_dag.training import Recipe, evaluate, train

__all__ = [
    "AvgPool",
    "Bracket",
    "Brackets",
    "Conv",
    "Dag",
    "Dense",
    "Edge",
    "Kernel",
    "LinearisedRuns",
    "LossCurve",
    "Modes",
    "Op",
    "PathBound",
    "Posterior",
    "Recipe",
    "Scale",
    "Spectrum",
    "activations",
    "classification_accuracy",
    "evaluate",
    "expected_loss",
    "gram",
    "kernel",
    "kernel_regression_accuracy",
    "lambda_min_bracket",
    "largest_stable_learning_rate",
    "linearised_sgd",
    "loss_curve",
    "modes",
    "ntk_path_bound",
    "path_bound",
    "posterior",
    "principal_minor_bound",
    "rate_bound",
    "rate_bound_holds_for",
    "spectra",
    "spectrum",
    "sweep",
    "train",
    "zoo",
]

# Loaded on first use, so that importing the package costs about what importing JAX does.
_LAZY = ("data", "nas", "nets", "report", "stax", "theory", "training")
_HOME = {"Recipe": "training", "evaluate": "training", "train": "training", "sweep": "report"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'theory')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY})
