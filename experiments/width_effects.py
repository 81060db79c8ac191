"""How far is a network of width 1024 from infinity, and do small networks tell?

For ten graphs and two data sets, `nngp_dag.width_effects` predicts the mean loss of full-batch gradient descent at one
width, from networks of at most a quarter of it. Networks of that width are then trained. The deviation from the mean at
infinite width is compared, at a few steps:

- measured: mean and standard error over networks. Linearized training at infinite width from each network's own f(0) is
  subtracted, and its mean over readouts added, which leaves the mean as it is and takes most of the noise away;
- predicted: with its 90 % interval, and the part that frozen NTKs explain.

A prediction holds where the difference lies in the interval of both errors. The experiment writes width_effects.json,
.csv and .png, and every finished case to width_effects-cases/. The same command continues after an interruption.

    python experiments/width_effects.py [--graphs "DAG#3" "chain of 2"] [--networks 24] [--out OUT]
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import nngp_dag as nd
from nngp_dag.graph import zoo
from nngp_dag.width import readout_noise

GRAPHS = {
    **{name: zoo.named(name) for name in zoo.FIGURE3},
    **{f"chain of {layers}": zoo.chain(layers) for layers in (2, 6, 10)},
    "ladder": zoo.ladder(6),
    "dense": nd.Dag.from_code("2_22_222_2222"),
    **{f"random {seed}": zoo.random_dag(6, seed) for seed in (0, 1)},
}
STEPS = [5, 20, 50, 100]
# Networks that train at once.
_AT_ONCE = 4


def inputs(dataset: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns n inputs of d numbers with |x|^2 = d, (n, d), and one-hot targets."""
    data = nd.data.load_dataset(dataset, subset=n)
    x = nd.data.scale_to_sphere(nd.data.normalize(data)).reshape(n, -1).astype(np.float64)
    return x, nd.data.one_hot(data.labels, data.num_classes).astype(np.float64)


def measured(network: nd.Network, x: np.ndarray, y: np.ndarray, eta: float, steps: int, count: int) -> np.ndarray:
    """Returns losses of trained networks without the noise of the readouts' weights, (count, steps + 1)."""
    found = []
    for start in range(0, count, _AT_ONCE):
        options: dict[str, Any] = {"steps": steps, "seeds": [*range(start, min(count, start + _AT_ONCE))]}
        create = lambda rngs: nd.nets.DagNet(network, x.shape[1], y.shape[1], rngs=rngs)  # noqa: E731
        run = nd.nets.descend(create, x.astype(np.float32), y.astype(np.float32), optimizer=optax.sgd(eta), **options)
        found.append(run.curve - readout_noise(network, x, y, learning_rate=eta, **options))
    return np.concatenate(found)


def run_case(network: nd.Network, x: np.ndarray, y: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Returns predicted and measured deviations at every step, and what they cost."""
    try:
        effects = nd.width_effects(network, x, y, steps=options.steps, seed=options.seed)
    except nd.errors.InputError as error:
        return {"code": str(network.dag), "refused": str(error)}
    start = time.perf_counter()
    losses = measured(network, x, y, effects.learning_rate, options.steps, options.networks)
    seconds = time.perf_counter() - start
    means, errors = losses.mean(axis=0), losses.std(axis=0, ddof=1) / len(losses) ** 0.5
    found = [effects.deviation(*at, len(losses)) for at in zip(range(len(means)), means, errors, strict=True)]
    return {
        "code": str(network.dag),
        "seconds_predicted": effects.seconds,
        "seconds_measured": seconds,
        "trained": {str(width): count for width, count in effects.trained.items()},
        "left_out": {str(width): count for width, count in effects.left_out.items()},
        "wide_enough": effects.wide_enough(0.1, min(20, options.steps))._asdict(),
        "relative_std": (effects.std / effects.mean).tolist(),
        "deviations": [{**one._asdict(), "holds": one.holds} for one in found],
    }


def rows_of(dataset: str, name: str, case: dict[str, Any], steps: Sequence[int]) -> list[dict[str, Any]]:
    """Returns one row per step of the table."""
    return [{"dataset": dataset, "graph": name, "code": case["code"], **case["deviations"][step]} for step in steps]


def summary(rows: Sequence[dict[str, Any]], cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns how many predictions hold, how many lie within 3 percentage points, and the share of the time."""
    trusted = [row for row in rows if row["trusted"]]
    close = [abs(row["measured"] - row["predicted"]) <= 0.03 for row in rows]
    return {
        "cases": len(rows),
        "hold": sum(row["holds"] for row in rows),
        "within_3_points": sum(close),
        "trusted": len(trusted),
        "trusted_hold": sum(row["holds"] for row in trusted),
        "trusted_within_3_points": sum(c for c, row in zip(close, rows, strict=True) if row["trusted"]),
        "time": sum(c["seconds_predicted"] for c in cases.values())
        / sum(c["seconds_measured"] for c in cases.values()),
    }


def draw(found: dict[str, dict[str, dict[str, Any]]], title: str, path: Path) -> None:
    """Draws predicted and measured deviations over steps, one panel per data set and graph."""
    from nngp_dag import style

    names = list(dict.fromkeys(name for of in found.values() for name in of))
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure = style.new_figure(max(7.0, 3.4 * columns), 1.4 + 2.9 * lines * len(found), title)
    for i, (dataset, cases) in enumerate(found.items()):
        for j, (name, case) in enumerate(cases.items()):
            axes = figure.add_subplot(lines * len(found), columns, i * lines * columns + j + 1)
            names_of = ("predicted", "low", "high", "frozen", "measured", "error", "quantile")
            curves = {key: 100 * np.array([at[key] for at in case["deviations"]]) for key in names_of}
            trusted = np.array([at["trusted"] for at in case["deviations"]])
            steps = np.arange(len(trusted))
            axes.axhline(0, color="black", linewidth=1, label="infinite width")
            axes.fill_between(steps, curves["low"], curves["high"], color=style.BLUE, alpha=0.25, linewidth=0,
                              label="90 % interval")  # fmt: skip
            axes.plot(steps, curves["predicted"], ":", color=style.BLUE, linewidth=1.8, label="predicted, not trusted")
            axes.plot(steps, np.where(trusted, curves["predicted"], np.nan), color=style.BLUE, linewidth=2,
                      label="predicted")  # fmt: skip
            axes.plot(steps, curves["frozen"], "--", color=style.GREEN, linewidth=1.4, label="predicted, NTK frozen")
            marks = steps[:: max(1, len(steps) // 10)]
            errors = curves["quantile"] / 100 * curves["error"]
            axes.errorbar(marks, curves["measured"][marks], errors[marks], fmt="o", markersize=3.5,
                          color=style.VERMILION, linewidth=1.2, label="measured, 90 % interval")  # fmt: skip
            style.panel_title(axes, f"{dataset}: {name}", 3.2)
            axes.grid(True, alpha=0.3)
            if j % columns == 0:
                axes.set_ylabel("deviation in %")
            if j >= len(cases) - columns:
                axes.set_xlabel("step")
    style.legend_below(figure, figure.axes[0].get_legend_handles_labels()[0], 3)
    style.save(figure, path)


def case_of(file: Path, settings: dict[str, Any], compute: Any) -> dict[str, Any]:
    """Returns a finished case from its file, or computes and writes it."""
    if file.exists():
        document = json.loads(file.read_text())
        if document["settings"] == settings:
            return document["case"]
    case = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "case": case}) + "\n")
    partial.rename(file)
    return case


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), choices=list(GRAPHS), help="names of graphs")
    parser.add_argument("--datasets", nargs="+", default=["digits", "sphere"], help="names of data sets")
    parser.add_argument("--n", type=int, default=32, help="number of inputs")
    parser.add_argument("--activation", default="relu", help="name of the activation")
    parser.add_argument("--width", type=int, default=1024, help="number of units of every node")
    parser.add_argument("--steps", type=int, default=100, help="number of steps of gradient descent")
    parser.add_argument("--networks", type=int, default=24, help="number of networks to train at that width")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prediction")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/width_effects"), help="path without suffix"
    )
    options = parser.parse_args(arguments)

    found: dict[str, dict[str, dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    settings = {key: getattr(options, key) for key in ("n", "activation", "width", "steps", "networks", "seed")}
    steps = [step for step in STEPS if step <= options.steps] or [options.steps]
    for dataset in options.datasets:
        x, y = inputs(dataset, options.n)
        found[dataset] = {}
        for name in track(options.graphs, description=dataset, console=Console(stderr=True), transient=True):
            network = nd.Network(GRAPHS[name], width=options.width, layer=nd.Dense(activation=options.activation))
            slug = f"{dataset}-{name}".replace("#", "").replace(" ", "-")
            file = options.out.parent / f"{options.out.name}-cases" / f"{slug}.json"
            of_case = {**settings, "code": str(network.dag)}
            case = case_of(file, of_case, lambda network=network, x=x, y=y: run_case(network, x, y, options))
            if "refused" in case:
                refused[f"{dataset}, {name}"] = case["refused"]
                continue
            found[dataset][name] = case
            rows += rows_of(dataset, name, case, steps)

    for name, message in refused.items():
        Console().print(f"{name}: {message}", markup=False)
    if not rows:
        raise SystemExit("no prediction was made")
    of_all = summary(rows, {f"{d}, {name}": case for d, of in found.items() for name, case in of.items()})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"settings": settings, "summary": of_all, "refused": refused, "cases": found}
    options.out.with_suffix(".json").write_text(json.dumps(document) + "\n")
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    title = (
        f"Mean loss at width {options.width} against infinite width: {options.activation}, {options.n} inputs, "
        f"η = 1 / λmax(NTK), {options.networks} trained networks"
    )
    draw(found, title, options.out.with_suffix(".png"))
    table = Table(title=title, title_justify="left")
    for heading in ("data, graph", "step", "predicted", "90 % interval", "frozen", "measured", "trusted", "holds"):
        table.add_column(heading, justify="left" if heading.startswith("data") else "right")
    for row in rows:
        interval = f"{row['low']:+.1%} to {row['high']:+.1%}"
        table.add_row(f"{row['dataset']}, {row['graph']}", str(row["step"]), f"{row['predicted']:+.1%}", interval,
                      f"{row['frozen']:+.1%}", f"{row['measured']:+.1%} ± {row['error']:.1%}",
                      "yes" if row["trusted"] else "no", "yes" if row["holds"] else "no")  # fmt: skip
    Console().print(table)
    Console().print(
        f"{of_all['hold']} of {of_all['cases']} predictions hold, {of_all['trusted_hold']} of the {of_all['trusted']} "
        f"trusted ones; they took {of_all['time']:.0%} of the time of training"
    )


if __name__ == "__main__":
    main()
