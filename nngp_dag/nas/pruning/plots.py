"""Pictures of a search by pruning: its trajectory from the supernet to a cell, and the cell.

matplotlib is imported inside the functions, because its import takes long.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.graph.drawing import draw_dag
from nngp_dag.nas.spaces.cells import EDGES, Cell
from nngp_dag.nas.spaces.darts import Genotype

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {"ntk": "condition number of the NTK", "regions": "linear regions", "exact": "mean λmin of the exact NTK"}


def plot_trajectory(trajectory: Sequence[dict[str, Any]], path: Path, title: str = "Search by pruning") -> None:
    """Draws the measures of the supernet before every round: one over the other, or a single one over rounds.

    Rounds without a finite value of a measure are left out, and the picture lists them.

    Args:
      trajectory: The rows of `State.trajectory`.
      path: The image file.
      title: Title of the picture.

    Reference: Chen, Gong, Wang, TE-NAS, ICLR 2021, Figure 5 (condition number against regions).
    """
    from nngp_dag import style

    names = [name for name in trajectory[0] if name not in ("depth", "width", "final")][:2]
    rounds = np.arange(len(trajectory))
    values = [np.array([row[name] for row in trajectory], float) for name in names]
    over_rounds = len(names) == 1
    horizontal = rounds.astype(float) if over_rounds else values[0]
    sound = np.isfinite(horizontal) & np.isfinite(values[-1])
    figure = style.new_figure(7, 5.6, title)
    axes = figure.add_subplot()
    axes.set_xlabel("round of pruning" if over_rounds else _LABELS.get(names[0], names[0]))
    axes.set_ylabel(_LABELS.get(names[-1], names[-1]))
    if not sound.any():
        style.say_nothing_to_draw(axes, "in no round were all measures sound")
        style.save(figure, path)
        return
    axes.plot(horizontal[sound], values[-1][sound], color=style.BLUE, linewidth=1.5, marker="o", markersize=5)
    handles = []
    for end, color, label in (
        (0, style.BLACK, "the whole supernet"),
        (rounds[-1], style.VERMILION, "the cell that is found"),
    ):
        if sound[end]:
            handles += axes.plot(horizontal[end], values[-1][end], "o", markersize=10, color=color, label=label)
    if over_rounds:
        style.whole_axis(axes.xaxis)
    elif horizontal[sound].min() > 0:
        style.log_axis(axes, "x")
    axes.grid(True, alpha=0.3)
    axes.margins(0.1)
    notes = [] if over_rounds else ["numbers: rounds of pruning"]
    if not sound.all():
        left_out = ", ".join(map(str, rounds[~sound]))
        notes.append(f"left out, since the supernet was not sound, in rounds: {left_out}")
    if notes:
        style.panel_title(axes, "\n".join(notes), 6.5, size=9.5)
    style.legend_below(figure, handles, 2)
    if not over_rounds:
        figure.draw_without_rendering()
        _number_apart(axes, rounds[sound], horizontal[sound], values[-1][sound])
    style.save(figure, path)


def _number_apart(axes: "Axes", numbers: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Writes a number at each point, unless it would cover another number."""
    from matplotlib.patheffects import withStroke

    taken = np.empty((0, 2))
    for number, place, at in zip(numbers, axes.transData.transform(np.column_stack([x, y])), zip(x, y, strict=True),
                                 strict=True):  # fmt: skip
        # A number of two digits is about 13 points wide and 9 high.
        if not (np.abs(taken - place) < np.array([15, 12]) * axes.figure.dpi / 72).all(axis=1).any():
            text = axes.annotate(str(number), at, textcoords="offset points", xytext=(7, 6), fontsize=9)
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
            taken = np.vstack([taken, place])


def plot_cell(cell: Cell | Genotype, path: Path) -> None:
    """Draws the wiring of a cell, or of both cells of a genotype, with the operation on every edge."""
    from nngp_dag import style

    if isinstance(cell, Cell):
        operations = [(s, t, name) for (s, t), name in zip(EDGES, cell.operations, strict=True)]
        parts = [("Cell of NAS-Bench-201", cell.dag, operations)]
    else:
        parts = []
        for name in ("normal", "reduce"):
            dag = cell.wiring(name)
            operations = [(source, 2 + i // 2, op) for i, (op, source) in enumerate(getattr(cell, name))]
            operations += [(node, dag.num_nodes - 1, "concat") for node in range(2, dag.num_nodes - 1)]
            parts.append((f"{name.capitalize()} cell of DARTS; nodes 0 and 1 are inputs", dag, operations))
    unit = 1.8 if len(parts) == 1 else 1.6
    width = unit * (max(dag.num_nodes for _, dag, _ in parts) + 0.2)
    figure = style.new_figure(width, (4.6 if len(parts) == 1 else 5.4) * len(parts))
    handles: dict[str, Any] = {}
    for i, (name, dag, operations) in enumerate(parts):
        axes = figure.add_subplot(len(parts), 1, i + 1)
        handles |= {str(handle.get_label()): handle for handle in draw_dag(axes, dag, unit, operations=operations)}
        facts = f"effective depth {dag.effective_depth:.3g}, effective width {dag.effective_width:.3g}"
        style.panel_title(axes, f"{name}\n{facts}", 0.95 * width)
    style.legend_below(figure, list(handles.values()), len(handles))
    style.save(figure, path)
