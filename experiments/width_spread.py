"""Is the predicted spread of finite networks right, where it is not flagged?

For ten graphs, two activations in both orders, two data sets, and the NNGP and the NTK, `nngp_dag.width_spread`
predicts the standard deviation of five functionals over initializations at one width, at its default settings. It flags
those for which first order is not enough. Networks of that width are then drawn, with all of their weights. The miss is
their standard deviation over the predicted one, minus 1:

- "within": the miss is at most 5 %;
- "within 2 errors": it is, up to two standard errors of Monte Carlo;
- "beyond": it is not.

What must hold is that no miss beyond 5 % is unflagged, and none above 10 %. The functionals of drawn kernels are
computed by NumPy here. Both kernels and all data sets share the drawn networks of a graph. The experiment writes
width_spread.json, .csv and .png, and every finished case to width_spread-cases/. The same command continues after an
interruption; with --finished it shows what there is.

    python experiments/width_spread.py [--graphs "DAG#3" "chain of 2"] [--kinds nngp] [--networks 4000] [--out OUT]
"""

import argparse
import csv
import datetime
import itertools
import json
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table
from width_effects import GRAPHS, case_of, inputs

import nngp_dag as nd
from nngp_dag.storage import environment

KINDS = ("nngp", "ntk")
ORDERS = ("linear-act", "act-linear")
# The keys of a case, in the order in which cases are computed.
KEYS = ("kind", "dataset", "activation", "order", "graph")
FUNCTIONALS = ("entry", "trace", "log_det", "prediction", "alignment")
# Misses that count.
_LARGE, _TOO_LARGE = 0.05, 0.1
# Networks of one compiled call.
_AT_ONCE = 500
# Misses are drawn up to here, in percent; an arrow stands for a larger one.
_DRAWN = 15.0


def targets(n: int) -> np.ndarray:
    """Returns normal targets, (n,)."""
    return np.random.default_rng(1).normal(size=n)


def drawn(network: nd.Network, x: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    """Returns NNGPs and NTKs of `count` networks, given all of their weights, by kind, (count, N, N), in float64."""

    def create(rngs: nnx.Rngs) -> nd.nets.DagNet:
        return nd.nets.DagNet(network, x.shape[1], 1, rngs=rngs)

    init, _ = nd.nets.as_functions(create)
    kernels_of = nd.nets.empirical_ntk(create)

    @jax.jit
    def of_keys(keys: jax.Array, data: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            _, nngp, ntk = kernels_of(init(key), data)
            return nngp, ntk[:, 0, :, 0]

        return jax.lax.map(one, keys)

    with jax.enable_x64(True):
        data, keys = jax.numpy.asarray(x, np.float64), jax.random.split(jax.random.key(seed), count)
        parts = [of_keys(keys[start : start + _AT_ONCE], data) for start in range(0, count, _AT_ONCE)]
        return {kind: np.concatenate(of) for kind, of in zip(KINDS, zip(*parts, strict=True), strict=True)}


def values_of(k: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the functionals of kernels, (count, N, N), by name, (count,)."""
    weights = np.linalg.solve(k[:, :-1, :-1], np.broadcast_to(y[:-1, None], (len(k), len(y) - 1, 1)))
    norms = np.sqrt(np.einsum("sij,sij->s", k, k))
    return {
        "entry": k[:, 0, 1],
        "trace": np.einsum("sii->s", k),
        "log_det": np.linalg.slogdet(k).logabsdet,
        "prediction": np.einsum("si,sij->s", k[:, -1, :-1], weights),
        "alignment": np.einsum("i,sij,j->s", y, k, y) / norms / (y @ y),
    }


def measured(network: nd.Network, data: dict[str, np.ndarray], count: int, seed: int) -> dict[str, Any]:
    """Returns mean and spread of all functionals, by kind, data set and name, from the same networks.

    Most of the time goes into drawing weights, so that all inputs of as many features share the networks.
    """
    start = time.perf_counter()
    found: dict[str, Any] = {kind: {} for kind in KINDS}
    for features in {x.shape[1] for x in data.values()}:
        same = {name: x for name, x in data.items() if x.shape[1] == features}
        of_all = drawn(network, np.concatenate(list(same.values())), count, seed)
        for kind, (i, (name, x)) in itertools.product(KINDS, enumerate(same.items())):
            block = slice(i * len(x), (i + 1) * len(x))
            values = values_of(of_all[kind][:, block, block], targets(len(x)))
            found[kind][name] = {functional: spread_of(v) for functional, v in values.items()}
    return found | {"seconds": time.perf_counter() - start}


def spread_of(values: np.ndarray) -> dict[str, float]:
    """Returns mean and standard deviation with their standard errors."""
    mean, std = values.mean(), values.std(ddof=1)
    # That of a standard deviation follows from that of the variance, whatever the distribution.
    error = ((values - mean) ** 2).std() / len(values) ** 0.5 / (2 * std)
    found = {"mean": mean, "mean_error": std / len(values) ** 0.5, "std": std, "std_error": error}
    return {name: float(value) for name, value in found.items()}


def predicted(network: nd.Network, x: np.ndarray, kind: str, seed: int) -> dict[str, Any]:
    """Returns the predictions of all functionals, by name, at default settings."""
    y = targets(len(x))
    of_targets: dict[str, dict[str, Any]] = {"prediction": {"y": y[:-1]}, "alignment": {"y": y}}
    start = time.perf_counter()
    found: dict[str, Any] = {}
    for name in FUNCTIONALS:
        try:
            with warnings.catch_warnings():
                # It repeats the flag.
                warnings.simplefilter("ignore", nd.errors.NumericalWarning)
                spread = nd.width_spread(network, x, name, kind=kind, seed=seed, **of_targets.get(name, {}))
        except nd.errors.InputError as error:
            found[name] = {"refused": str(error)}
            continue
        keys = ("value", "std", "std_error", "departure", "departure_error", "bias", "bias_error", "second_order")
        numbers = {key: getattr(spread, key) for key in (*keys, "second_order_error")}
        # JSON has no NaN.
        found[name] = {"trusted": spread.trusted, **{k: v if np.isfinite(v) else None for k, v in numbers.items()}}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"functionals": found, "seconds": time.perf_counter() - start, "date": today, "environment": environment()}


def row_of(name: str, found: dict[str, Any], networks: dict[str, float]) -> dict[str, Any]:
    """Returns predicted and measured spread of one functional, and by how much they differ."""
    row = {
        "functional": name,
        "value": found["value"],
        "predicted": found["std"],
        "predicted_error": found["std_error"],
        "measured": networks["std"],
        "measured_error": networks["std_error"],
        "miss": networks["std"] / found["std"] - 1,
        "miss_error": networks["std_error"] / found["std"],
        "trusted": found["trusted"],
        "departure": found["departure"],
        "departure_error": found["departure_error"],
        "shift": networks["mean"] - found["value"],
        "shift_error": networks["mean_error"],
        **{key: found[key] for key in ("bias", "bias_error", "second_order", "second_order_error")},
    }
    return row | {"verdict": verdict(row)}


def verdict(row: dict[str, Any]) -> str:
    """Returns whether the miss is at most 5 %, see the head of this file."""
    if abs(row["miss"]) <= _LARGE:
        return "within"
    return "within 2 errors" if abs(row["miss"]) - 2 * row["miss_error"] <= _LARGE else "beyond"


def summary(rows: Sequence[dict[str, Any]], refused: int) -> dict[str, Any]:
    """Returns how many predictions are flagged, and how large the misses of the others are."""
    unflagged = [row for row in rows if row["trusted"]]
    simulated = [row for row in rows if row["departure"] is not None]
    rest = [row["measured"] / row["predicted"] / (1 + row["departure"]) - 1 for row in simulated]
    found = {
        "predictions": len(rows) + refused,
        "refused": refused,
        "flagged": len(rows) - len(unflagged),
        "unflagged": len(unflagged),
        "above_5": sum(abs(row["miss"]) > _LARGE for row in unflagged),
        "above_5_by_2_errors": sum(row["verdict"] == "beyond" for row in unflagged),
        "above_10": sum(abs(row["miss"]) > _TOO_LARGE for row in unflagged),
        "rms_miss": rms([row["miss"] for row in unflagged]),
        "rms_miss_error": rms([row["miss_error"] for row in unflagged]),
        "flagged_above_5": sum(abs(row["miss"]) > _LARGE for row in rows if not row["trusted"]),
        "rms_miss_with_departure": rms(rest),
    }
    worst = max(unflagged, key=lambda row: abs(row["miss"]), default=None)
    return found | {"worst": worst and {key: worst[key] for key in (*KEYS, "functional", "miss", "miss_error")}}


def rms(values: Sequence[float]) -> float | None:
    """Returns the root mean square, or None of no numbers."""
    return float(np.sqrt(np.mean(np.square(values)))) if values else None


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draws the misses, one panel per kind and functional, and one line per graph."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from nngp_dag import style

    kinds, graphs, datasets, activations, orders = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("kind", "graph", "dataset", "activation", "order")
    )
    columns, height = len(FUNCTIONALS), max(3.0, 0.9 + 0.52 * len(graphs))
    figure = style.new_figure(1.6 + 2.9 * columns, 1.7 + height * len(kinds), title)
    palette = (style.BLUE, style.VERMILION, style.GREEN, style.PURPLE, style.ORANGE, style.BLACK)
    networks = list(itertools.product(activations, orders))
    colors = dict(zip(networks, itertools.cycle(palette), strict=False))
    marks = dict(zip(datasets, itertools.cycle("os^D"), strict=False))
    places = list(itertools.product(networks, datasets))
    for i, (kind, functional) in enumerate(itertools.product(kinds, FUNCTIONALS)):
        axes = figure.add_subplot(len(kinds), columns, i + 1)
        for limit, shade in ((100 * _TOO_LARGE, 0.3), (100 * _LARGE, 0.5)):
            axes.axvspan(-limit, limit, color=style.GRAY, alpha=shade, linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8)
        for line in range(1, len(graphs)):
            axes.axhline(line - 0.5, color=style.GRAY, linewidth=0.5)
        for row in (row for row in rows if (row["kind"], row["functional"]) == (kind, functional)):
            place = places.index(((row["activation"], row["order"]), row["dataset"]))
            height_of = graphs.index(row["graph"]) + 0.8 * ((place + 0.5) / len(places) - 0.5)
            color, miss, error = colors[row["activation"], row["order"]], 100 * row["miss"], 100 * row["miss_error"]
            look: dict[str, Any] = {"color": color, "markersize": 4, "linewidth": 0.9, "markeredgewidth": 0.9}
            look["markerfacecolor"] = color if row["trusted"] else "white"
            if abs(miss) <= _DRAWN:
                axes.errorbar(miss, height_of, xerr=error, fmt=marks[row["dataset"]], **look)
            else:
                axes.plot(np.sign(miss) * 0.97 * _DRAWN, height_of, ">" if miss > 0 else "<", **look)
        axes.set_xlim(-_DRAWN, _DRAWN)
        axes.set_xticks([-10, -5, 0, 5, 10], ["−10", "−5", "0", "5", "10"])
        axes.set_ylim(len(graphs) - 0.5, -0.5)
        first = i % columns == 0
        axes.set_yticks(range(len(graphs)), graphs if first else [""] * len(graphs))
        axes.tick_params(axis="y", length=0)
        style.panel_title(axes, f"{kind.upper()}: {functional.replace('_', ' ')}", 2.8)
        if i >= columns * (len(kinds) - 1):
            axes.set_xlabel("miss in %")
    plain = {"color": style.BLACK, "linestyle": "none", "markersize": 5}
    handles: list[Any] = [Line2D([], [], color=colors[of], linewidth=3, label=", ".join(of)) for of in networks]
    handles += [Line2D([], [], marker=marks[dataset], label=dataset, **plain) for dataset in datasets]
    handles += [Line2D([], [], marker="o", markerfacecolor="white", label="flagged beforehand", **plain)]
    if any(100 * abs(row["miss"]) > _DRAWN for row in rows):
        handles += [Line2D([], [], marker=">", label=f"miss above {_DRAWN:g} %", **plain)]
    handles += [Patch(color=style.GRAY, alpha=alpha, label=label) for alpha, label in ((0.65, "5 %"), (0.3, "10 %"))]
    style.legend_below(figure, handles, 5)
    style.save(figure, path)


def table_of(summaries: dict[str, dict[str, Any]], title: str) -> Table:
    """Returns one line per kind and functional; in brackets what is beyond 5 % by two standard errors."""
    table = Table(title=title, title_justify="left")
    for heading in ("functional", "unflagged", "rms", "error", "> 5", "> 10", "largest"):
        table.add_column(heading, justify="left" if heading == "functional" else "right", no_wrap=True)
    for name, of in summaries.items():
        misses = (f"{100 * of[key]:.1f}" if of["unflagged"] else "" for key in ("rms_miss", "rms_miss_error"))
        large = f"{of['above_5']} ({of['above_5_by_2_errors']})"
        worst = f"{100 * of['worst']['miss']:+.1f} ± {100 * of['worst']['miss_error']:.1f}" if of["worst"] else ""
        count = f"{of['unflagged']} of {of['predictions']}"
        table.add_row(name, count, *misses, large, str(of["above_10"]), worst)
    return table


def write(
    rows: list[dict[str, Any]], refused: dict[str, str], facts: dict[str, Any], options: argparse.Namespace
) -> None:
    """Writes all files, and prints the table and the summary."""
    out: Path = options.out

    def of_part(*names: str) -> dict[str, Any]:
        part = [row for row in rows if {row["kind"], row["functional"]}.issuperset(names)]
        return summary(part, sum(set(name.split(", ")).issuperset(names) for name in refused))

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    summaries = {"all": of_part()}
    for kind in kinds:
        summaries |= {f"{kind}, {functional}": of_part(kind, functional) for functional in FUNCTIONALS}
        summaries[f"{kind}, all"] = of_part(kind)
    document = facts | {"summaries": summaries, "refused": refused}
    out.with_suffix(".json").write_text(json.dumps(document | {"rows": rows}) + "\n")
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    title = (
        f"Standard deviation of {options.networks:,} networks of width {options.width} over the predicted one, minus 1"
        f"; {options.n} inputs, bars of one standard error"
    )
    draw(rows, title, out.with_suffix(".png"))
    Console().print(table_of(summaries, "Misses of the unflagged predictions in %, and the error of Monte Carlo"))


class _UnfinishedError(Exception):
    """A case has no file."""


def cases_of(options: argparse.Namespace) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Computes or reads all cases; yields their keys and what was found."""
    folder = options.out.parent / f"{options.out.name}-cases"
    settings = {key: getattr(options, key) for key in ("n", "width", "networks", "seed")}
    cases = list(itertools.product(*(getattr(options, f"{key}s") for key in KEYS)))
    data = {dataset: inputs(dataset, options.n)[0] for dataset in options.datasets}
    for number, names in enumerate(cases, 1):
        keys = dict(zip(KEYS, names, strict=True))
        kind, dataset, activation, order, graph = names
        layer = nd.Dense(activation=activation, order=order)
        network = nd.Network(GRAPHS[graph], width=options.width, layer=layer)
        of_network = settings | {"code": str(network.dag), "activation": activation, "order": order}
        slug = f"{activation}-{order}-{graph}".replace("#", "").replace(" ", "-")
        seed = zlib.crc32(f"{options.seed} {slug}".encode())

        def draw_networks(network: Any = network, seed: int = seed) -> dict[str, Any]:
            return measured(network, data, options.networks, seed)

        def compute(network: Any = network, seed: int = seed, slug: str = slug, keys: Any = keys, of: Any = of_network):
            if options.finished:
                raise _UnfinishedError
            networks = case_of(folder / f"networks-{slug}.json", of | {"datasets": [*data]}, draw_networks)
            found = predicted(network, data[keys["dataset"]], keys["kind"], seed)
            return found | {"networks": networks[keys["kind"]][keys["dataset"]], "seconds_drawn": networks["seconds"]}

        start = time.perf_counter()
        try:
            case = case_of(folder / f"{kind}-{dataset}-{slug}.json", of_network | keys, compute)
        except _UnfinishedError:
            continue
        if not options.finished:
            line = f"{number} of {len(cases)}, {time.perf_counter() - start:.1f} s: {', '.join(names)}"
            Console(stderr=True).print(line, markup=False, highlight=False)
        yield keys | {"code": str(network.dag)}, case


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = Path("experiments/results/width_spread")
    several: dict[str, Any] = {"nargs": "+"}
    parser.add_argument("--graphs", default=list(GRAPHS), choices=list(GRAPHS), help="names of graphs", **several)
    parser.add_argument("--kinds", default=list(KINDS), choices=KINDS, help="kernels", **several)
    parser.add_argument("--activations", default=["relu", "erf"], help="names of activations", **several)
    parser.add_argument("--orders", default=list(ORDERS), choices=ORDERS, help="orders of layers", **several)
    parser.add_argument("--datasets", default=["digits", "sphere"], help="names of data sets", **several)
    parser.add_argument("--n", type=int, default=8, help="number of inputs")
    parser.add_argument("--width", type=int, default=256, help="number of units of every node")
    parser.add_argument("--networks", type=int, default=4000, help="number of networks to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed, from which every network has one of its own")
    parser.add_argument("--finished", action="store_true", help="compute nothing; show the cases that are finished")
    parser.add_argument("--out", type=Path, default=out, help="path without suffix")
    options = parser.parse_args(arguments)

    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    facts: dict[str, Any] = {key: getattr(options, key) for key in ("n", "width", "networks", "seed")}
    facts |= {"cases": 0, "dates": [], "environments": [], "seconds_predicted": 0.0, "seconds_drawn": 0.0}
    seconds_drawn: dict[tuple[str, ...], float] = {}
    for keys, case in cases_of(options):
        facts["cases"] += 1
        facts["seconds_predicted"] += case["seconds"]
        seconds_drawn[keys["activation"], keys["order"], keys["graph"]] = case["seconds_drawn"]
        for key, one in (("dates", case["date"]), ("environments", case["environment"])):
            facts[key] += [one] if one not in facts[key] else []
        for name, found in case["functionals"].items():
            if "refused" in found:
                refused[", ".join((*(keys[key] for key in KEYS), name))] = found["refused"]
            else:
                rows.append(keys | row_of(name, found, case["networks"][name]))
    for name, message in refused.items():
        Console().print(f"{name}: {message}", markup=False)
    if not rows:
        raise SystemExit("no prediction was made")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(rows, refused, facts | {"seconds_drawn": sum(seconds_drawn.values())}, options)


if __name__ == "__main__":
    main()
