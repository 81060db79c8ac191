"""Weights that are centered or divided by their norm, and what else programs do with parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn

import nngp_dag as nd
from nngp_dag.errors import ModelError, NumericalWarning

N = 64
X = np.random.default_rng(0).normal(size=(2, 4))
SERIES = np.random.default_rng(0).normal(size=(2, 6, 2))

pytestmark = pytest.mark.usefixtures("promotion")


def test_centered_weights_act_on_centered_values():
    """Closed form: weights minus their mean see the variance of relu(g), of which the mean is (2 pi)^-1/2 sd."""

    def model(p, x):
        w = p["w"] - p["w"].mean(0)
        return jax.nn.relu(x @ p["a"] / 2) @ w @ p["v"] / N

    x = X[:1]
    found = nd.kernel(nd.trace(model, x, init=drawn(a=(4, N), w=(N, N), v=(N, 1))), x, get="nngp").nngp
    square = float(np.sum(x**2)) / 4
    np.testing.assert_allclose(found, [[square / 2 - square / (2 * np.pi)]], rtol=1e-6)


@pytest.mark.parametrize("ddof", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_norms_of_columns_are_numbers(ddof):
    """Weights over their standard deviation are weights of variance 1, up to the finite number of rows."""

    def model(p, x):
        return jax.nn.relu(x @ p["a"]) @ (p["w"] / p["w"].std(0, ddof=ddof)) @ p["v"]

    def plain(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["w"] @ p["v"]

    init = drawn(a=(4, N), w=(N, N), v=(N, 1))
    found, expected = (np.asarray(nd.kernel(nd.trace(one, X, init=init), X).nngp) for one in (model, plain))
    np.testing.assert_allclose(found, expected * (1 if ddof else N / (N - 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w - w.mean(), "weights that are centered over the 64 entries that a product sums over"),
        (lambda w: w - w.mean(1), "a parameter minus the mean of its own entries"),
        (lambda w: w - 2 * w.mean(0), "a parameter minus the mean of its own entries"),
        (lambda w: w / w.max(), "a parameter to be multiplied by or added to a random value, got `reduce_max`"),
        (lambda w: w * w, "a parameter minus its mean, or divided by its norm, got `.*` of its squares"),
        (lambda w: w * w * w, "a parameter minus its mean, or divided by its norm, got `mul` of its squares"),
        (lambda w: w + w.mean(0), "a parameter minus its mean, or divided by its norm, got `add` of sums"),
        (lambda w: w / w[:3].std(0), "got a norm over 3 other entries, which stays random"),
        (lambda w: w / jnp.linalg.norm(w, axis=1), "got a norm over 64 other entries, which stays random"),
    ],
)
def test_other_functions_of_weights_are_refused(change, message):
    def model(p, x):
        return jax.nn.relu(x @ p["a"]) @ change(p["w"]) @ p["v"]

    with pytest.raises(ModelError, match=rf"^test_standardization.py:\d+: Expected .*{message}"):
        nd.trace(model, X, init=drawn(a=(4, N), w=(N, N), v=(N, 1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda h, g: h * g**2,
        lambda h, g: h * jnp.square(g),
        lambda h, g: h * (g * g),
        lambda h, g: h * (g * -g),
        lambda h, g: h - g**2,
        lambda h, g: h * g.mean(),
        lambda h, g: h - g.sum() / N,
        lambda h, g: h * (g - g.mean()),
        lambda h, g: h / jnp.sqrt((g**2).mean()),
    ],
)
def test_functions_of_gains_are_refused(change):
    """They are no weights, and their entries are not what they were drawn as."""

    def model(p, x):
        return change(x @ p["a"], p["g"]) @ p["v"]

    with pytest.raises(ModelError, match=r"^test_standardization.py:\d+: Expected"):
        nd.trace(model, X, init=drawn({"g": ((N,), 0.5)}, a=(4, N), v=(N, 1)))


def convolved(x, w, groups=1):
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=numbers, feature_group_count=groups)


@pytest.mark.parametrize(
    ("convolve", "shape", "message"),
    [
        (lambda h, w: convolved(h, w, N // 2), (3, 2, N), "groups whose number of channels grows with the width"),
        (lambda h, w: convolved(h, w / jnp.linalg.norm(w, axis=0)), (3, N, N), "got a norm over 3 other entries"),
        (lambda h, w: convolved(h, w / jnp.linalg.norm(w, axis=0), N), (3, 1, N), "got a norm over 3 other entries"),
        (lambda h, w: convolved(h, w - w.mean((0, 1)), N), (3, 1, N), "depthwise filters that are random or constant"),
    ],
    ids=["few channels in a group", "a norm over taps", "a norm of a depthwise filter", "a centered depthwise filter"],
)
def test_filters_whose_sums_are_finite_are_refused(convolve, shape, message):
    def model(p, x):
        return convolve(convolved(x, p["a"]), p["w"]).mean(1) @ p["v"]

    with pytest.raises(ModelError, match=message):
        nd.trace(model, SERIES, init=drawn(a=(3, 2, N), w=shape, v=(N, 1)))


def test_norms_over_few_features_warn():
    def model(p, x):
        return jax.nn.relu(x @ (p["a"] / jnp.linalg.norm(p["a"], axis=0))) @ p["v"]

    with pytest.warns(NumericalWarning, match="are divided by their norm over 4 entries"):
        traced = nd.trace(model, X, init=drawn(a=(4, N), v=(N, 1)))
    assert "the norm of `a`, of features of the input, goes over 4 entries" in str(traced)
