"""Rules of operations that move entries: reshapes, transposes, slices, pads and concatenations."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.tracing.arrays import Array, Atom, Channels, Dims, Num, Par, Rand, axes_of, is_finite, merged, size_of
from nngp_dag.tracing.reader import Reader, rule
from nngp_dag.tracing.rules.alignment import aligned, columns, cut, fixed_on, reshaped, transposed, with_dims
from nngp_dag.tracing.values import Shape

# A function of a stored array, the new shape, and the axes along which the result is constant.
Move = tuple[Callable[[Any], Any], Shape, tuple[bool, ...]]


def _moved(reader: Reader, array: Num | Par, key: Any, move: Move) -> Num | Par:
    """Applies a move to the stored entries of a number or a parameter."""
    function, shape, constant = move
    if isinstance(array, Par):
        check_plain(reader, array)
        return dataclasses.replace(array, entries=np.asarray(function(array.entries)), shape=shape, repeated=constant)
    number = reader.values.computed((key, array.stored, shape, constant), function, array.number)
    return Num(number, shape, constant, array.growth)


def check_plain(reader: Reader, par: Par) -> None:
    """Refuses a parameter that was multiplied by an array."""
    if par.factor is not None:
        reader.refuse(
            "a parameter that is multiplied by one number",
            f"`{reader.leaves[par.leaf].name}` times an array that varies",
            "multiply the value instead",
        )


def _of_factor_too(change: Callable[..., Array]) -> Callable[..., Array]:
    """Makes an operation on the shape of an array act on the factor of a parameter as well."""

    @functools.wraps(change)
    def changed(reader: Reader, array: Array, *arguments: Any) -> Array:
        if not isinstance(array, Par) or array.factor is None:
            return change(reader, array, *arguments)
        plain = change(reader, dataclasses.replace(array, factor=None), *arguments)
        factor = change(reader, array.factor, *arguments)
        assert isinstance(plain, Par)
        assert isinstance(factor, Num)
        return dataclasses.replace(plain, factor=factor)

    return changed


@rule("reshape")
def reshape(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Splits and merges axes."""
    array, shape = arguments[0], tuple(map(int, equation.params["new_sizes"]))
    return reshape_to(reader, array, shape, reader.grown(equation))


@_of_factor_too
def reshape_to(reader: Reader, array: Array, shape: Shape, grown: Sequence[bool] | None = None) -> Array:
    """Returns an array in another shape; `grown` says which of its axes grow with the width, if that is known."""
    if isinstance(array, Rand):
        atoms = [atom for dim in array.dims for atom in dim]
        return with_dims(reader, array, _regrouped(reader, atoms, shape, len(array.parts), grown))
    constant = _constant_after(array, shape)
    if constant is None:
        if isinstance(array, Par):
            reader.refuse(
                "a parameter whose entries are read as they are", "entries that are repeated", "reshape first"
            )
        return Num(
            reader.values.computed(("reshape", shape), lambda a: a.reshape(shape), reader.whole(array)),
            shape,
            (False,) * len(shape),
        )
    stored = tuple(1 if c else n for n, c in zip(shape, constant, strict=True))
    return _moved(reader, array, "reshape", (lambda a: a.reshape(stored), shape, constant))


def _constant_after(array: Num | Par, shape: Shape) -> tuple[bool, ...] | None:
    """Returns the constant axes after a reshape, or None if constant axes are merged with others."""
    flags = array.constant if isinstance(array, Num) else array.repeated
    if not any(flags):
        return (False,) * len(shape)
    old = [(n, c) for n, c in zip(array.shape, flags, strict=True) if n != 1]
    found: list[bool] = []
    before, after, block = 1, 1, []
    for n in shape:
        if n == 1:
            found.append(False)
            continue
        after *= n
        while before < after:
            size, constant = old.pop(0)
            before *= size
            block.append(constant)
        if len(set(block)) > 1:
            return None
        found.append(block[0])
        if before == after:
            before, after, block = 1, 1, []
    return tuple(found)


def _regrouped(reader: Reader, atoms: Sequence[Atom], shape: Shape, parts: int, grown: Sequence[bool] | None) -> Dims:
    """Returns the axes of a random array after a reshape."""
    rest, dims = list(atoms), []
    for i, size in enumerate(shape):
        own: list[Atom] = []
        left = size
        while left > 1:
            atom = rest.pop(0)
            n = atom.size if isinstance(atom, Channels) else atom
            if n == 1:
                own += [atom] if isinstance(atom, Channels) else []
                continue
            step = math.gcd(n, left)
            if step == 1 or (step < n and step < left):
                reader.refuse("a reshape that splits or merges whole axes", f"a reshape to {shape}", "reshape in steps")
            if step < n:
                if isinstance(atom, Channels) and parts > 1:
                    reader.refuse(
                        "an infinite axis of one part", "a reshape of concatenated channels", "reshape each part"
                    )
                rest.insert(0, Channels(n // step, atom.wide) if isinstance(atom, Channels) else n // step)
            # Of the axes into which an infinite one is split, some may stay as they are while the width grows.
            if isinstance(atom, Channels):
                own.append(Channels(step, atom.wide if grown is None else grown[i]))
            else:
                own.append(step)
            left //= step
        dims.append(merged(own) if own else (1,))
    if (ones := [a for a in rest if isinstance(a, Channels)]) and dims:
        dims[-1] = tuple(a for a in dims[-1] if a != 1) + tuple(ones)
    return tuple(dims)


@rule("squeeze")
def squeeze(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Drops axes of size 1."""
    (array,) = arguments
    dropped = {int(d) % len(array.shape) for d in equation.params["dimensions"]}
    return drop(reader, array, dropped)


@_of_factor_too
def drop(reader: Reader, array: Array, dropped: set[int]) -> Array:
    """Returns an array without some axes of size 1."""
    if isinstance(array, Rand):
        dims = tuple(dim for i, dim in enumerate(array.dims) if i not in dropped)
        return with_dims(reader, array, dims)
    flags = array.constant if isinstance(array, Num) else array.repeated
    kept = [i for i in range(len(array.shape)) if i not in dropped]
    stored = tuple(1 if flags[i] else array.shape[i] for i in kept)
    move = (lambda a: a.reshape(stored), tuple(array.shape[i] for i in kept), tuple(flags[i] for i in kept))
    return _moved(reader, array, "squeeze", move)


@rule("expand_dims")
def expand_dims(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Inserts axes of size 1."""
    (array,) = arguments
    shape = list(array.shape)
    for d in sorted(equation.params["dimensions"]):
        shape.insert(d, 1)
    return reshape_to(reader, array, tuple(shape))


@rule("broadcast_in_dim")
def broadcast_in_dim(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Adds axes, and repeats axes of size 1."""
    array, shape, places = arguments[0], equation.params["shape"], equation.params["broadcast_dimensions"]
    return broadcast_to(reader, array, tuple(map(int, shape)), tuple(map(int, places)))


@_of_factor_too
def broadcast_to(reader: Reader, array: Array, shape: Shape, places: Sequence[int]) -> Array:
    """Returns an array on more axes; `places` are the new places of its own ones."""
    if not isinstance(array, Rand):
        flags = array.constant if isinstance(array, Num) else array.repeated
        stored, constant = [1] * len(shape), [True] * len(shape)
        for old, new in enumerate(places):
            if array.shape[old] == shape[new]:
                constant[new] = flags[old]
                stored[new] = 1 if flags[old] else shape[new]
        constant = [c and n > 1 for c, n in zip(constant, shape, strict=True)]
        return _moved(reader, array, "broadcast", (lambda a: a.reshape(stored), shape, tuple(constant)))
    dims: list[tuple[Atom, ...]] = [(1,)] * len(shape)
    wide: list[tuple[Atom, ...]] = [(n,) for n in shape]
    for old, new in enumerate(places):
        dim = array.dims[old]
        if size_of(dim) == shape[new]:
            dims[new] = wide[new] = dim
        elif not is_finite(dim):
            reader.refuse(
                "random values with an entry for each channel",
                f"one random unit that {shape[new]} channels share, so that their sum does not become Gaussian",
                "map to as many channels as there are",
            )
    before, after = with_dims(reader, array, tuple(dims)), tuple(wide)
    finite = Rand(before.parts, after).finite

    def repeat(node: Any) -> Any:
        return reader.values.linear(
            "broadcast", node, finite, lambda a: jnp.broadcast_to(a, finite), keeps_constants=True
        )

    return Rand(tuple((n, node if node.shape == finite else repeat(node)) for n, node in before.parts), after)


@rule("transpose")
def transpose(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Puts axes into another order."""
    return transposed_to(reader, arguments[0], tuple(map(int, equation.params["permutation"])))


@_of_factor_too
def transposed_to(reader: Reader, array: Array, order: Sequence[int]) -> Array:
    """Returns an array with its axes in another order."""
    order = tuple(order)
    if isinstance(array, Rand):
        own = axes_of(array.dims)
        moved = [axis for i in order for axis in own[i]]
        parts = tuple((n, transposed(reader, node, moved)) for n, node in array.parts)
        dims = tuple(array.dims[i] for i in order)
        channels = [a for dim in array.dims for a in dim if isinstance(a, Channels)]
        if [a for dim in dims for a in dim if isinstance(a, Channels)] != channels or (
            sum(1 for dim in array.dims if not is_finite(dim)) > 1
            and [i for i in order if not is_finite(array.dims[i])]
            != sorted(i for i in order if not is_finite(array.dims[i]))
        ):
            parts = _reordered_channels(reader, array, order, parts)
        return Rand(parts, dims)
    flags = array.constant if isinstance(array, Num) else array.repeated
    move = (
        lambda a: np.transpose(a, order) if isinstance(a, np.ndarray) else jnp.transpose(a, order),
        tuple(array.shape[i] for i in order),
        tuple(flags[i] for i in order),
    )
    return _moved(reader, array, ("transpose", order), move)


def _reordered_channels(reader: Reader, array: Rand, order: Sequence[int], parts: Any) -> Any:
    """Returns the parts with channels in the order that a transpose of several infinite axes gives them."""
    sizes = [[a.size for a in dim if isinstance(a, Channels)] for dim in array.dims]
    flat = [n for dim in sizes for n in dim]
    numbers = np.arange(math.prod(flat)).reshape([math.prod(dim) for dim in sizes])
    chosen = np.transpose(numbers, order).ravel()
    return tuple((n, columns(reader, node, chosen)) for n, node in parts)


@rule("tile")
def tile(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Repeats an array along its axes."""
    (array,) = arguments
    times = tuple(equation.params["reps"])
    if isinstance(array, Num):
        return reader.of_numbers(equation, arguments)[0]
    wide = tuple(n for pair in zip((1,) * len(times), array.shape, strict=True) for n in pair)
    repeated = tuple(n for pair in zip(times, array.shape, strict=True) for n in pair)
    spread = broadcast_to(reader, reshape_to(reader, array, wide), repeated, range(len(wide)))
    return reshape_to(reader, spread, tuple(r * n for r, n in zip(times, array.shape, strict=True)))


@rule("slice")
def slice_(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Takes a range of every axis."""
    (array,) = arguments
    params = equation.params
    strides = params["strides"] or (1,) * len(array.shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ranges = [range(int(a), int(b), int(s)) for a, b, s in bounds]
    return sliced(reader, array, ranges)


@_of_factor_too
def sliced(reader: Reader, array: Array, ranges: Sequence[range]) -> Array:
    """Returns the entries of an array at a range of every axis."""
    shape = tuple(map(len, ranges))
    if isinstance(array, Rand):
        for axis, chosen in enumerate(ranges):
            if len(chosen) != array.shape[axis] or chosen.step != 1:
                array = _sliced_axis(reader, array, axis, chosen)
        return array
    flags = array.constant if isinstance(array, Num) else array.repeated
    index = tuple(
        slice(None) if constant else slice(r.start, r.stop if r.step > 0 or r.stop >= 0 else None, r.step)
        for r, constant in zip(ranges, flags, strict=True)
    )
    return _moved(reader, array, ("slice", tuple(ranges)), (lambda a: a[index], shape, tuple(flags)))


def _sliced_axis(reader: Reader, rand: Rand, axis: int, chosen: range) -> Rand:
    dim = rand.dims[axis]
    if is_finite(dim):
        own = axes_of(rand.dims)[axis][0]
        dims = tuple((len(chosen),) if i == axis else d for i, d in enumerate(rand.dims))
        index = np.array(chosen)
        return finite_map(
            reader, rand, dims, ("take", own, chosen), lambda a: jnp.take(a, index, axis=own), keeps_constants=True
        )
    atoms = [a for a in dim if a != 1]
    if len(atoms) == 1 and isinstance(atoms[0], Channels):
        split = [a for d in rand.dims for a in d if isinstance(a, Channels)]
        if len(split) == 1 and chosen.step == 1:
            return cut(reader, rand, chosen.start, chosen.stop)
        # One of several infinite axes, or a stride: the channels are chosen by their numbers.
        if len(rand.parts) == 1:
            before = [a for i, d in enumerate(rand.dims) for a in d if isinstance(a, Channels) and i < axis]
            which = len(before)
            numbers = np.arange(math.prod(a.size for a in split)).reshape([a.size for a in split])
            picked = np.take(numbers, np.array(chosen), axis=which).ravel()
            dims = tuple(
                tuple(
                    dataclasses.replace(a, size=len(chosen)) if i == axis and isinstance(a, Channels) else a for a in d
                )
                for i, d in enumerate(rand.dims)
            )
            return Rand(((len(picked), columns(reader, rand.node, picked)),), dims)
    return reader.refuse(
        "a slice of finite axes or of whole channels", "a slice of an axis that mixes both", "reshape after slicing"
    )


def finite_map(
    reader: Reader,
    rand: Rand,
    dims: Dims,
    key: Any,
    function: Callable[..., Any],
    numbers: Sequence[Any] = (),
    keeps_constants: bool = False,
) -> Rand:
    """Returns a random array whose finite axes went through a linear map."""
    shape = Rand(rand.parts, dims).finite
    parts = tuple(
        (n, reader.values.linear(key, node, shape, function, numbers, keeps_constants)) for n, node in rand.parts
    )
    return Rand(parts, dims)


@rule("rev")
def rev(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Reverses axes."""
    (array,) = arguments
    reversed_axes = set(equation.params["dimensions"])
    if isinstance(array, Num) and any(array.constant):
        return reader.of_numbers(equation, arguments)[0]
    return sliced(
        reader,
        array,
        [range(n - 1, -1, -1) if i in reversed_axes else range(n) for i, n in enumerate(array.shape)],
    )


@rule("pad")
def pad(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Pads axes with zeros, or crops them where the padding is negative."""
    array, filling = arguments
    config = equation.params["padding_config"]
    if isinstance(array, Num):
        return reader.of_numbers(equation, arguments)[0]
    if isinstance(array, Par) or filling.scalar != 0:
        reader.refuse("a random value that is padded with zeros", "another padding", "pad with zeros")
    own, low_high = axes_of(array.dims), [(0, 0, 0)] * len(array.finite)
    dims = list(array.dims)
    for axis, widths in enumerate(config):
        if tuple(widths) == (0, 0, 0):
            continue
        if not is_finite(array.dims[axis]):
            reader.refuse("padding of finite axes", "padding of an infinite axis", "use a matrix to change its width")
        low, high, interior = map(int, widths)
        low_high[own[axis][0]] = (low, high, interior)
        n = array.shape[axis]
        dims[axis] = (low + high + n + max(n - 1, 0) * interior,)

    def padded(a: Any) -> Any:
        return lax.pad(a, jnp.zeros((), a.dtype), low_high)

    return finite_map(reader, array, tuple(dims), ("pad", tuple(low_high)), padded)


@rule("concatenate")
def concatenate(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Joins arrays along an axis."""
    axis = int(equation.params["dimension"])
    if all(isinstance(a, Num) for a in arguments):
        return reader.of_numbers(equation, arguments)[0]
    if any(isinstance(a, Par) for a in arguments):
        reader.refuse("random values or numbers to be joined", "a parameter", "add the parameter, or join its products")
    rands = [a for a in arguments if isinstance(a, Rand)]
    if not is_finite(rands[0].dims[axis]):
        return _joined_channels(reader, arguments, axis)
    return joined(reader, arguments, axis)


def joined(reader: Reader, arguments: Sequence[Array], axis: int) -> Rand:
    """Returns random arrays and numbers, joined along a finite axis."""
    first = next(a for a in arguments if isinstance(a, Rand))
    sizes = [a.shape[axis] for a in arguments]
    ones = []
    for array, size in zip(arguments, sizes, strict=True):
        dims = tuple((size,) if i == axis else dim for i, dim in enumerate(first.dims))
        assert not isinstance(array, Par)
        ones.append(array if isinstance(array, Rand) else fixed_on(reader, array, Rand(first.parts, dims)))
    if not all(is_finite(r.dims[axis]) for r in ones):
        reader.refuse("finite axes to be joined", "an infinite axis beside a finite one", "map the input by a matrix")
    # All other axes have to agree; the joined axis is left out of the comparison by padding first.
    total, first_place, placed = sum(sizes), 0, []
    for rand, size in zip(ones, sizes, strict=True):
        own = axes_of(rand.dims)[axis][0]
        widths = [(0, 0, 0)] * len(rand.finite)
        widths[own] = (first_place, total - first_place - size, 0)
        dims = tuple((total,) if i == axis else dim for i, dim in enumerate(rand.dims))

        def padded(a: Any, widths: Any = tuple(widths)) -> Any:
            return lax.pad(a, jnp.zeros((), a.dtype), widths)

        placed.append(finite_map(reader, rand, dims, ("pad", tuple(widths)), padded))
        first_place += size
    placed = aligned(reader, placed)
    parts = tuple(
        (several[0][0], reader.values.sum([(1.0, node) for _, node in several]))
        for several in zip(*(rand.parts for rand in placed), strict=True)
    )
    return Rand(parts, placed[0].dims)


def _joined_channels(reader: Reader, arguments: Sequence[Array], axis: int) -> Rand:
    rands = []
    for a in arguments:
        if not isinstance(a, Rand) or sum(isinstance(x, Channels) for dim in a.dims for x in dim) != 1:
            reader.refuse(
                "random values with one infinite axis to be joined along it",
                "numbers, or features of the input, beside channels" if isinstance(a, Num) else "a split axis",
                "map the input by a matrix first",
            )
        rands.append(a)
    shape = rands[0].finite
    dims = list(rands[0].dims)
    for rand in rands:
        if rand.finite != shape:
            reader.refuse("finite axes that agree", f"shapes {[r.shape for r in rands]}", "reshape them alike")
    flags = [a.wide for rand in rands for a in rand.dims[axis] if isinstance(a, Channels)]
    wide = None if None in flags else all(flags)
    dims[axis] = (Channels(sum(rand.channels for rand in rands), wide),)
    parts = tuple((n, reshaped(reader, node, shape)) for rand in rands for n, node in rand.parts)
    return Rand(parts, tuple(dims))


@rule("split")
def split(reader: Reader, equation: Any, arguments: list[Any]) -> list[Array]:
    """Cuts an axis into several arrays."""
    (array,) = arguments
    sizes, axis = equation.params["sizes"], int(equation.params["axis"])
    first, found = 0, []
    for size in map(int, sizes):
        ranges = [range(first, first + size) if i == axis else range(n) for i, n in enumerate(array.shape)]
        found.append(sliced(reader, array, ranges))
        first += size
    return found


def taken(reader: Reader, array: Array, axis: int, index: int) -> Array:
    """Returns one entry of an axis, without the axis."""
    ranges = [range(index, index + 1) if i == axis else range(n) for i, n in enumerate(array.shape)]
    return drop(reader, sliced(reader, array, ranges), {axis})


@rule("dynamic_slice")
def dynamic_slice(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Takes a range whose start the program computes."""
    array, *starts = arguments
    if isinstance(array, Num) and not all(s.scalar is not None for s in starts):
        return reader.of_numbers(equation, arguments)[0]
    sizes = equation.params["slice_sizes"]
    ranges = []
    for start, size, n in zip(starts, sizes, array.shape, strict=True):
        value = start.scalar if isinstance(start, Num) else None
        if value is None:
            reader.refuse("a range that is known", "a slice whose start depends on the data", "slice at fixed places")
        first = min(max(int(value), 0), n - size)
        ranges.append(range(first, first + size))
    return sliced(reader, array, ranges)


@rule("copy", "copy_p", "optimization_barrier", "sharding_constraint", "reduce_precision")
def copy(reader: Reader, equation: Any, arguments: list[Any]) -> list[Array]:
    """Returns the arguments as they are."""
    del reader, equation
    return list(arguments)
