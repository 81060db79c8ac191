"""Errors and warnings that the whole package shares, and how their messages show values.

Every message reads "Expected <what>, got <value>" and ends in the remedy, so that the command line can
print it as its only line.
"""

import contextlib
import difflib
import inspect
import os
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "GraphError",
    "InputError",
    "InputWarning",
    "NngpDagError",
    "NumericalWarning",
    "OutOfMemoryError",
    "OutputError",
]

# Characters of a message; whatever an argument held, its beginning and its end, the remedy, stay readable.
_MOST = 2000
# Nothing of a name's kind is longer, and the search takes time that grows with the length.
_LONGEST_NAME = 100


class NngpDagError(ValueError):
    """Base of every error that this package raises on purpose."""

    def __init__(self, message: str = "") -> None:
        """Takes the message; one that is very long loses its middle."""
        half = _MOST // 2
        super().__init__(message if len(message) <= _MOST else f"{message[:half]} ... {message[-half:]}")


class GraphError(NngpDagError):
    """A graph, a code or an edge list that does not describe a valid DAG."""


class InputError(NngpDagError):
    """An argument of a numerical function that has the wrong shape, range or content."""


class DataError(NngpDagError):
    """A data set that is unknown, absent from disk or cannot be used as asked."""


class OutputError(NngpDagError):
    """A result that cannot be written, or that would overwrite an existing one."""


class CheckpointError(NngpDagError):
    """A checkpoint that is absent, damaged, or of another run."""


class DivergenceError(NngpDagError):
    """Training whose loss is no longer finite."""


class OutOfMemoryError(NngpDagError, MemoryError):
    """Work that does not fit into the memory of the device."""


class NumericalWarning(UserWarning):
    """A result that holds, with a limit on its accuracy that the message states."""


class InputWarning(UserWarning):
    """An argument that can be computed with, and looks like a mistake; the message says how to state that it is not."""


def warn(message: str, category: type[Warning]) -> None:
    """Issues a warning that points at the line which called this package."""
    level, frame = 1, sys._getframe()
    # Decorators, and checks of types, which tests switch on, lie between.
    passed = (__name__.partition(".")[0], "contextlib", "jaxtyping", "beartype")
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in passed:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; JAX has no type of its own for that."""
    text = str(error)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def shorten(text: str, limit: int = 60) -> str:
    """Cuts a long text for a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object, limit: int = 100) -> str:
    """Returns a value as a message shows it: its `repr` in one line, cut where it is long; large ones are not built.

    Example:
      >>> shown("2_21_112"), shown(10**5000), shown("2_" * 50_000, limit=12)
      ("'2_21_112'", 'an integer of 16610 bits', "'2_2...2_2_'")
    """
    if isinstance(value, int) and value.bit_length() > 8 * limit:
        return f"an integer of {value.bit_length()} bits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = limit
    short.maxtuple = short.maxlist = short.maxdict = short.maxset = 8
    try:
        text = short.repr(value)
    except Exception:  # a `repr` of the caller's, or an integer within that Python does not write out
        text = f"a {type(value).__name__}"
    return shorten(" ".join(text.split()), 4 * limit)


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for a misspelled name, for the end of a message, or "" where none is near.

    Example:
      >>> did_you_mean("rleu", ["relu", "erf"])
      "; did you mean 'relu'?"
      >>> did_you_mean("tanh", ["relu", "erf"])
      ''
    """
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        return ""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(value.strip().lower().replace("-", "_"), by_lower, n=1)
    near = near or difflib.get_close_matches(value.strip().lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def check_callable(name: str, value: object) -> None:
    """Raises an `InputError` unless a value is a function or None."""
    if value is not None and not callable(value):
        raise InputError(f"Expected `{name}` to be a function, got {shown(value)}")


def as_path(name: str, value: Any, error: type[NngpDagError] = InputError) -> Path:
    """Returns a path, with the home folder in place of ~; raises an error where it is none."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fspath(value):
        raise error(f"Expected `{name}` to be a path, got {shown(value)}; pass a text or a pathlib.Path")
    return Path(value).expanduser()


@contextlib.contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Raises an `OutOfMemoryError` that says what did not fit, and the remedy, where memory runs out inside."""
    try:
        yield
    except Exception as error:
        if isinstance(error, NngpDagError) or not is_out_of_memory(error):
            raise
        reason = shorten(" ".join(str(error).split()), 120) or "no more memory"
        raise OutOfMemoryError(f"Expected {what} to fit into memory, got: {reason}; {remedy}") from None


def check_known(
    options: Iterable[str], known: Iterable[str], what: str, caller: Callable[..., Any] | None = None
) -> None:
    """Raises an `InputError` where an option is not known; a misspelled one may mean a parameter of `caller`."""
    known = tuple(known)
    if unknown := next((option for option in options if option not in known), None):
        parameters = () if caller is None else inspect.signature(caller).parameters.values()
        own = [one.name for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]
        beside = f" or arguments beside them ({', '.join(own)})" if own else ""
        near = did_you_mean(unknown, (*known, *own))
        raise InputError(f"Expected {what} ({', '.join(known)}){beside}, got `{unknown}`{near}")
