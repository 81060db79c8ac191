"""The command train: its files, its output, and every refusal in one line."""

import csv
import json
import re
import shutil

import pytest
from cli_cases import run
from training_cases import CODE, EPOCHS, OPTIONS, authors_network, error_line, scalars

from nngp_dag.architecture.document import to_document
from nngp_dag.training import Recipe, checkpoints, tasks
from nngp_dag.training.history import FIELDS
from nngp_dag.training.program import Program

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def rows_of(out):
    return list(csv.DictReader((out / "curves.csv").read_text().splitlines()))


# --- runs -----------------------------------------------------------------------------------------


def test_files(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("config.json", "train.log", "curves.csv", "curves.png", "tensorboard", "checkpoints")
    }
    config = json.loads((finished / "config.json").read_text())
    chosen = {"batch_size": 16, "momentum": 0.9, "nesterov": True, "epochs": 6, "learning_rate": 0.01}
    assert config["recipe"] == Recipe(**chosen).as_dict()
    assert config["networks"] == {CODE: to_document(authors_network(CODE))}
    assert config["data"]["source"] == {"name": "sphere", "subset": 40, "scale_inputs": False}
    assert config["options"]["dag"] == [CODE]
    assert config["seeds"] == [0]
    for package in ("nngp-dag", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "python"):
        assert re.match(r"\d+\.\d+", config["environment"][package])
    rows = rows_of(finished)
    assert tuple(rows[0]) == FIELDS
    assert [row["step"] for row in rows] == [str(3 * epoch) for epoch in range(EPOCHS + 1)]
    assert (finished / "curves.png").read_bytes()[:8] == PNG
    found = scalars(finished / "tensorboard" / CODE / "seed-0")
    assert len(found) == 9 * (EPOCHS + 1) + EPOCHS
    for row in rows:
        assert found["accuracy/test", int(row["epoch"])] == pytest.approx(float(row["test_accuracy"]), rel=1e-6)
    for kind in ("last", "best"):
        assert checkpoints.latest(finished / "checkpoints" / CODE / kind) == EPOCHS


def test_what_a_run_prints(capsys, copy):
    shutil.rmtree(copy)
    status, out, err = run(capsys, *OPTIONS, "--out", copy)
    assert (status, err) == (0, "")
    assert "sphere: 40 images for training, a subset, 5 for validation" in out
    # There are 64 features, width 8 and 10 classes, and all layers have biases.
    for number in (64 * 8 + 8, 8 * 8 + 8, 8 * 10 + 10, 64 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * 10 + 10):
        assert str(number) in out
    assert f"After {EPOCHS} epochs, 1 seed;" in out
    rows = rows_of(copy)
    best = max(rows[1:], key=lambda row: float(row["validation_accuracy"]))
    for cell in (rows[-1]["test_accuracy"], rows[-1]["train_accuracy"], best["test_accuracy"]):
        assert f"{float(cell) * 100:.2f}" in out
    assert f"wrote {copy}/curves.csv" in out


def test_evaluation_prints_the_last_row_of_the_curves(capsys, finished):
    status, out, err = run(capsys, "train", "--evaluate", finished / "checkpoints" / CODE / "last")
    assert (status, err) == (0, "")
    lines = [[cell.strip() for cell in re.split("[│┃|]", line) if cell.strip()] for line in out.splitlines()]
    row = rows_of(finished)[-1]
    for part in ("validation", "test"):
        loss, accuracy, of_classes = (float(row[f"{part}_{m}"]) for m in ("loss", "accuracy", "class_accuracy"))
        assert ["0", str(EPOCHS), part, f"{loss:.4f}", f"{accuracy:.2%}", f"{of_classes:.2%}"] in lines
    assert sum("train" in line for line in lines) == 1


@pytest.mark.slow
def test_resuming_takes_the_options_from_the_run(capsys, copy, finished):
    before = (copy / "curves.csv").read_bytes()
    status, _, err = run(capsys, "train", "--resume", "--out", copy)
    assert (status, err) == (0, "")
    assert (copy / "curves.csv").read_bytes() == before
    config = json.loads((copy / "config.json").read_text())
    assert config.pop("resumed_in") == []
    assert config == json.loads((finished / "config.json").read_text())
    assert run(capsys, *OPTIONS, "--resume", "--out", copy)[0] == 0


# --- refusals -------------------------------------------------------------------------------------

SMALL = ("--dataset", "sphere", "--subset", "40", "--batch-size", "16", "--width", "8", "--epochs", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nothing",), "No such option"),
        (("--width", "wide"), "Invalid value for '--width'"),
        (("--width", "-3"), "Expected --width to be at least 1, got -3"),
        (("--conv", "0"), "Expected --conv to be at least 1, got 0"),
        (("--epochs", "-1"), "Expected --epochs to be a whole number, at least 1, got -1"),
        (("--batch-size", "0"), "Expected --batch-size to be a whole number, at least 1, got 0"),
        (("--seeds", "-2"), "Expected --seeds to be at least 1, got -2"),
        (("--seeds", "0"), "Expected --seeds to be at least 1, got 0"),
        (("--subset", "-5"), "Expected --subset to be at least 1, got -5"),
        (("--checkpoint-every", "0"), "Expected --checkpoint-every to be at least 1, got 0"),
        (("--lr", "-1"), "Expected --learning-rate to be above 0, got -1.0"),
        (("--lr", "nan"), "Expected --learning-rate to be a finite number, got nan"),
        (("--momentum", "1"), "Expected --momentum in [0, 1), got 1.0"),
        (("--nesterov",), "Expected --momentum above 0 with --nesterov, got 0"),
        (("--weight-decay", "-1"), "Expected --weight-decay to be at least 0, got -1.0"),
        (("--warmup", "9"), "Expected --warmup to be at most --epochs, 2, got 9"),
        (("--schedule", "linear"), "Expected --schedule to be one of 'constant', 'multistep', 'cosine', got 'linear'"),
        (("--milestone", "1"), "Expected no --milestone with --schedule 'constant', got (1,)"),
        (("--loss", "hinge"), "Expected --loss to be one of 'cross-entropy', 'squared', got 'hinge'"),
        (("--parameterization", "mup"), "Expected --parameterization to be one of"),
        (("--activation", "rely"), "Expected --activation to be one of"),
        (("--aggregation", "max"), "Expected --aggregation to be one of"),
        (("--image-readout", "max", "--conv", "3"), "Expected --image-readout to be one of"),
        (
            ("--image-readout", "global-average"),
            "Expected --image-readout beside --conv, got it alone; leave it out",
        ),
        (("--milestone", "3"), "Expected no --milestone with --schedule 'constant', got (3,)"),
        (("--b-std", "-1"), "Expected --b-std to be at least 0, got -1.0; leave it out for no bias"),
        (("--order", "other"), "Expected --order to be one of 'linear-act', 'act-linear', got 'other'"),
        (("--batch-size", "41"), "Expected --batch-size to be at most the 40 training examples, got 41; lower it"),
        (
            ("--conv", "3"),
            "Expected images (height, width, channels) for convolutions and pooling, got inputs of shape (64,); take",
        ),
        (("--dag", "2_2x"), "Expected block 2 of `code` to hold 2 digits"),
        (("--dag", "2_00_000"), "Expected a path from node 0 to the output node 3"),
        (("--dag", "2", "--dag", "2"), "Expected every --dag once, got 2, 2"),
        (("--dataset", "nothing"), "Expected `name` to be one of digits"),
        (("--dataset", "mnist", "--data-dir", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--resume", "--out", "nowhere"), "nowhere/config.json to describe a run, got none"),
        (("--resume", "--overwrite"), "Expected --resume or --overwrite, got both; leave one out"),
        (("--evaluate", "nowhere"), "Expected only --data-dir beside --evaluate, got dataset, subset, batch_size"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "train", *SMALL, *arguments)
    assert status == 2
    assert message in error_line(err)
    assert list(tmp_path.iterdir()) == []


def tree(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (OPTIONS, "to be new or empty, got an existing one; pass --resume to go on with it, --overwrite"),
        (
            ("train", "--resume", "--width", "9"),
            "networks.2_12.width 8 before, 9 now; pass the old ones, or another",
        ),
        (("train", "--resume", "--seeds", "3"), "got others: seeds [0] before, [0, 1, 2] now; pass the old"),
        (("train", "--resume", "--epochs", "3"), "got others: recipe.epochs 6 before, 3 now; pass the old"),
        (("train", "--resume", "--dag", "2_02"), 'networks.2_02 none before, {"dag": "2_02", "layer": {"Dense": '),
        (("train", "--resume", "--parameterization", "ntk"), '.parameterization "standard" before, "ntk" now; pass'),
        (("train", "--resume", "--activation", "erf"), '.layer.Dense.activation "relu" before, "erf" now; '),
        (("train", "--resume", "--subset", "36"), "got others: data.train 40 before, 36 now; pass the"),
        (("train", "--resume", "--overwrite"), "Expected --resume or --overwrite, got both; leave one out"),
        (("train", "--resume", "--momentum", "0.5"), "recipe.momentum 0.9 before, 0.5 now"),
    ],
)
def test_a_run_is_not_touched_by_another(capsys, copy, arguments, message):
    before = tree(copy)
    status, text, err = run(capsys, *arguments, "--out", copy)
    assert status == 2
    assert message in error_line(err)
    assert "FLOPs" not in text + err
    assert tree(copy) == before


def test_a_file_is_no_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        status, _, err = run(capsys, *OPTIONS, "--out", out)
        assert status == 2
        assert f"Expected the output {out}" in error_line(err)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"networks": {}, "recipe": {}, "seeds": [], "data": {}}'])
def test_a_configuration_that_is_none(capsys, copy, text):
    (copy / "config.json").write_text(text)
    status, _, err = run(capsys, "train", "--resume", "--out", copy)
    assert status == 2
    error_line(err)


@pytest.mark.slow
def test_a_resumed_run_says_where_it_went_on(capsys, copy):
    config = json.loads((copy / "config.json").read_text())
    before = config["environment"] | {"device": "another"}
    (copy / "config.json").write_text(json.dumps(config | {"environment": before}))
    for _ in range(2):
        assert run(capsys, "train", "--resume", "--out", copy)[0] == 0
    found = json.loads((copy / "config.json").read_text())
    assert found["environment"] == before
    assert found["resumed_in"] == [config["environment"]]
    lines = (copy / "train.log").read_text().splitlines()
    assert sum("bits may differ from an unbroken run" in line for line in lines) == 1


def test_other_versions_do_not_resume(capsys, copy):
    config = json.loads((copy / "config.json").read_text())
    before = config["environment"] | {"jax": "0.0.1"}
    (copy / "config.json").write_text(json.dumps(config | {"environment": before}))
    status, _, err = run(capsys, "train", "--resume", "--out", copy)
    assert status == 2
    assert f"Expected jax 0.0.1, by which the results in {copy} were computed, got" in error_line(err)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resumed_in": 5}, "got 5 for resumed_in, not a list"),
        ({"networks": 5}, "got 5 for networks, not an object"),
        ({"networks": {CODE: 5}}, f"networks.{CODE} 5 before, {{"),
        ({"seeds": [1.5]}, "got 1.5 for an item of seeds, not an integer"),
        ({"seeds": None}, "got null for seeds, not a list"),
        ({"environment": "here"}, "for environment, not an object"),
        ({"recipe": {"epochs": "6"}}, 'got "6" for recipe.epochs, not an integer'),
        ({"options": {"dag": 5}}, "got 5 for options.dag, not a list"),
        ({"options": {"seeds": 1.5}}, "got 1.5 for options.seeds, not an integer"),
        ({"options": {"order": None}}, "got null for options.order, not text"),
        ({"options": {"order": "x"}}, "got 'x' as order, which is one of linear-act, act-linear"),
        ({"options": {"width": True}}, "got true for options.width, not an integer"),
        ({"options": {"milestone": ["1"]}}, 'got "1" for an item of options.milestone, not an integer'),
    ],
)
def test_configurations_of_wrong_types(capsys, copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    if "options" in change:
        change = {"options": config["options"] | change["options"]}
    (copy / "config.json").write_text(json.dumps(config | change))
    status, _, err = run(capsys, "train", "--resume", "--out", copy)
    assert status == 2
    assert message in error_line(err)


def test_only_runs_are_overwritten(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    status, _, err = run(capsys, *OPTIONS, "--overwrite", "--out", tmp_path)
    assert status == 2
    assert "to hold a run to replace, got other files; choose another --out" in error_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("stable", "options", "advice"),
    [
        (0.005, (), "stable rate is 0.005: lower --learning-rate below it"),
        (0.5, (), "stable rate is 0.5, at infinite width: lower --learning-rate"),
        pytest.param(
            0.5,
            ("--weight-decay", "9"),
            "is 0.5, without weight decay: lower --learning-rate or --weight-decay",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_divergence_is_one_line(capsys, tmp_path, monkeypatch, stable, options, advice):
    run_epoch = Program.run_epoch

    def diverge(self, *arguments):
        state, best, metrics, losses = run_epoch(self, *arguments)
        return state, best, metrics, losses * float("nan")

    monkeypatch.setattr(Program, "run_epoch", diverge)
    monkeypatch.setattr(tasks, "stable_learning_rate", lambda *_: stable)
    status, _, err = run(capsys, *OPTIONS, *options, "--out", tmp_path / "run")
    assert status == 2
    line = error_line(err)
    assert "got nan at step 0 (epoch 1) of 2_12, seed 0, at learning rate 0.01; the kernel's largest " in line
    assert line.rstrip(" │\n").endswith(advice)


# --- options that only a long run shows -----------------------------------------------------------


@pytest.mark.nightly
def test_three_dags_of_the_paper_and_every_option(capsys, tmp_path):
    out = tmp_path / "run"
    options = ("--subset", "40", "--batch-size", "16", "--width", "4", "--epochs", "4", "--seeds", "2", "--conv", "3")
    more = ("--schedule", "multistep", "--milestone", "2", "--milestone", "3", "--warmup", "1", "--batch-norm")
    rest = ("--loss", "squared", "--parameterization", "ntk", "--weight-decay", "0.01", "--momentum", "0.5")
    status, text, err = run(capsys, "train", *options, *more, *rest, "--quiet", "--out", out)
    assert (status, err) == (0, "")
    assert len({row["dag"] for row in rows_of(out)}) == 3
    assert len(rows_of(out)) == 3 * 5 * 2
    assert "±" in text
    assert text.count("a forward pass of one example") == 3
    rates = [float(row["learning_rate"]) for row in rows_of(out)[2:10:2]]
    assert rates == pytest.approx([0.05 / 3, 0.05, 0.005, 0.0005], rel=1e-5)
    folders = list((out / "checkpoints").iterdir())
    assert len(folders) == 3
    for folder in folders:
        assert run(capsys, "train", "--evaluate", folder / "best")[0] == 0
