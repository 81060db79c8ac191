"""Data sets that are read by tensorflow-datasets.

TensorFlow only reads files here. It is imported only inside the functions that need it, and it never sees a GPU.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nngp_dag.data.paths import found_at
from nngp_dag.errors import DataError, as_path, shorten

_PROBE_SECONDS = 10


def load(name: str, split: str, subset: int | None, data_dir: str | Path | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns images in [0, 1], labels and the number of classes; see `load_dataset`."""
    with _quiet_tensorflow():
        builder = _builder(name, data_dir)
        tfds = _import_tfds()
        folder = Path(builder.data_path)
        with _readable(name, folder):
            check_features(name, builder.info.features, tfds.features.Image)
            if builder.info.splits:
                check_split(name, split, builder.info.splits)
            available = builder.info.splits[split].num_examples
            num_classes = builder.info.features["label"].num_classes
        check_subset(subset, available, name, split)
        size = available if subset is None else subset
        with _readable(name, folder):
            stored = builder.as_dataset(
                split=f"{split}[:{size}]",
                # Files are read one at a time; otherwise the order would depend on the number of files of the split.
                read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
                shuffle_files=False,
            )
            batches = list(tfds.as_numpy(stored.batch(1024)))
            images = np.concatenate([batch["image"] for batch in batches])
            labels = np.concatenate([batch["label"] for batch in batches])
    return images / np.float32(255), labels, num_classes


def num_examples(name: str, split: str, data_dir: str | Path | None) -> int:
    """Returns the number of examples of a split, after a download if the set is not on disk."""
    with _quiet_tensorflow():
        splits = _builder(name, data_dir).info.splits
        check_split(name, split, splits)
        return splits[split].num_examples


def split_names(name: str, data_dir: str | Path | None) -> tuple[str, ...]:
    """Returns the names of the splits of a set, after a download if the set is not on disk."""
    with _quiet_tensorflow():
        return tuple(_builder(name, data_dir).info.splits)


@contextlib.contextmanager
def opened(name: str, data_dir: str | Path | None) -> Iterator[tuple[Any, Any]]:
    """Yields the library and the builder of a set, after a download if the set is not on disk.

    Errors of the library inside the block become a `DataError`.
    """
    with _quiet_tensorflow():
        builder = _builder(name, data_dir)
        with _readable(name, Path(builder.data_path)):
            yield _import_tfds(), builder


def known_names() -> list[str]:
    """Returns the names of all sets of the library."""
    with _hold_back_stderr():
        import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def root_of(name: str, data_dir: str | Path | None) -> Path | None:
    """Returns the folder of tensorflow-datasets, checked to exist, or None for the library's default."""
    if data_dir is None:
        return None
    root = as_path("data_dir", data_dir, DataError).absolute()
    if (found := found_at(root)) != "a folder":
        raise DataError(
            f"Expected `data_dir` to be an existing folder of tensorflow-datasets, got {shorten(str(root), 200)}, "
            f"{found}; create it first, or pass the folder that holds {shorten(name)}"
        )
    return root


def check_split(name: str, split: str, known: Iterable[str]) -> None:
    """Refuses a split that a set lacks."""
    if split not in known:
        raise DataError(
            f"Expected `split` of {name} to be one of {', '.join(known)}, got {split!r}; choose one of these"
        )


def check_subset(subset: int | None, available: int, name: str, split: str) -> None:
    """Refuses a subset that is larger than the split."""
    if subset is not None and subset > available:
        raise DataError(
            f"Expected `subset` to be at most {available}, the number of examples in split {split!r} of "
            f"{name}, got {subset}; ask for fewer, or leave it out to take every example"
        )


@contextlib.contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Keeps TensorFlow's start-up lines off the terminal, unless the user has said how much it may print."""
    variable = "TF_CPP_MIN_LOG_LEVEL"
    before = os.environ.get(variable)
    # Importing JAX sets "1", so this value is not the user's choice.
    if before not in (None, "1"):
        yield
        return
    # At level 2 a machine without a GPU still prints an error line about cuInit.
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
    """Keeps the process's error stream back, and prints it only if the block ends with an error."""
    # TensorFlow writes its first lines to the file descriptor before it reads any environment variable.
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

        # TensorFlow refuses this once its runtime has started. The caller has then chosen its devices, and keeps them.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
        import tensorflow_datasets as tfds

    return tfds


def _cause(error: Exception) -> str:
    """Returns the type and the first line of another library's error, for a message of one line."""
    # TensorFlow adds {{node ...}} and [Op:...] to its messages, which do not help a reader.
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip()
    return f"{type(error).__name__}: {(text.splitlines() or ['no details'])[0][:300]}"


@contextlib.contextmanager
def _readable(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # Every layer raises its own type for a damaged file (JSON, protobuf, tf.errors, AssertionError, ...), and
    # tensorflow-datasets documents no common one.
    except Exception as error:
        raise DataError(
            f"Expected `data_dir` to hold readable files of {name}, got {_cause(error)} while reading "
            f"{folder}; put an intact copy of the data set there"
        ) from error


def _builder(name: str, data_dir: str | Path | None) -> Any:
    """Returns the builder of a set, after a download if the set is not on disk."""
    root = root_of(name, data_dir)
    tfds = _import_tfds()
    with _readable(name, (root or Path("the default data_dir")) / name):
        try:
            builder = tfds.builder(name, data_dir=root)
        except tfds.core.DatasetNotFoundError:
            raise DataError(
                f"Expected `name` to be a set of tensorflow-datasets, got {name!r}; choose one, or put arrays of your "
                "own into `Dataset`"
            ) from None
    folder = Path(builder.data_path)
    with _readable(name, folder):
        absent = not folder.exists()
    if absent:
        _download(builder, name, folder)
    return builder


def check_features(name: str, features: Any, image_kind: Any, *, one_size: bool = True) -> None:
    """Refuses a set unless it holds labeled images of 8 bits, and by default of one size."""
    known: dict[str, Any] = {"image": None, "label": None} | dict(features)
    image, label = known["image"], known["label"]
    if not isinstance(image, image_kind):
        got = "no `image`"
    elif one_size and None in image.shape:
        got = f"images of varying size {image.shape}"
    elif image.np_dtype != np.uint8:
        got = f"images of {np.dtype(image.np_dtype)}"
    elif getattr(label, "num_classes", None) is None:
        got = "no class `label`"
    else:
        return
    kind = "8 bits and one size" if one_size else "8 bits"
    raise DataError(
        f"Expected `name` to be a set with an `image` of {kind} and a class `label`, got {name} with {got}; "
        "choose another, or put arrays of your own into `Dataset`"
    )


def _download(builder: Any, name: str, folder: Path) -> None:
    # tensorflow-datasets downloads with requests, so this probe meets the same proxies and certificates.
    import requests

    remedy = (
        f"pass a tensorflow-datasets folder that holds {name} as `data_dir`, connect to the "
        "internet, or use digits, which needs neither"
    )
    # `folder` is data_dir/name/version. The folders above it that are missing now are removed again after a failure.
    root = folder.parent.parent
    missing = [path for path in (folder.parent, root, *root.parents) if not path.exists()]
    try:
        # Without a network tensorflow-datasets retries for minutes; one request to the first server finds out sooner.
        for url in list(builder.url_infos)[:1]:
            requests.head(url, timeout=_PROBE_SECONDS)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete_download_", dir=root) as scratch:
            builder.download_and_prepare(download_dir=scratch)
    # tensorflow-datasets 4.9.10 uses importlib_resources without declaring the dependency:
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
    # Servers, archives and the disk raise their own types of errors, and tensorflow-datasets documents no common one.
    except Exception as error:
        raise DataError(
            f"Expected `data_dir` to hold {name}, got no {folder}, and the download failed ({_cause(error)}); {remedy}"
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
