"""kill -9 at random moments, and a disk that fills up: a resumed run ends with the same bits."""

import os
import random
import signal
import time

import pytest
from training_cases import CODE, OPTIONS, command, error_line

from nngp_dag.cli import main
from nngp_dag.training import checkpoints


def finish(out, *arguments):
    """Runs the command in this process until it ends."""
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(out)])
    assert stop.value.code == 0


def ends(out):
    """Returns the results of a run: its curves, and digests of the last and the best states."""
    documents = [checkpoints.describe(out / "checkpoints" / CODE / kind) for kind in ("last", "best")]
    # The curves are part of the last state, and so of its digest.
    return (out / "curves.csv").read_bytes(), [(found["epoch"], found["digest"]) for found in documents]


def epochs_in(log):
    return log.read_text().count(" epoch ") if log.exists() else 0


def kill_at(process, log, epochs, delay):
    """Kills a process shortly after its log shows a number of epochs; returns whether it was still running."""
    deadline = time.monotonic() + 120
    while process.poll() is None and epochs_in(log) < epochs:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    running = process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def killed_again_and_again(out, options, kills, cache):
    """Starts a run, kills and resumes it at random moments, and returns how often it was running when killed."""
    rng, at_work = random.Random(0), 0
    log = out / "train.log"
    for _ in range(kills):
        resumed = (out / "config.json").exists()
        process = command(["train", "--resume", "--out", out] if resumed else [*options, "--out", out], cache)
        # Counted from the moment that the configuration exists. An epoch with its checkpoint takes a tenth of a second.
        deadline = time.monotonic() + 120
        while not (out / "config.json").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        begun = epochs_in(log)
        # With this seed the kills come before, within and after the first epochs of an attempt, at different points.
        wanted = begun + rng.choice([0, 1, 1, 2])
        at_work += kill_at(process, log, wanted, rng.uniform(0, 0.2))
    return at_work


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path, compilation_cache, kills):
    out = tmp_path / "run"
    assert killed_again_and_again(out, OPTIONS, kills, compilation_cache) >= 1
    finish(out, "train", "--resume")
    assert ends(out) == ends(finished)


@pytest.mark.nightly
def test_ten_kills_of_processes_that_share_nothing(tmp_path):
    longer = [*OPTIONS, "--epochs", "40", "--batch-norm", "--seeds", "2"]
    finish(tmp_path / "whole", *longer)
    out = tmp_path / "run"
    assert killed_again_and_again(out, longer, 10, None) == 10
    # In a process of its own, which compiles the programs again.
    process = command(["train", "--resume", "--out", out], None)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert all(line.startswith("nngp-dag: ") and "error" not in line for line in err.splitlines()), err
    assert ends(out) == ends(tmp_path / "whole")


# --- a full disk ----------------------------------------------------------------------------------

# Limits the size of files from the moment that an epoch is recorded or its checkpoint is saved.
FILLS_UP = """
import resource, sys
from nngp_dag.cli import main
from nngp_dag.training import checkpoints
from nngp_dag.training.rundir import RunDirectory

moment, epoch, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
save, add = checkpoints.save, RunDirectory.add

def fill_up():
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def saving(folder, at, state, description):
    if (folder.name, at) == (moment, epoch):
        fill_up()
    save(folder, at, state, description)

def adding(self, history, at):
    if (moment, at) == ("curves", epoch):
        fill_up()
    add(self, history, at)

checkpoints.save, RunDirectory.add = saving, adding
main(sys.argv[4:])
"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("moment", "size"),
    [("last", 2000), ("last", 0), ("last", 100), ("best", 2000), ("best", 0), ("curves", 0), ("curves", 1500)],
)
def test_a_full_disk_loses_no_earlier_checkpoint(finished, tmp_path, compilation_cache, moment, size):
    out = tmp_path / "run"
    process = command([moment, "3", str(size), *OPTIONS, "--out", str(out)], compilation_cache, code=FILLS_UP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    line = error_line(err)
    assert "Expected " in line
    assert str(out) in line
    if moment != "curves":
        assert f"Expected {out}/checkpoints/{CODE}/{moment} to take checkpoint 3, got " in line
        assert "the one before it stays: solve that problem and pass --resume" in line
    # The earlier checkpoints are whole, and a resumed run goes on from there.
    saved = {kind: checkpoints.describe(out / "checkpoints" / CODE / kind)["epoch"] for kind in ("last", "best")}
    assert saved == {"last": 2, "best": 3 if moment == "last" else 2}
    finish(out, "train", "--resume")
    assert ends(out) == ends(finished)
