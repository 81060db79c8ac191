"""Models of plain JAX on small images and signals."""

from typing import Any

import jax
import jax.numpy as jnp
from zoo import numbers, plain

X = numbers(3, 4, 4, 2)
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv(x, w, stride=1, padding="SAME", dilation=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, rhs_dilation=(dilation, dilation), dimension_numbers=DIMENSIONS
    )


def pool(x, size=2):
    summed = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, size, size, 1), (1, size, size, 1), "VALID")
    return summed / size**2


SMALL: dict[str, Any] = {"width": 32}


def stax_cnn(stride, *end):
    """Returns two layers of convolutions of neural-tangents and an end."""
    from nngp_dag.kernels.neural_tangents import stax

    layers = (
        stax.Conv(1, (3, 3), padding="SAME"),
        stax.Relu(),
        stax.Conv(1, (3, 3), (stride, stride), "SAME"),
        stax.Relu(),
    )
    return stax.serial(*layers, *(getattr(stax, name)() for name in end), stax.Dense(1))


@plain(
    lambda n: {"w": (3, 3, 2, n), "a": (3, 3, n, n), "v": (16 * n, 1)}, X, stax=lambda: stax_cnn(1, "Flatten"), **SMALL
)
def cnn_flattened(p, x):
    h = jax.nn.relu(conv(jax.nn.relu(conv(x, p["w"])), p["a"]))
    return h.reshape(len(x), -1) @ p["v"]


@plain(
    lambda n: {"w": (3, 3, 2, n), "a": (3, 3, n, n), "v": (n, 1)}, X, stax=lambda: stax_cnn(2, "GlobalAvgPool"), **SMALL
)
def cnn_strided_average(p, x):
    h = jax.nn.relu(conv(jax.nn.relu(conv(x, p["w"])), p["a"], stride=2))
    return h.mean(axis=(1, 2)) @ p["v"]


@plain(lambda n: {"w": (3, 3, 2, n), "a": (2, 2, n, n), "v": (n, 1)}, X, **SMALL)
def cnn_circular_dilated(p, x):
    h = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    h = jnp.tanh(conv(h, p["w"], padding="VALID"))
    h = jnp.tanh(conv(h, p["a"], padding="VALID", dilation=2))
    return h.mean(axis=(1, 2)) @ p["v"]


@plain(lambda n: {"w": (3, 3, 2, n), "a": (3, 3, n, n), "b": ((n,), 0.2), "v": (n, 1)}, X, **SMALL)
def cnn_average_pooling(p, x):
    h = pool(jax.nn.relu(conv(x, p["w"]) + p["b"]))
    return jax.nn.gelu(conv(h, p["a"])).mean(axis=(1, 2)) @ p["v"]


@plain(
    lambda n: {"e": (3, 3, 2, n), "d": (3, 3, n, n), "m": (3, 3, n, n), "u": (3, 3, 2 * n, n), "v": (1, 1, n, 1)},
    X,
    **SMALL,
)
def unet(p, x):
    """neural-tangents issue 16: concatenation after upsampling."""
    skip = jax.nn.relu(conv(x, p["e"]))
    h = jax.nn.relu(conv(pool(skip), p["d"]))
    h = jax.nn.relu(conv(h, p["m"]))
    h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
    h = jax.nn.relu(conv(jnp.concatenate([skip, h], axis=-1), p["u"]))
    return conv(h, p["v"])[:, 1, 2]


@plain(
    lambda n: {"e": (3, 3, 2, n), "d": (3, 3, n, n), "u": (2, 2, n, n), "o": (3, 3, 2 * n, n), "v": (n, 1)}, X, **SMALL
)
def unet_transposed_resized(p, x):
    skip = jnp.tanh(conv(x, p["e"]))
    h = jnp.tanh(conv(pool(skip), p["d"]))
    up = jax.lax.conv_transpose(h, p["u"], (2, 2), "SAME", dimension_numbers=DIMENSIONS)
    smooth = jax.image.resize(h, (len(x), 4, 4, h.shape[-1]), "bilinear")
    h = conv(jnp.concatenate([skip + smooth, up], axis=-1), p["o"])
    return jax.nn.relu(h).mean(axis=(1, 2)) @ p["v"]


@plain(
    lambda n: {
        "stem": (3, 3, 2, n),
        "a1": (3, 3, n, n), "b1": (3, 3, n, n),
        "a2": (3, 3, n, 2 * n), "b2": (3, 3, 2 * n, 2 * n), "s2": (1, 1, n, 2 * n),
        "v": (2 * n, 1),
    },
    X,
    **SMALL,
)  # fmt: skip
def wide_resnet(p, x):
    h = conv(x, p["stem"])
    h = h + conv(jax.nn.relu(conv(jax.nn.relu(h), p["a1"])), p["b1"])
    g = jax.nn.relu(h)
    h = conv(g, p["s2"], stride=2) + conv(jax.nn.relu(conv(g, p["a2"], stride=2)), p["b2"])
    return jax.nn.relu(h).mean(axis=(1, 2)) @ p["v"]


@plain(lambda n: {"w": (3, 3, 2, n), "s": (n, n // 4), "e": (n // 4, n), "a": (3, 3, n, n), "v": (n, 1)}, X, **SMALL)
def squeeze_and_excite(p, x):
    h = jax.nn.relu(conv(x, p["w"]))
    gate = jax.nn.sigmoid(jax.nn.relu(h.mean(axis=(1, 2)) @ p["s"]) @ p["e"])
    h = h * gate[:, None, None, :]
    return jax.nn.relu(conv(h, p["a"])).mean(axis=(1, 2)) @ p["v"]


@plain(lambda n: {"e": (2, 2, 2, n), "place": ((4, n), 0.5), "a": (n, n), "b": (n, n), "v": (n, 1)}, X)
def patches_with_positions(p, x):
    h = conv(x, p["e"], stride=2, padding="VALID").reshape(len(x), 4, -1) + p["place"]
    h = h + jnp.tanh(h @ p["a"]) @ p["b"]
    return h.mean(axis=1) @ p["v"]


@plain(lambda n: {"e": (8, n), "a": (n, n), "v": (n, 1)}, X)
def patches_by_reshape(p, x):
    h = x.reshape(len(x), 2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 4, 8)
    h = jax.nn.relu(jax.nn.relu(h @ p["e"]) @ p["a"])
    return h.mean(axis=1) @ p["v"]


@plain(lambda n: {"w": (3, 3, 2, n), "a": (3, 3, n // 2, n), "v": (n, 1)}, X, width=32)
def grouped_convolution(p, x):
    h = jax.nn.relu(conv(x, p["w"]))
    h = jax.lax.conv_general_dilated(h, p["a"], (1, 1), "SAME", dimension_numbers=DIMENSIONS, feature_group_count=2)
    return jax.nn.relu(h).mean(axis=(1, 2)) @ p["v"]


@plain(lambda n: {"w": (3, 3, 2, n), "a": (3, 3, n, n), "v": (n, 1)}, X, **SMALL)
def group_norm_by_hand(p, x):
    h = conv(x, p["w"])
    groups = h.reshape(len(x), 16, 2, -1)
    centered = groups - groups.mean(axis=(1, 3), keepdims=True)
    h = (centered * jax.lax.rsqrt((centered**2).mean(axis=(1, 3), keepdims=True) + 1e-5)).reshape(h.shape)
    return jax.nn.relu(conv(jax.nn.relu(h), p["a"])).mean(axis=(1, 2)) @ p["v"]


@plain(lambda n: {"w": (3, 3, 2, n), "a": (3, 3, n, n), "v": (n, 1)}, X, **SMALL)
def tied_convolutions(p, x):
    h = conv(x, p["w"])
    for _ in range(2):
        h = h + 0.5 * conv(jax.nn.relu(h), p["a"])
    return jax.nn.relu(h).mean(axis=(1, 2)) @ p["v"]
