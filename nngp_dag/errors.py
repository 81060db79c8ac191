"""Errors and warnings that the whole package shares.

Every message reads "Expected <what>, got <value>" and ends in the remedy, so that the command line can
print it as its only line.
"""


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


def shorten(text: str, limit: int = 60) -> str:
    """Cuts a long text for a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
