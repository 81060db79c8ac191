"""Encoded images of a split of tensorflow-datasets, read one by one in any order."""

import io
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.data import tfds
from nngp_dag.errors import DataError, shorten

if TYPE_CHECKING:
    from PIL.Image import Image

# A record of a TFRecord file: the length in 8 bytes, its checksum in 4, the data, and their checksum in 4.
_BEFORE, _AROUND = 12, 16


class TfRecords:
    """The records of TFRecord files, numbered through.

    The place of a record is found by the lengths of those before it. So a file is scanned once, when the first of its
    records is read; the scan reads 8 bytes per record.

    Args:
      paths: The files.
      counts: Numbers of records in them.

    Raises:
      DataError: A file does not hold as many whole records as stated.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        """Stores the arguments; reads no file."""
        self._paths, self._ends = list(paths), np.cumsum(counts)
        self._starts: list[np.ndarray | None] = [None] * len(self._paths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of records."""
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> bytes:
        """Returns the data of a record."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        if (starts := self._starts[file]) is None:
            with self._lock:
                starts = self._starts[file]
                if starts is None:
                    starts = self._starts[file] = self._scanned(file)
        at = number - (int(self._ends[file - 1]) if file else 0)
        start, end = int(starts[at]), int(starts[at + 1])
        # Files are opened anew for every record, since a process may hold fewer open files than a set has.
        descriptor = os.open(self._paths[file], os.O_RDONLY)
        try:
            return os.pread(descriptor, end - start - _AROUND, start + _BEFORE)
        finally:
            os.close(descriptor)

    def _scanned(self, file: int) -> np.ndarray:
        """Returns the places at which the records of a file start, and the end of the last one."""
        path = self._paths[file]
        count = int(self._ends[file]) - (int(self._ends[file - 1]) if file else 0)
        descriptor, starts = os.open(path, os.O_RDONLY), [0]
        try:
            size = os.fstat(descriptor).st_size
            while starts[-1] + _AROUND <= size and len(starts) <= count:
                (length,) = struct.unpack("<Q", os.pread(descriptor, 8, starts[-1]))
                starts.append(starts[-1] + length + _AROUND)
        finally:
            os.close(descriptor)
        if len(starts) != count + 1 or starts[-1] != size:
            raise DataError(f"Expected {path} to hold {count} whole records, got others; put an intact copy there")
        return np.array(starts, np.int64)


class ImageRecords:
    """The images and labels of a split, decoded when they are read.

    Args:
      name: Name of the set, as `name` or `name/config`.
      split: Name of the split.
      data_dir: Folder of tensorflow-datasets, see `load_dataset`.

    Attributes:
      num_classes: Number of classes.
      described: Description of the files, for a fingerprint.

    Raises:
      DataError: The set cannot be found or read, has no such split, or holds no labeled images of 8 bits.
    """

    def __init__(self, name: str, split: str, data_dir: str | Path | None):
        """Opens the set; reads no image."""
        self._name = name
        with tfds.opened(name, data_dir) as (library, builder):
            features, splits = builder.info.features, builder.info.splits
            tfds.check_features(name, features, library.features.Image, one_size=False)
            tfds.check_split(name, split, splits)
            self.num_classes = features["label"].num_classes
            paths, counts = splits[split].filepaths, list(splits[split].shard_lengths)
            self._decoders = {"image": library.decode.SkipDecoding()}
            kind = str(getattr(builder.info.file_format, "value", builder.info.file_format))
            self._records: Any
            if kind == "tfrecord":
                self._records = TfRecords([Path(os.fspath(path)) for path in paths], counts)
            elif kind == "array_record":
                from array_record.python.array_record_data_source import ArrayRecordDataSource

                self._records = ArrayRecordDataSource([os.fspath(path) for path in paths])
            else:
                raise DataError(
                    f"Expected {name} in files of TFRecord or ArrayRecord, got {kind}; prepare it again in one of these"
                )
            self._features = features
            sizes = [Path(os.fspath(path)).stat().st_size for path in paths]
            files = [Path(os.fspath(path)).name for path in paths]
            self.described = {"version": str(builder.info.version), "files": files, "counts": counts, "sizes": sizes}

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._records)

    def __getitem__(self, number: int) -> "tuple[Image, int]":
        """Returns an image in red, green and blue, and its label."""
        from PIL import Image

        data = self._records[number]
        try:
            found = self._features.deserialize_example_np(data, decoders=self._decoders)
            with Image.open(io.BytesIO(found["image"])) as image:
                decoded = image.convert("RGB")
        # Damaged data raise errors of protobuf, PIL and others.
        except Exception as error:
            raise DataError(
                f"Expected a readable image as number {number} of {self._name}, got {shorten(str(error), 200)}; put an "
                "intact copy of the data set there"
            ) from error
        return decoded, int(found["label"])
