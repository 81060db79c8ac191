"""Searches by pruning on disk, their pictures, and the command."""

import csv
import json

import numpy as np
import pytest

from nngp_dag.cli import main
from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.nas import Cell, Genotype, get_space
from nngp_dag.nas.pruning.files import SearchDirectory
from nngp_dag.nas.pruning.measures import Found
from nngp_dag.nas.pruning.plots import plot_cell, plot_trajectory
from nngp_dag.nas.pruning.rounds import Measure, Pruning, prune
from nngp_dag.nas.spaces.any_cell import read_cell


def linear(space, seed=0, name="linear"):
    worth = np.random.default_rng(seed).random(space.shape) + 0.5
    return Measure(
        name,
        lambda m, _: Found(100 + ((m > 0) * worth).sum((1, 2, 3)), ("",) * len(m)),
        True,
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_a_search_on_disk_goes_on_and_ends_the_same(tmp_path, name):
    space = get_space(name)
    pruning, measures = Pruning(repeats=1, per_round=2, shortcut=True), [linear(space), linear(space, 1, "other")]
    whole = SearchDirectory(tmp_path / "whole", space, {"seed": 0})
    assert whole.state() is None
    states = list(prune(space, measures, pruning))
    for state in states:
        whole.save(state)
    state = states[-1]
    cut = SearchDirectory(tmp_path / "cut", space, {"seed": 0})
    search = prune(space, measures, pruning)
    cut.save(next(search))
    assert not (cut.path / "result.json").exists()
    again = SearchDirectory(tmp_path / "cut", space, {"seed": 0})
    for later in prune(space, measures, pruning, again.state()):
        again.save(later, 91.5)
    results = [json.loads((folder.path / "result.json").read_text()) for folder in (whole, again)]
    for key in ("cell", "genotype", "rounds", "evaluated", "skipped", "trajectory", "effective_depth_width"):
        assert results[0][key] == results[1][key]
    assert [result["accuracy"] for result in results] == [None, 91.5]
    text = results[0]["cell"]
    cell = Cell.parse(text) if name == "nasbench201" else Genotype.from_text(text)
    np.testing.assert_array_equal(space.mask_of(cell), state.mask)
    # `nas train` reads these files.
    assert read_cell(str(whole.path / {"nasbench201": "cell.txt", "darts": "genotype.json"}[name])) == cell
    if isinstance(cell, Genotype):
        assert Genotype.from_json(json.dumps(results[0]["genotype"])) == cell
    for folder in (whole, again):
        with (folder.path / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(state.decisions)
        assert {row["outcome"] for row in rows} == {"pruned", "kept", "skipped"}
        assert rows[0].keys() >= {"round", "edge", "change_linear", "rank_linear", "rank_other", "depth", "reason"}
    assert not list(tmp_path.rglob("*.partial"))
    plot_trajectory(state.trajectory, tmp_path / "trajectory.png")
    plot_cell(cell, tmp_path / "cell.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("trajectory", "cell"))


def test_pictures_of_unsound_and_single_measures(tmp_path):
    for row in ({"one": None}, {"one": 2.0}, {"one": 2.0, "two": None}):
        plot_trajectory([row | {"depth": [1.0], "width": [1.0]}] * 2, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 2000


def test_other_searches_and_damage_are_refused(tmp_path):
    space = get_space("nasbench201")
    SearchDirectory(tmp_path / "a", space, {"seed": 0, "images": (1, 2)})
    SearchDirectory(tmp_path / "a", space, {"seed": 0, "images": (1, 2)})
    with pytest.raises(CheckpointError, match=r"search\.seed 0 before, 1 now; pass the old ones, or another output"):
        SearchDirectory(tmp_path / "a", space, {"seed": 1, "images": (1, 2)})
    with pytest.raises(CheckpointError, match=r'got others: search\.space "nasbench201" before, "darts" now; pass'):
        SearchDirectory(tmp_path / "a", get_space("darts"), {"seed": 0, "images": (1, 2)})
    (tmp_path / "a/state.json").write_text('{"mask": 3')
    with pytest.raises(CheckpointError, match=r"state\.json to describe the state of a search, got .*; delete it to"):
        SearchDirectory(tmp_path / "a", space, {"seed": 0, "images": (1, 2)}).state()
    for text, message in (("{", "to describe a search, got"), ("[]", r"a search, got \[\] for the whole, not an")):
        (tmp_path / "a/config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            SearchDirectory(tmp_path / "a", space, {"seed": 0})
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.config.json.x.partial").mkdir()
    SearchDirectory(tmp_path / "b", space, {})
    (tmp_path / "b/config.json").rename(tmp_path / "b/file")
    with pytest.raises(OutputError, match="to be new, empty or hold a search, got other files; choose another"):
        SearchDirectory(tmp_path / "b", space, {})


def arguments(tfds_dir, out, *more):
    return ["nas", "tenas", "--data-dir", str(tfds_dir), "--batch", "8", "--repeats", "1", "--out", str(out), *more]


def failure(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.nightly
def test_the_command_by_exact_kernels(tmp_path, capsys, tfds_dir):
    table = tfds_dir.parent / "nasbench201_cifar10.csv"
    more = ("--dataset", "digits", "--measure", "exact", "--accuracies", str(table))
    options = arguments(tfds_dir, tmp_path / "out", *more)
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert out[0] == result["cell"]
    assert out[1] == f"accuracy {result['accuracy']:.2f} %"
    # With the shortcut, rounds evaluate 12 of 24, 12 of 18 and 12 of 12 candidates, each with the supernet.
    assert (result["evaluated"], result["skipped"]) == (3 * 12 + 4, 12 + 6)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "cell.png", "cell.txt", "config.json", "log.csv", "result.json", "state.json", "trajectory.png",
    }  # fmt: skip
    # A table without the cell removes its accuracy, and a table with it adds it.
    other = tmp_path / "other.csv"
    other.write_text(f"arch_str,a\n{result['cell']},nan\n{Cell.from_index(0)},1\n")
    with pytest.raises(SystemExit):
        main([*options[:-1], str(other)])
    assert capsys.readouterr().out.splitlines()[1] == "accuracy not in the table"
    assert json.loads((tmp_path / "out/result.json").read_text())["accuracy"] is None
    # A finished search has nothing left to do.
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert capsys.readouterr().out.splitlines() == out
    assert json.loads((tmp_path / "out/result.json").read_text()) == result
    assert "got others: search.shortcut true before, false now" in failure(capsys, *options, "--no-shortcut")


@pytest.mark.slow
def test_bad_options_of_the_command(tmp_path, capsys, tfds_dir):
    table = str(tfds_dir.parent / "nasbench201_cifar10.csv")
    for more, message in (
        (("--space", "nats"), "--space to be one of nasbench201, darts, got 'nats'"),
        (("--measure", "luck"), "to be one of 'ntk', 'regions', 'exact', got 'luck'"),
        (("--space", "darts", "--accuracies", table), "--accuracies only with --space nasbench201, got darts"),
        (("--repeats", "0"), "--repeats to be at least 1, got 0"),
        (("--column", "a"), "--column only with --accuracies, got a"),
        (("--measure", "exact", "--measure", "exact"), "to be different ones, got exact, exact"),
        (("--measure", "exact", "--gradients", "some"), "--gradients to be one of 'all', 'reference', got 'some'"),
        (("--dataset", "sphere", "--measure", "ntk"), "`images` to be (n, height, width, channels) for networks"),
    ):
        assert message in failure(capsys, *arguments(tfds_dir, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_says_what_was_flagged_and_fills_in_an_accuracy(tmp_path, capsys, monkeypatch):
    def made(space, *_, **__):
        sound = linear(space, name="exact").evaluate

        def evaluate(mixtures, seed):
            values = sound(mixtures, seed).values
            # One candidate fails in the first round, and all fail in the second.
            live = int((mixtures[0] > 0).sum())
            values[slice(1, 2) if live == 24 else slice(0, len(values) if live == 18 else 0)] = np.nan
            return Found(values, ("",) * len(values))

        return [Measure("exact", evaluate, True)]

    monkeypatch.setattr("nngp_dag.nas.pruning.search.tenas_measures", made)
    options = [
        "nas",
        "tenas",
        "--dataset",
        "digits",
        "--measure",
        "exact",
        "--no-shortcut",
        "--out",
        str(tmp_path / "o"),
    ]

    def printed(*more):
        with pytest.raises(SystemExit) as stop:
            main([*options, *more])
        assert stop.value.code == 0
        return capsys.readouterr().out.splitlines()

    cell, flagged, silent, _ = printed()
    assert flagged == "19 of 54 operations flagged, and pruned last; log.csv has the reasons"
    assert silent == "round 1: the supernet has no value of exact"
    result = tmp_path / "o/result.json"
    assert json.loads(result.read_text())["accuracy"] is None
    table = tmp_path / "table.csv"
    other = next(other for other in map(Cell.from_index, (0, 1)) if str(other) != cell)
    for rows, said, accuracy in (
        (f"{other},1", "accuracy not in the table", None),
        (f"{cell},91.25", "accuracy 91.25 %", 91.25),
    ):
        table.write_text(f"arch_str,a\n{rows}\n")
        assert printed("--accuracies", str(table))[1] == said
        assert json.loads(result.read_text())["accuracy"] == accuracy


@pytest.mark.nightly
@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_the_command_by_networks(tmp_path, capsys, tfds_dir, space):
    with pytest.raises(SystemExit) as stop:
        main(arguments(tfds_dir, tmp_path / "out", "--space", space, "--batch-norm", "frozen"))
    assert stop.value.code == 0
    cell = capsys.readouterr().out.splitlines()[0]
    assert Cell.parse(cell) if space == "nasbench201" else Genotype.from_text(cell)
