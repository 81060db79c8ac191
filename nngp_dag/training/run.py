"""Training of several DAGs and seeds."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, SupportsIndex, Unpack

from jax.sharding import Mesh

from nngp_dag.architecture import Architecture, Network
from nngp_dag.architecture.named import Given, named_networks
from nngp_dag.data import ImageStream, Splits
from nngp_dag.errors import InputError, shown
from nngp_dag.graph import Dag
from nngp_dag.nets import ModelSummary
from nngp_dag.training.recipe import Recipe
from nngp_dag.training.tasks import DagTask
from nngp_dag.training.trainer import Outcome, Progress, check_data, train_tasks


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trained(Outcome):
    """S trained networks of one architecture; see `Outcome` for the other attributes.

    Attributes:
      network: The architecture; `dag` is its graph.
      summary: Parameters and floating-point operations of the network.
    """

    network: Network
    summary: ModelSummary

    @property
    def dag(self) -> Dag:
        """The connectivity."""
        return self.network.dag

    @property
    def code(self) -> str:
        """Text of the connectivity."""
        return str(self.dag)


def train(
    networks: Given | Iterable[Given] | Mapping[str, Given],
    data: Splits | ImageStream,
    recipe: Recipe | None = None,
    *,
    seeds: SupportsIndex | Sequence[int] = 1,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    mesh: Mesh | None = None,
    **architecture: Unpack[Architecture],
) -> list[Trained]:
    """Trains finite networks by stochastic gradient descent, several seeds of each as one program.

    An epoch and its evaluation are one compiled program over data that stay on the device. Networks train one after
    another. While one trains, the program of the next compiles; graphs with equal live edges share a program.

    The same seeds, options, machine and versions compute the same bits, even if a run was killed and resumed. On a GPU
    this needs deterministic operations of XLA: XLA_FLAGS=--xla_gpu_deterministic_ops=true.

    Args:
      networks: One network, several, or several by name. Each is a `Network`, or its graph as a `Dag`, or as a code,
        name or cell that `Dag.parse` reads. Networks without names are named by their texts. A traced model that is a
        network stands for that network, a `DagNet` of the same kernel and not the model's own code.
      data: The data, such as `nngp_dag.data.load_splits("mnist")`, or an `nngp_dag.data.ImageStream`, whose images are
        read batch by batch.
      recipe: The recipe of training; by default `Recipe()`.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves.
      out: Folder for configuration, log, curves (CSV, PNG, TensorBoard) and checkpoints; None writes nothing.
      resume: Whether to resume the run in `out`. With a constant schedule the recipe may have more epochs than before.
      overwrite: Whether to replace the run in `out`.
      checkpoint_every: Number of epochs between checkpoints; the last epoch always has one.
      config: Entries to add to config.json.
      on_progress: Function that is called with (network, epochs done, epochs, training loss), a mean over seeds.
        In an epoch that reads a stream it is called once a second, with a fraction of the epoch.
      mesh: Devices among which every batch is divided, such as `nngp_dag.distributed.mesh()`; None for one device. The
        batch size is a multiple of their number. Curves depend on it by rounding only.
      **architecture: Options of all networks, see `nngp_dag.kernel`: `width`, `activation`, `layer`, ...

    Returns:
      One `Trained` per network, with curves, parameters after the last epoch and parameters after the best one.

    Raises:
      InputError: An option is out of range or does not fit the data.
      GraphError: No path leads through a graph.
      DivergenceError: A loss is no longer finite.
      OutputError: `out` holds another run, cannot be written, or another process writes it. Checkpoints that were
        written before stay.
      CheckpointError: The run to resume is damaged, or has other settings or versions.

    Examples:
      >>> import nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=500)
      >>> [run] = nd.train("2_12", data, nd.Recipe(epochs=3), seeds=2, width=32)
      >>> run.history.of("test", "accuracy").shape, run.summary.parameters
      ((4, 2), 4416)

    Reference: Chen et al., NeurIPS 2022, Section 4.2 (the experiment), and its published trainer.
    """
    if of_recipe := sorted(architecture.keys() & {field.name for field in dataclasses.fields(Recipe)}):
        raise InputError(
            f"Expected `{of_recipe[0]}` in `recipe`, got it as an option of networks; pass Recipe({of_recipe[0]}=...)"
        )
    if isinstance(networks, Splits):
        raise InputError("Expected `networks` before `data`, got the data first; pass train(networks, data)")
    named = named_networks(networks, architecture, train)
    check_data(data)
    if not isinstance(recipe, (Recipe, NoneType)):
        raise InputError(f"Expected `recipe` to be a `Recipe`, got {shown(recipe)}; pass Recipe(epochs=5), for example")
    recipe = recipe or Recipe()
    examples, part = data.sizes["train"], recipe.batch_size // recipe.accumulate
    if recipe.batch_norm and examples % recipe.batch_size % part == 1:
        raise InputError(
            f"Expected every batch to hold several examples with `batch_norm`, got {examples} examples in batches of "
            f"{part}, which leave one; choose another `batch_size`"
        )
    tasks = {name: DagTask(network, recipe, data) for name, network in named.items()}
    found = train_tasks(tasks, seeds, out, resume, overwrite, checkpoint_every, config, on_progress, mesh)
    return [Trained(**vars(one), network=named[one.name], summary=tasks[one.name].summary) for one in found]
