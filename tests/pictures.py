"""Checks of all pictures: texts inside the figure that do not overlap, plain ticks, and all points in view."""

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Returns a list to which figures are added instead of being written."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: figures.append(figure))
    return figures


def ticks(axis):
    """Returns the texts of the visible ticks."""
    low, high = sorted(axis.get_view_interval())
    near = 1e-9 * max(abs(low), abs(high))
    found = [tick for tick in axis.get_major_ticks() if low - near <= tick.get_loc() <= high + near]
    # A color bar has its labels on the right, other axes on the left.
    return [label for tick in found for label in (tick.label1, tick.label2) if label.get_visible() and label.get_text()]


def texts(figure: Figure):
    """Returns all visible texts of a figure."""
    # Its annotations leave these two out.
    of_figure: Any = figure
    found = [of_figure._suptitle, of_figure._supxlabel]
    found += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        found += [axes.title, *axes.texts] if axes.get_visible() else []
        if axes.axison and axes.get_visible():
            found += [axes.xaxis.label, axes.yaxis.label, *ticks(axes.xaxis), *ticks(axes.yaxis)]
    return [text for text in found if text is not None and text.get_visible() and text.get_text()]


def check(figure: Figure) -> None:
    """Asserts that a figure is readable."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    width, height = figure.bbox.size
    for text, box in boxes:
        assert -1 <= box.x0 <= box.x1 <= width + 1, f"{text!r} leaves the figure"
        assert -1 <= box.y0 <= box.y1 <= height + 1, f"{text!r} leaves the figure"
        assert "times" not in text
        assert "nan" not in text
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        overlap = np.minimum(first.max, second.max) - np.maximum(first.min, second.min)
        assert not (overlap > 1).all(), f"{a!r} overlaps {b!r}"
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            assert not axis.get_offset_text().get_text(), "numbers of ticks are to be multiplied"
        points = [line.get_xydata() for line in axes.lines if line.get_transform() == axes.transData]
        offsets = [np.ma.asarray(collection.get_offsets()) for collection in axes.collections]
        points += [xy for xy in offsets if len(xy) > 1]
        for xy in map(np.ma.getdata, points):
            xy = np.asarray(xy, float)[np.isfinite(xy).all(axis=1)]
            for values, limits in zip(xy.T, (axes.get_xlim(), axes.get_ylim()), strict=True):
                low, high = sorted(limits)
                assert ((low <= values) & (values <= high)).all(), f"points of {axes.get_title()!r} are out of view"
