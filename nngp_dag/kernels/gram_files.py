"""The results of `gram` on disk: written tile by tile, safe if the process is killed, and renamed when complete.

A directory holds nngp.npy, ntk.npy, gram.json, and tiles.crc, a journal with a checksum of each finished tile. While
tiles are missing, the directory has another name, and a lock. Tiles are written by system calls and not through memory
maps. Pages of a map would count as memory of the process, and a full disk would kill the process.

Several processes may share the tiles. Each then notes its own in a file part-NUMBER-tiles.crc; the next process that
opens the directory moves these notes into the journal, where tiles that are missing have a line of dashes.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import platform
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.interrupt import UNFINISHED
from nngp_dag.kernels.source import KernelSource
from nngp_dag.storage import (
    LOCK,
    as_output_error,
    busy,
    check_same,
    claimed,
    read_json,
    rename_claimed,
    sync,
    write_json,
)

MATRICES = ("nngp", "ntk")
_DESCRIPTION, _JOURNAL = "gram.json", "tiles.crc"
_MERGED = f"{_JOURNAL}.merged"
_OURS = {_DESCRIPTION, _JOURNAL, _MERGED, LOCK, *(f"{name}.npy" for name in MATRICES)}

# Number of rows that are hashed at once.
_CHUNK = 4096
# Bytes of a line of the journal. CRC-32 detects every flipped byte, and is much faster than SHA-256.
_LINE = 9
# The line of a tile that is missing, before others that are not. Without a shared run there is none.
_MISSING = b"--------\n"
# Bytes of a line of a part of the journal: number of the tile, and checksum.
_PART_LINE = 22

# The blocks of both matrices that a tile fills: first row, first column, number of rows, number of columns.
Tile = Sequence[tuple[int, int, int, int]]


def describe(
    network: Network | KernelSource,
    arrays1: list[np.ndarray],
    arrays2: list[np.ndarray] | None,
    shape: tuple[int, int],
    tile: tuple[int, int],
    dtype: np.dtype,
) -> dict[str, Any]:
    """Returns everything that the bits of the results depend on, in a form that JSON can hold.

    Args:
      network: The network, whose options with equal `repr` count as equal; or a traced model.
      arrays1: The inputs, one array per input node.
      arrays2: The second inputs, or None if they are the first ones.
      shape: Shape of the results.
      tile: Rows and columns of a tile.
      dtype: Dtype of the results.
    """
    return {
        **(network.description() if isinstance(network, KernelSource) else describe_network(network)),
        "x1": [_describe_array(array) for array in arrays1],
        "x2": None if arrays2 is None else [_describe_array(array) for array in arrays2],
        "shape": list(shape),
        "dtype": str(dtype),
        "tile": list(tile),
        "device": str(jax.devices()[0].device_kind),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("nngp-dag", "jax", "jaxlib")},
    }


def describe_network(network: Network) -> dict[str, Any]:
    """Returns everything that the kernels of a network depend on beside the inputs, in a form that JSON can hold."""
    return {
        "dag": str(network.dag),
        "graph": {field.name: repr(getattr(network.dag, field.name)) for field in dataclasses.fields(network.dag)},
        "options": {name: repr(value) for name, value in network.kernel_options.items()},
    }


def _describe_array(array: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256()
    for start in range(0, len(array), _CHUNK):
        digest.update(array[start : start + _CHUNK].tobytes())
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest.hexdigest()}


def load_finished(
    path: Path, configuration: Mapping[str, Any], overwrite: bool = False, tiles: Sequence[Tile] | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns both matrices as read-only memory maps if `path` holds them, or None if they must be computed.

    Args:
      path: The directory.
      configuration: The description of the call, see `describe`.
      overwrite: Whether results of another call may be replaced.
      tiles: All tiles, which are then read and compared with their checksums; None for files that were just written.

    Raises:
      OutputError: `path` is no directory, or holds other files than results of `gram`. Or it holds results of another
        call, and `overwrite` is false.
    """
    with as_output_error(path):
        if path.exists() and not path.is_dir():
            raise OutputError(f"Expected the output {path} to be a directory, got a file; choose another `out`")
        found = {file.name for file in path.iterdir()} if path.is_dir() else set()
        if not found:
            return None
        if _DESCRIPTION not in found:
            raise OutputError(
                f"Expected the output directory {path} to be new, empty or hold a result of `gram`, got other files; "
                "choose another `out`"
            )
        if _is_of(path, configuration, overwrite, tiles, finished=True):
            nngp, ntk = (_load(path, name) for name in MATRICES)
            return nngp, ntk
    _check_alone(path)
    return None


def _check_alone(directory: Path) -> None:
    """Checks that a directory that may be deleted holds only files of `gram`.

    Raises:
      OutputError: It holds other files.
    """
    parts = {file.name for file in _parts(directory)}
    if others := {file.name for file in directory.iterdir()} - _OURS - parts:
        raise OutputError(
            f"Expected {directory} to hold results of `gram` alone, got {', '.join(sorted(others)[:3])}; move other "
            "files away, or choose another `out`"
        )


def _load(directory: Path, name: str) -> np.ndarray:
    return np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _is_of(
    directory: Path,
    configuration: Mapping[str, Any],
    overwrite: bool,
    tiles: Sequence[Tile] | None,
    *,
    finished: bool,
) -> bool:
    """Whether a directory holds undamaged results of this call.

    Raises:
      OutputError: It does not, and `overwrite` is false.
    """
    file = directory / _DESCRIPTION
    try:
        found = read_json(file, {"shape": [int], "dtype": str}, "a result of `gram`", "choose another output")
        check_same(found, configuration, file)
        if damage := _damage(directory, found, tiles, finished):
            raise CheckpointError(
                f"Expected {directory} to hold what was written there, got {damage}; choose another output"
            )
    except CheckpointError as error:
        if not overwrite:
            raise OutputError(f"{error}, or pass `overwrite` to delete that one") from None
        return False
    return True


def _lines(directory: Path) -> list[bytes]:
    """Returns the lines of the journal; an incomplete last line does not count."""
    journal = directory / _JOURNAL
    text = journal.read_bytes() if journal.exists() else b""
    return [text[i : i + _LINE] for i in range(0, len(text) - _LINE + 1, _LINE)]


def _parts(directory: Path) -> list[Path]:
    """Returns the journals of single processes."""
    return sorted(directory.glob(f"part-[0-9]*-{_JOURNAL}"))


def _merge_parts(directory: Path) -> None:
    """Moves the notes of single processes into the journal."""
    parts = _parts(directory)
    if not parts:
        return
    found = {number: line for number, line in enumerate(_lines(directory)) if line != _MISSING}
    for part in parts:
        text = part.read_bytes()
        for i in range(0, len(text) - _PART_LINE + 1, _PART_LINE):
            number, line = text[i : i + _PART_LINE].split(b" ")
            found[int(number)] = line
    merged = directory / _MERGED
    merged.write_bytes(b"".join(found.get(i, _MISSING) for i in range(max(found, default=-1) + 1)))
    sync(merged)
    os.replace(merged, directory / _JOURNAL)
    for part in parts:
        part.unlink()
    sync(directory)


def _damage(directory: Path, description: Mapping[str, Any], tiles: Sequence[Tile] | None, finished: bool) -> str:
    """Returns a text that names the damage to a directory, or an empty text; it reads tiles only if they are given."""
    try:
        matrices = [_load(directory, name) for name in MATRICES]
    # Broad, because NumPy raises many types of errors for damaged headers.
    except Exception:
        return "damaged files"
    if any([list(m.shape), str(m.dtype)] != [description["shape"], description["dtype"]] for m in matrices):
        return "damaged files"
    if tiles is None:
        return ""
    try:
        _merge_parts(directory)
    except ValueError:
        return "a damaged journal"
    lines = _lines(directory)
    if len(lines) > len(tiles):
        return "a damaged journal"
    done = len(lines) - lines.count(_MISSING)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context((directory / f"{name}.npy").open("rb")) for name in MATRICES]
        for number, tile in enumerate(tiles[: len(lines)]):
            if lines[number] == _MISSING:
                continue
            found = 0
            for file, whole in zip(opened, matrices, strict=True):
                for i, j, height, width in tile:
                    for row in range(i, i + height):
                        start = whole.offset + row * whole.strides[0] + j * whole.strides[1]  # type: ignore[attr-defined]
                        found = zlib.crc32(os.pread(file.fileno(), width * whole.itemsize, start), found)
            if lines[number] != _line(found):
                return f"a damaged tile, number {number}"
    return f"checksums of {done} of {len(tiles)} tiles" if finished and done < len(tiles) else ""


def _line(checksum: int) -> bytes:
    return b"%08x\n" % checksum


class GramFiles:
    """The unfinished directory of one call, open for writing.

    Attributes:
      done: Numbers of the tiles on disk, of those that this process knows.
    """

    def __init__(
        self,
        path: Path,
        partial: Path,
        configuration: Mapping[str, Any],
        overwrite: bool,
        stack: contextlib.ExitStack,
        process: int | None = None,
    ) -> None:
        """Opens the existing files; the stack closes them. `process` is the number among those that share the tiles."""
        self._path, self._partial, self._configuration, self._overwrite = path, partial, configuration, overwrite

        def opened(name: str, flags: int) -> int:
            descriptor = os.open(partial / name, flags, 0o644)
            stack.callback(os.close, descriptor)
            return descriptor

        self._files = {name: (opened(f"{name}.npy", os.O_RDWR), _load(partial, name)) for name in MATRICES}
        lines = _lines(partial)
        self.done, self._checksum = {i for i, line in enumerate(lines) if line != _MISSING}, 0
        # Only a process that is alone and finds no gaps can add its lines at the end of the journal.
        self._in_part = process is not None or len(self.done) < len(lines)
        if self._in_part:
            self._journal = opened(f"part-{process or 0}-{_JOURNAL}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            UNFINISHED.pop(self._partial, None)
        else:
            self._journal = opened(_JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.ftruncate(self._journal, _LINE * len(lines))

    def put(self, name: str, i: int, j: int, block: np.ndarray) -> None:
        """Writes a block of the matrix `name` from row i and column j on."""
        descriptor, whole = self._files[name]
        for r, row in enumerate(np.ascontiguousarray(block)):
            start = whole.offset + (i + r) * whole.strides[0] + j * whole.strides[1]  # type: ignore[attr-defined]
            if os.pwrite(descriptor, row.data, start) < row.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._checksum = zlib.crc32(row.data, self._checksum)

    def commit(self, number: int) -> None:
        """Notes one more tile in the journal, after its data have reached the disk."""
        for descriptor, _ in self._files.values():
            os.fsync(descriptor)
        line = _line(self._checksum)
        os.write(self._journal, b"%012d %s" % (number, line) if self._in_part else line)
        os.fsync(self._journal)
        # The directory now holds a finished tile, so an interruption must no longer remove it.
        UNFINISHED.pop(self._partial, None)
        self.done.add(number)
        self._checksum = 0

    def holds_tiles(self) -> bool:
        """Whether a tile is on disk, of this process or of another."""
        return bool(self.done) or any(part.stat().st_size for part in _parts(self._partial))

    def finish(self, tiles: Sequence[Tile]) -> None:
        """Gives the directory its final name; with `overwrite` it replaces an older result.

        Raises:
          OutputError: A tile of another process is not there as it was written.
        """
        if self._in_part and (damage := _damage(self._partial, self._configuration, tiles, finished=True)):
            raise OutputError(
                f"Expected all processes to write to {self._partial}, got {damage}; use a file system that all of them "
                "share"
            )
        if self._partial.exists():
            load_finished(self._path, self._configuration, self._overwrite)
        rename_claimed(self._partial, self._path)


@contextlib.contextmanager
def unfinished(
    path: Path,
    configuration: Mapping[str, Any],
    overwrite: bool,
    tiles: Sequence[Tile],
    process: int | None = None,
) -> Iterator[GramFiles]:
    """Yields the directory that will become `path`: the one that an earlier call left, or a new one.

    After an error the directory stays if it holds a finished tile.

    Args:
      path: The directory.
      configuration: The description of the call, see `describe`.
      overwrite: Whether results of another call may be replaced.
      tiles: All tiles.
      process: Number of this process among those that share the tiles; None for one that works alone. Process 0 must
        enter before the others do.

    Raises:
      OutputError: The directory cannot be written, or another process writes to it. Or it belongs to another call or is
        damaged, and `overwrite` is false.
    """
    partial = path.with_name(f".{path.name}.partial")
    if process:
        with as_output_error(path), contextlib.ExitStack() as stack:
            yield GramFiles(path, partial, configuration, overwrite, stack, process)
        return
    new = [folder for folder in path.parents if not folder.exists()]
    with as_output_error(path), claimed(partial), contextlib.ExitStack() as stack:
        fresh = not (partial / _DESCRIPTION).exists()
        if fresh:
            _check_alone(partial)
        goes_on = not fresh and _is_of(partial, configuration, overwrite, tiles, finished=False)
        files = None
        try:
            if load_finished(path, configuration, overwrite, tiles) is not None:
                raise busy(path, path / LOCK)  # another process finished it a moment ago
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            if not goes_on:
                UNFINISHED[partial] = new
                _create(partial, configuration)
            files = GramFiles(path, partial, configuration, overwrite, stack, process)
            yield files
        except BaseException:
            if files is None or not files.holds_tiles():
                shutil.rmtree(partial, ignore_errors=True)
                UNFINISHED.pop(partial, None)
            raise


def _create(partial: Path, configuration: Mapping[str, Any]) -> None:
    """Creates the files at their full size, so that a full disk is found before the work; gram.json comes last."""
    for name in (_DESCRIPTION, _JOURNAL):
        (partial / name).unlink(missing_ok=True)
    for name in MATRICES:
        file = partial / f"{name}.npy"
        np.lib.format.open_memmap(file, "w+", np.dtype(configuration["dtype"]), tuple(configuration["shape"]))
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    write_json(partial / _DESCRIPTION, configuration)
    sync(partial)
