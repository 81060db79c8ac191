"""The output of commands: results, notes, warnings and progress."""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Update = Callable[..., None]
"""A function of (task, done, total) and, where there is one, the loss."""

latest_progress: dict[str, tuple[int | float, int]] = {}
"""The last reported (done, total) of each task of the command."""

# Seconds between two lines of progress without a terminal, for new and for long runs: logs of long runs stay short.
_OFTEN, _SELDOM = 5.0, 60.0


@dataclass
class Screen:
    """The output that the user wants.

    Attributes:
      quiet: Whether to print results and errors only.
      json: Whether to print results as JSON, and nothing else on the output stream.
      silent: Whether to print errors only, as all processes of a distributed command do but the first.
    """

    quiet: bool = False
    json: bool = False
    silent: bool = False

    def reset(self) -> None:
        """Restores the defaults, for the next command in the same process."""
        self.quiet = self.json = self.silent = False


screen = Screen()


def console() -> Any:
    """Returns a console for tables."""
    from rich.console import Console

    return Console()


def show(*tables: Any) -> None:
    """Prints results, unless they are wanted as JSON."""
    if not (screen.json or screen.silent):
        for table in tables:
            # Texts bypass rich, which would wrap a path or a cell that people copy.
            print(table) if isinstance(table, str) else console().print(table)


def result(document: Any) -> None:
    """Prints the result as JSON, if that is wanted, with null for numbers that are not finite."""
    if screen.json and not screen.silent:
        print(json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """Returns a value in types that JSON has."""
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
    """Prints a line that is not part of the result."""
    # Not through rich, which would wrap a path that people copy. Flushed, because an interruption flushes nothing.
    if not (screen.quiet or screen.json or screen.silent):
        print(text, flush=True)


def note(text: str) -> None:
    """Prints a note on the error stream."""
    if not screen.silent:
        print(f"nngp-dag: note: {text}", file=sys.stderr)


@contextmanager
def progress() -> Iterator[Update]:
    """Shows the progress of tasks and the time left on the error stream: as bars, or without a terminal as lines."""
    from rich.console import Console

    latest_progress.clear()
    console = Console(stderr=True)
    shown = _silence() if screen.quiet or screen.silent else _bars(console) if console.is_terminal else _lines()
    with shown as show:

        def update(task: str, done: int | float, total: int, loss: float | None = None) -> None:
            latest_progress[task] = done, total
            show(task, done, total, "" if loss is None else f"loss {loss:.4g}")

        yield update


@contextmanager
def _silence() -> Iterator[Update]:
    yield lambda *_: None


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

        def show(task: str, done: int | float, total: int, note: str) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note=note)
            bars.update(tasks[task], completed=done, note=note)

        yield show


@contextmanager
def _lines() -> Iterator[Update]:
    """Prints the progress of the latest task at intervals, even while it does not change; quick tasks print nothing."""
    start = time.monotonic()
    begun: dict[str, tuple[float, int | float]] = {}
    line, said = "", ""
    ended = threading.Event()

    def show(task: str, done: int | float, total: int, note: str) -> None:
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
