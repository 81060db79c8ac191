"""Random graphs for Hypothesis, and slow reference results from a walk along every path."""

from collections import Counter
from unittest import mock

import jaxtyping
import numpy as np
from hypothesis import strategies as st

from nngp_dag.architecture import NormalForm, normal_form
from nngp_dag.graph import Dag, Edge, Op


def build(num_nodes: int, edges: tuple[Edge, ...], allow_disconnected: bool = False) -> Dag:
    """Builds a graph within a Hypothesis strategy.

    The type checker would sample long tuples with `random`, which Hypothesis forbids there.
    """
    with mock.patch.object(jaxtyping.config, "jaxtyping_disable", True):
        return Dag(num_nodes, edges, allow_disconnected)


@st.composite
def any_dags(draw, max_nodes: int = 7, max_edges: int = 16, parallel: bool = True) -> Dag:
    """Draws graphs with dead nodes and, by default, parallel edges, connected or not."""
    num_nodes = draw(st.integers(2, max_nodes))
    pairs = [(s, t) for t in range(num_nodes) for s in range(t)]
    ends = st.lists(st.sampled_from(pairs), max_size=max_edges, unique=not parallel)
    drawn = [(pair, draw(st.sampled_from(Op))) for pair in draw(ends)]
    return build(num_nodes, tuple(Edge(source, target, op) for (source, target), op in drawn), allow_disconnected=True)


@st.composite
def dags(draw, max_nodes: int = 7, max_edges: int = 14) -> Dag:
    """Draws connected graphs with parallel edges and dead nodes."""
    dag = draw(any_dags(max_nodes, max_edges))
    stops = draw(st.sets(st.integers(0, dag.num_nodes - 1))) | {0, dag.num_nodes - 1}
    ops = draw(st.lists(st.sampled_from(Op), min_size=len(stops) - 1, max_size=len(stops) - 1))
    spine = zip(sorted(stops)[:-1], sorted(stops)[1:], ops, strict=True)
    return build(dag.num_nodes, (*dag.edges, *(Edge(*step) for step in spine)))


def walk(dag: Dag, start: int, end: int, ops: tuple[Op, ...] = tuple(Op)) -> list[list[int]]:
    """Yields every path from `start` to `end` along edges of the given kinds, as indices into `dag.edges`."""
    if start == end:
        return [[]]
    return [
        [i, *rest]
        for i, edge in enumerate(dag.edges)
        if edge.source == start and edge.op in ops
        for rest in walk(dag, edge.target, end, ops)
    ]


def walked_histogram(dag: Dag) -> dict[int, int]:
    paths = walk(dag, 0, dag.num_nodes - 1)
    return dict(Counter(sum(dag.edges[i].op is Op.WEIGHTED for i in path) for path in paths))


def kernels_of_tables(tables: NormalForm, k_in: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns K(H) and T(H) by the recursion of THEORY, section 3, in plain NumPy."""

    def field(k, t):
        r = np.sqrt(np.outer(np.diag(k), np.diag(k)))
        cos = np.divide(k, r, out=np.zeros_like(k), where=r > 0)
        np.fill_diagonal(cos, 1.0)
        theta = np.arccos(np.clip(cos, -1, 1))
        f, fd = r * (np.sin(theta) + (np.pi - theta) * cos) / np.pi, (np.pi - theta) / np.pi
        mu = np.sqrt(np.diag(k) / np.pi) if order == "linear-act" else np.zeros(len(k))
        return f - np.outer(mu, mu), fd * (k + t) if order == "linear-act" else f + fd * t, mu

    zero = np.zeros_like(k_in)
    fields = [field(k_in, zero) if order == "linear-act" else (2 * k_in, 2 * k_in, np.zeros(len(k_in)))]
    k, t = k_in, zero
    for a, b in zip(tables.A, tables.B, strict=True):
        weighted = list(zip(a, b, fields, strict=False))
        m = sum((n * mu for _, n, (_, _, mu) in weighted), np.zeros(len(k_in)))
        k = sum((n * c for n, _, (c, _, _) in weighted), np.outer(m, m))
        t = sum((n * g for n, _, (_, g, _) in weighted), zero)
        fields.append(field(k, t))
    return k, t


def input_kernel(num_inputs: int = 3, features: int = 4) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(num_inputs, features))
    return x @ x.T / features


def assert_same_network(one: Dag, other: Dag) -> None:
    """Asserts that two graphs have equal path statistics and, in both orders, equal kernels."""
    assert one.num_paths == other.num_paths
    assert one.depth_histogram == other.depth_histogram
    assert one.effective_depth == other.effective_depth
    assert one.effective_width == other.effective_width
    for order in ("linear-act", "act-linear"):
        ours = kernels_of_tables(normal_form(one), input_kernel(), order)
        theirs = kernels_of_tables(normal_form(other), input_kernel(), order)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
