"""The networks of DARTS around the two cells of a genotype, for training: for small images, and for ImageNet."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from nngp_dag.errors import InputError
from nngp_dag.nas.networks.darts_operations import FactorizedReduce, Preprocess, Separable, largest
from nngp_dag.nas.networks.layers import ConvNorm, Normalize, averaged, check_images, check_sizes, classified, he_normal
from nngp_dag.nas.networks.running_norms import Drop, RunningNorms
from nngp_dag.nas.spaces.darts import Genotype


class AuxiliaryHead(nnx.Module):
    """A second classifier on the images after two thirds of the cells, which helps training.

    It applies ReLU, 5 x 5 average pooling of stride 3, and two convolutions (1 x 1, then 2 x 2 without padding), each
    followed by batch norm and ReLU. A mean over pixels and a linear classifier come last. The head for ImageNet pools
    with stride 2. No batch norm follows its second convolution, as in the experiments of the paper.
    """

    def __init__(self, channels: int, classes: int, *, imagenet: bool = False, rngs: nnx.Rngs):
        """Draws the weights."""
        self.stride = 2 if imagenet else 3
        self.first = ConvNorm(channels, 128, side=1, rngs=rngs)
        self.second = (
            nnx.Param(he_normal(rngs, (2, 2, 128, 768))) if imagenet else ConvNorm(128, 768, side=2, rngs=rngs)
        )
        self.kernel, self.bias = nnx.Param(he_normal(rngs, (768, classes))), nnx.Param(jnp.zeros(classes))

    def __call__(self, x: Array, normalize: Normalize) -> Array:
        """Returns the logits of the auxiliary head, (n, classes)."""
        x = self.first(nnx.avg_pool(nnx.relu(x), (5, 5), strides=(self.stride, self.stride)), normalize)
        norm = self.second if isinstance(self.second, ConvNorm) else None
        kernel = (self.second if norm is None else norm.kernel)[...]  # type: ignore[index]
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(nnx.relu(x), kernel, (1, 1), "VALID", dimension_numbers=layout)
        x = nnx.relu(x if norm is None else normalize(x, norm.scale[...], norm.shift[...]))
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


class _Around(RunningNorms):
    """The cells, the head and the classifier of both networks; a subclass makes the stem and the first two inputs."""

    in_channels: int

    def _build(
        self,
        genotype: Genotype,
        image_shape: tuple[int, int, int],
        before: tuple[int, int],
        sizes: tuple[int, int, int],
        head: Callable[[int], AuxiliaryHead] | None,
        *,
        halved: bool,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the weights of all that follows the stem.

        Args:
          genotype: The two cells.
          image_shape: Shape of one image.
          before: Channels of the two inputs of the first cell.
          sizes: Numbers of channels, layers and classes.
          head: Function of the number of channels that draws the auxiliary head, or None.
          halved: Whether the second input of the first cell has half the sides of the first one.
          rngs: Generators of the weights.
        """
        width, layers, classes = sizes
        reductions, made, late = (layers // 3, 2 * layers // 3), [], halved
        for i in range(layers):
            reduction = i in reductions
            width *= 2 if reduction else 1
            made.append(_DartsCell(genotype, before, width, reduction, late, rngs=rngs))
            before, late = (before[1], 4 * width), reduction
        self.cells, self.head_after = nnx.List(made), reductions[1]
        self.head = None if head is None else head(4 * width)
        self.kernel = nnx.Param(he_normal(rngs, (before[1], classes)))
        self.bias = nnx.Param(jnp.zeros(classes))
        self._start(image_shape, rngs)

    def _stems(self, x: Array, normalize: Normalize) -> tuple[Array, Array]:
        """Returns the inputs of the first cell."""
        raise NotImplementedError

    def _forward(self, x: Array, normalize: Normalize, drop: Drop, training: bool) -> tuple[Array, Array | None]:
        check_images(x, self.in_channels, 1)
        inputs, head = self._stems(x, normalize), None
        for i, cell in enumerate(self.cells):
            inputs = inputs[1], cell(inputs, normalize, drop)
            if i == self.head_after and self.head is not None and training:
                head = functools.partial(self.head, inputs[1])
        logits = classified(inputs[1].mean(axis=(1, 2)), self.kernel[...], self.bias[...])
        # The head comes last: evaluation leaves it out and must find the other statistics at the same places.
        return logits, None if head is None else head(normalize)


def _check(layers: int, **sizes: int) -> None:
    check_sizes(**sizes)
    if layers < 3:
        raise InputError(f"Expected `layers` to be at least 3, for two reduction cells, got {layers}")


def _check_head(image_shape: tuple[int, int, int], halvings: int, least: int) -> None:
    """Refuses images of which fewer than `least` pixels per side remain after some halvings."""
    if min(-(-side >> halvings) for side in image_shape[:2]) < least:
        smallest = ((least - 1) << halvings) + 1
        raise InputError(
            f"Expected images of at least {smallest} x {smallest} pixels for an auxiliary head, got "
            f"{image_shape[:2]}; leave it out"
        )


class DartsNet(_Around):
    """The network of DARTS for small images, around the two cells of a genotype.

    The stem (3 x 3 convolution to 3C channels, batch norm) is followed by L cells, a mean over pixels and a linear
    classifier. The cells at one third and two thirds of the depth are reduction cells, where the channels double: C,
    2C, 4C. Every cell reads the outputs of the two cells before it.

    A call takes images, (n, height, width, channels), and returns logits, (n, classes), by the running statistics of
    batch norm. `train_step` uses the statistics of the batch and updates the running ones.

    Args:
      genotype: The normal and the reduction cell.
      image_shape: Shape of one image, (height, width, channels).
      channels: Channels C of the first cells; 36 in DARTS.
      layers: Number L of cells; 20 in DARTS.
      classes: Number of outputs.
      auxiliary: Whether there is an auxiliary head, whose logits only `train_step` returns.
      rngs: Generators; all weights come from `rngs.params`. Kernels are uniform between -1 and 1 over the root of
        fan-in, as in PyTorch, whose defaults the published code for training keeps. Shifts start at 0, scales at 1.
        The bias of a classifier starts at 0, while PyTorch draws it.

    Raises:
      InputError: A size is below 1, L is below 3, or the images are too small for the auxiliary head.

    Examples:
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
        _check(layers, channels=channels, classes=classes)
        if auxiliary:
            _check_head(image_shape, 2, 8)
        self.in_channels, before = image_shape[-1], 3 * channels
        self.stem = ConvNorm(self.in_channels, before, rngs=rngs)
        head = functools.partial(AuxiliaryHead, classes=classes, rngs=rngs) if auxiliary else None
        sizes = channels, layers, classes
        self._build(genotype, image_shape, (before, before), sizes, head, halved=False, rngs=rngs)

    def _stems(self, x: Array, normalize: Normalize) -> tuple[Array, Array]:
        x = self.stem(x, normalize)
        return x, x


class DartsImageNetNet(_Around):
    """The network of DARTS for ImageNet, around the two cells of a genotype.

    Two stems reduce the sides of images eightfold: 3 x 3 convolutions of stride 2 to C / 2, C and C channels, each with
    batch norm, and with a ReLU between two of them. The first cell reads the outputs of the second and the third one.
    L cells follow as in `DartsNet`, then a mean over pixels and a linear classifier.

    A call takes images, (n, height, width, channels), and returns logits, (n, classes), by the running statistics of
    batch norm. `train_step` uses the statistics of the batch and updates the running ones.

    Args:
      genotype: The normal and the reduction cell.
      image_shape: Shape of one image, (height, width, channels); (224, 224, 3) in DARTS.
      channels: Channels C of the first cells, at least 2; 48 in DARTS.
      layers: Number L of cells; 14 in DARTS.
      classes: Number of outputs.
      auxiliary: Whether there is an auxiliary head, whose logits only `train_step` returns.
      rngs: Generators; all weights come from `rngs.params`. Kernels are uniform between -1 and 1 over the root of
        fan-in, as in PyTorch, whose defaults the published code for training keeps. Shifts start at 0, scales at 1.
        The bias of a classifier starts at 0, while PyTorch draws it.

    Raises:
      InputError: C is below 2, another size is below 1, L is below 3, or the images are too small for the auxiliary
        head, which needs 193 pixels per side.

    Examples:
      >>> cell = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 4
      >>> genotype = Genotype.from_pairs(cell, cell)
      >>> net = DartsImageNetNet(genotype, (32, 32, 3), channels=2, layers=3, classes=7, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 32, 32, 3))).shape
      (5, 7)

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Section 3.4, and the network of its published code for ImageNet.
    """

    def __init__(
        self,
        genotype: Genotype,
        image_shape: tuple[int, int, int],
        *,
        channels: int = 48,
        layers: int = 14,
        classes: int = 1000,
        auxiliary: bool = False,
        rngs: nnx.Rngs,
    ):
        """Draws the weights."""
        _check(layers, channels=channels, classes=classes)
        if channels < 2:
            raise InputError(f"Expected `channels` to be at least 2, of which the stem takes half, got {channels}")
        if auxiliary:
            _check_head(image_shape, 5, 7)
        self.in_channels = image_shape[-1]
        widths = (self.in_channels, channels // 2, channels, channels)
        self.stem = nnx.List([ConvNorm(c_in, c_out, rngs=rngs) for c_in, c_out in itertools.pairwise(widths)])
        head = functools.partial(AuxiliaryHead, classes=classes, imagenet=True, rngs=rngs) if auxiliary else None
        sizes = channels, layers, classes
        self._build(genotype, image_shape, (channels, channels), sizes, head, halved=True, rngs=rngs)

    def _stems(self, x: Array, normalize: Normalize) -> tuple[Array, Array]:
        outputs = [x]
        for i, layer in enumerate(self.stem):
            outputs.append(layer(nnx.relu(outputs[-1]) if i else outputs[-1], normalize, 2))
        return outputs[-2], outputs[-1]
