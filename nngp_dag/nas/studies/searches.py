"""Random search by a score: draw cells, apply a filter, take the best cell; repeated many times."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from nngp_dag.errors import InputError


@dataclass(frozen=True)
class Searches:
    """The results of repeated searches.

    Attributes:
      picked: Index of the cell that each search took, (repeats,). It is -1 where no cell passed the filter with a
        finite score.
      skipped: Share of the drawn cells that the filter skipped, (repeats,).
      seconds: Time of scoring the other drawn cells, in seconds, (repeats,).
    """

    picked: np.ndarray
    skipped: np.ndarray
    seconds: np.ndarray


def search(
    goodness: Float[np.ndarray, " cells"],
    *,
    seconds: Float[np.ndarray, " cells"],
    kept: Bool[np.ndarray, " cells"] | None = None,
    sample: int = 100,
    repeats: int = 500,
    seed: int = 0,
) -> Searches:
    """Repeats a search on cells whose scores are known already, so that repeats cost almost nothing.

    A search draws `sample` distinct cells, all equally likely. It skips the cells that the filter does not keep, and
    takes the best of the others, the first drawn of equals. The draws depend on `seed` alone: searches by other scores
    or filters see the same cells.

    Args:
      goodness: Scores of the cells, (cells,), of which higher is better, and minus infinity for degenerate cells; see
        the function `goodness`.
      seconds: Time of scoring each cell, in seconds, (cells,).
      kept: Whether the filter keeps each cell, (cells,). None for no filter.
      sample: Number of cells that one search draws.
      repeats: Number of searches.
      seed: Seed of the draws.

    Returns:
      A `Searches`.

    Raises:
      InputError: `sample` is not in 1 to the number of cells, `repeats` is below 1, `seed` is below 0, or the lengths
        differ.

    Examples:
      >>> found = search(np.array([1.0, 3.0, 2.0]), seconds=np.ones(3), sample=3, repeats=2)
      >>> found.picked, found.skipped, found.seconds
      (array([1, 1]), array([0., 0.]), array([3., 3.]))

    Reference: Mellor et al., ICML 2021, Algorithm 1; Chen et al., NeurIPS 2022, Section 5 (the filter).
    """
    count = len(goodness)
    kept = np.ones(count, bool) if kept is None else kept
    if len(seconds) != count or len(kept) != count:
        raise InputError(f"Expected `seconds` and `kept` of {count} cells, got {len(seconds)} and {len(kept)}")
    if not 1 <= sample <= count:
        raise InputError(f"Expected `sample` in 1 to the {count:,} scored cells, got {sample}; score more cells")
    if repeats < 1:
        raise InputError(f"Expected `repeats` to be at least 1, got {repeats}")
    if seed < 0:
        raise InputError(f"Expected `seed` to be at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    picked, skipped, spent = np.full(repeats, -1), np.zeros(repeats), np.zeros(repeats)
    for i in range(repeats):
        drawn = rng.choice(count, sample, replace=False)
        left = drawn[kept[drawn]]
        skipped[i], spent[i] = 1 - len(left) / sample, seconds[left].sum()
        if len(left) and np.isfinite(goodness[left]).any():
            picked[i] = left[goodness[left].argmax()]
    return Searches(picked, skipped, spent)


def accuracies_of(found: Searches, accuracy: Sequence[float] | np.ndarray) -> Float[np.ndarray, " found"]:
    """Returns the accuracy of the cell of every search that took one."""
    return np.asarray(accuracy, np.float64)[found.picked[found.picked >= 0]]
