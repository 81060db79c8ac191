"""The kind of file at a given path."""

from pathlib import Path
from stat import S_ISDIR, S_ISREG


def found_at(path: Path) -> str:
    """Returns "a file", "a folder", "none of that name", or the reason why the path cannot be read."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "none of that name"
    except OSError as error:
        return error.strerror or str(error)
    return "a file" if S_ISREG(mode) else "a folder" if S_ISDIR(mode) else "neither a file nor a folder"
