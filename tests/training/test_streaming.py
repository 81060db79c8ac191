"""Training on streamed images: runs that learn, resume and agree on several processes, and accumulated gradients."""

import contextlib
import dataclasses
import importlib.util
import itertools
import types
from pathlib import Path

import numpy as np
import pytest
from distributed_cases import ended, start
from test_damage import flip, large_file
from test_distributed import curves
from training_cases import PARTIAL, PARTIAL_DATA, assert_same_bits, authors_network

from nngp_dag import distributed
from nngp_dag.cli.last_words import epochs_in
from nngp_dag.data import Part, load_splits, load_stream
from nngp_dag.errors import CheckpointError, InputError, InputWarning
from nngp_dag.nas import Cell, Genotype
from nngp_dag.training import CellRecipe, Recipe, evaluate, train, train_cell

GENOTYPE = Genotype.from_pairs(
    [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 0), ("max_pool_3x3", 1)] * 2,
    [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)] + [("max_pool_3x3", 0), ("skip_connect", 2)] * 3,
)
SMALL = {"channels": 2, "layers": 3, "epochs": 6, "batch_size": 6, "learning_rate": 0.005, "auxiliary": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a small set of shapes."""
    path = Path(__file__).parents[2] / "experiments" / "shapes.py"
    spec = importlib.util.spec_from_file_location("shapes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = tmp_path_factory.mktemp("data")
    module.write(found, 40, 10, size=40)
    return found


@pytest.mark.nightly
def test_a_streamed_run_resumes_to_the_same_bits_and_is_evaluated_from_its_checkpoint(folder, tmp_path):
    stream = load_stream("shapes", data_dir=folder, size=32)
    recipe = CellRecipe.imagenet(**SMALL, warmup=1)
    whole = train_cell(GENOTYPE, stream, recipe, out=tmp_path / "whole", mesh=distributed.mesh())
    assert whole.history.steps_per_epoch == 36 // 6
    # It trains; whether such a network learns, the test of ten shapes below says.
    assert whole.history.of("train", "loss")[-1, 0] < 0.97 * whole.history.of("train", "loss")[1, 0]

    def stop(_, done, *__):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cell(GENOTYPE, stream, recipe, out=tmp_path / "cut", on_progress=stop, mesh=distributed.mesh())
    resumed = train_cell(GENOTYPE, stream, recipe, out=tmp_path / "cut", resume=True, mesh=distributed.mesh())
    np.testing.assert_array_equal(resumed.history.values, whole.history.values)
    assert_same_bits((resumed.params, resumed.stats), (whole.params, whole.stats))
    again = evaluate(tmp_path / "whole" / "checkpoints" / "cell" / "last", data_dir=folder)
    for part in ("validation", "test"):
        np.testing.assert_allclose(again.of(part, "loss"), whole.history.of(part, "loss")[-1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "damage"), [(0.33, ""), (1.5, "flip"), (1.99, "")])
def test_a_run_resumes_within_an_epoch_to_the_same_bits(stopped, damage, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("nngp_dag.training.trainer._SAVE_EVERY", 0)
    monkeypatch.setattr("nngp_dag.training.trainer._TELL_EVERY", 0)
    stream = load_stream("shapes", data_dir=folder, size=32)
    recipe = Recipe(epochs=2, batch_size=6, learning_rate=0.01, momentum=0.9)
    told = []

    def run(name, on_progress=None, resume=False):
        options = {"seeds": 2, "width": 16, "resume": resume, "out": tmp_path / name, "on_progress": on_progress}
        return train("2_12", stream, recipe, **options)[0]

    def stop(_, done, *__):
        if done == stopped:
            raise KeyboardInterrupt

    def note(_, done, *__):
        told.append((done, [int(folder.name) for folder in begun.glob("*")]))

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", on_progress=stop)
    begun = tmp_path / "cut" / "checkpoints" / "2_12" / "begun"
    step = round(6 * stopped)
    assert [folder.name for folder in begun.iterdir()] == [str(step)]
    assert (
        epochs_in(tmp_path / "cut", 2)() == f"{step // 7} of 2 epochs and the state after step {step} in {tmp_path}/cut"
    )
    with pytest.raises(CheckpointError, match="got one within an epoch"):
        evaluate(begun)
    with contextlib.ExitStack() as stack:
        if damage:
            flip(large_file(begun))
            said = f"state after step {step}, got bytes that differ from those saved; training goes on after epoch 1"
            stack.enter_context(pytest.warns(InputWarning, match=said))
        resumed = run("cut", on_progress=note, resume=True)
    first = 1 if damage else stopped
    assert told[0][0] == first
    # All later steps are kept, also those before a damaged checkpoint.
    kept = [kept for done, kept in told[1:] if done % 1]
    assert kept == [[later] for later in range(round(6 * first) + 1, 13)]
    assert not begun.exists()
    np.testing.assert_array_equal(resumed.history.values, whole.history.values)
    assert_same_bits((resumed.params, resumed.best_params), (whole.params, whole.best_params))


@pytest.mark.slow
def test_the_time_to_the_next_checkpoint_goes_on_over_the_ends_of_epochs(folder, tmp_path, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr("nngp_dag.training.trainer.time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    # An epoch takes at most 4 s for each of its 6 steps and 1 s for itself.
    monkeypatch.setattr("nngp_dag.training.trainer._SAVE_EVERY", 40)
    saved = set()

    def note(*_):
        saved.update(int(checkpoint.name) for checkpoint in tmp_path.glob("run/checkpoints/2_12/begun/*"))

    stream = load_stream("shapes", data_dir=folder, size=32)
    recipe = Recipe(epochs=9, batch_size=6, learning_rate=0.01)
    train("2_12", stream, recipe, width=16, out=tmp_path / "run", checkpoint_every=9, on_progress=note)
    gaps = np.diff([0, *sorted(saved)])
    assert len(gaps) > 2
    assert 6 < gaps.min() <= gaps.max() < 40 / 2


@pytest.mark.nightly
def test_two_processes_stream_to_the_curves_of_one(folder, tmp_path):
    genotype = tmp_path / "genotype.json"
    genotype.write_text(GENOTYPE.to_json())
    options = ["nas", "train", genotype, "--recipe", "imagenet", "--dataset", "shapes", "--data-dir", folder]
    options += ["--image-size", "32", "--channels", "2", "--layers", "3", "--epochs", "3", "--batch-size", "8"]
    options += ["--lr", "0.005", "--warmup", "0", "--auxiliary", "0", "--accumulate", "2"]
    found = ended(start([*options, "--out", tmp_path / "one"], 1), 600)
    found += ended(start([*options, "--out", tmp_path / "two"], 2), 600)
    assert [code for code, *_ in found] == [0, 0, 0], found
    np.testing.assert_allclose(curves(tmp_path / "two"), curves(tmp_path / "one"), rtol=5e-3, atol=1e-3)


@pytest.mark.nightly
def test_a_small_version_learns_ten_shapes(tmp_path):
    path = Path(__file__).parents[2] / "experiments" / "shapes.py"
    spec = importlib.util.spec_from_file_location("shapes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path, 1000, 200)
    stream = load_stream("shapes", data_dir=tmp_path, size=96)
    choices = {"channels": 8, "layers": 3, "epochs": 16, "batch_size": 8, "learning_rate": 0.01, "auxiliary": 0.0}
    found = train_cell(GENOTYPE, stream, CellRecipe.imagenet(**choices, augment=False, color_jitter=False))
    # Guessing has an accuracy of 0.1, with a standard error of 0.02 on 200 images.
    assert found.history.of("test", "accuracy")[-1, 0] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", pytest.param("cross-entropy", marks=pytest.mark.nightly)])
def test_parts_of_a_batch_change_rounding_only_without_batch_norm(loss):
    recipe = dataclasses.replace(PARTIAL, batch_norm=False, loss=loss, batch_size=8)
    # Batches of 8, 8 and 6 in parts of 2 and of 4: the last batch leaves a part of 2 examples.
    runs = [
        train(authors_network("2_12"), PARTIAL_DATA, dataclasses.replace(recipe, accumulate=parts), seeds=2)[0]
        for parts in (1, 2, 4)
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.history.values, runs[0].history.values, rtol=1e-5, atol=1e-6)
    assert np.ptp(runs[0].history.of("train", "loss"), axis=0).min() > 0.01


@pytest.mark.slow
def test_a_part_of_a_batch_is_normalized_by_itself():
    # One step on a batch of two equal halves, in two parts, is the step on one half.
    data = load_splits("digits", subset=8)
    x = np.repeat(data.train.x[:4], 2, axis=0)
    twice = dataclasses.replace(data, train=Part(x, np.repeat(data.train.labels[:4], 2)))
    half = dataclasses.replace(data, train=Part(data.train.x[:4], data.train.labels[:4]))
    whole, parts = (
        train(authors_network("2_12"), given, Recipe(epochs=1, batch_size=size, batch_norm=True, accumulate=k))[0]
        for given, size, k in ((half, 4, 1), (twice, 8, 1))
    )
    np.testing.assert_allclose(parts.history.of("test", "loss"), whole.history.of("test", "loss"), rtol=1e-4)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"warmup": 2}, "`warmup` to be at most `epochs`, 1, got 2; pass fewer, or 0 for none"),
        ({"accumulate": 3}, "`batch_size` to be a multiple of `accumulate`, 3, got 40; change one"),
        ({"color_jitter": True}, "`color_jitter` to be False for images in memory"),
        ({"stem": "imagenet"}, "`stem` to be 'cifar' for a cell of NAS-Bench-201, got 'imagenet'"),
        ({"stem": "none"}, "`stem` to be one of 'cifar', 'imagenet', got 'none'"),
    ],
)
def test_options_that_do_not_fit_are_refused(choices, message):
    data = load_splits("digits", subset=60)
    with pytest.raises(InputError, match=message):
        train_cell(Cell.from_index(10353), data, channels=2, layers=1, epochs=1, batch_size=40, **choices)


def test_the_recipe_of_imagenet():
    recipe = CellRecipe.imagenet(accumulate=6)
    wanted = {"stem": "imagenet", "channels": 48, "layers": 14, "epochs": 250, "batch_size": 768, "learning_rate": 0.5}
    wanted |= {"momentum": 0.9, "weight_decay": 3e-5, "label_smoothing": 0.1, "gradient_clip": 5.0, "auxiliary": 0.4}
    wanted |= {"warmup": 5, "drop_path": 0.0, "augment": True, "color_jitter": True, "cutout": 0, "accumulate": 6}
    assert recipe.as_dict() == wanted
    epochs = np.array([5, 124, 125, 249])
    falling = 0.25 * (1 + np.cos(np.pi * epochs / 250))
    rates = recipe.learning_rates_at(np.array([0, 1, 8, 9, *2 * epochs, *2 * epochs + 1]), 2)
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.5, 0.5, *falling, *falling], atol=1e-7)
