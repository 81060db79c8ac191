"""Data sets as plain NumPy arrays: bundled, synthetic, and read through tensorflow-datasets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from nngp_dag import forms
from nngp_dag.data import tfds
from nngp_dag.data.paths import found_at
from nngp_dag.errors import DataError, did_you_mean, shown
from nngp_dag.forms import described
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


@described
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

    def _facts(self) -> dict[str, str]:
        arrays = {"images": forms.array(self.images), "labels": forms.array(self.labels)}
        return {"": repr(self.name), **arrays, "num_classes": str(self.num_classes)}


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
        tfds.check_split(name, split, _SPLITS[name])
    check_size("subset", subset)
    if name == "digits":
        return _load_digits(split, subset)
    if name == "sphere":
        return _sample_sphere(split, _SPHERE_DEFAULT_SIZE if subset is None else subset, seed, dimension)
    return Dataset(name, *tfds.load(name, split, subset, data_dir))


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
    return tfds.split_names(name, data_dir)


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
    root = tfds.root_of(name, data_dir)
    known = DATASETS
    # One that somebody else made and put there; those of a community have a colon, and are looked up online.
    if name in known or ":" in name or (root is not None and found_at(root / name.split("/")[0]) == "a folder"):
        return
    known = (*DATASETS, *tfds.known_names())
    if name.split("/")[0] not in known:
        raise DataError(
            f"Expected `name` to be one of {', '.join(DATASETS)} or a set of tensorflow-datasets, got {name[:60]!r}"
            + (did_you_mean(name, known) or "; choose one of these, or put arrays of your own into `Dataset`")
        )


def num_examples(name: str, *, split: str = "train", data_dir: str | Path | None = None) -> int | None:
    """Returns the number of examples of a split; None for `sphere`, which has as many as are asked for.

    Raises:
      DataError: As `load_dataset`.
    """
    check_name(name, data_dir)
    if name == "sphere":
        return None
    return len(_load_digits(split, None).labels) if name == "digits" else tfds.num_examples(name, split, data_dir)


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


def _load_digits(split: str, subset: int | None) -> Dataset:
    # Imported here because scikit-learn costs about a second, which the other sets need not pay.
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    rows = {"train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None), "all": slice(None)}[split]
    pixels, labels = pixels[rows], labels[rows]
    tfds.check_subset(subset, len(pixels), "digits", split)
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
