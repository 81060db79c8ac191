"""The curves of a run: losses and accuracies per epoch and seed."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from nngp_dag import forms
from nngp_dag.forms import Described

if TYPE_CHECKING:
    import pandas

PARTS: Final = ("train", "validation", "test")
METRICS: Final = ("loss", "accuracy", "class_accuracy")
FIELDS: Final = (
    "dag",
    "seed",
    "epoch",
    "step",
    "learning_rate",
    *(f"{part}_{metric}" for part in PARTS for metric in METRICS),
)


@dataclass(frozen=True, eq=False, repr=False)
class History(Described):
    """Curves of S networks of one architecture, epoch by epoch. Entry 0 is the state before training.

    Attributes:
      name: Name of the architecture, as the user gave it.
      seeds: Seeds of the networks, S of them.
      steps_per_epoch: Number of updates in an epoch.
      learning_rates: Learning rate of each epoch's first step, (E,).
      values: Mean loss, accuracy and class-mean accuracy, (E + 1, 3 parts, 3 metrics, S), with parts and metrics in
        the order of `PARTS` and `METRICS`. The last metric is the mean over classes of the accuracy within a class.
        On the training part they are running means over the epoch's batches, each before its update, as in the code of
        Chen et al. Entry 0 is measured before training. Epochs that have not been reached hold NaN.

    Examples:
      >>> values = np.zeros((3, 3, 3, 1))
      >>> values[:, 0, 1, 0] = [0.1, 0.5, 0.9]
      >>> history = History("2_12", (0,), steps_per_epoch=10, learning_rates=np.array([0.1, 0.1]), values=values)
      >>> history.of("train", "accuracy").shape, history.epochs_done, history.epochs_to(0.7)
      ((3, 1), 2, array([1.5]))
    """

    name: str
    seeds: tuple[int, ...]
    steps_per_epoch: int
    learning_rates: Float[np.ndarray, " epochs"]
    values: Float[np.ndarray, "points 3 3 seeds"]

    def of(self, part: str, metric: str) -> Float[np.ndarray, "points seeds"]:
        """Returns one metric on one part, a curve per seed, (E + 1, S).

        Args:
          part: "train", "validation" or "test".
          metric: "loss", "accuracy" or "class_accuracy".
        """
        return self.values[:, PARTS.index(part), METRICS.index(metric)]

    @property
    def epochs_done(self) -> int:
        """Number of epochs that have been trained."""
        return int(np.isfinite(self.values[:, 0, 0, 0]).sum()) - 1

    def epochs_to(self, accuracy: float, part: str = "train") -> Float[np.ndarray, " seeds"]:
        """Returns the number of epochs until each seed's accuracy first reaches a value, (S,).

        Args:
          accuracy: The value, between 0 and 1.
          part: "train", "validation" or "test".

        Returns:
          The times in epochs, interpolated linearly between epochs; NaN for a seed that does not reach the value.
        """
        curves = self.of(part, "accuracy")
        times = np.full(curves.shape[1], np.nan)
        for seed, curve in enumerate(curves.T):
            reached = np.flatnonzero(curve >= accuracy)
            if len(reached) == 0:
                continue
            after = int(reached[0])
            if after == 0:
                times[seed] = 0.0
                continue
            below, above = curve[after - 1], curve[after]
            times[seed] = after - 1 + (accuracy - below) / (above - below)
        return times

    def rows(self, epochs: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """Yields the rows of curves.csv, by default those of all finished epochs."""
        for epoch in range(self.epochs_done + 1) if epochs is None else epochs:
            for s, seed in enumerate(self.seeds):
                values = {
                    f"{part}_{metric}": float(self.values[epoch, i, j, s])
                    for i, part in enumerate(PARTS)
                    for j, metric in enumerate(METRICS)
                }
                rate = "" if epoch == 0 else float(self.learning_rates[epoch - 1])
                step = epoch * self.steps_per_epoch
                yield {"dag": self.name, "seed": seed, "epoch": epoch, "step": step, "learning_rate": rate} | values

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with the rows and columns of curves.csv, `FIELDS`.

        Accuracies are between 0 and 1. The learning rate of epoch 0, the state before training, is NaN.

        Examples:
          >>> history = History("mine", (0, 1), 5, np.array([0.1]), np.full((2, 3, 3, 2), 0.5))
          >>> history.to_frame()[["dag", "seed", "epoch", "step", "learning_rate", "test_accuracy"]]
              dag  seed  epoch  step  learning_rate  test_accuracy
          0  mine     0      0     0            NaN            0.5
          1  mine     1      0     0            NaN            0.5
          2  mine     0      1     5            0.1            0.5
          3  mine     1      1     5            0.1            0.5
        """
        import pandas

        table = pandas.DataFrame.from_records(list(self.rows()), columns=list(FIELDS))
        table["learning_rate"] = pandas.to_numeric(table["learning_rate"])
        return table

    def _facts(self) -> dict[str, str]:
        facts = {"": repr(self.name), "seeds": str(list(self.seeds))}
        facts["epochs"] = f"{max(self.epochs_done, 0)} of {len(self.learning_rates)}"
        if (last := self.epochs_done) >= 0:
            facts |= {"train_loss": forms.over(self.of("train", "loss")[last])}
            facts |= {f"{part}_accuracy": forms.over(self.of(part, "accuracy")[last]) for part in PARTS}
        return facts


def write_csv(histories: Sequence[History], path: Path) -> None:
    """Writes all curves, one row per architecture, epoch and seed."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=FIELDS)
        writer.writeheader()
        for history in histories:
            writer.writerows(history.rows())
