"""How accurate is kernel regression on a million shifted digits, and how many landmarks does it take?

The rows are the training images of MNIST, each shifted by up to two pixels: first all images as they are, then all of
them by one pixel, and so on outward through the 25 offsets. A million rows are 60,000 images at 16 or 17 offsets. They
are made batch by batch and never lie in memory together. The kernel is the NTK of DAG#3. The targets are one-hot
vectors minus 1 / 10. The test images are not shifted.

Every pair of a number of rows and a number of landmarks is one call of `nngp_dag.solve`, which keeps its work in a
folder. After an interruption the same command goes on. The experiment writes large_mnist.csv, .json and .png, and
prints the table. The committed result:

    python experiments/large_mnist.py [--data-dir DIR] [--out experiments/results/large_mnist]

Small, for CI:

    python experiments/large_mnist.py --dataset digits --rows 500 1000 --landmarks 100 --out large_mnist
"""

import argparse
import csv
import itertools
import json
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import nngp_dag as nd
from nngp_dag import style

DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"
BATCH = 4096


def offsets(most: int = 2) -> list[tuple[int, int]]:
    """Returns shifts of up to `most` pixels each way, the shortest first."""
    every = itertools.product(range(-most, most + 1), range(-most, most + 1))
    return sorted(every, key=lambda shift: (shift[0] ** 2 + shift[1] ** 2, shift))


def shifted(images: np.ndarray, by: tuple[int, int]) -> np.ndarray:
    """Returns images (N, height, width, channels) moved down and right, with 0 at the border."""
    down, right = by
    moved = np.zeros_like(images)
    height, width = images.shape[1:3]
    rows = slice(max(0, down), min(height, height + down)), slice(max(0, -down), min(height, height - down))
    columns = slice(max(0, right), min(width, width + right)), slice(max(0, -right), min(width, width - right))
    moved[:, rows[0], columns[0]] = images[:, rows[1], columns[1]]
    return moved


class Shifted:
    """Batches (inputs, targets) of shifted images, which can be read any number of times."""

    def __init__(self, data: nd.data.Dataset, rows: int) -> None:
        """Keeps the images as they are; batches are made when they are read."""
        self._data, self._rows = data, rows
        if rows > 25 * len(data.labels):
            raise nd.errors.InputError(f"Expected `--rows` of at most {25 * len(data.labels):,}, got {rows:,}")

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields batches of one offset each."""
        count, left = len(self._data.labels), self._rows
        for by in offsets():
            for start in range(0, min(count, left), BATCH):
                end = min(start + BATCH, count, left)
                images = shifted(self._data.images[start:end], by)
                yield inputs(self._data, images), targets(self._data.labels[start:end], self._data.num_classes)
            left -= count
            if left <= 0:
                return


def inputs(data: nd.data.Dataset, images: np.ndarray) -> np.ndarray:
    """Returns normalized images on the sphere |x|^2 = d, (N, d)."""
    part = nd.data.Dataset(data.name, images, np.zeros(len(images), np.int64), data.num_classes)
    return nd.data.scale_to_sphere(nd.data.normalize(part))


def targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns one-hot vectors minus 1 / C."""
    return nd.data.one_hot(labels, classes) - np.float32(1 / classes)


def row_of(solution: nd.Solution, test: nd.data.Dataset, seconds: float) -> dict[str, Any]:
    """Returns the row of a solution in the table."""
    outputs = solution.predict(inputs(test, test.images))
    held = solution.held_out
    return {
        "rows": solution.rows,
        "landmarks": len(solution.basis),
        "test_accuracy": nd.classification_accuracy(outputs, test.labels),
        "held_out_accuracy": None if held is None else held.accuracy,
        "held_out_rmse": None if held is None else held.rmse,
        "training_rmse": solution.training_rmse,
        "unexplained": solution.unexplained,
        "effective_dimension": solution.effective_dimension,
        "seconds": seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns the table that is printed."""
    table = Table(title="Kernel regression on shifted digits, NTK of DAG#3")
    columns = ("rows", "landmarks", "test accuracy", "held-out RMSE", "unexplained", "time", "peak")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['rows']:,}",
            f"{row['landmarks']:,}",
            f"{row['test_accuracy']:.2%}",
            f"{row['held_out_rmse']:.4f}",
            f"{row['unexplained']:.2%}",
            f"{row['seconds']:.0f} s",
            f"{row['peak_gib']:.1f} GiB",
        )
    return table


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the test error against rows and against landmarks."""
    figure = style.new_figure(10, 4.2, "Test error of kernel regression on shifted digits, NTK of DAG#3")
    for i, (x, other) in enumerate((("rows", "landmarks"), ("landmarks", "rows"))):
        axes = figure.add_subplot(1, 2, i + 1)
        for value in sorted({row[other] for row in rows}):
            of = sorted((row[x], 1 - row["test_accuracy"]) for row in rows if row[other] == value)
            axes.plot(*zip(*of, strict=True), "o-", label=f"{value:,} {other}")
        style.log_axis(axes, "x", "y")
        axes.set_xlabel(x)
        axes.set_ylabel("test error")
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=9)
    style.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="mnist", help="name of the data")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of tensorflow-datasets")
    default = [10_000, 60_000, 250_000, 1_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=default, help="numbers of rows")
    parser.add_argument("--landmarks", type=int, nargs="+", default=[1024, 2048, 4096], help="numbers of landmarks")
    parser.add_argument("--ridge", type=float, default=1e-2, help="the ridge")
    parser.add_argument("--memory-budget", default="6 GiB", help="largest memory")
    parser.add_argument("--work", type=Path, default=Path("build/large_mnist"), help="folder of unfinished work")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/large_mnist"), help="path without suffix")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except nd.errors.NngpDagError as error:
        raise SystemExit(f"error: {error}") from None


def run(options: argparse.Namespace) -> None:
    """Solves all regressions, and writes all results."""
    places = {} if options.dataset == "digits" else {"data_dir": options.data_dir}
    train = nd.data.load_dataset(options.dataset, **places)
    test = nd.data.load_dataset(options.dataset, split="test", **places)
    rows = []
    for count, landmarks in itertools.product(options.rows, options.landmarks):
        work = options.work / f"{options.dataset}-{count}-{landmarks}-{options.ridge:g}"
        kept = work / "row.json"
        if not kept.exists():
            start = time.monotonic()
            with Progress(console=Console(stderr=True), transient=True) as progress:
                tasks: dict[str, Any] = {}

                def report(task: str, done: int, total: int, progress: Any = progress, tasks: Any = tasks) -> None:
                    if task not in tasks:
                        tasks[task] = progress.add_task(task)
                    progress.update(tasks[task], completed=done, total=total)

                solution = nd.solve(
                    "DAG#3",
                    Shifted(train, count),
                    None,
                    options.ridge,
                    method="landmarks",
                    landmarks=landmarks,
                    memory_budget=options.memory_budget,
                    out=work / "solution",
                    on_progress=report,
                )
            row = row_of(solution, test, time.monotonic() - start)
            with nd.report.output_file(kept, overwrite=True) as path:
                path.write_text(json.dumps({**row, "parts": solution.seconds}, indent=2) + "\n")
        rows.append(json.loads(kept.read_text()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in rows[0] if name != "parts"]
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    document = {"dataset": options.dataset, "ridge": options.ridge, "images": len(train.labels), "results": rows}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    draw(rows, options.out.with_suffix(".png"))
    Console().print(table_of(rows))


if __name__ == "__main__":
    main()
