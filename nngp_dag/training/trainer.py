"""The trainer of all tasks: several networks and seeds, with checkpoints, curves and logs; a killed run can resume."""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from nngp_dag import distributed, forms
from nngp_dag.data import ImageStream, Splits
from nngp_dag.errors import (
    CheckpointError,
    DivergenceError,
    InputError,
    InputWarning,
    as_path,
    check_callable,
    shown,
    warn,
    within_memory,
)
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_flag, check_whole
from nngp_dag.nets import chosen_seeds
from nngp_dag.nets.model import Params
from nngp_dag.storage import check_config, output_file, reason_of
from nngp_dag.training import checkpoints
from nngp_dag.training.history import METRICS, PARTS, History
from nngp_dag.training.plots import plot_training
from nngp_dag.training.program import AfterStep, Begun, Best, Program, State
from nngp_dag.training.rundir import RunDirectory
from nngp_dag.training.stream_program import StreamProgram
from nngp_dag.training.tasks import Task

if TYPE_CHECKING:
    import pandas

Progress = Callable[[str, int | float, int, float], None]

# In float32, with gradients, momentum and the best state, these take 128 GiB.
_MOST_PARAMETERS = 1 << 33
# Seconds between checkpoints within an epoch of a stream, and between calls of `on_progress`.
_SAVE_EVERY, _TELL_EVERY = 300.0, 1.0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Outcome(Described):
    """S trained networks of one task.

    Attributes:
      name: Name of the network, as the user gave it.
      parameters: Number of parameters of each network, without those that are used only in training.
      history: Losses and accuracies per epoch.
      params: Parameters after the last epoch; every leaf has a leading axis of S seeds.
      stats: Running averages of batch normalization after the last epoch, with the same axis.
      best_params: Parameters after each seed's best epoch, by validation accuracy, with the same axis.
      best_stats: Running averages after each seed's best epoch, with the same axis.
      best_epoch: Number of each seed's best epoch, counted from 1, (S,).
      folder: Folder of the run; None if nothing was written.
    """

    name: str
    parameters: int
    history: History
    params: Params
    stats: nnx.State
    best_params: Params
    best_stats: nnx.State
    best_epoch: np.ndarray
    folder: Path | None = dataclasses.field(default=None, kw_only=True)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns the curves as a table, as `History.to_frame` does."""
        return self.history.to_frame()

    def _facts(self) -> dict[str, str]:
        accuracy = self.history.of("test", "accuracy")
        facts = {"": repr(self.name), "seeds": str(list(self.history.seeds))}
        facts |= {"epochs": str(self.history.epochs_done), "parameters": forms.number(self.parameters)}
        best = accuracy[self.best_epoch, np.arange(len(self.history.seeds))]
        facts |= {"test_accuracy": forms.over(accuracy[self.history.epochs_done]), "at_best_epoch": forms.over(best)}
        return facts | ({} if self.folder is None else {"folder": repr(str(self.folder))})


def check_batch_size(batch_size: int, data: Splits | ImageStream) -> None:
    """Refuses batches that are larger than the training part."""
    if batch_size > (examples := data.sizes["train"]):
        raise InputError(
            f"Expected `batch_size` to be at most the {examples} training examples, got {batch_size}; lower it "
            "or take more data"
        )


def train_tasks(
    tasks: Mapping[str, Task],
    seeds: SupportsIndex | Sequence[int],
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    checkpoint_every: int,
    config: Mapping[str, Any] | None,
    on_progress: Progress | None,
    mesh: Mesh | None,
) -> list[Outcome]:
    """Trains networks of one recipe on one data set, one after another; see `nngp_dag.train` for the arguments."""
    first = next(iter(tasks.values()))
    recipe, data = first.recipe, first.data
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    chosen = chosen_seeds(seeds)
    checkpoint_every = check_whole("checkpoint_every", checkpoint_every, 1)
    check_config(config)
    if resume and out is None:
        raise InputError("Expected `out` to name the run to resume, got None; pass the folder of the run")
    check_batch_size(recipe.batch_size, data)
    if mesh is not None:
        part = recipe.batch_size // recipe.accumulate
        if part % (devices := distributed.check_mesh(mesh).size):
            divided = "" if recipe.accumulate == 1 else f" divided by `accumulate`, {recipe.accumulate},"
            raise InputError(
                f"Expected `batch_size`{divided} to be a multiple of the {devices} devices, got {part}; change it"
            )
    for name, task in tasks.items():
        if (parameters := task.sizes["parameters"]) * len(chosen) > _MOST_PARAMETERS:
            raise InputError(
                f"Expected networks of at most {_MOST_PARAMETERS:,} parameters in all, got {len(chosen)} of {name} "
                f"with {parameters:,} each; lower `{task.size_option}` or `seeds`"
            )
    check_callable("on_progress", on_progress)
    first_of_all = distributed.is_first()
    # Process 0 writes all files.
    directory = RunDirectory(as_path("out", out), list(tasks)) if out is not None and first_of_all else None
    about = {"recipe": recipe.as_dict(), "seeds": chosen, "data": data.fingerprint}
    document = {
        **(config or {}),
        "networks": {name: task.document for name, task in tasks.items()},
        **about,
        "models": {name: task.sizes for name, task in tasks.items()},
    }
    opened = contextlib.nullcontext()
    if directory is not None:
        opened = directory.opened(document, resume=resume, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        distributed.first_does(lambda: stack.enter_context(opened))
        programs: dict[Hashable, Program] = {}
        for task in tasks.values():
            if task.key not in programs:
                kind = StreamProgram if isinstance(data, ImageStream) else Program
                programs[task.key] = kind(task, len(chosen), mesh)
        runs = [
            Run(name, task, programs[task.key], chosen, directory, checkpoint_every, about)
            for name, task in tasks.items()
        ]
        if resume:
            distributed.first_does(lambda: [run.load() for run in runs])
            for run in runs:
                run.history.values[:], run.begun = distributed.from_first((run.history.values, run.begun))
        if directory is not None:
            sizes = [
                f"{name}: " + ", ".join(f"{size:,} {what.replace('_', ' ')}" for what, size in task.sizes.items())
                for name, task in tasks.items()
            ]
            directory.begin([run.history for run in runs], [data.statement, *sizes])
        kinds = "; ".join(dict.fromkeys(task.about for task in tasks.values()))
        remedy = f"lower `{first.size_option}`, `seeds` or `batch_size`"
        with within_memory(f"{len(chosen)} networks of {kinds}", remedy), distributed.together():
            trained = _train_all(runs, on_progress)
        if directory is not None:
            histories = [run.history for run in trained]
            directory.finish(histories)
            with output_file(directory.path / "curves.png", overwrite=True) as path:
                over = f"mean and range, {len(chosen)} seeds" if len(chosen) > 1 else "1 seed"
                title = f"{data.name}, {kinds}, η = {recipe.learning_rate:g}: {over}"
                plot_training(histories, path, title, loss=recipe.loss)
    return trained


def _train_all(runs: "Sequence[Run]", on_progress: Progress | None) -> list[Outcome]:
    trained, device = [], runs[0].program.load(runs[0].task.data)
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(1)
        # An error or an interruption must not wait for the compilation of the next network.
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        compiling: list[Future[None]] = [pool.submit(run.program.compile) for run in runs[:1] if not run.done]
        for i, run in enumerate(runs):
            run.draw()
            for future in compiling:
                future.result()
            # The next network's program compiles while this one trains.
            compiling = [pool.submit(after.program.compile) for after in runs[i + 1 : i + 2] if not after.done]
            state, best = run.train(device, on_progress)
            # States move to the host, so that the device holds those of one network at a time.
            states = jax.device_get((state.params, state.stats, best.params, best.stats, best.epoch))
            folder = None if run.directory is None else run.directory.path
            trained.append(Outcome(run.name, run.task.sizes["parameters"], run.history, *states, folder=folder))
    return trained


@dataclasses.dataclass
class Run:
    """The training of one network."""

    name: str
    task: Task
    program: Program
    seeds: list[int]
    directory: RunDirectory | None
    checkpoint_every: int
    about: Mapping[str, Any]
    states: tuple[State, Best] | None = None

    def __post_init__(self) -> None:
        """Makes empty curves."""
        steps, epochs = self.task.steps_per_epoch, self.task.recipe.epochs
        rates = self.task.recipe.learning_rates_at(steps * np.arange(epochs), steps)
        values = np.full((epochs + 1, len(PARTS), len(METRICS), len(self.seeds)), np.nan)
        self.history = History(self.name, tuple(self.seeds), steps, rates, values)
        self.begun, self.saved = self.program.nothing_begun(), time.monotonic()

    @property
    def started(self) -> bool:
        """Whether the curves hold the state before training."""
        return self.history.epochs_done >= 0

    @property
    def done(self) -> bool:
        """Whether all epochs are trained."""
        return self.history.epochs_done == self.task.recipe.epochs

    def load(self) -> None:
        """Reads the newest checkpoint, if there is one."""
        if self.directory is None:
            return
        begun, best, last = (self.directory.checkpoints(self.name, kind) for kind in ("begun", "best", "last"))
        whole, steps = checkpoints.latest(last), checkpoints.latest(begun)
        if steps is not None and steps > self.history.steps_per_epoch * (whole or 0):
            try:
                return self._load_begun(begun)
            # Without this checkpoint the steps since the one before are taken again, to the same bits.
            except CheckpointError as error:
                cause = error.__cause__
                got = reason_of(cause) if isinstance(cause, Exception) else "one of another run"
                message = (
                    f"Expected {begun} to hold the state after step {steps}, got {got}; training goes on after epoch "
                    f"{whole or 0}"
                )
                self.directory.log(message)
                warn(message, InputWarning)
                # orbax would not save earlier steps beside it.
                shutil.rmtree(begun, ignore_errors=True)
        if whole is not None:
            abstract_state, abstract_best = self.program.abstract_state
            curves = self._empty_curves(last)
            self._empty_curves(best)
            (state, values), _ = checkpoints.restore(last, (abstract_state, curves))
            self.states = state, checkpoints.restore(best, abstract_best)[0]
            self.history.values[: len(values)] = values

    def _load_begun(self, folder: Path) -> None:
        """Reads a checkpoint within an epoch."""
        tree = *self.program.abstract_state, self.program.nothing_begun(), self._empty_curves(folder)
        (state, best, self.begun, values), _ = checkpoints.restore(folder, tree)
        self.states = state, best
        self.history.values[: len(values)] = values

    def _empty_curves(self, folder: Path) -> np.ndarray:
        """Returns curves of as many epochs as the run has that a checkpoint is of, which must be this run."""
        found = checkpoints.describe(folder, checkpoints.OF_RUN)["description"]
        epochs: int = found["recipe"]["epochs"]
        # Only the numbers of epochs may differ.
        recipe = {**self.about["recipe"], "epochs": epochs}
        checkpoints.check_is_of(folder, found, {**self._description(folder.name), "recipe": recipe})
        if epochs > self.task.recipe.epochs:
            raise CheckpointError(
                f"Expected at least the {epochs} epochs of the checkpoint {folder}, got {self.task.recipe.epochs}; "
                "resume with as many or more"
            )
        return np.empty((epochs + 1, *self.history.values.shape[1:]))

    def draw(self) -> None:
        """Draws the networks, unless a checkpoint was read; all processes take the networks of process 0."""
        if self.states is None:
            self.states = self.program.draw(self.seeds)
        self.states = self.program.placed(distributed.from_first(self.states))

    def train(self, device: Any, on_progress: Progress | None) -> tuple[State, Best]:
        """Trains the remaining epochs."""
        assert self.states is not None
        # An epoch reuses the memory of the states that it starts from, so no reference may stay.
        (state, best), self.states = self.states, None
        if not self.started:
            self._record(0, self.program.evaluate(state.params, state.stats, device))
        self.saved = time.monotonic()
        epochs = self.task.recipe.epochs
        done = self.history.epochs_done
        if on_progress is not None:
            on_progress(self.name, self._done(done, self.begun), epochs, self._loss(done))
        for epoch in range(done + 1, epochs + 1):
            after_step = self._after_step(epoch, on_progress)
            state, best, metrics, losses = self.program.run_epoch(
                state, best, self.seeds, epoch, device, self.begun, after_step
            )
            self.begun = self.program.nothing_begun()
            if not (np.isfinite(losses).all() and np.isfinite(metrics).all()):
                self._stop(epoch, losses)
            self._record(epoch, metrics)
            if self.directory is not None and (epoch % self.checkpoint_every == 0 or epoch == epochs):
                self._save(epoch, state, best)
            if on_progress is not None:
                on_progress(self.name, epoch, epochs, self._loss(epoch))
        return state, best

    def _after_step(self, epoch: int, on_progress: Progress | None) -> AfterStep:
        """Returns a function that now and then tells of an epoch that is under way, and keeps its state."""
        told = time.monotonic()

        def after_step(state: State, best: Best, known: Callable[[], Begun]) -> None:
            nonlocal told
            if self.directory is not None and time.monotonic() - self.saved >= _SAVE_EVERY:
                self._save_begun(epoch, state, best, known())
            if on_progress is not None and time.monotonic() - told >= _TELL_EVERY:
                begun = known()
                loss = float(begun.sums[0].sum() / begun.sums[2].sum())
                on_progress(self.name, self._done(epoch - 1, begun), self.task.recipe.epochs, loss)
                told = time.monotonic()

        return after_step

    def _done(self, epochs: int, begun: Begun) -> int | float:
        """Returns the number of epochs done, rounded down so that only whole epochs count as whole."""
        share = int(begun.steps) / self.history.steps_per_epoch
        return round(epochs + min(int(100 * share), 99) / 100, 2) if share else epochs

    def _loss(self, epoch: int) -> float:
        return float(self.history.of("train", "loss")[epoch].mean())

    def _record(self, epoch: int, metrics: np.ndarray) -> None:
        self.history.values[epoch] = metrics
        if self.directory is not None:
            self.directory.add(self.history, epoch)

    def _save(self, epoch: int, state: State, best: Best) -> None:
        assert self.directory is not None
        # The best state is saved first. If the process dies in between, the epoch is trained again and finds the same
        # best state.
        for kind, tree in (("best", best), ("last", (state, self.history.values))):
            folder = self.directory.checkpoints(self.name, kind)
            checkpoints.save(folder, epoch, tree, self._description(kind))
        shutil.rmtree(self.directory.checkpoints(self.name, "begun"), ignore_errors=True)
        self.saved = time.monotonic()

    def _save_begun(self, epoch: int, state: State, best: Best, begun: Begun) -> None:
        """Saves the state within an epoch, unless a loss is not finite: then the run stops when the epoch ends."""
        assert self.directory is not None
        if np.isfinite(begun.losses[: begun.steps]).all():
            steps = (epoch - 1) * self.history.steps_per_epoch + int(begun.steps)
            tree = state, best, begun, self.history.values
            checkpoints.save(self.directory.checkpoints(self.name, "begun"), steps, tree, self._description("begun"))
        self.saved = time.monotonic()

    def _description(self, kind: str) -> dict[str, Any]:
        return {"kind": kind, "name": self.name, "network": self.task.document, **self.about}

    def _stop(self, epoch: int, losses: np.ndarray) -> None:
        """Raises a `DivergenceError` with the step, the seed and the remedy."""
        steps = self.task.steps_per_epoch
        wrong = ~np.isfinite(losses)
        # If all losses of the batches are finite, the last update broke the network, and its evaluation shows it.
        step_in_epoch, seed = (int(i[0]) for i in np.nonzero(wrong)) if wrong.any() else (steps - 1, None)
        step = (epoch - 1) * steps + step_in_epoch
        value = "one that is not" if seed is None else f"{losses[step_in_epoch, seed]}"
        whose = self.name if seed is None else f"{self.name}, seed {self.seeds[seed]}"
        rate = float(self.task.recipe.learning_rates_at(np.array([step]), steps)[0])
        message = (
            f"Expected the loss to stay finite, got {value} at step {step} (epoch {epoch}) of {whose}, at learning "
            f"rate {rate:.3g}; {self.task.advice(rate)}"
        )
        if self.directory is not None:
            self.directory.log(message)
        raise DivergenceError(message)


def check_data(data: object) -> None:
    """Raises an `InputError` unless an argument is `Splits` or an `ImageStream`."""
    if not isinstance(data, (Splits, ImageStream)):
        got = f"an array of shape {data.shape}" if isinstance(data, (np.ndarray, jax.Array)) else shown(data)
        raise InputError(
            f"Expected `data` to be `nngp_dag.data.Splits`, got {got}; build them from arrays x and labels, "
            "Splits('mine', Part(x, labels), Part(x_validation, ...), Part(x_test, ...), num_classes=10), or load a "
            "data set, `nngp_dag.data.load_splits('digits')`"
        )
