"""Writes a set of tensorflow-datasets with images of ten shapes, to try trainings that are made for ImageNet.

A shape has a random place, size, angle and two random colors, and the image has noise. A person tells the shapes apart
at sight.

    python experiments/shapes.py --data-dir DATA
    nngp-dag nas train genotype.json --recipe imagenet --dataset shapes --data-dir DATA --channels 16 --epochs 24 \
        --batch-size 16 --lr 0.02 --warmup 2 --out shapes

The files `shapes.csv`, `.json` and `.png` in `experiments/results` are from these two commands with the genotype
DARTS V2. They take about three quarters of an hour on two cores, or half an hour with the setting of memory in
docs/guides/training_cells.md.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("disc", "ring", "square", "triangle", "plus", "star", "crescent", "hourglass", "bars", "dots")

Points = list[tuple[float, float]]

# Corners for a shape of radius 1 about the origin.
_POLYGONS: dict[str, list[Points]] = {
    "square": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "triangle": [[(0, -1), (0.9, 0.7), (-0.9, 0.7)]],
    "plus": [[(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)], [(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)]],
    "star": [
        [
            ((0.4 if i % 2 else 1) * math.sin(i * math.pi / 5), -(0.4 if i % 2 else 1) * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
    ],
    "hourglass": [[(-0.8, -0.9), (0.8, -0.9), (0, 0)], [(-0.8, 0.9), (0.8, 0.9), (0, 0)]],
    "bars": [[(-0.9, y - 0.15), (0.9, y - 0.15), (0.9, y + 0.15), (-0.9, y + 0.15)] for y in (-0.7, 0.0, 0.7)],
}
# Centers and radii of discs; those after the first are holes in the shapes of `_HOLED`.
_DISCS = {
    "disc": [((0, 0), 0.95)],
    "ring": [((0, 0), 1.0), ((0, 0), 0.6)],
    "crescent": [((0, 0), 1.0), ((0.5, 0), 0.8)],
    "dots": [((-0.55, 0), 0.42), ((0.55, 0), 0.42)],
}
_HOLED = ("ring", "crescent")


def draw(shape: str, rng: np.random.Generator, size: int = 224) -> np.ndarray:
    """Returns an image of a shape, (size, size, 3) in 8 bits."""
    radius = size * rng.uniform(0.22, 0.4)
    x, y = rng.uniform(0.85 * radius, size - 0.85 * radius, 2)
    angle = rng.uniform(-math.pi / 8, math.pi / 8)

    def placed(points: Points) -> Points:
        cos, sin = radius * math.cos(angle), radius * math.sin(angle)
        return [(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in points]

    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    for points in _POLYGONS.get(shape, []):
        pen.polygon(placed(points), fill=255)
    for i, (center, share) in enumerate(_DISCS.get(shape, [])):
        [(a, b)], r = placed([center]), share * radius
        pen.ellipse((a - r, b - r, a + r, b + r), fill=0 if i and shape in _HOLED else 255)
    inside = np.asarray(mask, np.float64)[..., None] / 255
    while True:
        colors = rng.uniform(0, 255, (2, 3))
        if np.linalg.norm(colors[0] - colors[1]) > 130:
            break
    pixels = colors[0] * inside + colors[1] * (1 - inside) + rng.normal(0, 12, (size, size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def examples(count: int, seed: int, size: int = 224) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields numbers, and images with their labels, all shapes in turn."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = number % len(SHAPES)
        yield number, {"image": draw(SHAPES[label], rng, size), "label": label}


def write(data_dir: Path, train: int, test: int, *, size: int = 224, file_format: str = "tfrecord") -> None:
    """Writes the set `shapes` with tensorflow-datasets' own writer."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=list(SHAPES)),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="shapes",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples(train, 0, size), "test": examples(test, 1, size)},
        data_dir=data_dir,
        description="Ten shapes with random places, sizes, angles and colors, and noise.",
        file_format=file_format,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of tensorflow-datasets")
    parser.add_argument("--train", type=int, default=3000, help="number of training images")
    parser.add_argument("--test", type=int, default=500, help="number of test images")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    options = parser.parse_args(argv)
    options.data_dir.mkdir(parents=True, exist_ok=True)
    write(options.data_dir, options.train, options.test, size=options.size)
    print(f"wrote {options.data_dir / 'shapes'}")


if __name__ == "__main__":
    main()
