"""Errors and warnings that the whole package shares.

Every message reads "Expected <what>, got <value>" and ends in the remedy, so that the command line can
print it as its only line.
"""

import difflib
from collections.abc import Iterable

# Nothing of a name's kind is longer, and the search takes time that grows with the length.
_LONGEST_NAME = 100


class NngpDagError(ValueError):
    """Base of every error that this package raises on purpose."""


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


class NumericalWarning(UserWarning):
    """A result that holds, with a limit on its accuracy that the message states."""


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
