"""Evaluation of the kernels of a network, from its program (THEORY section 3; `nngp_dag.graph.program`).

Cov(t, u) are covariances of nodes, m(t) means, and with C = F - mu mu^T the covariance of a weighted edge's output:

    Cov(t, u) = sum of A C over fields, or of a Cov(s, u) over edges s -> t without weights
    K(t) = Cov(t, t) + m(t) m(t)^T,   m(t) = sum of B mu over fields, or of a m(s)

The NTK obeys the recursion of Cov. Variances and means of every input come first, since every other entry is a function
of the same entry of the input kernel and of those vectors: the matrices are then computed in blocks of rows, and only
the results are ever N x N.

Beside K goes D_ij = (q_i + q_j) / 2 - K_ij, half the mean squared distance of two inputs, by the same recursion. It keeps the
angle of inputs that nearly coincide: K alone would lose half of its digits, and the NTK is linear in the angle.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nngp_dag.graph import Dense
from nngp_dag.graph.program import DENSE_NODES, Structure
from nngp_dag.kernels import law
from nngp_dag.kernels.dual import root
from nngp_dag.kernels.law import Rules, Sides, Value
from nngp_dag.kernels.loop import Tables, run_loop, run_loop_moments
from nngp_dag.kernels.space import Space, pool

# Entries of a block of rows: of the product of inputs, large enough for matrix products; and of all values that live at
# once in the recursion, which stay in the caches.
_PRODUCT_ENTRIES = 1 << 19
_BLOCK_ENTRIES = 1 << 15


class Spec(NamedTuple):
    """What a compiled evaluation depends on; hashable.

    Attributes:
      structure: The order of evaluation.
      stem: The stem's operation, or None where the data are node 0.
      readout: The readout's linear layer, or None for the kernels of the output nodes.
      readout_activation: The activation before it, or None.
      pixels: How the readout averages over pixels, "flatten" or "global-average"; None leaves them.
      rules: The parameterisation.
      with_ntk: Whether the NTK is wanted.
      homogeneous: Whether scaling an input scales its rows of the kernels by as much, squared for itself.
      loop: Whether the steps run as a loop.
    """

    structure: Structure
    stem: Dense | None
    readout: Dense | None
    readout_activation: Any
    pixels: str | None
    rules: Rules
    with_ntk: bool
    homogeneous: bool
    loop: bool


class Weights(NamedTuple):
    """The numbers of a program: those of its terms and means, and of the loop's tables where there is one.

    `true` is the truth, but XLA does not know.
    """

    terms: jax.Array
    means: jax.Array
    tables: Tables | None
    true: jax.Array


class Moments(NamedTuple):
    """Second moments and means of every node that needs them, vectors (N, *pixels) by node; no m where all are 0."""

    q: Any
    m: Any


def _sum(terms: list[jax.Array | None]) -> jax.Array | None:
    return None if terms[0] is None else functools.reduce(operator.add, terms)  # type: ignore[arg-type]


def _stems(spec: Spec, inputs: Sequence[Value], sides: Sequence[Sides], space: Space, channels: Sequence[int]) -> list:
    """Applies the stems; returns every input node's field and its sides."""
    if spec.stem is None:
        return list(zip(inputs, sides, strict=True))
    return [
        law.apply(spec.stem, value, side, space, spec.rules, fan_in)
        for value, side, fan_in in zip(inputs, sides, channels, strict=True)
    ]


def _evaluate(
    spec: Spec,
    weights: Weights,
    fields: list[Value],
    space: Space,
    sides_of: Callable[[int, Value], Sides],
    means_of: Callable[[int, Sides], None],
) -> dict[int, Value]:
    """Runs the steps one after another.

    Args:
      spec: The program.
      weights: Its numbers.
      fields: The centred stems.
      space: How axes lie.
      sides_of: Gives a node's second moments and means, from its covariance where they are not known yet.
      means_of: Is told the means of every field's slot.

    Returns:
      {node: its covariance} for the nodes that are computed.
    """

    def apply(op: Dense, value: Value, sides: Sides) -> tuple[Value, Sides]:
        def centred(value: Value, sides: Sides) -> tuple[Value, Sides]:
            field, sides = law.apply(op, value, sides, space, spec.rules)
            return law.centre(field, sides), sides

        if not fenced:
            return centred(value, sides)
        empty = jax.eval_shape(centred, value, sides)
        nothing = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), empty)
        return lax.cond(weights.true, centred, lambda value, sides: nothing, value, sides)

    # XLA would fuse all steps into one, and take time to compile that explodes with their number. A condition that it
    # cannot foresee keeps fields apart.
    fenced = len(spec.structure.steps) > DENSE_NODES
    slots: dict[int, Value] = dict(enumerate(fields))
    nodes: dict[int, Value] = {}
    position = 0
    for step in spec.structure.steps:
        terms: list[Value] = []
        for term in step.terms:
            weight = weights.terms[position]
            position += 1
            value = slots[term.slot]
            k, ntk = (
                None if v is None else weight * space.pool(space.pool(v, term.left, "left"), term.right, "right")
                for v in (value.k, value.ntk)
            )
            assert k is not None
            terms.append(Value(k, None if value.half_distance is None else weight * value.half_distance, ntk))
        total = slots[step.slot] = Value(*map(_sum, map(list, zip(*terms, strict=True))))  # type: ignore[arg-type]
        if step.node is None:
            continue
        nodes[step.node] = total
        sides = sides_of(step.node, total)
        moments = law.uncentre(total, sides)
        for op, slot in step.fields:
            slots[slot], field_sides = apply(op, moments, sides)
            means_of(slot, field_sides)
    return nodes


def moments_of(
    spec: Spec, weights: Weights, inputs: Sequence[Value], space: Space, channels: Sequence[int]
) -> tuple[Moments, dict[int, Value]]:
    """Runs the recursion for inputs with themselves.

    Args:
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the data's second moments (N, *pixels), twice the pixels where the space is full.
      space: How axes lie; paired.
      channels: Fan-in of every stem.

    Returns:
      Second moments and means, and the covariances of the nodes with themselves.
    """
    q_in = [space.diagonal(value.k) for value in inputs]
    stems = _stems(spec, inputs, [Sides(space.left(q), space.right(q)) for q in q_in], space, channels)
    fields = [law.centre(*stem) for stem in stems]
    if spec.loop:
        assert weights.tables is not None
        mu = [jnp.zeros_like(q) if s.m1 is None else s.m1 for q, (_, s) in zip(q_in, stems, strict=True)]
        q, m, outputs = run_loop_moments(weights.tables, spec.structure, fields, mu, spec.rules)
        return Moments(q, m), dict(enumerate(outputs))
    mu: dict[int, jax.Array] = {}
    q: dict[int, jax.Array] = {}
    m: dict[int, jax.Array] = {}
    positions = [0]
    for terms in spec.structure.means:
        positions.append(positions[-1] + len(terms))

    def means_of(slot: int, sides: Sides) -> None:
        if sides.m1 is not None:
            mu[slot] = space.vector(sides.m1)

    def mean(node: int) -> jax.Array | None:
        # Nodes are complete once all earlier ones are, and steps come in the order of nodes.
        if node not in m:
            total = None
            for index, term in enumerate(spec.structure.means[node], start=positions[node]):
                value = mu.get(term.slot) if term.slot is not None else mean(term.node)  # type: ignore[arg-type]
                if value is None:
                    continue
                if term.pool is not None:
                    value = pool(value, term.pool, range(1, value.ndim))
                part = weights.means[index] * value
                total = part if total is None else total + part
            m[node] = total  # type: ignore[assignment]
        return m[node]

    def sides_of(node: int, total: Value) -> Sides:
        mean_here = mean(node) if spec.structure.means else None
        q[node] = space.diagonal(total.k)
        if mean_here is None:
            return Sides(space.left(q[node]), space.right(q[node]))
        q[node] = q[node] + mean_here**2
        return Sides(*(side(v) for v in (q[node], mean_here) for side in (space.left, space.right)))

    for slot, (_, sides) in enumerate(stems):
        means_of(slot, sides)
    nodes = _evaluate(spec, weights, fields, space, sides_of, means_of)
    return Moments(q, {node: v for node, v in m.items() if v is not None}), nodes


def _read_out(spec: Spec, value: Value, sides: Sides, space: Space) -> tuple[jax.Array, jax.Array | None]:
    """Applies the readout to a node's second moments."""
    if spec.readout is not None and spec.readout_activation is not None:
        value, sides = law.activate(spec.readout_activation, value, sides)
    width = spec.rules.width
    if spec.pixels is not None:
        if spec.pixels == "flatten":
            width *= math.prod(space.vector(sides.q1).shape[1:])
        k, ntk = (None if v is None else space.read_out(v, spec.pixels) for v in (value.k, value.ntk))
        assert k is not None
        value, sides, space = Value(k, None, ntk), Sides(k, k), Space()
    if spec.readout is not None:
        value, _ = law.linear(spec.readout, value, sides, space, spec.rules, width)
    return value.k, value.ntk


def propagate(
    spec: Spec,
    weights: Weights,
    inputs: Sequence[Value],
    q_in: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    moments: tuple[Moments, Moments],
    space: Space,
    channels: Sequence[int],
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Runs the recursion for a block of the kernel.

    Args:
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the block of the data's second moments.
      q_in: Second moments of the rows' and of the columns' data, for every input node.
      moments: Those of the rows and of the columns at every node.
      space: How axes lie.
      channels: Fan-in of every stem.

    Returns:
      NNGP and NTK of every output.
    """
    sides_in = [Sides(space.left(q1), space.right(q2)) for q1, q2 in zip(*q_in, strict=True)]
    fields = [law.centre(*stem) for stem in _stems(spec, inputs, sides_in, space, channels)]

    def sides_of(node: int, total: Value) -> Sides:
        del total
        first, second = moments
        if spec.loop:
            # Outputs are numbered; which nodes they are stands in the tables.
            assert weights.tables is not None
            node = weights.tables.output_nodes[node]  # type: ignore[assignment]
        q = space.left(first.q[node]), space.right(second.q[node])
        if spec.loop or node in first.m:
            return Sides(*q, space.left(first.m[node]), space.right(second.m[node]))
        return Sides(*q)

    if spec.loop:
        assert weights.tables is not None
        outputs = run_loop(weights.tables, spec.structure, fields, *moments, spec.rules)
        nodes = dict(enumerate(outputs))
    else:
        nodes = _evaluate(spec, weights, fields, space, sides_of, lambda slot, sides: None)
    results = []
    for output in spec.structure.outputs:
        sides = sides_of(output, nodes[output])
        results.append(_read_out(spec, law.uncentre(nodes[output], sides), sides, space))
    return results


def by_rows(
    rows: Any,
    count: int,
    size: int,
    block: Callable[[Any, jax.Array], list[tuple[jax.Array, jax.Array | None]]],
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes results in blocks of rows.

    Args:
      rows: A pytree of arrays with leading axis `count`.
      count: Number of rows.
      size: Rows of a block.
      block: (slice of `rows`, indices of its rows) -> for every output arrays with that many rows.

    Returns:
      For every output arrays with `count` rows.
    """
    size = min(count, max(1, size))

    def compute(start: jax.Array | int) -> list[tuple[jax.Array, jax.Array | None]]:
        taken = jax.tree.map(lambda v: lax.dynamic_slice_in_dim(v, start, size, 0), rows)
        return block(taken, start + jnp.arange(size))

    if size == count:
        return compute(0)
    empty = jax.tree.map(lambda v: jnp.zeros((count, *v.shape[1:]), v.dtype), jax.eval_shape(compute, 0))

    def store(i: jax.Array, state: Any) -> Any:
        # The last block moves back to end with the last row; rows that two blocks share are computed twice.
        start = jnp.minimum(i * size, count - size)
        return jax.tree.map(lambda into, v: lax.dynamic_update_slice_in_dim(into, v, start, 0), state, compute(start))

    return lax.fori_loop(0, -(-count // size), store, empty)


def _norms(data: Sequence[jax.Array]) -> jax.Array:
    """Root of the mean square of every input, over all input nodes, (N,)."""
    return root(sum(jnp.mean(x.reshape(x.shape[0], -1) ** 2, axis=1) for x in data))  # type: ignore[arg-type]


def _images(x1: jax.Array, x2: jax.Array, space: Space) -> jax.Array:
    """Mean over channels of products of pixels, (N1, N2, *pixels)."""
    letters = "hwd"[: space.ndim]
    if not space.full:
        subscripts = f"i{letters}c,j{letters}c->ij{letters}"
    else:
        others = "xyz"[: space.ndim]
        subscripts = f"i{letters}c,j{others}c->ij{''.join(map(''.join, zip(letters, others, strict=True)))}"
    # A TF32 product would leave an error of 1e-3 in the correlations, and with it noise for lambda_min.
    return jnp.einsum(subscripts, x1, x2, precision=lax.Precision.HIGHEST) / x1.shape[-1]


@functools.partial(jax.jit, static_argnames=("spec", "space"))
def kernel_of_inputs(
    weights: Weights, x1: Sequence[jax.Array], x2: Sequence[jax.Array] | None, *, spec: Spec, space: Space
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes the kernels of a network on data.

    Args:
      weights: The numbers of the program.
      x1: For every input node the data, (N1, d), or images (N1, *pixels, channels).
      x2: Likewise (N2, ...), or None for x1.
      spec: The program.
      space: How axes lie, for blocks.

    Returns:
      For every output NNGP and NTK, (N1, N2) each; no NTK unless the spec asks for it.
    """
    symmetric = x2 is None
    paired = space._replace(paired=True)
    channels = [x.shape[-1] for x in x1]

    def prepare(data: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array, list[jax.Array], Moments]:
        scale = jnp.ones(data[0].shape[0], data[0].dtype)
        if spec.homogeneous:
            scale = _norms(data)
            inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
            data = [x * inverse.reshape(-1, *[1] * (x.ndim - 1)) for x in data]
        values = []
        for x in data:
            if space.full:
                k = jax.vmap(lambda image: _images(image[None], image[None], space)[0, 0])(x)
                values.append(Value(k, None, None))
            else:
                k = jnp.mean(x**2, axis=-1)
                values.append(Value(k, jnp.zeros_like(k), None))
        moments, _ = moments_of(spec, weights, values, paired, channels)
        return list(data), scale, [paired.diagonal(value.k) for value in values], moments

    rows, scale1, q1, moments1 = prepare(x1)
    columns, scale2, q2, moments2 = (rows, scale1, q1, moments1) if x2 is None else prepare(x2)
    closeness = jnp.finfo(rows[0].dtype).eps ** 0.3

    def value_of(x: jax.Array, z: jax.Array, q1: jax.Array, q2: jax.Array, diagonal: jax.Array) -> Value:
        left, right = space.left(q1), space.right(q2)
        if space.ndim:
            k = _images(x, z, space)
            half_distance = None if space.full else (left + right) / 2 - k
            diagonal = diagonal.reshape(*diagonal.shape, *[1] * space.ndim)
        else:
            k = jnp.matmul(x, z.T, precision=lax.Precision.HIGHEST) / x.shape[-1]
            # Smaller distances come out of the subtraction with large relative errors. Then, and only then, a row's
            # distances are summed directly, which costs more than a matrix product.
            half_distance = (left + right) / 2 - k
            close = (half_distance < closeness * (left + right)) & ~diagonal

            def direct(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
                x, coarse, close = row
                return lax.cond(jnp.any(close), lambda: jnp.mean((z - x[None]) ** 2, axis=1) / 2, lambda: coarse)

            half_distance = lax.cond(
                jnp.any(close), lambda: lax.map(direct, (x, half_distance, close)), lambda: half_distance
            )
        if half_distance is not None:
            # An input coincides with itself, whatever the rounding of its products.
            half_distance = jnp.where(diagonal, 0, half_distance)
            k = jnp.where(diagonal, left, k)
        return Value(k, half_distance, jnp.zeros_like(k) if spec.with_ntk else None)

    def block(taken: tuple, indices: jax.Array) -> list[tuple[jax.Array, jax.Array | None]]:
        x, scale, q, moments = taken
        diagonal = (indices[:, None] == jnp.arange(count2)[None, :]) & symmetric
        values = [value_of(*of, diagonal) for of in zip(x, columns, q, q2, strict=True)]

        def recursion(taken: tuple, indices: jax.Array) -> list[tuple[jax.Array, jax.Array | None]]:
            del indices
            values, scale, q, moments = taken
            moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments) if spec.loop else moments
            results = propagate(spec, weights, values, (q, q2), (moments, moments2), space, channels)
            back = scale[:, None] * scale2[None, :]
            return [(k * back, None if ntk is None else ntk * back) for k, ntk in results]

        size = _BLOCK_ENTRIES // (_live_values(spec) * entries)
        return by_rows((values, scale, q, moments), len(indices), size, recursion)

    # Stacks of the loop have the inputs second; rows are taken along the first axis.
    moments_by_row = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments1) if spec.loop else moments1
    count1, count2 = rows[0].shape[0], columns[0].shape[0]
    entries = count2 * math.prod(rows[0].shape[1:-1]) ** (2 if space.full else 1)
    return by_rows((rows, scale1, q1, moments_by_row), count1, _PRODUCT_ENTRIES // entries, block)


def _live_values(spec: Spec) -> int:
    """How many values live at once, roughly."""
    return min(len(spec.structure.steps), 8)


@functools.partial(jax.jit, static_argnames=("spec", "space", "channels"))
def kernel_of_kernel(
    weights: Weights,
    inputs: Sequence[tuple[jax.Array, jax.Array | None]],
    variances1: Sequence[jax.Array],
    variances2: Sequence[jax.Array] | None,
    *,
    spec: Spec,
    space: Space,
    channels: Sequence[int],
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes the kernels of a network from those of its inputs.

    The angle of inputs that nearly coincide is only as good as the rounding of those kernels.

    Args:
      weights: The numbers of the program.
      inputs: For every input node NNGP and NTK, (N1, N2, *pixels).
      variances1: For every input node the covariance of the rows' inputs with themselves, (N1, *pixels).
      variances2: Likewise of the columns, or None where they are the rows.
      spec: The program.
      space: How axes lie, for blocks.
      channels: Fan-in of every stem.

    Returns:
      For every output NNGP and NTK, (N1, N2, *pixels).
    """
    paired = space._replace(paired=True)

    def moments(variances: Sequence[jax.Array]) -> tuple[list[jax.Array], Moments]:
        values = [Value(k, None if space.full else jnp.zeros_like(k), None) for k in variances]
        return [paired.diagonal(k) for k in variances], moments_of(spec, weights, values, paired, channels)[0]

    q1, moments1 = moments(variances1)
    q2, moments2 = (q1, moments1) if variances2 is None else moments(variances2)
    count1, count2 = inputs[0][0].shape[:2]

    def block(taken: tuple, indices: jax.Array) -> list[tuple[jax.Array, jax.Array | None]]:
        kernels, q, moments = taken
        moments = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments) if spec.loop else moments
        diagonal = (indices[:, None] == jnp.arange(count2)[None, :]) & (variances2 is None)
        diagonal = diagonal.reshape(*diagonal.shape, *[1] * (kernels[0][0].ndim - 2))
        values = []
        for (k, ntk), left, right in zip(kernels, map(space.left, q), map(space.right, q2), strict=True):
            half_distance = None if space.full else jnp.where(diagonal, 0, (left + right) / 2 - k)
            values.append(Value(k if space.full else jnp.where(diagonal, left, k), half_distance, ntk))
        return propagate(spec, weights, values, (q, q2), (moments, moments2), space, channels)

    moments_by_row = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), moments1) if spec.loop else moments1
    size = _BLOCK_ENTRIES // (_live_values(spec) * max(1, inputs[0][0].size // count1))
    return by_rows((list(inputs), q1, moments_by_row), count1, size, block)


@functools.partial(jax.jit, static_argnames=("spec", "space", "channels"))
def variances_of_outputs(
    weights: Weights, variances: Sequence[jax.Array], *, spec: Spec, space: Space, channels: tuple[int, ...]
) -> list[jax.Array]:
    """Returns the second moments of every output node for inputs with themselves, (N, *pixels).

    Arguments are as in `kernel_of_kernel`.
    """
    paired = space._replace(paired=True)
    values = [Value(k, None if space.full else jnp.zeros_like(k), None) for k in variances]
    moments, nodes = moments_of(spec, weights, values, paired, channels)
    results = []
    for output in spec.structure.outputs:
        k = nodes[output].k
        if weights.tables is not None:
            output = weights.tables.output_nodes[output]
        if spec.loop or output in moments.m:
            k = k + paired.left(moments.m[output]) * paired.right(moments.m[output])
        results.append(k)
    return results
