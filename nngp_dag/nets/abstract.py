"""Networks in abstract form, without weights, whose shapes are all that matters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key


class OneKey(nnx.Rngs):
    """Generators that always return the same key, for networks that are only traced.

    Those of flax count their calls in a variable. In a trace each call searches the whole program so far, which takes a
    minute for a network of hundreds of kernels.

    Examples:
      >>> nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=OneKey())).kernel.shape
      (3, 4)
    """

    def __init__(self) -> None:
        """Makes no streams of random numbers."""

    def __call__(self) -> Key[Array, ""]:
        """Returns the key."""
        return jax.random.key(0)

    @property
    def params(self) -> Callable[[], Key[Array, ""]]:
        """Generator of weights."""
        return self.__call__


def abstract(create: Callable[[nnx.Rngs], Any]) -> Any:
    """Returns the abstract form of a network.

    Args:
      create: Function of generators that draws the network.

    Examples:
      >>> abstract(lambda rngs: nnx.Linear(3, 4, rngs=rngs)).kernel.shape
      (3, 4)
    """
    return nnx.eval_shape(lambda: create(OneKey()))
