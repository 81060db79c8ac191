"""Rank correlations between columns of a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas


def rank_correlations(table: "pandas.DataFrame", first: Sequence[str], second: Sequence[str]) -> "pandas.DataFrame":
    """Returns Kendall's tau-b and Spearman's rho of every column of `first` with every column of `second`.

    Args:
      table: Table of the rows to rank. A pair of columns omits rows without a finite number in both.
      first: Names of the first columns of pairs.
      second: Names of the second columns of pairs.

    Returns:
      A table with a row for each pair: `first`, `second`, `kendall`, `spearman`, `rows`. Correlations are NaN where a
      column does not vary or fewer than 3 rows remain.

    Examples:
      >>> import pandas
      >>> table = pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 3.0, 2.0, 4.0]})
      >>> found = rank_correlations(table, ["a"], ["b"])
      >>> [round(float(value), 3) for value in found.loc[0, ["kendall", "spearman", "rows"]]]
      [0.667, 0.8, 4.0]

    Reference: Kendall, Biometrika 1945 (tau-b, for ties); Spearman, Am. J. Psychol. 1904.
    """
    import pandas
    from scipy.stats import kendalltau, spearmanr

    frame: Any = table
    records = []
    for a in first:
        for b in second:
            x, y = (np.asarray(frame[name], dtype=np.float64) for name in (a, b))
            both = np.isfinite(x) & np.isfinite(y)
            x, y = x[both], y[both]
            kendall: Any = np.nan
            spearman: Any = np.nan
            if len(x) >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
                kendall, spearman = kendalltau(x, y)[0], spearmanr(x, y)[0]
            records.append({"first": a, "second": b, "kendall": kendall, "spearman": spearman, "rows": len(x)})
    return pandas.DataFrame.from_records(records, columns=["first", "second", "kendall", "spearman", "rows"])
