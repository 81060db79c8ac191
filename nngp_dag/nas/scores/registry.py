"""The registry of scores, and the loop that scores cells."""

import copy
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
from nngp_dag.forms import Described
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.any_cell import AnyCell, space_of_all
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.nas.spaces.darts import Genotype

COSTS = ("wiring", "kernel", "forward", "backward", "jacobian")
"""Costs of a score, the cheapest first.

"wiring" needs the graph only. "kernel" needs exact kernels, each once for all cells that share it. "forward" needs a
forward pass of the batch, "backward" a backward pass too, and "jacobian" a backward pass for every image.
"""

Measured = Mapping[str, float | str]
Measure = Callable[[Sequence[AnyCell], Setting], Iterator[Measured]]


@dataclass(frozen=True)
class Score:
    """A number that ranks cells without training.

    Attributes:
      name: Name of the score.
      higher_is_better: Whether a higher number is better.
      cost: Cost of the score: "wiring", "kernel", "forward", "backward" or "jacobian".
      reference: The publication that the score comes from.
      measure: Function of (cells, setting) that yields a dictionary for each cell. Its keys are the names of all scores
        from the same computation. Its values are their numbers, or the reasons of missing numbers.
      reads_labels: Whether the score depends on the labels. `register` then also adds its control, the same score with
        shuffled labels.
      spaces: Names of the spaces whose cells the measure takes.
      control_of: Name of the score whose control this is; empty for other scores.

    Examples:
      >>> from nngp_dag.nas import get_score
      >>> get_score("ntk_condition").cost, get_score("ntk_condition").higher_is_better
      ('jacobian', False)
    """

    name: str
    higher_is_better: bool
    cost: str
    reference: str
    measure: Measure
    reads_labels: bool = False
    spaces: tuple[str, ...] = ("nasbench201",)
    control_of: str = ""


_registered: dict[str, Score] = {}
SCORES: Mapping[str, Score] = MappingProxyType(_registered)
"""All registered scores by name."""


@dataclass(frozen=True, repr=False)
class Scored(Described):
    """A cell and all of its scores.

    Attributes:
      cell: The cell.
      values: The numbers by score; NaN where a score failed.
      reasons: The reasons of failed scores, by score. Each names the cell.
      seconds: Time of all scores, in seconds, without compilation. Where several cells are computed at once, each has
        an equal share. Exact kernels are computed at once for all cells of a call, so that the share falls with the
        number of cells. It includes their compilation, unless `score_cells` is called with `timed=True`.
    """

    cell: AnyCell
    values: Mapping[str, float]
    reasons: Mapping[str, str]
    seconds: float

    def _facts(self) -> dict[str, str]:
        values = {name: forms.number(value) for name, value in self.values.items()}
        failed = {"failed": ", ".join(self.reasons)} if self.reasons else {}
        return {"": repr(str(self.cell)), **values, **failed, "seconds": f"{self.seconds:.2g}"}


def register(score: Score) -> Score:
    """Adds a score to the registry, for `score_cells` and the command line.

    A score that reads labels brings its control, NAME_shuffled, which is the same score with the labels of the images
    in another order. The two are always computed together. If the control ranks cells as well as the score, then the
    score does not measure learning from the labels.

    Args:
      score: The score. No other score has its name, and no other measure the name of its measure.

    Returns:
      The score.

    Raises:
      InputError: The name of the score or of its measure is taken, or the cost is unknown.

    Examples:
      >>> from nngp_dag.nas import SCORES, Score, register
      >>> register(SCORES["naswot"])
      Traceback (most recent call last):
      ...
      nngp_dag.errors.InputError: Expected a new name for a score, got 'naswot', which is taken; choose another
    """
    added = [score]
    if score.reads_labels:
        reference = f"control of {score.name}: the same with shuffled labels"
        added.append(replace(score, name=control_of(score.name), reference=reference, control_of=score.name))
    for each in added:
        if each.name in _registered:
            raise InputError(f"Expected a new name for a score, got {each.name!r}, which is taken; choose another")
    file = getattr(score.measure, "__name__", None)
    if file is None or any(file == s.measure.__name__ and s.measure is not score.measure for s in _registered.values()):
        raise InputError(
            f"Expected `measure` of {score.name!r} to be a function whose name no other measure has, got {file}; the "
            "file of its scores has this name"
        )
    if score.cost not in COSTS:
        raise InputError(f"Expected `cost` of {score.name!r} to be one of {', '.join(COSTS)}, got {score.cost!r}")
    _registered.update({each.name: each for each in added})
    return score


def control_of(name: str) -> str:
    """Returns the name of the control of a score that reads labels."""
    return f"{name}_shuffled"


def load_installed() -> None:
    """Imports the modules in the entry points "nngp_dag.scores" of installed packages, which register their scores.

    A module that fails is left out, with an `InputWarning`.
    """
    for entry in metadata.entry_points(group="nngp_dag.scores"):
        try:
            entry.load()
        except Exception as error:  # a module of another package may raise anything
            warn(f"Expected the scores of entry point {entry.name!r} to load, got {shown(error)}", InputWarning)


def get_score(name: str) -> Score:
    """Returns a registered score by its name.

    Raises:
      InputError: No score has this name.

    Examples:
      >>> get_score("naswot").reference
      'Mellor et al., Neural Architecture Search without Training, ICML 2021'
    """
    if name not in _registered:
        raise InputError(
            f"Expected a score out of {', '.join(_registered)}, got {name!r}{did_you_mean(name, _registered)}"
        )
    return _registered[name]


def with_controls(names: Sequence[str]) -> list[str]:
    """Returns the names of some scores, with the name of its control after each score that reads labels.

    A control that is named brings its score.

    Raises:
      InputError: A name is unknown.

    Examples:
      >>> with_controls(["naswot", "grad_norm"])
      ['naswot', 'grad_norm', 'grad_norm_shuffled']
    """
    found: dict[str, None] = {}
    for name in names:
        score = get_score(get_score(name).control_of or name)
        found |= dict.fromkeys([score.name, control_of(score.name)] if score.reads_labels else [score.name])
    return list(found)


def measures_of(names: Sequence[str], space: str = "nasbench201") -> dict[Measure, list[Score]]:
    """Returns the measures that some scores need, each with its scores among them, controls included.

    Args:
      names: Names of the scores.
      space: Name of the space of the cells.

    Raises:
      InputError: A name is unknown, a score does not take cells of the space, or there are no names.
    """
    found: dict[Measure, list[Score]] = {}
    for name in with_controls(names):
        score = get_score(name)
        if space not in score.spaces:
            known = ", ".join(each.name for each in _registered.values() if space in each.spaces)
            raise InputError(
                f"Expected scores of {space}, got {name!r}, which takes cells of {' and '.join(score.spaces)} only; "
                f"choose out of {known}"
            )
        found.setdefault(score.measure, []).append(score)
    if not found:
        raise InputError(f"Expected at least one score out of {', '.join(_registered)}, got none")
    return found


def measures_for(names: Sequence[str], setting: Setting) -> dict[Measure, list[Score]]:
    """Returns the measures that some scores need, as `measures_of` does, after a check that they can run in a setting.

    Raises:
      InputError: `measures_of` refuses the names, or a score reads labels and the setting has none, or one class.
    """
    found = measures_of(names, setting.space)
    read = [score.name for wanted in found.values() for score in wanted if score.reads_labels]
    if read and setting.labels is None:
        raise InputError(f"Expected `labels` in the setting for {read[0]}, got None; pass those of the images")
    if read:
        setting.with_shuffled_labels()
    return found


def score_cells(
    cells: Sequence[AnyCell], scores: Sequence[str], setting: Setting, *, timed: bool = False
) -> Iterator[Scored]:
    """Scores cells, one after another, by all measures that the scores need.

    Args:
      cells: The cells of NAS-Bench-201, or the genotypes of DARTS, as the setting says.
      scores: Names of registered scores; see `SCORES`. Scores that read labels bring their controls.
      setting: The data, and the sizes of the networks.
      timed: Whether the seconds of exact kernels leave out compilation. The kernels are then computed twice.

    Yields:
      A `Scored` for every cell, in order, as soon as all of its scores are known. Exact kernels of all cells are
      computed before the first cell is yielded.

    Raises:
      InputError: A score is unknown, `cells` holds something else, or the setting lacks something that a score needs.

    Examples:
      >>> from nngp_dag.nas import Setting, sample_cells
      >>> setting = Setting(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32))
      >>> [scored] = score_cells([Cell.from_index(0)], ["parameters", "effective_depth"], setting)
      >>> dict(scored.values)
      {'parameters': 73306.0, 'effective_depth': 0.0}
    """
    for cell in cells:
        if not isinstance(cell, (Cell, Genotype)):
            raise InputError(f"Expected `cells` to be of type `Cell`, got {shown(cell)}; `Cell.parse` reads a text")
    if cells and (space := space_of_all(cells)) != setting.space:
        raise InputError(f"Expected cells of {setting.space}, got cells of {space}; set `space` of the setting")
    measures = measures_for(scores, setting)
    running = [_timed(measure, cells, wanted, setting, timed) for measure, wanted in measures.items()]
    for cell, *parts in zip(cells, *running, strict=True):
        values = {name: value for part in parts for name, value in part.values.items()}
        reasons = {name: reason for part in parts for name, reason in part.reasons.items()}
        # In the order of the request, not of the measures.
        yield Scored(
            cell, {name: values[name] for name in with_controls(scores)}, reasons, sum(part.seconds for part in parts)
        )


def _timed(
    measure: Measure, cells: Sequence[AnyCell], wanted: Sequence[Score], setting: Setting, timed: bool
) -> Iterator[Scored]:
    """Yields the scores of one measure for every cell, with the time of this measure alone, without controls."""
    cost, at_once = wanted[0].cost, setting.at_once
    own, read = [score for score in wanted if not score.control_of], [score for score in wanted if score.reads_labels]
    controls = [score for score in read if not score.control_of]
    shuffled = _measured(measure, cells, controls, setting.with_shuffled_labels()) if controls else iter(())
    # Programs are compiled before anything is timed, because one compilation serves all cells.
    if cost == "kernel" and timed:
        # The programs of kernels depend on all cells. Copies of the cells and of the setting keep the timed run from
        # finding results that are computed here.
        list(_measured(measure, list(map(copy.copy, cells)), own, replace(setting)))
    elif cost not in ("wiring", "kernel"):
        list(_measured(measure, cells[:1], own, setting))
    if cost in ("wiring", "kernel"):
        at_once = max(len(cells), 1)
    running = _measured(measure, cells, own, setting)
    before = time.perf_counter()
    while block := list(itertools.islice(running, at_once)):
        each = (time.perf_counter() - before) / len(block)
        for cell, found in block:
            if controls:
                _, control = next(shuffled)
                found = {**found, **{control_of(score.name): control[score.name] for score in controls}}
            yield _scored(cell, wanted, found, each)
        before = time.perf_counter()


def _measured(
    measure: Measure, cells: Sequence[AnyCell], wanted: Sequence[Score], setting: Setting
) -> Iterator[tuple[AnyCell, Measured]]:
    """Runs a measure; the message of an error that the measure does not catch names the score and the cell."""
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


def _scored(cell: AnyCell, wanted: Sequence[Score], found: Measured, seconds: float) -> Scored:
    values, reasons = {}, {}
    for score in wanted:
        value: Any = found[score.name]
        if isinstance(value, str) or math.isnan(value):
            reasons[score.name] = f"{score.name} of {cell}: {value if isinstance(value, str) else 'not a number'}"
            value = math.nan
        values[score.name] = float(value)
    return Scored(cell, values, reasons, seconds)


def goodness(score: Score, values: Sequence[float] | np.ndarray, cells: Sequence[AnyCell]) -> np.ndarray:
    """Returns the scores with the sign that makes higher numbers better, whatever the direction of the score.

    Degenerate cells get minus infinity, so that they never rank above others. These are the cells without a finite
    score, and those whose `status` is not "connected". Without a weighted edge, the kernel of a cell is that of its
    input, which some scores of exact kernels would rank first.

    Args:
      score: The score.
      values: Its values, (cells,).
      cells: The cells.

    Returns:
      Numbers of which the highest is the best, (cells,), float64.

    Examples:
      >>> goodness(get_score("ntk_condition"), [3.0, 2.0, np.inf], [Cell.from_index(10353)] * 3)
      array([ -3.,  -2., -inf])
    """
    numbers = np.asarray(values, np.float64)
    connected = np.array([cell.status == "connected" for cell in cells], bool)
    sign = 1.0 if score.higher_is_better else -1.0
    sound = np.isfinite(numbers) & connected
    return np.where(sound, sign * np.where(sound, numbers, 0.0), -np.inf)
