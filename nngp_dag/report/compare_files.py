"""A comparison on disk: every network as soon as it is finished, and the files at the end."""

import contextlib
import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.report.plots import plot_compare
from nngp_dag.storage import (
    ResultDirectory,
    claimed,
    difference,
    is_occupied,
    output_directory,
    read_json,
    read_sealed,
    write_sealed,
)
from nngp_dag.theory import Bracket, LossCurve, PathBound, Spectrum
from nngp_dag.width import WidthEffects

if TYPE_CHECKING:
    from nngp_dag.report.comparison import Comparison

_JOURNAL = "dags"
_SETTINGS = "settings.json"

_SETTINGS_SHAPE = {"settings": {"dags": dict, "seeds": [int], "steps": int, "sha256": dict}}
_RESULTS_SHAPE = {"config": dict, "rows": [{"dag": str, "bound_rate": float}]}
# Parts of a comparison that are dataclasses, with the shapes of their JSON.
_SPECTRUM = {field.name: float for field in dataclasses.fields(Spectrum) if field.default is not None}
_BRACKET = {"lower": float, "upper": float}
_PATH_BOUND = {"value": float, "violated_assumptions": [str]}
_CURVE = {"steps": [int], "mean": [float], "std": [float], "learning_rate": float, "stable_learning_rate": float}
_EFFECTS = {
    **dict.fromkeys(("width", "drawn"), int),
    **dict.fromkeys(("learning_rate", "seconds"), float),
    **dict.fromkeys(("trained", "left_out"), dict),
    "fit_widths": [int],
    **{name: [[float]] for name in ("fit_bias", "fit_low", "fit_high")},
    "trusted": [bool],
    **{name: [float] for name in ("infinite", "infinite_std", "mean", "low", "high", "std", "frozen", "frozen_error")},
    **{name: [float] for name in ("motion", "motion_error", "exponent")},
}


def _effects(trained: dict[str, int], left_out: dict[str, int], **fields: Any) -> WidthEffects:
    """Returns the prediction at a width; keys of JSON are texts."""
    counts = {name: {int(w): n for w, n in of.items()} for name, of in (("trained", trained), ("left_out", left_out))}
    return WidthEffects(**counts, **fields)


_PARTS: dict[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "nngp": (Spectrum, _SPECTRUM),
    "ntk": (Spectrum, _SPECTRUM),
    "nngp_bracket": (Bracket, _BRACKET),
    "ntk_bracket": (Bracket, _BRACKET),
    "path_bound?": (PathBound, _PATH_BOUND),
    "ntk_path_bound?": (PathBound, _PATH_BOUND),
    "expected": (LossCurve, _CURVE),
    "width_effects?": (_effects, _EFFECTS),
}
_NUMBERS = {
    "name": str,
    "learning_rate": float,
    "conditions_met": bool,
    "unpredicted": str,
    "bound": [float],
    "curves": [[float]],
}
_DAG_SHAPE = {
    **_NUMBERS,
    "dag": str,
    "readout_noise?": [[float]],
    **{name: shape for name, (_, shape) in _PARTS.items()},
}


class CompareDirectory:
    """The folder of a comparison.

    Its folder `dags` holds the settings of the comparison in settings.json, and a JSON file for each finished network.
    When all are finished, compare.json, curves.csv and compare.png are written beside it.

    Args:
      path: Path of the folder.
      dags: Texts of the graphs by the networks' names, in order; empty for models without one.
    """

    def __init__(self, path: Path, dags: Mapping[str, str]) -> None:
        """Stores the arguments; reads and writes no file."""
        self.path, self._dags = path, dict(dags)
        self._journal = ResultDirectory(path / _JOURNAL, "a comparison", _SETTINGS_SHAPE, ["[0-9]*.json"], _SETTINGS)

    @contextlib.contextmanager
    def opened(
        self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> Iterator[dict[str, dict[str, Any]]]:
        """Yields the fields of the finished `Comparison`s by name; `finish` must be called inside the block.

        Args:
          settings: All settings on which the result depends, as JSON.
          resume: Whether to resume.
          overwrite: Whether to replace an existing comparison.

        Raises:
          OutputError: The folder is not free, or cannot be written.
          CheckpointError: There is nothing to resume, or it is damaged or another comparison.
        """
        with claimed(self.path):
            others = is_occupied(self.path) and any(self._is_other(file) for file in self.path.iterdir())
            if others and not is_occupied(self._journal.path) and not resume:
                self._check_may_be_replaced(overwrite)
            # The order of names is part of the settings, since files are numbered by it.
            document = {"settings": {**settings, "names": [*self._dags]}}
            with self._journal.opened(document, resume=resume, overwrite=overwrite):
                found = self._found(settings)
                self._journal.begin()
                yield found

    def add(self, result: "Comparison") -> None:
        """Writes a finished network."""
        self._journal.begun = True
        names = [field.name for field in dataclasses.fields(result) if field.name != "network"]
        fields = {name: getattr(result, name) for name in names}
        # Entries that are None are left out.
        kept = {name: value for name, value in {**fields, "dag": result.code}.items() if value is not None}
        write_sealed(self._file(result.name), "result", json.loads(json.dumps(kept, default=_as_json)))

    def finish(self, results: Sequence["Comparison"], config: Mapping[str, Any], title: str) -> None:
        """Writes compare.json, curves.csv and compare.png."""
        with output_directory(self.path, overwrite=True) as staging:
            write_json(staging / "compare.json", results, config)
            write_curves(staging / "curves.csv", results)
            plot_compare(results, staging / "compare.png", title)

    def _is_other(self, file: Path) -> bool:
        return file != self._journal.path and not file.name.startswith(".")

    def _file(self, name: str) -> Path:
        return self._journal.path / f"{[*self._dags].index(name)}.json"

    def _check_may_be_replaced(self, overwrite: bool) -> None:
        """Raises an `OutputError` if the folder holds other files than a comparison, or may not be replaced."""
        wanted, remedy = "be new or empty, got an existing one", "pass `overwrite=True` to replace it, or choose"
        if overwrite:
            with contextlib.suppress(CheckpointError):
                read_json(self.path / "compare.json", _RESULTS_SHAPE, "a comparison", "")
                return
            wanted, remedy = "hold a comparison to replace, got other files", "choose"
        raise OutputError(f"Expected the output directory {self.path} to {wanted}; {remedy} another `out`")

    def _found(self, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Reads the finished networks."""
        found, remedy = {}, "delete it, so that its DAG is compared again"
        for name, dag in self._dags.items():
            file = self._file(name)
            if not file.exists():
                continue
            result = read_sealed(file, "result", _DAG_SHAPE, "a finished DAG", remedy)
            curves, expected = result["curves"], result["expected"]
            lengths = {len(curve) for curve in (result["bound"], expected["mean"], expected["std"], *curves)}
            holds = {"name": result["name"], "dag": result["dag"], "curves": len(curves), "points": sorted(lengths)}
            wanted = {"name": name, "dag": dag, "curves": len(settings["seeds"]), "points": [settings["steps"] + 1]}
            if wrong := difference(holds, wanted):
                raise CheckpointError(f"Expected {file} to describe {name}, got something else: {wrong}; {remedy}")
            found[name] = _restored(result)
        return found


def finished_in(path: Path) -> int:
    """Returns the number of finished networks of a comparison."""
    return sum(file.name != _SETTINGS for file in (path / _JOURNAL).glob("*.json"))


def write_json(path: Path, results: Sequence["Comparison"], config: Mapping[str, Any]) -> None:
    """Writes {"config": ..., "rows": [...]}."""
    rows = [result.as_row() for result in results]
    path.write_text(json.dumps({"config": dict(config), "rows": rows}, indent=2, allow_nan=False) + "\n")


def write_curves(path: Path, results: Sequence["Comparison"]) -> None:
    """Writes the curves as CSV: name, dag, step, and the columns of `Comparison.curve_columns`; empty for NaN."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "dag", "step", *results[0].curve_columns()])
        for result in results:
            for step, values in enumerate(zip(*result.curve_columns().values(), strict=True)):
                numbers = ("" if np.isnan(value) else f"{value:.9g}" for value in values)
                writer.writerow([result.name, result.code, step, *numbers])


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else dataclasses.asdict(value)


def _restored(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a comparison from their JSON, without the network."""
    found = {name: _array(fields[name]) for name in _NUMBERS}
    for entry, (kind, _) in _PARTS.items():
        part = fields.get(name := entry.removesuffix("?"))
        found[name] = part and kind(**{key: _array(value) for key, value in part.items()})
    noise = fields.get("readout_noise")
    found["readout_noise"] = None if noise is None else np.asarray(noise)
    return found


def _array(value: Any) -> Any:
    """Returns lists of numbers as arrays, and lists of texts or empty lists as tuples."""
    if not isinstance(value, list):
        return value
    return np.asarray(value) if value and not isinstance(value[0], str) else tuple(value)
