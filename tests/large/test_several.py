"""Real processes: several devices, two processes by gloo, and one that is killed in the middle of its work."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from large import worker

import nngp_dag as nd

_WORKER = Path(__file__).with_name("worker.py")
_ROOT = Path(__file__).parents[2]


def _started(result, method, devices=1, out="-", *distributed):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(_WORKER), method, str(out), str(result), *map(str, distributed)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finished(*processes):
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said


def _outputs(result):
    with np.load(f"{result}.npz") as found:
        return found["outputs"]


def _address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def restored(monkeypatch):
    """Undoes what the worker sets, where it runs in this process."""
    for name in ("checkpoint.EVERY", "landmarks.FLUSH", "blocked._BLOCK", "costs._BLOCK"):
        of, _, constant = name.partition(".")
        module = sys.modules[f"nngp_dag.large.{of}"]
        monkeypatch.setattr(module, constant, getattr(module, constant))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "processes", "devices"),
    [
        ("iterative,dense", 2, 2),
        pytest.param("landmarks,kernels", 2, 2, marks=pytest.mark.nightly),
        pytest.param("landmarks,iterative,dense,kernels", 4, 1, marks=pytest.mark.nightly),
    ],
)
def test_processes_agree_with_one(methods, processes, devices, tmp_path):
    address, out = _address(), tmp_path / "out"
    results = [tmp_path / f"result{i}" for i in range(processes)]
    _finished(*[_started(result, methods, devices, out, address, processes, i) for i, result in enumerate(results)])
    x, y, t = worker.data()
    for method in methods.split(","):
        if method == "kernels":
            x32 = x.astype(np.float32)
            wanted = {"kernel": nd.kernel("2_21_112", x32).ntk}
            wanted |= {"eigenvalues": nd.leading_eigenvalues("2_21_112", x32, 3).eigenvalues}
        else:
            test = None if method == "landmarks" else t[:5]
            one = nd.solve("2_21_112", x, y, 1.0, method=method, landmarks=100, x_test=test, tolerance=1e-7)
            wanted = {"outputs": one.predict(t), "coefficients": one.coefficients}
            wanted |= {} if one.posterior is None else {"covariance": one.posterior.covariance}
            assert Path(f"{out}-{method}", "solution.npz").exists()
        for result in results:
            with np.load(f"{result}-{method}.npz") as found:
                for name, value in wanted.items():
                    np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def _two(code, *arguments):
    """Starts two processes that run a code, with the coordinator and their number as first arguments."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    begin = "import sys, numpy as np, nngp_dag as nd\ni = int(sys.argv[2]); nd.distributed.join(sys.argv[1], 2, i)\n"
    address = _address()
    command = [sys.executable, "-c", begin + code, address]
    return [subprocess.Popen([*command, str(i), *arguments], **options) for i in range(2)]


@pytest.mark.nightly
def test_a_folder_that_the_first_process_refuses_ends_all_in_one_line(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3))
    nd.leading_eigenvalues("2", x, 2, out=tmp_path)
    code = "x = np.random.default_rng(0).normal(size=(40, 3))\nnd.leading_eigenvalues('2', x, 3, out=sys.argv[3])\n"
    words = (
        "leading_eigenvalues.count 2 before, 3 now",
        "DistributedError: Expected process 0 to go on, got an error there; see its message",
    )
    for process, expected in zip(_two(code, str(tmp_path)), words, strict=True):
        said, _ = process.communicate(timeout=120)
        assert process.returncode
        assert expected in said, said


@pytest.mark.nightly
def test_processes_with_other_data_are_refused():
    code = "x = np.random.default_rng(0).normal(size=(40, 3))\nnd.solve('2', x, (1 - 2 * i) * x[:, 0], 0.1)\n"
    for process in _two(code):
        said, _ = process.communicate(timeout=120)
        assert process.returncode
        assert "with the same inputs and options in all processes, got other data" in said, said


@pytest.mark.nightly
def test_one_of_two_processes_is_killed_and_one_goes_on(tmp_path):
    code = (
        "from nngp_dag.large import checkpoint; checkpoint.EVERY = 0\n"
        "x = np.random.default_rng(0).normal(size=(1000, 9))\n"
        "print(nd.solve('2', x, x[:, 0], 1.0, method='iterative', landmarks=9, tolerance=1e-9, out=sys.argv[3],"
        " on_progress=lambda *a: print(*a, flush=True)))\n"
    )
    first, second = _two(code, str(tmp_path / "out"))
    assert second.stdout is not None
    while "iterations 3" not in second.stdout.readline():
        assert second.poll() is None
    second.send_signal(signal.SIGKILL)
    second.communicate()
    said, _ = first.communicate(timeout=120)
    assert "Expected all 2 processes to go on, got one that ended" in said, said
    x, begun = np.random.default_rng(0).normal(size=(1000, 9)), []
    call: dict[str, Any] = {"method": "iterative", "landmarks": 9, "tolerance": 1e-9}
    report = lambda task, done, total: begun.append(done) if task == "iterations" else None  # noqa: E731
    found = nd.solve("2", x, x[:, 0], 1.0, **call, out=tmp_path / "out", on_progress=report)
    assert begun[0] > 1
    np.testing.assert_allclose(found.predict(x[:9]), nd.solve("2", x, x[:, 0], 1.0, **call).predict(x[:9]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["landmarks", pytest.param("iterative", marks=pytest.mark.nightly)])
def test_a_killed_process_is_resumed(method, tmp_path, restored):
    out, seen = tmp_path / f"out-{method}", tmp_path / f"killed-{method}.seen"
    process = _started(tmp_path / "killed", method, 1, tmp_path / "out")
    while not (seen.exists() and (out / f"{'sums' if method == 'landmarks' else 'iteration'}.npz").exists()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "solution.npz").exists()
    # Copies of the unfinished work go on: here to the bits of an unbroken run, elsewhere on four devices.
    shutil.copytree(out, tmp_path / f"elsewhere-{method}")
    started = [_started(tmp_path / "resumed", method, 1, tmp_path / "out")]
    started.append(_started(tmp_path / "four", method, 4, tmp_path / "elsewhere"))
    _finished(*started)
    worker.run(method, "-", tmp_path / f"unbroken-{method}")
    resumed, four, unbroken = (_outputs(tmp_path / f"{name}-{method}") for name in ("resumed", "four", "unbroken"))
    np.testing.assert_array_equal(resumed, unbroken)
    np.testing.assert_allclose(four, unbroken, atol=1e-5)
