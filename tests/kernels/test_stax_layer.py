from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from oracles import ORDERS

import nngp_dag as nd
from nngp_dag import AvgPool, Conv, Dag, Dense, Edge, Op, Scale, SumPool
from nngp_dag.errors import GraphError, InputError
from nngp_dag.kernels.neural_tangents import neural_tangents as nt
from nngp_dag.kernels.neural_tangents import stax
from nngp_dag.nets import DagNet
from nngp_dag.stax import DagLayer

X = np.random.default_rng(0).normal(size=(5, 7))
Z = np.random.default_rng(1).normal(size=(3, 7))
IMAGES = np.random.default_rng(2).normal(size=(3, 6, 5, 2))
MORE_IMAGES = np.random.default_rng(3).normal(size=(2, 6, 5, 2))
HE = 2**0.5
BOTH = ("nngp", "ntk")
PARAMETERIZATIONS = ("ntk", "standard")
ANY_FAN_IN_WARNS = pytest.mark.filterwarnings("ignore:`FanIn` layers assume independent inputs:UserWarning")


@pytest.fixture(autouse=True)
def _as_neural_tangents_wants_it():
    # neural-tangents relies on rank promotion.
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        yield


def with_readout(dag, order, width=64):
    tail = [stax.Dense(1, W_std=HE)] if order == "linear-act" else [stax.Relu(), stax.Dense(1, W_std=HE)]
    return stax.serial(nd.stax.DagLayer(dag, width=width, order=order), *tail)


def relative(value, reference):
    return np.abs(np.asarray(value) / np.asarray(reference) - 1).max()


def assert_same(kernels, reference, tolerance):
    """Asserts that NNGP and NTK agree, relative to the largest entry."""
    for get in BOTH:
        value, expected = np.asarray(getattr(kernels, get)), np.asarray(getattr(reference, get))
        assert value.shape == expected.shape
        assert np.abs(value - expected).max() < tolerance * np.abs(expected).max(), get


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
POOLED = [
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
ACT_CONV = Conv(filter_shape=(3, 2), activation="erf", order="act-linear", b_std=0.3)
WEIGHTED, SKIP = Op.WEIGHTED, Op.SKIP
TWO_INPUTS = Dag(
    4,
    tuple(Edge(*edge) for edge in [(0, 2, WEIGHTED), (1, 2, WEIGHTED), (1, 2, SKIP), (2, 3, WEIGHTED), (0, 3, SKIP)]),
    num_inputs=2,
)
TWO_OUTPUTS = Dag(3, (Edge(0, 1, WEIGHTED), Edge(1, 2, WEIGHTED), Edge(0, 2, SKIP)), outputs=(2, 1))
LINES = Dag.from_edges([(0, 1, Conv(filter_shape=(3,), strides=(2,))), (0, 1, AvgPool((3,), strides=(2,)))])
STRIDED = Conv(filter_shape=(2, 3), strides=(2, 1), padding="VALID")
# (graph, shapes of inputs without N, options), which together have every operation that a layer may have.
CASES = {
    "mixed": (MIXED, [(7,)], {"stem": Dense(activation=None, b_std=0.1)}),
    "scaled-sum": (MIXED, [(7,)], {"stem": Dense(activation=None), "aggregation": "scaled-sum"}),
    "cell": (CELL, [(7,)], {"aggregation": "mean"}),
    "act-linear": (CELL, [(7,)], {"order": "act-linear", "activation": "erf", "w_std": 1.1, "b_std": 0.2}),
    "linear": (CELL, [(7,)], {"activation": None, "b_std": 0.2}),
    "deep": (nd.zoo.chain(6), [(7,)], {"activation": "gelu", "b_std": 0.2}),
    "two inputs": (TWO_INPUTS, [(7,), (4,)], {"b_std": 0.2}),
    "two outputs": (TWO_OUTPUTS, [(7,)], {"order": "act-linear"}),
    "convolutions": (CELL, [(6, 5, 2)], {"layer": CONV}),
    "averaged": (Dag.from_code("2_12"), [(6, 5, 2)], {"layer": ACT_CONV, "image_readout": "global-average"}),
    "pooled": (Dag.from_edges(POOLED), [(6, 5, 2)], {"stem": Dense(activation="relu")}),
    "strided stem": (Dag.from_edges(POOLED[3:]), [(5, 6, 2)], {"layer": STRIDED, "image_readout": "global-average"}),
    "lines": (LINES, [(7, 2)], {}),
    "images of two inputs": (TWO_INPUTS, [(4, 3, 1), (4, 3, 2)], {"layer": CONV}),
}
# Cases of the default run. The others, which compile for as long again, are nightly.
QUICK = {"mixed"}


def cases(quick):
    return [pytest.param(name, id=name, marks=() if name in quick else pytest.mark.nightly) for name in CASES]


def case(name):
    """Returns the graph, two sets of inputs, the options of the layer, and the readout of pixels."""
    dag, shapes, options = CASES[name]
    options = dict(options)
    pixels = options.pop("image_readout", "flatten")
    rng = np.random.default_rng(4)
    sets = [[rng.normal(size=(n, *shape)) for shape in shapes] for n in (4, 3)]
    return dag, *(of if len(of) > 1 else of[0] for of in sets), options, pixels


def reads_pixels(pixels):
    return stax.Flatten() if pixels == "flatten" else stax.GlobalAvgPool()


def listed(value):
    return value if isinstance(value, list) else [value]


# The kernel


@pytest.mark.slow
@pytest.mark.parametrize("code", ["2_21_112", pytest.param("0_22_012", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("order", [ORDERS[0], pytest.param(ORDERS[1], marks=pytest.mark.nightly)])
def test_layer_and_readout_give_the_kernel(order, code):
    dag = Dag.from_code(code)
    _, _, kernel_fn = with_readout(dag, order)
    for z, diagonal_batch in ((None, None), (None, False), (Z, None), (Z, False)):
        # The layers of neural-tangents after ours lose half of the digits on the diagonal of the NTK.
        tolerance = 1e-12 if order == "linear-act" else 1e-8
        k, layer = nd.kernel(dag, X, z, order=order), kernel_fn(X, z, None, diagonal_batch=diagonal_batch)
        assert relative(layer.nngp, k.nngp) < 1e-12
        assert relative(layer.ntk, k.ntk) < tolerance
        variance = np.diag(nd.kernel(dag, X, order=order).nngp)
        assert relative(layer.cov1 if diagonal_batch is None else np.diag(layer.cov1), variance) < 1e-12


@pytest.mark.nightly
@pytest.mark.parametrize("name", cases(QUICK))
def test_layer_gives_the_kernel_without_readout(name):
    dag, x, z, options, pixels = case(name)
    for parameterization in PARAMETERIZATIONS[len(name) % 2 :] if name in QUICK else PARAMETERIZATIONS:
        described: dict[str, Any] = options | {"parameterization": parameterization}
        expected = nd.kernel(dag, x, z, **described, readout=False, image_readout=pixels, width=16)
        values = DagLayer(dag, width=16, **described)[2](x, z)
        if x[0].ndim > 1:
            values = [reads_pixels(pixels)[2](k) for k in listed(values)]
        for value, reference in zip(listed(values), listed(expected), strict=True):
            # The layer gets the kernel of its inputs only, in which angles near 0 have half of their digits.
            assert_same(value, reference, 1e-10)


@pytest.mark.nightly
def test_what_to_get():
    dag, x, z, options, _ = case("mixed")
    _, _, kernel_fn = DagLayer(dag, width=16, **options)
    k = nd.kernel(dag, x, z, **options, readout=False)
    own = nd.kernel(dag, x, **options, readout=False, get="nngp").nngp
    assert relative(kernel_fn(x, z, "nngp"), k.nngp) < 1e-10
    assert kernel_fn(x, z, ("ntk", "nngp"))._fields == ("ntk", "nngp")
    assert kernel_fn(x, z, ("nngp", "cov1")).cov1.shape == (4,)
    whole = kernel_fn(x, None, None, diagonal_batch=False)
    assert relative(whole.cov1, own) < 1e-10
    assert whole.cov2 is None
    assert relative(whole.nngp, own) < 1e-10
    marginals = kernel_fn(x, z, ("cov1", "cov2"))
    assert relative(marginals.cov1, np.diag(own)) < 1e-10
    assert marginals.cov2.shape == (3,)
    assert kernel_fn(x, z, "shape1") == (4, 16)
    jitted = jax.jit(lambda x, z: kernel_fn(x, z, BOTH))(x, z)
    assert_same(jitted, k, 1e-10)
    assert kernel_fn(np.asarray(x, np.float32), None, "ntk").dtype == np.float64  # as neural-tangents does with x64


# neural-tangents, where it is exact

PHIS = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu, "sin": stax.Sin}


def in_stax(ops, width, parameterization):
    """Returns a chain of operations in layers of stax."""
    layers = []
    for op in ops:
        if isinstance(op, AvgPool):
            layers.append(stax.AvgPool(op.window_shape, op.strides, op.padding, normalize_edges=op.normalize_edges))
            continue
        options = {"W_std": op.w_std, "b_std": op.b_std, "parameterization": parameterization}
        linear = stax.Dense(width, **options)
        if isinstance(op, Conv):
            linear = stax.Conv(width, op.filter_shape, op.strides, op.padding, **options)
        pair = [linear] if op.activation is None else [linear, PHIS[op.activation]()]
        layers += [stax.LayerNorm()] * op.layer_norm + (pair[::-1] if op.order == "act-linear" else pair)
    return layers


LINEAR_CONV = Conv(filter_shape=(3, 2), activation=None, b_std=0.1)
NORMED = Conv(filter_shape=(2, 3), activation="erf", order="act-linear", strides=(1, 2), layer_norm=True, b_std=0.3)
CHAINS = {
    "dense": ([Dense(activation="erf", b_std=0.3), Dense(activation="gelu", w_std=1.1), Dense(activation="sin")], None),
    "normalized": ([Dense(activation=None), Dense(order="act-linear", layer_norm=True, b_std=0.2)], None),
    "flattened": (
        [
            Conv(filter_shape=(3, 2), strides=(2, 1), activation="erf", b_std=0.4),
            Conv(filter_shape=(2, 3), padding="VALID", b_std=0.1),
        ],
        "flatten",
    ),
    "averaged": ([Conv(filter_shape=(3, 2)), Conv(filter_shape=(2, 3), strides=(2, 1))], "global-average"),
    "pooled": (
        [LINEAR_CONV, AvgPool((2, 3), strides=(1, 2), normalize_edges=True), NORMED, AvgPool((2, 2), padding="VALID")],
        "global-average",
    ),
    "pooled, flattened": ([LINEAR_CONV, AvgPool((3, 2), strides=(2, 1)), Dense(b_std=0.1)], "flatten"),
}


FIRST_CHAINS = {("dense", "standard")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameterization"),
    [
        pytest.param(name, of, marks=() if (name, of) in FIRST_CHAINS else pytest.mark.nightly)
        for name in CHAINS
        for of in PARAMETERIZATIONS
    ],
)
def test_chains_of_operations_equal_plain_stax(name, parameterization):
    # Both parameterizations, with the widths of the finite network, on which only the NTK of "standard" depends.
    ops, pixels = CHAINS[name]
    x, z = (X, Z) if pixels is None else (IMAGES, MORE_IMAGES)
    dag = Dag.from_edges([(t, t + 1, op) for t, op in enumerate(ops[1:])])
    layer = DagLayer(dag, width=16, stem=ops[0], parameterization=parameterization)
    after = [] if pixels is None else [reads_pixels(pixels)]
    after.append(stax.Dense(2, 1.2, 0.3, parameterization=parameterization))
    composed = stax.serial(layer, *after)[2](x, z, BOTH)
    assert_same(composed, stax.serial(*in_stax(ops, 16, parameterization), *after)[2](x, z, BOTH), 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 4])
def test_relu_chains_equal_plain_stax(layers):
    chain = [stax.Dense(1, W_std=HE), stax.Relu()] * (layers + 1)
    plain = stax.serial(*chain, stax.Dense(1, W_std=HE))[2](X, Z, BOTH)
    for order in ORDERS:  # a chain is the same network in both orders
        layer = with_readout(nd.zoo.chain(layers), order)[2](X, Z, BOTH)
        k = nd.kernel(nd.zoo.chain(layers), X, Z, order=order)
        for get in BOTH:
            assert relative(getattr(layer, get), getattr(plain, get)) < 1e-6
            assert relative(getattr(k, get), getattr(plain, get)) < 1e-6


@pytest.mark.nightly
def test_convolutions_before_and_after_turn_kernels_around():
    # stax leaves the spatial axes of a kernel in reverse after every convolution.
    before = [stax.Conv(16, (3, 2), b_std=0.1), stax.Relu()]
    after = [stax.Conv(16, (2, 3), (2, 1)), stax.Erf(), stax.AvgPool((2, 1)), stax.Flatten(), stax.Dense(1)]
    ops = [LINEAR_CONV, AvgPool((1, 2), padding="VALID"), ACT_CONV]
    dag = Dag.from_edges([(0, 1, ops[1]), (1, 2, ops[2])])
    kernel_fn = stax.serial(*before, DagLayer(dag, width=16, stem=ops[0]), *after)[2]
    plain = stax.serial(*before, *in_stax(ops, 16, "ntk"), *after)[2](IMAGES, MORE_IMAGES, BOTH)
    assert_same(kernel_fn(IMAGES, MORE_IMAGES, BOTH), plain, 1e-7)
    reversed_kernel = before[0][2](IMAGES)
    assert reversed_kernel.is_reversed
    assert not DagLayer(dag, width=16, stem=ops[0])[2](reversed_kernel).is_reversed


@pytest.mark.nightly
def test_only_the_diagonal_of_pixels_is_kept_where_the_graph_permits():
    seen = []

    def look(k, **kwargs):
        seen.append(k)
        return k

    looker = (*stax.Identity()[:2], look)
    convolutions, pools = DagLayer(Dag.from_code("2"), width=8, layer=CONV), DagLayer(Dag.from_edges(POOLED), width=8)
    for layer, readout, diagonal in (
        (convolutions, stax.Flatten(), True),
        (convolutions, stax.GlobalAvgPool(), False),
        (pools, stax.Flatten(), False),
    ):
        out = stax.serial(layer, looker, readout)[2](IMAGES, None, None)
        assert seen[-1].diagonal_spatial is diagonal
        # 3 x 3 inputs, two spatial axes.
        assert seen[-1].nngp.ndim == seen[-1].ntk.ndim == (4 if diagonal else 6)
        assert out.nngp.shape == (3, 3)
    with pytest.raises(ValueError, match="diagonal_spatial == True"):
        pools[2](IMAGES, None, "nngp", diagonal_spatial=True)


def stax_graph(dag, order):
    """Returns the graph in nested stax (FanOut, parallel, FanInSum), as users write it; None if stax refuses it."""
    weighted = (
        [stax.Dense(1, W_std=HE), stax.Relu()] if order == "linear-act" else [stax.Relu(), stax.Dense(1, W_std=HE)]
    )

    def into(node):
        if node == 0:
            return [stax.Dense(1, W_std=HE), stax.Relu()] if order == "linear-act" else [stax.Dense(1, W_std=HE)]
        branches = [
            stax.serial(*into(e.source), *(weighted if e.op is nd.Op.WEIGHTED else [stax.Identity()]))
            for e in dag.edges
            if e.target == node
        ]
        if len(branches) == 1:
            return branches
        return [stax.FanOut(len(branches)), stax.parallel(*branches), stax.FanInSum()]

    tail = [stax.Dense(1, W_std=HE)] if order == "linear-act" else [stax.Relu(), stax.Dense(1, W_std=HE)]
    return stax.serial(*into(dag.num_nodes - 1), *tail)[2]


@ANY_FAN_IN_WARNS
@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("code", ["2_22", "1_02_002", "2_02_202", "0_22_012"])
def test_act_linear_graphs_without_shared_branches_equal_plain_stax(code):
    # Branches part at node 0 and never share a skip, so that they are independent, as FanInSum assumes.
    dag = Dag.from_edges([(e.source, e.target, e.op) for e in Dag.from_code(code).live_edges])
    k = nd.kernel(dag, X, Z, order="act-linear")
    plain = stax_graph(dag, "act-linear")(X, Z, BOTH)
    layer = with_readout(dag, "act-linear")[2](X, Z, BOTH)
    for get in BOTH:
        assert relative(getattr(k, get), getattr(plain, get)) < 1e-6
        assert relative(getattr(layer, get), getattr(plain, get)) < 1e-6


@pytest.mark.slow
@ANY_FAN_IN_WARNS
def test_how_far_stax_is_off_where_skips_share_an_ancestor():
    # X1 = X0 + f(X0), X2 = X0 + X1 = 2 X0 + f(X0): the variance at node 2 is 4 q + q, FanInSum adds q + (q + q).
    dag = Dag.from_edges([(0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 2, 1)])
    exact = np.diag(nd.kernel(dag, X, order="act-linear").nngp)
    wrong = np.diag(stax_graph(dag, "act-linear")(X, None, "nngp"))
    np.testing.assert_allclose(exact / wrong, 5 / 3, rtol=1e-6)


@ANY_FAN_IN_WARNS
def test_stax_refuses_sums_of_activated_branches():
    with pytest.raises(NotImplementedError):
        stax_graph(Dag.from_code("2_12"), "linear-act")(X, Z, "nngp")


# Nesting


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.slow
def test_layer_composes_with_layers_before_and_after(order):
    before = [stax.Dense(1, W_std=1.3, b_std=0.4), stax.Relu()]
    chain = [stax.Dense(1, W_std=HE), stax.Relu()] * 3
    after = [stax.Dense(1, W_std=1.1, b_std=0.2), stax.Relu(), stax.Dense(1)]
    layer = DagLayer(nd.zoo.chain(2), width=64, order=order)
    _, _, composed = stax.serial(*before, layer, *([] if order == "linear-act" else [stax.Relu()]), *after)
    _, _, plain = stax.serial(*before, *chain, *after)
    assert_same(composed(X, Z, BOTH), plain(X, Z, BOTH), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("order", [pytest.param(ORDERS[0], marks=pytest.mark.slow), ORDERS[1]])
def test_layers_in_a_row_are_one_graph(order):
    cell = Dag.from_code("2_12")
    # The second layer's stem is a weighted edge: with the order "act-linear" the activation comes before it.
    between = [] if order == "linear-act" else [stax.Relu()]
    row = stax.serial(DagLayer(cell, width=16, order=order), *between, DagLayer(cell, width=16, order=order))[2](
        X, Z, BOTH
    )
    whole = Dag.from_edges([(0, "a", cell), ("a", "b", "weighted"), ("b", "out", cell)])
    assert_same(row, nd.kernel(whole, X, Z, order=order, readout=False), 1e-7)


@pytest.mark.slow
def test_a_graph_on_an_edge_is_that_graph_in_its_place():
    inner = Dag.from_code("2_12")
    nested = Dag.from_edges([(0, 1, inner), (0, 1, "skip"), (1, 2, "weighted")])
    flat = Dag.from_edges([(0, "m", 2), (0, 1, 1), ("m", 1, 2), (0, 1, 1), (1, 2, 2)])
    reference = DagLayer(flat, width=16)[2](X, Z, BOTH)
    assert_same(DagLayer(nested, width=16)[2](X, Z, BOTH), reference, 1e-12)
    assert_same(reference, nd.kernel(flat, X, Z, readout=False), 1e-12)


@pytest.mark.nightly
def test_repeat():
    layer = DagLayer(CELL, width=7, activation="erf", b_std=0.1)
    repeated, row = stax.repeat(layer, 2), stax.serial(layer, layer)
    assert_same(repeated[2](X, Z, BOTH), row[2](X, Z, BOTH), 1e-12)
    shape, params = repeated[0](jax.random.key(0), X.shape)
    assert shape == X.shape
    each = [jax.tree.map(lambda v, i=i: v[i], params) for i in range(2)]
    np.testing.assert_allclose(repeated[1](params, X), row[1](each, X), rtol=1e-10)


@pytest.mark.slow
@ANY_FAN_IN_WARNS
def test_parallel_branches():
    dags, orders = [Dag.from_code("2"), CELL], ["act-linear", "linear-act"]
    kernels = [nd.kernel(dag, X, Z, order=order) for dag, order in zip(dags, orders, strict=True)]
    branches = [with_readout(dag, order) for dag, order in zip(dags, orders, strict=True)]
    for fan_in, weight in ((stax.FanInSum(), 1.0), (stax.FanInConcat(), 0.5)):
        value = stax.serial(stax.FanOut(2), stax.parallel(*branches), fan_in)[2](X, Z, BOTH)
        assert_same(value, jax.tree.map(lambda *k, weight=weight: weight * sum(k), *kernels), 1e-7)


@pytest.mark.nightly
@ANY_FAN_IN_WARNS
def test_several_inputs_and_outputs():
    # After FanOut both inputs have the same data. Each output has a readout of its own, and the results are summed.
    k = nd.kernel(TWO_INPUTS, X, Z)
    fanned = stax.serial(stax.FanOut(2), DagLayer(TWO_INPUTS, width=16), stax.Dense(1, W_std=HE))
    assert_same(fanned[2](X, Z, BOTH), k, 1e-12)
    shape, params = fanned[0](jax.random.key(0), X.shape)
    assert shape == fanned[1](params, X).shape == (5, 1)
    readouts = stax.parallel(stax.Dense(1, W_std=HE), stax.Dense(1, W_std=HE))
    summed = stax.serial(DagLayer(TWO_OUTPUTS, width=16), readouts, stax.FanInSum())
    assert_same(summed[2](X, Z, BOTH), jax.tree.map(lambda *k: sum(k), *nd.kernel(TWO_OUTPUTS, X, Z)), 1e-12)
    _, params = summed[0](jax.random.key(0), X.shape)
    assert summed[1](params, X).shape == (5, 1)


@pytest.mark.nightly
def test_without_stem_what_comes_in_is_node_0():
    chain, residual = nd.zoo.chain(2), Dag.from_code("2_12")
    weighted = [stax.Relu(), stax.Dense(7, W_std=HE)]
    bare = DagLayer(chain, width=7, order="act-linear", has_stem=False)
    dense = stax.Dense(7, W_std=1.1, b_std=0.3)
    plain = stax.serial(dense, *weighted, *weighted)[2](X, Z, BOTH)
    assert_same(stax.serial(dense, bare)[2](X, Z, BOTH), plain, 1e-7)
    # The stem may also be a layer of its own.
    stem = stax.Dense(7, W_std=HE)
    for parameterization, in_front in (("ntk", stem), ("standard", stax.Dense(7, HE, parameterization="standard"))):
        options = {"order": "act-linear", "parameterization": parameterization}
        whole = DagLayer(residual, width=7, **options)[2](X, Z, BOTH)
        assert_same(
            stax.serial(in_front, DagLayer(residual, width=7, **options, has_stem=False))[2](X, Z, BOTH), whole, 1e-7
        )
    # A node may also hold raw data, if no activation follows and it is not added to a random field.
    raw = DagLayer(Dag.from_code("2_02"), width=16, has_stem=False)[2](X, Z, BOTH)
    assert_same(raw, stax.serial(*[stax.Dense(1, W_std=HE), stax.Relu()] * 2)[2](X, Z, BOTH), 1e-7)
    shape, params = DagLayer(chain, width=7, has_stem=False)[0](jax.random.key(0), X.shape)
    assert shape == X.shape
    assert len(params) == 2


@pytest.mark.nightly
def test_what_is_gaussian():
    for order in ORDERS:
        assert DagLayer(CELL, width=8, order=order)[2](X).is_gaussian is (order == "act-linear")
    outputs = DagLayer(Dag.from_edges([(0, 1, 2), (1, 2, Dense(activation=None))], output=[2, 1]), width=8)[2](X)
    assert [k.is_gaussian for k in outputs] == [True, False]
    with pytest.raises(ValueError, match="Gaussian"):
        stax.serial(DagLayer(Dag.from_code("2_12"), width=64), stax.Relu())[2](X, None, "nngp")


# The rest of neural-tangents


@pytest.mark.slow
def test_batches():
    # With two rows at once, the layer gets blocks off the diagonal, and does not know which inputs coincide.
    kernel_fn = with_readout(CELL, "linear-act")[2]
    batched = nt.batch(kernel_fn, batch_size=2)(X[:4], None, BOTH)
    assert_same(batched, kernel_fn(X[:4], None, BOTH), 1e-7)


@pytest.mark.nightly
def test_gradient_descent_ensemble_equals_the_closed_form():
    kernel_fn = with_readout(CELL, "linear-act")[2]
    y = np.random.default_rng(5).normal(size=(5, 1))
    options = {"diag_reg": 1e-2, "diag_reg_absolute_scale": True}
    predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, X, y, **options)
    posterior = predict(x_test=Z, get=BOTH, t=None, compute_cov=True)
    train, cross, test = nd.kernel(CELL, X), nd.kernel(CELL, Z, X), nd.kernel(CELL, Z)
    for get in BOTH:
        weights = np.linalg.solve(getattr(train, get) + 1e-2 * np.eye(5), np.asarray(getattr(cross, get)).T).T
        np.testing.assert_allclose(getattr(posterior, get).mean, weights @ y, rtol=1e-6)
        if get == "nngp":
            np.testing.assert_allclose(posterior.nngp.covariance, test.nngp - weights @ cross.nngp.T, rtol=1e-6)


def assert_samples_agree(layer, x, exact, get, draws):
    """Asserts two-sided agreement, by the standard error of the samples and a bias of 1 / width."""
    monte_carlo = nt.monte_carlo_kernel_fn(*layer[:2], jax.random.key(0), range(1, draws + 1))
    means = np.array([np.asarray(mean) for mean in monte_carlo(x, None, get)])
    # Each estimate is the mean of all samples up to it.
    sums = means * np.arange(1, draws + 1).reshape(-1, *[1] * (means.ndim - 1))
    samples = np.diff(sums, axis=0, prepend=0)
    error = samples.std(axis=0, ddof=1) / draws**0.5
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    for factor in (1, 0.95, 1.05):  # the latter two must fail
        agrees = np.abs(factor * means[-1] - exact) < 3 * error + 0.005 * scale
        assert agrees.all() == (factor == 1)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["mixed", pytest.param("pooled", marks=pytest.mark.nightly)])
def test_kernel_fn_describes_the_layers_own_finite_network(name):
    dag, x, _, options, _ = case(name)
    layer, draws = DagLayer(dag, width=256, **options), 160
    if name == "pooled":
        layer = stax.serial(layer, stax.Flatten())
    assert_samples_agree(layer, x, np.asarray(layer[2](x, None, "nngp")), "nngp", draws)


@pytest.mark.nightly
def test_kernel_fn_describes_the_tangents_of_the_layers_own_finite_network():
    dag, x, _, options, _ = case("mixed")
    layer = stax.serial(DagLayer(dag, width=256, **options), stax.Dense(1, W_std=HE))
    assert_samples_agree(layer, x, np.asarray(layer[2](x, None, "ntk")), "ntk", 160)


# The finite network


def give_weights(net, params):
    """Copies the parameters of a `DagLayer`, and of a readout if any, into a `DagNet`."""
    ops = [net.network.stem_op] * len(net.stems) + [edge.op for edge in net.network.edges]
    weighted = [drawn for drawn, op in zip(params, ops, strict=True) if isinstance(op, Dense)]
    for layer, drawn in zip([*net.stems, *net.edges], weighted, strict=True):
        place = layer.op.layer_norm + (layer.op.order == "act-linear")
        give_layer(layer, drawn[place])


def give_layer(layer, drawn):
    weights, biases = drawn if isinstance(drawn, tuple) else (drawn, None)
    assert layer.linear.kernel.shape == weights.shape
    layer.linear.kernel = nnx.Param(weights)
    assert (layer.linear.bias is None) == (biases is None)
    if biases is not None:
        layer.linear.bias = nnx.Param(biases.reshape(-1))


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["ntk", pytest.param("standard", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", cases(QUICK))
def test_finite_network_equals_the_flax_one_with_the_same_weights(name, parameterization):
    dag, x, _, options, pixels = case(name)
    options["parameterization"] = parameterization
    init_fn, apply_fn, _ = DagLayer(dag, width=8, **options)
    shapes = [v.shape for v in listed(x)]
    features, params = init_fn(jax.random.key(0), shapes if len(shapes) > 1 else shapes[0])
    image = shapes[0][1:-1] or None
    channels = [shape[-1] for shape in shapes]
    net = DagNet(dag, channels, 3, width=8, image_shape=image, image_readout=pixels, rngs=nnx.Rngs(0), **options)
    give_weights(net, params)
    values = listed(apply_fn(params, x))
    assert [value.shape for value in values] == listed(features)
    for value, expected in zip(values, listed(net.features(x)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
    if len(values) > 1:
        return
    linear = net.readout.op
    after = [reads_pixels(pixels)] if image else []
    after += [PHIS[net.network.layer.activation]()] if net.network.reads_out_activated else []
    if net.network.reads_out_activated:
        after.reverse()
    after.append(stax.Dense(3, linear.w_std, linear.b_std, parameterization=parameterization))
    init_readout, apply_readout, _ = stax.serial(*after)
    _, readout = init_readout(jax.random.key(1), values[0].shape)
    give_layer(net.readout, readout[-1])
    np.testing.assert_allclose(apply_readout(readout, values[0]), net(x), rtol=1e-10, atol=1e-12)


# Refusals


def test_bad_arguments():
    dag = Dag.from_code("2")
    with pytest.raises(InputError, match="Expected `width` to be a whole number, at least 1, got 0"):
        DagLayer(dag, width=0)
    with pytest.raises(InputError, match="Expected `order` to be one of"):
        DagLayer(dag, width=8, order="other")
    with pytest.raises(InputError, match="Expected `parameterization` to be one of 'ntk', 'standard', got 'mup'"):
        DagLayer(dag, width=8, parameterization="mup")
    with pytest.raises(InputError, match="Expected a graph with one input where there is no stem, got 2"):
        DagLayer(TWO_INPUTS, width=8, has_stem=False)


def everything_refuses(layer, inputs, error, match):
    init_fn, apply_fn, kernel_fn = layer
    shapes = [x.shape for x in inputs] if isinstance(inputs, list) else inputs.shape
    with pytest.raises(error, match=match):
        init_fn(jax.random.key(0), shapes)
    with pytest.raises(error, match=match):
        apply_fn((), inputs)
    with pytest.raises(error, match=match):
        kernel_fn(inputs, None, "nngp")


def test_bad_shapes():
    layer, images = DagLayer(Dag.from_code("2"), width=8), DagLayer(Dag.from_code("2"), width=8, layer=CONV)
    flatten = r"Expected the input .* shape \(N, d\), got \(3, 6, 5, 2\); put `stax.Flatten\(\)` before it"
    everything_refuses(layer, IMAGES, InputError, flatten)
    everything_refuses(images, X, InputError, r"Expected .* to be images \(N, \*pixels, channels\), got \(5, 7\)")
    everything_refuses(
        images, np.ones((2, 4, 1)), GraphError, "Expected images with 2 spatial axes for the stem, got 1"
    )


def test_bad_lists_of_inputs():
    two = DagLayer(TWO_INPUTS, width=8)
    for inputs in (X, [X], [X, X, X]):
        number = len(inputs) if isinstance(inputs, list) else 1
        everything_refuses(two, inputs, InputError, rf"Expected a list of 2 inputs.*FanOut\(2\)`, got {number}")
    everything_refuses(
        DagLayer(CELL, width=8), [X, X], InputError, "Expected one input, got 2; the graph has one input node"
    )
    everything_refuses(two, [X, X[:3]], InputError, r"differ in their channels only, got \[\(5, 7\), \(3, 7\)\]")
    with pytest.raises(InputError, match=r"differ in their channels only, got \[\(3, 7\), \(2, 7\)\]"):
        two[2]([X, X], [Z, Z[:2]], "nngp")


def test_shapes_that_do_not_meet():
    # Without a stem the inputs are added unchanged, and strides make images of different sizes.
    match = r"Expected all edges into node 2 to output one shape, got \(5, 7\) and \(5, 8\) from edge 1->2"
    with pytest.raises(GraphError, match=match):
        DagLayer(Dag.from_code("2_12"), width=8, has_stem=False)[0](jax.random.key(0), X.shape)
    strided = Dag.from_edges([(0, 1, Conv(filter_shape=(3, 3), strides=(2, 2))), (0, 1, "skip")])
    with pytest.raises(GraphError, match="Expected all edges into node 1 to output images of one shape"):
        DagLayer(strided, width=8, stem=Dense())[0](jax.random.key(0), IMAGES.shape)


def test_raw_inputs_are_not_gaussian():
    act_linear = DagLayer(Dag.from_code("2"), width=7, order="act-linear", has_stem=False)
    with pytest.raises(GraphError, match=r"Expected node 0 to be Gaussian, since edge 0->1.*the input in it"):
        act_linear[2](X, None, "nngp")
    linear_act = DagLayer(Dag.from_code("2_12"), width=7, has_stem=False)
    with pytest.raises(GraphError, match="Expected the input's mean to be known at node 2"):
        linear_act[2](X, None, "nngp")


def test_the_fan_in_of_the_standard_parameterization_is_the_width():
    kernel_fn = DagLayer(Dag.from_code("2"), width=16, parameterization="standard", has_stem=False)[2]
    assert kernel_fn(X, None, "nngp").shape == (5, 5)
    with pytest.raises(InputError, match=r"Expected an input of `width`, 16, channels for the NTK.*, got 7; put"):
        kernel_fn(X, None, "ntk")


def test_masks_are_refused():
    init_fn, apply_fn, kernel_fn = DagLayer(Dag.from_code("2"), width=8)
    with pytest.raises(InputError, match="Expected kernels without masks, got masked ones; `DagLayer` does not"):
        kernel_fn(X, None, "nngp", mask_constant=0.0)
    _, params = init_fn(jax.random.key(0), X.shape)
    with pytest.raises(InputError, match=r"Expected no `mask_constant`, got 0\.0; `DagLayer` does not"):
        apply_fn(params, X, mask_constant=0.0)


def test_other_axes_are_refused():
    layer = DagLayer(Dag.from_code("2"), width=8, layer=CONV)
    with pytest.raises(ValueError, match="requires `channel_axis == 3`"):
        stax.serial(stax.Dense(8, channel_axis=1), layer)[2](IMAGES, None, "nngp")


@pytest.mark.slow
def test_a_network_says_whether_there_is_a_stem():
    for layer in (DagLayer(nd.Network("2_12", has_stem=False)), DagLayer(nd.Network("2_12"), has_stem=False)):
        assert len(layer[0](jax.random.key(0), (5, 1024))[1]) == 3
    assert (
        len(DagLayer(nd.Network("2_12", has_stem=False), has_stem=True, width=7)[0](jax.random.key(0), (5, 7))[1]) == 4
    )


@pytest.mark.parametrize("options", [{"readout": True}, {"image_readout": "flatten"}])
def test_a_layer_has_no_readout(options):
    with pytest.raises(
        InputError, match=f"Expected no `{next(iter(options))}`, got one; a `DagLayer` ends with the last"
    ):
        DagLayer("2_12", **options)
