"""The search table of Chen et al. (NeurIPS 2022) on NAS-Bench-201 and CIFAR-10, without training.

Random cells are scored once: by NASWOT, by their number of parameters, and by exact kernels of their wiring. Then
searches that draw 100 of these cells each are repeated: without a filter, with the filter of the paper, and with that
of its released code. The published CIFAR-10 test accuracies, in %, are 92.81 for NASWOT, 92.98 with the filter in 40 %
less time, and 94.37 for the best cell.

    python experiments/naswot_search.py [--cells 1000] [--repeats 500] [--out experiments/results/naswot_search]

Scores are kept in OUT-scores/. After an interruption, the same command continues.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

import nngp_dag as nd
from nngp_dag.nas import (
    SCORES,
    AccuracyTable,
    ScoreDirectory,
    Setting,
    accuracy_correlations,
    accuracy_correlations_table,
    control_remarks,
    plot_depth_and_width,
    plot_scores,
    read_scores,
    sample_cells,
    search_summary,
    search_table,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
SEARCHED = ("naswot", "parameters", "nngp_lambda_min_exact", "ntk_lambda_min_exact", "ntk_condition_exact")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    accuracies_file = SHARED / "data" / "nasbench201_cifar10.csv"
    parser.add_argument("--cells", type=int, default=1000, help="number of random cells to score")
    parser.add_argument("--scores", nargs="+", default=list(SEARCHED), help="names of scores")
    parser.add_argument("--dataset", default="cifar10", help="name of the image set")
    parser.add_argument("--data-dir", type=Path, default=SHARED / "data" / "tfds", help="folder of tensorflow-datasets")
    parser.add_argument("--accuracies", type=Path, default=accuracies_file, help="accuracy table, a CSV file")
    parser.add_argument("--batch", type=int, default=128, help="number of images of the scores")
    parser.add_argument("--channels", type=int, default=16, help="number of channels of the first stage")
    parser.add_argument("--stage-cells", type=int, default=5, help="number of cells per stage")
    parser.add_argument("--sample", type=int, default=100, help="number of cells that one search draws")
    parser.add_argument("--repeats", type=int, default=500, help="number of searches per score and filter")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cells, of the weights and of the searches")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/naswot_search"), help="path, no suffix")
    options = parser.parse_args(arguments)

    data = nd.data.load_dataset(options.dataset, data_dir=options.data_dir, subset=options.batch)
    sizes = {"channels": options.channels, "cells": options.stage_cells, "classes": data.num_classes}
    setting = Setting(nd.data.normalize(data), data.labels, seed=options.seed, **sizes)
    folder = options.out.with_name(options.out.name + "-scores")
    cells = sample_cells(options.cells, options.seed)
    work = ScoreDirectory(folder, setting).score(cells, options.scores, timed=True)
    for _ in track(work, description="scores", console=Console(stderr=True), transient=True):
        pass

    accuracies, scores = AccuracyTable.load(options.accuracies), read_scores(folder)
    searches = {"sample": options.sample, "repeats": options.repeats, "seed": options.seed}
    table = search_table(scores, accuracies, options.scores, filters=("paper", "released-code"), **searches)
    ranks = accuracy_correlations(scores, accuracies)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.6g")
    document = {
        "cells": len(scores),
        "status": {str(name): int(count) for name, count in scores["status"].value_counts().items()},
        "setting": json.loads((folder / "config.json").read_text()),
        "searches": searches,
        "rank_correlations_with_accuracy": {
            row["first"]: {name: row[name] for name in ("kendall", "spearman", "spearman_control", "rows")}
            for _, row in ranks.iterrows()
        },
    }
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=2, default=float) + "\n")
    plot_depth_and_width(accuracies, options.out.with_name(options.out.name + "_depth_width.png"))
    drawn = [name for name in SCORES if name in scores]
    plot_scores(scores, accuracies, drawn, options.out.with_suffix(".png"))
    Console().print(search_summary(table, options.sample))
    Console().print(accuracy_correlations_table(ranks), *control_remarks(ranks), sep="\n")


if __name__ == "__main__":
    main()
