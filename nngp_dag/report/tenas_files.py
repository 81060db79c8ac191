"""A search by pruning on disk: its configuration, where it stands after every round, its log and its result."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.nas import Cell, Genotype, SearchSpace
from nngp_dag.nas.pruning import State
from nngp_dag.storage import environment, output_file


class SearchDirectory:
    """A folder of one search.

    config.json says what is searched and how; state.json where the search stands; log.csv what became of every
    operation in every round; result.json what was found, and cell.txt or genotype.json the cell alone, for `nas train`.
    Each is written under a temporary name and renamed, the state last, so that a search that was cut off goes on after
    the last whole round.

    Args:
      path: The folder.
      space: The space.
      config: All that the result depends on, as JSON; a folder of another search is refused.

    Raises:
      CheckpointError: The folder holds another search.
      OutputError: It holds something else, or cannot be written.
    """

    def __init__(self, path: str | Path, space: SearchSpace, config: dict[str, Any]) -> None:
        """Makes the folder, or checks the one that is there."""
        self.path, self._space = Path(path), space
        # As JSON has it: tuples are lists.
        config = json.loads(json.dumps({"space": space.name, **config}))
        file = self.path / "config.json"
        if file.exists():
            before = self._read("config.json").get("search")
            if not isinstance(before, dict):
                raise CheckpointError(f"Expected {file} to describe a search, got something else; choose another --out")
            for name in sorted({*before, *config}):
                if before.get(name) != config.get(name):
                    raise CheckpointError(
                        f"Expected the search in {self.path} to have {name} {config.get(name)}, got {before.get(name)};"
                        " use that, or choose another --out"
                    )
            return
        # Hidden files are what a killed process may leave.
        if self.path.exists() and not (
            self.path.is_dir() and all(file.name.startswith(".") for file in self.path.iterdir())
        ):
            raise OutputError(f"Expected {self.path} to be new or hold a search, got other files; choose another --out")
        self._write("config.json", {"search": config, "environment": environment()})

    def state(self) -> State | None:
        """Returns where the search stands; None before the first round.

        Raises:
          CheckpointError: The file is damaged.
        """
        file = self.path / "state.json"
        return State.from_json(file.read_text(), self._space) if file.exists() else None

    def save(self, state: State, accuracy: float | None = None) -> None:
        """Writes the log, once there is one the result and its cell, and the state.

        Args:
          state: After a round.
          accuracy: Of the cell that is found, in per cent, if some table knows it; NaN counts as None.
        """
        self._write_log(state)
        if state.finished:
            cell = self._space.cell_of(state.mask)
            self._write("result.json", self._result(state, cell, accuracy))
            if isinstance(cell, Genotype):
                self._write("genotype.json", json.loads(cell.to_json()))
            else:
                with output_file(self.path / "cell.txt", overwrite=True) as file:
                    file.write_text(f"{cell}\n")
        with output_file(self.path / "state.json", overwrite=True) as file:
            file.write_text(state.to_json() + "\n")

    def _result(self, state: State, cell: Cell | Genotype, accuracy: float | None) -> dict[str, Any]:
        depth_and_width = self._space.expected_depth_and_width(state.mask).tolist()
        return {
            "cell": str(cell),
            "genotype": json.loads(cell.to_json()) if isinstance(cell, Genotype) else None,
            "effective_depth_width": dict(zip(self._space.cell_types, depth_and_width, strict=True)),
            "accuracy": None if accuracy is None or math.isnan(accuracy) else accuracy,
            "rounds": state.round - 1,
            "evaluated": state.evaluated,
            "skipped": state.skipped,
            "seconds": state.seconds,
            "trajectory": state.trajectory,
        }

    def _write_log(self, state: State) -> None:
        names = [name for name in state.trajectory[0] if name not in ("depth", "width", "final")]
        with output_file(self.path / "log.csv", overwrite=True) as file, file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            numbers = [f"{kind}_{name}" for name in names for kind in ("change", "rank")]
            writer.writerow(
                ["round", "cell_type", "edge", "operation", "outcome", *numbers, "depth", "width", "reason"]
            )
            for d in state.decisions:
                found = [value for name in names for value in (d.changes.get(name, ""), d.ranks.get(name, ""))]
                writer.writerow(
                    [d.round, d.cell_type, d.edge, d.operation, d.outcome, *found, d.depth, d.width, d.reason]
                )

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with output_file(self.path / name, overwrite=True) as file:
            file.write_text(json.dumps(content, indent=2) + "\n")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"Expected {self.path / name} to be whole, got {error}; delete it") from None
        return found if isinstance(found, dict) else {}
