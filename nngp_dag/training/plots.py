"""Pictures of training. matplotlib is imported inside."""

from collections.abc import Sequence
from pathlib import Path

from nngp_dag.training.history import History

# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLOURS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}


_MOST_PANELS = 12


def plot_training(histories: Sequence[History], path: Path, title: str) -> None:
    """Draws loss above and accuracy below, one column per DAG: means over seeds, and their range as a band.

    Of more than 12 DAGs the first 12 are drawn, and the title says so.
    """
    from matplotlib.figure import Figure

    if len(histories) > _MOST_PANELS:
        title += f" (the first {_MOST_PANELS} of {len(histories)} graphs)"
        histories = histories[:_MOST_PANELS]
    columns = min(len(histories), 4)
    rows = -(-len(histories) // columns)
    figure = Figure(figsize=(max(7.0, 4.4 * columns), 1.2 + 6.2 * rows), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, sharey="row")
    for i, history in enumerate(histories):
        row, column = divmod(i, columns)
        epochs = range(history.epochs_done + 1)
        for panel, metric in ((axes[2 * row, column], "loss"), (axes[2 * row + 1, column], "accuracy")):
            for part, colour in COLOURS.items():
                curves = history.of(part, metric)[: len(epochs)]
                panel.fill_between(epochs, curves.min(axis=1), curves.max(axis=1), color=colour, alpha=0.2, linewidth=0)
                label = "train (running mean of the epoch)" if part == "train" else part
                panel.plot(epochs, curves.mean(axis=1), color=colour, linewidth=1.8, label=label)
            panel.grid(True, alpha=0.3)
            if column == 0:
                panel.set_ylabel(metric)
        axes[2 * row, column].set_yscale("log")
        axes[2 * row, column].set_title(history.name if len(history.name) <= 32 else history.name[:29] + "...")
        axes[2 * row + 1, column].set_ylim(0, 1.02)
        axes[2 * row + 1, column].set_xlabel("epoch")
    for i in range(len(histories), rows * columns):
        for panel in axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]:
            panel.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150, format="png")
