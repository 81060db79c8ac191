"""Models of plain JAX on sequences and graphs."""

import jax
import jax.numpy as jnp
import numpy as np
from zoo import numbers, plain

T, D = 4, 5
X = numbers(3, T, D)
# The tokens of inputs repeat, within an input and between inputs.
TOKENS = np.array([[0, 1, 2, 3], [2, 2, 1, 0], [4, 3, 3, 2]])


@plain(lambda n: {"u": (D, n), "w": (n, n), "b": ((n,), 0.3), "v": (n, 1)}, X)
def rnn_unrolled(p, x):
    h = jnp.zeros((len(x), len(p["w"])))
    for t in range(T):
        h = jnp.tanh(x[:, t] @ p["u"] + h @ p["w"] + p["b"])
    return h @ p["v"]


@plain(lambda n: {"u": (D, n), "w": (n, n), "b": ((n,), 0.3), "v": (n, 1)}, X)
def rnn_scanned_pooled(p, x):
    """neural-tangents issue 84: a tied RNN whose readout is pooled over time."""

    def step(h, xt):
        h = jax.nn.relu(xt @ p["u"] + h @ p["w"] + p["b"])
        return h, h

    _, hs = jax.lax.scan(step, jnp.zeros((len(x), len(p["w"]))), x.swapaxes(0, 1))
    return hs.mean(axis=0) @ p["v"]


@plain(lambda n: {"u": (D, n), "w": (n, n), "b": (n, n), "v": (2 * n, 1)}, X)
def rnn_bidirectional(p, x):
    def run(w, reverse):
        def step(h, xt):
            h = jnp.tanh(xt @ p["u"] + h @ w)
            return h, h

        return jax.lax.scan(step, jnp.zeros((len(x), len(w))), x.swapaxes(0, 1), reverse=reverse)[1]

    hs = jnp.concatenate([run(p["w"], False), run(p["b"], True)], axis=-1)
    return hs.mean(axis=0) @ p["v"]


@plain(lambda n: {"u": (D, n), "a": (n, n), "b": (n, n), "w": (n, n), "v": (n, 1)}, X)
def rnn_two_layers(p, x):
    h = g = jnp.zeros((len(x), len(p["w"])))
    for t in range(T):
        h = jnp.tanh(x[:, t] @ p["u"] + h @ p["w"])
        g = jnp.tanh(h @ p["a"] + g @ p["b"])
    return g @ p["v"]


@plain(lambda n: {"e": (D, n), "q": (n, n), "k": (n, n), "o": (n, n), "v": (n, 1)}, X)
def linear_attention(p, x):
    h = jnp.tanh(x @ p["e"])
    scores = (h @ p["q"]) @ (h @ p["k"]).swapaxes(1, 2) / len(p["q"])
    return (h + (scores @ (h @ p["o"])) / T).mean(axis=1) @ p["v"]


@plain(lambda n: {"e": (D, n), "q": (n, n), "o": (n, n), "v": (n, 1)}, X)
def softmax_attention_tied_queries(p, x):
    """Queries equal keys, so that scores with 1 / d have limits that differ from 0."""
    h = jax.nn.relu(x @ p["e"])
    q = h @ p["q"]
    weights = jax.nn.softmax(jnp.einsum("bsd,btd->bst", q, q) / q.shape[-1], axis=-1)
    return (h + weights @ (h @ p["o"])).mean(axis=1) @ p["v"]


@plain(lambda n: {"e": (D, n), "q": (n, n), "k": (n, n), "o": (n, n), "v": (n, 1)}, X)
def softmax_attention_causal(p, x):
    h = x @ p["e"]
    q = k = h @ p["q"]
    scores = jnp.einsum("bsd,btd->bst", q, k + h @ p["k"]) / q.shape[-1]
    scores = jnp.where(np.tril(np.ones((T, T), bool)), scores, -1e9)
    return jnp.tanh((jax.nn.softmax(scores, axis=-1) @ h) @ p["o"])[:, -1] @ p["v"]


@plain(lambda n: {"e": (D, n), "q": (n, n), "o": (n, n), "w": (n, n), "v": (n, 1)}, X)
def multi_head_attention(p, x):
    """Two heads, whose sizes grow with the width; queries equal keys."""
    h = x @ p["e"]
    split = lambda a: a.reshape(*a.shape[:2], 2, -1)  # noqa: E731
    q, values = split(h @ p["q"]), split(h @ p["w"])
    weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", q, q) / q.shape[-1], axis=-1)
    mixed = jnp.einsum("bhst,bthd->bshd", weights, values).reshape(h.shape)
    return jax.nn.relu(h + mixed @ p["o"]).mean(axis=1) @ p["v"]


@plain(lambda n: {"e": (D, n), "q": (n, n), "o": (n, n), "f": (n, 2 * n), "g": (2 * n, n), "v": (n, 1)}, X)
def transformer_without_softmax(p, x):
    """neural-tangents issue 203: a transformer block whose attention has no softmax."""

    def norm(h):
        return (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-6)

    h = x @ p["e"]
    q = norm(h) @ p["q"]
    h = h + jnp.einsum("bst,btd->bsd", jnp.einsum("bsd,btd->bst", q, q) / q.shape[-1] / T, norm(h)) @ p["o"]
    h = h + jax.nn.gelu(norm(h) @ p["f"]) @ p["g"]
    return norm(h).mean(axis=1) @ p["v"]


@plain(lambda n: {"table": ((6, n), 1.0), "w": (n, n), "v": (n, 1)}, TOKENS)
def embedding_mean_pooled(p, x):
    return jnp.tanh(p["table"][x].mean(axis=1) @ p["w"]) @ p["v"]


@plain(lambda n: {"table": ((6, n), 1.0), "place": ((T, n), 0.5), "w": (n, n), "v": (n, 1)}, TOKENS)
def embedding_with_positions(p, x):
    h = jnp.take(p["table"], x, axis=0) + p["place"]
    return jax.nn.relu(h @ p["w"]).mean(axis=1) @ p["v"]


@plain(
    lambda n: {"e": (D, n), "t1": ((T, 2 * T), 0.5), "t2": ((2 * T, T), 0.4), "c": (n, n), "d": (n, n), "v": (n, 1)}, X
)
def mlp_channel_mixer(p, x):
    """Channels are mixed by matrices, tokens by known ones."""
    h = x @ p["e"]
    h = h + jnp.einsum("st,btd->bsd", np.tril(np.ones((T, T))) / T, h)
    h = h + jax.nn.gelu(h @ p["c"]) @ p["d"]
    return h.mean(axis=1) @ p["v"]


@plain(lambda n: {"k": ((3, D, n), None), "a": (3, n, n), "b": (3, n, n), "o": (n, n), "v": (n, 1)}, X)
def wavenet(p, x):
    def conv(h, w, dilation):
        pad = [((len(w) - 1) * dilation, 0)]
        return jax.lax.conv_general_dilated(
            h, w, (1,), pad, rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
        )

    h = conv(x, p["k"], 1)
    gated = jnp.tanh(conv(h, p["a"], 2)) * jax.nn.sigmoid(conv(h, p["b"], 2))
    return (h + gated @ p["o"])[:, -1] @ p["v"]


NODES = numbers(5, D, seed=2)
ADJACENCY = np.array([[1, 1, 0, 0, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 1]], float)
ADJACENCY /= np.sqrt(np.outer(ADJACENCY.sum(0), ADJACENCY.sum(0)))


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (n, 1)}, NODES, batch_axis=None)
def graph_convolutions(p, x):
    h = jax.nn.relu(ADJACENCY @ (x @ p["w"]))
    return ADJACENCY @ (jax.nn.relu(ADJACENCY @ (h @ p["a"])) @ p["v"])


@plain(lambda n: {"w": (D, n), "a": (n, n), "s": (n, n), "v": (n, 1)}, NODES, batch_axis=None)
def graph_sage_segment_sum(p, x):
    source, target = np.nonzero(ADJACENCY)
    h = x @ p["w"]
    messages = jax.ops.segment_sum(jax.nn.relu(h)[source], target, num_segments=5) / 3
    return jnp.tanh(h @ p["s"] + messages @ p["a"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "r": (n, n), "a": (n, n), "v": (n, 1)}, X)
def deep_sets(p, x):
    h = jax.nn.relu(jax.nn.relu(x @ p["w"]) @ p["r"]).sum(axis=1) / T
    return jax.nn.relu(h @ p["a"]) @ p["v"]


@plain(lambda n: {"w": (D, n), "a": (n, n), "v": (T * n, 1)}, X)
def tokens_flattened(p, x):
    h = jax.nn.relu(jax.nn.relu(x @ p["w"]) @ p["a"])
    return h.reshape(len(x), -1) @ p["v"]


@plain(lambda n: {"w": (D, n), "s": (n, n), "v": (n, 1)}, X)
def linear_recurrence_by_cumsum(p, x):
    h = jnp.cumsum(x @ p["w"], axis=1) / T
    return jnp.tanh(jnp.sin(h) @ p["s"]).mean(axis=1) @ p["v"]


@plain(lambda n: {"w": (D, n), "f": (n, n), "c": (n, n), "v": (n, 1)}, X)
def minimal_gated_step(p, x):
    """One step of a gated recurrent unit from a state that another layer made."""
    h = jnp.tanh(x[:, 0] @ p["w"])
    gate = jax.nn.sigmoid(h @ p["f"])
    return (gate * h + (1 - gate) * jnp.tanh(h @ p["c"])) @ p["v"]
