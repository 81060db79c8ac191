"""The ways in which products with weights sum over finite axes, and what they do to second moments."""

import itertools
import math
import string
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from nngp_dag.errors import ModelError


@dataclass(frozen=True)
class Matrix:
    """A matrix product: it sums over some finite axes of its operand.

    Attributes:
      summed: The axes of the operand that are summed over, in the order of the weight's rows.
      kept: The other axes, in the order of the product.
    """

    summed: tuple[int, ...]
    kept: tuple[int, ...]

    def count(self, shape: tuple[int, ...]) -> int:
        """Returns the number of entries that are summed, of an operand of a shape."""
        return math.prod(shape[i] for i in self.summed)


@dataclass(frozen=True)
class Windows:
    """A convolution: it sums over windows of pixels.

    Attributes:
      places: The axes of pixels of the operand.
      sizes: The window's sizes.
      strides: The strides.
      padding: The padding at the low and the high end.
      base: The dilation of the image.
      dilation: The dilation of the window.
      order: The axes of the operand in the order of the product.
    """

    places: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base: tuple[int, ...]
    dilation: tuple[int, ...]
    order: tuple[int, ...]

    def count(self, shape: tuple[int, ...]) -> int:
        """Returns the number of entries of a window; zeros of the padding count as well."""
        del shape
        return math.prod(self.sizes)

    def padded(self, rank: int, first: int) -> list[tuple[int, int, int]]:
        """Returns the padding of `rank` axes, of which those of the operand begin at `first`."""
        config = [(0, 0, 0)] * rank
        for place, (low, high), step in zip(self.places, self.padding, self.base, strict=True):
            config[first + place] = (low, high, step - 1)
        return config

    def at(self, offset: tuple[int, ...], shape: tuple[int, ...], first: int) -> dict[int, slice]:
        """Returns the pixels that lie at an offset of the windows, by axis of an array of padded pixels."""
        found = {}
        for place, at, n, stride, step in zip(
            self.places, offset, self.sizes, self.strides, self.dilation, strict=True
        ):
            stop = shape[first + place] - (n - 1 - at) * step
            found[first + place] = slice(at * step, stop, stride)
        return found


Geometry = Matrix | Windows


def window_sum(a: Any, geometry: Geometry) -> Any:
    """Returns the sums of an operand's entries that a product sums with one weight each, of the product's shape."""
    if isinstance(geometry, Matrix):
        left = [i for i in range(a.ndim) if i not in geometry.summed]
        return jnp.transpose(a.sum(axis=geometry.summed), [left.index(i) for i in geometry.kept])
    offsets = itertools.product(*(range(n) for n in geometry.sizes))
    return sum(window_pixels(a, geometry, offset) for offset in offsets)


def window_pixels(a: Any, geometry: Windows, offset: tuple[int, ...]) -> Any:
    """Returns the pixels of an operand that lie at an offset of the windows, of the convolution's shape."""
    a = lax.pad(a, jnp.zeros((), a.dtype), geometry.padded(a.ndim, 0))
    chosen = geometry.at(offset, a.shape, 0)
    return jnp.transpose(a[tuple(chosen.get(i, slice(None)) for i in range(a.ndim))], geometry.order)


def contract(m: Any, one: Geometry, other: Geometry, ranks: tuple[int, int], name: str) -> Any:
    """Returns second moments of two products with one weight, up to its variance.

    Args:
      m: The second moments of the operands, (*shape1, *shape2).
      one: The first product's geometry.
      other: The second product's geometry.
      ranks: The numbers of finite axes of the operands.
      name: The weight's name, for messages.

    Raises:
      ModelError: One product is a convolution, the other is none.
    """
    if isinstance(one, Matrix) and isinstance(other, Matrix) and len(one.summed) == len(other.summed):
        left = list(string.ascii_letters[: ranks[0]])
        right = list(string.ascii_letters[ranks[0] : sum(ranks)])
        for i, j in zip(one.summed, other.summed, strict=True):
            right[j] = left[i]
        kept = [left[i] for i in one.kept] + [right[j] for j in other.kept]
        return jnp.einsum(f"{''.join(left + right)}->{''.join(kept)}", m)
    if isinstance(one, Windows) and isinstance(other, Windows):
        first = one.padded(sum(ranks), 0)
        second = other.padded(sum(ranks), ranks[0])
        m = lax.pad(m, jnp.zeros((), m.dtype), [first[i] if i < ranks[0] else second[i] for i in range(sum(ranks))])
        total = 0
        for offset in itertools.product(*(range(n) for n in one.sizes)):
            chosen = one.at(offset, m.shape, 0) | other.at(offset, m.shape, ranks[0])
            total = total + m[tuple(chosen.get(i, slice(None)) for i in range(sum(ranks)))]
        return jnp.transpose(total, (*one.order, *(ranks[0] + i for i in other.order)))
    raise ModelError(
        f"Expected `{name}` to be used by products of one kind, got a convolution beside another product; use a "
        "parameter of its own for one of them"
    )
