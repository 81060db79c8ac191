"""Data sets: the real files, the synthetic set, and every refusal."""

import dataclasses
import doctest
import importlib.resources.abc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest

from nngp_dag.data import DATASETS, Dataset, datasets, load_dataset
from nngp_dag.data import tfds as reader
from nngp_dag.errors import DataError, InputError

MNIST_TEST = "mnist-test.tfrecord-00000-of-00001"


@pytest.fixture
def offline(monkeypatch):
    """Makes tests independent of internet access, and of an undeclared dependency of tensorflow-datasets."""
    requests = pytest.importorskip("requests")

    def refuse(*args, **kwargs):
        raise requests.ConnectionError("Name or service not known")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)


@pytest.fixture
def mnist_copy(tfds_dir, tmp_path) -> Path:
    """Returns a copy of the MNIST test split that a test may damage."""
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json", MNIST_TEST):
        shutil.copy(tfds_dir / "mnist" / "3.0.1" / name, folder)
    return folder


def one_line(info: pytest.ExceptionInfo) -> str:
    message = str(info.value)
    assert "\n" not in message
    return message


# --- digits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "size"), [("train", 1500), ("test", 297), ("all", 1797)])
def test_digits_splits(split, size):
    digits = load_dataset("digits", split=split)
    assert digits.images.shape == (size, 8, 8, 1)
    assert digits.images.dtype == np.float32
    assert digits.labels.dtype == np.int64
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert digits.num_classes == 10


def test_digits_train_and_test_are_the_whole():
    train, test, whole = (load_dataset("digits", split=split) for split in ("train", "test", "all"))
    assert np.array_equal(np.concatenate([train.images, test.images]), whole.images)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), whole.labels)
    assert np.bincount(whole.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_subset_is_the_beginning():
    part, whole = load_dataset("digits", subset=7), load_dataset("digits")
    assert np.array_equal(part.images, whole.images[:7])
    assert part.labels.tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_digits_leave_tensorflow_alone():
    code = (
        "import sys; from nngp_dag.data import load_dataset, normalize; normalize(load_dataset('digits')); "
        "print(sorted({'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- sphere ---------------------------------------------------------------------------------------


def test_sphere_is_on_the_sphere_and_uses_every_class():
    sphere = load_dataset("sphere", subset=2000, dimension=20)
    assert sphere.images.shape == (2000, 20)
    np.testing.assert_allclose(np.sum(sphere.images.astype(np.float64) ** 2, axis=1), 20, rtol=1e-6)
    # Each coordinate of a uniform point has mean 0 and mean square 1. The bounds are 5 standard errors.
    assert np.abs(sphere.images.mean(axis=0)).max() < 5 / np.sqrt(2000)
    assert np.abs((sphere.images**2).mean(axis=0) - 1).max() < 5 * np.sqrt(2 / 2000)
    assert np.bincount(sphere.labels, minlength=10).min() > 0


def test_sphere_is_determined_by_its_seed():
    first, again, other = (load_dataset("sphere", seed=seed) for seed in (3, 3, 4))
    assert first.images.shape == (256, 64)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.images, other.images)


def test_sphere_subset_is_the_beginning():
    part, whole = load_dataset("sphere", subset=10), load_dataset("sphere")
    assert np.array_equal(part.images, whole.images[:10])
    assert np.array_equal(part.labels, whole.labels[:10])


def test_sphere_splits_share_the_teacher_but_no_point():
    train, test = (load_dataset("sphere", split=split, subset=4000, dimension=3) for split in ("train", "test"))
    assert set(map(bytes, train.images)).isdisjoint(map(bytes, test.images))
    nearest = np.argmax(test.images @ train.images.T, axis=1)
    # In three dimensions 4,000 points are dense, so that only points near a class boundary may differ.
    assert np.mean(train.labels[nearest] == test.labels) > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": 0}, r"Expected `dimension` to be a whole number, at least 1, got 0"),
        ({"dimension": "64"}, r"Expected `dimension` to be a finite number, got '64'"),
        ({"seed": -1}, r"Expected `seed` to be a whole number, at least 0, got -1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_sphere_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        load_dataset("sphere", **arguments)


# --- tensorflow-datasets --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.slow
def test_mnist_train_begins_as_documented(tfds_dir):
    mnist = load_dataset("mnist", subset=256, data_dir=tfds_dir)
    assert mnist.images.shape == (256, 28, 28, 1)
    assert mnist.labels[:10].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]
    assert mnist.num_classes == 10
    shorter = load_dataset("mnist", subset=10, data_dir=str(tfds_dir))
    assert np.array_equal(shorter.images, mnist.images[:10])


@pytest.mark.slow
def test_mnist_test_is_the_original(tfds_dir):
    mnist = load_dataset("mnist", split="test", data_dir=tfds_dir)
    assert np.bincount(mnist.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.rint(mnist.images.astype(np.float64) * 255).sum() == 264_923_200


@pytest.mark.slow
def test_cifar10(tfds_dir):
    cifar = load_dataset("cifar10", split="test", data_dir=tfds_dir)
    assert cifar.images.shape == (10_000, 32, 32, 3)
    assert cifar.images.dtype == np.float32
    assert (cifar.images.min(), cifar.images.max()) == (0, 1)
    assert np.bincount(cifar.labels).tolist() == [1000] * 10


@pytest.mark.slow
def test_pixels_and_labels_are_the_stored_ones(tfds_dir):
    cifar = load_dataset("cifar10", subset=20, data_dir=tfds_dir)
    import tensorflow_datasets as tfds

    stored = tfds.load("cifar10", data_dir=tfds_dir, download=False, split="train[:20]")
    for image, label, example in zip(cifar.images, cifar.labels, tfds.as_numpy(stored), strict=True):
        assert np.array_equal(image, example["image"] / np.float32(255))
        # The rule in the README of the file: example n has class n % 10.
        assert label == example["label"] == int(example["id"].decode().removeprefix("train_")) % 10


@pytest.mark.slow
def test_tensorflow_sees_no_gpu(tfds_dir):
    load_dataset("mnist", subset=1, data_dir=tfds_dir)
    import tensorflow as tf

    assert tf.config.get_visible_devices("GPU") == []


@pytest.mark.slow
def test_a_running_tensorflow_keeps_its_devices(tfds_dir, monkeypatch):
    import tensorflow as tf

    def refuse(*args):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    assert len(load_dataset("mnist", subset=1, data_dir=tfds_dir).labels) == 1


@pytest.mark.slow
@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize(("before", "during"), [(None, "3"), ("1", "3"), ("0", "0")])
def test_log_level_is_restored(tfds_dir, monkeypatch, before, during):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if before is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", before)
    seen = []
    builder = reader._builder

    def spy(*args):
        seen.append(os.environ["TF_CPP_MIN_LOG_LEVEL"])
        return builder(*args)

    monkeypatch.setattr(reader, "_builder", spy)
    load_dataset("mnist", subset=1, data_dir=tfds_dir)
    assert seen == [during]
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == before


def test_absent_set_offline(offline, tmp_path):
    with pytest.raises(DataError, match=r"cannot be reached \(ConnectionError\).*use digits") as info:
        load_dataset("fashion_mnist", data_dir=tmp_path)
    assert f"got no {tmp_path}/fashion_mnist/3.0.1, and" in one_line(info)
    assert "as `data_dir`, connect" in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_absent_set_in_the_default_folder(offline, monkeypatch, tmp_path):
    from tensorflow_datasets.core import constants

    default = tmp_path / "home" / "tensorflow_datasets"
    monkeypatch.setattr(constants, "DATA_DIR", str(default))
    monkeypatch.setattr("tensorflow_datasets.core.utils.file_utils.list_data_dirs", lambda **kwargs: [default])
    with pytest.raises(DataError, match="cannot be reached") as info:
        load_dataset("cifar100")
    assert str(default / "cifar100") in one_line(info)
    assert list(tmp_path.iterdir()) == []


class StubBuilder:
    """A builder of a set that is not on disk. Its server answers, but the download fails half-way."""

    def __init__(self, root: Path, error: Exception):
        self.data_path = root / "cifar100" / "3.0.2"
        self.url_infos = {"https://example.invalid/cifar.tar.gz": None}
        self.error = error

    def download_and_prepare(self, download_dir):
        (Path(download_dir) / "half").write_bytes(b"half")
        self.data_path.parent.mkdir()
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("Checksum mismatch\nfor the file"),
            r"the download failed \(RuntimeError: Checksum mismatch\);",
        ),
        (
            ModuleNotFoundError("No module named 'missing_one'", name="missing_one"),
            r"Expected the package missing_one to be installed.*run pip install missing_one",
        ),
    ],
)
def test_a_failed_download_leaves_nothing(monkeypatch, tmp_path, error, message):
    import requests
    import tensorflow_datasets as tfds

    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: SimpleNamespace())
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: StubBuilder(data_dir, error))
    with pytest.raises(DataError, match=message) as info:
        load_dataset("cifar100", data_dir=tmp_path)
    assert f"{tmp_path}/cifar100/3.0.2" in one_line(info)
    assert list(tmp_path.iterdir()) == []


def test_data_dir_that_does_not_exist(tmp_path):
    with pytest.raises(
        DataError, match=r"Expected `data_dir` to be an existing folder.*got .*/nowhere, none of that name;"
    ) as info:
        load_dataset("mnist", data_dir=tmp_path / "nowhere")
    one_line(info)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / MNIST_TEST, 100_000), "got DataLossError: truncated record"),
        (lambda folder: (folder / MNIST_TEST).unlink(), "got NotFoundError: .*No such file"),
        (
            lambda folder: (folder / "dataset_info.json").write_text("{"),
            "got ParseError: Failed to construct",
        ),
        (lambda folder: (folder / "dataset_info.json").unlink(), "got KeyError: .*splits. is empty"),
    ],
    ids=["truncated", "no records", "broken info", "no info"],
)
def test_damaged_files(mnist_copy, damage, message):
    damage(mnist_copy)
    with pytest.raises(DataError, match=f"to hold readable files of mnist, {message}") as info:
        load_dataset("mnist", split="test", subset=1000, data_dir=mnist_copy.parents[1])
    assert str(mnist_copy.parent) in one_line(info)


# --- arguments ------------------------------------------------------------------------------------


def test_names():
    assert DATASETS == ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped", "sphere")
    with pytest.raises(DataError, match=r"one of digits, mnist, .*sphere or a set of tensorflow-datasets, got 'foo';"):
        load_dataset("foo")


@pytest.mark.parametrize("name", DATASETS)
def test_unknown_split(name):
    with pytest.raises(DataError, match=rf"Expected `split` of {name} to be one of train, test.*got 'valid'"):
        load_dataset(name, split="valid")


@pytest.mark.parametrize("subset", [0, -3])
def test_subset_below_one(subset):
    with pytest.raises(DataError, match=f"Expected `subset` to be an integer of at least 1, got {subset}"):
        load_dataset("mnist", subset=subset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 3}, "Expected `name` to be the name of a data set, got 3; pass one"),
        ({"name": "digits", "subset": "3"}, "Expected `subset` to be an integer of at least 1, got '3'"),
        ({"name": "digits", "subset": 2.5}, "Expected `subset` to be an integer of at least 1, got 2.5"),
        ({"name": "mnist", "data_dir": 3}, "Expected `data_dir` to be a path, got 3"),
        ({"name": "mnist", "data_dir": "a\0b"}, "to be a path, got 'a"),
    ],
)
def test_arguments_of_another_type(monkeypatch, arguments, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the tests' checks of types
    with pytest.raises(DataError, match=message) as info:
        load_dataset(**arguments)
    one_line(info)


def test_subset_beyond_the_end(tfds_dir):
    with pytest.raises(DataError, match=r"at most 297, the number of examples in split 'test' of digits, got 298"):
        load_dataset("digits", split="test", subset=298)
    with pytest.raises(DataError, match=r"at most 20000, the number of examples in split 'train' of cifar10"):
        load_dataset("cifar10", subset=20_001, data_dir=tfds_dir)


# --- Dataset --------------------------------------------------------------------------------------

IMAGES = np.full((3, 2, 2, 1), 0.5, np.float32)
LABELS = np.array([0, 1, 2])
NAN = np.array([[1.0], [np.nan], [np.inf]], np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "message"),
    [
        (IMAGES.astype(np.float64), LABELS, 3, r"`images` to be a float32 array.*got float64 of shape"),
        (IMAGES[..., 0], LABELS, 3, r"`images` to be a float32 array.*of shape \(3, 2, 2\)"),
        (IMAGES[:0], LABELS[:0], 3, r"with at least one example, got float32 of shape \(0, 2, 2, 1\)"),
        (IMAGES, LABELS[:2], 3, r"`labels` to be an int64 array of shape \(3,\).*got int64 of shape \(2,\)"),
        (IMAGES, LABELS.astype(np.int32), 3, r"`labels` to be an int64 array.*got int32 of shape \(3,\)"),
        (NAN, LABELS, 3, r"`images` to be finite, got NaN or infinity in image 1"),
        (IMAGES * 255, LABELS, 3, r"`images` to lie in \[0, 1\], got values from 127.5 to 127.5; divide"),
        (IMAGES, LABELS, 2, r"`labels` to lie in 0 to num_classes - 1 = 1, got 2 for image 2"),
        (IMAGES, LABELS - 1, 3, r"`labels` to lie in 0 to num_classes - 1 = 2, got -1 for image 0"),
    ],
)
def test_dataset_refusals(images, labels, num_classes, message):
    with pytest.raises(DataError, match=message):
        Dataset("mine", images, labels, num_classes)


def test_dataset_is_frozen():
    mine = Dataset("mine", IMAGES, LABELS, num_classes=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.num_classes = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_examples_run():
    assert doctest.testmod(datasets).failed == 0
