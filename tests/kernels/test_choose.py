"""The back end that typical calls take, and the text that says so."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.errors import GraphError, InputError
from nngp_dag.kernels import choose, device

CODE = "2_21_112"
SERIES, LOOP, STEPS = "Chebyshev series in the angle", "loop over", "unrolled steps"
IMAGES = (8, 6, 6, 3)


@pytest.mark.parametrize(
    ("network", "shape", "options", "way", "reason"),
    [
        (CODE, (128, 64), {}, SERIES, "ReLU-type activations without biases, one input array"),
        (CODE, (20_000, 784), {"order": "act-linear", "activation": "leaky_relu"}, SERIES, "ReLU-type"),
        (nd.zoo.ladder(40), (128, 64), {}, SERIES, "ReLU-type"),
        (nd.zoo.chain(2_000), (128, 64), {}, LOOP, "no short Chebyshev series is known for it"),
        (CODE, (128, 64), {"b_std": 0.1}, LOOP, "biases, layer norm, or an activation that is not of ReLU type"),
        (CODE, (128, 64), {"layer": nd.Dense(layer_norm=True)}, LOOP, "biases, layer norm, or"),
        (CODE, (128, 64), {"activation": "erf"}, LOOP, "an activation that is not of ReLU type"),
        (CODE, (1_024, 64), {"activation": "erf"}, f"4 {STEPS}", "1,024 x 1,024 entries, and a graph of 4 steps"),
        (CODE, (1_024, 64), {"activation": "tanh"}, LOOP, "an activation that is not of ReLU type"),
        (nd.zoo.ladder(40), (1_024, 64), {"b_std": 0.1}, LOOP, "biases"),
        (CODE, IMAGES, {"layer": nd.Conv(filter_shape=(3, 3))}, STEPS, "convolutions or pooling"),
        (CODE, IMAGES, {}, SERIES, "ReLU-type"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_typical_calls(network, shape, options, way, reason, dtype):
    said = nd.explain(network, jax.ShapeDtypeStruct(shape, dtype), **options)
    assert said.startswith(way)
    assert f", {dtype}; " in said
    assert said.endswith(")")
    assert reason in said.partition(" (")[2]
    tiles = "symmetric tiles" if shape[0] >= 2 * device.block_sizes().tile else "blocks of rows"
    assert tiles in said


def test_what_a_gpu_would_do(monkeypatch):
    monkeypatch.setattr(choose, "block_sizes", lambda: device._ON_GPU)
    monkeypatch.setattr(choose, "compiles_triton", lambda: True)
    large = jax.ShapeDtypeStruct((8_192, 64), "float32")
    assert nd.explain(CODE, large).startswith(
        "4 unrolled steps in one Pallas kernel, float32; symmetric tiles of about"
    )
    assert nd.explain(CODE, large, large).startswith("4 unrolled steps, float32; blocks of rows")
    assert nd.explain(nd.zoo.ladder(40), large).startswith(SERIES)
    monkeypatch.setattr(choose, "compiles_triton", lambda: False)
    assert nd.explain(CODE, large).startswith("4 unrolled steps, float32; symmetric tiles")


def test_inputs_inside_transformations_and_of_several_nodes_take_the_loop():
    said = []

    def value(x):
        said.append(nd.explain(CODE, x))
        return jnp.sum(x)

    jax.grad(value)(jnp.ones((5, 4)))
    assert said[0].startswith(LOOP)
    assert "inputs inside a transformation of JAX" in said[0]
    two = nd.Dag.from_edges([("a", "c", 2), ("b", "c", 1), ("c", "out", 2)], source=["a", "b"])
    x = np.ones((5, 4))
    assert "several input arrays" in nd.explain(two, [x, x.copy()])
    assert nd.explain(two, x).startswith(SERIES)


def test_refusals_are_those_of_kernel(unchecked):
    with pytest.raises(GraphError, match="Expected `network` to be a `Network`, a `Dag`"):
        nd.explain(np.ones((3, 4)), CODE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="Expected `x1` and `x2` to have equally many features, got 4 and 5"):
        nd.explain(CODE, np.ones((3, 4)), np.ones((3, 5)))


def test_the_numbers_of_a_kernel_come_by_the_way_that_is_named(monkeypatch):
    called = []
    series = choose._series
    monkeypatch.setattr(choose, "_series", lambda *args: called.append(args) or series(*args))
    x = np.random.default_rng(0).normal(size=(4, 6))
    choices: tuple[tuple[dict[str, Any], str], ...] = (({}, SERIES), ({"b_std": 0.1}, LOOP))
    for options, expected in choices:
        called.clear()
        assert nd.explain(as_network(CODE, **options), x).startswith(expected)
        nd.kernel(CODE, x, **options)
        assert len(called) == (2 if expected == SERIES else 0)


@pytest.mark.usefixtures("unchecked")
def test_shapes_stand_for_arrays_and_are_checked_like_them():
    def of(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    two = nd.Dag.from_edges([("a", "c", "weighted"), ("b", "c", "skip")], source=["a", "b"])
    assert nd.explain(two, [of(7, 5), of(7, 5)]).endswith("(several input arrays)")
    for shape in ((), (0, 5), (5,)):
        with pytest.raises(InputError, match=r"Expected `x1` to have shape \(N, features\.\.\.\)"):
            nd.explain("2", of(*shape))
    with pytest.raises(InputError, match="Expected `x2` to have at most 100,000,000 features"):
        nd.explain("2", of(7, 5), of(7, 9_999_999_999))
