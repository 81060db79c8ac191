"""Models of plain JAX on vectors."""

import jax
import jax.numpy as jnp
from zoo import X, numbers, plain

D = X.shape[1]


def stax_mlp(depth):
    """Returns a ReLU network of neural-tangents."""
    from nngp_dag.kernels.neural_tangents import stax

    return stax.serial(*(layer for _ in range(depth) for layer in (stax.Dense(1), stax.Relu())), stax.Dense(1))


def chain(n, depth, bias=None):
    table = {"w0": (D, n), **{f"w{i}": (n, n) for i in range(1, depth)}, "v": (n, 1)}
    if bias:
        table |= {f"b{i}": ((n,), bias) for i in range(depth)}
    return table


@plain(
    lambda n: chain(n, 3),
    dag=lambda: ("2_02", {"order": "linear-act", "w_std": 1.0}),
    factory=False,
    stax=lambda: stax_mlp(3),
)
def mlp_relu(p, x):
    for i in range(3):
        x = jax.nn.relu(x @ p[f"w{i}"])
    return x @ p["v"]


@plain(lambda n: {"w0": ((D, n), 1.0), "w1": ((n, n), 1.0), "v": ((n, 1), 1.0)}, head_std=lambda shape: 1.0,
       dag=lambda: ("2", {"order": "linear-act"}))  # fmt: skip
def mlp_ntk_parameterization(p, x):
    x = jax.nn.relu(x @ p["w0"] * (2 / D) ** 0.5)
    x = jax.nn.relu(x @ p["w1"] * (2 / len(p["w1"])) ** 0.5)
    return x @ p["v"] * (2 / len(p["v"])) ** 0.5


@plain(
    lambda n: chain(n, 2, 0.3) | {"c": ((1,), 0.5)},
    head=("v", "c"),
    head_std=lambda shape: 0.5 if shape == (1,) else shape[0] ** -0.5,
)
def mlp_gelu_bias(p, x):
    for i in range(2):
        x = jax.nn.gelu(x @ p[f"w{i}"] + p[f"b{i}"], approximate=False)
    return x @ p["v"] + p["c"]


@plain(lambda n: {"w": (D, n), "u": (n, n), "v": (n, 1)})
def mlp_tied(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.tanh(jnp.tanh(h @ p["u"]) @ p["u"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "u": (n, n), "b": ((n,), 0.5), "v": (n, 1)}, draws=1024)
def deep_equilibrium(p, x):
    z = jnp.tanh(x @ p["w"] + p["b"])
    z, _ = jax.lax.scan(lambda z, _: (jnp.tanh(z @ p["u"] + x @ p["w"] + p["b"]), None), z, None, length=4)
    return z @ p["v"]


@plain(
    lambda n: {"w": (D, n), **{f"a{i}": (n, n) for i in range(3)}, **{f"b{i}": (n, n) for i in range(3)}, "v": (n, 1)}
)
def residual_pre_activation(p, x):
    h = x @ p["w"]
    for i in range(3):
        h = h + 0.5 * jax.nn.relu(jax.nn.leaky_relu(h, 0.1) @ p[f"a{i}"]) @ p[f"b{i}"]
    return jax.nn.relu(h) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "b": (n, n), "v": (n, 1)}, factory=False)
def residual_tied_blocks(p, x):
    h = x @ p["w"]
    for _ in range(3):
        h = h + 0.5 * jax.nn.relu(jax.nn.leaky_relu(h, 0.1) @ p["a"]) @ p["b"]
    return jax.nn.relu(h) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "b": (n, n), "v": (n, 1)})
def residual_post_activation(p, x):
    h = x @ p["w"]
    h = h + jax.nn.relu(h)
    g = h @ p["a"]
    h = h + jax.nn.silu(g) + 0.3 * g
    return jnp.sin(h @ p["b"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "b": (2 * n, n), "c": (3 * n, n), "v": (4 * n, 1)})
def densenet_concatenation(p, x):
    h = x @ p["w"]
    for name in "abc":
        h = jnp.concatenate([h, jax.nn.relu(h) @ p[name]], axis=-1)
    return jax.nn.relu(h) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, 2 * n), "v": (n, 1)})
def gated_by_split(p, x):
    h = jnp.tanh(x @ p["w"])
    value, gate = jnp.split(h @ p["a"], 2, axis=-1)
    return (value * jax.nn.sigmoid(gate)) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, 2 * n), "b": (n, 2 * n), "c": (2 * n, n), "v": (n, 1)}, factory=False)
def swiglu_block(p, x):
    h = x @ p["w"]
    h = h + (jax.nn.silu(h @ p["a"]) * (h @ p["b"])) @ p["c"]
    return h @ p["v"]


@plain(
    lambda n: {"w": (D, n), "a": (n, n), "g": ((n,), ("constant", 1.0)), "b": ((n,), ("constant", 0.0)), "v": (n, 1)}
)
def layer_norm_by_hand(p, x):
    h = jax.nn.relu(x @ p["w"])
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]
    return jnp.tanh(h @ p["a"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "b": (n, n), "g": ((n,), ("constant", 1.5)), "v": (n, 1)}, draws=1024)
def rms_norm_residual(p, x):
    def norm(h):
        return h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6) * p["g"]

    h = x @ p["w"]
    h = h + jax.nn.relu(norm(h) @ p["a"]) @ p["b"]
    return norm(h) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (n, 1)})
def norm_without_gradient(p, x):
    """The gradient of a mean over infinitely many channels vanishes, so that stopping it changes nothing."""
    h = x @ p["w"]
    h = h / jax.lax.stop_gradient(jnp.sqrt(jnp.mean(h**2, axis=1, keepdims=True)))
    return jax.nn.relu(h @ p["a"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "s": ((5, n, n), n**-0.5), "v": (n, 1)}, factory=False)
def scan_over_layers(p, x):
    def layer(h, w):
        return h + 0.4 * jax.nn.gelu(h) @ w, None

    h, _ = jax.lax.scan(layer, x @ p["w"], p["s"])
    return h @ p["v"]


@plain(lambda n: {"w": (D, n), "s": ((4, n, n), n**-0.5), "b": ((4, n), 0.2), "v": (n, 1)})
def scan_checkpointed(p, x):
    @jax.checkpoint
    def layer(h, wb):
        w, b = wb
        return jnp.tanh(h @ w + b), None

    h, _ = jax.lax.scan(layer, jnp.tanh(x @ p["w"]), (p["s"], p["b"]))
    return h @ p["v"]


@plain(lambda n: {"w": (D // 2, n), "a": (n, n), "v": (n, 1)})
def siamese_difference(p, x):
    def tower(h):
        return jax.nn.relu(jax.nn.relu(h @ p["w"]) @ p["a"])

    return (tower(x[:, : D // 2]) - tower(x[:, D // 2 :])) @ p["v"]


@plain(lambda n: {"w": (D // 2, n), "a": (n, n), "v": (2 * n, 1)})
def siamese_concatenation(p, x):
    def tower(h):
        return jnp.tanh(jax.nn.relu(h @ p["w"]) @ p["a"])

    return jnp.concatenate([tower(x[:, : D // 2]), tower(x[:, D // 2 :])], axis=1) @ p["v"]


# The NTK of a scalar that several depths share is refused.
@plain(
    lambda n: {"w": (D, n), "a": (n, n), "b": (n, n), "alpha": ((), ("constant", 0.5)), "v": (n, 1)}, kernels=("nngp",)
)
def rezero(p, x):
    h = x @ p["w"]
    for name in "ab":
        h = h + p["alpha"] * (jax.nn.relu(h) @ p[name])
    return jax.nn.relu(h) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "b": (n, n), "gamma": ((n,), ("constant", 0.1)), "v": (n, 1)})
def layer_scale(p, x):
    h = x @ p["w"]
    h = h + p["gamma"] * (jnp.tanh(h @ p["a"]) @ p["b"])
    return jnp.tanh(h) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "b": ((n, n), ("constant", 0.0)), "v": (n, 1)})
def zero_init_branch(p, x):
    h = x @ p["w"]
    h = h + jax.nn.relu(h @ p["a"]) @ p["b"]
    return jax.nn.relu(h) @ p["v"]


@plain(lambda n: {"w1": (D // 2, n), "w2": (D // 2, n), "a": (n, n), "v": (n, 1)}, factory=False)
def two_inputs(p, x):
    return jnp.tanh(jax.nn.relu(x[:, : D // 2] @ p["w1"] + x[:, D // 2 :] @ p["w2"]) @ p["a"]) @ p["v"]


@plain(lambda n: {"w1": (D, n), "w2": (D, n), "v": (n, 1)})
def bilinear(p, x):
    return ((x @ p["w1"]) * (x @ p["w2"])) @ p["v"]


@plain(lambda n: {"w": (D // 2, n), "c": (D // 2, n), "s": (n, n), "t": (n, n), "v": (n, 1)})
def film(p, x):
    h, c = jax.nn.relu(x[:, : D // 2] @ p["w"]), jnp.tanh(x[:, D // 2 :] @ p["c"])
    return ((1 + c @ p["s"]) * h + c @ p["t"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "h": (n, n), "t": (n, n), "b": ((n,), ("constant", -1.0)), "v": (n, 1)})
def highway(p, x):
    h = x @ p["w"]
    gate = jax.nn.sigmoid(h @ p["t"] + p["b"])
    return (gate * jax.nn.relu(h @ p["h"]) + (1 - gate) * h) @ p["v"]


FEATURES = numbers(D, 16, seed=1)


@plain(lambda n: {"w": (32, n), "a": (n, n), "v": (n, 1)})
def fourier_features(p, x):
    z = x @ FEATURES
    h = jnp.concatenate([jnp.sin(z), jnp.cos(z)], axis=-1)
    return jax.nn.relu(jax.nn.relu(h @ p["w"]) @ p["a"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (n, 1)})
def normalized_input(p, x):
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.cos(jnp.cos(x @ p["w"]) @ p["a"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (n, 1)})
def polynomial(p, x):
    h = x @ p["w"]
    h = 0.3 * (h**2 - 1) + 0.5 * h
    g = h @ p["a"]
    return (g - g**3 / 6) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (n, 1)})
def mixed_activations(p, x):
    h = x @ p["w"]
    h = jnp.where(h > 0, h, 0.2 * h) + jnp.maximum(h, 0.5) + jnp.abs(h)
    g = h @ p["a"]
    return (jax.nn.elu(g) * jnp.exp(-(g**2)) + jax.nn.relu6(g)) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "b": (n, n), "v": (n, 1), "u": (n, 1)}, head=("v", "u"))
def two_heads_averaged(p, x):
    h = jax.nn.relu(x @ p["w"])
    return 0.5 * (jax.nn.relu(h @ p["a"]) @ p["v"] + jnp.tanh(h @ p["b"]) @ p["u"])


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (n, 1)})
def weight_shared_skip(p, x):
    h = x @ p["w"]
    return jnp.tanh(h @ p["a"] + jnp.tanh(h) @ p["a"] + x @ p["w"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (n, 1)})
def slices_of_channels(p, x):
    h = jax.nn.relu(x @ p["w"])
    half = h.shape[1] // 2
    h = jnp.concatenate([h[:, half:], h[:, :half]], axis=1)
    return jnp.tanh(h @ p["a"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": ((4, n, n), n**-0.5), "v": (n, 1)}, width=48, factory=False)
def vmapped_experts(p, x):
    """An axis of four matrices is no infinite axis, though no factory says so."""
    h = jax.nn.relu(x @ p["w"])
    return jax.vmap(lambda a: jax.nn.relu(h @ a))(p["a"]).mean(axis=0) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": ((n, 3, n), n**-0.5), "v": (n, 1)}, width=48)
def summed_branches(p, x):
    h = jax.nn.relu(x @ p["w"])
    return jnp.tanh(jnp.einsum("bi,ikj->bkj", h, p["a"])).sum(axis=1) @ p["v"]
