"""The command `nngp-dag`, which is also `python -m nngp_dag`."""

import os
import signal
import sys


def main() -> None:
    """Runs the command line, and answers interruptions from here on, even while modules load."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _nothing_begun)
    import contextlib

    from nngp_dag import interrupt

    interrupt.install(sys.argv[1:])
    from nngp_dag.cli import main

    try:
        main()
    except SystemExit as stop:
        for stream in (sys.stdout, sys.stderr):
            # The reader of a pipe may have gone.
            with contextlib.suppress(OSError):
                stream.flush()
        # The interpreter's finalizers would wait for programs that XLA still compiles, and would ignore signals.
        os._exit(stop.code if isinstance(stop.code, int) else 0)


def _nothing_begun(number: int, frame: object) -> None:
    """Ends the process before `nngp_dag.interrupt` is loaded, which handles signals from then on."""
    words = " ".join(["nngp-dag", *sys.argv[1:]])
    os.write(2, f"nngp-dag: interrupted; nothing was begun; start again with: {words}\n".encode(errors="replace"))
    os._exit(128 + number)


if __name__ == "__main__":
    main()
