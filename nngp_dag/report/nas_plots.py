"""Pictures of searches: accuracy over effective depth and width, and over scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import DataError
from nngp_dag.nas import FILTERS, Benchmark, Cell

if TYPE_CHECKING:
    import pandas

_COLOURS = {"paper": "#D55E00", "released-code": "#0072B2"}


def plot_depth_and_width(benchmark: Benchmark, path: Path, *, column: str | None = None) -> None:
    """Draws, over effective depth and width, the mean accuracy of the cells there, and the filters' ranges.

    Raises:
      DataError: No cell with a path has an accuracy, or there is no such column.

    Reference: Chen et al., NeurIPS 2022, Figure 5 (accuracy over effective depth and width).
    """
    import pandas
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

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
    low, high = np.percentile(means, [10, 100])
    figure = Figure(figsize=(9.5, 6.5), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.scatter(
        depth, width, s=25 + 500 * counts / counts.max(), c=means, cmap="viridis", vmin=low, vmax=high,
        edgecolors="0.2", linewidths=0.5, alpha=0.9,
    )  # fmt: skip
    figure.colorbar(shown, ax=axes, label="mean accuracy in %", extend="min")
    for name, f in FILTERS.items():
        (left, right), (bottom, top) = ((float(low), float(high)) for low, high in (f.depth, f.width))
        corner = Rectangle((left, bottom), right - left, top - bottom, fill=False, linewidth=1.8, color=_COLOURS[name])
        corner.set_label(f"filter {name}")
        axes.add_patch(corner)
    axes.set_xlabel("effective depth")
    axes.set_ylabel("effective width")
    axes.set_title(
        f"{int(counts.sum()):,} cells with a path; area: cells there, {counts.min():,} to {counts.max():,}", fontsize=11
    )
    axes.legend(frameon=False, loc="upper right")
    axes.grid(True, alpha=0.3)
    axes.margins(0.06)
    figure.savefig(path, dpi=140, format="png")


def plot_scores(
    scores: "pandas.DataFrame", benchmark: Benchmark, names: Sequence[str], path: Path, *, column: str | None = None
) -> None:
    """Draws accuracy over each score, a point for each cell with a path and both, coloured by effective depth.

    Raises:
      DataError: No scored cell has an accuracy, or there is no such column.
    """
    from matplotlib.figure import Figure

    frame: Any = scores
    accuracy = benchmark.look_up([Cell.parse(cell) for cell in frame.cell], column)
    if not np.isfinite(accuracy).any():
        raise DataError(
            f"Expected a benchmark that has scored cells, got none of the {len(frame):,}; score some of its"
        )
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.8, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for axes, name in zip(grid.flat, names, strict=False):
        values = np.asarray(frame[name], np.float64)
        sound = np.isfinite(values) & np.isfinite(accuracy) & np.asarray(frame.status != "disconnected")
        shown = axes.scatter(
            values[sound], accuracy[sound], c=frame.effective_depth[sound], s=9, cmap="plasma", alpha=0.7
        )
        if sound.any() and values[sound].min() > 0 and values[sound].max() > 100 * values[sound].min():
            axes.set_xscale("log")
        # Cells whose training failed, at 10 %, would leave the others a thin line.
        low = max(0.0, float(np.nanpercentile(accuracy, 2)) - 2)
        axes.set_ylim(low, float(np.nanmax(accuracy)) + 1)
        shown_of = f"{int((accuracy[sound] >= low).sum()):,} of {len(values):,} cells"
        axes.set_title(f"{name}, {shown_of}", fontsize=10)
        axes.set_xlabel(name)
        axes.set_ylabel("accuracy in %")
        axes.grid(True, alpha=0.3)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    if shown is not None:
        figure.colorbar(shown, ax=grid, label="effective depth", shrink=0.8)
    figure.savefig(path, dpi=140, format="png")
