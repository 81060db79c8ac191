"""Pictures of graphs: nodes on a line, edges as arcs that say what they do. matplotlib is imported inside."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import GraphError
from nngp_dag.graph import Dag, Edge, as_dag, codes
from nngp_dag.graph.operations import Op, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Operations = Iterable[tuple[int, int, str]]
"""(source, target, name) of a cell's edges, whose `Dag` knows only that they are skips or weighted."""

# {kind: (color of Okabe and Ito's palette, line, label of the legend)}.
_KINDS: dict[str, tuple[str, Any, str]] = {
    "weighted": ("#0072B2", "-", "weighted edge"),
    "skip": ("#E69F00", (0, (4, 2)), "skip"),
    "pooling": ("#009E73", (0, (1.2, 1.2)), "pooling"),
    "scale": ("#CC79A7", (0, (4, 1.5, 1, 1.5)), "multiplication by a number"),
}
_DEAD = "#BBBBBB"
# Inches between nodes from which edges have room for their names.
_ROOM_FOR_NAMES = 0.9
_NAME_SIZE = 8.5


@dataclass(frozen=True)
class _Arc:
    """An edge as it is drawn: what it does, and how high it rises; skips and the like hang below the nodes."""

    edge: Edge
    name: str
    kind: str
    live: bool
    peak: float

    def at(self, t: float) -> tuple[float, float]:
        """Where the arc is, from its source at 0 to its target at 1."""
        return self.edge.source + (self.edge.target - self.edge.source) * t, 4 * t * (1 - t) * self.peak


def plot_dag(dag: Dag | str, path: Path, *, operations: Operations = ()) -> None:
    """Draws a graph to a PNG.

    Args:
      dag: The graph.
      path: The file.
      operations: Names of the edges of a cell, (source, target, name); without them edges are named where they carry
        an operation of their own.
    """
    from nngp_dag.report import style

    dag = as_dag(dag)
    arcs = _arcs(dag, operations)
    low, high = _limits(arcs)
    unit = min(1.7 if any(arc.name for arc in arcs) else 1.1, 30 / (dag.num_nodes + 0.2))
    width = max(6.5, unit * (dag.num_nodes + 0.2))
    figure = style.new_figure(width, max(2.4, unit * (high - low) + 1.3))
    axes = figure.add_subplot()
    handles = draw_dag(axes, dag, unit, operations=operations)
    paths = f"{dag.num_paths:,}" if dag.num_paths < 10**15 else "over 10¹⁵"
    facts = f"{paths} path{'s' * (dag.num_paths != 1)}, effective depth {dag.effective_depth:.3g}, effective width "
    name = codes.shorten(code_or_size(dag), 60)
    style.panel_title(axes, f"{name}\n{facts}{dag.effective_width:.3g}", 0.95 * width)
    style.legend_below(figure, handles, len(handles))
    style.save(figure, path)


def draw_dag(axes: "Axes", dag: Dag, unit: float, *, operations: Operations = ()) -> "list[Line2D]":
    """Draws nodes on a line, weighted edges as arcs above it and all others below; edges on no path are gray.

    Args:
      axes: Where to draw.
      dag: The graph.
      unit: Inches between nodes, about; decides on the size of nodes and on whether edges have room for their names.
      operations: As for `plot_dag`.

    Returns:
      The handles of a legend. Where edges have no room for their names, it lists them.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    arcs = _arcs(dag, operations)
    size = min(16.0, 40 * unit)
    # Thinner where there are many.
    thickness = min(1.0, size / 14, 10 / len(arcs) ** 0.5 if arcs else 1.0)
    for arc in arcs:
        color, line, _ = _KINDS[arc.kind]
        axes.add_patch(
            FancyArrowPatch(
                (arc.edge.source, 0),
                (arc.edge.target, 0),
                # The peak of an arc is half its curvature times its length.
                connectionstyle=f"arc3,rad={-2 * arc.peak / (arc.edge.target - arc.edge.source)}",
                arrowstyle="-|>",
                mutation_scale=11 * thickness,
                shrinkA=size / 2 + 1,
                shrinkB=size / 2 + 1,
                linewidth=1.8 * thickness,
                linestyle=line,
                color=color if arc.live else _DEAD,
            )
        )
    nodes = range(dag.num_nodes)
    axes.plot(nodes, np.zeros(dag.num_nodes), "o", markersize=size, color="white", markeredgecolor="black",
              markeredgewidth=min(1.0, size / 12), zorder=3)  # fmt: skip
    # Smaller numbers cannot be read.
    for node in nodes if size > 8 else ():
        axes.text(node, 0, str(node), ha="center", va="center_baseline", fontsize=0.56 * size, zorder=4)
    named = unit >= _ROOM_FOR_NAMES
    if named:
        _write_names(axes, arcs, unit)
    low, high = _limits(arcs)
    axes.set_xlim(-0.6, dag.num_nodes - 0.4)
    axes.set_ylim(low, high)
    # Curvature is meant on the screen: only with equal scales do arcs keep within these limits.
    axes.set_aspect("equal")
    axes.set_axis_off()
    handles = []
    for kind, (color, line, label) in _KINDS.items():
        names = dict.fromkeys(arc.name for arc in arcs if arc.kind == kind and arc.name)
        if names and not named:
            label += ": " + codes.shorten(", ".join(names), 50)
        if kind == "pooling" and any(arc.kind == kind and arc.edge.op is Op.SKIP for arc in arcs):
            label += ", counted as a skip"
        if any(arc.kind == kind for arc in arcs):
            handles.append(Line2D([], [], color=color, linewidth=1.8, linestyle=line, label=label))
    if not all(arc.live for arc in arcs):
        handles.append(Line2D([], [], color=_DEAD, linewidth=1.8, label="on no path"))
    return handles


def code_or_size(dag: Dag) -> str:
    """Returns the paper code of a graph, or how large it is where no code describes it."""
    try:
        return dag.code
    except GraphError:
        return f"{dag.num_nodes:,} nodes, {len(dag.edges):,} edges"


def edge_names(dag: Dag, operations: Operations) -> list[str]:
    """Returns the name that `operations` give each of a graph's edges, or ""; `Dag.edges` has the order."""
    table = codes.NASBENCH201_OPS | codes.DARTS_OPS
    names: dict[Edge, list[str]] = {}
    for source, target, name in operations:
        if (op := table.get(name, Op.SKIP)) is not None:
            names.setdefault(Edge(source, target, op), []).append(name)
    # Edges between the same nodes may have several.
    return [names[edge].pop(0) if names.get(edge) else "" for edge in dag.edges]


def _arcs(dag: Dag, operations: Operations) -> list[_Arc]:
    """Returns all edges as arcs; those between the same nodes, on the same side, above each other."""
    live = set(dag.live_edges)
    longest = max((edge.target - edge.source for edge in dag.edges), default=1)
    # Arcs of small graphs lie well apart; those of large ones stay low.
    growth = 0.75 if longest <= 8 else 0.5
    seen: dict[tuple[int, int, bool], int] = {}
    arcs = []
    for edge, name in zip(dag.edges, edge_names(dag, operations), strict=True):
        place = edge.source, edge.target, edge.weighted
        copy = seen[place] = seen.get(place, -1) + 1
        peak = 0.375 * (edge.target - edge.source) ** growth + 0.2 * copy
        text = _short(name or ("" if isinstance(edge.op, Op) else edge.op.describe()))
        arcs.append(_Arc(edge, text, _kind(edge, name), edge in live, peak if edge.weighted else -peak))
    return arcs


def _kind(edge: Edge, name: str) -> str:
    if edge.weighted:
        return "weighted"
    if edge.op.mixes_pixels or "pool" in name:
        return "pooling"
    return "scale" if isinstance(edge.op, Scale) else "skip"


def _short(name: str) -> str:
    """Names an operation of a cell as people say it."""
    return codes.shorten(name.removeprefix("nor_").removesuffix("_connect").replace("_", " "), 24)


def _limits(arcs: Iterable[_Arc]) -> tuple[float, float]:
    peaks = [arc.peak for arc in arcs]
    return min(0.0, *peaks, 0.0) - 0.3, max(0.0, *peaks, 0.0) + 0.3


def _write_names(axes: "Axes", arcs: Iterable[_Arc], unit: float) -> None:
    """Writes every name on its arc, near the middle, where no name stands yet."""
    height, written = 1.4 * _NAME_SIZE / 72 / unit, []
    for arc in sorted((arc for arc in arcs if arc.name), key=lambda arc: abs(arc.peak)):
        width = 0.6 * _NAME_SIZE * len(arc.name) / 72 / unit

        def overlap(place: tuple[float, float], width: float = width) -> float:
            shared = (
                max(0.0, (width + w) / 2 - abs(place[0] - x)) * max(0.0, height - abs(place[1] - y))
                for x, y, w in written
            )
            return sum(shared, 0.0)

        x, y = min((arc.at(t) for t in (0.5, 0.44, 0.56, 0.38, 0.62, 0.32, 0.68, 0.26, 0.74)), key=overlap)
        written.append((x, y, width))
        axes.text(
            x, y, arc.name, ha="center", va="center", fontsize=_NAME_SIZE, zorder=2.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        )  # fmt: skip
