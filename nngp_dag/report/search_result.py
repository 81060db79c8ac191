"""The result of `search_graph`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from nngp_dag import forms
from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.forms import Described
from nngp_dag.report.search_objectives import OBJECTIVES

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def rounding(value: float) -> float:
    """Returns the difference from an objective's value that counts as rounding: many codes have equal kernels."""
    return 1e-9 * max(1.0, abs(value)) if math.isfinite(value) else 0.0


@dataclass(frozen=True, repr=False)
class GraphSearch(Described):
    """The codes that a search found, and how it found them.

    Attributes:
      objective: Name of the objective.
      network: Network of the best code.
      value: The objective of the best code.
      gradient_codes: For each start, the code at which the descent along the gradient ended, after rounding.
      gradient_values: The objective of these codes, (S,).
      codes: For each start, the code at which the discrete descent from there ended.
      values: The objective of these codes, (S,).
      best: The start that `weights` follows, counted from 0: among those that end at the best value, the one with the
        best code before the discrete descent.
      temperatures: Temperature of the probabilities before the first step and after each one, (steps + 1,).
      relaxed: The objective of the relaxed network of every start at these times, (steps + 1, S).
      weights: Shares of none, skip and weighted of every pair of nodes, for start `best`, (steps + 1, pairs, 3). They
        are the probabilities, those of edges divided by m, see `search_graph`.
      pairs: The pairs (source, target) of nodes, in the order of the digits of a code.
      table: The objective of every valid code by code; None without `exhaustive`.
      ends: The code at which the discrete descent from every valid code ends; None without `exhaustive`.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(6, 5))
      >>> found = nd.search_graph(x, objective="ntk-lambda-min", num_nodes=3, starts=2, steps=20)
      >>> len(found.to_frame()), found.network.dag.code == found.code, found.table
      (2, True, None)
    """

    objective: str
    network: Network
    value: float
    gradient_codes: tuple[str, ...]
    gradient_values: Float[np.ndarray, " starts"]
    codes: tuple[str, ...]
    values: Float[np.ndarray, " starts"]
    best: int
    temperatures: Float[np.ndarray, " times"]
    relaxed: Float[np.ndarray, "times starts"]
    weights: Float[np.ndarray, "times pairs 3"]
    pairs: tuple[tuple[int, int], ...]
    table: Mapping[str, float] | None
    ends: Mapping[str, str] | None

    @property
    def code(self) -> str:
        """The best code."""
        return self.codes[self.best]

    @property
    def maximized(self) -> bool:
        """Whether larger values of the objective are better."""
        return OBJECTIVES[self.objective].maximize

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for every start.

        Its columns are `start`, counted from 0, `relaxed_value`, the objective of the relaxed network at the end,
        `gradient_code`, `gradient_value`, `code` and `value`. With `exhaustive` there are `gradient_rank` and `rank`,
        too: one more than the number of valid codes that are better.
        """
        import pandas

        columns = {
            "start": np.arange(len(self.codes)),
            "relaxed_value": self.relaxed[-1],
            "gradient_code": self.gradient_codes,
            "gradient_value": self.gradient_values,
            "code": self.codes,
            "value": self.values,
        }
        if self.table is not None:
            columns["gradient_rank"] = self._ranks(self.gradient_values)
            columns["rank"] = self._ranks(self.values)
        return pandas.DataFrame(columns)

    def weights_frame(self) -> "pandas.DataFrame":
        """Returns the weights of start `best` with a row for every step and pair.

        Its columns are `step`, `temperature`, `source`, `target`, `none`, `skip` and `weighted`.
        """
        import pandas

        steps, pairs = np.indices(self.weights.shape[:2])
        ends = np.array(self.pairs)[pairs.ravel()]
        columns = {"step": steps.ravel(), "temperature": self.temperatures[steps.ravel()]}
        columns |= {"source": ends[:, 0], "target": ends[:, 1]}
        columns |= {name: self.weights[..., i].ravel() for i, name in enumerate(("none", "skip", "weighted"))}
        return pandas.DataFrame(columns)

    def codes_frame(self) -> "pandas.DataFrame":
        """Returns every valid code, the best first, with the columns `code`, `value`, `rank`, `end` and `end_rank`.

        Equal values share a rank. `end` is the code at which the discrete descent from a code ends. It shows how far
        that descent comes without the gradient.

        Raises:
          InputError: The search was not exhaustive.
        """
        import pandas

        if self.table is None or self.ends is None:
            raise InputError("Expected an exhaustive search, got one without a table; pass `exhaustive=True`")
        values = np.array(list(self.table.values()))
        found = pandas.DataFrame({"code": list(self.table), "value": values, "rank": self._ranks(values)})
        found["end"] = [self.ends[code] for code in self.table]
        found["end_rank"] = self._ranks(np.array([self.table[end] for end in found.end]))
        return found.sort_values("rank", kind="stable", ignore_index=True)

    def share_within(self, fraction: float = 0.02, *, polished: bool = True) -> float:
        """Returns the share of starts that end within the best codes, ranked among all valid codes.

        Args:
          fraction: The best codes as a share of all valid codes, above 0 and at most 1.
          polished: Whether to count the ends of the discrete descent, or those of the gradient alone.

        Raises:
          InputError: The search was not exhaustive, or `fraction` is out of range.
        """
        if self.table is None:
            raise InputError("Expected an exhaustive search, got one without a table; pass `exhaustive=True`")
        if not 0 < fraction <= 1:
            raise InputError(f"Expected `fraction` above 0 and at most 1, got {fraction}")
        ranks = self._ranks(self.values if polished else self.gradient_values)
        return float(np.mean(ranks <= max(1, math.floor(fraction * len(self.table)))))

    def _ranks(self, values: np.ndarray) -> np.ndarray:
        assert self.table is not None
        sign = 1 if self.maximized else -1
        every = sign * np.array(list(self.table.values()))
        # A value that is not finite is worse than all others; comparisons with NaN are false.
        every[~np.isfinite(every)] = -np.inf
        good = [sign * float(value) if np.isfinite(value) else -np.inf for value in values]
        return np.array([1 + int(np.sum(every > value + rounding(value))) for value in good])

    def plot(self, path: str | Path | None = None, title: str | None = None) -> "Figure":
        """Draws the weights of start `best` over the steps, one panel for each pair of nodes, and the objective.

        Args:
          path: File for the picture as PNG; None writes nothing.
          title: Title of the picture; by default the objective and the best code.

        Returns:
          The figure.
        """
        from nngp_dag.report.search_plots import draw_search

        return draw_search(self, None if path is None else Path(path), title)

    def _facts(self) -> dict[str, str]:
        facts = {"code": repr(self.code), "value": forms.number(self.value), "objective": repr(self.objective)}
        sign = 1 if self.maximized else -1
        at_best = sum(sign * value >= sign * self.value - rounding(self.value) for value in self.values)
        facts["starts"] = f"{len(self.codes)}, {at_best} at the best value"
        facts["steps"] = str(len(self.temperatures) - 1)
        if self.table is not None:
            facts["rank"] = f"{self._ranks(np.array([self.value]))[0]} of {len(self.table)} codes"
        return facts
