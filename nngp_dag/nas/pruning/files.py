"""A search by pruning on disk: its configuration, where it stands after every round, its log and its result."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nngp_dag.nas.pruning.rounds import Measure, OnProgress, Pruning, State, prune
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.nas.spaces.search_space import SearchSpace
from nngp_dag.storage import ResultDirectory, claimed, output_file, read_sealed, write_json, write_sealed


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
      CheckpointError: The folder holds another search, one of other versions, or a damaged one.
      OutputError: It holds something else, cannot be written, or another process writes it.
    """

    def __init__(self, path: str | Path, space: SearchSpace, config: dict[str, Any]) -> None:
        """Makes the folder, or checks the one that is there."""
        self.path, self._space = Path(path), space
        folder = search_folder(self.path)
        with folder.opened({"search": {"space": space.name, **config}}):
            folder.begin()

    def state(self) -> State | None:
        """Returns where the search stands; None before the first round.

        Raises:
          CheckpointError: The file is damaged.
        """
        file = self.path / "state.json"
        if not file.exists():
            return None
        state = read_sealed(file, "state", dict, "where a search stands", "delete it to start anew")
        return State.from_json(json.dumps(state), self._space)

    def search(
        self, measures: Sequence[Measure], pruning: Pruning, on_progress: OnProgress = lambda *_: None
    ) -> Iterator[State]:
        """Goes on where the search stands, and keeps the state after every round, as `prune` takes and yields them.

        Until the iteration ends no other process may write the folder.

        Yields:
          The state where it goes on, if it does, and that after every round.

        Raises:
          CheckpointError: As `state`.
          OutputError: The folder cannot be written, or another process writes it.
        """
        with claimed(self.path):
            state = self.state()
            if state is not None:
                yield state
            for after in prune(self._space, measures, pruning, state, on_progress=on_progress):
                self.save(after)
                yield after

    def save(self, state: State, accuracy: float | None = None) -> None:
        """Writes the log, once there is one the result and its cell, and the state.

        Args:
          state: After a round.
          accuracy: Accuracy of the cell that is found, in per cent, if some table knows it; NaN counts as None.
        """
        with claimed(self.path):
            self._write_log(state)
            if state.finished:
                cell = self._space.cell_of(state.mask)
                write_json(self.path / "result.json", self._result(state, cell, accuracy))
                if isinstance(cell, Genotype):
                    write_json(self.path / "genotype.json", json.loads(cell.to_json()))
                else:
                    with output_file(self.path / "cell.txt", overwrite=True) as file:
                        file.write_text(f"{cell}\n")
            write_sealed(self.path / "state.json", "state", json.loads(state.to_json()))

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


def search_folder(path: Path) -> ResultDirectory:
    """Returns a folder that holds a search, or will."""
    return ResultDirectory(path, "a search", {"search": {"space": str}})
