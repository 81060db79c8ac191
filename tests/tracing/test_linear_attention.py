"""Linear attention in all the ways in which it is written: they have one kernel, or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import ModelError

N, TOKENS = 32, 5
X = np.random.default_rng(0).normal(size=(2, TOKENS, 3))


def features(t):
    return jax.nn.elu(t) + 1


def model(attend):
    """Returns a model, as a factory, with one layer of attention."""

    def apply(p, x):
        h = jax.nn.relu(x @ p["w"])
        q, k, v = features(h @ p["q"]), features(h @ p["k"]), h @ p["u"]
        return attend(q, k, v, p["w"].shape[1]).mean(1) @ p["v"]

    def made(width, key):
        shapes = {"w": (3, width), "q": (width, width), "k": (width, width), "u": (width, width), "v": (width, 1)}
        keys = jax.random.split(key, len(shapes))
        return apply, {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    return made


def traced(attend, width=N):
    with jax.numpy_rank_promotion("allow"):
        return nd.trace(model(attend), X, width=width)


def scores_first(q, k, v, n):
    return jnp.einsum("bst,bte->bse", jnp.einsum("bsd,btd->bst", q, k) / n, v) / TOKENS


def state_first(q, k, v, n):
    return jnp.einsum("bsd,bde->bse", q, jnp.einsum("btd,bte->bde", k, v) / TOKENS) / n


def state_as_first_operand(q, k, v, n):
    return jnp.einsum("bde,bsd->bse", jnp.einsum("btd,bte->bde", k, v) / (n * TOKENS), q)


def by_matrix_products(q, k, v, n):
    return q @ (k.swapaxes(1, 2) @ v) / n / TOKENS


def by_heads(q, k, v, n):
    q, k, v = (t.reshape(*t.shape[:2], 4, -1) for t in (q, k, v))
    out = jnp.einsum("bshd,bhde->bshe", q, jnp.einsum("bthd,bthe->bhde", k, v)) / (n // 4) / TOKENS
    return out.reshape(*out.shape[:2], -1)


def norm_of_the_state(q, k, v, n):
    del n
    state = jnp.einsum("bsd,bde->bse", q, jnp.einsum("btd,bte->bde", k, v))
    return state / jnp.einsum("bsd,bd->bs", q, k.sum(1))[..., None]


def norm_of_the_scores(q, k, v, n):
    del n
    scores = jnp.einsum("bsd,btd->bst", q, k)
    return (scores / scores.sum(-1, keepdims=True)) @ v


@pytest.mark.slow
@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize(
    ("one", "others"),
    [
        (scores_first, (by_matrix_products,)),
        (norm_of_the_scores, (norm_of_the_state,)),
        pytest.param(scores_first, (state_first, state_as_first_operand, by_heads), marks=pytest.mark.slow),
    ],
    ids=["plain", "with a norm", "other orders"],
)
def test_all_orders_have_one_kernel(one, others):
    expected = nd.kernel(traced(one), X)
    for other in others:
        found = nd.kernel(traced(other), X)
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-6, err_msg=other.__name__)
        np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-6, err_msg=other.__name__)


@pytest.mark.parametrize(
    ("attend", "message"),
    [
        (lambda q, k, v, n: jnp.einsum("bsd,bde->bse", q, jnp.einsum("btd,bte->bde", k, v)), "a sum of 32 channels"),
        (lambda q, k, v, n: jnp.einsum("bsd,bde->bse", q, jnp.einsum("btd,bte->bde", k, v)) / n**0.5, "a sum of 32"),
        (
            lambda q, k, v, n: (q @ (k.swapaxes(1, 2) @ v)) * np.linspace(1, n**0.5, TOKENS)[:, None] / n**0.5 / n**0.5,
            "a sum of 32",
        ),
        (
            lambda q, k, v, n: jnp.einsum("bsd,bzde->bsze", q, jnp.einsum("btd,bte->bde", k, v)[:, None])[:, :, 0] / n,
            "axes of size 1 beside the channels",
        ),
        (lambda q, k, v, n: q @ jnp.tanh(k.swapaxes(1, 2) @ v) / n, "`tanh` of it"),
        (lambda q, k, v, n: q @ (k.swapaxes(1, 2) @ v).swapaxes(1, 2) @ jnp.ones((n, n)) / n**2, "infinite axis"),
        (lambda q, k, v, n: q * (k.swapaxes(1, 2) @ v).sum(1, keepdims=True) / n, "`reduce_sum` of it"),
    ],
)
def test_other_uses_are_refused(attend, message):
    with pytest.raises(ModelError, match=rf"^test_linear_attention.py:\d+: .*{message}"):
        traced(attend)


@pytest.mark.nightly
def test_the_kernels_are_those_of_networks():
    width, draws = 256, 600
    exact = nd.kernel(traced(norm_of_the_state, width), X)
    made = model(norm_of_the_state)

    def sample(key):
        apply, p = made(width, key)
        jacobian = jax.jacrev(lambda p: apply(p, jnp.asarray(X, jnp.float32))[:, 0])(p)
        ntk = sum(jnp.einsum("i...,j...->ij", g, g) for g in jax.tree.leaves(jacobian))
        return jnp.einsum("ik...,jk...->ij", jacobian["v"], jacobian["v"]) / width, ntk

    with jax.numpy_rank_promotion("allow"):
        nngp, ntk = jax.lax.map(sample, jax.random.split(jax.random.key(0), draws), batch_size=20)
    for found, expected in ((nngp, exact.nngp), (ntk, exact.ntk)):
        found, error = np.asarray(found).mean(0), np.asarray(found).std(0) / draws**0.5
        assert (error < 0.0125 * found).all()
        np.testing.assert_allclose(found, expected, atol=3 * error.max() + 0.01 * found.max())
