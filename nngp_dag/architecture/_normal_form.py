"""The normal form of a DAG: two small tables that determine its kernels.

Every weighted edge draws its own weights. At infinite width its output, the field g_e, is therefore independent of the
field of every other edge, and skips only add fields up:

    X(t) = sum_e n[t, e] g_e                                      (Equation (1) of docs/mathematics.md)

Here n[t, e] counts the skip-only paths from the head of e to t. A path counts with the product of the factors along
it: scales, and the factors of the aggregation. Equation (2) is the recursion for n. Fields that leave one node by equal
operations have the same distribution: they are of one kind l. So kernels depend on n only through Equation (3),

    A[t, l] = sum over weighted edges e of kind l of n[t, e]^2    (weights of covariances)
    B[t, l] = sum over weighted edges e of kind l of n[t, e]      (weights of means)

Two DAGs with equal tables have exactly equal kernels.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from nngp_dag.architecture.network import Network
from nngp_dag.errors import GraphError
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.operations import Dense, Op
from nngp_dag.graph.reading import as_dag

EdgeKind = tuple[int, Dense | None]
"""The source node of weighted edges and their operation; (i, None) stands for the stem of input i."""

Row = dict[EdgeKind, float | int]


@dataclass(frozen=True, eq=False)
class NormalForm:
    """The tables A and B of a DAG of skips and plain weighted edges.

    Attributes:
      A: Weights of covariances, Equation (3) of docs/mathematics.md, float64 (H + 1, H + 1). Row t is node t. Column 0
        is the stem, and column s + 1 stands for the weighted edges that leave node s. Rows of nodes on which the output
        does not depend are zero.
      B: Weights of means, with the rows and columns of `A`.
      shared_skips: Whether some field reaches a node by more than one skip-only path (n > 1).
    """

    A: np.ndarray
    B: np.ndarray
    shared_skips: bool


def rows(network: Network) -> tuple[dict[int, tuple[Row, Row]], bool]:
    """Returns the rows of A and B of every node on which an output depends, and whether skips are shared.

    Edges without weights must be skips or scales: no table of numbers describes pooling. The cost grows with the number
    of edges, times the number of fields that skips carry.

    Raises:
      GraphError: A squared multiplicity exceeds float64.
    """
    dag = network.dag
    # All edges with one head share n[t, e], so multiplicities are kept per head and not per edge. The dictionary
    # multiplicity[t] maps heads to sums over skip-only paths head -> t, by Equation (2) of docs/mathematics.md.
    # Integer factors give Python integers, which are exact for any number of paths.
    kinds: list[Counter[EdgeKind]] = [Counter() for _ in range(dag.num_nodes)]
    for node in range(dag.num_inputs):
        kinds[node][node, None] = 1
    multiplicity: list[dict[int, float | int]] = []
    shared: list[bool] = []
    for node, into in enumerate(network.into):
        carried: dict[int, float | int] = {}
        shared.append(False)
        for edge in into:
            if isinstance(edge.op, Dense):
                kinds[node][edge.source, edge.op] += 1
                continue
            shared[node] |= shared[edge.source] or not carried.keys().isdisjoint(multiplicity[edge.source])
            for head, n in multiplicity[edge.source].items():
                try:
                    carried[head] = carried.get(head, 0) + n * network.multiplicity(edge)
                except OverflowError:
                    raise _too_many(node) from None
        if kinds[node]:
            carried[node] = network.factor(node)
        multiplicity.append(carried)

    table: dict[int, tuple[Row, Row]] = {}
    shared_skips = False
    needed = set(dag.outputs)
    for node in reversed(range(dag.num_nodes)):
        if node not in needed:
            continue
        a, b = Counter[EdgeKind](), Counter[EdgeKind]()
        shared_skips |= shared[node]
        try:
            for head, n in multiplicity[node].items():
                for kind, edges in kinds[head].items():
                    a[kind] += edges * n**2  # type: ignore[assignment]
                    b[kind] += edges * n  # type: ignore[assignment]
            table[node] = {kind: float(n) for kind, n in a.items()}, {kind: float(n) for kind, n in b.items()}
        except OverflowError:
            raise _too_many(node) from None
        needed.update(source for source, op in a if op is not None)
    return table, shared_skips


def _too_many(node: int) -> GraphError:
    return GraphError(
        f"Expected skip multiplicities of node {node} whose squares float64 can hold, got more than 1e154 "
        "skip-only paths; use fewer parallel skips"
    )


def normal_form(dag: Dag | str, aggregation: str = "sum") -> NormalForm:
    """Returns the tables A and B of a DAG of skips and plain weighted edges.

    Args:
      dag: The graph, or a text that `Dag.parse` reads.
      aggregation: "sum", "scaled-sum" or "mean", as in `Network`.

    Raises:
      GraphError: No path reaches the output, or a squared multiplicity exceeds float64. Or `dag` has several inputs or
        outputs, or operations of its own, which these tables cannot hold.

    Examples:
      >>> normal_form(Dag.from_code("1_11")).A[-1]  # X1 = X0, X2 = X0 + X1 = 2 X0
      array([4., 0., 0.])
    """
    return _normal_form(as_dag(dag), aggregation)


@functools.lru_cache(maxsize=4096)
def _normal_form(dag: Dag, aggregation: str) -> NormalForm:
    own = [edge for edge in dag.live_edges if not isinstance(edge.op, Op)]
    if own or dag.num_inputs > 1 or len(dag.outputs) > 1:
        what = f"edge {own[0]}" if own else f"{dag.num_inputs} inputs and {len(dag.outputs)} outputs"
        raise GraphError(
            f"Expected a graph of skips and plain weighted edges with one input and one output, got {what}; "
            "`nngp_dag.kernel` takes any graph"
        )
    table, shared_skips = rows(Network(dag, aggregation=aggregation))
    A = np.zeros((dag.num_nodes, dag.num_nodes))
    B = np.zeros((dag.num_nodes, dag.num_nodes))
    for node, pair in table.items():
        for matrix, row in zip((A, B), pair, strict=True):
            for (source, op), weight in row.items():
                matrix[node, 0 if op is None else source + 1] = weight
    A.flags.writeable = B.flags.writeable = False
    return NormalForm(A, B, shared_skips)
