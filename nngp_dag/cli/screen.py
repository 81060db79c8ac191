"""What commands print, and what they say of the machine."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Screen:
    """What the user wants to see.

    Attributes:
      quiet: Results and errors only.
      json: Results as JSON, and nothing else on the output stream.
    """

    quiet: bool = False
    json: bool = False

    def reset(self) -> None:
        """Forgets what a command before wanted."""
        self.quiet = self.json = False


screen = Screen()


def console() -> Any:
    """Returns a console for tables."""
    from rich.console import Console

    return Console()


def show(*tables: Any) -> None:
    """Prints results, unless they are wanted as JSON."""
    if not screen.json:
        for table in tables:
            # Texts not through rich, which would wrap a path or a cell that is to be copied.
            print(table) if isinstance(table, str) else console().print(table)


def result(document: Any) -> None:
    """Prints the result as JSON, if that is wanted; what is not finite is null."""
    if screen.json:
        print(json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """Returns what JSON can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def say(text: str) -> None:
    """Prints a line that is no result."""
    if not (screen.quiet or screen.json):
        print(text)


def note(text: str) -> None:
    """Prints a line to heed."""
    print(f"nngp-dag: note: {text}", file=sys.stderr)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Shows one bar per task, with the time left, on the error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=screen.quiet or not console.is_terminal, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done)

        yield update


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Prints a warning as one line."""
    print(f"nngp-dag: warning: {message}", file=sys.stderr)
