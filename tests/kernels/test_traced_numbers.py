"""Kernels as functions of the network's numbers: values and derivatives inside transformations of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import nngp_dag as nd
from nngp_dag.activations import Elu, Exp, Polynomial, Quadrature, RectifiedMonomial, Sin, Tanh, leaky_relu
from nngp_dag.errors import InputError
from nngp_dag.kernels import choose

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3))
# A duplicate, parallel and opposite inputs, an input of zeros, and one at a distance of 1e-9.
SPECIAL = np.concatenate([X, X[:1], 2 * X[:1], -X[:1], np.zeros((1, 3)), X[:1] + 1e-9])
IMAGES = RNG.normal(size=(2, 4, 4, 2))
WEIGHTED, SKIP = nd.Op.WEIGHTED, nd.Op.SKIP
ERF = nd.Dense(activation="erf", w_std=1.2)

NETWORKS = {
    "code": nd.Network("2_21_112", layer=nd.Dense(b_std=0.3), aggregation="mean"),
    "parallel": nd.Network(
        [
            (0, 1, "weighted"),
            (0, 1, "weighted"),
            (0, 1, "skip"),
            (0, 2, nd.Scale(-0.5)),
            (1, 2, "weighted"),
            (1, 2, "skip"),
        ]
    ),
    "own": nd.Network(
        [(0, 1, ERF), (0, 1, ERF), (1, 2, "skip"), (0, 2, nd.Dense())],
        layer=nd.Dense(activation="sin", b_std=0.1),
        parameterization="standard",
        width=64,
    ),
    # An operation of an edge's own that equals the layer keeps its numbers when those of the layer change.
    "equal to the layer": nd.Network([(0, 1, "weighted"), (1, 2, nd.Dense(b_std=0.3))], layer=nd.Dense(b_std=0.3)),
    "ladder": nd.Network(nd.zoo.ladder(7), layer=nd.Dense(b_std=0.1)),
    "two inputs": nd.Network(
        nd.Dag(4, (nd.Edge(0, 2, WEIGHTED), nd.Edge(1, 2, SKIP), nd.Edge(2, 3, WEIGHTED)), num_inputs=2)
    ),
    "pool": nd.Network(
        [(0, 1, "weighted"), (0, 1, nd.AvgPool((2, 2))), (1, 2, nd.SumPool((2, 2))), (0, 2, "skip")],
        layer=nd.Conv(filter_shape=(2, 2), b_std=0.2),
    ),
    "conv": nd.Network("2_12", layer=nd.Conv(filter_shape=(3, 3)), image_readout="global-average"),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def inputs_of(net):
    return IMAGES if net.image_operations else X


def changed(net, seed=0):
    """Returns parameters of a network, each moved by up to a fifth, and weights of edges with either sign."""
    flat, join = ravel_pytree(net.parameters())
    rng = np.random.default_rng(seed)
    moved = join(flat * rng.uniform(0.8, 1.2, len(flat)))
    for numbers in moved["edges"].values():
        name = "factor" if "factor" in numbers else "weight"
        numbers[name] = numbers[name] * rng.choice([-1, 1])
    return moved


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("name", NETWORKS)
def test_traced_numbers_have_the_kernels_of_a_network_with_these_numbers(name):
    net = NETWORKS[name]
    theta = changed(net)
    # The second way: weights of edges become nodes and scales, and numbers are known.
    expected = nd.kernel(net.with_parameters(theta), inputs_of(net))
    assert nd.kernel(net, inputs_of(net), parameters=theta).network == net.with_parameters(theta)
    found = jax.jit(lambda numbers: nd.kernel(net, inputs_of(net), parameters=numbers))(theta)
    # Covariances of pixels carry no gap, so that small angles have half the digits.
    rtol = 1e-9 if net.image_operations else 1e-12
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=rtol)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=rtol)


def both(net, x, join):
    """Returns the function from a vector of numbers to NNGP and NTK, compiled."""

    @jax.jit
    def of(flat):
        k = nd.kernel(net, x, parameters=join(flat))
        return jnp.stack([k.nngp, k.ntk])

    return of


def check_gradient(net, x, tolerance=1e-6):
    flat, join = ravel_pytree(changed(net))
    along = jnp.asarray(np.random.default_rng(1).normal(size=flat.shape))
    of = both(net, x, join)
    _, slope = jax.jvp(of, (flat,), (along,))

    def over(step):
        return (of(flat + step * along) - of(flat - step * along)) / (2 * step)

    # Covariances of pixels carry no gap. Where inputs meet themselves, the angle is then wrong by the root of the
    # rounding, which a short step would magnify. A long one has its error of second order extrapolated away.
    difference = (4 * over(1e-3) - over(2e-3)) / 3 if net.image_operations else over(1e-5)
    assert bool(jnp.isfinite(slope).all())
    scale = np.abs(difference).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(slope / scale, difference / scale, atol=tolerance)


ACTIVATIONS = [
    "relu",
    leaky_relu(0.3),
    "abs",
    "erf",
    "gelu",
    "tanh",
    Tanh(0.5, 0.7, 0.2),
    "silu",
    "softplus",
    Elu(0.5),
    "sin",
    Sin(1.1, 0.8, 0.3),
    "cos",
    "gaussian",
    Exp(0.5, 0.4),
    "gabor",
    RectifiedMonomial(0),
    RectifiedMonomial(2),
    RectifiedMonomial(3),
    Polynomial([0.1, 1.0, 0.2, 0.05]),
    Quadrature(jnp.tanh),
]


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("inputs", ["plain", "special"])
@pytest.mark.parametrize("back_end", ["loop", "unrolled"])
@pytest.mark.parametrize("order", ["linear-act", "act-linear"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_gradients_are_those_of_differences(activation, order, back_end, inputs, monkeypatch):
    monkeypatch.setattr(choose, "_UNROLLED_ENTRIES", 0 if back_end == "unrolled" else 1 << 19)
    layer = nd.Dense(activation=activation, order=order, w_std=1.1, b_std=0.3)
    check_gradient(nd.Network("2_12", layer=layer, aggregation="scaled-sum"), X if inputs == "plain" else SPECIAL)


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_other_networks(name):
    check_gradient(NETWORKS[name], inputs_of(NETWORKS[name]))


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", "tanh", Sin(1.1, 0.8, 0.3)], ids=str)
def test_second_derivatives_of_chains(activation):
    net = nd.Network("2", layer=nd.Dense(activation=activation, w_std=1.1, b_std=0.3))
    flat, join = ravel_pytree(net.parameters())
    of = both(net, X, join)
    along = jnp.asarray(np.random.default_rng(1).normal(size=flat.shape))
    slope = jax.jit(lambda v: jax.jvp(of, (v,), (along,))[1])
    _, second = jax.jvp(slope, (flat,), (along,))
    difference = (slope(flat + 1e-5 * along) - slope(flat - 1e-5 * along)) / 2e-5
    scale = np.abs(difference).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(second / scale, difference / scale, atol=1e-6)


@pytest.mark.slow
def test_reverse_mode_equals_forward_mode():
    net = nd.Network("2", layer=nd.Dense(b_std=0.3))
    flat, join = ravel_pytree(changed(net))
    of = both(net, SPECIAL, join)
    weights = jnp.asarray(RNG.normal(size=(2, len(SPECIAL), len(SPECIAL))))
    found = jax.jit(jax.grad(lambda v: jnp.vdot(weights, of(v))))(flat)
    forward = jax.jit(lambda e: jnp.vdot(weights, jax.jvp(of, (flat,), (e,))[1]))
    np.testing.assert_allclose(found, [forward(e) for e in jnp.eye(len(flat))], rtol=1e-10)


@pytest.mark.slow
def test_many_numbers_at_once_and_one_compilation():
    values, traces = jnp.linspace(0.5, 2.0, 50), []

    @jax.jit
    def one(w_std):
        traces.append(w_std)
        return nd.kernel("2", X, w_std=w_std, b_std=0.1 * w_std).ntk

    found = jnp.stack([one(w_std) for w_std in values])
    assert len(traces) == 1
    np.testing.assert_allclose(
        found[7], nd.kernel("2", X, w_std=float(values[7]), b_std=0.1 * float(values[7])).ntk, rtol=1e-12
    )
    np.testing.assert_allclose(jax.vmap(one)(values), found, rtol=1e-12)


@pytest.mark.parametrize("ops", [(WEIGHTED, nd.Dense(b_std=1.0)), (nd.Dense(b_std=1.0), WEIGHTED)], ids=str)
def test_numbers_of_the_layer_leave_equal_operations_alone(ops):
    net = nd.Network([(0, 1, ops[0]), (1, 2, ops[1])], layer=nd.Dense(b_std=1.0))
    expected = nd.kernel(net.with_parameters({"layer": {"b_std": 0.3}}), X)
    found = jax.jit(lambda v: nd.kernel(net, X, b_std=v))(0.3)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_wrong_parameters():
    with pytest.raises(InputError, match="`parameters` to be a dictionary of dictionaries, got 5"):
        nd.kernel("2", X, parameters=5)  # pyright: ignore[reportArgumentType]
    for of_layer, message in (
        ({"w_std": 2j}, "one real number, got complex"),
        ({"w_std": 1.0, "activation": {"a": [1.0, 2.0]}}, "to be one number"),
    ):
        with pytest.raises(InputError, match=message):
            jax.jit(lambda numbers: nd.kernel("2", X, parameters={"layer": numbers}).ntk)(of_layer)
    with pytest.raises(InputError, match="`w_std` to be positive"):
        jax.grad(lambda v: nd.kernel("2", X, b_std=v, parameters={"layer": {"w_std": -1.0}}).ntk.sum())(0.1)
    with pytest.raises(InputError, match="Expected `w_std` once"):
        jax.grad(lambda v: nd.kernel("2", X, w_std=v, parameters={"layer": {"w_std": 1.0}}).ntk.sum())(0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_float32_and_wrong_numbers():
    with jax.enable_x64(False):
        k, slope = jax.value_and_grad(lambda w: nd.kernel("2", X, w_std=w).ntk.sum())(1.3)
        assert (k.dtype, slope.dtype) == (np.float32, np.float32)
        with pytest.raises(InputError, match="`dtype` 'float32' inside a transformation"):
            jax.grad(lambda w: nd.kernel("2", X, w_std=w, dtype="float64").ntk.sum())(1.3)
    more, less = (nd.kernel("2", X, w_std=w).ntk.sum() for w in (1.301, 1.299))
    np.testing.assert_allclose(slope, (more - less) / 0.002, rtol=1e-4)
    with pytest.raises(InputError, match=r"as `parameters` of `nngp_dag.kernel`"):
        jax.grad(lambda w: nd.kernel("2", X, layer=nd.Dense(w_std=w)).ntk.sum())(1.3)
    with pytest.raises(InputError, match="got `w_sdt`; did you mean 'w_std'"):
        jax.grad(lambda w: nd.kernel("2", X, parameters={"layer": {"w_sdt": w}}).ntk.sum())(1.3)
