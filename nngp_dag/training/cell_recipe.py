"""The recipe for training a cell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from nngp_dag.errors import InputError, check_known
from nngp_dag.graph.operations import as_number, check_flag, check_option, check_whole
from nngp_dag.nas import Cell
from nngp_dag.nas.networks.bench_net import BenchNet
from nngp_dag.nas.networks.darts_net import DartsImageNetNet, DartsNet
from nngp_dag.nas.spaces.any_cell import as_cell
from nngp_dag.nas.spaces.costs import STEMS
from nngp_dag.nas.spaces.darts import CELL_TYPES, Genotype
from nngp_dag.training.recipe import AnyRecipe, check_accumulate, check_warmup

IMAGENET: Mapping[str, Any] = {
    "stem": "imagenet",
    "channels": 48,
    "layers": 14,
    "epochs": 250,
    "batch_size": 768,
    "learning_rate": 0.5,
    "warmup": 5,
    "momentum": 0.9,
    "weight_decay": 3e-5,
    "label_smoothing": 0.1,
    "gradient_clip": 5.0,
    "auxiliary": 0.4,
    "drop_path": 0.0,
    "augment": True,
    "color_jitter": True,
    "cutout": 0,
}
"""Fields of `CellRecipe.imagenet`."""


@dataclasses.dataclass(frozen=True)
class CellRecipe(AnyRecipe):
    """Size of the network of a cell, and the recipe of its training.

    The defaults of epochs, batch size, learning rate, momentum, clipping and augmentation are those of DARTS on
    CIFAR-10. The defaults of weight decay, auxiliary head, drop path and cutout are not: DARTS has 3e-4, 0.4, 0.2 and
    16. `CellRecipe.of` chooses size, auxiliary head and drop path by the kind of cell.

    Attributes:
      channels: Number C of channels.
      layers: Number L of cells in a DARTS network, or number N of cells per stage in a NAS-Bench-201 network.
      epochs: Number E of passes over the training part.
      batch_size: Number of images per step. An epoch leaves out images that do not fill a last batch.
      learning_rate: Learning rate of the first epoch, or the end of the warmup. It changes once per epoch, along half a
        cosine down to 0.
      warmup: Number W of first epochs that have (e + 1) / W of the learning rate in epoch e, counted from 0. The cosine
        goes on from there as if it had begun with epoch 0.
      momentum: Coefficient of the momentum, in [0, 1).
      weight_decay: Factor of every parameter that is added to its gradient; 3e-5 in Chen et al., 3e-4 in DARTS.
      label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
      gradient_clip: Largest Euclidean norm of all gradients together; 0 for no clipping.
      auxiliary: Weight of the auxiliary head's loss, 0.4 in DARTS; 0 for no head. Only DARTS networks have one.
      drop_path: Largest probability p of drop path. Epoch e, counted from 0, drops a path with probability p e / E.
      augment: Whether images are padded by 4 zero pixels, cropped at random and mirrored at random. Of images that are
        streamed, random boxes are scaled to the size of images, see `nngp_dag.data.ImageStream`.
      cutout: Side of a square of zeros at a random place; 16 in DARTS on CIFAR-10, 0 for none.
      color_jitter: Whether brightness, contrast, saturation and hue change at random, see `color_jittered`. It needs
        images that are streamed, whose colors are known before normalization.
      stem: "cifar", or "imagenet" for `DartsImageNetNet`, whose stem reduces images eightfold. Only DARTS networks have
        the latter.
      accumulate: Number K of parts of a batch whose gradients are computed one after another and averaged, for batches
        that do not fit into memory. Batch norm takes the statistics of a part.

    Raises:
      InputError: A value is out of range.

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Appendix A; Chen et al., NeurIPS 2022, Section 5.
    """

    channels: int
    layers: int
    epochs: int = 600
    batch_size: int = 96
    learning_rate: float = 0.025
    warmup: int = 0
    momentum: float = 0.9
    weight_decay: float = 3e-5
    label_smoothing: float = 0.0
    gradient_clip: float = 5.0
    auxiliary: float = 0.0
    drop_path: float = 0.0
    augment: bool = True
    cutout: int = 0
    color_jitter: bool = False
    stem: str = "cifar"
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Refuses values that are out of range."""
        for name in ("channels", "layers", "epochs", "batch_size", "cutout", "warmup", "accumulate"):
            least = int(name not in ("cutout", "warmup"))
            object.__setattr__(self, name, check_whole(name, getattr(self, name), least))
        for name in ("augment", "color_jitter"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        check_option("stem", self.stem, STEMS)
        check_accumulate(self.accumulate, self.batch_size)
        check_warmup(self.warmup, self.epochs)
        below_one = ("momentum", "label_smoothing", "drop_path")
        for name in ("learning_rate", "weight_decay", "auxiliary", "gradient_clip", *below_one):
            number = float(as_number(name, getattr(self, name)))
            if number < 0:
                raise InputError(f"Expected `{name}` to be at least 0, got {number}")
            if name in below_one and number >= 1:
                raise InputError(f"Expected `{name}` below 1, got {number}")
            object.__setattr__(self, name, number)

    @classmethod
    def of(cls, cell: Cell | Genotype | str, image_shape: tuple[int, ...], **choices: Any) -> "CellRecipe":
        """Returns the usual recipe of a kind of cell.

        A cell of NAS-Bench-201 has C = 16 and N = 5. One of DARTS has C = 36, L = 20 and drop path 0.2. It also has an
        auxiliary head of weight 0.4 if the sides of images are at least 29 pixels.

        Args:
          cell: The cell, or a text that `read_cell` reads.
          image_shape: Shape of an image, (height, width, channels).
          **choices: Fields with other values than the usual ones.

        Raises:
          InputError: A value is out of range, or a name is not a field.

        Examples:
          >>> CellRecipe.of(Cell.from_index(10353), (32, 32, 3), epochs=2).channels
          16
        """
        usual: dict[str, Any] = {"channels": 16, "layers": 5}
        if isinstance(as_cell(cell), Genotype):
            headed = len(image_shape) == 3 and min(image_shape[:2]) >= 29
            usual = {"channels": 36, "layers": 20, "auxiliary": 0.4 if headed else 0.0, "drop_path": 0.2}
        check_known(choices, FIELDS, "fields of `CellRecipe`")
        return cls(**{**usual, **choices})

    @classmethod
    def imagenet(cls, **choices: Any) -> "CellRecipe":
        """Returns the recipe for a DARTS cell on ImageNet, whose network is `DartsImageNetNet` with C = 48 and L = 14.

        It trains 250 epochs in batches of 768, by a learning rate that rises to 0.5 in five epochs and then falls on
        half a cosine, with momentum 0.9, weight decay 3e-5, labels smoothed by 0.1, gradients clipped at norm 5, and an
        auxiliary head of weight 0.4. Crops are random, and colors change at random.

        Args:
          **choices: Fields with other values.

        Raises:
          InputError: A value is out of range, or a name is not a field.

        Examples:
          >>> CellRecipe.imagenet(batch_size=384, accumulate=2).learning_rate
          0.5

        Reference: Chen et al., NeurIPS 2022, Section 5 (rate, decay, batches), and the authors' code to train cells,
        `DARTS_evaluation` (warmup, initial weights); Liu, Simonyan, Yang, DARTS, ICLR 2019, and its `train_imagenet.py`
        (augmentation, smoothing, clipping, auxiliary head).
        """
        check_known(choices, FIELDS, "fields of `CellRecipe`")
        return cls(**{**IMAGENET, **choices})

    def network(self, cell: Cell | Genotype, image_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> Any:
        """Returns the network of a cell.

        Raises:
          InputError: The cell is disconnected, the images do not fit, or `auxiliary` is set for a NAS-Bench-201 cell.
        """
        wirings = (
            {"cell": cell.dag} if isinstance(cell, Cell) else {f"{name} cell": cell.wiring(name) for name in CELL_TYPES}
        )
        for name, wiring in wirings.items():
            if not wiring.num_paths:
                raise InputError(
                    f"Expected a cell with a path from input to output, got a disconnected {name}, whose network "
                    f"would not see its images: {cell}"
                )
        if len(image_shape) != 3:
            raise InputError(f"Expected images (height, width, channels) to train a cell on, got inputs {image_shape}")
        height, width, channels = image_shape
        shape, sizes = (height, width, channels), {"channels": self.channels, "classes": classes, "rngs": rngs}
        if isinstance(cell, Genotype):
            kind = DartsImageNetNet if self.stem == "imagenet" else DartsNet
            return kind(cell, shape, layers=self.layers, auxiliary=self.auxiliary > 0, **sizes)
        if self.stem != "cifar":
            raise InputError(
                f"Expected `stem` to be 'cifar' for a cell of NAS-Bench-201, got {self.stem!r}; pass a genotype"
            )
        if self.auxiliary:
            raise InputError(
                f"Expected `auxiliary` to be 0 for a cell of NAS-Bench-201, whose network has no such head, got "
                f"{self.auxiliary}"
            )
        return BenchNet(cell, shape, cells=self.layers, **sizes)

    @property
    def loss(self) -> str:
        """Name of the loss."""
        return "cross-entropy" + " with smoothed labels" * bool(self.label_smoothing)

    def learning_rates(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate as a function of the number of steps taken; it is constant within an epoch."""

        def rate(step: Any) -> Any:
            epoch = step // steps_per_epoch
            falling = (1 + jnp.cos(jnp.pi * epoch / self.epochs)) / 2
            return self.learning_rate * jnp.where(epoch < self.warmup, (epoch + 1) / max(self.warmup, 1), falling)

        return rate

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """Returns the optax transformation that turns gradients into updates."""
        # DARTS clips gradients before PyTorch's SGD adds the weight decay to them.
        return optax.chain(
            optax.clip_by_global_norm(self.gradient_clip) if self.gradient_clip else optax.identity(),
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.learning_rates(steps_per_epoch), self.momentum or None),
        )

    def losses(self, outputs: Float[Array, "n c"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
        """Returns the loss of every example."""
        targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), self.label_smoothing)
        return optax.softmax_cross_entropy(outputs, targets)


FIELDS = tuple(field.name for field in dataclasses.fields(CellRecipe))
