"""What the reader needs to know of JAX's programs: nested calls, and the lines of the model."""

from pathlib import Path
from typing import Any

# Parameters in which calls hold their programs.
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = frozenset(
    (
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "jit",
        "pjit",
        "remat",
        "remat2",
    )
)
_TRACE = Path(__file__).parent


def body(equation: Any) -> tuple[Any, list[Any]] | None:
    """Returns the program and the constants of a call, or None if an equation is no call."""
    if equation.primitive.name not in _CALLS:
        return None
    found = next(equation.params[name] for name in _BODIES if name in equation.params)
    return (found.jaxpr, list(found.consts)) if hasattr(found, "jaxpr") else (found, [])


def place(equation: Any) -> str:
    """Returns the model's file and line that made an equation, such as "model.py:12"."""
    traceback = equation.source_info.traceback
    paths = [] if traceback is None else [(Path(frame.file_name), frame.line_num) for frame in traceback.frames]
    own = [(path, line) for path, line in paths if not _of_library(path)]
    chosen = own[0] if own else paths[0] if paths else None
    return "an unknown line" if chosen is None else f"{chosen[0].name}:{chosen[1]}"


def _of_library(path: Path) -> bool:
    """Whether a file is part of an installed library or of this package's reader."""
    return "site-packages" in path.parts or "dist-packages" in path.parts or _TRACE in path.parents
