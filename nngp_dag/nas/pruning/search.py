"""A search by pruning with all that it leaves on disk; whatever stops it, the same call goes on after a round."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from nngp_dag.nas.pruning.files import SearchDirectory
from nngp_dag.nas.pruning.plots import plot_cell, plot_trajectory
from nngp_dag.nas.pruning.rounds import Pruning, State
from nngp_dag.nas.pruning.tenas import batch_sizes, tenas_measures
from nngp_dag.nas.spaces.accuracy_table import AccuracyTable
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.nas.spaces.search_space import SearchSpace
from nngp_dag.storage import output_file


@dataclass(frozen=True, eq=False)
class FoundCell:
    """What a search found.

    Attributes:
      cell: The cell.
      state: The search after its last round.
      accuracy: The accuracy of the cell, in per cent; NaN where the table does not know it, None without a table.
    """

    cell: Cell | Genotype
    state: State
    accuracy: float | None


def tenas_search(
    space: SearchSpace,
    images: Float[np.ndarray, "n *shape"],
    out: str | Path,
    measures: Sequence[str],
    pruning: Pruning,
    *,
    batch: int | None = None,
    classes: int = 10,
    gradients: str = "all",
    batch_norm: str = "frozen",
    dataset: str = "",
    table: AccuracyTable | None = None,
    column: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
    on_round: Callable[[int], None] = lambda _: None,
) -> FoundCell:
    """Prunes a supernet to one cell, and writes log, result and pictures.

    Args:
      space: The space.
      images: As for `tenas_measures`.
      out: Folder of the search; one that is there goes on, and another search is refused.
      measures: Names of measures, see `tenas_measures`.
      pruning: How operations are compared; its seed is that of the patches, too.
      batch: Images of every measure; None for as many as suit each.
      classes: Outputs of the network whose NTK is taken.
      gradients: As for `tenas_measures`.
      batch_norm: As for `tenas_measures`.
      dataset: The name of the images, for the picture.
      table: Accuracies of cells of NAS-Bench-201, to look the result up.
      column: Which of them, where there are several.
      on_progress: Called with ("round 1", networks measured, networks of the round).
      on_round: Called with the number of rounds that are done, at first too.

    Raises:
      InputError: As `tenas_measures`.
      CheckpointError: `out` holds another search, one of other versions, or a damaged one.
      OutputError: `out` holds something else, cannot be written, or another process writes it.
    """
    options = {"gradients": gradients, "batch_norm": batch_norm}
    found = tenas_measures(space, images, measures, batch=batch, seed=pruning.seed, classes=classes, **options)
    config = {"measures": measures, **asdict(pruning), **options, "batch": batch_sizes(space, measures, batch)}
    config |= {"images": images.shape, "sha256": hashlib.sha256(images.tobytes()).hexdigest()}
    folder = SearchDirectory(out, space, config)
    on_round(0)
    state = None
    for state in folder.search(found, pruning, lambda number, *done: on_progress(f"round {number}", *done)):
        on_round(state.round - 1)
    assert state is not None
    cell = space.cell_of(state.mask)
    with output_file(folder.path / "trajectory.png", overwrite=True) as path:
        plot_trajectory(state.trajectory, path, f"Search of {space.name} by pruning, images of {dataset}")
    with output_file(folder.path / "cell.png", overwrite=True) as path:
        plot_cell(cell, path)
    accuracy = None
    if table is not None and isinstance(cell, Cell):
        # Of a finished search too, which may have had no table before.
        [accuracy] = table.look_up([cell], column).tolist()
        folder.save(state, accuracy)
    return FoundCell(cell, state, accuracy)
