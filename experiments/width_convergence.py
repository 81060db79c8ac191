"""How fast do trained networks approach the exact dynamics as they grow wider?

Networks of one DAG train by full-batch gradient descent at widths 128 to 4096. Two gaps to linearized training at
infinite width are measured. Both are relative to the expected loss, and are root mean squares over the steps.

- The gap of single networks compares each network with the exact curve that starts at its own f(0), as a root mean
  square over networks. It comes from the fluctuation of the NTK at initialization, of order width^-1/2.
- The gap of the mean compares the mean over networks with the mean of those curves. It has two parts: the bias, because
  the NTK moves during training, and a sampling error, which is reported too.

At equal f(0), the spread over initializations drops out, which does not vanish at any width. The activations are ReLU,
which has a kink, and erf, which is smooth. The experiment writes width_convergence.json, .csv and .png.

    python experiments/width_convergence.py [--widths 128 256 ... 4096] [--out experiments/results/width_convergence]
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import nngp_dag as nd

WIDTHS = [128, 256, 512, 1024, 2048, 4096]
# Largest number of parameters of all networks that train at once.
_AT_ONCE = 1 << 28


def gaps_at(
    width: int, dag: nd.Dag, layer: nd.Dense, x: np.ndarray, y: np.ndarray, eta: float, steps: int, seeds: int
) -> np.ndarray:
    """Returns measured minus exact loss at equal f(0), (seeds, steps + 1)."""
    k = nd.kernel(dag, x, layer=layer)
    from_here = nd.Kernel(nngp=np.zeros_like(k.nngp), ntk=np.asarray(k.ntk))

    def create(rngs: Any) -> Any:
        return nd.nets.DagNet(dag, x.shape[1], y.shape[1], width=width, layer=layer, rngs=rngs)

    _, apply = nd.nets.as_functions(create)
    weighted = sum(edge.weighted for edge in dag.live_edges)
    at_once = max(1, _AT_ONCE // (weighted * width**2))
    found = []
    for start in range(0, seeds, at_once):
        chosen = list(range(start, min(seeds, start + at_once)))
        data = {"x": x.astype(np.float32), "y": y.astype(np.float32), "seeds": chosen}
        untrained = nd.nets.descend(create, **data, optimizer=optax.sgd(0.0), steps=1)
        f0 = np.asarray(jax.vmap(apply, (0, None))(untrained.params, data["x"]), np.float64)
        del untrained
        curves = nd.nets.descend(create, **data, optimizer=optax.sgd(eta), steps=steps).curve
        # A kernel with NNGP zero has no spread at the start: its expected loss is the exact curve from f(0).
        found += [curve - nd.expected_loss(from_here, y - f, eta, steps) for curve, f in zip(curves, f0, strict=True)]
    return np.stack(found)


def measure(activation: str, width: int, gaps: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Returns the two gaps of one width, relative to the expected loss, without step 0, where the losses agree."""
    relative = (gaps / expected)[:, 1:]
    return {
        "activation": activation,
        "width": width,
        "networks": len(gaps),
        "network_gap": float(np.sqrt((relative**2).mean())),
        "mean_gap": float(np.sqrt((relative.mean(axis=0) ** 2).mean())),
        "mean_gap_sampling_error": float(np.sqrt((relative.var(axis=0, ddof=1) / len(gaps)).mean())),
    }


def slope(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Returns the exponent of the width in a least-squares fit of the logarithms."""
    return float(np.polyfit(np.log([row["width"] for row in rows]), np.log([row[key] for row in rows]), 1)[0])


def draw(rows: Sequence[dict[str, Any]], slopes: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Draws both gaps against the width, one panel per activation."""
    from nngp_dag import style

    figure = style.new_figure(6.6 * len(slopes), 5.8, title)
    first = None
    for i, (activation, of) in enumerate(slopes.items()):
        axes = figure.add_subplot(1, len(slopes), i + 1, sharey=first)
        first = first or axes
        part = [row for row in rows if row["activation"] == activation]
        widths = np.array([row["width"] for row in part])
        for key, label, color, power in (
            ("network_gap", "single networks, root mean square", style.BLUE, -0.5),
            ("mean_gap", "mean over networks", style.VERMILION, -1.0),
        ):
            values = np.array([row[key] for row in part])
            axes.plot(widths, values, "o-", color=color, linewidth=2, label=label)
            reference = values[0] * (widths / widths[0]) ** power
            axes.plot(widths, reference, ":", color=color, linewidth=1, label=f"slope −{-power:g} for comparison")
        errors = [row["mean_gap_sampling_error"] for row in part]
        axes.plot(widths, errors, "--", color=style.VERMILION, linewidth=1, label="sampling error of the mean")
        style.log_axis(axes, "x", "y")
        axes.set_xticks(widths, [f"{width:,}" for width in widths])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("width")
        if i == 0:
            axes.set_ylabel("gap to the exact dynamics / expected loss")
        fits = f"single networks {of['network_gap']:.2f}, mean {of['mean_gap']:.2f}".replace("-", "−")
        style.panel_title(axes, f"{activation}: fitted slopes: {fits}", 6)
        axes.grid(True, alpha=0.3)
    assert first is not None
    style.legend_below(figure, first.get_legend_handles_labels()[0], 3 if len(slopes) > 1 else 2)
    style.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = Path("experiments/results/width_convergence")
    parser.add_argument("--dag", default="2_21_112", help="code of the graph")
    parser.add_argument("--activations", nargs="+", default=["relu", "erf"], help="names of activations")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="numbers of units of every node")
    parser.add_argument("--n", type=int, default=16, help="number of images of digits")
    parser.add_argument("--steps", type=int, default=20, help="number of steps of gradient descent")
    parser.add_argument("--seeds", type=int, default=64, help="networks per width; a quarter of them from 2048 on")
    parser.add_argument("--out", type=Path, default=out, help="path without suffix")
    options = parser.parse_args(arguments)

    dag = nd.Dag.from_code(options.dag)
    data = nd.data.load_dataset("digits", subset=options.n)
    x = nd.data.scale_to_sphere(nd.data.normalize(data)).reshape(options.n, -1).astype(np.float64)
    y = nd.data.one_hot(data.labels, data.num_classes).astype(np.float64)

    rows: list[dict[str, Any]] = []
    runs = [(activation, width) for activation in options.activations for width in options.widths]
    for activation, width in track(runs, description="widths", console=Console(stderr=True), transient=True):
        layer = nd.Dense(activation=activation)
        k = nd.kernel(dag, x, layer=layer)
        eta = 0.5 / nd.spectrum(k.ntk).lambda_max
        expected = nd.expected_loss(k, y, eta, options.steps)
        seeds = options.seeds if width < 2048 else max(2, options.seeds // 4)
        rows.append(measure(activation, width, gaps_at(width, dag, layer, x, y, eta, options.steps, seeds), expected))
    slopes = {
        activation: {
            key: slope([row for row in rows if row["activation"] == activation], key)
            for key in ("network_gap", "mean_gap")
        }
        for activation in options.activations
    }

    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"dag": options.dag, "n": options.n, "steps": options.steps, "slopes": slopes, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    title = f"{options.dag}, {options.n} digits, {options.steps} steps at η = 0.5 / λmax(NTK)"
    draw(rows, slopes, title, options.out.with_suffix(".png"))
    table = Table(title=title, title_justify="left")
    for heading in ("activation", "width", "networks", "single networks", "mean", "its sampling error"):
        table.add_column(heading, justify="right")
    for row in rows:
        shares = (f"{row[key]:.2%}" for key in ("network_gap", "mean_gap", "mean_gap_sampling_error"))
        table.add_row(row["activation"], str(row["width"]), str(row["networks"]), *shares)
    Console().print(table)
    for activation, of in slopes.items():
        Console().print(f"slopes, {activation}: single networks {of['network_gap']:.2f}, mean {of['mean_gap']:.2f}")


if __name__ == "__main__":
    main()
