"""Training of the network of one cell, such as the result of a search."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, SupportsIndex

from jax.sharding import Mesh

from nngp_dag.data import ImageStream, Splits
from nngp_dag.errors import InputError, check_known
from nngp_dag.nas import Cell
from nngp_dag.nas.spaces.any_cell import as_cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.training.cell_recipe import FIELDS, CellRecipe
from nngp_dag.training.tasks import CellTask
from nngp_dag.training.trainer import Outcome, Progress, check_data, train_tasks


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainedCell(Outcome):
    """S trained networks of one cell; see `Outcome` for the other attributes.

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
    data: Splits | ImageStream,
    recipe: CellRecipe | None = None,
    *,
    seeds: SupportsIndex | Sequence[int] = 1,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    mesh: Mesh | None = None,
    **choices: Any,
) -> TrainedCell:
    """Trains the network of a cell by stochastic gradient descent, several seeds as one program.

    See `nngp_dag.train` for the files of a run and for the conditions under which results agree in every bit.

    Args:
      cell: The cell, or a text that `read_cell` reads.
      data: The data, whose inputs are images, or an `nngp_dag.data.ImageStream`.
      recipe: Size of the network and recipe of its training; by default `CellRecipe.of` the cell.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves. A seed determines weights, order of images,
        augmentation and drop path.
      out: Folder of the run; None writes nothing.
      resume: Whether to resume the run in `out`.
      overwrite: Whether to replace the run in `out`.
      checkpoint_every: Number of epochs between checkpoints; the last epoch always has one.
      config: Entries to add to config.json.
      on_progress: Function that is called with ("cell", epochs done, epochs, training loss), a mean over seeds.
        In an epoch that reads a stream it is called once a second, with a fraction of the epoch.
      mesh: Devices among which every batch is divided, see `nngp_dag.train`. Batch norm takes the statistics of the
        whole batch.
      **choices: Fields of `CellRecipe` to replace.

    Returns:
      A `TrainedCell`, with curves, parameters after the last epoch and parameters after the best one.

    Raises:
      InputError: An option is unknown, out of range or does not fit the data.
      GraphError: The text does not describe a cell.
      DivergenceError: A loss is no longer finite.
      OutputError: `out` holds another run, cannot be written, or another process writes it.
      CheckpointError: The run to resume is damaged, or has other settings or versions.

    Examples:
      >>> import nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=100)
      >>> cell = Cell.parse("|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|")
      >>> train_cell(cell, data, channels=2, layers=1, epochs=1, batch_size=50).history.epochs_done
      1

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Appendix A; Chen et al., NeurIPS 2022, Section 5.
    """
    cell = as_cell(cell)
    check_data(data)
    if not isinstance(recipe, (CellRecipe, NoneType)):
        raise InputError(
            f"Expected `recipe` to be a `CellRecipe`, got a `{type(recipe).__name__}`; pass its fields, such as "
            "train_cell(cell, data, epochs=5)"
        )
    check_known(choices, FIELDS, "fields of `CellRecipe`", train_cell)
    recipe = recipe or CellRecipe.of(cell, data.input_shape)
    recipe = dataclasses.replace(recipe, **choices)
    tasks = {"cell": CellTask(cell, recipe, data)}
    if recipe.color_jitter and not isinstance(data, ImageStream):
        raise InputError(
            "Expected `color_jitter` to be False for images in memory, which are normalized, got True; pass images of "
            "`nngp_dag.data.load_stream`"
        )
    if recipe.cutout > min(data.input_shape[:2]):
        raise InputError(f"Expected `cutout` to be at most the side of images, got {recipe.cutout}")
    [found] = train_tasks(tasks, seeds, out, resume, overwrite, checkpoint_every, config, on_progress, mesh)
    return TrainedCell(**vars(found), cell=cell)
