"""The supernet of NAS-Bench-201: all operations on all edges, weighted by a mixture that is an argument."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from nngp_dag.nas.networks.channels_first import averaged, convolved, normalized
from nngp_dag.nas.networks.layers import Normalize, check_sizes, check_without_stem, in_memory, unchanged
from nngp_dag.nas.networks.skeleton import CHANNELS_FIRST, NUM_NODES, Skeleton, Stage
from nngp_dag.nas.spaces.cells import CONVOLUTIONS, EDGES, OPERATIONS

_READS = np.array([name in CONVOLUTIONS for name in OPERATIONS])


class CellSupernet(Skeleton[Stage]):
    """The network of NAS-Bench-201 with every operation on every edge, weighted by a mixture.

    Node t of a cell is the sum, over its edges and operations, of mixture weight times operation. With a mixture
    of 1 for one operation of each edge and 0 for the others, it equals `MacroNet` around that cell, with the same
    weights. The structure of the program does not depend on the mixture: one compiled program serves all mixtures, and
    `jax.vmap` maps over them.

    Args:
      channels: Channels C of the first stage; 3 in TE-NAS, 1 where it counts linear regions.
      cells: Number N of cells per stage; 1 in TE-NAS.
      stages: Number of stages, with a reduction block between them; 3, or 1 where TE-NAS counts linear regions.
      classes: Number of outputs.
      in_channels: Channels of the images.
      stem: Whether a convolution and batch norm come first. Without a stem, images must have C channels.
      batch_norm: Whether there is batch norm. Without it neither scales nor shifts apply.
      rngs: Generators of the weights, as for `MacroNet`.

    Raises:
      InputError: A size is below 1, or there is no stem and `in_channels` differs from `channels`.

    Examples:
      >>> net = CellSupernet(channels=4, cells=1, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 8, 8, 3)), jnp.full((1, 6, 5), 1 / 5)).shape
      (5, 10)

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021, Section 3.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        cells: int = 1,
        stages: int = 3,
        classes: int = 10,
        in_channels: int = 3,
        stem: bool = True,
        batch_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """Draws all weights."""
        check_sizes(cells=cells)
        if not stem:
            check_without_stem(channels, in_channels)
        self.batch_norm, self.normalize = batch_norm, normalized if batch_norm else unchanged
        super().__init__(
            lambda width: Stage(cells, width, (len(CONVOLUTIONS),), rngs=rngs),
            channels=channels,
            stages=stages,
            classes=classes,
            in_channels=in_channels,
            stem=stem,
            layout=CHANNELS_FIRST,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "n h w c"], mixture: Float[Array, "1 6 5"]) -> Float[Array, "n classes"]:
        """Returns the logits.

        Args:
          x: Images. Their sides must be multiples of 2 to the number of reduction blocks.
          mixture: The weight of every operation of `OPERATIONS` on every edge. The weight of `none` has no effect.

        Raises:
          InputError: The images have the wrong shape.
        """
        return self.observed(x, mixture)[0]

    def observed(
        self, x: Float[Array, "n h w c"], mixture: Float[Array, "1 6 5"]
    ) -> tuple[Float[Array, "n classes"], list[Float[Array, "n _ _ _"]]]:
        """Returns the logits and the inputs of the ReLUs; an array that several ReLUs read appears once.

        A node that no live convolution reads is multiplied by 0, so that it adds nothing to the linear regions.
        """
        self.check_images(x)
        # Factors of 0 or 1, not a choice of arrays: the mixture is traced, and the shapes must not depend on it.
        gates = _gates(mixture[0] > 0).astype(x.dtype)
        seen: list[Array] = []

        def cells(stage: Stage, x: Array) -> Array:
            for k in range(stage.scale.shape[0]):
                nodes = [x, *[jnp.zeros_like(x)] * (NUM_NODES - 1)]
                for source in range(NUM_NODES - 1):
                    nodes[source] = in_memory(nodes[source])
                    edges = np.array([edge for edge, (start, _) in enumerate(EDGES) if start == source])
                    found = _mixed(nodes[source], mixture[0, edges], stage, (k, edges), self.normalize)
                    for edge, value in zip(edges, found, strict=True):
                        nodes[EDGES[edge][1]] += value
                seen.extend(gate * node for gate, node in zip(gates, nodes[:-1], strict=True))
                x = in_memory(nodes[-1])
            return x

        x = self.around(cells, jnp.moveaxis(x, 3, 0), self.normalize, seen.append)
        return self.classify(self.features_of(x)), [jnp.moveaxis(value, 0, 3) for value in (*seen, x)]


def _mixed(x: Array, weights: Array, stage: Stage, place: tuple[int, np.ndarray], normalize: Normalize) -> list[Array]:
    """Returns, for each edge out of one node, the weighted sum of its operations.

    All convolutions of one filter size run as one convolution with more channels: fewer and larger products.
    """
    read, edges, channels = nnx.relu(x), len(weights), len(x)
    pooled = averaged(x)
    skip, pool = (weights[:, OPERATIONS.index(name)] for name in ("skip_connect", "avg_pool_3x3"))
    given = [skip[i] * x + pool[i] * pooled for i in range(edges)]
    for kind, name in enumerate(CONVOLUTIONS):
        kernels = {"nor_conv_1x1": stage.conv1, "nor_conv_3x3": stage.conv3}[name][place]
        kernel = jnp.moveaxis(kernels, 0, 3).reshape(*kernels.shape[1:4], -1)
        scale, shift = (value[place][:, kind].reshape(-1) for value in (stage.scale, stage.shift))
        found = normalize(convolved(read, kernel), scale, shift).reshape(edges, channels, *x.shape[1:])
        given = [value + weights[i, OPERATIONS.index(name)] * found[i] for i, value in enumerate(given)]
    return given


def _gates(live: Bool[Array, "6 5"]) -> Bool[Array, " 3"]:
    """Returns, for nodes 0, 1 and 2, whether a live convolution reads it from which a path leads to the last node."""
    leads = [jnp.array(False)] * (NUM_NODES - 1) + [jnp.array(True)]
    gates = [jnp.array(False)] * (NUM_NODES - 1)
    for source in reversed(range(NUM_NODES - 1)):
        for edge, (start, target) in enumerate(EDGES):
            if start == source:
                operations = live[edge] & leads[target]
                leads[source] |= operations[OPERATIONS.index("none") + 1 :].any()
                gates[source] |= (operations & _READS).any()
    return jnp.stack(gates)
