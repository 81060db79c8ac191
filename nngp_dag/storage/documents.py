"""JSON documents on disk, validated when read; every defect is reported in one line."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nngp_dag.errors import CheckpointError, InputError, shorten, shown
from nngp_dag.storage.files import output_file, sync

# The shape of a JSON value is a type, several types, a dict with the shapes of entries, or a list with the shape of its
# items. An entry whose name ends in "?" may be missing.
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
    """Writes a document, which replaces an existing one.

    Raises:
      OutputError: The file cannot be written.
    """
    with output_file(path, overwrite=True) as file:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        sync(file)


def read_json(path: Path, shape: Shape, what: str, remedy: str) -> dict[str, Any]:
    """Reads a document.

    Args:
      path: File of the document.
      shape: Required entries and their types; the document may have other entries.
      what: Subject of the document, for messages.
      remedy: Advice for the end of messages.

    Raises:
      CheckpointError: The file is missing, cannot be read, or has another shape.
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
      OutputError: The file cannot be written.
    """
    # JSON turns keys into texts and tuples into lists. The digest must be that of the value as it will be read.
    value = json.loads(json.dumps(value))
    write_json(path, {name: value, "sha256": _digest(value)})


def read_sealed(path: Path, name: str, shape: Shape, what: str, remedy: str) -> Any:
    """Returns the value that `write_sealed` wrote.

    Args:
      path: File of the document.
      name: Name of the value.
      shape: Required shape of the value.
      what: Subject of the document, for messages.
      remedy: Advice for the end of messages.

    Raises:
      CheckpointError: `read_json` refuses the file, or the value does not match its digest.
    """
    document = read_json(path, {name: shape, "sha256": str}, what, remedy)
    if document["sha256"] != _digest(document[name]):
        raise CheckpointError(f"Expected {path} to hold what was written there, got something else; {remedy}")
    return document[name]


def check_same(before: Any, now: Any, source: Path) -> None:
    """Raises a `CheckpointError` at the first difference between the earlier settings, in `source`, and those now."""
    if found := difference(before, now):
        raise CheckpointError(
            f"Expected the same settings as in {source}, got others: {found}; pass the old ones, or another output"
        )


def check_config(config: Mapping[str, Any] | None) -> None:
    """Raises an `InputError` unless JSON can hold `config` unchanged."""
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
    """Returns the first difference of two documents in words, or "" if they are equal."""
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
    """Returns in a few words why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "none"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return shorten(" ".join(str(error).split()) or type(error).__name__, 200)


def misfit(value: Any, shape: Shape, name: str = "") -> str:
    """Returns the first place where a value has another shape, in words, or "" if it fits."""
    kinds: Any = shape if isinstance(shape, tuple) else (dict if isinstance(shape, Mapping) else list,)
    kinds = (shape,) if isinstance(shape, type) else kinds
    # JSON's rules: true is not a number, and the integer 1 is also a number with a fraction.
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
