"""Pictures of a search by pruning: its way from the supernet to a cell, and that cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nngp_dag.nas import Cell, Genotype
from nngp_dag.nas.cells import EDGES
from nngp_dag.report.plots import BOUND, EXPECTED, MEASURED, draw_dag

_LABELS = {"ntk": "condition number of the NTK", "regions": "linear regions", "exact": "mean λmin of the exact NTK"}


def plot_trajectory(trajectory: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the supernet before every round, by number: one measure over the other, or the only one over rounds.

    Rounds in which a measure was not sound are left out.

    Reference: Chen, Gong, Wang, TE-NAS, ICLR 2021, Figure 5 (condition number against regions).
    """
    from matplotlib.figure import Figure

    names = [name for name in trajectory[0] if name not in ("depth", "width", "final")][:2]
    rounds = np.arange(len(trajectory))
    values = [np.array([row[name] for row in trajectory], float) for name in names]
    horizontal = values[0] if len(names) == 2 else rounds.astype(float)
    sound = np.isfinite(horizontal) & np.isfinite(values[-1])
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(horizontal[sound], values[-1][sound], color=MEASURED, linewidth=1.5, marker="o", markersize=4)
    for number in rounds[sound]:
        place = float(horizontal[number]), float(values[-1][number])
        axes.annotate(str(number), place, textcoords="offset points", xytext=(7, 5), fontsize=9)
    for end, colour, label in ((0, EXPECTED, "the whole supernet"), (rounds[-1], BOUND, "the cell that is found")):
        if sound[end]:
            axes.plot(horizontal[end], values[-1][end], "o", markersize=9, color=colour, label=label)
    if len(names) == 2 and sound.any() and horizontal[sound].min() > 0:
        axes.set_xscale("log")
    axes.set_xlabel(_LABELS.get(names[0], names[0]) if len(names) == 2 else "round")
    axes.set_ylabel(_LABELS.get(names[-1], names[-1]))
    axes.grid(True, which="both", alpha=0.3)
    axes.margins(0.08)
    if sound[0] or sound[-1]:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=140, format="png")


def plot_cell(cell: Cell | Genotype, path: Path) -> None:
    """Draws the wiring of a cell, of a genotype both, and names its operations."""
    from matplotlib.figure import Figure

    if isinstance(cell, Cell):
        edges = zip(EDGES, cell.operations, strict=True)
        parts = [("cell", cell.dag, [(s, t, name) for (s, t), name in edges if name != "none"])]
    else:
        parts = [
            (name, cell.wiring(name), [(s, 2 + i // 2, op) for i, (op, s) in enumerate(getattr(cell, name))])
            for name in ("normal", "reduce")
        ]
    figure = Figure(figsize=(6.4 * len(parts), 5.2), layout="constrained")
    grid = figure.add_gridspec(2, len(parts), height_ratios=[2, 1])
    for i, (name, dag, operations) in enumerate(parts):
        above, below = (figure.add_subplot(grid[row, i]) for row in range(2))
        draw_dag(above, dag, legend=i == 0)
        depth_and_width = f"effective depth {dag.effective_depth:.3g}, width {dag.effective_width:.3g}"
        above.set_title(f"{name}: {depth_and_width}", fontsize=11)
        lines = [f"{s} → {t}   {operation}" for s, t, operation in operations]
        below.text(0.5, 1, "\n".join(lines), transform=below.transAxes, ha="center", va="top", fontsize=10)
        below.set_axis_off()
    figure.savefig(path, dpi=140, format="png")
