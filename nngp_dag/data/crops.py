"""Crops of images to one size: random ones for training, the central one for evaluation."""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the area, and width over height, of random crops."""

_ATTEMPTS = 10
# Evaluation scales the shorter side to 256 pixels for crops of 224.
_MARGIN = 256 / 224

Box = tuple[int, int, int, int]


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
    """Draws a box within an image: its area is uniform in 8 to 100 % of the image, its ratio log-uniform in 3/4 to 4/3.

    Boxes that do not fit are drawn again. After ten attempts the box is the largest central one with a ratio in these
    limits.

    Args:
      rng: Random numbers.
      width: Width of the image.
      height: Height of the image.

    Returns:
      The box as (left, top, right, bottom).

    Examples:
      >>> random_box(np.random.default_rng(0), 1000, 10)
      (493, 0, 506, 10)

    Reference: Szegedy et al., CVPR 2015, Section 6; `torchvision.transforms.RandomResizedCrop`.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(AREA[0], AREA[1])
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def randomly_cropped(image: "Image", size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """Returns a random box of an image, scaled to a square, and mirrored with probability 1/2."""
    found = np.asarray(_scaled(image.crop(random_box(rng, *image.size)), size, size))
    return found[:, ::-1] if rng.random() < 0.5 else found


def centrally_cropped(image: "Image", size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the central square of an image whose shorter side is scaled to 256 pixels for squares of 224."""
    width, height = image.size
    short = round(size * _MARGIN)
    if width <= height:
        wide, high = short, int(short * height / width)
    else:
        wide, high = int(short * width / height), short
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.asarray(_scaled(image, wide, high))[top : top + size, left : left + size]


def _scaled(image: "Image", width: int, height: int) -> "Image":
    from PIL.Image import Resampling

    # The filter grows with the reduction, so that nothing is aliased.
    return image.resize((width, height), Resampling.BILINEAR)
