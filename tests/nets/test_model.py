import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import ORDERS

from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import Dag
from nngp_dag.nets import DagNet, as_functions

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def net(code="2_21_112", *, order="linear-act", parameterisation="ntk", width=32, seed=0):
    options = {"width": width, "order": order, "parameterisation": parameterisation}
    return DagNet(Dag.from_code(code), 6, 3, rngs=nnx.Rngs(seed), **options)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("parameterisation", ["ntk", "standard"])
@pytest.mark.parametrize("order", ORDERS)
def test_network_against_a_hand_written_forward_pass(order, parameterisation):
    model = net(order=order, parameterisation=parameterisation)

    def dense(layer, x):
        weights = np.asarray(layer.linear.kernel[...])
        return x @ weights * ((2 / weights.shape[0]) ** 0.5 if parameterisation == "ntk" else 1)

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


@pytest.mark.parametrize(("parameterisation", "std"), [("ntk", 1.0), ("standard", (2 / 400) ** 0.5)])
def test_he_initialisation(parameterisation, std):
    weights = np.asarray(net("2", parameterisation=parameterisation, width=400).edges[0].linear.kernel[...])
    # 160,000 weights: the standard deviation is known to 0.2 %, its mean to 0.3 % of it.
    assert weights.std() == pytest.approx(std, rel=0.01)
    assert weights.mean() == pytest.approx(0, abs=0.01 * std)


def test_parameterisations_describe_the_same_function():
    ntk, standard = net(parameterisation="ntk"), net(parameterisation="standard")
    for a, b in zip(
        [ntk.stem, *ntk.edges, ntk.readout], [standard.stem, *standard.edges, standard.readout], strict=True
    ):
        scale = (2 / a.linear.kernel.shape[0]) ** 0.5
        b.linear.kernel = nnx.Param(scale * a.linear.kernel[...])
    np.testing.assert_allclose(ntk(jnp.asarray(X)), standard(jnp.asarray(X)), rtol=1e-5, atol=1e-5)


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


def test_pure_functions_equal_the_module():
    init, apply = as_functions(lambda rngs: DagNet(Dag.from_code("2_12"), 6, 3, width=8, rngs=rngs))
    key = jax.random.key(3)
    model = DagNet(Dag.from_code("2_12"), 6, 3, width=8, rngs=nnx.Rngs(params=key))
    np.testing.assert_array_equal(apply(init(key), X), model(jnp.asarray(X)))


def test_seeds_decide():
    np.testing.assert_array_equal(net(seed=1)(jnp.asarray(X)), net(seed=1)(jnp.asarray(X)))
    assert not np.allclose(net(seed=1)(jnp.asarray(X)), net(seed=2)(jnp.asarray(X)))


def test_bad_arguments():
    with pytest.raises(InputError, match="Expected `width` to be at least 1, got 0"):
        net(width=0)
    with pytest.raises(InputError, match="Expected `order` to be one of 'linear-act', 'act-linear', got 'other'"):
        net(order="other")
    with pytest.raises(InputError, match="Expected `parameterisation` to be one of 'ntk', 'standard', got 'mup'"):
        net(parameterisation="mup")
    disconnected = Dag(3, (), allow_disconnected=True)
    with pytest.raises(GraphError, match="Expected a path from node 0 to the output node 2"):
        DagNet(disconnected, 6, 1, width=8, rngs=nnx.Rngs(0))
