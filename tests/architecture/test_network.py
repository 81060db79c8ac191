"""Networks: default operations, shapes of images, several inputs and outputs, and refusals."""

import csv
import dataclasses
import json
from typing import Any

import networkx as nx
import pytest

import nngp_dag as nd
from nngp_dag.architecture import Network, as_network, normal_form
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Edge, Op, Scale

SKIP, WEIGHTED = Op.SKIP, Op.WEIGHTED
ACT_FIRST = Dense(order="act-linear")
TWO_INPUTS = Dag(3, (Edge(0, 2, WEIGHTED), Edge(1, 2, SKIP)), num_inputs=2)


def line(*ops):
    """Returns a chain that applies `ops` one after another."""
    return Dag(len(ops) + 1, tuple(Edge(t, t + 1, op) for t, op in enumerate(ops)))


def test_plain_edges_become_the_layer_and_dead_ones_go():
    dag = Dag(4, (Edge(0, 1, WEIGHTED), Edge(0, 2, WEIGHTED), Edge(1, 3, Scale(2.0)), Edge(0, 3, ACT_FIRST)))
    network = Network(dag, Dense(activation="erf", layer_norm=True), stem=Dense(activation=None))
    assert [edge.op for edge in network.edges] == [network.layer, ACT_FIRST, Scale(2.0)]
    assert [len(edges) for edges in network.into] == [0, 1, 0, 2]
    assert network.weighted_operations == (Dense(activation=None), network.layer, ACT_FIRST)
    assert not network.image_operations
    assert str(network) == "0->1:weighted,0->2:weighted,0->3:relu-dense,1->3:scale(2) (layer_norm-dense-erf, sum)"


@pytest.mark.parametrize(
    ("layer", "stem", "activated_readout"),
    [
        (Dense(layer_norm=True), Dense(), False),
        (ACT_FIRST, Dense(order="act-linear", activation=None), True),
        (Dense(order="act-linear", activation=None), Dense(order="act-linear", activation=None), False),
        (Conv(filter_shape=(3, 3)), Conv(filter_shape=(3, 3)), False),
    ],
)
def test_stem_and_readout_follow_the_layer(layer, stem, activated_readout):
    network = Network(Dag.from_code("2"), layer)
    assert network.stem_op == stem
    assert network.reads_out_activated is activated_readout


@pytest.mark.parametrize(
    ("aggregation", "factors"), [("sum", (1, 1)), ("scaled-sum", (1, 3**-0.5)), ("mean", (1, 1 / 3))]
)
def test_factors_count_live_edges(aggregation, factors):
    dag = Dag(4, (Edge(0, 1, WEIGHTED), *[Edge(0, 3, Scale(0.5))] * 2, Edge(1, 3, SKIP), Edge(2, 3, SKIP)))
    network = Network(dag, aggregation=aggregation)
    assert (network.factor(1), network.factor(3)) == pytest.approx(factors)
    assert network.multiplicity(network.into[3][0]) == pytest.approx(factors[1] / 2)


@pytest.mark.parametrize(
    ("dag", "has_means"),
    [(line(ACT_FIRST, WEIGHTED), True), (line(ACT_FIRST), False), (line(Dense(activation=None), SKIP), False)],
)
def test_means_need_an_activation_at_the_end(dag, has_means):
    network = Network(dag, stem=Dense(activation=None))
    assert network.has_means is has_means
    assert network.output_is_gaussian(dag.num_nodes - 1, input_is_gaussian=True) is not has_means


def test_shapes_of_images():
    ops = [
        Conv(filter_shape=(3, 2), strides=(2, 1)),
        AvgPool((2, 3), strides=(1, 2), padding="VALID"),
        Dense(),
        AvgPool((2, 2), strides=(3, 3)),
    ]
    network = Network(line(*ops), stem=Conv(filter_shape=(2, 2), padding="VALID"))
    assert network.pools
    assert len(network.image_operations) == 4
    assert network.pixels((8, 9)) == [(7, 8), (4, 8), (3, 3), (3, 3), (1, 1)]
    assert not Network(line(*ops[::2])).pools


@pytest.mark.parametrize(
    ("ops", "image", "message"),
    [
        (
            [Conv(filter_shape=(3, 3), strides=(2, 2)), SKIP],
            (4, 4),
            r"all edges into node 1 to output images of one shape, got \(4, 4\) from 0->1:skip and \(2, 2\) from "
            r"0->1:conv\(3x3\)-relu; give them equal strides and padding 'SAME'",
        ),
        ([Conv(filter_shape=(3,))], (4, 4), r"images with 1 spatial axes for edge 0->1:conv\(3\)-relu, got 2"),
        (
            [AvgPool((5, 3), padding="VALID")],
            (4, 4),
            r"images of at least \(5, 3\) pixels for edge 0->1:avg_pool\(5x3\)",
        ),
    ],
)
def test_operations_that_do_not_fit_the_image(ops, image, message):
    dag = Dag(2, tuple(Edge(0, 1, op) for op in ops))
    with pytest.raises(GraphError, match=message):
        Network(dag).pixels(image)
    with pytest.raises(GraphError, match=r"images of at least \(5, 5\) pixels for the stem, got \(4, 4\)"):
        Network(dag, stem=Conv(filter_shape=(5, 5), padding="VALID")).pixels((4, 4))


@pytest.mark.parametrize(
    ("dag", "options", "message"),
    [
        (line(WEIGHTED), {"aggregation": "max"}, r"`aggregation` to be one of 'sum', 'scaled-sum', 'mean', got 'max'"),
        (
            line(WEIGHTED),
            {"stem": ACT_FIRST},
            r"`stem` to apply its weights first, got order 'act-linear'; use 'linear",
        ),
        (line(WEIGHTED), {"stem": Dense(layer_norm=True)}, r"`stem` without `layer_norm`, got one; normalize the data"),
        (
            line(WEIGHTED),
            {"stem": Dense(w_std=1.0), "has_stem": False},
            r"no `stem` where `has_stem` is False, got Dense\(.*",
        ),
        (TWO_INPUTS, {"has_stem": False}, r"a graph with one input where there is no stem, got 2; without weights of"),
        (line(WEIGHTED), {"layer": ACT_FIRST, "order": "act-linear"}, r"either `layer` or `activation`, .* got both;"),
        (line(WEIGHTED), {"layer": Scale(2.0)}, r"`layer` to be a `Dense` or a `Conv`, got Scale\(factor=2.0\)"),
    ],
)
def test_bad_options(dag, options, message, unchecked):
    with pytest.raises(InputError, match=f"Expected {message}"):
        (Network if "has_stem" in options else as_network)(dag, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activation": "erf"},
            r"Expected `activation` in `layer`, got an option of `Network`; pass layer=Dense\(activation=\.\.\.\)",
        ),
        (
            {"aggregaton": "mean"},
            r"Expected options of `Network` \(dag, .*\), got `aggregaton`; did you mean 'aggregation'",
        ),
        ({"layer": Dense(activation="rleu")}, "Expected `activation` to be one of relu, .*; did you mean 'relu'"),
        ({"stem": Dense(activation="rleu")}, "Expected `activation` to be one of relu, .*; did you mean 'relu'"),
        ({"dag": [(0, 1, Dense(activation=len))]}, r"got len; wrap an elementwise function: `activations\.Quadrature"),
        ({"layer": Dense(activation=nd.activations.Erf)}, "got the class Erf; call it first"),
        ({"layer": Dense(activation=nd.activations.Activation())}, r"got Activation\(\)"),
    ],
)
def test_options_and_activations_are_checked_when_a_network_is_built(options, message, unchecked):
    with pytest.raises(InputError, match=message):
        Network(**{"dag": "2_12", **options})


@pytest.mark.parametrize("option", ["has_stem", "name", "value", "caller"])
def test_parameters_of_the_reader_are_no_options(option, unchecked):
    refused: dict[str, Any] = {option: False}
    with pytest.raises(InputError, match=rf"Expected options of the network \(activation, .*\), got `{option}`"):
        as_network("2_12", **refused)
    with pytest.raises(InputError, match="Expected `network` to have a stem, got one without"):
        as_network(Network("2_12", has_stem=False))


def test_a_stem_that_is_not_given_follows_the_layer(unchecked):
    plain, given, erf = Network("2_12"), Network("2_12", stem=Dense()), Dense(activation="erf")
    assert plain == given
    assert len({plain, given, Network("2_12", stem=Dense(w_std=1))}) == 2
    assert plain != "2_12"
    assert plain.kernel_options == given.kernel_options
    assert dataclasses.replace(plain, layer=erf).stem_op == as_network(plain, activation="erf").stem_op == erf
    assert dataclasses.replace(given, layer=erf).stem_op == as_network(given, activation="erf").stem_op == Dense()
    assert Network("2_12", has_stem=False) != plain


@pytest.mark.parametrize(
    ("dag", "message"),
    [
        (
            line(ACT_FIRST),
            r"node 0 to be Gaussian, since edge 0->1:relu-dense applies .* got a sum with the stem in it",
        ),
        (
            line(Dense(activation=None), WEIGHTED, Scale(0.5), ACT_FIRST),
            r"node 3 to be Gaussian, since edge 3->4:relu-dense .* with the activated edge 1->2:dense-relu in it, .* "
            r"no closed form; give this edge the order 'linear-act', or that one 'act-linear'",
        ),
        (Dag(2, (), allow_disconnected=True), r"a path from node 0 to the output node 1, got none in 0; add edges"),
        (
            Dag(3, (Edge(0, 2, SKIP),), allow_disconnected=True, outputs=(2, 1)),
            r"a path from node 0 to the output node 1, got none in 0->2:skip",
        ),
    ],
)
def test_networks_without_kernels(dag, message):
    stem = None if "the stem" in message else Dense(activation=None)
    with pytest.raises(GraphError, match=f"Expected {message}"):
        Network(dag, stem=stem)


def test_a_readout_that_activates_needs_a_gaussian():
    network = Network(line(Dense(activation="erf")), ACT_FIRST)
    network.check_gaussian(input_is_gaussian=True)
    with pytest.raises(
        GraphError,
        match=r"output node 1 to be Gaussian, since the readout .* 0->1:dense-erf in it, .*; use readout=False",
    ):
        network.check_gaussian(input_is_gaussian=True, reads_out=True)


def test_raw_data_without_a_stem_have_no_known_mean():
    network = Network(Dag(2, (Edge(0, 1, SKIP), Edge(0, 1, WEIGHTED))), has_stem=False)
    network.check_gaussian(input_is_gaussian=True)
    with pytest.raises(
        GraphError, match=r"input's mean to be known at node 1, .* edge 0->1:dense-relu, .* give it a stem"
    ):
        network.check_gaussian(input_is_gaussian=False)
    normalized = Network(Dag(2, (Edge(0, 1, Dense(layer_norm=True)),)), has_stem=False)
    normalized.check_gaussian(input_is_gaussian=True)
    with pytest.raises(GraphError, match=r"input's mean to be known at node 0, .* normalizes it, .* give it a stem"):
        normalized.check_gaussian(input_is_gaussian=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dag(3, (), num_inputs=0), r"`num_inputs` between 1 and 2, one node at least for the output, got 0"),
        (lambda: Dag(3, (), num_inputs=3), r"`num_inputs` between 1 and 2, .* got 3"),
        (lambda: Dag(3, (), outputs=(2, 2)), r"`outputs` to be different nodes out of 1\.\.2, got \(2, 2\)"),
        (lambda: Dag(3, (), outputs=(0,)), r"`outputs` to be different nodes out of 1\.\.2, got \(0,\)"),
        (lambda: Dag(3, (), outputs=(3,)), r"`outputs` to be different nodes out of 1\.\.2, got \(3,\)"),
        (
            lambda: Dag(3, (Edge(0, 1, SKIP), Edge(1, 2, SKIP)), num_inputs=2),
            r"no edge into the input nodes 0\.\.1, got 0->1",
        ),
        (lambda: Dag(3, ((0, 2, "skip"),)), r"`edges` to hold `Edge`s, got .*; use `Dag.from_edges` for triples"),  # pyright: ignore[reportArgumentType]
        (lambda: Dag("3", ()), r"`num_nodes` to be a whole number, got '3'; `Dag.parse` reads codes"),  # pyright: ignore[reportArgumentType]
        (
            lambda: Dag(4, (Edge(0, 2, SKIP), Edge(2, 3, SKIP)), num_inputs=2, outputs=(3,)).code,
            r"one input, and node 3",
        ),
        (
            lambda: Dag(3, (Edge(0, 1, SKIP), Edge(1, 2, SKIP)), outputs=(2, 1)).code,
            r"one input, and node 2 as the only",
        ),
        (
            lambda: line(Scale(0.5)).code,
            r"edges to be skips or plainly weighted for a paper code, got 0->1:scale\(0.5\)",
        ),
        (lambda: Dag(3, (), num_inputs=2), r"a path from an input node \(0\.\.1\) to the output node 2, got none"),
    ],
)
def test_graphs_that_are_refused(make, message, unchecked):
    with pytest.raises(GraphError, match=f"Expected {message}"):
        make()


@pytest.mark.parametrize(
    ("dag", "what"),
    [
        (line(Scale(0.5)), r"edge 0->1:scale\(0.5\)"),
        (TWO_INPUTS, "2 inputs and 1 outputs"),
        (Dag(3, (Edge(0, 1, SKIP), Edge(1, 2, SKIP)), outputs=(2, 1)), "1 inputs and 2 outputs"),
    ],
)
def test_graphs_without_a_normal_form(dag, what):
    with pytest.raises(GraphError, match=f"skips and plain weighted edges with one input and one output, got {what};"):
        normal_form(dag)


def test_a_graph_on_an_edge_takes_its_place():
    inner = Dag.from_edges([("in", "x", Dense()), ("x", "out", "skip"), ("in", "out", "weighted")])
    whole = Dag.from_edges([("s", "t", inner), ("t", "u", "weighted"), ("s", "u", inner)])
    assert whole.num_paths == 2 * 1 + 2
    assert whole.depth_histogram == {1: 2, 2: 2}
    with pytest.raises(GraphError, match="a graph on edge 's'->'t' to have one input and one output, got 2 and 1"):
        Dag.from_edges([("s", "t", TWO_INPUTS)])


def test_lists_name_several_sources_and_outputs():
    edges = [("a", "c", "weighted"), ("b", "c", "skip"), ("c", "d", "weighted"), ("c", "e", "skip")]
    dag = Dag.from_edges(edges, source=["b", "a"], output=["e", "c"])
    assert (dag.num_inputs, dag.outputs, dag.num_nodes) == (2, (4, 2), 5)
    assert Dag.from_networkx(dag.to_networkx()) == dag
    for role, bad in (("source", []), ("source", ["a", "a"]), ("source", ["a", "c"]), ("output", ["e", "z"])):
        ends = {"source": ["a", "b"], "output": ["d"]} | {role: bad}
        with pytest.raises(GraphError, match=f"Expected `{role}` to list different nodes of the graph, got"):
            Dag.from_edges(edges, **ends)
    with pytest.raises(GraphError, match="`source` and `output` to differ, got 'a' for both"):
        Dag.from_edges(edges, source=["a", "b"], output=["d", "a"])


def test_networkx_keeps_operations():
    dag = Dag(3, (Edge(0, 2, Scale(2.0)), Edge(1, 2, Conv(filter_shape=(3, 3)))), num_inputs=2)
    graph = dag.to_networkx()
    assert isinstance(graph, nx.MultiDiGraph)
    assert Dag.from_networkx(graph) == dag


def overwritten(cell):
    """Returns a DARTS cell as the authors' function reads it: of two entries from one node only the later counts."""
    pairs = zip(cell[::2], cell[1::2], strict=True)
    return [entry for a, b in pairs for entry in ([("none", 0), b] if a[1] == b[1] else [a, b])]


def test_darts_cells_against_the_authors_function(golden_dir):
    rows = list(csv.DictReader((golden_dir / "darts_effective_depth_width.csv").read_text().splitlines()))
    twice = [row for row in rows if row["has_duplicate_input"] == "1"]
    assert (len(rows), len(twice)) == (80, 14)
    for row in rows:
        cell = json.loads(row["genotype_json"])
        expected = pytest.approx((float(row["depth"]), float(row["width"])), abs=1e-12)
        dag = Dag.from_darts(cell)
        # Here both entries count, as in the network itself, so that cells with two edges from one node differ.
        assert ((dag.effective_depth, dag.effective_width) == expected) is (row not in twice)
        as_there = Dag.from_darts(overwritten(cell))
        assert (as_there.effective_depth, as_there.effective_width) == expected


def test_darts_edge_cases_against_the_authors_function(golden_dir):
    cases = json.loads((golden_dir / "darts_effective_depth_width_edge_cases.json").read_text())
    assert len(cases) == 9
    for case in cases:
        dag = Dag.from_darts(overwritten(case["normal"]))
        assert (dag.effective_depth, dag.effective_width) == pytest.approx(case["depth_width"], abs=1e-12), case["name"]


def test_a_darts_cell_has_two_inputs_and_a_skip_from_every_node():
    cell = [("sep_conv_3x3", 0), ("none", 1), ("max_pool_3x3", 1), ("dil_conv_5x5", 2)]
    dag = Dag.from_darts(cell)
    edges = [(0, 2, WEIGHTED), (1, 3, SKIP), (2, 3, WEIGHTED), (2, 4, SKIP), (3, 4, SKIP)]
    assert dag == Dag(5, tuple(Edge(*edge) for edge in edges), num_inputs=2)
    assert Dag.from_darts([("none", 0), ("none", 1)]).num_paths == 0


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([], r"`cell` to hold two \(operation, input\) pairs per node, such as .* got \[\]"),
        ([("none", 0)], r"`cell` to hold two \(operation, input\) pairs per node"),
        ([("none", 0), ("none",)], r"`cell` to hold two \(operation, input\) pairs per node"),
        ([("none", 0), ("none", "1")], r"`cell` to hold two \(operation, input\) pairs per node"),
        ([("none", 0), ("conv", 1)], r"operations of `cell` out of none, skip_connect, .* got 'conv'"),
        ([("none", 0), ("none", 2)], r"inputs of node 2 of `cell` out of 0\.\.1, got 2"),
        ([("none", 0), ("none", -1)], r"inputs of node 2 of `cell` out of 0\.\.1, got -1"),
    ],
)
def test_malformed_darts_cells(cell, message):
    with pytest.raises(GraphError, match=f"Expected {message}"):
        nd.Dag.from_darts(cell)
