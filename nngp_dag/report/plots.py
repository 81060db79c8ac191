"""Pictures. matplotlib is imported inside, and no global state of it is touched."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nngp_dag.graph import Dag, as_dag, codes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from nngp_dag.kernels import Kernel
    from nngp_dag.report.compare import Comparison

# Okabe and Ito's palette, which people with any colour vision can tell apart.
BOUND, EXPECTED, MEASURED = "#D55E00", "#000000", "#0072B2"
WEIGHTED, SKIP, DEAD = "#0072B2", "#E69F00", "#BBBBBB"


def plot_compare(results: "Sequence[Comparison]", path: Path, title: str) -> None:
    """Draws one panel per DAG: its graph above, its bound, expectation and measured band below."""
    from matplotlib.figure import Figure

    columns = min(len(results), 4)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(max(8.0, 4.3 * columns), 1.1 + 4.9 * rows), layout="constrained")
    figure.suptitle(title, fontsize=13)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[1, 2.6] * rows)
    first: Axes | None = None
    for i, result in enumerate(results):
        row, column = divmod(i, columns)
        above = figure.add_subplot(grid[2 * row, column])
        draw_dag(above, result.dag)
        code = str(result.dag) if len(str(result.dag)) <= 32 else repr(result.dag)
        above.set_title(code if result.name == code else f"{result.name}   {code}", fontsize=12, fontweight="bold")
        axes = figure.add_subplot(grid[2 * row + 1, column], sharey=first)
        first = first or axes
        _draw_curves(axes, result)
        axes.set_xlabel("step of full-batch gradient descent")
        if column == 0:
            axes.set_ylabel("training loss  ½‖y − f‖²")
    curves = first.get_legend_handles_labels()[0] if first else []
    figure.legend(
        handles=[*curves, *_edge_handles()],
        loc="outside lower center",
        ncols=5 if columns > 2 else 3,
        fontsize=10,
        frameon=False,
    )
    figure.savefig(path, dpi=150, format="png")


def _draw_curves(axes: "Axes", result: "Comparison") -> None:
    steps = np.arange(len(result.mean))
    low, high = result.curves.min(axis=0), result.curves.max(axis=0)
    axes.fill_between(steps, low, high, color=MEASURED, alpha=0.25, linewidth=0)
    seeds = f"{len(result.curves)} networks" if len(result.curves) > 1 else "1 network"
    axes.plot(steps, result.mean, color=MEASURED, linewidth=2.5, label=f"measured: mean and range of {seeds}")
    expected = result.expected
    axes.plot(steps, expected.mean, color=EXPECTED, linewidth=1.5, linestyle="--", label="exact expectation ± std")
    low = expected.mean - expected.std
    # A logarithmic axis has no place for what is not positive.
    for edge in (np.where(low > 0, low, np.nan), expected.mean + expected.std):
        axes.plot(steps, edge, color=EXPECTED, linewidth=0.8, linestyle=":")
    axes.plot(steps, result.bound, color=BOUND, linewidth=2, linestyle="-.", label="rate bound")
    axes.set_yscale("log")
    axes.grid(True, which="major", alpha=0.3)
    lambda_min = f"{result.nngp.lambda_min:.3g}" if result.nngp.resolved else "not resolved"
    facts = f"η = {result.learning_rate:.2g}   λmin K(H) = {lambda_min}"
    facts += f"\nloss falls to {result.mean[-1] / result.mean[0]:.1%} of its start"
    facts += "" if result.conditions_met else "\nη too large for the rate bound"
    axes.text(0.97, 0.95, facts, transform=axes.transAxes, ha="right", va="top", fontsize=9,
              bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    # The bound hugs the top of the axes; leave room for it and the line of facts.
    axes.margins(x=0.02, y=0.2)


def plot_dag(dag: Dag | str, path: Path) -> None:
    """Draws a graph to a PNG."""
    dag = as_dag(dag)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(30.0, max(6.5, 1.1 * dag.num_nodes)), 3.2), layout="constrained")
    axes = figure.add_subplot()
    draw_dag(axes, dag, legend=True)
    statistics = f"{dag.num_paths:,} paths" if dag.num_paths < 10**15 else "over 10¹⁵ paths"
    axes.set_title(
        f"{codes.shorten(str(dag), 40)}\n{statistics}, effective depth {dag.effective_depth:.3g}, "
        f"effective width {dag.effective_width:.3g}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150, format="png")


def draw_dag(axes: "Axes", dag: Dag, *, legend: bool = False) -> None:
    """Draws nodes on a line, weighted edges as arcs above it and skips as dashed arcs below; dead edges grey."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    live = set(dag.live_edges)
    longest = max((edge.target - edge.source for edge in dag.edges), default=1)
    seen: dict[tuple[int, int, bool], int] = {}
    for edge in dag.edges:
        weighted = edge.weighted
        copy = seen[edge.source, edge.target, weighted] = seen.get((edge.source, edge.target, weighted), -1) + 1
        length = edge.target - edge.source
        # The peak of an arc is half its curvature times its length: it grows slowly, so that long arcs stay low.
        bend = (0.75 * length**0.5 + 0.25 * copy) / length
        colour = (WEIGHTED if weighted else SKIP) if edge in live else DEAD
        axes.add_patch(
            FancyArrowPatch(
                (edge.source, 0),
                (edge.target, 0),
                connectionstyle=f"arc3,rad={-bend if weighted else bend}",
                arrowstyle="-|>",
                mutation_scale=11,
                shrinkA=9,
                shrinkB=9,
                linewidth=1.8,
                linestyle="-" if weighted else (0, (4, 2)),
                color=colour,
            )
        )
    axes.plot(range(dag.num_nodes), np.zeros(dag.num_nodes), "o", markersize=16, color="white",
              markeredgecolor="black", zorder=3)  # fmt: skip
    for node in range(dag.num_nodes):
        axes.text(node, 0, str(node), ha="center", va="center_baseline", fontsize=9, zorder=4)
    height = 0.375 * longest**0.5 + 0.125 * max(seen.values(), default=0) + 0.2
    axes.set_xlim(-0.6, dag.num_nodes - 0.4)
    axes.set_ylim(-height, height)
    # Curvature is meant on the screen: only with equal scales do arcs keep within these limits.
    axes.set_aspect("equal")
    axes.set_axis_off()
    if legend:
        handles = _edge_handles()
        if len(live) < len(set(dag.edges)):
            handles.append(Line2D([], [], color=DEAD, linewidth=1.8, label="on no path"))
        axes.figure.legend(handles=handles, loc="outside lower center", fontsize=9, frameon=False, ncols=3)


def _edge_handles() -> "list[Line2D]":
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=WEIGHTED, linewidth=1.8, label="weighted edge"),
        Line2D([], [], color=SKIP, linewidth=1.8, linestyle="--", label="skip"),
    ]


def plot_kernel(k: "Kernel", path: Path, title: str) -> None:
    """Draws NNGP and NTK as heat maps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    for i, (name, matrix) in enumerate((("NNGP", k.nngp), ("NTK", k.ntk))):
        axes = figure.add_subplot(1, 2, i + 1)
        image = axes.imshow(np.asarray(matrix), cmap="viridis", interpolation="nearest")
        axes.set_title(name)
        axes.set_xlabel("input, sorted by class")
        if i == 0:
            axes.set_ylabel("input, sorted by class")
        figure.colorbar(image, ax=axes, shrink=0.85)
    figure.savefig(path, dpi=150, format="png")
