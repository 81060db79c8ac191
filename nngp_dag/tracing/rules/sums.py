"""Rules of sums: over finite axes they are linear maps, over infinite axes they become numbers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.tracing.arrays import Array, Channels, Growth, Num, Par, Rand, Value, axes_of, is_finite
from nngp_dag.tracing.reader import Reader, rule
from nngp_dag.tracing.rules.products import check_wide, is_positive, refuse_part
from nngp_dag.tracing.rules.shapes import finite_map
from nngp_dag.tracing.rules.standardization import sum_of
from nngp_dag.tracing.values import heads


@rule("reduce_sum")
def reduce_sum(reader: Reader, equation: Any, arguments: list[Any]) -> Value:
    """Sums over axes."""
    (array,) = arguments
    axes = tuple(sorted(map(int, equation.params["axes"])))
    if isinstance(array, Par):
        return sum_of(reader, array, axes)
    if isinstance(array, Num):
        return _sum_of_numbers(reader, array, axes)
    finite = [axis for axis in axes if is_finite(array.dims[axis])]
    infinite = [axis for axis in axes if not is_finite(array.dims[axis])]
    if finite:
        array = _sum_over_finite(array, finite, reader)
    if not infinite:
        return array
    left = [axis - sum(f < axis for f in finite) for axis in infinite]
    return _sum_over_channels(reader, array, left)


def _sum_over_finite(array: Rand, axes: list[int], reader: Reader) -> Rand:
    own = axes_of(array.dims)
    places = tuple(own[axis][0] for axis in axes)
    dims = tuple(dim for i, dim in enumerate(array.dims) if i not in axes)
    return finite_map(reader, array, dims, ("sum", places), lambda a: a.sum(axis=places))


def _sum_over_channels(reader: Reader, array: Rand, axes: list[int]) -> Num:
    """Returns n times the mean over an infinite axis (law of large numbers)."""
    kept = [dim for i, dim in enumerate(array.dims) if i not in axes]
    summed = 1
    finite_places = []
    own = axes_of(array.dims)
    for axis in axes:
        for atom in array.dims[axis]:
            if isinstance(atom, Channels):
                summed *= atom.size
        finite_places += own[axis]
    check_wide(reader, [a for axis in axes for a in array.dims[axis]], f"{reader.place} averages over")
    whole = array.channels == summed
    unknown = any(a.wide is None for axis in axes for a in array.dims[axis] if isinstance(a, Channels))
    if unknown and not whole:
        refuse_part(reader, summed, array.channels)
    if unknown:
        reader.averaged += [(reader.place, heads(node)) for _, node in array.parts]
    if not whole and len(array.parts) > 1:
        reader.refuse("a mean over a whole infinite axis", "a mean over a part of concatenated channels", "split first")
    total, positive = None, True
    for n, node in array.parts:
        count = n if whole else summed
        mean = reader.values.computed(("times", count), lambda a, count=count: a * count, reader.values.mean(node))
        total = mean if total is None else reader.values.computed("add", lambda a, b: a + b, total, mean)
        positive = positive and is_positive(reader, node)
    assert total is not None
    places = tuple(finite_places)
    # What is left of an axis of channels, such as heads, is the same for all of them.
    constant = tuple(not is_finite(dim) for dim in kept)
    shape = tuple(Rand(array.parts, (dim,)).shape[0] for dim in kept)
    stored = tuple(1 if c else n for n, c in zip(shape, constant, strict=True))
    number = reader.values.computed(("sum", places, stored), lambda a: jnp.reshape(a.sum(axis=places), stored), total)
    return Num(number, shape, constant, Growth(summed, positive=positive))


def _sum_of_numbers(reader: Reader, num: Num, axes: tuple[int, ...]) -> Num:
    factor = 1
    for axis in axes:
        factor *= num.shape[axis] if num.constant[axis] else 1
    number = reader.values.computed(("sum", axes, factor), lambda a: a.sum(axis=axes) * factor, num.number)
    kept = [i for i in range(len(num.shape)) if i not in axes]
    return Num(number, tuple(num.shape[i] for i in kept), tuple(num.constant[i] for i in kept), num.growth)


@rule("reduce_window_sum")
def reduce_window_sum(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Sums over windows of finite axes, as average pooling does."""
    (array,) = arguments
    if isinstance(array, Num):
        return reader.of_numbers(equation, arguments)[0]
    if isinstance(array, Par):
        reader.refuse("a random value or a number", "windows of a parameter", "pool its products")
    params, own = equation.params, axes_of(array.dims)
    sizes = params["window_dimensions"]
    rank = len(array.finite)
    window, strides, padding = [1] * rank, [1] * rank, [(0, 0)] * rank
    base, dilation = [1] * rank, [1] * rank
    dims = list(array.dims)
    out = equation.outvars[0].aval.shape
    for axis, size in enumerate(sizes):
        if not is_finite(array.dims[axis]):
            if size != 1 or out[axis] != array.shape[axis]:
                reader.refuse("windows of finite axes", "a window of channels", "take a mean over all channels")
            continue
        place = own[axis][0]
        window[place], strides[place] = size, params["window_strides"][axis]
        padding[place] = tuple(params["padding"][axis])
        base[place], dilation[place] = params["base_dilation"][axis], params["window_dilation"][axis]
        dims[axis] = (out[axis],)

    def summed(a: Any) -> Any:
        return lax.reduce_window(a, np.zeros((), a.dtype), lax.add, window, strides, padding, base, dilation)

    key = ("windows", tuple(window), tuple(strides), tuple(padding), tuple(base), tuple(dilation))
    return finite_map(reader, array, tuple(dims), key, summed)


@rule("cumsum")
def cumsum(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Sums up to every place of a finite axis."""
    (array,) = arguments
    if isinstance(array, Num):
        return reader.of_numbers(equation, arguments)[0]
    axis, backward = int(equation.params["axis"]), equation.params["reverse"]
    if isinstance(array, Par) or not is_finite(array.dims[axis]):
        reader.refuse("a running sum over a finite axis", "one over an infinite axis", "sum over tokens or pixels")
    place = axes_of(array.dims)[axis][0]
    return finite_map(
        reader, array, array.dims, ("cumsum", place, backward), lambda a: lax.cumsum(a, place, reverse=backward)
    )


@rule("reduce_max", "reduce_min")
def reduce_max(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Takes the largest or smallest entry of numbers; random values are refused."""
    (array,) = arguments
    if not isinstance(array, Num):
        return largest(reader, equation, arguments)
    reader.settle(array)
    params = dict(equation.params)
    axes = tuple(map(int, params["axes"]))
    number = reader.values.computed(
        (equation.primitive.name, axes), lambda a: equation.primitive.bind(jnp.asarray(a), **params), array.number
    )
    kept = [i for i in range(len(array.shape)) if i not in axes]
    return Num(number, tuple(array.shape[i] for i in kept), tuple(array.constant[i] for i in kept))


@rule(
    "reduce_window_max",
    "reduce_window_min",
    "argmax",
    "argmin",
    "sort",
    "top_k",
    "reduce_prod",
    "cummax",
    "cumprod",
)
def largest(reader: Reader, equation: Any, arguments: list[Any]) -> Any:
    """Refuses maxima of random values; those of numbers are numbers."""
    if all(isinstance(a, Num) for a in arguments):
        return reader.of_numbers(equation, arguments)
    name = equation.primitive.name
    par = next((a for a in arguments if isinstance(a, Par)), None)
    if par is not None:
        reader.refuse(
            "a parameter to be multiplied by or added to a random value",
            f"`{name}` of `{reader.leaves[par.leaf].name}`",
            "scale it by a constant, or by its norm",
        )
    pooled = "max pooling" if "max" in name else f"`{name}`"
    return reader.refuse(
        "linear maps of pixels or tokens, or elementwise functions",
        f"{pooled} of random values, a function of several values that has no closed form",
        "use average pooling",
    )
