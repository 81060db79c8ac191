"""Evaluation of the kernels of a network, from its program (THEORY section 3; `nngp_dag.graph.program`).

Cov(t, u) are covariances of nodes, m(t) means, and with C = F - mu mu^T the covariance of a weighted edge's output:

    Cov(t, u) = sum of A C over fields, or of a Cov(s, u) over edges s -> t without weights
    K(t) = Cov(t, t) + m(t) m(t)^T,   m(t) = sum of B mu over fields, or of a m(s)

The NTK obeys the recursion of Cov. Variances and means of every input come first, since every other entry is a function
of the same entry of the input kernel and of those vectors: `nngp_dag.kernels.blocks` then computes the matrices in
blocks.

Beside Cov goes its gap, sqrt(v_i v_j) - |Cov_ij| with the variances v of both inputs, by the same recursion (see
`nngp_dag.kernels.law.add_up`). It keeps the angle of inputs that are nearly parallel or opposite, whatever their norms:
Cov alone would lose half of its digits, and the NTK is linear in that angle.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.graph import Dense
from nngp_dag.graph.program import Structure, Term
from nngp_dag.kernels import law
from nngp_dag.kernels.law import Rules, Sides, Summand, Value
from nngp_dag.kernels.loop import Tables, run_loop, run_loop_moments, sides_of_outputs
from nngp_dag.kernels.space import Space, pool

# NNGP and, where it is wanted, NTK of every output.
Kernels = list[tuple[jax.Array, jax.Array | None]]


class Spec(NamedTuple):
    """What a compiled evaluation depends on; hashable.

    Attributes:
      structure: The order of evaluation.
      stem: The stem's operation, or None where the data are node 0.
      readout: The readout's linear layer, or None for the kernels of the output nodes.
      readout_activation: The activation before it, or None.
      pixels: How the readout averages over pixels, "flatten" or "global-average"; None leaves them.
      rules: The parameterization.
      with_ntk: Whether the NTK is wanted.
      homogeneous: Whether scaling an input scales its rows of the kernels by as much, squared for itself.
      loop: Whether the steps run as a loop.
      stacked: Whether the kernels of all outputs come as one array; for loops and series without readout.
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
    stacked: bool = False

    @property
    def equal_norms(self) -> bool:
        """Whether all inputs, over their norms, have the same variances at every node."""
        return self.homogeneous and self.structure.num_inputs == 1 and self.pixels is None


class Weights(NamedTuple):
    """The numbers of a program: those of its terms and means, and of the loop's tables where there is one.

    `true` is the truth, but XLA does not know; None without pixels on GPUs, see `evaluated_once`. `series` are those of
    `nngp_dag.kernels.angular`, which take the place of the steps.
    """

    terms: jax.Array | np.ndarray
    means: jax.Array | np.ndarray
    tables: Tables | None
    true: jax.Array | np.ndarray | None
    series: jax.Array | np.ndarray | None = None


class Moments(NamedTuple):
    """Variances and means of inputs, vectors (N, *pixels), or (1,) for what all inputs share.

    Attributes:
      v: Variances by slot; of a loop, one above the other, by place (see `nngp_dag.kernels.loop.Tables`).
      m: Means of every node that needs them, by node; none where all are 0.
    """

    v: Any
    m: Any


def _combined(
    terms: Sequence[Term],
    weights: Sequence[Any],
    values: Sequence[Value],
    shares: Sequence[Sides] | None,
    sides: Sides | None,
    space: Space,
) -> Value:
    """Adds up what a step reads, with its weights; see `law.add_up` for variances of the terms and of the sum."""
    summands = []
    for i, (term, weight, value) in enumerate(zip(terms, weights, values, strict=True)):
        k, ntk = (
            None if v is None else space.pool(space.pool(v, term.left, "left"), term.right, "right")
            for v in (value.k, value.ntk)
        )
        assert k is not None
        of = Sides(None, None) if shares is None else shares[i]  # type: ignore[arg-type]
        summands.append(Summand(weight, Value(k, value.gap, ntk), of.v1, of.v2))
    if shares is None or sides is None:
        return law.add_up(summands)
    return law.add_up(summands, sides.v1, sides.v2)


def evaluated_once(true: jax.Array | np.ndarray | None, compute: Callable[..., Any], *operands: Any) -> Any:
    """Returns `compute(*operands)`, arrays that XLA does not compute again for each of their readers.

    It would fuse all steps into one, compute what several share once for each, and take time to compile that explodes
    with their number. A condition that it cannot foresee keeps them apart. On a GPU, where XLA fuses what shares
    results into kernels with several outputs, memory counts more: few steps without pixels stay together.

    Args:
      true: See `Weights`.
      compute: What to compute.
      operands: Its arguments, pytrees of arrays.
    """
    if true is None:
        return compute(*operands)
    compute = jax.jit(compute)  # traced once, for the shapes of its results and for the condition
    shapes = jax.eval_shape(compute, *operands)
    nothing = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    return lax.cond(true, compute, lambda *operands: nothing, *operands)


def _stems(
    spec: Spec,
    weights: Weights,
    inputs: Sequence[Value],
    sides: Sequence[Sides],
    space: Space,
    channels: Sequence[int],
    with_ntk: bool = False,
) -> list[tuple[Value, Sides]]:
    """Applies the stems; returns every input node's covariance and its sides. An NTK that is not given is 0."""

    def stem(value: Value, side: Sides, fan_in: int) -> tuple[Value, Sides]:
        if with_ntk and value.ntk is None:
            value = value._replace(ntk=jnp.zeros_like(value.k))
        if spec.stem is None:
            return value, side
        return law.apply(spec.stem, value, side, space, spec.rules, fan_in)

    # A loop reads what is in memory.
    apart = spec.stem is not None and not spec.loop
    once = functools.partial(evaluated_once, weights.true) if apart else lambda f, *args: f(*args)
    return [
        once(functools.partial(stem, fan_in=fan_in), value, side)
        for value, side, fan_in in zip(inputs, sides, channels, strict=True)
    ]


def _evaluate(
    spec: Spec,
    weights: Weights,
    fields: list[Value],
    space: Space,
    sides_of: Callable[[int, int | None, Value | None], Sides],
    field_is: Callable[[int, Value, Sides], None],
    add_shares: bool,
) -> dict[int, Value]:
    """Runs the steps one after another.

    Args:
      spec: The program.
      weights: Its numbers.
      fields: Covariances of the stems.
      space: How axes lie.
      sides_of: Gives the variances of a slot, and the means of the node that it belongs to; the slot's value, where it
        is known, tells what is not known yet.
      field_is: Is told every field's slot, value and sides.
      add_shares: Whether the shares of summands in a sum differ between two inputs.

    Returns:
      {node: its covariance} for the nodes that are computed.
    """

    def field(op: Dense, terms: Sequence[Term], numbers: list, sides: Sides, read: tuple) -> tuple[Value, Sides]:
        values, shares, of_sum = read
        value = _combined(terms, numbers, values, shares, of_sum, space)
        return law.apply(op, value, sides, space, spec.rules)

    slots: dict[int, Value] = dict(enumerate(fields))
    nodes: dict[int, Value] = {}
    position = 0
    for step in spec.structure.steps:
        numbers = [weights.terms[position + i] for i in range(len(step.terms))]
        values = [slots[term.slot] for term in step.terms]
        position += len(step.terms)
        shares, of_sum = None, None
        if add_shares and len(step.terms) > 1:
            shares = [sides_of(term.slot, None, None) for term in step.terms]
            of_sum = sides_of(step.slot, None, None)
        total = slots[step.slot] = _combined(step.terms, numbers, values, shares, of_sum, space)
        sides = sides_of(step.slot, step.node, total)
        if step.node is None:
            continue
        nodes[step.node] = total
        # Every field adds up for itself, which costs less than reading the sum from memory; but not pooling.
        terms, numbers, read = (
            ([Term(step.slot)], [np.ones((), total.k.dtype)], ([total], None, None))
            if space.ndim
            else (step.terms, numbers, (values, shares, of_sum))
        )
        for op, slot in step.fields:
            apply = functools.partial(field, op, terms, numbers)
            slots[slot], field_sides = evaluated_once(weights.true, apply, sides, read)
            field_is(slot, slots[slot], field_sides)
    return nodes


def moments_of(
    spec: Spec, weights: Weights, inputs: Sequence[Value], space: Space, channels: Sequence[int]
) -> tuple[Moments, Callable[[int], jax.Array]]:
    """Runs the recursion for inputs with themselves.

    Args:
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the data's second moments (N, *pixels), twice the pixels where the space is full.
      space: How axes lie; paired.
      channels: Fan-in of every stem.

    Returns:
      Variances and means, and the function that gives an output node's covariance of inputs with themselves.
    """
    q_in = [space.diagonal(value.k) for value in inputs]
    stems = _stems(spec, weights, inputs, [Sides(space.left(q), space.right(q)) for q in q_in], space, channels)
    fields = [field for field, _ in stems]
    if spec.loop:
        assert weights.tables is not None
        means = [jnp.zeros_like(v) if s.m1 is None else s.m1 for v, (_, s) in zip(q_in, stems, strict=True)]
        v_of_places, m_of_nodes = run_loop_moments(weights.tables, spec.structure, fields, means, spec.rules)
        places = jnp.asarray(weights.tables.output_places)
        return Moments(v_of_places, m_of_nodes), lambda output: v_of_places[places[output]]
    mu: dict[int, jax.Array] = {}
    v: dict[int, jax.Array] = {}
    m: dict[int, jax.Array] = {}
    positions = [0]
    for terms in spec.structure.means:
        positions.append(positions[-1] + len(terms))

    def field_is(slot: int, value: Value, sides: Sides) -> None:
        v[slot] = space.diagonal(value.k)
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

    def sides_of(slot: int, node: int | None, value: Value | None) -> Sides:
        if value is not None:
            v[slot] = space.diagonal(value.k)
        mean_here = mean(node) if spec.structure.means and node is not None else None
        vectors = [v[slot]] if mean_here is None else [v[slot], mean_here]
        return Sides(*(side(of) for of in vectors for side in (space.left, space.right)))

    for slot, (field, sides) in enumerate(stems):
        field_is(slot, field, sides)
    nodes = _evaluate(spec, weights, fields, space, sides_of, field_is, False)
    if spec.equal_norms or space.full:
        # Sums need no more than what their nodes have.
        v = {step.slot: v[step.slot] for step in spec.structure.steps if step.node is not None}
    return Moments(v, {node: of for node, of in m.items() if of is not None}), lambda output: nodes[output].k


def second_moments_of(spec: Spec, weights: Weights, moments: Moments) -> Any:
    """Returns E[X^2] of inputs at every node that is computed, (N, *pixels) each: by node, or one above the other."""
    if spec.loop:
        assert weights.tables is not None
        v = moments.v[jnp.asarray(weights.tables.node_places)]
        return v if moments.m is None else v + moments.m**2
    slots = {step.node: step.slot for step in spec.structure.steps if step.node is not None}
    return {
        node: moments.v[slot] + moments.m[node] ** 2 if node in moments.m else moments.v[slot]
        for node, slot in slots.items()
    }


def _read_out(spec: Spec, value: Value, sides: Sides, space: Space) -> tuple[jax.Array, jax.Array | None]:
    """Applies the readout to a node's covariances; returns second moments."""
    if spec.readout is not None and spec.readout_activation is not None:
        value, sides = law.activate(spec.readout_activation, *law.uncenter(value, sides), space)
    width = spec.rules.width
    if spec.pixels is not None:
        if spec.pixels == "flatten":
            width *= math.prod(space.vector(sides.v1).shape[1:])
        value, sides = law.uncenter(value, sides)
        k, ntk = (None if v is None else space.read_out(v, spec.pixels) for v in (value.k, value.ntk))
        assert k is not None
        value, sides, space = Value(k, None, ntk), Sides(k, k), Space()
    if spec.readout is not None:
        value, sides = law.linear(spec.readout, value, sides, space, spec.rules, width)
    value, _ = law.uncenter(value, sides)
    return value.k, value.ntk


def propagate(
    spec: Spec,
    weights: Weights,
    inputs: Sequence[Value],
    q_in: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    moments: tuple[Moments, Moments],
    space: Space,
    channels: Sequence[int],
) -> Kernels:
    """Runs the recursion for a block of the kernel.

    Args:
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the block of the data's second moments; an NTK of None is 0.
      q_in: Second moments of the rows' and of the columns' data, for every input node.
      moments: Those of the rows and of the columns at every node.
      space: How axes lie.
      channels: Fan-in of every stem.

    Returns:
      NNGP and NTK of every output; stacked, they are (outputs, N1, N2).
    """
    sides_in = [Sides(space.left(q1), space.right(q2)) for q1, q2 in zip(*q_in, strict=True)]
    stems = _stems(spec, weights, inputs, sides_in, space, channels, spec.with_ntk)
    fields = [field for field, _ in stems]
    first, second = moments

    def sides_of(slot: int, node: int | None, value: Value | None = None) -> Sides:
        del value
        if slot not in first.v:
            return Sides(None, None)  # type: ignore[arg-type]
        v = space.left(first.v[slot]), space.right(second.v[slot])
        return Sides(*v, space.left(first.m[node]), space.right(second.m[node])) if node in first.m else Sides(*v)

    if spec.loop:
        assert weights.tables is not None
        outputs = run_loop(weights.tables, spec.structure, fields, first, second, spec.rules, spec.equal_norms)
        sides = sides_of_outputs(weights.tables, first, second)
        if spec.stacked:
            value, _ = law.uncenter(outputs, sides)
            return [(value.k, value.ntk)]
        one_by_one = [jax.tree.map(lambda v, i=i: v[i], (outputs, sides)) for i in spec.structure.outputs]
        return [_read_out(spec, of_output, of_both, space) for of_output, of_both in one_by_one]
    nodes = _evaluate(
        spec, weights, fields, space, sides_of, lambda *_: None, not spec.equal_norms and inputs[0].gap is not None
    )
    slots = {step.node: step.slot for step in spec.structure.steps}
    return [_read_out(spec, nodes[output], sides_of(slots[output], output), space) for output in spec.structure.outputs]
