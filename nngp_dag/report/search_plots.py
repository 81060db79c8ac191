"""Pictures of a search over graphs. matplotlib is imported inside the function."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nngp_dag.report.search_objectives import OBJECTIVES
from nngp_dag.report.search_space import STATES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nngp_dag.report.search_result import GraphSearch

_COLUMNS = 3


def draw_search(result: "GraphSearch", path: Path | None = None, title: str | None = None) -> "Figure":
    """Draws the weights of every pair of nodes over the steps, and the objective of all starts below them.

    Args:
      result: The search.
      path: File of the plot; None writes none.
      title: Title of the plot; by default the objective and the best code.
    """
    from matplotlib.lines import Line2D

    from nngp_dag import style
    from nngp_dag.storage import output_file

    text = OBJECTIVES[result.objective].text
    start = f"start {result.best + 1} of {len(result.codes)}"
    ends = f"from the gradient {result.gradient_codes[result.best]}, in the end {result.code}"
    with style.own_settings():
        rows = math.ceil(len(result.pairs) / _COLUMNS)
        title = title or f"Search for the best {text}: {start}, {ends}"
        figure = style.new_figure(3.6 * _COLUMNS, 2.3 * rows + 3.8, title)
        grid = figure.add_gridspec(rows + 1, _COLUMNS, height_ratios=[*[1.0] * rows, 1.3])
        steps = range(len(result.temperatures))
        looks: Any = ((style.GRAY, ":"), (style.ORANGE, "--"), (style.BLUE, "-"))
        for i, ((source, target), digit) in enumerate(zip(result.pairs, result.code.replace("_", ""), strict=True)):
            axes = figure.add_subplot(grid[divmod(i, _COLUMNS)])
            for j, (color, line) in enumerate(looks):
                axes.plot(steps, result.weights[:, i, j], line, color=color, linewidth=2)
            style.panel_title(axes, f"edge {source} → {target}: {STATES[int(digit)]}", 3)
            axes.set(ylim=(-0.04, 1.04), yticks=(0, 0.5, 1))
            axes.grid(True, alpha=0.3)
            style.whole_axis(axes.xaxis)
            if i % _COLUMNS == 0:
                axes.set_ylabel("share")
        axes = figure.add_subplot(grid[rows, :])
        axes.plot(steps, result.relaxed, color=style.BLACK, linewidth=0.6, alpha=min(1.0, 20 / len(result.codes)))
        axes.plot(steps, result.relaxed[:, result.best], color=style.VERMILION, linewidth=2)
        axes.axhline(result.value, color=style.GREEN, linestyle="-.", linewidth=1.5)
        axes.set_xlabel("step")
        axes.set_ylabel(style.fit(text, 2.2, 10))
        axes.grid(True, alpha=0.3)
        style.whole_axis(axes.xaxis)
        style.panel_title(axes, "objective of the relaxed networks", 9)
        handles = [
            Line2D([], [], color=color, linestyle=line, linewidth=2, label=name)
            for (color, line), name in zip(looks, STATES, strict=True)
        ]
        handles += [
            Line2D([], [], color=style.VERMILION, linewidth=2, label="this start"),
            Line2D([], [], color=style.BLACK, linewidth=0.6, label="other starts"),
            Line2D([], [], color=style.GREEN, linestyle="-.", linewidth=1.5, label="best code"),
        ]
        style.legend_below(figure, handles, len(handles))
        if path is not None:
            with output_file(path, overwrite=True) as file:
                style.save(figure, file)
    return figure
