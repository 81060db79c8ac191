"""Scores that read labels beside their controls with shuffled labels, and sentences that say what follows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.nas.scores.registry import SCORES, control_of
from nngp_dag.report.ranking import rank_correlations

if TYPE_CHECKING:
    import pandas

# A control with at least this share of the score's rank correlation ranks as well as the score. Two orders of cells
# with at least this rank correlation are alike.
_ALIKE = 0.9
# Samples of the cells, with replacement, from which the error of a difference of rank correlations is taken.
_SAMPLES = 200


def control_correlations(scores: "pandas.DataFrame") -> "pandas.DataFrame":
    """Returns the rank correlation of every score that reads labels with its control, over all cells that have both.

    Near 1, the score orders cells alike with shuffled labels: whatever it measures, it is not learning from the labels.

    Args:
      scores: Scores of cells, as `read_scores` returns them.

    Returns:
      One row per score, with the columns `first`, `second` (the control), `kendall`, `spearman`, and `rows`, the number
      of cells.

    Examples:
      >>> import pandas
      >>> columns = {"leave_one_out": [1.0, 2.0, 3.0], "leave_one_out_shuffled": [2.0, 4.0, 6.0]}
      >>> float(control_correlations(pandas.DataFrame(columns))["spearman"].iloc[0])
      1.0
    """
    import pandas

    rows = [rank_correlations(scores, [name], [control_of(name)]) for name in _computed(scores)]
    return pandas.concat(rows, ignore_index=True) if rows else rank_correlations(scores, [], [])


def control_remarks(correlations: "pandas.DataFrame") -> list[str]:
    """Returns a sentence for every score that reads labels, on what follows from its control.

    Args:
      correlations: Result of `accuracy_correlations` or of `control_correlations`. The control ranks as well as the
        score if it has at least 90 % of its Spearman correlation with the accuracy. A smaller one may be chance if
        the difference is below two of its standard errors. Without accuracies, the two order cells alike if their
        Spearman correlation is at least 0.9.

    Examples:
      >>> import pandas
      >>> columns = {"leave_one_out": [1.0, 2.0, 3.0], "leave_one_out_shuffled": [2.0, 4.0, 6.0]}
      >>> [remark] = control_remarks(control_correlations(pandas.DataFrame(columns)))
      >>> remark.partition(":")[0]
      'leave_one_out orders the cells alike with shuffled labels'
    """
    found: Any = correlations
    if "spearman_control" in found:
        numbers = found.spearman, found.spearman_control, found.difference_error, found["rows"]
        rows = zip(found["first"], *numbers, strict=True)
        return [_with_accuracies(*row) for row in rows if np.isfinite(row[1:]).all()]
    rows = zip(found["first"], found.spearman, strict=True)
    return [_without_accuracies(*row) for row in rows if np.isfinite(row[1])]


def difference_error(score: np.ndarray, control: np.ndarray, accuracy: np.ndarray) -> float:
    """Returns the standard error of the difference of two Spearman correlations with the accuracy.

    It is the spread of the difference over samples of the cells, drawn with replacement.

    Args:
      score: Values of the score, (cells,).
      control: Values of the control, (cells,).
      accuracy: Accuracies, (cells,).

    Reference: Efron, Annals of Statistics 1979.
    """
    from scipy.stats import rankdata

    values = np.stack([score, control, accuracy]).astype(np.float64)
    values = values[:, np.isfinite(values).all(axis=0)]
    if values.shape[1] < 3 or not np.ptp(values, axis=1).all():
        return np.nan
    # The ranks are those among all cells. To rank each sample anew would change little and take long.
    ranks, rng = rankdata(values, axis=1), np.random.default_rng(0)
    differences = []
    for _ in range(_SAMPLES):
        drawn = ranks[:, rng.integers(ranks.shape[1], size=ranks.shape[1])]
        if np.ptp(drawn, axis=1).all():
            with_accuracy = np.corrcoef(drawn)[2]
            differences.append(with_accuracy[0] - with_accuracy[1])
    return float(np.std(differences, ddof=1)) if len(differences) > 1 else np.nan


def _with_accuracies(name: str, score: float, control: float, error: float, cells: int) -> str:
    both = (
        f"rank correlation with the accuracy {_number(score)}, with shuffled labels {_number(control)}, {cells:,} cells"
    )
    if score <= 0:
        return f"{name} does not rank these cells: {both}."
    if control >= _ALIKE * score:
        measured = f"It measures {_shape(name)}, not learning from the labels."
        return f"{name} ranks no better than its control: {both}. {measured}"
    if score - control < 2 * error:
        chance = f"This difference is below two of its standard errors, {_number(error)} each: it may be chance."
        return f"{name} ranks hardly better than its control: {both}. {chance}"
    return f"{name} ranks better than its control: {both}. The difference comes from the labels."


def _without_accuracies(name: str, between: float) -> str:
    if between >= _ALIKE:
        return (
            f"{name} orders the cells alike with shuffled labels: rank correlation {_number(between)}. It measures "
            f"{_shape(name)}, not learning from the labels."
        )
    return (
        f"{name} orders the cells differently with shuffled labels: rank correlation {_number(between)}. Accuracies "
        "tell whether the labels help."
    )


def _shape(name: str) -> str:
    return "the shape of the kernel" if SCORES[name].cost == "kernel" else "a property of the network"


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _computed(scores: "pandas.DataFrame") -> Sequence[str]:
    """Returns the names of the scores that read labels and are in a table with their controls."""
    named = [name for name, score in SCORES.items() if score.reads_labels and not score.control_of]
    return [name for name in named if name in scores and control_of(name) in scores]
