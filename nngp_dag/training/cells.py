"""Training of the network of one found cell."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, SupportsIndex

from nngp_dag.data import Splits
from nngp_dag.errors import InputError, check_known
from nngp_dag.forms import described
from nngp_dag.nas import Cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.training.cell_recipe import FIELDS, CellRecipe, as_cell
from nngp_dag.training.tasks import CellTask
from nngp_dag.training.trainer import Outcome, Progress, check_data, train_tasks


@described
@dataclasses.dataclass(frozen=True, eq=False)
class TrainedCell(Outcome):
    """S trained networks of one cell, as `Outcome`.

    Attributes:
      cell: The cell; `code` is its text.
    """

    cell: Cell | Genotype

    @property
    def code(self) -> str:
        """The cell as a text."""
        return str(self.cell)


def train_cell(
    cell: Cell | Genotype | str,
    data: Splits,
    recipe: CellRecipe | None = None,
    *,
    seeds: SupportsIndex | Sequence[int] = 1,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    **choices: Any,
) -> TrainedCell:
    """Trains the network of a cell by stochastic gradient descent, several seeds as one program.

    Seeds, bits, files and whatever else is not said here are as in `nngp_dag.train`.

    Args:
      cell: The cell, or a text that `read_cell` reads.
      data: What to train on.
      recipe: Network and optimizer; by default `CellRecipe.of` the cell.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds: of weights, order of images, augmentation, drop path.
      out: Folder of the run; None writes nothing.
      resume: Go on with the run in `out`.
      overwrite: Replace the run in `out`.
      checkpoint_every: Save the state whenever so many epochs are done, and at the end.
      config: What else to write to config.json.
      on_progress: Called with ("cell", epochs done, epochs, training loss, mean over seeds).
      **choices: Fields of `CellRecipe` to replace.

    Returns:
      A `TrainedCell`.

    Raises:
      InputError: An option is unknown, out of range or does not fit the data.
      GraphError: No cell can be read.
      DivergenceError: A loss is no longer finite.
      OutputError: `out` holds another run, cannot be written, or another process writes it.
      CheckpointError: What `resume` finds is damaged, another run, or one of other versions.

    Example:
      >>> import nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=100)
      >>> cell = Cell.parse("|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|")
      >>> train_cell(cell, data, channels=2, layers=1, epochs=1, batch_size=50).history.epochs_done
      1

    Reference: as `CellRecipe`.
    """
    cell = as_cell(cell)
    check_data(data)
    if not isinstance(recipe, (CellRecipe, NoneType)):
        raise InputError(
            f"Expected `recipe` to be a `CellRecipe`, got a `{type(recipe).__name__}`; pass its fields, such as "
            "train_cell(cell, data, epochs=5)"
        )
    check_known(choices, FIELDS, "fields of `CellRecipe`", train_cell)
    recipe = recipe or CellRecipe.of(cell, data.train.x.shape[1:])
    recipe = dataclasses.replace(recipe, **choices)
    tasks = {"cell": CellTask(cell, recipe, data)}
    if recipe.cutout > min(data.train.x.shape[1:3]):
        raise InputError(f"Expected `cutout` to be at most the side of images, got {recipe.cutout}")
    [found] = train_tasks(tasks, seeds, out, resume, overwrite, checkpoint_every, config, on_progress)
    return TrainedCell(**vars(found), cell=cell)
