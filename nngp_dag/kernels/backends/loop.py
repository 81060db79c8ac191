"""The steps of a long program as one loop, so that the time to compile does not grow with the graph.

Every turn of the loop adds a few slots up, and may then apply a weighted operation; which slots, with what weights, and
which operation stand in tables. Slots are used again once nobody needs their value, so that a ladder of a thousand
nodes works in a handful of them. Only for vectors: images change their shape on the way.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.architecture.program import Program, Structure
from nngp_dag.kernels import layer_rules
from nngp_dag.kernels.layer_rules import KernelState, Layer, Layers, Marginals, Summand
from nngp_dag.kernels.pixel_layout import PixelLayout

# Terms that one turn adds up; longer sums take several turns.
_TERMS = 4


class Tables(NamedTuple):
    """The loop's turns; one row each, padded with weight 0.

    Attributes:
      terms: Slots to add up, (turns, terms).
      weights: Their weights.
      store: Slot of the sum.
      node: The node whose covariance the sum is, or H + 1.
      op: Number of the operation that is applied, or one past the last for none.
      field: Slot of the operation's output.
      mean_terms: Places of means to add up for the node, (turns, terms).
      mean_weights: Their weights.
      mean: Place of the node's mean.
      field_mean: Place of the mean of the operation's output.
      term_places: Places of the terms' variances, (turns, terms). A place is the number of a stem's field, or behind
        these two for every turn: of its sum, and of its operation's output.
      outputs: Slots of the output nodes' covariances.
      output_places: Places of their variances.
      output_nodes: The output nodes.
      node_places: Places of the nodes' variances.
      nodes: An array with one entry per node, and one more.
      slots: Likewise for slots, the last of which nobody reads.
      places: Likewise for means: nodes, stems, fields, and the place that nobody reads.
    """

    terms: jax.Array | np.ndarray
    weights: jax.Array | np.ndarray
    store: jax.Array | np.ndarray
    node: jax.Array | np.ndarray
    op: jax.Array | np.ndarray
    field: jax.Array | np.ndarray
    mean_terms: jax.Array | np.ndarray
    mean_weights: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray
    field_mean: jax.Array | np.ndarray
    term_places: jax.Array | np.ndarray
    outputs: jax.Array | np.ndarray
    output_places: jax.Array | np.ndarray
    output_nodes: jax.Array | np.ndarray
    node_places: jax.Array | np.ndarray
    nodes: jax.Array | np.ndarray
    slots: jax.Array | np.ndarray
    places: jax.Array | np.ndarray


class Sizes(NamedTuple):
    """How large tables are, at least: turns, slots, nodes, fields, and summands of a mean."""

    turns: int = 0
    slots: int = 0
    nodes: int = 0
    fields: int = 0
    mean_terms: int = 0


class _Turn(NamedTuple):
    terms: list[tuple[int, float]]
    store: int
    node: int | None
    op: int | None
    field: int | None


def _turns(program: Program) -> list[_Turn]:
    turns, position = [], 0
    for step in program.structure.steps:
        weights = program.weights[position : position + len(step.terms)]
        position += len(step.terms)
        terms = [(term.slot, float(weight)) for term, weight in zip(step.terms, weights, strict=True)]
        while len(terms) > _TERMS:
            turns.append(_Turn(terms[:_TERMS], step.slot, None, None, None))
            terms = [(step.slot, 1.0), *terms[_TERMS:]]
        first, *others = step.fields or (None,)
        turns.append(_Turn(terms, step.slot, step.node, *((first.op, first.slot) if first else (None, None))))
        turns += [_Turn([(step.slot, 1.0)], step.slot, step.node, field.op, field.slot) for field in others if field]
    return turns


def _allocate(structure: Structure, turns: Sequence[_Turn]) -> tuple[dict[tuple[int, int], int], int]:
    """Assigns a physical slot to (turn, slot), for each value as of that turn; stems keep the first."""
    last_read = dict.fromkeys(range(structure.num_inputs), -1)
    outputs = {step.slot for step in structure.steps if step.node in structure.outputs}
    for index, turn in enumerate(turns):
        for slot in (*(slot for slot, _ in turn.terms), turn.store, turn.field):
            if slot is not None:
                last_read[slot] = index
    last_read.update(dict.fromkeys(outputs, len(turns)))
    ends: dict[int, list[int]] = {}
    for slot, index in last_read.items():
        ends.setdefault(index, []).append(slot)
    place = {slot: slot for slot in range(structure.num_inputs)}
    free: list[int] = []
    count = structure.num_inputs
    assigned: dict[tuple[int, int], int] = {}
    for index, turn in enumerate(turns):
        for slot in (turn.store, turn.field):
            if slot is not None and slot not in place:
                if not free:
                    free.append(count)
                    count += 1
                place[slot] = free.pop()
        for slot in (*(slot for slot, _ in turn.terms), turn.store, turn.field):
            if slot is not None:
                assigned[index, slot] = place[slot]
        free += [place[slot] for slot in ends.get(index, ())]
    assigned.update({(len(turns), slot): place[slot] for slot in outputs})
    return assigned, count


def _mean_terms(program: Program) -> dict[int, dict[tuple[str, int], float]]:
    """For every node with a step, its mean as a sum over fields and over earlier nodes with steps."""
    stepped = {step.node for step in program.structure.steps}
    means: dict[int, dict[tuple[str, int], float]] = {}
    position = 0
    for node, terms in enumerate(program.structure.means):
        total: dict[tuple[str, int], float] = {}
        for term in terms:
            weight = float(program.mean_weights[position])
            position += 1
            if term.slot is not None:
                parts = {("field", term.slot): 1.0}
            else:
                assert term.node is not None
                parts = {("node", term.node): 1.0} if term.node in stepped else means[term.node]
            for part, factor in parts.items():
                total[part] = total.get(part, 0.0) + weight * factor
        means[node] = total
    return means


def sizes_of(program: Program) -> Sizes:
    """Returns the sizes of a program's tables, rounded up so that graphs of about equal size share a compilation."""
    structure = program.structure
    turns = _turns(program)
    return Sizes(
        _rounded(len(turns)),
        _rounded(_allocate(structure, turns)[1]),
        _rounded(_num_nodes(structure)),
        _rounded(structure.num_inputs + sum(len(step.fields) for step in structure.steps)),
        _rounded(max((len(terms) for terms in _mean_terms(program).values()), default=0)),
    )


def tables(program: Program, dtype: np.dtype, least: Sizes | None = None) -> Tables:
    """Writes a program down as tables, of sizes as in `sizes_of`, or larger: those of `least`."""
    structure = program.structure
    turns = _turns(program)
    assigned, _ = _allocate(structure, turns)
    means = _mean_terms(program)
    rows, count, node_count, field_count, mean_count = map(max, sizes_of(program), least or Sizes())
    # Means have places of their own: nodes, one nobody needs, then fields by slot, then one that nobody reads.
    fields = [*range(structure.num_inputs), *(field.slot for step in structure.steps for field in step.fields)]
    places = {("node", node): node for node in range(_num_nodes(structure))}
    places |= {("field", slot): node_count + 1 + i for i, slot in enumerate(fields)}
    nowhere = node_count + 1 + structure.num_inputs + field_count
    terms, weights = np.full((rows, _TERMS), count, np.int32), np.zeros((rows, _TERMS), dtype)
    mean_shape = rows, mean_count
    mean_terms, mean_weights = np.full(mean_shape, nowhere, np.int32), np.zeros(mean_shape, dtype)
    store, field = np.full((2, rows), count, np.int32)
    node = np.full(rows, node_count, np.int32)
    op = np.full(rows, len(program.operations), np.int32)
    mean, field_mean = np.full((2, rows), nowhere, np.int32)
    # A sum of many terms is stored by several turns; the place of a slot is that of the last one.
    # Those of terms of weight 0 are the sum's own, whose share is the same for all inputs.
    own_places = structure.num_inputs + 2 * np.arange(rows, dtype=np.int32)
    term_places, place_of = np.repeat(own_places[:, None], _TERMS, axis=1), {i: i for i in range(structure.num_inputs)}
    node_places = np.zeros(node_count + 1, np.int32)
    for index, turn in enumerate(turns):
        for column, (slot, weight) in enumerate(turn.terms):
            terms[index, column], weights[index, column] = assigned[index, slot], weight
            term_places[index, column] = place_of[slot]
        place_of[turn.store] = structure.num_inputs + 2 * index
        if turn.field is not None:
            place_of[turn.field] = structure.num_inputs + 2 * index + 1
        store[index] = assigned[index, turn.store]
        if turn.node is not None:
            node[index] = mean[index] = turn.node
            node_places[turn.node] = place_of[turn.store]
        if turn.op is not None and turn.field is not None:
            op[index], field[index] = turn.op, assigned[index, turn.field]
            field_mean[index] = places["field", turn.field]
        if turn.node is not None and means:
            for column, (key, weight) in enumerate(means[turn.node].items()):
                mean_terms[index, column], mean_weights[index, column] = places[key], weight
    output_slots = {step.node: step.slot for step in structure.steps if step.node in structure.outputs}
    outputs = np.array([assigned[len(turns), output_slots[output]] for output in structure.outputs], np.int32)
    output_places = np.array([place_of[output_slots[output]] for output in structure.outputs], np.int32)
    output_nodes = np.array(structure.outputs, np.int32)
    sizes = [np.zeros(size + 1, dtype) for size in (node_count, count, nowhere)]
    return Tables(
        terms,
        weights,
        store,
        node,
        op,
        field,
        mean_terms,
        mean_weights,
        mean,
        field_mean,
        term_places,
        outputs,
        output_places,
        output_nodes,
        node_places,
        *sizes,
    )


def _num_nodes(structure: Structure) -> int:
    return 1 + max(step.node for step in structure.steps if step.node is not None)


def _rounded(size: int) -> int:
    """Rounds up to a multiple of 8, of 16 beyond 64, and so on: by an eighth at most, but for small sizes."""
    step = max(8, 1 << max(0, size.bit_length() - 4))
    return max(step, -(-size // step) * step)


def loop_structure(structure: Structure) -> Structure:
    """What a compiled loop depends on beside table sizes: means, numbers of inputs and outputs."""
    outputs = tuple(range(len(structure.outputs)))
    # Of means only whether there are any.
    return Structure(structure.num_inputs, 0, (), ((),) if structure.means else (), outputs)


def _start(fields: Sequence[Any], size: int) -> Any:
    """Stacks with `size` entries, the stems' fields first."""
    return jax.tree.map(
        lambda *v: jnp.concatenate([jnp.stack(v), jnp.zeros((size - len(v), *v[0].shape), v[0].dtype)]),
        *fields,
    )


def _put(stack: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(stack, value, index, 0)


def run_loop_moments(
    tables: Tables, structure: Structure, fields: Sequence[KernelState], mu: Sequence[jax.Array], layers: Layers
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the recursion for inputs with themselves.

    Args:
      tables: The program.
      structure: That of the loop.
      fields: Covariances of the stems, (N,) each, without NTK.
      mu: Their means.
      layers: The operations.

    Returns:
      Variances by place, (places, N), and means of nodes, (nodes, N), with rows of zeros for those that are not
      computed; None where all means are 0.
    """
    layout = PixelLayout(paired=True)
    like = fields[0].k
    count, turns = len(fields), tables.op.shape[0]
    num_nodes = tables.nodes.shape[0]
    means = jnp.zeros((tables.places.shape[0] if structure.means else 0, *like.shape), like.dtype)
    if structure.means:
        means = means.at[num_nodes : num_nodes + len(mu)].set(jnp.stack(list(mu)))
    stack = _start([field.k for field in fields], tables.slots.shape[0])
    v = _start([field.k for field in fields], count + 2 * turns)

    def weighted(weights: jax.Array, values: jax.Array) -> jax.Array:
        # A loop that fuses: a matrix product might run in TF32.
        return jnp.sum(weights[:, None] * values, axis=0)

    def apply(layer: Layer | None, variance: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        if layer is None:
            return jnp.zeros_like(variance), jnp.zeros_like(variance)
        given = Marginals(variance, variance, mean, mean) if structure.means else Marginals(variance, variance)
        value, marginals = layer_rules.apply(
            layer, KernelState(variance, jnp.zeros_like(variance), None), given, layout, layers.rules
        )
        return value.k, jnp.zeros_like(mean) if marginals.m1 is None else marginals.m1

    def turn(i: jax.Array, state: tuple) -> tuple:
        stack, v, means = state
        variance = weighted(tables.weights[i], stack[tables.terms[i]])
        mean = jnp.zeros_like(variance)
        if structure.means:
            mean = weighted(tables.mean_weights[i], means[tables.mean_terms[i]])
        branches = [lambda v, m, layer=layer: apply(layer, v, m) for layer in (*layers.edges, None)]
        field, mu = lax.switch(tables.op[i], branches, variance, mean)
        stack = _put(_put(stack, variance, tables.store[i]), field, tables.field[i])
        v = _put(_put(v, variance, count + 2 * i), field, count + 2 * i + 1)
        if structure.means:
            means = _put(_put(means, mean, tables.mean[i]), mu, tables.field_mean[i])
        return stack, v, means

    _, v, means = lax.fori_loop(0, turns, turn, (stack, v, means))
    return v, means[:num_nodes] if structure.means else None


def run_loop(
    tables: Tables,
    structure: Structure,
    fields: Sequence[KernelState],
    first: Any,
    second: Any,
    layers: Layers,
    equal_norms: bool,
) -> KernelState:
    """Runs the recursion for a block of the kernel.

    Args:
      tables: The program.
      structure: That of the loop.
      fields: Covariances of the stems, (N1, N2) each.
      first: Variances by place and means by node of the rows, (places, N1) and (nodes, N1), see `run_loop_moments`.
      second: Those of the columns.
      layers: The operations.
      equal_norms: Whether the shares of summands in a sum are the same for all inputs.

    Returns:
      The covariances of the output nodes, one above the other, (outputs, N1, N2).
    """
    layout = PixelLayout()
    (v1, m1), (v2, m2) = first, second
    count = len(fields)

    def apply(layer: Layer | None, total: KernelState, marginals: Marginals) -> KernelState:
        if layer is None:
            return jax.tree.map(jnp.zeros_like, total)
        return layer_rules.apply(layer, total, marginals, layout, layers.rules)[0]

    def turn(i: jax.Array, stacks: KernelState) -> KernelState:
        of_sum = v1[count + 2 * i][:, None], v2[count + 2 * i][None]
        places = tables.term_places[i]
        shares = (None, None) if equal_norms else (v1[places][:, :, None], v2[places][:, None])
        values = jax.tree.map(lambda stack: stack[tables.terms[i]], stacks)
        summands = Summand(tables.weights[i][:, None, None], values, *shares)
        total = layer_rules.add_up(summands, *((None, None) if equal_norms else of_sum))
        node = tables.node[i]
        marginals = Marginals(*of_sum)
        if structure.means:
            marginals = Marginals(*of_sum, m1[node][:, None], m2[node][None])
        branches = [lambda v, s, layer=layer: apply(layer, v, s) for layer in (*layers.edges, None)]
        field = lax.switch(tables.op[i], branches, total, marginals)
        return jax.tree.map(
            lambda stack, v, f: _put(_put(stack, v, tables.store[i]), f, tables.field[i]), stacks, total, field
        )

    stacks = lax.fori_loop(0, tables.op.shape[0], turn, _start(fields, tables.slots.shape[0]))
    return jax.tree.map(lambda stack: stack[jnp.asarray(tables.outputs)], stacks)


def sides_of_outputs(tables: Tables, first: Any, second: Any) -> Marginals:
    """Returns variances and means of the output nodes, (outputs, N1, 1) and (outputs, 1, N2)."""
    places, nodes = jnp.asarray(tables.output_places), jnp.asarray(tables.output_nodes)
    v = first.v[places][:, :, None], second.v[places][:, None, :]
    return Marginals(*v) if first.m is None else Marginals(*v, first.m[nodes][:, :, None], second.m[nodes][:, None, :])
