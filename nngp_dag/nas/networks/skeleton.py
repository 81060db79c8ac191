"""The layers around the cells in networks of NAS-Bench-201: stem, residual blocks between stages, classifier."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nngp_dag.nas.networks import channels_first, layers
from nngp_dag.nas.networks.layers import ConvNorm, Normalize, check_images, check_sizes, classified, he_normal
from nngp_dag.nas.spaces.cells import EDGES

NUM_NODES = 4

S = TypeVar("S")
"""The weights of the cells of a stage."""


class ImageLayout(NamedTuple):
    """The layers that the skeleton needs, for images in one layout.

    Attributes:
      convolved: Convolution of (x, kernel, stride).
      halved: Mean over blocks of 2 x 2 pixels.
      normalized: Batch normalization of (x, scale, shift).
      features: Mean over pixels, (n, channels).
    """

    convolved: Callable[..., Array]
    halved: Callable[[Array], Array]
    normalized: Normalize
    features: Callable[[Array], Array]


CHANNELS_LAST = ImageLayout(layers.convolved, layers.halved, layers.normalized, lambda x: x.mean(axis=(1, 2)))
"""Images are (n, height, width, channels)."""

CHANNELS_FIRST = ImageLayout(
    channels_first.convolved, channels_first.halved, channels_first.normalized, lambda x: x.mean(axis=(2, 3)).T
)
"""Images are (channels, n, height, width)."""


class Stage(nnx.Module):
    """The weights of all cells of one stage, with both convolutions on every edge.

    Attributes:
      conv1: Kernels of the 1 x 1 convolutions, (cells, 6, 1, 1, C, C).
      conv3: Kernels of the 3 x 3 convolutions, (cells, 6, 3, 3, C, C).
      scale: Scales of the normalizations after convolutions, (cells, 6, *norms, C).
      shift: Shifts of these normalizations, (cells, 6, *norms, C).
    """

    def __init__(self, cells: int, channels: int, norms: tuple[int, ...] = (), *, rngs: nnx.Rngs):
        """Draws the weights; both convolutions of an edge share a normalization, unless `norms` is (2,)."""
        size = cells, len(EDGES)
        self.conv1 = nnx.Param(he_normal(rngs, (*size, 1, 1, channels, channels)))
        self.conv3 = nnx.Param(he_normal(rngs, (*size, 3, 3, channels, channels)))
        self.scale = nnx.Param(jnp.ones((*size, *norms, channels)))
        self.shift = nnx.Param(jnp.zeros((*size, *norms, channels)))


class Reduction(nnx.Module):
    """The residual block between two stages: halves the sides of images and doubles the channels."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.conv_a = ConvNorm(channels, 2 * channels, rngs=rngs)
        self.conv_b = ConvNorm(2 * channels, 2 * channels, rngs=rngs)
        self.shortcut = nnx.Param(he_normal(rngs, (1, 1, channels, 2 * channels)))


class Skeleton(nnx.Module, Generic[S]):
    """The stem, stages of cells with C, 2C, 4C, ... channels, residual blocks between them, and the classifier.

    Args:
      stage: Function of the number of channels that makes the weights of the cells of a stage.
      channels: Channels C of the first stage.
      stages: Number of stages.
      classes: Number of outputs.
      in_channels: Channels of the images.
      stem: Whether a convolution and batch norm come first.
      layout: Layout of the images between layers.
      rngs: Generators; all weights come from `rngs.params`. They are normal with variance 2 / fan-out: channels out
        times the pixels of the filter, or the number of classes. Biases and shifts start at 0, scales at 1.

    Raises:
      InputError: A size is below 1.

    Reference: Dong and Yang, NAS-Bench-201, ICLR 2020, Section 2.1 and Figure 1; He et al., ICCV 2015 (initialization).
    """

    def __init__(
        self,
        stage: Callable[[int], S],
        *,
        channels: int,
        stages: int = 3,
        classes: int,
        in_channels: int,
        stem: bool = True,
        layout: ImageLayout = CHANNELS_LAST,
        rngs: nnx.Rngs,
    ):
        """Draws all weights."""
        check_sizes(channels=channels, stages=stages, classes=classes, in_channels=in_channels)
        widths = [channels * 2**i for i in range(stages)]
        self.in_channels, self.layout = in_channels, layout
        self.stem = ConvNorm(in_channels, channels, rngs=rngs) if stem else None
        self.stages: nnx.List[S] = nnx.List([stage(width) for width in widths])
        self.reductions = nnx.List([Reduction(width, rngs=rngs) for width in widths[:-1]])
        self.scale = nnx.Param(jnp.ones(widths[-1]))
        self.shift = nnx.Param(jnp.zeros(widths[-1]))
        self.kernel = nnx.Param(he_normal(rngs, (widths[-1], classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def around(
        self,
        cells: Callable[[S, Array], Array],
        x: Array,
        normalize: Normalize,
        observe: Callable[[Array], object] = lambda x: None,
    ) -> Array:
        """Returns the input of the last ReLU.

        Args:
          cells: Function of (stage, images) that applies the cells of the stage.
          x: Images in the skeleton's layout.
          normalize: Batch normalization.
          observe: Function that is called with the input of every ReLU of the residual blocks.
        """

        def conv_norm(layer: ConvNorm, x: Array, stride: int = 1) -> Array:
            return normalize(self.layout.convolved(x, layer.kernel[...], stride), layer.scale[...], layer.shift[...])

        if self.stem is not None:
            x = conv_norm(self.stem, x)
        for i, stage in enumerate(self.stages):
            if i:
                block = self.reductions[i - 1]
                observe(x)
                inner = conv_norm(block.conv_a, nnx.relu(x), 2)
                observe(inner)
                shortcut = self.layout.convolved(self.layout.halved(x), block.shortcut[...])
                x = conv_norm(block.conv_b, nnx.relu(inner)) + shortcut
            x = cells(stage, x)
        return normalize(x, self.scale[...], self.shift[...])

    def features_of(self, x: Array) -> Float[Array, "n c"]:
        """Returns the inputs of the classifier, given the input of the last ReLU."""
        return self.layout.features(nnx.relu(x))

    def classify(self, features: Float[Array, "n c"]) -> Float[Array, "n classes"]:
        """Returns the logits of features."""
        return classified(features, self.kernel[...], self.bias[...])

    def check_images(self, x: Array) -> None:
        """Refuses images with other channels, or with sides that cannot be halved between all stages."""
        check_images(x, self.in_channels, 2 ** (len(self.stages) - 1))
