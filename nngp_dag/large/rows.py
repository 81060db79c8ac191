"""Where rows of inputs and targets come from: arrays, memory maps of files, or batches that are read once per pass.

Everything large reads rows in blocks, so that their number is bounded by the disk and not by memory.
"""

import abc
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError, as_path, shown
from nngp_dag.kernels.inputs import check_inputs, compute_dtype
from nngp_dag.sharing import gather_json, place
from nngp_dag.theory.symmetric import check_targets

# Random keys are drawn for so many rows at once.
_KEYS = 1 << 20
# Rows that are read at once before anything is computed.
_READ = 1 << 13
_ALL = slice(None)


class Sampled(NamedTuple):
    """Rows that were drawn at random, without repetition.

    Attributes:
      total: Number of all rows.
      held_out: Numbers of the rows that are held out, ascending, (H,).
      x_held_out: Their inputs, (H, features...).
      y_held_out: Their targets, (H, C).
      candidates: Numbers of other rows, ascending, (M,).
      x: Their inputs, (M, features...).
      digest: SHA-256 of all rows of inputs and targets, by which a resumed call recognizes its data. It is made of
        those of blocks, so that processes can share the work.
    """

    total: int
    held_out: np.ndarray
    x_held_out: np.ndarray
    y_held_out: np.ndarray
    candidates: np.ndarray
    x: np.ndarray
    digest: str

    def drawn(self) -> str:
        """Returns a digest of the rows that were drawn, which every process has read."""
        found = hashlib.sha256()
        for array in (self.held_out, self.x_held_out, self.y_held_out, self.candidates, self.x):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def check_again(self, first: int, x: np.ndarray, y: np.ndarray) -> None:
        """Checks that rows which are read once more, from row `first` on, are those that were drawn.

        Raises:
          InputError: They are not.
        """
        same = first + len(x) <= self.total
        for rows, inputs, targets in (
            (self.held_out, self.x_held_out, self.y_held_out),
            (self.candidates, self.x, None),
        ):
            low, high = np.searchsorted(rows, (first, first + len(x)))
            at = rows[low:high] - first
            same = same and np.array_equal(x[at], inputs[low:high])
            same = same and (targets is None or np.array_equal(y[at], targets[low:high]))
        if not same:
            raise InputError(
                f"Expected `x` to have the same rows in every pass, got others from row {first} on; make its batches "
                "the same in every pass, and do not shuffle them anew"
            )


class _Reading:
    """What is learned of all rows while they are read for the first time, in blocks of `_READ` rows."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._labels: list[int] | None = []

    def add(self, first: int, x: np.ndarray, y: np.ndarray, given: Any) -> None:
        """Takes a checked block, and its targets as they were given."""
        digest = hashlib.sha256(np.ascontiguousarray(x).data)
        digest.update(np.ascontiguousarray(y).data)
        self._digests[str(first)] = digest.hexdigest()
        if np.asarray(given).dtype.kind not in "biu" or y.shape[1] > 1:
            self._labels = None
        if self._labels is not None:
            found = [*self._labels, int(y.min()), int(y.max())]
            self._labels = [min(found), max(found)]

    def digest(self, shared: bool) -> str:
        """Returns the digest of all rows; those that other processes have read are among them if `shared`.

        Raises:
          InputError: The targets look like labels of classes.
        """
        parts = gather_json([self._digests, self._labels]) if shared else [[self._digests, self._labels]]
        digests = {int(first): found for blocks, _ in parts for first, found in blocks.items()}
        if all(labels is not None for _, labels in parts) and (every := [v for _, labels in parts for v in labels]):
            # Whether integers look like labels shows in all of them.
            check_targets("y", np.array([min(every), max(every)]), 2)
        return hashlib.sha256("".join(digests[first] for first in sorted(digests)).encode()).hexdigest()


class Rows(abc.ABC):
    """Rows of inputs and targets.

    Attributes:
      network: The network that the inputs are for.
      shape: Shape of one input, flattened for networks without convolutions and pooling.
      columns: Number of outputs C.
      dtype: Precision in which kernels of these inputs are computed.
      count: Number of rows; None until the first pass over batches has ended.
    """

    network: Network
    shape: tuple[int, ...]
    columns: int
    dtype: np.dtype
    count: int | None

    @abc.abstractmethod
    def blocks(self, size: int, start: int = 0, part: slice = _ALL) -> Iterator[tuple[int, Any, Any]]:
        """Yields (first row, inputs, targets) of blocks of `size` rows from row `start` on; the last may be shorter.

        Args:
          size: Rows of a block.
          start: The first row.
          part: The rows of each block that are read, which another process may not need; there may be none in the last.
        """

    @abc.abstractmethod
    def sampled(self, candidates: int, held_out: float, most_held_out: int, seed: int, shared: bool = False) -> Sampled:
        """Reads all rows, and draws candidates, and a share of the rows that is held out.

        Args:
          candidates: Largest number of candidates.
          held_out: Share of rows that are held out.
          most_held_out: Largest number of rows that are held out.
          seed: Seed of the draws.
          shared: Whether each process reads a part of the rows alone.
        """

    def checked(self, first: int, x: Any, y: Any, among: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs in the precision of kernels, and targets in float64, (n, C), after a check of both.

        Args:
          first: Number of the first row.
          x: Inputs, (n, features...).
          y: Targets, (n,) or (n, C).
          among: Place of the rows, for messages; empty for a block of consecutive rows.

        Raises:
          InputError: A row does not fit the network or the other rows, or is not finite.
        """
        try:
            inputs = np.asarray(check_inputs("x", np.asarray(x), self.network)[0], self.dtype)
            if inputs.shape[1:] != self.shape:
                raise InputError(f"Expected `x` to have rows of shape {self.shape}, got {inputs.shape[1:]}")
            targets = check_targets("y", _as_floats(y), len(inputs), self.columns)
        except InputError as error:
            if first == 0 and not among:
                raise
            place = f"among {among}" if among else f"in the block that begins with row {first}"
            raise InputError(f"{error} ({place})") from error
        return inputs, targets

    def _read_first(self, x: Any, y: Any, dtype: str | None) -> None:
        """Learns shapes and precision from the first rows."""
        given = np.asarray(x)
        inputs = check_inputs("x", given, self.network, dtype)[0]
        self.shape, self.dtype = inputs.shape[1:], compute_dtype(inputs, dtype=dtype)
        self.columns = check_targets("y", _as_floats(y), len(inputs)).shape[1]


class ArrayRows(Rows):
    """Rows of arrays: of NumPy or JAX, memory maps, or anything else with a shape whose rows can be sliced."""

    def __init__(self, network: Network, x: Any, y: Any, dtype: str | None = None) -> None:
        """Checks shapes, and the first row; the other rows are checked when they are read."""
        if len(np.shape(x)) < 2 or not len(x):
            raise InputError(f"Expected `x` to have shape (N, features...) with N >= 1, got {np.shape(x)}")
        if len(np.shape(y)) not in (1, 2) or len(x) != len(y):
            raise InputError(
                f"Expected `y` to have shape ({len(x)},) or ({len(x)}, C), got {np.shape(y)}; pass one target per input"
            )
        self.network, self.count, self._x, self._y = network, len(x), x, y
        self._read_first(x[:1], y[:1], dtype)

    def blocks(self, size: int, start: int = 0, part: slice = _ALL) -> Iterator[tuple[int, Any, Any]]:
        """Yields slices."""
        assert self.count is not None
        for i in range(start, self.count, size):
            first, last, _ = part.indices(min(size, self.count - i))
            yield i, self._x[i + first : i + last], self._y[i + first : i + last]

    def sampled(self, candidates: int, held_out: float, most_held_out: int, seed: int, shared: bool = False) -> Sampled:
        """Draws rows by their numbers alone, and reads these after all have been checked."""
        assert self.count is not None
        count, pool, reading = self.count, _Pool(candidates + most_held_out, seed), _Reading()
        process, processes = place() if shared else (0, 1)
        for first, x, y in self.blocks(_READ):
            if first // _READ % processes == process:
                reading.add(first, *self.checked(first, x, y), y)
        digest = reading.digest(shared)
        for i in range(0, count, _KEYS):
            pool.offer(i, min(_KEYS, count - i))
        out, others = pool.split(count, candidates, held_out, most_held_out)

        def taken(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.checked(0, _gathered(self._x, rows), _gathered(self._y, rows), "the rows drawn at random")

        (x_out, y_out), (x, _) = taken(out) if len(out) else self._none(), taken(others)
        return Sampled(count, out, x_out, y_out, others, x, digest)

    def _none(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((0, *self.shape), self.dtype), np.zeros((0, self.columns))

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all inputs and targets."""
        return self.checked(0, self._x[:], self._y[:])


class BatchRows(Rows):
    """Rows of an iterable of batches (inputs, targets), which is read from its start in every pass."""

    def __init__(self, network: Network, batches: Iterable[Any], dtype: str | None = None) -> None:
        """Reads the first batch."""
        if iter(batches) is batches:
            raise InputError(
                f"Expected `x` to be an array, or batches that can be read several times, got {shown(batches)}, which "
                "ends after one pass; pass a list, a data set of tfds or grain, or a class with `__iter__`"
            )
        self.network, self.count, self._batches = network, None, batches
        self._like: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        first = next(self._pairs(), None)
        if first is None:
            raise InputError("Expected `x` to hold at least one batch, got none")
        self._read_first(*first, dtype)

    def _pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in self._batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise InputError(f"Expected every batch of `x` to be a pair (inputs, targets), got {shown(batch)}")
            x, y = map(np.asarray, batch)
            if not x.ndim or y.shape[:1] != x.shape[:1]:
                raise InputError(
                    f"Expected a batch to have one target per input, got inputs {x.shape}, targets {y.shape}; pass "
                    "arrays with one row per input"
                )
            self._like = self._like or (x.shape[1:], y.shape[1:])
            if (x.shape[1:], y.shape[1:]) != self._like:
                raise InputError(
                    f"Expected all batches to have rows of the shapes {self._like[0]} and {self._like[1]}, got "
                    f"{x.shape[1:]} and {y.shape[1:]}; make them alike"
                )
            if len(x):
                yield x, y

    def blocks(self, size: int, start: int = 0, part: slice = _ALL) -> Iterator[tuple[int, Any, Any]]:
        """Yields blocks that are put together from batches, all of which are read."""
        skip, first, held = start, start, []
        have = 0
        for x, y in self._pairs():
            if skip >= len(x):
                skip -= len(x)
                continue
            x, y, skip = x[skip:], y[skip:], 0
            held.append((x, y))
            have += len(x)
            while have >= size:
                x, y = _joined(held)
                yield first, x[:size][part], y[:size][part]
                first, have, held = first + size, have - size, [(x[size:], y[size:])] if len(x) > size else []
        if have:
            x, y = _joined(held)
            yield first, x[part], y[part]
        if self.count is not None and first + have != self.count:
            raise InputError(
                f"Expected `x` to have {self.count:,} rows in every pass, got {first + have:,}; make its batches the "
                "same in every pass"
            )

    def sampled(self, candidates: int, held_out: float, most_held_out: int, seed: int, shared: bool = False) -> Sampled:
        """Draws rows in one pass over all batches, in which only those that may still be drawn are kept."""
        pool, reading, first = _Pool(candidates + most_held_out, seed), _Reading(), 0
        self.count = None
        for _, x, y in self.blocks(_READ):
            inputs, targets = self.checked(first, x, y)
            reading.add(first, inputs, targets, y)
            pool.offer(first, len(x), inputs, targets)
            first += len(x)
        self.count, digest = first, reading.digest(shared=False)
        out, others = pool.split(first, candidates, held_out, most_held_out)
        x, y = pool.arrays
        order = np.argsort(pool.rows)
        at = [order[np.searchsorted(pool.rows, rows, sorter=order)] for rows in (out, others)]
        return Sampled(first, out, x[at[0]], y[at[0]], others, x[at[1]], digest)


def rows_of(network: Network, x: Any, y: Any, dtype: str | None = None) -> Rows:
    """Returns the rows that the arguments `x` and `y` of `solve` stand for.

    Args:
      network: The network that the inputs are for.
      x: Inputs, (N, features...), or the path of a file .npy; or with `y` None, an iterable of batches (inputs,
        targets).
      y: Targets, (N,) or (N, C), or the path of a file .npy; or None.
      dtype: Precision of kernels, or None for that of the inputs.

    Raises:
      InputError: An argument has another form, or the first row is refused.
    """
    if y is None:
        if hasattr(x, "shape") or isinstance(x, (str, Path)):
            raise InputError("Expected `y` beside an array `x`, got none; pass one target per input")
        if not isinstance(x, Iterable):
            raise InputError(f"Expected `x` to be an array or an iterable of batches, got {shown(x)}")
        return BatchRows(network, x, dtype)
    if isinstance(x, (list, tuple)) and network.dag.num_inputs > 1:
        raise InputError(
            f"Expected `x` to be one array, which all {network.dag.num_inputs} input nodes read, got {shown(x)}; "
            "pass one NumPy array"
        )
    x, y = (_opened(name, v) for name, v in (("x", x), ("y", y)))
    return ArrayRows(network, x, y, dtype)


def _opened(name: str, value: Any) -> Any:
    """Returns an array, a memory map for a path, or what else has rows."""
    if isinstance(value, (str, Path)):
        path = as_path(name, value)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"Expected `{name}` to be a file .npy, got {path}: {shown(str(error))}") from None
    if hasattr(value, "shape") and hasattr(value, "__getitem__"):
        return np.asarray(value) if isinstance(value, jax.Array) else value
    return np.asarray(value)


def _gathered(values: Any, rows: np.ndarray) -> np.ndarray:
    # A memory map is read in the order of its rows, which `rows` have.
    return np.asarray(values[rows])


def _joined(held: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(held) == 1:
        return held[0]
    x, y = zip(*held, strict=True)
    return np.concatenate(x), np.concatenate(y)


class _Pool:
    """The rows with the smallest of independent uniform keys: a uniform sample of rows whose number is not known."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random = size, np.random.default_rng([seed, 0])
        self._keys, self.rows = np.zeros(0), np.zeros(0, np.int64)
        self.arrays: list[np.ndarray] = []

    def offer(self, first: int, count: int, *arrays: np.ndarray) -> None:
        """Draws keys for rows, and keeps those of the smallest keys, with their parts of the arrays."""
        keys = self._random.random(count)
        # Few of many rows have a key below the largest one kept; only their data are copied.
        limit = self._keys.max() if len(self._keys) >= self._size else np.inf
        below = np.flatnonzero(keys < limit)
        if not len(below):
            return
        keys = np.concatenate([self._keys, keys[below]])
        kept = np.argsort(keys, kind="stable")[: self._size]
        self._keys, self.rows = keys[kept], np.concatenate([self.rows, first + below])[kept]
        if arrays:
            old = self.arrays or [array[:0] for array in arrays]
            both = zip(old, arrays, strict=True)
            self.arrays = [np.concatenate([before, array[below]])[kept] for before, array in both]

    def split(self, count: int, candidates: int, held_out: float, most_held_out: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the rows held out and of the candidates, both ascending."""
        # At least two rows, or none: one row says nothing about the others.
        wanted = min(most_held_out, int(count * held_out))
        wanted = wanted if wanted > 1 else 0
        return np.sort(self.rows[:wanted]), np.sort(self.rows[wanted : wanted + candidates])


def _as_floats(y: Any) -> np.ndarray:
    """Returns targets, of which integers have become floats: a part of them does not tell numbers from labels."""
    given = np.asarray(y)
    return given.astype(np.float64) if given.dtype.kind in "biu" else given


__all__ = ["ArrayRows", "BatchRows", "Rows", "Sampled", "rows_of"]
