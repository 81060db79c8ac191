"""Loading of the data that the options name: a file of the user, or a data set."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nngp_dag.cli.screen import note, say
from nngp_dag.errors import InputError

if TYPE_CHECKING:
    from nngp_dag.data import ImageStream, Samples, Splits


def choose_samples(
    data: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    subset: int | None,
    *,
    usual: int,
    scale_inputs: bool = False,
    images: bool = False,
    default: str = "digits",
) -> "Callable[[], Samples]":
    """Returns a function that loads the first training examples; wrong options are found before it is called.

    Args:
      data: Value of --data.
      dataset: Value of --dataset.
      data_dir: Value of --data-dir.
      subset: Value of --subset.
      usual: Number of examples without --subset, or all where there are fewer.
      scale_inputs: Whether to scale inputs to |x|^2 = d.
      images: Whether images keep their shape.
      default: Data set where neither --data nor --dataset is given.
    """
    from nngp_dag.data.datasets import BUILT_IN

    name = _check(data, dataset, data_dir, default)

    def load() -> "Samples":
        samples = _named(name, data_dir, subset, usual) if data is None else _own(data, subset, usual)
        return _shaped(samples, scale_inputs, images)

    if data is None and name not in BUILT_IN:
        return load
    # Files and built-in sets load quickly, so that errors in them are found now.
    loaded = load()
    return lambda: loaded


def choose_splits(
    data: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    *,
    subset: int | None,
    eval_subset: int | None,
    scale_inputs: bool = False,
    default: str = "digits",
    stream: bool = False,
    image_size: int | None = None,
    held_out: int | None = None,
) -> "Callable[[], Splits | ImageStream]":
    """Returns a function that loads the data of a training; wrong options and files are found before it is called."""
    from nngp_dag.data import load_file, load_splits, load_stream

    if stream:
        for option, value in (("--data", data), ("--scale-inputs", scale_inputs or None)):
            if value is not None:
                raise InputError(f"Expected --stream or {option}, got both; leave one of them out")
    else:
        for option, value in (("--image-size", image_size), ("--held-out", held_out)):
            if value is not None:
                raise InputError(f"Expected {option} beside --stream, got it alone; add --stream")
    name = _check(data, dataset, data_dir, default)
    options = {"subset": subset, "eval_subset": eval_subset}
    if stream:
        options |= {"size": image_size or 224, "held_out": held_out}
        return lambda: load_stream(name, data_dir=data_dir, **options)  # type: ignore[arg-type]
    options["scale_inputs"] = scale_inputs
    if data is None:
        return lambda: load_splits(name, data_dir=data_dir, **options)  # type: ignore[arg-type]
    splits = load_file(data).splits(**options)  # type: ignore[arg-type]
    return lambda: splits


def _check(data: Path | None, dataset: str | None, data_dir: Path | None, default: str) -> str:
    """Returns the name of the data set, and refuses two sources and unknown names."""
    from nngp_dag.data.datasets import check_name

    if data is not None:
        for option, value in (("--dataset", dataset), ("--data-dir", data_dir)):
            if value is not None:
                raise InputError(f"Expected --data or {option}, got both; leave one of them out")
        return ""
    name = default if dataset is None else dataset
    check_name(name, data_dir)
    return name


def _named(name: str, data_dir: Path | None, subset: int | None, usual: int) -> "Samples":
    from nngp_dag.data import Samples, load_dataset, normalize
    from nngp_dag.data.datasets import num_examples

    if subset is None:
        subset = min(usual, num_examples(name, data_dir=data_dir) or usual)
    data = load_dataset(name, data_dir=data_dir, subset=subset)
    return Samples(name, normalize(data), data.labels, tuple(map(str, range(data.num_classes))))


def _own(path: Path, subset: int | None, usual: int) -> "Samples":
    import numpy as np

    from nngp_dag.data import load_file

    samples = load_file(path)
    whole = len(samples.x)
    if subset is not None and subset > whole:
        raise InputError(f"Expected --subset to be at most {whole}, the inputs in {path}, got {subset}")
    taken = min(subset or usual, whole)
    say(samples.statement)
    if subset is None and taken < whole:
        say(f"taking the first {taken:,}; --subset {whole} takes all")
    y = None if samples.y is None else samples.y[:taken]
    if y is not None and len(found := np.unique(y)) < len(samples.classes):
        note(
            f"the first {taken:,} inputs hold {len(found)} of {len(samples.classes)} classes; shuffle the file, or "
            "raise --subset"
        )
    return dataclasses.replace(samples, x=samples.x[:taken], y=y)


def _shaped(samples: "Samples", scale_inputs: bool, images: bool) -> "Samples":
    from nngp_dag.data import scale_to_sphere

    x = samples.x
    shape = x.shape if images else (len(x), -1)
    if scale_inputs:
        try:
            x = scale_to_sphere(x)
        except InputError as error:
            raise InputError(f"{error}, or pass --no-scale-inputs") from None
    return dataclasses.replace(samples, x=x.reshape(shape))
