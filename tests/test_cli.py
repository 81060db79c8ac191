import json
import subprocess
import sys

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.cli import main


def run(capsys, *arguments):
    """Returns (exit status, standard output, standard error)."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


SMALL = ("--subset", "8", "--width", "16", "--seeds", "2", "--steps", "3")


def test_help_lists_the_commands(capsys):
    for arguments in ([], ["--help"]):
        status, out, _ = run(capsys, *arguments)
        assert status == 0
        assert all(command in out for command in ("show", "kernel", "gram", "compare"))
    assert run(capsys, "compare", "--help")[0] == 0
    assert run(capsys, "--version")[1].strip()


def test_show(capsys, tmp_path):
    status, out, _ = run(capsys, "show", "2_21_112", "--png", str(tmp_path / "dag.png"))
    assert status == 0
    assert "1.25" in out  # effective depth
    assert "2.4" in out  # effective width
    assert "0 (skip), 1 (skip), 2 (weighted)" in out
    assert (tmp_path / "dag.png").stat().st_size > 1000
    assert "DAG#3" not in run(capsys, "show", "dag#3")[2]
    assert run(capsys, "show", "|nor_conv_3x3~0|+|none~0|skip_connect~1|")[0] == 0


def test_show_reports_a_disconnected_cell(capsys):
    status, out, _ = run(capsys, "show", "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    assert status == 0
    assert "paths P" in out


def test_kernel(capsys, tmp_path):
    out_file = tmp_path / "k.npz"
    status, out, _ = run(capsys, "kernel", "--dag", "2_12", "--subset", "9", "--out", str(out_file))
    assert status == 0
    assert "NTK" in out
    with np.load(out_file, allow_pickle=False) as saved:
        assert saved["nngp"].shape == saved["ntk"].shape == (9, 9)
        assert saved["ntk"].dtype == np.float64
        assert str(saved["dag"]) == "2_12"
    assert (tmp_path / "k.png").stat().st_size > 1000
    status, _, err = run(capsys, "kernel", "--dag", "2_12", "--subset", "9", "--out", str(out_file))
    assert status == 2
    assert "--overwrite" in err


def test_kernel_of_a_convolutional_network(capsys, tmp_path):
    options = ("--conv", "3", "--activation", "erf", "--b-std", "0.1", "--aggregation", "mean", "--dtype", "float32")
    out_file = tmp_path / "k.npz"
    status, _, _ = run(capsys, "kernel", "--dag", "2_12", "--subset", "5", *options, "--out", str(out_file))
    assert status == 0
    data = nd.data.load_dataset("digits", subset=5)
    x = nd.data.scale_to_sphere(nd.data.normalise(data)).reshape(5, 8, 8, 1).astype(np.float32)
    layer = nd.Conv(filter_shape=(3, 3), activation="erf", b_std=0.1)
    with np.load(out_file, allow_pickle=False) as saved:
        k = nd.kernel(nd.Dag.from_code("2_12"), x, layer=layer, aggregation="mean")
        np.testing.assert_allclose(saved["ntk"], k.ntk, rtol=1e-5)
        assert "filter_shape=(3, 3)" in str(saved["layer"])


def test_gram_writes_tiles_and_returns_what_is_there(capsys, tmp_path):
    out = tmp_path / "gram"
    options = ("--dag", "2_12", "--subset", "9", "--tile", "4", "--dtype", "float64", "--out", str(out))
    status, text, _ = run(capsys, "gram", *options)
    assert status == 0
    assert "9 x 9" in text
    x = nd.data.scale_to_sphere(nd.data.normalise(nd.data.load_dataset("digits", subset=9))).astype(np.float64)
    saved = np.load(out / "ntk.npy", allow_pickle=False)
    np.testing.assert_allclose(saved, nd.kernel(nd.Dag.from_code("2_12"), x).ntk, rtol=1e-12)
    assert run(capsys, "gram", *options)[0] == 0
    status, _, err = run(capsys, "gram", *options, "--activation", "erf")
    assert status == 2
    assert err.count("\n") == 1
    assert "another options" in err


@pytest.mark.slow
def test_compare_writes_the_three_files(capsys, tmp_path):
    out_dir = tmp_path / "out"
    arguments = ("compare", "--dag", "2", "--dag", "DAG#3", *SMALL, "--out", str(out_dir))
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "expected" in out
    assert {p.name for p in out_dir.iterdir()} == {"compare.json", "curves.csv", "compare.png"}
    document = json.loads((out_dir / "compare.json").read_text())
    assert [row["dag"] for row in document["rows"]] == ["2", "2_21_112"]
    assert document["config"]["width"] == 16
    assert document["config"]["seeds"] == [0, 1]
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("nngp-dag: error: Expected the output directory")
    assert run(capsys, "compare", "--dag", "2", *SMALL, "--out", str(out_dir), "--overwrite")[0] == 0
    assert json.loads((out_dir / "compare.json").read_text())["rows"] == document["rows"][:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "2_2x"), "Expected block 2 of `code` to hold 2 digits"),
        (("show", ""), "Expected `code` to be text"),
        (("show", "2_00_000"), "Expected a path from node 0 to the output node 3"),
        (("compare", "--dag", "2_12", "--dataset", "nothing"), "Expected `name` to be one of digits"),
        (("compare", "--dag", "2_12", "--subset", "1"), "Expected at least 2 inputs to compare, got 1"),
        (("compare", "--dag", "2_12", "--subset", "100000"), "Expected `subset` to be at most"),
        (("compare", "--dag", "2_12", "--subset", "8", "--learning-rate", "9"), "2 / lambda_max"),
        (
            ("compare", "--dag", "2_12", "--learning-rate", "fast"),
            "Expected --learning-rate to be auto, shared or a number",
        ),
        (("compare", "--seeds", "0"), "Expected --seeds to be at least 1"),
        (("compare", "--steps", "0"), "Expected the steps to be at least 1, got 0"),
        (("compare", "--width", "0"), "Expected the width to be at least 1, got 0"),
        (("compare", "--learning-rate", "nan"), "Expected `learning_rate` to be finite and above 0, got nan"),
        (("compare", "--learning-rate", "-1"), "Expected `learning_rate` to be finite and above 0, got -1.0"),
        (("compare", "--dag", "2", "--dag", "2"), "Expected every --dag once, got 2, 2"),
        (("compare", "--dag", "2", "--dataset", "mnist", "--data-dir", "."), "Expected"),
        (("compare", "--width", "wide"), "Invalid value for '--width'"),
        (("compare", "--order", "other"), "Invalid value for '--order'"),
        (
            (
                "compare",
                "--nothing",
            ),
            "No such option",
        ),
        (("nothing",), "No such command"),
        (("kernel",), "Missing option"),
        (("kernel", "--dag", "2", "--out", "k.txt"), "Expected --out to end in .npz"),
        (("kernel", "--dag", "|none~0|"), "Expected a path from node 0"),
        (("compare", "--dataset", "cifar10", "--data-dir", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("nngp-dag: error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_is_found_before_the_work(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, out, err = run(capsys, "compare", *SMALL, "--out", str(tmp_path / "file" / "out"))
    assert (status, out) == (2, "")
    assert "to be writable" in err
    assert "━" not in err  # nothing was computed


@pytest.mark.slow
def test_tensorflow_adds_no_lines_of_its_own(tmp_path):
    # In a process of its own: TensorFlow writes past sys.stderr, to the file descriptor.
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{")
    arguments = [
        "kernel",
        "--dag",
        "2",
        "--dataset",
        "mnist",
        "--data-dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "k.npz"),
    ]
    command = [sys.executable, "-c", "from nngp_dag.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("nngp-dag: error: Expected `data_dir` to hold readable files of mnist")
