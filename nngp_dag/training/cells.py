"""Training of the network of one found cell."""

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from nngp_dag.data import Splits
from nngp_dag.errors import DivergenceError, InputError
from nngp_dag.nas import Cell
from nngp_dag.nas.darts import Genotype
from nngp_dag.storage import output_file
from nngp_dag.training import checkpoints
from nngp_dag.training.cell_recipe import CellRecipe, with_choices
from nngp_dag.training.history import METRICS, PARTS, History
from nngp_dag.training.plots import plot_training
from nngp_dag.training.program import Device, on_device
from nngp_dag.training.run import Progress
from nngp_dag.training.rundir import RunDirectory

_PADDING = 4
_NAME = "cell"


class CellState(NamedTuple):
    """What training changes.

    Attributes:
      params: The trained parameters.
      stats: Running statistics of batch norm.
      optimizer: Momentum.
    """

    params: nnx.State
    stats: nnx.State
    optimizer: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedCell:
    """A trained network.

    Attributes:
      history: Its curves.
      parameters: How many parameters it has, without those of the auxiliary head.
      state: The state after the last epoch.
    """

    history: History
    parameters: int
    state: CellState


def train_cell(
    cell: Cell | Genotype,
    data: Splits,
    recipe: CellRecipe | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    **choices: Any,
) -> TrainedCell:
    """Trains the network of a cell by stochastic gradient descent; an epoch is one compiled program.

    The same seed, options, machine and versions give the same bits, also where a run was killed and resumed.

    Args:
      cell: The cell.
      data: What to train on.
      recipe: Network and optimizer; by default `CellRecipe.of` the cell.
      seed: Of weights, order of images, augmentation and drop path.
      out: Folder for configuration, log, curves (CSV, PNG, TensorBoard) and the last checkpoint; None writes nothing.
      resume: Go on with the run in `out`.
      overwrite: Replace the run in `out`.
      config: What else to write to config.json.
      on_progress: Called with ("cell", epochs done, epochs, training loss).
      **choices: Fields of `CellRecipe` to replace.

    Raises:
      InputError: An option is out of range or does not fit the data.
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
    make = (
        partial(CellRecipe.of, cell, data.train.x.shape[1:]) if recipe is None else partial(dataclasses.replace, recipe)
    )
    recipe = with_choices(make, choices)
    if not 0 <= seed < 2**32:
        raise InputError(f"Expected `seed` from 0 to 2^32 - 1, got {seed}")
    if resume and out is None:
        raise InputError("Expected `out` to name the run to resume, got None; pass the folder of the run")
    if recipe.batch_size > len(data.train.labels):
        raise InputError(
            f"Expected `batch_size` to be at most the {len(data.train.labels)} training images, got {recipe.batch_size}"
        )
    if recipe.cutout > min(data.train.x.shape[1:3]):
        raise InputError(f"Expected `cutout` to be at most the side of images, got {recipe.cutout}")
    net = recipe.network(cell, data.train.x.shape[1:], data.num_classes, nnx.Rngs(seed))
    about = {
        "recipe": dataclasses.asdict(recipe),
        "seeds": [seed],
        "data": data.fingerprint,
        "networks": {_NAME: {"cell": str(cell)}},
    }
    directory = None if out is None else RunDirectory(Path(out), [_NAME])
    opened = contextlib.nullcontext()
    if directory is not None:
        opened = directory.opened({**(config or {}), **about}, resume=resume, overwrite=overwrite)
    with opened:
        run = _CellRun(net, recipe, seed, data, directory, about)
        if resume:
            run.load()
        if directory is not None:
            directory.begin([run.history], [data.statement, f"{_NAME}: {run.parameters:,} parameters"])
        state = run.train(on_progress)
        if directory is not None:
            directory.finish([run.history])
            with output_file(directory.path / "curves.png", overwrite=True) as path:
                title = f"{_NAME} on {data.name}, {recipe.channels} channels, {recipe.layers} layers"
                loss = "cross entropy" + " with smoothed labels" * bool(recipe.label_smoothing)
                plot_training([run.history], path, title, loss=loss)
    return TrainedCell(run.history, run.parameters, jax.device_get(state))


class _CellRun:
    """One training; the state after an epoch is a function of the state before it, the seed and its number alone."""

    def __init__(
        self,
        net: Any,
        recipe: CellRecipe,
        seed: int,
        data: Splits,
        directory: RunDirectory | None,
        about: Mapping[str, Any],
    ):
        self.recipe, self.data, self.directory, self.about = recipe, data, directory, dict(about)
        self.graph, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
        self.optimizer = recipe.optimizer()
        self.state = CellState(params, stats, self.optimizer.init(params))
        heads = jax.tree.leaves(nnx.state(net.head)) if getattr(net, "head", None) is not None else []
        sizes = [sum(leaf.size for leaf in leaves) for leaves in (jax.tree.leaves(params), heads)]
        self.parameters = sizes[0] - sizes[1]
        self.key = jax.random.key(seed)
        self.steps = len(data.train.labels) // recipe.batch_size
        values = np.full((recipe.epochs + 1, len(PARTS), len(METRICS), 1), np.nan)
        rates = np.asarray(recipe.rates(np.arange(recipe.epochs)), np.float64)
        self.history = History(_NAME, (seed,), self.steps, rates, values)

    def load(self) -> None:
        """Reads the last checkpoint back, if there is one."""
        assert self.directory is not None
        folder = self.directory.checkpoints(_NAME, "last")
        if checkpoints.latest(folder) is not None:
            checkpoints.check_is_of(folder, checkpoints.describe(folder)["description"], self.about)
            (state, values), _ = checkpoints.restore(folder, (self.state, self.history.values))
            self.state = state
            self.history.values[:] = values

    def train(self, on_progress: Progress | None) -> CellState:
        """Trains whatever epochs are left."""
        device, recipe = on_device(self.data), self.recipe
        if self.history.epochs_done < 0:
            self._record(0, jnp.stack([self._evaluate(self.state, *device[part]) for part in PARTS]))
        if on_progress is not None:
            on_progress(_NAME, self.history.epochs_done, recipe.epochs, self._loss(self.history.epochs_done))
        for epoch in range(self.history.epochs_done + 1, recipe.epochs + 1):
            self.state, train = self._epoch(self.state, jnp.asarray(epoch - 1), device)
            metrics = jnp.stack([train, *(self._evaluate(self.state, *device[part]) for part in PARTS[1:])])
            if not np.isfinite(metrics).all():
                raise DivergenceError(
                    f"Expected finite losses, got others in epoch {epoch}; lower the learning rate"
                    + ("" if self.directory is None else "; the checkpoint of the epoch before stays")
                )
            self._record(epoch, metrics)
            if self.directory is not None:
                folder = self.directory.checkpoints(_NAME, "last")
                checkpoints.save(folder, epoch, (self.state, self.history.values), self.about)
            if on_progress is not None:
                on_progress(_NAME, epoch, recipe.epochs, self._loss(epoch))
        return self.state

    def _loss(self, epoch: int) -> float:
        return float(self.history.of("train", "loss")[epoch, 0])

    def _record(self, epoch: int, metrics: Array) -> None:
        self.history.values[epoch, :, :, 0] = np.asarray(metrics, np.float64)
        if self.directory is not None:
            self.directory.add(self.history, epoch)

    @partial(jax.jit, static_argnums=0)
    def _epoch(self, state: CellState, epoch: Int[Array, ""], data: Device) -> tuple[CellState, Float[Array, " 3"]]:
        """Trains for an epoch; returns the running means of the training part."""
        recipe, (x, labels) = self.recipe, data["train"]
        order_key, step_key = jax.random.split(jax.random.fold_in(self.key, epoch))
        order = jax.random.permutation(order_key, len(x))[: self.steps * recipe.batch_size]
        rate, drop_path = recipe.rates(epoch), recipe.drop_path * epoch / recipe.epochs

        def loss_of(params: nnx.State, stats: nnx.State, images: Array, targets: Array, key: Array) -> Any:
            net = nnx.merge(self.graph, params, stats, copy=True)
            logits, auxiliary = net.train_step(images, key, drop_path)
            loss = total = self._losses(logits, targets).mean()
            if auxiliary is not None:
                total = loss + recipe.auxiliary * self._losses(auxiliary, targets).mean()
            return total, (nnx.state(net, nnx.BatchStat), loss, logits)

        def step(carry: tuple[CellState, Array], batch: tuple[Array, Array]) -> tuple[tuple[CellState, Array], None]:
            (state, sums), (chosen, key) = carry, batch
            targets, (image_key, path_key) = labels[chosen], jax.random.split(key)
            images = _augmented(image_key, x[chosen], recipe.cutout) if recipe.augment else x[chosen]
            gradient, (stats, loss, logits) = jax.grad(loss_of, has_aux=True)(
                state.params, state.stats, images, targets, path_key
            )
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
            params: Any = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
            seen = self._sums(logits, targets, loss * len(targets), jnp.ones(len(targets)))
            return (CellState(params, stats, optimizer), sums + seen), None

        batches = order.reshape(self.steps, recipe.batch_size), jax.random.split(step_key, self.steps)
        (state, sums), _ = jax.lax.scan(step, (state, jnp.zeros((3, self.data.num_classes))), batches)
        return state, _metrics(sums)

    @partial(jax.jit, static_argnums=0)
    def _evaluate(self, state: CellState, x: Array, labels: Array) -> Float[Array, " 3"]:
        """Returns loss, accuracy and mean accuracy of classes, by the running statistics."""
        net = nnx.merge(self.graph, state.params, state.stats)
        size = min(self.recipe.batch_size, len(x))

        def add(sums: Array, block: Int[Array, " b"]) -> tuple[Array, None]:
            # The last block is filled up with images that do not count.
            counts, block = (block < len(x)).astype(jnp.float32), jnp.minimum(block, len(x) - 1)
            logits = net(x[block])
            loss = (self._losses(logits, labels[block]) * counts).sum()
            return sums + self._sums(logits, labels[block], loss, counts), None

        blocks = jnp.arange(-(-len(x) // size) * size).reshape(-1, size)
        return _metrics(jax.lax.scan(add, jnp.zeros((3, self.data.num_classes)), blocks)[0])

    def _losses(self, logits: Array, labels: Array) -> Array:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, self.data.num_classes), self.recipe.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets)

    def _sums(self, logits: Array, labels: Array, loss: Array, counts: Array) -> Float[Array, "3 classes"]:
        """Returns hits and images of every class, and the loss in every entry."""
        hits, zeros = (logits.argmax(axis=-1) == labels) * counts, jnp.zeros(self.data.num_classes)
        return jnp.stack([zeros.at[labels].add(hits), zeros.at[labels].add(counts), zeros + loss])


def _metrics(sums: Float[Array, "3 classes"]) -> Float[Array, " 3"]:
    hits, images, loss = sums
    of_class = (hits / jnp.maximum(images, 1)).sum() / (images > 0).sum()
    return jnp.stack([loss[0] / images.sum(), hits.sum() / images.sum(), of_class])


def _augmented(key: Key[Array, ""], images: Float[Array, "n h w c"], cutout: int) -> Float[Array, "n h w c"]:
    """Cuts images out of padded ones, mirrors half of them, and puts squares of zeros on them."""
    n, height, width, channels = images.shape
    corner_key, mirror_key, square_key = jax.random.split(key, 3)
    padded = jnp.pad(images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    corners = jax.random.randint(corner_key, (n, 2), 0, 2 * _PADDING + 1)
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))
    images = cut(padded, corners)
    mirrored = jax.random.bernoulli(mirror_key, 0.5, (n, 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    if cutout:
        inside = []
        for side, side_key in zip((height, width), jax.random.split(square_key), strict=True):
            distance = jnp.arange(side)[None] - jax.random.randint(side_key, (n, 1), 0, side)
            inside.append((distance >= -(cutout // 2)) & (distance < cutout - cutout // 2))
        images = jnp.where((inside[0][:, :, None] & inside[1][:, None, :])[..., None], 0, images)
    return images
