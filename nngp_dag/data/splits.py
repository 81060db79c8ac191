"""Data sets split for training: normalized inputs and labels for training, validation and testing."""

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
from nngp_dag.forms import Described

# The code of Chen et al. (2022) validates on the last 10 % of CIFAR's training images as stored. For MNIST and SVHN it
# draws a tenth at random.
_VALIDATION_IS_LAST = ("cifar10", "cifar100")
_SHUFFLE_SEED = 0


class Part(NamedTuple):
    """One part of a data set, inputs and their labels.

    Attributes:
      x: Inputs in float32, (N, ...).
      labels: Classes, integers from 0 to C - 1, (N,).

    Examples:
      >>> len(load_splits("digits", subset=50).train.labels)
      50
    """

    x: np.ndarray
    labels: np.ndarray

    def _facts(self) -> dict[str, str]:
        return {"x": forms.array(self.x), "labels": forms.array(self.labels)}

    def __repr__(self) -> str:
        """Returns dtypes and shapes in one line."""
        return forms.call("Part", self._facts())

    def _repr_html_(self) -> str:
        return forms.facts_html("Part", self._facts())


@dataclass(frozen=True, eq=False, repr=False)
class Splits(Described):
    """The training, validation and test parts of a data set, validated when they are made.

    The validation part chooses the best state of a trained network.

    Attributes:
      name: Name of the data set.
      train: The training part.
      validation: The validation part.
      test: The test part.
      num_classes: Number C of classes.
      statement: Origin of the parts, in one sentence.
      source: Arguments of `load_splits` or `Samples.splits` that made the parts, for `load_source`; empty for other
        arrays.

    Raises:
      DataError: A part is empty, or its labels are not integers from 0 to num_classes - 1. An input is not finite, or
        parts hold inputs of different shapes.

    Examples:
      >>> part = Part(np.zeros((2, 3), np.float32), np.array([0, 1]))
      >>> Splits("mine", train=part, validation=part, test=part, num_classes=2).parts["test"].x.shape
      (2, 3)
    """

    name: str
    train: Part
    validation: Part
    test: Part
    num_classes: int
    statement: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses parts of another form than the attributes state."""
        for name, part in self.parts.items():
            # A part may be given as a plain tuple.
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

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each part."""
        return {name: len(part.labels) for name, part in self.parts.items()}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train[0].shape[1:]

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Name, sizes and SHA-256 of the data, which tell them from other data, and their source."""
        found = hashlib.sha256()
        for x, labels in self.parts.values():
            found.update(np.ascontiguousarray(x).data)
            found.update(np.ascontiguousarray(labels.astype(np.int64)).data)
        return {"name": self.name, **self.sizes, "sha256": found.hexdigest(), "source": dict(self.source)}


def load_splits(
    name: str,
    *,
    subset: int | None = None,
    eval_subset: int | None = None,
    data_dir: str | Path | None = None,
    scale_inputs: bool = False,
) -> Splits:
    """Loads a data set, splits it, and normalizes it in the way of the code of Chen et al.

    A tenth of the official training images is for validation. For CIFAR this is the last tenth as stored, which leaves
    45,000 images for training. For other sets it is drawn at random with seed 0. The authors' code draws it anew with
    every seed of the training; here seeds differ in their weights and batches only. The official test images are the
    test part.

    Image sets outside `DATASETS` are normalized by mean and standard deviation of every channel of their training part,
    before any `subset`. If such a set has no `test` split, its `validation` split is the test part. `sphere` draws
    `subset` points for training (230 by default) and 256 for testing.

    Args:
      name: One of `DATASETS`, or another image set of tensorflow-datasets, see `load_dataset`.
      subset: Largest number of training examples, the first of the part; validation and test stay whole. None takes
        all.
      eval_subset: Largest number of validation examples and of test examples, the first of these parts; None takes all.
      data_dir: Folder of tensorflow-datasets, see `load_dataset`.
      scale_inputs: Whether to scale every input to |x|^2 = its number of features, see `scale_to_sphere`. The authors
        do not.

    Returns:
      The normalized parts.

    Raises:
      DataError: `load_dataset` refuses an argument, or the training part has fewer than `subset` examples.

    Examples:
      >>> from nngp_dag.data import load_splits
      >>> splits = load_splits("digits", subset=1000)
      >>> {name: part.x.shape for name, part in splits.parts.items()}
      {'train': (1000, 8, 8, 1), 'validation': (150, 8, 8, 1), 'test': (297, 8, 8, 1)}

    Reference: Chen et al., NeurIPS 2022; the constants and splits are those of its published MLP trainer.
    """
    for argument, value in (("subset", subset), ("eval_subset", eval_subset)):
        check_size(argument, value)
    # A tenth of the drawn points is for validation; so many are drawn that `subset` remain for training.
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
    """Returns a source with the number of validation and test examples; the entry is left out if there is none."""
    return source if eval_subset is None else source | {"eval_subset": eval_subset}


def _inputs(data: Dataset, scale_inputs: bool, constants: Constants | None) -> np.ndarray:
    x = normalize(data, constants)
    return scale_to_sphere(x).reshape(x.shape) if scale_inputs else x
