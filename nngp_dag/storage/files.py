"""Results on disk: written under a temporary name, renamed when whole, never over an existing one unasked."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nngp_dag.errors import OutputError


@contextlib.contextmanager
def output_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a staging directory whose files move to `path` when the block ends without an error.

    Whether `path` can be written is found before the block starts, so that no long computation is lost. With
    `overwrite`, files of the same names are replaced and others stay.

    Raises:
      OutputError: `path` exists and holds files (unless `overwrite`), is no directory, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise OutputError(f"Expected the output {target} to be a directory, got a file; choose another --out")
    with as_output_error(target):
        occupied = target.is_dir() and any(target.iterdir())
    if occupied and not overwrite:
        raise OutputError(
            f"Expected the output directory {target} to be new or empty, got an existing one; "
            "pass --overwrite or choose another --out"
        )
    # Inside an existing directory, which may be a link or a mount: a rename never crosses file systems.
    with _staging(target, target if target.is_dir() else target.parent) as staging:
        yield staging
        target.mkdir(exist_ok=True)
        for file in sorted(staging.iterdir()):
            os.replace(file, target / file.name)


@contextlib.contextmanager
def output_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` when the block ends without an error.

    Raises:
      OutputError: `path` exists (unless `overwrite`) or cannot be written.
    """
    target = Path(path)
    if target.is_dir() or (target.exists() and not overwrite):
        raise OutputError(
            f"Expected the output file {target} to be new, got an existing one; pass --overwrite or another name"
        )
    with _staging(target, target.parent) as staging:
        yield staging / target.name
        os.replace(staging / target.name, target)


@contextlib.contextmanager
def _staging(target: Path, place: Path) -> Iterator[Path]:
    """Makes a hidden directory in `place`; after an error neither it nor a folder made for it stays."""
    with as_output_error(target):
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        try:
            place.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=place))
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        except BaseException:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


@contextlib.contextmanager
def as_output_error(target: Path) -> Iterator[None]:
    """Turns the operating system's errors into an `OutputError` that names the output."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Expected the output {target} to be writable, got {error.strerror or error}; choose another --out"
        ) from error
