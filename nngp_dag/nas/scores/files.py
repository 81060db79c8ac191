"""Scores of cells on disk: a file for every measure, which grows by a line whenever a cell is scored."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.errors import CheckpointError
from nngp_dag.fingerprint import known_fingerprint
from nngp_dag.nas.scores.registry import SCORES, Scored, measures_of, score_cells
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.storage import ResultDirectory, Rows, claimed

if TYPE_CHECKING:
    import pandas

_SETTINGS = {"settings": {"images": list, "sha256": str, "ntk_images": int}}


class ScoreDirectory:
    """A folder of scores.

    config.json says on what cells were scored. scores-MEASURE.csv has the scores, cell by cell, with the seconds that
    they took, why some are missing, and a digest of the measure, empty where it reads what has no digest.

    Args:
      path: The folder.
      setting: Data and sizes; a folder of others is refused.

    Raises:
      CheckpointError: The folder holds scores of another setting, of other versions, or damaged ones.
      OutputError: It holds something else, cannot be written, or another process writes it.
    """

    def __init__(self, path: str | Path, setting: Setting) -> None:
        """Makes the folder, or checks the one that is there."""
        self.path, self._setting = Path(path), setting
        folder = score_folder(self.path)
        with folder.opened({"settings": settings_of(setting)}):
            folder.begin()

    def score(
        self, cells: Sequence[Cell], scores: Sequence[str], *, timed: bool = False
    ) -> Iterator[tuple[str, int, int]]:
        """Scores those cells that the folder does not have, and keeps each as soon as it is known, as `score_cells`.

        Yields:
          (measure, cells done, cells) after every cell.

        Raises:
          CheckpointError: Scores that are there are damaged, or of another version of a measure.
          OutputError: The folder cannot be written, or another process writes it.
        """
        cells = list(dict.fromkeys(cells))
        with claimed(self.path):
            for measure, wanted in measures_of(scores).items():
                # All scores of a measure, since they come at no further cost.
                names = [name for name, score in SCORES.items() if score.measure is wanted[0].measure]
                path, digest = self.path / f"scores-{measure.__name__}.csv", known_fingerprint(measure) or ""
                table = Rows(path, ["cell", *names, "seconds", "reason", "measure"])
                known = table.read()
                if any(row["measure"] != digest for row in known):
                    raise CheckpointError(
                        f"Expected scores of `{measure.__name__}` as it is now in {path}, got some of another "
                        "version of it; delete that file, or use another folder"
                    )
                done = {row["cell"] for row in known}
                left = [cell for cell in cells if str(cell) not in done]
                yield measure.__name__, len(cells) - len(left), len(cells)
                if not left:
                    continue
                # Without a last line that was cut off.
                table.write(known)
                for number, scored in enumerate(score_cells(left, names, self._setting, timed=timed), start=1):
                    table.add(_row(scored, names) | {"measure": digest})
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


def score_folder(path: Path) -> ResultDirectory:
    """Returns a folder that holds scores, or will."""
    return ResultDirectory(path, "scores", _SETTINGS)


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
    score_folder(path).read("make them with nngp-dag nas score")
    found: dict[Cell, dict[str, Any]] = {}
    for file in sorted(path.glob("scores-*.csv")):
        measure = file.stem.removeprefix("scores-")
        for row in Rows(file).read():
            record = found.setdefault(Cell.parse(row.pop("cell")), {"reason": []})
            row.pop("measure", None)
            record["reason"] += [reason] if (reason := row.pop("reason")) else []
            record[f"seconds_{measure}"] = float(row.pop("seconds"))
            record |= {name: float(value) for name, value in row.items()}
    records = []
    for cell, record in found.items():
        facts = {"cell": str(cell), "index": cell.index, "status": cell.status}
        facts |= {"effective_depth": cell.dag.effective_depth, "effective_width": cell.dag.effective_width}
        records.append(facts | record | {"reason": " / ".join(record["reason"])})
    if not records:
        raise CheckpointError(f"Expected scores of at least one cell in {path}, got none; run nngp-dag nas score")
    return pandas.DataFrame.from_records(records)


def _row(scored: Scored, names: Sequence[str]) -> dict[str, Any]:
    reason, *others = scored.reasons.values() or [""]
    if others:
        reason = f"{reason} (and {len(others)} more scores of it)"
    values = {name: float(scored.values[name]) for name in names}
    return {"cell": scored.cell, **values, "seconds": f"{scored.seconds:.6f}", "reason": reason}
