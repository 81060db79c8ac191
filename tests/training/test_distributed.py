"""Training on several devices and processes: the curves of one device, resumed on others, and lost processes."""

import csv
import os
import signal
import time

import jax
import numpy as np
import pytest
from distributed_cases import ended, free_port, start

from nngp_dag import distributed
from nngp_dag.errors import InputError

# Batch norm, a smaller last batch that two devices cannot divide, and all that an optimizer remembers.
OPTIONS = (
    *("train", "--dag", "2_12", "--dataset", "sphere", "--subset", "43", "--eval-subset", "9", "--batch-size", "8"),
    *("--width", "8", "--batch-norm", "--momentum", "0.9", "--lr", "0.05", "--seeds", "2", "--epochs", "4"),
)


def curves(out):
    """Returns the numbers of curves.csv."""
    rows = list(csv.DictReader((out / "curves.csv").read_text().splitlines()))
    return np.array([[float(row[name]) for name in row if name.endswith(("loss", "accuracy"))] for row in rows])


@pytest.mark.slow
def test_two_processes_train_to_the_curves_of_one_and_only_the_first_writes(tmp_path):
    one = ended(start([*OPTIONS, "--out", tmp_path / "one"], 1))
    two = ended(start([*OPTIONS, "--out", tmp_path / "two"], 2))
    assert [code for code, *_ in one + two] == [0, 0, 0], (one, two)
    assert two[0][1].count("best epoch")
    assert two[1][1] == ""
    expected, found = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert expected.shape == (10, 9)
    # The sums of a batch are taken in another order, so that float32 rounds them otherwise.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected[2:] - expected[:-2]).max() > 0.1


@pytest.mark.nightly
def test_a_run_that_is_killed_on_two_processes_resumes_on_one_with_two_devices_and_on_one_device(tmp_path):
    longer = [*OPTIONS, "--epochs", "12"]
    [whole] = ended(start([*longer, "--out", tmp_path / "whole"], 1))
    assert whole[0] == 0
    out = tmp_path / "killed"
    processes = start([*longer, "--out", out], 2)
    log = out / "train.log"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count(" epoch ") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    ended(processes)
    [resumed] = ended(start(["train", "--resume", "--out", out], 1, devices=2))
    assert resumed[0] == 0, resumed
    np.testing.assert_allclose(curves(out), curves(tmp_path / "whole"), rtol=2e-3, atol=1e-4)


@pytest.mark.nightly
def test_a_process_that_dies_ends_the_other_with_one_line(tmp_path):
    processes = start([*OPTIONS, "--epochs", "100000", "--out", tmp_path / "run"], 2)
    log = tmp_path / "run" / "train.log"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count(" epoch ") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    begun = time.monotonic()
    os.kill(processes[1].pid, signal.SIGKILL)
    (code, _, err), _ = ended(processes)
    assert time.monotonic() - begun < 60
    assert code == 2, err
    assert "Expected all 2 processes to go on, got one that ended" in err


@pytest.mark.slow
def test_a_process_that_never_joins_ends_in_one_line(tmp_path):
    code = "import nngp_dag.distributed as d; d._JOIN_SECONDS = 3; d.join.__kwdefaults__['timeout'] = 3; "
    code += "from nngp_dag.cli import main; main()"
    port = free_port()
    first, second = start([*OPTIONS, "--out", tmp_path / "run"], 2, code=code, port=port)
    second.kill()
    second.communicate()
    [(status, _, err)] = ended([first])
    assert status == 2, err
    assert "Expected 2 processes at 127.0.0.1" in err
    assert "not all of them within 3 s" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h:1", 2, None), "`coordinator`, `processes` and `process_id` together, got no `process_id`"),
        (("h", 2, 0), "`coordinator` to be HOST:PORT, got 'h'"),
        (("h:1", 2, 2), "`process_id` from 0 to 1, for 2 processes, got 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        distributed.join(*arguments)


def test_a_mesh_of_this_process():
    mesh = distributed.mesh()
    assert distributed.check_mesh(mesh) is mesh
    assert distributed.is_first()
    assert distributed.rows_here(mesh, 7 * mesh.size) == slice(0, 7 * mesh.size)
    tree = {"a": np.arange(3.0)}
    assert distributed.from_first(tree) is tree
    with pytest.raises(ZeroDivisionError):
        distributed.first_does(lambda: 1 / 0)
    several = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b"))
    with pytest.raises(InputError, match=r"a `jax.sharding.Mesh` with one axis, got one with axes \('a', 'b'\)"):
        distributed.check_mesh(several)
    with pytest.raises(jax.errors.JaxRuntimeError), distributed.together():
        raise jax.errors.JaxRuntimeError("Gloo: connection closed by peer")
