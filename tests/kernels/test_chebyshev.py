"""Kernels by Chebyshev series in the angle, against the recursion for every pair of inputs, and against 40 digits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from compiled import programs
from numpy.polynomial import chebyshev

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.errors import InputError
from nngp_dag.graph import Dag, Dense, Edge, Op, Scale, zoo
from nngp_dag.graph.operations import HE_STD
from nngp_dag.kernels import blocking
from nngp_dag.kernels.backends.chebyshev import at_angles, series_of
from nngp_dag.kernels.choose import plan_of
from nngp_dag.kernels.device import block_sizes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 6)) * 10.0 ** RNG.uniform(-3, 3, size=(9, 1))
X[3], X[4], X[5] = X[1], 7 * X[1], 0
X[6] = X[2] * (1 + 1e-9 * RNG.normal(size=6))
LEAKY = nd.activations.ABRelu(-0.4, 1.3)
MIXED = Dag(
    6,
    (
        Edge(0, 1, Dense(activation="abs", w_std=0.9)),
        Edge(0, 1, Op.SKIP),
        Edge(1, 2, Dense(activation=LEAKY)),
        Edge(0, 2, Scale(-0.5)),
        Edge(1, 3, Dense(activation=None)),
        Edge(2, 3, Scale(2.0)),
        Edge(3, 4, Dense(activation="relu")),
        Edge(2, 5, Op.SKIP),
        Edge(3, 5, Op.SKIP),
        Edge(4, 5, Dense(activation="abs")),
    ),
)
SEVERAL = Dag(
    5,
    (
        Edge(0, 2, Op.WEIGHTED),
        Edge(1, 2, Op.WEIGHTED),
        Edge(0, 3, Op.SKIP),
        Edge(2, 3, Op.WEIGHTED),
        Edge(2, 4, Op.WEIGHTED),
    ),
    num_inputs=2,
    outputs=(3, 4),
)


def by_recursion(dag, x, x2=None, **options):
    """Returns kernels inside a transformation, where the inputs are unknown and the recursion runs for all pairs."""
    with jax.enable_x64(x.dtype == np.float64):
        inputs = [jnp.asarray(v) for v in (x, x2) if v is not None]
        return jax.jit(lambda *inputs: nd.kernel(dag, *inputs, **options))(*inputs)


def pairs(kernels):
    return [(k.nngp, k.ntk) for k in (kernels if isinstance(kernels, tuple) else [kernels])]


def assert_close(found, expected, tolerance):
    """Asserts that errors are small relative to the diagonal entries of the inputs."""
    for ours, theirs in zip(pairs(found), pairs(expected), strict=True):
        for matrix, reference in zip(ours, theirs, strict=True):
            matrix, reference = np.asarray(matrix, float), np.asarray(reference, float)
            own = np.sqrt(np.abs(np.diag(reference)))
            assert (np.abs(matrix - reference) <= tolerance * np.outer(own, own)).all()


@pytest.fixture
def series_are_used(monkeypatch):
    """Makes a test fail if a kernel comes from the recursion."""
    calls = []
    monkeypatch.setattr(
        blocking.chebyshev, "position", lambda *args, of=blocking.chebyshev.position: (calls.append(1), of(*args))[1]
    )
    jax.clear_caches()
    yield
    assert calls
    jax.clear_caches()


@pytest.mark.sample(0, slow=2)
@pytest.mark.parametrize(
    ("dag", "options"),
    [
        (zoo.chain(3), {"order": "act-linear"}),
        (Dag.from_code("2_21_112"), {"aggregation": "mean"}),
        (zoo.random_dag(7, seed=3), {"activation": "abs", "readout": False}),
        (zoo.ladder(9), {"parameterization": "standard", "width": 64}),
        (MIXED, {}),
        (MIXED, {"stem": Dense(activation=LEAKY, w_std=0.7), "parameterization": "standard", "width": 3}),
        (SEVERAL, {"activation": LEAKY}),
        (zoo.chain(40), {}),
    ],
    ids=["chain", "mean", "random", "ladder", "mixed", "stem", "several", "deep"],
)
def test_they_equal_the_recursion(dag, options, series_are_used):
    expected = by_recursion(dag, X, **options)
    assert_close(nd.kernel(dag, X, **options), expected, 2e-14)
    assert_close(nd.kernel(dag, X.astype(np.float32), **options), expected, 1e-6)


@pytest.mark.slow
def test_between_two_sets_of_inputs(series_are_used):
    whole = nd.kernel(MIXED, X)
    part = nd.kernel(MIXED, X[:4], X[2:], get="ntk").ntk
    np.testing.assert_allclose(part, np.asarray(whole.ntk)[:4, 2:], rtol=1e-13)


def test_equal_inputs_have_equal_rows(series_are_used):
    k = nd.kernel(zoo.chain(2), X)
    for matrix in map(np.asarray, (k.nngp, k.ntk)):
        np.testing.assert_array_equal(matrix[1], matrix[3])
        np.testing.assert_array_equal(matrix[5], 0)
        np.testing.assert_allclose(matrix[4], 7 * matrix[1], rtol=1e-13)


def exact(depth, theta):
    """Returns kernels of a chain of ReLU layers with He weights and a readout, by Cho and Saul, with 40 digits."""
    with mpmath.workdps(40):
        variance = mpmath.mpf(HE_STD) ** 2  # not quite 2
        q, k, t = mpmath.mpf(1), mpmath.cos(mpmath.mpf(theta)), mpmath.mpf(0)
        for _ in range(depth + 1):
            q, k, t = variance * q, variance * k, variance * (k + t)
            angle = mpmath.acos(k / q)
            t *= (1 - angle / mpmath.pi) / 2
            k = q * (mpmath.sin(angle) + (mpmath.pi - angle) * mpmath.cos(angle)) / (2 * mpmath.pi)
            q /= 2
        return float(variance * k), float(variance * (k + t))


@pytest.mark.parametrize("depth", [1, 3])
def test_at_angles_against_high_precision(depth):
    theta = np.array([0, 1e-9, 1e-4, 0.5, np.pi / 2, 2.0, 3.0, np.pi - 1e-4, np.pi - 1e-9])
    plan = plan_of(as_network(zoo.chain(depth)), True, True, block_sizes())
    [found] = at_angles(plan.program, plan.layers, 5, theta)
    expected = np.array([exact(depth, v) for v in theta]).T
    assert (np.abs(found - expected) <= 6e-16 * expected.max(axis=1, keepdims=True)).all()


def angle(x, z):
    """Returns the angle between two vectors, with 40 digits."""
    with mpmath.workdps(40):
        x, z = ([mpmath.mpf(float(v)) for v in row] for row in (x, z))
        x, z = ([v / mpmath.norm(row) for v in row] for row in (x, z))
        apart, together = (mpmath.norm([a + sign * b for a, b in zip(x, z, strict=True)]) for sign in (-1, 1))
        return 2 * mpmath.atan2(apart, together)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-7), (np.float64, 1e-13)])
@pytest.mark.parametrize("features", [6, 784])
@pytest.mark.parametrize("sign", [1, -1], ids=["close", "opposite"])
def test_nearly_parallel_inputs_against_high_precision(sign, features, dtype, tolerance):
    rng = np.random.default_rng(features)
    x = 1 + rng.normal(size=(6, features))
    for row, noise in enumerate((1e-2, 1e-4, 1e-6, 1e-8, 0), 1):
        x[row] = sign * 1.7 * x[0] * (1 + noise * rng.normal(size=features))
    x = x.astype(dtype)
    k = nd.kernel(zoo.chain(3), x)
    expected = np.transpose([exact(3, angle(x[0], z)) for z in x[1:]])
    for matrix, values in zip((k.nngp, k.ntk), expected, strict=True):
        squares = np.mean(x.astype(float) ** 2, axis=1)
        own = squares[0] / np.asarray(matrix, float)[0, 0]
        found = np.asarray(matrix, float)[0, 1:] / np.sqrt(squares[0] * squares[1:])
        assert (np.abs(found - values) * own <= tolerance).all(), (found - values) * own


@pytest.mark.sample(1)
@pytest.mark.parametrize("features", [784, 2000])
def test_centered_inputs_that_are_nearly_opposite_have_symmetric_kernels(features):
    rng = np.random.default_rng(features)
    x = 100 + rng.normal(size=(61, features))
    x[1::2] *= -1
    k = nd.kernel(zoo.chain(3), x.astype(np.float32))
    for matrix in map(np.asarray, (k.nngp, k.ntk)):
        np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dag", [Dag.from_code("2_02_002"), MIXED, zoo.chain(60)], ids=["skips", "mixed", "deep"])
def test_series_hold_between_the_angles_they_come_from(dag, dtype):
    plan = plan_of(as_network(dag), True, True, block_sizes())
    [series] = series_of(plan.program, plan.layers, 5, np.dtype(dtype))
    assert series is not None
    theta = np.concatenate([np.linspace(0, np.pi, 1001), np.pi * np.logspace(-9, -2, 50)])
    [values] = at_angles(plan.program, plan.layers, 5, theta)
    found = chebyshev.chebval(2 * theta / np.pi - 1, series.T)
    limit = {np.float32: np.finfo(np.float32).eps / 2, np.float64: 2e-14}[dtype]
    assert (np.abs(found - values) <= limit * np.abs(values).max(axis=-1, keepdims=True)).all()


@pytest.mark.parametrize("depth", [50, 200, 400])
def test_what_a_float32_series_leaves_out_adds_up_to_little(depth):
    # Near the ends all terms have one sign, so that neither a term nor their sum may exceed the limit.
    network = as_network(zoo.ladder(depth), order="act-linear", aggregation="scaled-sum")
    plan = plan_of(network, True, True, block_sizes())
    (short,), (long,) = (series_of(plan.program, plan.layers, 5, dtype) for dtype in (np.dtype("f4"), np.dtype("f8")))
    assert short is not None
    if long is not None:
        left_out = np.abs(long[:, short.shape[1] :]).sum(axis=1)
        assert (left_out <= np.finfo(np.float32).eps / 4 * np.abs(long).max(axis=1)).all()
        assert short.shape[1] < long.shape[1]


def nearly_even(odd):
    """Returns a chain whose activation has a tiny odd part, and its layer.

    The odd part changes kernels only near opposite inputs, where none of the angles of the series lies.
    """
    layer = Dense(activation=nd.activations.ABRelu(-1, 1 + odd))
    return Dag(4, tuple(Edge(i, i + 1, layer) for i in range(3))), layer


@pytest.mark.slow
@pytest.mark.sample(1, slow=0)
@pytest.mark.parametrize(
    ("dag", "stem", "dtype"),
    [
        (zoo.chain(200), None, np.float64),
        (zoo.chain(700), None, np.float64),
        (*nearly_even(3e-9), np.float64),
        (*nearly_even(1e-5), np.float32),
    ],
    ids=["deep", "very deep", "nearly even", "nearly even, float32"],
)
def test_a_series_that_does_not_hold_is_not_used(dag, stem, dtype):
    plan = plan_of(as_network(dag, stem=stem), True, True, block_sizes())
    assert series_of(plan.program, plan.layers, 5, np.dtype(dtype)) == [None]
    x = X.astype(dtype)
    tolerance = 1e-13 if dtype == np.float64 else 1e-6
    assert_close(nd.kernel(dag, x, stem=stem), by_recursion(dag, x, stem=stem), tolerance)


def test_graphs_of_all_kinds_share_a_compilation():
    x = X[:, :4].astype(np.float32)
    nd.kernel(zoo.chain(2), x)
    compiled = programs(blocking.kernel_of_inputs)
    for dag in (MIXED, zoo.ladder(9), zoo.random_dag(12, seed=1), Dag.from_code("2_22_222")):
        nd.kernel(dag, x)
    assert programs(blocking.kernel_of_inputs) == compiled


@pytest.mark.sample(1)
@pytest.mark.parametrize("stacked", [False, True])
def test_no_temporary_grows_as_n_squared(stacked):
    from nngp_dag.kernels.backends.chebyshev import spec_of_series
    from nngp_dag.kernels.pixel_layout import PixelLayout
    from nngp_dag.kernels.weights import weights_of_series

    n = 4096 if jax.default_backend() == "cpu" else 32768
    outputs = 8 if stacked else 1
    x = [jax.ShapeDtypeStruct((n, 64), jnp.float32)]
    spec = spec_of_series(outputs, True, block_sizes(), stacked)
    weights = weights_of_series(np.ones((outputs, 2, 128)), spec, np.dtype(np.float32))
    memory = (
        blocking.kernel_of_inputs.lower(weights, x, None, spec=spec, layout=PixelLayout()).compile().memory_analysis()
    )
    assert memory is not None
    assert memory.output_size_in_bytes >= 2 * outputs * n * n * 4
    assert memory.temp_size_in_bytes < n * n * 4


@pytest.mark.parametrize("x2", [None, X[:2]], ids=["symmetric", "rectangular"])
@pytest.mark.parametrize(("dtype", "lost", "kept"), [(np.float32, 1e-4, 5e-4), (np.float64, 1e-37, 1e-36)])
def test_kernels_of_which_a_dtype_would_lose_digits_are_refused(dtype, lost, kept, x2):
    # The kernels of four layers are proportional to w_std ** 8.
    x = X[:3].astype(dtype)
    inputs = (x,) if x2 is None else (x, x2.astype(dtype))
    with pytest.raises(InputError, match=f"kernels that {np.dtype(dtype)} can hold, got .*; use larger weights"):
        nd.kernel(zoo.chain(2), *inputs, w_std=lost)
    found, unit = (np.asarray(nd.kernel(zoo.chain(2), *inputs, w_std=w_std).ntk, float) for w_std in (kept, 1.0))
    np.testing.assert_allclose(found, kept**8 * unit, rtol=50 * np.finfo(dtype).eps)


def test_outputs_that_are_zero_are_no_loss():
    canceled = (Edge(0, 1, Scale(1.0)), Edge(0, 1, Scale(-1.0)), Edge(0, 2, Op.SKIP))
    zero, other = (k.nngp for k in nd.kernel(Dag(3, canceled, outputs=(1, 2)), X, get="nngp"))
    assert np.abs(zero).max() == 0
    assert np.diag(other).max() > 0


@pytest.mark.parametrize("power", [1e12, 1e120])
def test_kernels_beyond_the_dtype_are_refused(power):
    dtype = np.float32 if power < 1e18 else np.float64
    dag = Dag(5, (Edge(0, 1, Op.WEIGHTED), Edge(1, 2, Scale(power)), Edge(2, 3, Op.WEIGHTED), Edge(3, 4, Scale(power))))
    with pytest.raises(InputError, match="not finite"):
        nd.kernel(dag, X[:2].astype(dtype))


def test_one_array_for_several_inputs_is_one_input(series_are_used):
    assert_close(nd.kernel(SEVERAL, [X, X]), nd.kernel(SEVERAL, X), 0)
