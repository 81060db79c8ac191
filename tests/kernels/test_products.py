"""Second moments of inputs in float32, against the same in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.kernels import products

DAG = nd.Dag.from_code("2_21_112")


def with_background(n, d=784, seed=0):
    """Returns images with a common background and different norms, of which one is zero."""
    x = np.full((n, d), -0.42)
    x[:, d // 3 : d // 2] = np.random.default_rng(seed).normal(1, 1, (n, d // 2 - d // 3))
    x *= np.geomspace(1e-3, 1e3, n)[:, None]
    x[n // 2] = 0
    return x.astype(np.float32)


def gaps(found, exact, diagonal1, diagonal2):
    """Returns differences relative to the bound on entries, the root of the product of the diagonals."""
    bound = np.sqrt(np.outer(diagonal1, diagonal2))
    np.testing.assert_array_equal(np.asarray(found)[bound == 0], 0)
    return np.abs(np.asarray(found, np.float64) - exact)[bound > 0] / bound[bound > 0]


def with_two_backgrounds(n):
    """Returns images with two backgrounds, which subtraction of the mean image does not remove."""
    return with_background(n) * np.where(np.arange(n) % 2, 1, -1).astype(np.float32)[:, None]


# The products run in blocks and, for more inputs than two tiles, in tiles.
@pytest.mark.sample(2)
@pytest.mark.parametrize("n", [60, 760])
@pytest.mark.parametrize("inputs", [with_background, with_two_backgrounds])
def test_a_common_background_costs_no_digits(n, inputs):
    x = inputs(n)
    found, exact = nd.kernel(DAG, x), nd.kernel(DAG, x.astype(np.float64))
    for name in ("nngp", "ntk"):
        diagonal = np.diag(getattr(exact, name))
        found_gaps = gaps(getattr(found, name), getattr(exact, name), diagonal, diagonal)
        # One product of all features without centering has an error of 2e-6 or more.
        assert found_gaps.max() < 1.5e-6
        assert np.sqrt((found_gaps**2).mean()) < 3.5e-7


@pytest.mark.slow
def test_a_common_background_between_two_sets():
    x, z = with_background(1), with_background(50, seed=1)
    x[0] = with_background(3, seed=2)[0]
    found, exact = nd.kernel(DAG, x, z), nd.kernel(DAG, x.astype(np.float64), z.astype(np.float64))
    q1, q2 = (np.diag(nd.kernel(DAG, v.astype(np.float64)).nngp) for v in (x, z))
    assert gaps(found.nngp, exact.nngp, q1, q2).max() < 1e-6


@pytest.mark.slow
def test_the_product_of_centered_inputs_is_less_rounded():
    x = with_background(200)
    x = jnp.asarray(np.delete(x, 100, axis=0))
    scale = products.norms([x])
    over_scale = x * products.inverse_of(scale, 2)
    exact = np.asarray(over_scale, np.float64) @ np.asarray(over_scale, np.float64).T / x.shape[1]
    center = products.center_of(x, scale)
    shift = products.shifts(x, scale, center)
    centered = [over_scale - center[None]]
    off_diagonal = ~np.eye(len(x), dtype=bool)
    plain, better = (
        np.sqrt(((np.asarray(k, np.float64) - exact)[off_diagonal] ** 2).mean())
        for k in (products.products([over_scale], [over_scale]), products.products(centered, centered, shift, shift))
    )
    assert better < 4e-7 < 6e-7 < plain


@pytest.mark.nightly
def test_slopes_do_not_know_of_the_center():
    x = with_background(20)

    def sums(x):
        k = nd.kernel(DAG, x)
        return jnp.sum(jnp.sin(k.nngp) + jnp.cos(k.ntk / 10))

    x /= np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-9)
    found = np.asarray(jax.grad(sums)(jnp.asarray(x)), np.float64)
    with jax.enable_x64(True):
        exact = np.asarray(jax.grad(sums)(jnp.asarray(x, jnp.float64)))
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=3e-5 * np.abs(exact).max())
