"""Exact infinite-width kernels of networks with any DAG connectivity, their theory and finite counterparts."""

__version__ = "0.1.0"

# Nothing is imported at run time: the command line cannot answer an interruption before its imports are done.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # Graphs, their operations, and networks
    from nngp_dag import activations
    from nngp_dag.architecture import Network
    from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Edge, Op, Scale, SumPool, zoo

    # Kernels
    from nngp_dag.kernels import Kernel, explain, gram, kernel

    # Many rows
    from nngp_dag.large import LeadingEigenvalues, Plan, Solution, leading_eigenvalues, plan, sharded_kernel, solve

    # Theory, sweeps, searches, comparisons, and training of finite networks
    from nngp_dag.report import GraphSearch, compare, search_graph, sweep
    from nngp_dag.theory import (
        Bracket,
        Brackets,
        Fit,
        LeaveOneOut,
        LinearizedRuns,
        LossCurve,
        Modes,
        PathBound,
        Posterior,
        Spectrum,
        classification_accuracy,
        expected_loss,
        fit,
        kernel_regression_accuracy,
        lambda_min_bracket,
        largest_stable_learning_rate,
        leave_one_out,
        linearized_prediction,
        linearized_sgd,
        log_marginal_likelihood,
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

    # Models of JAX and flax
    from nngp_dag.tracing import empirical, trace
    from nngp_dag.training import Recipe, evaluate, train

    # Finite width
    from nngp_dag.width import WidthEffects, WidthSpread, width_effects, width_spread

__all__ = [
    "AvgPool",
    "Bracket",
    "Brackets",
    "Conv",
    "Dag",
    "Dense",
    "Edge",
    "Fit",
    "GraphSearch",
    "Kernel",
    "LeadingEigenvalues",
    "LeaveOneOut",
    "LinearizedRuns",
    "LossCurve",
    "Modes",
    "Network",
    "Op",
    "PathBound",
    "Plan",
    "Posterior",
    "Recipe",
    "Scale",
    "Solution",
    "Spectrum",
    "SumPool",
    "WidthEffects",
    "WidthSpread",
    "activations",
    "classification_accuracy",
    "compare",
    "empirical",
    "evaluate",
    "expected_loss",
    "explain",
    "fit",
    "gram",
    "kernel",
    "kernel_regression_accuracy",
    "lambda_min_bracket",
    "largest_stable_learning_rate",
    "leading_eigenvalues",
    "leave_one_out",
    "linearized_prediction",
    "linearized_sgd",
    "log_marginal_likelihood",
    "loss_curve",
    "modes",
    "ntk_path_bound",
    "path_bound",
    "plan",
    "posterior",
    "principal_minor_bound",
    "rate_bound",
    "rate_bound_holds_for",
    "search_graph",
    "sharded_kernel",
    "solve",
    "spectra",
    "spectrum",
    "sweep",
    "trace",
    "train",
    "width_effects",
    "width_spread",
    "zoo",
]

# Everything is loaded on first use, so that importing the package takes no time. The command line can then answer an
# interruption, or a question for help, at once.
_MODULES = frozenset(
    (
        "activations",
        "architecture",
        "data",
        "distributed",
        "errors",
        "estimators",
        "graph",
        "kernels",
        "large",
        "nas",
        "nets",
        "report",
        "stax",
        "theory",
        "tracing",
        "training",
        "width",
    )
)
_HOME = {
    **dict.fromkeys(("AvgPool", "Conv", "Dag", "Dense", "Edge", "Op", "Scale", "SumPool", "zoo"), "graph"),
    "Network": "architecture",
    **dict.fromkeys(("Kernel", "explain", "gram", "kernel"), "kernels"),
    **dict.fromkeys(
        ("LeadingEigenvalues", "Plan", "Solution", "leading_eigenvalues", "plan", "sharded_kernel", "solve"), "large"
    ),
    **dict.fromkeys(("GraphSearch", "compare", "search_graph", "sweep"), "report"),
    **dict.fromkeys(("Recipe", "evaluate", "train"), "training"),
    **dict.fromkeys(("empirical", "trace"), "tracing"),
    **dict.fromkeys(("WidthEffects", "WidthSpread", "width_effects", "width_spread"), "width"),
}


def __getattr__(name: str) -> "Any":
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'theory')}"), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
