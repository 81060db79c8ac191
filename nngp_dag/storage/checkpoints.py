"""Checkpoints of named arrays by orbax, which are complete or absent on disk, and verified when read.

A checkpoint folder holds one subfolder, whose name is the number of epochs done, or of steps if an epoch is under way.
A newer one replaces it only once it is complete. The subfolder holds the arrays, and a JSON document with the
description of their run and a digest of their bytes.
"""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.storage.documents import difference, misfit

# Name, dtype and shape of an array.
Layout = tuple[str, str, tuple[int, ...]]

_FORMAT = 2
_SHAPE = {"epoch": int, "layout": [list], "arrays": str, "digest": str, "description": dict}


def save(folder: Path, epoch: int, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    """Saves arrays; once they are complete, the checkpoint before is removed.

    Args:
      folder: Folder for checkpoints of this kind.
      epoch: Number of epochs done, or of steps if an epoch is under way.
      arrays: The arrays by name.
      description: Description of the run, made of numbers, texts, lists and dicts.

    Raises:
      OutputError: The disk is full or cannot be written; the checkpoint before stays.
      CheckpointError: The folder holds another checkpoint of this number.
    """
    import orbax.checkpoint as ocp

    # All arrays are saved as one. orbax reads several by concurrent tasks, and prints their failures on the screen.
    layout = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    blob = np.concatenate([np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays.values()])
    document = {"format": _FORMAT, "epoch": epoch, "layout": layout, "description": description}
    document["arrays"] = _digest(arrays, {})
    document["digest"] = _digest(arrays, document)
    try:
        with _manager(folder) as manager:
            known = epoch in manager.all_steps()
            if not known:
                arguments = {"state": ocp.args.ArraySave(blob), "document": ocp.args.JsonSave(document)}
                manager.save(epoch, args=ocp.args.Composite(**arguments))
    # orbax and tensorstore raise errors of the disk in types of their own.
    except Exception as error:
        raise OutputError(
            f"Expected {folder} to take checkpoint {epoch}, got {_first_line(error)}; the one before it "
            f"stays: {'free some space' if 'space' in str(error) else 'solve that problem'} and pass `resume=True`"
        ) from error
    # A process that died after this save, but before its next one, trains the epoch again and must find the same state.
    if known and describe(folder)["arrays"] != document["arrays"]:
        raise CheckpointError(
            f"Expected {folder} to hold the state that this run finds for checkpoint {epoch}, got another; other "
            "versions or another machine compute other bits: start anew with `overwrite=True`"
        )


def latest(folder: Path) -> int | None:
    """Returns the epoch of the newest complete checkpoint, or None."""
    with _readable(folder):
        return _latest(folder)


def describe(folder: Path, about: Any = dict) -> dict[str, Any]:
    """Returns the document of the newest checkpoint: epoch, digest and description.

    Args:
      folder: Folder of the checkpoints, see `save`.
      about: Required shape of the description, see `nngp_dag.storage.misfit`.

    Raises:
      CheckpointError: There is no checkpoint, or its document cannot be read or has another shape.
    """
    import orbax.checkpoint as ocp

    with _readable(folder):
        epoch = _latest(folder)
        if epoch is None:
            raise FileNotFoundError("none")
        with _manager(folder, read_only=True) as manager:
            document = manager.restore(epoch, args=ocp.args.Composite(document=ocp.args.JsonRestore()))["document"]
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError("one of another program or version")
        if wrong := misfit(document, _SHAPE | {"description": about}):
            raise ValueError(wrong)
        return document


def check_is_of(folder: Path, found: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Raises a `CheckpointError` if the description found in a folder differs from that of this run."""
    if wrong := difference({name: found.get(name) for name in description}, description):
        raise CheckpointError(
            f"Expected the checkpoint {folder} to be of this run, got that of another: {wrong}; put the right one "
            "there, or start anew with `overwrite=True`"
        )


def restore(folder: Path, layout: Sequence[Layout]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the newest checkpoint.

    Args:
      folder: Folder of the checkpoints, see `save`.
      layout: Names, dtypes and shapes of the saved arrays.

    Returns:
      The arrays by name, and the document.

    Raises:
      CheckpointError: There is no checkpoint, it is damaged, or it holds arrays of other names or shapes.
    """
    import orbax.checkpoint as ocp

    document = describe(folder)
    with _readable(folder):
        if [[name, dtype, list(shape)] for name, dtype, shape in layout] != document["layout"]:
            raise ValueError("arrays of other names or shapes")
        with _manager(folder, read_only=True) as manager:
            found = manager.restore(document["epoch"], args=ocp.args.Composite(state=ocp.args.ArrayRestore()))["state"]
        data, at, arrays = np.asarray(found).tobytes(), 0, {}
        for name, dtype, shape in layout:
            arrays[name] = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
            at += arrays[name].nbytes
        if _digest(arrays, document) != document["digest"]:
            raise ValueError("bytes that differ from those saved")
        return arrays, document


def _latest(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    with _manager(folder, read_only=True) as manager:
        return manager.latest_step()


@contextlib.contextmanager
def _manager(folder: Path, *, read_only: bool = False) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    with _quiet():
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else 1,
            create=False,
            # Of several processes only the first one writes; by default orbax waits for all of them.
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
            # A killed process may have left temporary folders behind.
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=False,
            read_only=read_only,
        )
        with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
            yield manager


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    # Every layer raises its own type for a damaged file.
    except Exception as error:
        raise CheckpointError(
            f"Expected {folder} to hold an intact checkpoint of this network, got {_first_line(error)}; put an intact "
            "copy there, or start anew with `overwrite=True`"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax's log off the screen; its errors arrive as exceptions."""
    # The filter stays afterwards, since threads of orbax may still write then.
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    yield


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _digest(arrays: Mapping[str, np.ndarray], document: dict[str, Any]) -> str:
    """Returns the SHA-256 of the arrays and of the document's other entries."""
    said = {name: value for name, value in document.items() if name != "digest"}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
