"""Results on disk, written under a temporary name and renamed when complete.

Existing results are replaced only on request.
One process at a time claims a folder that grows while a command runs. Files left by killed processes are removed when
the same result is written again.
"""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from nngp_dag.errors import OutputError, shorten
from nngp_dag.interrupt import UNFINISHED
from nngp_dag.storage.lock import LOCK, check_unlocked, locked

# Ending of staging directories. It differs from the name under which `gram` keeps its unfinished results.
_STAGING = ".new.partial"
# Claimed folders, and the threads that claimed them.
_claims: dict[Path, int] = {}


@contextlib.contextmanager
def output_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a staging directory whose files move to `path` when the block ends without an error.

    An error about `path` is raised before the block starts, so that no long computation is lost.

    Args:
      path: The output directory.
      overwrite: Whether files of the same names are replaced; other files stay.

    Raises:
      OutputError: `path` holds files and `overwrite` is False, is not a directory, or cannot be written. Another
        process writes to it.
    """
    target = Path(path)

    def check() -> None:
        if is_occupied(target) and not overwrite:
            raise OutputError(
                f"Expected the output directory {target} to be new or empty, got an existing one; "
                "pass `overwrite=True` or choose another `out`"
            )

    check()
    # A rename must not cross file systems, and an existing directory may be a link or a mount. So the staging directory
    # lies inside it.
    exists = target.is_dir()
    with (
        claimed(target) if exists else contextlib.nullcontext(),
        _staging(target, target if exists else target.parent) as staging,
    ):
        yield staging
        check()  # another process may have written there since
        target.mkdir(exist_ok=True)
        for file in sorted(staging.iterdir()):
            if file.name != LOCK:
                os.replace(file, target / file.name)


@contextlib.contextmanager
def output_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` when the block ends without an error.

    Args:
      path: The output file.
      overwrite: Whether an existing file is replaced.

    Raises:
      OutputError: `path` exists and `overwrite` is False, cannot be written, or another process writes it.
    """
    target = Path(path)

    def check() -> None:
        with as_output_error(target):
            taken = target.is_dir() or (target.exists() and not overwrite)
        if taken:
            raise OutputError(
                f"Expected the output file {target} to be new, got an existing one; pass `overwrite=True` or another "
                "name"
            )

    check()
    with _staging(target, target.parent) as staging:
        yield staging / target.name
        check()  # another process may have written there since
        os.replace(staging / target.name, target)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes out of it; unfinished files of killed processes are removed.

    A thread may claim a folder again that it has claimed already.

    Raises:
      OutputError: Another process writes to the folder, or it is a file, cannot be made, or was deleted meanwhile.
    """
    is_occupied(folder)
    key = folder.absolute()
    if _claims.get(key) == threading.get_ident():
        yield
        return
    with contextlib.ExitStack() as stack:
        with as_output_error(folder):
            stack.enter_context(made(folder))
            stack.enter_context(locked(folder, folder))
            _clean(folder)
        _claims[key] = threading.get_ident()
        stack.callback(_claims.pop, key, None)
        yield
        if key in _claims and not (folder / LOCK).exists():
            raise gone(key)


def rename_claimed(folder: Path, target: Path) -> None:
    """Renames a complete claimed folder to its final name, and ends the claim; an older result there is deleted."""
    if not folder.exists():
        raise gone(folder)
    old = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)  # a process killed between the two renames below leaves it
        os.rename(target, old)
    os.rename(folder, target)
    _claims.pop(folder.absolute(), None)
    sync(target.parent)
    (target / LOCK).unlink()
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Writes a file, or the names in a folder, from the system's buffers to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_not_in_use(folder: Path) -> None:
    """Raises an `OutputError` if another process or thread has claimed a folder."""
    if _claims.get(folder.absolute()) != threading.get_ident():
        check_unlocked(folder, folder)


def is_occupied(folder: Path) -> bool:
    """Whether a folder exists and holds more than hidden files, which killed processes may leave.

    Raises:
      OutputError: The path is a file, or cannot be read.
    """
    with as_output_error(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"Expected the output {folder} to be a directory, got a file; choose another output")
        return folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir())


@contextlib.contextmanager
def as_output_error(target: Path) -> Iterator[None]:
    """Turns the operating system's errors into an `OutputError` that names the output."""
    try:
        yield
    except OSError as error:
        for folder in list(_claims):
            if target.absolute().is_relative_to(folder) and not folder.exists():
                raise gone(folder) from error
        remedy = "free some space, or choose" if error.errno == errno.ENOSPC else "choose"
        raise OutputError(
            f"Expected the output {shorten(str(target), 200)} to be writable, got {error.strerror or error}; {remedy} "
            "another output"
        ) from error


def gone(folder: Path) -> OutputError:
    """Returns the error for a folder that was deleted or moved."""
    return OutputError(
        f"Expected the output {shorten(str(folder), 200)} to stay while it is written, got one that was deleted or "
        "moved; run the same command again"
    )


@contextlib.contextmanager
def _staging(target: Path, place: Path) -> Iterator[Path]:
    """Makes a hidden directory in `place`; an error removes it and the folders made for it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_output_error(target))
        new = [folder for folder in (place, *place.parents) if not folder.exists()]
        # A claimed folder that was deleted must not be made again, since its lock is lost.
        if place.absolute() not in _claims:
            stack.enter_context(made(place))
        staging = place / f".{target.name}{_STAGING}"
        # Before it is locked it may belong to another process. An interruption then removes it only if it is empty.
        unlocked = staging / "nothing"
        UNFINISHED[unlocked] = [staging, *new]
        stack.callback(UNFINISHED.pop, unlocked, None)
        staging.mkdir(exist_ok=True)
        stack.callback(_remove, staging)
        with locked(staging, target):
            UNFINISHED[staging] = new
            stack.callback(UNFINISHED.pop, staging, None)
            _empty(staging)
            try:
                yield staging
            finally:
                with contextlib.suppress(OSError):
                    _empty(staging)


def _remove(empty: Path) -> None:
    with contextlib.suppress(OSError):
        empty.rmdir()


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; an error in the block removes those that were made and are empty."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for one in new:
            _remove(one)
        raise


def _clean(folder: Path) -> None:
    """Removes the staging directories in a folder that no process has locked."""
    for staging in folder.glob(f".*{_STAGING}"):
        with contextlib.suppress(OutputError, OSError), locked(staging, staging):
            _empty(staging)
        _remove(staging)


def _empty(staging: Path) -> None:
    """Removes everything but the lock from a staging directory."""
    for left in staging.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != LOCK:
            left.unlink()
