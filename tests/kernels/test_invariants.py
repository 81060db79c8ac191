"""Changes of a graph that keep its kernels, properties of all kernels, and the scaling of ReLU kernels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nngp_dag as nd
from nngp_dag.graph import Dag, Dense, Edge, Op, Scale

X = np.random.default_rng(0).normal(size=(4, 5))
LINEAR = Dense(activation=None, b_std=0.1)
# Each palette has two weighted operations. Node 1 has an edge of each from node 0. So all graphs have both in the same
# order, and graphs of about equal size share their compilations.
PALETTES = {
    "linear-act": (
        Dense(activation="abs", b_std=0.3),
        Dense(activation="erf", layer_norm=True, w_std=1.2, b_std=0.2),
    ),
    "act-linear": (
        Dense(activation="relu", order="act-linear", b_std=0.3),
        Dense(activation="sin", order="act-linear", w_std=1.2),
    ),
    "ends": (LINEAR, Dense(activation="relu", w_std=0.9)),
}
SKIPS = (Op.SKIP, Scale(-0.5))


@st.composite
def cases(draw, palettes=tuple(PALETTES)):
    """Draws a palette, and a graph of 5 to 7 nodes with its operations, with dead nodes."""
    palette = draw(st.sampled_from(palettes))
    num_nodes = draw(st.integers(5, 7))
    ops = st.sampled_from([None, None, *SKIPS, *PALETTES[palette]])
    edges = [Edge(0, 1, op) for op in PALETTES[palette]]
    for target in range(2, num_nodes):
        drawn = [Edge(source, target, op) for source in range(target) if (op := draw(ops)) is not None]
        edges += [edge for edge in drawn if edge.source != target - 1]
        # A path through all nodes keeps them alive, except one that may be dead.
        edges.append(Edge(target - 1, target, draw(st.sampled_from((*SKIPS, *PALETTES[palette])))))
    return palette, Dag(num_nodes, tuple(edges))


def kernels(dag, x=X, aggregation="sum"):
    k = nd.kernel(dag, x, stem=LINEAR, aggregation=aggregation, b_std=0.2)
    return np.array([k.nngp, k.ntk])


def assert_equal(dag, other, **options):
    expected = kernels(other, **options)
    np.testing.assert_allclose(kernels(dag, **options), expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def moved(edges, at):
    """Returns the edges after the insertion of a new node `at`."""
    return [Edge(e.source + (e.source >= at), e.target + (e.target >= at), e.op) for e in edges]


few = settings(max_examples=8, deadline=None, derandomize=True)


@pytest.mark.nightly
@few
@given(cases(), st.data(), st.sampled_from(["sum", "mean"]))
def test_new_names_change_nothing(case, data, aggregation):
    _, dag = case
    names = data.draw(st.permutations([f"n{i}" for i in range(dag.num_nodes)]))
    triples = data.draw(st.permutations([(names[e.source], names[e.target], e.op) for e in dag.edges]))
    again = Dag.from_edges(triples, source=names[0], output=names[-1])
    assert_equal(again, dag, aggregation=aggregation)


@pytest.mark.nightly
@few
@given(cases(), st.data(), st.booleans())
def test_dead_nodes_change_nothing(case, data, fed):
    palette, dag = case
    at = data.draw(st.integers(2, dag.num_nodes - 1))
    others = range(at) if fed else range(at + 1, dag.num_nodes + 1)
    ops = data.draw(st.lists(st.sampled_from((*SKIPS, *PALETTES[palette])), min_size=len(others), max_size=len(others)))
    dead = [Edge(node, at, op) if fed else Edge(at, node, op) for node, op in zip(others, ops, strict=True)]
    assert_equal(Dag(dag.num_nodes + 1, (*moved(dag.edges, at), *dead)), dag, aggregation="scaled-sum")


@pytest.mark.nightly
@few
@given(cases(), st.data())
def test_a_skip_to_a_new_node_in_front_of_an_edge_changes_nothing(case, data):
    _, dag = case
    index = data.draw(st.integers(0, len(dag.edges) - 1))
    edge, at = dag.edges[index], dag.edges[index].target
    rest = moved([e for i, e in enumerate(dag.edges) if i != index], at)
    longer = Dag(dag.num_nodes + 1, (*rest, Edge(edge.source, at, Op.SKIP), Edge(at, at + 1, edge.op)))
    assert_equal(longer, dag)


@pytest.mark.slow
@few
@given(cases(), st.sampled_from([0.0, 1.0, 1 + 1e-9, 0.3, -2.0]))
def test_gram_matrices_are_symmetric_and_positive(case, factor):
    _, dag = case
    x = X.copy()
    # Opposite, equal and scaled inputs make Gram matrices singular.
    x[1], x[2] = -x[0], factor * x[0]
    nngp, ntk = kernels(dag, x)
    for matrix in (nngp, ntk):
        scale = np.abs(matrix).max()
        np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-13 * scale)
        assert np.linalg.eigvalsh((matrix + matrix.T) / 2)[0] > -1e-13 * scale


@pytest.mark.slow
@few
@given(cases(), st.permutations(range(4)))
def test_the_order_of_inputs_changes_nothing(case, order):
    _, dag = case
    expected = kernels(dag)
    again = kernels(dag, X[order])
    np.testing.assert_allclose(again, expected[:, order][:, :, order], rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("order", ["linear-act", "act-linear"])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_relu_is_homogeneous_in_every_input(order, scales):
    dag, s = nd.zoo.random_dag(6, seed=1), np.array(scales)
    ones, scaled = nd.kernel(dag, X, order=order), nd.kernel(dag, s[:, None] * X, order=order)
    np.testing.assert_allclose(scaled.nngp, np.outer(s, s) * ones.nngp, rtol=1e-9)
    np.testing.assert_allclose(scaled.ntk, np.outer(s, s) * ones.ntk, rtol=1e-9)


@pytest.mark.parametrize("order", ["linear-act", pytest.param("act-linear", marks=pytest.mark.slow)])
@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_with_biases_inputs_and_biases_scale_together(order, factor):
    dag, options = nd.Dag.from_code("2_12_112"), {"order": order, "activation": "abs"}
    ones, scaled = (nd.kernel(dag, c * X, b_std=c * 0.5, **options) for c in (1, factor))
    np.testing.assert_allclose(scaled.nngp, factor**2 * np.asarray(ones.nngp), rtol=1e-12)
    np.testing.assert_allclose(scaled.ntk, factor**2 * np.asarray(ones.ntk), rtol=1e-12)


@pytest.mark.parametrize("order", ["linear-act", pytest.param("act-linear", marks=pytest.mark.slow)])
def test_relu_is_homogeneous_in_its_weights(order):
    # There are five factors: stem, three layers and readout.
    ones, scaled = (nd.kernel(nd.zoo.chain(3), X, order=order, w_std=w_std) for w_std in (1.0, 1.5))
    np.testing.assert_allclose(scaled.nngp, 1.5**10 * np.asarray(ones.nngp), rtol=1e-12)
    np.testing.assert_allclose(scaled.ntk, 1.5**10 * np.asarray(ones.ntk), rtol=1e-12)


def test_a_scale_passes_through_relu():
    # relu(c x) = c relu(x) for c > 0: a scale before a layer equals one after it, here beside a negative scale.
    first = Dag.from_edges([(0, 1, Scale(2.0)), (1, 2, "weighted"), (0, 2, Scale(-1.0))])
    last = Dag.from_edges([(0, 1, "weighted"), (1, 2, Scale(2.0)), (0, 2, Scale(-1.0))])
    ours, theirs = nd.kernel(first, X), nd.kernel(last, X)
    np.testing.assert_allclose(ours.nngp, theirs.nngp, rtol=1e-12)
    np.testing.assert_allclose(ours.ntk, theirs.ntk, rtol=1e-12)
