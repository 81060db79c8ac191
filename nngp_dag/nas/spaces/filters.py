"""Filters that skip cells with extreme effective depth or width, before anything is computed for them."""

from dataclasses import dataclass
from fractions import Fraction

from nngp_dag.errors import InputError, did_you_mean
from nngp_dag.graph import Dag


@dataclass(frozen=True)
class Filter:
    """A filter that keeps graphs whose effective depth and width lie in two closed ranges.

    Depth and width are compared as exact fractions.

    Attributes:
      name: Name of the filter.
      depth: Smallest and largest effective depth.
      width: Smallest and largest effective width.
      reference: Source of the ranges.

    Examples:
      >>> moderate = get_filter("paper")
      >>> moderate.depth, moderate.keeps(Dag.from_code("2_21_112")), moderate.keeps(Dag.from_code("2_02_002"))
      ((Fraction(9, 10), Fraction(23, 10)), True, False)
    """

    name: str
    depth: tuple[Fraction, Fraction]
    width: tuple[Fraction, Fraction]
    reference: str

    def keeps(self, dag: Dag) -> bool:
        """Returns whether the filter keeps a graph. A graph without paths has depth and width 0."""
        counts = dag.path_counts
        ranges = (counts.effective_depth, self.depth), (counts.effective_width, self.width)
        return all(low <= value <= high for value, (low, high) in ranges)


def _range(low: str, high: str) -> tuple[Fraction, Fraction]:
    return Fraction(low), Fraction(high)


FILTERS: dict[str, dict[str, Filter]] = {
    "nasbench201": {
        "paper": Filter(
            "paper",
            _range("0.9", "2.3"),
            _range("1.3", "3.1"),
            "Chen et al. 2022: |d - 1.6| <= 0.7 and |w - 2.2| <= 0.9",
        ),
        "released-code": Filter(
            "released-code", _range("0.99", "2.51"), _range("0.99", "3.01"), "the code that Chen et al. 2022 released"
        ),
    },
    "darts": {
        "released-code": Filter(
            "released-code", _range("0.5", "1.6"), _range("4", "12"), "the code that Chen et al. 2022 released"
        ),
    },
}
"""The filters of each space by name.

Of the 15,625 cells of NAS-Bench-201, "paper" keeps 6,256 and "released-code" keeps 8,226. Those of DARTS compare the
effective depth and width of the normal cell.
"""


def get_filter(name: str, space: str = "nasbench201") -> Filter:
    """Returns a filter by its name.

    Args:
      name: Name of the filter: "paper" or "released-code". DARTS has the latter alone.
      space: Name of the space, "nasbench201" or "darts".

    Raises:
      InputError: The space has no filter with this name, or there is no such space.

    Examples:
      >>> get_filter("released-code").reference
      'the code that Chen et al. 2022 released'
      >>> get_filter("released-code", "darts").width
      (Fraction(4, 1), Fraction(12, 1))
    """
    if space not in FILTERS:
        raise InputError(
            f"Expected `space` to be one of {', '.join(FILTERS)}, got {space!r}{did_you_mean(space, FILTERS)}"
        )
    known = FILTERS[space]
    if name not in known:
        raise InputError(
            f"Expected `filter` to be one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}; these are "
            f"the filters of {space}"
        )
    return known[name]
