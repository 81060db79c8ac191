"""The published path formulas, against enumeration and against exact kernels."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import Edge, Op
from nngp_dag.theory import paths

ORDERS = ["linear-act", "act-linear"]
CODES = [f"{a}_{b}{c}_{d}{e}{f}" for a, b, c, d, e, f in itertools.product("012", repeat=6)]


def walk(code, node=3):
    """Yields the depth of every path from node 0 to `node`, from the digits of the code."""
    if node == 0:
        return [0]
    digits = code.split("_")[node - 1]
    return [depth + (d == "2") for s, d in enumerate(digits) if d != "0" for depth in walk(code, s)]


CONNECTED = [code for code in CODES if walk(code)]


def published(depths, k0):
    """Returns min over i != j of P - sum_p f^(d_p)(K(0)_ij), as published, times the common diagonal."""
    q = k0[0, 0]

    def iterate(rho, depth):
        for _ in range(depth):
            theta = math.acos(max(-1.0, min(1.0, rho)))
            rho = (math.sin(theta) + (math.pi - theta) * math.cos(theta)) / math.pi
        return rho

    pairs = itertools.permutations(range(len(k0)), 2)
    return q * min(sum(1 - iterate(k0[i, j] / q, depth) for depth in depths) for i, j in pairs)


def on_sphere(num_inputs, seed):
    """Returns random inputs with |x|^2 = d = 6."""
    x = np.random.default_rng(seed).normal(size=(num_inputs, 6))
    return x * (6 / (x**2).sum(axis=1, keepdims=True)) ** 0.5


def at_angle(angle):
    """Returns two inputs with |x|^2 = d = 6 at an angle."""
    x = np.zeros((2, 6))
    x[:, 0] = 1, math.cos(angle)
    x[1, 1] = math.sin(angle)
    return 6**0.5 * x


def stem_kernel(x, order):
    return last_node("1", x, order)


def last_node(code, x, order):
    return np.asarray(nd.kernel(nd.Dag.from_code(code), x, order=order, readout=False).nngp)


@pytest.fixture(
    scope="module",
    params=[("linear-act", 4), *(pytest.param((order, 1), marks=pytest.mark.nightly) for order in ORDERS)],
    ids=["some", *ORDERS],
)
def cases(request):
    """Returns (code, exact kernel of the last node, stem kernel, path bound) for connected codes on several inputs."""
    order, step = request.param
    x = np.concatenate([on_sphere(4, seed=2), *(at_angle(angle) for angle in (0.3, 1.0, 2.0))])
    sets = [np.ix_(rows, rows) for rows in ([0, 1, 2, 3], [4, 5], [6, 7], [8, 9])]
    all_k0 = stem_kernel(x, order)
    found = []
    for code in CONNECTED[::step]:
        dag, all_k = nd.Dag.from_code(code), last_node(code, x, order)
        found += [(code, all_k[rows], all_k0[rows], nd.path_bound(dag, all_k0[rows], order=order)) for rows in sets]
    return found


@pytest.mark.slow
def test_the_path_bound_is_the_published_formula_over_every_path(cases):
    assert len(CONNECTED) == 662
    for code, _, k0, bound in cases:
        assert bound.value == pytest.approx(published(walk(code), k0), rel=1e-10), code


@pytest.mark.slow
def test_a_path_bound_is_an_upper_bound_unless_flagged(cases):
    exceedances = certain = 0
    for code, k, _, bound in cases:
        assert bound.is_bound == (bound.violated_assumptions == ())
        certain += bound.is_bound
        if np.linalg.eigvalsh(k)[0] > bound.value * (1 + 1e-9):
            exceedances += 1
            assert not bound.is_bound, code
    # Both cases must occur, or the test would be empty.
    assert exceedances > 70
    assert certain > 140


@pytest.mark.slow
def test_for_two_inputs_a_certain_path_bound_is_the_smaller_eigenvalue(cases):
    compared = 0
    for code, k, k0, bound in cases:
        if len(k) == 2 and bound.is_bound:
            smaller = k[0, 0] - abs(k[0, 1])
            if k[0, 1] >= 0 or np.allclose(k0[0, 1], 0):
                assert bound.value == pytest.approx(smaller, rel=1e-10), code
                compared += 1
            else:
                assert bound.value == pytest.approx(k[0, 0] - k[0, 1], rel=1e-10), code
                assert bound.value > smaller
    assert compared > 70


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("code", "factor"), [("1_11_111", 4), ("1_11_011", 3), ("1_01_001", 1)])
def test_shared_skips_exceed_the_formula_by_their_multiplicity(code, factor, order):
    x = on_sphere(4, seed=3)
    k0, k = stem_kernel(x, order), last_node(code, x, order)
    value = nd.path_bound(nd.Dag.from_code(code), k0, order=order).value
    # With skips only, K(H) is a multiple of K(0). For two inputs the formula is exact up to that multiple.
    pair = np.ix_(*[np.unravel_index(np.argmax(k0 - 9 * np.eye(4)), k0.shape)] * 2)
    assert k[0, 0] - k[pair][0, 1] == pytest.approx(factor * value, rel=1e-12)


@pytest.mark.parametrize("angle", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("code", "factor"), [("1_11_111", 4), ("2_11_111", 2)])
def test_the_exact_eigenvalue_exceeds_the_formula_by_the_stated_factor(code, factor, angle):
    x = at_angle(angle)
    bound = nd.path_bound(nd.Dag.from_code(code), stem_kernel(x, "linear-act"))
    lambda_min = np.linalg.eigvalsh(last_node(code, x, "linear-act"))[0]
    assert lambda_min / bound.value == pytest.approx(factor, rel=1e-10)
    assert "skips share an ancestor" in bound.violated_assumptions


UNEQUAL = "paths of unequal depth meet before a weighted edge"
SHARED = "skips share an ancestor"
MEANS = "means of activated branches add up"


@pytest.mark.parametrize(
    ("code", "linear_act", "act_linear"),
    [
        ("2_02_002", (), ()),
        ("2_01_002", (), ()),
        ("2_21_112", (MEANS,), ()),
        ("1_01_222", (MEANS,), ()),
        ("2_12_222", (UNEQUAL, MEANS), (UNEQUAL,)),
        ("1_11_111", (SHARED, MEANS), (SHARED,)),
        ("2_11_111", (SHARED, MEANS), (SHARED,)),
        ("2_11_112", (UNEQUAL, MEANS), (UNEQUAL,)),
        ("1_11_002", (SHARED, MEANS), (SHARED,)),
        ("2_11_001_0111_00002", (UNEQUAL, SHARED, MEANS), (UNEQUAL, SHARED)),
        ("2_12_001", (MEANS,), ()),
    ],
)
def test_violated_assumptions_by_hand(code, linear_act, act_linear):
    k0 = np.array([[1.0, 0.5], [0.5, 1.0]])
    dag = nd.Dag.from_code(code)
    assert nd.path_bound(dag, k0).violated_assumptions == linear_act
    assert nd.path_bound(dag, k0, order="act-linear").violated_assumptions == act_linear


def test_dead_edges_violate_no_assumption():
    # One chain leads to the output. No edge enters node 1, so that its outgoing edges carry zeros.
    dead = [Edge(1, 2, Op.WEIGHTED), Edge(1, 3, Op.SKIP), Edge(2, 3, Op.SKIP), Edge(1, 4, Op.WEIGHTED)]
    dag = nd.Dag(5, (Edge(0, 4, Op.WEIGHTED), Edge(3, 4, Op.SKIP), *dead))
    k0 = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert nd.path_bound(dag, k0) == nd.path_bound(nd.Dag.from_code("2"), k0)
    assert nd.path_bound(dag, k0).is_bound


@pytest.mark.parametrize("scale", [1e-6, 0.37, 1e6])
def test_a_common_diagonal_scales_the_path_bound(scale):
    k0 = stem_kernel(on_sphere(4, seed=1), "linear-act")
    dag = nd.Dag.from_code("2_21_112")
    assert nd.path_bound(dag, scale * k0).value == pytest.approx(scale * nd.path_bound(dag, k0).value, rel=1e-12)


def test_the_path_bound_scales_by_the_norm_of_the_inputs():
    for order, q in (("linear-act", 1), ("act-linear", 2)):
        k0 = stem_kernel(on_sphere(4, seed=1), order)
        np.testing.assert_allclose(np.diag(k0), q, rtol=1e-12)
        value = nd.path_bound(nd.Dag.from_code("1_02"), k0, order=order).value
        assert value == pytest.approx(q * published([1], k0 / q), rel=1e-10)


def test_a_stem_kernel_in_float32_gives_the_path_bound_to_its_precision():
    x = on_sphere(4, seed=1)
    dag = nd.Dag.from_code("2_21_112")
    single = nd.path_bound(dag, stem_kernel(x.astype(np.float32), "linear-act")).value
    assert single == pytest.approx(nd.path_bound(dag, stem_kernel(x, "linear-act")).value, rel=1e-4)


def test_near_duplicates_do_not_cancel():
    gap, one = 2.0**-40, np.ones(1)
    theta = math.sqrt(2 * gap)
    # 1 - f(cos(theta)) = theta^2 / 2 - theta^3 / (3 pi) up to relative order theta^2.
    expected = gap - theta**3 / (3 * math.pi)
    for order, ntk in (("linear-act", theta / math.pi * (1 - gap) + gap), ("act-linear", expected)):
        # K + T = K at depth 1, and Fd = 1 - theta / pi.
        [(of_nngp, of_ntk)] = paths._chain(nd.zoo.chain(1), gap * one, 0 * one, 0 * one, 0.0, order)
        assert of_nngp == pytest.approx(expected, rel=1e-9)
        assert of_ntk == pytest.approx(ntk, rel=1e-9)


def test_rounding_of_the_stem_widens_path_bounds_by_what_it_may_hide():
    """For two inputs at an angle of 1e-9, K(0) equals 1 in float64, but the NTK does not."""
    lambda_min = 1e-9 / math.pi
    dag, ones = nd.zoo.chain(1), np.ones((2, 2))
    assert lambda_min < nd.ntk_path_bound(dag, nd.Kernel(ones, 0 * ones), readout=False).value < 1e-7
    assert 0 < nd.path_bound(dag, ones).value < 1e-14
    assert 1e-7 < nd.path_bound(dag, ones.astype(np.float32)).value < 1e-5


def doubled_layers(num_layers):
    """Returns a graph with 2^num_layers paths, all of one depth."""
    return nd.Dag(num_layers + 1, tuple(Edge(t, t + 1, Op.WEIGHTED) for t in range(num_layers) for _ in range(2)))


@pytest.mark.slow
def test_a_path_bound_beyond_float64_is_infinite():
    k0 = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert math.isfinite(nd.path_bound(doubled_layers(1000), k0).value)
    assert nd.path_bound(doubled_layers(1100), k0, order="act-linear") == nd.PathBound(math.inf, ())


def test_a_path_bound_cannot_be_changed():
    bound = nd.path_bound(nd.Dag.from_code("2"), np.eye(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.value = 0.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_path_bound_compares_at_least_two_inputs():
    with pytest.raises(InputError, match="`stem_kernel` to hold at least 2 inputs, got 1"):
        nd.path_bound(nd.Dag.from_code("2"), np.eye(1))


def near_and_far(rng):
    """Returns inputs, some nearly parallel or opposite, with norms that are nearly equal or differ by up to 10^6."""
    x = []
    for direction in rng.normal(size=(3, 5)):
        x.append(direction)
        for exponent in (-12, -7, -3):
            near = direction + 10.0**exponent * rng.normal(size=5)
            x += [near * np.linalg.norm(direction) / np.linalg.norm(near), near * (1 + 5e-7), near * 1e3]
        x.append(-1e-3 * direction)
    return np.array(x)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "code"), [("linear-act", "2_02"), ("act-linear", "2_21_112")])
def test_inputs_of_any_norms_and_angles_keep_the_bounds(order, code):
    rng = np.random.default_rng(0)
    x, dag = near_and_far(rng), nd.Dag.from_code(code)
    matrices = [nd.kernel(dag, x, order=order, readout=readout) for readout in (False, True)]
    for dtype in (np.float64, np.float32):
        stem = stem_kernels(x.astype(dtype), order)
        for size in (2, 2, 3, 6) * 8:
            rows = (
                rng.choice(len(x), size, replace=False)
                if size > 3
                else 11 * rng.integers(3) + rng.permutation(11)[:size]
            )
            part = np.ix_(rows, rows)
            of_stem = nd.Kernel(np.asarray(stem.nngp)[part], np.asarray(stem.ntk)[part])
            found = [(matrices[0].nngp, nd.path_bound(dag, of_stem.nngp, order=order))]
            for readout, k in enumerate(matrices):
                found.append((k.ntk, nd.ntk_path_bound(dag, of_stem, order=order, readout=bool(readout))))
            for matrix, bound in found:
                eigenvalues = np.linalg.eigvalsh(np.asarray(matrix)[part])
                if bound.is_bound:
                    assert eigenvalues[0] - size * np.finfo(float).eps * eigenvalues[-1] <= bound.value * (1 + 1e-12)
                    # Not trivial: within the loss by the harmonic mean and by rounding of K(0).
                    resolved = 1e-4 if dtype == np.float64 else 1
                    if size == 2 and min(eigenvalues) > resolved * max(eigenvalues):
                        assert bound.value < 4 * eigenvalues[0]


def test_norms_that_differ_a_little_are_not_taken_to_be_equal():
    x = np.random.default_rng(0).normal(size=(10, 60))
    x[1] = x[0] + 1e-3 * x[2]
    x *= 60**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
    x[:2] *= 1 + 5e-7
    k, stem = nd.kernel(nd.Dag.from_code("2_02"), x), stem_kernels(x, "linear-act")
    bound = nd.ntk_path_bound(nd.Dag.from_code("2_02"), stem)
    assert 1 <= bound.value / np.linalg.eigvalsh(np.asarray(k.ntk))[0] < 1.01
    pair = published([2], np.asarray(stem.nngp)[:2, :2])
    assert nd.path_bound(nd.Dag.from_code("2_02"), stem.nngp).value == pytest.approx(pair, rel=1e-6)


def test_different_norms_enter_by_their_harmonic_mean():
    correlations = np.array([[1.0, 0.6], [0.6, 1.0]])
    k0 = correlations * np.outer([1, 2], [1, 2])
    value = nd.path_bound(nd.zoo.chain(2), k0).value
    assert value == pytest.approx(2 * 1 * 4 / 5 * published([2], correlations), rel=1e-10)


def test_the_pair_of_the_smallest_product_need_not_be_the_smallest():
    # 1 - f(f(f(rho))) flattens: a gap of 0.5 at a diagonal of 1 ends below one of 0.2 at 2.2.
    k0 = np.diag([2.2, 2.2, 1.0, 1.0])
    k0[0, 1] = k0[1, 0] = 2.2 * 0.8
    k0[2, 3] = k0[3, 2] = 0.5
    assert nd.path_bound(nd.zoo.chain(3), k0).value == pytest.approx(published([3], k0[2:, 2:]), rel=1e-10)


def test_opposite_inputs_may_be_apart_by_what_rounding_hides():
    """At an angle of pi - d the NTK differs by d / pi from an entry of -1."""
    k0 = np.array([[1.0, -1.0], [-1.0, 1.0]])
    value = nd.ntk_path_bound(nd.zoo.chain(1), nd.Kernel(k0, k0), order="act-linear", readout=False).value
    assert 2 + 1e-9 / math.pi < value < 2 + 1e-6


def test_an_input_of_zero_has_a_path_bound_of_zero():
    stem = nd.Kernel(np.diag([1.0, 0.0]), np.diag([1.0, 0.0]))
    assert nd.path_bound(nd.Dag.from_code("2_02"), stem.nngp).value == 0
    assert nd.ntk_path_bound(nd.Dag.from_code("2_02"), stem).value == 0


def test_the_smallest_pair_is_found_among_different_norms_and_blocks(monkeypatch):
    monkeypatch.setattr("nngp_dag.theory.symmetric._BLOCK_BYTES", 8 * 9 * 2)
    g = np.random.default_rng(0).normal(size=(9, 3))
    k0, dag = g @ g.T, nd.zoo.chain(3)
    pairs = [np.ix_(p, p) for p in itertools.combinations(range(9), 2)]
    by_hand = min(nd.path_bound(dag, k0[pair]).value for pair in pairs)
    assert nd.path_bound(dag, k0).value == pytest.approx(by_hand, rel=1e-12)
    by_hand = min(nd.ntk_path_bound(dag, nd.Kernel(k0[pair], k0[pair])).value for pair in pairs)
    assert nd.ntk_path_bound(dag, nd.Kernel(k0, k0)).value == pytest.approx(by_hand, rel=1e-12)


def test_a_path_bound_needs_a_diagonal_that_is_not_negative():
    with pytest.raises(InputError, match="`stem_kernel` to have no negative diagonal entries, got -1"):
        nd.path_bound(nd.Dag.from_code("2"), np.diag([1.0, -1.0]))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), "`stem_kernel` to be a square matrix"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "`stem_kernel` to be symmetric"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "`stem_kernel` to be finite"),
    ],
)
def test_a_path_bound_needs_a_kernel(matrix, message):
    with pytest.raises(InputError, match=message):
        nd.path_bound(nd.Dag.from_code("2"), matrix)


def test_a_path_bound_knows_two_orders():
    with pytest.raises(InputError, match="`order` to be one of 'linear-act', 'act-linear', got 'linear_act'"):
        nd.path_bound(nd.Dag.from_code("2"), np.eye(2), order="linear_act")


def test_an_array_is_no_pair_of_kernels(unchecked):
    with pytest.raises(InputError, match=r"`stem\.nngp` and `stem\.ntk` of one shape, got \(2, 2\) and \(3, 3\)"):
        nd.ntk_path_bound(nd.Dag.from_code("2"), nd.Kernel(np.eye(2), np.eye(3)))
    with pytest.raises(InputError, match="Expected `stem` to be a `Kernel`, got ndarray"):
        nd.ntk_path_bound(nd.Dag.from_code("2"), np.eye(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"Expected `stem_kernel` to be one matrix, got a `Kernel`; pass its \.nngp"):
        nd.path_bound(nd.Dag.from_code("2"), nd.Kernel(np.eye(2), np.eye(2)))  # pyright: ignore[reportArgumentType]


def test_a_disconnected_graph_has_no_path_bound():
    with pytest.raises(GraphError, match="path from node 0 to the output"):
        nd.path_bound(nd.Dag.from_nasbench201("|none~0|"), np.eye(2))


# The NTK of every path


def stem_kernels(x, order):
    return nd.kernel(nd.Dag.from_code("1"), x, order=order, readout=False)


def published_ntk(depths, x, order, readout):
    """Returns min over i != j of the sum over paths of T_ii - T_ij, with the NTK of every chain by `nd.kernel`."""
    total = np.zeros((len(x), len(x)))
    for depth in depths:
        chain = nd.zoo.chain(depth) if depth else nd.Dag.from_code("1")
        t = np.asarray(nd.kernel(chain, x, order=order, readout=readout).ntk)
        total += np.diag(t)[:, None] - t
    return total[~np.eye(len(x), dtype=bool)].min()


@pytest.mark.parametrize("readout", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("code", ["1", "2_02_002", "1_01_222", "2_21_112", "1_11_111", "2_12_222"])
def test_the_ntk_formula_is_a_sum_over_chains(code, order, readout):
    x = on_sphere(4, seed=5)
    depths = walk(code, code.count("_") + 1)
    bound = nd.ntk_path_bound(nd.Dag.from_code(code), stem_kernels(x, order), order=order, readout=readout)
    assert bound.value == pytest.approx(published_ntk(depths, x, order, readout), rel=1e-9)


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("order", ORDERS)
def test_an_ntk_path_bound_is_an_upper_bound_unless_flagged(order):
    x = np.concatenate([on_sphere(4, seed=2), at_angle(0.3), at_angle(2.0)])
    stem = stem_kernels(x, order)
    exceedances = certain = 0
    for code in CONNECTED[::3]:
        dag = nd.Dag.from_code(code)
        ntk = np.asarray(nd.kernel(dag, x, order=order).ntk)
        for rows in ([0, 1, 2, 3], [4, 5], [6, 7]):
            part = np.ix_(rows, rows)
            bound = nd.ntk_path_bound(dag, nd.Kernel(stem.nngp[part], stem.ntk[part]), order=order)
            certain += bound.is_bound
            if np.linalg.eigvalsh(ntk[part])[0] > bound.value * (1 + 1e-9):
                exceedances += 1
                assert not bound.is_bound, code
    assert exceedances > 30
    assert certain > 100


def test_an_activated_readout_sees_the_sum_at_the_output():
    k0 = np.array([[1.0, 0.5], [0.5, 1.0]])
    stem = nd.Kernel(k0, k0)
    dag = nd.Dag.from_code("2_12")  # paths of depth 2, and of depth 1 through the skip, meet at the output
    assert not nd.ntk_path_bound(dag, stem, order="act-linear").is_bound
    assert nd.ntk_path_bound(dag, stem, order="act-linear", readout=False).is_bound
    assert nd.path_bound(dag, k0, order="act-linear").is_bound


def test_an_ntk_path_bound_refuses_what_it_cannot_use():
    dag, k = nd.Dag.from_code("2"), np.eye(2)
    for name, kernels in (("nngp", (-k, k)), ("ntk", (k, -k))):
        with pytest.raises(InputError, match=rf"`stem\.{name}` to have no negative diagonal entries, got -1"):
            nd.ntk_path_bound(dag, nd.Kernel(*kernels))
    with pytest.raises(InputError, match=r"`stem\.ntk` to be 0 on the diagonal where `stem\.nngp` is"):
        nd.ntk_path_bound(dag, nd.Kernel(np.diag([1.0, 0.0]), k))
    with pytest.raises(InputError, match=r"`stem\.nngp` to hold at least 2 inputs, got 1"):
        nd.ntk_path_bound(dag, nd.Kernel(np.eye(1), np.eye(1)))
    with pytest.raises(InputError, match="`order` to be one of"):
        nd.ntk_path_bound(dag, nd.Kernel(k, k), order="linear")
    with pytest.raises(GraphError, match="path from node 0 to the output"):
        nd.ntk_path_bound(nd.Dag.from_nasbench201("|none~0|"), nd.Kernel(k, k))
