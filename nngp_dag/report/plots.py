"""Plots of comparisons and of kernels. matplotlib is imported inside the functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import InputError
from nngp_dag.graph import codes
from nngp_dag.graph.drawing import code_or_size, draw_dag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nngp_dag.kernels import Kernel
    from nngp_dag.report.comparison import Comparison
    from nngp_dag.width import WidthEffects


def plot_compare(results: "Sequence[Comparison]", path: Path, title: str) -> None:
    """Draws one panel per network, with its graph above, and rate bound, expectation and measured losses below.

    Below them are the deviations from infinite width, predicted and measured, if one network has a prediction.

    Args:
      results: The comparisons.
      path: File of the plot.
      title: Title of the plot.
    """
    from nngp_dag import style

    columns = min(len(results), 4)
    rows = -(-len(results) // columns)
    column_width = max(4.3, 8 / columns)
    heights = [1, 2.6, 1.6] if any(result.width_effects is not None for result in results) else [1, 2.6]
    figure = style.new_figure(column_width * columns, 1.3 + 1.45 * sum(heights) * rows, title)
    grid = figure.add_gridspec(len(heights) * rows, columns, height_ratios=heights * rows)
    first: Axes | None = None
    below: Axes | None = None
    kinds: dict[str, Any] = {}
    for i, result in enumerate(results):
        row, column = divmod(i, columns)
        above = figure.add_subplot(grid[len(heights) * row, column])
        if (dag := result.dag) is None:
            above.set_axis_off()
            above.text(0.5, 0.5, "a model without graph", ha="center", va="center", transform=above.transAxes)
            name = codes.shorten(result.name, 32)
        else:
            unit = 0.9 * column_width / (dag.num_nodes + 0.2)
            kinds |= {str(handle.get_label()): handle for handle in draw_dag(above, dag, unit)}
            code = codes.shorten(code_or_size(dag), 32)
            name = code if result.name == result.code else f"{codes.shorten(result.name, 32)}   {code}"
        style.panel_title(above, name, 0.95 * column_width, size=12, fontweight="bold")
        axes = figure.add_subplot(grid[len(heights) * row + 1, column], sharey=first)
        first = first or axes
        _draw_curves(axes, result, column_width)
        if column == 0:
            axes.set_ylabel("training loss  ½‖y − f‖², summed over inputs")
        if result.width_effects is not None:
            below = figure.add_subplot(grid[len(heights) * row + 2, column])
            _draw_deviations(below, result, result.width_effects)
    drawn = [handle for axes in (first, below) if axes is not None for handle in axes.get_legend_handles_labels()[0]]
    curves = {str(handle.get_label()): handle for handle in drawn}
    # The labels of deviations are long.
    across = (6 if columns > 2 else 3) if below is None else (4 if columns > 2 else 2)
    style.legend_below(figure, [*curves.values(), *kinds.values()], across)
    style.save(figure, path)


def _draw_curves(axes: "Axes", result: "Comparison", width: float) -> None:
    from nngp_dag import style

    steps = np.arange(len(result.mean))
    # A logarithmic axis cannot show values that are not positive.
    low, high = style.positive(result.curves.min(axis=0)), result.curves.max(axis=0)
    axes.fill_between(steps, low, high, color=style.BLUE, alpha=0.25, linewidth=0)
    seeds = f"{len(result.curves)} networks" if len(result.curves) > 1 else "1 network"
    measured = style.positive(result.mean)
    axes.plot(steps, measured, color=style.BLUE, linewidth=2.5, label=f"measured: mean and range of {seeds}")
    expected = result.expected
    mean = style.positive(expected.mean)
    axes.plot(steps, mean, color=style.BLACK, linewidth=1.5, linestyle="--", label="exact expectation ± std")
    for edge in (expected.mean - expected.std, expected.mean + expected.std):
        axes.plot(steps, style.positive(edge), color=style.BLACK, linewidth=0.8, linestyle=":")
    bound = style.positive(result.bound)
    axes.plot(steps, bound, color=style.VERMILION, linewidth=2, linestyle="-.", label="rate bound")
    style.log_axis(axes, "y")
    style.whole_axis(axes.xaxis)
    axes.grid(True, which="major", alpha=0.3)
    axes.margins(x=0.02)
    axes.set_xlabel("step of full-batch gradient descent")
    lambda_min = f"{result.nngp.lambda_min:.3g}" if result.nngp.resolved else "not resolved"
    share = result.mean[-1] / result.mean[0]
    facts = f"η = {result.learning_rate:.2g}   λmin K(H) = {lambda_min}\nloss after the last step: "
    facts += f"{share:.1%} of its start" if np.isfinite(share) else "not finite"
    facts += f"\n{result.unmet}: it may not hold" if result.unmet else ""
    style.panel_title(axes, facts, 0.9 * width, size=9)


def _draw_deviations(axes: "Axes", result: "Comparison", effects: "WidthEffects") -> None:
    """Draws predicted and measured mean loss at the network's width, as deviations from infinite width in percent."""
    from nngp_dag import style

    steps = effects.steps
    predicted, frozen = 100 * effects.bias, 100 * effects.frozen_bias
    found = [one for step in steps.tolist() if (one := result.deviation(step)) is not None]
    low, high, measured, errors = (
        100 * np.array([getattr(one, name) for one in found]) for name in ("low", "high", "measured", "error")
    )
    axes.axhline(0, color=style.BLACK, linewidth=1, linestyle="--")
    trusted = np.where(effects.trusted, predicted, np.nan)
    axes.plot(steps, trusted, color=style.GREEN, linewidth=2, zorder=3, label="predicted from smaller networks")
    axes.plot(steps, predicted, ":", color=style.GREEN, linewidth=1.8, label="the same where not trusted")
    axes.fill_between(steps, low, high, color=style.GREEN, alpha=0.25, linewidth=0, label="its 90 % interval")
    axes.plot(steps, frozen, "-.", color=style.PURPLE, linewidth=1.2, label="its part with frozen NTKs")
    marks = steps[:: max(1, len(steps) // 12)]
    axes.errorbar(marks, measured[marks], errors[marks], fmt="o", markersize=3.5, linewidth=1.2, color=style.BLUE,
                  label="measured mean ± standard error")  # fmt: skip
    # Intervals that are not trusted may be many times as wide as all the rest.
    parts = [measured - errors, measured + errors, low[effects.trusted], high[effects.trusted], predicted, [0.0]]
    bottom, top = np.nanmin(np.concatenate(parts)), np.nanmax(np.concatenate(parts))
    axes.set_ylim(bottom - 0.08 * (top - bottom), top + 0.08 * (top - bottom))
    style.whole_axis(axes.xaxis)
    axes.grid(True, which="major", alpha=0.3)
    axes.margins(x=0.02)
    axes.set_xlabel("step of full-batch gradient descent")
    axes.set_ylabel(f"mean loss at width {effects.width:,}\nagainst infinite width, %")


# Smallest share of a heat map's rows that has room for a label.
_LEAST_SHARE = 0.045


def plot_kernel(
    k: "Kernel",
    path: Path,
    title: str,
    *,
    labels: "Sequence[Any] | np.ndarray | None" = None,
    classes: Sequence[str] = (),
) -> None:
    """Draws NNGP and NTK as heat maps.

    Args:
      k: The kernels.
      path: File of the plot.
      title: Title of the plot.
      labels: Class of every input, (N,). Rows and columns are sorted by it, and lines part the classes. Only kernels of
        one set of inputs can have labels.
      classes: Names of classes 0, 1, ...; without them the labels themselves are shown.

    Raises:
      InputError: The number of `labels` differs from that of rows or columns.
    """
    from nngp_dag import style

    matrices = {"NNGP": np.asarray(k.nngp), "NTK": np.asarray(k.ntk)}
    order, starts, names = None, np.array([]), []
    if labels is not None:
        if any(matrix.shape != (len(labels), len(labels)) for matrix in matrices.values()):
            raise InputError(
                f"Expected `labels` of all rows and columns of a kernel of shape {matrices['NNGP'].shape}, got "
                f"{len(labels)}; pass one for every input, or none"
            )
        order = np.argsort(labels, kind="stable")
        found, starts = np.unique(np.asarray(labels)[order], return_index=True)
        names = [codes.shorten(str(classes[label] if classes else label), 12) for label in found]
    figure = style.new_figure(11, 5.2, title)
    for i, (kernel, matrix) in enumerate(matrices.items()):
        axes = figure.add_subplot(1, 2, i + 1)
        shown = matrix if order is None else matrix[np.ix_(order, order)]
        image = axes.imshow(shown, cmap="viridis", interpolation="nearest")
        for border in starts[1:] - 0.5:
            axes.axhline(border, color="white", linewidth=0.7)
            axes.axvline(border, color="white", linewidth=0.7)
        if order is None:
            style.whole_axis(axes.xaxis, axes.yaxis)
        else:
            places, kept = _class_ticks(starts, names, len(matrix))
            turned = max(map(len, kept)) > 2
            # A name with dollar signs must not be read as a formula.
            axes.set_xticks(places, kept, rotation=90 if turned else 0, parse_math=False)
            axes.set_yticks(places, kept, parse_math=False)
        axes.set_title(f"{kernel}(x, x')", fontsize=11)
        axes.set_xlabel("input x'" if order is None else "class of input x'")
        axes.set_ylabel("input x" if order is None else "class of input x")
        style.colorbar(figure, image, axes, f"{kernel}(x, x')", shrink=0.85)
    style.save(figure, path)


def _class_ticks(starts: np.ndarray, names: Sequence[str], rows: int) -> tuple[list[float], list[str]]:
    """Returns the middles and names of classes, without those that are too close to the one before."""
    places, kept = [], []
    for start, end, name in zip(starts, [*starts[1:], rows], names, strict=True):
        middle = (start + end - 1) / 2
        if not places or middle - places[-1] >= _LEAST_SHARE * rows:
            places.append(float(middle))
            kept.append(name)
    return places, kept
