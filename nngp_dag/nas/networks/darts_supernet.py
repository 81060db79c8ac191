"""The supernet of the DARTS space."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from nngp_dag.nas.networks.darts_operations import FactorizedReduce, Preprocess, Separable, largest
from nngp_dag.nas.networks.layers import (
    ConvNorm,
    Normalize,
    averaged,
    check_images,
    check_sizes,
    check_without_stem,
    classified,
    he_normal,
    in_memory,
    normalized,
    unchanged,
)
from nngp_dag.nas.spaces.darts import EDGES, OPERATIONS

_NUM_NODES = 6


class MixedEdges(nnx.Module):
    """All operations on the edges out of one node; operations of one kind run as one with more channels."""

    def __init__(self, edges: int, channels: int, stride: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.edges, self.stride = edges, stride
        self.sep3, self.sep5 = (
            nnx.List([Separable(channels, side, groups=edges, rngs=rngs) for _ in range(2)]) for side in (3, 5)
        )
        self.dil3, self.dil5 = (Separable(channels, side, 2, edges, rngs=rngs) for side in (3, 5))
        self.skip = FactorizedReduce(channels, channels, edges, rngs=rngs) if stride == 2 else None

    def __call__(
        self, x: Array, weights: Float[Array, "edges 8"], normalize: Normalize
    ) -> tuple[Float[Array, "n h w edges c"], list[Array]]:
        """Returns the weighted sum of each edge, and the inputs of the second ReLU of separable convolutions."""
        x = in_memory(x)
        step, repeated, inner = self.stride, jnp.tile(x, self.edges), []

        def weighted(name: str, value: Array) -> Array:
            weight = weights[:, OPERATIONS.index(name)].reshape(1, 1, 1, -1, 1)
            groups = self.edges if value.shape[3] > x.shape[3] else 1
            return weight * value.reshape(*value.shape[:3], groups, x.shape[3])

        total = weighted("max_pool_3x3", largest(x)[:, ::step, ::step])
        total += weighted("avg_pool_3x3", averaged(x)[:, ::step, ::step])
        total += weighted("skip_connect", x if self.skip is None else self.skip(x, normalize))
        for name, (first, second) in (("sep_conv_3x3", self.sep3), ("sep_conv_5x5", self.sep5)):
            value = first(repeated, normalize, step)
            live = jnp.repeat(weights[:, OPERATIONS.index(name)] > 0, x.shape[3])
            value = in_memory(value)
            inner.append(live.reshape(1, 1, 1, -1) * value)
            total += weighted(name, second(value, normalize))
        for name, block in (("dil_conv_3x3", self.dil3), ("dil_conv_5x5", self.dil5)):
            total += weighted(name, block(repeated, normalize, step))
        return total, inner


class MixedCell(nnx.Module):
    """One cell of the supernet: two inputs, four nodes, and all edges between them.

    Args:
      c_before: Channels of the two inputs.
      channels: Channels C of every node. The output has 4C.
      reduction: Whether the edges out of the inputs have stride 2.
      after_reduction: Whether the sides of the first input are twice those of the second.
      rngs: Generators of the weights.
    """

    def __init__(
        self, c_before: tuple[int, int], channels: int, reduction: bool, after_reduction: bool, *, rngs: nnx.Rngs
    ):
        """Draws the weights."""
        self.reduction = reduction
        first = FactorizedReduce if after_reduction else Preprocess
        self.preprocess0 = first(c_before[0], channels, rngs=rngs)
        self.preprocess1 = Preprocess(c_before[1], channels, rngs=rngs)
        self.edges = nnx.List(
            [
                MixedEdges(len(_out_of(source)), channels, 2 if reduction and source < 2 else 1, rngs=rngs)
                for source in range(_NUM_NODES - 1)
            ]
        )

    def __call__(
        self, inputs: tuple[Array, Array], weights: Float[Array, "14 8"], normalize: Normalize
    ) -> tuple[Array, list[Array]]:
        """Returns the output, and the inputs of ReLUs: on the cell's inputs, on nodes 0 to 4, and within operations."""
        gates, reads = _gates(weights > 0, self.reduction)
        nodes: list = [self.preprocess0(inputs[0], normalize), self.preprocess1(inputs[1], normalize), 0, 0, 0, 0]
        seen = [reads[i] * x for i, x in enumerate(inputs)]
        for source, edges in enumerate(self.edges):
            places = _out_of(source)
            added, inner = edges(nodes[source], weights[places], normalize)
            for i, edge in enumerate(places):
                nodes[EDGES[edge][1]] += added[..., i, :]
            seen += inner
        seen += [gate * node for gate, node in zip(gates, nodes[:-1], strict=True)]
        return jnp.concatenate(nodes[2:], axis=-1), seen


class DartsSupernet(nnx.Module):
    """The network of the DARTS space with every operation on every edge, weighted, as TE-NAS builds it.

    The stem (3 x 3 convolution, batch norm) is followed by three stages of N cells with C, 2C and 4C channels. Batch
    norm, ReLU, a mean over pixels and a linear classifier come last. The first cell of the second and the third stage
    is a reduction cell: the edges out of its inputs halve the sides.

    A cell reads the outputs of the two cells before it. ReLU, a 1 x 1 convolution and batch norm bring them to its
    channels, or `FactorizedReduce` where the sides differ. Node t is the sum, over its edges and operations, of mixture
    weight times operation. The output concatenates nodes 2 to 5.

    Batch norm uses the statistics of the batch. TE-NAS has no batch norm after pooling, where DARTS has one. TE-NAS has
    one before the last ReLU, where DARTS has none. The structure of the program does not depend on the mixture: one
    compiled program serves all mixtures, and `jax.vmap` maps over them.

    Args:
      channels: Channels C of the first cells; 1 in TE-NAS.
      cells: Number N of cells per stage; 1 in TE-NAS.
      depth: Number of cells to keep, from the first; 2 in TE-NAS. None for all 3N.
      stem_multiplier: Channels after the stem, in units of C; 1 in TE-NAS, 3 in DARTS.
      classes: Number of outputs.
      in_channels: Channels of the images.
      stem: Whether there is a stem. Without one, images must have `channels` times `stem_multiplier` channels.
      batch_norm: Whether there is batch norm. Without it neither scales nor shifts apply.
      rngs: Generators of the weights, as for `MacroNet`.

    Raises:
      InputError: A size is below 1, or there is no stem and the images have another number of channels.

    Examples:
      >>> net = DartsSupernet(channels=1, depth=2, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 8, 8, 3)), jnp.full((2, 14, 8), 1 / 8)).shape
      (5, 10)

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Section 2.1; Chen, Gong, Wang, TE-NAS, ICLR 2021, Section 4.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        cells: int = 1,
        depth: int | None = None,
        stem_multiplier: int = 1,
        classes: int = 10,
        in_channels: int = 3,
        stem: bool = True,
        batch_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """Draws all weights."""
        depth = 3 * cells if depth is None else min(depth, 3 * cells)
        check_sizes(
            channels=channels,
            cells=cells,
            depth=depth,
            stem_multiplier=stem_multiplier,
            classes=classes,
            in_channels=in_channels,
        )
        if not stem:
            check_without_stem(channels * stem_multiplier, in_channels)
        self.in_channels, self.batch_norm = in_channels, batch_norm
        self.normalize = normalized if batch_norm else unchanged
        before = stem_multiplier * channels, stem_multiplier * channels
        self.stem = ConvNorm(in_channels, before[0], rngs=rngs) if stem else None
        made, reduced = [], False
        for i in range(depth):
            reduction, width = i in (cells, 2 * cells), channels * 2 ** (i // cells)
            made.append(MixedCell(before, width, reduction, reduced, rngs=rngs))
            before, reduced = (before[1], 4 * width), reduction
        self.cells = nnx.List(made)
        self.scale = nnx.Param(jnp.ones(before[1]))
        self.shift = nnx.Param(jnp.zeros(before[1]))
        self.kernel = nnx.Param(he_normal(rngs, (before[1], classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def __call__(self, x: Float[Array, "n h w c"], mixture: Float[Array, "2 14 8"]) -> Float[Array, "n classes"]:
        """Returns the logits.

        Args:
          x: Images.
          mixture: The weight of every operation of `OPERATIONS` on every edge of the normal and the reduction cell. The
            weight of `none` has no effect.

        Raises:
          InputError: The images have the wrong shape.
        """
        return self.observed(x, mixture)[0]

    def observed(
        self, x: Float[Array, "n h w c"], mixture: Float[Array, "2 14 8"]
    ) -> tuple[Float[Array, "n classes"], list[Float[Array, "n _ _ _"]]]:
        """Returns the logits and the inputs of the ReLUs; an array that several ReLUs read appears once.

        An array that no live ReLU reads is multiplied by 0, so that it adds nothing to the linear regions.
        """
        check_images(x, self.in_channels, 1)
        normalize = self.normalize
        if self.stem is not None:
            x = self.stem(x, normalize)
        alive = self._alive(mixture > 0)
        inputs, seen = (x, x), []
        for cell, live in zip(self.cells, alive, strict=True):
            out, within = cell(inputs, mixture[int(cell.reduction)], normalize)
            seen += [live * value for value in within]
            inputs = inputs[1], out
        x = normalize(inputs[1], self.scale[...], self.shift[...])
        features = nnx.relu(x).mean(axis=(1, 2))
        return classified(features, self.kernel[...], self.bias[...]), [*seen, x]

    def _alive(self, live: Bool[Array, "2 14 8"]) -> list[Bool[Array, ""]]:
        """Returns, for each cell, whether a path of live operations leads from its output to the logits."""
        alive = [jnp.array(False)] * (len(self.cells) - 1) + [jnp.array(True)]
        for i in reversed(range(len(self.cells))):
            reduction = self.cells[i].reduction
            _, reads = _gates(live[int(reduction)], reduction)
            for before, read in ((i - 2, reads[0]), (i - 1, reads[1])):
                if before >= 0:
                    alive[before] |= alive[i] & read
        return alive


def _out_of(node: int) -> np.ndarray:
    return np.array([edge for edge, (source, _) in enumerate(EDGES) if source == node])


def _gates(live: Bool[Array, "14 8"], reduction: bool) -> tuple[Bool[Array, " 5"], Bool[Array, " 2"]]:
    """Returns whether a live ReLU reads nodes 0 to 4, and whether any live operation reads nodes 0 and 1.

    The output concatenates nodes 2 to 5, so that every path into one of them reaches the output.
    """
    gates = [jnp.array(False)] * (_NUM_NODES - 1)
    reads = [jnp.array(False)] * 2
    for edge, (source, _) in enumerate(EDGES):
        gates[source] |= live[edge, OPERATIONS.index("sep_conv_3x3") :].any()
        if source < 2:
            reads[source] |= live[edge, 1:].any()
            if reduction:
                gates[source] |= live[edge, OPERATIONS.index("skip_connect")]
    return jnp.stack(gates), jnp.stack(reads)
