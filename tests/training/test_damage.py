"""Checkpoints that are damaged or from another run: one clear line, never other numbers."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
from training_cases import CODE, EPOCHS, assert_same_bits, authors_network, command, error_line, splits

from nngp_dag.architecture.document import from_document
from nngp_dag.cli import main
from nngp_dag.data import load_splits
from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.storage import checkpoints as stored
from nngp_dag.storage import locked
from nngp_dag.training import Recipe, checkpoints, evaluate, evaluation, train
from nngp_dag.training.rundir import RunDirectory
from nngp_dag.training.tasks import DagTask

NETWORK = authors_network(CODE)


@pytest.fixture(scope="module")
def like(finished, shared_programs):
    """Returns the shapes of the arrays in the last checkpoint of the run."""
    config = json.loads((finished / "config.json").read_text())
    recipe, data = Recipe.from_dict(config["recipe"]), load_splits("sphere", subset=40)
    abstract, _ = shared_programs(DagTask(NETWORK, recipe, data), 1).abstract_state
    return abstract, np.empty((EPOCHS + 1, 3, 3, 1))


@pytest.fixture(scope="module")
def saved(finished, like):
    """Returns the state in this checkpoint, and its document."""
    return checkpoints.restore(last(finished), like)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def last(out):
    return out / "checkpoints" / CODE / "last"


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def flip(file, at=0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


DAMAGES = {"deleted": os.remove, "truncated": truncate, "empty": empty, "flipped": flip}


def large_file(folder):
    """Returns the file with the arrays: the largest, except JSON and copies that orbax does not read."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:1] != b"{"]
    read = [path for path in files if not any(part.startswith("ocdbt.process") for part in path.parts)]
    return max(read, key=lambda path: path.stat().st_size)


@pytest.mark.sample(2)
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_to_any_file_passes_for_other_numbers(finished, like, saved, tmp_path, damage):
    out, (state, document) = finished, saved
    files = sorted(path.relative_to(last(out)) for path in last(out).rglob("*") if path.is_file())
    refused = 0
    for i, file in enumerate(files):
        folder = shutil.copytree(last(out), tmp_path / str(i))
        DAMAGES[damage](folder / file)
        try:
            found, about = checkpoints.restore(folder, like)
        except CheckpointError as error:
            message = str(error)
            refused += message.startswith(f"Expected {folder} to hold an intact checkpoint") and "\n" not in message
        else:
            # Some files only repeat information of others.
            assert_same_bits(found, state)
            assert about == document
    assert refused >= 3


@pytest.mark.parametrize("at", [0.05, 0.3, 0.7, 0.95])
def test_a_flipped_byte_anywhere_in_the_arrays_is_found(finished, like, tmp_path, at):
    folder = shutil.copytree(last(finished), tmp_path / "copy")
    flip(large_file(folder), at)
    with pytest.raises(CheckpointError, match="to hold an intact checkpoint"):
        checkpoints.restore(folder, like)


def test_arrays_that_do_not_match_their_digest(like, saved, tmp_path):
    state, document = saved
    changed = jax.tree.map(np.copy, state)
    jax.tree.leaves(changed)[0].flat[0] += 1
    digest = stored._digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "_digest", lambda *_: document["digest"])
        checkpoints.save(tmp_path / "changed", 2, changed, document["description"])
    assert stored._digest is digest
    with pytest.raises(CheckpointError, match="got bytes that differ from those saved; put an intact copy there"):
        checkpoints.restore(tmp_path / "changed", like)


def test_a_folder_that_is_no_checkpoint(finished, like, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("notes")
    (tmp_path / "file").write_text("text")
    for folder in (tmp_path / "nowhere", tmp_path / "other", tmp_path / "file", finished):
        assert checkpoints.latest(folder) is None
        with pytest.raises(CheckpointError, match=f"Expected {folder} to hold an intact checkpoint .*, got none; put"):
            checkpoints.restore(folder, like)
        got = "got that of a run, .*/checkpoints/2_12/best$" if folder == finished else "an intact .*, got none; put"
        with pytest.raises(CheckpointError, match=got):
            evaluate(folder)


def test_a_checkpoint_of_another_program(like, saved, tmp_path, monkeypatch):
    state, document = saved
    monkeypatch.setattr(stored, "_FORMAT", 99)
    checkpoints.save(tmp_path / "other", 1, state, document["description"])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="got one of another program or version; put an intact copy there"):
        checkpoints.describe(tmp_path / "other")

    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path / "theirs") as manager:
        manager.save(3, args=ocp.args.Composite(weights=ocp.args.StandardSave({"w": np.ones(3)})))
    for call in (lambda folder: checkpoints.restore(folder, like), evaluate):
        with pytest.raises(CheckpointError, match="to hold an intact checkpoint of this network, got ") as info:
            call(tmp_path / "theirs")
        assert "\n" not in str(info.value)


def resized(state, size):
    return jax.tree.map(lambda leaf: np.zeros([size if n == 8 else n for n in leaf.shape], leaf.dtype), state)


def test_arrays_of_another_width_under_the_right_description(like, saved, tmp_path):
    state, document = saved
    for width in (7, 9):
        folder = tmp_path / str(width)
        checkpoints.save(folder, 2, resized(state, width), document["description"])
        with pytest.raises(CheckpointError, match="to hold an intact checkpoint of this network"):
            checkpoints.restore(folder, like)
    less = (state[0]._replace(optimizer=()), state[1])
    checkpoints.save(tmp_path / "less", 2, less, document["description"])
    with pytest.raises(CheckpointError, match="to hold an intact checkpoint of this network"):
        checkpoints.restore(tmp_path / "less", like)


@pytest.mark.parametrize(("features", "classes"), [(5, 10), (64, 11)])
def test_evaluation_on_data_that_do_not_fit(finished, features, classes):
    data = splits(train=40, features=features, classes=classes)
    with pytest.raises(CheckpointError, match="to hold an intact checkpoint of this network, got ") as info:
        evaluate(last(finished), data)
    assert "\n" not in str(info.value)


def test_evaluation_on_data_that_were_others_then(finished, monkeypatch):
    monkeypatch.setattr(evaluation, "load_source", lambda *_, **__: load_splits("sphere", subset=39))
    with pytest.raises(
        CheckpointError, match=r"Expected sphere to hold the data that .* was trained on, got others; pass"
    ):
        evaluate(last(finished))


def test_evaluation_of_another_network(finished):
    for other, message in (
        (authors_network("2_02"), "with dag 2_12, got dag 2_02; pass"),
        (authors_network(CODE, width=9), "with width 8, got width 9; pass"),
        (CODE, "with layer {'Dense': .*'b_std': 0.0.*, got layer {'Dense': .*'b_std': None"),
    ):
        with pytest.raises(CheckpointError, match=f"Expected `network` to be that of .*/last, {message}"):
            evaluate(last(finished), network=other)
    found = evaluate(last(finished), network=NETWORK)
    np.testing.assert_array_equal(found.values, evaluate(last(finished)).values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dag": "2_2x"}, "Expected block 2 of `code` to hold 2 digits"),
        ({"dag": "2_00_000"}, "Expected a path from node 0 to the output node 3"),
        ({"dag": 5}, "Expected the description of a network"),
        ({"dag": {"num_nodes": 2}}, "Expected the description of a network"),
        ({"layer": {"Dense": {"activation": {"Quadrature": "Quadrature(<function f>)"}}}}, "Quadrature"),
        ({"layer": {"Dense": {"color": 3}}}, "Expected the description of a network"),
        ({"layer": {}}, ""),
        ({"width": 0}, "Expected `width` to be a whole number"),
        ({"color": 3}, r"Expected options of `Network` \(.*\), got `color`"),
    ],
)
def test_a_network_that_cannot_be_built_again(saved, tmp_path, change, message):
    state, document = saved
    description = document["description"]
    description = description | {"network": description["network"] | change}
    checkpoints.save(tmp_path / "none", EPOCHS, state, description)
    with pytest.raises(
        CheckpointError, match=f"to describe a network that can be built again, got .*{message}.*; pass `network`"
    ) as info:
        evaluate(tmp_path / "none")
    assert "\n" not in str(info.value)


def test_an_epoch_that_is_saved_is_not_saved_again(saved, like, tmp_path):
    state, document = saved
    # A run that was killed before it saved its last state may be resumed with more epochs.
    for epochs in (EPOCHS, 2 * EPOCHS):
        recipe = document["description"]["recipe"] | {"epochs": epochs}
        checkpoints.save(tmp_path / "last", 2, state, document["description"] | {"recipe": recipe})
    changed = jax.tree.map(np.copy, state)
    jax.tree.leaves(changed)[0].flat[0] += 1
    with pytest.raises(
        CheckpointError, match="to hold the state that this run finds for checkpoint 2, got another; other"
    ):
        checkpoints.save(tmp_path / "last", 2, changed, document["description"])
    assert_same_bits(checkpoints.restore(tmp_path / "last", like)[0], state)


def test_a_checkpoint_of_more_epochs_than_are_asked_for(copy):
    config = json.loads((copy / "config.json").read_text())
    config["recipe"]["epochs"] = EPOCHS - 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=rf"Expected at least the 6 epochs of the checkpoint {last(copy)}, got 5;"
    ):
        resume(copy)


def foreign(description, kind):
    """Returns the description of a run that differs in one setting."""
    changed = json.loads(json.dumps(description))
    if kind == "width":
        changed["network"]["width"] = 9
    elif kind == "dag":
        changed["network"]["dag"] = "2_02"
    elif kind == "recipe":
        changed["recipe"]["learning_rate"] = 0.02
    elif kind == "data":
        changed["data"]["sha256"] = "0" * 64
    elif kind == "seeds":
        changed["seeds"] = [2]
    return changed


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("width", "network.width 9 before, 8 now"),
        ("dag", 'network.dag "2_02" before, "2_12" now'),
        ("recipe", "recipe.learning_rate 0.02 before, 0.01 now"),
        ("data", 'data.sha256 "0000'),
        ("seeds", "seeds [2] before, [0] now"),
    ],
)
@pytest.mark.parametrize("which", ["last", "best"])
def test_a_checkpoint_of_another_run_is_not_resumed(saved, copy, kind, key, which):
    state, document = saved
    folder = copy / "checkpoints" / CODE / which
    shutil.rmtree(folder)
    description = foreign(document["description"], kind) | {"kind": which}
    checkpoints.save(folder, EPOCHS, resized(state, 9) if kind == "width" else state, description)
    with pytest.raises(
        CheckpointError,
        match=rf"Expected the checkpoint .*/{which} to be of this run, "
        rf"got that of another: {re.escape(key)}.*; put the",
    ):
        resume(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": None}, "got null for description.recipe, not an object"),
        ({"seeds": [1.5]}, "got 1.5 for an item of description.seeds, not an integer"),
        ({"data": 5}, "got 5 for description.data, not an object"),
        ({"network": "2_12"}, 'got "2_12" for description.network, not an object'),
    ],
)
def test_checkpoints_of_wrong_types(saved, copy, change, message):
    state, document = saved
    shutil.rmtree(last(copy))
    checkpoints.save(last(copy), EPOCHS, state, document["description"] | change)
    for call in (resume, lambda out: evaluate(last(out))):
        with pytest.raises(CheckpointError, match=f"to hold an intact checkpoint of this network, {message}; put"):
            call(copy)


def test_a_checkpoint_that_states_no_recipe(saved, tmp_path):
    state, document = saved
    description = document["description"] | {"recipe": {"epochs": 1, "batch_size": "a", "color": 3}}
    checkpoints.save(tmp_path / "last", 1, state, description)
    with pytest.raises(CheckpointError, match=r"to state the recipe of a run, got .*color"):
        evaluate(tmp_path / "last")


def test_another_process_at_work_and_a_folder_that_is_deleted(copy, monkeypatch):
    before = files(copy)
    with locked(copy, copy), pytest.raises(OutputError, match=f"no other process to write {copy}, got process"):
        resume(copy)
    assert files(copy) == before

    def deleted(self, *_):
        shutil.rmtree(copy)
        self.log("here")

    monkeypatch.setattr(RunDirectory, "begin", deleted)
    with pytest.raises(OutputError, match=f"Expected the output {copy} to stay while it is written, got one that was"):
        resume(copy)
    assert not copy.exists()


def resume(out):
    config = json.loads((out / "config.json").read_text())
    networks = {name: from_document(network) for name, network in config["networks"].items()}
    data = load_splits("sphere", subset=40)
    return train(networks, data, Recipe.from_dict(config["recipe"]), out=out, resume=True)


def run(capfd, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    assert stop.value.code == 2, captured.err
    return error_line(captured.err)


def files(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.sample(1)
@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped"])
def test_the_command_says_one_line_and_changes_nothing(copy, capfd, damage):
    DAMAGES[damage](large_file(last(copy)))
    before = files(copy)
    for arguments in (("--resume", "--out", copy), ("--evaluate", last(copy))):
        line = run(capfd, "train", *arguments)
        assert f"Expected {last(copy)} to hold an intact checkpoint" in line
        assert "--overwrite" in line
    assert files(copy) == before


def test_a_missing_best_checkpoint_is_said(copy, capfd):
    shutil.rmtree(copy / "checkpoints" / CODE / "best")
    # The run seems to have begun on another machine, which a resumed run notes.
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps(config | {"environment": config["environment"] | {"device": "another"}})
    )
    before = files(copy)
    line = run(capfd, "train", "--resume", "--out", copy)
    assert f"Expected {copy / 'checkpoints' / CODE / 'best'} to hold an intact checkpoint" in line
    assert "got none" in line
    assert files(copy) == before


@pytest.mark.nightly
@pytest.mark.parametrize("arguments", ["resume", "evaluate"])
def test_a_process_of_its_own_says_one_line_too(copy, compilation_cache, arguments):
    """Threads of tensorstore and asyncio write to the file descriptor, not to sys.stderr."""
    large_file(last(copy)).unlink()
    options = ("--resume", "--out", copy) if arguments == "resume" else ("--evaluate", last(copy))
    process = command(["train", *options], compilation_cache)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert f"Expected {last(copy)} to hold an intact checkpoint" in error_line(err)
