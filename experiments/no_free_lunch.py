"""Which property of the kernel or the graph of a DAG predicts how fast its network trains?

The networks of all codes of three blocks, or of a random sample, train with one learning rate, as in the paper. The
729 codes of digits 0, 1 and 2 make 275 networks: a path from input to output must exist, a weighted edge must lie on
one, and codes with equal live edges are one network. Kendall's tau-b over DAGs is measured between predictors and
measures of slowness.

- The predictors are lambda_min of K(H) and of the NTK, each also divided by the mean diagonal entry; effective depth,
  effective width, and the number of paths. The NTK has the standard parameterization, with readout. The kernels are
  those of the first training images, normalized as in training, in float64.
- The measures of slowness are means over seeds: the epochs until the training accuracy reaches a threshold, and the
  share of the initial loss that is left after all epochs.

The mean diagonal of K(H) grows with the number of paths. It scales outputs and gradients, and so acts like a larger
learning rate. Therefore its own tau, and the partial tau at equal diagonal, are reported too.

The 275 networks have only 79 distinct kernels, because a skip that moves along a path can leave the kernel unchanged.
Networks with equal kernels differ by chance only, or are identical where the same seeds draw the same weights.
Therefore the 95 % intervals come from a bootstrap over groups of equal kernels, and tau is also reported with each
kernel counted once. DAGs with a seed that does not reach the threshold tie, and count as slower than all others. DAGs
that diverge or have unresolved eigenvalues are counted and left out.

The published value is tau = -0.77 between epochs to 50 % and lambda_min of the NNGP kernel, on Tiny-ImageNet (Chen,
Huang, Wang, "No Free Lunch" in Neural Architectures?, AutoML 2023).

Every finished DAG becomes a row of OUT.csv at once. After an interruption, the same command continues, and a larger
--sample adds to a smaller one. The experiment writes no_free_lunch.csv, .json and .png. The committed result is the
default, with MNIST in DIR:

    python experiments/no_free_lunch.py --data-dir DIR [--out experiments/results/no_free_lunch]

Small, for CI, in half a minute:

    python experiments/no_free_lunch.py --dataset digits --subset 500 --width 16 --epochs 12 --seeds 2 --lr 0.03
        --sample 5 --kernel-images 32 --resamples 50 --out no_free_lunch

Full, on a GPU, for many hours: all DAGs with the width, learning rate and data of the paper. This has not been run.
Single runs at width 128, with the same product of steps, width and learning rate, suggest that 2_21_112 reaches 50 %
after about 90 epochs, and the chain 2_02_002 after 150 to 200:

    python experiments/no_free_lunch.py --dataset cifar10 --subset 0 --width 1024 --epochs 200 --lr 1e-5 --sample 0
"""

import argparse
import csv
import dataclasses
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import kendalltau

import nngp_dag as nd
from nngp_dag.architecture.document import to_document

PUBLISHED = -0.77
# Number of validation and of test images. Only training is measured, and evaluating all images would take longer.
EVALUATED = 256
REMEDY = "pass --overwrite or choose another --out"
FIELDS: tuple[str, ...] = (
    "code",
    "status",
    "paths",
    "effective_depth",
    "effective_width",
    "lambda_min_nngp",
    "lambda_min_ntk",
    "resolved",
    "diagonal_nngp",
    "diagonal_ntk",
    "epochs_to_threshold",
    "share_of_loss_left",
    "initial_loss",
    "last_accuracy",
    "seeds_at_threshold",
    "epochs_of_seeds",
    "share_of_seeds",
)
PREDICTORS = {
    "lambda_min_nngp": "λmin of K(H)",
    "lambda_min_ntk": "λmin of NTK",
    "effective_depth": "effective depth",
    "effective_width": "effective width",
    "paths": "paths",
    "lambda_min_nngp_per_diagonal": "λmin K(H) / diagonal",
    "lambda_min_ntk_per_diagonal": "λmin NTK / diagonal",
    "diagonal_nngp": "mean diagonal of K(H)",
}
MEASURES = {"epochs_to_threshold": "epochs to threshold", "share_of_loss_left": "share of loss left"}
CONTROL = "diagonal_nngp"


def networks(width: int) -> dict[str, nd.Network]:
    """Returns all networks of three blocks with a weighted edge on a path, each under the first of its codes.

    As in the paper, biases start at 0, and the standard parameterization does not rescale weights and biases.
    """
    found: dict[Any, nd.Dag] = {}
    for digits in itertools.product("012", repeat=6):
        try:
            dag = nd.Dag.from_code(f"{digits[0]}_{''.join(digits[1:3])}_{''.join(digits[3:])}")
        except nd.errors.GraphError:
            continue
        if any(edge.weighted for edge in dag.live_edges):
            found.setdefault(dag.live_edges, dag)
    of_paper: dict[str, Any] = {"layer": nd.Dense(b_std=0.0), "parameterization": "standard", "width": width}
    return {dag.code: nd.Network(dag, **of_paper) for dag in found.values()}


def properties(network: nd.Network, x: np.ndarray) -> dict[str, Any]:
    """Returns the predictors of a network; eigenvalues are those of its kernels on `x`."""
    dag = network.dag
    nngp, ntk = nd.kernel(network, x, readout=False, get="nngp").nngp, nd.kernel(network, x, get="ntk").ntk
    with warnings.catch_warnings():
        # Unresolved eigenvalues are marked in the column "resolved" instead.
        warnings.simplefilter("ignore", nd.errors.NumericalWarning)
        of_nngp, of_ntk = nd.spectrum(nngp), nd.spectrum(ntk)
    return {
        "code": dag.code,
        "paths": dag.num_paths,
        "effective_depth": dag.effective_depth,
        "effective_width": dag.effective_width,
        "lambda_min_nngp": of_nngp.lambda_min,
        "lambda_min_ntk": of_ntk.lambda_min,
        "resolved": int(of_nngp.resolved and of_ntk.resolved),
        "diagonal_nngp": of_nngp.trace / len(x),
        "diagonal_ntk": of_ntk.trace / len(x),
    }


def slowness(history: nd.training.History, threshold: float) -> dict[str, Any]:
    """Returns the measures of slowness of a DAG; the epochs are empty where a seed does not reach the threshold."""
    epochs, losses = history.epochs_to(threshold), history.of("train", "loss")
    shares = losses[-1] / losses[0]
    reached = np.isfinite(epochs)
    return {
        "status": "trained",
        "epochs_to_threshold": epochs.mean() if reached.all() else "",
        "share_of_loss_left": shares.mean(),
        "initial_loss": losses[0].mean(),
        "last_accuracy": history.of("train", "accuracy")[-1].mean(),
        "seeds_at_threshold": reached.sum(),
        "epochs_of_seeds": " ".join(f"{value:.6g}" for value in epochs),
        "share_of_seeds": " ".join(f"{value:.6g}" for value in shares),
    }


def train(
    chosen: dict[str, nd.Network],
    data: nd.data.Splits,
    recipe: nd.Recipe,
    seeds: int,
    report: Callable[..., None],
) -> dict[str, nd.training.History | None]:
    """Returns the histories of networks that train together; None for one that diverges.

    Together, the compilation of one network overlaps the training of another.
    """
    try:
        return {run.name: run.history for run in nd.train(chosen, data, recipe, seeds=seeds, on_progress=report)}
    except nd.errors.DivergenceError:
        if len(chosen) == 1:
            return dict.fromkeys(chosen)
        # A DAG that diverges stops the whole call, so that each is trained on its own.
        apart = [train({name: network}, data, recipe, seeds, report) for name, network in chosen.items()]
        return {name: history for one in apart for name, history in one.items()}


def stored_rows(out: Path, settings: dict[str, Any], chosen: Sequence[str], overwrite: bool) -> list[dict[str, str]]:
    """Returns the finished rows of an interrupted run, and prepares its files.

    Raises:
      OutputError: The files hold a run with other settings, or DAGs that were not chosen.
    """
    table, document = out.with_suffix(".csv"), out.with_suffix(".json")
    rows: list[dict[str, str]] = []
    if table.exists() and not overwrite:
        try:
            found = json.loads(document.read_text())["settings"]
        except (OSError, ValueError, KeyError):
            raise nd.errors.OutputError(f"Expected the settings of {table} in {document}, got none; {REMEDY}") from None
        for key in settings.keys() | found.keys():
            if found.get(key) != settings.get(key):
                raise nd.errors.OutputError(
                    f"Expected {table} to hold rows with {key} {settings.get(key)}, got {found.get(key)}; {REMEDY}"
                )
        whole_lines = [line for line in table.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows = [row for row in csv.DictReader(whole_lines) if None not in row.values()]
        if others := [row["code"] for row in rows if row["code"] not in chosen]:
            raise nd.errors.OutputError(
                f"Expected {table} to hold chosen DAGs only, got {', '.join(others[:3])}; enlarge --sample, or {REMEDY}"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    with nd.report.output_file(document, overwrite=True) as path:
        path.write_text(json.dumps({"settings": settings, "complete": False}, indent=2) + "\n")
    with nd.report.output_file(table, overwrite=True) as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Returns Kendall's tau-b; NaN where one of the arrays is constant."""
    result: Any = kendalltau(a, b, method="asymptotic")
    return float(result.statistic)


def columns_of(rows: Sequence[dict[str, str]], epochs: int) -> dict[str, np.ndarray]:
    """Returns predictors and measures as columns. DAGs that do not reach the threshold get one more than all epochs."""
    plain = {
        name: np.array([float(row[name] or epochs + 1) for row in rows])
        for name in (*PREDICTORS, *MEASURES, "diagonal_ntk")
        if name in FIELDS
    }
    for kernel in ("nngp", "ntk"):
        ratio = plain[f"lambda_min_{kernel}"] / plain[f"diagonal_{kernel}"]
        # Rounded, so that equal kernels tie.
        plain[f"lambda_min_{kernel}_per_diagonal"] = np.array([float(f"{value:.7g}") for value in ratio])
    return plain


def taus_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Returns tau and the partial tau at equal diagonal of K(H), (measures, predictors, 2).

    Reference: Kendall, Biometrika 1942 (partial rank correlation).
    """

    def tau(a: str, b: str) -> float:
        return tau_b(columns[a], columns[b])

    with_control = {name: tau(name, CONTROL) for name in (*PREDICTORS, *MEASURES)}
    result = np.full((len(MEASURES), len(PREDICTORS), 2), np.nan)
    for i, measure in enumerate(MEASURES):
        for j, name in enumerate(PREDICTORS):
            result[i, j, 0] = plain = tau(name, measure)
            left = (1 - with_control[name] ** 2) * (1 - with_control[measure] ** 2)
            # The partial tau of the diagonal itself is not defined: 0 / 0.
            if name != CONTROL and left > 1e-12:
                result[i, j, 1] = (plain - with_control[name] * with_control[measure]) / left**0.5
    return result


def groups_of(columns: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the rows of each group of DAGs with equal kernels."""
    kernels = np.stack([columns[name] for name in ("lambda_min_nngp", "lambda_min_ntk", "diagonal_nngp")], axis=1)
    group = np.unique(kernels, axis=0, return_inverse=True)[1].ravel()
    return [np.flatnonzero(group == g) for g in range(group.max() + 1)]


def intervals(columns: dict[str, np.ndarray], members: Sequence[np.ndarray], resamples: int) -> np.ndarray:
    """Returns bootstrap 95 % intervals of `taus_of` over groups, (2, measures, predictors, 2)."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        drawn.append(taus_of({name: column[rows] for name, column in columns.items()}))
    found = np.full((2, *drawn[0].shape), np.nan)
    for place in np.ndindex(drawn[0].shape):
        values = np.array([taus[place] for taus in drawn])
        # A resample with a constant column has no tau.
        if (values := values[np.isfinite(values)]).size:
            found[:, *place] = np.quantile(values, (0.025, 0.975))
    return found


def rounded(value: float) -> float | None:
    """Returns a rounded number, or None for one that JSON cannot hold."""
    return round(float(value), 4) + 0 if np.isfinite(value) else None


def summary(rows: Sequence[dict[str, str]], epochs: int, resamples: int) -> dict[str, Any]:
    """Returns all taus with their intervals, and the number of DAGs that they are computed from.

    Raises:
      InputError: Fewer than 3 DAGs are left.
    """
    trained = [row for row in rows if row["status"] == "trained"]
    used = [row for row in trained if row["resolved"] == "1"]
    if len(used) < 3:
        raise nd.errors.InputError(
            f"Expected at least 3 DAGs that train and have resolved eigenvalues, got {len(used)} of {len(rows)}; "
            "lower --lr or take more DAGs"
        )
    columns = columns_of(used, epochs)
    groups = groups_of(columns)
    taus, ends = taus_of(columns), intervals(columns, groups, resamples)
    once = taus_of(
        {
            name: np.array([column[rows].mean() if name in MEASURES else column[rows[0]] for rows in groups])
            for name, column in columns.items()
        }
    )

    def entry(i: int, j: int, partial: int) -> dict[str, float | None]:
        low, high = ends[:, i, j, partial]
        values = {"tau": taus[i, j, partial], "low": low, "high": high, "each_kernel_once": once[i, j, partial]}
        return {key: rounded(value) for key, value in values.items()}

    def between_seeds(key: str) -> float | None:
        """Returns Kendall's tau between the rankings by two seeds, averaged over pairs: the noise of a single seed."""
        values = np.array([[float(v) for v in row[key].split()] for row in used])
        values = np.where(np.isfinite(values), values, epochs + 1)
        pairs = itertools.combinations(values.T, 2)
        found = [v for a, b in pairs if np.isfinite(v := tau_b(a, b))]
        return rounded(float(np.mean(found))) if found else None

    reached = columns["epochs_to_threshold"][[bool(row["epochs_to_threshold"]) for row in used]]
    return {
        "dags": len(rows),
        "dags_diverged": len(rows) - len(trained),
        "dags_unresolved": len(trained) - len(used),
        "dags_in_tau": len(used),
        "groups_of_equal_kernels": len(groups),
        "dags_below_threshold": len(used) - len(reached),
        "epochs_to_threshold": [float(f"{v:.4g}") for v in np.quantile(reached, (0, 0.5, 1))] if reached.size else None,
        "published_tau_of_lambda_min_nngp": PUBLISHED,
        "tau": {m: {p: entry(i, j, 0) for j, p in enumerate(PREDICTORS)} for i, m in enumerate(MEASURES)},
        "tau_at_equal_diagonal_of_nngp": {
            m: {p: entry(i, j, 1) for j, p in enumerate(PREDICTORS) if p != CONTROL} for i, m in enumerate(MEASURES)
        },
        "tau_between_two_seeds": {
            "epochs_to_threshold": between_seeds("epochs_of_seeds"),
            "share_of_loss_left": between_seeds("share_of_seeds"),
        },
    }


def words(entry: dict[str, float | None]) -> str:
    """Returns a tau and its interval as text."""
    return f"{number(entry['tau'])} [{number(entry['low'])}, {number(entry['high'])}]"


def number(value: float | None) -> str:
    """Returns a tau as text."""
    return "–" if value is None else f"{round(value, 2) + 0:.2f}".replace("-", "−")


def table_of(found: dict[str, Any], title: str) -> Table:
    """Returns the taus as a table for the screen."""
    table = Table(title=title, title_justify="left", caption="once: each kernel counted once", caption_justify="left")
    for heading in ("", "Kendall τ", "once", "at equal diagonal"):
        table.add_column(heading, justify="right" if heading else "left")
    for measure, label in MEASURES.items():
        table.add_row(f"[bold]{label}[/bold]")
        for name, predictor in PREDICTORS.items():
            tau, partial = found["tau"][measure][name], found["tau_at_equal_diagonal_of_nngp"][measure].get(name)
            once = number(tau["each_kernel_once"])
            table.add_row(predictor, words(tau), once, "" if partial is None else words(partial))
        table.add_section()
    return table


def draw(
    rows: Sequence[dict[str, str]], found: dict[str, Any], epochs: int, threshold: float, title: str, path: Path
) -> None:
    """Draws slowness against lambda_min and the number of paths."""
    from nngp_dag import style

    used = [row for row in rows if row["status"] == "trained" and row["resolved"] == "1"]
    columns = columns_of(used, epochs)
    reached = np.array([bool(row["epochs_to_threshold"]) for row in used])
    errors = {}
    for measure, key in (("epochs_to_threshold", "epochs_of_seeds"), ("share_of_loss_left", "share_of_seeds")):
        spread = [np.std([float(v) for v in row[key].split()]) for row in used]
        errors[measure] = np.where(reached | (measure != "epochs_to_threshold"), spread, np.nan)
    figure = style.new_figure(15.5, 5.6, title)
    points = None
    labels = {
        "epochs_to_threshold": f"epochs to {threshold:.0%} training accuracy",
        "share_of_loss_left": f"share of initial loss left after {epochs} epochs",
        "lambda_min_nngp": "λmin of K(H)",
        "paths": "number of paths, points spread sideways",
    }
    panels = (
        ("lambda_min_nngp", "epochs_to_threshold"),
        ("paths", "epochs_to_threshold"),
        ("lambda_min_nngp", "share_of_loss_left"),
    )
    for i, (predictor, measure) in enumerate(panels):
        axes = figure.add_subplot(1, 3, i + 1)
        x, y, depth = columns[predictor], columns[measure], columns["effective_depth"]
        if predictor == "paths":
            # Numbers of paths are integers: a random shift keeps points from covering one another.
            x = x + np.random.default_rng(0).uniform(-0.25, 0.25, len(x))
        axes.errorbar(x, y, errors[measure], fmt="none", ecolor="0.75", elinewidth=1, zorder=1)
        for chosen, marker in ((reached, "o"), (~reached, "^")):
            if chosen.any():
                points = axes.scatter(
                    x[chosen],
                    y[chosen],
                    c=depth[chosen],
                    marker=marker,
                    s=34,
                    cmap="viridis",
                    vmin=depth.min(),
                    vmax=depth.max(),
                    edgecolors="0.2",
                    linewidths=0.4,
                    zorder=2,
                )
        if predictor == "paths":
            style.whole_axis(axes.xaxis)
        else:
            style.log_axis(axes, "x")
        if measure == "share_of_loss_left":
            style.log_axis(axes, "y")
        tau = words(found["tau"][measure][predictor])
        style.panel_title(axes, f"{PREDICTORS[predictor]}: Kendall's τ = {tau}", 4.6)
        axes.set_xlabel(labels[predictor])
        axes.set_ylabel(labels[measure])
        axes.grid(True, alpha=0.3)
    assert points is not None
    style.colorbar(figure, points, figure.axes, "effective depth", pad=0.01)
    note = "Points: means over seeds; bars: their standard deviation; brackets: bootstrap 95 % intervals"
    if not reached.all():
        note += f"; triangles: {(~reached).sum()} DAGs that do not reach the threshold, above all epochs"
    figure.supxlabel(note, fontsize=9)
    style.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = Path("experiments/results/no_free_lunch")
    parser.add_argument("--dataset", choices=("digits", "mnist", "cifar10"), default="mnist", help="name of the data")
    parser.add_argument("--data-dir", type=Path, help="folder of tensorflow-datasets")
    parser.add_argument("--subset", type=int, default=2560, help="number of training images; 0 for all")
    parser.add_argument("--width", type=int, default=256, help="number of units of every node")
    parser.add_argument("--epochs", type=int, default=20, help="number of passes over the training images")
    parser.add_argument("--seeds", type=int, default=3, help="number of networks per DAG")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate of all DAGs, on the mean loss of a batch")
    parser.add_argument("--sample", type=int, default=80, help="number of random DAGs, with seed 0; 0 for all 275")
    parser.add_argument("--threshold", type=float, default=0.5, help="training accuracy to reach, from 0 to 1")
    parser.add_argument("--kernel-images", type=int, default=256, help="number of training images of the kernels")
    parser.add_argument("--together", type=int, default=8, help="DAGs per call of the trainer; rows follow each call")
    parser.add_argument("--resamples", type=int, default=1000, help="number of bootstrap resamples")
    parser.add_argument("--overwrite", action="store_true", help="replace results with other settings")
    parser.add_argument("--out", type=Path, default=out, help="path without suffix")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except nd.errors.NngpDagError as error:
        raise SystemExit(f"error: {error}") from None


def run(options: argparse.Namespace) -> None:
    """Trains the DAGs that have no row yet, and writes all results."""
    for name in ("seeds", "together", "kernel_images", "resamples"):
        if getattr(options, name) < 1:
            raise nd.errors.InputError(
                f"Expected `--{name.replace('_', '-')}` to be at least 1, got {getattr(options, name)}"
            )
    if not 0 < options.threshold <= 1:
        raise nd.errors.InputError(f"Expected `--threshold` above 0 and at most 1, got {options.threshold}")
    every = networks(options.width)
    if not 0 <= options.sample <= len(every):
        raise nd.errors.InputError(f"Expected `--sample` between 0 and {len(every)}, got {options.sample}")
    order = [str(code) for code in np.random.default_rng(0).permutation(sorted(every))][: options.sample or None]
    recipe = nd.Recipe(epochs=options.epochs, learning_rate=options.lr)
    data = nd.data.load_splits(options.dataset, subset=options.subset or None, data_dir=options.data_dir)
    data = dataclasses.replace(
        data,
        validation=nd.data.Part(*(part[:EVALUATED] for part in data.validation)),
        test=nd.data.Part(*(part[:EVALUATED] for part in data.test)),
        statement=f"{data.statement}; only the first {EVALUATED} for validation and testing are evaluated",
    )
    images = data.train.x[: options.kernel_images]
    x = images.reshape(len(images), -1).astype(np.float64)
    settings = {
        "data": data.statement,
        "seeds": options.seeds,
        "threshold": options.threshold,
        "kernel_images": f"the first {len(x)} training images, normalized as trained, in float64",
        "network": {name: value for name, value in to_document(every[order[0]]).items() if name != "dag"},
        **recipe.as_dict(),
    }
    rows = stored_rows(options.out, settings, order, options.overwrite)
    left = [code for code in order if code not in {row["code"] for row in rows}]

    with (
        Progress(console=Console(stderr=True), transient=True) as progress,
        options.out.with_suffix(".csv").open("a", newline="") as file,
    ):
        task = progress.add_task("epochs", total=len(left) * recipe.epochs)
        writer = csv.DictWriter(file, FIELDS)
        for start in range(0, len(left), options.together):
            chunk = left[start : start + options.together]

            def report(
                code: str, done: int, epochs: int, _: float, first: int = start, chunk: list[str] = chunk
            ) -> None:
                progress.update(task, completed=(first + chunk.index(code)) * epochs + done)

            histories = train({code: every[code] for code in chunk}, data, recipe, options.seeds, report)
            for code, history in histories.items():
                row = dict.fromkeys(FIELDS, "") | {"status": "diverged"} | properties(every[code], x)
                if history is not None:
                    row |= slowness(history, options.threshold)
                row = {key: f"{value:.9g}" if isinstance(value, float) else str(value) for key, value in row.items()}
                writer.writerow(row)
                rows.append(row)
            file.flush()

    found = summary(rows, recipe.epochs, options.resamples)
    choice = "all of them" if len(order) == len(every) else f"{len(order)} drawn at random with seed 0"
    document = {
        "settings": settings,
        "complete": True,
        "choice": f"of {len(every)} networks of three blocks, {choice}",
        "device": str(jax.devices()[0].device_kind),
        "jax": jax.__version__,
        "bootstrap": f"{options.resamples} resamples of groups of DAGs with equal kernels, seed 0; 95 % intervals",
        **found,
    }
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    title = (
        f"{found['dags_in_tau']} DAGs of three blocks on {len(data.train.labels):,} images of {data.name}, "
        f"width {options.width}, η = {recipe.learning_rate:g}, {options.seeds} seeds"
    )
    draw(rows, found, recipe.epochs, options.threshold, title, options.out.with_suffix(".png"))
    console = Console()
    console.print(table_of(found, title))
    console.print(
        f"{found['dags_below_threshold']} DAGs do not reach the threshold, {found['dags_diverged']} diverge, "
        f"{found['dags_unresolved']} have unresolved eigenvalues; τ between two seeds: "
        + ", ".join(f"{MEASURES[key]} {value}" for key, value in found["tau_between_two_seeds"].items())
    )


if __name__ == "__main__":
    main()
