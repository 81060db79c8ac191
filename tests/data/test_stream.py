"""Images that are streamed: order, rows, crops and parts, in both file formats, and damaged files."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from nngp_dag.data import ImageStream, load_dataset, load_source, load_stream
from nngp_dag.data.records import TfRecords
from nngp_dag.errors import DataError

TRAIN, TEST = 30, 11


@pytest.fixture(scope="module")
def shapes():
    path = Path(__file__).parents[2] / "experiments" / "shapes.py"
    spec = importlib.util.spec_from_file_location("shapes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_split_is_streamed_as_it_is_loaded(tfds_dir):
    whole = load_dataset("mnist", split="test", data_dir=tfds_dir, subset=20)
    stream = load_stream("mnist", data_dir=tfds_dir, size=28, subset=30, eval_subset=20)
    assert stream.sizes == {"train": 30, "validation": 20, "test": 20}
    found = list(stream.batches("test", 8))
    assert np.concatenate([labels for _, labels in found]).tolist() == whole.labels.tolist()
    [images] = {len(images) for images, _ in found[:2]}
    assert images == 8
    # Evaluation enlarges 28 pixels to 32 and takes the middle, so that the middle pixel stays among its neighbors.
    pixels = found[0][0][:, 14, 14].astype(int)
    around = np.round(whole.images[:8, 13:16, 13:16, 0] * 255)
    assert (pixels == pixels[:, :1]).all()
    assert (pixels[:, 0] >= around.min(axis=(1, 2)) - 1).all()
    assert (pixels[:, 0] <= around.max(axis=(1, 2)) + 1).all()
    first, again = (next(stream.batches("train", 30, seed=0, epoch=epoch)) for epoch in (1, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert sorted(first[1]) == sorted(next(stream.batches("train", 30, seed=0, epoch=2))[1])


@pytest.fixture(
    scope="module",
    params=[pytest.param("tfrecord", marks=pytest.mark.slow), pytest.param("array_record", marks=pytest.mark.slow)],
)
def folder(request, shapes, tmp_path_factory):
    """Returns a folder with the set of shapes, of 40 pixels a side."""
    path = tmp_path_factory.mktemp(request.param)
    shapes.write(path, TRAIN, TEST, size=40, file_format=request.param)
    return path


def test_parts_are_read_once_an_epoch_in_an_order_of_seed_and_epoch(folder, shapes):
    stream = load_stream("shapes", data_dir=folder, size=35)
    assert stream.sizes == {"train": 27, "validation": 3, "test": TEST}
    assert (stream.input_shape, stream.num_classes) == ((35, 35, 3), 10)
    # The images as they were drawn, at the size and place of evaluation: 40 pixels scaled to 40, and 35 of these.
    drawn = [example for _, example in shapes.examples(TRAIN, 0, 40)]
    inner = np.array([example["image"][2:37, 2:37] for example in drawn], float)
    order = {}
    for seed, epoch in ((0, 1), (0, 2), (1, 1)):
        found = list(stream.batches("train", 8, seed=seed, epoch=epoch, crops=False))
        assert [len(labels) for _, labels in found] == [8, 8, 8, 3]
        images, labels = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        assert images.dtype == np.uint8
        # JPEG changes pixels little, so that the nearest image as drawn is the one that was stored.
        nearest = [int(np.abs(inner - image).mean(axis=(1, 2, 3)).argmin()) for image in images]
        assert max(np.abs(inner[i] - image).mean() for i, image in zip(nearest, images, strict=True)) < 20
        assert [drawn[i]["label"] for i in nearest] == labels.tolist()
        assert len(set(nearest)) == 27
        order[seed, epoch] = nearest
    assert len({tuple(numbers) for numbers in order.values()}) == 3
    assert len({frozenset(numbers) for numbers in order.values()}) == 1


def test_batches_start_anywhere_and_processes_read_their_rows(folder):
    stream = load_stream("shapes", data_dir=folder, size=24)
    whole = list(stream.batches("train", 8, seed=3, epoch=2))
    for (images, labels), (there, same) in zip(
        whole[2:], stream.batches("train", 8, seed=3, epoch=2, start=2), strict=True
    ):
        np.testing.assert_array_equal(images, there)
        np.testing.assert_array_equal(labels, same)
    halves = [stream.batches("train", 8, seed=3, epoch=2, rows={8: slice(a, a + 4), 3: slice(None)}) for a in (0, 4)]
    for (images, labels), *parts in zip(whole[:3], *halves, strict=False):
        np.testing.assert_array_equal(images, np.concatenate([part[0] for part in parts]))
        np.testing.assert_array_equal(labels, np.concatenate([part[1] for part in parts]))
    # Crops differ from epoch to epoch.
    assert any((a[0] != b[0]).any() for a, b in zip(whole, stream.batches("train", 8, seed=3, epoch=3), strict=True))


def test_a_source_loads_the_same_stream(folder):
    stream = load_stream("shapes", data_dir=folder, size=16, subset=5, eval_subset=2, held_out=4)
    assert stream.sizes == {"train": 5, "validation": 2, "test": 2}
    again = load_source(json.loads(json.dumps(dict(stream.source))), data_dir=folder)
    assert isinstance(again, ImageStream)
    assert again.fingerprint == stream.fingerprint
    other = load_stream("shapes", data_dir=folder, size=16, subset=6, eval_subset=2, held_out=4)
    assert other.fingerprint["sha256"] != stream.fingerprint["sha256"]
    assert {"train", "validation", "test"} == set(again.records)
    parts = [frozenset(numbers.tolist()) for records, numbers in stream.records.values()][:2]
    assert not parts[0] & parts[1]


def test_normalization_is_that_of_imagenet(folder):
    stream = load_stream("shapes", data_dir=folder, size=8)
    found = np.asarray(stream.normalized(jnp.full((1, 1, 1, 3), 0.5)))
    expected = (0.5 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 28}, "`subset` to be at most 27, of the 30 training images of shapes, got 28"),
        ({"held_out": 30}, "`held_out` to be at most 29, of the 30 training images of shapes, got 30"),
        ({"held_out": 0}, "`held_out` to be an integer of at least 1, got 0"),
    ],
)
def test_more_images_than_there_are_are_refused(folder, options, message):
    with pytest.raises(DataError, match=message):
        load_stream("shapes", data_dir=folder, **options)


def test_damaged_files_are_refused(folder, tmp_path):
    [file] = folder.glob("shapes/1.0.0/shapes-test*")
    if "tfrecord" not in file.name:
        pytest.skip("the damage is to a TFRecord file")
    data = file.read_bytes()
    records = TfRecords([file], [TEST])
    assert len(records) == TEST
    # The same bytes as by the library.
    tf = pytest.importorskip("tensorflow")
    stored = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    assert [records[i] for i in range(TEST)] == stored
    for count, damaged in ((TEST, data[:-5]), (TEST, data + b"0"), (TEST + 1, data), (TEST - 1, data), (TEST, b"")):
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"damaged to hold {count} whole records, got others; put an intact copy"):
            TfRecords([path], [count])[0]
