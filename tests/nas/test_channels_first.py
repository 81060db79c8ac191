"""Layers with channels first, against those with channels last and against XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_dag.nas.networks import channels_first, layers

X = jax.random.normal(jax.random.key(0), (2, 3, 6, 4))


def value_and_gradients(function, *arguments):
    @jax.jit
    def compiled(*arguments):
        value, back = jax.vjp(function, *arguments)
        return value, *back(jax.random.normal(jax.random.key(2), value.shape))

    return compiled(*arguments)


def first(function):
    """Returns an array with channels last in the layout with channels first."""
    return lambda x, *others: jnp.moveaxis(function(jnp.moveaxis(x, 0, 3), *others), 3, 0)


@pytest.mark.parametrize(
    ("side", "stride", "size"),
    [(1, 1, (6, 4))]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in ((3, 1, (6, 4)), (3, 2, (6, 4)), (3, 1, (1, 5)), (3, 2, (2, 2)))
    ],
)
def test_convolutions_are_xlas_with_their_gradients(side, stride, size):
    x = jax.random.normal(jax.random.key(0), (2, 3, *size))
    kernel = jax.random.normal(jax.random.key(1), (side, side, 2, 5))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(side // 2, side // 2)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    found = value_and_gradients(lambda x, kernel: channels_first.convolved(x, kernel, stride), x, kernel)
    for mine, theirs in zip(found, value_and_gradients(first(plain), x, kernel), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("averaged", marks=pytest.mark.slow), "halved"])
def test_means_of_pixels_are_those_of_channels_last(name):
    found = value_and_gradients(getattr(channels_first, name), X)
    for mine, theirs in zip(found, value_and_gradients(first(getattr(layers, name)), X), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_batch_norm_is_that_of_channels_last():
    arguments = X, jnp.array([2.0, -1.0]), jnp.array([0.5, 3.0])
    found = value_and_gradients(channels_first.normalized, *arguments)
    for mine, theirs in zip(found, value_and_gradients(first(layers.normalized), *arguments), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
