"""A comparison on disk: each DAG that is finished as soon as it is, and the files at the end."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.report.plots import plot_compare
from nngp_dag.storage import as_output_error, is_occupied, output_directory, output_file
from nngp_dag.theory import Bracket, LossCurve, PathBound, Spectrum

if TYPE_CHECKING:
    from nngp_dag.report.compare import Comparison

_JOURNAL = "unfinished"
_SETTINGS = "settings.json"


class CompareDirectory:
    """The folder of a comparison.

    Until all DAGs are done it holds a folder `unfinished`, with settings.json, which says what is compared, and a JSON
    file for each DAG that is finished. Then compare.json, curves.csv and compare.png take its place.

    Args:
      path: The folder.
      names: What the DAGs are called.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """Touches nothing."""
        self.path, self._names = path, list(names)
        self._journal = path / _JOURNAL
        with as_output_error(path):
            self._made = [folder for folder in (path, *path.parents) if not folder.exists()]

    def prepare(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> dict[str, dict[str, Any]]:
        """Begins a comparison, or reads the one to resume.

        Args:
          settings: Everything that the result depends on, as JSON.
          resume: Whether to go on.
          overwrite: Whether what is there may be replaced.

        Returns:
          {name: fields of its `Comparison`} of the DAGs that are finished.

        Raises:
          OutputError: The folder is not free, or cannot be written.
          CheckpointError: There is nothing to resume, or it is damaged, or another comparison.
        """
        if resume:
            return self._read(json.loads(json.dumps(settings)))
        with as_output_error(self.path):
            if is_occupied(self.path) and not overwrite:
                remedy = "pass --resume to go on with it, --overwrite" if self._journal.is_dir() else "pass --overwrite"
                raise OutputError(
                    f"Expected the output directory {self.path} to be new or empty, got an existing one; {remedy} to "
                    "replace it, or choose another --out"
                )
            if self._journal.is_dir():
                shutil.rmtree(self._journal)
        self._write(_SETTINGS, settings)
        return {}

    def add(self, result: "Comparison") -> None:
        """Keeps a DAG that is finished."""
        names = [field.name for field in dataclasses.fields(result) if field.name != "dag"]
        text = json.dumps({name: getattr(result, name) for name in names}, default=_as_json)
        self._write(self._file(result.name), {"result": json.loads(text), "sha256": _digest(text)})

    def finish(self, results: Sequence["Comparison"], config: Mapping[str, Any], title: str) -> None:
        """Writes compare.json, curves.csv and compare.png."""
        with output_directory(self.path, overwrite=True) as staging:
            write_json(staging / "compare.json", results, config)
            write_curves(staging / "curves.csv", results)
            plot_compare(results, staging / "compare.png", title)
        with as_output_error(self._journal):
            shutil.rmtree(self._journal)

    def discard(self) -> None:
        """Removes what was begun."""
        with as_output_error(self.path):
            shutil.rmtree(self._journal)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _file(self, name: str) -> str:
        return f"{self._names.index(name)}.json"

    def _write(self, file: str, content: Mapping[str, Any]) -> None:
        with output_file(self._journal / file) as path:
            path.write_text(json.dumps(content, indent=2) + "\n")

    def _read(self, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        before = self._load(self._journal / _SETTINGS, "an unfinished comparison; leave out --resume to start one")
        for name, value in settings.items():
            if before.get(name) != value:
                raise CheckpointError(
                    f"Expected the comparison in {self.path} to have {name} {_short(value)}, got "
                    f"{_short(before.get(name))}; resume with that, or choose another --out"
                )
        found = {}
        for name in self._names:
            file = self._journal / self._file(name)
            if file.exists():
                content = self._load(file, "a finished DAG; delete it, so that it is compared again")
                if content.get("sha256") != _digest(json.dumps(content.get("result"))):
                    raise CheckpointError(
                        f"Expected {file} to hold what was written there, got something else; delete it, so that its "
                        "DAG is compared again"
                    )
                found[name] = _restored(content["result"])
        return found

    def _load(self, file: Path, what: str) -> dict[str, Any]:
        try:
            found = json.loads(file.read_text())
            if not isinstance(found, dict):
                raise ValueError("something else")
        except (OSError, ValueError, RecursionError) as error:
            reason = "none" if isinstance(error, FileNotFoundError) else str(error)
            expected, _, remedy = what.partition("; ")
            raise CheckpointError(f"Expected {file} to hold {expected}, got {reason}; {remedy}") from None
        return found


def finished_in(path: Path) -> int:
    """Returns how many DAGs of an unfinished comparison are finished."""
    return sum(file.name != _SETTINGS for file in (path / _JOURNAL).glob("*.json"))


def write_json(path: Path, results: Sequence["Comparison"], config: Mapping[str, Any]) -> None:
    """Writes {"config": ..., "rows": [...]}."""
    rows = [result.as_row() for result in results]
    path.write_text(json.dumps({"config": dict(config), "rows": rows}, indent=2, allow_nan=False) + "\n")


def write_curves(path: Path, results: Sequence["Comparison"]) -> None:
    """Writes the curves as CSV: dag, step, bound, expected, empirical_mean, empirical_std, expected_std."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dag", "step", "bound", "expected", "empirical_mean", "empirical_std", "expected_std"])
        for result in results:
            expected = result.expected
            columns = zip(result.bound, expected.mean, result.mean, result.std, expected.std, strict=True)
            for step, values in enumerate(columns):
                writer.writerow([str(result.dag), step, *(f"{value:.9g}" for value in values)])


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else dataclasses.asdict(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else text[:297] + "..."


def _restored(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a comparison as they were."""
    spectra = {name: Spectrum(**fields[name]) for name in ("nngp", "ntk")}
    brackets = {name: Bracket(**fields[name]) for name in ("nngp_bracket", "ntk_bracket")}
    bounds = {}
    for name in ("path_bound", "ntk_path_bound"):
        found = fields[name]
        bounds[name] = found and PathBound(found["value"], tuple(found["violated_assumptions"]))
    curve: dict[str, Any] = {}
    for name, value in fields["expected"].items():
        curve[name] = np.asarray(value) if isinstance(value, list) else value
    arrays = {name: np.asarray(fields[name]) for name in ("bound", "curves")}
    return {**fields, **spectra, **brackets, **bounds, **arrays, "expected": LossCurve(**curve)}
