"""How often does the search along the gradient end at one of the best graphs?

Random starts on the complete graph of four nodes, for two objectives on two data sets. The objective of every code with
a path is computed, too, so that the end of each start has a rank among them. The experiment counts the ends within the
best 2 % of the codes, by the gradient alone and after the discrete descent. As a control it counts from how many codes
the descent alone comes as far. It writes graph_search.csv (one row per
start), graph_search.json (the printed table) and graph_search.png.

    python experiments/graph_search.py [--n 20] [--starts 100] [--data-dir DIR] [--out experiments/results/graph_search]
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import nngp_dag as nd

DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"
BEST = 0.02
TEXTS = {"leave-one-out": "leave-one-out log density", "ntk-lambda-min": "λmin of the NTK at equal trace"}


def samples(name: str, n: int, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns n inputs scaled to |x|^2 = d, (n, d), and their centered targets, (n, C)."""
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        table: Any = load_diabetes()
        x, y = np.asarray(table.data), np.asarray(table.target)
        # The table is in no particular order, but a draw is safer than its first rows.
        chosen = np.random.default_rng(0).permutation(len(x))[:n]
        x, y = x[chosen] / x.std(axis=0), (y[chosen, None] - y.mean()) / y.std()
        return nd.data.scale_to_sphere(x), y
    data = nd.data.load_dataset(name, data_dir=data_dir, subset=n)
    x = nd.data.scale_to_sphere(nd.data.normalize(data)).reshape(n, -1).astype(np.float64)
    return x, nd.data.one_hot(data.labels, data.num_classes).astype(np.float64) - 1 / data.num_classes


def summary(found: nd.GraphSearch) -> dict[str, Any]:
    """Returns how many starts end within the best codes, and the code found."""
    frame: Any = found.to_frame()
    counts = {
        key: round(found.share_within(BEST, polished=polished) * len(frame))
        for key, polished in (("by_gradient", False), ("after_descent", True))
    }
    codes: Any = found.codes_frame()
    return {
        "starts": len(frame),
        "codes": len(codes),
        **counts,
        "descent_from_any_code": float((codes.end_rank <= max(1, BEST * len(codes))).mean()),
        "at_the_best": int((frame["rank"] == 1).sum()),
        "median_rank_by_gradient": float(frame.gradient_rank.median()),
        "worst_rank": int(frame["rank"].max()),
        "code": found.code,
        "value": found.value,
    }


def table_of(summaries: dict[str, dict[str, Any]]) -> Table:
    """Returns the summaries as a table for the screen."""
    table = Table(title=f"Starts that end within the best {BEST:.0%} of all codes", title_justify="left")
    headings = (
        "by the gradient",
        "after the descent",
        "at the best",
        "worst rank",
        "descent from any code",
        "best code",
    )
    for heading in ("data, objective", *headings):
        table.add_column(heading, justify="left" if heading.startswith("data") else "right")
    for name, s in summaries.items():
        counts = (f"{s[key]} of {s['starts']}" for key in ("by_gradient", "after_descent", "at_the_best"))
        table.add_row(name, *counts, str(s["worst_rank"]), f"{s['descent_from_any_code']:.0%}", s["code"])
    return table


def draw(rows: Sequence[dict[str, Any]], summaries: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draws the share of starts that end at a rank or better, one panel for each data set and objective."""
    from nngp_dag import style

    columns = 2
    lines = -(-len(summaries) // columns)
    figure = style.new_figure(10, 3.3 * lines + 1.2, title)
    for i, (name, s) in enumerate(summaries.items()):
        axes = figure.add_subplot(lines, columns, i + 1)
        part = [row for row in rows if row["name"] == name]
        limit = BEST * s["codes"]
        for key, color, line, label in (
            ("gradient_rank", style.ORANGE, "--", "by the gradient alone"),
            ("rank", style.BLUE, "-", "after the discrete descent"),
        ):
            ranks = np.sort([row[key] for row in part])
            shares = np.arange(1, len(ranks) + 1) / len(ranks)
            axes.step(
                [1, *ranks, s["codes"]], [0, *shares, 1], line, where="post", color=color, linewidth=2, label=label
            )
        axes.axvline(limit, color=style.GREEN, linestyle="-.", label=f"best {BEST:.0%} of {s['codes']} codes")
        axes.axhline(0.9, color=style.BLACK, linestyle=":", linewidth=1, label="90 % of the starts")
        style.log_axis(axes, "x")
        axes.set(ylim=(-0.03, 1.03), xlabel="rank at the end, or better", ylabel="share of the starts")
        axes.grid(True, alpha=0.3)
        style.panel_title(axes, name, 4.5)
    style.legend_below(figure, figure.axes[0].get_legend_handles_labels()[0], 4)
    style.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="number of inputs per data set")
    parser.add_argument("--starts", type=int, default=100, help="number of random starts")
    parser.add_argument("--steps", type=int, default=60, help="number of steps of Adam")
    parser.add_argument("--noise", type=float, default=0.1, help="variance of the noise on the targets")
    parser.add_argument("--nodes", type=int, default=4, help="number of nodes")
    parser.add_argument(
        "--datasets", nargs="+", default=["diabetes", "digits"], help="diabetes, or names of image sets"
    )
    parser.add_argument("--objectives", nargs="+", default=list(TEXTS), help="names of objectives")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of tensorflow-datasets")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/graph_search"), help="path without suffix"
    )
    options = parser.parse_args(arguments)

    rows: list[dict[str, Any]] = []
    summaries: dict[str, dict[str, Any]] = {}
    for dataset in options.datasets:
        x, y = samples(dataset, options.n, options.data_dir)
        for objective in options.objectives:
            name = f"{dataset}: {TEXTS.get(objective, objective)}"
            found = nd.search_graph(
                x,
                None if objective.endswith("lambda-min") else y,
                objective=objective,
                num_nodes=options.nodes,
                starts=options.starts,
                steps=options.steps,
                noise=options.noise,
                exhaustive=True,
            )
            summaries[name] = summary(found)
            rows += [{"name": name, **row} for row in found.to_frame().to_dict("records")]
            Console(stderr=True).print(f"{name}: {summaries[name]}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    settings = {name: getattr(options, name) for name in ("n", "starts", "steps", "noise", "nodes")}
    document = {**settings, "best": BEST, "summaries": summaries}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    title = f"{options.starts} random starts, graphs of {options.nodes} nodes, {options.n} inputs"
    draw(rows, summaries, options.out.with_suffix(".png"), title)
    Console().print(table_of(summaries))


if __name__ == "__main__":
    main()
