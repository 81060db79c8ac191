import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from oracles import ORDERS

import nngp_dag as nd
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Edge, EdgeOperation, Op, Scale, SumPool
from nngp_dag.graph.operations import Window, name_of_class
from nngp_dag.nets import DagNet, WeightedLayer, as_functions
from nngp_dag.nets.layers import without_weights

PARAMETERIZATIONS = ("ntk", "standard")
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def net(code="2_21_112", *, order="linear-act", parameterization="ntk", width=32, seed=0):
    options = {"width": width, "order": order, "parameterization": parameterization}
    return DagNet(Dag.from_code(code), 6, 3, rngs=nnx.Rngs(seed), **options)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_network_against_a_hand_written_forward_pass(order, parameterization):
    model = net(order=order, parameterization=parameterization)

    def dense(layer, x):
        weights = np.asarray(layer.linear.kernel[...])
        return x @ weights * ((2 / weights.shape[0]) ** 0.5 if parameterization == "ntk" else 1)

    def edge(i, x):
        return relu(dense(model.edges[i], x)) if order == "linear-act" else dense(model.edges[i], relu(x))

    x0 = dense(model.stem, X)
    x0 = relu(x0) if order == "linear-act" else x0
    x1 = edge(0, x0)
    # Weighted edges in the order of their sources: 0->1, 0->2, 2->3.
    x2 = edge(1, x0) + x1
    x3 = x0 + x1 + edge(2, x2)
    expected = dense(model.readout, x3 if order == "linear-act" else relu(x3))
    np.testing.assert_allclose(model(jnp.asarray(X)), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("parameterization", "std"), [("ntk", 1.0), ("standard", (2 / 400) ** 0.5)])
def test_he_initialization(parameterization, std):
    weights = np.asarray(net("2", parameterization=parameterization, width=400).edges[0].linear.kernel[...])
    # With 160,000 weights the standard deviation is known to 0.2 %, and the mean to 0.3 % of it.
    assert weights.std() == pytest.approx(std, rel=0.01)
    assert weights.mean() == pytest.approx(0, abs=0.01 * std)


def test_dead_edges_have_no_weights_and_a_node_without_inputs_is_zero():
    dead, alive = net("0_22_012"), net("2_02")
    assert len(dead.edges) == len(alive.edges) == 2
    for a, b in zip([dead.stem, *dead.edges, dead.readout], [alive.stem, *alive.edges, alive.readout], strict=True):
        a.linear.kernel = nnx.Param(b.linear.kernel[...])
    np.testing.assert_array_equal(dead(jnp.asarray(X)), alive(jnp.asarray(X)))


def test_parallel_weighted_edges_have_weights_of_their_own():
    model = DagNet(Dag.from_edges([(0, 1, 2), (0, 1, 2)]), 6, 1, width=8, rngs=nnx.Rngs(0))
    first, second = (np.asarray(layer.linear.kernel[...]) for layer in model.edges)
    assert not np.allclose(first, second)


def test_seeds_decide():
    np.testing.assert_array_equal(net(seed=1)(jnp.asarray(X)), net(seed=1)(jnp.asarray(X)))
    assert not np.allclose(net(seed=1)(jnp.asarray(X)), net(seed=2)(jnp.asarray(X)))


def test_bad_arguments():
    with pytest.raises(InputError, match="Expected `width` to be a whole number, at least 1, got 0"):
        net(width=0)
    with pytest.raises(InputError, match="Expected `order` to be one of 'linear-act', 'act-linear', got 'other'"):
        net(order="other")
    with pytest.raises(InputError, match="Expected `parameterization` to be one of 'ntk', 'standard', got 'mup'"):
        net(parameterization="mup")
    disconnected = Dag(3, (), allow_disconnected=True)
    with pytest.raises(GraphError, match="Expected a path from node 0 to the output node 2"):
        DagNet(disconnected, 6, 1, width=8, rngs=nnx.Rngs(0))


MIXED = Dag.from_edges(
    [
        (0, 1, Dense(activation="sin", order="act-linear", b_std=0.5)),
        (0, 1, Scale(-0.5)),
        (1, 2, Dense(activation="erf", w_std=1.2, b_std=0.3, layer_norm=True)),
        (0, 2, "skip"),
        (1, 3, Dense(activation="gelu", order="act-linear", layer_norm=True)),
        (2, 3, "weighted"),
        (0, 3, Scale(2.0)),
    ]
)
CELL = Dag.from_code("2_21_112")
GAUSSIAN_STEM = Dense(activation=None, b_std=0.1)
IMAGES = [
    (0, 1, Conv(filter_shape=(3, 2), strides=(2, 1), activation="erf", b_std=0.4)),
    (1, 2, AvgPool((2, 3), strides=(1, 2), normalize_edges=True)),
    (1, 2, AvgPool((2, 3), strides=(1, 2))),
    (1, 2, SumPool((2, 3), strides=(1, 2))),
    (2, 3, Conv(filter_shape=(2, 2), padding="VALID", layer_norm=True)),
    (2, 3, AvgPool((2, 2), padding="VALID", normalize_edges=True)),
    (3, 4, Dense(activation="erf", b_std=0.2)),
    (3, 4, "skip"),
]
CONV = Conv(filter_shape=(3, 3), activation="relu", b_std=0.3)
ACT_CONV = Conv(filter_shape=(3, 3), activation="erf", order="act-linear", b_std=0.3)
SKIP, WEIGHTED = Op.SKIP, Op.WEIGHTED
TWO_INPUTS = Dag(
    4,
    tuple(Edge(*edge) for edge in [(0, 2, WEIGHTED), (1, 2, WEIGHTED), (1, 2, SKIP), (2, 3, WEIGHTED), (0, 3, SKIP)]),
    num_inputs=2,
)
TWO_OUTPUTS = Dag(3, (Edge(0, 1, WEIGHTED), Edge(1, 2, WEIGHTED), Edge(0, 2, SKIP)), outputs=(2, 1))
LINES = Dag.from_edges([(0, 1, Conv(filter_shape=(3,), strides=(2,))), (0, 1, AvgPool((3,), strides=(2,)))])
STRIDED = Conv(filter_shape=(2, 3), strides=(2, 1), padding="VALID")
# (graph, shapes of inputs without N, options).
CASES = {
    "mixed": (MIXED, [(6,)], {"stem": GAUSSIAN_STEM}),
    "mixed scaled-sum": (MIXED, [(6,)], {"stem": GAUSSIAN_STEM, "aggregation": "scaled-sum"}),
    "mixed mean": (MIXED, [(6,)], {"stem": GAUSSIAN_STEM, "aggregation": "mean"}),
    "plain": (CELL, [(6,)], {}),
    "act-linear": (CELL, [(6,)], {"order": "act-linear", "activation": "erf", "w_std": 1.1, "b_std": 0.2}),
    "linear": (CELL, [(6,)], {"activation": None, "b_std": 0.2}),
    "two inputs": (TWO_INPUTS, [(6,), (4,)], {"b_std": 0.2}),
    "two outputs": (TWO_OUTPUTS, [(6,)], {"order": "act-linear"}),
    "convolutions": (CELL, [(5, 5, 2)], {"layer": CONV}),
    "averaged": (CELL, [(5, 5, 2)], {"layer": ACT_CONV, "image_readout": "global-average"}),
    "act-linear convolutions": (Dag.from_code("2_12"), [(5, 4, 2)], {"layer": ACT_CONV, "aggregation": "mean"}),
    "strides and pooling": (Dag.from_edges(IMAGES), [(5, 5, 2)], {"stem": Dense(activation="relu")}),
    "strided stem": (Dag.from_edges(IMAGES[3:]), [(5, 6, 2)], {"layer": STRIDED, "image_readout": "global-average"}),
    "lines": (LINES, [(7, 2)], {"stem": Dense()}),
    "images of two inputs": (TWO_INPUTS, [(3, 4, 1), (3, 4, 2)], {"layer": CONV}),
}
each_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def case(name):
    """Returns the graph, the inputs and a function that builds the network."""
    dag, shapes, options = CASES[name]
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(4, *shape)).astype(np.float32) for shape in shapes]
    image = {"image_shape": shapes[0][:-1]} if len(shapes[0]) > 1 else {}

    def build(parameterization="ntk", *, rngs=None, width=8):
        channels = tuple(shape[-1] for shape in shapes)
        rngs = nnx.Rngs(2) if rngs is None else rngs
        options_ = {"width": width, "parameterization": parameterization, **image, **options}
        return DagNet(dag, channels if len(shapes) > 1 else channels[0], 3, rngs=rngs, **options_)

    return dag, inputs if len(inputs) > 1 else inputs[0], build


PHI = {
    None: lambda x: x,
    "relu": relu,
    "erf": scipy.special.erf,
    "sin": np.sin,
    "gelu": lambda x: x * scipy.special.ndtr(x),
}


def patches(x, window, strides, padding):
    """Returns the pixels of each window, (windows, N, pixels of a window, C), and the number of windows per axis."""
    if padding == "SAME":
        pads = []
        for size, of, step in zip(x.shape[1:-1], window, strides, strict=True):
            total = max((math.ceil(size / step) - 1) * step + of - size, 0)
            pads.append((total // 2, total - total // 2))
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
    starts = [range(0, n - of + 1, step) for n, of, step in zip(x.shape[1:-1], window, strides, strict=True)]
    shown = [x[(slice(None), *map(slice, at, np.add(at, window)))] for at in itertools.product(*starts)]
    return np.array(shown).reshape(len(shown), len(x), -1, x.shape[-1]), [len(s) for s in starts]


def drawn(layer, op, parameterization):
    """Returns W and b, computed from the trained parameters."""
    weights = np.asarray(layer.linear.kernel[...], np.float64)
    biases = 0.0 if op.b_std is None else np.asarray(layer.linear.bias[...], np.float64)
    if parameterization == "standard":
        return weights, biases
    return weights * op.w_std / weights[..., 0].size ** 0.5, biases * (op.b_std or 0)


def apply(op, layer, x, parameterization):
    if isinstance(op, (AvgPool, SumPool)):
        shown, pixels = patches(x, op.window_shape, op.strides, op.padding)
        inside, _ = patches(np.ones((1, *x.shape[1:-1], 1)), op.window_shape, op.strides, op.padding)
        value = shown.sum(2)
        if isinstance(op, AvgPool):
            value = value / (inside.sum(2) if op.normalize_edges else math.prod(op.window_shape))
        return np.moveaxis(value, 0, 1).reshape(len(x), *pixels, -1)
    if not isinstance(op, Dense):
        return x * (op.factor if isinstance(op, Scale) else 1)
    weights, biases = drawn(layer, op, parameterization)
    if op.layer_norm:
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    if op.order == "act-linear":
        x = PHI[op.activation](x)
    if isinstance(op, Conv):
        shown, pixels = patches(x, op.filter_shape, op.strides, op.padding)
        weights = weights.reshape(-1, *weights.shape[-2:])
        x = np.einsum("pnkc,kcd->npd", shown, weights).reshape(len(x), *pixels, -1)
    else:
        x = np.einsum("...c,cd->...d", x, weights)
    return PHI[op.activation if op.order == "linear-act" else None](x + biases)


@pytest.mark.parametrize("normalize_edges", [True, False])
def test_windows_over_the_edge_divide_by_the_pixels_inside_or_by_all(normalize_edges):
    op = AvgPool((3, 2), strides=(2, 1), normalize_edges=normalize_edges)
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)
    expected = apply(op, None, x.astype(np.float64), "ntk")
    np.testing.assert_allclose(without_weights(op, jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def forward(name, model, parameterization):
    """Returns the last nodes and the outputs, in float64."""
    dag, x, _ = case(name)
    options = CASES[name][2]
    plain = {k: options[k] for k in ("activation", "order", "w_std", "b_std") if k in options}
    default = options.get("layer", Dense(**plain))
    layers = iter(model.edges)
    edges = [(edge, next(layers) if edge.weighted else None) for edge in dag.live_edges]
    stem = options.get("stem")
    if stem is None:
        linear = {"w_std": default.w_std, "b_std": default.b_std}
        linear["activation"] = default.activation if default.order == "linear-act" else None
        shape = ("filter_shape", "strides", "padding")
        linear |= {k: getattr(default, k) for k in shape if isinstance(default, Conv)}
        stem = type(default)(**linear)

    @functools.cache
    def node(t):
        if t < dag.num_inputs:
            values = x if isinstance(x, list) else [x]
            return apply(stem, model.stems[t], values[t].astype(np.float64), parameterization)
        terms = [
            apply(default if e.op is Op.WEIGHTED else e.op, layer, node(e.source), parameterization)
            for e, layer in edges
            if e.target == t
        ]
        scale = {"sum": 1, "scaled-sum": len(terms) ** 0.5, "mean": len(terms)}[options.get("aggregation", "sum")]
        return sum(terms) / scale

    readout, outputs = Dense(activation=None, w_std=default.w_std, b_std=default.b_std), []
    for t, layer in zip(dag.outputs, model.readouts, strict=True):
        last = PHI[default.activation](node(t)) if default.order == "act-linear" else node(t)
        if options.get("image_readout") == "global-average":
            last = last.reshape(len(last), -1, last.shape[-1]).mean(1)
        outputs.append(apply(readout, layer, last.reshape(len(last), -1), parameterization))
    return [node(t) for t in dag.outputs], outputs


def listed(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.sample(3)
@pytest.mark.parametrize("parameterization", ["ntk", pytest.param("standard", marks=pytest.mark.nightly)])
@each_case
def test_every_kind_of_network_against_a_numpy_forward_pass(name, parameterization):
    _, x, build = case(name)
    model = build(parameterization)
    features, outputs = forward(name, model, parameterization)
    for results, expected in ((model.features(x), features), (model(x), outputs)):
        for result, value in zip(listed(results), expected, strict=True):
            assert result.dtype == jnp.float32
            np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_mixed_operations_unrolled_by_hand():
    model = case("mixed mean")[2]("standard")
    stem, sine, erf, gelu, plain, readout = (
        (np.asarray(layer.linear.kernel[...]), 0 if layer.linear.bias is None else np.asarray(layer.linear.bias[...]))
        for layer in (model.stem, *model.edges, model.readout)
    )

    def normed(x):
        return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)

    x0 = X @ stem[0] + stem[1]
    x1 = (np.sin(x0) @ sine[0] + sine[1] - 0.5 * x0) / 2
    x2 = (scipy.special.erf(normed(x1) @ erf[0] + erf[1]) + x0) / 2
    x3 = (PHI["gelu"](normed(x1)) @ gelu[0] + relu(x2 @ plain[0]) + 2 * x0) / 3
    np.testing.assert_allclose(model(X), x3 @ readout[0], rtol=1e-4, atol=1e-5)


@pytest.mark.sample(3)
@each_case
def test_parameterizations_describe_the_same_function(name):
    _, x, build = case(name)
    ntk, standard = build("ntk"), build("standard")
    for a, b in zip(
        [*ntk.stems, *ntk.edges, *ntk.readouts], [*standard.stems, *standard.edges, *standard.readouts], strict=True
    ):
        kernel, bias = drawn(a, a.op, "ntk")
        # The draws are the same, but scaled.
        np.testing.assert_allclose(b.linear.kernel[...], kernel, rtol=1e-5, atol=1e-7)
        if a.op.b_std is not None:
            np.testing.assert_allclose(b.linear.bias[...], bias, rtol=1e-5, atol=1e-7)
    for first, second in zip(listed(ntk(x)), listed(standard(x)), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.sample(3)
@each_case
def test_gradients_reach_every_parameter_of_the_pure_functions_which_equal_the_module(name):
    _, x, build = case(name)
    init, apply = as_functions(lambda rngs: build(rngs=rngs))
    key = jax.random.key(3)
    params = init(key)

    @jax.jit
    def loss(params, x):
        outputs = apply(params, x)
        return sum(jnp.sum(output**2) for output in listed(outputs)), outputs

    gradient, outputs = jax.jit(jax.grad(loss, has_aux=True))(params, x)
    model = build(rngs=nnx.Rngs(params=key))
    for result, expected in zip(listed(outputs), listed(model(x)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    layers = [*model.stems, *model.edges, *model.readouts]
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == len(layers) + sum(layer.op.b_std is not None for layer in layers)
    assert all(np.any(np.asarray(leaf) != 0) and np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize("op", [Dense(w_std=1.3, b_std=0.7), Conv(filter_shape=(3, 2), w_std=1.3, b_std=0.7)])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_initial_weights_and_biases(op, parameterization):
    layer = WeightedLayer(op, 4, 20_000, parameterization, rngs=nnx.Rngs(0))
    fan_in = 24 if isinstance(op, Conv) else 4
    stds = (1.0, 1.0) if parameterization == "ntk" else (1.3 / fan_in**0.5, 0.7)
    # With 20,000 biases the standard deviation is known to 0.5 %, and the mean to 0.7 % of it.
    for values, std in zip((layer.linear.kernel, layer.linear.bias), stds, strict=True):
        assert values is not None
        assert np.std(values[...]) == pytest.approx(std, rel=0.02)
        assert np.mean(values[...]) == pytest.approx(0, abs=0.03 * std)


def test_a_step_keeps_nine_tenths_of_the_running_statistics():
    layer = WeightedLayer(Dense(activation=None), 6, 3, "ntk", batch_norm=True, rngs=nnx.Rngs(0))
    y = np.asarray(layer.w_scale * X @ np.asarray(layer.linear.kernel[...]), float)
    layer(jnp.asarray(X))
    assert isinstance(layer.norm, nnx.BatchNorm)
    assert layer.norm.mean is not None
    assert layer.norm.var is not None
    np.testing.assert_allclose(layer.norm.mean[...], 0.1 * y.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.norm.var[...], 0.9 + 0.1 * y.var(axis=0), rtol=1e-5)


def test_draws_come_from_the_stream_in_the_order_stems_edges_readouts():
    model, rngs = net("2_21_112"), nnx.Rngs(0)
    for layer in (model.stem, *model.edges, model.readout):
        expected = jax.random.normal(rngs.params(), layer.linear.kernel.shape)
        np.testing.assert_array_equal(layer.linear.kernel[...], expected)


@pytest.mark.sample(1)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_biases_of_standard_deviation_0_start_at_0_and_only_standard_trains_them(parameterization):
    model = DagNet(Dag.from_code("2"), 6, 1, width=8, b_std=0.0, parameterization=parameterization, rngs=nnx.Rngs(0))
    without = DagNet(Dag.from_code("2"), 6, 1, width=8, parameterization=parameterization, rngs=nnx.Rngs(0))
    for a, b in zip(
        (model.stem, *model.edges, model.readout), (without.stem, *without.edges, without.readout), strict=True
    ):
        assert b.linear.bias is None
        b.linear.kernel = nnx.Param(a.linear.kernel[...])
    np.testing.assert_allclose(model(X), without(X), rtol=1e-6)
    gradient = nnx.grad(lambda model: model(X).sum())(model)
    assert np.all(gradient["readouts"][0]["linear"]["bias"][...] == (4 if parameterization == "standard" else 0))


def test_one_array_serves_all_inputs():
    model = DagNet(TWO_INPUTS, 6, 2, width=8, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(model(X), model((X, X)))
    assert not np.allclose(model(X), model([X, X[::-1]]))


def test_vectors_may_have_any_shape_and_integers_count_as_floats():
    model = net()
    integers = np.arange(24).reshape(4, 2, 3)
    np.testing.assert_array_equal(model(integers), model(integers.reshape(4, 6).astype(np.float32)))
    images = case("convolutions")[2]()
    integers = np.arange(200).reshape(4, 5, 5, 2).astype(np.uint8)
    np.testing.assert_array_equal(images(integers), images(integers.astype(np.float32)))


@pytest.mark.nightly
def test_float64_is_kept():
    _, x, build = case("strides and pooling")
    with jax.enable_x64(True):
        model = build()
        result: Any = model(np.asarray(x, np.float64))
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, forward("strides and pooling", model, "ntk")[1][0], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("plain", {"out_features": 0}, "Expected `out_features` to be a whole number, at least 1, got 0"),
        ("two inputs", {"in_features": (6, 0)}, "Expected `in_features` to be a whole number, at least 1, got 0"),
        (
            "two inputs",
            {"in_features": (6,)},
            r"Expected `in_features` to hold 2 numbers, one per input node, got \(6,\)",
        ),
        ("plain", {"image_shape": (5, 5)}, r"Expected no `image_shape` without convolutions and pooling, got \(5, 5\)"),
        ("convolutions", {}, r"Expected `image_shape` for convolutions and pooling, got None; pass \(height, width\)"),
        ("convolutions", {"image_shape": (0, 5)}, "Expected `image_shape` to hold one positive whole number"),
        (
            "plain",
            {"image_readout": "max"},
            "Expected `image_readout` to be one of 'flatten', 'global-average', got 'max'",
        ),
        ("plain", {"aggregation": "max"}, "Expected `aggregation` to be one of"),
        ("plain", {"activation": "rely"}, "Expected `activation` to be one of .*, got 'rely'"),
        ("plain", {"layer": Dense(), "b_std": 0.1}, "Expected either `layer` or `activation`"),
    ],
)
def test_bad_options(name, options, match):
    given = (
        {k: v for k, v in CASES[name][2].items() if k not in options} | {"in_features": 6, "out_features": 3} | options
    )
    with pytest.raises(InputError, match=match):
        DagNet(case(name)[0], width=8, rngs=nnx.Rngs(0), **given)


def test_operations_that_do_not_fit_the_image():
    options = {"layer": CONV, "width": 8, "rngs": nnx.Rngs(0)}
    with pytest.raises(GraphError, match="Expected images with 2 spatial axes for the stem, got 1"):
        DagNet(Dag.from_code("2"), 3, 1, image_shape=(5,), **options)


@pytest.mark.parametrize(
    ("name", "x", "match"),
    [
        ("plain", X[:, :5], r"Expected `x` to have shape \(N, 6\), got \(4, 5\)"),
        ("plain", X[0], r"Expected `x` to have shape \(N, 6\), got \(6,\)"),
        ("plain", np.float32(1), r"Expected `x` to have shape \(N, 6\), got \(\)"),
        ("plain", [X, X], "Expected `x` to list 1 arrays, one per input node, got 2"),
        ("two inputs", [X, X], r"Expected `x\[1\]` to have shape \(N, 4\), got \(4, 6\)"),
        ("two inputs", [X, X[:2, :4]], r"Expected all arrays of `x` to hold equally many inputs, got \[4, 2\]"),
        ("convolutions", np.ones((4, 5, 4, 2)), r"Expected `x` to have shape \(N, 5, 5, 2\), got \(4, 5, 4, 2\)"),
    ],
)
def test_bad_inputs(name, x, match):
    model = case(name)[2]()
    for call in (model, model.features):
        with pytest.raises(InputError, match=match):
            call(x)


def test_an_operation_on_pixels_without_a_rule_is_refused_by_kernels_and_networks(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Mirror(EdgeOperation):
        mixes_pixels = True
        window = Window((1, 1), (1, 1), "SAME")

        def describe(self):
            return "mirror"

    monkeypatch.delitem(EdgeOperation.known, name_of_class(Mirror))
    network = nd.Network([(0, 1, Mirror()), (1, 2, "weighted")], Conv(filter_shape=(2, 2)))
    images = np.ones((2, 3, 3, 1), np.float32)
    with pytest.raises(InputError, match="Expected an operation on pixels with a rule for kernels, got"):
        nd.kernel(network, images)
    with pytest.raises(InputError, match="Expected an operation on pixels with a rule for networks, got"):
        DagNet(network, 1, 1, image_shape=(3, 3), rngs=nnx.Rngs(0))(images)
    with pytest.raises(InputError, match="Expected an operation on pixels with a rule for stax, got"):
        nd.stax.DagLayer(network)
