import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import programs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ORDERS, dags, joint_kernel

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.errors import GraphError, InputError
from nngp_dag.kernels import blocking, choose
from nngp_dag.kernels.device import block_sizes
from nngp_dag.kernels.weights import weights_of

X = np.random.default_rng(0).normal(size=(5, 7))
Z = np.random.default_rng(1).normal(size=(3, 7))


def relative(value, reference):
    scale = np.sqrt(np.outer(np.abs(reference).max(axis=1), np.abs(reference).max(axis=0)))
    return np.abs(np.asarray(value) - reference).max() / scale.max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_golden_kernels(golden_kernels, dtype, tolerance):
    x = np.array(golden_kernels["inputs"], dtype)
    off_diagonal = ~np.eye(len(x), dtype=bool)
    unknown = {entry["code"] for entry in golden_kernels["dags"] if np.isnan(entry["nngp_node"]).any()}
    # The file has NaN where a node has no inputs; the next test checks that case.
    assert unknown == {"0_22_012"}
    for entry in golden_kernels["dags"]:
        if entry["code"] in unknown:
            continue
        for readout, suffix in ((False, "node"), (True, "out")):
            k = nd.kernel(nd.Dag.from_code(entry["code"]), x, readout=readout)
            nngp, ntk = np.asarray(k.nngp), np.asarray(k.ntk)
            assert nngp.dtype == ntk.dtype == dtype
            np.testing.assert_allclose(nngp, entry[f"nngp_{suffix}"], rtol=tolerance)
            expected = np.array(entry[f"ntk_{suffix}"])
            # Some entries are sums that cancel, with the rounding errors of their terms, which the diagonal bounds.
            rounding = np.finfo(dtype).eps * expected.max()
            np.testing.assert_allclose(ntk[off_diagonal], expected[off_diagonal], rtol=tolerance, atol=rounding)
            # The diagonals of the NTK in the file have the rounding errors of arccos near 1, up to 1.1e-8. Ours do not
            # (see the next test).
            np.testing.assert_allclose(np.diag(ntk), np.diag(expected), rtol=max(tolerance, 2e-8))


def test_a_node_without_inputs_is_zero():
    # In 0_22_012 no edge enters node 1, so that 1->2 and the skip 1->3 carry zeros, and a chain is left.
    with_dead, chain = nd.kernel(nd.Dag.from_code("0_22_012"), X), nd.kernel(nd.Dag.from_code("2_02"), X)
    np.testing.assert_allclose(with_dead.nngp, chain.nngp, rtol=1e-14)
    np.testing.assert_allclose(with_dead.ntk, chain.ntk, rtol=1e-14)


@pytest.mark.parametrize("layers", [1, 3, 8])
def test_diagonal_of_a_chain_is_exact(layers):
    # K(t)_ii = |x_i|^2 / d at every node and T(t)_ii = (t + 1) K_ii, since the angle of an input with itself is 0.
    k = nd.kernel(nd.zoo.chain(layers), X)
    q = (X**2).mean(axis=1)
    np.testing.assert_allclose(np.diag(k.nngp), 2 * q, rtol=1e-14)
    np.testing.assert_allclose(np.diag(k.ntk), 2 * (layers + 2) * q, rtol=1e-14)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(dag=dags(), order=st.sampled_from(ORDERS), readout=st.booleans())
def test_kernel_equals_the_joint_recursion_over_all_pairs_of_nodes(dag, order, readout):
    for z in (None, Z):
        k = nd.kernel(dag, X, z, order=order, readout=readout)
        nngp, ntk = joint_kernel(dag, X, X if z is None else z, order, readout)
        assert relative(k.nngp, nngp) < 1e-13
        # The arccos of the oracle loses half of the digits where x and x2 coincide, which is on its diagonal here.
        assert relative(k.ntk, ntk) < (1e-13 if z is not None else 3e-8)


@pytest.mark.sample(0, slow=2)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dag", [nd.zoo.ladder(11), nd.zoo.random_dag(10, seed=1)], ids=str)
def test_graphs_beyond_the_unrolled_recursion(dag, order):
    for readout in (True, False):
        k = nd.kernel(dag, X, Z, order=order, readout=readout)
        nngp, ntk = joint_kernel(dag, X, Z, order, readout)
        assert relative(k.nngp, nngp) < 1e-13
        assert relative(k.ntk, ntk) < 1e-13


def test_a_deep_graph_compiles_all_the_same():
    k = nd.kernel(nd.zoo.chain(300), X)
    q = (X**2).mean(axis=1)
    np.testing.assert_allclose(np.diag(k.ntk), 2 * 302 * q, rtol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_float32_is_accurate(order):
    dag = nd.Dag.from_code("2_21_112")
    exact, single = nd.kernel(dag, X, order=order), nd.kernel(dag, X.astype(np.float32), order=order)
    assert relative(single.nngp, np.asarray(exact.nngp)) < 1e-6
    assert relative(single.ntk, np.asarray(exact.ntk)) < 1e-6


@pytest.mark.parametrize("order", ORDERS)
def test_kernels_are_symmetric_and_positive_definite(order):
    k = nd.kernel(nd.Dag.from_code("2_12_112"), X, order=order)
    for matrix in (k.nngp, k.ntk, k.ntk - k.nngp):
        np.testing.assert_allclose(matrix, np.asarray(matrix).T, rtol=1e-13)
        assert np.linalg.eigvalsh(np.asarray(matrix))[0] > 0


@pytest.mark.parametrize("order", ORDERS)
def test_zero_input_has_zero_rows(order):
    x = X.copy()
    x[2] = 0
    for z in (None, x):
        k = nd.kernel(nd.Dag.from_code("2_21_112"), x, z, order=order)
        for matrix in (np.asarray(k.nngp), np.asarray(k.ntk)):
            assert np.isfinite(matrix).all()
            assert not matrix[2].any()
            assert not matrix[:, 2].any()
            assert (np.diag(matrix) > 0).sum() == 4


@pytest.mark.sample(2)
@pytest.mark.parametrize("norm", [1.0, 7.0])
@pytest.mark.parametrize(("dtype", "angles"), [(np.float64, (1e-9, 1e-6, 1e-3)), (np.float32, (1e-4, 1e-3, 1e-2))])
def test_the_angle_of_inputs_that_nearly_coincide_is_kept(dtype, angles, norm):
    # T(0) = r (1 - theta / pi) cos(theta): to first order its gap to r is the angle. The angle comes from the rounded
    # inputs; arccos of their correlation would lose all of it.
    for angle in angles:
        x = np.array([[1, 0], [np.cos(angle), np.sin(angle)]], dtype) * norm
        theta = np.arctan2(float(x[1, 1]), float(x[1, 0]))
        for z in (None, x):
            ntk = np.asarray(nd.kernel(nd.Dag.from_code("1"), x, z, readout=False).ntk, np.float64) * 2 / norm**2
            np.testing.assert_allclose(
                1 - ntk[0, 1], 1 - (1 - theta / np.pi) * np.cos(theta), atol=4 * np.finfo(dtype).eps
            )


def test_tiny_inputs_do_not_underflow():
    tiny = nd.kernel(nd.Dag.from_code("2_21_112"), (1e-15 * X).astype(np.float32))
    usual = nd.kernel(nd.Dag.from_code("2_21_112"), X)
    np.testing.assert_allclose(np.asarray(tiny.ntk, np.float64) * 1e30, usual.ntk, rtol=1e-5)


def test_images_are_flattened_and_one_input_is_enough():
    image = np.random.default_rng(2).uniform(size=(1, 3, 3, 2))
    k = nd.kernel(nd.Dag.from_code("2"), image)
    assert k.nngp.shape == k.ntk.shape == (1, 1)
    np.testing.assert_allclose(k.nngp[0, 0], 2 * (image**2).mean(), rtol=1e-14)


def planned(dag, **options):
    """Returns the plan of a network for large kernels, and its numbers in float32."""
    network = as_network(dag, **options)
    plan = choose.choose(network, choose.Problem(1024, 1024, True, 64, np.dtype(np.float32), traced=True))
    assert plan.spec.loop == (dag.num_nodes > 4)
    return plan, weights_of(plan, np.dtype(np.float32))


@pytest.mark.parametrize("order", [ORDERS[0], pytest.param(ORDERS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_unrolled_form_of_large_kernels_equals_the_loop(order, symmetric, monkeypatch):
    x = X.copy()
    x[2] = 0
    options = {"x2": None if symmetric else Z, "order": order}
    for code in ("2_21_112", "1_11_212"):
        monkeypatch.undo()
        loop = nd.kernel(nd.Dag.from_code(code), x, **options)
        monkeypatch.setattr(choose, "_UNROLLED_ENTRIES", 0)
        unrolled = nd.kernel(nd.Dag.from_code(code), x, **options)
        np.testing.assert_allclose(unrolled.nngp, loop.nngp, rtol=1e-14)
        np.testing.assert_allclose(unrolled.ntk, loop.ntk, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dag",
    [
        pytest.param(nd.Dag.from_code("2_12"), marks=pytest.mark.slow, id="small"),
        pytest.param(nd.zoo.ladder(9), id="ladder"),
    ],
)
@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_rows_beyond_one_block_agree_with_small_calls(dag, symmetric, monkeypatch):
    whole = nd.kernel(dag, X, None if symmetric else Z)
    # Products in blocks of two rows and a remainder of one, and the recursion row by row.
    few = block_sizes()._replace(product=10, block=5)
    monkeypatch.setattr(choose, "block_sizes", lambda: few)
    in_blocks = nd.kernel(dag, X, None if symmetric else Z)
    np.testing.assert_allclose(in_blocks.nngp, whole.nngp, rtol=1e-14)
    np.testing.assert_allclose(in_blocks.ntk, whole.ntk, rtol=1e-14)


TILED = pytest.mark.parametrize(
    "dag",
    [
        pytest.param(nd.Dag.from_code("2_21_112"), id="small"),
        pytest.param(nd.zoo.ladder(9), id="ladder", marks=pytest.mark.nightly),
    ],
)


@pytest.fixture
def in_tiles(monkeypatch):
    """The inputs fill two tiles and a remainder. Two of them, in different tiles, nearly coincide, and one is zero."""
    x = np.random.default_rng(4).normal(size=(20, 200))
    x[15], x[3] = x[1] + 1e-9, 0

    def both(of):
        with monkeypatch.context() as patch:
            patch.setattr(choose, "block_sizes", lambda: block_sizes()._replace(tile=4))
            tiled = of(x)
        return tiled, of(x)

    return both


@TILED
def test_symmetric_tiles_agree_with_the_whole(dag, in_tiles):
    tiled, whole = in_tiles(lambda x: nd.kernel(dag, x))
    for found, expected in ((tiled.nngp, whole.nngp), (tiled.ntk, whole.ntk)):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())


@TILED
@pytest.mark.slow
def test_gradients_of_symmetric_tiles_agree_with_the_whole(dag, in_tiles):
    def slope(x):
        return jax.grad(lambda v: nd.kernel(dag, v).ntk[18, 2])(jnp.asarray(x, jnp.float32))

    tiled, whole = in_tiles(slope)
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("sign", [1, -1], ids=["close", "opposite"])
@pytest.mark.parametrize("cell", [0, 16], ids=["by rows", "by cells"])
def test_many_inputs_that_nearly_coincide_keep_their_angles(monkeypatch, cell, sign):
    """There are more such inputs than the first list of cells holds, in tiles with a remainder, and distant inputs."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(150, 40))
    x[50:100] = sign * x[:50] + 1e-6 * rng.normal(size=(50, 40))
    x[100:110] = sign * x[3] + 1e-6 * rng.normal(size=(10, 40))
    dag = nd.Dag.from_code("2_21_112")
    pairs = [(i, i + 50) for i in range(0, 50, 7)] + [(3, 104), (53, 104), (101, 108), (60, 20)]
    # The expected entries come from one call per pair.
    expected = [float(nd.kernel(dag, x[i : i + 1], x[j : j + 1]).ntk[0, 0]) for i, j in pairs]
    for size in (70, 416):
        tiles = block_sizes()._replace(tile=size, cell=cell)
        monkeypatch.setattr(choose, "block_sizes", lambda tiles=tiles: tiles)
        found = np.asarray(nd.kernel(dag, x).ntk)
        np.testing.assert_allclose([found[i, j] for i, j in pairs], expected, rtol=1e-13)


@pytest.mark.nightly
def test_kernels_map_over_sets_of_inputs_and_have_second_derivatives():
    """Each set has a pair of inputs that nearly coincide."""
    x = np.random.default_rng(7).normal(size=(2, 4, 6))
    x[:, 3] = x[:, 0] + 1e-7
    dag = nd.Dag.from_code("1_12")

    def ntk(v):
        return nd.kernel(dag, v).ntk

    with jax.enable_x64(True):
        mapped = jax.vmap(ntk)(jnp.asarray(x))
        np.testing.assert_allclose(mapped, [ntk(one) for one in x], rtol=1e-13)
        curvature = jax.hessian(lambda v: ntk(v)[1, 2])(jnp.asarray(x[0]))[1, 0, 2]
        step = np.zeros((4, 6))
        step[1, 0] = 1e-5
        slope = jax.grad(lambda v: ntk(v)[1, 2])
        both = [np.asarray(slope(jnp.asarray(x[0] + sign * step)))[2] for sign in (1, -1)]
        np.testing.assert_allclose(curvature, (both[0] - both[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("dag", [nd.Dag.from_code("2_21_112"), nd.zoo.ladder(9)], ids=["unrolled", "loop"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_temporary_grows_as_n_squared(dag, symmetric):
    n = 4096 if jax.default_backend() == "cpu" else 49152
    plan, weights = planned(dag)
    x = [jax.ShapeDtypeStruct((n, 64), jnp.float32)]
    compiled = blocking.kernel_of_inputs.lower(
        weights, x, None if symmetric else x, spec=plan.spec, layout=plan.layout
    ).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.output_size_in_bytes >= 2 * n * n * 4
    # The memory is that of a few blocks of rows, whatever N is.
    assert memory.temp_size_in_bytes < 12 * block_sizes().product * 4 < n * n * 4 / 2


def test_checks_of_results_allocate_nothing_of_their_size(monkeypatch):
    sizes = []

    def is_finite(values):
        sizes.append(checked.lower(values).compile().memory_analysis().temp_size_in_bytes)
        return checked(values)

    module = sys.modules["nngp_dag.kernels.result"]
    checked = module._is_finite
    monkeypatch.setattr(module, "_is_finite", is_finite)
    nd.kernel(nd.Dag.from_code("2"), np.tile(X, (40, 1)).astype(np.float32))
    assert len(sizes) == 2
    assert max(sizes) < 1000


def test_dags_of_one_size_share_one_compilation():
    x = X[:, :4].astype(np.float32)
    nd.kernel(nd.Dag.from_code("2_21_112"), x)
    compiled = programs(blocking.kernel_of_inputs)
    for code in ("2_02_002", "1_01_222", "2_22_222", "1_11_111"):
        nd.kernel(nd.Dag.from_code(code), x)
    assert programs(blocking.kernel_of_inputs) == compiled


@pytest.mark.slow
def test_kernel_runs_inside_jit_and_grad():
    dag = nd.Dag.from_code("2_12")

    def trace(x):
        return jnp.trace(nd.kernel(dag, x).ntk)

    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(jax.jit(trace)(x), trace(x), rtol=1e-5)
    # The trace is a quadratic form in each input, so x . grad = 2 trace.
    np.testing.assert_allclose(jnp.sum(x * jax.grad(trace)(x)), 2 * trace(x), rtol=1e-5)


@pytest.mark.slow
def test_numpy_data_inside_jit():
    dag, z = nd.Dag.from_code("2_12"), jnp.asarray(Z, jnp.float32)
    expected = nd.kernel(dag, X, Z).ntk
    np.testing.assert_allclose(jax.jit(lambda z: nd.kernel(dag, X, z).ntk)(z), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda: nd.kernel(dag, X, Z).ntk)(), expected, rtol=1e-4)


@pytest.mark.slow
def test_constants_of_jax_inside_jit_are_checked():
    dag, x, z = nd.Dag.from_code("2_12"), jnp.asarray(X, jnp.float32), jnp.asarray(Z, jnp.float32)
    expected = nd.kernel(dag, x, z).ntk
    np.testing.assert_allclose(jax.jit(lambda z: nd.kernel(dag, x, z).ntk)(z), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda s: s * nd.kernel(dag, x, z).ntk)(1.0), expected, rtol=1e-4)
    bad = z.at[1, 0].set(jnp.nan)
    with pytest.raises(InputError, match=r"`x2` to be finite, got NaN or infinity in row 1"):
        jax.jit(lambda s: s * nd.kernel(dag, x, bad).ntk)(1.0)


def test_dtype_follows_the_input_and_configuration_stays():
    dag = nd.Dag.from_code("2")
    before = jax.config.read("jax_enable_x64")
    dtypes = [nd.kernel(dag, X.astype(d)).ntk.dtype for d in (np.float64, np.float32, np.float16, np.int32)]
    assert dtypes == [np.float64, np.float32, np.float32, np.float32]
    assert nd.kernel(dag, X, Z.astype(np.float32)).ntk.dtype == np.float64
    assert jax.config.read("jax_enable_x64") == before


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_doubles_of_jax_are_checked_as_doubles_where_float64_is_off(scale):
    with jax.enable_x64(True):
        inside, outside = jnp.asarray(1e100 * X), jnp.asarray(scale * X)
    assert nd.kernel(nd.Dag.from_code("2"), inside).nngp.dtype == np.float64
    with pytest.raises(InputError, match=r"largest entry of every row of `x1` between 1e-150 and 1e\+150, got \d"):
        nd.kernel(nd.Dag.from_code("2"), outside)


def test_kernel_is_a_pytree():
    k = nd.kernel(nd.Dag.from_code("2"), X)
    doubled = jax.tree.map(lambda a: 2 * np.asarray(a), k)
    assert isinstance(doubled, nd.Kernel)
    np.testing.assert_array_equal(doubled.nngp, 2 * np.asarray(k.nngp))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((np.full((2, 3), np.nan),), r"Expected `x1` to be finite, got NaN or infinity in row 0"),
        ((X, np.where(np.arange(7) == 3, np.inf, Z)), r"Expected `x2` to be finite"),
        ((X, Z[:, :5]), r"equally many features, got 7 and 5"),
        ((np.zeros((0, 7)),), r"Expected `x1` to have shape \(N, features\.\.\.\)"),
        ((np.ones(7),), r"Expected `x1` to have shape \(N, features\.\.\.\)"),
        ((X.astype(complex),), r"Expected `x1` to hold real numbers, got dtype complex128"),
        ((np.array([["a"]]),), r"Expected `x1` to hold real numbers"),
        ((1e20 * X.astype(np.float32),), r"between 1e-17 and 1e\+17, got .* in row 0; rescale"),
        ((X, 1e-200 * Z), r"`x2` between 1e-150 and 1e\+150"),
    ],
)
def test_bad_inputs(arguments, match):
    with pytest.raises(InputError, match=match):
        nd.kernel(nd.Dag.from_code("2"), *arguments)


@pytest.mark.parametrize("rows", [4, 512])
def test_one_nan_among_many_numbers_is_found(rows):
    # The maximum of jax 0.10 on CPU loses the NaN.
    x = jnp.ones((rows, 784)).at[3, 5].set(jnp.nan)
    with pytest.raises(InputError, match=r"`x1` to be finite, got NaN or infinity in row 3"):
        nd.kernel(nd.Dag.from_code("2"), x)


@pytest.mark.parametrize("n", [4, 128])
def test_one_overflow_in_a_large_kernel_is_found(n):
    x = np.ones((n, 8), np.float32)
    x[3] = 5e16
    with pytest.raises(InputError, match="Expected kernels that float32 can hold"):
        nd.kernel(nd.Dag.from_code("2"), x, w_std=100.0)


def test_bad_options():
    dag = nd.Dag.from_code("2")
    with pytest.raises(InputError, match="Expected `order` to be one of 'linear-act', 'act-linear', got 'relu'"):
        nd.kernel(dag, X, order="relu")
    with pytest.raises(
        InputError, match=r"Expected `activation` to be one of relu, .*, got 'sech'; any other function"
    ):
        nd.kernel(dag, X, activation="sech")
    disconnected = nd.Dag.from_nasbench201("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    with pytest.raises(GraphError, match="Expected a path from node 0 to the output node 3"):
        nd.kernel(disconnected, X)
