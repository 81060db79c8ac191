"""Tasks of the trainer: networks of DAGs and networks of cells."""

import abc
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from nngp_dag.architecture import Network
from nngp_dag.architecture.document import to_document
from nngp_dag.data import ImageStream, Splits
from nngp_dag.errors import NngpDagError
from nngp_dag.nas import Cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.nets import summarize
from nngp_dag.nets.abstract import abstract
from nngp_dag.nets.model import Params
from nngp_dag.training.advice import stable_learning_rate
from nngp_dag.training.cell_recipe import CellRecipe
from nngp_dag.training.color_jitter import color_jittered
from nngp_dag.training.networks import build
from nngp_dag.training.recipe import Recipe

# Number of examples evaluated at once by networks without convolutions and pooling. Other networks need more memory per
# example and evaluate as many as they train on at once.
_EVALUATION_BATCH = 1000
_PADDING = 4

# Indices of examples in the training part, and the key of the step's random numbers, or None if it draws none.
Batch = tuple[Int[Array, "..."], Key[Array, "..."] | None]


class Task(abc.ABC):
    """A network with its recipe and data, for the trainer.

    Attributes:
      recipe: Recipe of the training, a `Recipe` or a `CellRecipe`.
      data: The data; only their shapes matter, except to `advice`.
      model: The network in abstract form, without weights.
      steps_per_epoch: Number of updates in an epoch.
      evaluation_batch: Number of examples that are evaluated at once.
      of_images: Whether the network has convolutions or pooling.
      crops: Whether images that are streamed are cropped at random in training.
      key: Key of the compiled programs; tasks of one run with equal keys share them.
      document: Description of the network that JSON can hold.
      sizes: Number of parameters, and other sizes, by name.
      about: Short text about the size of the networks, for titles and messages.
      size_option: Name of the option that makes networks smaller.

    Raises:
      InputError: The network does not fit the data.
    """

    recipe: Any
    steps_per_epoch: int
    evaluation_batch: int
    of_images: bool
    key: Hashable
    document: dict[str, Any]
    sizes: dict[str, int]
    about: str
    size_option: ClassVar[str]
    crops: bool = False

    def __init__(self, data: Splits | ImageStream, create: Callable[[nnx.Rngs], Any]):
        """Traces the network; draws no weights."""
        self.data, self._create = data, create
        self.model = abstract(create)
        self._graph, _ = nnx.split(self.model)

    def draw(self, key: Key[Array, ""]) -> tuple[Params, nnx.State]:
        """Returns the initial parameters and running averages."""
        _, params, stats = nnx.split(self._create(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return params, stats

    def net(self, params: Params, stats: nnx.State) -> Any:
        """Returns the network with these parameters and running averages."""
        # A transformation of JAX may not write to captured variables, so running averages need a copy.
        return nnx.merge(self._graph, params, stats, copy=True)

    def inputs(self, x: Array) -> Array:
        """Returns the inputs of the network for examples of the data, whose images have 8 bits if they are streamed."""
        return self.data.normalized(x.astype(jnp.float32) / 255) if isinstance(self.data, ImageStream) else x

    @abc.abstractmethod
    def batches(self, key: Key[Array, ""], epoch: Int[Array, ""]) -> tuple[Batch, Batch | None]:
        """Returns the full batches of an epoch, counted from 1, on a leading axis, and a smaller last one or None."""

    @abc.abstractmethod
    def loss(self, net: Any, x: Array, labels: Array, key: Any, epoch: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Returns the objective of a step, the loss for the curves, and the outputs; updates running averages."""

    @abc.abstractmethod
    def advice(self, rate: float) -> str:
        """Returns the remedy for losses that are no longer finite, for the end of a message."""


class DagTask(Task):
    """Training of a network with the connectivity of a DAG.

    The key of a seed is split in two. The first half draws the weights. The second one, folded with the epoch's number,
    draws the order of examples. The last batch of an epoch may be smaller.
    """

    recipe: Recipe
    size_option = "width"

    def __init__(self, network: Network, recipe: Recipe, data: Splits | ImageStream):
        """Traces the network."""
        shape, classes, batch_norm = data.input_shape, data.num_classes, recipe.batch_norm
        super().__init__(data, lambda rngs: build(network, shape, classes, batch_norm=batch_norm, rngs=rngs))
        self.network, self.recipe = network, recipe
        self.steps_per_epoch = -(-data.sizes["train"] // recipe.batch_size)
        self.of_images = bool(network.image_operations)
        self.evaluation_batch = recipe.batch_size if self.of_images else _EVALUATION_BATCH
        # Networks that differ only in dead edges, which do not affect the computation, share their programs.
        self.key = dataclasses.replace(network, dag=dataclasses.replace(network.dag, edges=network.dag.live_edges))
        self.document, self.about = to_document(network), f"width {network.width}"
        self.summary = summarize(self.model)
        self.sizes = {"parameters": self.summary.parameters, "flops_per_example": self.summary.flops}

    def draw(self, key: Key[Array, ""]) -> tuple[Params, nnx.State]:
        """As in `Task`."""
        return super().draw(jax.random.split(key)[0])

    def batches(self, key: Key[Array, ""], epoch: Int[Array, ""]) -> tuple[Batch, Batch | None]:
        """As in `Task`."""
        examples, size = self.data.sizes["train"], self.recipe.batch_size
        order = jax.random.permutation(jax.random.fold_in(jax.random.split(key)[1], epoch), examples)
        whole = examples // size * size
        return (order[:whole].reshape(-1, size), None), (order[whole:], None) if whole < examples else None

    def loss(self, net: Any, x: Array, labels: Array, key: Any, epoch: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """As in `Task`."""
        net.train()
        outputs = net(self.inputs(x))
        loss = self.recipe.losses(outputs, labels).mean()
        return loss, loss, outputs

    def advice(self, rate: float) -> str:
        """As in `Task`."""
        if isinstance(self.data, ImageStream):
            return "lower `learning_rate`"
        try:
            stable = stable_learning_rate(self.network, self.recipe, self.data)
        except NngpDagError as error:
            return f"no kernel says which rate is stable ({error}): lower `learning_rate`"
        if stable is None:
            return "with batch normalization no kernel says which rate is stable: lower `learning_rate`"
        if rate < stable:
            decay = self.recipe.weight_decay > 0
            beyond, too = ("without weight decay", " or `weight_decay`") if decay else ("at infinite width", "")
            return f"the kernel's largest stable rate is {stable:.3g}, {beyond}: lower `learning_rate`{too}"
        return f"the kernel's largest stable rate is {stable:.3g}: lower `learning_rate` below it"


class CellTask(Task):
    """Training of the network of a cell, with augmented images, drop path and an auxiliary head.

    The key of a seed draws the weights. Folded with the epoch's number, counted from 0, it draws the order of images
    and the random numbers of the steps. An epoch leaves out images that do not fill a last batch.
    """

    recipe: CellRecipe
    of_images = True
    size_option = "channels"

    def __init__(self, cell: Cell | Genotype, recipe: CellRecipe, data: Splits | ImageStream):
        """Traces the network."""
        shape = data.input_shape
        super().__init__(data, lambda rngs: recipe.network(cell, shape, data.num_classes, rngs))
        self.recipe, self.crops = recipe, recipe.augment
        self.evaluation_batch = recipe.batch_size // recipe.accumulate
        self.steps_per_epoch = data.sizes["train"] // recipe.batch_size
        self.key, self.document = cell, {"cell": str(cell)}
        self.about = f"{recipe.channels} channels, {recipe.layers} layers"
        # The auxiliary head is used only in training, so its parameters are not counted.
        parts = [self.model, *([head] if (head := getattr(self.model, "head", None)) is not None else [])]
        whole, *heads = (sum(leaf.size for leaf in jax.tree.leaves(nnx.state(part, nnx.Param))) for part in parts)
        self.sizes = {"parameters": whole - sum(heads)}

    def batches(self, key: Key[Array, ""], epoch: Int[Array, ""]) -> tuple[Batch, Batch | None]:
        """As in `Task`."""
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch - 1))
        steps, size = self.steps_per_epoch, self.recipe.batch_size
        order = jax.random.permutation(order_key, self.data.sizes["train"])[: steps * size]
        return (order.reshape(steps, size), jax.random.split(step_key, steps)), None

    def loss(self, net: Any, x: Array, labels: Array, key: Any, epoch: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """As in `Task`."""
        recipe, (image_key, path_key) = self.recipe, jax.random.split(key)
        images = self._augmented(image_key, x)
        outputs, auxiliary = net.train_step(images, path_key, recipe.drop_path * (epoch - 1) / recipe.epochs)
        loss = total = recipe.losses(outputs, labels).mean()
        if auxiliary is not None:
            total = loss + recipe.auxiliary * recipe.losses(auxiliary, labels).mean()
        return total, loss, outputs

    def _augmented(self, key: Key[Array, ""], x: Array) -> Array:
        """Returns the images to train on; those that are streamed are cropped already."""
        recipe = self.recipe
        if not isinstance(self.data, ImageStream):
            return augmented(key, x, recipe.cutout) if recipe.augment else x
        color_key, square_key = jax.random.split(key)
        images = x.astype(jnp.float32) / 255
        images = self.data.normalized(color_jittered(color_key, images) if recipe.color_jitter else images)
        return cut_out(square_key, images, recipe.cutout) if recipe.cutout and recipe.augment else images

    def advice(self, rate: float) -> str:
        """As in `Task`."""
        return "lower `learning_rate`"


def augmented(key: Key[Array, ""], images: Float[Array, "n h w c"], cutout: int) -> Float[Array, "n h w c"]:
    """Crops padded images at random, mirrors each with probability 1/2, and sets a random square to zero (cutout)."""
    n, height, width, channels = images.shape
    corner_key, mirror_key, square_key = jax.random.split(key, 3)
    padded = jnp.pad(images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    corners = jax.random.randint(corner_key, (n, 2), 0, 2 * _PADDING + 1)
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))
    images = cut(padded, corners)
    mirrored = jax.random.bernoulli(mirror_key, 0.5, (n, 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    return cut_out(square_key, images, cutout) if cutout else images


def cut_out(key: Key[Array, ""], images: Float[Array, "n h w c"], cutout: int) -> Float[Array, "n h w c"]:
    """Sets a random square of every image to zero; it may reach beyond the image."""
    n, height, width, _ = images.shape
    inside = []
    for side, side_key in zip((height, width), jax.random.split(key), strict=True):
        distance = jnp.arange(side)[None] - jax.random.randint(side_key, (n, 1), 0, side)
        inside.append((distance >= -(cutout // 2)) & (distance < cutout - cutout // 2))
    return jnp.where((inside[0][:, :, None] & inside[1][:, None, :])[..., None], 0, images)
