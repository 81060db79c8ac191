"""The command `nngp-dag`, also as `python -m nngp_dag`."""

import contextlib
import os
import sys

from nngp_dag import interrupt


def main() -> None:
    """Runs the command line; an interruption is answered from here on, also while modules load."""
    interrupt.install(sys.argv[1:])
    from nngp_dag.cli import main

    try:
        main()
    except SystemExit as stop:
        for stream in (sys.stdout, sys.stderr):
            # A pipe whose reader has gone.
            with contextlib.suppress(OSError):
                stream.flush()
        # The interpreter's finalizers would wait for what XLA still compiles, and no longer hear of signals.
        os._exit(stop.code if isinstance(stop.code, int) else 0)


if __name__ == "__main__":
    main()
