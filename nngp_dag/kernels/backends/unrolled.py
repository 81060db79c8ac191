"""Evaluation of the kernels of a network, from its program (THEORY section 3; `nngp_dag.architecture.program`).

Cov(t, u) are covariances of nodes, m(t) means, and with C = F - mu mu^T the covariance of a weighted edge's output:

    Cov(t, u) = sum of A C over fields, or of a Cov(s, u) over edges s -> t without weights
    K(t) = Cov(t, t) + m(t) m(t)^T,   m(t) = sum of B mu over fields, or of a m(s)

The NTK obeys the recursion of Cov. Variances and means of every input come first, since every other entry is a function
of the same entry of the input kernel and of those vectors: `nngp_dag.kernels.blocking` then computes the matrices in
blocks.

Beside Cov goes its gap, sqrt(v_i v_j) - |Cov_ij| with the variances v of both inputs, by the same recursion (see
`layer_rules.add_up`). It keeps the angle of inputs that are nearly parallel or opposite, whatever their norms:
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

from nngp_dag.architecture.program import Structure, Term
from nngp_dag.graph import Dense
from nngp_dag.kernels import layer_rules
from nngp_dag.kernels.backends.loop import Tables, run_loop, run_loop_moments, sides_of_outputs
from nngp_dag.kernels.device import BlockSizes
from nngp_dag.kernels.layer_rules import KernelState, Marginals, Rules, Summand
from nngp_dag.kernels.pixel_layout import PixelLayout, pool

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
      blocks: How much is computed at once.
      stacked: Whether the kernels of all outputs come as one array; for loops and series without readout.
      fused: Whether the steps of a tile run in one Pallas kernel.
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
    blocks: BlockSizes
    stacked: bool = False
    fused: bool = False

    @property
    def equal_norms(self) -> bool:
        """Whether all inputs, over their norms, have the same variances at every node."""
        return self.homogeneous and self.structure.num_inputs == 1 and self.pixels is None


class Weights(NamedTuple):
    """The numbers of a program: those of its terms and means, and of the loop's tables where there is one.

    `true` is the truth, but XLA does not know; None without pixels on GPUs, see `evaluated_once`. `series` are those of
    `nngp_dag.kernels.backends.chebyshev`, which take the place of the steps.
    """

    terms: jax.Array | np.ndarray
    means: jax.Array | np.ndarray
    tables: Tables | None
    true: jax.Array | np.ndarray | None
    series: jax.Array | np.ndarray | None = None


class Moments(NamedTuple):
    """Variances and means of inputs, vectors (N, *pixels), or (1,) for what all inputs share.

    Attributes:
      v: Variances by slot; of a loop, one above the other, by place (see `nngp_dag.kernels.backends.loop.Tables`).
      m: Means of every node that needs them, by node; none where all are 0.
    """

    v: Any
    m: Any


def _combined(
    terms: Sequence[Term],
    weights: Sequence[Any],
    values: Sequence[KernelState],
    shares: Sequence[Marginals] | None,
    marginals: Marginals | None,
    layout: PixelLayout,
) -> KernelState:
    """Adds up what a step reads, with its weights; see `layer_rules.add_up` for variances of terms and sum."""
    summands = []
    for i, (term, weight, value) in enumerate(zip(terms, weights, values, strict=True)):
        k, ntk = (
            None if v is None else layout.pool(layout.pool(v, term.left, "left"), term.right, "right")
            for v in (value.k, value.ntk)
        )
        assert k is not None
        of = Marginals(None, None) if shares is None else shares[i]  # type: ignore[arg-type]
        summands.append(Summand(weight, KernelState(k, value.gap, ntk), of.v1, of.v2))
    if shares is None or marginals is None:
        return layer_rules.add_up(summands)
    return layer_rules.add_up(summands, marginals.v1, marginals.v2)


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
    inputs: Sequence[KernelState],
    marginals: Sequence[Marginals],
    layout: PixelLayout,
    channels: Sequence[int],
    with_ntk: bool = False,
) -> list[tuple[KernelState, Marginals]]:
    """Applies the stems; returns every input node's covariance and its marginals. An NTK that is not given is 0."""

    def stem(value: KernelState, side: Marginals, fan_in: int) -> tuple[KernelState, Marginals]:
        if with_ntk and value.ntk is None:
            value = value._replace(ntk=jnp.zeros_like(value.k))
        if spec.stem is None:
            return value, side
        return layer_rules.apply(spec.stem, value, side, layout, spec.rules, fan_in)

    # A loop reads what is in memory.
    apart = spec.stem is not None and not spec.loop
    once = functools.partial(evaluated_once, weights.true) if apart else lambda f, *args: f(*args)
    return [
        once(functools.partial(stem, fan_in=fan_in), value, side)
        for value, side, fan_in in zip(inputs, marginals, channels, strict=True)
    ]


def _evaluate(
    spec: Spec,
    weights: Weights,
    fields: list[KernelState],
    layout: PixelLayout,
    sides_of: Callable[[int, int | None, KernelState | None], Marginals],
    field_is: Callable[[int, KernelState, Marginals], None],
    add_shares: bool,
) -> dict[int, KernelState]:
    """Runs the steps one after another.

    Args:
      spec: The program.
      weights: Its numbers.
      fields: Covariances of the stems.
      layout: How axes lie.
      sides_of: Gives the variances of a slot, and the means of the node that it belongs to; the slot's value, where it
        is known, tells what is not known yet.
      field_is: Is told every field's slot, value and marginals.
      add_shares: Whether the shares of summands in a sum differ between two inputs.

    Returns:
      {node: its covariance} for the nodes that are computed.
    """

    def field(
        op: Dense, terms: Sequence[Term], numbers: list, marginals: Marginals, read: tuple
    ) -> tuple[KernelState, Marginals]:
        values, shares, of_sum = read
        value = _combined(terms, numbers, values, shares, of_sum, layout)
        return layer_rules.apply(op, value, marginals, layout, spec.rules)

    slots: dict[int, KernelState] = dict(enumerate(fields))
    nodes: dict[int, KernelState] = {}
    position = 0
    for step in spec.structure.steps:
        numbers = [weights.terms[position + i] for i in range(len(step.terms))]
        values = [slots[term.slot] for term in step.terms]
        position += len(step.terms)
        shares, of_sum = None, None
        if add_shares and len(step.terms) > 1:
            shares = [sides_of(term.slot, None, None) for term in step.terms]
            of_sum = sides_of(step.slot, None, None)
        total = slots[step.slot] = _combined(step.terms, numbers, values, shares, of_sum, layout)
        marginals = sides_of(step.slot, step.node, total)
        if step.node is None:
            continue
        nodes[step.node] = total
        # Every field adds up for itself, which costs less than reading the sum from memory; but not pooling.
        terms, numbers, read = (
            ([Term(step.slot)], [np.ones((), total.k.dtype)], ([total], None, None))
            if layout.ndim
            else (step.terms, numbers, (values, shares, of_sum))
        )
        for op, slot in step.fields:
            apply = functools.partial(field, op, terms, numbers)
            slots[slot], field_sides = evaluated_once(weights.true, apply, marginals, read)
            field_is(slot, slots[slot], field_sides)
    return nodes


def moments_of(
    spec: Spec, weights: Weights, inputs: Sequence[KernelState], layout: PixelLayout, channels: Sequence[int]
) -> tuple[Moments, Callable[[int], jax.Array]]:
    """Runs the recursion for inputs with themselves.

    Args:
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the data's second moments (N, *pixels), twice the pixels where the layout is full.
      layout: How axes lie; paired.
      channels: Fan-in of every stem.

    Returns:
      Variances and means, and the function that gives an output node's covariance of inputs with themselves.
    """
    q_in = [layout.diagonal(value.k) for value in inputs]
    stems = _stems(spec, weights, inputs, [Marginals(layout.left(q), layout.right(q)) for q in q_in], layout, channels)
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

    def field_is(slot: int, value: KernelState, marginals: Marginals) -> None:
        v[slot] = layout.diagonal(value.k)
        if marginals.m1 is not None:
            mu[slot] = layout.vector(marginals.m1)

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

    def sides_of(slot: int, node: int | None, value: KernelState | None) -> Marginals:
        if value is not None:
            v[slot] = layout.diagonal(value.k)
        mean_here = mean(node) if spec.structure.means and node is not None else None
        vectors = [v[slot]] if mean_here is None else [v[slot], mean_here]
        return Marginals(*(side(of) for of in vectors for side in (layout.left, layout.right)))

    for slot, (field, marginals) in enumerate(stems):
        field_is(slot, field, marginals)
    nodes = _evaluate(spec, weights, fields, layout, sides_of, field_is, False)
    if spec.equal_norms or layout.full:
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


def _read_out(
    spec: Spec, value: KernelState, marginals: Marginals, layout: PixelLayout
) -> tuple[jax.Array, jax.Array | None]:
    """Applies the readout to a node's covariances; returns second moments."""
    if spec.readout is not None and spec.readout_activation is not None:
        value, marginals = layer_rules.activate(
            spec.readout_activation, *layer_rules.uncenter(value, marginals), layout
        )
    width = spec.rules.width
    if spec.pixels is not None:
        if spec.pixels == "flatten":
            width *= math.prod(layout.vector(marginals.v1).shape[1:])
        value, marginals = layer_rules.uncenter(value, marginals)
        k, ntk = (None if v is None else layout.read_out(v, spec.pixels) for v in (value.k, value.ntk))
        assert k is not None
        value, marginals, layout = KernelState(k, None, ntk), Marginals(k, k), PixelLayout()
    if spec.readout is not None:
        value, marginals = layer_rules.linear(spec.readout, value, marginals, layout, spec.rules, width)
    value, _ = layer_rules.uncenter(value, marginals)
    return value.k, value.ntk


def propagate(
    spec: Spec,
    weights: Weights,
    inputs: Sequence[KernelState],
    q_in: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    moments: tuple[Moments, Moments],
    layout: PixelLayout,
    channels: Sequence[int],
) -> Kernels:
    """Runs the recursion for a block of the kernel.

    Args:
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the block of the data's second moments; an NTK of None is 0.
      q_in: Second moments of the rows' and of the columns' data, for every input node.
      moments: Those of the rows and of the columns at every node.
      layout: How axes lie.
      channels: Fan-in of every stem.

    Returns:
      NNGP and NTK of every output; stacked, they are (outputs, N1, N2).
    """
    sides_in = [Marginals(layout.left(q1), layout.right(q2)) for q1, q2 in zip(*q_in, strict=True)]
    stems = _stems(spec, weights, inputs, sides_in, layout, channels, spec.with_ntk)
    fields = [field for field, _ in stems]
    first, second = moments

    def sides_of(slot: int, node: int | None, value: KernelState | None = None) -> Marginals:
        del value
        if slot not in first.v:
            return Marginals(None, None)  # type: ignore[arg-type]
        v = layout.left(first.v[slot]), layout.right(second.v[slot])
        return (
            Marginals(*v, layout.left(first.m[node]), layout.right(second.m[node]))
            if node in first.m
            else Marginals(*v)
        )

    if spec.loop:
        assert weights.tables is not None
        outputs = run_loop(weights.tables, spec.structure, fields, first, second, spec.rules, spec.equal_norms)
        marginals = sides_of_outputs(weights.tables, first, second)
        if spec.stacked:
            value, _ = layer_rules.uncenter(outputs, marginals)
            return [(value.k, value.ntk)]
        one_by_one = [jax.tree.map(lambda v, i=i: v[i], (outputs, marginals)) for i in spec.structure.outputs]
        return [_read_out(spec, of_output, of_both, layout) for of_output, of_both in one_by_one]
    nodes = _evaluate(
        spec, weights, fields, layout, sides_of, lambda *_: None, not spec.equal_norms and inputs[0].gap is not None
    )
    slots = {step.node: step.slot for step in spec.structure.steps}
    return [
        _read_out(spec, nodes[output], sides_of(slots[output], output), layout) for output in spec.structure.outputs
    ]
