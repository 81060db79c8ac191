import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from cli_cases import check_options, run
from typer.main import get_command

import nngp_dag as nd
from nngp_dag.architecture import Architecture, network
from nngp_dag.architecture.document import from_document
from nngp_dag.cli import app
from nngp_dag.cli.network import NETWORK_OPTIONS
from nngp_dag.cli.options import output
from nngp_dag.cli.source import choose_samples
from nngp_dag.graph import operations

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"
LONG = "x" * 300
SMALL = ("--subset", "8", "--width", "16", "--seeds", "2", "--steps", "3")


def test_help_lists_the_commands(capsys):
    for arguments in ([], ["--help"]):
        status, out, _ = run(capsys, *arguments)
        assert status == 0
        assert all(command in out for command in ("show", "kernel", "gram", "compare"))
    assert run(capsys, "compare", "--help")[0] == 0
    assert run(capsys, "--version")[1] == f"{nd.__version__}\n"


def test_show(capsys, tmp_path):
    status, out, _ = run(capsys, "show", "2_21_112", "--png", str(tmp_path / "dag.png"))
    assert status == 0
    assert "1.25" in out  # effective depth
    assert "2.4" in out  # effective width
    assert "0 (skip), 1 (skip), 2 (weighted)" in out
    assert (tmp_path / "dag.png").stat().st_size > 1000
    assert "DAG#3" not in run(capsys, "show", "dag#3")[2]
    assert run(capsys, "show", "|nor_conv_3x3~0|+|none~0|skip_connect~1|")[0] == 0


def test_show_explains_how_kernels_would_be_computed(capsys):
    status, out, _ = run(capsys, "show", "2_21_112", "--explain", "20000x784")
    assert status == 0
    assert "kernels: Chebyshev series in the angle" in out
    status, out, _ = run(capsys, "show", "2_21_112", "--explain", "999999999x7", "--json")
    assert json.loads(out)["kernels"].endswith("(ReLU-type activations without biases, one input array)")
    assert "such as 20000x784, got '20kx7'" in run(capsys, "show", "2_12", "--explain", "20kx7")[2]


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


@pytest.mark.slow
def test_kernel_of_a_convolutional_network(capsys, tmp_path):
    options = ("--conv", "3", "--activation", "erf", "--b-std", "0.1", "--aggregation", "mean", "--dtype", "float32")
    out_file = tmp_path / "k.npz"
    status, _, _ = run(capsys, "kernel", "--dag", "2_12", "--subset", "5", *options, "--out", str(out_file))
    assert status == 0
    data = nd.data.load_dataset("digits", subset=5)
    x = nd.data.scale_to_sphere(nd.data.normalize(data)).reshape(5, 8, 8, 1).astype(np.float32)
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
    x = nd.data.scale_to_sphere(nd.data.normalize(nd.data.load_dataset("digits", subset=9))).astype(np.float64)
    saved = np.load(out / "ntk.npy", allow_pickle=False)
    np.testing.assert_allclose(saved, nd.kernel(nd.Dag.from_code("2_12"), x).ntk, rtol=1e-12)
    assert run(capsys, "gram", *options)[0] == 0
    status, _, err = run(capsys, "gram", *options, "--activation", "erf")
    assert status == 2
    assert err.count("\n") == 1
    assert "gram.json, got others: options.layer " in err
    assert "or pass --overwrite to delete that one" in err


@pytest.mark.slow
def test_compare_writes_its_files(capsys, tmp_path):
    out_dir = tmp_path / "out"
    arguments = ("compare", "--dag", "2", "--dag", "DAG#3", *SMALL, "--out", str(out_dir))
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "expected" in out
    assert {p.name for p in out_dir.iterdir()} == {"compare.json", "curves.csv", "compare.png", "dags"}
    document = json.loads((out_dir / "compare.json").read_text())
    assert [row["dag"] for row in document["rows"]] == ["2", "2_21_112"]
    assert [described["width"] for described in document["config"]["networks"].values()] == [16, 16]
    assert document["config"]["seeds"] == [0, 1]
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("nngp-dag: error: Expected the output directory")
    assert run(capsys, "compare", "--dag", "2", *SMALL, "--out", str(out_dir), "--overwrite")[0] == 0
    assert json.loads((out_dir / "compare.json").read_text())["rows"] == document["rows"][:1]


@pytest.mark.nightly
def test_compare_takes_any_network(capsys, tmp_path):
    layer = ("--activation", "erf", "--order", "act-linear", "--b-std", "0.25", "--w-std", "1.5")
    sizes = ("--subset", "6", "--width", "4", "--seeds", "1", "--steps", "2", "--json")
    arguments = ("compare", "--dag", "2_12", *layer, "--aggregation", "mean", *sizes, "--out", str(tmp_path / "out"))
    status, text, _ = run(capsys, *arguments)
    assert status == 0
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    [row] = json.loads(text)["rows"]
    assert [row] == document["rows"]
    expected = nd.Network(
        "2_12", nd.Dense(activation="erf", order="act-linear", b_std=0.25, w_std=1.5), aggregation="mean", width=4
    )
    assert from_document(document["config"]["networks"]["2_12"]) == expected
    assert (row["name"], row["path_bound"], row["ntk_path_bound"]) == ("2_12", None, None)
    assert row["ntk_lambda_min_bracket"][0] == 0
    data = nd.data.load_dataset("digits", subset=6)
    x = nd.data.scale_to_sphere(nd.data.normalize(data))
    [same] = nd.compare(expected, x, nd.data.one_hot(data.labels, 10), seeds=1, steps=2)
    assert {**same.as_row(), "name": "2_12"} == row
    status, _, err = run(capsys, *arguments[:-1], str(tmp_path / "other"), "--activation", "rleu")
    assert (status, err.count("\n")) == (2, 1)
    assert "Expected --activation to be one of relu, " in err
    assert not (tmp_path / "other").exists()


@pytest.mark.sample(12)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "2_2x"), "Expected block 2 of `code` to hold 2 digits"),
        (("show", ""), "Expected `text` to be a code"),
        (("show", "2_12", "--png", "graph.pdf"), "Expected --png to name a file .png, got 'graph.pdf'"),
        (("show", "2_00_000"), "Expected a path from node 0 to the output node 3"),
        (("compare", "--dag", "2_12", "--dataset", "nothing"), "Expected `name` to be one of digits"),
        (("compare", "--dag", "2_12", "--subset", "1"), "Expected at least 2 inputs to compare, got 1"),
        (("compare", "--dag", "2_12", "--subset", "100000"), "Expected --subset to be at most"),
        (("compare", "--dag", "2_12", "--subset", "8", "--learning-rate", "9"), "2 / lambda_max"),
        (
            ("compare", "--dag", "2_12", "--learning-rate", "fast"),
            "Expected --learning-rate to be auto, shared or a number",
        ),
        (
            ("compare", "--dag", "2", "--subset", "8", "--conv", "3"),
            "got conv(3x3)-relu in 2; they can be trained only",
        ),
        (("compare", "--seeds", "0"), "Expected --seeds to be at least 1"),
        (("compare", "--steps", "0"), "Expected --steps to be at least 1, got 0"),
        (("compare", "--width", "0"), "Expected --width to be at least 1, got 0"),
        (("compare", "--learning-rate", "nan"), "Expected --learning-rate to be finite and above 0, got nan"),
        (("compare", "--learning-rate", "-1"), "Expected --learning-rate to be finite and above 0, got -1.0"),
        (("compare", "--dag", "2", "--dag", "2"), "Expected every --dag once, got 2, 2"),
        pytest.param(  # loads TensorFlow
            ("compare", "--dag", "2", "--dataset", "mnist", "--data-dir", "."), "Expected", marks=pytest.mark.slow
        ),
        (("compare", "--width", "wide"), "Invalid value for '--width'"),
        (("compare", "--order", "linear"), "got 'linear'; did you mean 'linear-act'?"),
        (("compare", "--subst", "8"), "No such option: --subst; did you mean '--subset'?"),
        (("comprae",), "No such command 'comprae'. Did you mean 'compare'?"),
        (("list", "activatins"), "did you mean 'activations'?"),
        (("kernel", "--dag", "2", "--activation", "rleu"), "got 'rleu'; did you mean 'relu'?"),
        (("compare", "--dag", "2", "--dataset", "minst"), "got 'minst'; did you mean 'mnist'?"),
        (("nas", "score", "--score", "naswott"), "got 'naswott'; did you mean 'naswot'?"),
        (("nas", "score", "--sample", "99999999"), "Expected --sample in 1 to 15,625, the number of cells, got 99,999"),
        (("nas", "tenas", "--space", "nasbench"), "got 'nasbench'; did you mean 'nasbench201'?"),
        (("sweep", "--space", "nasbench"), "got 'nasbench'; did you mean 'nasbench201'?"),
        (("show", "|nor_conv_3x~0|"), "did you mean 'nor_conv_3x3'?"),
        (("compare", "--data", "my.npz", "--dataset", "digits"), "Expected --data or --dataset, got both"),
        (("kernel", "--dag", "2", "--data", "my.npz"), "Expected my.npz to be a file, got none of that name"),
        (("kernel", "--dag", "2", "--data", f"{LONG}.npz"), "to be a file, got File name too long"),
        (("kernel", "--dag", "2", "--dataset", "mnist", "--data-dir", LONG), "xxx..., File name too long; create it"),
        (("kernel", "--dag", "2", "--dataset", LONG, "--data-dir", "."), "a set of tensorflow-datasets, got 'xxx"),
        (("show", "2", "--png", f"{LONG}.png"), "got File name too long; choose another output"),
        (("nas", "search", "--accuracies", "b.csv", "--scores", LONG), "too long; choose another output"),
        (("nas", "plot", "--accuracies", "b.csv", "--scores", LONG), "too long; choose another output"),
        (("gram", "--dag", "2", "--resume"), "to hold kernels to go on with, got none; leave out --resume"),
        (("nas", "score", "--cell", f"{CELL}", "--resume"), "to describe scores, got none; leave out --resume"),
        (("nas", "tenas", "--resume"), "to describe a search, got none; leave out --resume"),
        (("kernel",), "Missing option"),
        (("kernel", "2_21_112"), "Missing option '--dag'; did you mean --dag 2_21_112?"),
        (("gram", "DAG#1", "--subset", "4"), "Missing option '--dag'; did you mean --dag 'DAG#1'?"),
        (("compare", "2_21_112"), "extra argument(s) (2_21_112); did you mean --dag 2_21_112?"),
        (("sweep", "2_12", "2_21"), "did you mean --dag 2_12?"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kernel", "--dag", "2", "--dataset", "minst"), "did you mean 'mnist'?"),
        (("kernel", "--dag", "2", "--subset", "-3"), "Expected --subset to be at least 1, got -3"),
        (("kernel", "--dag", "2", "--subset", "9999"), "Expected --subset to be at most 1500"),
        (("kernel", "--dag", "2", "--activation", "rleu"), "did you mean 'relu'?"),
        (("compare", "--steps", "0"), "Expected --steps to be at least 1, got 0"),
        (("compare", "--dag", "2_2x"), "Expected block 2"),
        (("compare", "--data", "none.npz"), "to be a file"),
        (("train", "--activation", "rleu"), "did you mean 'relu'?"),
        (("train", "--subset", "-3"), "Expected --subset to be at least 1, got -3"),
        (("nas", "train", CELL, "--dataset", "minst"), "did you mean 'mnist'?"),
        (("nas", "train", CELL, "--epochs", "0"), "Expected --epochs to be at least 1, got 0"),
        (("nas", "train", CELL, "--dataset", "digits", "--momentum", "1"), "Expected --momentum below 1, got 1.0"),
    ],
)
def test_a_bad_argument_is_named_before_an_output_that_exists(capsys, tmp_path, arguments, message):
    taken = tmp_path / "taken.npz"
    if arguments[0] == "kernel":
        taken.write_text("")
    else:
        taken.mkdir()
        (taken / "other").write_text("")
    assert message in run(capsys, *arguments, "--out", str(taken))[2]
    assert "taken" in run(capsys, *GOOD[arguments[0]], "--out", str(taken))[2]


GOOD = {
    "kernel": ("kernel", "--dag", "2", "--dataset", "sphere"),
    "compare": ("compare", "--dataset", "sphere"),
    "train": ("train", "--dataset", "sphere"),
    "nas": ("nas", "train", CELL, "--dataset", "digits"),
}


def test_default_outputs_are_new_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [output("k.npz", None), output("k.npz", None, again=True)] == [Path("k.npz")] * 2
    for name in ("k.npz", "k-2.npz"):
        Path(name).write_text("")
    assert output("k.npz", None) == Path("k-3.npz")
    assert output("k.npz", None, again=True) == Path("k-2.npz")
    assert output("k.npz", Path("k.npz")) == Path("k.npz")


@pytest.fixture
def mine(tmp_path):
    """Returns forty inputs with labels 3 and 7, as .npz and as .csv, and the labels numbered from 0."""
    x = np.random.default_rng(0).normal(size=(40, 4))
    labels = (x[:, 0] > 0).astype(int)
    np.savez(tmp_path / "my.npz", x=x, y=4 * labels + 3)
    lines = [",".join([*map(repr, row), str(4 * label + 3)]) for row, label in zip(x.tolist(), labels, strict=True)]
    (tmp_path / "my.csv").write_text("\n".join(["a,b,c,d,label", *lines]) + "\n")
    np.savez(tmp_path / "real.npz", x=x, y=x[:, :2])
    return tmp_path, x, labels


@pytest.mark.slow
def test_kernels_of_ones_own_data(capsys, mine):
    folder, x, labels = mine
    dag, sphere = nd.Dag.from_code("2"), nd.data.scale_to_sphere(x)
    for file, more in (("my.npz", ()), ("my.csv", ("--no-scale-inputs",))):
        out = folder / f"{file}.kernel.npz"
        status, text, err = run(
            capsys, "kernel", "--dag", "2", "--data", str(folder / file), "--subset", "30", *more, "--out", str(out)
        )
        assert (status, err) == (0, "")
        assert f"{file}: 40 inputs of 4, used as they are (not normalized)" in text
        assert f"{'; target: label' if file == 'my.csv' else ''}; 2 classes, renumbered: 3 is 0, 7 is 1" in text
        with np.load(out, allow_pickle=False) as saved:
            np.testing.assert_allclose(saved["ntk"], nd.kernel(dag, (x if more else sphere)[:30]).ntk, rtol=1e-12)
            np.testing.assert_array_equal(saved["labels"], labels[:30])
            assert saved["classes"].tolist() == ["3", "7"]
            assert str(saved["dataset"]) == file


def test_an_input_that_is_zero_is_refused_with_the_option_that_takes_it(capsys, tmp_path):
    np.savez(tmp_path / "zero.npz", x=np.array([[1.0, 2.0], [0.0, 0.0]]))
    status, _, err = run(
        capsys, "kernel", "--dag", "2", "--data", str(tmp_path / "zero.npz"), "--out", str(tmp_path / "k.npz")
    )
    assert status == 2
    assert "only zeros in row 1; remove that input, or shift all inputs" in " ".join(err.split())
    assert "or pass --no-scale-inputs" in " ".join(err.split())


@pytest.mark.slow
def test_json_is_all_that_is_printed(capsys, mine):
    folder = mine[0]
    status, text, err = run(capsys, "show", "2_21_112", "--json")
    assert (status, err) == (0, "")
    shown = json.loads(text)
    assert (shown["num_paths"], shown["effective_depth"]) == (4, 1.25)
    data = ("--data", str(folder / "my.npz"))
    status, text, err = run(capsys, "kernel", "--dag", "2", *data, "--json", "--out", str(folder / "k.npz"))
    assert (status, err) == (0, "")
    found = json.loads(text)["kernels"]["NTK"]
    with np.load(folder / "k.npz") as saved:
        assert found["lambda_max"] == pytest.approx(nd.spectrum(saved["ntk"]).lambda_max)
    _, text, _ = run(capsys, "list", "activations", "--json")
    assert [row["name"] for row in json.loads(text)] == list(nd.activations.ACTIVATIONS)
    # The option of one command does not affect the next.
    assert "paths P" in run(capsys, "show", "2")[1]


@pytest.mark.slow
def test_quiet_leaves_results_and_errors(capsys, mine):
    folder = mine[0]
    options = ("kernel", "--dag", "2", "--data", str(folder / "my.npz"), "--out", str(folder / "k.npz"))
    for arguments in (("--quiet", *options), (*options, "-q", "--overwrite")):
        status, text, err = run(capsys, *arguments)
        assert (status, err) == (0, "")
        assert "NTK" in text
        assert "wrote" not in text
        assert "my.npz" not in text
    assert run(capsys, *options, "-q")[2].startswith("nngp-dag: error: ")


@pytest.mark.parametrize("what", ["activations", "datasets", "scores", "spaces", "dags"])
def test_list(capsys, what):
    status, text, _ = run(capsys, "list", what)
    assert status == 0
    known = {
        "activations": nd.activations.ACTIVATIONS,
        "datasets": nd.data.DATASETS,
        "scores": nd.nas.SCORES,
        "spaces": nd.nas.SPACES,
        "dags": nd.zoo.FIGURE3,
    }
    assert all(name in text for name in known[what])


def test_help_needs_no_jax():
    code = "import sys\nfrom nngp_dag.cli import main\ntry: main(['-h'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Examples:" in done.stdout
    assert not {"jax", "numpy", "pandas", "tensorflow"} & set(done.stdout.split())


_GROUP: Any = get_command(app)
COMMANDS = {
    f"{prefix}{name}": command
    for prefix, group in (("", _GROUP), ("nas ", _GROUP.commands["nas"]))
    for name, command in group.commands.items()
    if name != "nas"
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_examples_of_the_help_parse(command):
    examples = command.epilog.split("\n\n")[1:]
    assert examples
    for example in examples:
        check_options(example)


@pytest.mark.parametrize("name", ["kernel", "gram", "compare", "sweep", "train"])
def test_options_of_the_network_are_those_of_the_library(name):
    options = {option.name: option for option in COMMANDS[name].params}
    assert set(options) >= {*NETWORK_OPTIONS, "conv"}
    assert {*Architecture.__annotations__} - {*options} <= {"layer", "stem", "readout"}
    plain = nd.Network("2")
    for option in ("aggregation", "image_readout", "parameterization", "width"):
        assert options[option].default == getattr(plain, option)
    for option in ("activation", "order", "b_std"):
        assert options[option].default == getattr(plain.layer, option)
    for field in dataclasses.fields(nd.Recipe) if name == "train" else ():
        # In the library, None stands for an option that is not given.
        assert (
            options[field.name.removesuffix("s") if field.name == "milestones" else field.name].default == field.default
        )
    hints = {option: options[option].type_descriptor.annotation for option in NETWORK_OPTIONS}
    assert get_args(hints["aggregation"]) == network.AGGREGATIONS
    assert get_args(hints["image_readout"]) == operations.IMAGE_READOUTS
    assert set(get_args(hints["parameterization"])) == set(operations.PARAMETERIZATIONS)
    assert tuple(hints["order"]) == operations.ORDERS


def test_unwritable_output_is_found_before_the_work(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, out, err = run(capsys, "compare", *SMALL, "--out", str(tmp_path / "file" / "out"))
    assert (status, out) == (2, "")
    assert "to be writable" in err
    assert "━" not in err  # nothing was computed


@pytest.mark.sample(0, slow=2)
@pytest.mark.parametrize("file", ["my.npz", "my.csv", "real.npz"])
def test_the_main_job_on_ones_own_data(capsys, mine, file):
    folder, x, labels = mine
    arguments = ("compare", "--dag", "2", "--data", str(folder / file), *SMALL, "--subset", "30")
    status, text, _ = run(capsys, *arguments, "--json", "--out", str(folder / "out"))
    assert status == 0
    document = json.loads((folder / "out/compare.json").read_text())
    assert json.loads(text)["rows"] == document["rows"]
    y = x[:30, :2] if file == "real.npz" else np.eye(2)[labels[:30]]
    k = nd.kernel(nd.Dag.from_code("2"), nd.data.scale_to_sphere(x[:30]))
    loss = nd.expected_loss(k, y, learning_rate=1 / nd.spectrum(k.ntk).lambda_max, steps=3)
    assert document["rows"][0]["loss_final_expected"] == pytest.approx(loss[-1], rel=1e-6)
    assert document["config"]["classes"] == (None if file == "real.npz" else 2)


@pytest.mark.slow
def test_training_on_ones_own_data(capsys, mine):
    folder = mine[0]
    data, run_ = ("--data", str(folder / "my.csv")), folder / "run"
    options = ("--width", "8", "--batch-size", "8", "--eval-subset", "3", "--dag", "2", "--out", str(run_))
    status, text, _ = run(capsys, "train", *data, *options, "--epochs", "1", "--json")
    assert status == 0
    assert json.loads((run_ / "config.json").read_text())["data"]["validation"] == 3
    first = json.loads(text)["rows"][0]["test_loss"]
    status, text, _ = run(capsys, "train", "--evaluate", str(run_ / "checkpoints/2/last"), "--json")
    assert [row["loss"] for row in json.loads(text) if row["part"] == "test"] == [pytest.approx(first)]
    assert run(capsys, "train", "--resume", "--epochs", "2", "--out", str(run_))[0] == 0
    assert (
        "Expected real.npz to hold labels to train on"
        in run(capsys, "train", "--data", str(folder / "real.npz"), "--out", str(folder / "other"))[2]
    )
    images = np.random.default_rng(0).random((40, 8, 8, 3))
    np.savez(folder / "images.npz", x=images, y=np.arange(40) % 4)
    data = ("--data", str(folder / "images.npz"))
    small = ("--epochs", "1", "--channels", "2", "--layers", "1", "--batch-size", "8", "--eval-subset", "3")
    more = ("--seeds", "2", "--out", str(folder / "cell"), "--json")
    status, text, _ = run(capsys, "nas", "train", CELL, *data, *small, *more)
    assert status == 0
    found = [(row["dag"], row["code"], row["seed"], row["best_epoch"]) for row in json.loads(text)["rows"]]
    assert found == [("cell", CELL, 0, 1), ("cell", CELL, 1, 1)]
    score = ("nas", "score", "--cell", CELL, "--score", "parameters", "--cells", "1", "--out", str(folder / "scores"))
    assert run(capsys, *score, *data)[0] == 0
    assert run(capsys, *score, *data, "--resume")[0] == 0


@pytest.mark.nightly
def test_tensorflow_adds_no_lines_of_its_own(tmp_path):
    # In a process of its own, because TensorFlow writes to the file descriptor, not to sys.stderr.
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
    assert lines[0].startswith("nngp-dag: error: Expected --data-dir to hold readable files of mnist")


def test_the_usual_number_of_inputs_is_at_most_those_of_the_data_set():
    samples = choose_samples(None, "digits", None, None, usual=5000)()
    assert len(samples.x) == 1500
