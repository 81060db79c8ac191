"""What lies at the paths that people give."""

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from nngp_dag.errors import DataError, shown


def as_path(name: str, value: object) -> Path:
    """Returns an argument as a path, with the home folder in place of ~; raises a `DataError` where it is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise DataError(f"Expected `{name}` to be a path, got {shown(value)}; pass a text or a pathlib.Path")
    return Path(os.path.expanduser(value))


def found_at(path: Path) -> str:
    """Says what is there: "a file", "a folder", "none of that name", or why that is not known."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "none of that name"
    except OSError as error:
        return error.strerror or str(error)
    except ValueError:  # of Python, which hands on no such name
        return "a name with a NUL character"
    return "a file" if S_ISREG(mode) else "a folder" if S_ISDIR(mode) else "neither a file nor a folder"
