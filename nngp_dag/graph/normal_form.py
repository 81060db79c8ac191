"""The normal form of a DAG: two small tables that determine its kernels (THEORY section 2).

Every weighted edge draws its own weights, so at infinite width its output field is independent of every other
edge's, and skips only add such fields up: X(t) = sum_e n[t, e] g_e, where n[t, e] counts the skip-only paths from
the head of e to t. Fields of weighted edges that leave the same node share one law, so kernels depend on
n only through

    A[t, s] = sum over weighted edges e leaving s of n[t, e]^2    (weights of covariances)
    B[t, s] = sum over weighted edges e leaving s of n[t, e]      (weights of means)

Two DAGs with equal tables have equal kernels, exactly.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from nngp_dag.errors import GraphError
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.edge import Op


@dataclass(frozen=True, eq=False)
class NormalForm:
    """The tables A and B of a DAG.

    Attributes:
      A: Weights of covariances, float64 (H + 1, H + 1). Row t is node t. Column 0 is the stem, column s + 1
        the weighted edges that leave node s. Rows on which the output does not depend are zero.
      B: Weights of means, likewise.
      shared_skips: Whether some field reaches a node by more than one skip-only path (n > 1).
    """

    A: np.ndarray
    B: np.ndarray
    shared_skips: bool


@functools.lru_cache(maxsize=4096)
def normal_form(dag: Dag) -> NormalForm:
    """Returns the tables of `dag`, at a cost that grows with its edges and the fields that skips carry.

    Raises:
      GraphError: No path reaches the output, or a multiplicity n^2 exceeds float64.

    Example:
      >>> normal_form(Dag.from_code("1_11")).A[-1]  # X1 = X0, X2 = X0 + X1 = 2 X0
      array([4., 0., 0.])
    """
    dag.require_connected()
    # The stem's field has head 0 and column 0. All fields with the same head share n[t, e], so multiplicities
    # are kept per head: multiplicity[t] = {head: number of skip-only paths head -> t}.
    columns: list[Counter[int]] = [Counter() for _ in range(dag.num_nodes)]
    columns[0][0] = 1
    skips: list[list[int]] = [[] for _ in range(dag.num_nodes)]
    for edge in dag.live_edges:
        if edge.op is Op.WEIGHTED:
            columns[edge.target][edge.source + 1] += 1
        else:
            skips[edge.target].append(edge.source)
    multiplicity: list[Counter[int]] = []
    for node in range(dag.num_nodes):
        carried = Counter({node: 1}) if columns[node] else Counter[int]()
        for source in skips[node]:
            carried.update(multiplicity[source])
        multiplicity.append(carried)

    A = np.zeros((dag.num_nodes, dag.num_nodes))
    B = np.zeros((dag.num_nodes, dag.num_nodes))
    shared_skips = False
    needed = {dag.num_nodes - 1}
    for node in reversed(range(dag.num_nodes)):
        if node not in needed:
            continue
        row_a, row_b = Counter[int](), Counter[int]()
        for head, n in multiplicity[node].items():
            shared_skips |= n > 1
            for column, edges in columns[head].items():
                row_a[column] += edges * n**2
                row_b[column] += edges * n
        try:
            for column in row_a:
                A[node, column], B[node, column] = row_a[column], row_b[column]
        except OverflowError:
            raise GraphError(
                f"Expected skip multiplicities of node {node} whose squares float64 can hold, got more than 1e154 "
                "skip-only paths; use fewer parallel skips"
            ) from None
        needed.update(column - 1 for column in row_a if column > 0)
    A.flags.writeable = B.flags.writeable = False
    return NormalForm(A, B, shared_skips)
