"""The spread of the NTK at finite width against second derivations, and against networks with weights."""

from typing import Any

import jax
import numpy as np
import pytest
from finite_networks import ntks

import nngp_dag as nd
from nngp_dag import width_spread
from nngp_dag.architecture import as_network
from nngp_dag.errors import InputError
from nngp_dag.graph import Dag, Dense, Op
from nngp_dag.kernels.dual import dual
from nngp_dag.width import WidthSpread
from nngp_dag.width.neurons import moments_of, traced_slope
from nngp_dag.width.tangents import TangentRecursion

X = np.random.default_rng(0).normal(size=(3, 20))
SKIP, WEIGHTED = Op.SKIP, Op.WEIGHTED
LINEAR = Dense(activation=None, w_std=2**0.5)


def first_order(network, functional, x: Any = X, **options: Any) -> WidthSpread:
    """Returns the spread of the NTK without simulated networks, for 200,000 drawn neurons."""
    return width_spread(network, x, functional, kind="ntk", neurons=200_000, networks=0, **options)


def assert_std(spread: WidthSpread, expected: float) -> None:
    """Asserts two-sided agreement within 4 standard errors, which a factor of 1.05 would fail."""
    assert 4 * spread.std_error < 0.04 * spread.std
    assert abs(spread.std - expected) < 4 * spread.std_error


def chain(depth: int) -> str:
    """Returns the code of a chain of weighted edges."""
    return "_".join("0" * t + "2" for t in range(depth))


@pytest.mark.slow
def test_one_hidden_layer_has_the_closed_form():
    # With u, v of covariance P, the influence of a neuron on NTK_01 is w^2 (s + P_01 a^2 t) with s = relu(u) relu(v),
    # the product t of both steps, and a readout's weight a.
    p = 2 * X @ X.T / 20
    cos = p[0, 1] / np.sqrt(p[0, 0] * p[1, 1])
    theta, norms = np.arccos(cos), np.sqrt(p[0, 0] * p[1, 1])
    j1, j2 = np.sin(theta) + (np.pi - theta) * cos, 3 * np.sin(theta) * cos + (np.pi - theta) * (1 + 2 * cos**2)
    s, s2, t = norms * j1 / (2 * np.pi), norms**2 * j2 / (2 * np.pi), (np.pi - theta) / (2 * np.pi)
    variance = s2 - s**2 + p[0, 1] ** 2 * (3 * t - t**2) + 2 * p[0, 1] * (s - s * t)
    spread = first_order("1", "entry", width=100)
    assert spread.value == pytest.approx(2 * (s + p[0, 1] * t), rel=1e-12)
    assert_std(spread, np.sqrt(4 * variance / 100))


@pytest.mark.slow
def test_linear_networks_share_indices_in_both_directions():
    # x1 = x0 + f, with w^2 = 2 and unit variance at node 0. Forward moments are x0^2 and (x0 + f)^2, backward ones b^2
    # and (b + m)^2, with a readout's weight b of variance 2, and a message m of variance 4. Then
    # NTK = (b + m)^2 + 2 x0^2 b^2 + 2 (x0 + f)^2 in means, and h = 8 x0^2 + 2 (x0 + f)^2 + 4 b^2 + (b + m)^2 - 56.
    # Of Gaussian numbers, Cov(a^2, b^2) = 2 Cov(a, b)^2.
    x = X[:1] / np.sqrt(2 * (X[:1] ** 2).mean())
    spread = first_order(Dag.from_edges([(0, 1, SKIP), (0, 1, WEIGHTED)]), "trace", x, width=50, layer=LINEAR)
    assert spread.value == pytest.approx(16)
    assert_std(spread, np.sqrt((128 + 72 + 64 + 128 + 72 + 64) / 50))
    # The backward moments of the edge and the forward ones of the output are those of node 1.
    of_one = 72 + 128 + (64 + 64) / 2
    assert spread.shares[1] == pytest.approx(of_one / 528, abs=0.02)


def relative_variance(depth: int) -> float:
    """Returns the variance of a diagonal entry of a ReLU chain, over its square, times the width.

    Every one of depth + 2 layers adds a product of factors of mean 1, one per layer of neurons: 2 u+^2 before it, and
    2 b^2 1[u > 0] after it. Their variances are 5, and their covariance is 1.
    """
    layers = np.arange(depth + 2)
    apart = abs(layers[:, None] - layers)
    return float((5 * (depth + 1 - apart) + apart).mean())


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize("depth", [8, 1])
def test_relu_chains_are_sums_of_products(depth):
    spread = first_order(chain(depth), "entry", X[:1], index=(0, 0), width=400)
    assert_std(spread, spread.value * np.sqrt(relative_variance(depth) / 400))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nngp_dag.errors.NumericalWarning")
def test_the_mean_of_relu_chains_is_not_shifted():
    # At critical initialization, the mean of a diagonal entry of the NTK has no correction in 1 / n (arXiv 2508.11522),
    # in fact none at all (Hanin and Nica 2020).
    networks: dict[str, Any] = {"width": 32, "networks": 6000, "seed": 3}
    own = width_spread(chain(4), X, "trace", kind="ntk", **networks)
    assert own.bias_error < 0.01 * own.value
    assert abs(own.bias) < 4 * own.bias_error


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::nngp_dag.errors.NumericalWarning")
def test_spread_grows_exponentially_in_depth_over_width():
    # E K^2 / (E K)^2 is the mean over pairs of layers of (1 + 5 / n)^layers they share (1 + 1 / n)^others, to first
    # order in 1 / n at a fixed ratio of depth to width: it grows as exp(5 depth / n), as in Hanin and Nica 2020.
    n, depth = 64, 14
    spread = width_spread(chain(depth), X[:1], "trace", kind="ntk", width=n, networks=40_000, neurons=200_000)
    layers = np.arange(depth + 2)
    apart = abs(layers[:, None] - layers)
    ratio = np.exp((5 * (depth + 1 - apart) + apart) / n).mean()
    expected = np.sqrt((ratio - 1) / (relative_variance(depth) / n)) - 1
    assert not spread.trusted
    assert expected > 0.25
    error = np.hypot(spread.departure_error, spread.std_error / spread.std)
    assert error < 0.02
    assert abs(spread.departure - expected) < 4 * error + 2 / n


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", nd.activations.Sin()])
def test_slopes_have_derivatives_on_the_diagonal(activation):
    phi = nd.activations.get_activation(activation)
    with jax.enable_x64(True):
        k = jax.numpy.asarray(2 * X @ X.T / 20)
        change = jax.numpy.asarray(np.diag([0.3, -0.2, 0.1])) + 0.05 * k
        found = jax.jvp(lambda k: traced_slope(phi, k), (k,), (change,))[1]
        step = 1e-5
        above, below = (traced_slope(phi, k + sign * step * change) for sign in (1, -1))
        quotients = (above - below) / (2 * step)
        np.testing.assert_allclose(found, quotients, rtol=1e-6, atol=1e-8)
        # The diagonal is the dual of one input.
        own = [dual(phi, q, 0 * q, q, q).slope for q in jax.numpy.diagonal(k)]
        np.testing.assert_allclose(np.diagonal(traced_slope(phi, k)), own, rtol=1e-12)


# Width 10, where every term counts.
MIXED = [(0, 1, Dense(activation="gelu", b_std=0.3)), (0, 1, SKIP), (1, 2, WEIGHTED), (0, 2, WEIGHTED), (0, 2, SKIP)]
NETWORKS = {
    "standard": as_network("2_12", parameterization="standard", b_std=0.4, width=10),
    "linear-act": as_network("2_21_112", width=10),
    "act-linear": as_network("2_12_021", order="act-linear", activation="erf", w_std=1.5, b_std=0.5, width=10),
    "mixed": as_network(Dag.from_edges(MIXED), b_std=0.4, aggregation="mean", width=10),
    "no biases": as_network("2_12", parameterization="standard", activation="erf", b_std=None, width=10),
}


@pytest.mark.sample(0, slow=2)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_limit_is_the_ntk(name):
    recursion = TangentRecursion(NETWORKS[name], (20,))
    with jax.enable_x64(True):
        limit = recursion.limit([moments_of(X)], jax.numpy.eye(3))
    exact = nd.kernel(NETWORKS[name], X, dtype="float64").ntk
    np.testing.assert_allclose(limit.kernel, exact, rtol=1e-10)


@pytest.mark.sample(0, slow=2)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_drawn_exactly_in_distribution(name):
    network, x, count = NETWORKS[name], X[:2, :3], 30_000
    recursion = TangentRecursion(network, (3,))
    with jax.enable_x64(True):
        draws = np.random.default_rng(1).standard_normal((count, recursion.vectors, 11, 2))
        drawn = np.asarray(recursion.drawn([moments_of(x)], draws))
    real = ntks(network, x, count, seed=5)
    own = np.diagonal(real.mean(axis=0))
    rows, columns = np.triu_indices(2)

    def moments(of: np.ndarray) -> np.ndarray:
        entries = of[:, rows, columns] / np.sqrt(own[rows] * own[columns])
        products = entries[:, rows] * entries[:, columns]
        # Products have long tails, so they are cut off in both samples alike.
        return np.concatenate([entries, np.minimum(products, 8)], axis=1)

    (m1, s1), (m2, s2) = ((v.mean(axis=0), v.std(axis=0)) for v in map(moments, (drawn, real)))
    errors = np.hypot(s1, s2) / np.sqrt(count)
    assert (errors[:3] < 0.0115).all()
    np.testing.assert_array_less(abs(m1 - m2), 4 * errors)


@pytest.mark.nightly
def test_the_standard_parameterization_and_several_inputs():
    # With equal weights for every layer, both parameterizations have the same relative spread; and two inputs that are
    # the same are one.
    options = {"width": 64, "w_std": 8.0, "b_std": 1.0, "activation": "erf"}
    x = np.random.default_rng(0).normal(size=(2, 64))
    one = first_order("2_12", "entry", x, **options)
    two = first_order("2_12", "entry", x, parameterization="standard", **options)
    assert one.value == pytest.approx(two.value, rel=1e-9)
    assert one.std == pytest.approx(two.std, rel=1e-9)
    dag = Dag.from_edges([(0, 2, WEIGHTED), (1, 2, SKIP)], source=[0, 1])
    spread = first_order(dag, "trace", [X, X[:, :5]], parameterization="standard", b_std=0.1)
    exact = nd.kernel(dag, [X, X[:, :5]], parameterization="standard", b_std=0.1, dtype="float64").ntk
    assert spread.value == pytest.approx(float(np.trace(exact)), rel=1e-10)
    assert set(spread.shares) == {0, 1, 2}


@pytest.mark.slow
def test_result_as_text_and_refusals():
    spread = width_spread("2", X, "trace", kind="ntk", width=512, neurons=8192)
    assert spread.trusted
    assert ", kind=ntk, bias=" in repr(spread)
    assert np.isnan(spread.second_order)
    with pytest.raises(InputError, match="`kind` to be one of 'nngp', 'ntk'"):
        width_spread("2", X, "trace", kind="NTK")
    with pytest.raises(InputError, match="a readout for the spread of the NTK"):
        width_spread("2", X, "trace", kind="ntk", readout=False)
    with pytest.raises(InputError, match="without layer norm"):
        width_spread(nd.Network("2", layer=Dense(layer_norm=True)), X, "trace", kind="ntk")
