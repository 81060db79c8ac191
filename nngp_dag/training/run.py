"""Training of several DAGs and seeds with everything it leaves behind, resumable at any moment."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import NoneType
from typing import Any, SupportsIndex, Unpack

import jax
import numpy as np
from flax import nnx

from nngp_dag.architecture import Architecture, Network
from nngp_dag.architecture.document import to_document
from nngp_dag.architecture.named import Given, named_networks
from nngp_dag.data import Splits
from nngp_dag.errors import (
    CheckpointError,
    DivergenceError,
    InputError,
    NngpDagError,
    as_path,
    check_callable,
    shown,
    within_memory,
)
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import as_number, check_flag
from nngp_dag.nets import ModelSummary, chosen_seeds
from nngp_dag.nets.model import Params
from nngp_dag.storage import output_file
from nngp_dag.training import checkpoints
from nngp_dag.training.advice import stable_learning_rate
from nngp_dag.training.history import METRICS, PARTS, History
from nngp_dag.training.networks import summary_of
from nngp_dag.training.plots import plot_training
from nngp_dag.training.program import Best, Device, Program, State, on_device
from nngp_dag.training.recipe import Recipe
from nngp_dag.training.rundir import RunDirectory

Progress = Callable[[str, int, int, float], None]

# 128 GiB of float32, with gradients, momentum and the best state.
_MOST_PARAMETERS = 1 << 33


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """S trained networks of one architecture.

    Attributes:
      name: How the user calls it.
      network: The architecture; `dag` is its graph.
      history: Their curves.
      summary: Parameters and floating-point operations of the network.
      params: Parameters after the last epoch, every leaf with leading axis S.
      stats: Running averages of batch normalization, likewise.
      best_params: Those after each seed's best epoch, by validation accuracy.
      best_stats: Likewise.
      best_epoch: That epoch, counted from 1, (S,).
    """

    name: str
    network: Network
    history: History
    summary: ModelSummary
    params: Params
    stats: nnx.State
    best_params: Params
    best_stats: nnx.State
    best_epoch: np.ndarray

    @property
    def dag(self) -> Dag:
        """The connectivity."""
        return self.network.dag


def train(
    networks: Given | Iterable[Given] | Mapping[str, Given],
    data: Splits,
    recipe: Recipe | None = None,
    *,
    seeds: SupportsIndex | Sequence[int] = 1,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    **architecture: Unpack[Architecture],
) -> list[Trained]:
    """Trains finite networks by stochastic gradient descent, several seeds of each as one program.

    An epoch, its evaluation included, is one compiled program over data that stay on the device. Networks train one
    after another; while one trains, the program of the next compiles, and graphs with equal live edges share theirs.
    The same seeds, options, machine and versions give the same bits, also where a run was killed and resumed (on a GPU
    only if XLA is told to be deterministic: XLA_FLAGS=--xla_gpu_deterministic_ops=true).

    Args:
      networks: One network, several, or several by name, each a `Network`, or its graph as a `Dag`, or as a code, name
        or cell that `Dag.parse` reads; without names they are called by their texts.
      data: What to train on, such as `nngp_dag.data.load_splits("mnist")`.
      recipe: How they are trained; by default `Recipe()`.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves.
      out: Folder for configuration, log, curves (CSV, PNG, TensorBoard) and checkpoints; None writes nothing.
      resume: Go on with the run in `out`. More epochs may be asked for if the schedule is constant.
      overwrite: Replace the run in `out`.
      checkpoint_every: Save the state whenever so many epochs are done, and at the end.
      config: What else to write to config.json.
      on_progress: Called with (network, epochs done, epochs, training loss, mean over seeds).
      **architecture: Options of all networks, see `nngp_dag.kernel`: `width`, `activation`, `layer`, ...

    Returns:
      One `Trained` per network.

    Raises:
      InputError: An option is out of range or does not fit the data.
      GraphError: A graph has no path.
      DivergenceError: A loss is no longer finite.
      OutputError: `out` holds another run, cannot be written, or another process writes it; checkpoints written before
        stay.
      CheckpointError: What `resume` finds is damaged, another run, or one of other versions.

    Example:
      >>> import nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=500)
      >>> [run] = nd.train("2_12", data, nd.Recipe(epochs=3), seeds=2, width=32)
      >>> run.history.of("test", "accuracy").shape, run.summary.parameters
      ((4, 2), 4416)

    Reference: Chen et al., NeurIPS 2022, Section 4.2 (the experiment), and its published trainer.
    """
    if of_recipe := sorted(architecture.keys() & {field.name for field in dataclasses.fields(Recipe)}):
        raise InputError(f"Expected `{of_recipe[0]}` in `recipe`, got it beside; pass Recipe({of_recipe[0]}=...)")
    if isinstance(networks, Splits):
        raise InputError("Expected `networks` and then `data`, got data first; pass train(networks, data)")
    named = named_networks(networks, architecture, train)
    _check_data(data)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    if not isinstance(recipe, (Recipe, NoneType)):
        raise InputError(f"Expected `recipe` to be a `Recipe`, got {shown(recipe)}; pass such as Recipe(epochs=5)")
    recipe = recipe or Recipe()
    chosen = chosen_seeds(seeds)
    if as_number("checkpoint_every", checkpoint_every) < 1:
        raise InputError(f"Expected `checkpoint_every` to be at least 1, got {shown(checkpoint_every)}")
    if resume and out is None:
        raise InputError("Expected `out` to name the run to resume, got None; pass the folder of the run")

    _check_batches(recipe, len(data.train.labels))
    programs: dict[Any, Program] = {}
    of_name = {}
    for name, network in named.items():
        # Dead edges, and with them the codes, may differ.
        key = dataclasses.replace(network, dag=dataclasses.replace(network.dag, edges=network.dag.live_edges))
        if key not in programs:
            programs[key] = Program(network, recipe, data, len(chosen))
        of_name[name] = programs[key]
    shape, batch_norm = data.train.x.shape[1:], recipe.batch_norm
    summaries = {
        name: summary_of(network, shape, data.num_classes, batch_norm=batch_norm) for name, network in named.items()
    }

    for name, summary in summaries.items():
        if summary.parameters * len(chosen) > _MOST_PARAMETERS:
            raise InputError(
                f"Expected networks of at most {_MOST_PARAMETERS:,} parameters in all, got {len(chosen)} of {name} "
                f"with {summary.parameters:,} each; lower `width` or `seeds`"
            )

    check_callable("on_progress", on_progress)
    directory = None if out is None else RunDirectory(as_path("out", out), list(named))
    about = {"recipe": recipe.as_dict(), "seeds": chosen, "data": data.fingerprint}
    document = {
        **(config or {}),
        "networks": {name: to_document(network) for name, network in named.items()},
        **about,
        "models": {
            name: {"parameters": summary.parameters, "flops_per_example": summary.flops}
            for name, summary in summaries.items()
        },
    }
    opened = contextlib.nullcontext()
    if directory is not None:
        opened = directory.opened(document, resume=resume, overwrite=overwrite)
    with opened:
        runs = [
            _Run(name, network, of_name[name], recipe, chosen, data, directory, checkpoint_every, about)
            for name, network in named.items()
        ]
        if resume:
            for run in runs:
                run.load()
        if directory is not None:
            sizes = [
                f"{name}: {summary.parameters:,} parameters, {summary.flops:,} FLOPs an example"
                for name, summary in summaries.items()
            ]
            directory.begin([run.history for run in runs], [data.statement, *sizes])
        widths = ", ".join(map(str, dict.fromkeys(network.width for network in named.values())))
        what = f"{len(chosen)} networks of width {widths}"
        with within_memory(what, "lower `width`, `seeds` or `batch_size`"):
            return _train_all(runs, summaries, directory, on_progress)


def _train_all(
    runs: "Sequence[_Run]",
    summaries: Mapping[str, ModelSummary],
    directory: RunDirectory | None,
    on_progress: Progress | None,
) -> list[Trained]:
    device = on_device(runs[0].data)
    trained = []
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(1)
        # Who stops training does not wait for the program of the next DAG.
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        compiling: list[Future[None]] = [pool.submit(run.program.compile) for run in runs[:1] if not run.done]
        for i, run in enumerate(runs):
            run.draw()
            for future in compiling:
                future.result()
            # The next DAG's program compiles while this one trains.
            compiling = [pool.submit(after.program.compile) for after in runs[i + 1 : i + 2] if not after.done]
            state, best = run.train(device, on_progress)
            trained.append(
                Trained(
                    run.name,
                    run.network,
                    run.history,
                    summaries[run.name],
                    # On the host, so that the device holds one DAG's states at a time.
                    *jax.device_get((state.params, state.stats, best.params, best.stats, best.epoch)),
                )
            )
    if directory is not None:
        directory.finish([run.history for run in trained])
        with output_file(directory.path / "curves.png", overwrite=True) as path:
            first = trained[0].history
            seeds = f"{len(first.seeds)} seed{'s' if len(first.seeds) > 1 else ''}"
            recipe = runs[0].recipe
            widths = ", ".join(map(str, dict.fromkeys(run.network.width for run in runs)))
            title = f"{runs[0].data.name}, width {widths}, η = {recipe.learning_rate:g}: mean and range, {seeds}"
            plot_training([run.history for run in trained], path, title, loss=recipe.loss)
    return trained


@dataclasses.dataclass
class _Run:
    """The training of one network."""

    name: str
    network: Network
    program: Program
    recipe: Recipe
    seeds: list[int]
    data: Splits
    directory: RunDirectory | None
    checkpoint_every: int
    about: Mapping[str, Any]
    states: tuple[State, Best] | None = None

    def __post_init__(self) -> None:
        steps, epochs = self.program.steps_per_epoch, self.recipe.epochs
        rates = self.recipe.learning_rates_at(steps * np.arange(epochs), steps)
        values = np.full((epochs + 1, len(PARTS), len(METRICS), len(self.seeds)), np.nan)
        self.history = History(self.name, tuple(self.seeds), steps, rates, values)

    @property
    def started(self) -> bool:
        """Whether there are curves."""
        return self.history.epochs_done >= 0

    @property
    def done(self) -> bool:
        """Whether all epochs are trained."""
        return self.history.epochs_done == self.recipe.epochs

    def load(self) -> None:
        """Reads the last checkpoint back, if there is one."""
        if self.directory is None:
            return
        last, best = (self.directory.checkpoints(self.name, kind) for kind in ("last", "best"))
        if checkpoints.latest(last) is None:
            return
        for folder in (best, last):
            found = checkpoints.describe(folder, checkpoints.OF_DAG)["description"]
            epochs = found["recipe"]["epochs"]
            # They may differ.
            recipe = {**self.about["recipe"], "epochs": epochs}
            checkpoints.check_is_of(folder, found, {**self._description(folder.name), "recipe": recipe})
        abstract_state, abstract_best = self.program.abstract_state
        if epochs > self.recipe.epochs:
            raise CheckpointError(
                f"Expected at least the {epochs} epochs of the checkpoint {last}, got {self.recipe.epochs}; resume "
                "with as many or more"
            )
        curves = np.empty((epochs + 1, *self.history.values.shape[1:]))
        (state, values), _ = checkpoints.restore(last, (abstract_state, curves))
        self.states = state, checkpoints.restore(best, abstract_best)[0]
        self.history.values[: len(values)] = values

    def draw(self) -> None:
        """Draws the networks, where no checkpoint holds them."""
        if self.states is None:
            self.states = self.program.draw(self.seeds)

    def train(self, device: Device, on_progress: Progress | None) -> tuple[State, Best]:
        """Trains whatever epochs are left."""
        assert self.states is not None
        # Given up, since an epoch uses up the states that it starts from.
        (state, best), self.states = self.states, None
        if not self.started:
            self._record(0, self.program.evaluate(state.params, state.stats, device))
        epochs = self.recipe.epochs
        done = self.history.epochs_done
        if on_progress is not None:
            on_progress(self.name, done, epochs, self._loss(done))
        for epoch in range(done + 1, epochs + 1):
            state, best, metrics, losses = self.program.run_epoch(state, best, self.seeds, epoch, device)
            if not (np.isfinite(losses).all() and np.isfinite(metrics).all()):
                self._stop(epoch, losses)
            self._record(epoch, metrics)
            if self.directory is not None and (epoch % self.checkpoint_every == 0 or epoch == epochs):
                self._save(epoch, state, best)
            if on_progress is not None:
                on_progress(self.name, epoch, epochs, self._loss(epoch))
        return state, best

    def _loss(self, epoch: int) -> float:
        return float(self.history.of("train", "loss")[epoch].mean())

    def _record(self, epoch: int, metrics: np.ndarray) -> None:
        self.history.values[epoch] = metrics
        if self.directory is not None:
            self.directory.add(self.history, epoch)

    def _save(self, epoch: int, state: State, best: Best) -> None:
        assert self.directory is not None
        # The best first: if the process dies in between, the epoch is trained again and finds the same best state.
        for kind, tree in (("best", best), ("last", (state, self.history.values))):
            folder = self.directory.checkpoints(self.name, kind)
            checkpoints.save(folder, epoch, tree, self._description(kind))

    def _description(self, kind: str) -> dict[str, Any]:
        return {"kind": kind, "name": self.name, "network": to_document(self.network), **self.about}

    def _stop(self, epoch: int, losses: np.ndarray) -> None:
        """Raises a `DivergenceError` that says where, and what the kernel says of the learning rate."""
        steps = self.program.steps_per_epoch
        wrong = ~np.isfinite(losses)
        # Without one, the last update broke the network, which its evaluation shows.
        step_in_epoch, seed = (int(i[0]) for i in np.nonzero(wrong)) if wrong.any() else (steps - 1, None)
        step = (epoch - 1) * steps + step_in_epoch
        value = "one that is not" if seed is None else f"{losses[step_in_epoch, seed]}"
        whose = self.name if seed is None else f"{self.name}, seed {self.seeds[seed]}"
        rate = float(self.recipe.learning_rates_at(np.array([step]), steps)[0])
        message = (
            f"Expected the loss to stay finite, got {value} at step {step} (epoch {epoch}) of {whose}, at learning "
            f"rate {rate:.3g}; {self._advice(rate)}"
        )
        if self.directory is not None:
            self.directory.log(message)
        raise DivergenceError(message)

    def _advice(self, rate: float) -> str:
        try:
            stable = stable_learning_rate(self.network, self.recipe, self.data)
        except NngpDagError as error:
            return f"no kernel says which rate is stable ({error}): lower --lr"
        if stable is None:
            return "with batch normalization no kernel says which rate is stable: lower --lr"
        if rate < stable:
            decay = self.recipe.weight_decay > 0
            beyond, too = ("without weight decay", " or --weight-decay") if decay else ("at infinite width", "")
            return f"the kernel's largest stable rate is {stable:.3g}, {beyond}: lower --lr{too}"
        return f"the kernel's largest stable rate is {stable:.3g}: lower --lr below it"


def _check_batches(recipe: Recipe, num_examples: int) -> None:
    if recipe.batch_size > num_examples:
        raise InputError(
            f"Expected `batch_size` to be at most the {num_examples} training examples, got {recipe.batch_size}; lower "
            "it or take more data"
        )
    if recipe.batch_norm and num_examples % recipe.batch_size == 1:
        raise InputError(
            f"Expected every batch to hold several examples with `batch_norm`, got {num_examples} examples in batches "
            f"of {recipe.batch_size}, which leave one; choose another `batch_size`"
        )


def _check_data(data: object) -> None:
    if not isinstance(data, Splits):
        got = f"an array of shape {data.shape}" if isinstance(data, (np.ndarray, jax.Array)) else shown(data)
        raise InputError(
            f"Expected `data` to be `nngp_dag.data.Splits`, got {got}; make them of arrays x and labels, "
            "Splits('mine', Part(x, labels), Part(x_validation, ...), Part(x_test, ...), num_classes=10), or load a "
            "data set, `nngp_dag.data.load_splits('digits')`"
        )
