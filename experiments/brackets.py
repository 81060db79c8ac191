"""How tight are the bounds on lambda_min, and where does the published formula fail?

The experiment takes every code of up to three blocks that has a path, on real and synthetic inputs. These are all valid
codes of the paper. It compares the exact lambda_min of K(H) and of the NTK with the proven bracket and with the
published path formulas. It writes brackets.csv (one row per code, data set and kernel), brackets.json (the printed
table) and brackets.png.

    python experiments/brackets.py [--n 32] [--data-dir DIR] [--every 1] [--out experiments/results/brackets]
"""

import argparse
import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import nngp_dag as nd

DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"
FORMULA_ROUNDING = 1e-9
KERNELS = {"nngp": "K(H)", "ntk": "NTK"}


def codes(most_blocks: int = 3) -> Iterator[str]:
    """Yields every code of up to `most_blocks` blocks whose DAG has a path."""
    for blocks in range(1, most_blocks + 1):
        for digits in itertools.product("012", repeat=blocks * (blocks + 1) // 2):
            iterator = iter(digits)
            code = "_".join("".join(itertools.islice(iterator, t)) for t in range(1, blocks + 1))
            try:
                nd.Dag.from_code(code).require_connected()
            except nd.errors.GraphError:
                continue
            yield code


def bounds_of(code: str, x: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yields one row for K(H) and one for the NTK after the readout: exact lambda_min, bracket and path formula."""
    dag = nd.Dag.from_code(code)
    stem = nd.kernel(nd.Dag.from_code("1"), x, readout=False)
    for name, readout in (("nngp", False), ("ntk", True)):
        matrix = getattr(nd.kernel(dag, x, readout=readout), name)
        bracket = getattr(nd.lambda_min_bracket(dag, x, readout=readout), name)
        formula = nd.path_bound(dag, stem.nngp) if name == "nngp" else nd.ntk_path_bound(dag, stem)
        s = nd.spectrum(matrix)
        if not s.resolved or not bracket.lower <= s.lambda_min + s.floor or not s.lambda_min <= bracket.upper + s.floor:
            raise SystemExit(f"{code}, {name}: {bracket} does not hold the exact {s}")
        yield {
            "code": code,
            "kernel": name,
            "lower": bracket.lower,
            "exact": s.lambda_min,
            "upper": bracket.upper,
            "path_formula": formula.value,
            "formula_fails_by": max(1.0, s.lambda_min / formula.value),
            "violated_assumptions": "; ".join(formula.violated_assumptions),
        }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns quantiles of the ratios to the exact value, and how often and why the formula fails."""
    ratio = {key: np.array([row[key] / row["exact"] for row in rows]) for key in ("lower", "upper", "path_formula")}
    failing = [row for row in rows if row["formula_fails_by"] > 1 + FORMULA_ROUNDING]
    worst = max(rows, key=lambda row: row["formula_fails_by"])
    return {
        "codes": len(rows),
        "lower_over_exact": [float(np.quantile(ratio["lower"], q)) for q in (0, 0.5, 1)],
        "upper_over_exact": [float(np.quantile(ratio["upper"], q)) for q in (0, 0.5, 1)],
        "formula_over_exact": [float(np.quantile(ratio["path_formula"], q)) for q in (0, 0.5, 1)],
        "formula_below_exact": len(failing),
        "formula_fails_at_most_by": worst["formula_fails_by"],
        "worst_code": worst["code"],
        "reasons": dict(Counter(row["violated_assumptions"] for row in failing)),
    }


def table_of(summaries: dict[str, dict[str, Any]]) -> Table:
    """Returns the summaries as a table for the screen."""
    table = Table(title="λmin over all codes: ratio to the exact value, least / median / largest", title_justify="left")
    for heading in ("inputs, kernel", "lower", "upper", "path formula", "formula fails", "worst"):
        table.add_column(heading, justify="left" if heading.startswith("inputs") else "right")
    for name, s in summaries.items():
        ratios = (
            " / ".join(f"{v:.2g}" for v in s[key])
            for key in ("lower_over_exact", "upper_over_exact", "formula_over_exact")
        )
        fails = f"{s['formula_below_exact']} of {s['codes']}"
        table.add_row(name, *ratios, fails, f"x {s['formula_fails_at_most_by']:.2f} {s['worst_code']}")
    return table


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws bounds against exact values, one panel per data set and kernel."""
    from nngp_dag import style

    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    codes_drawn = len({row["code"] for row in rows})
    title = f"{codes_drawn} codes of up to three blocks: bounds on λmin against its exact value"
    figure = style.new_figure(max(7.0, 4.4 * len(datasets)), 8.4, title)
    for i, (name, kernel) in enumerate(KERNELS.items()):
        for j, dataset in enumerate(datasets):
            part = [row for row in rows if (row["dataset"], row["kernel"]) == (dataset, name)]
            exact = np.array([row["exact"] for row in part])
            axes = figure.add_subplot(2, len(datasets), i * len(datasets) + j + 1)
            valid = np.array([not row["violated_assumptions"] for row in part])
            formula = np.array([row["path_formula"] for row in part])
            for key, color, marker, label in (
                ("upper", style.BLUE, "v", "upper: pairs of inputs"),
                ("lower", style.GREEN, "^", "lower: series, Schur, Gershgorin, Weyl"),
            ):
                axes.plot(exact, [row[key] for row in part], marker, color=color, markersize=4, alpha=0.6, label=label)
            axes.plot(
                exact[~valid], formula[~valid], "x", color=style.VERMILION, markersize=4, label="path formula, flagged"
            )
            axes.plot(
                exact[valid],
                formula[valid],
                "o",
                color=style.ORANGE,
                markersize=4,
                label="path formula, assumptions met",
            )
            ends = [exact.min() / 1.3, exact.max() * 1.3]
            axes.plot(ends, ends, color="black", linewidth=1, label="exact")
            style.log_axis(axes, "x", "y")
            axes.set_title(f"{dataset}: {kernel}", fontsize=11)
            axes.set_xlabel("exact λmin")
            if j == 0:
                axes.set_ylabel("bound on λmin")
            axes.grid(True, alpha=0.3)
    style.legend_below(figure, figure.axes[0].get_legend_handles_labels()[0], 3)
    style.save(figure, path)


def inputs(dataset: str, n: int, data_dir: Path) -> np.ndarray:
    """Returns n inputs of d numbers, (n, d), scaled to |x|^2 = d."""
    data = nd.data.load_dataset(dataset, data_dir=data_dir, subset=n)
    return nd.data.scale_to_sphere(nd.data.normalize(data)).reshape(n, -1).astype(np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32, help="number of inputs per data set")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of tensorflow-datasets")
    parser.add_argument("--datasets", nargs="+", default=["digits", "mnist", "sphere"], help="names of data sets")
    parser.add_argument("--every", type=int, default=1, help="use every k-th code only")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/brackets"), help="path without suffix")
    options = parser.parse_args(arguments)

    every_code = list(codes())[:: options.every]
    rows: list[dict[str, Any]] = []
    for dataset in options.datasets:
        x = inputs(dataset, options.n, options.data_dir)
        for code in track(every_code, description=dataset, console=Console(stderr=True), transient=True):
            rows += [{"dataset": dataset, **row} for row in bounds_of(code, x)]
    summaries = {
        f"{dataset}, {title}": summary([r for r in rows if (r["dataset"], r["kernel"]) == (dataset, name)])
        for dataset in options.datasets
        for name, title in KERNELS.items()
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    document = {"n": options.n, "every": options.every, "summaries": summaries}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    draw(rows, options.out.with_suffix(".png"))
    Console().print(table_of(summaries))


if __name__ == "__main__":
    main()
