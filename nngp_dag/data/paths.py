"""What lies at the paths that people give."""

from pathlib import Path
from stat import S_ISDIR, S_ISREG


def found_at(path: Path) -> str:
    """Says what is there: "a file", "a folder", "none of that name", or why that is not known."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "none of that name"
    except OSError as error:
        return error.strerror or str(error)
    return "a file" if S_ISREG(mode) else "a folder" if S_ISDIR(mode) else "neither a file nor a folder"
