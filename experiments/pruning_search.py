"""Searches of NAS-Bench-201 by pruning its supernet, with and without the shortcut by effective depth and width.

The published CIFAR-10 test accuracies, in %, are 93.9 for TE-NAS, and 93.6 with the shortcut of Chen et al. (NeurIPS
2022) in 30.9 % less time. The seed of a search is that of its weights and of the order that breaks ties.

    python experiments/pruning_search.py [--seeds 3] [--measures ntk regions] [--out experiments/results/pruning_search]

Searches are kept in OUT-searches/. After an interruption, the same command continues.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
from rich.console import Console
from rich.progress import track
from rich.table import Table

import nngp_dag as nd
from nngp_dag.nas import AccuracyTable, Cell, Pruning, SearchDirectory, batch_sizes, get_space, tenas_measures
from nngp_dag.report import output_file
from nngp_dag.storage import environment

SHARED = Path(__file__).resolve().parents[2] / "shared"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    accuracies_file = SHARED / "data" / "nasbench201_cifar10.csv"
    parser.add_argument("--seeds", type=int, default=3, help="number of searches with, and without, the shortcut")
    parser.add_argument("--repeats", type=int, default=3, help="number of draws of weights in every round")
    parser.add_argument("--measures", nargs="+", default=["ntk", "regions"], help="out of ntk, regions, exact")
    parser.add_argument("--batch", type=int, help="number of images; by default 64 for exact, 32 for the others")
    parser.add_argument("--batch-norm", default="frozen", help="batch statistics in gradients: frozen or live")
    parser.add_argument("--gradients", default="all", help="all, or reference (without shifts and biases)")
    parser.add_argument("--ranks", default="all", help="group of operations that are ranked together: all or edge")
    parser.add_argument("--dataset", default="cifar10", help="name of the image set")
    parser.add_argument("--data-dir", type=Path, default=SHARED / "data" / "tfds", help="folder of tensorflow-datasets")
    parser.add_argument("--accuracies", type=Path, default=accuracies_file, help="accuracy table, a CSV file")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/pruning_search"), help="path, no suffix")
    options = parser.parse_args(arguments)

    space, accuracies = get_space("nasbench201"), AccuracyTable.load(options.accuracies)
    sizes = batch_sizes(space, options.measures, options.batch)
    data = nd.data.load_dataset(options.dataset, data_dir=options.data_dir, subset=max(sizes.values()))
    images = nd.data.normalize(data)
    # All searches use the patches of one seed, and so share the compiled programs.
    settings = {"batch": options.batch, "batch_norm": options.batch_norm, "gradients": options.gradients}
    settings |= {"classes": data.num_classes}
    measures = tenas_measures(space, images, options.measures, **settings)
    seeds, ranks = range(options.seeds), options.ranks
    runs = [Pruning(options.repeats, seed, shortcut, ranks=ranks) for shortcut in (False, True) for seed in seeds]
    records = []
    for pruning in track(runs, description="searches", console=Console(stderr=True), transient=True):
        name = f"seed-{pruning.seed}{'-shortcut' * pruning.shortcut}"
        config = {"measures": options.measures, **asdict(pruning), **settings, "dataset": options.dataset}
        folder = SearchDirectory(options.out.with_name(options.out.name + "-searches") / name, space, config)
        *_, state = folder.search(measures, pruning)
        cell = space.cell_of(state.mask)
        assert isinstance(cell, Cell)
        [accuracy] = accuracies.look_up([cell]).tolist()
        folder.save(state, accuracy)
        found = {"cell": str(cell), "accuracy": accuracy, "evaluated": state.evaluated, "skipped": state.skipped}
        records.append({"shortcut": pruning.shortcut, "seed": pruning.seed, **found, "seconds": state.seconds})

    table = pandas.DataFrame.from_records(records)
    summary = {}
    shown = Table(title=f"{' + '.join(options.measures)}, {options.seeds} seeds")
    for column in ("shortcut", "accuracy in %", "networks measured", "left out", "seconds"):
        shown.add_column(column, justify="right")
    for shortcut, rows in table.groupby("shortcut"):
        means = rows[["accuracy", "evaluated", "skipped", "seconds"]].mean()
        spread = float(np.std(rows["accuracy"].to_numpy()))
        summary["shortcut" if shortcut else "all"] = means.to_dict() | {"accuracy_std": spread}
        accuracy = f"{means['accuracy']:.2f} ± {spread:.2f}"
        counts = f"{means['evaluated']:,.0f}", f"{means['skipped']:,.0f}", f"{means['seconds']:,.0f}"
        shown.add_row("yes" if shortcut else "no", accuracy, *counts)
    settings |= {"repeats": options.repeats, "ranks": ranks, "images": sizes}
    document = {"summary": summary, "settings": settings}
    document |= {"measures": options.measures, "dataset": options.dataset, "environment": environment()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with output_file(options.out.with_suffix(".csv"), overwrite=True) as path:
        table.to_csv(path, index=False)
    with output_file(options.out.with_suffix(".json"), overwrite=True) as path:
        path.write_text(json.dumps(document, indent=2) + "\n")
    with output_file(options.out.with_suffix(".png"), overwrite=True) as path:
        plot(table, options.measures, path)
    Console().print(shown)


def plot(table: pandas.DataFrame, measures: Sequence[str], path: Path) -> None:
    """Draws the accuracy of the cell of every search over the number of networks that it measured."""
    from nngp_dag import style

    figure = style.new_figure(7.5, 5.2, f"Searches of NAS-Bench-201 by pruning with {' and '.join(measures)}")
    axes = figure.add_subplot()
    for shortcut, rows in table.groupby("shortcut"):
        label, color = ("with the shortcut", style.BLUE) if shortcut else ("all measured", style.ORANGE)
        marker, published = ("o", 93.6) if shortcut else ("s", 93.9)
        axes.scatter(rows["evaluated"], rows["accuracy"], s=45, color=color, marker=marker, alpha=0.8,
                     label=f"{label}, n = {len(rows)}")  # fmt: skip
        axes.axhline(published, color=color, linestyle="--", linewidth=1, label=f"published, {label}: {published} %")
    axes.set_xlim(left=0)
    axes.set_xlabel("networks measured in one search")
    axes.set_ylabel("CIFAR-10 accuracy of the cell in %")
    note = "a point for every seed, some at the same place\nthe published means are those of TE-NAS, by NTK and regions"
    style.panel_title(axes, note, 7, size=9.5)
    style.legend_below(figure, axes.get_legend_handles_labels()[0], 2)
    axes.grid(True, alpha=0.3)
    style.save(figure, path)


if __name__ == "__main__":
    main()
