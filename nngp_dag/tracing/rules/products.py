"""Rules of matrix products.

With a weight they are the sources of randomness, with numbers linear maps of finite axes, and of two random values
means over the infinite axis.
"""

import math
import string
from collections.abc import Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from nngp_dag.tracing.arrays import (
    Atom,
    Axes,
    Channels,
    Dims,
    Growth,
    Num,
    Outer,
    Par,
    Rand,
    Value,
    axes_of,
    finite_of,
    is_finite,
)
from nngp_dag.tracing.geometry import Matrix
from nngp_dag.tracing.reader import Reader, rule
from nngp_dag.tracing.rules.alignment import bounds, check_not_fixed, repartitioned
from nngp_dag.tracing.rules.bases import bases
from nngp_dag.tracing.rules.shapes import broadcast_to, check_plain, transposed_to
from nngp_dag.tracing.rules.standardization import read_rows
from nngp_dag.tracing.values import Linear, Node, Number, Times

# Entries up to which the coefficients of a linear map are looked at one by one.
_MOST_COEFFICIENTS = 256
# Points at which a function has to be positive, so that its mean is.
_GRID = np.linspace(-3, 3, 31)


@rule("dot_general")
def dot_general(reader: Reader, equation: Any, arguments: list[Any]) -> Value:
    """Multiplies arrays and sums over axes."""
    left, right = arguments
    (lc, rc), (lb, rb) = equation.params["dimension_numbers"]
    axes = [
        Axes(tuple(map(int, c)), tuple(map(int, b)), tuple(i for i in range(len(a.shape)) if i not in (*c, *b)))
        for a, c, b in ((left, lc, lb), (right, rc, rb))
    ]
    if isinstance(left, Num) and isinstance(right, Num):
        return reader.of_numbers(equation, arguments)[0]
    if isinstance(left, Par) and isinstance(right, Par):
        names = " and ".join(f"`{reader.leaves[a.leaf].name}`" for a in (left, right))
        reader.refuse(
            "products of values with weights", f"a product of two parameters, {names}", "multiply from the right"
        )
    if isinstance(left, Par) or isinstance(right, Par):
        par: Any = left if isinstance(left, Par) else right
        value: Any = right if isinstance(left, Par) else left
        of_par, of_value = axes if isinstance(left, Par) else axes[::-1]
        return weighted(reader, value, par, of_value, of_par, par_first=isinstance(left, Par))
    if isinstance(left, Rand) and isinstance(right, Rand):
        if any(not is_finite(left.dims[i]) for i in axes[0].free):
            return Outer(left, right, of_left=axes[0], of_right=axes[1])
        return averaged(reader, left, right, *axes)
    rand, num = (left, right) if isinstance(left, Rand) else (right, left)
    of_rand, of_num = axes if isinstance(left, Rand) else axes[::-1]
    return mixed(reader, rand, num, of_rand, of_num, rand_first=isinstance(left, Rand))


def weighted(reader: Reader, value: Num | Rand, par: Par, of_value: Axes, of_par: Axes, *, par_first: bool) -> Rand:
    """Returns the product of a value with a weight, a Gaussian array with new channels."""
    name = reader.leaves[par.leaf].name
    pairs = sorted(zip(of_value.contracted, of_par.contracted, strict=True))
    rows = [p for _, p in pairs]
    if any(par.repeated[i] for i in (*rows, *of_par.batch, *of_par.free)):
        reader.refuse("a matrix of independent entries", f"`{name}` with repeated entries", "use it as it is")
    check_gaussian(reader, par)
    wide = reader.leaves[par.leaf].wide
    # Axes of the parameter are those of the array unless it was reshaped.
    plain = wide is not None and par.shape == reader.leaves[par.leaf].shape
    flags = [wide[i] if plain and wide is not None else None for i in of_par.free]
    if len(of_par.free) > 1:
        chosen = max((i for i, flag in enumerate(flags) if flag), default=len(flags) - 1)
        return _with_axes_of_its_own(reader, value, par, of_value, of_par, chosen, par_first=par_first)
    columns = math.prod(par.shape[i] for i in of_par.free)
    entries = np.transpose(par.entries, [*rows, *of_par.batch, *of_par.free])
    entries = entries.reshape(*entries.shape[: len(rows) + len(of_par.batch)], columns)
    contracted, batch, free = tuple(v for v, _ in pairs), of_value.batch, of_value.free
    of: Dims = tuple((n,) for n in value.shape) if isinstance(value, Num) else value.dims
    product = _of_number if isinstance(value, Num) else _of_value
    node = product(reader, value, par, entries, contracted, batch, free)  # type: ignore[arg-type]
    channels = tuple((Channels(columns, flag),) for flag in flags)
    left = tuple(of[i] for i in free)
    dims = (*(of[i] for i in batch), *((*channels, *left) if par_first else (*left, *channels)))
    return Rand(((columns, node),), dims)


def _with_axes_of_its_own(
    reader: Reader, value: Num | Rand, par: Par, of_value: Axes, of_par: Axes, chosen: int, *, par_first: bool
) -> Rand:
    """Returns the product with a weight of several new axes: one is infinite, the others are finite.

    Along the finite ones, such as heads or experts, the value is repeated, and each entry has weights of its own.
    """
    own = [i for j, i in enumerate(of_par.free) if j != chosen]
    sizes = tuple(par.shape[i] for i in own)
    count = len(sizes)
    repeated = broadcast_to(reader, value, (*sizes, *value.shape), range(count, count + len(value.shape)))
    assert not isinstance(repeated, Par)

    def later(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i + count for i in axes)

    wide_value = Axes(later(of_value.contracted), (*range(count), *later(of_value.batch)), later(of_value.free))
    wide_par = Axes(of_par.contracted, (*own, *of_par.batch), (of_par.free[chosen],))
    found = weighted(reader, repeated, par, wide_value, wide_par, par_first=False)
    # The axes are now: own, batch, free of the value, channels.
    batch = list(range(count, count + len(of_value.batch)))
    left = list(range(count + len(batch), count + len(batch) + len(of_value.free)))
    new = list(range(count))
    new.insert(chosen, count + len(batch) + len(left))
    moved = transposed_to(reader, found, [*batch, *((*new, *left) if par_first else (*left, *new))])
    assert isinstance(moved, Rand)
    return moved


def check_wide(reader: Reader, atoms: Sequence[Atom], what: str) -> None:
    """Notes that axes are taken to be infinite.

    Raises:
      ModelError: One of them does not grow with the width.
    """
    channels = [a for a in atoms if isinstance(a, Channels)]
    fixed = next((a for a in channels if a.wide is False), None)
    if fixed is not None:
        reader.refuse(
            "axes that grow with the width",
            f"an axis of {fixed.size} channels that does not, which {what}",
            "make its size proportional to the width",
        )
    reader.infinite.setdefault(what, math.prod(a.size for a in channels))


def refuse_part(reader: Reader, summed: int, channels: int) -> NoReturn:
    """Refuses a sum over a part of an axis that was split, where nothing tells which part is infinite."""
    reader.refuse(
        "a sum over a whole infinite axis, or a model whose axes are known to grow",
        f"a sum over {summed} of {channels} channels, which may be the infinite part or not",
        "pass a factory of the model with `width`, which tells the parts that grow",
    )


def check_gaussian(reader: Reader, par: Par) -> None:
    """Refuses a matrix whose entries are not random with mean 0, or that was multiplied by an array."""
    check_plain(reader, par)
    check_not_fixed(reader, par)
    spec = reader.leaves[par.leaf]
    if par.groups is None and spec.distribution.mean != 0:
        reader.refuse(
            "weights with mean 0",
            f"`{spec.name}` with entries of mean {spec.distribution.mean:.3g} ({spec.distribution.kind}), a constant "
            "matrix on an infinite axis",
            "initialize it at random with mean 0",
        )


def _of_number(
    reader: Reader,
    num: Num,
    par: Par,
    entries: np.ndarray,
    contracted: tuple[int, ...],
    batch: tuple[int, ...],
    free: tuple[int, ...],
) -> Node:
    number = reader.whole(num)
    left = [i for i in range(len(num.shape)) if i not in contracted]
    order = tuple(left.index(i) for i in (*batch, *free))
    shape = tuple(num.shape[i] for i in (*batch, *free))
    if number.known is not None and not number.known.any():
        # The initial state of a recurrent network, on which its weights do not act.
        return reader.values.fixed(reader.values.known(np.zeros((1,) * len(order))), shape)
    weight = reader.weights.read(par.leaf, entries, reader.place)

    own = tuple(range(len(batch)))
    is_centered = read_rows(reader, par, entries, len(contracted), channels=False)
    node = reader.values.product(
        weight, [(1, number)], shape, Matrix((), order), own=own, features=contracted, centered=is_centered
    )
    return reader.values.sum([(par.scale, node)])


def _of_value(
    reader: Reader,
    rand: Rand,
    par: Par,
    entries: np.ndarray,
    contracted: tuple[int, ...],
    batch: tuple[int, ...],
    free: tuple[int, ...],
) -> Node:
    name = reader.leaves[par.leaf].name
    if any(not is_finite(rand.dims[i]) for i in free):
        reader.refuse(
            "a product with a weight that sums over all channels",
            f"`{name}` along other axes only, so that it does not mix channels"
            if all(is_finite(rand.dims[i]) for i in contracted)
            else f"`{name}` on one part of the channels, such as one head",
            "contract the infinite axis",
        )
    if any(not is_finite(rand.dims[i]) for i in batch):
        reader.refuse(
            "a weight that mixes all channels",
            f"`{name}` with its own matrix for every group of channels",
            "use one matrix",
        )
    check_wide(reader, [a for i in contracted for a in rand.dims[i]], f"`{name}` sums over")
    own_axes = axes_of(rand.dims)
    summed = tuple(p for i in contracted for p in own_axes[i])
    kept = tuple(p for i in (*batch, *free) for p in own_axes[i])
    shape = tuple(rand.finite[p] for p in kept)
    own = tuple(range(sum(len(own_axes[i]) for i in batch)))
    is_centered = read_rows(reader, par, entries, len(contracted), channels=True)
    # Rows of the entries are in the order of the contracted axes; the channels of each part are some of them.
    order, sizes = [], []
    for i in contracted:
        for atom in rand.dims[i]:
            infinite = isinstance(atom, Channels)
            order.append(infinite)
            sizes.append(atom.size if infinite else atom)
    tail = entries.shape[len(contracted) :]
    spread = entries.reshape(*sizes, *tail)
    finite_first = [i for i, c in enumerate(order) if not c] + [i for i, c in enumerate(order) if c]
    spread = np.transpose(spread, [*finite_first, *range(len(sizes), spread.ndim)])
    finite_sizes = [n for n, c in zip(sizes, order, strict=True) if not c]
    spread = spread.reshape(*finite_sizes, rand.channels, *tail)
    rand = _as_before(reader, rand, par.leaf)
    if is_centered and len(rand.parts) > 1:
        reader.refuse(
            "weights that are centered to meet channels of one part",
            f"`{reader.leaves[par.leaf].name}` times concatenated channels",
            "leave out the mean, or multiply each part by weights of its own",
        )
    terms, first = [], 0
    for n, node in rand.parts:
        rows = np.take(spread, np.arange(first, first + n), axis=len(finite_sizes))
        # The entries are read in parts, so that another operation may read some of the rows.
        weight = reader.weights.read(par.leaf, rows, reader.place)
        product = reader.values.product(weight, [(n, node)], shape, Matrix(summed, kept), own=own, centered=is_centered)
        terms.append((par.scale, product))
        first += n
    return reader.values.sum(terms)


def _as_before(reader: Reader, rand: Rand, leaf: int) -> Rand:
    """Returns the array in the parts in which the weight was read before, so that tied weights meet."""
    ends = reader.rows.get(leaf, [])
    if len(ends) > 1 and ends[-1] == rand.channels and len(rand.parts) == 1:
        return repartitioned(reader, rand, ends)
    reader.rows[leaf] = bounds(rand)
    return rand


def mixed(reader: Reader, rand: Rand, num: Num, of_rand: Axes, of_num: Axes, *, rand_first: bool) -> Rand:
    """Returns a random array times a number, summed over finite axes."""
    if any(not is_finite(rand.dims[i]) for i in of_rand.contracted):
        reader.refuse(
            "matrices of the model's parameters on infinite axes",
            "a known matrix, or features of the input, on an infinite axis",
            "make the matrix a parameter; if it is trained or fixed, the infinite-width limit is not defined by it",
        )
    reader.settle(num)
    own = axes_of(rand.dims)
    letters = iter(string.ascii_letters)
    node_letters = [next(letters) for _ in rand.finite]
    num_letters = [""] * len(num.shape)
    partners = dict(zip(of_num.contracted, of_rand.contracted, strict=True))
    partners |= dict(zip(of_num.batch, of_rand.batch, strict=True))
    dropped = set()
    for axis in range(len(num.shape)):
        if axis not in partners:
            num_letters[axis] = next(letters)
            continue
        partner = partners[axis]
        if is_finite(rand.dims[partner]):
            num_letters[axis] = node_letters[own[partner][0]]
            continue
        if not num.constant[axis] and num.shape[axis] > 1:
            reader.refuse(
                "numbers that are the same for all channels",
                "numbers that differ between groups of channels, such as heads",
                "use the same for all",
            )
        dropped.add(axis)
        # Finite factors of an axis that is split otherwise would need the same split here.
        if own[partner]:
            reader.refuse("axes that are finite or infinite", "a batch axis that mixes both", "reshape it")
    stored = tuple(1 if axis in dropped else n for axis, n in enumerate(num.shape))
    batch = [node_letters[p] for i in of_rand.batch for p in own[i]]
    free = [node_letters[p] for i in of_rand.free for p in own[i]]
    of_number = [num_letters[i] for i in of_num.free]
    out = batch + (free + of_number if rand_first else of_number + free)
    formula = f"{''.join(node_letters)},{''.join(num_letters)}->{''.join(out)}"
    new = tuple((num.shape[i],) for i in of_num.free)
    old = tuple(rand.dims[i] for i in of_rand.free)
    dims: Dims = (*(rand.dims[i] for i in of_rand.batch), *((*old, *new) if rand_first else (*new, *old)))
    shape = finite_of(dims)
    squeezed = tuple(sorted(dropped))

    def mix(a: Any, s: Any) -> Any:
        s = jnp.broadcast_to(s, stored).squeeze(squeezed)
        return jnp.einsum(formula, a, s)

    known = num.number.known
    if known is not None and not known.any():
        zero = reader.values.fixed(reader.values.known(np.zeros((1,) * len(shape))), shape)
        return Rand(tuple((n, zero) for n, _ in rand.parts), dims)
    key = ("mix", formula, stored)
    parts = tuple((n, reader.values.linear(key, node, shape, mix, (num.number,))) for n, node in rand.parts)
    return Rand(parts, dims)


def averaged(reader: Reader, left: Rand, right: Rand, of_left: Axes, of_right: Axes) -> Num:
    """Returns a sum over channels of products of two random values, n times their second moment."""
    summed = math.prod(a.size for i in of_left.contracted for a in left.dims[i] if isinstance(a, Channels))
    part = summed != left.channels and any(
        a.wide is None for i in of_left.contracted for a in left.dims[i] if isinstance(a, Channels)
    )
    if part:
        refuse_part(reader, summed, left.channels)
    if summed == 1 or (summed != left.channels and max(len(left.parts), len(right.parts)) > 1):
        reader.refuse("a sum over an infinite axis", "a sum of products over finite axes alone", "use one of them")
    check_wide(reader, [a for i in of_left.contracted for a in left.dims[i]], f"{reader.place} averages over")
    left, right = _same_channels(reader, left, right, of_left, of_right)
    own_left, own_right = axes_of(left.dims), axes_of(right.dims)
    letters = iter(string.ascii_letters)
    of_l = [next(letters) for _ in left.finite]
    of_r = [next(letters) for _ in right.finite]
    for a, b in zip((*of_left.contracted, *of_left.batch), (*of_right.contracted, *of_right.batch), strict=True):
        for p, q in zip(own_left[a], own_right[b], strict=True):
            of_r[q] = of_l[p]
    kept = [of_l[p] for i in (*of_left.batch, *of_left.free) for p in own_left[i]]
    kept += [of_r[p] for i in of_right.free for p in own_right[i]]
    formula = f"{''.join(of_l + of_r)}->{''.join(kept)}"
    total: Number | None = None
    for (n, u), (_, v) in zip(left.parts, right.parts, strict=True):
        count = n if summed == left.channels else summed
        if not u.sources & v.sources and 0.0 in (u.offset, v.offset):
            moment = reader.values.known(np.zeros((*u.shape, *v.shape)))
        else:
            moment = reader.values.second_moment(u, v)
        term = reader.values.computed(
            ("einsum", formula, count), lambda m, count=count: count * jnp.einsum(formula, m), moment
        )
        total = term if total is None else reader.values.computed("add", lambda a, b: a + b, total, term)
    assert total is not None
    dims = [left.dims[i] for i in (*of_left.batch, *of_left.free)] + [right.dims[i] for i in of_right.free]
    constant = tuple(not is_finite(dim) for dim in dims)
    shape = tuple(Rand(left.parts, (dim,)).shape[0] for dim in dims)
    stored = tuple(1 if c else n for n, c in zip(shape, constant, strict=True))
    number = reader.values.computed(("reshape", stored), lambda a: a.reshape(stored), total)
    pairs = zip(left.parts, right.parts, strict=True)
    positive = all(u is v or (is_positive(reader, u) and is_positive(reader, v)) for (_, u), (_, v) in pairs)
    return Num(number, shape, constant, Growth(summed, positive=positive))


def _same_channels(reader: Reader, left: Rand, right: Rand, of_left: Axes, of_right: Axes) -> tuple[Rand, Rand]:
    """Returns both values with equal splits and parts of the axes that they share."""
    pairs = list(zip((*of_left.contracted, *of_left.batch), (*of_right.contracted, *of_right.batch), strict=True))
    infinite = [b for _, b in sorted(pairs) if not is_finite(right.dims[b])]
    if infinite != sorted(infinite):
        reader.refuse("infinite axes in one order", "a product of transposed channels", "transpose less")
    for a, b in pairs:
        splits = [[x for x in dim if isinstance(x, Channels)] for dim in (left.dims[a], right.dims[b])]
        if splits[0] != splits[1]:
            reader.refuse("axes that are split alike", "two splits of channels", "reshape both alike")
    ends = sorted({*bounds(left), *bounds(right)})
    return repartitioned(reader, left, ends), repartitioned(reader, right, ends)


def is_positive(reader: Reader, node: Node) -> bool:
    """Whether the mean of a node is a mean of squares or of another function that is nowhere negative."""
    if isinstance(node, Times):
        return node.left is node.right
    if isinstance(node, Linear):
        # Such as sums over tokens.
        return not node.numbers and is_positive(reader, node.node) and _keeps_signs(node)
    base = next((b for b in bases(reader, node) if b.node is not None), None)
    return base is not None and bool((np.asarray(base.function(jnp.asarray(_GRID))) >= 0).all())


def _keeps_signs(node: Linear) -> bool:
    """Whether a linear map has no negative coefficient."""
    size = math.prod(node.node.shape)
    if size > _MOST_COEFFICIENTS:
        return False
    units = np.eye(size).reshape(size, *node.node.shape)
    return all(bool((np.asarray(node.map(jnp.asarray(unit))) >= 0).all()) for unit in units)
