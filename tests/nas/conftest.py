"""The published network of the reference data, and the values that were measured on it."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nngp_dag.nas import Cell, MacroNet, load_state_dict


class Published(NamedTuple):
    net: MacroNet
    cell: Cell
    x: Any
    weights: dict[str, np.ndarray]
    values: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def published(golden_dir):
    with np.load(golden_dir / "parity_tiny_c16n1.npz", allow_pickle=False) as file:
        values = dict(file)
    weights = {name[2:]: value for name, value in values.items() if name.startswith("w:")}
    cell = Cell.parse(str(values["arch_str"]))
    net = MacroNet(channels=16, cells=1, rngs=nnx.Rngs(0))
    load_state_dict(net, weights, cell)
    return Published(net, cell, jnp.asarray(values["x"].transpose(0, 2, 3, 1)), weights, values)
