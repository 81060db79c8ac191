"""Tables of runs for the screen."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from nngp_dag.nets import ModelSummary
from nngp_dag.report.tables import number_table
from nngp_dag.training.cells import TrainedCell
from nngp_dag.training.evaluation import Evaluation
from nngp_dag.training.history import METRICS, PARTS
from nngp_dag.training.run import Trained


def model_table(name: str, summary: ModelSummary) -> Table:
    """Returns a network's layers with their parameters and floating-point operations."""
    table = Table(title=f"{name}: a forward pass of one example", title_justify="left")
    table.add_column("layer")
    table.add_column("operation")
    for heading in ("output", "parameters", "FLOPs"):
        table.add_column(heading, justify="right")
    for layer in summary.layers:
        shape = " x ".join(map(str, layer.output_shape))
        table.add_row(layer.name, layer.operation, shape, f"{layer.parameters:,}", f"{layer.flops:,}")
    table.add_section()
    table.add_row("total", "", "", f"{summary.parameters:,}", f"{summary.flops:,}")
    return table


def training_table(runs: Sequence[Trained | TrainedCell]) -> Table:
    """Returns a table of the final losses and accuracies of every network, mean ± standard deviation over seeds."""
    seeds, epochs = len(runs[0].history.seeds), len(runs[0].history.learning_rates)
    title = f"After {epochs} epochs, {seeds} seed{'s' if seeds > 1 else ''}; accuracy in %"
    table = number_table(title, ["network"], ["train loss", "train", "validation", "test", "best epoch"])
    table.caption, table.caption_justify = "best epoch: test accuracy after the epoch of the best validation", "left"
    for run in runs:
        of, chosen = run.history.of, np.arange(seeds)
        table.add_row(
            run.name,
            _spread(of("train", "loss")[-1], 1.0, "{:.3g}", "{:.2g}"),
            *(_spread(of(part, "accuracy")[-1]) for part in PARTS),
            _spread(of("test", "accuracy")[run.best_epoch, chosen]),
        )
    return table


def training_rows(runs: Sequence[Trained | TrainedCell]) -> list[dict[str, Any]]:
    """Returns the final losses and accuracies, one row per network and seed."""
    return [
        {
            "dag": run.name,
            "code": run.code,
            "seed": seed,
            "epochs": run.history.epochs_done,
            "best_epoch": int(run.best_epoch[s]),
            "parameters": run.parameters,
            **{
                f"{part}_{metric.replace('-', '_').replace(' ', '_')}": float(run.history.of(part, metric)[-1, s])
                for part in PARTS
                for metric in METRICS
            },
        }
        for run in runs
        for s, seed in enumerate(run.history.seeds)
    ]


def evaluation_table(evaluation: Evaluation) -> Table:
    """Returns a table of the losses and accuracies of a checkpoint's networks, one row per seed and part."""
    table = Table(title=f"{evaluation.name}", title_justify="left")
    for heading in ("seed", "epoch"):
        table.add_column(heading, justify="right")
    table.add_column("part")
    for heading in ("loss", "accuracy", "class-mean accuracy"):
        table.add_column(heading, justify="right")
    for s, (seed, epoch) in enumerate(zip(evaluation.seeds, evaluation.epochs, strict=True)):
        for part in PARTS:
            loss, accuracy, of_classes = (evaluation.of(part, metric)[s] for metric in METRICS)
            table.add_row(str(seed), str(epoch), part, f"{loss:.4f}", f"{accuracy:.2%}", f"{of_classes:.2%}")
        table.add_section()
    return table


def _spread(values: np.ndarray, unit: float = 0.01, form: str = "{:.2f}", form_of_std: str = "{:.2f}") -> str:
    mean = form.format(values.mean() / unit)
    return mean if len(values) == 1 else f"{mean} ± {form_of_std.format(values.std(ddof=1) / unit)}"
