"""Figure 3 of Chen et al. (2022): three graphs trained on MNIST and CIFAR-10, and the predictions of their kernels.

The networks of DAG#1, DAG#2 and DAG#3 have width 1024. They train by SGD at learning rate 1e-5 with batches of 128 and
cross entropy, several seeds each. The predictions are those of infinitely wide, linearized networks under the same SGD
(`nngp_dag.linearized_sgd`), and depend on the kernels alone. The kernels have the standard parameterization at that
width.

The results are training loss and accuracy over epochs, and the number of epochs to a training accuracy of 50 %
(interpolated; mean and standard deviation over seeds). The loss is also given relative to its start, because the graphs
start at different losses. The kernels have N x N entries, so that predictions need a --subset of at most 16,000.

    small, for CI:  python experiments/figure3.py --datasets digits --width 64 --subset 256 --epochs 3 --lr 1e-3
    on a CPU:       python experiments/figure3.py --data-dir DIR --subset 12800 --held-out 1000 --epochs 64 --seeds 3
    on a GPU:       python experiments/figure3.py --data-dir DIR --epochs 1000 --seeds 5

The second command takes about two hours on two cores. The third is the setting of the paper, with all training images.
After an interruption, the same command continues. The experiment writes OUT.json, OUT.csv (the curves), OUT.png, and
checkpoints to OUT-runs/.
"""

import argparse
import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import nngp_dag as nd
from nngp_dag.architecture.document import to_document
from nngp_dag.graph import zoo

# Okabe and Ito's palette.
COLORS = ("#0072B2", "#E69F00", "#009E73")
_MOST_INPUTS = 16_000


def predict(network: nd.Network, data: Any, recipe: nd.Recipe, draws: int) -> nd.LinearizedRuns:
    """Returns the learning curves of the infinitely wide, linearized network under the SGD of the recipe."""
    return nd.linearized_sgd(
        nd.kernel(network, data.train.x.reshape(len(data.train.x), -1)),
        data.train.labels,
        recipe.learning_rate,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        num_classes=data.num_classes,
        draws=draws,
    )


def summarize(name: str, dataset: str, dag: nd.Dag, losses: np.ndarray, times: np.ndarray, kind: str) -> dict[str, Any]:
    """Returns one row of the table: first and last loss, and epochs to the threshold, over seeds or draws."""
    reached = np.isfinite(times)
    share = losses[-1] / losses[0]
    return {
        "dataset": dataset,
        "dag": name,
        "code": str(dag),
        "kind": kind,
        "networks": losses.shape[1],
        "loss_start": float(losses[0].mean()),
        "loss_end": float(losses[-1].mean()),
        "share_left": float(share.mean()),
        "share_left_std": _std(share),
        "reached": int(reached.sum()),
        "epochs_to_threshold": float(times.mean()) if reached.all() else None,
        "epochs_to_threshold_std": _std(times) if reached.all() else None,
    }


def _std(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def epochs_to(curves: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the epoch at which each accuracy curve, (points, networks), reaches the threshold; NaN if it does not."""
    values = np.full((len(curves), 3, 3, curves.shape[1]), np.nan)
    values[:, 0, 0], values[:, 0, 1] = 0, curves
    return nd.training.History("", tuple(range(curves.shape[1])), 1, np.ones(len(curves) - 1), values).epochs_to(
        threshold
    )


def draw(curves: dict[str, dict[str, dict[str, np.ndarray]]], rows: list[dict[str, Any]], threshold: float, title: str,
         path: Path) -> None:  # fmt: skip
    """Draws loss, loss relative to its start, and accuracy over epochs, and the epochs to the threshold."""
    from nngp_dag import style

    figure = style.new_figure(19, 1.2 + 4.6 * len(curves), title)
    axes = figure.subplots(len(curves), 4, squeeze=False)
    for panels, (dataset, of_dags) in zip(axes, curves.items(), strict=True):
        for (name, found), color in zip(of_dags.items(), COLORS, strict=False):
            for kind, line in (("measured", "-"), ("predicted", "--")):
                if f"{kind}_loss" not in found:
                    continue
                loss, accuracy = found[f"{kind}_loss"], found[f"{kind}_accuracy"]
                for panel, values in zip(panels, (loss, loss / loss[0], accuracy), strict=False):
                    epochs = np.arange(len(values))
                    panel.plot(epochs, values.mean(axis=1), line, color=color, linewidth=1.8, label=f"{name} {kind}")
                    if kind == "measured":
                        low, high = values.min(axis=1), values.max(axis=1)
                        panel.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        panels[2].axhline(threshold, color="gray", linewidth=0.8, linestyle=":")
        for panel, label in zip(
            panels,
            ("training loss, cross entropy, mean per image", "training loss / its start", "training accuracy"),
            strict=False,
        ):
            panel.set_xlabel("epoch")
            panel.set_ylabel(f"{dataset}: {label}")
            panel.grid(True, alpha=0.3)
        _bars(panels[3], [row for row in rows if row["dataset"] == dataset], threshold)
    handles = [*axes[0, 0].get_legend_handles_labels()[0], *axes[0, 3].get_legend_handles_labels()[0]]
    style.legend_below(figure, handles, 8)
    style.save(figure, path)


def _bars(panel: Any, rows: list[dict[str, Any]], threshold: float) -> None:
    names = list(dict.fromkeys(row["dag"] for row in rows))
    for i, name in enumerate(names):
        for kind, shift, hatch in (("measured", -0.2, ""), ("predicted", 0.2, "//")):
            row = next((row for row in rows if row["dag"] == name and row["kind"] == kind), None)
            if row is None:
                continue
            if row["epochs_to_threshold"] is None:
                panel.text(i + shift, 0, "not\nreached", ha="center", va="bottom", fontsize=8)
                continue
            panel.bar(i + shift, row["epochs_to_threshold"], 0.36, yerr=row["epochs_to_threshold_std"], capsize=4,
                      color=COLORS[i % len(COLORS)], hatch=hatch, edgecolor="black", linewidth=0.6)  # fmt: skip
    for kind, hatch in (("measured", ""), ("predicted", "//")):
        panel.bar(0, 0, color="white", edgecolor="black", linewidth=0.6, hatch=hatch, label=f"{kind}, mean and std")
    panel.margins(y=0.1)
    if all(row["epochs_to_threshold"] is None for row in rows):
        panel.set_ylim(0, 1)
        panel.set_yticks([])
    panel.set_xticks(range(len(names)), names)
    panel.set_xlim(-0.5, len(names) - 0.5)
    panel.set_ylabel(f"epochs to {threshold:.0%} training accuracy")
    panel.grid(True, axis="y", alpha=0.3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["mnist", "cifar10"], help="names of data sets")
    parser.add_argument("--data-dir", type=Path, help="folder of tensorflow-datasets")
    parser.add_argument("--subset", type=int, help="number of training images; by default the whole training part")
    parser.add_argument("--held-out", type=int, help="images of the validation and of the test part; by default all")
    parser.add_argument("--width", type=int, default=1024, help="number of units of every node")
    parser.add_argument("--epochs", type=int, default=64, help="number of passes over the training images")
    parser.add_argument("--batch-size", type=int, default=128, help="number of images per step")
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate on the mean loss of a batch")
    parser.add_argument("--seeds", type=int, default=3, help="number of networks per graph")
    parser.add_argument("--draws", type=int, default=20, help="number of initializations of the predicted curves")
    parser.add_argument("--threshold", type=float, default=0.5, help="training accuracy to reach, from 0 to 1")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/figure3"), help="path without suffix")
    options = parser.parse_args(arguments)

    recipe = nd.Recipe(epochs=options.epochs, batch_size=options.batch_size, learning_rate=options.lr)
    # As in the paper: biases start at 0, and the standard parameterization does not rescale weights and biases.
    of_paper: dict[str, Any] = {"layer": nd.Dense(b_std=0.0), "parameterization": "standard", "width": options.width}
    networks = {name: nd.Network(zoo.named(name), **of_paper) for name in zoo.FIGURE3}
    curves: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    rows: list[dict[str, Any]] = []
    statements = {}
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        for dataset in options.datasets:
            data = nd.data.load_splits(dataset, subset=options.subset, data_dir=options.data_dir)
            if options.held_out is not None:
                fewer = (nd.data.Part(*(a[: options.held_out] for a in part)) for part in (data.validation, data.test))
                data = dataclasses.replace(
                    data,
                    **dict(zip(("validation", "test"), fewer, strict=True)),
                    source={},
                    statement=f"{data.statement}; only the first {options.held_out} of either are evaluated",
                )
            statements[dataset] = data.statement
            tasks = {name: bars.add_task(f"{dataset} {name}", total=options.epochs) for name in networks}
            out = options.out.parent / f"{options.out.name}-runs" / dataset
            runs = nd.train(
                networks,
                data,
                recipe,
                seeds=options.seeds,
                out=out,
                resume=(out / "config.json").exists(),
                on_progress=lambda name, done, *_, tasks=tasks: bars.update(tasks[name], completed=done),
            )
            curves[dataset] = {}
            for run in runs:
                loss, accuracy = run.history.of("train", "loss"), run.history.of("train", "accuracy")
                found = {"measured_loss": loss, "measured_accuracy": accuracy}
                times = run.history.epochs_to(options.threshold)
                rows.append(summarize(run.name, dataset, run.dag, loss, times, "measured"))
                if len(data.train.labels) <= _MOST_INPUTS:
                    bars.console.print(f"predicting {dataset} {run.name}")
                    predicted = predict(run.network, data, recipe, options.draws)
                    found |= {"predicted_loss": predicted.losses, "predicted_accuracy": predicted.accuracies}
                    times = epochs_to(predicted.accuracies, options.threshold)
                    rows.append(summarize(run.name, dataset, run.dag, predicted.losses, times, "predicted"))
                curves[dataset][run.name] = found

    options.out.parent.mkdir(parents=True, exist_ok=True)
    of_networks = {name: value for name, value in to_document(networks[next(iter(networks))]).items() if name != "dag"}
    settings = {"network": of_networks, **recipe.as_dict()}
    settings |= {name: getattr(options, name) for name in ("seeds", "draws", "threshold")}
    from nngp_dag.storage import environment

    document = {"settings": settings, "data": statements, "environment": environment(), "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "dag", "kind", "network", "epoch", "train_loss", "train_accuracy"])
        for dataset, of_dags in curves.items():
            for name, found in of_dags.items():
                for kind in ("measured", "predicted"):
                    if f"{kind}_loss" not in found:
                        continue
                    for epoch, (losses, hits) in enumerate(
                        zip(found[f"{kind}_loss"], found[f"{kind}_accuracy"], strict=True)
                    ):
                        for network, (loss, hit) in enumerate(zip(losses, hits, strict=True)):
                            writer.writerow([dataset, name, kind, network, epoch, f"{loss:.6g}", f"{hit:.6g}"])
    title = f"Width {options.width}, SGD {options.lr:g}, batches of {options.batch_size}, {options.seeds} seeds"
    drawn = f"{title}: means, and the range of the measured"
    draw(curves, rows, options.threshold, drawn, options.out.with_suffix(".png"))

    console = Console()
    table = Table(title=f"{title}, after {options.epochs} epochs", title_justify="left")
    for heading in ("data", "DAG", "", "loss at start", "at end", "share left", f"epochs to {options.threshold:.0%}"):
        table.add_column(heading)
    for row in rows:
        spread = "" if row["epochs_to_threshold_std"] is None else f" ± {row['epochs_to_threshold_std']:.1f}"
        time = "not reached" if row["epochs_to_threshold"] is None else f"{row['epochs_to_threshold']:.1f}{spread}"
        share = f"{row['share_left']:.3f}"
        table.add_row(row["dataset"], row["dag"], row["kind"], f"{row['loss_start']:.3f}", f"{row['loss_end']:.3f}",
                      share, time)  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
