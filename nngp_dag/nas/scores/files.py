"""Scores of cells on disk: one file per measure, which gains a line with every scored cell."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag import sharing
from nngp_dag.distributed import first_does
from nngp_dag.errors import CheckpointError
from nngp_dag.fingerprint import known_fingerprint
from nngp_dag.nas.scores.registry import SCORES, Scored, measures_for, score_cells
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.any_cell import AnyCell, parse_cell
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.storage import ResultDirectory, Rows, claimed

if TYPE_CHECKING:
    import pandas

_SETTINGS = {"settings": {"space": str, "images": list, "sha256": str, "ntk_images": int}}


class ScoreDirectory:
    """A folder of scores.

    config.json holds the setting: a digest of the images, and the sizes of the networks. scores-MEASURE.csv holds one
    line per cell: its scores, the seconds that they took, the reason of missing scores, and a digest of the code of the
    measure. The digest is empty where the measure depends on objects that have none.

    Where `jax.distributed` connects several processes, all of them must make the same calls. They share the cells, and
    must all see the folder. Process 0 writes the files. Until the end of a measure, the rows of others are in files
    part-NUMBER-scores-MEASURE.csv. If a process is killed, any number of processes goes on.

    Args:
      path: The folder.
      setting: The data, and the sizes of the networks. A folder with another setting is refused.

    Raises:
      CheckpointError: The folder holds scores of another setting, of other versions, or damaged ones.
      OutputError: The folder holds something else, cannot be written, or is being written by another process.

    Examples:
      >>> import tempfile
      >>> from nngp_dag.nas import ScoreDirectory, Setting, read_scores, sample_cells
      >>> setting = Setting(np.zeros((4, 8, 8, 3), np.float32))
      >>> with tempfile.TemporaryDirectory() as path:
      ...     progress = list(ScoreDirectory(path, setting).score(sample_cells(2, seed=0), ["parameters"]))
      ...     columns = list(read_scores(path))
      >>> progress[-1], "flops" in columns  # scores of the same measure come with it
      (('paths_and_costs', 2, 2), True)
    """

    def __init__(self, path: str | Path, setting: Setting) -> None:
        """Makes the folder, or checks one that exists."""
        self.path, self._setting = Path(path), setting
        settings = settings_of(setting)
        sharing.check_equal("scores", settings)

        def begin() -> None:
            folder = score_folder(self.path)
            with folder.opened({"settings": settings}):
                folder.begin()

        first_does(begin)

    def score(
        self, cells: Sequence[AnyCell], scores: Sequence[str], *, timed: bool = False
    ) -> Iterator[tuple[str, int, int]]:
        """Scores the cells that the folder does not have yet, and stores each cell as soon as it is scored.

        Args:
          cells: The cells to score, of the space of the setting.
          scores: Names of registered scores.
          timed: Whether seconds of exact kernels leave out compilation; see `score_cells`.

        Yields:
          (name of the measure, number of scored cells, number of all cells) for every measure: before it starts, and
          after every cell. Where several processes share the cells, the number counts those of all.

        Raises:
          InputError: A score is unknown, or the setting lacks something that it needs.
          CheckpointError: The stored scores are damaged, or come from another version of a measure.
          OutputError: The folder cannot be written, or another process writes it.
          DistributedError: Another process that shares the cells failed, or ended.
        """
        cells = list(dict.fromkeys(cells))
        names_of_cells = hashlib.sha256(" ".join(map(str, cells)).encode()).hexdigest()
        sharing.check_equal("scores", {"cells": names_of_cells, "scores": list(scores)})
        with contextlib.ExitStack() as stack:
            first_does(lambda: stack.enter_context(claimed(self.path)))
            for measure, wanted in measures_for(scores, self._setting).items():
                # All scores of a measure are stored, because they come at no further cost.
                names = [name for name, score in SCORES.items() if score.measure is wanted[0].measure]
                path, digest = self.path / f"scores-{measure.__name__}.csv", known_fingerprint(measure) or ""
                table = Rows(path, ["cell", *names, "seconds", "reason", "measure"])
                known: list[dict[str, str]] = []
                first_does(lambda table=table, known=known, digest=digest: known.extend(_known(table, digest)))
                done = set(sharing.gather_json([row["cell"] for row in known])[0])
                left = [cell for cell in cells if str(cell) not in done]
                before = len(cells) - len(left)
                yield measure.__name__, before, len(cells)
                if not left:
                    continue
                # Written again, because an interruption may have cut off the last line.
                first_does(lambda table=table, known=known: table.write(known))
                counted: list[int] = [0]
                found: dict[str, dict[str, Any]] = {}
                with sharing.at_work(lambda count, counted=counted: counted.append(count)) as crew:
                    own = table if crew.process == 0 else table.part(crew.process)
                    if crew.process > 0:
                        own.write([])
                    for scored in self._scored([cell for cell in left if crew.takes_next()], names, timed):
                        row = _row(scored, names) | {"measure": digest}
                        own.add(row)
                        found[row["cell"]] = row
                        crew.finished()
                        yield measure.__name__, before + counted[-1], len(cells)
                if crew.processes > 1:
                    found = {name: row for part in sharing.gather_json(found) for name, row in part.items()}
                    rows = [*known, *(found[str(cell)] for cell in left)]
                    first_does(lambda table=table, rows=rows: _merge(table, rows))
                    yield measure.__name__, len(cells), len(cells)

    def _scored(self, cells: Sequence[AnyCell], names: Sequence[str], timed: bool) -> Iterator[Scored]:
        return score_cells(cells, names, self._setting, timed=timed) if cells else iter(())


def _known(table: Rows, digest: str) -> list[dict[str, str]]:
    """Returns the rows of a measure that are on disk, after those of several processes are in one file."""
    found = table.read_with_parts()
    if any(row["measure"] != digest for row in found):
        raise CheckpointError(
            f"Expected scores of `{table.path.stem.removeprefix('scores-')}` as it is now in {table.path}, got some of "
            "another version of it; delete that file, or use another folder"
        )
    if table.has_parts():
        _merge(table, found)
    return found


def _merge(table: Rows, rows: Sequence[Mapping[str, Any]]) -> None:
    table.write(rows)
    table.remove_parts()


def settings_of(setting: Setting) -> dict[str, Any]:
    """Returns everything besides its cell on which a score depends."""
    labels = b"" if setting.labels is None else np.ascontiguousarray(setting.labels, np.int64).tobytes()
    return {
        "space": setting.space,
        "images": list(setting.images.shape),
        "sha256": hashlib.sha256(np.ascontiguousarray(setting.images).tobytes() + labels).hexdigest(),
        "channels": setting.channels,
        "cells": setting.cells,
        "classes": setting.classes,
        "seed": setting.seed,
        "ntk_images": setting.ntk_images,
    }


def score_folder(path: Path) -> ResultDirectory:
    """Returns the result directory of scores, which may be new."""
    return ResultDirectory(path, "scores", _SETTINGS)


def read_scores(path: str | Path) -> "pandas.DataFrame":
    """Reads a folder of scores; see `ScoreDirectory` for an example.

    Args:
      path: The folder.

    Returns:
      One row per cell. The first columns are `cell` (its text), `index` (its number in NAS-Bench-201) and `status`.
      Then come `effective_depth` and `effective_width` of the wiring. Each score has a column, and each measure a
      column `seconds_MEASURE`. The column `reason` says why scores are missing. A score is NaN where it failed. Scores
      and seconds are NaN for cells that a measure has not scored.

    Raises:
      CheckpointError: The folder holds no scores, or damaged ones.
    """
    import pandas

    path = Path(path)
    score_folder(path).read("make them with nngp-dag nas score")
    found: dict[AnyCell, dict[str, Any]] = {}
    for file in sorted(path.glob("scores-*.csv")):
        measure = file.stem.removeprefix("scores-")
        for row in Rows(file).read():
            record = found.setdefault(parse_cell(row.pop("cell")), {"reason": []})
            row.pop("measure", None)
            record["reason"] += [reason] if (reason := row.pop("reason")) else []
            record[f"seconds_{measure}"] = float(row.pop("seconds"))
            record |= {name: float(value) for name, value in row.items()}
    records = []
    for cell, record in found.items():
        facts: dict[str, Any] = {"cell": str(cell)}
        facts |= {"index": cell.index} if isinstance(cell, Cell) else {}
        facts |= {"status": cell.status}
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
    return {"cell": str(scored.cell), **values, "seconds": f"{scored.seconds:.6f}", "reason": reason}
