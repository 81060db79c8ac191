"""What commands print, and what they say of the machine."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def console() -> Any:
    """Returns a console for tables."""
    from rich.console import Console

    return Console()


def say(text: str) -> None:
    """Prints a line."""
    # Not through rich, which would wrap a path that is to be copied.
    print(text)


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
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done)

        yield update


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Prints a warning as one line."""
    print(f"nngp-dag: warning: {message}", file=sys.stderr)
