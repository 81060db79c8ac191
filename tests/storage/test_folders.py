"""Folders of results that are damaged, locked or deleted: one clear line, never other numbers, for all kinds."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.cli import main
from nngp_dag.errors import CheckpointError, NngpDagError, OutputError
from nngp_dag.nas import Setting, get_space, sample_cells
from nngp_dag.nas.pruning.files import SearchDirectory
from nngp_dag.nas.pruning.measures import Found
from nngp_dag.nas.pruning.rounds import Measure, Pruning, prune
from nngp_dag.nas.scores.files import ScoreDirectory, read_scores
from nngp_dag.storage import LOCK, Rows, claimed, environment, locked, misfit, output_directory, output_file

X = np.random.default_rng(0).normal(size=(4, 3))
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def sweep(out):
    return nd.sweep(["2_02", "2"], X, out=out, resume=(out / "config.json").exists())


def score(out):
    list(ScoreDirectory(out, Setting(IMAGES, channels=4, cells=1)).score(sample_cells(3, seed=0), ["parameters"]))
    return read_scores(out)


def search(out):
    space = get_space("nasbench201")
    worth = np.random.default_rng(0).random(space.shape)

    def evaluate(mixtures, _):
        return Found(1 + ((mixtures > 0) * worth).sum((1, 2, 3)), ("",) * len(mixtures))

    folder = SearchDirectory(out, space, {"seed": 0})
    state = None
    for state in prune(space, [Measure("m", evaluate, True)], Pruning(repeats=1), folder.state()):
        folder.save(state)
    return state


# Functions that write and resume a folder, and the file in it that grows.
KINDS = {
    "sweep": (sweep, "classes.csv"),
    "score": (score, "scores-paths_and_costs.csv"),
    "search": (search, "state.json"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns a folder of each kind."""
    root = tmp_path_factory.mktemp("finished")
    for kind, (write, _) in KINDS.items():
        write(root / kind)
    return root


@pytest.fixture(params=KINDS)
def case(request, finished, tmp_path):
    """Returns (function that writes a folder, a folder of its kind, the file that grows)."""
    write, file = KINDS[request.param]
    out = shutil.copytree(finished / request.param, tmp_path / "out")
    return write, out, out / file


def change_digit(file):
    text = file.read_text()
    at = [match.start() for match in re.finditer(r"(?<=\.)[1-8]", text)]
    middle = at[len(at) // 2]
    file.write_text(text[:middle] + str(int(text[middle]) + 1) + text[middle + 1 :])


DAMAGES = {
    "a digit": change_digit,
    "a flipped byte": lambda file: file.write_bytes(file.read_bytes().replace(b"a", b"c", 1)),
    "no text": lambda file: file.write_bytes(b"\xff" * 9 + b"\n"),
    "a long field": lambda file: file.write_bytes(file.read_bytes() + b"1" * 200_000 + b"\n"),
    "nested": lambda file: file.write_text("[" * 100_000 + "\n"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(case, damage):
    write, out, file = case
    DAMAGES[damage](file)
    with pytest.raises(CheckpointError, match=rf"^Expected {file} to .*, got .{{,450}}$"):
        write(out)


def test_a_row_that_is_cut_off_is_computed_again(finished, tmp_path):
    for kind in ("sweep", "score"):
        write, name = KINDS[kind]
        out = shutil.copytree(finished / kind, tmp_path / kind)
        whole = (out / name).read_bytes()
        os.truncate(out / name, len(whole) - 5)
        write(out)
        rows = [file.read_bytes().splitlines() for file in (finished / kind / name, out / name)]
        assert [len(found) for found in rows] == [len(rows[0])] * 2
        assert rows[0][:-1] == rows[1][:-1]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "",
        "{",
        "[]",
        "5",
        '{"settings": 5, "search": 5, "environment": {}}',
        '{"resumed_in": 5}',
        "1" * 5000,
    ],
)
def test_a_configuration_that_is_none(case, text):
    write, out, _ = case
    (out / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"^Expected {out / 'config.json'} to describe .*, got .{{,300}}$"):
        write(out)


@pytest.mark.parametrize("package", ["nngp-dag", "jax", "jaxlib", "numpy", "scipy"])
def test_other_versions_do_not_go_on(case, package):
    write, out, file = case
    config = json.loads((out / "config.json").read_text())
    config["environment"][package] = "0.0.1"
    (out / "config.json").write_text(json.dumps(config))
    before = file.read_bytes()
    message = rf"Expected {package} 0\.0\.1, by which the results in .* were computed, got .*; install that version, or"
    with pytest.raises(CheckpointError, match=message):
        write(out)
    assert file.read_bytes() == before


def test_another_device_is_noted(case):
    write, out, _ = case
    config = json.loads((out / "config.json").read_text())
    here, config["environment"]["device"] = environment(), "another"
    (out / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        write(out)
        assert json.loads((out / "config.json").read_text())["resumed_in"] == [here]


HOLDER = """
import pathlib, sys, time
from nngp_dag.storage import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_at_work(case, tmp_path):
    """A live process keeps others out of a folder. After a kill, its lock does not stop them."""
    write, out, file = case
    before = file.read_bytes()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            message = rf"no other process to write {out}, got process {holder.pid} on .* since .* UTC at work; wait for"
            with pytest.raises(OutputError, match=message):
                write(out)
            with pytest.raises(OutputError, match=message), output_directory(out, overwrite=True):
                pass
        finally:
            holder.kill()
    assert file.read_bytes() == before
    assert (out / LOCK).exists()
    write(out)
    assert not (out / LOCK).exists()


def test_what_a_killed_process_left_is_no_result(tmp_path):
    for kind, (write, name) in KINDS.items():
        out = tmp_path / kind
        # Partial files from the first write of the configuration, and from a later write.
        for left in (".config.json.new.partial", ".other.png.new.partial"):
            (out / left).mkdir(parents=True)
            (out / left / "half").write_text("{")
        (out / LOCK).write_text("process 1 on another since long ago")
        write(out)
        assert (out / name).exists()
        assert [file for file in out.iterdir() if file.name.startswith(".")] == []


def test_what_another_process_writes_is_left_alone(tmp_path):
    with output_file(tmp_path / "theirs.npz") as theirs:
        theirs.write_text("theirs")
        with claimed(tmp_path):
            pass
        assert theirs.read_text() == "theirs"
        with pytest.raises(OutputError, match=r"no other process to write .*theirs\.npz, got process"):
            output_file(tmp_path / "theirs.npz").__enter__()
    assert (tmp_path / "theirs.npz").read_text() == "theirs"


def test_a_result_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="to be new, got an existing one"), output_file(tmp_path / "a") as path:  # noqa: PT012
        path.write_text("mine")
        (tmp_path / "a").write_text("theirs")
    with pytest.raises(OutputError, match="to be new or empty"), output_directory(tmp_path / "b") as staging:  # noqa: PT012
        (staging / "a").write_text("mine")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "a").write_text("theirs")
    assert [(tmp_path / name).read_text() for name in ("a", "b/a")] == ["theirs", "theirs"]


def test_a_folder_that_is_deleted_meanwhile(tmp_path, monkeypatch):
    def deleting(function):
        def run(*arguments, **options):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            return function(*arguments, **options)

        return run

    message = r"Expected the output .*out to stay while it is written, got one that was deleted or moved; run the"
    for owner, name, write in ((Rows, "add", sweep), (Rows, "add", score)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, deleting(getattr(owner, name)))
            with pytest.raises(OutputError, match=message):
                write(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match=message), claimed(tmp_path / "out"):
        shutil.rmtree(tmp_path / "out")


def test_a_search_whose_folder_is_deleted_ends_with_status_2(tmp_path, monkeypatch, capsys):
    saved = SearchDirectory.save

    def deleting(self, *state):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        saved(self, *state)

    monkeypatch.setattr(SearchDirectory, "save", deleting)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "nas",
                "tenas",
                "--dataset",
                "digits",
                "--measure",
                "exact",
                "--batch",
                "4",
                "--out",
                str(tmp_path / "out"),
            ]
        )
    assert stop.value.code == 2
    assert "to stay while it is written, got one that was deleted or moved" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


LONG = "x" * 300
COMMANDS = {
    "show": ("show", "2_12", "--png"),
    "kernel": ("kernel", "--dag", "2_12", "--subset", "4", "--out"),
    "gram": ("gram", "--dag", "2_12", "--subset", "4", "--out"),
    "compare": ("compare", "--dag", "2_12", "--subset", "4", "--out"),
    "sweep": ("sweep", "--dag", "2_12", "--subset", "4", "--out"),
    "train": ("train", "--dag", "2_12", "--dataset", "sphere", "--subset", "8", "--out"),
    "resume": ("train", "--resume", "--out"),
    "evaluate": ("train", "--evaluate"),
    "score": ("nas", "score", "--dataset", "digits", "--sample", "1", "--out"),
    "search": ("nas", "search", "--accuracies", "none.csv", "--scores"),
    "accuracies": ("nas", "search", "--accuracies"),
    "plot": ("nas", "plot", "--accuracies", "none.csv", "--scores"),
    "tenas": ("nas", "tenas", "--dataset", "digits", "--measure", "exact", "--batch", "4", "--out"),
    "nas train": ("nas", "train", "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|", "--out"),
    "genotype": ("nas", "train"),
    "file": ("sweep", "--file"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_paths_that_no_file_system_takes(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*COMMANDS[command], LONG + {"kernel": ".npz", "accuracies": ".csv", "show": ".png"}.get(command, "")])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("nngp-dag: error: Expected ")
    assert "name too long" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_locks_that_a_file_system_does_not_have(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(UserWarning, match=r"a file system with locks at .*, got .*Function not implemented; make sure"):
        locked(tmp_path, tmp_path).__enter__()


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        ({"a": 1}, {"a": int, "b?": str}, ""),
        ({"a": 1}, {"a": (float, str)}, ""),
        ({"a": True}, {"a": int}, "true for a, not an integer"),
        ({"a": 1.5}, {"a": int}, "1.5 for a, not an integer"),
        ({"a": {"b": [1, "2"]}}, {"a": {"b": [int]}}, '"2" for an item of a.b, not an integer'),
        ({"b": None}, {"b?": (str, bool)}, "null for b, not text or true or false"),
        ({}, {"a": dict}, "no a"),
        ([], dict, "[] for the whole, not an object"),
    ],
)
def test_shapes(value, shape, wrong):
    assert misfit(value, shape) == wrong


def test_rows_keep_what_csv_finds_hard(tmp_path):
    rows = Rows(tmp_path / "rows.csv", ["a", "b"])
    written = [{"a": 'a "quote", comma', "b": "two\nlines\r\n"}, {"a": "\u2028 \x85 ü", "b": ""}]
    rows.write(written[:1])
    rows.add(written[1])
    assert rows.read() == Rows(rows.path).read() == written
    with pytest.raises(NngpDagError, match="got columns a, b, checksum, not a, c, checksum; delete"):
        Rows(rows.path, ["a", "c"]).read()
    assert Rows(tmp_path / "none.csv", ["a"]).read() == []
