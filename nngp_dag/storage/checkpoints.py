"""Checkpoints of named arrays, by orbax: written whole under a temporary name and renamed, and checked when read.

A checkpoint folder holds one subfolder, named after the epoch; a newer one takes its place only once it is complete. In
it lie the arrays, and a JSON document with what they belong to and a digest of their bytes.
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

# The name, dtype and shape of an array.
Layout = tuple[str, str, tuple[int, ...]]

_FORMAT = 2
_SHAPE = {"epoch": int, "layout": [list], "arrays": str, "digest": str, "description": dict}


def save(folder: Path, epoch: int, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    """Saves arrays, and removes the ones before them once they are complete.

    Args:
      folder: Where checkpoints of this kind lie.
      epoch: The name of this one.
      arrays: The arrays by name.
      description: What they belong to, of numbers, text, lists and dictionaries.

    Raises:
      OutputError: The disk is full or cannot be written; the checkpoint before it stays.
      CheckpointError: There is one of this epoch already, and it differs.
    """
    import orbax.checkpoint as ocp

    # As one array, since orbax reads several by concurrent tasks, whose failures it prints past the caller.
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
    # Broad because orbax and tensorstore raise the disk's errors in types of their own.
    except Exception as error:
        raise OutputError(
            f"Expected {folder} to take a checkpoint of epoch {epoch}, got {_first_line(error)}; the one before it "
            f"stays: {'free some space' if 'space' in str(error) else 'mend that'} and pass `resume=True`"
        ) from error
    # A process that died before its last step has saved this one; the same training finds the same state again.
    if known and describe(folder)["arrays"] != document["arrays"]:
        raise CheckpointError(
            f"Expected {folder} to hold the state that this run finds after epoch {epoch}, got another; other versions "
            "or another machine give other bits: start anew with `overwrite=True`"
        )


def latest(folder: Path) -> int | None:
    """Returns the epoch of the newest complete checkpoint, None where there is none."""
    with _readable(folder):
        return _latest(folder)


def describe(folder: Path, about: Any = dict) -> dict[str, Any]:
    """Returns the document of the newest checkpoint: epoch, digest and description.

    Args:
      folder: As in `save`.
      about: The shape that its description must have, as `nngp_dag.storage.misfit` takes it.

    Raises:
      CheckpointError: There is none, or it cannot be read or has another shape.
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
    """Raises a `CheckpointError` where the description that was found in a folder differs from that of this run."""
    if wrong := difference({name: found.get(name) for name in description}, description):
        raise CheckpointError(
            f"Expected the checkpoint {folder} to be of this run, got another's: {wrong}; put the right one there, or "
            "start anew with `overwrite=True`"
        )


def restore(folder: Path, layout: Sequence[Layout]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the newest checkpoint back.

    Args:
      folder: As in `save`.
      layout: Names, dtypes and shapes of the arrays, as saved.

    Returns:
      The arrays, and the document.

    Raises:
      CheckpointError: There is none, it is damaged, or it holds arrays of other names or shapes.
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
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else 1,
            create=not read_only,
            # What a killed process has left behind.
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
    # Broad because damaged files surface as whatever layer meets them first.
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
    """Keeps orbax's notes off the screen, also those that its threads write later; its errors arrive as exceptions."""
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    yield


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _digest(arrays: Mapping[str, np.ndarray], document: dict[str, Any]) -> str:
    """Returns the SHA-256 of the arrays and of what the document says beside it."""
    said = {name: value for name, value in document.items() if name != "digest"}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
