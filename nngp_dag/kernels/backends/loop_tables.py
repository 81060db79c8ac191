"""A long program as tables, of which `nngp_dag.kernels.backends.loop` reads a row in every turn.

A turn adds a few slots up, and may then apply a weighted operation; which slots, with what weights, and which operation
stand in its row. Slots are used again once nobody needs their value, so that a ladder of a thousand nodes works in a
handful of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from nngp_dag.architecture.program import Program, Structure

# Terms that one turn adds up; longer sums take several turns.
_TERMS = 4


class Turns(NamedTuple):
    """What every turn does; one row each, padded with weight 0.

    A place is where a variance is kept: the number of a stem's field, or behind these two for every turn, of its sum
    and of its operation's output. Means have places of their own.

    Attributes:
      terms: Slots to add up, (turns, terms).
      weights: Their weights.
      term_places: Places of the terms' variances, (turns, terms).
      store: Slot of the sum.
      place: Place of the sum's variance.
      node: The node whose covariance the sum is, or H + 1.
      op: Number of the operation that is applied, or one past the last for none.
      field: Slot of the operation's output.
      mean_terms: Places of means to add up for the node, (turns, terms).
      mean_weights: Their weights.
      mean: Place of the node's mean.
      field_mean: Place of the mean of the operation's output.
    """

    terms: jax.Array | np.ndarray
    weights: jax.Array | np.ndarray
    term_places: jax.Array | np.ndarray
    store: jax.Array | np.ndarray
    place: jax.Array | np.ndarray
    node: jax.Array | np.ndarray
    op: jax.Array | np.ndarray
    field: jax.Array | np.ndarray
    mean_terms: jax.Array | np.ndarray
    mean_weights: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray
    field_mean: jax.Array | np.ndarray


class Tables(NamedTuple):
    """A program.

    Attributes:
      turns: What every turn does.
      outputs: Slots of the output nodes' covariances.
      output_places: Places of their variances.
      output_nodes: The output nodes.
      node_places: Places of the nodes' variances.
      nodes: An array with one entry per node, and one more.
      slots: An array with one entry per slot, and one more, which nobody reads.
      mean_places: An array with one entry per place of a mean: nodes, stems, fields, and the place that nobody reads.
    """

    turns: Turns
    outputs: jax.Array | np.ndarray
    output_places: jax.Array | np.ndarray
    output_nodes: jax.Array | np.ndarray
    node_places: jax.Array | np.ndarray
    nodes: jax.Array | np.ndarray
    slots: jax.Array | np.ndarray
    mean_places: jax.Array | np.ndarray


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
    found = Turns(
        terms, weights, term_places, store, own_places, node, op, field, mean_terms, mean_weights, mean, field_mean
    )
    return Tables(found, outputs, output_places, output_nodes, node_places, *sizes)


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
