"""Models and covariance functions in the form that other libraries accept.

scikit-learn's are here. Those of GPJax and of GPyTorch are in `nngp_dag.estimators.gpjax` and
`nngp_dag.estimators.gpytorch`, which need these libraries and are imported only when they are asked for.
"""

# Nothing is imported at run time: a model of one library does not wait for another library.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nngp_dag.estimators.covariance import NNGPKernel, NTKKernel
    from nngp_dag.estimators.scikit_learn import NNGPClassifier, NNGPRegressor, NTKClassifier, NTKRegressor

__all__ = ["NNGPClassifier", "NNGPKernel", "NNGPRegressor", "NTKClassifier", "NTKKernel", "NTKRegressor"]

_MODULES = ("covariance", "gpjax", "gpytorch", "scikit_learn")


def __getattr__(name: str) -> "Any":
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "covariance" if name.endswith("Kernel") else "scikit_learn"
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
