"""Errors and warnings of the whole package, and the form in which their messages show values.

Every message reads "Expected <what>, got <value>" and ends in the remedy. The command line can so print it as its only
line.
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
    "DistributedError",
    "DivergenceError",
    "GraphError",
    "InputError",
    "InputWarning",
    "MissingLibraryError",
    "ModelError",
    "NngpDagError",
    "NumericalWarning",
    "OutOfMemoryError",
    "OutputError",
]

# Largest number of characters in a message. Whatever value an argument had, the beginning stays readable, and so does
# the end, which holds the remedy.
_MOST = 2000
# Names are not longer than this. The time to search for similar ones grows with the length.
_LONGEST_NAME = 100


class NngpDagError(ValueError):
    """Base of every error that this package raises on purpose."""

    def __init__(self, message: str = "") -> None:
        """Takes the message, and cuts the middle of a very long one."""
        half = _MOST // 2
        super().__init__(message if len(message) <= _MOST else f"{message[:half]} ... {message[-half:]}")


class GraphError(NngpDagError):
    """Error for a graph, a code or an edge list that does not describe a valid DAG."""


class InputError(NngpDagError):
    """Error for an argument of the wrong type, shape, range or content."""


class ModelError(NngpDagError):
    """Error for a model whose kernel at infinite width has no closed form that is known here."""


class DataError(NngpDagError):
    """Error for a data set that is unknown, absent from disk, or unfit for the request."""


class MissingLibraryError(NngpDagError, ImportError):
    """Error for an optional library that is not installed; the message names the command that installs it."""


class OutputError(NngpDagError):
    """Error for a result that cannot be written, or that would overwrite an existing one."""


class CheckpointError(NngpDagError):
    """Error for a checkpoint that is absent, damaged, or from another run."""


class DistributedError(NngpDagError):
    """Error for processes that should work together and do not."""


class DivergenceError(NngpDagError):
    """Error for training whose loss is no longer finite."""


class OutOfMemoryError(NngpDagError, MemoryError):
    """Error for work that does not fit into memory."""


class NumericalWarning(UserWarning):
    """Warning about a result of limited accuracy; the message states the limit."""


class InputWarning(UserWarning):
    """Warning about an argument that is valid but looks like a mistake; the message says how to make it explicit."""


def warn(message: str, category: type[Warning]) -> None:
    """Issues a warning that points at the caller's line outside this package."""
    level, frame = 1, sys._getframe()
    # Between that line and this one lie frames of decorators, and in tests those of type checkers.
    passed = (__name__.partition(".")[0], "contextlib", "jaxtyping", "beartype")
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in passed:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    # JAX has no exception type for this, so the text decides.
    text = str(error)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def shorten(text: str, limit: int = 60) -> str:
    """Returns a text, cut to the limit if it is longer."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object, limit: int = 100) -> str:
    """Returns a value as a message shows it: its `repr` in one line, cut where it is long.

    The full `repr` of a large value is never built.

    Examples:
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
    except Exception:  # the caller's own `repr` fails, or the value holds an integer too long for Python to print
        text = f"a {type(value).__name__}"
    return shorten(" ".join(text.split()), 4 * limit)


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" if a known name is similar, else "".

    Examples:
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
    """Returns a path, with the home folder in place of ~; raises an error for a value that is no path."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fspath(value):
        raise error(f"Expected `{name}` to be a path, got {shown(value)}; pass a text or a pathlib.Path")
    return Path(value).expanduser()


@contextlib.contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Raises an `OutOfMemoryError` with the remedy if memory runs out inside the block.

    Args:
      what: Name of the work or the data that should fit into memory, for the message.
      remedy: Advice for the end of the message.
    """
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
    """Raises an `InputError` for an option that is not known.

    Args:
      options: The options that were given.
      known: The options that exist.
      what: Their kind, for the message.
      caller: Function whose own parameters a misspelled option may mean, too.
    """
    known = tuple(known)
    if unknown := next((option for option in options if option not in known), None):
        parameters = () if caller is None else inspect.signature(caller).parameters.values()
        own = [one.name for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]
        others = f" or other arguments ({', '.join(own)})" if own else ""
        near = did_you_mean(unknown, (*known, *own))
        raise InputError(f"Expected {what} ({', '.join(known)}){others}, got `{unknown}`{near}")
