"""JSON documents on disk, read without trust: whatever is wrong with one is one line."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nngp_dag.errors import CheckpointError, InputError, shorten, shown
from nngp_dag.storage.files import output_file, sync

# A type; several; a dict of entries, those whose names end in "?" optional; or a list of the shape of all items.
Shape = type | tuple[type, ...] | Mapping[str, Any] | list[Any]

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a document in place of the one that is there.

    Raises:
      OutputError: It cannot be written.
    """
    with output_file(path, overwrite=True) as file:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        sync(file)


def read_json(path: Path, shape: Shape, what: str, remedy: str) -> dict[str, Any]:
    """Reads a document.

    Args:
      path: Its file.
      shape: Entries that it must have, and their types; it may have others.
      what: What it should describe, for messages.
      remedy: What to do where it does not.

    Raises:
      CheckpointError: It is not there, cannot be read, or has another shape.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if wrong := misfit(document, shape):
            raise ValueError(wrong)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Expected {path} to describe {what}, got {reason_of(error)}; {remedy}") from None
    return document


def write_sealed(path: Path, name: str, value: Any) -> None:
    """Writes {name: value} with a digest of the value.

    Raises:
      OutputError: It cannot be written.
    """
    # As it will be read: keys are texts, tuples are lists.
    value = json.loads(json.dumps(value))
    write_json(path, {name: value, "sha256": _digest(value)})


def read_sealed(path: Path, name: str, shape: Shape, what: str, remedy: str) -> Any:
    """Returns the value in what `write_sealed` wrote.

    Args:
      path: Its file.
      name: The name of the value.
      shape: The shape of the value.
      what: As in `read_json`.
      remedy: As in `read_json`.

    Raises:
      CheckpointError: As in `read_json`, or the value is not as it was written.
    """
    document = read_json(path, {name: shape, "sha256": str}, what, remedy)
    if document["sha256"] != _digest(document[name]):
        raise CheckpointError(f"Expected {path} to hold what was written there, got something else; {remedy}")
    return document[name]


def check_same(before: Any, now: Any, source: Path) -> None:
    """Raises a `CheckpointError` that names the first difference between settings before, in `source`, and now."""
    if found := difference(before, now):
        raise CheckpointError(
            f"Expected the same settings as in {source}, got others: {found}; pass the old ones, or another output"
        )


def check_config(config: Mapping[str, Any] | None) -> None:
    """Raises an `InputError` unless JSON can hold `config` as it is."""
    if config is not None and not (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
        raise InputError(f"Expected `config` to be a dict with names that are text, got {shown(config)}")
    try:
        json.dumps(dict(config or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"Expected `config` to hold what JSON can, got {shown(config)}: {shown(str(error))}; pass plain numbers, "
            "texts, lists and dicts"
        ) from None


def difference(before: Any, now: Any, name: str = "") -> str:
    """Says where two documents first differ, and how; nothing where they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*now, *before)):
            if found := difference(before.get(key), now.get(key), f"{name}.{key}" if name else key):
                return found
        return ""
    return "" if before == now else f"{name} {_short(before)} before, {_short(now)} now"


def _short(value: Any) -> str:
    return "none" if value is None else shorten(json.dumps(value), 200)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def reason_of(error: Exception) -> str:
    """Says in a few words why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "none"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return shorten(" ".join(str(error).split()) or type(error).__name__, 200)


def misfit(value: Any, shape: Shape, name: str = "") -> str:
    """Says where a value has another shape; nothing where it has none."""
    kinds: Any = shape if isinstance(shape, tuple) else (dict if isinstance(shape, Mapping) else list,)
    kinds = (shape,) if isinstance(shape, type) else kinds
    # As JSON has it: true is no number, and 1 is a number with a fraction of 0.
    kind = type(value)
    if kind not in kinds and not (kind is int and float in kinds):
        wanted = " or ".join(_NAMES[kind] for kind in kinds)
        return f"{shorten(json.dumps(value))} for {name or 'the whole'}, not {wanted}"
    if isinstance(shape, Mapping):
        for entry, inner in shape.items():
            key = entry.removesuffix("?")
            called = f"{name}.{key}" if name else key
            if key not in value and key == entry:
                return f"no {called}"
            if key in value and (wrong := misfit(value[key], inner, called)):
                return wrong
    if isinstance(shape, list):
        return next(filter(None, (misfit(item, shape[0], f"an item of {name or 'the list'}") for item in value)), "")
    return ""
