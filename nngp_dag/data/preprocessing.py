"""Preprocessing of a data set into the inputs and targets of kernels and networks."""

from typing import Final

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import DTypeLike

from nngp_dag.data.datasets import Dataset
from nngp_dag.errors import DataError, InputError

# The code of Chen et al. (2022) uses these for CIFAR-10, CIFAR-100 and SVHN. The means are those of the CIFAR-10
# training set. The deviations are a mean over images of the deviation within one image.
_CIFAR: Final = ((0.49139968, 0.48215827, 0.44653124), (0.2023, 0.1994, 0.2010))

Constants = tuple[tuple[float, ...], tuple[float, ...]]

NORMALIZATION: Final[dict[str, Constants | None]] = {
    # Statistics over all pixels of the 1,797 images, on the scale [0, 1].
    "digits": ((0.3053,), (0.3760,)),
    # Constants of the code of Chen et al. (2022), equal to the pixel statistics of the training set.
    "mnist": ((0.1307,), (0.3081,)),
    # Pixel statistics of the training set, in the commonly quoted digits.
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "svhn_cropped": _CIFAR,
    "sphere": None,
}
"""Mean and standard deviation per channel, for images in [0, 1]; None for data that are not normalized.

Reference: Chen, Huang, Gong, Wang: Deep Architecture Connectivity Matters for Its Convergence: A Fine-Grained Analysis,
NeurIPS 2022. The constants of MNIST, CIFAR and SVHN are those of its published MLP trainer.
"""


def channel_constants(images: Float[np.ndarray, "n h w c"]) -> Constants:
    """Returns mean and standard deviation of every channel over all pixels, rounded to four decimals.

    Args:
      images: Images, (N, height, width, channels).

    Returns:
      The means and the standard deviations, one number per channel each, in the unit of the images.

    Raises:
      DataError: A channel is constant to that precision.

    Examples:
      >>> import numpy as np
      >>> from nngp_dag.data import channel_constants
      >>> channel_constants(np.array([0, 1, 1, 1], np.float32).reshape(1, 2, 2, 1))
      ((0.75,), (0.433,))
    """
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    # einsum adds the squares up without holding them in an array.
    square = np.einsum("nhwc,nhwc->c", images, images, dtype=np.float64) / (images.size / images.shape[-1])
    std = np.sqrt(np.maximum(square - mean**2, 0)).round(4)
    if not std.all():
        raise DataError(f"Expected every channel of images to vary, got standard deviations {std.tolist()}")
    return tuple(mean.round(4).tolist()), tuple(std.tolist())


def normalize(dataset: Dataset, constants: Constants | None = None) -> Float[np.ndarray, "n *features"]:
    """Shifts and scales every channel by the constants of the data set, (image - mean) / std.

    The default constants are `NORMALIZATION[dataset.name]`. They describe the whole training set, so a subset has mean
    0 and standard deviation 1 only roughly.

    Args:
      dataset: A data set with images in [0, 1].
      constants: Means and standard deviations, one of each per channel; None takes those in `NORMALIZATION`.

    Returns:
      The normalized images in float32, of the same shape; the unchanged points for `sphere`.

    Raises:
      DataError: There are no constants for the name, or their number differs from that of the channels.

    Examples:
      >>> from nngp_dag.data import load_dataset, normalize
      >>> x = normalize(load_dataset("digits", split="all"))
      >>> print(f"{abs(x.mean()):.3f} {x.std():.3f}")
      0.000 1.000
    """
    if constants is None and dataset.name not in NORMALIZATION:
        raise DataError(
            f"Expected `dataset` to be one of {', '.join(NORMALIZATION)}, got {dataset.name!r}, which has no "
            "constants; pass `constants`, such as `channel_constants` of its training images"
        )
    constants = constants or NORMALIZATION[dataset.name]
    if constants is None:
        return dataset.images
    mean, std = (np.asarray(c, np.float32) for c in constants)
    if dataset.images.shape[-1] != len(mean):
        raise DataError(
            f"Expected `dataset` {dataset.name} to have {len(mean)} channels in the last axis, got images "
            f"of shape {dataset.images.shape}; give data of your own another name and normalize it yourself"
        )
    return (dataset.images - mean) / std


def scale_to_sphere(x: Shaped[np.ndarray, "n *features"]) -> Float[np.ndarray, "n d"]:
    """Flattens each input and scales it onto the sphere |x|^2 = d, where d is its number of features.

    Every input then has mean(x^2) = 1. The kernel of a fully connected network is constant on the diagonal.

    Args:
      x: Real inputs, (N, ...), with at least one feature.

    Returns:
      The scaled inputs, (N, d), in the dtype of `x` if that is floating, else in float32. The computation takes
      float64 and memory for two copies of `x`.

    Raises:
      InputError: `x` has no feature axis, is empty or not finite, or an input is all zero.

    Examples:
      >>> import numpy as np
      >>> from nngp_dag.data import scale_to_sphere
      >>> scale_to_sphere(np.array([[3.0, 4.0], [0.0, 1e-200]])).round(4)
      array([[0.8485, 1.1314],
             [0.    , 1.4142]])
    """
    x = np.asanyarray(x)
    if x.ndim < 2 or x.size == 0:
        raise InputError(
            f"Expected `x` to have shape (N, ...) with at least one input and one feature, got shape "
            f"{x.shape}; give a single input a leading axis of 1"
        )
    rows = x.reshape(len(x), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(largest))
    if bad.size:
        raise InputError(f"Expected `x` to be finite, got NaN or infinity in row {bad[0]}; remove that input")
    zero = np.flatnonzero(largest == 0)
    if zero.size:
        raise InputError(
            f"Expected every row of `x` to have a direction, got only zeros in row {zero[0]}; remove that "
            "input, or shift all inputs before scaling, for example by their mean"
        )
    # The division by the largest entry keeps squares from overflow and underflow.
    rows /= largest
    rows *= np.sqrt(rows.shape[1]) / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(x.dtype if np.issubdtype(x.dtype, np.floating) else np.float32)


def one_hot(labels: np.ndarray, num_classes: int, dtype: DTypeLike = np.float32) -> Shaped[np.ndarray, "n num_classes"]:
    """Turns class numbers into rows of the identity matrix.

    Args:
      labels: Classes, integers from 0 to num_classes - 1, (N,).
      num_classes: Number of classes, which is the number of columns.
      dtype: Dtype of the result.

    Returns:
      One-hot rows, (N, num_classes): 1 in the column of the label, 0 elsewhere.

    Raises:
      InputError: `labels` is not a one-dimensional array of integers in that range.

    Examples:
      >>> import numpy as np
      >>> from nngp_dag.data import one_hot
      >>> one_hot(np.array([2, 0]), 3)
      array([[0., 0., 1.],
             [1., 0., 0.]], dtype=float32)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"Expected `labels` to be a one-dimensional array of integers, got {labels.dtype} of shape "
            f"{labels.shape}; pass class numbers, not one-hot rows"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise InputError(
            f"Expected `labels` to lie in 0 to num_classes - 1 = {num_classes - 1}, got {labels[outside[0]]} "
            f"at index {outside[0]}; raise `num_classes` or renumber the labels"
        )
    encoded = np.zeros((len(labels), num_classes), dtype)
    encoded[np.arange(len(labels)), labels] = 1
    return encoded
