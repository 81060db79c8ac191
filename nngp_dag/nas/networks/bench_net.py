"""The network of NAS-Bench-201 around one cell, for training."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from nngp_dag.nas.networks.layers import ConvNorm, Normalize, averaged, check_sizes
from nngp_dag.nas.networks.running_norms import Drop, RunningNorms
from nngp_dag.nas.networks.skeleton import NUM_NODES, Skeleton
from nngp_dag.nas.spaces.cells import EDGES, Cell


class BenchNet(Skeleton[nnx.List], RunningNorms):
    """The network of NAS-Bench-201 around one cell, for training: its batch norm keeps running statistics.

    The layers are those of `MacroNet`. A call takes images, (n, height, width, channels), and returns logits,
    (n, classes), by the running statistics. `train_step` uses the statistics of the batch and updates the running ones.

    Args:
      cell: The cell. Only its own live convolutions have weights.
      image_shape: Shape of one image, (height, width, channels). Both sides are multiples of 4.
      channels: Channels C of the first stage; 16 in NAS-Bench-201.
      cells: Number N of cells per stage; 5 in NAS-Bench-201.
      classes: Number of outputs.
      rngs: Generators; all weights come from `rngs.params`. Kernels are uniform between -1 and 1 over the root of
        fan-in, as in PyTorch, whose defaults the published code for training keeps. Shifts start at 0, scales at 1.
        The bias of a classifier starts at 0, while PyTorch draws it.

    Raises:
      InputError: A size is below 1, or the images do not fit.

    Examples:
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
        check_sizes(cells=cells)
        self.operations = cell.live.operations
        sides = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}

        def edges(width: int) -> nnx.List:
            return nnx.List(
                [ConvNorm(width, width, side=sides[o], rngs=rngs) if o in sides else None for o in self.operations]
            )

        super().__init__(
            lambda width: nnx.List([edges(width) for _ in range(cells)]),
            channels=channels,
            classes=classes,
            in_channels=image_shape[-1],
            rngs=rngs,
        )
        self._start(image_shape, rngs)

    def _forward(self, x: Array, normalize: Normalize, drop: Drop, training: bool) -> tuple[Array, None]:
        def cells(stage: nnx.List, x: Array) -> Array:
            for cell in stage:
                nodes = [x, *[jnp.zeros_like(x)] * (NUM_NODES - 1)]
                for operation, block, (source, target) in zip(self.operations, cell, EDGES, strict=True):
                    value = nodes[source]
                    if block is not None:
                        nodes[target] += drop(block(nnx.relu(value), normalize))
                    elif operation == "avg_pool_3x3":
                        nodes[target] += drop(averaged(value))
                    elif operation == "skip_connect":
                        nodes[target] += value
                x = nodes[-1]
            return x

        self.check_images(x)
        return self.classify(self.features_of(self.around(cells, x, normalize))), None
