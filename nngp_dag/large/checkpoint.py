"""Unfinished and finished work in a result directory: named arrays, each file complete or absent.

A file .npz holds a checksum of every array, which is checked when it is read. One process writes; the others read.
"""

import contextlib
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nngp_dag.distributed import first_does
from nngp_dag.errors import CheckpointError
from nngp_dag.large.mesh import Team
from nngp_dag.storage import ResultDirectory, output_file, reason_of, sync

# Seconds between two checkpoints: they cost a second or two where there are thousands of landmarks.
EVERY = 20.0


class Contents(NamedTuple):
    """What a directory holds: the name of its settings, that of the result in messages, and its files."""

    settings: str
    name: str
    files: tuple[str, ...]


SOLUTION = Contents("solve", "a solution", ("landmarks.npz", "sums.npz", "iteration.npz", "solution.npz"))
EIGENVALUES = Contents("leading_eigenvalues", "leading eigenvalues", ("basis.npz", "eigenvalues.npz"))


class _Arrays(dict[str, np.ndarray]):
    """The arrays of a file by name."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self._path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise _damaged(self._path, f"no {name}")


def _damaged(path: Path, got: str) -> CheckpointError:
    """Returns the error that a file does not hold what was written."""
    remedy = "delete it, or pass `overwrite=True` to compute it again"
    return CheckpointError(f"Expected {path} to hold what was written there, got {got}; {remedy}")


class Store:
    """The files of one call, or nothing where the call has no output directory."""

    def __init__(self, folder: Path | None, team: Team, overwrite: bool = False) -> None:
        """Reads and writes no file. With `overwrite`, files that are damaged are taken for absent."""
        self._folder, self._team, self._overwrite = folder, team, overwrite
        self._saved = time.monotonic()

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """Returns the arrays of a file, or None where there is none.

        Raises:
          CheckpointError: The file is damaged.
        """
        if self._folder is None:
            return None
        path = self._folder / f"{name}.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return _Arrays(path, {key: found[key] for key in found.files})
        # Broad, because NumPy and zipfile raise many types of errors for damaged files.
        except Exception as error:
            if self._overwrite:
                return None
            raise _damaged(path, reason_of(error) if zipfile.is_zipfile(path) else "another kind of file") from None

    def due(self) -> bool:
        """Whether the last checkpoint is long enough ago."""
        return self._folder is not None and time.monotonic() - self._saved > EVERY

    def several_due(self, team: Team) -> bool:
        """Whether a checkpoint that all processes must prepare is due; the first process decides."""
        if self._folder is None or not team.several:
            return self.due()
        from jax.experimental import multihost_utils

        return bool(multihost_utils.broadcast_one_to_all(np.int32(self.due()), is_source=team.is_first))

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Replaces a file."""
        self._saved = time.monotonic()
        if self._folder is None or not self._team.is_first:
            return
        with output_file(self._folder / f"{name}.npz", overwrite=True) as path:
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
            sync(path)

    def remove(self, *names: str) -> None:
        """Removes files that a finished result no longer needs."""
        if self._folder is not None and self._team.is_first:
            for name in names:
                (self._folder / f"{name}.npz").unlink(missing_ok=True)


@contextlib.contextmanager
def opened(
    out: Path | None, contents: Contents, settings: Mapping[str, Any], overwrite: bool, team: Team
) -> Iterator[Store]:
    """Yields the files of a call; unfinished work of a call with the same settings is there to go on with.

    Args:
      out: The directory, or None.
      contents: Kind of its contents.
      settings: Everything that the result depends on.
      overwrite: Whether the result of another call, or a damaged file, is replaced.
      team: The devices, whose first process writes.

    Raises:
      OutputError: The directory is not free, or cannot be written.
      CheckpointError: It holds the work of another call.
    """
    if out is None:
        yield Store(None, team)
        return
    document = {contents.settings: json.loads(json.dumps(settings))}
    directory = ResultDirectory(out, contents.name, {contents.settings: dict}, contents.files)

    def begin() -> None:
        fresh = overwrite and _differs(directory, document)
        stack.enter_context(directory.opened(document, resume=False if fresh else None, overwrite=fresh))
        directory.begin()
        directory.begun = True

    with contextlib.ExitStack() as stack:
        if team.several:
            first_does(begin)
        else:
            begin()
        yield Store(out, team, overwrite)


def _differs(directory: ResultDirectory, document: Mapping[str, Any]) -> bool:
    """Whether there is a readable result of another call; that of the same call is continued."""
    with contextlib.suppress(CheckpointError):
        found = directory.read()
        return any(found[name] != value for name, value in document.items())
    return True
