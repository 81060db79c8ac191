"""Data of your own: inputs and targets from an .npz or a .csv file."""

import csv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from nngp_dag.data.paths import found_at
from nngp_dag.data.preprocessing import one_hot, scale_to_sphere
from nngp_dag.data.splits import Part, Splits, load_splits, with_eval_subset
from nngp_dag.data.stream import ImageStream, load_stream
from nngp_dag.errors import DataError, InputWarning, as_path, did_you_mean, shorten, warn

TARGET_NAMES: Final = ("y", "label", "labels", "target", "class")
"""Names of a .csv file's column that holds the targets; a file without these names has them in its last column."""

_ARRAYS = ("x", "y", "x_test", "y_test")
_SHUFFLE_SEED = 0
# Floats that are whole numbers look like classes if there are 3 to this many different ones.
_MOST_CLASSES = 20


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a file, with labels, targets or neither.

    Attributes:
      name: Name of the file.
      x: Inputs, (N, d) or (N, height, width, channels) in float32 or float64; not normalized.
      y: Labels from 0 to C - 1, (N,) in int64; or targets of a regression, (N, C) in float64; or None.
      classes: Names of the labels in the file, in the order of their numbers; empty where `y` holds no labels.
      x_test: Test inputs, (M, ...), or None.
      y_test: Labels or targets of the test inputs, or None.
      path: Path of the file; None for arrays that were not read from a file.
      target: Name of the .csv column that holds the targets; empty for other files.

    Examples:
      >>> samples = Samples("mine", np.ones((2, 3)), np.array([1, 0]), classes=("cat", "dog"))
      >>> samples.targets
      array([[0., 1.],
             [1., 0.]], dtype=float32)
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    path: Path | None = None
    target: str = ""

    @property
    def targets(self) -> np.ndarray:
        """Targets to fit, (N, C): one-hot rows of the labels in float32, or the targets of a regression in float64.

        Raises:
          DataError: There are neither labels nor targets.
        """
        if self.y is None:
            raise DataError(f"Expected {self.name} to hold labels or targets `y` to fit, got `x` alone; add `y`")
        return one_hot(self.y, len(self.classes)) if self.classes else self.y

    @property
    def statement(self) -> str:
        """Summary of the file's content in one line, with its target and the numbers of labels that were renumbered."""
        shape = " x ".join(map(str, self.x.shape[1:]))
        text = f"{self.name}: {len(self.x):,} inputs of {shape}, used as they are (not normalized)"
        if self.y is None:
            return text
        text += f"; target: {shorten(self.target)}" if self.target else ""
        if not self.classes:
            return f"{text}; {self.y.shape[1]} real target{'s' if self.y.shape[1] > 1 else ''} each"
        text += f"; {len(self.classes)} classes"
        if self.classes == tuple(map(str, range(len(self.classes)))):
            return text
        numbered = [f"{name} is {i}" for i, name in enumerate(self.classes[:4])]
        return f"{text}, renumbered: {', '.join(numbered)}{', ...' if len(self.classes) > 4 else ''}"

    def splits(
        self, *, subset: int | None = None, eval_subset: int | None = None, scale_inputs: bool = False
    ) -> Splits:
        """Returns the training, validation and test parts; nothing is normalized.

        A tenth of `x`, drawn with seed 0, is for validation. The test part is `x_test`, or another tenth without it.

        Args:
          subset: Largest number of training examples, the first of the part; None takes all.
          eval_subset: Largest number of validation examples and of test examples; None takes all.
          scale_inputs: Whether to scale every input to |x|^2 = its number of features.

        Returns:
          The three parts, float32 inputs and their labels.

        Raises:
          DataError: There are no labels, fewer than 10 inputs, or fewer than `subset` for training.

        Examples:
          >>> samples = Samples("mine", np.ones((20, 3)), np.arange(20) % 2, ("a", "b"))
          >>> {name: len(part.labels) for name, part in samples.splits().parts.items()}
          {'train': 16, 'validation': 2, 'test': 2}
        """
        if self.y is None or not self.classes:
            raise DataError(
                f"Expected {self.name} to hold labels to train on, got {'none' if self.y is None else 'real targets'}; "
                "store classes as integers, or fit real targets with `compare`"
            )
        if len(self.x) < 10:
            raise DataError(f"Expected at least 10 inputs in {self.name}, to set some aside, got {len(self.x)}")
        order, tenth = np.random.default_rng(_SHUFFLE_SEED).permutation(len(self.x)), -(-len(self.x) // 10)
        x, x_test, y_test = self.x, self.x_test, self.y_test
        if scale_inputs:
            x = scale_to_sphere(x).reshape(x.shape)
            x_test = None if x_test is None else scale_to_sphere(x_test).reshape(x_test.shape)
        chosen, validation = order[:-tenth], order[-tenth:]
        how = f"a random tenth of the inputs (seed {_SHUFFLE_SEED})"
        if x_test is None or y_test is None:
            chosen, tested = chosen[:-tenth], chosen[-tenth:]
            x_test, y_test, how = x[tested], self.y[tested], f"{how} each"
        if subset is not None and not 1 <= subset <= len(chosen):
            raise DataError(
                f"Expected `subset` from 1 to {len(chosen)}, the size of the training part of {self.name}, got "
                f"{subset}; leave it out to take all of it"
            )
        chosen, validation = chosen[:subset], validation[:eval_subset]
        test = Part(x_test[:eval_subset].astype(np.float32), y_test[:eval_subset])
        source = {"file": str(self.path), "subset": subset, "scale_inputs": scale_inputs}
        return Splits(
            self.name,
            Part(x[chosen].astype(np.float32), self.y[chosen]),
            Part(x[validation].astype(np.float32), self.y[validation]),
            test,
            len(self.classes),
            f"{self.statement}; {len(chosen):,} for training, {len(validation):,} for validation, "
            f"{len(test.labels):,} for testing, {how}{'; scaled to |x|² = d' if scale_inputs else ''}",
            {} if self.path is None else with_eval_subset(source, eval_subset),
        )


def load_file(path: str | Path) -> Samples:
    """Reads inputs and targets of your own from an .npz or a .csv file.

    - `.npz`, as `numpy.savez` writes it: `x`, (N, d) or (N, height, width, channels), and optionally `y`, `x_test` and
      `y_test`. Pickled objects are refused.
    - `.csv`: one input per line, numbers separated by commas. The column y, label, labels, target or class holds the
      targets; without such a name it is the last one. The first line names the columns in two cases. Either an entry
      before its last one is text, or the last one is text that does not occur below, while the texts below repeat.

    Inputs are neither shifted nor scaled. Targets that are integers, texts or one-hot rows are labels. Labels other
    than 0 to C - 1 are renumbered in sorted order. Targets that are floats belong to a regression, (N,) or (N, C). In a
    .csv file these are numbers with a decimal point. An `InputWarning` is issued where such targets look like classes,
    which means 3 to 20 different whole numbers that repeat.

    Args:
      path: Path of the file.

    Returns:
      The `Samples` of the file.

    Raises:
      DataError: The file cannot be read, or an array is missing, not finite or of another shape. A test label does not
        occur among the training labels.

    Examples:
      >>> import tempfile, numpy as np, nngp_dag as nd
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(folder + "/my.npz", x=np.eye(3), y=[7, 3, 7])
      ...     samples = nd.data.load_file(folder + "/my.npz")
      >>> samples.x.shape, samples.y, samples.classes
      ((3, 3), array([1, 0, 1]), ('3', '7'))
    """
    path = as_path("path", path, DataError)
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(
            f"Expected a file .npz or .csv of your data, got {shorten(str(path), 200)}; save it as one of these"
        )
    if (found_there := found_at(path)) != "a file":
        raise DataError(f"Expected {shorten(str(path), 200)} to be a file, got {found_there}; check its name")
    arrays, target = readers[path.suffix.lower()](path)
    x, x_test = (None if arrays.get(key) is None else _inputs(path, key, arrays[key]) for key in ("x", "x_test"))
    assert x is not None
    y, y_test = arrays.get("y"), arrays.get("y_test")
    if (x_test is None) != (y_test is None) and y is not None:
        raise DataError(f"Expected both or neither of `x_test` and `y_test` in {path}, got one of them")
    if x_test is not None and x_test.shape[1:] != x.shape[1:]:
        raise DataError(f"Expected `x_test` of {path} to have inputs of shape {x.shape[1:]}, got {x_test.shape[1:]}")
    if y is None:
        return Samples(path.name, x, x_test=x_test, path=path.absolute())
    named = {"y": (y, len(x)), "y_test": (y_test, 0 if x_test is None else len(x_test))}
    found = {key: _targets(path, key, value, n) for key, (value, n) in named.items() if value is not None}
    classes, numbered = _labels(path, found)
    return Samples(path.name, x, numbered["y"], classes, x_test, numbered.get("y_test"), path.absolute(), target)


def load_source(source: Mapping[str, Any], *, data_dir: str | Path | None = None) -> Splits | ImageStream:
    """Loads again the data that `Splits.source` or `ImageStream.source` describes.

    Args:
      source: Arguments of `load_splits`, or of `Samples.splits` with the path as "file", or of `load_stream` under
        "stream".
      data_dir: Folder of tensorflow-datasets, see `load_splits`.

    Returns:
      Parts equal to those that were loaded first.

    Raises:
      DataError: The data cannot be found or read.

    Examples:
      >>> load_source({"name": "digits", "subset": 50, "scale_inputs": False}).train.x.shape
      (50, 8, 8, 1)
    """
    if "stream" in source:
        return load_stream(**source["stream"], data_dir=data_dir)
    if "file" not in source:
        return load_splits(**source, data_dir=data_dir)
    options = {name: value for name, value in source.items() if name != "file"}
    return load_file(source["file"]).splits(**options)


def _read_npz(path: Path) -> tuple[Mapping[str, np.ndarray], str]:
    """Returns the arrays by their names, and an empty name of the target."""
    try:
        # NumPy leaves a damaged file open if it opens the file itself.
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, Mapping):
                raise ValueError("a single array; save it with numpy.savez(path, x=..., y=...)")
            names = list(stored)
            found = {name: stored[name] for name in _ARRAYS if name in names}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, MemoryError, zipfile.BadZipFile) as error:
        text = str(error) or type(error).__name__
        if "pickle" in text:
            objects = "an array of objects; store numbers, of one dtype"
            another = "a file of another kind; save it with numpy.savez(path, x=..., y=...)"
            text = objects if zipfile.is_zipfile(path) else another
        raise DataError(f"Expected {path} to be a readable .npz file, got {text[:300]}") from None
    if "x" not in found:
        listed = ", ".join(names[:10]) or "none"
        raise DataError(f"Expected an array `x` in {path}, got {listed}; save with numpy.savez(path, x=..., y=...)")
    if unknown := [name for name in names if name not in _ARRAYS]:
        near = did_you_mean(unknown[0], _ARRAYS)
        raise DataError(f"Expected arrays {', '.join(_ARRAYS)} in {path}, got {unknown[0][:60]!r} too{near}")
    return found, ""


def _read_csv(path: Path) -> tuple[Mapping[str, np.ndarray], str]:
    """Returns inputs and targets, and the name of the column of targets."""
    import pandas

    try:
        first = _first_line(path)
        named = any(not _is_number(cell) for cell in first[:-1]) or first[-1].lower() in TARGET_NAMES
        # Names are read here: those that pandas makes hide that two are equal or one is absent.
        table: Any = pandas.read_csv(
            path, header=None, skiprows=int(named), encoding="utf-8-sig", skipinitialspace=True, low_memory=False
        )
    except pandas.errors.EmptyDataError:
        raise DataError(
            f"Expected inputs below the names of columns in {path}, got none; write a line for every input"
        ) from None
    except (OSError, ValueError, csv.Error, pandas.errors.ParserError) as error:
        raise DataError(f"Expected {path} to be a readable .csv file, got {str(error).strip()[:300]}") from None
    if len(table.columns) != len(first):
        hint = "; delete the comment there" if first[0].startswith("#") else ""
        raise DataError(
            f"Expected every line of {path} to have the {len(first)} entries of its first line, got "
            f"{len(table.columns)}{hint}"
        )
    if not named and _begins_with_its_name(table[len(first) - 1]):
        named, table = True, table.iloc[1:].reset_index(drop=True)
    names = first if named else [f"column {i + 1}" for i in range(len(first))]
    if "" in names:
        raise DataError(
            f"Expected a name for every column of {path}, got none for column {names.index('') + 1}; write the file "
            "without an index, or name it"
        )
    targets = [i for i, name in enumerate(names) if name.lower() in TARGET_NAMES] if named else []
    if len(targets) > 1:
        raise DataError(
            f"Expected one column of targets in {path}, got {', '.join(names[i] for i in targets)}; rename the others"
        )
    target = targets[0] if targets else len(names) - 1
    if names[target].lower() == "y" and target != len(names) - 1:
        warn(
            f"Expected the targets of {path} in its last column, {shorten(names[-1])!r}, or in one named "
            f"{', '.join(TARGET_NAMES[1:])}, got column {target + 1}, named {names[target]!r}, which is taken as the "
            "targets; rename it to target if that is right, or else to anything but y",
            InputWarning,
        )
    columns = [i for i in range(len(names)) if i != target]
    for i in columns:
        if table[i].dtype.kind not in "iufb":
            wrong = next((str(v) for v in table[i] if not _is_number(str(v))), None)
            if wrong is not None:
                raise DataError(
                    f"Expected numbers in {names[i]!r} of {path}, got {wrong[:60]!r}; leave the column out, or code it "
                    "as numbers"
                )
            table[i] = table[i].astype(float)  # integers of more than 64 bits
    y = table[target]
    empty = np.flatnonzero(y.isna())
    if empty.size:
        place = _place(path, int(empty[0]), len(table))
        raise DataError(f"Expected a target on every line of {path}, got none in {place}; leave that line out")
    texts = y.dtype.kind not in "iufb"
    arrays = {"x": table[columns].to_numpy(np.float64), "y": y.to_numpy(np.str_ if texts else None)}
    return arrays, names[target]


def _first_line(path: Path) -> list[str]:
    """Returns the entries of the first line; raises a `ValueError` if there are fewer than two."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        cells = next(csv.reader(file, skipinitialspace=True), None)
    if cells is None:
        raise ValueError("an empty one; write a line for every input")
    cells = [cell.strip() for cell in cells]
    if not any(cells):
        raise ValueError("a blank first line; delete it")
    if len(cells) < 2:
        comment = cells[0].startswith("#")
        raise ValueError(
            "a comment as its first line; delete it" if comment else "fewer than two columns; separate them by commas"
        )
    return cells


def _begins_with_its_name(column: Any) -> bool:
    """Whether the first text of a column of classes is its name: it occurs once, while other texts repeat."""
    if column.dtype.kind in "iufb":
        return False
    name, *classes = map(str, column)
    return name not in classes and len(set(classes)) < len(classes) and not any(map(_is_number, [name, *classes]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_000 as a number


def _place(path: Path, row: int, rows: int) -> str:
    """Returns the place of a row in a file: "line 3", counted from 1, of a .csv file, else "row 1", counted from 0."""
    if path.suffix.lower() != ".csv":
        return f"row {row}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, skipinitialspace=True)
            ends = [lines.line_num for cells in lines if cells]
    except csv.Error:  # an entry is too long for the csv module
        return f"row {row}"
    # The names of columns may stand before the rows.
    return f"line {ends[len(ends) - rows + row]}"


def _inputs(path: Path, key: str, x: np.ndarray) -> np.ndarray:
    """Returns inputs as float32, or float64 where they have more digits."""
    if x.dtype.kind not in "biuf":
        raise DataError(f"Expected `{key}` of {path} to hold real numbers, got dtype {x.dtype}")
    if x.ndim not in (2, 4) or x.size == 0:
        hint = {1: "give it a second axis, of features", 3: "give images a last axis, of channels"}.get(
            x.ndim, "reshape it"
        )
        raise DataError(
            f"Expected `{key}` of {path} to have shape (N, d) or (N, height, width, channels), got {x.shape}; {hint}"
        )
    x = x.astype(np.float32 if x.dtype in (np.float16, np.float32) or x.dtype.itemsize < 4 else np.float64)
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(
            f"Expected `{key}` of {path} to be finite, got NaN or infinity in {_place(path, row, len(x))}; leave it out"
        )
    return x


def _targets(path: Path, key: str, y: np.ndarray, rows: int) -> np.ndarray:
    """Returns the labels of the file, (N,), or real targets in float64, (N, C)."""
    if y.dtype.kind not in "biufU":
        raise DataError(f"Expected `{key}` of {path} to hold labels or real numbers, got dtype {y.dtype}")
    if y.ndim not in (1, 2) or len(y) != rows or y.size == 0:
        raise DataError(f"Expected `{key}` of {path} to have shape ({rows},) or ({rows}, C), got {y.shape}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise DataError(f"Expected `{key}` of {path} to be finite, got NaN or infinity; leave those rows out")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.dtype.kind in "biuf" and ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all():
        return y.argmax(axis=1)
    if y.ndim == 2 and y.dtype.kind != "f":
        raise DataError(
            f"Expected `{key}` of {path} to hold one label each or one-hot rows, got {y.dtype} of shape {y.shape}; "
            "store targets of a regression as floats"
        )
    return y.astype(np.float64).reshape(rows, -1) if y.dtype.kind == "f" else y


def _labels(path: Path, found: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Returns the names of the classes, and the labels numbered from 0; real targets stay unchanged."""
    kinds = {{"f": "real targets", "U": "texts"}.get(y.dtype.kind, "integers") for y in found.values()}
    if len(kinds) > 1 or len({y.shape[1:] for y in found.values()}) > 1:
        raise DataError(f"Expected `y` and `y_test` of {path} to be of one kind, got {' and '.join(sorted(kinds))}")
    y = found["y"]
    values = np.unique(y)
    if y.dtype.kind == "f":
        # Two values, such as -1 and 1, are usual targets of a regression.
        if y.shape[1] == 1 and 2 < len(values) <= min(_MOST_CLASSES, len(y) // 2) and (values == values.round()).all():
            warn(
                f"Expected classes in {path} to be integers, got floats with {len(values)} different whole values, "
                "which are taken as targets of a regression; store classes without decimal points, or, if a regression "
                "is meant, ignore `nngp_dag.errors.InputWarning` by `warnings.filterwarnings`",
                InputWarning,
            )
        return (), dict(found)
    if len(values) > max(2, len(y) // 2) and not np.array_equal(values, np.arange(len(values))):
        raise DataError(
            f"Expected labels that repeat in {path}, got {len(values)} different ones for {len(y)} inputs; store "
            "targets of a regression as floats, in a .csv file with decimal points"
        )
    numbered = {}
    for key, labels in found.items():
        place = np.minimum(np.searchsorted(values, labels), len(values) - 1)
        if (unknown := np.flatnonzero(values[place] != labels)).size:
            row = unknown[0]
            raise DataError(
                f"Expected every label in `{key}` of {path} to occur in `y`, got {labels[row]} in row {row}; leave "
                "those rows out, or add examples"
            )
        numbered[key] = place.astype(np.int64)
    return tuple(map(str, values)), numbered
