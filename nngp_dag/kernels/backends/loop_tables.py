"""The tables of a long program, of which `nngp_dag.kernels.backends.loop` reads one row in every turn.

A turn adds up a few slots, and may then apply a weighted operation. Its row holds the numbers of the slots, their
weights, and the number of the operation. A slot is reused once its value is no longer needed, so a ladder of a thousand
nodes takes only a few slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from nngp_dag.architecture.program import Program, Structure

# The number of terms that one turn adds up; longer sums take several turns.
_TERMS = 4


class Turns(NamedTuple):
    """The rows of the tables, one for every turn; unused terms have weight 0.

    A place is the index of a variance. The stems' fields have the first places. Every turn then has two: one for its
    sum, and one for the output of its operation. Means have places of their own.

    Attributes:
      terms: Slots of the terms, (turns, terms).
      weights: Weights of the terms, (turns, terms).
      term_places: Places of the terms' variances, (turns, terms).
      store: Slot of the sum, (turns,).
      place: Place of the sum's variance, (turns,).
      node: The node whose covariance the sum is, (turns,); the number of nodes in the tables if there is none.
      op: Number of the applied operation, (turns,); the number of operations if there is none.
      field: Slot of the operation's output, (turns,).
      mean_terms: Places of the means that the node's mean adds up, (turns, terms).
      mean_weights: Weights of these means, (turns, terms).
      mean: Place of the node's mean, (turns,).
      field_mean: Place of the mean of the operation's output, (turns,).
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
    """A program in the form of tables.

    The last three arrays hold nothing; their lengths tell a compiled program the sizes. Turns write results that are
    not used to the last slot and the last place of a mean.

    Attributes:
      turns: The rows of the tables.
      outputs: Slots of the output nodes' covariances.
      output_places: Places of the output nodes' variances.
      output_nodes: The output nodes.
      node_places: Places of the nodes' variances.
      nodes: An array with one entry per node and one for "no node".
      slots: An array with one entry per slot and one for unused results.
      mean_places: An array with one entry per place of a mean: nodes, "no node", stems, fields, and unused results.
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
    """The smallest sizes of tables.

    Attributes:
      turns: Number of turns.
      slots: Number of slots.
      nodes: Number of nodes.
      fields: Number of fields, those of stems included.
      mean_terms: Number of summands of a mean.
    """

    turns: int = 0
    slots: int = 0
    nodes: int = 0
    fields: int = 0
    mean_terms: int = 0


class _Turn(NamedTuple):
    """One turn, with the slots of the program; a None means that the turn has no node, operation or field."""

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
    """Assigns slots of the loop to the slots of a program.

    Returns:
      A dictionary {(turn, slot of the program): slot of the loop}, and the number of the loop's slots. The fields of
      stems have the first slots.
    """
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
    """Returns every node's mean as a sum over fields and over earlier nodes that have a step."""
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
    """Returns the sizes of a program's tables, rounded up so that similar graphs share a compiled program."""
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
    """Returns the tables of a program; their sizes are those of `sizes_of`, but at least `least`."""
    structure = program.structure
    turns = _turns(program)
    assigned, _ = _allocate(structure, turns)
    means = _mean_terms(program)
    rows, count, node_count, field_count, mean_count = map(max, sizes_of(program), least or Sizes())
    # The places of means: nodes, "no node", fields by slot, and unused results.
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
    # Several turns store a sum of many terms; the place of its slot is that of the last turn. An unused term, of weight
    # 0, has the place of the sum itself, whose share is the same at all inputs.
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
    """Rounds a size up to a multiple of 8 below 128, of 16 below 256, and so on."""
    step = max(8, 1 << max(0, size.bit_length() - 4))
    return max(step, -(-size // step) * step)


def loop_structure(structure: Structure) -> Structure:
    """Returns the structure on which a compiled loop depends, besides table sizes: inputs, outputs, and means."""
    outputs = tuple(range(len(structure.outputs)))
    # The loop depends only on whether there are means.
    return Structure(structure.num_inputs, 0, (), ((),) if structure.means else (), outputs)
