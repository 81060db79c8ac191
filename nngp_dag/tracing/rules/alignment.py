"""Brings arrays into one form: equal axes, equal parts, and numbers or parameters on the axes of a random array."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nngp_dag.tracing.arrays import Atom, Channels, Dims, Num, Par, Rand, finite_of
from nngp_dag.tracing.reader import Reader
from nngp_dag.tracing.values import (
    Fixed,
    Linear,
    Node,
    Nonlinear,
    Number,
    Parameter,
    Product,
    Shape,
    Sum,
    Times,
)


def reshaped(reader: Reader, node: Node, shape: Shape) -> Node:
    """Returns a node with its finite axes in another shape, in the same order of entries."""
    if node.shape == shape:
        return node
    return reader.values.linear("reshape", node, shape, lambda a: a.reshape(shape), keeps_constants=True)


def broadcast(reader: Reader, node: Node, shape: Shape) -> Node:
    """Returns a node whose axes of size 1 are repeated to a shape of the same rank."""
    if node.shape == shape:
        return node
    return reader.values.linear("broadcast", node, shape, lambda a: jnp.broadcast_to(a, shape), keeps_constants=True)


def transposed(reader: Reader, node: Node, order: Sequence[int]) -> Node:
    """Returns a node with its finite axes in another order."""
    order = tuple(order)
    if order == tuple(range(len(order))):
        return node
    shape = tuple(node.shape[i] for i in order)
    return reader.values.linear(
        ("transpose", order), node, shape, lambda a: jnp.transpose(a, order), keeps_constants=True
    )


def with_dims(reader: Reader, rand: Rand, dims: Dims) -> Rand:
    """Returns a random array on other axes that hold the same entries in the same order."""
    shape = finite_of(dims)
    return Rand(tuple((n, reshaped(reader, node, shape)) for n, node in rand.parts), dims)


def columns(reader: Reader, node: Node, chosen: np.ndarray) -> Node:
    """Returns a node of some of a node's channels, given by their numbers."""
    values = reader.values

    def of(child: Node) -> Node:
        return columns(reader, child, chosen)

    match node:
        case Product():
            weight = reader.weights.read(node.weight.leaf, node.weight.entries[..., chosen], reader.place)
            return values.product(
                weight,
                node.operands,
                node.shape,
                node.geometry,
                own=node.own,
                features=node.features,
                centered=node.centered,
            )
        case Parameter():
            entries = node.weight.entries
            if entries.shape[-1] == 1:
                return node
            return values.parameter(
                reader.weights.read(node.weight.leaf, entries[..., chosen], reader.place), node.shape
            )
        case Sum():
            return values.sum([(c, of(child)) for c, child in node.terms])
        case Linear():
            return values.linear(("like", node.id), of(node.node), node.shape, node.map, node.numbers)
        case Nonlinear():
            return values.nonlinear(node.key, of(node.node), node.function, node.place, node.label, node.tuned)
        case Times():
            return values.times(of(node.left), of(node.right), node.place)
        case Fixed():
            return node
    raise TypeError(type(node))


def cut(reader: Reader, rand: Rand, start: int, stop: int) -> Rand:
    """Returns the channels from `start` to `stop` of an array with one infinite axis."""
    parts, first = [], 0
    for n, node in rand.parts:
        low, high = max(start, first) - first, min(stop, first + n) - first
        if low < high:
            whole = low == 0 and high == n
            parts.append((high - low, node if whole else columns(reader, node, np.arange(low, high))))
        first += n
    count = stop - start
    dims = tuple(
        tuple(dataclasses.replace(a, size=count) if isinstance(a, Channels) else a for a in dim) for dim in rand.dims
    )
    return Rand(tuple(parts), dims)


def bounds(rand: Rand) -> list[int]:
    """Returns the channels at which the parts of an array end."""
    return np.cumsum([n for n, _ in rand.parts]).tolist()


def repartitioned(reader: Reader, rand: Rand, ends: Sequence[int]) -> Rand:
    """Returns an array whose parts end at the given channels, which include the ends of its own parts."""
    if bounds(rand) == list(ends):
        return rand
    starts = [0, *ends[:-1]]
    parts = [cut(reader, rand, a, b).parts[0] for a, b in zip(starts, ends, strict=True)]
    return Rand(tuple(parts), rand.dims)


def aligned(reader: Reader, rands: Sequence[Rand]) -> list[Rand]:
    """Returns random arrays of equal shapes on equal axes, with equal parts.

    Raises:
      ModelError: A finite axis meets an infinite one.
    """
    dims = tuple(_common(reader, [r.dims[i] for r in rands]) for i in range(len(rands[0].dims)))
    rands = [with_dims(reader, rand, dims) for rand in rands]
    ends = sorted({end for rand in rands for end in bounds(rand)})
    if len(ends) > 1 and sum(isinstance(a, Channels) for dim in dims for a in dim) > 1:
        reader.refuse("arrays with one infinite axis", "a concatenation whose channels are split", "split first")
    return [repartitioned(reader, rand, ends) for rand in rands]


def _common(reader: Reader, forms: Sequence[tuple[Atom, ...]]) -> tuple[Atom, ...]:
    """Returns the coarsest split of an axis that refines all the given ones."""
    remaining = [[a for a in form if a not in (1, Channels(1))] or [form[0]] for form in forms]
    if all(r == remaining[0] for r in remaining):
        return forms[0]
    found: list[Atom] = []
    while all(remaining):
        heads = [r[0] for r in remaining]
        sizes = [a.size if isinstance(a, Channels) else a for a in heads]
        step = sizes[0] if len(set(sizes)) == 1 else math.gcd(*sizes)
        infinite = {isinstance(a, Channels) for a in heads}
        if len(infinite) > 1 or step == 1 < max(sizes):
            reader.refuse(
                "arrays whose infinite axes agree",
                "an operation between an infinite axis and a finite one, such as channels and features of the input",
                "map the input by a matrix first",
            )
        wide = next((a.wide for a in heads if isinstance(a, Channels)), None)
        found.append(Channels(step, wide) if infinite == {True} else step)
        for rest, size in zip(remaining, sizes, strict=True):
            # Entries run over the last factor first, so the rest of an axis stays in front only if it is whole.
            if size == step:
                rest.pop(0)
            else:
                rest[0] = Channels(size // step, wide) if infinite == {True} else size // step
    return tuple(found)


def number_on(reader: Reader, num: Num, dims: Dims) -> Number:
    """Returns a number on the finite axes of a random array; axes along which it is constant have size 1.

    Raises:
      ModelError: The number differs between channels.
    """
    reader.settle(num)
    if not num.shape:
        return reader.values.computed("scalar", lambda a: jnp.reshape(a, (1,) * len(finite_of(dims))), num.number)
    stored: list[int] = []  # sizes by atom, 1 where constant
    keep: list[int] = []  # the same without channels
    for size, constant, dim in zip(num.shape, num.constant, dims, strict=True):
        for atom in dim:
            n = 1 if constant or size == 1 else atom.size if isinstance(atom, Channels) else atom
            stored.append(n)
            if not isinstance(atom, Channels):
                keep.append(n)
    channel = tuple(i for i, atom in enumerate(a for dim in dims for a in dim) if isinstance(atom, Channels))
    if any(stored[i] > 1 for i in channel):
        known = num.number.known
        if known is None or np.ptp(known.reshape(stored), axis=tuple(i for i in channel)).any():
            reader.refuse(
                "numbers that are the same for all channels of an infinite axis",
                "an array that differs between them",
                "make it a parameter, or map it by a matrix first",
            )
    index = tuple(0 if i in channel else slice(None) for i in range(len(stored)))
    return reader.values.computed(("on", tuple(stored), channel), lambda a: jnp.reshape(a, stored)[index], num.number)


def check_not_fixed(reader: Reader, par: Par) -> None:
    """Refuses an array of different numbers that are not random, on which no limit of infinite width is defined."""
    spec = reader.leaves[par.leaf]
    if spec.distribution.kind == "fixed":
        reader.refuse(
            "parameters that are random, or start from one constant",
            f"`{spec.name}`, a fixed array whose entries differ",
            "draw it at random",
        )


def parameter_on(reader: Reader, par: Par, rand: Rand) -> Rand:
    """Returns a parameter as a random array on the axes and parts of another one.

    Raises:
      ModelError: A random parameter is shared by all channels of an infinite axis.
    """
    check_not_fixed(reader, par)
    if par.groups is not None:
        reader.refuse(
            "parameters that are added or multiplied as they are",
            f"`{reader.leaves[par.leaf].name}` minus its mean",
            "leave out the mean",
        )
    dims = rand.dims
    shape: list[int] = []
    flags = par.repeated or (True,) * len(dims)
    for size, repeated, dim in zip(par.shape or (1,) * len(dims), flags, dims, strict=True):
        shape += [1 if repeated or size == 1 else a.size if isinstance(a, Channels) else a for a in dim]
    atoms = [a for dim in dims for a in dim]
    finite = [i for i, a in enumerate(atoms) if not isinstance(a, Channels)]
    infinite = [i for i, a in enumerate(atoms) if isinstance(a, Channels)]
    entries = np.transpose(par.entries.reshape(shape), finite + infinite)
    own = tuple(shape[i] for i in finite)
    across = tuple(shape[i] for i in infinite)
    shared = any(n == 1 < atoms[i].size for n, i in zip(across, infinite, strict=True))  # type: ignore[union-attr]
    spec = reader.leaves[par.leaf]
    if shared and spec.distribution.std > 0:
        reader.refuse(
            "a random parameter with an entry for each channel",
            f"`{spec.name}` with one entry that all {rand.channels} channels share, so that their sum does not become "
            "Gaussian",
            "start it from a constant, or give it one entry per channel",
        )
    if shared and math.prod(across) > 1:
        reader.refuse("a parameter with an entry for each channel", f"`{spec.name}`, shared by groups", "give it one")
    entries = entries.reshape(*own, math.prod(across))
    parts, first = [], 0
    for n, _ in rand.parts:
        part = entries if entries.shape[-1] == 1 < rand.channels else entries[..., first : first + n]
        node = reader.values.parameter(reader.weights.read(par.leaf, part, reader.place), own)
        if par.scale != 1:
            node = reader.values.sum([(par.scale, node)])
        parts.append((n, broadcast(reader, node, finite_of(dims))))
        first += n
    return Rand(tuple(parts), dims)


def fixed_on(reader: Reader, num: Num, rand: Rand) -> Rand:
    """Returns a number as a random array without randomness, on the axes and parts of another one."""
    number = number_on(reader, num, rand.dims)
    node = reader.values.fixed(number, rand.finite)
    return Rand(tuple((n, node) for n, _ in rand.parts), rand.dims)


def apply_to_parts(rand: Rand, change: Any) -> Rand:
    """Returns a random array whose parts' nodes are changed by a function that keeps shapes."""
    return Rand(tuple((n, change(node)) for n, node in rand.parts), rand.dims)
