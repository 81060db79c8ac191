"""The finite networks of NAS-Bench-201: one module for all cells, compiled once.

A cell is an argument of the program, not part of its structure: six operation numbers, which a `lax.switch` on every
edge reads at run time. Only the chosen operation is computed. The cells of one stage share the code of a `lax.scan`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from nngp_dag.nas.networks.layers import Normalize, averaged, check_sizes, convolved, normalized, unchanged
from nngp_dag.nas.networks.skeleton import NUM_NODES, Skeleton, Stage
from nngp_dag.nas.spaces.cells import EDGES, OPERATIONS, Cell

Observer = Callable[[Array, Array], Array]


class MacroNet(Skeleton[Stage]):
    """The network of NAS-Bench-201 around any of its cells.

    The stem (3 x 3 convolution, batch norm) is followed by three stages of N cells, with C, 2C and 4C channels. A
    residual block stands between two stages. Batch norm, ReLU, a mean over pixels and a linear classifier come last.
    Node t of a cell is the sum over its edges. An edge carries zero, the identity, ReLU - convolution - batch norm, or
    the mean over 3 x 3 pixels (only those inside the image). Batch norm uses the mean and variance of the batch.

    Every edge has weights for both convolutions, and cells choose among them. So two cells of one network differ in
    their choices, not in the draw of weights. A network of NAS-Bench-201 is a cell with the weights that it reads.

    Args:
      channels: Channels C of the first stage; 16 in NAS-Bench-201.
      cells: Number N of cells per stage; 5 in NAS-Bench-201.
      classes: Number of outputs.
      in_channels: Channels of the images.
      batch_norm: Whether there is batch norm. Without it neither scales nor shifts apply.
      rngs: Generators; all weights come from `rngs.params`. They are normal with variance 2 / fan-out: channels out
        times the pixels of the filter, or the number of classes. Biases and shifts start at 0, scales at 1.

    Raises:
      InputError: A size is below 1.

    Examples:
      >>> net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 8, 8, 3)), Cell.from_index(10353)).shape
      (5, 10)

    Reference: Dong and Yang, NAS-Bench-201, ICLR 2020, Section 2.1 and Figure 1; He et al., ICCV 2015 (initialization).
    """

    def __init__(
        self,
        *,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        in_channels: int = 3,
        batch_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """Draws all weights."""
        check_sizes(cells=cells)
        self.batch_norm, self.normalize = batch_norm, normalized if batch_norm else unchanged
        super().__init__(
            lambda width: Stage(cells, width, rngs=rngs),
            channels=channels,
            classes=classes,
            in_channels=in_channels,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "n h w c"], cell: Cell | Int[Array, " 6"]) -> Float[Array, "n classes"]:
        """Returns the logits.

        Args:
          x: Images. Their sides must be multiples of 4.
          cell: A cell, or its `codes`, which may be a traced array: one compiled program serves all cells.

        Raises:
          InputError: The images have the wrong shape.
        """
        return self.classify(self.features(x, cell))

    def features(self, x: Float[Array, "n h w c"], cell: Cell | Int[Array, " 6"]) -> Float[Array, "n c4"]:
        """Returns the inputs of the classifier; the arguments are those of a call."""
        return self.observed(x, cell, None, jnp.zeros(()), jnp.zeros(()))[0]

    def observed(
        self,
        x: Float[Array, "n h w c"],
        cell: Cell | Int[Array, " 6"],
        observe: Observer | None,
        weights: Array,
        seen: Array,
    ) -> tuple[Float[Array, "n c4"], Array]:
        """Returns the features, and the sum of an observer's results on the inputs of the ReLUs.

        Args:
          x: Images.
          cell: A cell, or its `codes`.
          observe: Function of (input of a ReLU, weight), whose result is added to `seen`. It is not called where the
            weight is 0. None for no observer.
          weights: Weights of the ReLUs, (5,): those on nodes 0, 1 and 2 of a cell, the two of a residual block, and the
            last. Several edges out of a node read one array, which is observed once.
          seen: Start of the sum.
        """
        self.check_images(x)
        codes = jnp.asarray(cell.codes if isinstance(cell, Cell) else cell)

        def look(seen: Array, value: Array, which: int) -> Array:
            if observe is None:
                return seen
            weight = weights[which]
            return lax.cond(weight > 0, lambda: seen + observe(value, weight), lambda: seen)  # type: ignore[misc]

        def one_cell(carry: tuple[Array, Array], layers: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
            value, seen = carry
            nodes = [value, *[jnp.zeros_like(value)] * (NUM_NODES - 1)]
            # Split, not indexed: the backward pass is then one concatenation. With indices it would be a sum of six
            # arrays that are zero but for one edge.
            by_edge = zip(*(lax.split(layer, [1] * len(EDGES)) for layer in layers), strict=True)
            for code, (source, target), weights in zip(codes, EDGES, by_edge, strict=True):
                weights = tuple(weight[0] for weight in weights)
                nodes[target] = lax.switch(code, branches, nodes[target], nodes[source], weights)
            for source, node in enumerate(nodes[:-1]):
                seen = look(seen, node, source)
            return (nodes[-1], seen), None

        def cells(stage: Stage, x: Array) -> Array:
            nonlocal seen
            layers = (stage.conv1[...], stage.conv3[...], stage.scale[...], stage.shift[...])
            (x, seen), _ = lax.scan(one_cell, (x, seen), layers)
            return x

        def see_block(x: Array) -> None:
            nonlocal seen
            seen = look(seen, x, 3)

        # The backward pass keeps the input of each operation only: a `lax.switch` would keep the intermediate arrays
        # of all its branches.
        branches = [jax.checkpoint(_branch(name, self.normalize)) for name in OPERATIONS]
        x = self.around(cells, x, self.normalize, see_block)
        return self.features_of(x), look(seen, x, 4)


def _branch(name: str, normalize: Normalize) -> Callable[[Array, Array, tuple[Array, ...]], Array]:
    """Returns a function of (node, source, weights of the edge), which adds the operation on the source to the node."""

    def add(node: Array, x: Array, weights: tuple[Array, ...]) -> Array:
        conv1, conv3, scale, shift = weights
        if name == "none":
            return node
        if name == "skip_connect":
            return node + x
        if name == "avg_pool_3x3":
            return node + averaged(x)
        kernel = {"nor_conv_1x1": conv1, "nor_conv_3x3": conv3}[name]
        return node + normalize(convolved(nnx.relu(x), kernel), scale, shift)

    return add
