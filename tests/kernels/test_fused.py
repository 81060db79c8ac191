"""The GPU kernel of a tile: run by its interpreter, lowered for CUDA, and, where there is a GPU, run on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.graph import Edge, Op, build_network
from nngp_dag.kernels import blocks, device, fused
from nngp_dag.kernels.kernel import evaluation, make_rules, weights_of

DAG = nd.Dag.from_code("2_21_112")
TWO = nd.Dag(
    4,
    (Edge(0, 2, Op.WEIGHTED), Edge(1, 2, Op.SKIP), Edge(2, 3, Op.WEIGHTED)),
    num_inputs=2,
    outputs=(3, 2),
)
ACTIVATIONS = ["relu", "leaky_relu", "abs", "identity", "erf", "gelu", "sin", "exp", "gaussian", "gabor"]


def planned(dag, dtype, **options):
    options = {"activation": "relu", "order": "linear-act", "w_std": 2**0.5, "b_std": None} | options
    network = build_network(dag, layer=None, aggregation="sum", stem=None, **options)
    plan = evaluation(network, True, "flatten", make_rules("ntk", None), True, True)
    assert not plan.spec.loop
    return plan, weights_of(plan, np.dtype(dtype))


def inputs(dag, n, d=40):
    """For every input node, with two inputs that nearly coincide, in different tiles, and one that is zero."""
    x = np.random.default_rng(4).normal(size=(n, d))
    x[n - 5], x[3] = x[1] + 1e-9, 0
    return [x] * dag.num_inputs


@pytest.fixture
def small_tiles(monkeypatch):
    sizes = device.block_sizes()._replace(tile=64, multiple=32)
    for module in (device, blocks):
        monkeypatch.setattr(module, "block_sizes", lambda: sizes)


@pytest.mark.parametrize(
    ("dag", "options"),
    [
        (DAG, {}),
        (DAG, {"activation": "gelu", "b_std": 0.1}),
        (nd.Dag.from_code("2_21_112"), {"order": "act-linear", "activation": "erf"}),
        (TWO, {}),
    ],
    ids=["relu", "gelu with biases", "erf first", "two inputs and outputs"],
)
def test_interpreted_it_agrees_with_the_plain_tiles(dag, options, small_tiles, monkeypatch):
    plan, weights = planned(dag, "float64", **options)
    monkeypatch.setattr(fused, "write_tile", functools.partial(fused.write_tile, interpret=True))
    with jax.enable_x64(True):
        # Two tiles, of which the second moves back.
        x = [jnp.asarray(v) for v in inputs(dag, 150)]
        plain, found = (
            jax.jit(functools.partial(blocks._symmetric, plan.spec, plan.space, fused=how))(weights, x)
            for how in (False, True)
        )
    assert len(found) == len(plain) == len(dag.outputs)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-14 * np.abs(theirs).max())
        if not options:  # formulas of other activations are not symmetric to the last bit
            np.testing.assert_array_equal(mine, mine.T)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_compiles_for_cuda(activation, dtype, small_tiles, monkeypatch):
    monkeypatch.setattr(blocks, "on_gpu", lambda: True)
    plan, weights = planned(DAG, dtype, activation=activation)
    with jax.enable_x64(dtype == "float64"):
        x = [jax.ShapeDtypeStruct((150, 40), dtype)]
        jax.clear_caches()
        lowered = blocks.kernel_of_inputs.trace(weights, x, None, spec=plan.spec, space=plan.space).lower(
            lowering_platforms=("cuda",)
        )
    assert "triton" in lowered.as_text()
    jax.clear_caches()


def test_gradients_are_those_of_the_plain_tiles(small_tiles, monkeypatch):
    plan, weights = planned(DAG, "float32")
    x = [jnp.asarray(v, jnp.float32) for v in inputs(DAG, 150)]

    def slope(function):
        return jax.grad(lambda v: function(weights, [v])[0][1][18, 2])(x[0])

    found = slope(functools.partial(blocks._fused, plan.spec, plan.space))
    expected = slope(functools.partial(blocks._symmetric, plan.spec, plan.space))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="runs on a GPU")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_on_a_gpu_it_agrees_with_small_calls(activation, dtype):
    n = 2 * device.block_sizes().tile + 50
    [x] = inputs(DAG, n)
    few = np.r_[0:5, n - 6 : n]
    k = nd.kernel(DAG, x.astype(dtype), activation=activation)
    expected = nd.kernel(DAG, x[few], activation=activation)
    for found, small in ((k.nngp, expected.nngp), (k.ntk, expected.ntk)):
        scale = np.abs(small).max()
        bound = 1e-12 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(np.asarray(found)[np.ix_(few, few)], small, rtol=0, atol=bound * scale)
        np.testing.assert_allclose(found, np.asarray(found).T, rtol=0, atol=bound / 10 * scale)
