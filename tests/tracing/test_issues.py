"""Networks that users of neural-tangents asked for in vain, by the issue's number: right, or refused.

Issues 84 (tied recurrent networks), 203 (transformer blocks without softmax) and 16 (U-Net) are in the zoo.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import nngp_dag as nd
from nngp_dag.errors import ModelError
from nngp_dag.kernels.neural_tangents import stax

N = 32
IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
conv = functools.partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal())
norm = functools.partial(nn.BatchNorm, use_running_average=True)


class Block(nn.Module):
    """The block of a residual network, with batch norm after each convolution; it starts as its shortcut."""

    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = nn.relu(norm()(conv(N, (3, 3), self.strides)(x)))
        y = norm(scale_init=nn.initializers.zeros)(conv(N, (3, 3))(y))
        if residual.shape != y.shape:
            residual = norm(name="norm_proj")(conv(N, (1, 1), self.strides, name="conv_proj")(residual))
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """A residual network of one block."""

    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        x = nn.relu(norm()(conv(N, (3, 3))(x)))
        x = Block(self.strides)(x)
        return nn.Dense(1, use_bias=False)(x.mean(axis=(1, 2)))


@pytest.mark.slow
def test_issue_99_a_residual_network_of_flax():
    found = nd.kernel(nd.trace(ResNet((2, 2)), IMAGES), IMAGES)
    # At the start only the projection is left. The variance of batch norm in inference mode is 1 + 1e-5.
    std = (2 / (1 + 1e-5)) ** 0.5
    _, _, kernel_fn = stax.serial(
        stax.Conv(1, (3, 3), padding="SAME", W_std=std),
        stax.Relu(),
        stax.Conv(1, (1, 1), strides=(2, 2), padding="SAME", W_std=std),
        stax.Relu(),
        stax.GlobalAvgPool(),
        stax.Dense(1),
    )
    np.testing.assert_allclose(found.nngp, kernel_fn(jnp.asarray(IMAGES, jnp.float32), None, "nngp"), rtol=1e-4)
    assert np.linalg.eigvalsh(np.asarray(found.ntk, float)).min() > 0


def test_issue_99_an_activation_of_a_sum_of_activations_is_refused():
    with pytest.raises(ModelError, match=r"^test_issues.py:\d+: .*not Gaussian, such as a sum of activations"):
        nd.trace(ResNet((1, 1)), IMAGES)


@pytest.mark.nightly
def test_issue_99_the_ntk_is_the_mean_of_empirical_ones():
    model, draws = ResNet((2, 2)), 1200
    exact = np.asarray(nd.kernel(nd.trace(model, IMAGES), IMAGES).ntk)

    def sample(key):
        variables = model.init(key, jnp.zeros((1, 6, 6, 3)))

        def apply(p):
            output: Any = model.apply({**variables, "params": p}, jnp.asarray(IMAGES, jnp.float32))
            return output[:, 0]

        jacobian = jax.jacrev(apply)(variables["params"])
        return sum(jnp.einsum("i...,j...->ij", g, g) for g in jax.tree.leaves(jacobian))

    found = np.asarray(jax.lax.map(sample, jax.random.split(jax.random.key(0), draws), batch_size=20))
    error = found.std(axis=0) / draws**0.5
    assert (error < 0.0125 * found.mean(0)).all()
    np.testing.assert_allclose(found.mean(0), exact, atol=3 * error.max() + 0.01 * exact.min())


D = 6
X = np.random.default_rng(1).normal(size=(3, D))


def relu_kernel(covariance):
    sd = np.sqrt(np.diag(covariance))
    angle = np.arccos(np.clip(covariance / np.outer(sd, sd), -1, 1))
    return np.outer(sd, sd) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


def init(shapes):
    def made(key):
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    return made


def test_issue_121_additive_coupling_of_halves():
    """Both halves pass a matrix, so that they have infinitely many channels."""

    def model(p, x):
        a, b = x[:, : D // 2] @ p["a"], x[:, D // 2 :] @ p["b"]
        both = jnp.concatenate([a, b + jax.nn.relu(a) @ p["m"]], axis=1)
        return jax.nn.relu(both) @ p["v"]

    shapes = {"a": (D // 2, N), "b": (D // 2, N), "m": (N, N), "v": (2 * N, 1)}
    found = nd.kernel(nd.trace(model, X, init=init(shapes)), X, get="nngp").nngp
    a, b = (part @ part.T / (D // 2) for part in (X[:, : D // 2], X[:, D // 2 :]))
    expected = (relu_kernel(a) + relu_kernel(b + relu_kernel(a))) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_issue_121_additive_coupling_of_features_is_refused():
    """The other half stays features of the input, to which few random units are added."""

    def model(p, x):
        a, b = x[:, : D // 2], x[:, D // 2 :]
        b = b + jax.nn.relu(a @ p["a"]) @ p["m"]
        return jax.nn.relu(jnp.concatenate([a, b], axis=1) @ p["u"]) @ p["v"]

    shapes = {"a": (D // 2, N), "m": (N, D // 2), "u": (D, N), "v": (N, 1)}
    with pytest.raises(ModelError, match=r"^test_issues.py:\d+: Expected .*channels"):
        nd.trace(model, X, init=init(shapes))
