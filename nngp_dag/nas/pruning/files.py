"""A search by pruning on disk: its configuration, its state after every round, its log and its result."""

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

    config.json holds the options of the search, and state.json its state after the last round. log.csv holds the
    outcome of every operation in every round. result.json holds the result; cell.txt or genotype.json holds the cell
    alone, for `nngp-dag nas train`. Each file is written under a temporary name and then renamed, the state last. So an
    interrupted search continues after its last complete round.

    Args:
      path: The folder.
      space: The search space.
      config: Everything on which the result depends, as JSON values. A folder of another search is refused.

    Raises:
      CheckpointError: The folder holds another search, one of other versions, or a damaged one.
      OutputError: The folder holds something else, cannot be written, or is being written by another process.

    Examples:
      >>> import tempfile
      >>> from nngp_dag.nas import SearchDirectory, get_space
      >>> with tempfile.TemporaryDirectory() as path:
      ...     print(SearchDirectory(path, get_space("nasbench201"), {"seed": 0}).state())
      None
    """

    def __init__(self, path: str | Path, space: SearchSpace, config: dict[str, Any]) -> None:
        """Makes the folder, or checks one that exists."""
        self.path, self._space = Path(path), space
        folder = search_folder(self.path)
        with folder.opened({"search": {"space": space.name, **config}}):
            folder.begin()

    def state(self) -> State | None:
        """Returns the state of the search; None before the first round.

        Raises:
          CheckpointError: The file is damaged.
        """
        file = self.path / "state.json"
        if not file.exists():
            return None
        state = read_sealed(file, "state", dict, "the state of a search", "delete it to start again")
        return State.from_json(json.dumps(state), self._space)

    def search(
        self, measures: Sequence[Measure], pruning: Pruning, on_progress: OnProgress = lambda *_: None
    ) -> Iterator[State]:
        """Runs `prune` from the stored state, and stores the state after every round.

        The folder is claimed until the iteration ends: no other process may write it.

        Args:
          measures: The measures, as for `prune`.
          pruning: The options, as for `prune`.
          on_progress: Function of progress, as for `prune`.

        Yields:
          The stored state, if there is one, and then the state after every round.

        Raises:
          CheckpointError: The state file is damaged.
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
        """Writes the log, the state and, after the last round, the result with its cell.

        Args:
          state: The state after a round.
          accuracy: Accuracy of the cell that the search found, in per cent. None or NaN where no table has it.
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
    """Returns the result directory of a search, which may be new."""
    return ResultDirectory(path, "a search", {"search": {"space": str}})
