"""The rule of convolutions: weights make Gaussian arrays, known filters are linear maps of pixels."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.tracing.arrays import Array, Channels, Num, Par, Rand, axes_of, is_finite
from nngp_dag.tracing.reader import Reader, rule
from nngp_dag.tracing.rules.products import check_gaussian, check_wide
from nngp_dag.tracing.values import Node


@rule("conv_general_dilated")
def convolve(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Convolves pixels with a filter."""
    value, kernel = arguments
    if isinstance(value, Num) and isinstance(kernel, Num):
        return reader.of_numbers(equation, arguments)[0]
    if not isinstance(kernel, Par) or isinstance(value, Par):
        reader.refuse(
            "filters that are parameters",
            "a convolution with a known filter" if isinstance(kernel, Num) else "a convolution with a random filter",
            "use average pooling, or make the filter a parameter",
        )
    params = equation.params
    numbers = params["dimension_numbers"]
    name = reader.leaves[kernel.leaf].name
    groups = params["feature_group_count"]
    if params["batch_group_count"] != 1:
        reader.refuse("convolutions of one group of inputs", "`batch_group_count`", "leave it at 1")
    if any(kernel.repeated):
        reader.refuse("a filter of independent entries", f"`{name}` with repeated entries", "use it as it is")
    check_gaussian(reader, kernel)
    batch, feature, *space = numbers.lhs_spec
    out_filter, in_filter, *window = numbers.rhs_spec
    shape = value.shape
    # Entries by window, input channels of a group, output channels.
    entries = np.transpose(kernel.entries, [*window, in_filter, out_filter])
    sizes = [kernel.shape[i] for i in window]
    fan, out = kernel.shape[in_filter], kernel.shape[out_filter]
    out_batch, out_feature, *out_space = numbers.out_spec
    out_shape = equation.outvars[0].aval.shape
    rank = len(shape)
    # The finite axes of the value without its features: batch and space, in the order of its axes.
    finite = [i for i in range(rank) if i != feature]
    result_order = sorted([(out_batch, batch), *zip(out_space, space, strict=True)])
    order = [finite.index(i) for _, i in result_order]
    places = [finite.index(i) for i in space]
    contract = _windows(
        len(finite),
        places,
        sizes,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"] or (1,) * len(space),
        params["rhs_dilation"] or (1,) * len(space),
        order,
    )
    node_shape = tuple(out_shape[o] for o, _ in result_order)
    key = ("conv", _params(params), tuple(sizes), tuple(order))
    dims = [(n,) for n in out_shape]
    grows = reader.leaves[kernel.leaf].wide
    plain = grows is not None and kernel.shape == reader.leaves[kernel.leaf].shape
    flag = grows[out_filter] if plain and grows is not None else None
    dims[out_feature] = (Channels(out, flag),)  # type: ignore[assignment]
    if isinstance(value, Num):
        if groups != 1:
            reader.refuse("a convolution of all features of the input", f"{groups} groups", "use one group")
        number = reader.whole(value)
        weight = reader.weights.read(kernel.leaf, entries.reshape(*sizes, fan, out), reader.place)
        node = reader.values.product(weight, [(1, number)], node_shape, key, contract, features=(feature,))
        return Rand(((out, reader.values.sum([(kernel.scale, node)])),), tuple(dims))
    if not all(is_finite(value.dims[i]) for i in finite) or len(axes_of(value.dims)[feature]) > 0:
        reader.refuse("images with channels on one axis", "an image whose pixels are channels", "reshape before it")
    if groups > 1 and (fan == 1 or len(value.parts) > 1):
        what = "a depthwise convolution, whose sums over a finite window are not Gaussian" if fan == 1 else "groups"
        reader.refuse("convolutions that mix all channels, or groups of them", f"{what} (`{name}`)", "use one group")
    check_wide(reader, value.dims[feature], f"`{name}` sums over")
    terms: list[tuple[float, Node]] = []
    first = 0
    for n, node in value.parts:
        count = fan if groups > 1 else n
        rows = entries.reshape(*sizes, fan, out)[..., first : first + count, :]
        weight = reader.weights.read(kernel.leaf, rows, reader.place)
        product = reader.values.product(weight, [(count, node)], node_shape, key, contract)
        terms.append((kernel.scale, product))
        first += count
    return Rand(((out, reader.values.sum(terms)),), tuple(dims))


def _params(params: dict[str, Any]) -> Any:
    return tuple(sorted((k, str(v)) for k, v in params.items()))


def _windows(
    rank: int,
    places: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base: Sequence[int],
    dilation: Sequence[int],
    order: Sequence[int],
) -> Callable[[Any], Any]:
    """Returns the map of second moments of pixels that sums over a window at both sides.

    Args:
      rank: The number of finite axes of one side.
      places: The axes of pixels.
      sizes: The window's sizes.
      strides: The strides.
      padding: The padding at the low and the high end.
      base: The dilation of the image.
      dilation: The dilation of the window.
      order: The order of the axes in the result.
    """
    config = [(0, 0, 0)] * (2 * rank)
    for place, (low, high), step in zip(places, padding, base, strict=True):
        config[place] = config[rank + place] = (low, high, step - 1)

    def contract(m: Any) -> Any:
        m = lax.pad(m, jnp.zeros((), m.dtype), config)
        total = 0
        for offset in itertools.product(*(range(n) for n in sizes)):
            index = [slice(None)] * (2 * rank)
            for place, at, n, stride, step in zip(places, offset, sizes, strides, dilation, strict=True):
                stop = m.shape[place] - (n - 1 - at) * step
                index[place] = index[rank + place] = slice(at * step, stop, stride)
            total = total + m[tuple(index)]
        return jnp.transpose(total, (*order, *(rank + i for i in order)))

    return contract
