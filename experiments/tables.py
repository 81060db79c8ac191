"""How well do the kernels of networks predict small tables, beside those of scikit-learn?

The tables are those that scikit-learn brings: diabetes (regression), iris, wine and breast cancer (classification).
Every model is kernel regression in one protocol. Targets of regression are normalized, and classes are centered one-hot
vectors. Features are standardized on the training rows. The error is that of five-fold cross-validation, the root of
the mean squared error or the share of wrong classes. In every fold, the noise is the one of seven values with the
least error in a three-fold cross-validation inside the training rows. This rule is the same for all kernels.

The kernels are the NNGP and the NTK of four networks, the arc-cosine kernel of order 1, and the RBF kernel, all with
fixed numbers. The length scale of RBF is the square root of the number of features. "RBF, length chosen" chooses it
together with the noise, out of half, one and two times that.

    python experiments/tables.py [--tables diabetes iris wine cancer] [--out experiments/results/tables]

It writes tables.csv (one row per table, model and fold), tables.json (means and standard deviations over folds) and
tables.png, in some minutes.
"""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Kernel
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nngp_dag as nd

TABLES: dict[str, Callable[..., Any]] = {
    "diabetes": load_diabetes,
    "iris": load_iris,
    "wine": load_wine,
    "cancer": load_breast_cancer,
}
# Hyperparameters stay as they are. scikit-learn documents None here, but is typed for texts alone.
NONE: Any = None
NOISES = np.logspace(-3, 3, 7)
NETWORKS: dict[str, dict[str, Any]] = {
    "DAG#1": {"network": "DAG#1"},
    "DAG#2": {"network": "DAG#2"},
    "DAG#3": {"network": "DAG#3"},
    "DAG#3, biases": {"network": "DAG#3", "b_std": 1.0},
}


class ArcCosine(Kernel):
    """The arc-cosine kernel of order 1: |x| |y| (sin a + (pi - a) cos a) / pi, with a the angle of x and y.

    Reference: Cho and Saul, NeurIPS 2009, equation 6.
    """

    def __init__(self) -> None:
        """Takes nothing; scikit-learn reads the parameters of a kernel from here."""

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Returns the kernel matrix, and on request its gradient, which is empty: there is nothing to optimize."""
        Y = X if Y is None else Y
        size = np.outer(np.linalg.norm(X, axis=1), np.linalg.norm(Y, axis=1))
        angle = np.arccos(np.clip(np.divide(X @ Y.T, size, out=np.zeros_like(size), where=size > 0), -1, 1))
        values = size * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
        return (values, np.empty((*values.shape, 0))) if eval_gradient else values

    def diag(self, X: Any) -> Any:
        """Returns the diagonal of the kernel matrix, the squared norms."""
        return np.sum(X**2, axis=1)

    def is_stationary(self) -> Any:
        """Whether the kernel depends on differences alone, which it does not."""
        return False


class OneHot(ClassifierMixin, BaseEstimator):
    """Classification by a Gaussian process regressed on centered one-hot targets, as `NNGPClassifier` has it."""

    def __init__(self, kernel: Any = None, alpha: float = 1.0) -> None:
        """Keeps the kernel and the noise."""
        self.kernel = kernel
        self.alpha = alpha

    def fit(self, X: Any, y: Any) -> "OneHot":
        """Regresses on the centered one-hot vectors of the classes."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        targets = np.eye(len(self.classes_))[codes] - 1 / len(self.classes_)
        process: Any = GaussianProcessRegressor(self.kernel, alpha=self.alpha, optimizer=NONE)
        self.model_ = process.fit(X, targets)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the classes with the largest outputs."""
        outputs: Any = self.model_.predict(X)
        return self.classes_[outputs.argmax(axis=1)]


def models(regression: bool, features: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Returns each model with the grid of its search."""
    of_networks = {
        "NNGP": nd.estimators.NNGPRegressor if regression else nd.estimators.NNGPClassifier,
        "NTK": nd.estimators.NTKRegressor if regression else nd.estimators.NTKClassifier,
    }
    of_kernels = {"RBF": RBF(features**0.5), "arc-cosine": ArcCosine()}
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, kernel in of_kernels.items():
        model = GaussianProcessRegressor(kernel, optimizer=NONE, normalize_y=True) if regression else OneHot(kernel)
        found[name] = model, {"alpha": NOISES}
        if name == "RBF":
            lengths = {"kernel__length_scale": [factor * features**0.5 for factor in (0.5, 1, 2)]}
            found["RBF, length chosen"] = clone(model), {"alpha": NOISES, **lengths}
    for network, options in NETWORKS.items():
        for kind, of_network in of_networks.items():
            found[f"{kind}, {network}"] = of_network(**options), {"noise": NOISES}
    return found


def errors_of(model: Any, grid: dict[str, Any], x: np.ndarray, y: np.ndarray, regression: bool) -> list[dict[str, Any]]:
    """Returns the error and the chosen noise of each outer fold."""
    kind: Any = KFold if regression else StratifiedKFold
    outer, inner = (kind(folds, shuffle=True, random_state=0) for folds in (5, 3))
    scoring = "neg_root_mean_squared_error" if regression else "accuracy"
    pipeline = make_pipeline(StandardScaler(), model)
    step = pipeline.steps[-1][0]
    rows = []
    for fold, (train, test) in enumerate(outer.split(x, y)):
        search = GridSearchCV(
            clone(pipeline), {f"{step}__{name}": v for name, v in grid.items()}, scoring=scoring, cv=inner
        )
        predicted = search.fit(x[train], y[train]).predict(x[test])
        error = np.sqrt(np.mean((predicted - y[test]) ** 2)) if regression else np.mean(predicted != y[test])
        noise = search.best_params_.get(f"{step}__noise", search.best_params_.get(f"{step}__alpha"))
        rows.append({"fold": fold, "error": float(error), "noise": float(noise)})
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Returns for each table and model the mean of the error over folds, and its standard deviation."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["table"], {}).setdefault(row["model"], []).append(row["error"])
    return {
        table: {model: [float(np.mean(v)), float(np.std(v, ddof=1))] for model, v in of_models.items()}
        for table, of_models in found.items()
    }


def shown(table: str, mean: float, deviation: float) -> str:
    """Returns an error as a text: in units of the target, or in percent."""
    return f"{mean:.1f} ± {deviation:.1f}" if table == "diabetes" else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def table_of(found: dict[str, dict[str, list[float]]]) -> Table:
    """Returns the errors as a table for the screen."""
    table = Table(title="Error in five-fold cross-validation, mean ± standard deviation over folds")
    table.add_column("kernel")
    for name in found:
        table.add_column(name, justify="right")
    for model in next(iter(found.values())):
        table.add_row(model, *(shown(name, *found[name][model]) for name in found))
    return table


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draws the errors with their standard deviations, one panel per table."""
    from nngp_dag import style

    figure = style.new_figure(2.2 + 2.6 * len(found), 5.2, "Kernel regression on small tables, five folds")
    for i, (name, of_models) in enumerate(found.items()):
        axes = figure.add_subplot(1, len(found), i + 1)
        places = np.arange(len(of_models))[::-1]
        scale = 1 if name == "diabetes" else 100
        for place, (model, (mean, deviation)) in zip(places, of_models.items(), strict=True):
            color = style.BLUE if model.startswith("NNGP") else style.GREEN if model.startswith("NTK") else "black"
            axes.errorbar(scale * mean, place, xerr=scale * deviation, fmt="o", color=color, markersize=5, capsize=2)
        axes.set_yticks(places, list(of_models) if i == 0 else [""] * len(of_models))
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("root mean squared error" if scale == 1 else "wrong classes (%)")
        axes.grid(True, axis="x", alpha=0.3)
    style.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES), help="names of tables")
    parser.add_argument("--models", nargs="+", help="names of models, by default all of them")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/tables"), help="path without suffix")
    options = parser.parse_args(arguments)

    rows: list[dict[str, Any]] = []
    for table in options.tables:
        x, y = TABLES[table](return_X_y=True)
        regression = table == "diabetes"
        chosen = {name: m for name, m in models(regression, x.shape[1]).items() if name in (options.models or [name])}
        for name, (model, grid) in track(
            chosen.items(), description=table, console=Console(stderr=True), transient=True
        ):
            found = errors_of(model, grid, x, y, regression)
            rows += [{"table": table, "model": name, **row} for row in found]
    found = summary(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    draw(found, options.out.with_suffix(".png"))
    Console().print(table_of(found))


if __name__ == "__main__":
    main()
