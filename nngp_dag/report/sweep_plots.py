"""Plots of a sweep. matplotlib is imported inside the function."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

_LABELS = {"nngp": "λmin of the NNGP", "ntk": "λmin of the NTK"}


def plot_sweep(table: "pandas.DataFrame", path: Path, title: str) -> None:
    """Draws lambda_min of NNGP and NTK over effective depth and number of paths, as bubbles and as points.

    A bubble stands for all networks with one depth and one number of paths. Its area grows with their number, and its
    color is their median lambda_min. Points show lambda_min against the number of paths.

    Args:
      table: Table of `nngp_dag.sweep`.
      path: File of the plot.
      title: Title of the plot.

    Reference: Chen, Huang, Wang, AutoML 2023, Figure 4 (the bubbles).
    """
    from matplotlib.colors import LogNorm

    from nngp_dag import style

    frame: Any = table
    figure = style.new_figure(13, 10.5, title)
    grid = figure.subplots(2, 2, squeeze=False)
    for (bubbles, points), name in zip(grid, _LABELS, strict=True):
        label = _LABELS[name]
        used = frame[frame.valid & frame[f"{name}_resolved"]]
        if used.empty:
            for axes in (bubbles, points):
                style.panel_title(axes, label, 6)
                style.say_nothing_to_draw(axes, "no resolved eigenvalue")
            continue
        places = used.groupby([used.effective_depth.round(6), used.num_paths])[f"{name}_lambda_min"]
        counts, medians = places.size(), places.median()
        # Numbers of paths may be Python integers beyond int64.
        depth, paths = (np.asarray(counts.index.get_level_values(i), np.float64) for i in range(2))
        low, high = float(medians.min()), float(medians.max())
        norm = LogNorm(low, high) if 0 < low < high else None
        shown = bubbles.scatter(
            depth, paths, s=30 + 900 * np.asarray(counts, np.float64) / counts.max(), c=medians, norm=norm,
            cmap="viridis", edgecolors="0.2", linewidths=0.5, alpha=0.9,
        )  # fmt: skip
        style.colorbar(figure, shown, bubbles, f"median {label}")
        bubbles.margins(0.12)
        bubbles.set_xlabel("effective depth")
        bubbles.set_ylabel("number of paths")
        least, most = int(counts.min()), int(counts.max())
        sizes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        style.panel_title(bubbles, f"{label}; area of a bubble: number of DAGs, {sizes}", 5.5)
        shown = points.scatter(
            used.num_paths.astype(float), used[f"{name}_lambda_min"], c=used.effective_depth, s=26, cmap="plasma",
            edgecolors="0.2", linewidths=0.3,
        )  # fmt: skip
        style.colorbar(figure, shown, points, "effective depth")
        style.log_axis(points, "y")
        points.set_xlabel("number of paths")
        points.set_ylabel(label)
        facts = f"DAGs: {len(used):,} of {len(frame):,}; different kernels: {used.kernel_class.nunique():,}"
        if len(used) < len(frame):
            facts += f"\nthe others have no kernel, or no resolved {label}"
        style.panel_title(points, facts, 5.5)
        if paths.max() < 100:
            style.whole_axis(bubbles.yaxis, points.xaxis)
        else:
            style.log_axis(bubbles, "y")
            style.log_axis(points, "x")
            bubbles.set_ylim(bottom=max(0.3, bubbles.get_ylim()[0]))
            points.set_xlim(left=max(0.3, points.get_xlim()[0]))
        for axes in (bubbles, points):
            axes.grid(True, alpha=0.3)
    style.save(figure, path)
