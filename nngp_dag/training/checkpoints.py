"""States of training on disk: trees of arrays, with a description of their run."""

from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from nngp_dag.storage import checkpoints
from nngp_dag.storage.checkpoints import check_is_of, describe, latest

__all__ = ["OF_RUN", "check_is_of", "describe", "latest", "restore", "save"]

Tree = TypeVar("Tree")

# Shape of the description that the trainer stores in its checkpoints.
OF_RUN = {
    "kind": str,
    "name": str,
    "network": dict,
    "recipe": {"epochs": int},
    "seeds": [int],
    "data": {"sha256": str, "source?": (dict, type(None))},
}


def save(folder: Path, epoch: int, state: Any, description: dict[str, Any]) -> None:
    """Saves a tree of arrays by `nngp_dag.storage.checkpoints.save`."""
    # Leaves are stored under flat names, so that reading needs no module of the network.
    arrays = zip(_names(state), map(np.asarray, jax.tree.leaves(state)), strict=True)
    checkpoints.save(folder, epoch, dict(arrays), description)


def restore(folder: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """Reads the newest checkpoint as a tree, by `nngp_dag.storage.checkpoints.restore`.

    Args:
      folder: Folder of the checkpoints, see `save`.
      like: A tree with the structure of the saved one, of arrays or of their shapes and dtypes.

    Returns:
      The state as a tree of NumPy arrays, and the document.
    """
    leaves, structure = jax.tree.flatten(like)
    layout = [(name, str(np.dtype(leaf.dtype)), leaf.shape) for name, leaf in zip(_names(like), leaves, strict=True)]
    arrays, document = checkpoints.restore(folder, layout)
    return jax.tree.unflatten(structure, [arrays[name] for name, *_ in layout]), document


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
