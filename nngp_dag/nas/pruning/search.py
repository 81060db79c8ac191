"""A search by pruning with its files; an interrupted search continues after its last complete round."""

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
    """The result of a search.

    Attributes:
      cell: The cell that the search found.
      state: The state of the search after its last round.
      accuracy: Accuracy of the cell, in per cent. NaN where the table does not have the cell; None without a table.
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
    """Prunes a supernet to one cell, and writes the log, the result and pictures.

    Args:
      space: The search space.
      images: Images, (n, height, width, channels), or (n, ...) for the measure "exact" alone.
      out: Folder of the search. An unfinished search in it continues; the folder of another search is refused.
      measures: Names of measures out of "ntk", "regions", "exact"; see `tenas_measures`.
      pruning: The options of the search. Its seed is also that of the patches.
      batch: Number of images per measure. None for the default of each measure; see `batch_sizes`.
      classes: Number of outputs of the network whose NTK is measured.
      gradients: Weights that the gradients of the NTK are taken with respect to, as for `Measures`.
      batch_norm: "frozen" or "live" batch statistics, as for `Measures`.
      dataset: Name of the images, for the title of a picture.
      table: Accuracies of cells of NAS-Bench-201, among which to look up the result.
      column: Column of the table. None where the table has one column.
      on_progress: Function of (name of the round, networks measured, networks of the round).
      on_round: Function of the number of complete rounds, which is called before the first round too.

    Returns:
      A `FoundCell`.

    Raises:
      InputError: A name is unknown or occurs twice, or images or options do not fit.
      CheckpointError: `out` holds another search, one of other versions, or a damaged one.
      OutputError: `out` holds something else, cannot be written, or is being written by another process.
      DataError: The table has no such column.

    Examples:
      >>> import tempfile
      >>> from nngp_dag.nas import Pruning, get_space, tenas_search
      >>> x = np.random.default_rng(0).normal(size=(4, 4, 4, 1))
      >>> with tempfile.TemporaryDirectory() as out:
      ...     found = tenas_search(get_space("nasbench201"), x, out, ["exact"], Pruning(repeats=1))
      >>> type(found.cell).__name__, found.state.finished, found.accuracy
      ('Cell', True, None)

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021, Algorithm 1.
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
        # Also for a search that was finished before, perhaps without a table.
        [accuracy] = table.look_up([cell], column).tolist()
        folder.save(state, accuracy)
    return FoundCell(cell, state, accuracy)
