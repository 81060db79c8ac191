"""Training of several DAGs and seeds with everything it leaves behind, resumable at any moment."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from nngp_dag.data import Splits
from nngp_dag.errors import CheckpointError, DivergenceError, GraphError, InputError
from nngp_dag.graph import Dag
from nngp_dag.nets import ModelSummary
from nngp_dag.nets.model import Params
from nngp_dag.report import output_file
from nngp_dag.report.environment import environment
from nngp_dag.training import checkpoints
from nngp_dag.training.advice import stable_learning_rate
from nngp_dag.training.history import METRICS, PARTS, History
from nngp_dag.training.plots import plot_training
from nngp_dag.training.program import Best, Device, Program, State, on_device
from nngp_dag.training.recipe import Recipe
from nngp_dag.training.rundir import RunDirectory

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """S trained networks of one DAG.

    Attributes:
      name: How the user calls the DAG.
      dag: The DAG.
      history: Their curves.
      summary: Parameters and floating-point operations of the network.
      params: Parameters after the last epoch, every leaf with leading axis S.
      stats: Running averages of batch normalisation, likewise.
      best_params: Those after each seed's best epoch, by validation accuracy.
      best_stats: Likewise.
      best_epoch: That epoch, counted from 1, (S,).
    """

    name: str
    dag: Dag
    history: History
    summary: ModelSummary
    params: Params
    stats: nnx.State
    best_params: Params
    best_stats: nnx.State
    best_epoch: np.ndarray


def train(
    dags: Dag | Sequence[Dag] | Mapping[str, Dag],
    data: Splits,
    recipe: Recipe | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    **choices: Any,
) -> list[Trained]:
    """Trains finite networks of DAGs by stochastic gradient descent, several seeds of a DAG as one program.

    An epoch, its evaluation included, is one compiled program over data that stay on the device. DAGs train one after
    another; while one trains, the program of the next compiles, and DAGs with equal live edges share theirs. The same
    seeds, options, machine and versions give the same bits, also where a run was killed and resumed (on a GPU only if
    XLA is told to be deterministic: XLA_FLAGS=--xla_gpu_deterministic_ops=true).

    Args:
      dags: One DAG, several, or several by name; without names they are called by their codes.
      data: What to train on, such as `nngp_dag.data.load_splits("mnist")`.
      recipe: Network and optimiser; by default `Recipe()`.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves.
      out: Folder for configuration, log, curves (CSV, PNG, TensorBoard) and checkpoints; None writes nothing.
      resume: Go on with the run in `out`. More epochs may be asked for if the schedule is constant.
      overwrite: Replace the run in `out`.
      checkpoint_every: Save the state whenever so many epochs are done, and at the end.
      config: What else to write to config.json.
      on_progress: Called with (DAG, epochs done, epochs).
      **choices: Fields of `Recipe` to replace, such as `width=256`.

    Returns:
      One `Trained` per DAG.

    Raises:
      InputError: An option is out of range or does not fit the data.
      GraphError: A DAG has no path.
      DivergenceError: A loss is no longer finite.
      OutputError: `out` holds another run or cannot be written; checkpoints written before stay.
      CheckpointError: What `resume` finds is damaged or another run.

    Example:
      >>> import nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=500)
      >>> [run] = nd.train(nd.Dag.from_code("2_12"), data, seeds=2, width=32, epochs=3, learning_rate=0.01)
      >>> run.history.of("test", "accuracy").shape, run.summary.parameters
      ((4, 2), 4522)

    Reference: Chen et al., NeurIPS 2022, Section 4.2 (the experiment), and its published trainer.
    """
    named = _named(dags)
    try:
        recipe = dataclasses.replace(recipe or Recipe(), **choices)
    except TypeError as error:
        raise InputError(f"Expected options of `Recipe`, got {', '.join(choices)}: {error}") from None
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise InputError(f"Expected at least one seed, none twice and none negative, got {seeds}")
    if checkpoint_every < 1:
        raise InputError(f"Expected `checkpoint_every` to be at least 1, got {checkpoint_every}")
    if resume and out is None:
        raise InputError("Expected `out` to name the run to resume, got None; pass the folder of the run")

    programs: dict[Any, Program] = {}
    of_dag = {}
    for name, dag in named.items():
        key = (dag.num_nodes, dag.live_edges, dag.num_inputs, dag.outputs)
        if key not in programs:
            programs[key] = Program(dag, recipe, data, len(chosen))
        of_dag[name] = programs[key]
    summaries = {name: recipe.summary(dag, data.train.x.shape[1:], data.num_classes) for name, dag in named.items()}

    directory = None if out is None else RunDirectory(Path(out), list(named))
    about = {"recipe": recipe.as_dict(), "seeds": chosen, "data": _describe(data)}
    if directory is not None:
        document = {
            "dags": {name: str(dag) for name, dag in named.items()},
            **about,
            "models": {
                name: {"parameters": summary.parameters, "flops_per_example": summary.flops}
                for name, summary in summaries.items()
            },
            "environment": environment(),
            **(config or {}),
        }
        directory.prepare(document, resume=resume, overwrite=overwrite)
        directory.log(data.statement)
        for name, summary in summaries.items():
            directory.log(f"{name}: {summary.parameters:,} parameters, {summary.flops:,} FLOPs an example")

    runs = [
        _Run(name, dag, of_dag[name], recipe, chosen, data, directory, checkpoint_every, about)
        for name, dag in named.items()
    ]
    try:
        return _train_all(runs, summaries, directory, on_progress)
    finally:
        if directory is not None:
            directory.close()


def _train_all(
    runs: "Sequence[_Run]",
    summaries: Mapping[str, ModelSummary],
    directory: RunDirectory | None,
    on_progress: Progress | None,
) -> list[Trained]:
    device = on_device(runs[0].data)
    for run in runs:
        run.load()
    if directory is not None:
        directory.begin([run.history for run in runs if run.started])
    trained = []
    with ThreadPoolExecutor(1) as pool:
        compiling: list[Future[None]] = [pool.submit(run.program.compile) for run in runs[:1] if not run.done]
        for i, run in enumerate(runs):
            run.draw()
            for future in compiling:
                future.result()
            # The next DAG's program compiles while this one trains.
            compiling = [pool.submit(after.program.compile) for after in runs[i + 1 : i + 2] if not after.done]
            state, best = run.train(device, on_progress)
            if directory is not None:
                directory.close()
            trained.append(
                Trained(
                    run.name,
                    run.dag,
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
            title = f"{runs[0].data.name}, width {recipe.width}, η = {recipe.learning_rate:g}: mean and range, {seeds}"
            plot_training([run.history for run in trained], path, title)
    return trained


@dataclasses.dataclass
class _Run:
    """The training of one DAG."""

    name: str
    dag: Dag
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
        rates = np.array([self.recipe.learning_rate_at(epoch * steps, steps) for epoch in range(epochs)])
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
        for folder in (last, best):
            self._check(checkpoints.describe(folder)["description"], folder)
        abstract_state, abstract_best = self.program.abstract_state
        epochs = checkpoints.describe(last)["description"]["recipe"]["epochs"]
        curves = np.empty((epochs + 1, *self.history.values.shape[1:]))
        (state, values), _ = checkpoints.restore(last, (abstract_state, curves))
        found, _ = checkpoints.restore(best, abstract_best)
        self.history.values[: len(values)] = values
        self.states = state, found

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
            on_progress(self.name, done, epochs)
        for epoch in range(done + 1, epochs + 1):
            state, best, metrics, losses = self.program.run_epoch(state, best, self.seeds, epoch, device)
            if not np.isfinite(losses).all():
                self._stop(epoch, losses)
            self._record(epoch, metrics)
            if self.directory is not None and (epoch % self.checkpoint_every == 0 or epoch == epochs):
                self._save(epoch, state, best)
            if on_progress is not None:
                on_progress(self.name, epoch, epochs)
        return state, best

    def _record(self, epoch: int, metrics: np.ndarray) -> None:
        self.history.values[epoch] = metrics
        if self.directory is not None:
            self.directory.add(self.history, epoch)

    def _save(self, epoch: int, state: State, best: Best) -> None:
        assert self.directory is not None
        description = {"name": self.name, "dag": str(self.dag), **self.about}
        # The best first: if the process dies in between, the epoch is trained again and finds the same best state.
        for kind, tree in (("best", best), ("last", (state, self.history.values))):
            folder = self.directory.checkpoints(self.name, kind)
            checkpoints.save(folder, epoch, tree, {"kind": kind, **description})

    def _check(self, found: Mapping[str, Any], folder: Path) -> None:
        """Raises a `CheckpointError` where a checkpoint is of another run; the epochs may differ."""

        def comparable(of: Mapping[str, Any]) -> dict[str, Any]:
            return {**of, "recipe": {**of["recipe"], "epochs": None}}

        expected = comparable({"name": self.name, "dag": str(self.dag), **self.about})
        found = comparable(found)
        for key, value in expected.items():
            if found.get(key) != value:
                raise CheckpointError(
                    f"Expected the checkpoint {folder} to have {key} {value}, got {found.get(key)}; it belongs to "
                    "another run: put the right one there, or start anew with --overwrite"
                )

    def _stop(self, epoch: int, losses: np.ndarray) -> None:
        step_in_epoch, seed = (int(i[0]) for i in np.nonzero(~np.isfinite(losses)))
        step = (epoch - 1) * self.program.steps_per_epoch + step_in_epoch
        rate = self.recipe.learning_rate_at(step, self.program.steps_per_epoch)
        try:
            stable = stable_learning_rate(self.dag, self.recipe, self.data)
            advice = (
                "with batch normalisation no kernel says which rate is stable: lower --lr"
                if stable is None
                else f"the kernel's largest stable rate is {stable:.3g}: lower --lr below it"
            )
        except GraphError:
            advice = "this network has no closed-form kernel to say which rate is stable: lower --lr"
        message = (
            f"Expected the loss to stay finite, got {losses[step_in_epoch, seed]} at step {step} (epoch {epoch}) of "
            f"{self.name}, seed {self.seeds[seed]}, at learning rate {rate:.3g}; {advice}"
        )
        if self.directory is not None:
            self.directory.log(message)
        raise DivergenceError(message)


def _describe(data: Splits) -> dict[str, Any]:
    """Returns what tells whether a run is resumed on the same data, and how to load them."""
    found = hashlib.sha256()
    for x, labels in data.parts.values():
        found.update(np.ascontiguousarray(x).data)
        found.update(np.ascontiguousarray(labels.astype(np.int64)).data)
    sizes = {name: len(part.labels) for name, part in data.parts.items()}
    return {"name": data.name, **sizes, "sha256": found.hexdigest(), "source": dict(data.source)}


def _named(dags: Dag | Sequence[Dag] | Mapping[str, Dag]) -> dict[str, Dag]:
    if isinstance(dags, Mapping):
        named = dict(dags)
    else:
        listed = [dags] if isinstance(dags, Dag) else list(dags)
        named = {str(dag): dag for dag in listed}
        if len(named) < len(listed):
            raise InputError(f"Expected every DAG once, got {', '.join(map(str, listed))}")
    if not named:
        raise InputError("Expected at least one DAG to train, got none")
    return named
