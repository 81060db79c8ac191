"""Kernels of (nearly) equal, parallel and opposite inputs of any norms, against a derivation with 50 digits."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from high_precision import pair_kernels

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.errors import GraphError, NumericalWarning
from nngp_dag.graph import Dag, Dense, Edge, Op, Scale
from nngp_dag.kernels import choose

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}
SMOOTH = ("erf", "gelu", "sin", "cos", "gaussian", "gabor")
ACTIVATIONS = ("relu", "relu", "abs", "leaky_relu", *SMOOTH)


def inputs(rng, d):
    """Returns random inputs, multiples of the first one, and inputs at small angles to it and to its opposite."""
    base = rng.normal(size=(3, d))
    length = np.linalg.norm(base[0])
    along = base[0] / length
    across = base[1] - along * (along @ base[1])
    across /= max(np.linalg.norm(across), 1e-300)
    multiples = [1, 1, 2, 0.3, -1, -1.7, 1e3, -1e-3, 1 + 1e-6, 0]
    angles = [1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 0.01, 0.03]
    factors = rng.choice([-1, 1], len(angles)) * rng.choice([1, 1 + 1e-6, 3], len(angles))
    near = [f * length * (np.cos(a) * along + np.sin(a) * across) for f, a in zip(factors, angles, strict=True)]
    return np.array([*(m * base[0] for m in multiples), *near, base[1], 1e-6 * base[2]])


def random_network(rng):
    """Returns a random graph of two to five nodes, some with biases, layer norm, scales and other operations."""

    def operation():
        # Variances above 0.1, where smooth functions are no longer nearly linear.
        return Dense(
            activation=str(rng.choice(ACTIVATIONS)),
            order=str(rng.choice(["linear-act", "act-linear"])),
            w_std=float(rng.choice([1.0, 2**0.5])),
            b_std=[None, None, 0.0, 0.3, 1.0][rng.integers(5)],
            layer_norm=bool(rng.random() < 0.15),
        )

    while True:
        layer, own, nodes = operation(), operation(), int(rng.integers(2, 6))
        choices = [None, Op.WEIGHTED, Op.SKIP, Scale(float(rng.choice([0.5, -0.7, 2.0]))), own]
        drawn = [(s, t, choices[rng.choice(5, p=[0.2, 0.4, 0.2, 0.1, 0.1])]) for t in range(nodes) for s in range(t)]
        edges = tuple(Edge(s, t, op) for s, t, op in drawn if op is not None)
        try:
            network = as_network(
                Dag(nodes, edges), layer=layer, aggregation=str(rng.choice(["sum", "mean", "scaled-sum"]))
            )
            network.check_gaussian(input_is_gaussian=True, reads_out=True)
        except GraphError:
            continue
        return network


def options_of(network):
    return {"layer": network.layer, "aggregation": network.aggregation}


def errors(network, x, k, pairs, columns=None):
    """Returns the largest errors of NNGP and NTK at some pairs, in units of sqrt(K_ii K_jj)."""
    columns = x if columns is None else columns
    worst = [0.0, 0.0]
    for i, j in pairs:
        for which, (found, exact) in enumerate(
            zip((k.nngp, k.ntk), pair_kernels(network, x[i], columns[j]), strict=True)
        ):
            scale = float(abs(exact[0, 0] * exact[1, 1])) ** 0.5
            error = abs(float(np.asarray(found)[i, j]) - float(exact[0, 1]))
            worst[which] = max(worst[which], error / scale if scale else error)
    return worst


def some_pairs(rng, n, count):
    every = list(itertools.combinations(range(n), 2))
    return [every[p] for p in rng.permutation(len(every))[:count]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.nightly)], ids=["float32", "float64"]
)
@pytest.mark.parametrize(
    "seed",
    [
        0,
        # With these there are 2,000 networks in all.
        *(pytest.param(s, marks=pytest.mark.nightly) for s in range(1, 334)),
    ],
)
def test_random_networks_keep_the_angle_of_all_inputs(seed, dtype):
    rng = np.random.default_rng(seed)
    for _ in range(3):
        network = random_network(rng)
        x = inputs(rng, int(rng.choice([1, 2, 20]))).astype(dtype)
        k = nd.kernel(network.dag, x, **options_of(network))
        for matrix in (k.nngp, k.ntk):
            np.testing.assert_array_equal(matrix, np.asarray(matrix).T)
        pairs = some_pairs(rng, len(x), 40)
        if any(name in repr(network) for name in SMOOTH):
            # For smaller inputs these networks lose angles, which matters to a later activation with a kink.
            large = (x.astype(float) ** 2).mean(axis=1) > 0.1
            pairs = [(i, j) for i, j in pairs if large[i] and large[j]]
        # The rounding errors of layer norms add up, see docs/limits.md.
        limit = TOLERANCE[dtype] * (1.5 if "layer_norm=True" in repr(network) else 1)
        assert max(errors(network, x, k, pairs)) < limit, network


CASES = {
    "biases": ("2_12", {"b_std": 0.1}),
    "biases of 0": ("2_02", {"b_std": 0.0}),
    "layer norm": ("2_02", {"layer": Dense(activation="relu", layer_norm=True)}),
    "rectified": ("2", {"activation": nd.activations.RectifiedMonomial(2)}),
    # A jump replaces an angle by its square root. After two jumps, rounding of the norms of inputs would matter.
    "sign": ("1", {"activation": "sign"}),
    "mixed": ("2_21_112", {"layer": Dense(activation="abs", b_std=0.3), "stem": Dense(activation=None, b_std=1.0)}),
    "erf, then relu": ("2_02", {"layer": Dense(activation="relu"), "stem": Dense(activation="erf")}),
}


def unrolled(monkeypatch):
    monkeypatch.setattr(choose, "_UNROLLED_ENTRIES", 0)


WAYS = {
    "loop": lambda dag, x, options: nd.kernel(dag, x, **options),
    "unrolled": lambda dag, x, options: nd.kernel(dag, x, **options),
    "two sets": lambda dag, x, options: nd.kernel(dag, x, x.copy(), **options),
    "jit": lambda dag, x, options: jax.jit(lambda v: nd.kernel(dag, v, **options))(jnp.asarray(x)),
    "gram": lambda dag, x, options: nd.gram(dag, x, memory_budget="2 GiB", tile=7, progress=False, **options),
}


@pytest.mark.slow
@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["loop", "unrolled", "two sets", "jit", "gram"])
def test_every_way_keeps_the_angle(way, case, dtype, monkeypatch):
    if way == "unrolled":
        unrolled(monkeypatch)
    code, options = CASES[case]
    rng = np.random.default_rng(3)
    x = inputs(rng, 5)[[0, 2, 3, 4, 5, 6, 9, 13, 14, 15, 16, 17, 18]].astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        k = WAYS[way](nd.Dag.from_code(code), x, options)
    network = as_network(nd.Dag.from_code(code), **options)
    assert max(errors(network, x, k, some_pairs(rng, len(x), 30))) < TOLERANCE[dtype]


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_numbers_as_inputs(dtype):
    """Inputs such as years and prices lie on one line through 0, which only biases leave."""
    x = np.array([1900, 1950, 2000, 2020, 1, -3, 0.001], dtype)[:, None]
    choices: tuple[dict[str, Any], ...] = (
        {"b_std": 0.1},
        {"b_std": 0.0},
        {"activation": "sign"},
        {"activation": "erf", "b_std": 1.0},
    )
    for options in choices:
        network = as_network(nd.Dag.from_code("2_12"), **options)
        k = nd.kernel(network.dag, x, **options)
        assert max(errors(network, x, k, itertools.combinations(range(len(x)), 2))) < TOLERANCE[dtype], options


@pytest.mark.slow
def test_the_packages_own_kernels_are_accepted():
    years = np.linspace(1900, 2020, 6)[:, None]
    k = nd.kernel(nd.Dag.from_code("2_12"), years, b_std=0.1)
    assert nd.spectrum(k.ntk).lambda_max > 0
    y = np.sin(years / 10)
    assert np.isfinite(nd.expected_loss(k, y, learning_rate=1 / nd.spectrum(k.ntk).lambda_max, steps=3)).all()


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_under_convolutions(channels):
    """The covariances of all pixels of parallel and of opposite images have a correlation of 1 or -1."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4, 4, channels))
    x = np.stack([base, 3 * base, -1.3 * base, base * (1 + 1e-9 * rng.normal(size=base.shape))])
    layer = nd.Conv(filter_shape=(3, 3), b_std=0.1)
    double = nd.kernel(nd.Dag.from_code("2_12"), x, layer=layer)
    single = nd.kernel(nd.Dag.from_code("2_12"), x.astype(np.float32), layer=layer)
    for found, exact in ((single.nngp, double.nngp), (single.ntk, double.ntk)):
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        assert (np.abs(np.asarray(found, float) - exact) / scale).max() < 2e-6


def test_a_dead_edge_with_an_operation_of_its_own_changes_nothing():
    x = np.random.default_rng(0).normal(size=(3, 4))
    for own in (Scale(0.5), Dense(activation="erf"), nd.AvgPool((2, 2))):
        dead = Dag(3, (Edge(0, 2, Op.WEIGHTED), Edge(0, 1, own)))
        found, plain = nd.kernel(dead, x), nd.kernel(nd.Dag.from_code("2"), x)
        np.testing.assert_allclose(found.nngp, plain.nngp, rtol=1e-15)
        np.testing.assert_allclose(found.ntk, plain.ntk, rtol=1e-15)


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("activation", ["cos", "gaussian", "exp"])
def test_layer_norm_after_a_mean_that_dominates(activation):
    x = np.random.default_rng(1).normal(size=(3, 8))
    options: dict[str, Any] = {"stem": Dense(activation=activation, w_std=0.1), "layer": Dense(layer_norm=True)}
    network = as_network(nd.Dag.from_code("2"), **options)
    for dtype, tolerance in TOLERANCE.items():
        k = nd.kernel(network.dag, x.astype(dtype), **options)
        assert max(errors(network, x.astype(dtype), k, [(0, 1), (0, 2), (1, 2)])) < tolerance


@pytest.mark.nightly
@pytest.mark.parametrize("scale", [1e-15, 3e9, 1e15])
def test_products_of_variances_do_not_overflow(scale):
    x = (scale * np.array([[1.0, 0], [0.1, 0.99**0.5]])).astype(np.float32)
    for activation in ("erf", "sigmoid_like", "gelu", "gaussian", "gabor", "tanh"):
        options = {"activation": activation, "readout": False}
        single = nd.kernel(nd.Dag.from_code("1"), x, **options, get="nngp").nngp
        double = nd.kernel(nd.Dag.from_code("1"), x.astype(np.float64), **options, get="nngp").nngp
        np.testing.assert_allclose(single, double, rtol=3e-6, atol=2e-6 * double[0, 0], err_msg=activation)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"b_std": 0.1}, marks=pytest.mark.slow)], ids=["series", "recursion"]
)
def test_entries_keep_within_the_resolution_floor(options):
    """`spectrum` takes entries to be right to 16 eps: angles of a few hundredths must not cost more."""
    rng = np.random.default_rng(5)
    along, across = np.linalg.qr(rng.normal(size=(100, 2)))[0].T
    x = 10 * np.array([np.cos(a) * along + np.sin(a) * across for a in (0, *np.geomspace(1e-3, 0.5, 10))])
    network = as_network(nd.Dag.from_code("2_02"), **options)
    k = nd.kernel(network.dag, x, **options)
    assert max(errors(network, x, k, [(0, j) for j in range(1, len(x))])) < 16 * np.finfo(float).eps


@pytest.mark.nightly
@pytest.mark.parametrize("scale", [1, 1e3])
@pytest.mark.parametrize("activation", ["gelu", "silu", "softplus"])
def test_numbers_as_large_as_years_and_prices(activation, scale):
    """Functions that are nearly ReLUs at such variances need exact angles, as ReLUs do."""
    years = np.float32(scale) * np.linspace(1900, 2020, 7, dtype=np.float32)[:, None]
    options = {"activation": activation, "b_std": 0.1}
    single, double = (nd.kernel(nd.Dag.from_code("2_12"), years.astype(dtype), **options) for dtype in TOLERANCE)
    with pytest.warns(NumericalWarning, match="not resolved"):  # but positive semi-definite to within rounding
        nd.spectrum(double.ntk)
    for found, exact in zip((single.nngp, single.ntk), (double.nngp, double.ntk), strict=True):
        norms = np.sqrt(np.diag(exact))
        assert (np.abs(np.asarray(found, float) - exact) < TOLERANCE[np.float32] * np.outer(norms, norms)).all()
    if activation == "gelu" and scale == 1:
        network = as_network(nd.Dag.from_code("2_12"), **options)
        pairs = list(itertools.combinations(range(len(years)), 2))
        assert max(errors(network, years, double, pairs)) < TOLERANCE[np.float64]


SMOOTH_ENOUGH = {
    "no biases": {},
    "biases of 0": {"b_std": 0.0},
    "biases": {"b_std": 0.3},
    "rectified": {"activation": nd.activations.RectifiedMonomial(2)},
    "gelu": {"activation": "gelu", "b_std": 0.3},
}


@pytest.mark.nightly
@pytest.mark.parametrize("case", SMOOTH_ENOUGH)
def test_gradients_at_orthogonal_inputs_and_at_zero(case):
    """Two formulas meet at k = 0. A zero input has a gradient where there are biases."""
    options = SMOOTH_ENOUGH[case]
    x = np.array([[1.0, 0, 0], [0, 2.0, 0], [1, 1, 0], [2, -2, 0], [0, 0, 0]])
    pairs = [(0, 1), (2, 3)] + ([(0, 4)] if options.get("b_std") else [])
    with jax.enable_x64(True):
        for i, j in pairs:
            for row in (i, j):
                for get in ("nngp", "ntk"):

                    def entry(v, i=i, j=j, row=row, get=get):
                        inputs = jnp.asarray(x).at[row].set(v)
                        k = nd.kernel(nd.Dag.from_code("1"), inputs, **options)
                        return getattr(k, get)[i, j]

                    slope = jax.grad(entry)(jnp.asarray(x[row]))
                    steps = 1e-5 * np.eye(3)
                    expected = [(float(entry(x[row] + h)) - float(entry(x[row] - h))) / 2e-5 for h in steps]
                    np.testing.assert_allclose(slope, expected, atol=2e-5)


@pytest.mark.slow
def test_variances_far_below_those_of_the_data_are_numbers():
    dag = nd.zoo.chain(3)
    x = (1e9 * np.random.default_rng(0).normal(size=(3, 4))).astype(np.float32)
    options: dict[str, Any] = {
        "layer": Dense(activation="relu", w_std=1e-4, b_std=0.0),
        "stem": Dense(activation=None, w_std=1.0),
    }
    k = nd.kernel(dag, x, **options)
    exact = nd.kernel(dag, x.astype(float), **options)
    np.testing.assert_allclose(k.ntk, exact.ntk, rtol=1e-5)
