"""The end of the command line at an interruption: at once, with one line that names kept results and the next command.

The process ends without unwinding the stack. Garbage collection or callbacks of JAX may swallow an exception that a
signal's handler raises. The interpreter's finalizers crash while XLA compiles. Finished files on disk survive a kill.
So the handler only removes half-written files, prints the line and ends the process.

Python runs the handler of a signal between two steps of the main thread, which may be minutes away inside XLA. So a
second thread watches for signals, too. It ends the process if the main thread has not done so after a second.
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
"""Unfinished files and folders, which an interruption removes, each with the empty folders made for it."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds that the watching thread gives the main thread.
_PATIENCE = 1.0
# Seconds within which a second signal counts as the first one. `timeout` and terminals may send one signal twice; a
# person takes longer.
_SAME_SIGNAL = 0.3

_leaving = threading.Lock()
_first = 0.0
_arguments: Sequence[str] = ()
_last_words: Callable[[], str] | None = None
_installed = False


def on_interrupt(last_words: Callable[[], str] | None) -> None:
    """Sets the function that returns the text of an interruption, such as "2 tiles are kept; go on with: ..."."""
    global _last_words
    _last_words = last_words


def command(*, with_flag: str = "", without_flag: str = "") -> str:
    """Returns the running command, quoted for a shell, with a flag added and another left out."""
    arguments = [argument for argument in _arguments if argument != without_flag]
    if with_flag and with_flag not in arguments:
        # Arguments behind `--` are not read as flags.
        arguments.insert(arguments.index("--") if "--" in arguments else len(arguments), with_flag)
    return shlex.join([*_program(), *arguments])


def given(flag: str) -> bool:
    """Whether the running command was given a flag."""
    return flag in _arguments


def program() -> str:
    """Returns the name by which the command line was called, quoted for a shell."""
    return shlex.join(_program())


@contextlib.contextmanager
def handled(arguments: Sequence[str]) -> Iterator[None]:
    """Ends the process at SIGINT, SIGTERM or SIGHUP inside the block, with status 128 + signal.

    A signal that the process ignores stays ignored.

    Args:
      arguments: Arguments of the command line, without the program.
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
    """Handles signals in the manner of `handled`, until the returned function is called."""
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
    """Waits for signals, and ends the process if the main thread does not; a zero byte ends the wait.

    The arguments keep both ends of the socket pair open.
    """
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
    """Removes unfinished files, prints the last words, and ends the process."""
    if not _leaving.acquire(blocking=False):
        # The other thread is already leaving, and may have much to remove.
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
    except Exception as error:  # no error may keep the process from ending
        words = f"kept results cannot be listed ({error})"
    # A progress bar may have hidden the cursor; show it, and print below the bar.
    start = "\x1b[?25h\n" if sys.stderr is not None and sys.stderr.isatty() else ""
    # The signal may have interrupted a write to `sys.stderr`, which is not reentrant.
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
