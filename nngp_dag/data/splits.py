"""A data set as training needs it: normalized inputs and labels for training, validation and testing."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nngp_dag import forms
from nngp_dag.data.datasets import Dataset, check_size, load_dataset, split_names
from nngp_dag.data.preprocessing import NORMALIZATION, Constants, channel_constants, normalize, scale_to_sphere
from nngp_dag.errors import DataError
from nngp_dag.forms import described

# The code of Chen et al. (2022) takes the last 10 % of CIFAR's training images as stored, and of MNIST and SVHN a
# tenth drawn at random.
_VALIDATION_IS_LAST = ("cifar10", "cifar100")
_SHUFFLE_SEED = 0


@described
class Part(NamedTuple):
    """Inputs and their labels.

    Attributes:
      x: float32, (N, ...).
      labels: Integers, (N,).
    """

    x: np.ndarray
    labels: np.ndarray

    def _facts(self) -> dict[str, str]:
        return {"x": forms.array(self.x), "labels": forms.array(self.labels)}


@described
@dataclass(frozen=True, eq=False)
class Splits:
    """What a network trains on, what chooses its best state, and what it is tested on; validated once.

    Attributes:
      name: Name of the data set.
      train: The training part.
      validation: The validation part.
      test: The testing part.
      num_classes: The number of classes.
      statement: How the parts came about, in one sentence.
      source: The arguments of `load_splits` that made them, without the folder; empty for data of your own.

    Raises:
      DataError: A part is empty, its labels are not integers from 0 to num_classes - 1, an input is not finite, or
        parts hold inputs of different shapes.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    num_classes: int
    statement: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses parts that break the promises above."""
        for name, part in self.parts.items():
            # Plain tuples too.
            object.__setattr__(self, name, part)
        for name, (x, labels) in self.parts.items():
            if not (isinstance(x, np.ndarray) and isinstance(labels, np.ndarray)):
                raise DataError(
                    f"Expected NumPy arrays, got {type(x).__name__} and {type(labels).__name__} in the {name} part"
                )
            if len(x) == 0 or labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
                raise DataError(
                    f"Expected the {name} part to hold inputs (N, ...) and as many integer labels (N,), got shapes "
                    f"{x.shape} and {labels.shape} of {labels.dtype}"
                )
            if x.shape[1:] != self.train[0].shape[1:]:
                raise DataError(
                    f"Expected all parts to hold inputs of one shape, got {x.shape[1:]} in the {name} part and "
                    f"{self.train[0].shape[1:]} in the train part"
                )
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise DataError(
                    f"Expected labels from 0 to {self.num_classes - 1}, got {labels.min()} to {labels.max()} in the "
                    f"{name} part"
                )
            if not np.isfinite(x).all():
                raise DataError(f"Expected finite inputs, got NaN or infinity in the {name} part")

    def _facts(self) -> dict[str, str]:
        parts = {name: forms.array(part.x) for name, part in self.parts.items()}
        return {"": repr(self.name), **parts, "num_classes": str(self.num_classes)}

    @property
    def parts(self) -> dict[str, Part]:
        """The three parts by name."""
        return {name: Part(*getattr(self, name)) for name in ("train", "validation", "test")}

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Name, sizes, SHA-256 and source: what tells these data from others, and how to load them."""
        found = hashlib.sha256()
        for x, labels in self.parts.values():
            found.update(np.ascontiguousarray(x).data)
            found.update(np.ascontiguousarray(labels.astype(np.int64)).data)
        sizes = {name: len(part.labels) for name, part in self.parts.items()}
        return {"name": self.name, **sizes, "sha256": found.hexdigest(), "source": dict(self.source)}


def load_splits(
    name: str,
    *,
    subset: int | None = None,
    eval_subset: int | None = None,
    data_dir: str | Path | None = None,
    scale_inputs: bool = False,
) -> Splits:
    """Loads a data set and splits and normalizes it as the code of Chen et al. does.

    A tenth of the official training images is for validation: of CIFAR the last tenth as stored (45,000 and 5,000
    images), of the others one drawn at random, once and for all, with seed 0. Their code draws it anew with every seed
    of the training; here seeds differ in their weights and batches only. The official test images are the test part.
    Other image sets of tensorflow-datasets are normalized by mean and standard deviation of every channel of their
    training part, before any `subset`; where one has no `test` split, its `validation` split is the test part.
    `sphere` has as many points as are asked for (230 without `subset`), and 256 to test.

    Args:
      name: One of `DATASETS`, or another image set of tensorflow-datasets, as in `load_dataset`.
      subset: Train on the first so many of the training part; validation and test stay whole. None takes all.
      eval_subset: Validate and test on at most the first so many of these parts; None takes all.
      data_dir: As in `load_dataset`.
      scale_inputs: Scale every input to |x|^2 = its number of features, as kernels like it; the authors do not.

    Returns:
      Normalized `Splits`.

    Raises:
      DataError: As `load_dataset`, or the training part has fewer than `subset` examples.

    Example:
      >>> from nngp_dag.data import load_splits
      >>> splits = load_splits("digits", subset=1000)
      >>> {name: part.x.shape for name, part in splits.parts.items()}
      {'train': (1000, 8, 8, 1), 'validation': (150, 8, 8, 1), 'test': (297, 8, 8, 1)}

    Reference: the constants and splits are those of the published MLP trainer of Chen et al., NeurIPS 2022.
    """
    for argument, value in (("subset", subset), ("eval_subset", eval_subset)):
        check_size(argument, value)
    # Points of the sphere are drawn, as many as it takes to leave `subset` for training.
    drawn = -(-subset * 10 // 9) if name == "sphere" and subset is not None else None
    whole = load_dataset(name, data_dir=data_dir, subset=drawn)
    names = split_names(name, data_dir)
    tested = "validation" if "test" not in names and "validation" in names else "test"
    test = load_dataset(name, split=tested, data_dir=data_dir)
    held_out = len(whole.labels) - len(whole.labels) * 9 // 10
    if name in _VALIDATION_IS_LAST:
        order, how = np.arange(len(whole.labels)), "the last tenth of the training images as stored"
    else:
        order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(whole.labels))
        how = f"a random tenth of the training images (seed {_SHUFFLE_SEED})"
    chosen, validation = order[:-held_out], order[-held_out:]
    constants = NORMALIZATION[name] if name in NORMALIZATION else channel_constants(whole.images[chosen])
    if subset is not None:
        if subset > len(chosen):
            raise DataError(
                f"Expected `subset` to be at most {len(chosen)}, the size of the training part of {name}, got "
                f"{subset}; ask for fewer, or leave it out to take every example"
            )
        chosen = chosen[:subset]
    validation = validation[:eval_subset]
    x, x_test = _inputs(whole, scale_inputs, constants), _inputs(test, scale_inputs, constants)[:eval_subset]
    scaling = "not normalized" if constants is None else f"normalized by mean {constants[0]} and std {constants[1]}"
    scaling += ", then scaled to |x|² = d" if scale_inputs else ""
    return Splits(
        name,
        Part(x[chosen], whole.labels[chosen]),
        Part(x[validation], whole.labels[validation]),
        Part(x_test, test.labels[:eval_subset]),
        whole.num_classes,
        f"{name}: {len(chosen):,} images for training{', a subset' if subset else ''}, {len(validation):,} for "
        f"validation ({how}), {len(x_test):,} for testing{'' if tested == 'test' else f' (its {tested} split)'}; "
        + scaling,
        with_eval_subset({"name": name, "subset": subset, "scale_inputs": scale_inputs}, eval_subset),
    )


def with_eval_subset(source: dict[str, Any], eval_subset: int | None) -> dict[str, Any]:
    """Returns what names data with the number of examples to evaluate on, which runs without one do not state."""
    return source if eval_subset is None else source | {"eval_subset": eval_subset}


def _inputs(data: Dataset, scale_inputs: bool, constants: Constants | None) -> np.ndarray:
    x = normalize(data, constants)
    return scale_to_sphere(x).reshape(x.shape) if scale_inputs else x
