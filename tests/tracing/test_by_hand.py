"""Kernels of small models, whose Gaussian moments are polynomials that were derived by hand.

With K the Gram matrix of the inputs over their number of features, k its entry and q, z the two diagonal entries:
a and b are independent Gaussian preactivations of covariance k. The readout has unit variance, so that the NNGP is
E[f f'], and the NTK adds E of the product of gradients in every other parameter. Powers of Gaussian numbers have
E[a^2 a'^2] = q z + 2 k^2, E[a a'^3] = 3 k z and E[a^3 a'^3] = 6 k^3 + 9 k q z.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd

N = 64
RNG = np.random.default_rng(0)
X, LINES = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 6, 2))
C, GAIN = -0.7, 0.8
SHAPES = {"a": (4, N), "b": (4, N), "w": (2, N), "v": (N, 1)}
CONSTANTS = {"c": ((N,), C), "g": ((), GAIN)}


@pytest.fixture(autouse=True)
def promotion():
    """Lets models promote ranks, as they may."""
    with jax.numpy_rank_promotion("allow"):
        yield


def both(hidden, names, x=X):
    """Returns NNGP and NTK of a model with the given parameters; `hidden` is what the readout reads."""

    def init(key):
        keys = jax.random.split(key, len(names) + 1)
        return {
            name: jnp.full(*CONSTANTS[name]) if name in CONSTANTS else jax.random.normal(k, SHAPES[name])
            for k, name in zip(keys, (*names, "v"), strict=True)
        }

    found = nd.kernel(nd.trace(lambda p, x: hidden(p, x) @ p["v"] / N**0.5, x, init=init), x)
    return found.nngp, found.ntk


def gram(x=X):
    """Returns k, q and z for every pair."""
    k = x @ x.T / x.shape[1]
    return k, k.diagonal()[:, None], k.diagonal()[None]


def test_products_of_dependent_gaussians():
    # a and a + b have the covariances k and 2 k, and k between them; Isserlis' theorem.
    nngp, ntk = both(lambda p, x: (x @ p["a"] / 2) * (x @ p["a"] / 2 + x @ p["b"] / 2), "ab")
    k, q, z = gram()
    np.testing.assert_allclose(nngp, q * z + 3 * k**2, rtol=1e-5)
    np.testing.assert_allclose(ntk, q * z + 9 * k**2, rtol=1e-5)


def test_constant_biases_are_means():
    # f = c + (a + c)^2, and its derivatives are 2 (a + c) in a, and 1 more in c.
    nngp, ntk = both(lambda p, x: p["c"] + jnp.square(x @ p["a"] / 2 + p["c"]), "ac")
    k, q, z = gram()
    fourth = q * z + 2 * k**2 + C**2 * (q + z) + 4 * C**2 * k + C**4
    expected = C**2 + C * (q + z + 2 * C**2) + fourth
    slopes = 4 * (k + C**2)
    np.testing.assert_allclose(nngp, expected, rtol=1e-5)
    np.testing.assert_allclose(ntk, expected + slopes * k + (1 + 4 * C + slopes), rtol=1e-5)


def test_a_factor_of_other_weights_counts_at_its_own_input():
    # f = a b^2 + a^3. The variance of b belongs to the input of b, and that of a^3 to the other one.
    nngp, ntk = both(lambda p, x: (x @ p["a"] / 2) * jnp.square(x @ p["b"] / 2) + (x @ p["a"] / 2) ** 3, "ab")
    k, q, z = gram()
    np.testing.assert_allclose(nngp, 8 * k**3 + 16 * k * q * z, rtol=1e-5)
    np.testing.assert_allclose(ntk, 32 * k**3 + 32 * k * q * z, rtol=1e-5)


def test_a_trained_gain_of_all_channels_below_a_function():
    # f = (g a)^2, with the derivatives 2 g^2 a in a, and 2 g a^2 in g.
    nngp, ntk = both(lambda p, x: jnp.square(p["g"] * (x @ p["a"] / 2)), "ag")
    k, q, z = gram()
    fourth = q * z + 2 * k**2
    np.testing.assert_allclose(nngp, GAIN**4 * fourth, rtol=1e-5)
    np.testing.assert_allclose(ntk, GAIN**4 * (fourth + 4 * k**2) + 4 * GAIN**2 * fourth, rtol=1e-5)


def test_windows_are_padded_on_the_side_that_is_given():
    # Sums of neighbors with a 0 after the last pixel: all pixels count twice but the first.
    def hidden(p, x):
        padding = ((0, 0), (0, 1), (0, 0))
        return jax.lax.reduce_window(x @ p["w"], 0.0, jax.lax.add, (1, 2, 1), (1, 1, 1), padding).sum(axis=1)

    nngp, ntk = both(hidden, "w", LINES)
    u = 2 * LINES.sum(axis=1) - LINES[:, 0]
    np.testing.assert_allclose(nngp, u @ u.T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ntk, 2 * u @ u.T, rtol=1e-5, atol=1e-4)
