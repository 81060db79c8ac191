"""Real processes that work on one command, for tests."""

import os
import socket
import subprocess
import sys

# The flags of the tests ask for few optimizations; every process has as many devices as the test wants.
_DEVICES = "--xla_force_host_platform_device_count"


def free_port():
    """Returns a port that no process listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start(arguments, count, *, devices=1, code="from nngp_dag.cli import main; main()", port=None):
    """Starts a command in several processes, or in one without the options for several."""
    port = free_port() if port is None else port
    environment = dict(os.environ, PYTHONWARNINGS="ignore", JAX_PLATFORMS="cpu")
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_DEVICES}={devices}"
    found = []
    for number in range(count):
        several = ["--coordinator", f"127.0.0.1:{port}", "--processes", count, "--process-id", number]
        options = [*arguments, "--distributed", *(several if count > 1 else [])]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, options)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        found.append(process)
    return found


def ended(processes, timeout=120):
    """Returns the exit codes and the texts of both streams of processes that have ended."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        found.append((process.returncode, out, err))
    return found
