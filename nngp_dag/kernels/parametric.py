"""Kernels as functions of the network's numbers, which a transformation such as `jax.grad` traces.

The structure of the network fixes the program, and so the pattern of its weights. Their values are smooth functions of
the weights of edges. Without pooling they are the tables A and B of Equation (3) of docs/mathematics.md. Equation (2),
the recursion for the multiplicities n, is a triangular system of equations here:

    n = S n + 1,   A = n^2 W2,   B = n W1

S[t, s] adds up the factors of edges s -> t without weights. W1[t, l] and W2[t, l] add up the factors of weighted edges
of kind l into t, and their squares. With pooling the weights are products of the factors of two edges.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from nngp_dag.activations import get_activation
from nngp_dag.architecture import Network
from nngp_dag.architecture.parameters import Numbers, Resolved, as_numbers, leaves, resolved, with_labels
from nngp_dag.architecture.program import Program, program_by_pairs
from nngp_dag.graph import Dense
from nngp_dag.kernels.backends.loop_tables import Tables, tables
from nngp_dag.kernels.backends.unrolled import Weights
from nngp_dag.kernels.choose import Plan, Problem, choose
from nngp_dag.kernels.layer_rules import Layer, Layers


def is_traced(parameters: Any) -> bool:
    """Whether a transformation of JAX traces some number of nested dictionaries."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves(parameters))


class Parametric(NamedTuple):
    """A plan, and the numbers of its program.

    Attributes:
      plan: The plan.
      weights: The numbers, some of which JAX traces.
    """

    plan: Plan
    weights: Weights


def parametric(network: Network, problem: Problem, parameters: Mapping[str, Any]) -> Parametric:
    """Plans a kernel whose numbers JAX traces.

    Args:
      network: The network.
      problem: The kernel that is requested.
      parameters: Numbers by name, as in `Network.parameters`.

    Raises:
      GraphError: An activation acts on a node that is not Gaussian.
      InputError: A name is unknown, or a traced value is no real number.
    """
    parameters = as_numbers("parameters", parameters, is_traced)
    numbers = resolved(network, parameters)
    labeled, order = with_labels(network, parameters)
    of_edges = [numbers.edges[i] for i in order]
    moved = any({"weight", "factor"} & set(of_edge) for of_edge in parameters.get("edges", {}).values())
    plan = choose(labeled, problem._replace(traced=True, by_rows=moved and not network.pools))
    layers = _layers(labeled, numbers._replace(edges=tuple(of_edges)), plan)
    plan = plan._replace(layers=layers, spec=plan.spec._replace(layers=jax.tree.structure(layers)))
    terms: Any = plan.program.weights
    means: Any = plan.program.mean_weights
    if moved:
        multiplicity = _multiplicities(labeled, of_edges)
        if network.pools:
            program = program_by_pairs(labeled, lambda edge: multiplicity[id(edge)])
            terms, means = program.weights, program.mean_weights
        else:
            terms, means = _weights_by_rows(labeled, plan.program, multiplicity, problem.dtype)
    return Parametric(plan, _weights(plan, terms, means, problem.dtype))


def _layers(network: Network, numbers: Resolved, plan: Plan) -> Layers:
    """Returns the operations of a program with traced numbers; `network` and `numbers` agree in the order of edges."""
    of_operation = {edge.op: of for edge, of in zip(network.edges, numbers.edges, strict=True)}
    return Layers(
        _layer(network.stem_op, numbers.stem) if network.has_stem else None,
        tuple(_layer(op, of_operation[op]) for op in plan.program.operations),
        _layer(network.readout_op, numbers.readout) if network.readout else None,
        plan.layers.rules,
    )


def _layer(op: Dense, numbers: Numbers) -> Layer:
    """Returns a weighted operation with other numbers, as a pytree."""
    phi = None if op.activation is None else get_activation(op.activation)  # type: ignore[arg-type]
    if phi is not None and "activation" in numbers:
        values = {name: numbers["activation"].get(name, value) for name, value in vars(phi).items()}
        phi = type(phi).unchecked(*(tuple(v) if isinstance(v, list) else v for v in values.values()))
    bias = numbers["b_std"] ** 2 if "b_std" in numbers else None
    return Layer(numbers["w_std"] ** 2, bias, phi, op.order, op.layer_norm, op.window)


def _multiplicities(network: Network, of_edges: Sequence[Numbers]) -> dict[int, Any]:
    """Returns the factor of every edge's output in the sum at its target, by the `id` of the edge."""
    # Edges are compared by value, and equal parallel edges may have different weights.
    found: dict[int, Any] = {}
    for edge, numbers in zip(network.edges, of_edges, strict=True):
        own = numbers["factor"] if "factor" in numbers else edge.op.factor * numbers["weight"]
        found[id(edge)] = network.factor(edge.target) * own
    return found


def _weights_by_rows(
    network: Network, program: Program, multiplicity: Mapping[int, Any], dtype: np.dtype
) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of a program by rows: of the terms of its steps, and of the terms of its means."""
    structure, count = program.structure, network.dag.num_nodes
    kinds: dict[tuple[int, Dense | None], int] = {(i, None): i for i in range(structure.num_inputs)}
    column = {i: i for i in range(structure.num_inputs)}
    for step in structure.steps:
        for operation, slot in step.fields:
            assert step.node is not None
            column[slot] = kinds[step.node, program.operations[operation]] = len(kinds)

    def table(entries: Sequence[tuple[int, int, Any]], columns: int) -> jax.Array:
        """Adds up entries (row, column, value)."""
        rows, at, values = zip(*entries, strict=True) if entries else ((), (), ())
        found = jnp.zeros((count, columns), dtype)
        return found.at[rows, at].add(jnp.stack([jnp.asarray(v, dtype) for v in values])) if entries else found

    weighted = [edge for edge in network.edges if isinstance(edge.op, Dense)]
    factors = [(e.target, kinds[e.source, e.op], multiplicity[id(e)]) for e in weighted]  # type: ignore[index]
    stems = [(i, i, 1.0) for i in range(structure.num_inputs)]
    once = table([*stems, *factors], len(kinds))
    squared = table([*stems, *((target, kind, m**2) for target, kind, m in factors)], len(kinds))
    others = [edge for edge in network.edges if not isinstance(edge.op, Dense)]
    skips = table([(e.target, e.source, multiplicity[id(e)]) for e in others], count)
    identity = jnp.eye(count, dtype=dtype)
    with jax.default_matmul_precision("highest"):
        n = jax.scipy.linalg.solve_triangular(identity - skips, identity, lower=True, unit_diagonal=True)
        a, b = n**2 @ squared, n @ once
    terms = [(step.node, column[term.slot]) for step in structure.steps for term in step.terms]
    means = [(node, column[term.slot]) for node, of in enumerate(structure.means) for term in of]  # type: ignore[index]
    return _gathered(a, terms), _gathered(b, means)


def _gathered(matrix: jax.Array, entries: Sequence[tuple[Any, int]]) -> jax.Array:
    rows, columns = np.array(entries, int).reshape(-1, 2).T
    return matrix[rows, columns]


def _weights(plan: Plan, terms: Any, means: Any, dtype: np.dtype) -> Weights:
    """Returns the numbers of a program in a dtype; arrays of NumPy are those of `plan.program`."""

    def array(values: Any) -> Any:
        if isinstance(values, list):
            return jnp.stack([jnp.asarray(v, dtype) for v in values]) if values else np.zeros(0, dtype)
        return values.astype(dtype)

    layers = array(jax.tree.leaves(plan.layers))
    true = None if plan.spec.blocks.gpu and not plan.layout.ndim else np.asarray(True)
    if not plan.spec.loop:
        return Weights(array(terms), array(means), layers, None, true)
    loop = tables(plan.program, dtype)
    if terms is not plan.program.weights:
        loop = _with_weights(loop, plan.program, array(terms), array(means))
    return Weights(np.zeros(0, dtype), np.zeros(0, dtype), layers, loop, true)


def _with_weights(loop: Tables, program: Program, terms: jax.Array, means: jax.Array) -> Tables:
    """Returns the tables of a loop with other weights."""
    # Tables of a program whose weights are 2, 3, ... show where each weight stands. A 1 in them carries a long sum on
    # to the next turn, and a 0 is not used.
    numbered = [np.arange(len(v)) + 2.0 for v in (program.weights, program.mean_weights)]
    places = tables(program._replace(weights=numbered[0], mean_weights=numbered[1]), np.dtype(np.float64)).turns
    fixed = jnp.asarray([0, 1], terms.dtype)
    turns = loop.turns._replace(
        weights=jnp.concatenate([fixed, terms])[np.asarray(places.weights).astype(int)],
        mean_weights=jnp.concatenate([fixed, means])[np.asarray(places.mean_weights).astype(int)],
    )
    return loop._replace(turns=turns)
