"""Weights, gains and slopes in unusual places: kernels against Monte Carlo or closed forms, or a reasoned refusal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn

import nngp_dag as nd
from nngp_dag.errors import ModelError

N, DRAWS = 128, 900
RNG = np.random.default_rng(0)
FEATURES, IMAGES, SQUARES = RNG.normal(size=(2, 4)), RNG.normal(size=(2, 6, 2)), RNG.normal(size=(2, 3, 3))
DARK = np.where(np.arange(6)[None, :, None] % 5 < 2, IMAGES, 0)

pytestmark = pytest.mark.usefixtures("promotion")


def convolved(x, w, dilation=1, padding: Any = "SAME"):
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, w, (1,), padding, rhs_dilation=(dilation,), dimension_numbers=numbers)


def two_dilations(p, x):
    return jnp.tanh((convolved(x, p["w"]) + convolved(x, p["w"], 2)) / 6**0.5).mean(1) @ p["v"] / N**0.5


def two_dilations_of_channels(p, x):
    h = jnp.tanh(convolved(x, p["a"]) / 6**0.5)
    both = convolved(h, p["w"]) + convolved(h, p["w"], 2)
    return jnp.tanh(both / (3 * N) ** 0.5).mean(1) @ p["v"] / N**0.5


def two_paddings(p, x):
    both = convolved(x, p["w"], 1, [(2, 0)]) + convolved(x, p["w"], 1, [(0, 2)])
    return jnp.tanh(both / 6**0.5).mean(1) @ p["v"] / N**0.5


def rows_and_columns(p, x):
    both = jnp.einsum("nij,ik->njk", x, p["w"]) + jnp.einsum("nij,jk->nik", x, p["w"])
    return jnp.tanh(both / 2).mean(1) @ p["v"] / N**0.5


def dark_regions(p, x):
    return jax.nn.relu(convolved(x, p["a"]) / 6**0.5 + p["b"]).mean(1) @ p["v"] / N**0.5


def gain_after_a_norm(p, x):
    h = x @ p["a"] / 2
    h = h / jnp.sqrt((h**2).mean(-1, keepdims=True) + 1e-9)
    return (jax.nn.silu(h * p["g"]) + h * p["g"]) @ p["v"] / N**0.5


def residual_scale(p, x):
    h = x @ p["a"] / 2
    return (h + p["g"] * jnp.tanh(h) @ p["w"] / N**0.5) @ p["v"] / N**0.5


def standardized(w):
    axes = tuple(range(w.ndim - 1))
    return (w - w.mean(axes, keepdims=True)) / (jnp.sqrt(w.var(axes, keepdims=True)) + 1e-5)


def standardized_weights(p, x):
    h = jax.nn.relu(convolved(x, p["a"]) / 6**0.5)
    h = jnp.tanh(convolved(h, standardized(p["w"])) / (3 * N) ** 0.5)
    return jax.nn.relu(h.mean(1) @ standardized(p["u"]) / N**0.5) @ p["v"] / N**0.5


def by_channel(x, w):
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=numbers, feature_group_count=w.shape[2])


def depthwise_block(p, x):
    """A block of ConvNeXt."""
    s = convolved(x, p["a"]) / 6**0.5
    h = by_channel(s, p["d"]) / 3**0.5 + p["b"]
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-3)
    return (s + jax.nn.gelu(h @ p["w"] / N**0.5)).mean(1) @ p["v"] / N**0.5


def trained_activations(p, x):
    """The slope of PReLU, one for all channels, and the rate of swish, one for each channel."""
    h = x @ p["a"] / 2
    h = jnp.where(h > 0, h, p["s"] * h) @ p["w"] / N**0.5
    return h * jax.nn.sigmoid(p["c"] * h) @ p["v"] / N**0.5


CASES = {
    two_dilations: (IMAGES, drawn(w=(3, 2, N), v=(N, 1))),
    two_dilations_of_channels: (IMAGES, drawn(a=(3, 2, N), w=(3, N, N), v=(N, 1))),
    two_paddings: (IMAGES, drawn(w=(3, 2, N), v=(N, 1))),
    rows_and_columns: (SQUARES, drawn(w=(3, N), v=(N, 1))),
    dark_regions: (DARK, drawn({"b": ((N,), 0.0)}, a=(3, 2, N), v=(N, 1))),
    gain_after_a_norm: (FEATURES, drawn({"g": ((N,), 0.8)}, a=(4, N), v=(N, 1))),
    standardized_weights: (IMAGES, drawn(a=(3, 2, N), w=(3, N, N), u=(N, N), v=(N, 1))),
    depthwise_block: (IMAGES, drawn({"b": ((N,), 0.0)}, a=(3, 2, N), d=(3, 1, N), w=(N, N), v=(N, 1))),
    trained_activations: (
        FEATURES,
        drawn({"s": ((), 0.25), "c": ((N,), 1.3)}, a=(4, N), w=(N, N), v=(N, 1)),
    ),
    residual_scale: (FEATURES, drawn({"g": ((), 0.5)}, a=(4, N), w=(N, N), v=(N, 1))),
}


LONGEST = two_dilations_of_channels, standardized_weights, depthwise_block, trained_activations


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=pytest.mark.nightly if m in LONGEST else ()) for m in CASES],
    ids=lambda model: model.__name__,
)
def test_the_ntk_is_the_mean_of_empirical_ones(model):
    x, init = CASES[model]
    expected = np.asarray(nd.kernel(nd.trace(model, x, init=init), x).ntk)

    def empirical(key):
        params = init(key)
        jacobian = jax.jacrev(lambda p: model(p, jnp.asarray(x, jnp.float32))[:, 0])(params)
        return sum(jnp.einsum("i...,j...->ij", g, g) for g in jax.tree.leaves(jacobian))

    draws = 3 * DRAWS if model is trained_activations else DRAWS
    found = np.asarray(jax.lax.map(empirical, jax.random.split(jax.random.key(1), draws), batch_size=50), float)
    error = found.std(axis=0) / draws**0.5
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (error < 0.0125 * scale).all(), "too few draws to see a factor of 1.05"
    # The bias of width 128 is below 1.5 % for these models.
    assert (np.abs(found.mean(axis=0) - expected) < 3 * error + 0.012 * scale).all()


@jax.custom_jvp
def straight_through(x):
    return jnp.sign(x)


straight_through.defjvp(lambda p, t: (jnp.sign(p[0]), t[0] * (jnp.abs(p[0]) < 1)))


@jax.custom_vjp
def clipped(x):
    return jnp.tanh(x)


clipped.defvjp(lambda x: (jnp.tanh(x), None), lambda _, g: (g,))


@jax.custom_vjp
def right_rule(x):
    return jnp.tanh(x)


right_rule.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


def of_function(f):
    return lambda p, x: f(x @ p["a"] / 2) @ p["v"] / N**0.5


@pytest.mark.parametrize("function", [straight_through, clipped])
def test_functions_with_another_derivative_have_an_nngp_only(function):
    traced = nd.trace(of_function(function), FEATURES, init=drawn(a=(4, N), v=(N, 1)))
    assert np.isfinite(nd.kernel(traced, FEATURES, get="nngp").nngp).all()
    with pytest.raises(ModelError, match=r"^test_unusual_weights.py:\d+: Expected functions whose derivative is that"):
        nd.kernel(traced, FEATURES)


@pytest.mark.slow
def test_a_rule_with_the_derivative_of_the_values_changes_nothing():
    init = drawn(a=(4, N), v=(N, 1))
    found, expected = (
        nd.kernel(nd.trace(of_function(f), FEATURES, init=init), FEATURES).ntk for f in (right_rule, jnp.tanh)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def norm_of_a_shared_bias(p, x):
    h = jax.nn.relu(x @ p["a"] / 2) + p["b"]
    return jnp.tanh((h - h.mean(-1, keepdims=True)) @ p["w"] / N**0.5) @ p["v"] / N**0.5


def shared_gain_at_two_depths(p, x):
    return p["b"] * ((p["b"] * (x @ p["a"]) / 2) @ p["w"] / N**0.5) @ p["v"] / N**0.5


@pytest.mark.parametrize("model", [norm_of_a_shared_bias, shared_gain_at_two_depths])
def test_parameters_that_all_channels_share_are_refused_where_gradients_meet(model):
    init = drawn({"b": ((), 1.0)}, a=(4, N), w=(N, N), v=(N, 1))
    traced = nd.trace(model, FEATURES, init=init)
    assert np.isfinite(nd.kernel(traced, FEATURES, get="nngp").nngp).all()
    with pytest.raises(ModelError, match="an entry for each channel, got `b`, which all channels share"):
        nd.kernel(traced, FEATURES)


def test_models_without_a_network_say_why():
    def gated(p, x):
        return (jnp.tanh(x @ p["a"]) * (x @ p["b"])) @ p["v"]

    traced = nd.trace(gated, FEATURES, init=drawn(a=(4, N), b=(4, N), v=(N, 1)))
    assert traced.network is None
    assert traced.reason.startswith("it holds products of values, such as attention")


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda p, x: jnp.tanh(x @ p["w"]) @ p["c"] @ p["v"], (N, N)),
        (lambda p, x: (x @ p["w"] + p["c"]) @ p["v"], (N,)),
    ],
    ids=["a matrix", "a bias"],
)
def test_fixed_arrays_are_refused(model, shape):
    fixed = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    init = drawn(w=(4, N), v=(N, 1))
    with pytest.raises(ModelError, match=r"^test_unusual_weights.py:\d+: .*got `c`, a fixed array"):
        nd.trace(model, FEATURES, init=lambda key: {**init(key), "c": fixed}, distributions={"c": "fixed"})


def test_depthwise_filters_add_up_pixels_at_equal_offsets():
    """Closed form: the second moments of a sum over the window; all three weights have equal shares in the NTK."""

    def model(p, x):
        return by_channel(x @ p["a"], p["d"]).mean(1) @ p["v"] / N**0.5

    found = nd.kernel(nd.trace(model, IMAGES, init=drawn(a=(2, N), d=(3, 1, N), v=(N, 1))), IMAGES)
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (0, 0)))
    sums = np.stack([padded[:, offset : offset + 6].mean(axis=1) for offset in range(3)])
    expected = np.einsum("oic,ojc->ij", sums, sums)
    np.testing.assert_allclose(found.nngp, expected, rtol=1e-6)
    np.testing.assert_allclose(found.ntk, 3 * expected, rtol=1e-6)


@pytest.mark.slow
def test_the_slope_of_prelu_has_its_share_in_the_ntk():
    """Closed form: the slope moves the outputs by sum_j v_j min(h_j, 0), of second moment |x|^2 / 2 for one input."""

    def model(p, x):
        h = x @ p["a"]
        return jnp.where(h > 0, h, p["s"] * h) @ p["v"] / N**0.5

    def fixed(p, x):
        return jax.nn.leaky_relu(x @ p["a"], 0.25) @ p["v"] / N**0.5

    init = drawn({"s": ((), 0.25)}, a=(4, N), v=(N, 1))
    found = nd.kernel(nd.trace(model, FEATURES, init=init), FEATURES)
    plain = nd.kernel(nd.trace(fixed, FEATURES, init=drawn(a=(4, N), v=(N, 1))), FEATURES)
    np.testing.assert_allclose(found.nngp, plain.nngp, rtol=1e-6)
    np.testing.assert_allclose(np.diag(found.ntk - plain.ntk), (FEATURES**2).sum(1) / 2, rtol=1e-5)


def test_one_slope_at_two_depths_has_an_nngp_only():
    def model(p, x):
        h = x @ p["a"]
        h = jnp.where(h > 0, h, p["s"] * h) @ p["w"]
        return jnp.where(h > 0, h, p["s"] * h) @ p["v"]

    traced = nd.trace(model, FEATURES, init=drawn({"s": ((), 0.25)}, a=(4, N), w=(N, N), v=(N, 1)))
    assert np.isfinite(nd.kernel(traced, FEATURES, get="nngp").nngp).all()
    with pytest.raises(ModelError, match="while it is used at two depths"):
        nd.kernel(traced, FEATURES)


def test_kernels_beside_an_input_of_zeros_are_those_beside_any():
    def model(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["w"] + p["b"]) @ p["v"]

    traced = nd.trace(model, FEATURES, init=drawn({"b": ((N,), 0.0)}, a=(4, N), w=(N, N), v=(N, 1)))
    assert traced.network is not None
    zero = np.concatenate([np.zeros((1, 4)), FEATURES])
    whole, beside = nd.kernel(traced, zero), nd.kernel(traced, FEATURES, zero)
    np.testing.assert_allclose(beside.ntk, whole.ntk[1:], rtol=1e-7)
    assert (np.asarray(whole.ntk)[0] == 0).all()  # the slope of `jax.nn.relu` at 0 is 0, and no bias moves the output


def test_kernels_that_need_nothing_of_the_inputs_are_zero():
    """Scores of independent queries and keys vanish with the width."""

    def model(p, x):
        h = x @ p["a"]
        scores = jnp.einsum("ntd,nsd->nts", h @ p["q"], h @ p["k"]) / N**2
        return (scores @ h).mean(axis=1) @ p["v"] / N**0.5

    traced = nd.trace(model, SQUARES, init=drawn(a=(3, N), q=(N, N), k=(N, N), v=(N, 1)))
    found = nd.kernel(traced, SQUARES, SQUARES[:1])
    assert found.nngp.shape == found.ntk.shape == (2, 1)
    assert not np.any(found.nngp)
    assert not np.any(found.ntk)
