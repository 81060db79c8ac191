"""Training, validation and test parts: sizes, order, and every refusal."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from nngp_dag.data import NORMALIZATION, Dataset, Splits, load_dataset, load_splits, normalize, splits
from nngp_dag.data import tfds as reader
from nngp_dag.data.splits import Part
from nngp_dag.errors import DataError

CHANNELS = {"digits": 1, "mnist": 1, "fashion_mnist": 1, "cifar10": 3, "cifar100": 3, "svhn_cropped": 3}


def rows(x):
    return [image.tobytes() for image in x]


@pytest.fixture
def numbered(monkeypatch):
    """Makes data sets of 203 training and 40 test images, whose pixels encode their numbers."""

    def load(name, *, split="train", subset=None, data_dir=None):
        size, offset = (203, 0) if split == "train" else (40, 500)
        numbers = np.arange(size, dtype=np.float32) + offset
        images = np.broadcast_to((numbers / 1000)[:, None, None, None], (size, 2, 2, CHANNELS[name]))
        return Dataset(name, images.copy(), np.arange(size) % 10, 10)

    monkeypatch.setattr(splits, "load_dataset", load)


def numbers(part, name):
    constants = NORMALIZATION[name]
    assert constants is not None
    mean, std = constants
    pixels = part.x[:, 0, 0, 0] * std[0] + mean[0]
    return np.rint(pixels * 1000).astype(int)


# --- how parts come about -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANNELS)
def test_a_tenth_is_held_out_and_no_image_is_in_two_parts(numbered, name):
    data = load_splits(name)
    train, validation, test = (numbers(part, name) for part in data.parts.values())
    # The training part is nine tenths, rounded down, as in the code of the authors.
    assert (len(train), len(validation), len(test)) == (182, 21, 40)
    assert sorted([*train, *validation]) == list(range(203))
    assert test.tolist() == list(range(500, 540))
    for part, of in ((data.train, train), (data.validation, validation), (data.test, test - 500)):
        assert part.labels.tolist() == (of % 10).tolist()
        assert part.x.dtype == np.float32
    stored_order = list(range(182))
    if name.startswith("cifar"):
        assert train.tolist() == stored_order
        assert "the last tenth of the training images as stored" in data.statement
    else:
        assert train.tolist() != stored_order
        assert np.array_equal(np.concatenate([train, validation]), np.random.default_rng(0).permutation(203))
        assert "a random tenth of the training images (seed 0)" in data.statement
    assert np.array_equal(load_splits(name).train.x, data.train.x)


def test_a_subset_is_the_beginning_and_leaves_the_other_parts_alone(numbered):
    for name in ("mnist", "cifar10"):
        whole, part = load_splits(name), load_splits(name, subset=50)
        assert np.array_equal(part.train.x, whole.train.x[:50])
        assert np.array_equal(part.train.labels, whole.train.labels[:50])
        for ours, theirs in ((part.validation, whole.validation), (part.test, whole.test)):
            assert np.array_equal(ours.x, theirs.x)
        assert len(load_splits(name, subset=182).train.x) == 182
        with pytest.raises(
            DataError, match=rf"Expected `subset` to be at most 182, the size of the training part of {name}, got 183"
        ):
            load_splits(name, subset=183)


@pytest.mark.parametrize("subset", [0, -5])
def test_subset_below_one(subset):
    with pytest.raises(DataError, match=f"Expected `subset` to be an integer of at least 1, got {subset}"):
        load_splits("digits", subset=subset)


def test_the_statement_names_the_numbers(numbered):
    assert load_splits("mnist", subset=50).statement == (
        "mnist: 50 images for training, a subset, 21 for validation (a random tenth of the training images (seed 0)), "
        "40 for testing; normalized by mean (0.1307,) and std (0.3081,)"
    )
    cifar = load_splits("cifar10", scale_inputs=True).statement
    assert cifar.startswith("cifar10: 182 images for training, 21 for validation (the last tenth")
    assert "0.49139968" in cifar
    assert "0.2023" in cifar
    assert cifar.endswith("then scaled to |x|² = d")


def test_the_source_loads_the_same_again():
    data = load_splits("digits", subset=40, scale_inputs=True)
    assert data.source == {"name": "digits", "subset": 40, "scale_inputs": True}
    again = load_splits(**data.source)
    for ours, theirs in zip(data.parts.values(), again.parts.values(), strict=True):
        assert np.array_equal(ours.x, theirs.x)
        assert np.array_equal(ours.labels, theirs.labels)


def test_digits():
    data = load_splits("digits")
    assert {name: part.x.shape for name, part in data.parts.items()} == {
        "train": (1350, 8, 8, 1),
        "validation": (150, 8, 8, 1),
        "test": (297, 8, 8, 1),
    }
    stored = normalize(load_dataset("digits"))
    # Some pictures of digits occur several times, so that sorted lists are compared, not sets.
    assert sorted(rows(data.train.x) + rows(data.validation.x)) == sorted(rows(stored))
    assert np.array_equal(data.test.x, normalize(load_dataset("digits", split="test")))
    assert "1,350 images for training, 150 for validation" in data.statement
    assert "297 for testing" in data.statement


def test_scaled_inputs_have_squared_norms_of_the_number_of_features():
    plain, scaled = load_splits("digits", subset=30), load_splits("digits", subset=30, scale_inputs=True)
    for ours, theirs in zip(scaled.parts.values(), plain.parts.values(), strict=True):
        assert ours.x.shape == theirs.x.shape
        norms = np.square(ours.x.astype(np.float64)).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(norms, 64, rtol=1e-5)
        assert np.square(theirs.x).sum(axis=(1, 2, 3)).std() > 1


@pytest.mark.parametrize("subset", [1, 9, 10, 100, 230])
def test_the_sphere_has_as_many_points_as_asked_for(subset):
    data = load_splits("sphere", subset=subset)
    assert len(data.train.x) == subset
    assert len(data.validation.x) >= 1
    assert len(data.test.x) == 256
    assert set(rows(data.train.x)).isdisjoint(rows(data.validation.x))


def test_the_sphere_without_a_subset():
    data = load_splits("sphere")
    assert (len(data.train.x), len(data.validation.x), len(data.test.x)) == (230, 26, 256)
    assert "not normalized" in data.statement


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "sizes"), [("mnist", (54_000, 6_000, 10_000)), ("cifar10", (18_000, 2_000, 10_000))])
def test_the_real_sets(tfds_dir, name, sizes):
    data = load_splits(name, data_dir=tfds_dir)
    assert tuple(len(part.x) for part in data.parts.values()) == sizes
    for size in sizes:
        assert f"{size:,}" in data.statement
    # Almost no picture occurs twice. Parts that overlap would share a tenth of them.
    train, validation, test = (set(rows(part.x)) for part in data.parts.values())
    assert len(train & validation) <= 3
    assert len(train & test) <= 3
    assert len(train) >= sizes[0] - 20
    for part in data.parts.values():
        # The classes have the same frequencies in every part as in the whole.
        assert np.abs(np.bincount(part.labels, minlength=10) / len(part.labels) - 0.1).max() < 0.03
        assert abs(part.x.mean()) < 0.1
        assert abs(part.x.std() - 1) < 0.3


# --- other sets of tensorflow-datasets ------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Returns a folder of tensorflow-datasets with small sets."""
    tfds = reader._import_tfds()
    import tensorflow as tf

    root = tmp_path_factory.mktemp("tfds")

    def write(name, splits=("train", "test"), *, shape=(6, 5, 3), drawn=(6, 5, 3), config="small", **features):
        rng = np.random.default_rng(0)
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=3),
        } | features
        pixels = {split: rng.integers(0, 200, (20, *drawn)).astype(np.uint8) for split in splits}
        of_tensors: Any = tf.data.Dataset.from_tensor_slices  # whose annotations leave dicts out
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            config=config,
            data_dir=root,
            features=tfds.features.FeaturesDict(features),
            split_datasets={
                split: of_tensors({"image": images, "label": np.arange(20) % 3}).map(
                    lambda example: {key: example[key] for key in features}
                )
                for split, images in pixels.items()
            },
        )
        return root, pixels

    return write


def test_other_sets_are_normalized_by_their_own_training_part(store):
    root, pixels = store("tiny_images", ("train", "validation"))
    data = load_splits("tiny_images/small", data_dir=root, subset=10)
    assert {name: part.x.shape for name, part in data.parts.items()} == {
        **{"train": (10, 6, 5, 3), "validation": (2, 6, 5, 3), "test": (20, 6, 5, 3)}
    }
    # Examples are shuffled once, when the files are written.
    whole = load_dataset("tiny_images/small", data_dir=root)
    assert sorted(rows(whole.images)) == sorted(rows(pixels["train"] / np.float32(255)))
    order = np.random.default_rng(0).permutation(20)
    training = whole.images[order[:18]]
    mean, std = training.mean(axis=(0, 1, 2)), training.std(axis=(0, 1, 2))
    np.testing.assert_allclose(data.train.x, (training[:10] - mean) / std, atol=2e-3)
    np.testing.assert_array_equal(data.train.labels, whole.labels[order[:10]])
    assert sorted(data.test.labels) == sorted(np.arange(20) % 3)
    assert data.num_classes == 3
    assert "20 for testing (its validation split); normalized by mean (0." in data.statement


def test_sets_that_are_no_labeled_images_of_one_size_are_refused(store):
    tfds = reader._import_tfds()
    for name, choices, message in (
        ("varying", {"shape": (None, None, 3)}, r"images of varying size \(None, None, 3\)"),
        ("numbered", {"label": tfds.features.Scalar(np.int64)}, "no class `label`"),
        ("vectors", {"image": tfds.features.Tensor(shape=(6, 5, 3), dtype=np.uint8)}, "no `image`"),
        ("trained", {"splits": ("train",)}, "`split` of trained to be one of train, got 'test'"),
    ):
        root, _ = store(name, **choices)
        with pytest.raises(DataError, match=message) as refused:
            load_splits(name, data_dir=root)
        assert "\n" not in str(refused.value)


# --- Splits ---------------------------------------------------------------------------------------

X, LABELS = np.zeros((3, 2), np.float32), np.array([0, 1, 2])
GOOD = Part(X, LABELS)
NAN = np.array([[0, np.nan], [0, 0], [0, 0]], np.float32)


@pytest.mark.parametrize("place", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(X[:0], LABELS[:0]), r"Expected the PLACE part to hold inputs \(N, ...\) and as many integer labels"),
        (Part(X, LABELS[:2]), r"got shapes \(3, 2\) and \(2,\) of int64"),
        (Part(X, LABELS[:, None]), r"got shapes \(3, 2\) and \(3, 1\) of int64"),
        (Part(X, LABELS.astype(np.float64)), r"got shapes \(3, 2\) and \(3,\) of float64"),
        (Part(X, LABELS - 1), r"Expected labels from 0 to 2, got -1 to 1 in the PLACE part"),
        (Part(X, LABELS + 1), r"Expected labels from 0 to 2, got 1 to 3 in the PLACE part"),
        (Part(NAN, LABELS), "Expected finite inputs, got NaN or infinity in the PLACE part"),
        (Part(np.inf + X, LABELS), "Expected finite inputs, got NaN or infinity in the PLACE part"),
    ],
)
def test_refusals(place, part, message):
    parts: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), GOOD) | {place: part}
    with pytest.raises(DataError, match=message.replace("PLACE", place)):
        Splits("mine", **parts, num_classes=3)


def test_lists_are_no_arrays():
    with pytest.raises(DataError, match="Expected NumPy arrays, got list and ndarray in the train part"):
        Splits("mine", Part(X.tolist(), LABELS), GOOD, GOOD, num_classes=3)  # pyright: ignore[reportArgumentType]


def test_a_fingerprint_tells_data_apart():
    first, same = (load_splits("digits", subset=30).fingerprint for _ in range(2))
    assert first == same
    assert {name: first[name] for name in ("name", "train", "validation", "test")} == {
        **{"name": "digits", "train": 30, "validation": 150, "test": 297}
    }
    assert first["source"] == {"name": "digits", "subset": 30, "scale_inputs": False}
    digests = {first["sha256"], load_splits("digits", subset=30, scale_inputs=True).fingerprint["sha256"]}
    for parts in ((GOOD, GOOD, GOOD), (GOOD, Part(X + 1, LABELS), GOOD), (GOOD, GOOD, Part(X, LABELS[::-1]))):
        digests.add(Splits("mine", *parts, 3).fingerprint["sha256"])
    assert len(digests) == 5


def test_parts_of_different_shapes():
    with pytest.raises(DataError, match=r"one shape, got \(5,\) in the test part and \(2,\) in the train part"):
        Splits("mine", GOOD, GOOD, Part(np.zeros((3, 5), np.float32), LABELS), num_classes=3)


def test_splits_are_frozen():
    mine = Splits("mine", GOOD, GOOD, GOOD, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.num_classes = 4  # pyright: ignore[reportAttributeAccessIssue]
