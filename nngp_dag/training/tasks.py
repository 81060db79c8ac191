"""What can be trained: networks of DAGs and networks of found cells."""

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
from nngp_dag.data import Splits
from nngp_dag.errors import NngpDagError
from nngp_dag.nas import Cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.nets import summarize
from nngp_dag.nets.model import Params
from nngp_dag.training.advice import stable_learning_rate
from nngp_dag.training.cell_recipe import CellRecipe
from nngp_dag.training.networks import build
from nngp_dag.training.recipe import Recipe

# Examples that are evaluated at once, where they have no pixels; with pixels as many as are trained on at once.
_EVALUATION_BATCH = 1000
_PADDING = 4

# Places of examples in the training part, and keys of what is drawn for them, if anything is.
Batch = tuple[Int[Array, "..."], Key[Array, "..."] | None]


class Task(abc.ABC):
    """A network and how it is trained; the trainer does the rest.

    Attributes:
      recipe: How it is trained, a `Recipe` or a `CellRecipe`.
      data: The data; but for `advice` only their shapes matter.
      model: The network, without numbers.
      steps_per_epoch: Updates in an epoch.
      evaluation_batch: Number of examples that are evaluated at once.
      key: Tasks of one run whose keys are equal share their programs.
      document: The network as what JSON can hold.
      sizes: Numbers of parameters and the like.
      about: What the networks of a run are called together.
      size_option: The option that makes networks smaller.

    Raises:
      InputError: The network does not fit the data.
    """

    recipe: Any
    steps_per_epoch: int
    evaluation_batch: int
    key: Hashable
    document: dict[str, Any]
    sizes: dict[str, int]
    about: str
    size_option: ClassVar[str]

    def __init__(self, data: Splits, create: Callable[[nnx.Rngs], Any]):
        """Traces the network; draws no weights."""
        self.data, self._create = data, create
        self.model = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
        self._graph, _ = nnx.split(self.model)

    def draw(self, key: Key[Array, ""]) -> tuple[Params, nnx.State]:
        """Returns parameters and running averages at the start."""
        _, params, stats = nnx.split(self._create(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return params, stats

    def net(self, params: Params, stats: nnx.State) -> Any:
        """Returns the network with these numbers in it."""
        # Copied, or running averages could not be written under a transformation.
        return nnx.merge(self._graph, params, stats, copy=True)

    @abc.abstractmethod
    def batches(self, key: Key[Array, ""], epoch: Int[Array, ""]) -> tuple[Batch, Batch | None]:
        """Returns the batches of an epoch, counted from 1, with a leading axis, and a last one that is smaller."""

    @abc.abstractmethod
    def loss(self, net: Any, x: Array, labels: Array, key: Any, epoch: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Returns what a step lowers, the loss of the curves, and the outputs; moves running averages."""

    @abc.abstractmethod
    def advice(self, rate: float) -> str:
        """Returns what to do about losses that are no longer finite."""


class DagTask(Task):
    """Training of a network with the connectivity of a DAG.

    The seed's key is split into one for the weights and one that, folded with the epoch's number, gives its order. The
    last batch holds what is left.
    """

    recipe: Recipe
    size_option = "width"

    def __init__(self, network: Network, recipe: Recipe, data: Splits):
        """Traces the network."""
        shape, classes, batch_norm = data.train.x.shape[1:], data.num_classes, recipe.batch_norm
        super().__init__(data, lambda rngs: build(network, shape, classes, batch_norm=batch_norm, rngs=rngs))
        self.network, self.recipe = network, recipe
        self.steps_per_epoch = -(-len(data.train.labels) // recipe.batch_size)
        self.evaluation_batch = recipe.batch_size if network.image_operations else _EVALUATION_BATCH
        # Dead edges, and with them the codes, may differ.
        self.key = dataclasses.replace(network, dag=dataclasses.replace(network.dag, edges=network.dag.live_edges))
        self.document, self.about = to_document(network), f"width {network.width}"
        self.summary = summarize(self.model)
        self.sizes = {"parameters": self.summary.parameters, "flops_per_example": self.summary.flops}

    def draw(self, key: Key[Array, ""]) -> tuple[Params, nnx.State]:
        """As in `Task`."""
        return super().draw(jax.random.split(key)[0])

    def batches(self, key: Key[Array, ""], epoch: Int[Array, ""]) -> tuple[Batch, Batch | None]:
        """As in `Task`."""
        examples, size = len(self.data.train.labels), self.recipe.batch_size
        order = jax.random.permutation(jax.random.fold_in(jax.random.split(key)[1], epoch), examples)
        whole = examples // size * size
        return (order[:whole].reshape(-1, size), None), (order[whole:], None) if whole < examples else None

    def loss(self, net: Any, x: Array, labels: Array, key: Any, epoch: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """As in `Task`."""
        net.train()
        outputs = net(x)
        loss = self.recipe.losses(outputs, labels).mean()
        return loss, loss, outputs

    def advice(self, rate: float) -> str:
        """As in `Task`."""
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

    Weights come from the seed's key; that key folded with the epoch's number, counted from 0, gives the order, and what
    is drawn in the steps. Images left over at the end of an order are not trained on.
    """

    recipe: CellRecipe
    size_option = "channels"

    def __init__(self, cell: Cell | Genotype, recipe: CellRecipe, data: Splits):
        """Traces the network."""
        shape = data.train.x.shape[1:]
        super().__init__(data, lambda rngs: recipe.network(cell, shape, data.num_classes, rngs))
        self.recipe, self.evaluation_batch = recipe, recipe.batch_size
        self.steps_per_epoch = len(data.train.labels) // recipe.batch_size
        self.key, self.document = cell, {"cell": str(cell)}
        self.about = f"{recipe.channels} channels, {recipe.layers} layers"
        # The head only helps in training.
        parts = [self.model, *([head] if (head := getattr(self.model, "head", None)) is not None else [])]
        whole, *heads = (sum(leaf.size for leaf in jax.tree.leaves(nnx.state(part, nnx.Param))) for part in parts)
        self.sizes = {"parameters": whole - sum(heads)}

    def batches(self, key: Key[Array, ""], epoch: Int[Array, ""]) -> tuple[Batch, Batch | None]:
        """As in `Task`."""
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch - 1))
        steps, size = self.steps_per_epoch, self.recipe.batch_size
        order = jax.random.permutation(order_key, len(self.data.train.labels))[: steps * size]
        return (order.reshape(steps, size), jax.random.split(step_key, steps)), None

    def loss(self, net: Any, x: Array, labels: Array, key: Any, epoch: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """As in `Task`."""
        recipe, (image_key, path_key) = self.recipe, jax.random.split(key)
        images = augmented(image_key, x, recipe.cutout) if recipe.augment else x
        outputs, auxiliary = net.train_step(images, path_key, recipe.drop_path * (epoch - 1) / recipe.epochs)
        loss = total = recipe.losses(outputs, labels).mean()
        if auxiliary is not None:
            total = loss + recipe.auxiliary * recipe.losses(auxiliary, labels).mean()
        return total, loss, outputs

    def advice(self, rate: float) -> str:
        """As in `Task`."""
        return "lower `learning_rate`"


def augmented(key: Key[Array, ""], images: Float[Array, "n h w c"], cutout: int) -> Float[Array, "n h w c"]:
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
