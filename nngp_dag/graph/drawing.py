"""Pictures of graphs: nodes on a line, edges as arcs that say what they do. matplotlib is imported inside."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag import forms
from nngp_dag.errors import GraphError, InputError, shown
from nngp_dag.graph import codes
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import Op, Scale
from nngp_dag.graph.reading import as_dag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from nngp_dag.graph.dag import Dag

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
_NOTE_SIZE, _LEGEND_SIZE = 9.5, 9.0
# Inches that the number of a node needs below the picture.
_ROOM_FOR_NUMBERS, _NUMBER_SIZE = 0.3, 7.0
# Inches that a notebook shows without making letters smaller.
_NOTEBOOK_WIDTH = 11.0
# The edges of larger graphs are hairlines, and hundreds of them take seconds to draw.
_MOST_NODES, _MOST_EDGES = 60, 150
# Texts on white ground, and texts that can be read on white and on black.
_BLACK, _GRAY = "#000000", "#777777"


@dataclass(frozen=True)
class _Arc:
    """An edge as it is drawn: what it does, and how high it rises; edges without weights hang below the nodes."""

    edge: Edge
    name: str
    kind: str
    live: bool
    peak: float

    def at(self, t: float) -> tuple[float, float]:
        """Where the arc is, from its source at 0 to its target at 1."""
        return self.edge.source + (self.edge.target - self.edge.source) * t, 4 * t * (1 - t) * self.peak


def plot_dag(dag: "Dag | str", path: Path, *, operations: Operations = ()) -> None:
    """Draws a graph to a PNG.

    Args:
      dag: The graph.
      path: The file.
      operations: Names of the edges of a cell, (source, target, name); without them edges are named where they carry
        an operation of their own.
    """
    from nngp_dag import style

    style.save(_figure(as_dag(dag), tuple(operations)), path)


def svg_of(dag: "Dag", note: str = "") -> str | None:
    """Returns the picture of a graph as SVG, which depends on the graph and on nothing else.

    Args:
      dag: The graph.
      note: A text below the picture.

    Returns:
      The picture, in which the drawing of edge i of `dag.edges` has the id `edge-i`, or `dead-edge-i` where it is on no
      path; None for graphs of more than 60 nodes or 150 edges.
    """
    if not is_drawn(dag):
        return None
    from nngp_dag import style

    with style.own_settings():
        return style.as_svg(_figure(dag, (), note, most=_NOTEBOOK_WIDTH))


def is_drawn(dag: "Dag") -> bool:
    """Whether a graph is small enough for a picture in a notebook."""
    return dag.num_nodes <= _MOST_NODES and len(dag.edges) <= _MOST_EDGES


def plot_on(axes: "Axes | None", dag: "Dag", operations: Operations) -> "Axes":
    """Draws a graph and its legend, on a new figure of pyplot where there are no axes.

    Raises:
      InputError: `axes` are not two-dimensional axes of matplotlib, or `operations` do not name edges of the graph.
    """
    operations = _checked(axes, operations)
    low, high = _limits(_arcs(dag, operations))
    if axes is None:
        import matplotlib.pyplot as plt

        width, height, _ = _size(dag, operations, _NOTEBOOK_WIDTH)
        axes = plt.figure(figsize=(width, height), layout="constrained").add_subplot()
    box = axes.get_window_extent()
    inches, height = box.width / axes.figure.dpi, box.height / axes.figure.dpi
    handles = draw_dag(axes, dag, min(inches / (dag.num_nodes + 0.2), height / (high - low)), operations=operations)
    if handles:
        # A letter takes 0.6 of the size of the font, and what is beside a label 5 times that size.
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = int(72 * inches / (_LEGEND_SIZE * (0.6 * longest + 5)))
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
        axes.legend(handles=handles, ncols=min(max(1, columns), len(handles)), fontsize=_LEGEND_SIZE, **below)
    return axes


def facts_of(dag: "Dag") -> dict[str, str]:
    """Returns how large a graph is, and its path statistics."""
    return {
        "nodes": forms.count(dag.num_nodes),
        "edges": forms.count(len(dag.edges)),
        "edges on no path": forms.count(len(dag.edges) - len(dag.live_edges)),
        "paths": forms.count(dag.num_paths),
        "effective depth": f"{dag.effective_depth:.3g}",
        "effective width": f"{dag.effective_width:.3g}",
    }


def _size(dag: "Dag", operations: Operations, most: float) -> tuple[float, float, float]:
    """Returns width and height of a figure, of at most so many inches, and inches between nodes."""
    arcs = _arcs(dag, operations)
    low, high = _limits(arcs)
    unit = min(1.7 if any(arc.name for arc in arcs) else 1.1, most / (dag.num_nodes + 0.2))
    return max(6.5, unit * (dag.num_nodes + 0.2)), max(2.4, unit * (high - low) + 1.3), unit


def _figure(dag: "Dag", operations: Operations, note: str = "", most: float = 30.0) -> "Figure":
    from nngp_dag import style

    width, height, unit = _size(dag, operations, most)
    figure = style.new_figure(width, height)
    axes = figure.add_subplot()
    handles = draw_dag(axes, dag, unit, operations=operations)
    facts = facts_of(dag)
    depth, paths = facts["effective depth"], f"{facts['paths']} path{'s' * (dag.num_paths != 1)}"
    name = codes.shorten(code_or_size(dag), 60)
    title = f"{name}\n{paths}, effective depth {depth}, effective width {facts['effective width']}"
    style.panel_title(axes, title, 0.95 * width, parse_math=False)
    style.legend_below(figure, handles, len(handles), style.fit(note, 0.9 * width, _NOTE_SIZE) if note else "")
    return figure


def draw_dag(axes: "Axes", dag: "Dag", unit: float, *, operations: Operations = ()) -> "list[Line2D]":
    """Draws nodes on a line, weighted edges as arcs above it and all others below; edges on no path are gray.

    Args:
      axes: Where to draw.
      dag: The graph.
      unit: Inches between nodes, about; decides on the size of nodes and on whether edges have room for their names.
      operations: Names of the edges of a cell, see `plot_dag`.

    Returns:
      The handles of a legend, which lists the kinds of edges on paths. Where edges have no room for their names, it
      lists these, too.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    arcs = _arcs(dag, operations)
    low, high = _limits(arcs)
    size = min(16.0, 40 * unit)
    # Thinner where there are many.
    thickness = min(1.0, size / 14, 10 / len(arcs) ** 0.5 if arcs else 1.0)
    for i, arc in enumerate(arcs):
        color, line, _ = _KINDS[arc.kind]
        # Limits are known: `add_patch`, and a part in the layout, would only compute every arc once more.
        # Nodes cover the beginnings of arcs, which need not be cut off.
        axes.add_artist(
            FancyArrowPatch(
                (arc.edge.source, 0),
                (arc.edge.target, 0),
                # The peak of an arc is half its curvature times its length.
                connectionstyle=f"arc3,rad={-2 * arc.peak / (arc.edge.target - arc.edge.source)}",
                arrowstyle="-|>",
                mutation_scale=11 * thickness,
                shrinkA=0,
                shrinkB=size / 2 + 1,
                linewidth=1.8 * thickness,
                linestyle=line,
                color=color if arc.live else _DEAD,
                gid=f"edge-{i}" if arc.live else f"dead-edge-{i}",
            )
        ).set_in_layout(False)
    nodes = range(dag.num_nodes)
    axes.plot(nodes, np.zeros(dag.num_nodes), "o", markersize=size, color="white", markeredgecolor="black",
              markeredgewidth=min(1.0, size / 12), zorder=3)  # fmt: skip
    if size > 8:
        for node in nodes:
            text = axes.text(node, 0, str(node), ha="center", va="center_baseline", color=_BLACK, zorder=4)
            text.set_fontsize(0.56 * size)
    else:
        # Smaller numbers cannot be read: those of some nodes stand below all arcs.
        every = next(step for step in (2, 5, 10, 20, 50, 10**9) if step * unit > _ROOM_FOR_NUMBERS)
        for node in nodes[::every]:
            axes.text(node, low, str(node), ha="center", va="top", fontsize=_NUMBER_SIZE, color=_GRAY)
        low -= 1.5 * _NUMBER_SIZE / 72 / unit
    named = unit >= _ROOM_FOR_NAMES
    if named:
        _write_names(axes, arcs, unit)
    axes.set_xlim(-0.6, dag.num_nodes - 0.4)
    axes.set_ylim(low, high)
    # Curvature is meant on the screen: only with equal scales do arcs keep within these limits.
    axes.set_aspect("equal")
    axes.set_axis_off()
    handles = []
    for kind, (color, line, label) in _KINDS.items():
        # Edges on no path are gray, so that they do not show the color of their kind.
        alike = [arc for arc in arcs if arc.kind == kind and arc.live]
        names = dict.fromkeys(arc.name for arc in alike if arc.name)
        if names and not named:
            label += ": " + codes.shorten(", ".join(names), 50)
        if kind == "pooling" and any(arc.edge.op is Op.SKIP for arc in alike):
            label += ", counted as a skip"
        if alike:
            handles.append(Line2D([], [], color=color, linewidth=1.8, linestyle=line, label=label))
    if not all(arc.live for arc in arcs):
        handles.append(Line2D([], [], color=_DEAD, linewidth=1.8, label="on no path"))
    return handles


def code_or_size(dag: "Dag") -> str:
    """Returns the paper code of a graph, or how large it is where no code describes it."""
    try:
        return dag.code
    except GraphError:
        return f"{dag.num_nodes:,} nodes, {len(dag.edges):,} edges"


def edge_names(dag: "Dag", operations: Operations) -> list[str]:
    """Returns the name that `operations` give each of a graph's edges, or ""; `Dag.edges` has the order.

    Raises:
      InputError: An entry does not have this form, or there is no edge for it.
    """
    table = codes.NASBENCH201_OPS | codes.DARTS_OPS
    names = [""] * len(dag.edges)
    # Two nodes may be joined by several edges. Names of no table, such as "concat", go to those without weights first.
    free: dict[tuple[int, int], list[int]] = {}
    for i in sorted(range(len(dag.edges)), key=lambda i: dag.edges[i].weighted):
        free.setdefault((dag.edges[i].source, dag.edges[i].target), []).append(i)
    for entry in operations:
        source, target, name = _operation(entry)
        if name in table and table[name] is None:
            continue
        weighted = (table[name] is Op.WEIGHTED,) if name in table else (False, True)
        places = free.get((source, target), [])
        place = next((i for i in places if dag.edges[i].weighted in weighted), None)
        if place is None:
            known = " with weights" if weighted == (True,) else " without weights" if weighted == (False,) else ""
            raise InputError(
                f"Expected `operations` to name edges of the graph, got {shown(entry)}, for which there is no edge"
                f"{known} left; pass one entry per edge"
            )
        places.remove(place)
        names[place] = name
    return names


def _operation(entry: Any) -> tuple[int, int, str]:
    try:
        source, target, name = entry
        if isinstance(name, str):
            return operator.index(source), operator.index(target), name
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"Expected `operations` to be (source, target, name) of edges, got {shown(entry)}; "
        "write entries such as (0, 1, 'skip_connect')"
    )


def _checked(axes: Any, operations: Any) -> Operations:
    """Returns the operations after checks of both arguments; `edge_names` checks each operation."""
    from matplotlib.axes import Axes

    # Polar axes and those in three dimensions have other names.
    if axes is not None and not (isinstance(axes, Axes) and axes.name == "rectilinear"):
        raise InputError(
            f"Expected `axes` to be two-dimensional axes of matplotlib, got {shown(axes)}; "
            "pass those that `figure.add_subplot()` returns"
        )
    if isinstance(operations, str) or not isinstance(operations, Iterable):
        raise InputError(
            f"Expected `operations` to be a list of (source, target, name), got {shown(operations)}; "
            "write it such as [(0, 1, 'skip_connect')]"
        )
    return tuple(operations)


def _arcs(dag: "Dag", operations: Operations) -> list[_Arc]:
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
            x, y, arc.name, ha="center", va="center", fontsize=_NAME_SIZE, color=_BLACK, zorder=2.5, parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        )  # fmt: skip
