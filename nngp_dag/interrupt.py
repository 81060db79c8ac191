"""How the command line ends when it is interrupted: at once, with one line that says what is kept and how to go on.

Nothing is unwound. An exception raised wherever a signal finds Python is swallowed by garbage collection and by
callbacks of JAX, and the interpreter's finalizers crash while XLA compiles. A kill loses nothing that was written, so
what is left to do is to remove what is half written, to say so, and to leave.

Python runs the handler of a signal between two steps of the main thread, which may be minutes away inside XLA. So a
thread hears of signals too, and leaves in place of a main thread that has not done so after a moment.
"""

import contextlib
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

UNFINISHED: dict[Path, Sequence[Path]] = {}
"""Files and folders that are worth nothing until they are finished, each with the empty folders made for it."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds for which a thread leaves it to the main thread.
_PATIENCE = 1.0
# `timeout` and terminals may send one signal twice; a person takes longer.
_SAME_SIGNAL = 0.3

_leaving = threading.Lock()
_first = 0.0
_arguments: Sequence[str] = ()
_last_words: Callable[[], str] | None = None
_installed = False


def on_interrupt(last_words: Callable[[], str] | None) -> None:
    """Sets what is said at an interruption, such as "2 tiles are kept; go on with: ..."; called when it happens."""
    global _last_words
    _last_words = last_words


def command(*, with_flag: str = "", without_flag: str = "") -> str:
    """Returns the command that runs, as a shell takes it, with a flag added and another left out."""
    arguments = [argument for argument in _arguments if argument != without_flag]
    if with_flag and with_flag not in arguments:
        # Behind -- there are no flags.
        arguments.insert(arguments.index("--") if "--" in arguments else len(arguments), with_flag)
    return shlex.join([*_program(), *arguments])


def given(flag: str) -> bool:
    """Whether the command that runs has a flag."""
    return flag in _arguments


def program() -> str:
    """Returns how the command line was called, as a shell takes it."""
    return shlex.join(_program())


@contextlib.contextmanager
def handled(arguments: Sequence[str]) -> Iterator[None]:
    """Ends the process at SIGINT, SIGTERM or SIGHUP, with status 128 + signal; a signal that is ignored stays so.

    Args:
      arguments: Those of the command line, without the program.
    """
    if _installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    remove = install(arguments)
    try:
        yield
    finally:
        remove()


def install(arguments: Sequence[str]) -> Callable[[], None]:
    """As `handled`, until the returned function is called."""
    global _arguments, _installed
    _arguments, _installed = list(arguments), True
    on_interrupt(None)
    heard, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    handlers = {s: signal.signal(s, _handle) for s in _SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    thread = threading.Thread(target=_listen, args=(heard, wakeup), daemon=True, name="nngp-dag interrupt")
    thread.start()

    def remove() -> None:
        global _installed
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        wakeup.send(b"\0")
        thread.join()
        heard.close()
        wakeup.close()
        _installed = False

    return remove


def _handle(number: int, frame: FrameType | None) -> None:
    global _first
    if not _first:
        _first = time.monotonic()
        _leave(number)
    if time.monotonic() - _first > _SAME_SIGNAL:
        os._exit(128 + number)


def _listen(heard: socket.socket, wakeup: socket.socket) -> None:
    """Waits for signals, and leaves where the main thread does not; a zero ends it. Holds both ends open."""
    first, number = 0.0, 0
    while True:
        if first and not select.select([heard], [], [], max(0.0, first + _PATIENCE - time.monotonic()))[0]:
            _leave(number)
        byte = heard.recv(1)[0]
        if byte == 0:
            return
        if byte not in _SIGNALS:
            continue
        if first and time.monotonic() - first > _SAME_SIGNAL:
            os._exit(128 + byte)
        if not first:
            first, number = time.monotonic(), byte


def _leave(number: int) -> NoReturn:
    """Removes what is not finished, says what is kept, and ends the process."""
    if not _leaving.acquire(blocking=False):
        # The other thread is at it, and may have much to remove.
        time.sleep(10)
        os._exit(128 + number)
    for path, made in list(UNFINISHED.items()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
    try:
        words = f"nothing was begun; start again with: {command()}" if _last_words is None else _last_words()
    except Exception as error:  # It must not keep the process from leaving.
        words = f"what is kept cannot be told ({error})"
    # Below a bar, whose owner hid the cursor.
    start = "\x1b[?25h\n" if sys.stderr is not None and sys.stderr.isatty() else ""
    # Not through `sys.stderr`, in the middle of whose work this may be.
    with contextlib.suppress(OSError):
        os.write(2, f"{start}nngp-dag: interrupted; {words}\n".encode(errors="replace"))
    os._exit(128 + number)


def _program() -> list[str]:
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return [sys.orig_argv[0], "-m", "nngp_dag"]
    on_path = shutil.which("nngp-dag")
    if started.name == "nngp-dag" and (on_path is None or not os.path.samefile(on_path, started)):
        return [str(started)]
    return ["nngp-dag"]
