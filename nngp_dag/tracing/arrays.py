"""The arrays that the reader of a program meets: numbers, parameters, and random arrays with their axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nngp_dag.tracing.values import Node, Number, Shape


@dataclass(frozen=True)
class Channels:
    """An infinite axis, or one of the axes into which it was split.

    Attributes:
      size: The model's own number of channels.
      wide: Whether the axis grows with the width; None where no factory tells.
    """

    size: int
    wide: bool | None = field(default=None, compare=False)


Atom = int | Channels
Dims = tuple[tuple[Atom, ...], ...]


class Growth(NamedTuple):
    """How a sum over an infinite axis grows with the width, until the program divides by it.

    A sum of n entries is n times their mean, up to fluctuations of order sqrt(n). Only what stays bounded is a number.

    Attributes:
      size: The number of channels of the sum.
      factor: The factors that the program applied since, times the sum's power.
      power: The power of the sum.
      positive: Whether the mean of the entries is certainly positive, so that roots and reciprocals keep the limit.
    """

    size: int
    factor: float = 1.0
    power: float = 1.0
    positive: bool = False

    @property
    def bounded(self) -> bool:
        """Whether the factors cancel the growth."""
        return self.power == 0 or abs(self.factor) * self.size**self.power <= 1 + 1e-6


@dataclass(frozen=True)
class Num:
    """A deterministic array.

    Attributes:
      number: The number, stored with size 1 along axes along which it is constant.
      shape: The array's shape.
      constant: Whether the array is constant along an axis and stored with size 1, for every axis.
      growth: The growth of a sum over channels that is not divided by their number, or None.
    """

    number: Number
    shape: Shape
    constant: tuple[bool, ...]
    growth: Growth | None = None

    @property
    def stored(self) -> Shape:
        """The shape of the stored array."""
        return tuple(1 if c else n for n, c in zip(self.shape, self.constant, strict=True))

    @property
    def scalar(self) -> float | None:
        """The value if it is known and the same everywhere, else None."""
        known = self.number.known
        if known is None or known.size == 0 or known.dtype.kind not in "fiub" or not (known == known.flat[0]).all():
            return None
        return float(known.flat[0])


class Groups(NamedTuple):
    """The entries of a parameter over which its mean was subtracted.

    Attributes:
      of: The number of the group of every entry of the parameter.
      size: The number of entries of a group.
    """

    of: np.ndarray
    size: int


@dataclass(frozen=True)
class Par:
    """Entries of a parameter that no operation has used yet.

    Attributes:
      leaf: The number of the parameter.
      entries: The positions of the entries, stored with size 1 along axes along which they are repeated.
      shape: The array's shape.
      repeated: Whether the entries repeat along an axis, for every axis.
      scale: The factor by which the program has multiplied the parameter.
      factor: The array of numbers by which it has, or None.
      groups: The entries over which the mean was subtracted, or None.
    """

    leaf: int
    entries: np.ndarray
    shape: Shape
    repeated: tuple[bool, ...]
    scale: float = 1.0
    factor: Num | None = None
    groups: Groups | None = None


@dataclass(frozen=True)
class Squares:
    """The squares of the entries of a parameter, to be summed.

    Attributes:
      par: The parameter.
      scale: The factor by which the program has multiplied the squares.
    """

    par: Par
    scale: float = 1.0

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.par.shape


@dataclass(frozen=True)
class Sums:
    """Sums of entries of a parameter, from which its means are made.

    Attributes:
      leaf: The number of the parameter.
      numbers: The numbers of the sums, moved like entries; see `Par`.
      members: The positions of the entries of every sum, (sums, entries).
      scale: The factor by which the program has multiplied the sums.
    """

    leaf: int
    numbers: Par
    members: np.ndarray
    scale: float

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.numbers.shape


@dataclass(frozen=True)
class Rand:
    """A random array.

    Attributes:
      parts: The numbers of channels and the nodes of its parts along the infinite axis; a concatenation has several.
      dims: The axes. Each is a product of finite axes and channels, in the order of the entries.
    """

    parts: tuple[tuple[int, Node], ...]
    dims: Dims

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return tuple(size_of(dim) for dim in self.dims)

    @property
    def finite(self) -> Shape:
        """The sizes of the finite axes, which is the shape of the nodes."""
        return finite_of(self.dims)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return math.prod(atom.size for dim in self.dims for atom in dim if isinstance(atom, Channels))

    @property
    def node(self) -> Node:
        """The node of an array of one part."""
        ((_, node),) = self.parts
        return node


class Axes(NamedTuple):
    """The axes of one side of a product.

    Attributes:
      contracted: The axes that are summed over.
      batch: The axes that both sides share.
      free: The axes of this side alone.
    """

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    free: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    """All products of the channels of two random arrays, summed over finite axes.

    Attributes:
      left: The first array.
      right: The second array.
      of_left: The axes of the first array.
      of_right: The axes of the second one.
      scale: The factor by which the program has multiplied the products.
      order: The order of the axes of the batch, of the first and of the second array, with -1 for an axis of size 1
        that is none of them; None as they are.
    """

    left: Rand
    right: Rand
    of_left: Axes
    of_right: Axes
    scale: float = 1.0
    order: tuple[int, ...] | None = None

    @property
    def axes(self) -> list[tuple[str, int]]:
        """The origin of each axis: "batch", "left", "right" or "none", and its number among these."""
        sides = ("batch", self.of_left.batch), ("left", self.of_left.free), ("right", self.of_right.free)
        found = [(side, i) for side, axes in sides for i in range(len(axes))]
        return found if self.order is None else [found[i] if i >= 0 else ("none", 0) for i in self.order]

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        axes = {"batch": self.of_left.batch, "left": self.of_left.free, "right": self.of_right.free}
        of = {"batch": self.left, "left": self.left, "right": self.right}
        return tuple(1 if side == "none" else of[side].shape[axes[side][i]] for side, i in self.axes)


@dataclass(frozen=True)
class Grown:
    """A random array times a sum over channels that the program has not divided by their number yet.

    Attributes:
      rand: The array, with that sum.
      growth: The growth of the sum.
    """

    rand: Rand
    growth: Growth

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.rand.shape


Array = Num | Par | Rand
# Some values stand for what a program makes of several of them before it is an array again.
Value = Array | Squares | Sums | Outer | Grown


def size_of(dim: Sequence[Atom]) -> int:
    """Returns the size of an axis."""
    return math.prod(atom.size if isinstance(atom, Channels) else atom for atom in dim)


def is_finite(dim: Sequence[Atom]) -> bool:
    """Whether an axis has no channels."""
    return not any(isinstance(atom, Channels) for atom in dim)


def finite_of(dims: Dims) -> Shape:
    """Returns the sizes of the finite axes in order."""
    return tuple(atom for dim in dims for atom in dim if not isinstance(atom, Channels))


def merged(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Returns an axis with adjacent finite axes merged; an axis without channels is one finite axis."""
    found: list[Atom] = []
    for atom in atoms:
        if isinstance(atom, Channels):
            found.append(atom)
        elif found and not isinstance(found[-1], Channels):
            found[-1] = found[-1] * atom
        elif atom != 1 or len(atoms) == 1:
            found.append(atom)
    return tuple(found) or (1,)


def axes_of(dims: Dims) -> list[list[int]]:
    """Returns, for every axis of an array, the numbers of its finite axes in the shape of the nodes."""
    count, found = 0, []
    for dim in dims:
        own = []
        for atom in dim:
            if not isinstance(atom, Channels):
                own.append(count)
                count += 1
        found.append(own)
    return found
