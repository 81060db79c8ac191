"""The text forms of a graph, read into edges and written back.

- Paper codes (Chen et al. 2022), such as `2_21_112`. Block t lists the edges into node t from nodes 0, 1, ..., t - 1,
  as the digits 0 (absent), 1 (skip) and 2 (weighted).
- NAS-Bench-201 cells (Dong and Yang 2020), such as `|nor_conv_3x3~0|+|none~0|skip_connect~1|+...`. Block t lists
  `operation~source` for every earlier node.
"""

import itertools
import operator
from collections.abc import Sequence

from nngp_dag.errors import GraphError, did_you_mean, shorten, shown
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import Op

EXAMPLE = "2_21_112"

FIGURE3: dict[str, str] = {"DAG#1": "2_02_002", "DAG#2": "1_01_222", "DAG#3": "2_21_112"}
"""The three DAGs of Chen et al. 2022, Figure 3: a chain, three parallel layers, and a mixed one."""

NASBENCH201_OPS: dict[str, Op | None] = {
    "none": None,
    "skip_connect": Op.SKIP,
    "nor_conv_1x1": Op.WEIGHTED,
    "nor_conv_3x3": Op.WEIGHTED,
    "avg_pool_3x3": Op.SKIP,
}
"""The operations of NAS-Bench-201 as Chen et al. 2022 count them: both convolutions are weighted edges, and average
pooling is a skip."""

DARTS_OPS: dict[str, Op | None] = {
    "none": None,
    "skip_connect": Op.SKIP,
    "max_pool_3x3": Op.SKIP,
    "avg_pool_3x3": Op.SKIP,
    "sep_conv_3x3": Op.WEIGHTED,
    "sep_conv_5x5": Op.WEIGHTED,
    "dil_conv_3x3": Op.WEIGHTED,
    "dil_conv_5x5": Op.WEIGHTED,
}
"""The operations of DARTS, counted in the same way: convolutions are weighted edges, and pooling is a skip."""


def parse_text(text: str) -> tuple[int, tuple[Edge, ...], bool]:
    """Reads a name of `FIGURE3`, a NAS-Bench-201 cell, or a paper code.

    Returns:
      The number of nodes, the edges, and whether the graph may be disconnected, as cells may.

    Raises:
      GraphError: `text` is none of these forms.
    """
    if not isinstance(text, str) or not text.strip():
        raise GraphError(f"Expected `text` to be a code such as {EXAMPLE!r}, a name or a cell, got {shown(text)}")
    stripped = text.strip()
    if stripped.startswith("|"):
        return *parse_nasbench201(stripped), True
    if stripped.upper() in FIGURE3:
        stripped = FIGURE3[stripped.upper()]
    elif stripped[0] not in "012_":
        raise GraphError(
            f"Expected a code such as {EXAMPLE!r}, a NAS-Bench-201 cell or a name out of {', '.join(FIGURE3)}, got "
            f"{shorten(stripped)!r}{did_you_mean(stripped, FIGURE3)}"
        )
    return *parse_code(stripped), False


def parse_code(code: str) -> tuple[int, tuple[Edge, ...]]:
    """Reads a paper code into the number of nodes and the present edges.

    Raises:
      GraphError: `code` is empty, has a block of the wrong length or a digit other than 0, 1, 2.

    Examples:
      >>> parse_code("2_01")
      (3, (Edge(source=0, target=1, op=<Op.WEIGHTED: 2>), Edge(source=1, target=2, op=<Op.SKIP: 1>)))
    """
    if not isinstance(code, str) or not code.strip():
        raise GraphError(f"Expected `code` to be text such as {EXAMPLE!r}, got {shown(code)}")
    edges = []
    blocks = code.strip().split("_")
    for target, block in enumerate(blocks, start=1):
        if len(block) != target or set(block) - set("012"):
            raise GraphError(
                f"Expected block {target} of `code` to hold {target} digits out of 0, 1, 2 (the edges into node "
                f"{target}), got {shorten(block)!r} in {shorten(code)!r}; a valid code is {EXAMPLE!r}, and `Dag.parse` "
                "reads names and cells too"
            )
        edges += [Edge(source, target, Op(int(d))) for source, d in enumerate(block) if d != "0"]
    return len(blocks) + 1, tuple(edges)


def format_code(num_nodes: int, edges: Sequence[Edge]) -> str:
    """Writes edges as a paper code.

    Raises:
      GraphError: Two edges join the same two nodes, or an edge carries an operation of its own. A code can express
        neither.

    Examples:
      >>> format_code(3, [Edge(0, 1, Op.WEIGHTED), Edge(1, 2, Op.SKIP)])
      '2_01'
    """
    digits = [["0"] * target for target in range(num_nodes)]
    for edge in edges:
        if not isinstance(edge.op, Op):
            raise GraphError(
                f"Expected edges to be skips or plainly weighted for a paper code, got {edge}; use `edges` or "
                "`to_networkx()` for this graph"
            )
        if digits[edge.target][edge.source] != "0":
            raise GraphError(
                f"Expected at most one edge from node {edge.source} to node {edge.target} for a paper code, "
                "got several; use `edges` or `to_networkx()` for this graph"
            )
        digits[edge.target][edge.source] = str(edge.op.value)
    return "_".join("".join(block) for block in digits[1:])


def parse_nasbench201(cell: str) -> tuple[int, tuple[Edge, ...]]:
    """Reads the wiring of a NAS-Bench-201 cell: convolutions are weighted edges, pooling is a skip.

    Raises:
      GraphError: `cell` does not have this form, or names an unknown operation.

    Examples:
      >>> parse_nasbench201("|nor_conv_3x3~0|+|none~0|skip_connect~1|")
      (3, (Edge(source=0, target=1, op=<Op.WEIGHTED: 2>), Edge(source=1, target=2, op=<Op.SKIP: 1>)))
    """
    edges = nasbench201_edges(cell)
    named = ((source, target, NASBENCH201_OPS[name]) for source, target, name in edges)
    return edges[-1][1] + 1, tuple(Edge(source, target, op) for source, target, op in named if op is not None)


def nasbench201_edges(cell: str) -> list[tuple[int, int, str]]:
    """Reads the edges of a NAS-Bench-201 cell with its names of operations, "none" included.

    Raises:
      GraphError: `cell` does not have this form, or names an unknown operation.

    Examples:
      >>> nasbench201_edges("|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|")
      [(0, 1, 'nor_conv_3x3'), (0, 2, 'none'), (1, 2, 'avg_pool_3x3')]
    """
    blocks = nasbench201_operations(cell)
    return [(s, t, name) for t, block in enumerate(blocks, start=1) for s, name in enumerate(block)]


def nasbench201_operations(cell: str) -> list[list[str]]:
    """Reads the operations of a NAS-Bench-201 cell; block t, counted from 1, lists those from nodes 0, 1, ..., t - 1.

    Raises:
      GraphError: `cell` does not have this form, or names an unknown operation.

    Examples:
      >>> nasbench201_operations("|nor_conv_3x3~0|+|none~0|skip_connect~1|")
      [['nor_conv_3x3'], ['none', 'skip_connect']]
    """
    if not isinstance(cell, str) or not cell.strip():
        raise GraphError(f"Expected `cell` to be text such as '|nor_conv_3x3~0|+|...', got {shown(cell)}")
    blocks = []
    for target, block in enumerate(cell.strip().split("+"), start=1):
        names = [entry.partition("~")[0] for entry in block[1:-1].split("|")]
        canonical = "|" + "".join(f"{name}~{source}|" for source, name in enumerate(names))
        if block != canonical or len(names) != target:
            raise GraphError(
                f"Expected block {target} of `cell` to be '|op~0|...|op~{target - 1}|' (one operation from every "
                f"earlier node), got {shorten(block)!r} in {shorten(cell, 160)!r}"
            )
        for source, name in enumerate(names):
            if name not in NASBENCH201_OPS:
                raise GraphError(
                    f"Expected the operation on edge {source}->{target} of `cell` to be one of "
                    f"{', '.join(NASBENCH201_OPS)}, got {shorten(name)!r}{did_you_mean(name, NASBENCH201_OPS)}"
                )
        blocks.append(names)
    return blocks


def format_nasbench201(operations: Sequence[str]) -> str:
    """Writes operations as a NAS-Bench-201 cell; the operation into node 1 comes first.

    Examples:
      >>> format_nasbench201(["nor_conv_3x3", "none", "skip_connect"])
      '|nor_conv_3x3~0|+|none~0|skip_connect~1|'
    """
    left, blocks = iter(operations), []
    while block := list(itertools.islice(left, len(blocks) + 1)):
        blocks.append("|" + "".join(f"{name}~{source}|" for source, name in enumerate(block)))
    return "+".join(blocks)


def parse_darts(cell: Sequence[Sequence[object]]) -> tuple[int, tuple[Edge, ...]]:
    """Reads the (operation, input) pairs of a DARTS cell; see `Dag.from_darts`.

    Raises:
      GraphError: `cell` is not a list of an even number of such pairs, or names an unknown operation or node.
    """
    try:
        pairs = [(str(name), operator.index(source)) for name, source in cell]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or len(pairs) % 2:
        raise GraphError(
            f"Expected `cell` to hold two (operation, input) pairs per node, such as ('sep_conv_3x3', 0), got "
            f"{shown(cell)}"
        )
    edges = []
    output = len(pairs) // 2 + 2
    for index, (name, source) in enumerate(pairs):
        target = index // 2 + 2
        if name not in DARTS_OPS:
            raise GraphError(
                f"Expected operations of `cell` out of {', '.join(DARTS_OPS)}, got {shown(name)}"
                f"{did_you_mean(name, DARTS_OPS)}"
            )
        if not 0 <= source < target:
            raise GraphError(f"Expected inputs of node {target} of `cell` out of 0..{target - 1}, got {shown(source)}")
        op = DARTS_OPS[name]
        if op is not None:
            edges.append(Edge(source, target, op))
    edges += [Edge(node, output, Op.SKIP) for node in range(2, output)]
    return output + 1, tuple(edges)
