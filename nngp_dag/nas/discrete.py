"""Networks of one found cell, to be trained: batch norm with running statistics, drop path, auxiliary head."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from nngp_dag.errors import InputError
from nngp_dag.nas.cells import EDGES, Cell
from nngp_dag.nas.darts import Genotype
from nngp_dag.nas.darts_operations import FactorizedReduce, Preprocess, Separable, largest
from nngp_dag.nas.layers import (
    ConvNorm,
    Normalize,
    averaged,
    check_images,
    check_sizes,
    classified,
    convolved,
    halved,
    he_normal,
    normalized,
)
from nngp_dag.nas.network import Reduction

# PyTorch's: how much of the old averages a step keeps.
_KEPT = 0.9
_EPSILON = 1e-5

Drop = Callable[[Array], Array]


class _CellNet(nnx.Module):
    """What both networks share: running statistics of all batch norms, in the order of the calls, and the end."""

    def _finish(self, channels: int, classes: int, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(he_normal(rngs, (channels, classes)))
        self.bias = nnx.Param(jnp.zeros(classes))
        sizes: list[int] = []

        def note(x: Array, scale: Array, shift: Array) -> Array:
            sizes.append(len(scale))
            return x

        jax.eval_shape(lambda: self._forward(jnp.zeros((1, *image_shape)), note, lambda x: x, True))
        self.mean, self.variance = nnx.BatchStat(jnp.zeros(sum(sizes))), nnx.BatchStat(jnp.ones(sum(sizes)))

    def _forward(self, x: Array, normalize: Normalize, drop: Drop, training: bool) -> tuple[Array, Array | None]:
        raise NotImplementedError

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Returns the logits of images, each on its own: by the running statistics."""
        at = 0

        def normalize(x: Array, scale: Array, shift: Array) -> Array:
            nonlocal at
            place, at = slice(at, at + len(scale)), at + len(scale)
            factor = scale * jax.lax.rsqrt(self.variance[place] + _EPSILON)
            return x * factor[None, None, None] + (shift - factor * self.mean[place])[None, None, None]

        return self._forward(x, normalize, lambda x: x, False)[0]

    def train_step(
        self, x: Float[Array, "n h w c"], key: Key[Array, ""], drop_path: Float[Array, ""] | float = 0.0
    ) -> tuple[Float[Array, "n classes"], Float[Array, "n classes"] | None]:
        """Returns the logits of a batch and those of the auxiliary head, and moves the running statistics.

        Args:
          x: Images; batch norm uses their statistics.
          key: What drop path draws from.
          drop_path: The probability that an operation gives an image nothing; else it gives 1 / (1 - p) of itself.
        """
        statistics: list[tuple[Array, Array]] = []
        drawn = 0

        def normalize(x: Array, scale: Array, shift: Array) -> Array:
            # PyTorch's running variance is the unbiased one.
            count = x.size // len(scale)
            statistics.append((x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2)) * (count / max(count - 1, 1))))
            return normalized(x, scale, shift)

        def drop(value: Array) -> Array:
            nonlocal drawn
            drawn += 1
            kept = jax.random.bernoulli(jax.random.fold_in(key, drawn), 1 - drop_path, (len(value), 1, 1, 1))
            return jnp.where(kept, value / (1 - drop_path), 0)

        logits, auxiliary = self._forward(x, normalize, drop, True)
        for running, found in zip((self.mean, self.variance), zip(*statistics, strict=True), strict=True):
            running[...] = _KEPT * running[...] + (1 - _KEPT) * jax.lax.stop_gradient(jnp.concatenate(found))
        return logits, auxiliary


class BenchNet(_CellNet):
    """The network of NAS-Bench-201 around one cell, as `MacroNet`, with running statistics.

    Args:
      cell: The cell; weights exist for its convolutions alone.
      image_shape: (height, width, channels), sides multiples of 4.
      channels: C; 16 in the benchmark.
      cells: N; 5 in the benchmark.
      classes: Outputs.
      rngs: Of the weights, as for `MacroNet`.

    Raises:
      InputError: A size is below 1, or images do not fit.

    Example:
      >>> net = BenchNet(Cell.from_index(10353), (8, 8, 3), channels=4, cells=1, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 8, 8, 3))).shape
      (5, 10)

    Reference: Dong and Yang, NAS-Bench-201, ICLR 2020, Section 2.1.
    """

    def __init__(
        self,
        cell: Cell,
        image_shape: tuple[int, int, int],
        *,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        rngs: nnx.Rngs,
    ):
        """Draws the weights."""
        check_sizes(channels=channels, cells=cells, classes=classes)
        widths = [channels, 2 * channels, 4 * channels]
        self.operations, self.in_channels = cell.live.operations, image_shape[-1]
        sides = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}

        def edges(width: int) -> nnx.List:
            return nnx.List(
                [ConvNorm(width, width, side=sides[o], rngs=rngs) if o in sides else None for o in self.operations]
            )

        self.stem = ConvNorm(self.in_channels, channels, rngs=rngs)
        self.stages = nnx.List([nnx.List([edges(width) for _ in range(cells)]) for width in widths])
        self.reductions = nnx.List([Reduction(width, rngs=rngs) for width in widths[:-1]])
        self.scale, self.shift = nnx.Param(jnp.ones(widths[-1])), nnx.Param(jnp.zeros(widths[-1]))
        self._finish(widths[-1], classes, image_shape, rngs)

    def _forward(self, x: Array, normalize: Normalize, drop: Drop, training: bool) -> tuple[Array, Array | None]:
        check_images(x, self.in_channels, 4)
        x = self.stem(x, normalize)
        for i, stage in enumerate(self.stages):
            if i:
                block = self.reductions[i - 1]
                inner = block.conv_a(nnx.relu(x), normalize, 2)
                x = block.conv_b(nnx.relu(inner), normalize) + convolved(halved(x), block.shortcut[...])
            for cell in stage:
                nodes = [x, *[jnp.zeros_like(x)] * 3]
                for operation, block, (source, target) in zip(self.operations, cell, EDGES, strict=True):
                    value = nodes[source]
                    if block is not None:
                        nodes[target] += drop(block(nnx.relu(value), normalize))
                    elif operation == "avg_pool_3x3":
                        nodes[target] += drop(averaged(value))
                    elif operation == "skip_connect":
                        nodes[target] += value
                x = nodes[-1]
        x = nnx.relu(normalize(x, self.scale[...], self.shift[...]))
        return classified(x.mean(axis=(1, 2)), self.kernel[...], self.bias[...]), None


class AuxiliaryHead(nnx.Module):
    """A second classifier on the images after two thirds of the cells, which helps training.

    ReLU, mean over 5 x 5 pixels every third one, two convolutions with batch norm and ReLU, the second over 2 x 2
    pixels without padding, mean over pixels, classifier.
    """

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.first = ConvNorm(channels, 128, side=1, rngs=rngs)
        self.second = ConvNorm(128, 768, side=2, rngs=rngs)
        self.kernel, self.bias = nnx.Param(he_normal(rngs, (768, classes))), nnx.Param(jnp.zeros(classes))

    def __call__(self, x: Array, normalize: Normalize) -> Array:
        """Returns its logits."""
        x = self.first(nnx.avg_pool(nnx.relu(x), (5, 5), strides=(3, 3)), normalize)
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            nnx.relu(x), self.second.kernel[...], (1, 1), "VALID", dimension_numbers=layout
        )
        x = nnx.relu(normalize(x, self.second.scale[...], self.second.shift[...]))
        return classified(x.mean(axis=(1, 2)), self.kernel[...], self.bias[...])


class _DartsCell(nnx.Module):
    def __init__(
        self, genotype: Genotype, before: tuple[int, int], channels: int, reduction: bool, late: bool, *, rngs: nnx.Rngs
    ):
        self.pairs, self.reduction = genotype.reduce if reduction else genotype.normal, reduction
        self.preprocess0 = (FactorizedReduce if late else Preprocess)(before[0], channels, rngs=rngs)
        self.preprocess1 = Preprocess(before[1], channels, rngs=rngs)
        self.blocks = nnx.List([self._block(name, source, channels, rngs) for name, source in self.pairs])

    def _block(self, name: str, source: int, channels: int, rngs: nnx.Rngs) -> nnx.List:
        if name == "skip_connect" and self.reduction and source < 2:
            return nnx.List([FactorizedReduce(channels, channels, rngs=rngs)])
        if "conv" not in name:
            return nnx.List([])
        twice, side = (2, 1) if name.startswith("sep") else (1, 2), int(name[-1])
        return nnx.List([Separable(channels, side, twice[1], rngs=rngs) for _ in range(twice[0])])

    def __call__(self, inputs: tuple[Array, Array], normalize: Normalize, drop: Drop) -> Array:
        nodes = [self.preprocess0(inputs[0], normalize), self.preprocess1(inputs[1], normalize)]
        ends = []
        for (name, source), blocks in zip(self.pairs, self.blocks, strict=True):
            value, stride = nodes[source], 2 if self.reduction and source < 2 else 1
            for i, block in enumerate(blocks):
                if isinstance(block, FactorizedReduce):
                    value = block(value, normalize)
                else:
                    value = block(value, normalize, 1 if i else stride)
            if name.endswith("pool_3x3"):
                value = (largest if name.startswith("max") else averaged)(value)[:, ::stride, ::stride]
            elif name == "none":
                value = jnp.zeros_like(value[:, ::stride, ::stride])
            ends.append(value if name == "skip_connect" and not len(blocks) else drop(value))
            if len(ends) == 2:
                nodes.append(ends[0] + ends[1])
                ends = []
        return jnp.concatenate(nodes[2:], axis=-1)


class DartsNet(_CellNet):
    """The network of DARTS for small images, around the two cells of a genotype.

    Stem (convolution 3 x 3 to 3 C channels, batch norm), L cells of C, 2C and 4C channels, those after one and two
    thirds reduction cells, mean over pixels, classifier. A cell reads the two before it.

    Args:
      genotype: The cells.
      image_shape: (height, width, channels).
      channels: C; 36 in DARTS.
      layers: L; 20 in DARTS.
      classes: Outputs.
      auxiliary: Whether there is an auxiliary head, which training reads.
      rngs: Of the weights, as for `MacroNet`.

    Raises:
      InputError: A size is below 1, L below 3, or images are too small for the auxiliary head.

    Example:
      >>> cell = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 4
      >>> genotype = Genotype.from_pairs(cell, cell)
      >>> DartsNet(genotype, (8, 8, 3), channels=2, layers=3, rngs=nnx.Rngs(0))(jnp.ones((5, 8, 8, 3))).shape
      (5, 10)

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Appendix A.
    """

    def __init__(
        self,
        genotype: Genotype,
        image_shape: tuple[int, int, int],
        *,
        channels: int = 36,
        layers: int = 20,
        classes: int = 10,
        auxiliary: bool = False,
        rngs: nnx.Rngs,
    ):
        """Draws the weights."""
        check_sizes(channels=channels, classes=classes)
        if layers < 3:
            raise InputError(f"Expected `layers` to be at least 3, for two reduction cells, got {layers}")
        self.in_channels = image_shape[-1]
        before = 3 * channels, 3 * channels
        self.stem = ConvNorm(self.in_channels, before[0], rngs=rngs)
        reductions, made, late, width = (layers // 3, 2 * layers // 3), [], False, channels
        for i in range(layers):
            reduction = i in reductions
            width *= 2 if reduction else 1
            made.append(_DartsCell(genotype, before, width, reduction, late, rngs=rngs))
            before, late = (before[1], 4 * width), reduction
        self.cells, self.head_after = nnx.List(made), reductions[1]
        quarter = [-(-side // 4) for side in image_shape[:2]]
        if auxiliary and min(quarter) < 8:
            raise InputError(
                f"Expected images of at least 29 x 29 pixels for an auxiliary head, got {image_shape[:2]}; leave it out"
            )
        self.head = AuxiliaryHead(4 * width, classes, rngs=rngs) if auxiliary else None
        self._finish(before[1], classes, image_shape, rngs)

    def _forward(self, x: Array, normalize: Normalize, drop: Drop, training: bool) -> tuple[Array, Array | None]:
        check_images(x, self.in_channels, 1)
        x = self.stem(x, normalize)
        inputs, head = (x, x), None
        for i, cell in enumerate(self.cells):
            inputs = inputs[1], cell(inputs, normalize, drop)
            if i == self.head_after and self.head is not None and training:
                head = functools.partial(self.head, inputs[1])
        logits = classified(inputs[1].mean(axis=(1, 2)), self.kernel[...], self.bias[...])
        # Last, so that evaluation, which leaves it out, finds the other statistics at the same places.
        return logits, None if head is None else head(normalize)
