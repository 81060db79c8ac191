"""The bracket on lambda_min: it holds on every graph, and each of its parts agrees with the derivation."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from mpmath import mp, taylor
from test_paths import CONNECTED, walk

import nngp_dag as nd
from nngp_dag.data import load_dataset, normalize, scale_to_sphere
from nngp_dag.errors import GraphError, InputError
from nngp_dag.theory import bracket

ORDERS = ["linear-act", "act-linear"]
RNG = np.random.default_rng(0)


N, D = 8, 64  # one shape for all, so that they share their compiled programs


def real(name, **where):
    data = scale_to_sphere(normalize(load_dataset(name, subset=N, **where)))
    return data.reshape(N, -1).astype(float)


def on_sphere():
    return scale_to_sphere(RNG.normal(size=(N, D)))


def low_rank(rank):
    return np.pad(RNG.normal(size=(N, rank)), ((0, 0), (0, D - rank)))


SPHERE = on_sphere()
DATA = {
    "digits": real("digits"),
    "sphere": SPHERE,
    "few dimensions, many norms": low_rank(3) * np.geomspace(0.1, 10, N)[:, None],
    "nearly equal": np.concatenate([SPHERE[:4], SPHERE[:4] * (1 + 1e-6 * RNG.normal(size=(4, D)))]),
    "opposite": np.concatenate([SPHERE[:7], -SPHERE[:1]]),
    "parallel": np.concatenate([SPHERE[:4], 3 * SPHERE[:4]]),
    "nearly parallel": np.concatenate([SPHERE[:4], SPHERE[:4] * (1 + 1e-9)]),
    "on a line": low_rank(1),
    "huge": RNG.normal(size=(N, D)) * 1e100,
    "tiny": RNG.normal(size=(N, D)) * 1e-100,
}


def assert_bracketed(dag, x, **options):
    found = nd.lambda_min_bracket(dag, x, **options)
    exact = nd.kernel(dag, x, **options)
    for b, k in zip(found, (exact.nngp, exact.ntk), strict=True):
        eigenvalues = np.linalg.eigvalsh(np.asarray(k))
        # Rounding error of the eigenvalue itself.
        rounding = len(x) * np.finfo(float).eps * eigenvalues[-1]
        assert 0 <= b.lower <= b.upper
        assert b.lower <= eigenvalues[0] + rounding
        assert eigenvalues[0] - rounding <= b.upper
    return found, exact


@pytest.mark.sample(10, slow=3)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("code", ["2_02_002", "2_21_112", "1_11_111"])
def test_lower_exact_upper(name, code, order):
    assert_bracketed(nd.Dag.from_code(code), DATA[name], order=order)


@pytest.mark.sample(1)
@pytest.mark.parametrize("order", ORDERS)
def test_lower_exact_upper_on_a_sample_of_all_codes(order):
    for code in CONNECTED[::32]:
        assert_bracketed(nd.Dag.from_code(code), DATA["digits"], order=order)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_more_inputs_than_dimensions(order):
    assert_bracketed(nd.Dag.from_code("2_12"), RNG.normal(size=(7, 3)), order=order)


@pytest.mark.slow
def test_parallel_inputs_leave_nothing_below():
    # The kernels are singular, so that a lower end above 0 would be wrong.
    for seed in range(20):
        x = np.random.default_rng(seed).integers(1, 10, size=(1, 3)).astype(float)
        for order in ORDERS:
            for b in nd.lambda_min_bracket(nd.Dag.from_code("2"), np.concatenate([x, 3 * x]), order=order):
                assert b.lower == 0


@pytest.mark.nightly
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["digits", "sphere", "mnist"])
def test_lower_exact_upper_on_every_code_of_up_to_three_hidden_nodes(name, order, request):
    x = real("mnist", data_dir=request.getfixturevalue("tfds_dir")) if name == "mnist" else DATA[name]
    smaller = ["1", "2", *(f"{a}_{b}{c}" for a, b, c in itertools.product("012", repeat=3))]
    connected = [code for code in smaller if walk(code, code.count("_") + 1)] + CONNECTED
    assert len(connected) == 686
    for code in connected:
        assert_bracketed(nd.Dag.from_code(code), x, order=order)


@pytest.mark.slow
@pytest.mark.parametrize("readout", [True, False])
def test_options_change_both_sides_alike(readout):
    mixed = nd.Dag.from_edges(
        [
            ("in", "a", nd.Dense(activation=None, w_std=0.7)),
            ("in", "b", nd.Dense(order="act-linear", w_std=1.1)),
            ("a", "b", nd.Scale(0.5)),
            ("b", "c", "weighted"),
            ("a", "c", "skip"),
            ("b", "c", nd.Scale(-2.0)),
        ]
    )
    layer = nd.Dense(order="act-linear", w_std=1.3)
    for aggregation in ("sum", "scaled-sum", "mean"):
        found, exact = assert_bracketed(mixed, SPHERE, layer=layer, aggregation=aggregation, readout=readout)
        # Neither end is trivial: each is within a factor of 30 of the value.
        for b, k in zip(found, (exact.nngp, exact.ntk), strict=True):
            value = np.linalg.eigvalsh(np.asarray(k))[0]
            assert value / 30 < b.lower
            assert b.upper < 30 * value


@pytest.mark.parametrize(
    ("order", "code", "readout"),
    [("linear-act", "1", False), ("act-linear", "1", False), ("act-linear", "2", False), ("act-linear", "1", True)],
)
def test_orthogonal_inputs_leave_no_slack_below_but_that_of_the_means(order, code, readout):
    """For orthogonal inputs all correlations of K(in) are 0, and C(0) is a multiple of the identity."""
    n = 6
    x = math.sqrt(n) * np.eye(n)
    found = nd.lambda_min_bracket(nd.Dag.from_code(code), x, order=order, readout=readout)
    exact = nd.kernel(nd.Dag.from_code(code), x, order=order, readout=readout)
    for b, k in zip(found, (exact.nngp, exact.ntk), strict=True):
        assert b.lower == pytest.approx(np.linalg.eigvalsh(np.asarray(k))[0], rel=1e-6)


def test_the_lower_end_of_a_layer_holds_both_kernels_below_it():
    """For orthogonal inputs lambda_min is 1 - 1/pi for K(0) without its mean, and 1 for T(0); Schur keeps their sum."""
    _, ntk = nd.lambda_min_bracket(nd.Dag.from_code("2"), math.sqrt(6) * np.eye(6), readout=False)
    assert ntk.lower > (2 - 1 / math.pi) * (1 - 1e-6)


def correlated(rho, roots):
    return np.outer(roots, roots) * (rho + (1 - rho) * np.eye(len(roots)))


FIELDS = {
    # Unequal norms, correlations that leave Gershgorin's discs nothing for small powers.
    "unequal norms": (correlated(0.9, np.array([1.0, 1.5, 2.0])), correlated(0.5, np.array([2.0, 1.0, 1.5]))),
    "weak correlations": (correlated(0.2, np.array([1.0, 1.2, 1.1])), correlated(0.1, np.array([2.0, 1.0, 1.5]))),
    # T is singular, so that only K and the diagonal of T bound the NTK from below.
    "singular tangents": (correlated(0.3, np.array([1.0, 1.0, 1.0])), correlated(1.0, np.array([2.0, 2.0, 2.0]))),
}


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", FIELDS)
def test_the_bounds_of_one_edge_are_what_the_derivation_says(name, order):
    """The bounds are compared with the same inequalities for each power; powers that represent several cost 2 %."""
    k, t = FIELDS[name]
    low_k, low_t = (max(0.0, float(np.linalg.eigvalsh(m)[0])) for m in (k, t))
    found = bracket._field(nd.Dense(order=order, w_std=1.3), bracket._Node(nd.Kernel(k, t), low_k, low_t))
    slope = np.array([float(c) for c in taylor(lambda r: (mp.pi - mp.acos(r)) / mp.pi, 0, 80)])
    value = np.append(1 / math.pi, slope[:-1] / np.arange(1, 81))
    for series in (value, slope):
        series[80] = 1 - series[:80].sum()  # the sum of all later terms
    norms = np.diag(k)
    powers = np.abs(k / np.sqrt(np.outer(norms, norms)))[None] ** np.arange(81)[:, None, None]
    discs = 2 - powers.sum(axis=2)  # 1 minus the sum over the others

    def best(series, schur, scale):
        series = series * (np.arange(81) > 0)
        tails = [max(0.0, (series[p:, None] * discs[p:]).sum(axis=0).min()) for p in range(1, 81)]
        return max(series[:p].sum() * schur + scale * tail for p, tail in enumerate(tails, start=1))

    covariance = norms.min() * best(value, low_k / norms.max(), 1.0)
    m, m_low = (k + t, low_k + low_t) if order == "linear-act" else (t, low_t)
    smallest = np.diag(m).min()
    tangents = m_low / 2 + best(slope, max(m_low, low_k / norms.max() * smallest), smallest)
    tangents += covariance * (order == "act-linear")
    for bound, expected in zip(found, (covariance, tangents), strict=True):
        assert 0 < bound <= 1.3**2 / 2 * expected * (1 + 1e-9)
        assert bound == pytest.approx(1.3**2 / 2 * expected, rel=0.02)


def test_the_bounds_of_an_edge_without_activation_are_those_of_what_enters():
    k, t = FIELDS["unequal norms"]
    found = bracket._field(nd.Dense(activation=None, w_std=1.3), bracket._Node(nd.Kernel(k, t), 0.25, 0.5))
    assert found == pytest.approx((1.3**2 * 0.25, 1.3**2 * 0.75))


@pytest.mark.slow
def test_pairs_are_bounded_tightly_from_above():
    x = SPHERE[:2]
    found = nd.lambda_min_bracket(nd.Dag.from_code("2_21_112"), x)
    k = nd.kernel(nd.Dag.from_code("2_21_112"), x)
    assert found.nngp.upper == pytest.approx(np.linalg.eigvalsh(k.nngp)[0], rel=1e-12)
    assert found.ntk.upper == pytest.approx(np.linalg.eigvalsh(k.ntk)[0], rel=1e-12)


def test_the_principal_minor_bound_is_the_smallest_over_all_pairs(monkeypatch):
    monkeypatch.setattr("nngp_dag.theory.symmetric._BLOCK_BYTES", 8 * 9 * 2)
    g = RNG.normal(size=(9, 12))
    matrix = g @ g.T
    by_hand = min(np.linalg.eigvalsh(matrix[np.ix_(p, p)])[0] for p in itertools.combinations(range(9), 2))
    assert nd.principal_minor_bound(matrix) == pytest.approx(by_hand, rel=1e-12)
    assert nd.principal_minor_bound(matrix.astype(np.float32)) == pytest.approx(by_hand, rel=1e-4)
    assert nd.principal_minor_bound(np.array([[3.0]])) == 3
    assert nd.principal_minor_bound(np.zeros((3, 3))) == 0


def test_the_series_are_those_of_the_relu_kernel():
    value, slope = bracket._series()
    with mp.workdps(30):
        f = taylor(lambda r: (mp.sqrt(1 - r**2) + r * (mp.pi - mp.acos(r))) / mp.pi, 0, 6)
        df = taylor(lambda r: (mp.pi - mp.acos(r)) / mp.pi, 0, 6)
    at = {int(power): i for i, power in enumerate(bracket._POWERS)}
    # The blocks of powers are [1, 2), [2, 4), [4, 6).
    assert value[at[1]] == pytest.approx(float(f[1]), abs=1e-15)
    assert value[at[2]] == pytest.approx(float(f[2] + f[3]), abs=1e-15)
    assert value[at[4]] == pytest.approx(float(f[4] + f[5]), abs=1e-15)
    assert slope[at[1]] == pytest.approx(float(df[1]), abs=1e-15)
    assert slope[at[2]] == pytest.approx(float(df[2] + df[3]), abs=1e-15)
    # At rho = 1, f(1) = 1 and its term r = 0 is 1/pi; f'(1) = 1 and its term r = 0 is 1/2. The last entries are tails.
    assert value.sum() == pytest.approx(1 - 1 / math.pi, rel=1e-14)
    assert slope.sum() == pytest.approx(0.5, rel=1e-14)
    assert 0 < value[-1] < 1e-6
    assert 0 < slope[-1] < 3e-3


@pytest.mark.slow
def test_duplicates_and_zero_inputs_leave_zero():
    x = SPHERE[:4].copy()
    x[1] = x[0]
    duplicate = nd.lambda_min_bracket(nd.Dag.from_code("2_21_112"), x)
    x[1] = 0
    zero = nd.lambda_min_bracket(nd.Dag.from_code("2_21_112"), x)
    for found in (duplicate, zero):
        for b in found:
            assert b.lower == 0
            assert b.upper == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layer": nd.Dense(activation="erf")},
            "connected edges with ReLU, no biases and no layer norm, got the",
        ),
        ({"layer": nd.Dense(b_std=0.1)}, "got the stem with .*b_std=0.1"),
        ({"layer": nd.Dense(layer_norm=True)}, "got edge 0->1"),
        ({"layer": nd.Conv(filter_shape=(3, 3))}, "got the stem with Conv"),
    ],
)
def test_networks_that_the_series_does_not_cover_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        nd.lambda_min_bracket(nd.Dag.from_code("2"), SPHERE, **options)


def test_pooling_several_inputs_and_disconnected_graphs_are_refused():
    pooled = nd.Dag.from_edges([("in", "out", nd.AvgPool((2, 2)))])
    with pytest.raises(InputError, match="Expected skips, scales and fully connected edges, got edge 0->1"):
        nd.lambda_min_bracket(pooled, SPHERE)
    two = dataclasses.replace(nd.Dag.from_code("2_02"), outputs=(1, 2))
    with pytest.raises(InputError, match="one input and one output, got 1 and 2"):
        nd.lambda_min_bracket(two, SPHERE)
    with pytest.raises(GraphError, match="path from node 0 to the output"):
        nd.lambda_min_bracket(nd.Dag.from_nasbench201("|none~0|"), SPHERE)
    with pytest.raises(InputError, match="`x` to be finite"):
        nd.lambda_min_bracket(nd.Dag.from_code("2"), np.full((2, 3), np.nan))
