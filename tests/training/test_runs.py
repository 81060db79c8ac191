"""Runs on disk: their files, resumption with the same bits, and refusals."""

import csv
import dataclasses
import json
import re
import shutil
import threading

import jax
import numpy as np
import pytest
from training_cases import PARTIAL, PARTIAL_DATA, assert_same_bits, assert_same_run, authors_network, scalars, splits

import nngp_dag as nd
from nngp_dag.architecture.document import to_document
from nngp_dag.errors import CheckpointError, InputError, OutputError
from nngp_dag.training import Recipe, checkpoints, evaluate, train, trainer
from nngp_dag.training.history import FIELDS, METRICS, PARTS
from nngp_dag.training.rundir import RunDirectory, folder_names
from nngp_dag.training.tasks import DagTask

pytestmark = pytest.mark.usefixtures("shared_programs", "small_blocks", "quick_picture")

# Two networks with equal live edges, so that one program serves both.
NETWORKS = {"one": authors_network("2_20_201"), "twin": authors_network("0_20_201")}
DATA, RECIPE = PARTIAL_DATA, PARTIAL
CONSTANT = Recipe(epochs=4, batch_size=8, learning_rate=0.05)
SEEDS = [3, 0]
PNG = b"\x89PNG\r\n\x1a\n"


class StoppedError(Exception):
    """An error that ends a run half-way."""


@pytest.fixture(scope="module")
def quick_picture():
    """Draws curves once only, because matplotlib takes half a second."""
    draw, drawn = trainer.plot_training, []

    def plot(histories, path, title, **options):
        if not drawn:
            draw(histories, path, title, **options)
            drawn.append(path.read_bytes())
        path.write_bytes(drawn[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "plot_training", plot)
        yield


def go(out, networks=NETWORKS, data=DATA, recipe=RECIPE, seeds=SEEDS, **options):
    return train(networks, data, recipe, seeds=seeds, out=out, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_programs, small_blocks, quick_picture):
    """Returns the folder and the results of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, go(out)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "copy")


def states(out):
    """Returns the epoch, digest and description of every checkpoint of a run."""
    return {
        (name, kind): checkpoints.describe(out / "checkpoints" / name / kind)
        for name in NETWORKS
        for kind in ("last", "best")
    }


# --- what is there afterwards ---------------------------------------------------------------------


@pytest.mark.slow
def test_files_of_a_run(whole):
    out, runs = whole
    names = {"config.json", "train.log", "curves.csv", "curves.png", "tensorboard", "checkpoints"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "curves.png").read_bytes()[:8] == PNG
    rows = list(csv.DictReader((out / "curves.csv").read_text().splitlines()))
    assert tuple(rows[0]) == FIELDS
    assert len(rows) == len(NETWORKS) * (RECIPE.epochs + 1) * len(SEEDS)
    at, rates = iter(rows), RECIPE.learning_rates_at(3 * np.arange(RECIPE.epochs), 3)
    for result in runs:
        for epoch in range(RECIPE.epochs + 1):
            for s, seed in enumerate(SEEDS):
                row = next(at)
                found = [row[key] for key in ("dag", "seed", "epoch", "step")]
                assert found == [result.name, str(seed), str(epoch), str(3 * epoch)]
                assert row["learning_rate"] == (str(rates[epoch - 1]) if epoch else "")
                for part in PARTS:
                    for metric in METRICS:
                        assert float(row[f"{part}_{metric}"]) == result.history.of(part, metric)[epoch, s]


@pytest.mark.slow
def test_configuration_of_a_run(whole):
    out, runs = whole
    config = json.loads((out / "config.json").read_text())
    assert Recipe.from_dict(config["recipe"]) == RECIPE
    assert config["networks"] == {name: to_document(network) for name, network in NETWORKS.items()}
    assert config["seeds"] == SEEDS
    assert {name: config["data"][name] for name in PARTS} == {"train": 22, "validation": 7, "test": 9}
    assert config["models"]["one"]["parameters"] == runs[0].summary.parameters
    assert {"python", "nngp-dag", "jax", "jaxlib", "numpy"} <= set(config["environment"])


def test_log_of_a_run(whole):
    lines = (whole[0] / "train.log").read_text().splitlines()
    assert lines[0] == DATA.statement
    assert sum(" epoch " in line for line in lines) == len(NETWORKS) * (RECIPE.epochs + 1)
    assert "parameters" in lines[1]


def test_tensorboard_events_of_a_run(whole):
    out, runs = whole
    for result in runs:
        for s, seed in enumerate(SEEDS):
            found = scalars(out / "tensorboard" / result.name / f"seed-{seed}")
            assert len(found) == (RECIPE.epochs + 1) * 9 + RECIPE.epochs
            for epoch in range(RECIPE.epochs + 1):
                for part in PARTS:
                    for metric in METRICS:
                        value = result.history.of(part, metric)[epoch, s]
                        assert found[f"{metric}/{part}", epoch] == np.float32(value)
            assert found["learning_rate", 2] == np.float32(0.05)
            assert found["learning_rate", 4] < np.float32(0.05)


def test_checkpoints_of_a_run(whole, shared_programs):
    out, runs = whole
    program = shared_programs(DagTask(NETWORKS["one"], RECIPE, DATA), len(SEEDS))
    abstract, abstract_best = program.abstract_state
    for result in runs:
        (last, curves), document = checkpoints.restore(
            out / "checkpoints" / result.name / "last", (abstract, np.empty(result.history.values.shape))
        )
        assert_same_bits((last.params, last.stats), (result.params, result.stats))
        assert curves.tobytes() == result.history.values.tobytes()
        assert document["epoch"] == RECIPE.epochs
        best, document = checkpoints.restore(out / "checkpoints" / result.name / "best", abstract_best)
        assert_same_bits(
            (best.params, best.stats, best.epoch), (result.best_params, result.best_stats, result.best_epoch)
        )
        assert document["description"]["kind"] == "best"
        # One checkpoint of each kind is kept.
        assert len(list((out / "checkpoints" / result.name / "last").iterdir())) == 1


@pytest.mark.slow
def test_evaluation_finds_what_the_run_found(whole):
    out, runs = whole
    for result in runs:
        last = evaluate(out / "checkpoints" / result.name / "last", DATA)
        best = evaluate(str(out / "checkpoints" / result.name / "best"), DATA)
        assert (last.name, last.seeds, last.epochs) == (result.name, tuple(SEEDS), (4, 4))
        assert best.epochs == tuple(result.best_epoch)
        for part in PARTS[1:]:
            for metric in METRICS:
                curve = result.history.of(part, metric)
                assert (last.of(part, metric) == curve[-1]).all()
                assert (best.of(part, metric) == curve[result.best_epoch, [0, 1]]).all()


@pytest.mark.slow
def test_a_network_is_built_again_from_its_checkpoint(tmp_path):
    # No code expresses the parallel edges, and no name the activation.
    erf = nd.Dense(activation="erf", b_std=0.1)
    dag = nd.Dag.from_edges([("in", "a", erf), ("in", "a", "skip"), ("a", "out", "weighted")])
    layer = nd.Dense(activation=nd.activations.leaky_relu(0.3), w_std=1.2)
    network = nd.Network(dag, layer=layer, aggregation="mean", stem=nd.Dense(activation=None), width=8)
    nameless = nd.Network("2", layer=nd.Dense(activation=nd.activations.Quadrature(jax.nn.mish)), width=8)
    for result in go(tmp_path / "run", {"mine": network, "nameless": nameless}, recipe=CONSTANT):
        folder = tmp_path / "run" / "checkpoints" / result.name / "last"
        if result.name == "nameless":
            with pytest.raises(CheckpointError, match=r"got one that cannot: .*Quadrature.*; pass `network`"):
                evaluate(folder, DATA)
        found = evaluate(folder, DATA, network=nameless if result.name == "nameless" else None)
        for metric in METRICS:
            np.testing.assert_array_equal(found.of("test", metric), result.history.of("test", metric)[-1])


@pytest.mark.nightly
def test_evaluation_on_other_data_without_training_examples_to_spare(whole):
    small = splits(train=3, validation=2, test=5, classes=4, seed=9)
    found = evaluate(whole[0] / "checkpoints" / "one" / "last", small)
    assert np.isfinite(found.values).all()


def test_same_seeds_same_bits_and_nothing_depends_on_the_folder(whole):
    _, runs = whole
    assert_same_run(go(None), runs)


# --- resuming -------------------------------------------------------------------------------------


def stop_at(monkeypatch, moment, name, epoch):
    """Makes a run end at a moment of an epoch: before or after its curves, or before one of its checkpoints."""
    record, save = trainer.Run._record, checkpoints.save

    def recording(self, at, values):
        here = (self.name, at) == (name, epoch)
        if here and moment == "before the curves":
            raise StoppedError
        record(self, at, values)

    def saving(folder, at, state, description):
        here = (description["name"], at) == (name, epoch)
        if here and moment == f"before {description['kind']}":
            raise StoppedError
        save(folder, at, state, description)

    def on_progress(at_name, done, total, loss):
        if (at_name, done) == (name, epoch) and moment == "after":
            raise StoppedError

    monkeypatch.setattr(trainer.Run, "_record", recording)
    monkeypatch.setattr(checkpoints, "save", saving)
    return on_progress


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize(
    ("moment", "name", "epoch", "every"),
    [
        ("before best", "one", 1, 1),
        ("after", "one", 3, 2),
        ("before last", "twin", 3, 1),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                ("before last", "one", 1, 1),
                ("before best", "one", 3, 1),
                ("before last", "one", 4, 2),
                ("after", "one", 4, 1),
                ("before the curves", "twin", 0, 1),
                ("before best", "twin", 2, 1),
                ("after", "twin", 2, 1),
                ("before last", "twin", 4, 1),
            )
        ),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(whole, tmp_path, moment, name, epoch, every):
    whole_out, runs = whole
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_progress = stop_at(patch, moment, name, epoch)
        with pytest.raises(StoppedError):
            go(out, checkpoint_every=every, on_progress=on_progress)
    seen = []
    resumed = go(out, resume=True, checkpoint_every=every, on_progress=lambda *at: seen.append(at))
    assert_same_run(resumed, runs)
    assert (out / "curves.csv").read_bytes() == (whole_out / "curves.csv").read_bytes()
    assert states(out) == states(whole_out)
    for run_name in NETWORKS:
        place = f"tensorboard/{run_name}/seed-{SEEDS[0]}"
        assert scalars(out / place) == scalars(whole_out / place)
    # The run continued, and did not start again.
    first = next(done for at, done, *_ in seen if at == name)
    saved = epoch - (moment != "after")
    assert first == max(0, saved // every * every)


def test_resuming_twice_and_resuming_what_is_done(whole, copy):
    _, runs = whole
    before = states(copy), (copy / "curves.csv").read_bytes()
    assert_same_run(go(copy, resume=True), runs)
    assert (states(copy), (copy / "curves.csv").read_bytes()) == before


@pytest.mark.nightly
def test_more_epochs_under_a_constant_schedule(tmp_path):
    longer = dataclasses.replace(CONSTANT, epochs=6)
    long = go(tmp_path / "long", recipe=longer)
    go(tmp_path / "short", recipe=CONSTANT)
    assert_same_run(go(tmp_path / "short", recipe=longer, resume=True), long)
    assert (tmp_path / "short" / "curves.csv").read_bytes() == (tmp_path / "long" / "curves.csv").read_bytes()


def test_overwriting_leaves_nothing_of_the_run_before(copy, tmp_path):
    (copy / "notes.txt").write_text("mine")
    [result] = go(copy, networks={"twin": NETWORKS["twin"]}, overwrite=True)
    assert (copy / "notes.txt").read_text() == "mine"
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["twin"]
    assert [path.name for path in (copy / "tensorboard").iterdir()] == ["twin"]
    assert json.loads((copy / "config.json").read_text())["networks"] == {"twin": to_document(NETWORKS["twin"])}
    assert len((copy / "curves.csv").read_text().splitlines()) == 1 + len(list(result.history.rows()))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wdth": 8}, r"Expected options of the network \(activation, .*\), got `wdth`; did you mean 'width'"),
        ({"epochs": 8}, r"Expected `epochs` in `recipe`, got it as .*; pass Recipe\(epochs=\.\.\.\)"),
        ({"seeds": 0}, "Expected at least one seed, all distinct and from 0 to 2.32 - 1, got 0"),
        ({"seeds": -2}, "Expected at least one seed, all distinct and from 0 to 2.32 - 1, got -2"),
        ({"seeds": []}, r"Expected at least one seed, all distinct and from 0 to 2.32 - 1, got \[\]"),
        ({"seeds": [1, 1]}, r"Expected at least one seed, all distinct and from 0 to 2.32 - 1, got \[1, 1\]"),
        ({"seeds": [1, -1]}, r"Expected at least one seed, all distinct and from 0 to 2.32 - 1, got \[1, -1\]"),
        ({"seeds": [2**32]}, r"Expected at least one seed, all distinct and from 0 to 2.32 - 1, got \[4294967296\]"),
        (
            {"width": 10**5},
            "Expected networks of at most 8,589,934,592 parameters in all, got 1 of 2 with 10,001,000,000",
        ),
        ({"checkpoint_every": 0}, "Expected `checkpoint_every` to be a whole number, at least 1, got 0"),
        ({"resume": True}, "Expected `out` to name the run to resume, got None; pass the folder of the run"),
        ({"networks": []}, "Expected at least one network, got none"),
        ({"networks": {}}, "Expected at least one network, got none"),
        ({"networks": ["2", nd.Dag.from_code("2")]}, "Expected networks whose texts differ, got 2, 2; pass"),
        ({"recipe": Recipe(batch_size=23)}, "Expected `batch_size` to be at most the 22 training examples, got 23"),
        ({"checkpoint_every": 1.5}, "Expected `checkpoint_every` to be a whole number, at least 1, got 1.5"),
        ({"config": {"a": np.ones(2)}}, "Expected `config` to hold what JSON can, got .*; pass plain numbers"),
        ({"width": 0}, "Expected `width` to be a whole number, at least 1, got 0"),
        ({"parameterization": "mup"}, "Expected `parameterization` to be one of .*, got 'mup'"),
        ({"image_readout": "max"}, "Expected `image_readout` to be one of 'flatten', 'global-average', got 'max'"),
        ({"readout": False}, "Expected a network with a readout, got one without"),
    ],
)
def test_refused_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        nd.train(**{"networks": "2", "data": DATA, "recipe": Recipe(batch_size=8), "width": 4} | options)


def refused(error, message, out, **options):
    """Asserts that a run is refused in one line and that its folder stays as it was."""
    files = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else []
    before = [path.read_bytes() for path in files]
    with pytest.raises(error, match=message) as info:
        go(out, **options)
    assert "\n" not in str(info.value)
    assert [path.read_bytes() for path in files] == before


def test_a_folder_with_a_run_is_not_touched_unasked(copy, tmp_path):
    refused(OutputError, r"to be new or empty, got an existing one; pass `resume=True` .*, `overwrite=True`", copy)
    refused(InputError, "Expected `resume` or `overwrite`, got both; leave one out", copy, resume=True, overwrite=True)
    (tmp_path / "file").write_text("")
    refused(OutputError, "to be a directory, got a file; choose another output", tmp_path / "file")
    refused(OutputError, "to be a directory, got a file; choose another output", tmp_path / "file", resume=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"Expected .*config.json to describe a run, got none; leave out `resume=True` to start one"),
        ("{", "to describe a run, got Expecting property name"),
        ("[]", r"to describe a run, got \[\] for the whole, not an object"),
        ('{"recipe": {}}', "to describe a run, got no networks"),
        ("3", "to describe a run, got "),
    ],
)
def test_nothing_to_resume(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    refused(CheckpointError, message, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"recipe": dataclasses.replace(RECIPE, learning_rate=0.1)},
            r"the same settings as in .*config\.json, got others: recipe\.learning_rate 0\.05 before, 0\.1 now; pass",
        ),
        ({"recipe": dataclasses.replace(RECIPE, epochs=3)}, r"recipe\.epochs 4 before, 3 now; pass the old ones, or"),
        ({"seeds": [0, 3]}, r"others: seeds \[3, 0\] before, \[0, 3\] now; pass the old ones, or another output"),
        ({"width": 9}, r"others: networks\.one\.width 8 before, 9 now; pass the old ones"),
        ({"parameterization": "ntk"}, r'networks\.one\.parameterization "standard" before, "ntk" now; pass the old'),
        ({"b_std": None}, r"networks\.one\.layer\.Dense\.b_std 0\.0 before, none now; pass the old ones"),
        (
            {"networks": NETWORKS | {"twin": authors_network("0_20_202")}},
            r'networks\.twin\.dag "0_20_201" before, "0_20_202" now; pass the old ones, or another output',
        ),
        (
            {"networks": {"one": NETWORKS["one"]}},
            r'networks\.twin {"dag": "0_20_201", .* before, none now; pass the old ones, or another output',
        ),
        ({"data": splits(train=22, classes=4, seed=1)}, r'data\.sha256 "\w{64}" before, "\w{64}" now; pass'),
        ({"data": splits(train=24, classes=4)}, r"data\.train 22 before, 24 now; pass"),
    ],
)
def test_another_run_is_not_resumed(copy, options, message):
    refused(CheckpointError, message, copy, resume=True, **options)


def test_more_epochs_under_a_schedule_that_depends_on_them(copy):
    longer = dataclasses.replace(RECIPE, epochs=6)
    refused(CheckpointError, r"recipe\.epochs 4 before, 6 now; pass", copy, resume=True, recipe=longer)


def test_data_of_your_own_must_be_given_again(whole):
    with pytest.raises(CheckpointError, match=r"to name a data set that can be loaded, got data of your own; pass"):
        evaluate(whole[0] / "checkpoints" / "one" / "last")


def test_folders_have_names_that_every_system_can_hold():
    devices = ["CON", "nul", "Aux.txt", "com1", "LPT9.a.b", "prn.", " con ", "COM\u00b9"]
    names = [
        "a/b",
        "a-b",
        "..",
        "A-B",
        "x" * 300,
        "x" * 300 + "y",
        "DAG#1",
        "2_21_112",
        "\u00df",
        "ss",
        "",
        "a.",
        *devices,
    ]
    folders = folder_names(names)
    assert folders == folder_names(names[::-1])
    assert (folders["2_21_112"], folders["DAG#1"], folders["a."]) == ("2_21_112", "DAG-1", "a")
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    for folder in folders.values():
        assert 0 < len(folder) < 100
        assert re.fullmatch(r"[\w-]([\w.-]*[\w-])?", folder)
        stem = folder.upper().partition(".")[0]
        assert stem not in {"CON", "PRN", "AUX", "NUL"}
        assert not re.fullmatch("(COM|LPT)[0-9]", stem)


def test_a_run_keeps_its_checkpoints_under_these_names(tmp_path):
    directory = RunDirectory(tmp_path, ["CON", "con"])
    last, other = (directory.checkpoints(name, "last") for name in ("CON", "con"))
    assert last == tmp_path / "checkpoints" / folder_names(["CON", "con"])["CON"] / "last"
    assert str(last).lower() != str(other).lower()


def test_parameters_keep_their_types_and_a_leading_axis(whole):
    for leaf in jax.tree.leaves((whole[1][0].params, whole[1][0].best_params)):
        assert isinstance(leaf, np.ndarray)
        assert (leaf.dtype, len(leaf)) == (np.float32, len(SEEDS))


def test_who_stops_does_not_wait_for_the_next_program(shared_programs):
    first, second = NETWORKS["one"], authors_network("2_12")
    released, waited = threading.Event(), []

    def build(task, num_seeds, mesh=None):
        program = shared_programs(task, num_seeds)
        if task.network == second:
            patch.setattr(program, "compile", lambda: waited.append(released.wait(60)))
        return program

    def stop(*_):
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Program", build)
        with pytest.raises(StoppedError):
            train([first, second], DATA, RECIPE, seeds=SEEDS, on_progress=stop)
        assert waited == []
        released.set()
