"""The spread at finite width against second derivations: closed forms, products of layers, Gaussian networks."""

import dataclasses
import itertools
import os
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_networks import inputs, targets
from flax import nnx

import nngp_dag as nd
from nngp_dag import width_spread
from nngp_dag.errors import GraphError, InputError, ModelError, NumericalWarning
from nngp_dag.graph import Conv, Dag, Dense, Op, Scale
from nngp_dag.width import FUNCTIONALS, WidthSpread, _spread
from nngp_dag.width.simulation import simulated

X = np.random.default_rng(0).normal(size=(3, 20))
SKIP, WEIGHTED = Op.SKIP, Op.WEIGHTED


def first_order(network, functional, x: Any = X, **options: Any) -> WidthSpread:
    """Returns the spread without simulated networks, for 200,000 drawn neurons."""
    return width_spread(network, x, functional, neurons=200_000, networks=0, **options)


def assert_std(spread: WidthSpread, expected: float) -> None:
    """Asserts two-sided agreement within 4 standard errors, which a factor of 1.05 would fail."""
    assert 4 * spread.std_error < 0.04 * spread.std
    assert abs(spread.std - expected) < 4 * spread.std_error


def gauss(function, variance: float) -> float:
    """Returns E function(u) for u ~ N(0, variance), by a fine sum over 24 standard deviations."""
    z = np.linspace(-12, 12, 40_001)
    with jax.enable_x64(True):
        values = np.asarray(function(jnp.asarray(np.sqrt(variance) * z)))
    return float((values * np.exp(-(z**2) / 2)).sum() * (z[1] - z[0]) / np.sqrt(2 * np.pi))


def test_one_hidden_layer_has_the_closed_form():
    # Cho and Saul 2009: E[u+^2 v+^2] = q_u q_v J_2(theta) / (2 pi), with J_2 = 3 sin cos + (pi - theta) (1 + 2 cos^2).
    p = 2 * X @ X.T / 20
    cos = p[0, 1] / np.sqrt(p[0, 0] * p[1, 1])
    theta = np.arccos(cos)
    j1, j2 = np.sin(theta) + (np.pi - theta) * cos, 3 * np.sin(theta) * cos + (np.pi - theta) * (1 + 2 * cos**2)
    mean = np.sqrt(p[0, 0] * p[1, 1]) * j1 / (2 * np.pi)
    variance = p[0, 0] * p[1, 1] * j2 / (2 * np.pi) - mean**2
    spread = first_order("1", "entry", width=100)
    assert spread.value == pytest.approx(2 * mean, rel=1e-12)
    assert_std(spread, np.sqrt(4 * variance / 100))


@pytest.mark.sample(1, slow=3)
@pytest.mark.parametrize(
    "activation", ["relu", "erf", "gelu", "tanh", "silu", "softplus", nd.activations.Sin(), nd.activations.Elu()]
)
def test_one_neuron_of_any_activation(activation):
    phi = nd.activations.get_activation(activation)
    x, layer = X[:1], Dense(activation=activation, w_std=1.3, b_std=0.4)
    q = 1.3**2 * (x**2).mean() + 0.4**2
    second, fourth = (gauss(lambda u, power=power: phi(u) ** power, q) for power in (2, 4))
    spread = first_order("1", "trace", x, width=64, layer=layer)
    assert spread.value == pytest.approx(1.3**2 * second + 0.4**2, rel=1e-8)
    assert_std(spread, 1.3**2 * np.sqrt((fourth - second**2) / 64))


@pytest.mark.slow
def test_one_hidden_layer_with_jumps():
    # Products of two signs are 1 or -1, of mean 2 / pi arcsin(rho).
    p = X @ X.T
    mean = 2 / np.pi * np.arcsin(p[0, 1] / np.sqrt(p[0, 0] * p[1, 1]))
    spread = first_order("1", "entry", width=100, activation="sign", w_std=1.5)
    assert spread.value == pytest.approx(1.5**2 * mean, rel=1e-9)
    assert_std(spread, 1.5**2 * np.sqrt((1 - mean**2) / 100))


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_two_layers_in_the_order_act_linear(activation):
    # h = w^2 (phi(x1)^2 - F1) + w^2 F1' w^2 (phi(x0)^2 - F0), and the layers are independent.
    phi, w2 = nd.activations.get_activation(activation), 1.7
    x = X[:1]
    q0 = w2 * (x**2).mean() + 0.01

    def power(q, exponent):
        return gauss(lambda u: phi(u) ** exponent, q)

    q1 = w2 * power(q0, 2) + 0.01
    step = 1e-3 * q1
    slope = (power(q1 + step, 2) - power(q1 - step, 2)) / (2 * step)
    variances = [power(q, 4) - power(q, 2) ** 2 for q in (q0, q1)]
    layer = Dense(activation=activation, order="act-linear", w_std=w2**0.5, b_std=0.1)
    spread = first_order("2", "trace", x, width=64, layer=layer)
    parts = w2**2 * variances[1], (w2**2 * slope) ** 2 * variances[0]
    assert_std(spread, np.sqrt(sum(parts) / 64))
    assert spread.shares[1] == pytest.approx(parts[0] / sum(parts), abs=0.03)


LINEAR = Dense(activation=None, w_std=2**0.5)


@pytest.mark.sample(2, slow=3)
@pytest.mark.parametrize(
    ("edges", "variance"),
    [
        # With w^2 = 2 and unit variance at node 0: Var[(x0 + f)^2 + 2 x0^2] = 18 + 8 + 8.
        ([(0, 1, SKIP), (0, 1, WEIGHTED)], 34),
        # Parallel edges draw their own weights: Var[(f + g)^2 + 4 x0^2] = 32 + 32.
        ([(0, 1, WEIGHTED), (0, 1, WEIGHTED)], 64),
        # The signs of scales count: x0 / 2 reaches node 1, and Var[(x0 / 2 + f)^2 + 2 x0^2] = 81 / 8 + 8 + 2.
        ([(0, 1, SKIP), (0, 1, Scale(-0.5)), (0, 1, WEIGHTED)], 20.125),
        # x1 = f and x2 = x0 + f: Var[(x0 + f)^2 + 2 x0^2], as above; the skip passes on the same neuron.
        ([(0, 1, WEIGHTED), (0, 2, SKIP), (1, 2, SKIP)], 34),
        # x1 = x0 + f and x2 = g(x1): Var[g^2 + 2 (x0 + f)^2 + 4 x0^2] = 72 + 72 + 32 + 32.
        ([(0, 1, SKIP), (0, 1, WEIGHTED), (1, 2, WEIGHTED)], 208),
    ],
)
def test_linear_networks_with_skips(edges, variance):
    # All values are Gaussian, so Cov(a^2, b^2) = 2 Cov(a, b)^2.
    x = X[:1] / np.sqrt(2 * (X[:1] ** 2).mean())
    spread = first_order(Dag.from_edges(edges), "trace", x, width=50, layer=LINEAR, readout=False)
    assert_std(spread, np.sqrt(variance / 50))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 3])
def test_relu_chains_are_products_of_layers(depth):
    # K_00 is a product of depth + 1 independent factors 2 / n sum_k z_k+^2, of mean 1 and variance 5 / n.
    code, n = "_".join("0" * t + "2" for t in range(depth)), 60
    layers = depth + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # so narrow a network departs by 6 %
        spread = width_spread(code, X, "entry", index=(0, 0), width=n, neurons=200_000, networks=4000, seed=1)
    assert_std(spread, spread.value * np.sqrt(5 * layers / n))
    # The exact variance, to every order.
    ratio = np.sqrt(((1 + 5 / n) ** layers - 1) / (5 * layers / n)) - 1
    error = np.hypot(spread.departure_error, spread.std_error / spread.std)
    assert abs(spread.departure - ratio) < 4 * error
    assert error < 0.02
    assert abs(spread.bias) < 4 * spread.bias_error
    assert abs(spread.second_order) < 4 * spread.second_order_error + 1e-6 * spread.value
    assert all(share == pytest.approx(1 / layers, abs=0.04) for share in spread.shares.values())


@pytest.mark.slow
def test_second_order_of_a_logarithm():
    # log K_00 is a sum of logarithms, of mean -Var / 2 = -5 / (2 n) each; its first order is 5 / n per layer.
    spread = first_order("2_02", lambda k: jnp.log(k[1, 1]), width=100)
    assert_std(spread, np.sqrt(15 / 100))
    assert abs(spread.second_order + 2.5 * 3 / 100) < 4 * spread.second_order_error
    assert spread.second_order_error < 0.04 * 0.075 * 2


@pytest.mark.slow
def test_second_order_where_a_skip_carries_the_same_neuron():
    # x1 = relu(u) + relu(v) with v ~ N(0, 2 G) and G = mean of relu(u)^2: beside the curvature of E relu(v) in G there
    # is the correlation of that slope with the same neuron. Simulated networks hold both.
    dag = Dag.from_edges([(0, 1, SKIP), (0, 1, WEIGHTED)])
    spread = width_spread(dag, X, "trace", width=128, neurons=400_000, networks=4000)
    assert abs(spread.bias - spread.second_order) < 4 * np.hypot(spread.bias_error, spread.second_order_error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("functional", "expected"),
    # The standard deviations at width 64 of ../shared/probes/influence.py, which writes out this one graph by hand.
    [("entry", 3.712), ("trace", 30.14), ("data_fit", 0.6873), ("lambda_min", 0.313), ("log_det", 1.357)],
)
def test_agrees_with_a_derivation_for_one_graph(functional, expected):
    options = {"y": targets(8)} if functional == "data_fit" else {}
    spread = first_order("2_21_112", functional, inputs(), width=64, **options)
    assert spread.std == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_flags_what_first_order_does_not_describe():
    with pytest.warns(NumericalWarning, match=r"standard deviation of lambda_min at width 64 within 5 %.*got -5"):
        spread = width_spread("2_21_112", inputs(), "lambda_min", width=64)
    # Measured by 3,000 networks with weights: 0.154 +- 0.002.
    assert not spread.trusted
    assert spread.std * (1 + spread.departure) == pytest.approx(0.154, rel=0.09)


@pytest.mark.slow
def test_wider_networks_scale_the_same_numbers():
    narrow, wide = (width_spread("2_12", X, "log_det", width=n, neurons=8192) for n in (1024, 4096))
    assert wide.std == pytest.approx(narrow.std / 2, rel=1e-12)
    for name in ("second_order", "bias", "departure", "departure_error"):
        assert getattr(wide, name) == pytest.approx(getattr(narrow, name) / 4, rel=1e-9)
    assert wide.trusted


@pytest.mark.slow
def test_flags_networks_narrower_than_the_inputs():
    x = np.random.default_rng(0).normal(size=(12, 30))
    with pytest.warns(NumericalWarning, match=r"log_det of simulated networks of width 8 to be finite.*`noise`"):
        spread = width_spread("2_12", x, "log_det", width=8, neurons=8192)
    assert np.isnan(spread.departure)
    assert not spread.trusted


@pytest.mark.nightly
def test_several_inputs_and_other_options():
    dag = Dag.from_edges([(0, 2, WEIGHTED), (1, 2, SKIP)], source=[0, 1])
    spread = first_order(dag, "trace", [X, X[:, :5]], aggregation="mean", activation="erf", b_std=0.1)
    assert spread.width == 1024
    assert set(spread.shares) == {0, 2}
    assert sum(spread.shares.values()) == pytest.approx(1)
    exact = nd.kernel(dag, [X, X[:, :5]], aggregation="mean", activation="erf", b_std=0.1).nngp
    assert spread.value == pytest.approx(float(np.trace(exact)), rel=1e-6)


def test_result_as_text_and_table():
    spread = first_order("2_12", "trace", width=64)
    assert repr(spread).startswith(f"WidthSpread(value={spread.value:.6g}, std={spread.std:.4g}, width=64, ")
    table = spread.to_frame()
    assert list(table.columns) == ["node", "share", "variance"]
    assert table.variance.sum() == pytest.approx(spread.std**2)
    assert not spread.trusted  # nothing was simulated


@pytest.mark.sample(2, slow=5)
@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_named_functionals(functional):
    y = np.array([1.0, -2.0, 0.5])
    options = {
        "prediction": {"y": y[:2], "noise": 0.1},
        "data_fit": {"y": y, "noise": 0.1},
        "alignment": {"y": y},
        "log_det": {"noise": 0.1},
        "entry": {"index": (1, -1)},
    }.get(functional, {})
    k = np.asarray(nd.kernel("2_12", X).nngp, np.float64)
    noisy = k + 0.1 * np.eye(3)
    expected = {
        "entry": k[1, 2],
        "trace": np.trace(k),
        "log_det": np.linalg.slogdet(noisy)[1],
        "data_fit": y @ np.linalg.inv(noisy) @ y,
        "prediction": k[2, :2] @ np.linalg.inv(noisy[:2, :2]) @ y[:2],
        "alignment": y @ k @ y / np.linalg.norm(k) / (y @ y),
        "lambda_min": np.linalg.eigvalsh(k)[0],
    }[functional]
    found = width_spread("2_12", X, functional, neurons=4096, networks=0, **options)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.std > 0


CONV = Conv(filter_shape=(3, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("network", "functional", "options", "error", "message"),
    [
        ("2", "logdet", {}, InputError, "one of entry, trace.*did you mean 'log_det'"),
        ("2", 3, {}, InputError, "`functional` to be a name or a function"),
        ("2", lambda k: k, {}, InputError, "`functional` to return one real number"),
        ("2", lambda k: float(k[0, 0]), {}, InputError, "that JAX can trace"),
        ("2", "entry", {"index": (0, 3)}, InputError, "`index` inside a kernel of 3 x 3"),
        ("2", "entry", {"index": 1}, InputError, "`index` to be a row and a column"),
        ("2", "trace", {"index": (0, 1)}, InputError, "no `index` for 'trace'"),
        ("2", "trace", {"noise": 0.1}, InputError, "no `noise` for 'trace'"),
        ("2", "trace", {"y": X[:, 0]}, InputError, "no `y` for 'trace'"),
        ("2", jnp.trace, {"y": X[:, 0]}, InputError, "no `y` for a function of your own"),
        ("2", "alignment", {}, InputError, "`y`, 3 targets"),
        ("2", "alignment", {"y": np.zeros(3)}, InputError, "`y` to be finite and not all 0"),
        ("2", "prediction", {"y": X[:, 0]}, InputError, r"`y` to have shape \(2,\), got \(3,\): the last input"),
        ("2", "log_det", {"noise": -1.0}, InputError, "`noise` to be a variance"),
        ("2", "trace", {"networks": 1}, InputError, "`networks` to be 0 or at least 2"),
        ("2", "trace", {"networks": 1e30}, InputError, "`networks` to be at most 1,000,000"),
        ("2", "trace", {"neurons": 10**12}, InputError, "`neurons` to be at most 1,000,000,000"),
        ("2", "trace", {"seed": -1}, InputError, "`seed` to be a whole number, at least 0, got -1"),
        ("2", "entry", {"index": (True, 0)}, InputError, "`index` to be a row and a column, got .True, 0."),
        ("2", "entry", {"index": (0, 1.0)}, InputError, "`index` to be a row and a column"),
        ("2", "entry", {"index": [[0], [1, 2]]}, InputError, "`index` to be a row and a column"),
        ("2", "entry", {"index": range(10**9)}, InputError, "`index` to be a row and a column"),
        ("2", "entry", {"index": (-4, 0)}, InputError, "`index` inside a kernel of 3 x 3, got .-4, 0.; pass row"),
        ("2", jnp.trace, {"noise": np.zeros(2)}, InputError, "`noise` to be a finite number"),
        ("2", "trace", {"neurons": 0}, InputError, "neurons"),
        ("2", "trace", {"sede": 0}, InputError, "did you mean 'seed'"),
        ("2", lambda k: 0.0 * k[0, 0], {}, InputError, "varies with the kernel"),
        (
            nd.Network("2", layer=Dense(layer_norm=True)),
            "trace",
            {},
            InputError,
            "without layer norm, got .*layer_norm.*set `layer_norm` False, or take .*`nngp_dag.empirical`",
        ),
        (Dag.from_edges([(0, 1, 2), (0, 2, 2)], output=[1, 2]), "trace", {}, GraphError, "one output, got 2"),
    ],
)
def test_refusals(network, functional, options, error, message):
    with pytest.raises(error, match=message):
        width_spread(network, X, functional, **options)


class Normalized(nnx.Module):
    """A traced network with a layer norm, with or without trained scale and shift."""

    def __init__(self, rngs: nnx.Rngs, *, trained: bool) -> None:
        sizes, options = (20, 16, 16, 1), {"use_bias": False, "rngs": rngs}
        self.layers = nnx.List([nnx.Linear(*of, **options) for of in itertools.pairwise(sizes)])
        self.norm = nnx.LayerNorm(16, use_bias=trained, use_scale=trained, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second, readout = self.layers
        return readout(jax.nn.relu(second(self.norm(jax.nn.relu(first(x))))))


@pytest.mark.parametrize(
    "trained", [pytest.param(False, marks=pytest.mark.nightly), pytest.param(True, marks=pytest.mark.slow)]
)
def test_traced_layer_norm_is_named(trained):
    model = nd.trace(lambda rngs: Normalized(rngs, trained=trained), X[:1])
    for call in (lambda: width_spread(model, X, "trace"), lambda: nd.width_effects(model, X, np.ones((3, 1)))):
        with pytest.raises(ModelError, match=r"which is none: it holds .*layer norm.*; its kernels"):
            call()
    with pytest.raises(InputError, match=r"models with a graph, got one .*layer norm.*; leave `predict_width` out"):
        nd.compare(model, X, np.ones((3, 1)), steps=1, seeds=1, predict_width=True)


def test_one_input_has_no_prediction_and_no_second_column():
    with pytest.raises(InputError, match="at least 2 inputs for 'prediction', got 1"):
        width_spread("2", X[:1], "prediction", y=np.zeros(0))
    with pytest.raises(InputError, match=r"inside a kernel of 1 x 1, got .0, 1., the default; pass row and column"):
        width_spread("2", X[:1], "entry")


@pytest.mark.parametrize("networks", [2, 7, 8])
@pytest.mark.filterwarnings("ignore::nngp_dag.errors.NumericalWarning")
def test_few_networks_are_not_trusted(networks):
    # Two lie on one line with any control variate, so that no error would be seen.
    spread = width_spread("2", X, "trace", width=1024, neurons=4096, networks=networks)
    assert np.isfinite(spread.departure)
    assert np.isnan(spread.departure_error) == (networks < 8)
    assert not spread.trusted or networks == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nngp_dag.errors.NumericalWarning")
def test_more_networks_are_drawn_where_the_verdict_is_open(monkeypatch):
    counts = []

    def counted(*arguments):
        counts.append(arguments[-2])
        return simulated(*arguments)

    monkeypatch.setattr(_spread, "simulated", counted)
    options: dict[str, Any] = {"neurons": 50_000, "networks": 20}
    few = width_spread("2", X, "trace", width=256, **options)
    assert counts == [20, 60]
    assert 0.01 < few.departure_error < 0.03
    counts.clear()
    assert not width_spread("2_02_002", X, "lambda_min", width=16, **options).trusted
    assert width_spread("2", X, "trace", width=1024, neurons=50_000, networks=1000).trusted
    assert counts == [20, 1000]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore::nngp_dag.errors.NumericalWarning")
def test_whole_numbers_of_other_types():
    plain = width_spread("2", X, "entry", index=(0, 1), width=64, neurons=4096, networks=8, seed=3)
    other = {"index": np.array([0, 1]), "neurons": 4096.0, "networks": np.int64(8), "seed": 3.0}
    assert width_spread("2", X, "entry", width=64, **other) == plain  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nngp_dag.errors.NumericalWarning")
def test_no_two_seeds_share_a_stream(monkeypatch):
    default_rng, states = np.random.default_rng, []

    def recording(seed):
        rng = default_rng(seed)
        states.append(rng.bit_generator.state["state"]["state"])
        return rng

    monkeypatch.setattr(np.random, "default_rng", recording)
    for seed in (0, 1, 2, 2**32, 0):
        width_spread("2", X, "trace", width=8, neurons=4096, networks=2, seed=seed)
    # Neurons, second order and networks have streams of their own, and the same seed the same ones.
    assert len(states) == 15
    assert len(set(states)) == 12
    assert states[12:] == states[:3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nngp_dag.errors.NumericalWarning")
def test_the_order_of_edges_changes_no_draw():
    edges = [(0, 1, WEIGHTED), (0, 2, SKIP), (1, 2, WEIGHTED), (0, 2, Dense(activation="erf")), (1, 2, SKIP)]
    for kind in ("nngp", "ntk"):
        one, other = (
            width_spread(Dag.from_edges(of), X, "trace", kind=kind, width=64, neurons=4096, networks=8)
            for of in (edges, edges[::-1])
        )
        np.testing.assert_equal(dataclasses.asdict(one), dataclasses.asdict(other))


@pytest.mark.nightly
def test_hashes_of_texts_change_no_draw():
    # Sets and dictionaries of texts have another order in every process.
    program = (
        "import numpy as np, nngp_dag as nd, warnings; warnings.simplefilter('ignore'); x = np.eye(3) + 0.5;"
        "s = nd.width_spread('2_12', x, 'trace', kind='ntk', width=32, neurons=4096, networks=4);"
        "e = nd.width_effects('2_12', x, np.eye(3), width=32, widths=[8, 9, 10], steps=1, networks=8,"
        " learning_rate=0.01); print(s.std, s.bias, *s.shares.values(), *e.mean, *e.frozen)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop().split()) >= 9


@pytest.mark.slow
def test_refuses_images_and_singular_kernels():
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 1))
    with pytest.raises(InputError, match="fully connected layers, got Conv"):
        width_spread("2", images, "trace", layer=CONV)
    twice = np.concatenate([X, X[:1]])
    with pytest.raises(InputError, match="add `noise`, or drop inputs that are"):
        width_spread("2", twice, "log_det")
    near = np.concatenate([X, X[:1] + 1e-6 * X[1:2]])
    with pytest.raises(InputError, match=r"rounding does not decide.*add `noise`"):
        width_spread("2", near, "log_det")
    assert width_spread("2", near, "log_det", noise=0.1, networks=0).std > 0


@pytest.mark.slow
def test_long_chains_of_skips_and_equal_networks():
    # Nodes that only pass values on change nothing, however many they are.
    skips = [(t, t + 1, SKIP) for t in range(1, 1200)]
    long = Dag.from_edges([(0, 1, WEIGHTED), *skips, (1200, 1201, WEIGHTED)])
    one, two = (first_order(dag, "trace", X[:2], width=64) for dag in (long, "2_02"))
    assert one.std == pytest.approx(two.std, rel=1e-9)
    assert one.shares[1200] == pytest.approx(two.shares[1], rel=1e-9)
