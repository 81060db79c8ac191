"""Data sets as plain NumPy arrays: bundled, synthetic, and read through tensorflow-datasets.

TensorFlow reads files and does nothing else here: it is imported only inside the function that loads such a
set, and it never sees a GPU.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from nngp_dag.data.paths import found_at
from nngp_dag.errors import DataError, as_path, did_you_mean, shorten, shown
from nngp_dag.graph.operations import check_whole

_SPLITS: Final = {
    "digits": ("train", "test", "all"),
    "mnist": ("train", "test"),
    "fashion_mnist": ("train", "test"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "svhn_cropped": ("train", "test", "extra"),
    "sphere": ("train", "test"),
}

DATASETS: Final = tuple(_SPLITS)
"""The names with splits and constants of their own."""
BUILT_IN: Final = ("digits", "sphere")
"""Those that need neither files nor the internet."""

_DIGITS_TRAIN = 1500
_SPHERE_CLASSES = 10
_SPHERE_DEFAULT_SIZE = 256
_PROBE_SECONDS = 10


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labeled data set in memory, validated once so that everything after it may trust it.

    Attributes:
        name: one of `DATASETS`, or a name of your own.
        images: float32, (N, height, width, channels) with values in [0, 1], or (N, d) for plain vectors,
            whose values are free.
        labels: int64, (N,), each in 0 to num_classes - 1.
        num_classes: the number of classes, whether or not every one occurs.

    Raises:
        DataError: if the arrays are empty, differ in length, have another dtype or rank, are not finite, or
            leave the ranges above.

    Example:
        >>> import numpy as np
        >>> from nngp_dag.data import Dataset
        >>> Dataset("mine", np.zeros((2, 3), np.float32), np.array([0, 1], np.int64), num_classes=2).labels
        array([0, 1])
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        """Refuses arrays that break the promises above."""
        images, labels = self.images, self.labels
        if images.dtype != np.float32 or images.ndim not in (2, 4) or images.size == 0:
            raise DataError(
                "Expected `images` to be a float32 array of shape (N, height, width, channels) or (N, d) "
                f"with at least one example, got {images.dtype} of shape {images.shape}; reshape it or use "
                "astype"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"Expected `labels` to be an int64 array of shape ({len(images)},), one label for each "
                f"image, got {labels.dtype} of shape {labels.shape}; pass as many labels as images, or use "
                "astype"
            )
        if not np.isfinite(images).all():
            row = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))[0]
            raise DataError(f"Expected `images` to be finite, got NaN or infinity in image {row}; remove it")
        if images.ndim == 4 and (images.min() < 0 or images.max() > 1):
            raise DataError(
                f"Expected `images` to lie in [0, 1], got values from {images.min():g} to {images.max():g}; "
                "divide 8-bit pixels by 255 and leave the normalization to `normalize`"
            )
        outside = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if outside.size:
            raise DataError(
                f"Expected `labels` to lie in 0 to num_classes - 1 = {self.num_classes - 1}, got "
                f"{labels[outside[0]]} for image {outside[0]}; raise `num_classes` or renumber the labels"
            )


def load_dataset(
    name: str,
    *,
    split: str = "train",
    subset: int | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    dimension: int = 64,
) -> Dataset:
    """Loads a data set, or its first examples, as NumPy arrays.

    - `digits`: the 1,797 images of 8x8 pixels that scikit-learn bundles, divided by 16. It has no official
      split: `train` is the first 1,500, `test` the last 297, `all` is everything, in the stored order.
    - `sphere`: synthetic. Points uniform on the sphere |x|^2 = dimension; the label is the largest of the 10
      outputs of a random linear teacher. `train` and `test` share the teacher. A larger `subset` begins with
      the points of a smaller one; without `subset` there are 256.
    - the others: read by tensorflow-datasets from `data_dir`, and downloaded into it if they are not there.
      Any set of that library will do whose `image` is of 8 bits and one size and whose `label` is a class.
      Loading one hides every GPU from TensorFlow for the rest of the process, so that JAX has them to itself.

    Args:
        name: one of `DATASETS`, or another of tensorflow-datasets, as `name` or `name/config`.
        split: `train` or `test`; also `all` for digits and `extra` for svhn_cropped. Other sets: as they have it.
        subset: take the first `subset` examples as stored (of `sphere`: draw so many); None takes all.
        data_dir: an existing folder of tensorflow-datasets; None means that library's own default. Not used
            by digits and sphere.
        seed: a non-negative integer that fixes points and teacher of `sphere`; not used by the others.
        dimension: the number of features d of `sphere`; not used by the others.

    Returns:
        A `Dataset`, all of it in memory: 4 bytes times N times the number of features.

    Raises:
        DataError: if the name or the split is unknown, if a set holds no labeled images of one size, if there are
            fewer than `subset` examples, if `data_dir` is no folder, or if the data are neither on disk nor to be
            had from the internet, or cannot be read.

    Example:
        >>> from nngp_dag.data import load_dataset
        >>> load_dataset("digits", subset=100).images.shape
        (100, 8, 8, 1)
        >>> load_dataset("sphere", subset=3, dimension=5, seed=1).images.shape
        (3, 5)
    """
    check_name(name, data_dir)
    if name in DATASETS:
        _check_split(name, split, _SPLITS[name])
    check_size("subset", subset)
    if name == "digits":
        return _load_digits(split, subset)
    if name == "sphere":
        return _sample_sphere(split, _SPHERE_DEFAULT_SIZE if subset is None else subset, seed, dimension)
    with _quiet_tensorflow():
        return _load_tfds(name, split, subset, data_dir)


def split_names(name: str, data_dir: str | Path | None = None) -> tuple[str, ...]:
    """Returns the names of the splits of a data set; downloads a set that is neither in `DATASETS` nor on disk.

    Raises:
        DataError: as `load_dataset`.

    Example:
        >>> split_names("digits")
        ('train', 'test', 'all')
    """
    if name in DATASETS:
        return _SPLITS[name]
    check_name(name, data_dir)
    with _quiet_tensorflow():
        return tuple(_tfds_builder(name, data_dir).info.splits)


def check_name(name: str, data_dir: str | Path | None = None) -> None:
    """Refuses a data set that nobody has, without the seconds that importing TensorFlow takes.

    Raises:
        DataError: if the name is unknown, or `data_dir` is no folder.

    Example:
        >>> check_name("digits")
    """
    if not isinstance(name, str):
        raise DataError(f"Expected `name` to be the name of a data set, got {shown(name)}; pass one such as 'digits'")
    if name in BUILT_IN:
        return
    root = _root(name, data_dir)
    known = DATASETS
    # One that somebody else made and put there; those of a community have a colon, and are looked up online.
    if name in known or ":" in name or (root is not None and found_at(root / name.split("/")[0]) == "a folder"):
        return
    with _hold_back_stderr():
        import tensorflow_datasets as tfds

    known = (*DATASETS, *tfds.list_builders(with_community_datasets=False))
    if name.split("/")[0] not in known:
        raise DataError(
            f"Expected `name` to be one of {', '.join(DATASETS)} or a set of tensorflow-datasets, got {name[:60]!r}"
            + (did_you_mean(name, known) or "; choose one of these, or put arrays of your own into `Dataset`")
        )


def _root(name: str, data_dir: str | Path | None) -> Path | None:
    """Returns the folder of tensorflow-datasets, which must be there."""
    if data_dir is None:
        return None
    root = as_path("data_dir", data_dir, DataError).absolute()
    if (found := found_at(root)) != "a folder":
        raise DataError(
            f"Expected `data_dir` to be an existing folder of tensorflow-datasets, got {shorten(str(root), 200)}, "
            f"{found}; create it first, or pass the folder (--data-dir) that holds {shorten(name)}"
        )
    return root


def check_size(argument: str, size: int | None) -> None:
    """Refuses a number of examples that is no integer of at least 1; None, for all of them, is one.

    Raises:
        DataError: if it is another.

    Example:
        >>> check_size("subset", 3)
    """
    if size is None or (isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1):
        return
    raise DataError(
        f"Expected `{argument}` to be an integer of at least 1, got {shown(size)}; leave it out to take every example"
    )


def _check_split(name: str, split: str, known: Iterable[str]) -> None:
    if split not in known:
        raise DataError(
            f"Expected `split` of {name} to be one of {', '.join(known)}, got {split!r}; choose one of these"
        )


def _check_subset(subset: int | None, available: int, name: str, split: str) -> None:
    if subset is not None and subset > available:
        raise DataError(
            f"Expected `subset` to be at most {available}, the number of examples in split {split!r} of "
            f"{name}, got {subset}; ask for fewer, or leave it out to take every example"
        )


def _load_digits(split: str, subset: int | None) -> Dataset:
    # Imported here because scikit-learn costs about a second, which the other sets need not pay.
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    rows = {"train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None), "all": slice(None)}[split]
    pixels, labels = pixels[rows], labels[rows]
    _check_subset(subset, len(pixels), "digits", split)
    images = (pixels[:subset] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return Dataset("digits", images, labels[:subset].astype(np.int64), num_classes=10)


def _sample_sphere(split: str, size: int, seed: int, dimension: int) -> Dataset:
    dimension, seed = check_whole("dimension", dimension, 1), check_whole("seed", seed, 0)
    # One stream each, so that the teacher does not change with the number of points or the split.
    teacher = np.random.default_rng((seed, 0)).standard_normal((dimension, _SPHERE_CLASSES))
    points = np.random.default_rng((seed, 1 if split == "train" else 2)).standard_normal((size, dimension))
    points *= np.sqrt(dimension) / np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.argmax(points @ teacher, axis=1).astype(np.int64)
    return Dataset("sphere", points.astype(np.float32), labels, num_classes=_SPHERE_CLASSES)


@contextlib.contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Keeps TensorFlow's start-up lines off the terminal, unless the user has said how much it may print."""
    variable = "TF_CPP_MIN_LOG_LEVEL"
    before = os.environ.get(variable)
    # "1" is what importing JAX sets, so it is nobody's wish.
    if before not in (None, "1"):
        yield
        return
    # 3, because at 2 a machine without a GPU still gets an error line about cuInit.
    os.environ[variable] = "3"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


@contextlib.contextmanager
def _hold_back_stderr() -> Iterator[None]:
    """Keeps the process's error stream back, and lets it go only where an error follows that is not ours.

    TensorFlow writes its first lines to the file descriptor before it reads any variable.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _import_tfds() -> Any:
    """Imports tensorflow-datasets, with every GPU hidden from the TensorFlow below it."""
    with _hold_back_stderr():
        import tensorflow as tf

        # Refused once TensorFlow's runtime is up: then the caller chose its devices before, and keeps them.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
        import tensorflow_datasets as tfds

    return tfds


def _cause(error: Exception) -> str:
    """The type and the first line of a foreign error, for use inside a one-line message."""
    # TensorFlow wraps its messages into {{node ...}} and [Op:...], which mean nothing to a reader.
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip()
    return f"{type(error).__name__}: {(text.splitlines() or ['no details'])[0][:300]}"


@contextlib.contextmanager
def _readable(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # Broad because damaged files surface as whatever layer meets them first (JSON, protobuf, tf.errors,
    # AssertionError, ...), and tensorflow-datasets documents no common type.
    except Exception as error:
        raise DataError(
            f"Expected `data_dir` to hold readable files of {name}, got {_cause(error)} while reading "
            f"{folder}; put an intact copy of the data set there"
        ) from error


def _tfds_builder(name: str, data_dir: str | Path | None) -> Any:
    """Returns the builder of a set that is on disk, if need be after a download."""
    root = _root(name, data_dir)
    tfds = _import_tfds()
    with _readable(name, (root or Path("the default data_dir")) / name):
        try:
            builder = tfds.builder(name, data_dir=root)
        except tfds.core.DatasetNotFoundError:
            raise DataError(
                f"Expected `name` to be one of {', '.join(DATASETS)} or a set of tensorflow-datasets, got {name!r}; "
                "choose one of these, or put arrays of your own into `Dataset`"
            ) from None
    folder = Path(builder.data_path)
    with _readable(name, folder):
        absent = not folder.exists()
    if absent:
        _download(builder, name, folder)
    return builder


def _check_features(name: str, features: Any, image_kind: Any) -> None:
    """Refuses what are no labeled images of 8 bits and one size."""
    known: dict[str, Any] = {"image": None, "label": None} | dict(features)
    image, label = known["image"], known["label"]
    if not isinstance(image, image_kind):
        got = "no `image`"
    elif None in image.shape:
        got = f"images of varying size {image.shape}"
    elif image.np_dtype != np.uint8:
        got = f"images of {np.dtype(image.np_dtype)}"
    elif getattr(label, "num_classes", None) is None:
        got = "no class `label`"
    else:
        return
    raise DataError(
        f"Expected `name` to be a set with an `image` of 8 bits and one size and a class `label`, got {name} with "
        f"{got}; choose another, or put arrays of your own into `Dataset`"
    )


def _load_tfds(name: str, split: str, subset: int | None, data_dir: str | Path | None) -> Dataset:
    builder = _tfds_builder(name, data_dir)
    tfds = _import_tfds()
    folder = Path(builder.data_path)
    with _readable(name, folder):
        _check_features(name, builder.info.features, tfds.features.Image)
        if builder.info.splits:
            _check_split(name, split, builder.info.splits)
        available = builder.info.splits[split].num_examples
        num_classes = builder.info.features["label"].num_classes
    _check_subset(subset, available, name, split)
    size = available if subset is None else subset
    with _readable(name, folder):
        stored = builder.as_dataset(
            split=f"{split}[:{size}]",
            # One file at a time, or the order would depend on how many files the split has.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            shuffle_files=False,
        )
        batches = list(tfds.as_numpy(stored.batch(1024)))
        images = np.concatenate([batch["image"] for batch in batches])
        labels = np.concatenate([batch["label"] for batch in batches])
    return Dataset(name, images / np.float32(255), labels, num_classes)


def _download(builder: Any, name: str, folder: Path) -> None:
    # requests, because it is what tensorflow-datasets downloads with: same proxies, same certificates.
    import requests

    remedy = (
        f"pass a tensorflow-datasets folder that holds {name} as `data_dir` (--data-dir), connect to the "
        "internet, or use digits, which needs neither"
    )
    # folder is data_dir/name/version; what is missing of it is ours to remove again if nothing comes of it.
    root = folder.parent.parent
    missing = [path for path in (folder.parent, root, *root.parents) if not path.exists()]
    try:
        # Without a network tensorflow-datasets retries for minutes, so ask the first server once before.
        for url in list(builder.url_infos)[:1]:
            requests.head(url, timeout=_PROBE_SECONDS)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete_download_", dir=root) as scratch:
            builder.download_and_prepare(download_dir=scratch)
    # tensorflow-datasets 4.9.10 uses importlib_resources without asking for it:
    # https://github.com/tensorflow/datasets/issues/11212
    except ModuleNotFoundError as error:
        raise DataError(
            f"Expected the package {error.name} to be installed, which tensorflow-datasets needs to download "
            f"{name} into {folder}, got none; run pip install {error.name}, or {remedy}"
        ) from error
    except requests.RequestException as error:
        raise DataError(
            f"Expected `data_dir` to hold {name}, got no {folder}, and the server it would be downloaded "
            f"from cannot be reached ({type(error).__name__}); {remedy}"
        ) from error
    # Broad because everything between a server, an archive and the disk fails in a type of its own, and
    # tensorflow-datasets documents no common one.
    except Exception as error:
        raise DataError(
            f"Expected `data_dir` to hold {name}, got no {folder}, and the download failed ({_cause(error)}); {remedy}"
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
