"""Folders that a command keeps to itself until it ends, also after the library is done with them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nngp_dag.storage import claimed

_held = contextlib.ExitStack()


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Lets go, in the end, of the folders that are held inside."""
    with _held:
        yield


def hold(folder: Path) -> None:
    """Claims a folder until the command ends."""
    _held.enter_context(claimed(folder))
