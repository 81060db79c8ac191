"""The rule of convolutions: weights make Gaussian arrays, known filters are linear maps of pixels."""

import itertools
from typing import Any

import numpy as np

from nngp_dag.tracing.arrays import Array, Channels, Dims, Num, Par, Rand, axes_of, is_finite
from nngp_dag.tracing.geometry import Windows, window_pixels
from nngp_dag.tracing.reader import Reader, rule
from nngp_dag.tracing.rules.alignment import broadcast
from nngp_dag.tracing.rules.products import check_gaussian, check_wide
from nngp_dag.tracing.rules.standardization import read_rows
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
    depthwise = fan == 1 and groups > 1
    over_channels = not isinstance(value, Num)
    is_centered = not depthwise and read_rows(reader, kernel, entries, len(sizes) + 1, channels=over_channels)
    if isinstance(value, Num):
        if groups != 1:
            reader.refuse("a convolution of all features of the input", f"{groups} groups", "use one group")
        number = reader.whole(value)
        weight = reader.weights.read(kernel.leaf, entries.reshape(*sizes, fan, out), reader.place)
        node = reader.values.product(
            weight, [(1, number)], node_shape, geometry, features=(feature,), centered=is_centered
        )
        return Rand(((out, reader.values.sum([(kernel.scale, node)])),), tuple(dims))
    if not all(is_finite(value.dims[i]) for i in finite) or len(axes_of(value.dims)[feature]) > 0:
        reader.refuse("images with channels on one axis", "an image whose pixels are channels", "reshape before it")
    if depthwise:
        if kernel.groups is not None:
            reader.refuse(
                "depthwise filters that are random or constant", f"`{name}` minus its mean", "leave out the mean"
            )
        if groups != value.channels or groups != out:
            reader.refuse(
                "depthwise convolutions with one filter for each channel",
                f"{groups} groups and {out} output channels (`{name}`)",
                "use one filter for each channel",
            )
        return _depthwise(reader, value, kernel, entries.reshape(*sizes, out), geometry, node_shape, tuple(dims))
    grows_in = grows[in_filter] if plain and grows is not None else None
    if groups > 1 and not grows_in:
        reader.refuse(
            "groups whose number of channels grows with the width",
            f"{groups} groups of {fan} channels" + ("" if grows_in is None else ", which does not"),
            "pass a factory with `width`, which tells what grows" if grows_in is None else "use fewer groups",
        )
    if groups > 1 and len(value.parts) > 1:
        reader.refuse("groups of the channels of one value", f"groups of concatenated channels (`{name}`)", "split")
    if is_centered and len(value.parts) > 1:
        reader.refuse(
            "weights that are centered to meet channels of one part",
            f"`{name}` times concatenated channels",
            "leave out the mean, or convolve each part with weights of its own",
        )
    check_wide(reader, value.dims[feature], f"`{name}` sums over")
    terms: list[tuple[float, Node]] = []
    first = 0
    for n, node in value.parts:
        count = fan if groups > 1 else n
        rows = entries.reshape(*sizes, fan, out)[..., first : first + count, :]
        weight = reader.weights.read(kernel.leaf, rows, reader.place)
        product = reader.values.product(weight, [(count, node)], node_shape, geometry, centered=is_centered)
        terms.append((kernel.scale, product))
        first += count
    return Rand(((out, reader.values.sum(terms)),), tuple(dims))


def _depthwise(
    reader: Reader,
    value: Rand,
    kernel: Par,
    entries: np.ndarray,
    geometry: Windows,
    shape: tuple[int, ...],
    dims: Dims,
) -> Rand:
    """Returns a convolution that keeps channels apart: a sum over the window of products of a weight and a pixel.

    It is not Gaussian, but weights and pixels are independent, so that its second moments have a closed form.
    """
    terms: list[list[tuple[float, Node]]] = [[] for _ in value.parts]
    starts = np.cumsum([0, *(n for n, _ in value.parts)])
    for offset in itertools.product(*map(range, geometry.sizes)):
        for part, (n, node) in enumerate(value.parts):
            chosen = entries[offset][starts[part] : starts[part] + n].reshape(*(1,) * len(shape), n)
            ones = (1,) * len(shape)
            weight = reader.values.parameter(reader.weights.read(kernel.leaf, chosen, reader.place), ones)

            def shifted(a: Any, offset: tuple[int, ...] = offset) -> Any:
                return window_pixels(a, geometry, offset)

            pixels = reader.values.linear(("pixels", geometry, offset), node, shape, shifted)
            product = reader.values.times(broadcast(reader, weight, shape), pixels, reader.place)
            terms[part].append((kernel.scale, product))
    return Rand(tuple((n, reader.values.sum(t)) for (n, _), t in zip(value.parts, terms, strict=True)), dims)
