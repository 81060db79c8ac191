"""Exact kernels against finite networks: the flax model with a thousand draws or more."""

import functools
import importlib

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import ORDERS, dags, empirical_kernels, finite_kernels

import nngp_dag as nd
from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Edge, Op, Scale, SumPool
from nngp_dag.kernels import layer_rules
from nngp_dag.kernels.backends import chebyshev
from nngp_dag.nets import DagNet

evaluating = importlib.import_module("nngp_dag.kernels.choose")
X = np.random.default_rng(0).normal(size=(3, 6))
WIDTH, DRAWS = 128, 4096


def assert_agrees(samples, exact, power=0.05, width=WIDTH):
    """Asserts two-sided agreement within 4 standard errors plus the bias, which a factor of 1 + `power` would fail.

    The bias of these averages is of order 1/width; most entries have none.
    """
    exact = np.asarray(exact)
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    standard_error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5 / scale
    tolerance = 4 * standard_error + 1 / width
    assert (np.diag(tolerance) < power).all(), f"too few draws to see a factor of {1 + power}"
    deviation = np.abs(samples.mean(axis=0) - exact) / scale
    assert (deviation < tolerance).all(), f"off by {(deviation / tolerance).max():.2f} times the tolerance"


def check(dag, order, draws=1536):
    k = nd.kernel(dag, X, order=order)
    nngp, ntk = finite_kernels(dag, X.tobytes(), X.shape[1], order, WIDTH, draws, seed=1)
    assert_agrees(nngp, k.nngp)
    assert_agrees(ntk, k.ntk)


SIX_NODES = nd.Dag.from_code("2_12_112_2112_11112")
PARALLEL = nd.Dag.from_edges([(0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 2, 1), (1, 3, 2), (2, 3, 1), (2, 4, 2), (3, 4, 1)])


@settings(max_examples=1, deadline=None, derandomize=True)
@example(dag=SIX_NODES)
@example(dag=PARALLEL)
@given(dag=dags())
@pytest.mark.nightly
@pytest.mark.parametrize("order", ORDERS)
def test_random_dags(order, dag):
    check(dag, order)


@pytest.mark.nightly
@settings(max_examples=16, deadline=None, derandomize=True)
@given(dag=dags(min_nodes=4), order=st.sampled_from(ORDERS))
def test_many_random_dags(order, dag):
    check(dag, order)


@pytest.mark.parametrize("code", ["1_11", pytest.param("1_01_222", marks=pytest.mark.nightly)])
def test_the_check_is_two_sided_and_sees_five_per_cent(code):
    dag = nd.Dag.from_code(code)
    k = nd.kernel(dag, X)
    nngp, ntk = finite_kernels(dag, X.tobytes(), X.shape[1], "linear-act", WIDTH, DRAWS, seed=1)
    assert_agrees(nngp, k.nngp)
    assert_agrees(ntk, k.ntk)
    for factor in (1.05, 1 / 1.05):
        for samples, exact in ((nngp, k.nngp), (ntk, k.ntk)):
            with pytest.raises(AssertionError, match="off by"):
                assert_agrees(samples * factor, exact, power=0.06)


@pytest.mark.nightly
@pytest.mark.parametrize("by_series", [False, True])
def test_leaving_out_the_means_is_caught(monkeypatch, by_series):
    dag = nd.Dag.from_code("1_01_222")
    nngp, _ = finite_kernels(dag, X.tobytes(), X.shape[1], "linear-act", WIDTH, DRAWS, seed=1)
    # Compiled functions would neither see the change nor its end.
    jax.clear_caches()
    evaluating._series.cache_clear()
    if by_series:
        monkeypatch.setattr(chebyshev, "_activated", lambda phi, x, of=chebyshev._activated: (of(phi, x)[0], 0.0))
    else:
        monkeypatch.setattr(layer_rules, "mean", lambda phi, q: 0 * q)
        monkeypatch.setattr(evaluating, "series_of", lambda *args: [None])
    wrong = nd.kernel(dag, X)
    monkeypatch.undo()
    jax.clear_caches()
    evaluating._series.cache_clear()
    with pytest.raises(AssertionError, match="off by"):
        assert_agrees(nngp, wrong.nngp, power=0.5)


def test_leaving_out_skip_multiplicities_is_caught(monkeypatch):
    dag = nd.Dag.from_code("1_11")  # X2 = X0 + X1 = 2 X0, so K(2) = 4 K(0)

    def once(network):
        plan = program_of(network)
        weights = plan.weights, plan.mean_weights
        return plan._replace(weights=np.minimum(weights[0], 1), mean_weights=np.minimum(weights[1], 1))

    program_of = evaluating.program
    monkeypatch.setattr(evaluating, "program", once)
    evaluating.plan_of.cache_clear()
    evaluating._series.cache_clear()
    wrong = nd.kernel(dag, X)
    evaluating.plan_of.cache_clear()
    evaluating._series.cache_clear()
    nngp, ntk = finite_kernels(dag, X.tobytes(), X.shape[1], "linear-act", WIDTH, DRAWS, seed=1)
    with pytest.raises(AssertionError, match="off by"):
        assert_agrees(nngp, wrong.nngp, power=0.5)
    with pytest.raises(AssertionError, match="off by"):
        assert_agrees(ntk, wrong.ntk, power=0.5)


SKIP, WEIGHTED = Op.SKIP, Op.WEIGHTED
# Biases, layer norm, scales and both orders; the stem is linear, so that an activation may come first.
MIXED = [
    (0, 1, Dense(activation="sin", order="act-linear", b_std=0.5)),
    (0, 1, Scale(-0.5)),
    (1, 2, Dense(activation="erf", w_std=1.2, b_std=0.3, layer_norm=True)),
    (0, 2, SKIP),
    (2, 3, WEIGHTED),
    (0, 3, Scale(2.0)),
]
LINEAR = Dense(activation=None, b_std=0.1)
CONV = {"filter_shape": (2, 2), "b_std": 0.3}
POOLED = [
    (0, 1, WEIGHTED),
    (0, 1, AvgPool((2, 2), normalize_edges=True)),
    (1, 2, AvgPool((2, 2), strides=(2, 2))),
    (1, 2, SumPool((2, 1), strides=(2, 2))),
    (1, 2, Conv(**CONV, strides=(2, 2), activation="erf")),
]
# (edges, shapes of inputs, options), width, and number of draws.
GENERAL = {
    "mixed": (MIXED, [(6,)], {"stem": LINEAR, "aggregation": "scaled-sum", "b_std": 0.2}, 128, 1536),
    "mixed, standard": (
        MIXED,
        [(6,)],
        {"stem": LINEAR, "aggregation": "mean", "parameterization": "standard"},
        128,
        1536,
    ),
    "layer norm after an activation": (
        [(0, 1, WEIGHTED), (0, 2, SKIP), (1, 2, WEIGHTED)],
        [(6,)],
        {"layer": Dense(activation="gelu", layer_norm=True, w_std=1.2, b_std=0.4)},
        128,
        1536,
    ),
    "two inputs and outputs": (
        [(0, 2, WEIGHTED), (1, 2, SKIP), (2, 3, WEIGHTED), (0, 3, SKIP)],
        [(6,), (4,)],
        {"order": "act-linear", "aggregation": "mean", "activation": "abs", "w_std": 1.1},
        128,
        1536,
    ),
    "convolutions": (
        [(0, 1, WEIGHTED), (0, 1, SKIP)],
        [(4, 4, 2)],
        {"layer": Conv(**CONV, activation="relu")},
        64,
        2048,
    ),
    "pooling": (
        POOLED,
        [(4, 4, 2)],
        {"layer": Conv(**CONV, activation="relu"), "image_readout": "global-average"},
        64,
        2048,
    ),
    "pooling, activation first, standard": (
        [(0, 1, WEIGHTED), (1, 2, AvgPool((3, 3), strides=(2, 2), padding="VALID")), (2, 3, Dense(order="act-linear"))],
        [(4, 4, 2)],
        {"layer": Conv(**CONV, activation="relu", order="act-linear"), "parameterization": "standard"},
        64,
        2048,
    ),
}
SLOW = {
    name + ", more": (edges, shapes, options | more, 128, 4096)
    for name, (edges, shapes, options, *_) in GENERAL.items()
    for more in [{"parameterization": "ntk" if "standard" in name else "standard"}]
}


@functools.cache
def general(name):
    """Returns the exact and the empirical kernels of a case, one pair per output."""
    edges, shapes, options, width, draws = (GENERAL | SLOW)[name]
    num_inputs = len(shapes)
    num_nodes = max(target for _, target, _ in edges) + 1
    outputs = (num_nodes - 1, num_nodes - 2) if num_inputs > 1 else ()
    dag = Dag(num_nodes, tuple(Edge(*edge) for edge in edges), num_inputs=num_inputs, outputs=outputs)
    inputs = [np.random.default_rng(3).normal(size=(2, *shape)) for shape in shapes]
    images = {"image_shape": shapes[0][:-1]} if len(shapes[0]) > 1 else {}

    def create(rngs):
        return DagNet(dag, tuple(shape[-1] for shape in shapes), 1, width=width, rngs=rngs, **images, **options)

    kernels = nd.kernel(dag, inputs if num_inputs > 1 else inputs[0], width=width, **options)
    return kernels if num_inputs > 1 else [kernels], empirical_kernels(create, inputs, draws), width


LATER = [
    "pooling",
    *("convolutions", "pooling", "mixed, standard", "pooling, activation first, standard"),
    *("layer norm after an activation", "two inputs and outputs"),
    *SLOW,
]


def marks_of(name):
    return pytest.mark.nightly if name in LATER else ()


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=marks_of(n)) for n in dict.fromkeys([*GENERAL, *SLOW])])
def test_general_networks(name):
    kernels, drawn, width = general(name)
    for k, (nngp, ntk) in zip(kernels, drawn, strict=True):
        assert_agrees(nngp, k.nngp, width=width)
        assert_agrees(ntk, k.ntk, width=width)


@pytest.mark.nightly
@pytest.mark.parametrize("order", ORDERS)
def test_error_against_width_has_slope_minus_one_half(order):
    widths = np.array([32, 64, 128, 256, 512, 1024])
    dag = nd.Dag.from_code("2_12")
    k = nd.kernel(dag, X, order=order)
    errors = []
    for width in widths.tolist():

        def create(rngs, width=width):
            return DagNet(dag, X.shape[1], 1, width=width, order=order, rngs=rngs)

        # Narrow networks have errors with heavy tails, so that they get more draws, at the same cost.
        [samples] = empirical_kernels(create, [X], (1 << 15) // width, batch=4)
        errors.append(
            [
                np.mean((of - exact) ** 2) ** 0.5 / np.mean(exact**2) ** 0.5
                for of, exact in zip(samples, (np.asarray(k.nngp), np.asarray(k.ntk)), strict=True)
            ]
        )
    # The root mean square error of one network. For width 1024, with 32 draws, it is known to about an eighth.
    slopes = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes, -0.5, atol=0.1)
