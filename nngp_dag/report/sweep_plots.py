"""Pictures of a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

_LABELS = {"nngp": "λmin of the NNGP", "ntk": "λmin of the NTK"}


def plot_sweep(table: "pandas.DataFrame", path: Path, title: str) -> None:
    """Draws, for NNGP and NTK, lambda_min over effective depth and path count as bubbles, and against path count.

    A bubble is a place in depth and paths: its area grows with the DAGs there, its colour is their median lambda_min.

    Reference: Chen, Huang, Wang, AutoML 2023, Figure 4 (the bubbles).
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    frame: Any = table
    figure = Figure(figsize=(13, 10.5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(2, 2, squeeze=False)
    for (bubbles, points), name in zip(grid, _LABELS, strict=True):
        used = frame[frame.valid & frame[f"{name}_resolved"]]
        places = used.groupby([used.effective_depth.round(6), used.num_paths])[f"{name}_lambda_min"]
        counts, medians = places.size(), places.median()
        depth, paths = (np.asarray(counts.index.get_level_values(i), np.float64) for i in range(2))
        for axes in (bubbles, points):
            axes.grid(True, alpha=0.3)
            if used.empty:
                axes.text(0.5, 0.5, "no resolved eigenvalue", transform=axes.transAxes, ha="center")
        if used.empty:
            continue
        area = 30 + 900 * np.asarray(counts, np.float64) / counts.max()
        low, high = float(medians.min()), float(medians.max())
        norm = LogNorm(low, high) if high > low else None
        shown = bubbles.scatter(
            depth, paths, s=area, c=medians, norm=norm, cmap="viridis", edgecolors="0.2", linewidths=0.5, alpha=0.9
        )
        figure.colorbar(shown, ax=bubbles, label=f"median {_LABELS[name]}")
        bubbles.margins(0.12)
        bubbles.set_xlabel("effective depth")
        bubbles.set_ylabel("number of paths")
        bubbles.set_title(f"area: DAGs there, 1 to {counts.max():,}", fontsize=11)
        shown = points.scatter(
            used.num_paths.astype(float), used[f"{name}_lambda_min"], c=used.effective_depth, s=26, cmap="plasma",
            edgecolors="0.2", linewidths=0.3,
        )  # fmt: skip
        figure.colorbar(shown, ax=points, label="effective depth")
        points.set_yscale("log")
        points.set_xlabel("number of paths")
        points.set_ylabel(_LABELS[name])
        points.set_title(f"{len(used):,} DAGs, {used.kernel_class.nunique():,} different kernels", fontsize=11)
        for axes in (bubbles.xaxis, bubbles.yaxis, points.xaxis) if paths.max() < 100 else (bubbles.xaxis,):
            axes.set_major_locator(MaxNLocator(integer=True))
        if paths.max() >= 100:
            bubbles.set_yscale("log")
            points.set_xscale("log")
    figure.savefig(path, dpi=140, format="png")
