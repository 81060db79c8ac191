"""The results of `gram` on disk: filled tile by tile, safe against a kill at any moment, renamed when whole.

A directory holds nngp.npy, ntk.npy and gram.json. While it is filled it has another name, and two more files: a journal
with one character for each finished tile, and a lock. Tiles are written through the file system's calls and not
through memory maps, whose pages would count as memory of the process, and whose owner a full disk would kill.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nngp_dag.errors import OutputError
from nngp_dag.graph import Dag
from nngp_dag.interrupt import UNFINISHED

MATRICES = ("nngp", "ntk")
_DESCRIPTION, _JOURNAL, _LOCK = "gram.json", "journal", "lock"
_OURS = {_DESCRIPTION, _JOURNAL, _LOCK, *(f"{name}.npy" for name in MATRICES)}

# Rows that are hashed at once.
_CHUNK = 4096


def describe(
    dag: Dag,
    options: Mapping[str, Any],
    arrays1: list[np.ndarray],
    arrays2: list[np.ndarray] | None,
    shape: tuple[int, int],
    tile: tuple[int, int],
    dtype: np.dtype,
) -> dict[str, Any]:
    """Returns everything that the bits of the results depend on, as JSON holds it.

    Args:
      dag: The connectivity.
      options: The options of `kernel`; they count as equal where their `repr` is.
      arrays1: The inputs, one array per input node.
      arrays2: Likewise, or None where they are the same.
      shape: Of the results.
      tile: Rows and columns of a tile.
      dtype: Of the results.
    """
    return {
        "dag": str(dag),
        "graph": {field.name: repr(getattr(dag, field.name)) for field in dataclasses.fields(dag)},
        "options": {name: repr(value) for name, value in options.items()},
        "x1": [_describe_array(array) for array in arrays1],
        "x2": None if arrays2 is None else [_describe_array(array) for array in arrays2],
        "shape": list(shape),
        "dtype": str(dtype),
        "tile": list(tile),
        "device": str(jax.devices()[0].device_kind),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("nngp-dag", "jax", "jaxlib")},
    }


def _describe_array(array: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256()
    for start in range(0, len(array), _CHUNK):
        digest.update(array[start : start + _CHUNK].tobytes())
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest.hexdigest()}


def load_finished(
    path: Path, configuration: Mapping[str, Any], overwrite: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns both matrices as read-only memory maps if `path` holds them, or None if they are to be computed.

    Raises:
      OutputError: `path` is no directory, or holds something else than the results of `gram`; or results of another
        call, unless `overwrite`.
    """
    with _as_output_error(path):
        if path.exists() and not path.is_dir():
            raise OutputError(f"Expected the output {path} to be a directory, got a file; choose another `out`")
        found = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if not found:
        return None
    if _DESCRIPTION not in found:
        raise OutputError(
            f"Expected the output directory {path} to be new, empty or a result of `gram`, got other files; choose "
            "another `out`"
        )
    difference = _difference(path, configuration)
    if not difference:
        nngp, ntk = (_load(path, name) for name in MATRICES)
        return nngp, ntk
    if not overwrite:
        raise OutputError(
            f"Expected the result in {path} to be of this call, got {difference}; pass overwrite=True to delete it, or "
            "choose another `out`"
        )
    if found - _OURS:
        raise OutputError(
            f"Expected {path} to hold nothing but the result that is to be overwritten, got "
            f"{', '.join(sorted(found - _OURS))}; move that, or choose another `out`"
        )
    return None


def _load(directory: Path, name: str) -> np.ndarray:
    return np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _difference(directory: Path, configuration: Mapping[str, Any]) -> str:
    """Says in which respects a directory is not of this call; nothing if it is."""
    try:
        found = json.loads((directory / _DESCRIPTION).read_text())
        matrices = [_load(directory, name) for name in MATRICES]
        whole = all(list(m.shape) == found["shape"] and str(m.dtype) == found["dtype"] for m in matrices)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return "damaged files"
    names = [name for name, value in configuration.items() if found.get(name) != value]
    if names:
        return f"another {', '.join(names)}"
    return "" if whole else "damaged files"


class GramFiles:
    """The unfinished directory of one call, open for writing.

    Attributes:
      tiles_done: Number of tiles on disk.
    """

    def __init__(
        self, path: Path, partial: Path, configuration: Mapping[str, Any], overwrite: bool, stack: contextlib.ExitStack
    ) -> None:
        """Opens the files, which exist; they are closed with the stack."""
        self._path, self._partial, self._configuration, self._overwrite = path, partial, configuration, overwrite

        def opened(name: str, flags: int) -> int:
            descriptor = os.open(partial / name, flags, 0o644)
            stack.callback(os.close, descriptor)
            return descriptor

        self._files = {name: (opened(f"{name}.npy", os.O_RDWR), _load(partial, name)) for name in MATRICES}
        self._journal = opened(_JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.tiles_done = os.fstat(self._journal).st_size

    def put(self, name: str, i: int, j: int, block: np.ndarray) -> None:
        """Writes a block of the matrix `name` from row i and column j on."""
        descriptor, whole = self._files[name]
        for r, row in enumerate(np.ascontiguousarray(block)):
            start = whole.offset + (i + r) * whole.strides[0] + j * whole.strides[1]  # type: ignore[attr-defined]
            if os.pwrite(descriptor, row.data, start) < row.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def commit(self) -> None:
        """Counts one more tile as done, once its data are on disk."""
        for descriptor, _ in self._files.values():
            os.fsync(descriptor)
        os.write(self._journal, b".")
        os.fsync(self._journal)
        UNFINISHED.pop(self._partial, None)
        self.tiles_done += 1

    def finish(self) -> None:
        """Gives the directory its name; with `overwrite` an older result there is deleted."""
        load_finished(self._path, self._configuration, self._overwrite)
        old = self._path.with_name(f".{self._path.name}.replaced")
        if self._path.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a kill below
            os.rename(self._path, old)
        os.rename(self._partial, self._path)
        _sync(self._path.parent)
        for name in (_JOURNAL, _LOCK):
            (self._path / name).unlink()
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def unfinished(path: Path, configuration: Mapping[str, Any], overwrite: bool) -> Iterator[GramFiles]:
    """Yields the directory that will be `path`: the one that an earlier call left, or a new one.

    After an error it stays if it holds a tile.

    Raises:
      OutputError: The one there is of another call (unless `overwrite`) or another process is at work on it; or it
        cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    made = [folder for folder in (partial, *partial.parents) if not folder.exists()]
    with _as_output_error(path), contextlib.ExitStack() as stack:
        partial.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_locked(partial, path))
        fresh = not (partial / _DESCRIPTION).exists()
        difference = "" if fresh else _difference(partial, configuration)
        if difference and not overwrite:
            raise OutputError(
                f"Expected the unfinished result in {partial} to be of this call, got {difference}; pass "
                "overwrite=True to delete it, or choose another `out`"
            )
        files = None
        try:
            if load_finished(path, configuration, overwrite) is not None:
                raise _busy(path)  # until a moment ago
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            if fresh or difference:
                UNFINISHED[partial] = made[1:]
                _create(partial, configuration)
            files = GramFiles(path, partial, configuration, overwrite, stack)
            yield files
        except BaseException:
            if files is None or files.tiles_done == 0:
                shutil.rmtree(partial, ignore_errors=True)
                UNFINISHED.pop(partial, None)
                for folder in made:
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            raise


def _create(partial: Path, configuration: Mapping[str, Any]) -> None:
    """Makes the files at their full size, so that a full disk shows before the work; the description comes last."""
    for name in (_DESCRIPTION, _JOURNAL):
        (partial / name).unlink(missing_ok=True)
    for name in MATRICES:
        file = partial / f"{name}.npy"
        np.lib.format.open_memmap(file, "w+", np.dtype(configuration["dtype"]), tuple(configuration["shape"]))
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    temporary = partial / f"{_DESCRIPTION}.new"
    temporary.write_text(json.dumps(configuration, indent=2) + "\n")
    _sync(temporary)
    os.replace(temporary, partial / _DESCRIPTION)
    _sync(partial)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(partial: Path, path: Path) -> Iterator[None]:
    """Keeps other processes away from a directory; the lock goes with the process, however that ends."""
    import fcntl  # absent on Windows

    lock = partial / _LOCK
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = True
        else:
            # The other process may have ended, and its directory moved, since the file was opened.
            busy = not lock.exists() or not os.path.samestat(os.fstat(descriptor), lock.stat())
        if busy:
            raise _busy(path)
        yield
    finally:
        os.close(descriptor)


def _busy(path: Path) -> OutputError:
    return OutputError(
        f"Expected no other process to compute {path}, got one at work; wait for it, or choose another `out`"
    )


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Expected the output {path} to be writable, got {error.strerror or error}; choose another `out`"
        ) from error
