"""One writer at a time, by a lock of the operating system, which releases it when the process ends in any way."""

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nngp_dag.errors import OutputError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, output: Path) -> Iterator[None]:
    """Keeps other processes and threads out of a folder, by a lock on a file in it that names the process.

    Args:
      folder: An existing folder.
      output: Path of the result that is written there, for messages.

    Raises:
      OutputError: Another process or thread holds the lock.
      OSError: The file cannot be made.
    """
    file = folder / LOCK
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Since the file was opened here, its owner may have ended and removed it, or moved its folder.
        if not (_lock(descriptor, folder) and _is_open(file, descriptor)):
            raise busy(output, file)
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        file.write_text(f"process {os.getpid()} on {platform.node()} since {since} UTC")
        try:
            yield
        finally:
            if _is_open(file, descriptor):
                file.unlink()
    finally:
        os.close(descriptor)


def check_unlocked(folder: Path, output: Path) -> None:
    """Raises an `OutputError` if another process or thread holds the lock of a folder; creates no file."""
    file = folder / LOCK
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_RDWR)
        try:
            if not _lock(descriptor, folder):
                raise busy(output, file)
        finally:
            os.close(descriptor)


def busy(output: Path, file: Path) -> OutputError:
    """Returns the error for an output that another process writes; `file` holds the name of that process."""
    holder = ""
    with contextlib.suppress(OSError, ValueError):
        holder = file.read_text()[:120]
    return OutputError(
        f"Expected no other process to write {output}, got {holder or 'another one'} at work; wait for it to end, or "
        "choose another output"
    )


def _lock(descriptor: int, folder: Path) -> bool:
    """Takes a lock without waiting, and returns whether it succeeded."""
    try:
        import fcntl  # absent on Windows

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        warnings.warn(
            f"Expected a file system with locks at {folder}, got {error}; make sure that no other process writes there",
            stacklevel=2,
        )
    return True


def _is_open(file: Path, descriptor: int) -> bool:
    """Whether a path still names the file of an open descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False
