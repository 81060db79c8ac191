"""Data sets as plain NumPy arrays: bundled, synthetic, and read through tensorflow-datasets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from nngp_dag import forms
from nngp_dag.data import tfds
from nngp_dag.data.paths import found_at
from nngp_dag.errors import DataError, did_you_mean, shown
from nngp_dag.forms import Described
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
"""Names of the data sets whose splits and normalization constants are built in."""
BUILT_IN: Final = ("digits", "sphere")
"""Names of the data sets that need neither files nor the internet."""

_DIGITS_TRAIN = 1500
_SPHERE_CLASSES = 10
_SPHERE_DEFAULT_SIZE = 256


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Described):
    """A labeled data set in memory, validated when it is made.

    Attributes:
      name: One of `DATASETS`, or a name of your own.
      images: Images (N, height, width, channels) with values in [0, 1], or vectors (N, d) with any values, in float32.
      labels: Classes, whole numbers from 0 to num_classes - 1 in int64, (N,).
      num_classes: Number of classes; some of them may not occur.

    Raises:
      DataError: The arrays are empty, differ in length, have another dtype or rank, are not finite, or leave the ranges
        above.

    Examples:
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
        """Refuses arrays of another form than the attributes state."""
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

    - `digits`: the 1,797 images of 8x8 pixels that scikit-learn bundles, divided by 16. There is no official split.
      Here `train` is the first 1,500, `test` the last 297, and `all` is everything, in the stored order.
    - `sphere`: synthetic points, uniform on the sphere |x|^2 = dimension. The label is the index of the largest of the
      10 outputs of a random linear teacher. `train` and `test` share the teacher. A larger `subset` begins with the
      points of a smaller one; without `subset` there are 256.
    - Other sets are read by tensorflow-datasets from `data_dir`, and downloaded into it if they are not there. The
      `image` of a set must have 8 bits and one size, and the `label` must be a class. Loading one hides every GPU from
      TensorFlow for the rest of the process, and so leaves their memory to JAX.

    Args:
      name: One of `DATASETS`, or another set of tensorflow-datasets, as `name` or `name/config`.
      split: Name of the split: `train` or `test`, also `all` for digits and `extra` for svhn_cropped. A set outside
        `DATASETS` has the splits of tensorflow-datasets.
      subset: Number of examples, the first ones as stored, or the number of points to draw for `sphere`. None takes
        all.
      data_dir: An existing folder of tensorflow-datasets; None stands for that library's own default. digits and sphere
        do not use it.
      seed: A non-negative integer that fixes points and teacher of `sphere`. Other sets do not use it.
      dimension: Number of features d of `sphere`. Other sets do not use it.

    Returns:
      A `Dataset` in memory, which takes 4 bytes times N times the number of features.

    Raises:
      DataError: The name or the split is unknown, or the set holds no labeled images of one size. There are fewer than
        `subset` examples, or `data_dir` is not a folder. The data are not on disk and cannot be downloaded, or cannot
        be read.

    Examples:
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
    """Returns the names of the splits of a data set.

    A set that is neither in `DATASETS` nor on disk is downloaded.

    Raises:
      DataError: `load_dataset` refuses the name or the folder.

    Examples:
      >>> split_names("digits")
      ('train', 'test', 'all')
    """
    if name in DATASETS:
        return _SPLITS[name]
    check_name(name, data_dir)
    return tfds.split_names(name, data_dir)


def check_name(name: str, data_dir: str | Path | None = None) -> None:
    """Refuses the name of a data set that is unknown.

    Known names of `DATASETS`, and sets on disk, are accepted without importing TensorFlow, which takes seconds.

    Raises:
      DataError: The name is unknown, or `data_dir` is not a folder.

    Examples:
      >>> check_name("digits")
    """
    if not isinstance(name, str):
        raise DataError(f"Expected `name` to be the name of a data set, got {shown(name)}; pass one such as 'digits'")
    if name in BUILT_IN:
        return
    root = tfds.root_of(name, data_dir)
    known = DATASETS
    # The folder may hold a set that is not part of the library. Names of community sets have a colon;
    # tensorflow-datasets looks them up online.
    if name in known or ":" in name or (root is not None and found_at(root / name.split("/")[0]) == "a folder"):
        return
    known = (*DATASETS, *tfds.known_names())
    if name.split("/")[0] not in known:
        raise DataError(
            f"Expected `name` to be one of {', '.join(DATASETS)} or a set of tensorflow-datasets, got {name[:60]!r}"
            + (did_you_mean(name, known) or "; choose one of these, or put arrays of your own into `Dataset`")
        )


def num_examples(name: str, *, split: str = "train", data_dir: str | Path | None = None) -> int | None:
    """Returns the number of examples of a split; None for `sphere`, which draws any number.

    Raises:
      DataError: `load_dataset` refuses the name, the split or the folder.
    """
    check_name(name, data_dir)
    if name == "sphere":
        return None
    return len(_load_digits(split, None).labels) if name == "digits" else tfds.num_examples(name, split, data_dir)


def check_size(argument: str, size: int | None) -> None:
    """Refuses a number of examples unless it is an integer of at least 1, or None for all examples.

    Raises:
      DataError: The number is another value.

    Examples:
      >>> check_size("subset", 3)
    """
    if size is None or (isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1):
        return
    raise DataError(
        f"Expected `{argument}` to be an integer of at least 1, got {shown(size)}; leave it out to take every example"
    )


def _load_digits(split: str, subset: int | None) -> Dataset:
    # Importing scikit-learn takes about a second, which other data sets need not wait for.
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    rows = {"train": slice(_DIGITS_TRAIN), "test": slice(_DIGITS_TRAIN, None), "all": slice(None)}[split]
    pixels, labels = pixels[rows], labels[rows]
    tfds.check_subset(subset, len(pixels), "digits", split)
    images = (pixels[:subset] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return Dataset("digits", images, labels[:subset].astype(np.int64), num_classes=10)


def _sample_sphere(split: str, size: int, seed: int, dimension: int) -> Dataset:
    dimension, seed = check_whole("dimension", dimension, 1), check_whole("seed", seed, 0)
    # The teacher has a random stream of its own, so that it does not change with the number of points or the split.
    teacher = np.random.default_rng((seed, 0)).standard_normal((dimension, _SPHERE_CLASSES))
    points = np.random.default_rng((seed, 1 if split == "train" else 2)).standard_normal((size, dimension))
    points *= np.sqrt(dimension) / np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.argmax(points @ teacher, axis=1).astype(np.int64)
    return Dataset("sphere", points.astype(np.float32), labels, num_classes=_SPHERE_CLASSES)
