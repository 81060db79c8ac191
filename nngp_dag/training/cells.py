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
from nngp_dag.errors import DivergenceError, InputError, OutputError
from nngp_dag.nas import Cell
from nngp_dag.nas.darts import Genotype
from nngp_dag.nas.discrete import BenchNet, DartsNet
from nngp_dag.report import output_file
from nngp_dag.report.environment import environment
from nngp_dag.training import checkpoints
from nngp_dag.training.history import METRICS, PARTS, History
from nngp_dag.training.plots import plot_training
from nngp_dag.training.program import Device, on_device
from nngp_dag.training.run import Progress
from nngp_dag.training.rundir import RunDirectory

_PADDING = 4
_NAME = "cell"


@dataclasses.dataclass(frozen=True)
class CellRecipe:
    """How the network of a cell is made and trained; the defaults are those of DARTS on CIFAR-10, but for the decay.

    Attributes:
      channels: C.
      layers: L of a DARTS network, or N, the cells of a stage, of a NAS-Bench-201 network.
      epochs: Passes over the training part.
      batch_size: Images of a step. What is left over at the end of an epoch's order is not trained on in that epoch.
      learning_rate: At first; every epoch has one, on half a cosine to 0.
      momentum: Factor of the momentum.
      weight_decay: Times every parameter, added to its gradient: 3e-5 in Chen et al., 3e-4 in DARTS.
      label_smoothing: Share of the target that all classes have in equal parts.
      gradient_clip: The largest Euclidean norm of all gradients together.
      auxiliary: Weight of the auxiliary head's loss, 0.4 in DARTS; 0 for no head. Of DARTS networks only.
      drop_path: Probability of dropping a path in the last epoch, to which it rises linearly from 0.
      augment: Whether images are padded by 4 pixels of 0, cut out at random and mirrored at random.
      cutout: Side of a square of zeros at a random place; 16 in DARTS on CIFAR-10, 0 for none.

    Raises:
      InputError: A value is out of range.

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Appendix A; Chen et al., NeurIPS 2022, Section 5.
    """

    channels: int = 36
    layers: int = 20
    epochs: int = 600
    batch_size: int = 96
    learning_rate: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 3e-5
    label_smoothing: float = 0.0
    gradient_clip: float = 5.0
    auxiliary: float = 0.0
    drop_path: float = 0.0
    augment: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        """Refuses what no training could use."""
        for name in ("channels", "layers", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected `{name}` to be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "auxiliary", "cutout", "gradient_clip"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"Expected `{name}` to be finite and at least 0, got {getattr(self, name)}")
        for name in ("momentum", "label_smoothing", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Expected `{name}` from 0 to below 1, got {getattr(self, name)}")

    def network(self, cell: Cell | Genotype, image_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> Any:
        """Returns the network of a cell.

        Raises:
          InputError: The images do not fit, or a NAS-Bench-201 network is to have an auxiliary head.
        """
        if len(image_shape) != 3:
            raise InputError(f"Expected images (height, width, channels) to train a cell on, got inputs {image_shape}")
        height, width, channels = image_shape
        shape, sizes = (height, width, channels), {"channels": self.channels, "classes": classes, "rngs": rngs}
        if isinstance(cell, Genotype):
            return DartsNet(cell, shape, layers=self.layers, auxiliary=self.auxiliary > 0, **sizes)
        if self.auxiliary:
            raise InputError(
                f"Expected `auxiliary` to be 0 for a cell of NAS-Bench-201, whose network has no such head, got "
                f"{self.auxiliary}"
            )
        return BenchNet(cell, shape, cells=self.layers, **sizes)

    def rates(self, epoch: Any) -> Any:
        """Returns the learning rate of epochs, counted from 0."""
        return self.learning_rate * (1 + jnp.cos(jnp.pi * epoch / self.epochs)) / 2


class CellState(NamedTuple):
    """What training changes.

    Attributes:
      params: The trained parameters.
      stats: Running statistics of batch norm.
      optimiser: Momentum.
    """

    params: nnx.State
    stats: nnx.State
    optimiser: PyTree


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


def read_cell(text: str) -> Cell | Genotype:
    """Returns the cell of a text: of NAS-Bench-201, a genotype as text or JSON, or the path of a file with one.

    Raises:
      GraphError: It is none of them.

    Example:
      >>> read_cell("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|").operations[0]
      'nor_conv_3x3'
    """
    text = text.strip()
    if not text.startswith(("|", "{", "Genotype")) and Path(text).is_file():
        text = Path(text).read_text().strip()
    if text.startswith("|"):
        return Cell.parse(text)
    return Genotype.from_json(text) if text.startswith("{") else Genotype.from_text(text)


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
      recipe: Network and optimiser; by default `CellRecipe()`.
      seed: Of weights, order of images, augmentation and drop path.
      out: Folder for configuration, log, curves (CSV, PNG, TensorBoard) and the last checkpoint; None writes nothing.
      resume: Go on with the run in `out`.
      overwrite: Replace the run in `out`.
      config: What else to write to config.json.
      on_progress: Called with ("cell", epochs done, epochs).
      **choices: Fields of `CellRecipe` to replace.

    Raises:
      InputError: An option is out of range or does not fit the data.
      DivergenceError: A loss is no longer finite.
      OutputError: `out` holds another run or cannot be written.
      CheckpointError: What `resume` finds is damaged or another run.

    Example:
      >>> import nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=100)
      >>> cell = read_cell("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_1x1~2|")
      >>> train_cell(cell, data, channels=2, layers=1, epochs=1, batch_size=50).history.epochs_done
      1

    Reference: as `CellRecipe`.
    """
    try:
        recipe = dataclasses.replace(recipe or CellRecipe(), **choices)
    except TypeError as error:
        raise InputError(f"Expected options of `CellRecipe`, got {', '.join(choices)}: {error}") from None
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
        "dags": {_NAME: str(cell)},
    }
    directory = None if out is None else RunDirectory(Path(out), [_NAME])
    document = {**(config or {}), **about, "environment": environment()}
    if directory is not None:
        directory.prepare(document, resume=resume, overwrite=overwrite)
    run = _CellRun(net, recipe, seed, data, directory, about)
    try:
        if resume:
            run.load()
        if directory is not None:
            directory.write_config(document, resume=resume)
            directory.log(data.statement)
            directory.log(f"{_NAME}: {run.parameters:,} parameters")
            directory.begin([run.history] if run.history.epochs_done >= 0 else [])
        state = run.train(on_progress)
    except BaseException:
        if directory is not None and not resume and run.history.epochs_done < 0:
            with contextlib.suppress(OutputError):
                directory.discard()
        raise
    if directory is not None:
        directory.finish([run.history])
        with output_file(directory.path / "curves.png", overwrite=True) as path:
            plot_training([run.history], path, f"{data.name}, C = {recipe.channels}, {recipe.layers} layers")
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
        self.optimiser = optax.chain(
            optax.clip_by_global_norm(recipe.gradient_clip),
            optax.add_decayed_weights(recipe.weight_decay),
            optax.trace(recipe.momentum),
        )
        self.state = CellState(params, stats, self.optimiser.init(params))
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
            (state, values), _ = checkpoints.restore(folder, (self.state, self.history.values))
            self.state = state
            self.history.values[:] = values

    def train(self, on_progress: Progress | None) -> CellState:
        """Trains whatever epochs are left."""
        device, recipe = on_device(self.data), self.recipe
        if self.history.epochs_done < 0:
            self._record(0, jnp.stack([self._evaluate(self.state, *device[part]) for part in PARTS]))
        if on_progress is not None:
            on_progress(_NAME, self.history.epochs_done, recipe.epochs)
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
                on_progress(_NAME, epoch, recipe.epochs)
        return self.state

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
            updates, optimiser = self.optimiser.update(gradient, state.optimiser, state.params)
            params: Any = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
            seen = self._sums(logits, targets, loss * len(targets), jnp.ones(len(targets)))
            return (CellState(params, stats, optimiser), sums + seen), None

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
