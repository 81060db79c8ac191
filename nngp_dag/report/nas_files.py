"""Scores of cells on disk: a file for every measure, which grows by a line whenever a cell is scored."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.nas import SCORES, Cell, Scored, Setting, score_cells
from nngp_dag.nas.scores import measures_of
from nngp_dag.storage import as_output_error, environment, output_file

if TYPE_CHECKING:
    import pandas


class ScoreDirectory:
    """A folder of scores.

    config.json says on what cells were scored; scores-MEASURE.csv what came out, cell by cell, with the seconds it took
    and why scores are missing.

    Args:
      path: The folder.
      setting: Data and sizes; a folder of others is refused.

    Raises:
      CheckpointError: The folder holds scores of another setting.
      OutputError: It holds something else, or cannot be written.
    """

    def __init__(self, path: str | Path, setting: Setting) -> None:
        """Makes the folder, or checks the one that is there."""
        self.path, self._setting = Path(path), setting
        config, settings = self.path / "config.json", settings_of(setting)
        if config.exists():
            before = read_settings(self.path)
            for name, value in settings.items():
                if before.get(name) != value:
                    raise CheckpointError(
                        f"Expected the scores in {self.path} to have {name} {value}, got {before.get(name)}; use that, "
                        "or choose another --out"
                    )
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputError(f"Expected {self.path} to be new or hold scores, got other files; choose another --out")
        with output_file(config) as file:
            file.write_text(json.dumps({"settings": settings, "environment": environment()}, indent=2) + "\n")

    def score(self, cells: Sequence[Cell], scores: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        """Scores those cells that the folder does not have, and keeps each as soon as it is known.

        Yields:
          (measure, cells done, cells) after every cell.
        """
        cells = list(dict.fromkeys(cells))
        for measure, wanted in measures_of(scores).items():
            # All scores of a measure, since they come at no further cost.
            names = [name for name, score in SCORES.items() if score.measure is wanted[0].measure]
            path = self.path / f"scores-{measure.__name__}.csv"
            done = {row["cell"] for row in _rows(path)}
            left = [cell for cell in cells if str(cell) not in done]
            yield measure.__name__, len(cells) - len(left), len(cells)
            if not left:
                continue
            _without_cut_off_line(path, ["cell", *names, "seconds", "reason"])
            with as_output_error(path), path.open("a", newline="") as file:
                writer = csv.writer(file)
                for number, scored in enumerate(score_cells(left, names, self._setting), start=1):
                    writer.writerow(_line(scored, names))
                    file.flush()
                    os.fsync(file.fileno())
                    yield measure.__name__, len(cells) - len(left) + number, len(cells)


def settings_of(setting: Setting) -> dict[str, Any]:
    """Returns everything on which a score depends beside its cell."""
    labels = b"" if setting.labels is None else np.ascontiguousarray(setting.labels, np.int64).tobytes()
    return {
        "images": list(setting.images.shape),
        "sha256": hashlib.sha256(np.ascontiguousarray(setting.images).tobytes() + labels).hexdigest(),
        "channels": setting.channels,
        "cells": setting.cells,
        "classes": setting.classes,
        "seed": setting.seed,
        "ntk_images": setting.ntk_images,
    }


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the setting of a folder of scores.

    Raises:
      CheckpointError: It is none.
    """
    try:
        found = json.loads((path / "config.json").read_text())["settings"]
        if "ntk_images" not in found:
            raise ValueError("a configuration of something else")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "none" if isinstance(error, FileNotFoundError) else str(error)
        raise CheckpointError(
            f"Expected {path / 'config.json'} to describe scores, got {reason}; make them with nngp-dag nas score"
        ) from error


def read_scores(path: str | Path) -> "pandas.DataFrame":
    """Reads a folder of scores.

    Returns:
      A row for each cell: `cell`, its text; `index`, its number; `status`; `effective_depth` and `effective_width` of
      the wiring; for each score its value, NaN where it failed; `seconds_MEASURE`; `reason`, why scores are missing.
      What a measure has not seen is NaN, its seconds too.

    Raises:
      CheckpointError: The folder holds no scores, or damaged ones.
    """
    import pandas

    path = Path(path)
    read_settings(path)
    files = sorted(path.glob("scores-*.csv"))
    found: dict[Cell, dict[str, Any]] = {}
    for file in files:
        measure = file.stem.removeprefix("scores-")
        for row in _rows(file):
            try:
                record = found.setdefault(Cell.parse(row.pop("cell")), {"reason": []})
                record["reason"] += [reason] if (reason := row.pop("reason")) else []
                record[f"seconds_{measure}"] = float(row.pop("seconds"))
                record |= {name: float(value) for name, value in row.items()}
            except ValueError as error:
                raise _damaged(file, error) from None
    records = []
    for cell, record in found.items():
        facts = {"cell": str(cell), "index": cell.index, "status": cell.status}
        facts |= {"effective_depth": cell.dag.effective_depth, "effective_width": cell.dag.effective_width}
        records.append(facts | record | {"reason": " / ".join(record["reason"])})
    if not records:
        raise CheckpointError(f"Expected scores of at least one cell in {path}, got none; run nngp-dag nas score")
    return pandas.DataFrame.from_records(records)


def _line(scored: Scored, names: Sequence[str]) -> list[str]:
    reason, *others = scored.reasons.values() or [""]
    if others:
        reason = f"{reason} (and {len(others)} more scores of it)"
    return [str(scored.cell), *(repr(float(scored.values[name])) for name in names), f"{scored.seconds:.6f}", reason]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    # Without a last line that was cut off.
    try:
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows: list[Mapping[str, Any]] = list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, error) from None
    if rows and not {"cell", "seconds", "reason"} <= rows[0].keys():
        raise _damaged(path, "another first line")
    return [dict(row) for row in rows if None not in row and None not in row.values()]


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"Expected {path} to hold scores, got {reason}; mend or delete it")


def _without_cut_off_line(path: Path, fields: Sequence[str]) -> None:
    rows = _rows(path)
    if rows and list(rows[0]) != list(fields):
        raise _damaged(path, f"columns {', '.join(rows[0])}, not {', '.join(fields)}")
    with output_file(path, overwrite=True) as file, file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        writer.writerows(rows)
