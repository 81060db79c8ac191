"""Pictures of searches: accuracy over effective depth and width, and over scores. matplotlib is imported inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import DataError, InputError
from nngp_dag.graph.codes import shorten
from nngp_dag.nas.scores.registry import get_score
from nngp_dag.nas.spaces.accuracy_table import AccuracyTable
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.nas.spaces.filters import FILTERS
from nngp_dag.report.ranking import rank_correlations

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_COLORS = {"paper": "#D55E00", "released-code": "#0072B2"}
# {score: (its name for people, what the axis divides it by)}; others are called as they are registered.
_LABELS = {
    "naswot": ("NASWOT", 1.0),
    "naswot_reference": ("NASWOT, counting as its code", 1.0),
    "parameters": ("parameters in millions", 1e6),
    "flops": ("multiply-adds in millions", 1e6),
    "effective_depth": ("effective depth", 1.0),
    "effective_width": ("effective width", 1.0),
    "grad_norm": ("norm of the gradient", 1.0),
    "synflow": ("SynFlow", 1.0),
    "jacob_cov": ("covariance of Jacobians (jacob_cov)", 1.0),
    "ntk_condition": ("condition number of the network's NTK", 1.0),
    "nngp_lambda_min_exact": ("λmin of the exact NNGP", 1.0),
    "nngp_condition_exact": ("condition number of the exact NNGP", 1.0),
    "nngp_logdet_exact": ("log-determinant of the exact NNGP", 1.0),
    "ntk_lambda_min_exact": ("λmin of the exact NTK", 1.0),
    "ntk_condition_exact": ("condition number of the exact NTK", 1.0),
    "ntk_logdet_exact": ("log-determinant of the exact NTK", 1.0),
}


def plot_depth_and_width(benchmark: AccuracyTable, path: Path, *, column: str | None = None) -> None:
    """Draws, over effective depth and width, the mean accuracy of the cells there, and the filters' ranges.

    Raises:
      DataError: No cell with a path has an accuracy, or there is no such column.

    Reference: Chen et al., NeurIPS 2022, Figure 5 (accuracy over effective depth and width).
    """
    import pandas
    from matplotlib.patches import Rectangle

    from nngp_dag import style

    frame = pandas.DataFrame(
        {
            "depth": [round(cell.dag.effective_depth, 6) for cell in benchmark.cells],
            "width": [round(cell.dag.effective_width, 6) for cell in benchmark.cells],
            "accuracy": benchmark.column(column),
            "connected": [bool(cell.dag.num_paths) for cell in benchmark.cells],
        }
    )
    frame = frame[frame.connected & frame.accuracy.notna()]
    if frame.empty:
        raise DataError("Expected a benchmark with the accuracy of a cell that has a path, got none")
    places: Any = frame.groupby(["depth", "width"])["accuracy"]
    means, counts = places.mean(), places.size()
    depth, width = (np.asarray(means.index.get_level_values(i), np.float64) for i in range(2))
    # Cells without a convolution would leave all others one color.
    low, high = np.percentile(means, [10, 100])
    title = f"NAS-Bench-201, cells with a path: {len(frame):,}\narea of a bubble: number of cells, {_range(counts)}"
    figure = style.new_figure(9.5, 7, title)
    axes = figure.add_subplot()
    shown = axes.scatter(
        depth, width, s=25 + 500 * counts / counts.max(), c=means, cmap="viridis", vmin=low, vmax=high,
        edgecolors="0.2", linewidths=0.5, alpha=0.9,
    )  # fmt: skip
    style.colorbar(figure, shown, axes, f"mean {_accuracy(column)}", extend="min" if means.min() < low else "neither")
    handles = []
    for name, f in FILTERS.items():
        (left, right), (bottom, top) = ((float(low), float(high)) for low, high in (f.depth, f.width))
        color = _COLORS.get(name, style.BLACK)
        corner = Rectangle((left, bottom), right - left, top - bottom, fill=False, linewidth=1.8, color=color)
        corner.set_label(f"kept by the filter of the {name.replace('-', ' ')}")
        handles.append(axes.add_patch(corner))
    axes.set_xlabel("effective depth")
    axes.set_ylabel("effective width")
    axes.grid(True, alpha=0.3)
    axes.margins(0.06)
    style.legend_below(figure, handles, len(handles))
    style.save(figure, path)


def plot_scores(
    scores: "pandas.DataFrame", benchmark: AccuracyTable, names: Sequence[str], path: Path, *, column: str | None = None
) -> None:
    """Draws accuracy over each score, a point for each cell with a path and both, colored by effective depth.

    Every panel states Spearman's rank correlation of score and accuracy, and the number of cells. Cells far below the
    others, such as those whose training failed, stand as triangles at the lower edge.

    Raises:
      InputError: A score is unknown or was not computed.
      DataError: No scored cell has an accuracy, or there is no such column.
    """
    from nngp_dag import style

    frame: Any = scores
    for name in names:
        if name not in frame:
            raise InputError(
                f"Expected scores that were computed, got {get_score(name).name!r}; run nngp-dag nas score with it"
            )
    accuracy = benchmark.look_up([Cell.parse(cell) for cell in frame.cell], column)
    if not np.isfinite(accuracy).any():
        raise DataError(
            f"Expected a benchmark that has scored cells, got none of the {len(frame):,}; score some of its"
        )
    connected = np.asarray(frame.status != "disconnected")
    frame = frame.assign(accuracy=accuracy)[connected]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    width = 4.6
    title = f"NAS-Bench-201: accuracy against scores, cells scored: {len(accuracy):,}"
    if not connected.all():
        title += f", left out since they have no path: {int((~connected).sum()):,}"
    figure = style.new_figure(width * columns + 0.8, 4.3 * rows + 0.4, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    deepest = max(1.0, float(frame.effective_depth.max())) if len(frame) else 1.0
    shown = None
    for axes, name in zip(grid.flat, names, strict=False):
        label, unit = _LABELS.get(name, (shorten(name.replace("_", " "), 40), 1.0))
        found = _draw_score(axes, frame, name, unit, deepest, label, width)
        shown = found or shown
        axes.set_xlabel(label)
        axes.set_ylabel(_accuracy(column))
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    if shown is not None:
        style.colorbar(figure, shown, grid, "effective depth", shrink=0.8, aspect=30)
    style.save(figure, path)


def _draw_score(axes: "Axes", frame: Any, name: str, unit: float, deepest: float, label: str, width: float) -> Any:
    """Draws one panel; returns what is colored, None where no cell has the score and an accuracy."""
    from nngp_dag import style

    values, accuracy = np.asarray(frame[name], np.float64) / unit, np.asarray(frame.accuracy, np.float64)
    sound = np.isfinite(values) & np.isfinite(accuracy)
    values, accuracy, depth = values[sound], accuracy[sound], np.asarray(frame.effective_depth)[sound]
    if not len(values):
        style.panel_title(axes, f"{label}\nno cell with this score and an accuracy", 0.9 * width)
        style.say_nothing_to_draw(axes, "nothing to draw")
        return None
    rho = rank_correlations(frame, [name], ["accuracy"])["spearman"].iloc[0]
    correlation = "not defined" if np.isnan(rho) else f"{rho:.2f}".replace("-", "−")
    facts = f"Spearman's rank correlation {correlation}, n = {len(values):,}"
    # Cells whose training failed, at 10 %, would leave the others a thin line.
    low = float(np.floor(np.percentile(accuracy, 2)) - 2)
    below = accuracy < low
    if below.any():
        facts += f"\n▼ {int(below.sum()):,} below {low:.0f} %, not to scale"
    options = {"cmap": "plasma", "vmin": 0, "vmax": deepest}
    shown = axes.scatter(values[~below], accuracy[~below], c=depth[~below], s=9, alpha=0.7, **options)
    if values.min() > 0 and values.max() > 100 * values.min():
        style.log_axis(axes, "x")
    else:
        axes.locator_params("x", nbins=6)
    if below.any():
        bottom, top = low - 0.06 * (np.ptp(accuracy[~below]) + 1), axes.get_ylim()[1]
        axes.scatter(values[below], np.full(below.sum(), low), c=depth[below], s=26, marker="v", edgecolors="0.2",
                     linewidths=0.4, **options)  # fmt: skip
        axes.set_ylim(bottom, top)
    style.panel_title(axes, f"{label}\n{facts}", width)
    axes.grid(True, alpha=0.3)
    return shown


def _accuracy(column: str | None) -> str:
    return "accuracy in %" if column is None else f"accuracy in %, {shorten(column, 30)}"


def _range(counts: Any) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
