"""Fits of a network's numbers and the noise."""

import numpy as np
import optax
import pytest
import scipy.optimize

import nngp_dag as nd
from nngp_dag.errors import InputError, NumericalWarning

NET = nd.Network("2_12", layer=nd.Dense(activation="erf", order="act-linear", w_std=1.5, b_std=0.4))
PLANTED = {"w_std": 1.5, "b_std": 0.4, "noise": 0.01}
BOUNDS = {"layer": {"w_std": (0.3, 5.0), "b_std": (0.02, 5.0)}, "noise": (1e-4, 1.0)}


def drawn(seed, count=24):
    """Returns inputs, and targets drawn from the model with the planted numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2))
    covariance = np.asarray(nd.kernel(NET, x).nngp) + PLANTED["noise"] * np.eye(count)
    return x, np.linalg.cholesky(covariance) @ rng.normal(size=count)


def evidence(logs, x, y):
    w_std, b_std, noise = map(float, np.exp(logs))
    net = NET.with_parameters({"layer": {"w_std": w_std, "b_std": b_std}})
    return nd.log_marginal_likelihood(nd.kernel(net, x), y, noise)


@pytest.fixture(scope="module")
def fitted():
    """Returns a fit by the default optimizer, which two tests compare with other ways to the maximum."""
    return nd.fit(NET, *drawn(0), noise=0.05, bounds=BOUNDS)


@pytest.mark.slow
def test_the_maximum_is_that_of_a_search_without_gradients(fitted):
    (x, y), result = drawn(0), fitted
    assert result.converged
    assert result.names == ("layer.w_std", "layer.b_std", "noise")
    assert result.at_bounds == ()
    again = nd.log_marginal_likelihood(nd.kernel(result.network, x), y, result.noise)
    np.testing.assert_allclose(result.value, again, rtol=1e-10)
    layer = result.network.layer
    np.testing.assert_allclose(result.numbers, np.array([layer.w_std, layer.b_std, result.noise], float))
    # Nelder and Mead need no gradient, and know nothing of the bounds.
    start = np.log(result.numbers) + 0.2
    found = scipy.optimize.minimize(lambda logs: -evidence(logs, x, y), start, method="Nelder-Mead", tol=1e-6)
    np.testing.assert_allclose(result.value, -found.fun, rtol=1e-6)
    np.testing.assert_allclose(np.log(result.numbers), found.x, atol=2e-3)
    # Standard errors from second differences of the values, and not of the gradient.
    at, step = np.log(result.numbers), 1e-3
    moves = step * np.eye(3)
    hessian = np.array(
        [
            [
                sum(s * t * evidence(at + s * a + t * b, x, y) for s in (1, -1) for t in (1, -1)) / (4 * step**2)
                for a in moves
            ]
            for b in moves
        ]
    )
    errors = np.sqrt(np.diag(np.linalg.inv(-hessian))) * result.numbers
    np.testing.assert_allclose(result.std, errors, rtol=1e-3)
    assert result.to_frame().shape == (3, 6)
    assert len(result.history) == len(result.path)
    assert result.history[-1] == result.value == result.restarts.max()


@pytest.mark.nightly
def test_an_optimizer_of_optax_reaches_the_same_maximum(fitted):
    x, y = drawn(0)
    other = nd.fit(NET, x, y, noise=0.05, bounds=BOUNDS, optimizer=optax.adam(0.1), steps=300)
    assert other.converged
    np.testing.assert_allclose(other.value, fitted.value, rtol=1e-6)
    with pytest.warns(NumericalWarning, match="the fit has not converged"):
        short = nd.fit(NET, x, y, noise=0.05, bounds=BOUNDS, optimizer=optax.sgd(1e-4), steps=2)
    assert not short.converged


@pytest.mark.nightly
def test_planted_numbers_are_recovered():
    """Over 20 draws, errors in units of the standard error have the mean square of a normal variable, 1."""
    scores = []
    for seed in range(20):
        x, y = drawn(seed, 60)
        result = nd.fit(NET, x, y, noise=0.05, bounds=BOUNDS, restarts=2, seed=seed)
        assert result.converged
        logs = np.log(result.numbers / list(PLANTED.values())) / (result.std / result.numbers)
        scores += logs[np.isfinite(logs)].tolist()
    assert len(scores) >= 50
    assert np.abs(scores).max() < 5
    assert 0.5 < np.mean(np.square(scores)) < 1.7


@pytest.mark.slow
def test_leave_one_out_weights_of_edges_and_noise_per_sample():
    x, y = drawn(1, 12)
    noise = np.linspace(0.01, 0.1, 12)
    bounds = {"edges": {"0->2": {"weight": (-2.0, 2.0)}}}
    result = nd.fit(NET, x, y, noise=noise, bounds=bounds, objective="leave-one-out")
    assert result.names == ("edges.0->2.weight",)
    np.testing.assert_array_equal(result.noise, noise)

    def density(weight):
        net = NET.with_parameters({"edges": {"0->2": {"weight": float(weight)}}})
        return nd.leave_one_out(nd.kernel(net, x), y, noise).log_predictive_density

    grid = [density(weight) for weight in np.linspace(-2, 2, 21)]
    np.testing.assert_allclose(result.value, density(result.numbers[0]), rtol=1e-8)
    assert result.value >= max(grid) - 1e-9


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": {"layer": {"w_sdt": (0.1, 1.0)}}}, r"got `w_sdt`; did you mean 'w_std'\?"),
        ({"bounds": {"layer": {"w_std": (1.0, 0.1)}}}, "the lower bound of `layer.w_std` below"),
        ({"bounds": {"layer": {"w_std": (0.0, 1.0)}}}, "the lower bound of `layer.w_std` to be positive"),
        ({"bounds": {"layer": {"w_std": 1.0}}}, "to be two numbers"),
        ({"bounds": {}}, "to name at least one number"),
        ({"bounds": {"noise": (0.1, 1.0)}, "noise": np.ones(4)}, "which is fixed where there is one per input"),
        ({"optimizer": "adam"}, "`optimizer` to be one of optax"),
        ({"tolerance": -1.0}, "`tolerance` to be above 0"),
        ({"objective": "evidence"}, "`objective` to be one of 'marginal-likelihood', 'leave-one-out'"),
        ({"noise": -1.0}, "`noise` to be finite and at least 0"),
        ({"steps": 0}, "`steps` to be a whole number"),
    ],
)
def test_wrong_arguments(options, message):
    x, y = np.eye(4), np.arange(4) / 3
    with pytest.raises(InputError, match=message):
        nd.fit("2", x, y, **options)
    with pytest.raises(InputError, match="look like class labels"):
        nd.fit("2", x, np.array([0, 1, 1, 0]))
