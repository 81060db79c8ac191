"""The rule of gathers: rows of a table of parameters by tokens, and fixed places of a finite axis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.tracing.arrays import Array, Axes, Num, Par, Rand, axes_of, is_finite
from nngp_dag.tracing.reader import Reader, described, rule
from nngp_dag.tracing.rules.products import weighted
from nngp_dag.tracing.rules.shapes import finite_map


@rule("gather")
def gather(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Takes entries at places that an array holds."""
    array, index = arguments
    if not isinstance(index, Num):
        reader.refuse("places that are numbers", "places that are random", "gather at fixed places or tokens")
    if isinstance(array, Num):
        return reader.of_numbers(equation, arguments)[0]
    taken = _take(equation)
    if taken is None:
        reader.refuse("whole slices at places along one axis", "a gather of another form", "use `jnp.take`")
    axis, first = taken
    if isinstance(array, Par):
        return _rows(reader, array, index, axis, first)
    if not is_finite(array.dims[axis]) or index.number.known is None:
        reader.refuse(
            "known places of a finite axis",
            "a gather from an infinite axis" if not is_finite(array.dims[axis]) else "places that depend on the input",
            "gather pixels or tokens at fixed places",
        )
    places = np.asarray(index.number.known)[..., 0]
    if first != axis and places.ndim:
        reader.refuse("gathered places on the axis that they replace", "another order of axes", "transpose afterwards")
    places = np.clip(places, 0, array.shape[axis] - 1)
    place = axes_of(array.dims)[axis][0]
    dims = (*array.dims[:axis], *((n,) for n in places.shape), *array.dims[axis + 1 :])
    flat = tuple(places.ravel().tolist())

    def take(a: Any) -> Any:
        return jnp.take(a, places, axis=place)

    return finite_map(reader, array, dims, ("gather", place, places.shape, flat), take, keeps_constants=True)


def _take(equation: Any) -> tuple[int, int] | None:
    """Returns the axis along which a gather takes whole slices, and the first axis of the result's places."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = equation.invars[0].aval.shape
    if len(numbers.start_index_map) != 1 or numbers.collapsed_slice_dims != numbers.start_index_map:
        return None
    if getattr(numbers, "operand_batching_dims", ()):
        return None
    (axis,) = numbers.start_index_map
    if any(size != n for i, (size, n) in enumerate(zip(sizes, shape, strict=True)) if i != axis) or sizes[axis] != 1:
        return None
    rank = len(equation.outvars[0].aval.shape)
    places = [i for i in range(rank) if i not in numbers.offset_dims]
    if places != list(range(places[0], places[0] + len(places))) if places else False:
        return None
    return axis, places[0] if places else axis


def _rows(reader: Reader, par: Par, index: Num, axis: int, first: int) -> Array:
    """Returns rows of a table of parameters: the product of one-hot vectors with it."""
    places = reader.whole(index)
    count = par.shape[axis]
    if places.known is not None:
        known = np.clip(np.asarray(places.known)[..., 0], 0, count - 1)
        entries = np.take(par.entries, known, axis=axis)
        if len(np.unique(known)) == known.size and not par.repeated[axis]:
            repeated = (*par.repeated[:axis], *(False,) * known.ndim, *par.repeated[axis + 1 :])
            return dataclasses.replace(par, entries=entries, shape=entries.shape, repeated=repeated)
    if first != 0 or axis != 0:
        reader.refuse("rows of a table", "a gather along another axis", "transpose the table")
    shape = index.shape[:-1]
    number = reader.values.computed(
        ("one hot", count), lambda i: jax.nn.one_hot(jnp.clip(i[..., 0], 0, count - 1), count), places
    )
    hot = Num(number, (*shape, count), (False,) * (len(shape) + 1))
    of_value = Axes((len(shape),), (), tuple(range(len(shape))))
    return weighted(reader, hot, par, of_value, Axes((0,), (), tuple(range(1, len(par.shape)))), par_first=False)


@rule("scatter-add")
def scatter_add(reader: Reader, equation: Any, arguments: list[Any]) -> Array:
    """Adds up slices along the first axis by known numbers of segments, such as messages at the nodes of a graph."""
    start, index, updates = arguments
    if all(isinstance(a, Num) for a in arguments):
        return reader.of_numbers(equation, arguments)[0]
    numbers = equation.params["dimension_numbers"]
    first = tuple(numbers.scatter_dims_to_operand_dims) == tuple(numbers.inserted_window_dims) == (0,)
    plain = isinstance(updates, Rand) and isinstance(start, Num) and start.scalar == 0
    known = isinstance(index, Num) and index.number.known is not None and len(index.shape) == 2
    rank = len(equation.outvars[0].aval.shape)
    if not (first and plain and known) or tuple(numbers.update_window_dims) != tuple(range(1, rank)):
        reader.refuse(
            "sums of slices along the first axis at known places, from zeros",
            f"`scatter-add` of {described(arguments)} in another form",
            "use `jax.ops.segment_sum` with known segments",
        )
    if not is_finite(updates.dims[0]):
        reader.refuse("sums along a finite axis", "sums of channels", "sum over nodes, pixels or tokens")
    places = np.asarray(index.number.known)[:, 0]
    count = start.shape[0]
    dims = ((count,), *updates.dims[1:])
    inside = (places >= 0) & (places < count)

    def add(a: Any) -> Any:
        return jnp.zeros((count, *a.shape[1:]), a.dtype).at[places[inside]].add(a[inside])

    return finite_map(reader, updates, dims, ("segments", count, tuple(places.tolist())), add)
