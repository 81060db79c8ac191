"""Images that are read batch by batch while a network trains, and need not fit into memory."""

import collections
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np

from nngp_dag.data import tfds
from nngp_dag.data.crops import centrally_cropped, randomly_cropped
from nngp_dag.data.datasets import check_size
from nngp_dag.data.records import ImageRecords
from nngp_dag.errors import DataError
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_whole

IMAGENET_CONSTANTS: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue, by which all code for ImageNet normalizes."""

_SHUFFLE_SEED = 0
# Batches that are decoded ahead while the devices work.
_AHEAD = 2

# Images in 8 bits, (n, size, size, 3), and labels, (n,).
ImageBatch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False, repr=False)
class ImageStream(Described):
    """Images of tensorflow-datasets, read and decoded batch by batch, in an order of their own for every epoch.

    The order is drawn from seed and epoch, and so is every crop from seed, epoch and image. Batches can therefore start
    at any step, and processes can read different rows of one batch.

    Training crops a random box, see `random_box`, scales it to `size` and mirrors half of the images. Evaluation scales
    the shorter side to 256 pixels for a `size` of 224, and takes the central square. Networks get the images normalized
    by `IMAGENET_CONSTANTS`.

    Attributes:
      name: Name of the data set.
      size: Side of the images that networks get.
      num_classes: Number C of classes.
      statement: Origin of the parts, in one sentence.
      source: Arguments of `load_stream` under "stream", for `load_source`.
      records: The images of each part, by its name: the split, and the numbers of its images.

    Examples:
      >>> stream = load_stream("mnist", data_dir="data", size=32)  # doctest: +SKIP
      >>> images, labels = next(stream.batches("train", 64, seed=0, epoch=1))  # doctest: +SKIP

    Reference: the transformations are those of `train_imagenet.py` of the code of Liu, Simonyan, Yang, DARTS.
    """

    name: str
    size: int
    num_classes: int
    statement: str
    source: Mapping[str, Any]
    records: Mapping[str, tuple[ImageRecords, np.ndarray]] = field(repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each part."""
        return {part: len(numbers) for part, (_, numbers) in self.records.items()}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (self.size, self.size, 3)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Name, sizes and a SHA-256 of names, lengths and sizes of the files, not of their bytes; and the source."""
        found = hashlib.sha256(str(self.size).encode())
        for records, numbers in self.records.values():
            found.update(json.dumps(records.described).encode())
            found.update(numbers.astype(np.int64).data)
        return {"name": self.name, **self.sizes, "sha256": found.hexdigest(), "source": dict(self.source)}

    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 1,
        crops: bool = True,
        start: int = 0,
        rows: Mapping[int, slice] | None = None,
    ) -> Iterator[ImageBatch]:
        """Yields the batches of an epoch; the last one may be smaller.

        Args:
          part: "train", "validation" or "test".
          batch_size: Number of images of a batch, those of all processes together.
          seed: Seed of order and crops; None for the order as stored, and the central square of every image.
          epoch: Number of the epoch, counted from 1.
          crops: Whether boxes are random with a seed.
          start: Number of batches to leave out.
          rows: Rows of a batch that this process reads, by the size of the batch; None for all.

        Raises:
          DataError: An image cannot be read.
        """
        records, numbers = self.records[part]
        if seed is not None:
            numbers = numbers[np.random.default_rng((seed, epoch)).permutation(len(numbers))]

        def read(number: int) -> tuple[np.ndarray, int]:
            image, label = records[number]
            if not 0 <= label < self.num_classes:
                raise DataError(
                    f"Expected labels from 0 to {self.num_classes - 1} in the {part} part of {self.name}, got {label}"
                )
            if seed is None or not crops:
                return centrally_cropped(image, self.size), label
            return randomly_cropped(image, self.size, np.random.default_rng((seed, epoch, number))), label

        def collected(futures: "list[Future[tuple[np.ndarray, int]]]") -> ImageBatch:
            found = [future.result() for future in futures]
            return np.stack([image for image, _ in found]), np.array([label for _, label in found], np.int32)

        ahead: collections.deque[list[Future[tuple[np.ndarray, int]]]] = collections.deque()
        pool = ThreadPoolExecutor(os.cpu_count() or 1, "nngp-dag images")
        try:
            for at in range(start * batch_size, len(numbers), batch_size):
                batch = numbers[at : at + batch_size]
                if rows is not None:
                    batch = batch[rows[len(batch)]]
                ahead.append([pool.submit(read, int(number)) for number in batch])
                if len(ahead) > _AHEAD:
                    yield collected(ahead.popleft())
            while ahead:
                yield collected(ahead.popleft())
        finally:
            # An epoch that is left early must not wait for the images that it asked for.
            pool.shutdown(wait=False, cancel_futures=True)

    def normalized(self, images: jax.Array) -> jax.Array:
        """Returns images in [0, 1] with every channel shifted and scaled by `IMAGENET_CONSTANTS`."""
        mean, std = (np.array(constants, np.float32)[None, None, None] for constants in IMAGENET_CONSTANTS)
        return (images - mean) / std

    def _facts(self) -> dict[str, str]:
        return {"": repr(self.name), "size": str(self.size), **{part: str(n) for part, n in self.sizes.items()}}


def load_stream(
    name: str,
    *,
    data_dir: str | Path | None = None,
    size: int = 224,
    subset: int | None = None,
    eval_subset: int | None = None,
    held_out: int | None = None,
) -> ImageStream:
    """Opens a set of tensorflow-datasets whose images are read while a network trains.

    Images may have any size, in files of TFRecord or ArrayRecord. A random part of the training split (seed 0) is for
    validation. The test part is the split `test`, or `validation` if there is no `test` or one without labels, as
    for ImageNet.

    Args:
      name: Name of the set, as `name` or `name/config`, such as "imagenet2012".
      data_dir: Folder of tensorflow-datasets, see `load_dataset`.
      size: Side of the images that networks get.
      subset: Largest number of training images; None takes all.
      eval_subset: Largest number of validation images and of test images; None takes all.
      held_out: Number of training images for validation; by default a tenth.

    Raises:
      DataError: The set cannot be found or read, or has fewer images.

    Examples:
      >>> load_stream("imagenet2012", data_dir="data").sizes["test"]  # doctest: +SKIP
      50000
    """
    for argument, value in (("subset", subset), ("eval_subset", eval_subset), ("held_out", held_out)):
        check_size(argument, value)
    check_whole("size", size, 1)
    train, names = ImageRecords(name, "train", data_dir), tfds.split_names(name, data_dir)
    tested = "test" if "test" in names else "validation"
    test = ImageRecords(name, tested, data_dir)
    if tested == "test" and "validation" in names and test[0][1] < 0:
        tested = "validation"
        test = ImageRecords(name, tested, data_dir)
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(train))
    held = len(train) - len(train) * 9 // 10 if held_out is None else held_out
    most = len(train) - held
    for argument, value, limit in (("held_out", held, len(train) - 1), ("subset", subset or 1, most)):
        if value > limit:
            raise DataError(
                f"Expected `{argument}` to be at most {limit}, of the {len(train)} training images of {name}, got "
                f"{value}; ask for fewer"
            )
    records = {
        "train": (train, order[:most][:subset]),
        "validation": (train, order[most:][:eval_subset]),
        "test": (test, np.arange(len(test))[:eval_subset]),
    }
    counts = {part: len(numbers) for part, (_, numbers) in records.items()}
    arguments = {"name": name, "size": size, "subset": subset, "eval_subset": eval_subset, "held_out": held_out}
    return ImageStream(
        name,
        size,
        train.num_classes,
        f"{name}: {counts['train']:,} images for training{', a subset' if subset else ''}, {counts['validation']:,} "
        f"for validation (random training images, seed {_SHUFFLE_SEED}), {counts['test']:,} for testing (its {tested} "
        f"split); streamed at {size} x {size} pixels, normalized by mean and std of ImageNet",
        {"stream": arguments},
        records,
    )
