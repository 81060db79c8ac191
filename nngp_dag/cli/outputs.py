"""Folders that a command claims until it ends, even after the library has released them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nngp_dag.storage import claimed

_held = contextlib.ExitStack()


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Releases, on exit, all folders that were claimed by `hold` inside."""
    with _held:
        yield


def hold(folder: Path) -> None:
    """Claims a folder until the command ends."""
    _held.enter_context(claimed(folder))
