"""Posteriors and trained ensembles against neural-tangents, conditioning by hand, and training to convergence."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.kernels.neural_tangents import neural_tangents as nt
from nngp_dag.kernels.neural_tangents import stax
from nngp_dag.theory._posterior import Posterior, classification_accuracy, kernel_regression_accuracy, posterior
from nngp_dag.theory.dynamics import loss_curve

DAG = nd.Dag.from_code("2_21_112")
X, Z = np.random.default_rng(0).normal(size=(6, 5)), np.random.default_rng(1).normal(size=(3, 5))
Y = np.random.default_rng(2).normal(size=(6, 2))
KINDS = ("nngp", "ntk")


def kernels(x: Any = X, z: Any = Z, **options: Any) -> tuple[nd.Kernel, nd.Kernel, nd.Kernel]:
    return nd.kernel(DAG, x, **options), nd.kernel(DAG, z, x, **options), nd.kernel(DAG, z, **options)


def posterior_of(of_inputs: Sequence[nd.Kernel], y: np.ndarray, **options: Any) -> Posterior:
    train, cross, test = of_inputs
    return posterior(train, cross, test, y, **options)


def both(k, name):
    return np.asarray(getattr(k, name), np.float64)


@pytest.fixture(scope="module")
def of_x():
    return kernels()


@pytest.mark.slow
def test_both_kinds_are_those_of_neural_tangents(of_x):
    # neural-tangents relies on rank promotion.
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        kernel_fn = stax.serial(nd.stax.DagLayer(DAG, width=64), stax.Dense(1, W_std=2**0.5))[2]
        predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, X, Y)
        laws = predict(t=None, x_test=Z, get=KINDS, compute_cov=True)
    for kind in KINDS:
        result, law = posterior_of(of_x, Y, kind=kind), getattr(laws, kind)
        np.testing.assert_allclose(result.mean, law.mean, rtol=1e-6)
        np.testing.assert_allclose(result.covariance, law.covariance, rtol=1e-6)
        np.testing.assert_allclose(result.std**2, np.diag(result.covariance), rtol=1e-14)


@pytest.mark.sample(3)
@pytest.mark.parametrize("noise", [0.0, 0.3, np.linspace(0.1, 0.6, 6)], ids=["none", "number", "per sample"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_kinds_by_explicit_inverses(kind, noise, of_x):
    train, cross, test = of_x
    inverse = np.linalg.inv(both(train, kind) + noise * np.eye(6))
    w, k_tx = both(cross, kind) @ inverse, both(cross, "nngp")
    expected = both(test, "nngp") - w @ k_tx.T
    if kind == "ntk":
        # The distribution of f_t(0) + W (y - f(0)).
        joint = np.block([[both(train, "nngp"), k_tx.T], [k_tx, both(test, "nngp")]])
        maps = np.concatenate([-w, np.eye(3)], axis=1)
        expected = maps @ joint @ maps.T
    result = posterior_of(of_x, Y, kind=kind, noise=noise)
    np.testing.assert_allclose(result.mean, w @ Y, rtol=1e-10)
    np.testing.assert_allclose(result.covariance, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    assert result.mean.dtype == result.covariance.dtype == np.float64
    np.testing.assert_array_equal(result.covariance, result.covariance.T)
    of_column = posterior_of(of_x, Y[:, 0], kind=kind, noise=noise)
    np.testing.assert_allclose(of_column.mean, result.mean[:, :1], rtol=1e-12)


def test_the_posterior_is_the_gaussian_conditioned_by_its_precision(of_x):
    """The block of the joint precision that belongs to f_t is the inverse covariance; K is not inverted."""
    train, cross, test = of_x
    noise = 0.2
    k_tx = both(cross, "nngp")
    joint = np.block([[both(train, "nngp") + noise * np.eye(6), k_tx.T], [k_tx, both(test, "nngp")]])
    precision = np.linalg.inv(joint)
    covariance = np.linalg.inv(precision[6:, 6:])
    result = posterior_of(of_x, Y, noise=noise)
    np.testing.assert_allclose(result.covariance, covariance, rtol=1e-9)
    np.testing.assert_allclose(result.mean, -covariance @ precision[6:, :6] @ Y, rtol=1e-9)


def test_the_trained_ensemble_is_gradient_flow_without_end(of_x):
    y_test = np.random.default_rng(3).normal(size=(3, 2))
    train, cross, test = of_x
    options = {"k_test_train": cross, "k_test_test": test, "y_test": y_test}
    curve = loss_curve(train, Y, 1e6, 1, flow=True, **options)
    result = posterior_of(of_x, Y, kind="ntk")
    mean = 0.5 * (np.sum((result.mean - y_test) ** 2) + 2 * np.trace(result.covariance))
    assert curve.mean[-1] == pytest.approx(0, abs=1e-12)
    assert curve.test_mean is not None
    assert curve.test_mean[-1] == pytest.approx(mean, rel=1e-8)


def test_a_ridge_is_what_a_penalized_linear_model_is_trained_to():
    g = np.random.default_rng(4).normal(size=(9, 20)) / 4
    noise, draws = 0.4, 200_000
    k = g @ g.T
    parts = [(slice(6), slice(6)), (slice(6, 9), slice(6)), (slice(6, 9), slice(6, 9))]
    result = posterior_of([nd.Kernel(k[part], k[part]) for part in parts], Y, kind="ntk", noise=noise)
    theta = np.random.default_rng(5).normal(size=(20, draws))
    a = g[:6].T @ g[:6] + noise * np.eye(20)
    trained = np.linalg.solve(a, (g[:6].T @ Y[:, :1]) + noise * theta)
    outputs = g[6:] @ trained
    error = result.std / draws**0.5
    assert (np.abs(outputs.mean(axis=1) - result.mean[:, 0]) < 4 * error).all()
    covariance, scale = np.cov(outputs), np.outer(result.std, result.std)
    for factor in (1, 0.95, 1.05):  # the latter two must fail
        close = np.abs(factor * covariance - result.covariance) < 6 * scale / draws**0.5
        assert close.all() == (factor == 1)


def test_a_ridge_per_sample_weighs_the_errors_of_a_linear_model():
    g, noise = np.random.default_rng(4).normal(size=(9, 20)) / 4, np.linspace(0.1, 2.0, 6)
    k = nd.Kernel(g @ g.T, g @ g.T)
    parts = [(slice(6), slice(6)), (slice(6, 9), slice(6)), (slice(6, 9), slice(6, 9))]
    result = posterior_of([nd.Kernel(k.nngp[part], k.ntk[part]) for part in parts], Y, kind="ntk", noise=noise)
    # The minimum of 0.5 sum_i (y_i - g_i theta)^2 / noise_i + 0.5 |theta|^2.
    theta = np.linalg.solve(g[:6].T @ (g[:6] / noise[:, None]) + np.eye(20), g[:6].T @ (Y / noise[:, None]))
    np.testing.assert_allclose(result.mean, g[6:] @ theta, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_mean_shifts_targets_and_outputs(kind, of_x):
    mean, mean_test = np.random.default_rng(8).normal(size=(6, 2)), np.random.default_rng(9).normal(size=3)
    result = posterior_of(of_x, Y, kind=kind, noise=0.1, mean=mean, mean_test=mean_test)
    still = posterior_of(of_x, Y - mean, kind=kind, noise=0.1)
    np.testing.assert_allclose(result.mean, still.mean + mean_test[:, None], rtol=1e-12)
    np.testing.assert_array_equal(result.covariance, still.covariance)


@pytest.mark.parametrize("kind", KINDS)
def test_training_inputs_are_fitted_exactly_without_noise(kind, of_x):
    train = of_x[0]
    result = posterior(train, train, train, Y, kind=kind)
    np.testing.assert_allclose(result.mean, Y, rtol=1e-8)
    assert np.abs(result.covariance).max() < 1e-10 * np.abs(train.nngp).max()
    assert (result.variance >= 0).all()


def test_variance_is_clipped_at_zero():
    result = Posterior(np.zeros((2, 1)), np.diag([-1e-17, 4.0]))
    np.testing.assert_array_equal(result.variance, [0, 4])
    np.testing.assert_array_equal(result.std, [0, 2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_float32_gives_the_posterior_to_its_precision(kind, of_x):
    single = kernels(X.astype(np.float32), Z.astype(np.float32))
    result, expected = posterior_of(single, Y, kind=kind), posterior_of(of_x, Y, kind=kind)
    np.testing.assert_allclose(result.mean, expected.mean, rtol=1e-3)
    np.testing.assert_allclose(result.covariance, expected.covariance, rtol=1e-3, atol=1e-4)


# Matrices that are singular


@pytest.mark.parametrize("kind", KINDS)
def test_a_singular_matrix_is_refused_and_noise_cures_it(kind):
    ones = nd.Kernel(np.ones((3, 3)), np.ones((3, 3)))
    cross, test = nd.Kernel(np.ones((1, 3)), np.ones((1, 3))), nd.Kernel(np.ones((1, 1)), np.ones((1, 1)))
    message = rf"`k_train_train\.{kind}` with `noise` 0 .* definite, got a singular 3 x 3 matrix; pass a `noise`"
    with pytest.raises(InputError, match=message):
        posterior(ones, cross, test, np.ones(3), kind=kind)
    result = posterior(ones, cross, test, np.array([1.0, 2.0, 3.0]), kind=kind, noise=0.5)
    assert result.mean[0, 0] == pytest.approx(6 / 3.5, rel=1e-12)
    assert result.variance[0] == pytest.approx({"nngp": 1 - 3 / 3.5, "ntk": (1 - 3 / 3.5) ** 2}[kind], rel=1e-10)


@pytest.mark.parametrize(("dtype", "gap"), [(np.float32, 1e-8), (np.float64, 3e-16)])
def test_a_matrix_beyond_its_precision_warns(dtype, gap):
    def kernel(values):
        return nd.Kernel(np.asarray(values, dtype), np.asarray(values, dtype))

    # The matrix is positive definite in float64, but closer to singular than the dtype resolves.
    train = kernel(np.diag([1.0, gap]))
    cross, test = kernel(np.zeros((1, 2))), kernel(np.ones((1, 1)))
    message = rf"reciprocal condition number .* below 2 eps of {np.dtype(dtype)}; pass a `noise` of about"
    with pytest.warns(NumericalWarning, match=message):
        posterior(train, cross, test, np.ones(2))
    with pytest.warns(NumericalWarning, match=message):
        kernel_regression_accuracy(train, cross, np.array([0, 1]), np.array([0]), 2)
    posterior(train, cross, test, np.ones(2), noise=1e-3)
    # Far above the limit there is no warning.
    posterior(kernel(np.diag([1.0, 100 * np.finfo(dtype).eps])), cross, test, np.ones(2))


# Classification


def test_accuracy_counts_the_largest_outputs():
    assert classification_accuracy(np.eye(4), np.array([0, 1, 2, 0])) == 0.75
    assert classification_accuracy(np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([0, 1])) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.slow
def test_regression_on_labels_is_the_posterior_on_centered_targets(kind, noise):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(90, 4))
    labels = np.argmax(x[:, :3], axis=1)
    train, cross, test = kernels(x[:60], x[60:])
    targets = np.eye(3)[labels[:60]] - 1 / 3
    expected = np.mean(posterior(train, cross, test, targets, kind=kind, noise=noise).mean.argmax(1) == labels[60:])
    accuracy = kernel_regression_accuracy(train, cross, labels[:60], labels[60:], 3, kind=kind, noise=noise)
    assert accuracy == expected
    assert accuracy > 0.7
    shuffled = kernel_regression_accuracy(train, cross, rng.permutation(labels[:60]), labels[60:], 3, kind=kind)
    assert shuffled < 0.65


# Errors


def test_an_unknown_kind_is_refused(of_x):
    with pytest.raises(InputError, match="`kind`"):
        posterior_of(of_x, Y, kind="ntk2")


@pytest.mark.parametrize("noise", [-1e-3, float("nan"), float("inf")])
def test_noise_that_is_no_variance_is_refused(noise, of_x):
    with pytest.raises(InputError, match=f"`noise` to be finite and at least 0, got {noise}; pass a variance"):
        posterior_of(of_x, Y, noise=noise)


def test_kernels_that_do_not_fit_are_refused(of_x):
    train, cross, test = of_x
    broken = np.full((3, 6), np.nan)
    for arguments, message in (
        ((cross, cross, test, Y), r"`k_train_train\.ntk` to be a square matrix"),
        ((train, train, test, Y), r"`k_test_train\.ntk` to have shape \(3, 6\), got \(6, 6\)"),
        ((train, cross, cross, Y), r"`k_test_test\.nngp` to be a square matrix"),
        ((train, nd.Kernel(cross.nngp, broken), test, Y), r"`k_test_train\.ntk` to be finite"),
        ((train, nd.Kernel(broken, cross.ntk), test, Y), r"`k_test_train\.nngp` to be finite"),
        ((train, cross, test, Y[:5]), r"`y` to have shape \(6,\) or \(6, C\), got \(5, 2\)"),
        ((train, cross, test, np.full(6, np.nan)), "`y` to be finite"),
    ):
        with pytest.raises(InputError, match=message):
            posterior(*arguments, kind="ntk")


def test_nngp_and_ntk_of_two_sizes_are_refused(of_x, unchecked):
    train, cross, test = of_x
    with pytest.raises(InputError, match=r"`k_train_train\.nngp` to have shape \(6, 6\), got \(2, 2\)"):
        posterior(nd.Kernel(np.eye(2), train.ntk), cross, test, Y, kind="ntk")


def test_kernels_of_other_inputs_are_refused(of_x):
    train, cross, _ = of_x
    smaller = nd.kernel(DAG, 0.01 * Z)
    with pytest.raises(
        InputError, match=r"those of the same inputs, got the negative variance -.* of test input [012]"
    ):
        posterior(train, cross, smaller, Y)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (0, 2), (1, 2, 2)])
def test_outputs_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"`mean` to have shape \(N, C\) with C at least 2, got \("):
        classification_accuracy(np.ones(shape), np.array([0]))


def test_outputs_and_labels_are_checked(of_x):
    train, cross, _ = of_x
    with pytest.raises(InputError, match="`mean` to be finite"):
        classification_accuracy(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(InputError, match="`labels` to hold 2 labels, got 1"):
        classification_accuracy(np.eye(2), np.array([0]))
    for labels in (np.eye(2), np.array([0.0, 1.0]), np.zeros(0, int)):
        with pytest.raises(InputError, match=r"`labels` to be whole numbers of shape \(N,\), got"):
            classification_accuracy(np.eye(2), labels)
    for labels in ([0, 2], [-1, 0]):
        with pytest.raises(InputError, match="`labels` to lie between 0 and 1, got"):
            classification_accuracy(np.eye(2), np.array(labels))
    with pytest.raises(InputError, match="`num_classes` to be at least 2, got 1"):
        kernel_regression_accuracy(train, cross, np.zeros(6, int), np.zeros(3, int), 1)
    with pytest.raises(InputError, match="`test_labels` to lie between 0 and 2, got 0 to 3"):
        kernel_regression_accuracy(train, cross, np.arange(6) % 3, np.array([0, 1, 3]), 3)
    with pytest.raises(InputError, match=r"`k_test_train\.nngp` to have shape \(2, 6\), got \(3, 6\)"):
        kernel_regression_accuracy(train, cross, np.arange(6) % 3, np.array([0, 1]), 3)
