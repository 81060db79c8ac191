"""The registry of scores, and how many cells are scored."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from types import MappingProxyType
from typing import Any

import numpy as np

from nngp_dag import forms
from nngp_dag.errors import InputError, InputWarning, did_you_mean, shown, warn
from nngp_dag.forms import described
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.cells import Cell

COSTS = ("wiring", "kernel", "forward", "backward", "jacobian")
"""What a score needs of a cell, the cheapest first: its graph; exact kernels, once for all cells that have the same;
a pass of the batch through the network; a backward pass too; a backward pass for every image."""

Measured = Mapping[str, float | str]
Measure = Callable[[Sequence[Cell], Setting], Iterator[Measured]]


@dataclass(frozen=True)
class Score:
    """A number that ranks cells without training.

    Attributes:
      name: What it is called.
      higher_is_better: Its direction.
      cost: One out of `COSTS`.
      reference: Where it comes from.
      measure: Called with cells and a setting, yields for each cell {name: number, or why there is none}, for this
        score and for all others that come from the same computation.
    """

    name: str
    higher_is_better: bool
    cost: str
    reference: str
    measure: Measure


_registered: dict[str, Score] = {}
SCORES: Mapping[str, Score] = MappingProxyType(_registered)
"""All registered scores by name."""


@described
@dataclass(frozen=True)
class Scored:
    """A cell and all of its scores.

    Attributes:
      cell: The cell.
      values: {score: number}; NaN where it failed.
      reasons: {score: why it failed, and for which cell}.
      seconds: Time that all of it took, without compilation; of work for several cells at once an equal share. Exact
        kernels are one such work for all cells of a call, so that the more cells, the smaller the share; unless timing
        is asked for, it includes compilation.
    """

    cell: Cell
    values: Mapping[str, float]
    reasons: Mapping[str, str]
    seconds: float

    def _facts(self) -> dict[str, str]:
        values = {name: forms.number(value) for name, value in self.values.items()}
        failed = {"failed": ", ".join(self.reasons)} if self.reasons else {}
        return {"": repr(str(self.cell)), **values, **failed, "seconds": f"{self.seconds:.2g}"}


def register(score: Score) -> Score:
    """Adds a score to the registry, for `score_cells` and the command line.

    Raises:
      InputError: The name is taken, or the cost unknown.

    Example:
      >>> from nngp_dag.nas import SCORES, Score, register
      >>> register(SCORES["naswot"])
      Traceback (most recent call last):
      ...
      nngp_dag.errors.InputError: Expected a new name for a score, got 'naswot', which is taken; choose another
    """
    if score.name in _registered:
        raise InputError(f"Expected a new name for a score, got {score.name!r}, which is taken; choose another")
    file = getattr(score.measure, "__name__", None)
    if file is None or any(file == s.measure.__name__ and s.measure is not score.measure for s in _registered.values()):
        raise InputError(
            f"Expected `measure` of {score.name!r} to be a function whose name no other measure has, got {file}; files "
            "of scores are called after it"
        )
    if score.cost not in COSTS:
        raise InputError(f"Expected `cost` of {score.name!r} to be one of {', '.join(COSTS)}, got {score.cost!r}")
    _registered[score.name] = score
    return score


def load_installed() -> None:
    """Imports the modules that installed packages name in their entry points "nngp_dag.scores", to register scores.

    An `InputWarning` says which of them fail; they are left out.
    """
    for entry in metadata.entry_points(group="nngp_dag.scores"):
        try:
            entry.load()
        except Exception as error:  # whatever a foreign module does
            warn(f"Expected the scores of entry point {entry.name!r} to load, got {shown(error)}", InputWarning)


def get_score(name: str) -> Score:
    """Returns a registered score.

    Raises:
      InputError: There is none of that name.
    """
    if name not in _registered:
        raise InputError(
            f"Expected a score out of {', '.join(_registered)}, got {name!r}{did_you_mean(name, _registered)}"
        )
    return _registered[name]


def measures_of(names: Sequence[str]) -> dict[Measure, list[Score]]:
    """Returns the computations that some scores need, each with the scores it gives.

    Raises:
      InputError: A name is unknown, or there is none.
    """
    found: dict[Measure, list[Score]] = {}
    for name in dict.fromkeys(names):
        score = get_score(name)
        found.setdefault(score.measure, []).append(score)
    if not found:
        raise InputError(f"Expected at least one score out of {', '.join(_registered)}, got none")
    return found


def score_cells(
    cells: Sequence[Cell], scores: Sequence[str], setting: Setting, *, timed: bool = False
) -> Iterator[Scored]:
    """Scores cells, one after the other, each by all measures that its scores need.

    Args:
      cells: Any cells.
      scores: Names out of `SCORES`.
      setting: Data, and sizes of the networks.
      timed: Whether seconds of exact kernels leave compilation out, for which they are computed twice.

    Yields:
      A `Scored` for every cell, in order, as soon as all of its scores are known. Exact kernels are computed for all
      cells before the first is.

    Raises:
      InputError: A score is unknown, or lacks what it needs of the setting.

    Example:
      >>> from nngp_dag.nas import Setting, sample_cells
      >>> setting = Setting(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32))
      >>> [scored] = score_cells([Cell.from_index(0)], ["parameters", "effective_depth"], setting)
      >>> dict(scored.values)
      {'parameters': 73306.0, 'effective_depth': 0.0}
    """
    for cell in cells:
        if not isinstance(cell, Cell):
            raise InputError(f"Expected `cells` to be of type `Cell`, got {shown(cell)}; `Cell.parse` reads a text")
    running = [_timed(measure, cells, wanted, setting, timed) for measure, wanted in measures_of(scores).items()]
    for cell, *parts in zip(cells, *running, strict=True):
        values = {name: value for part in parts for name, value in part.values.items()}
        reasons = {name: reason for part in parts for name, reason in part.reasons.items()}
        # As they were asked for, not by measure.
        yield Scored(cell, {name: values[name] for name in scores}, reasons, sum(part.seconds for part in parts))


def _timed(
    measure: Measure, cells: Sequence[Cell], wanted: Sequence[Score], setting: Setting, timed: bool
) -> Iterator[Scored]:
    """Yields what one measure says of every cell; only its own work counts as its time."""
    cost, at_once = wanted[0].cost, setting.at_once
    # Compiled before anything is timed, since that is done once for all cells.
    if cost == "kernel" and timed:
        # Programs of kernels depend on all cells; nothing that is computed now is known to what is timed.
        list(_measured(measure, [Cell(cell.operations) for cell in cells], wanted, replace(setting)))
    elif cost not in ("wiring", "kernel"):
        list(_measured(measure, cells[:1], wanted, setting))
    if cost in ("wiring", "kernel"):
        at_once = max(len(cells), 1)
    running = _measured(measure, cells, wanted, setting)
    before = time.perf_counter()
    while block := list(itertools.islice(running, at_once)):
        each = (time.perf_counter() - before) / len(block)
        yield from (_scored(cell, wanted, found, each) for cell, found in block)
        before = time.perf_counter()


def _measured(
    measure: Measure, cells: Sequence[Cell], wanted: Sequence[Score], setting: Setting
) -> Iterator[tuple[Cell, Measured]]:
    """Runs a measure; an error that it does not turn into a reason gets the names of score and cell."""
    running = iter(measure(cells, setting))
    for cell in cells:
        try:
            found = next(running)
            missing = [score.name for score in wanted if score.name not in found]
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"Expected {wanted[0].name} of {cell}, got {type(error).__name__}: {error}") from error
        if missing:
            raise InputError(f"Expected {missing[0]} of {cell}, got {', '.join(found) or 'nothing'} from its measure")
        yield cell, found


def _scored(cell: Cell, wanted: Sequence[Score], found: Measured, seconds: float) -> Scored:
    values, reasons = {}, {}
    for score in wanted:
        value: Any = found[score.name]
        if isinstance(value, str) or math.isnan(value):
            reasons[score.name] = f"{score.name} of {cell}: {value if isinstance(value, str) else 'not a number'}"
            value = math.nan
        values[score.name] = float(value)
    return Scored(cell, values, reasons, seconds)


def goodness(score: Score, values: Sequence[float] | np.ndarray, cells: Sequence[Cell]) -> np.ndarray:
    """Returns numbers of which the higher is better, whatever the score's direction, (cells,).

    Degenerate cells have minus infinity, so that they never rank above sound ones: those without a finite score, and
    those whose `status` is not "connected". A kernel of a cell without a weighted edge is that of its input, which some
    scores of exact kernels put above all others.

    Example:
      >>> goodness(get_score("ntk_condition"), [3.0, 2.0, np.inf], [Cell.from_index(10353)] * 3)
      array([ -3.,  -2., -inf])
    """
    numbers = np.asarray(values, np.float64)
    connected = np.array([cell.status == "connected" for cell in cells], bool)
    sign = 1.0 if score.higher_is_better else -1.0
    sound = np.isfinite(numbers) & connected
    return np.where(sound, sign * np.where(sound, numbers, 0.0), -np.inf)
