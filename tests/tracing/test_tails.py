"""Sums of few random numbers that are not Gaussian: their excess kurtosis, and the warning that kernels neglect it."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import NumericalWarning
from nngp_dag.tracing.functions import recognize
from nngp_dag.tracing.moments import OneInput
from nngp_dag.tracing.tails import sensitivity

RNG = np.random.default_rng(0)


def net(features, activation=jax.nn.relu):
    """Returns a factory of equinox's network; its weights and biases are uniform."""

    def made(key, width=64):
        return eqx.nn.MLP(features, 1, width, 2, activation, key=key)

    return made


@pytest.mark.slow
def test_the_default_network_of_equinox_is_a_network_with_biases():
    x = RNG.normal(size=(3, 200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nd.kernel(nd.trace(net(200), x), x)
    # Weights of variance 1 / (3 fan-in) are w_std 3^-1/2, biases of that variance depend on the fan-in of their layer.
    covariance = (x @ x.T + 1) / 600
    for _ in range(2):
        sd = np.sqrt(np.diag(covariance))
        angle = np.arccos(np.clip(covariance / np.outer(sd, sd), -1, 1))
        half = np.outer(sd, sd) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
        covariance = half / 3 + 1 / (3 * 64)
    np.testing.assert_allclose(found.nngp, covariance, rtol=1e-5)


@pytest.mark.slow
def test_kernels_of_one_kind():
    x = RNG.normal(size=(3, 200))
    traced = nd.trace(net(200), x)
    assert traced.network is not None
    both = nd.kernel(traced, x)
    for get in ("nngp", "ntk"):
        found = nd.kernel(traced, x, get=get)
        np.testing.assert_array_equal(getattr(found, get), getattr(both, get))


@pytest.mark.parametrize(
    "activation", [jax.nn.relu, pytest.param(lambda t: t * jnp.cos(t), marks=pytest.mark.slow)], ids=["relu", "own"]
)
def test_few_features_warn(activation):
    """With a network and without one."""
    x = RNG.normal(size=(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = nd.trace(net(2, activation), x)
    with pytest.warns(NumericalWarning, match=r"those of `layers.0.weight` and `layers.0.bias`, and have an excess"):
        nd.kernel(traced, x)


def test_one_array_as_input_warns_too():
    def model(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    def init(key):
        one, other = jax.random.split(key)
        return {"w": jax.random.uniform(one, (2, 64), minval=-1), "v": jax.random.normal(other, (64, 1)) / 8}

    x = RNG.normal(size=(3, 2))
    with pytest.warns(NumericalWarning, match="those of `w`, and have an excess kurtosis"):
        nd.kernel(nd.trace(model, x, init=init, batch_axis=None), x)


@pytest.mark.slow
def test_values_that_enter_through_numbers_warn():
    """Attention scores are means of products of functions of few uniform numbers."""

    def model(p, x):
        q = jnp.cos(3 * x @ p["a"])
        scores = jnp.einsum("bsd,btd->bst", q, q) / q.shape[-1]
        return (scores @ (x @ p["g"])).mean(1) @ p["v"]

    def init(key):
        one, two, three = jax.random.split(key, 3)
        a = jax.random.uniform(one, (2, 64), minval=-1)
        return {"a": a, "g": jax.random.normal(two, (2, 64)), "v": jax.random.normal(three, (64, 1))}

    x = RNG.normal(size=(2, 3, 2))
    with pytest.warns(NumericalWarning, match="those of `a`, and have an excess kurtosis"):
        nd.kernel(nd.trace(model, x, init=init), x)


def test_norms_take_the_mean_of_squares_only():
    """The mean of squares is exact for weights of any distribution."""

    def model(p, x):
        h = x @ p["a"]
        return h / jnp.sqrt((h**2).mean(-1, keepdims=True)) @ p["v"]

    def init(key):
        one, two = jax.random.split(key)
        return {"a": jax.random.uniform(one, (2, 64), minval=-1), "v": jax.random.normal(two, (64, 1)) / 8}

    x = RNG.normal(size=(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nd.kernel(nd.trace(model, x, init=init), x, get="nngp")


def test_the_kurtosis_is_that_of_the_sum():
    x = RNG.normal(size=(1, 5))
    traced = nd.trace(net(5), x)
    node = traced._tails[0].inner
    with jax.enable_x64(True):
        (found,) = OneInput(jnp.asarray(x), traced.program.functions).kurtosis(node).tolist()
    # All fourth cumulants are -1.2 s^4 z^4, with the input 1 for the bias.
    z = np.append(x[0], 1)
    assert found == pytest.approx(1.2 * np.sum(z**4) / np.sum(z**2) ** 2, rel=1e-9)


@pytest.mark.parametrize(("function", "name"), [(jnp.tanh, "tanh"), (jnp.square, "square"), (jnp.cos, "cos")])
def test_the_error_is_that_of_uniform_weights(function, name):
    """Second moments of functions of sums of 8 uniform numbers, and of a Gaussian one."""
    count = 8
    draws = RNG.uniform(-(3**0.5), 3**0.5, size=(2_000_000, count)).sum(axis=1) / count**0.5
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    gaussian = weights @ np.asarray(function(points)) ** 2 / weights.sum()
    squares = np.asarray(function(draws)) ** 2
    error, noise = squares.mean() / gaussian - 1, squares.std() / gaussian / len(draws) ** 0.5
    estimate = 1.2 / count * sensitivity(recognize(function, name), 1.0)
    # The estimate is of first order, and no less than 1/24 of the kurtosis.
    assert abs(error) < 1.25 * estimate + 3 * noise
    if name != "tanh":
        assert abs(error) > 0.75 * estimate - 3 * noise
