"""Evaluation of trained networks that are read from a checkpoint."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from nngp_dag import forms
from nngp_dag.architecture import Network, as_network
from nngp_dag.architecture.document import from_document, to_document
from nngp_dag.data import ImageStream, Splits, load_source
from nngp_dag.errors import CheckpointError, as_path
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.nas import Cell
from nngp_dag.nas.spaces.any_cell import read_cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.storage import reason_of
from nngp_dag.training import checkpoints
from nngp_dag.training.cell_recipe import CellRecipe
from nngp_dag.training.history import METRICS, PARTS
from nngp_dag.training.program import Best, Program, State
from nngp_dag.training.recipe import Recipe
from nngp_dag.training.stream_program import StreamProgram
from nngp_dag.training.tasks import CellTask, DagTask

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Described):
    """Losses and accuracies of the S networks of one checkpoint on a data set.

    Attributes:
      name: Name of the network in its run.
      seeds: Seeds of the training, S of them.
      epochs: Epoch of each network's state, (S,).
      values: Mean loss, accuracy and class-mean accuracy on each part, (3 parts, 3 metrics, S), see `History`.

    Examples:
      >>> evaluation = Evaluation("2_12", seeds=(0, 1), epochs=(5, 3), values=np.zeros((3, 3, 2)))
      >>> evaluation.of("test", "loss")
      array([0., 0.])
    """

    name: str
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    values: Float[np.ndarray, "3 3 seeds"]

    def of(self, part: str, metric: str) -> Float[np.ndarray, " seeds"]:
        """Returns one metric on one part, a number per seed, (S,).

        Args:
          part: "train", "validation" or "test".
          metric: "loss", "accuracy" or "class_accuracy".
        """
        return self.values[PARTS.index(part), METRICS.index(metric)]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for every seed and part: `dag`, `seed`, `epoch`, `part`, and the metrics."""
        return [
            {
                "dag": self.name,
                "seed": seed,
                "epoch": epoch,
                "part": part,
                **{metric: float(self.of(part, metric)[s]) for metric in METRICS},
            }
            for s, (seed, epoch) in enumerate(zip(self.seeds, self.epochs, strict=True))
            for part in PARTS
        ]

    def to_frame(self) -> "pandas.DataFrame":
        """Returns the `rows` as a table; accuracies are between 0 and 1.

        Examples:
          >>> Evaluation("mine", (0,), (2,), np.full((3, 3, 1), 0.5)).to_frame()
              dag  seed  epoch        part  loss  accuracy  class_accuracy
          0  mine     0      2       train   0.5       0.5             0.5
          1  mine     0      2  validation   0.5       0.5             0.5
          2  mine     0      2        test   0.5       0.5             0.5
        """
        import pandas

        return pandas.DataFrame.from_records(self.rows())

    def _facts(self) -> dict[str, str]:
        facts = {"": repr(self.name), "seeds": str(list(self.seeds)), "epochs": str(list(self.epochs))}
        return facts | {f"{part}_accuracy": forms.over(self.of(part, "accuracy")) for part in PARTS}


def evaluate(
    checkpoint: str | Path,
    data: Splits | ImageStream | None = None,
    *,
    network: Network | Dag | str | None = None,
    data_dir: str | Path | None = None,
) -> Evaluation:
    """Evaluates the networks of a checkpoint that `nngp_dag.train` or `nngp_dag.training.train_cell` wrote.

    Args:
      checkpoint: Folder of the checkpoint, OUT/checkpoints/NAME/last or OUT/checkpoints/NAME/best.
      data: The data to evaluate on; by default the data of the run, loaded again.
      network: The network. It is needed only if no file can hold it, which is the case with `Quadrature`.
      data_dir: Folder of tensorflow-datasets, see `load_dataset`; used only without `data`.

    Returns:
      An `Evaluation`, with losses and accuracies of every seed on every part.

    Raises:
      CheckpointError: The checkpoint is absent or damaged, or belongs to other data or another network.
      DataError: The data cannot be found or read.

    Examples:
      >>> import tempfile, nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=500)
      >>> with tempfile.TemporaryDirectory() as out:
      ...     [run] = nd.train("2_12", data, nd.Recipe(epochs=2), out=out + "/run", width=32)
      ...     found = nd.evaluate(out + "/run/checkpoints/2_12/last")
      >>> bool((found.of("test", "loss") == run.history.of("test", "loss")[-1]).all())
      True
    """
    folder = as_path("checkpoint", checkpoint)
    # pathlib's `exists` raises an error for a name that is too long.
    if os.path.exists(folder / "config.json"):
        known = sorted(folder.glob("checkpoints/*/best")) or [folder / "checkpoints" / "NAME" / "best"]
        raise CheckpointError(
            f"Expected the folder of a checkpoint, got that of a run, {folder}; pass one of its checkpoints, such as "
            f"{known[0]}"
        )
    about = checkpoints.describe(folder, checkpoints.OF_RUN)["description"]
    if about["kind"] == "begun":
        raise CheckpointError(
            f"Expected a checkpoint after a whole epoch, got one within an epoch, {folder}; pass "
            f"{folder.parent / 'last'}"
        )
    try:
        of_cell = "cell" in about["network"]
        recipe, seeds = (CellRecipe if of_cell else Recipe).from_dict(about["recipe"]), about["seeds"]
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"Expected {folder} to state the recipe of a run, got {reason_of(error)}; restore an intact copy"
        ) from None
    if data is None:
        source: dict[str, Any] | None = about["data"].get("source")
        if not source:
            raise CheckpointError(
                f"Expected {folder} to name a data set that can be loaded, got data of your own; pass `data`"
            )
        data = load_source(source, data_dir=data_dir)
        if data.fingerprint["sha256"] != about["data"]["sha256"]:
            raise CheckpointError(
                f"Expected {data.name} to hold the data that {folder} was trained on, got others; pass `data`"
            )
    built = _built(folder, about["network"], network)
    task = CellTask(built, recipe, data) if isinstance(recipe, CellRecipe) else DagTask(built, recipe, data)  # type: ignore[arg-type]
    program = (StreamProgram if isinstance(data, ImageStream) else Program)(task, len(seeds))
    abstract_state, abstract_best = program.abstract_state
    if about["kind"] == "best":
        found: Best | State = checkpoints.restore(folder, abstract_best)[0]
        epochs = [int(epoch) for epoch in found.epoch]  # type: ignore[union-attr]
    else:
        curves = np.empty((recipe.epochs + 1, len(PARTS), len(METRICS), len(seeds)))
        (found, _), document = checkpoints.restore(folder, (abstract_state, curves))
        epochs = [document["epoch"]] * len(seeds)
    values = program.evaluate(found.params, found.stats, program.load(data))
    return Evaluation(about["name"], tuple(seeds), tuple(epochs), values)


def _built(folder: Path, described: dict[str, Any], given: Network | Dag | str | None) -> Network | Cell | Genotype:
    if given is None:
        try:
            return read_cell(str(described["cell"])) if "cell" in described else from_document(described)
        # Errors of this package are ValueErrors, and so are those that a damaged description causes.
        except ValueError as error:
            raise CheckpointError(
                f"Expected {folder} to describe a network that can be built again, got one that cannot: {error}; pass "
                "`network`"
            ) from None
    network = as_network(given)
    if (document := to_document(network)) != described:
        option = next(name for name in (*document, *described) if document.get(name) != described.get(name))
        expected, got = described.get(option), document.get(option)
        raise CheckpointError(
            f"Expected `network` to be that of {folder}, with {option} {expected}, got {option} {got}; pass the "
            "network of the run"
        )
    return network
