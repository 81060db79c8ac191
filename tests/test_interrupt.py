"""Interruptions of a small program and of the real command: one line, the right status, no incomplete files."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

# Seconds within which a process must end. On an idle machine it takes at most two.
BOUND = 20

# A program that prints "ready" when its work begins.
PROGRAM = """
import gc, os, pathlib, signal, sys, time
from nngp_dag import interrupt

made = pathlib.Path("made")
made.mkdir()
staging, file = made / ".staging", pathlib.Path(".file")
interrupt.UNFINISHED[staging] = [made]
interrupt.UNFINISHED[file] = []
staging.mkdir()
(staging / "half").write_text("")
file.write_text("")
interrupt.install(["train", "--out", "a b", "--overwrite"])
WORDS
print("ready", flush=True)
WORK
"""
WORDS = """
interrupt.on_interrupt(
    lambda: f"kept: 1; go on with: {interrupt.command(with_flag='--resume', without_flag='--overwrite')}"
)
"""
LINE = "nngp-dag: interrupted; kept: 1; go on with: nngp-dag train --out 'a b' --resume\n"
IN_PYTHON = "while True: pass"
# The Python handler cannot run: another thread gets the signal, and the main thread stays in its C call.
IN_C = "import ctypes; signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL]); ctypes.CDLL(None).sleep(60)"
SWALLOWED = """
class Swallows:
    def __del__(self):
        while True: pass
while True:
    try:
        Swallows()
    except BaseException:
        pass
"""
IN_WORDS = "interrupt.on_interrupt(lambda: print('ready', flush=True) or time.sleep(60))"


@pytest.fixture(autouse=True)
def _heard():
    """Restores signals that are ignored when the tests run in the background or under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
        signal.signal(number, handler)


def start(tmp_path, work, words=WORDS, number=signal.SIGINT, **options):
    code = PROGRAM.replace("WORDS", words).replace("WORK", work).replace("SIGNAL", str(int(number)))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("work", [IN_PYTHON, IN_C, SWALLOWED], ids=["python", "c", "swallowed"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_line_and_the_status_wherever_the_program_is(tmp_path, work, number):
    process = start(tmp_path, work, number=number)
    process.send_signal(number)
    assert process.communicate(timeout=BOUND) == ("", LINE)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path):
    process = start(tmp_path, IN_C, number=signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=BOUND) == ("", LINE)
    assert process.returncode == 143


def test_a_second_one_ends_at_once(tmp_path):
    process = start(tmp_path, IN_PYTHON, words=IN_WORDS)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=BOUND) == ("", "")
    assert process.returncode == 143


def test_what_is_ignored_stays_ignored(tmp_path):
    # A shell script in the background, and nohup, ignore signals in this way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = start(tmp_path, "sys.stdin.readline()", stdin=subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    process.communicate("\n", timeout=BOUND)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "nothing was begun; start again with: nngp-dag train --out 'a b' --overwrite"),
        ("interrupt.on_interrupt(lambda: 1 / 0)", "kept results cannot be listed (division by zero)"),
    ],
)
def test_words_that_are_not_there(tmp_path, words, line):
    process = start(tmp_path, IN_PYTHON, words=words)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=BOUND) == ("", f"nngp-dag: interrupted; {line}\n")
    assert process.returncode == 130


# --- the real command -----------------------------------------------------------------------------


def run_command(arguments, tmp_path, cache=None):
    """Starts the command in a folder, and returns the process."""
    scripts = os.path.dirname(sys.executable)
    environment = dict(os.environ, PYTHONWARNINGS="ignore", PATH=f"{scripts}{os.pathsep}{os.environ['PATH']}")
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return subprocess.Popen(
        arguments,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process, number, event):
    """Sends a signal after an event, and returns the last line; None if the command ended before."""
    deadline = time.monotonic() + 300
    while process.poll() is None and not event():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    sent = time.monotonic()
    _, err = process.communicate(timeout=BOUND)
    print(f"{process.args[3:5]} status {process.returncode} after {time.monotonic() - sent:.2f} s: {err}")
    if process.returncode == 0:
        return None
    assert process.returncode == 128 + number, err
    # Without lines of progress and warnings.
    lines = [line for line in err.splitlines() if not re.match(r"nngp-dag: (\d+ (s|min|h)\b|warning)", line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("nngp-dag: interrupted; ")
    return lines[0]


def paste(line, tmp_path, cache=None):
    """Runs the command at the end of a line, and returns the text before it."""
    said, _, command = line.partition(" with: ")
    assert command, line
    process = run_command(["bash", "-c", command], tmp_path, cache)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return said


CELLS = (
    "|nor_conv_1x1~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|",
    "|skip_connect~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|nor_conv_3x3~2|",
)
SMALL = ("--dataset", "sphere", "--subset", "12")
TINY = ("--dataset", "digits", "--batch", "4")
COMMANDS = {
    "show": ("show", "2_21_112", "--png", "out.png"),
    "kernel": ("kernel", "--dag", "2_12", *SMALL, "--out", "out.npz"),
    "gram": ("gram", "--dag", "2_12", "--dataset", "sphere", "--subset", "640", "--tile", "64", "--out", "out"),
    "compare": (*("compare", "--dag", "2", "--dag", "1", *SMALL, "--width", "8"), *("--seeds", "1", "--out", "out")),
    "sweep": ("sweep", "--nodes", "2", *SMALL, "--out", "out", "--plot"),
    "train": (
        *("train", "--dag", "2", "--dag", "2_12", "--dataset", "sphere", "--subset", "40", "--batch-size", "16"),
        *("--width", "8", "--epochs", "12", "--out", "out"),
    ),
    "nas score": (
        *("nas", "score", *TINY, "--channels", "2", "--cells", "1", "--score", "naswot", "--score", "parameters"),
        *("--cell", CELLS[0], "--cell", CELLS[1], "--out", "out"),
    ),
    "nas score of darts": (
        *("nas", "score", *TINY, "--space", "darts", "--score", "leave_one_out", "--score", "parameters"),
        *("--sample", "6", "--out", "out"),
    ),
    "nas search": (
        "nas",
        "search",
        "--accuracies",
        "table.csv",
        "--scores",
        "scores",
        "--repeats",
        "5",
        "--sample",
        "2",
    ),
    "nas plot": ("nas", "plot", "--accuracies", "table.csv", "--scores", "scores"),
    "nas tenas": ("nas", "tenas", *TINY[:2], "--measure", "exact", "--batch", "4", "--repeats", "1", "--out", "out"),
    "nas train": (
        *("nas", "train", CELLS[0], "--dataset", "digits", "--subset", "32", "--batch-size", "16", "--epochs", "3"),
        *("--channels", "2", "--layers", "1", "--out", "out"),
    ),
}


# The same as the installed script, but it reports when the interpreter has started, before which signals end it.
READY = "from nngp_dag.__main__ import main; print('ready', flush=True); main()"


def real(arguments, tmp_path, cache=None):
    """Starts the command line, and returns the process once it has begun."""
    process = run_command([sys.executable, "-c", READY, *arguments], tmp_path, cache)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def half_written(tmp_path):
    """Returns the incomplete files that must not remain; those named after the output of `gram` may."""
    return [path for path in tmp_path.rglob("*.partial") if path.name != ".out.partial"]


@pytest.mark.parametrize("module", ["nngp_dag.interrupt", "jax"])
def test_while_modules_load(tmp_path, module):
    # The first import of a module interrupts the command.
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder)
from nngp_dag.__main__ import main
main()
"""
    process = run_command([sys.executable, "-c", code, *COMMANDS["kernel"]], tmp_path)
    _, err = process.communicate(timeout=60)
    command = f"nngp-dag {' '.join(COMMANDS['kernel'])}"
    assert err == f"nngp-dag: interrupted; nothing was begun; start again with: {command}\n"
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_goes_on(tmp_path):
    arguments = [*COMMANDS["train"], "--epochs", "400"]
    log = tmp_path / "out" / "train.log"
    process = real(arguments, tmp_path)
    line = interrupt(process, signal.SIGINT, lambda: log.exists() and "epoch 2/" in log.read_text())
    assert line is not None
    kept = re.fullmatch(r"nngp-dag: interrupted; kept: (\d+) of 800 epochs in out; go on with: (.*)", line)
    assert kept
    assert int(kept[1]) >= 1
    assert kept[2] == "nngp-dag train --resume --out out"
    epochs = [path.name for path in (tmp_path / "out/checkpoints/2/last").iterdir()]
    assert max(int(name) for name in epochs if name.isdecimal()) == int(kept[1])
    assert half_written(tmp_path) == []


@pytest.mark.nightly
def test_a_comparison_goes_on(tmp_path):
    process = real(COMMANDS["compare"], tmp_path)
    line = interrupt(process, signal.SIGTERM, (tmp_path / "out/dags/0.json").exists)
    assert half_written(tmp_path) == []
    assert paste(line, tmp_path) == "nngp-dag: interrupted; kept: 1 of 2 DAGs; go on"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.json", "curves.csv", "compare.png", "dags"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def seconds():
    """Returns a cache of the seconds that each command takes without an interruption."""
    return {}


def prepared(name, folder, cache):
    """Prepares a folder in which a command can run."""
    folder.mkdir()
    if name in ("nas search", "nas plot"):
        (folder / "table.csv").write_text(f"arch_str,accuracy\n{CELLS[0]},90\n{CELLS[1]},80\n")
        arguments = [*COMMANDS["nas score"][:-1], "scores"]
        process = real(arguments, folder, cache)
        _, err = process.communicate()
        assert process.returncode == 0, err
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize(("moment", "number"), [("random", 2), ("random", 15), ("writing", 2)])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_at_any_moment(tmp_path, compiled, seconds, name, moment, number):
    if name not in seconds:
        folder = prepared(name, tmp_path / "whole", compiled)
        began = time.monotonic()
        process = real(COMMANDS[name], folder, compiled)
        _, err = process.communicate()
        assert process.returncode == 0, err
        seconds[name] = time.monotonic() - began
    folder = prepared(name, tmp_path / "try", compiled)
    process = real(COMMANDS[name], folder)
    began, wait = time.monotonic(), random.Random(f"{name} {number}").uniform(0, seconds[name])

    def now():
        return any(folder.rglob("*.partial")) if moment == "writing" else time.monotonic() - began > wait

    line = interrupt(process, number, now)
    assert half_written(folder) == []
    # The command may have ended before the signal.
    if line is not None and not line.endswith("the command had ended"):
        paste(line, folder, compiled)
