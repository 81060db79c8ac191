"""Results on disk: written under a temporary name, renamed when whole, never over an existing one unasked.

Folders that grow while a command runs are claimed, by one process at a time. What processes that were killed have left
behind goes when the same result is written again.
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

# Not the name under which `gram` keeps what it goes on with.
_STAGING = ".new.partial"
# The threads that have claimed folders.
_claims: dict[Path, int] = {}


@contextlib.contextmanager
def output_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a staging directory whose files move to `path` when the block ends without an error.

    Whether `path` can be written is found before the block starts, so that no long computation is lost. With
    `overwrite`, files of the same names are replaced and others stay.

    Raises:
      OutputError: `path` exists and holds files (unless `overwrite`), is no directory, cannot be written, or another
        process writes it.
    """
    target = Path(path)

    def check() -> None:
        if is_occupied(target) and not overwrite:
            raise OutputError(
                f"Expected the output directory {target} to be new or empty, got an existing one; "
                "pass `overwrite=True` or choose another `out`"
            )

    check()
    # Inside an existing directory, which may be a link or a mount: a rename never crosses file systems.
    exists = target.is_dir()
    with (
        claimed(target) if exists else contextlib.nullcontext(),
        _staging(target, target if exists else target.parent) as staging,
    ):
        yield staging
        check()  # until a moment ago
        target.mkdir(exist_ok=True)
        for file in sorted(staging.iterdir()):
            if file.name != LOCK:
                os.replace(file, target / file.name)


@contextlib.contextmanager
def output_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` when the block ends without an error.

    Raises:
      OutputError: `path` exists (unless `overwrite`), cannot be written, or another process writes it.
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
        check()  # until a moment ago
        os.replace(staging / target.name, target)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes out of it; removes what killed ones were about to write there.

    A thread that has claimed a folder may do so again.

    Raises:
      OutputError: Another process is at work there; it is a file, cannot be made, or is gone in the end.
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
    """Gives a folder its name once it is whole, and ends the claim; an older result of that name is deleted."""
    if not folder.exists():
        raise gone(folder)
    old = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a kill below
        os.rename(target, old)
    os.rename(folder, target)
    _claims.pop(folder.absolute(), None)
    sync(target.parent)
    (target / LOCK).unlink()
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Sees a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_not_in_use(folder: Path) -> None:
    """Raises an `OutputError` where another process or thread has claimed a folder."""
    if _claims.get(folder.absolute()) != threading.get_ident():
        check_unlocked(folder, folder)


def is_occupied(folder: Path) -> bool:
    """Whether a folder holds more than hidden files, which killed processes leave; not where there is none.

    Raises:
      OutputError: It is a file, or cannot be read.
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
    """Returns the error for a folder that is no longer there."""
    return OutputError(
        f"Expected the output {shorten(str(folder), 200)} to stay while it is written, got one that was deleted or "
        "moved; run the same again"
    )


@contextlib.contextmanager
def _staging(target: Path, place: Path) -> Iterator[Path]:
    """Makes a hidden directory in `place`; after an error neither it nor a folder made for it stays."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_output_error(target))
        new = [folder for folder in (place, *place.parents) if not folder.exists()]
        # A claimed folder that is gone is not made again.
        if place.absolute() not in _claims:
            stack.enter_context(made(place))
        staging = place / f".{target.name}{_STAGING}"
        # Until it is locked it may be another process's: an interruption removes it if it is empty.
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
    """Makes a folder; after an error neither it nor those above it that were made stay, where they are empty."""
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
    """Removes the staging directories in a folder that no process holds."""
    for staging in folder.glob(f".*{_STAGING}"):
        with contextlib.suppress(OutputError, OSError), locked(staging, staging):
            _empty(staging)
        _remove(staging)


def _empty(staging: Path) -> None:
    """Removes all but the lock."""
    for left in staging.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != LOCK:
            left.unlink()
