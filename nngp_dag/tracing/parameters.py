"""The entries of a model's parameters that operations read, and the operations that read the same ones."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nngp_dag.errors import ModelError
from nngp_dag.tracing.distributions import Distribution
from nngp_dag.tracing.models import Leaf


@dataclass(frozen=True, eq=False)
class Weight:
    """The entries of one parameter that an operation reads.

    Attributes:
      leaf: The number of the parameter.
      name: Its name.
      group: A number that is shared by all operations that read the same entries in the same order. In a program,
        weights of different groups have no entry in common (`check_apart`).
      entries: The positions of the entries in the parameter. Those of a matrix are (rows, columns): the axes over which
        a product sums are rows, and its infinite axis is the columns. Those of an elementwise parameter are (finite
        axes, channels).
      range: The first and the last position.
      distribution: The distribution of the entries.
      trained: Whether the parameter is trained.
      place: The line of the model that read it first.
    """

    leaf: int
    name: str
    group: int
    entries: np.ndarray
    range: tuple[int, int]
    distribution: Distribution
    trained: bool
    place: str

    @property
    def key(self) -> Hashable:
        """The leaf and the group; equal for the same entries in the same order."""
        return self.leaf, self.group


@dataclass
class Weights:
    """Hands out weights; equal entries in equal order belong to one group."""

    leaves: tuple[Leaf, ...]
    known: dict[int, list[Weight]] = field(default_factory=dict)

    def read(self, leaf: int, entries: np.ndarray, place: str) -> Weight:
        """Returns the weight with the given entries of a parameter.

        Args:
          leaf: The number of the parameter.
          entries: The positions of the entries, as in `Weight`.
          place: The line of the model, for messages.
        """
        known = self.known.setdefault(leaf, [])
        low, high = _range(entries)
        for weight in known:
            if (low, high) == weight.range and np.array_equal(weight.entries, entries):
                return weight
        spec = self.leaves[leaf]
        weight = Weight(leaf, spec.name, len(known), entries, (low, high), spec.distribution, spec.trained, place)
        known.append(weight)
        return weight


def check_apart(weights: Iterable[Weight]) -> None:
    """Refuses weights of different groups that have entries in common.

    Raises:
      ModelError: Two operations read some entries in different orders, such as a matrix and its transpose.
    """
    by_leaf: dict[int, dict[int, Weight]] = {}
    for weight in weights:
        by_leaf.setdefault(weight.leaf, {})[weight.group] = weight
    for groups in by_leaf.values():
        # Sorted by their first entries, weights that overlap in range are near each other.
        ordered = sorted(groups.values(), key=lambda weight: weight.range)
        for i, one in enumerate(ordered):
            for other in ordered[i + 1 :]:
                if other.range[0] > one.range[1]:
                    break
                if np.intersect1d(one.entries, other.entries).size:
                    first, second = sorted((one, other), key=lambda weight: weight.group)
                    raise ModelError(
                        f"{second.place}: Expected the entries of `{one.name}` to be read in one order, got another "
                        f"order than at {first.place}, such as {_relation(first.entries, second.entries)}; use a "
                        "parameter of its own for one of them"
                    )


def _relation(first: np.ndarray, second: np.ndarray) -> str:
    if first.ndim == second.ndim == 2 and first.shape == second.shape[::-1] and np.array_equal(first, second.T):
        return (
            "a matrix and its transpose, whose gradients are not independent of the weights (Yang 2020, Tensor "
            "Programs II)"
        )
    if first.shape == second.shape and np.array_equal(np.sort(first.ravel()), np.sort(second.ravel())):
        return "channels in another order"
    return "a part of them in another place"


def _range(entries: np.ndarray) -> tuple[int, int]:
    return (int(entries.min()), int(entries.max())) if entries.size else (0, -1)


def entries_of(shape: tuple[int, ...]) -> Any:
    """Returns the positions of all entries of a parameter, of its shape."""
    return np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
