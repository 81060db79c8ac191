import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import ORDERS

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.kernels.neural_tangents import neural_tangents as nt
from nngp_dag.kernels.neural_tangents import stax
from nngp_dag.nets import DagNet

X = np.random.default_rng(0).normal(size=(5, 7))
Z = np.random.default_rng(1).normal(size=(3, 7))
HE = 2**0.5
ANY_FAN_IN_WARNS = pytest.mark.filterwarnings("ignore:`FanIn` layers assume independent inputs:UserWarning")


@pytest.fixture(autouse=True)
def _as_neural_tangents_wants_it():
    # neural-tangents relies on rank promotion.
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        yield


def with_readout(dag, order, width=64):
    tail = [stax.Dense(1, W_std=HE)] if order == "linear-act" else [stax.Relu(), stax.Dense(1, W_std=HE)]
    return stax.serial(nd.stax.DagLayer(dag, width, order=order), *tail)


def relative(value, reference):
    return np.abs(np.asarray(value) / np.asarray(reference) - 1).max()


@pytest.mark.parametrize("code", ["2_02_002", "2_21_112", "1_11_212", "0_22_012"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("diagonal_batch", [None, False])
def test_layer_gives_the_kernel(code, order, diagonal_batch):
    dag = nd.Dag.from_code(code)
    _, _, kernel_fn = with_readout(dag, order)
    for z in (None, Z):
        # nt's own layers after ours lose half of the digits on the diagonal of the NTK.
        tolerance = 1e-12 if order == "linear-act" else 1e-8
        k, layer = nd.kernel(dag, X, z, order=order), kernel_fn(X, z, None, diagonal_batch=diagonal_batch)
        assert relative(layer.nngp, k.nngp) < 1e-12
        assert relative(layer.ntk, k.ntk) < tolerance
        assert relative(kernel_fn(X, z, "nngp", diagonal_batch=diagonal_batch), k.nngp) < 1e-12
        variance = np.diag(nd.kernel(dag, X, order=order).nngp)
        assert relative(layer.cov1 if diagonal_batch is None else np.diag(layer.cov1), variance) < 1e-12


@pytest.mark.parametrize("layers", [1, 4])
def test_chain_equals_plain_stax(layers):
    chain = [stax.Dense(1, W_std=HE), stax.Relu()] * (layers + 1)
    _, _, plain = stax.serial(*chain, stax.Dense(1, W_std=HE))
    for order in ORDERS:  # a chain is the same network in both orders
        _, _, layer = with_readout(nd.zoo.chain(layers), order)
        k = nd.kernel(nd.zoo.chain(layers), X, Z, order=order)
        for get in ("nngp", "ntk"):
            assert relative(layer(X, Z, get), plain(X, Z, get)) < 1e-6
            assert relative(getattr(k, get), plain(X, Z, get)) < 1e-6


def stax_graph(dag, order):
    """The graph in nested stax, as its users write it: FanOut, parallel, FanInSum; None where stax refuses."""
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
@pytest.mark.parametrize("code", ["2_22", "1_02_002", "2_02_202", "0_22_012"])
def test_act_linear_graphs_without_shared_branches_equal_plain_stax(code):
    # Branches that part at node 0 and never share a skip: FanInSum's independence holds.
    dag = nd.Dag.from_edges([(e.source, e.target, e.op) for e in nd.Dag.from_code(code).live_edges])
    k = nd.kernel(dag, X, Z, order="act-linear")
    plain = stax_graph(dag, "act-linear")
    _, _, layer = with_readout(dag, "act-linear")
    for get in ("nngp", "ntk"):
        assert relative(getattr(k, get), plain(X, Z, get)) < 1e-6
        assert relative(layer(X, Z, get), plain(X, Z, get)) < 1e-6


@ANY_FAN_IN_WARNS
def test_how_far_stax_is_off_where_skips_share_an_ancestor():
    # X1 = X0 + f(X0), X2 = X0 + X1 = 2 X0 + f(X0): the variance at node 2 is 4 q + q, FanInSum adds q + (q + q).
    dag = nd.Dag.from_edges([(0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 2, 1)])
    exact = np.diag(nd.kernel(dag, X, order="act-linear").nngp)
    wrong = np.diag(stax_graph(dag, "act-linear")(X, None, "nngp"))
    np.testing.assert_allclose(exact / wrong, 5 / 3, rtol=1e-6)


@ANY_FAN_IN_WARNS
def test_stax_refuses_sums_of_activated_branches():
    with pytest.raises(NotImplementedError):
        stax_graph(nd.Dag.from_code("2_12"), "linear-act")(X, Z, "nngp")


@pytest.mark.parametrize("order", ORDERS)
def test_layer_composes_with_layers_before_and_after(order):
    before = [stax.Dense(1, W_std=1.3, b_std=0.4), stax.Relu()]
    chain = [stax.Dense(1, W_std=HE), stax.Relu()] * 3
    after = [stax.Dense(1, W_std=1.1, b_std=0.2), stax.Relu(), stax.Dense(1)]
    layer = nd.stax.DagLayer(nd.zoo.chain(2), 64, order=order)
    _, _, composed = stax.serial(*before, layer, *([] if order == "linear-act" else [stax.Relu()]), *after)
    _, _, plain = stax.serial(*before, *chain, *after)
    for z in (None, Z):
        for get in ("nngp", "ntk"):
            assert relative(composed(X, z, get), plain(X, z, get)) < 1e-6


def test_linear_act_output_is_marked_as_not_gaussian():
    _, _, kernel_fn = stax.serial(nd.stax.DagLayer(nd.Dag.from_code("2_12"), 64), stax.Relu())
    with pytest.raises(ValueError, match="Gaussian"):
        kernel_fn(X, None, "nngp")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("code", ["2_21_112", "0_22_012"])
def test_finite_network_equals_the_flax_one_with_the_same_weights(order, code):
    dag, width = nd.Dag.from_code(code), 16
    init_fn, apply_fn, _ = with_readout(dag, order, width)
    shape, params = init_fn(jax.random.key(0), (-1, X.shape[1]))
    assert shape == (-1, 1)
    (stem, *edges), readout = params[0], params[-1][0]
    net = DagNet(dag, X.shape[1], 1, width=width, order=order, rngs=nnx.Rngs(0))
    for layer, weights in zip([net.stem, *net.edges, net.readout], [stem, *edges, readout], strict=True):
        assert layer.linear.kernel.shape == weights.shape
        layer.linear.kernel = nnx.Param(weights)
    np.testing.assert_allclose(net(jnp.asarray(X)), apply_fn(params, X), rtol=1e-6)


def test_kernel_fn_describes_the_layers_own_finite_network():
    dag = nd.Dag.from_code("1_01_222")
    init_fn, apply_fn, kernel_fn = with_readout(dag, "linear-act", width=512)
    monte_carlo = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), 200)
    x = X.astype(np.float32)
    sampled, exact = np.asarray(monte_carlo(x, None, "nngp")), np.asarray(kernel_fn(x, None, "nngp"))
    # 200 draws of one output: the standard error of each entry is near sqrt(2 / 200) of the scale.
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs((sampled - exact) / scale).max() < 4 * (2 / 200) ** 0.5


def test_bad_arguments():
    dag = nd.Dag.from_code("2")
    with pytest.raises(InputError, match="Expected `width` to be at least 1, got 0"):
        nd.stax.DagLayer(dag, 0)
    with pytest.raises(InputError, match="Expected `order` to be one of"):
        nd.stax.DagLayer(dag, 8, order="other")
    _, _, kernel_fn = nd.stax.DagLayer(dag, 8)
    with pytest.raises(InputError, match=r"put `stax.Flatten\(\)` before it"):
        kernel_fn(np.ones((2, 3, 3, 1)), None, "nngp")
