"""What commands print, and what they say of the machine."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Update = Callable[..., None]
"""Called with (task, done, total), and with the loss where there is one."""

latest_progress: dict[str, tuple[int, int]] = {}
"""(done, total) of each task of the command, as last told."""

# Seconds between two lines of progress, off a terminal: at first, and at last, as logs of long runs are kept short.
_OFTEN, _SELDOM = 5.0, 60.0


def console() -> Any:
    """Returns a console for tables."""
    from rich.console import Console

    return Console()


def say(text: str) -> None:
    """Prints a line."""
    # Not through rich, which would wrap a path that is to be copied. At once: an interruption flushes nothing.
    print(text, flush=True)


@contextmanager
def progress() -> Iterator[Update]:
    """Shows on the error stream how far tasks are and the time left: bars, or off a terminal a line now and then."""
    from rich.console import Console

    latest_progress.clear()
    console = Console(stderr=True)
    with _bars(console) if console.is_terminal else _lines() as show:

        def update(task: str, done: int, total: int, loss: float | None = None) -> None:
            latest_progress[task] = done, total
            show(task, done, total, "" if loss is None else f"loss {loss:.4g}")

        yield update


@contextmanager
def _bars(console: Any) -> Iterator[Update]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(task: str, done: int, total: int, note: str) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note=note)
            bars.update(tasks[task], completed=done, note=note)

        yield show


@contextmanager
def _lines() -> Iterator[Update]:
    """Says how far the latest task is, also while it stands still; nothing of what takes no time."""
    start = time.monotonic()
    begun: dict[str, tuple[float, int]] = {}
    line, said = "", ""
    ended = threading.Event()

    def show(task: str, done: int, total: int, note: str) -> None:
        nonlocal line
        since, before = begun.setdefault(task, (time.monotonic(), done))
        line = f"{task} {done}/{total}"
        if before < done < total:
            line += f", {_duration((time.monotonic() - since) / (done - before) * (total - done))} left"
        line += f", {note}" if note else ""

    def tell() -> None:
        nonlocal said
        said = line
        print(f"nngp-dag: {_duration(time.monotonic() - start)}: {line or 'at work'}", file=sys.stderr, flush=True)

    def tell_now_and_then() -> None:
        while not ended.wait(min(_SELDOM, max(_OFTEN, (time.monotonic() - start) / 10))):
            tell()

    thread = threading.Thread(target=tell_now_and_then, daemon=True, name="nngp-dag progress")
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()
    if said and said != line:
        tell()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Prints a warning as one line."""
    print(f"nngp-dag: warning: {message}", file=sys.stderr)
