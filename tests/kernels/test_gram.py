"""`gram` against `kernel`, its memory, and its files after a kill at any moment."""

import errno
import fcntl
import functools
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from nngp_dag import Conv, Dag, Edge, Op, kernel
from nngp_dag.errors import InputError, OutputError
from nngp_dag.kernels import gram_files

# By name, because the package exports a function with the name of the module.
gram_module = importlib.import_module("nngp_dag.kernels._gram")
gram = gram_module.gram

DAG = Dag.from_code("2_12")
N, TILE = 20, 8  # evened out to three tiles of 7 rows, one of them not full


def data(n, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 5)).astype(dtype)


X = data(N)


def files_of(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def partial_of(path):
    return path.with_name(f".{path.name}.partial")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Returns the files of an uninterrupted run."""
    path = tmp_path_factory.mktemp("unbroken") / "out"
    gram(DAG, X, out=path, tile=TILE)
    return files_of(path)


def assert_close(result, expected):
    tolerance = 1e-12 if expected.nngp.dtype == np.float64 else 1e-5
    for name in ("nngp", "ntk"):
        a, b = getattr(result, name), np.asarray(getattr(expected, name))
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * abs(b).max())


@pytest.mark.parametrize("n", [1, 6, pytest.param(14, marks=pytest.mark.slow), N])
def test_square(n):
    result = gram(DAG, X[:n], tile=7)
    assert type(result.nngp) is type(result.ntk) is np.ndarray
    assert_close(result, kernel(DAG, X[:n]))
    assert (result.nngp == result.nngp.T).all()
    assert (result.ntk == result.ntk.T).all()


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_rectangular(dtype, on_disk, tmp_path):
    x1, x2 = data(N, dtype), data(9, dtype, seed=1)
    result = gram(DAG, x1, x2, tile=TILE, out=tmp_path / "out" if on_disk else None, order="act-linear", readout=False)
    assert_close(result, kernel(DAG, x1, x2, order="act-linear", readout=False))


def test_other_kinds_of_arrays():
    expected = kernel(DAG, X)
    assert_close(gram(DAG, jnp.asarray(X), tile=TILE), expected)
    integers = np.arange(1, 5 * N + 1).reshape(N, 5)
    assert_close(gram(DAG, integers, tile=TILE), kernel(DAG, integers))
    assert_close(gram(DAG, X.reshape(N, 5, 1, 1), tile=TILE), expected)


def test_a_tile_of_zeros():
    x = X.copy()
    x[7:14] = 0
    result = gram(DAG, x, tile=TILE)
    assert_close(result, kernel(DAG, x))
    assert not result.ntk[7:14].any()


@pytest.mark.slow
def test_several_inputs():
    dag = Dag(3, (Edge(0, 2, Op.WEIGHTED), Edge(1, 2, Op.WEIGHTED)), num_inputs=2)
    x = [X, data(N, seed=2)]
    assert_close(gram(dag, x, tile=TILE), kernel(dag, x))
    with pytest.raises(InputError, match=r"all arrays of `x1` to hold equally many inputs, got \[20, 19\]"):
        gram(dag, [X, X[1:]])


# Work and memory


def counting(monkeypatch):
    calls = []

    @functools.wraps(kernel)
    def counted(dag, x1, x2=None, **options):
        calls.append((x1.shape, None if x2 is None else x2.shape))
        return kernel(dag, x1, x2, **options)

    monkeypatch.setattr(gram_module, "kernel", counted)
    return calls


def test_only_half_of_the_tiles_are_computed_and_all_have_one_shape(monkeypatch):
    calls = counting(monkeypatch)
    gram(DAG, X, tile=TILE)
    assert len(calls) == 3 + 3
    assert set(calls) == {((7, 5), None), ((7, 5), (7, 5))}
    calls.clear()
    gram(DAG, X, X[:9], tile=TILE)
    assert calls == [((7, 5), (5, 5))] * 3 * 2


def plan(n, budget, **options):
    inputs, dtype = [np.broadcast_to(np.float32(0), (n, 784))], np.dtype(np.float32)
    return gram_module._plan(inputs, None, dtype, None, budget, in_memory=False, **options)


def test_tiles_grow_with_the_budget():
    tiles = [plan(20_000, budget * 2**20).tile[0] for budget in (514, 516, 520, 535, 600, 1024, 6144)]
    assert tiles == sorted(tiles)
    assert (tiles[0], tiles[-1]) == (64, 2000)
    assert plan(20_000, 2**40).corners()[:11][-1] == (2000, 2000)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 GiB", 6 * 2**30),
        ("500 MB", 500_000_000),
        ("1.5kB", 1500),
        (" 1 TIB ", 2**40),
        ("10 B", 10),
        (7, 7),
        (np.int64(8), 8),
    ],
)
def test_budget_texts(text, number):
    assert gram_module.bytes_of(text) == number


@pytest.mark.parametrize(
    "budget",
    [
        "lots",
        "6",
        "6 Gi",
        "6 iB",
        "-1 GB",
        "1 PB",
        "9" * 400 + " GB",
        "٦ GB",
        1.5,
        None,
        True,
        0,
        2**63,
        pytest.param(-(10**5000), id="digits"),
    ],
)
def test_a_budget_that_cannot_be_read(budget):
    with pytest.raises(InputError, match=r"^Expected `memory_budget` to be bytes, from 1 to 2.63, or .{,120}$"):
        gram_module.bytes_of(budget)


def test_a_budget_that_is_too_small(tmp_path):
    message = (
        r"`memory_budget` to hold both 20000 x 20000 matrices and the work on a tile, 3,7\d\d,\d\d\d,\d\d\d bytes, got "
        r"1,000,000,000; raise it, or pass `out=` to write the matrices to disk, which takes 53\d,\d\d\d,\d\d\d bytes"
    )
    with pytest.raises(InputError, match=message):
        gram(DAG, data(20_000), memory_budget="1 GB")
    with pytest.raises(InputError, match=r"to hold the work on a tile, 53\d,\d\d\d,\d\d\d bytes, got 100; raise it$"):
        gram(DAG, X, memory_budget=100, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"raise it or lower `tile`$"):
        gram(DAG, data(5000), memory_budget="800 MB", out=tmp_path / "out", tile=5000)
    with pytest.raises(InputError, match="`tile` to be a whole number, at least 1, got 0"):
        gram(DAG, X, tile=0)
    assert list(tmp_path.iterdir()) == []


# The budget leaves room for tiles of 1000 rows. The matrices on disk, 2 * 36 MB, must not count.
MEASURE = """
    import sys
    import numpy as np
    from nngp_dag import Dag
    from nngp_dag.kernels._gram import gram
    x = np.random.default_rng(0).normal(size=(3000, 50)).astype(np.float32)
    gram(Dag.from_code("2_12"), x, memory_budget="545 MiB", out=sys.argv[1])
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.slow
def test_the_process_stays_within_the_budget(tmp_path):
    run = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "out")]
    peak = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout) * 1024
    assert json.loads((tmp_path / "out" / "gram.json").read_text())["tile"] == [1000, 1000]
    assert peak < 545 * 2**20


# The same with covariances of all pairs of 144 pixels: 80 KB per pair of images, in tiles of 65 rows.
MEASURE_PIXELS = """
    import sys
    import numpy as np
    from nngp_dag import Conv, Dag
    from nngp_dag.kernels._gram import gram
    x = np.random.default_rng(0).normal(size=(130, 12, 12, 3)).astype(np.float32)
    options = {"layer": Conv(filter_shape=(3, 3)), "image_readout": "global-average"}
    gram(Dag.from_code("2_21_112"), x, memory_budget="680 MiB", out=sys.argv[1], **options)
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.nightly
def test_covariances_of_pixels_stay_within_the_budget(tmp_path):
    run = [sys.executable, "-c", textwrap.dedent(MEASURE_PIXELS), str(tmp_path / "out")]
    peak = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout) * 1024
    assert json.loads((tmp_path / "out" / "gram.json").read_text())["tile"] == [65, 65]
    assert peak < 680 * 2**20


def test_covariances_of_pixels_are_counted():
    x, dag = np.zeros((100, 32, 32, 3), np.float32), Dag.from_code("2_12")
    options = {"layer": Conv(filter_shape=(3, 3)), "image_readout": "global-average"}
    # A single row and column: 4 bytes times 14 + 3 * 3 arrays of 1024^2 pairs, beside 512 MiB.
    with pytest.raises(InputError, match=r"the work on a tile, 633,\d\d\d,\d\d\d bytes, got 600,000,000; raise"):
        gram(dag, x, memory_budget="600 MB", out="nowhere", **options)
    with pytest.raises(InputError, match=r"5,3\d\d,\d\d\d,\d\d\d bytes, got 4,294,967,296; raise it or lower `tile`"):
        gram(dag, x, out="nowhere", tile=64, **options)
    # With covariances of equal pixels only, the work is much smaller.
    with pytest.raises(InputError, match=r"to hold the work on a tile, 54\d,\d\d\d,\d\d\d bytes, got 1,000;"):
        gram(dag, x, memory_budget=1000, out="nowhere", tile=64, layer=options["layer"])


# On disk


def test_files(unbroken, tmp_path):
    path = tmp_path / "new" / "out"
    result = gram(DAG, X, out=path, tile=TILE)
    assert files_of(path) == unbroken
    assert sorted(unbroken) == ["gram.json", "nngp.npy", "ntk.npy", "tiles.crc"]
    assert os.listdir(path.parent) == ["out"]
    for name in ("nngp", "ntk"):
        mapped = getattr(result, name)
        assert isinstance(mapped, np.memmap)
        assert not mapped.flags.writeable
        assert (np.load(path / f"{name}.npy", allow_pickle=False) == mapped).all()
        assert (getattr(gram(DAG, X, tile=TILE), name) == mapped).all()
    stated = json.loads(unbroken["gram.json"])
    assert (stated["dag"], stated["shape"], stated["tile"], stated["dtype"]) == ("2_12", [N, N], [7, 7], "float32")
    assert "order='linear-act'" in stated["options"]["layer"]
    assert len(stated["x1"][0]["sha256"]) == 64


def test_an_empty_directory_will_do(unbroken, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    gram(DAG, X, out=str(tmp_path / "link"), tile=TILE)
    assert files_of(tmp_path / "out") == unbroken


def test_the_same_call_returns_what_is_there(tmp_path, monkeypatch):
    first = gram(DAG, X, out=tmp_path / "out", tile=TILE)
    calls = counting(monkeypatch)
    again = gram(DAG, X, out=tmp_path / "out", tile=TILE, memory_budget="3 GiB", order="linear-act", overwrite=True)
    assert not calls
    assert (again.ntk == first.ntk).all()


def test_another_call_is_refused_or_overwrites(unbroken, tmp_path):
    path = tmp_path / "out"
    gram(DAG, X + 1, out=path, tile=TILE, readout=False)
    with pytest.raises(
        OutputError,
        match=r'as in .*/gram\.json, got others: options\.readout "False" before, "True" now; .*`overwrite`',
    ):
        gram(DAG, X, out=path, tile=TILE)
    (path / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"out to hold results of `gram` alone, got mine\.txt; move other"):
        gram(DAG, X, out=path, tile=TILE, overwrite=True)
    (path / "mine.txt").unlink()
    (tmp_path / ".out.replaced" / "left by a kill").mkdir(parents=True)
    gram(DAG, X, out=path, tile=TILE, overwrite=True)
    assert files_of(path) == unbroken
    assert os.listdir(tmp_path) == ["out"]
    (path / "ntk.npy").write_bytes(b"")
    with pytest.raises(
        OutputError,
        match=r"out to hold what was written there, got damaged files; choose another .*, or pass `overwrite`",
    ):
        gram(DAG, X, out=path, tile=TILE)
    gram(DAG, X, out=path, tile=TILE, overwrite=True)
    assert files_of(path) == unbroken


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="to be a directory, got a file; choose another `out`"):
        gram(DAG, X, out=tmp_path / "file")
    with pytest.raises(OutputError, match="to be new, empty or hold a result of `gram`, got other files"):
        gram(DAG, X, out=tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="to be writable, got Not a directory; choose another output"):
        gram(DAG, X, out=tmp_path / "file" / "out")


def test_a_full_disk(unbroken, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(OutputError, match="to be writable, got No space left on device"):
            gram(DAG, X, out=tmp_path / "a" / "out", tile=TILE)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: 0)
        with pytest.raises(OutputError, match="to be writable, got No space left on device"):
            gram(DAG, X, out=tmp_path / "out", tile=TILE)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_a_bad_argument(tmp_path):
    with pytest.raises(InputError, match=r"`order` to be one of .*, got 'other'"):
        gram(DAG, X, out=tmp_path / "a" / "out", order="other")
    with pytest.raises(InputError, match=r"Expected options of the network .*, got `nonsense`"):
        gram(DAG, X, out=tmp_path / "a" / "out", nonsense=1)
    assert list(tmp_path.iterdir()) == []


# Interruptions

KILLED = """
    import os, signal, sys
    import numpy as np
    from nngp_dag import Dag
    from nngp_dag.kernels._gram import gram
    real, rows = os.pwrite, 0

    def pwrite(*arguments):
        global rows
        rows += 1
        if rows == 60:  # 14 rows are written for the first tile, 28 for the next two: now in the middle of the third
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    os.pwrite = pwrite
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    gram(Dag.from_code("2_12"), x, tile=8, out=sys.argv[1])
"""


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bits(unbroken, tmp_path, monkeypatch):
    path = tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not path.exists()
    assert len((partial_of(path) / "tiles.crc").read_bytes().splitlines()) == 2
    with pytest.raises(
        OutputError, match=r"as in .*/\.out\.partial/gram\.json, got others: x1 .* now; pass the old .* `overwrite`"
    ):
        gram(DAG, X + 1, out=path, tile=20)
    calls = counting(monkeypatch)
    gram(DAG, X, out=path, tile=TILE)
    assert len(calls) == 4
    assert files_of(path) == unbroken
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("function", "call"), [("pwrite", 60), ("fsync", 12), ("write", 3), ("rename", 1)])
@pytest.mark.parametrize("after", [False, True])
def test_interrupted_anywhere(function, call, after, unbroken, tmp_path, monkeypatch):
    path, real, count = tmp_path / "out", getattr(os, function), 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == call and not after:
            raise KeyboardInterrupt
        result = real(*arguments)
        if count == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(os, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            gram(DAG, X, out=path, tile=TILE)
    gram(DAG, X, out=path, tile=TILE)
    assert {name: data for name, data in files_of(path).items() if name in unbroken} == unbroken
    assert os.listdir(tmp_path) == ["out"]


def interrupt_second_tile(monkeypatch, path, **options):
    def interrupted(self, number):
        if number == 1:
            raise KeyboardInterrupt
        commit(self, number)

    commit = gram_files.GramFiles.commit
    with monkeypatch.context() as patched:
        patched.setattr(gram_files.GramFiles, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gram(DAG, X, out=path, **options)


def test_an_unfinished_result_of_another_call_is_overwritten_when_asked(unbroken, tmp_path, monkeypatch):
    interrupt_second_tile(monkeypatch, tmp_path / "out", tile=TILE, readout=False)
    gram(DAG, X, out=tmp_path / "out", tile=TILE, overwrite=True)
    assert files_of(tmp_path / "out") == unbroken


def test_a_result_that_appears_meanwhile_is_not_deleted(tmp_path, monkeypatch):
    path = tmp_path / "out"

    def appearing(self, number):
        path.mkdir(exist_ok=True)
        (path / "mine.txt").touch()
        commit(self, number)

    commit = gram_files.GramFiles.commit
    monkeypatch.setattr(gram_files.GramFiles, "commit", appearing)
    with pytest.raises(OutputError, match="to be new, empty or hold a result of `gram`, got other files"):
        gram(DAG, X, out=path, tile=TILE, overwrite=True)
    assert os.listdir(path) == ["mine.txt"]
    assert len((partial_of(path) / "tiles.crc").read_bytes().splitlines()) == 6


def test_files_of_others_in_the_hidden_folder_are_not_taken_over(tmp_path):
    partial = partial_of(tmp_path / "out")
    partial.mkdir()
    (partial / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"partial to hold results of `gram` alone, got mine\.txt; move other"):
        gram(DAG, X, out=tmp_path / "out", tile=TILE)
    assert (partial / "mine.txt").read_text() == "mine"


def test_two_processes_at_once(unbroken, tmp_path, monkeypatch):
    path, message = tmp_path / "out", "no other process to write .*, got .* at work; wait for it to end, or choose"
    interrupt_second_tile(monkeypatch, path, tile=TILE)
    with (partial_of(path) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=message):
            gram(DAG, X, out=path, tile=TILE)
    flock = fcntl.flock

    def too_late(
        descriptor, operation
    ):  # the other process finishes between this one's opening the file and locking it
        (partial_of(path) / ".lock").unlink()
        flock(descriptor, operation)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", too_late)
        with pytest.raises(OutputError, match=message):
            gram(DAG, X, out=path, tile=TILE)
    gram(DAG, X, out=path, tile=TILE)
    with monkeypatch.context() as patched:  # and here just before that
        patched.setattr(gram_module, "load_finished", lambda *_: None)
        with pytest.raises(OutputError, match=message):
            gram(DAG, X, out=path, tile=TILE)
    assert files_of(path) == unbroken
    assert os.listdir(tmp_path) == ["out"]


# Damage


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


# Kinds of damage, and the message of each.
DAMAGES = {
    "flipped in the data": (lambda folder: flip(folder / "ntk.npy", 130), "got a damaged tile, number 0"),
    "flipped in the head": (lambda folder: flip(folder / "ntk.npy", 20), "got damaged files"),
    "flipped checksum": (lambda folder: flip(folder / "tiles.crc", 2), "got a damaged tile, number 0"),
    "truncated": (lambda folder: os.truncate(folder / "nngp.npy", 500), "got damaged files"),
    "no matrix": (lambda folder: (folder / "nngp.npy").unlink(), "got damaged files"),
    "nested": (lambda folder: (folder / "gram.json").write_text("[" * 100_000), "a result of `gram`, got .*recursion"),
    "wrong type": (lambda folder: (folder / "gram.json").write_text('{"shape": 5, "dtype": 5}'), "got 5 for shape"),
    "too long a journal": (
        lambda folder: (folder / "tiles.crc").write_bytes(b"00000000\n" * 7),
        "got a damaged journal",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_never_returned(damage, unbroken, tmp_path, monkeypatch):
    path = tmp_path / "out"
    gram(DAG, X, out=path, tile=TILE)
    harm, message = DAMAGES[damage]
    harm(path)
    with pytest.raises(OutputError, match=rf"Expected {path}.* to .*{message}.*; .*, or pass `overwrite`"):
        gram(DAG, X, out=path, tile=TILE)
    gram(DAG, X, out=path, tile=TILE, overwrite=True)
    assert files_of(path) == unbroken


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_never_continued(damage, unbroken, tmp_path, monkeypatch):
    interrupt_second_tile(monkeypatch, tmp_path / "out", tile=TILE)
    harm, message = DAMAGES[damage]
    harm(partial_of(tmp_path / "out"))
    with pytest.raises(OutputError, match=rf"Expected .*\.out\.partial.* to .*{message}.*; .*, or pass `overwrite`"):
        gram(DAG, X, out=tmp_path / "out", tile=TILE)
    gram(DAG, X, out=tmp_path / "out", tile=TILE, overwrite=True)
    assert files_of(tmp_path / "out") == unbroken


def test_a_journal_that_is_cut_off_counts_whole_lines(unbroken, tmp_path, monkeypatch):
    interrupt_second_tile(monkeypatch, tmp_path / "out", tile=TILE)
    with (partial_of(tmp_path / "out") / "tiles.crc").open("ab") as journal:
        journal.write(b"......")
    calls = counting(monkeypatch)
    gram(DAG, X, out=tmp_path / "out", tile=TILE)
    assert len(calls) == 5
    assert files_of(tmp_path / "out") == unbroken
    with (tmp_path / "out" / "tiles.crc").open("r+b") as journal:
        journal.truncate(20)
    with pytest.raises(
        OutputError, match=r"to hold what was written there, got checksums of 2 of 6 tiles; .*`overwrite`"
    ):
        gram(DAG, X, out=tmp_path / "out", tile=TILE)


def test_a_directory_that_is_deleted_meanwhile(tmp_path, monkeypatch):
    def deleted(self, number):
        shutil.rmtree(partial_of(tmp_path / "out"), ignore_errors=True)
        commit(self, number)

    commit = gram_files.GramFiles.commit
    monkeypatch.setattr(gram_files.GramFiles, "commit", deleted)
    with pytest.raises(OutputError, match=r"out\.partial to stay while it is written, got one that was deleted or"):
        gram(DAG, X, out=tmp_path / "out", tile=TILE)


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_terminals_only(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    gram(DAG, X, tile=TILE)
    assert capsys.readouterr() == ("", "")
    for progress in (True, False):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        gram(DAG, X, tile=TILE, progress=progress)
        assert ("6/6 tiles" in terminal.getvalue()) == progress
    assert capsys.readouterr().out == ""


# Inputs


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(5), r"to have shape \(N, features\.\.\.\) with N >= 1 and a feature, got \(5,\)"),
        (np.ones((0, 5)), r"to have shape \(N, features\.\.\.\) with N >= 1 and a feature, got \(0, 5\)"),
        (np.ones((2, 5), complex), "to hold real numbers, got dtype complex128"),
        (np.array([["a"]]), "to hold real numbers, got dtype <U1"),
        (np.where(np.arange(5000)[:, None] == 4999, np.nan, 1), "to be finite, got NaN or infinity in row 4999; drop"),
    ],
)
def test_refused_inputs(x, message):
    with pytest.raises(InputError, match=f"`x1` {message}"):
        gram(DAG, x)
    with pytest.raises(InputError, match=f"`x2` {message}"):
        gram(DAG, np.ones((2, 5)), x)


def test_what_only_the_kernel_refuses_is_located():
    x = X.copy()
    x[18] = 1e20
    message = (
        r"of `x2` between .*, got 1e\+20 in row 4; rescale the inputs, or pass dtype='float64' \(in the tile whose "
        r"rows begin with input 0 and whose columns, its `x2`, with input 14\)"
    )
    with pytest.raises(InputError, match=message):
        gram(DAG, x, tile=TILE)
    with pytest.raises(InputError, match="`x1` and `x2` to have equally many features, got 5 and 4"):
        gram(DAG, X, X[:, :4])


def test_one_output_only():
    two = Dag.from_edges([("in", "a", 2), ("in", "b", 1), ("a", "b", 2)], output=["a", "b"])
    with pytest.raises(InputError, match="Expected a graph with one output, got 2; call `gram` for each of them"):
        gram(two, X, tile=TILE)
