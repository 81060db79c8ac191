"""The GPU kernel of a tile: run by the interpreter, lowered for CUDA, and run on a GPU if there is one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag import activations
from nngp_dag.graph import Edge, Op
from nngp_dag.kernels import choose, device
from nngp_dag.kernels.backends import pallas

DAG = nd.Dag.from_code("2_21_112")
TWO = nd.Dag(
    4,
    (Edge(0, 2, Op.WEIGHTED), Edge(1, 2, Op.SKIP), Edge(2, 3, Op.WEIGHTED)),
    num_inputs=2,
    outputs=(3, 2),
)
# Activations that always take the loop back end, and never this one.
LOOPED = ("tanh", "silu", "swish", "softplus", "elu")
ACTIVATIONS = [
    *(a for a in activations.ACTIVATIONS if a not in LOOPED),
    activations.RectifiedMonomial(2),
    activations.Polynomial((1.0, 2.0, 3.0)),
]


def inputs(n, d=40, distance=1e-9):
    """Returns inputs of which two, in different tiles, nearly coincide, and one is zero."""
    x = np.random.default_rng(4).normal(size=(n, d))
    x[n - 5], x[3] = x[1] + distance, 0
    return x


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Makes all decisions those for a GPU, with small tiles, and runs the GPU kernel in the interpreter."""
    sizes = device._ON_GPU._replace(tile=64, multiple=32)
    monkeypatch.setattr(choose, "block_sizes", lambda: sizes)
    monkeypatch.setattr(choose, "compiles_triton", lambda: True)
    monkeypatch.setattr(choose, "_UNROLLED_ENTRIES", 0)


@pytest.fixture
def interpreted(like_a_gpu, monkeypatch):
    calls = []

    def write_tile(*args, **options):
        calls.append(options)
        return fused_tile(*args, **options, interpret=True)

    fused_tile = pallas.write_tile
    monkeypatch.setattr(pallas, "write_tile", write_tile)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))
    # Otherwise functions that were traced with or without the interpreter would be used again.
    jax.clear_caches()
    yield calls
    jax.clear_caches()


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize(
    ("dag", "options"),
    [
        pytest.param(DAG, {}, id="relu"),
        pytest.param(
            DAG,
            {"activation": "gelu", "b_std": 0.1, "parameterization": "standard", "width": 8},
            id="gelu, standard",
        ),
        pytest.param(DAG, {"order": "act-linear", "activation": "erf", "get": "nngp"}, id="erf first, NNGP"),
        pytest.param(
            DAG,
            {"layer": nd.Dense(activation="relu", layer_norm=True), "stem": nd.Dense(activation=None)},
            id="layer norm",
        ),
        pytest.param(TWO, {}, id="two inputs and outputs"),
    ],
)
def test_kernels_are_those_of_small_calls(dag, options, interpreted):
    """There are three tiles per side, of which the last moves back. Small calls use neither tiles nor this kernel."""
    x = inputs(150)
    whole, few = nd.kernel(dag, x, **options), np.r_[0:5, 60:70, 144:150]
    assert interpreted
    small = nd.kernel(dag, x[few], **options)
    for found, expected in zip(jax.tree.leaves(whole), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(found[np.ix_(few, few)], expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())
        if not options:  # formulas of other activations are not symmetric to the last bit
            np.testing.assert_array_equal(found, found.T)


@pytest.mark.nightly
def test_gradients_are_those_of_small_calls(interpreted):
    x = jnp.asarray(inputs(150), jnp.float32)

    def slope(v, few):
        return jax.grad(lambda v: nd.kernel(DAG, v[few]).ntk[6, 2])(v)

    few = np.r_[0:5, 60:70]
    found = slope(x, np.r_[few, np.setdiff1d(np.arange(150), few)])
    assert interpreted
    expected = slope(x, few)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.sample(0, slow=3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_compiles_for_cuda(activation, dtype, like_a_gpu):
    with jax.enable_x64(dtype == "float64"):
        traced = jax.jit(functools.partial(nd.kernel, DAG, activation=activation)).trace(
            jax.ShapeDtypeStruct((150, 40), dtype)
        )
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("capability", "expected"), [(None, False), ("7.5", False), ("8.0", True), ("12.0", True), ("gfx90a", False)]
)
def test_only_gpus_that_triton_supports_take_it(capability, expected, monkeypatch):
    class Device:
        platform, compute_capability = "gpu", capability

    monkeypatch.setattr(device, "_default_device", Device)
    assert device.compiles_triton() is expected


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="runs on a GPU")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_on_a_gpu_it_agrees_with_small_calls(activation, dtype):
    n = 2 * device.block_sizes().tile + 50
    x = inputs(n, distance=1e-4).astype(dtype)
    few = np.r_[0:5, n - 6 : n]
    k = nd.kernel(DAG, x, activation=activation)
    expected = nd.kernel(DAG, x[few].astype(np.float64), activation=activation)
    bound = 1e-12 if dtype == "float64" else 1e-5
    for whole, small in ((k.nngp, expected.nngp), (k.ntk, expected.ntk)):
        found = np.asarray(whole)[np.ix_(few, few)]
        np.testing.assert_allclose(found, small, rtol=0, atol=bound * np.abs(small).max())
        # For the two inputs that nearly coincide, the difference of the NTK is linear in their angle.
        apart, expected_apart = (v[1, 1] - v[1, 6] for v in (found.astype(np.float64), small))
        np.testing.assert_allclose(apart, expected_apart, rtol=0, atol=bound * np.abs(small).max() / 10)
