"""The rule of convolutions: weights make Gaussian arrays, known filters are linear maps of pixels."""

from typing import Any

import numpy as np

from nngp_dag.tracing.arrays import Array, Channels, Num, Par, Rand, axes_of, is_finite
from nngp_dag.tracing.geometry import Windows
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
    geometry = Windows(
        tuple(places),
        tuple(sizes),
        tuple(params["window_strides"]),
        tuple((int(low), int(high)) for low, high in params["padding"]),
        tuple(params["lhs_dilation"] or (1,) * len(space)),
        tuple(params["rhs_dilation"] or (1,) * len(space)),
        tuple(order),
    )
    node_shape = tuple(out_shape[o] for o, _ in result_order)
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
        node = reader.values.product(weight, [(1, number)], node_shape, geometry, features=(feature,))
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
        product = reader.values.product(weight, [(count, node)], node_shape, geometry)
        terms.append((kernel.scale, product))
        first += count
    return Rand(((out, reader.values.sum(terms)),), tuple(dims))
