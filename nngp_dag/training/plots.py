"""Plots of training. matplotlib is imported inside the function."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nngp_dag.graph.codes import shorten
from nngp_dag.training.history import History

_MOST_PANELS = 12


def plot_training(histories: Sequence[History], path: Path, title: str, *, loss: str = "cross-entropy") -> None:
    """Draws losses above and accuracies below, one column per architecture.

    Lines are means over seeds, and bands their range. Only the first 12 architectures are drawn; the title then says
    so.

    Args:
      histories: Curves of every architecture.
      path: File of the plot.
      title: Title of the plot.
      loss: Name of the loss, such as those of `Recipe.loss`.
    """
    from nngp_dag import style

    if len(histories) > _MOST_PANELS:
        title += f" (the first {_MOST_PANELS} of {len(histories)} graphs)"
        histories = histories[:_MOST_PANELS]
    columns = min(len(histories), 4)
    rows = -(-len(histories) // columns)
    width = max(4.4, 7 / columns)
    figure = style.new_figure(width * columns, 1.2 + 6.2 * rows, title)
    axes = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, sharey="row")
    labels = {"loss": f"{'½‖y − f‖²' if loss == 'squared' else loss.replace('-', ' ')},\nmean per example",
              "accuracy": "accuracy in %"}  # fmt: skip
    colors = {"train": style.BLUE, "validation": style.ORANGE, "test": style.GREEN}
    for i, history in enumerate(histories):
        row, column = divmod(i, columns)
        epochs = np.arange(history.epochs_done + 1)
        for panel, metric in ((axes[2 * row, column], "loss"), (axes[2 * row + 1, column], "accuracy")):
            for part, color in colors.items():
                curves = history.of(part, metric)[: len(epochs)]
                # A logarithmic axis cannot show a loss of 0.
                curves = style.positive(curves) if metric == "loss" else 100 * curves
                panel.fill_between(epochs, curves.min(axis=1), curves.max(axis=1), color=color, alpha=0.2, linewidth=0)
                label = "train (running mean of the epoch)" if part == "train" else part
                marker = {"marker": "o", "markersize": 3.5} if len(epochs) <= 12 else {}
                panel.plot(epochs, curves.mean(axis=1), color=color, linewidth=1.8, label=label, **marker)
            panel.grid(True, alpha=0.3)
            if column == 0:
                panel.set_ylabel(labels[metric])
        style.panel_title(axes[2 * row, column], shorten(history.name, 32), 0.9 * width, size=11)
        axes[2 * row + 1, column].set_xlabel("epoch")
        axes[2 * row + 1, column].tick_params(labelbottom=True)
        style.whole_axis(axes[2 * row + 1, column].xaxis)
    for panels in axes[::2]:
        style.log_axis(panels[0], "y")
    for panels in axes[1::2]:
        panels[0].set_ylim(0, 102)
    for i in range(len(histories), rows * columns):
        for panel in axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]:
            panel.set_axis_off()
    style.legend_below(figure, axes[0, 0].get_legend_handles_labels()[0], 3)
    style.save(figure, path)
