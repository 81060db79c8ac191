"""One style for all pictures: colors, sizes, titles that fit, and plain numbers on logarithmic axes.

It imports matplotlib, so it is imported where something is drawn. `own_settings` changes settings of
matplotlib within its block and puts them back; nothing else touches them.
"""

import contextlib
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette, which people with any color vision can tell apart.
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, GRAY = "#D55E00", "#CC79A7", "#BBBBBB"

Number = float | int

_TITLE, _PANEL_TITLE = 13.0, 10.5
# Width of a character over the font size, a little above the mean of the default font.
_CHARACTER = 0.58


def new_figure(width: Number, height: Number, title: str = "") -> Figure:
    """Returns an empty figure of so many inches whose layout leaves room for all labels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(fit(title, 0.95 * width, _TITLE), fontsize=_TITLE)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    # The first layout does not know the ticks yet; one more makes room for their labels.
    figure.draw_without_rendering()
    figure.savefig(path, dpi=150, format="png")


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Draws with the settings of matplotlib itself, whatever the user has set, which comes back afterwards."""
    # Texts as outlines look the same with any fonts; a fixed salt gives parts of a picture the same names every time.
    fixed: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "nngp_dag"}
    with matplotlib.style.context("default"), matplotlib.rc_context(fixed):
        yield


def settle(figure: Figure) -> None:
    """Lays a figure out until nothing moves: each pass learns from the one before how large the panels became."""
    if (engine := figure.get_layout_engine()) is not None:
        for _ in range(3):
            engine.execute(figure)


def as_svg(figure: Figure) -> str:
    """Returns a figure as SVG, on white, without a date."""
    settle(figure)
    file = io.StringIO()
    figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def fit(text: str, width: Number, size: Number, lines: int = 3) -> str:
    """Breaks a text into lines of at most `width` inches at a font size, and cuts what needs more lines."""
    characters = max(8, round(72 * width / (_CHARACTER * size)))
    found = [line for part in text.split("\n") for line in textwrap.wrap(part, characters) or [""]]
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1][: characters - 3] + "..."]
    return "\n".join(found)


def panel_title(axes: Axes, text: str, width: Number, *, size: Number = _PANEL_TITLE, **options: Any) -> None:
    """Sets a title that is no wider than a panel of so many inches."""
    axes.set_title(fit(text, width, size), fontsize=size, **options)


def legend_below(figure: Figure, handles: Sequence[Any], columns: int, title: str = "") -> None:
    """Puts a legend under all panels, where it hides nothing."""
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    legend = figure.legend(handles=list(handles), fontsize=9.5, title=title, title_fontsize=9.5, **place)
    legend.get_title().set_parse_math(False)


def plain(value: Number) -> str:
    """Writes a tick's number without powers of ten where it has up to six digits before or after the point.

    Examples:
      >>> plain(0.3), plain(20000.0), plain(1e-9), plain(3e7), plain(-2.5)
      ('0.3', '20,000', '$10^{-9}$', '3e7', '−2.5')
    """
    if value < 0:
        return "−" + plain(-value)
    if value == 0 or 1e-5 < value < 9.999e5:
        return f"{value:,.6g}" if value >= 1e-4 or value == 0 else f"{value:.6f}".rstrip("0")
    exponent = math.floor(math.log10(value) + 1e-9)
    digits = f"{value / 10.0**exponent:.4g}"
    return f"$10^{{{exponent}}}$" if digits == "1" else f"{digits}e{exponent}"


def positive(values: Any) -> np.ndarray:
    """Returns the positive, finite values, for which a logarithmic axis has a place, and NaN instead of the others."""
    found = np.asarray(values, np.float64)
    return np.where((found > 0) & np.isfinite(found), found, np.nan)


class LogTicks(Locator):
    """Ticks at decades; where few are in view, at finer round numbers too, so that there are always some."""

    def __call__(self) -> list[float]:
        """Returns the ticks in view."""
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: Number, vmax: Number) -> list[float]:
        """Returns three to eight ticks between two positive numbers."""
        low, high = sorted((float(vmin), float(vmax)))
        if not 0 < low < high < math.inf:
            return []
        decades = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8)):
            found = _between(low, high, [digit * decade for decade in decades for digit in digits])
            if len(found) >= 3:
                return found[:: -(-len(found) // 8)]
        linear = _between(low, high, MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        return max(found, linear, key=len)


def _between(low: Number, high: Number, values: Any) -> list[float]:
    return [float(value) for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def log_axis(axes: Axes, *names: str) -> None:
    """Makes the axes named "x" or "y" logarithmic, with plain numbers at their ticks."""
    for name in names:
        axis: Axis = getattr(axes, f"{name}axis")
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(LogTicks())
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        axis.set_minor_locator(LogLocator(subs="all"))
        axis.set_minor_formatter(NullFormatter())


def whole_axis(*axes: Axis) -> None:
    """Puts ticks at whole numbers only."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(round(value))))


def colorbar(figure: Figure, shown: Any, axes: Any, label: str, **options: Any) -> Colorbar:
    """Adds a bar of colors, with plain numbers also where its scale is logarithmic."""
    from matplotlib.colors import LogNorm

    if isinstance(shown.norm, LogNorm):
        options |= {"ticks": LogTicks(), "format": FuncFormatter(lambda value, _: plain(value))}
    bar = figure.colorbar(shown, ax=axes, label=label, **options)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return bar


def say_nothing_to_draw(axes: Axes, text: str) -> None:
    """Writes in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10)
    axes.set(xticks=[], yticks=[])
