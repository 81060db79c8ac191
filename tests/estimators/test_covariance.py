"""Kernels of a network in `sklearn.gaussian_process`: values, exact gradients, optimizers and kernel algebra."""

import importlib
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor as Process
from sklearn.gaussian_process.kernels import RBF, WhiteKernel

import nngp_dag as nd
from nngp_dag.errors import GraphError, InputError, MissingLibraryError

KERNELS: dict[str, Any] = {"nngp": nd.estimators.NNGPKernel, "ntk": nd.estimators.NTKKernel}
KINDS = ("nngp", "ntk")
ERF = {"activation": "erf", "order": "act-linear", "aggregation": "mean"}
X, Z = np.random.default_rng(0).normal(size=(5, 3)), np.random.default_rng(1).normal(size=(4, 3))


@pytest.mark.parametrize(
    "options", [{"aggregation": "mean"}, pytest.param({"b_std": 0.4, **ERF}, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_network(kind, options):
    kernel = KERNELS[kind]("2_21_112", w_std=1.2, **options)
    k, cross = (getattr(nd.kernel("2_21_112", *x, w_std=1.2, **options), kind) for x in ((X,), (Z, X)))
    np.testing.assert_array_equal(kernel(X), k)
    np.testing.assert_array_equal(kernel(Z, X), cross)
    np.testing.assert_allclose(kernel.diag(X), np.diag(k), rtol=1e-14)
    assert not kernel.is_stationary()


@pytest.mark.sample(0, slow=3)
@pytest.mark.parametrize(
    ("options", "free"),
    [({"b_std": 0.4}, 2), ({"b_std": 0.4, **ERF}, 2), ({}, 1), ({"b_std": 0.4, "b_std_bounds": "fixed"}, 1)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_central_differences(kind, options, free):
    x = np.concatenate([X[:4], X[3:4]])  # a duplicate
    kernel = KERNELS[kind]("2_12", w_std=1.2, **options)
    values, gradient = kernel(x, eval_gradient=True)
    np.testing.assert_array_equal(values, kernel(x))
    assert gradient.shape == (5, 5, free)
    step = 1e-5
    for i, unit in enumerate(step * np.eye(len(kernel.theta))):
        ends = [kernel.clone_with_theta(kernel.theta + sign * unit)(x) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient[..., i], numeric, rtol=1e-6, atol=1e-8 * np.abs(numeric).max())


@pytest.mark.slow
def test_hyperparameters_follow_the_conventions_of_scikit_learn():
    network = nd.Network("2", layer=nd.Dense(w_std=1.3, b_std=0.2))
    kernel = KERNELS["nngp"](network, w_std_bounds=(0.1, 10))
    assert (kernel.w_std, kernel.b_std) == (1.3, 0.2)
    np.testing.assert_allclose(np.exp(kernel.theta), [0.2, 1.3])
    np.testing.assert_allclose(np.exp(kernel.bounds), [[1e-2, 1e2], [0.1, 10]])
    again = clone(kernel)
    assert again == kernel
    assert again is not kernel
    moved = kernel.clone_with_theta(np.log([0.5, 2.0]))
    assert moved.get_params()["w_std"] == pytest.approx(2)
    assert "w_std=2, b_std=0.5" in repr(moved)
    np.testing.assert_allclose(moved(X), nd.kernel("2", X, w_std=2.0, b_std=0.5).nngp, rtol=1e-12)
    fixed = KERNELS["ntk"]("2", w_std_bounds="fixed")
    assert len(fixed.theta) == 0
    assert fixed(X, eval_gradient=True)[1].shape == (5, 5, 0)
    mixed = 2.0 * kernel + RBF(1.5) * fixed
    np.testing.assert_allclose(mixed(X), 2 * kernel(X) + RBF(1.5)(X) * fixed(X), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_its_gaussian_process_is_the_regressor_of_this_package(kind):
    y = np.stack([np.sin(X[:, 0]), X[:, 1] ** 2], axis=1)
    regressor = {"nngp": nd.estimators.NNGPRegressor, "ntk": nd.estimators.NTKRegressor}[kind]
    ours = regressor("2", noise=0.2).fit(X, y)
    no_optimizer: Any = None
    theirs = Process(KERNELS[kind]("2"), alpha=0.2, optimizer=no_optimizer, normalize_y=True)
    np.testing.assert_allclose(theirs.fit(X, y).predict(Z), ours.predict(Z), rtol=1e-10)
    if kind == "nngp":
        np.testing.assert_allclose(
            theirs.predict(Z, return_std=True)[1], ours.predict(Z, return_std=True)[1], rtol=1e-8
        )
        assert ours.log_marginal_likelihood_ == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-12)
        normalized = (y - y.mean(axis=0)) / y.std(axis=0)
        evidence = nd.log_marginal_likelihood(nd.kernel("2", X), normalized, noise=0.2)
        assert ours.log_marginal_likelihood_ == pytest.approx(evidence, rel=1e-10)


@pytest.mark.nightly
def test_the_optimizer_of_scikit_learn_climbs_to_a_maximum():
    x = np.random.default_rng(2).normal(size=(30, 2))
    y = np.sin(1.5 * x[:, 0] + 0.8) + 0.1 * np.random.default_rng(3).normal(size=30)
    kernel = KERNELS["nngp"]("2_12", w_std=1.0, b_std=0.3, activation="erf") + WhiteKernel(0.1)
    model: Any = Process(kernel).fit(x, y)
    best, gradient = model.log_marginal_likelihood(model.kernel_.theta, eval_gradient=True)
    assert best > model.log_marginal_likelihood(kernel.theta) + 1
    assert np.abs(gradient).max() < 1e-2
    for unit in np.eye(3):
        for step in (-0.1, 0.1):
            assert model.log_marginal_likelihood(model.kernel_.theta + step * unit) < best
    assert model.kernel_.k2.noise_level == pytest.approx(0.01, rel=0.8)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_refused():
    kernel = KERNELS["nngp"]
    with pytest.raises(InputError, match="`b_std` to be positive, since its logarithm is the hyperparameter, got 0"):
        kernel("2", b_std=0.0)
    assert kernel("2", b_std=0.0, b_std_bounds="fixed").theta.shape == (1,)
    with pytest.raises(GraphError, match="'2x' in '2_2x'"):
        kernel("2_2x")
    with pytest.raises(InputError, match="`Y` to be None where `eval_gradient` is true"):
        kernel("2")(X, Z, eval_gradient=True)
    with pytest.raises(InputError, match="one output node, got 2"):
        kernel(nd.Dag(3, (nd.Edge(0, 1, nd.Op.WEIGHTED), nd.Edge(0, 2, nd.Op.WEIGHTED)), outputs=(1, 2)))


@pytest.mark.parametrize(("extra", "library"), [("gpjax", "gpjax"), ("gpytorch", "torch")])
def test_a_library_that_is_absent_is_named_with_its_command(extra, library, monkeypatch):
    name = f"nngp_dag.estimators.{extra}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for module in {extra, library, "equinox"}:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingLibraryError, match=rf"Expected `\w+` to be installed .*'nngp-dag\[{extra}\]'") as caught:
        importlib.import_module(name)
    assert isinstance(caught.value, ImportError)
    assert "\n" not in str(caught.value)
