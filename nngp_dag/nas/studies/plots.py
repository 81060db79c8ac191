"""Pictures of accuracies over effective depth and width, and over scores.

matplotlib is imported inside the functions, because its import takes long.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import DataError, InputError
from nngp_dag.graph.codes import shorten
from nngp_dag.nas.scores.registry import get_score, with_controls
from nngp_dag.nas.spaces.accuracy_table import AccuracyTable
from nngp_dag.nas.spaces.any_cell import parse_cell, space_of_all
from nngp_dag.nas.spaces.filters import FILTERS
from nngp_dag.report.ranking import rank_correlations

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_TITLES = {"nasbench201": "NAS-Bench-201", "darts": "DARTS"}
_COLORS = {"paper": "#D55E00", "released-code": "#0072B2"}
# {score: (label of the axis, unit of the axis)}. Other scores have their registered names as labels.
_LABELS = {
    "naswot": ("NASWOT", 1.0),
    "naswot_reference": ("NASWOT, counting as its code", 1.0),
    "parameters": ("parameters in millions", 1e6),
    "flops": ("FLOPs in millions", 1e6),
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
    "leave_one_out": ("leave-one-out error of the exact NTK", 1.0),
}


def plot_depth_and_width(table: AccuracyTable, path: Path, *, column: str | None = None) -> None:
    """Draws the mean accuracy of cells over effective depth and width, and the ranges of the filters.

    The area of a bubble is proportional to the number of cells, up to a constant. Cells without a path are left out.

    Args:
      table: Accuracies of cells.
      path: The image file.
      column: Column of the accuracy table. None where it has one column.

    Raises:
      DataError: No cell with a path has an accuracy, or there is no such column.

    Examples:
      >>> import tempfile
      >>> from nngp_dag.nas import AccuracyTable, Cell, plot_depth_and_width
      >>> table = AccuracyTable((Cell.from_index(10353),), {"cifar10": np.array([90.0])})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = Path(folder, "depth-width.png")
      ...     plot_depth_and_width(table, file)
      ...     file.exists()
      True

    Reference: Chen et al., NeurIPS 2022, Figure 5 (accuracy over effective depth and width).
    """
    import pandas
    from matplotlib.patches import Rectangle

    from nngp_dag import style

    frame = pandas.DataFrame(
        {
            "depth": [round(cell.dag.effective_depth, 6) for cell in table.cells],
            "width": [round(cell.dag.effective_width, 6) for cell in table.cells],
            "accuracy": table.column(column),
            "connected": [bool(cell.dag.num_paths) for cell in table.cells],
        }
    )
    frame = frame[frame.connected & frame.accuracy.notna()]
    if frame.empty:
        raise DataError("Expected an accuracy table with a cell that has a path and an accuracy, got none")
    places: Any = frame.groupby(["depth", "width"])["accuracy"]
    means, counts = places.mean(), places.size()
    depth, width = (np.asarray(means.index.get_level_values(i), np.float64) for i in range(2))
    # The color scale starts at the 10th percentile: the low accuracies of cells without a convolution would leave all
    # others almost one color.
    low, high = np.percentile(means, [10, 100])
    title = f"{_TITLES[table.space]}, cells with a path: {len(frame):,}\n"
    title += f"area of a bubble: number of cells, {_range(counts)}"
    figure = style.new_figure(9.5, 7, title)
    axes = figure.add_subplot()
    shown = axes.scatter(
        depth, width, s=25 + 500 * counts / counts.max(), c=means, cmap="viridis", vmin=low, vmax=high,
        edgecolors="0.2", linewidths=0.5, alpha=0.9,
    )  # fmt: skip
    style.colorbar(figure, shown, axes, f"mean {_accuracy(column)}", extend="min" if means.min() < low else "neither")
    handles = []
    for name, f in FILTERS[table.space].items():
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
    scores: "pandas.DataFrame", table: AccuracyTable, names: Sequence[str], path: Path, *, column: str | None = None
) -> None:
    """Draws accuracy over each score, with a point for each cell, colored by effective depth.

    A cell is drawn if it has a path, a finite score and an accuracy. Every panel states Spearman's rank correlation of
    score and accuracy, and the number of cells. Cells with an accuracy far below the others, such as those whose
    training failed, are triangles at the lower edge.

    Args:
      scores: Scores of cells, as `read_scores` returns them.
      table: Accuracies of cells.
      names: Names of the scores, one panel each. Scores that read labels bring their controls.
      path: The image file.
      column: Column of the accuracy table. None where it has one column.

    Raises:
      InputError: A score is unknown or was not computed.
      DataError: No scored cell has an accuracy, or there is no such column.

    Examples:
      >>> import pandas, tempfile
      >>> from nngp_dag.nas import AccuracyTable, plot_scores, sample_cells
      >>> cells = tuple(sample_cells(4, seed=0))
      >>> table = AccuracyTable(cells, {"cifar10": np.array([90.0, 91.0, 92.0, 93.0])})
      >>> columns = {"cell": [str(cell) for cell in cells], "status": [cell.status for cell in cells]}
      >>> scores = pandas.DataFrame(columns | {"effective_depth": 1.0, "flops": [1.0, 2.0, 3.0, 4.0]})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = Path(folder, "scores.png")
      ...     plot_scores(scores, table, ["flops"], file)
      ...     file.exists()
      True
    """
    from nngp_dag import style

    frame: Any = scores
    names = with_controls(names)
    for name in names:
        if name not in frame:
            raise InputError(
                f"Expected scores that were computed, got {get_score(name).name!r}; run nngp-dag nas score with it"
            )
    cells = [parse_cell(text) for text in frame.cell]
    accuracy = table.look_up(cells, column)
    if not np.isfinite(accuracy).any():
        raise DataError(
            f"Expected an accuracy table with scored cells, got none of the {len(frame):,}; score cells of the table"
        )
    connected = np.asarray(frame.status != "disconnected")
    frame = frame.assign(accuracy=accuracy)[connected]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    width = 4.6
    title = f"{_TITLES[space_of_all(cells)]}: accuracy against scores, cells scored: {len(accuracy):,}"
    if not connected.all():
        title += f", left out since they have no path: {int((~connected).sum()):,}"
    figure = style.new_figure(width * columns + 0.8, 4.3 * rows + 0.4, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    deepest = max(1.0, float(frame.effective_depth.max())) if len(frame) else 1.0
    shown = None
    for axes, name in zip(grid.flat, names, strict=False):
        own = get_score(name).control_of or name
        label, unit = _LABELS.get(own, (shorten(own.replace("_", " "), 40), 1.0))
        label += ", shuffled labels" if own != name else ""
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
    """Draws one panel, and returns the colored points; None where no cell has the score and an accuracy."""
    from nngp_dag import style

    values, accuracy = np.asarray(frame[name], np.float64) / unit, np.asarray(frame.accuracy, np.float64)
    sound = np.isfinite(values) & np.isfinite(accuracy)
    values, accuracy, depth = values[sound], accuracy[sound], np.asarray(frame.effective_depth)[sound]
    if not len(values):
        style.panel_title(axes, f"{label}\nno cell with this score and an accuracy", 0.9 * width)
        style.say_nothing_to_draw(axes, "nothing to draw")
        return None
    rho = rank_correlations(frame, [name], ["accuracy"])["spearman"].iloc[0]
    correlation = "not defined" if np.isnan(rho) else f"{rho:.3f}".replace("-", "−")
    facts = f"Spearman's rank correlation {correlation}, n = {len(values):,}"
    # The axis of accuracies would otherwise start at 10 %, where training failed, and squeeze all others together.
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
