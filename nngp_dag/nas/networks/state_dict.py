"""Weights under the names of the published PyTorch networks of NAS-Bench-201."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError
from nngp_dag.nas.networks.macro_net import MacroNet
from nngp_dag.nas.spaces.cells import CONVOLUTIONS, Cell


def load_state_dict(net: MacroNet, weights: Mapping[str, ArrayLike], cell: Cell) -> None:
    """Loads the weights of a published PyTorch network into a network, in place.

    Names are such as `stem.0.weight`, `cells.3.layers.5.op.1.weight`, `cells.5.conv_a.op.2.bias`, `lastact.0.weight`,
    `classifier.bias`. Running averages are ignored, because batch norm uses the statistics of the batch. Weights that
    the cell does not read, such as those of other operations, stay as they are.

    Args:
      net: The network, with the same numbers of channels, cells and classes.
      weights: Arrays by name. Kernels are (out, in, height, width).
      cell: The cell of the published network. It decides which kernels an edge has.

    Raises:
      InputError: A weight is missing, has the wrong shape, or has a name that the network does not know.

    Examples:
      >>> from flax import nnx
      >>> net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
      >>> load_state_dict(net, {}, Cell.from_index(0))
      Traceback (most recent call last):
      ...
      nngp_dag.errors.InputError: Expected `weights` to hold 'stem.0.weight', got none of that name
    """
    left = {
        name: np.asarray(value)
        for name, value in weights.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }

    def take(name: str, param: Any, place: tuple[int, ...] = ()) -> None:
        if name not in left:
            raise InputError(f"Expected `weights` to hold {name!r}, got none of that name")
        value = left.pop(name)
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        shape = param[...][place].shape
        if value.shape != shape:
            raise InputError(f"Expected {name!r} to have shape {shape} (channels last), got {value.shape}")
        param[...] = param[...].at[place].set(jnp.asarray(value, param[...].dtype))

    def take_norm(name: str, owner: Any, place: tuple[int, ...] = ()) -> None:
        take(f"{name}.weight", owner.scale, place)
        take(f"{name}.bias", owner.shift, place)

    assert net.stem is not None
    take("stem.0.weight", net.stem.kernel)
    take_norm("stem.1", net.stem)
    number = 0
    for i, stage in enumerate(net.stages):
        if i:
            block = net.reductions[i - 1]
            for name, layer in (("conv_a", block.conv_a), ("conv_b", block.conv_b)):
                take(f"cells.{number}.{name}.op.1.weight", layer.kernel)
                take_norm(f"cells.{number}.{name}.op.2", layer)
            take(f"cells.{number}.downsample.1.weight", block.shortcut)
            number += 1
        for k in range(stage.scale.shape[0]):
            for edge, operation in enumerate(cell.operations):
                if operation in CONVOLUTIONS:
                    layer = f"cells.{number}.layers.{edge}.op"
                    take(f"{layer}.1.weight", stage.conv1 if operation == "nor_conv_1x1" else stage.conv3, (k, edge))
                    take_norm(f"{layer}.2", stage, (k, edge))
            number += 1
    take_norm("lastact.0", net)
    take("classifier.weight", net.kernel)
    take("classifier.bias", net.bias)
    if left:
        raise InputError(
            f"Expected weights of this network and cell only, got {next(iter(left))!r} and {len(left) - 1} more"
        )
