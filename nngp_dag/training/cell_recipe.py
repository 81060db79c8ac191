"""Which cell to train, and how."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from nngp_dag.errors import GraphError, InputError, check_known, shown
from nngp_dag.graph.operations import as_number, check_flag, check_whole
from nngp_dag.nas import Cell
from nngp_dag.nas.networks.bench_net import BenchNet
from nngp_dag.nas.networks.darts_net import DartsNet
from nngp_dag.nas.spaces.darts import CELL_TYPES, Genotype
from nngp_dag.training.recipe import AnyRecipe

_CELL_BEGINS = r"\||\{|(\w+\s*=\s*)?Genotype\s*\("


@dataclasses.dataclass(frozen=True)
class CellRecipe(AnyRecipe):
    """How the network of a cell is made and trained.

    The defaults of epochs, batch size, learning rate, momentum, clipping and augmentation are those of DARTS on
    CIFAR-10. Those of decay, auxiliary head, drop path and cutout are not: DARTS has 3e-4, 0.4, 0.2 and 16.
    `CellRecipe.of` takes size, auxiliary head and drop path by the kind of cell.

    Attributes:
      channels: C.
      layers: L of a DARTS network, or N, the cells of a stage, of a NAS-Bench-201 network.
      epochs: Passes over the training part.
      batch_size: Images of a step. What is left over at the end of an epoch's order is not trained on in that epoch.
      learning_rate: At first; every epoch has one, on half a cosine to 0.
      momentum: Factor of the momentum.
      weight_decay: Times every parameter, added to its gradient: 3e-5 in Chen et al., 3e-4 in DARTS.
      label_smoothing: Share of the target that all classes have in equal parts.
      gradient_clip: The largest Euclidean norm of all gradients together; 0 for no clipping.
      auxiliary: Weight of the auxiliary head's loss, 0.4 in DARTS; 0 for no head. Of DARTS networks only.
      drop_path: p; epoch e of E, counted from 0, drops a path with probability p e / E, so p (E - 1) / E in the last.
      augment: Whether images are padded by 4 pixels of 0, cut out at random and mirrored at random.
      cutout: Side of a square of zeros at a random place; 16 in DARTS on CIFAR-10, 0 for none.

    Raises:
      InputError: A value is out of range.

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Appendix A; Chen et al., NeurIPS 2022, Section 5.
    """

    channels: int
    layers: int
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
        for name in ("channels", "layers", "epochs", "batch_size", "cutout"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), int(name != "cutout")))
        object.__setattr__(self, "augment", check_flag("augment", self.augment))
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

        C = 16 and N = 5 for a cell of NAS-Bench-201; C = 36, L = 20, drop path 0.2 and, where images have a side of 29
        pixels or more, an auxiliary head of weight 0.4 for one of DARTS.

        Args:
          cell: The cell, or a text that `read_cell` reads.
          image_shape: (height, width, channels).
          **choices: Fields to set otherwise.

        Raises:
          InputError: A value is out of range or no field.

        Example:
          >>> CellRecipe.of(Cell.from_index(10353), (32, 32, 3), epochs=2).channels
          16
        """
        usual: dict[str, Any] = {"channels": 16, "layers": 5}
        if isinstance(as_cell(cell), Genotype):
            headed = len(image_shape) == 3 and min(image_shape[:2]) >= 29
            usual = {"channels": 36, "layers": 20, "auxiliary": 0.4 if headed else 0.0, "drop_path": 0.2}
        check_known(choices, FIELDS, "fields of `CellRecipe`")
        return cls(**{**usual, **choices})

    def network(self, cell: Cell | Genotype, image_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> Any:
        """Returns the network of a cell.

        Raises:
          InputError: The cell is disconnected, the images do not fit, or a NAS-Bench-201 network is to have an
            auxiliary head.
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
            return DartsNet(cell, shape, layers=self.layers, auxiliary=self.auxiliary > 0, **sizes)
        if self.auxiliary:
            raise InputError(
                f"Expected `auxiliary` to be 0 for a cell of NAS-Bench-201, whose network has no such head, got "
                f"{self.auxiliary}"
            )
        return BenchNet(cell, shape, cells=self.layers, **sizes)

    @property
    def loss(self) -> str:
        """The name of the loss."""
        return "cross-entropy" + " with smoothed labels" * bool(self.label_smoothing)

    def learning_rates(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate as a function of the number of steps already taken; an epoch has one."""

        def rate(step: Any) -> Any:
            return self.learning_rate * (1 + jnp.cos(jnp.pi * (step // steps_per_epoch) / self.epochs)) / 2

        return rate

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """Returns the optax transformation that makes updates of gradients."""
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


def as_cell(cell: object) -> Cell | Genotype:
    """Returns a cell, also that of a text, see `read_cell`.

    Raises:
      GraphError: No cell can be read.
      InputError: It is neither a cell nor a text.
    """
    if isinstance(cell, str):
        return read_cell(cell)
    if not isinstance(cell, (Cell, Genotype)):
        raise InputError(f"Expected `cell` to be a `Cell`, a `Genotype` or its text, got {shown(cell)}")
    return cell


def read_cell(text: str) -> Cell | Genotype:
    """Returns the cell of a text, or of the file whose path it is.

    Args:
      text: A cell of NAS-Bench-201; a genotype, `Genotype(...)`, `NAME = Genotype(...)` or its JSON; the result of a
        search, as its result.json has it; or the path of a file with one of these.

    Raises:
      GraphError: It is none of them, or the file cannot be read.

    Example:
      >>> read_cell("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|").operations[0]
      'nor_conv_3x3'
    """
    text = text.strip()
    if not re.match(_CELL_BEGINS, text):
        try:
            text = Path(text).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "no such file" if missing else getattr(error, "strerror", None) or error
            raise GraphError(
                "Expected a cell of NAS-Bench-201, |nor_conv_3x3~0|+..., a genotype, Genotype(normal=[...], ...), or a "
                f"file with one, got {text[:60]!r}: {reason}"
            ) from None
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(text):
            case {"cell": str(found)}:
                text = found
    if text.startswith("|"):
        return Cell.parse(text)
    text = re.sub(r"^\w+\s*=\s*", "", text)
    return Genotype.from_json(text) if text.startswith("{") else Genotype.from_text(text)
