"""The finite networks of DARTS: one module for all genotypes, compiled once.

A genotype is an argument of the program, not part of its structure: its operations and inputs are numbers, which a
`lax.switch` on every pair reads at run time. Only the chosen operations are computed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from nngp_dag.nas.networks.darts_operations import FactorizedReduce, Preprocess, largest, reduced, separated
from nngp_dag.nas.networks.layers import (
    ConvNorm,
    Normalize,
    averaged,
    check_images,
    check_sizes,
    classified,
    he_normal,
    normalized,
    unchanged,
)
from nngp_dag.nas.networks.macro_net import Observer
from nngp_dag.nas.spaces.darts import CONCAT, OPERATIONS, Genotype

_PAIRS = 2 * len(CONCAT)
_NUM_INPUTS = 2
# Nodes that an operation may read: the last node has no reader within its cell.
_READ = _NUM_INPUTS + len(CONCAT) - 1

Weights = tuple[Array, Array, Array, Array]


class SeparablePairs(nnx.Module):
    """A separable convolution for each of the eight pairs of a cell; see `Separable`.

    Attributes:
      depthwise: Kernels of the depthwise convolutions, (8, side, side, 1, C).
      pointwise: Kernels of the 1 x 1 convolutions, (8, 1, 1, C, C).
      scale: Scales of batch norm, (8, C).
      shift: Shifts of batch norm, (8, C).
    """

    def __init__(self, channels: int, side: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.depthwise = nnx.Param(he_normal(rngs, (_PAIRS, side, side, 1, channels)))
        self.pointwise = nnx.Param(he_normal(rngs, (_PAIRS, 1, 1, channels, channels)))
        self.scale = nnx.Param(jnp.ones((_PAIRS, channels)))
        self.shift = nnx.Param(jnp.zeros((_PAIRS, channels)))

    def weights(self) -> Weights:
        """Returns all weights, with an axis of pairs in front."""
        return self.depthwise[...], self.pointwise[...], self.scale[...], self.shift[...]


class ReducingPairs(nnx.Module):
    """A `FactorizedReduce` for each of the eight pairs of a reduction cell: its skips from the inputs of the cell."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        """Draws the weights."""
        halves = channels // 2, channels - channels // 2
        self.even, self.odd = (nnx.Param(he_normal(rngs, (_PAIRS, 1, 1, channels, half))) for half in halves)
        self.scale = nnx.Param(jnp.ones((_PAIRS, channels)))
        self.shift = nnx.Param(jnp.zeros((_PAIRS, channels)))

    def weights(self) -> Weights:
        """Returns all weights, with an axis of pairs in front."""
        return self.even[...], self.odd[...], self.scale[...], self.shift[...]


class ChoiceCell(nnx.Module):
    """A cell with the weights of every operation on each of its eight pairs.

    Args:
      before: Channels of the two inputs.
      channels: Channels C of every node. The output has 4C.
      reduction: Whether operations on the inputs have stride 2.
      late: Whether the sides of the first input are twice those of the second.
      rngs: Generators of the weights.
    """

    def __init__(self, before: tuple[int, int], channels: int, reduction: bool, late: bool, *, rngs: nnx.Rngs):
        """Draws the weights."""
        self.reduction = reduction
        self.preprocess0 = (FactorizedReduce if late else Preprocess)(before[0], channels, rngs=rngs)
        self.preprocess1 = Preprocess(before[1], channels, rngs=rngs)
        self.sep3, self.sep5 = (
            nnx.List([SeparablePairs(channels, side, rngs=rngs) for _ in range(2)]) for side in (3, 5)
        )
        self.dil3, self.dil5 = (SeparablePairs(channels, side, rngs=rngs) for side in (3, 5))
        self.skip = ReducingPairs(channels, rngs=rngs) if reduction else None

    def __call__(
        self,
        inputs: tuple[Array, Array],
        codes: Int[Array, "2 8"],
        normalize: Normalize,
        look: Callable[[Array, Array, Array], Array],
        counts: Int[Array, " 13"],
        seen: Array,
    ) -> tuple[Array, Array]:
        """Returns the output, and the sum of an observer's results.

        Args:
          inputs: Outputs of the two cells before.
          codes: Operations and inputs of the eight pairs.
          normalize: Batch normalization.
          look: Function of (sum so far, input of a ReLU, weight) that returns the sum with this ReLU.
          counts: Weights of the ReLUs on nodes 0 to 4, and of the second ReLU of each pair.
          seen: Start of the sum.
        """
        first, second = self.preprocess0(inputs[0], normalize), self.preprocess1(inputs[1], normalize)
        entries = jnp.stack([first, second])
        n, height, width, channels = first.shape
        stride = 2 if self.reduction else 1
        sides = -(-height // stride), -(-width // stride)
        nodes = jnp.zeros((len(CONCAT), n, *sides, channels), first.dtype)
        branches = [_branch(name, stride, normalize, look) for name in OPERATIONS]
        if self.reduction:
            branches += [_branch(name, 1, normalize, look, inner=True) for name in OPERATIONS]
        blocks = {"sep3": self.sep3, "sep5": self.sep5}
        weights = {
            **{name: tuple(block.weights() for block in pair) for name, pair in blocks.items()},
            "dil3": self.dil3.weights(),
            "dil5": self.dil5.weights(),
            "skip": None if self.skip is None else self.skip.weights(),
        }

        def add(carry: tuple[Array, Array], pair: tuple) -> tuple[tuple[Array, Array], None]:
            nodes, seen = carry
            operation, source, target, count, of_pair = pair
            entry = lax.dynamic_index_in_dim(entries, jnp.minimum(source, 1), keepdims=False)
            node = lax.dynamic_index_in_dim(nodes, jnp.maximum(source - _NUM_INPUTS, 0), keepdims=False)
            if self.reduction:
                which = operation + len(OPERATIONS) * (source >= _NUM_INPUTS)
            else:
                which, entry = operation, jnp.where(source < _NUM_INPUTS, entry, node)
            value, seen = lax.switch(which, branches, entry, node, of_pair, count, seen)
            return (nodes.at[target].add(value), seen), None

        targets = jnp.arange(_PAIRS) // 2
        pairs = codes[0], codes[1], targets, counts[_READ:], weights
        (nodes, seen), _ = lax.scan(add, (nodes, seen), pairs)

        def look_at(seen: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
            return look(seen, *node), None

        seen, _ = lax.scan(look_at, seen, (entries, counts[:_NUM_INPUTS]))
        seen, _ = lax.scan(look_at, seen, (nodes[:-1], counts[_NUM_INPUTS:_READ]))
        return jnp.moveaxis(nodes, 0, 3).reshape(n, *sides, -1), seen


class DartsMacroNet(nnx.Module):
    """The network of DARTS around any genotype.

    The stem (3 x 3 convolution to 3C channels, batch norm) is followed by 3N + 2 cells, a mean over pixels and a linear
    classifier. N normal cells stand before, between and after two reduction cells, where the channels double: C, 2C,
    4C. It is the network of `DartsNet` with 3N + 2 layers, but batch norm uses the mean and variance of the batch.

    Every pair of a cell has weights for all operations, and genotypes choose among them. So two genotypes of one
    network differ in their choices, not in the draw of weights.

    Args:
      channels: Channels C of the first cells; 16 in the search of DARTS, 36 in its evaluation.
      cells: Number N of normal cells per stage; 2 in the search of DARTS, 6 in its evaluation.
      classes: Number of outputs.
      in_channels: Channels of the images.
      batch_norm: Whether there is batch norm. Without it neither scales nor shifts apply.
      rngs: Generators of the weights, as for `MacroNet`.

    Raises:
      InputError: A size is below 1.

    Examples:
      >>> cell = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 4
      >>> net = DartsMacroNet(channels=2, cells=1, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 8, 8, 3)), Genotype.from_pairs(cell, cell)).shape
      (5, 10)

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Sections 2.1 and 3.2.
    """

    def __init__(
        self,
        *,
        channels: int = 16,
        cells: int = 2,
        classes: int = 10,
        in_channels: int = 3,
        batch_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """Draws all weights."""
        check_sizes(channels=channels, cells=cells, classes=classes, in_channels=in_channels)
        self.in_channels, self.cells_per_stage = in_channels, cells
        self.batch_norm, self.normalize = batch_norm, normalized if batch_norm else unchanged
        before = 3 * channels, 3 * channels
        self.stem = ConvNorm(in_channels, before[0], rngs=rngs)
        made, late, wide = [], False, channels
        for i in range(3 * cells + 2):
            reduction = i in (cells, 2 * cells + 1)
            wide *= 2 if reduction else 1
            made.append(ChoiceCell(before, wide, reduction, late, rngs=rngs))
            before, late = (before[1], 4 * wide), reduction
        self.cells = nnx.List(made)
        self.kernel = nnx.Param(he_normal(rngs, (before[1], classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def __call__(self, x: Float[Array, "n h w c"], genotype: Genotype | Int[Array, " 32"]) -> Float[Array, "n classes"]:
        """Returns the logits.

        Args:
          x: Images.
          genotype: A genotype, or its `codes`, which may be a traced array: one compiled program serves all genotypes.

        Raises:
          InputError: The images have the wrong shape.
        """
        features, _ = self.observed(x, genotype, None, jnp.zeros(0, jnp.int32), jnp.zeros(()))
        return classified(features, self.kernel[...], self.bias[...])

    def observed(
        self,
        x: Float[Array, "n h w c"],
        genotype: Genotype | Int[Array, " 32"],
        observe: Observer | None,
        weights: Int[Array, " relus"],
        seen: Array,
    ) -> tuple[Float[Array, "n c16"], Array]:
        """Returns the features, and the sum of an observer's results on the inputs of the ReLUs.

        Args:
          x: Images.
          genotype: A genotype, or its `codes`.
          observe: Function of (input of a ReLU, weight), whose result is added to `seen`. It is not called where the
            weight is 0. None for no observer.
          weights: Weights of the ReLUs; see `relu_counts`. Without an observer they are not read.
          seen: Start of the sum.
        """
        check_images(x, self.in_channels, 1)
        codes = jnp.asarray(genotype.codes if isinstance(genotype, Genotype) else genotype).reshape(2, 2, _PAIRS)

        def look(seen: Array, value: Array, weight: Array) -> Array:
            if observe is None:
                return seen
            return lax.cond(weight > 0, lambda: seen + observe(value, weight), lambda: seen)  # type: ignore[misc]

        ends = len(self.cells) + 1
        if observe is None:
            weights = jnp.zeros(ends + (ends - 1) * (_READ + _PAIRS), jnp.int32)
        of_cells = weights[ends:].reshape(ends - 1, _READ + _PAIRS)
        x = self.stem(x, self.normalize)
        seen, inputs = look(seen, x, weights[0]), (x, x)
        for i, cell in enumerate(self.cells):
            x, seen = cell(inputs, codes[int(cell.reduction)], self.normalize, look, of_cells[i], seen)
            seen, inputs = look(seen, x, weights[i + 1]), (inputs[1], x)
        return x.mean(axis=(1, 2)), seen


def _branch(
    name: str, stride: int, normalize: Normalize, look: Callable[[Array, Array, Array], Array], *, inner: bool = False
) -> Callable[..., tuple[Array, Array]]:
    """Returns a function of (input of the cell, node of the cell, weights of the pair, weight of a ReLU, sum).

    It returns the operation on the first of these, or on the second with `inner`, and the sum with the second ReLU.
    """

    def apply(entry: Array, node: Array, weights: dict, count: Array, seen: Array) -> tuple[Array, Array]:
        x = node if inner else entry
        if name == "none":
            return jnp.zeros_like(x[:, ::stride, ::stride]), seen
        if name.endswith("pool_3x3"):
            return (largest if name.startswith("max") else averaged)(x)[:, ::stride, ::stride], seen
        if name == "skip_connect":
            return (x if stride == 1 else reduced(x, weights["skip"], normalize)), seen
        if name.startswith("dil"):
            return separated(x, weights[f"dil{name[-1]}"], normalize, stride, 2), seen
        first, second = weights[f"sep{name[-1]}"]
        x = separated(x, first, normalize, stride)
        return separated(x, second, normalize), look(seen, x, count)

    # The backward pass keeps the input of each operation only, as in `MacroNet`.
    return jax.checkpoint(apply)


def relu_counts(genotype: Genotype, cells: int, counting: str) -> Int[np.ndarray, " relus"]:
    """Returns the weights of the ReLUs of a `DartsMacroNet`, of which there are 14 per cell, and one for the stem.

    First come the ReLUs on the outputs of the stem and of all cells, which the next two cells read. Then come, for each
    cell, those on its nodes 0 to 4, and the second ReLU of each of its eight pairs. ReLUs that read one array are
    counted together.

    Args:
      genotype: The genotype.
      cells: Number N of normal cells per stage.
      counting: "correct" counts every ReLU that affects an output once. "reference" counts ReLUs as the code of Mellor
        et al. does: those of all cells, also of unused inputs, and those in a ReLU - 1 x 1 convolution - batch norm
        twice, since the name of that class contains "ReLU".
    """
    number = 3 * cells + 2
    outputs, within = np.zeros(number + 1, np.int32), np.zeros((number, _READ + _PAIRS), np.int32)
    reductions = cells, 2 * cells + 1
    # Output i + 1 is that of cell i, and output 0 that of the stem.
    read_by = [(max(i - 1, 0), i) for i in range(number)]
    pairs = [genotype.reduce if i in reductions else genotype.normal for i in range(number)]
    # Whether anything but zero flows into each node, from the inputs to the outputs, ...
    filled, flows = [True], []
    for i in range(number):
        flow = [filled[source] for source in read_by[i]]
        for node in range(len(CONCAT)):
            flow.append(any(name != "none" and flow[source] for name, source in pairs[i][2 * node : 2 * node + 2]))
        flows.append(flow)
        filled.append(any(flow[_NUM_INPUTS:]))
    # ... and whether it reaches the classifier, from the outputs back.
    needed = [False] * number + [True]
    for i in reversed(range(number)):
        live = needed[i + 1]
        for place, before in enumerate(read_by[i]):
            reads = live and any(name != "none" and source == place for name, source in pairs[i])
            needed[before] |= reads
            twice = counting == "reference" and not (place == 0 and i - 1 in reductions)
            if counting == "reference" or (reads and filled[before]):
                outputs[before] += 2 if twice else 1
        for j, (name, source) in enumerate(pairs[i]):
            halves = name == "skip_connect" and i in reductions and source < _NUM_INPUTS
            if counting == "reference" or (live and flows[i][source]):
                within[i, source] += "conv" in name or halves
                within[i, _READ + j] += name.startswith("sep")
    return np.concatenate([outputs, within.ravel()])
