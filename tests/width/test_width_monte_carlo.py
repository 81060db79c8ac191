"""The spread at finite width against networks of this package, with all of their weights."""

import functools
import warnings

import jax
import numpy as np
import pytest
from finite_networks import FUNCTIONALS, GRAPHS, inputs, nngps, ntks

import nngp_dag as nd
from nngp_dag import width_spread
from nngp_dag.errors import NumericalWarning
from nngp_dag.graph import Dag, Dense, Op, Scale
from nngp_dag.width.functionals import functional_of

WIDTH, DRAWS = 256, 8000
ORDERS = ("linear-act", "act-linear")


def check(
    network: nd.Network, x: np.ndarray, kernels: np.ndarray, functional: str, options: dict, kind: str = "nngp"
) -> None:
    """Asserts that networks have the predicted spread and mean, two-sided; a factor of 1.05 on the spread fails."""
    with jax.enable_x64(True):
        values = np.asarray(jax.vmap(functional_of(functional, len(x), **options))(jax.numpy.asarray(kernels)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        options = options | {"kind": kind, "neurons": 200_000}
        spread = width_spread(network, x, functional, networks=3000, **options)
        if spread.departure_error > 0.008:  # values of deep ReLU networks have long tails
            spread = width_spread(network, x, functional, networks=12_000, **options)
    std = values.std(ddof=1)
    squares = (values - values.mean()) ** 2
    error = squares.std() / np.sqrt(len(values)) / 2 / std**2
    # What is unflagged misses the networks by less than 10 %.
    ratio = std / spread.std - 1
    assert not spread.trusted or abs(ratio) < 0.1
    # With the departure that simulated networks show, nothing but sampling errors is left.
    errors = np.array([error, spread.departure_error / (1 + spread.departure), spread.std_error / spread.std])
    tolerance = 3.5 * np.linalg.norm(errors)
    assert tolerance < 0.05 or not spread.trusted
    assert abs(std / (spread.std * (1 + spread.departure)) - 1) < tolerance
    assert abs(values.mean() - spread.value - spread.bias) < 4 * np.hypot(std / len(values) ** 0.5, spread.bias_error)


@functools.lru_cache(maxsize=1)
def drawn(network: nd.Network, kind: str) -> np.ndarray:
    return (nngps if kind == "nngp" else ntks)(network, inputs(), DRAWS, seed=7)


@pytest.mark.nightly
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_finite_networks_have_the_predicted_spread(kind, activation, order, graph):
    network = nd.Network(GRAPHS[graph], layer=Dense(activation=activation, order=order), width=WIDTH)
    kernels = drawn(network, kind)
    for functional, options in FUNCTIONALS.items():
        check(network, inputs(), kernels, functional, options, kind)


MIXED = Dag.from_edges(
    [
        (0, 1, Dense(activation="gelu", b_std=0.3)),
        (0, 1, Op.SKIP),
        (0, 2, Dense(activation="erf", w_std=1.1)),
        (1, 2, Scale(-0.7)),
        (1, 3, Op.WEIGHTED),
        (2, 3, Op.WEIGHTED),
        (0, 3, Op.SKIP),
    ]
)


@pytest.mark.nightly
def test_networks_of_several_operations():
    network = nd.Network(MIXED, layer=Dense(activation="relu", b_std=0.2), aggregation="mean", width=64)
    x = np.random.default_rng(3).normal(size=(4, 6))
    check(network, x, nngps(network, x, 8000, seed=2), "trace", {})
    check(network, x, ntks(network, x, 8000, seed=2), "trace", {}, "ntk")


@pytest.mark.nightly
def test_networks_of_several_operations_in_the_order_act_linear():
    # One node hands on moments of two activations of the same neurons.
    ops = {name: Dense(activation=name, order="act-linear", b_std=0.2) for name in ("relu", "erf")}
    dag = Dag.from_edges([(0, 1, ops["relu"]), (0, 1, ops["erf"]), (0, 1, Op.SKIP), (1, 2, ops["erf"]), (0, 2, 1)])
    network = nd.Network(dag, layer=ops["relu"], width=64)
    x = np.random.default_rng(3).normal(size=(4, 6))
    check(network, x, nngps(network, x, 8000, seed=2), "trace", {})
    check(network, x, ntks(network, x, 8000, seed=2), "trace", {}, "ntk")
