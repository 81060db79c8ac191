"""Named and random DAGs, and the lists of whole search spaces.

Examples:
  >>> chain(3).code
  '2_02_002'
"""

import itertools
import random
from collections.abc import Iterator

from nngp_dag.errors import GraphError, did_you_mean, shown
from nngp_dag.graph.codes import FIGURE3, NASBENCH201_OPS, format_nasbench201
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import Op

__all__ = [
    "chain",
    "codes",
    "ladder",
    "named",
    "nasbench201",
    "random_dag",
]


def named(name: str) -> Dag:
    """Returns a DAG of Figure 3 of Chen et al. 2022 by its name there.

    Args:
      name: "DAG#1", "DAG#2" or "DAG#3", in upper or lower case.

    Raises:
      GraphError: `name` is none of these names.

    Examples:
      >>> named("dag#3").code
      '2_21_112'

    Reference: Chen et al., NeurIPS 2022, Figure 3.
    """
    key = str(name).strip().upper()
    if key not in FIGURE3:
        raise GraphError(
            f"Expected `name` to be one of {', '.join(FIGURE3)}, got {shown(name)}{did_you_mean(key, FIGURE3)}"
        )
    return Dag.from_code(FIGURE3[key])


def chain(num_layers: int) -> Dag:
    """Returns a chain of `num_layers` weighted edges.

    Raises:
      GraphError: `num_layers` is less than 1.

    Examples:
      >>> chain(2).code
      '2_02'
    """
    return Dag(num_layers + 1, tuple(Edge(t, t + 1, Op.WEIGHTED) for t in range(num_layers)))


def ladder(num_nodes: int) -> Dag:
    """Returns a ladder: a weighted edge from every node to the next, and a skip from every node to the next but one.

    The number of paths is a Fibonacci number. So no method that enumerates paths can handle a long ladder.

    Raises:
      GraphError: `num_nodes` is less than 2.

    Examples:
      >>> ladder(14).num_paths
      377
    """
    steps = [Edge(t, t + 1, Op.WEIGHTED) for t in range(num_nodes - 1)]
    return Dag(num_nodes, (*steps, *(Edge(t, t + 2, Op.SKIP) for t in range(num_nodes - 2))))


def random_dag(num_nodes: int, seed: int) -> Dag:
    """Draws a random DAG in which a path leads to the output.

    Every edge is absent, a skip or weighted with equal probability. Draws without a path to the output are repeated.

    Args:
      num_nodes: Number of nodes, at least 2.
      seed: Seed of Python's random numbers; equal seeds draw equal graphs.

    Raises:
      GraphError: `num_nodes` is less than 2.

    Examples:
      >>> random_dag(5, seed=0) == random_dag(5, seed=0)
      True
    """
    rng = random.Random(seed)
    pairs = [(s, t) for t in range(num_nodes) for s in range(t)]
    while True:
        drawn = [(s, t, rng.choice((None, Op.SKIP, Op.WEIGHTED))) for s, t in pairs]
        edges = tuple(Edge(s, t, op) for s, t, op in drawn if op is not None)
        dag = Dag(num_nodes, edges, allow_disconnected=True)
        if dag.num_paths:
            return dag


def codes(num_blocks: int) -> Iterator[str]:
    """Yields every paper code with `num_blocks` blocks, in the order of its digits.

    Some of these codes have no path to the output; `Dag.from_code` refuses them.

    Raises:
      GraphError: `num_blocks` is not between 1 and 4; five blocks have more than 10 million codes.

    Examples:
      >>> len(list(codes(3)))
      729
    """
    digits = num_blocks * (num_blocks + 1) // 2
    if num_blocks < 1 or 3**digits > 10_000_000:
        raise GraphError(
            f"Expected 1 to 4 blocks, whose {3**10:,} codes can be listed, got {num_blocks}; draw `random_dag`s instead"
        )
    for drawn in itertools.product("012", repeat=digits):
        left = iter(drawn)
        yield "_".join("".join(itertools.islice(left, t)) for t in range(1, num_blocks + 1))


def nasbench201() -> Iterator[str]:
    """Yields the 15,625 cells of NAS-Bench-201, some of which have no path to the output.

    The operation of the first edge, from node 0 to node 1, changes slowest. The order of operations is none,
    skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3.

    Reference: Dong and Yang, ICLR 2020.

    Examples:
      >>> cells = list(nasbench201())
      >>> len(cells), cells[1]
      (15625, '|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|')
    """
    yield from map(format_nasbench201, itertools.product(NASBENCH201_OPS, repeat=6))
