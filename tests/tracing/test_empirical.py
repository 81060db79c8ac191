"""Kernels of finite models against explicit Jacobians, against their limits, and the linearization."""

import functools
import math
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

import nngp_dag as nd
from nngp_dag.errors import InputError, ModelError
from nngp_dag.tracing import linearize
from nngp_dag.tracing._draws import drawn
from nngp_dag.tracing.models import read_model

X = np.random.default_rng(0).normal(size=(5, 3))
X2 = np.random.default_rng(1).normal(size=(4, 3))
SHAPES = {"b": (6,), "u": (6, 6), "v": (6, 2), "w": (3, 6)}
empirical: Any = nd.empirical


def model(params, x):
    h = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.tanh(h @ params["u"]) @ params["v"]


def tied(params, x):
    h = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.tanh(jnp.tanh(h @ params["u"]) @ params["u"]) @ params["v"]


def init(key, width=6):
    shapes = {name: tuple(width if size == 6 else size for size in shape) for name, shape in SHAPES.items()}
    keys = jax.random.split(key, len(shapes))
    stds = {name: (shape[0] if len(shape) > 1 else 4) ** -0.5 for name, shape in shapes.items()}
    return {
        name: stds[name] * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


PARAMS = {name: np.asarray(value, np.float64) for name, value in init(jax.random.key(3)).items()}


def full_ntk(function, params, x1, x2):
    """Returns the NTK of all pairs of outputs, from Jacobians of whole batches."""
    with jax.enable_x64(True):
        j1, j2 = (jax.jacobian(function)(jax.tree.map(jnp.asarray, params), jnp.asarray(x)) for x in (x1, x2))
        flat = [[np.asarray(a).reshape(*a.shape[:2], -1) for a in jax.tree.leaves(j)] for j in (j1, j2)]
    return sum(np.einsum("icp,jdp->ijcd", a, b) for a, b in zip(*flat, strict=True))


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param("1 GiB", marks=pytest.mark.nightly),
        pytest.param(4 * 8 * 2 * 72 * 2, marks=pytest.mark.nightly),
        pytest.param(4 * 8 * 2 * 72, marks=pytest.mark.slow),
    ],
)
def test_every_form_of_the_ntk_equals_that_of_explicit_jacobians(budget):
    for x2 in (None, X2):
        exact = full_ntk(model, PARAMS, X, X if x2 is None else x2)
        own = functools.partial(empirical, model, X, x2, params=PARAMS, memory_budget=budget)
        np.testing.assert_allclose(own(outputs="pairs"), exact, rtol=1e-12)
        np.testing.assert_allclose(own(outputs="each"), np.einsum("ijcc->ijc", exact), rtol=1e-12)
        np.testing.assert_allclose(own(outputs="sum"), np.einsum("ijcc->ij", exact), rtol=1e-12)
        np.testing.assert_allclose(own(), np.einsum("ijcc->ij", exact) / 2, rtol=1e-12)
        assert own(dtype="float32").dtype == np.float32
        np.testing.assert_allclose(own(dtype="float32"), own(), rtol=1e-5, atol=1e-5)


def test_the_nngp_is_that_of_the_outputs():
    with jax.enable_x64(True):
        f1, f2 = (np.asarray(model(jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(x))) for x in (X, X2))
    own = functools.partial(empirical, model, X, X2, params=PARAMS, kind="nngp")
    np.testing.assert_allclose(own(), f1 @ f2.T / 2, rtol=1e-12)
    np.testing.assert_allclose(own(outputs="each"), f1[:, None] * f2[None], rtol=1e-12)
    np.testing.assert_allclose(own(outputs="pairs"), np.einsum("ic,jd->ijcd", f1, f2), rtol=1e-12)


@pytest.mark.slow
def test_a_whole_array_as_input_has_the_kernel_between_its_positions():
    mix = np.random.default_rng(2).normal(size=(5, 5))

    def graph(params, x):
        return jnp.asarray(mix) @ model(params, jnp.asarray(mix) @ x)

    own = empirical(graph, X, params=PARAMS, batch_axis=None)
    np.testing.assert_allclose(own, np.einsum("ijcc->ij", full_ntk(graph, PARAMS, X, X)) / 2, rtol=1e-12)
    with pytest.raises(ModelError, match=r"any number of inputs, got TypeError.*batch_axis=None"):
        empirical(graph, X, params=PARAMS)
    with pytest.raises(ModelError, match=r"one by one, got outputs that depend on the other inputs"):
        empirical(lambda p, x: model(p, x - x.mean(0, keepdims=True)), X, params=PARAMS)


class Net(nnx.Module):
    def __init__(self, width, *, rngs):
        self.hidden = nnx.Linear(3, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.readout = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.dropout(nnx.relu(self.hidden(x))))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.relu(linen.Dense(7)(x))
        return linen.Dense(2)(h)


def two_layers(params, x):
    w, b, v, c = params
    return jax.nn.relu(x @ w + b[None]) @ v + c[None]


@pytest.mark.slow
def test_modules_have_the_kernels_of_their_parameters():
    net = Net(7, rngs=nnx.Rngs(0))
    net.hidden.bias = nnx.Param(jnp.full(7, 0.3))  # as after training: no distribution has these biases
    params = [
        np.asarray(v[...], np.float64) for v in (net.hidden.kernel, nnx.Param(jnp.full(7, 0.3)), net.readout.kernel)
    ]
    exact = np.einsum("ijcc->ij", full_ntk(two_layers, [*params, np.zeros(2)], X, X)) / 2
    np.testing.assert_allclose(empirical(net, X), exact, rtol=1e-10)
    variables = Linen().init(jax.random.key(0), X)
    dense = variables["params"]
    params = [np.asarray(dense[f"Dense_{i}"][name], np.float64) for i in (0, 1) for name in ("kernel", "bias")]
    exact = np.einsum("ijcc->ij", full_ntk(two_layers, params, X, X)) / 2
    np.testing.assert_allclose(empirical(Linen(), X, params=variables), exact, rtol=1e-10)


@pytest.mark.slow
def test_a_module_of_equinox():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(3, 2, 7, 1, key=jax.random.key(0))
    first, last = net.layers
    params = [np.asarray(v, np.float64) for v in (first.weight.T, first.bias, last.weight.T, last.bias)]
    exact = np.einsum("ijcc->ij", full_ntk(two_layers, params, X, X)) / 2
    np.testing.assert_allclose(empirical(net, X), exact, rtol=1e-10)


@pytest.mark.slow
def test_a_traced_model_is_taken_at_its_draw_and_in_its_parameterization():
    traced = nd.trace(model, X, init=init)
    own = {name: np.asarray(v, np.float64) for name, v in init(jax.random.key(0)).items()}
    np.testing.assert_allclose(empirical(traced, X, X2), empirical(model, X, X2, params=own), rtol=1e-12)
    stds = {"b": 0.5, "u": 6**-0.5, "v": 6**-0.5, "w": 3**-0.5}
    scaled = {name: value / stds[name] for name, value in own.items()}
    exact = full_ntk(lambda p, x: model({n: stds[n] * v for n, v in p.items()}, x), scaled, X, X2)
    ntk = traced.with_options(parameterization="ntk")
    np.testing.assert_allclose(empirical(ntk, X, X2), np.einsum("ijcc->ij", exact) / 2, rtol=1e-6)
    read = empirical(model, X, X2, init=init, parameterization="ntk")
    np.testing.assert_allclose(read, empirical(ntk, X, X2), rtol=1e-12)


@pytest.mark.slow
def test_draws_are_averaged():
    traced = nd.trace(model, X, init=init)
    mean = np.mean([empirical(traced, X, seed=seed) for seed in (4, 7)], axis=0)
    np.testing.assert_allclose(empirical(traced, X, seeds=[4, 7]), mean, rtol=1e-12)
    each = empirical(traced, X, seeds=[4, 7], average=False)
    np.testing.assert_allclose(each[1], empirical(traced, X, seed=7), rtol=1e-12)
    np.testing.assert_allclose(empirical(model, X, init=init, seeds=[4, 7]), mean, rtol=1e-12)

    # A draw with random numbers that are no parameters is a function of its own.
    def factory(key):
        noise = jax.random.normal(key, (1, 3))
        return lambda p, x: model(p, x + noise), init(key)

    mean = np.mean([empirical(factory, X, seed=seed) for seed in (4, 7)], axis=0)
    assert not np.allclose(empirical(factory, X, seed=4), empirical(traced, X, seed=4), rtol=0.01)
    np.testing.assert_allclose(empirical(factory, X, seeds=[4, 7]), mean, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["own", pytest.param("ntk", marks=pytest.mark.nightly)])
def test_the_mean_over_draws_is_the_kernel_of_the_traced_model(parameterization):
    # 1/width is 0.4 %, the standard errors are below 1 %, so that a factor of 1.05 fails in both directions.
    width, draws = 256, 300
    traced = nd.trace(tied, X[:3], init=functools.partial(init, width=width)).with_options(
        parameterization=parameterization
    )
    limit = traced.kernel(X[:3])
    for kind, exact in (("ntk", np.asarray(limit.ntk)), ("nngp", np.asarray(limit.nngp))):
        one = empirical(traced, X[:3], kind=kind, seeds=draws, average=False, dtype="float32")
        mean, error = one.mean(0), one.std(0) / math.sqrt(draws)
        assert np.all(np.abs(mean - exact) <= 4 * error + 0.012 * np.abs(exact).max())
        # The sum over entries has a small error: two-sided, a factor of 1.05 is far off.
        total, off = one.sum((1, 2)), 4 * one.sum((1, 2)).std() / math.sqrt(draws) + 0.01 * exact.sum()
        assert abs(total.mean() - exact.sum()) <= off
        if kind == "ntk":
            assert off < 0.04 * exact.sum()


def test_parameters_of_an_instance_are_drawn_from_their_distributions():
    kinds = {"w": ("truncated normal", 0.3), "u": ("uniform", 0.2), "v": ("normal", 0.1), "b": ("constant", 0.5)}
    size, random = 400, np.random.default_rng(0)
    cut = scipy.special.ndtri(random.uniform(scipy.special.ndtr(-2), scipy.special.ndtr(2), (size, size)))
    params = {
        "w": 0.3 * cut / 0.8796256610,
        "u": random.uniform(-(0.12**0.5), 0.12**0.5, (size, size)),
        "v": random.normal(size=(size, size)) * 0.1,
        "b": np.full(size, 0.5),
    }
    read = read_model(
        lambda p, x: x @ p["w"] @ p["u"] @ p["v"] + p["b"][None], np.ones((2, size)), params=params, distributions=kinds
    )
    (one,) = drawn(read, [1])
    values = dict(zip((leaf.name for leaf in read.leaves), map(np.asarray, one.values), strict=True))
    for name, fourth in (("w", 2.3655), ("u", 1.8), ("v", 3.0)):
        draw = values[name]
        assert draw.std() == pytest.approx(kinds[name][1], rel=0.01)
        assert abs(draw.mean()) < 0.01 * draw.std()
        assert np.mean(draw**4) / draw.std() ** 4 == pytest.approx(fourth, rel=0.02)
        assert not np.array_equal(draw, params[name])
    assert (values["b"] == 0.5).all()
    assert abs(np.corrcoef(values["w"].ravel(), values["v"].ravel())[0, 1]) < 0.02
    again = read_model(
        lambda p, x: x @ p["w"], np.ones((2, 4)), params={"w": np.linalg.qr(random.normal(size=(4, 4)))[0]},
        distributions={"w": ("orthogonal", 0.5)},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"independent entries of a known kind.*`w` \(orthogonal.*pass a factory"):
        drawn(again, [0])


def test_linearization_is_the_model_to_first_order():
    lin = linearize(model, params=PARAMS)
    np.testing.assert_allclose(lin(lin.params, X), model(PARAMS, X), rtol=1e-5)
    step = jax.tree.map(lambda v: 0.5 * jnp.cos(jnp.arange(v.size, dtype=float)).reshape(v.shape), lin.params)
    moved = jax.tree.map(jnp.add, lin.params, step)
    jacobian = jax.jacobian(model)(lin.params, X)
    slope = sum(
        jnp.tensordot(j, s, s.ndim) for j, s in zip(jax.tree.leaves(jacobian), jax.tree.leaves(step), strict=True)
    )
    np.testing.assert_allclose(lin(moved, X), model(lin.params, X) + slope, rtol=1e-4)
    assert not np.allclose(lin(moved, X), model(moved, X), rtol=0.05)
    assert lin.names == ("b", "u", "v", "w")
    with pytest.raises(InputError, match="Expected `params` in the form of the linearization's own"):
        lin([1.0], X)


@pytest.mark.slow
def test_descent_of_the_linearization_follows_the_empirical_ntk():
    traced = nd.trace(model, X, init=init)
    lin, y = linearize(traced), np.random.default_rng(3).normal(size=(5, 2)).astype(np.float32)
    theta = empirical(traced, X, outputs="pairs").transpose(0, 2, 1, 3).reshape(10, 10)
    eta, params = 0.5 / np.linalg.eigvalsh(theta)[-1], lin.params
    gradient = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum((lin(p, X.astype(np.float32)) - y) ** 2)))
    for _ in range(20):
        params = jax.tree.map(lambda p, g: p - eta * g, params, gradient(params))
    start = np.asarray(lin(lin.params, X)).ravel()
    exact = y.ravel() + np.linalg.matrix_power(np.eye(10) - eta * theta, 20) @ (start - y.ravel())
    np.testing.assert_allclose(np.asarray(lin(params, X)).ravel(), exact, atol=1e-4)
    assert np.abs(exact - start).max() > 0.1
    net = Net(7, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        linearize(net)(linearize(net).params, X), nnx.view(net, deterministic=True)(X), rtol=1e-5
    )


def test_wrong_arguments_are_refused_in_one_line():
    traced = nd.trace(model, X, init=init)
    own = functools.partial(empirical, model, X, params=PARAMS)
    pairs = functools.partial(own, memory_budget=100, outputs="pairs")
    for call, message in (
        (pairs, r"to hold the derivatives of 2 outputs for one input, 4,608 bytes, got 100"),
        (lambda: own(kind="ntkk"), "Expected `kind` to be"),
        (lambda: own(outputs="trace"), "Expected `outputs` to be"),
        (lambda: own(seed=1, seeds=2), "Expected `seed` or `seeds`, got both"),
        (lambda: own(batch_axis=1), "Expected `batch_axis` to be 0 or None"),
        (lambda: own(memory_budget=100), r"to hold the derivatives of 1 output for one input, 2,304 bytes, got 100"),
        (lambda: own(parameterization="standard"), "Expected `parameterization` to be one of 'own', 'ntk'"),
        (lambda: empirical(model, X, X2[:, :2], params=PARAMS), r"Expected inputs of one shape, got \(5, 3\)"),
        (lambda: empirical(model, np.ones((2, 4)), params=PARAMS), "Expected the model model to run on `x`"),
        (lambda: empirical(model, X * np.nan, params=PARAMS), "Expected `x1` to be finite"),
        (lambda: empirical(model, X[:0], params=PARAMS), "Expected `x1` to hold inputs"),
        (lambda: empirical(traced, X[:, :2]), "Expected `x1` to have the shape"),
        (lambda: empirical(traced, X, params=PARAMS), "Expected no `params`, `init`, `width`"),
        (lambda: empirical(lambda params, x: x, X, params={}), "Expected `model` to have parameters"),
        (lambda: linearize(traced, width=3), "Expected no `params`, `init` and `width`"),
    ):
        with pytest.raises(InputError, match=message) as found:
            call()
        assert "\n" not in str(found.value)
