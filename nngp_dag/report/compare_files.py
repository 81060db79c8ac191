"""A comparison on disk: each DAG that is finished as soon as it is, and the files at the end."""

import contextlib
import csv
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.report.plots import plot_compare
from nngp_dag.storage import as_output_error, claimed, is_occupied, output_directory, output_file, read_json
from nngp_dag.theory import Bracket, LossCurve, PathBound, Spectrum

if TYPE_CHECKING:
    from nngp_dag.report.comparison import Comparison

_JOURNAL = "unfinished"
_SETTINGS = "settings.json"

_SETTINGS_SHAPE = {"dags": dict, "seeds": [int], "steps": int, "sha256": dict}
_RESULTS_SHAPE = {"config": dict, "rows": [{"dag": str, "bound_rate": float}]}
_SPECTRUM = {
    "lambda_min": float,
    "lambda_max": float,
    "floor": float,
    "residual_min": float,
    "residual_max": float,
    "trace": float,
    "effective_rank": float,
}
_BRACKET = {"lower": float, "upper": float}
_PATH_BOUND = {"value": float, "violated_assumptions": [str]}
_CURVE = {"steps": [int], "mean": [float], "std": [float], "learning_rate": float, "stable_learning_rate": float}
_DAG_SHAPE = {
    "result": {
        "name": str,
        "dag": str,
        "nngp": _SPECTRUM,
        "ntk": _SPECTRUM,
        "nngp_bracket": _BRACKET,
        "ntk_bracket": _BRACKET,
        "path_bound?": _PATH_BOUND,
        "ntk_path_bound?": _PATH_BOUND,
        "learning_rate": float,
        "conditions_met": bool,
        "bound": [float],
        "expected": _CURVE,
        "curves": [[float]],
    },
    "sha256": str,
}


class CompareDirectory:
    """The folder of a comparison.

    Until all DAGs are done it holds a folder `unfinished`, with settings.json, which says what is compared, and a JSON
    file for each DAG that is finished. Then compare.json, curves.csv and compare.png take its place.

    Args:
      path: The folder.
      dags: {name: text} of the DAGs, in their order.
    """

    def __init__(self, path: Path, dags: Mapping[str, str]) -> None:
        """Touches nothing."""
        self.path, self._dags = path, dict(dags)
        self._journal = path / _JOURNAL
        with as_output_error(path):
            self._made = [folder for folder in (path, *path.parents) if not folder.exists()]

    def prepare(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> dict[str, dict[str, Any]]:
        """Begins a comparison, or reads the one to resume.

        Args:
          settings: Everything that the result depends on, as JSON.
          resume: Whether to go on.
          overwrite: Whether a comparison that is there may be replaced.

        Returns:
          {name: fields of its `Comparison`} of the DAGs that are finished.

        Raises:
          OutputError: The folder is not free, or cannot be written.
          CheckpointError: There is nothing to resume, or it is damaged, or another comparison.
        """
        if resume:
            return self._read(json.loads(json.dumps(settings)))
        if is_occupied(self.path):
            if not overwrite:
                remedy = "pass --resume to go on with it, --overwrite" if self._is_unfinished() else "pass --overwrite"
                raise OutputError(
                    f"Expected the output directory {self.path} to be new or empty, got an existing one; {remedy} to "
                    "replace it, or choose another --out"
                )
            self._check_is_comparison()
            self._remove_journal()
        self._write(_SETTINGS, settings)
        return {}

    def add(self, result: "Comparison") -> None:
        """Keeps a DAG that is finished."""
        names = [field.name for field in dataclasses.fields(result) if field.name != "network"]
        fields = {name: getattr(result, name) for name in names}
        # What is None is left out.
        kept = {name: value for name, value in {**fields, "dag": str(result.dag)}.items() if value is not None}
        text = json.dumps(kept, default=_as_json)
        self._write(self._file(result.name), {"result": json.loads(text), "sha256": _digest(text)})

    def finish(self, results: Sequence["Comparison"], config: Mapping[str, Any], title: str) -> None:
        """Writes compare.json, curves.csv and compare.png."""
        with output_directory(self.path, overwrite=True) as staging:
            write_json(staging / "compare.json", results, config)
            write_curves(staging / "curves.csv", results)
            plot_compare(results, staging / "compare.png", title)
        self._remove_journal()

    def discard(self) -> None:
        """Removes what was begun."""
        self._remove_journal()
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _file(self, name: str) -> str:
        return f"{[*self._dags].index(name)}.json"

    def _write(self, file: str, content: Mapping[str, Any]) -> None:
        with output_file(self._journal / file) as path:
            path.write_text(json.dumps(content, indent=2) + "\n")

    def _remove_journal(self) -> None:
        """Removes the files that are written here from `unfinished`, and the folder where nothing else is in it."""
        if not self._journal.is_dir():
            return
        with claimed(self._journal), as_output_error(self._journal):
            for file in self._journal.glob("*.json"):
                if file.name == _SETTINGS or file.stem.isdecimal():
                    file.unlink()
        with contextlib.suppress(OSError):
            self._journal.rmdir()

    def _read_settings(self) -> dict[str, Any]:
        return read_json(
            self._journal / _SETTINGS,
            _SETTINGS_SHAPE,
            "an unfinished comparison",
            "leave out --resume to start one",
        )

    def _is_unfinished(self) -> bool:
        with contextlib.suppress(CheckpointError):
            self._read_settings()
            return True
        return False

    def _check_is_comparison(self) -> None:
        """Raises an `OutputError` where the folder, or `unfinished` in it, holds something else."""
        if self._is_unfinished():
            return
        if is_occupied(self._journal):
            raise OutputError(
                f"Expected {self._journal} to hold an unfinished comparison to replace, got other files; move them "
                "away, or choose another --out"
            )
        try:
            read_json(self.path / "compare.json", _RESULTS_SHAPE, "a comparison", "")
        except CheckpointError:
            raise OutputError(
                f"Expected the output directory {self.path} to hold a comparison to replace, got other files; choose "
                "another --out"
            ) from None

    def _read(self, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        before = self._read_settings()
        for name, value in settings.items():
            then = before.get(name)
            # As text, since the order of the DAGs counts.
            if json.dumps(then) != json.dumps(value):
                if name == "networks":
                    name, value, then = _first_difference(value, then)
                raise CheckpointError(
                    f"Expected the comparison in {self.path} to have {name} {_short(value)}, got {_short(then)}; "
                    "resume with that, or choose another --out"
                )
        found = {}
        for name, dag in self._dags.items():
            file = self._journal / self._file(name)
            if file.exists():
                remedy = "delete it, so that its DAG is compared again"
                content = read_json(file, _DAG_SHAPE, "a finished DAG", remedy)
                result = content["result"]
                if content["sha256"] != _digest(json.dumps(result)):
                    raise CheckpointError(
                        f"Expected {file} to hold what was written there, got something else; {remedy}"
                    )
                if [result["name"], result["dag"]] != [name, dag]:
                    raise CheckpointError(
                        f"Expected {file} to describe {_short(name)}, {_short(dag)}, got {_short(result['name'])}, "
                        f"{_short(result['dag'])}; {remedy}"
                    )
                curves, expected = result["curves"], result["expected"]
                lengths = {len(curve) for curve in (result["bound"], expected["mean"], expected["std"], *curves)}
                if len(curves) != len(settings["seeds"]) or lengths != {settings["steps"] + 1}:
                    raise CheckpointError(
                        f"Expected {file} to hold {len(settings['seeds'])} curves of {settings['steps']} steps, got "
                        f"others; {remedy}"
                    )
                found[name] = _restored(result)
        return found


def finished_in(path: Path) -> int:
    """Returns how many DAGs of an unfinished comparison are finished."""
    return sum(file.name != _SETTINGS for file in (path / _JOURNAL).glob("*.json"))


def write_json(path: Path, results: Sequence["Comparison"], config: Mapping[str, Any]) -> None:
    """Writes {"config": ..., "rows": [...]}."""
    rows = [result.as_row() for result in results]
    path.write_text(json.dumps({"config": dict(config), "rows": rows}, indent=2, allow_nan=False) + "\n")


def write_curves(path: Path, results: Sequence["Comparison"]) -> None:
    """Writes the curves as CSV: name, dag, step, bound, expected, empirical_mean, empirical_std, expected_std."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "dag", "step", "bound", "expected", "empirical_mean", "empirical_std", "expected_std"])
        for result in results:
            expected = result.expected
            columns = zip(result.bound, expected.mean, result.mean, result.std, expected.std, strict=True)
            for step, values in enumerate(columns):
                writer.writerow([result.name, str(result.dag), step, *(f"{value:.9g}" for value in values)])


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else dataclasses.asdict(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else text[:297] + "..."


def _first_difference(networks: Mapping[str, Any], before: Any) -> tuple[str, Any, Any]:
    """Returns the first field in which descriptions of networks of equal names differ, and its values now and then."""
    found = before if isinstance(before, dict) else {}
    for name, fields in networks.items():
        then = found.get(name)
        if isinstance(then, dict):
            for field, value in fields.items():
                if then.get(field) != value:
                    return field, value, then.get(field)
    return "networks", networks, before


def _restored(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a comparison as they were, but for the DAG."""
    spectra = {name: Spectrum(**{key: fields[name][key] for key in _SPECTRUM}) for name in ("nngp", "ntk")}
    brackets = {
        name: Bracket(**{key: fields[name][key] for key in _BRACKET}) for name in ("nngp_bracket", "ntk_bracket")
    }
    bounds = {}
    for name in ("path_bound", "ntk_path_bound"):
        found = fields.get(name)
        bounds[name] = found and PathBound(found["value"], tuple(found["violated_assumptions"]))
    curve: dict[str, Any] = {"test_mean": None, "test_std": None}
    for name in _CURVE:
        value = fields["expected"][name]
        curve[name] = np.asarray(value, int if name == "steps" else float) if isinstance(value, list) else value
    arrays = {name: np.asarray(fields[name], float) for name in ("bound", "curves")}
    plain = {name: fields[name] for name in ("name", "learning_rate", "conditions_met")}
    return {**plain, **spectra, **brackets, **bounds, **arrays, "expected": LossCurve(**curve)}
