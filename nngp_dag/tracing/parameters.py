"""Which entries of a model's parameters an operation of the program reads, and which operations read the same ones."""

from collections.abc import Hashable
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
      group: A number that is shared by all operations that read the same entries in the same order. Weights of
        different groups have no entry in common.
      entries: The positions of the entries in the parameter. Those of a matrix are (rows, columns): the axes over which
        a product sums are rows, and its infinite axis is the columns. Those of an elementwise parameter are (finite
        axes, channels).
      distribution: The distribution of the entries.
      trained: Whether the parameter is trained.
    """

    leaf: int
    name: str
    group: int
    entries: np.ndarray
    distribution: Distribution
    trained: bool

    @property
    def key(self) -> Hashable:
        """The leaf and the group; equal for the same entries in the same order."""
        return self.leaf, self.group


@dataclass
class Weights:
    """Hands out weights, and refuses two that share entries in different orders."""

    leaves: tuple[Leaf, ...]
    known: dict[int, list[tuple[Weight, int, int, str]]] = field(default_factory=dict)

    def read(self, leaf: int, entries: np.ndarray, place: str) -> Weight:
        """Returns the weight with the given entries of a parameter.

        Args:
          leaf: The number of the parameter.
          entries: The positions of the entries, as in `Weight`.
          place: The line of the model, for messages.

        Raises:
          ModelError: Another operation reads some of these entries in another order.
        """
        known = self.known.setdefault(leaf, [])
        low, high = (int(entries.min()), int(entries.max())) if entries.size else (0, -1)
        for weight, first, last, other in known:
            if first > high or low > last:
                continue
            if weight.entries.shape == entries.shape and np.array_equal(weight.entries, entries):
                return weight
            if np.intersect1d(weight.entries, entries).size:
                name = self.leaves[leaf].name
                raise ModelError(
                    f"Expected the entries of `{name}` to be read in one order, got two orders, at {other} and at "
                    f"{place}, such as a matrix and its transpose: then the gradients are not independent of the "
                    "weights (Yang 2020, Tensor Programs II); use a parameter of its own for one of them"
                )
        spec = self.leaves[leaf]
        weight = Weight(leaf, spec.name, len(known), entries, spec.distribution, spec.trained)
        known.append((weight, low, high, place))
        return weight


def entries_of(shape: tuple[int, ...]) -> Any:
    """Returns the positions of all entries of a parameter, of its shape."""
    return np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
