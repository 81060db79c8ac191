"""Marginal likelihood, leave-one-out and KARE against densities of SciPy, refits, 50 digits, and drawn data."""

import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

import nngp_dag as nd
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.theory import symmetric

# Some arguments below are of a wrong type on purpose.
leave_one_out: Any = nd.leave_one_out
log_marginal_likelihood: Any = nd.log_marginal_likelihood
posterior: Any = nd.posterior
RNG = np.random.default_rng(0)
N, C = 7, 2
G, H = RNG.normal(size=(2, N, 2 * N))
K = nd.Kernel(nngp=G @ G.T / N, ntk=H @ H.T / N)
Y = RNG.normal(size=(N, C))
NOISES = {"number": 0.3, "per sample": RNG.uniform(0.1, 1.0, N)}
MEANS = {"none": 0.0, "number": 1.5, "of inputs": RNG.normal(size=N), "of outputs": RNG.normal(size=(N, C))}


def prior_mean(mean):
    return np.broadcast_to(mean[:, None] if np.ndim(mean) == 1 else mean, (N, C))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("noise", NOISES)
def test_the_marginal_likelihood_is_the_density_of_the_targets(noise, mean):
    covariance: Any = K.nngp + np.diag(np.broadcast_to(NOISES[noise], N))
    columns = zip(Y.T, prior_mean(MEANS[mean]).T, strict=True)
    expected = sum(multivariate_normal(m, covariance).logpdf(y) for y, m in columns)
    found = log_marginal_likelihood(K, Y, NOISES[noise], mean=MEANS[mean])
    assert type(found) is float
    assert found == pytest.approx(expected, rel=1e-10)
    assert log_marginal_likelihood(K.nngp, Y, NOISES[noise], mean=MEANS[mean]) == found
    # Data drawn from the model have, on average, the negative entropy.
    draws = np.random.default_rng(1).multivariate_normal(np.zeros(N), covariance, 20_000)
    mean_value = log_marginal_likelihood(K, draws.T, NOISES[noise]) / 20_000
    entropy = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    assert abs(mean_value - entropy) < 4 * (N / 2 / 20_000) ** 0.5


def test_the_marginal_likelihood_is_a_product_of_predictions():
    """By the chain rule: each target given those before it, from the posterior."""
    noise, total = NOISES["per sample"], 0.0
    for i in range(N):
        center, variance = np.zeros(C), K.nngp[i, i]
        if i:
            parts = [nd.Kernel(K.nngp[a, b], None) for a, b in ((slice(i),) * 2, (slice(i, i + 1), slice(i)))]
            at = nd.Kernel(K.nngp[i : i + 1, i : i + 1], None)
            result = posterior(*parts, at, Y[:i], noise=noise[:i])
            center, variance = result.mean[0], result.variance[0]
        total += multivariate_normal(0, variance + noise[i]).logpdf(Y[i] - center).sum()
    assert log_marginal_likelihood(K, Y, noise) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_leaving_one_out_is_a_fit_without_it(kind, noise, mean):
    noises, means = np.broadcast_to(NOISES[noise], N), prior_mean(MEANS[mean])
    result = leave_one_out(K, Y, NOISES[noise], kind=kind, mean=MEANS[mean])
    centers, variances = np.zeros((N, C)), np.zeros(N)
    for i in range(N):
        rest, one_out = np.delete(np.arange(N), i), np.array([i])
        train, cross, test = (
            nd.Kernel(K.nngp[np.ix_(a, b)], K.ntk[np.ix_(a, b)])
            for a, b in ((rest, rest), (one_out, rest), (one_out, one_out))
        )
        one = posterior(
            train, cross, test, Y[rest], kind=kind, noise=noises[rest], mean=means[rest], mean_test=means[[i]]
        )
        centers[i], variances[i] = one.mean[0], one.variance[0] + noises[i]
    np.testing.assert_allclose(result.mean, centers, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(result.errors, Y - centers, rtol=1e-9, atol=1e-10)
    assert result.mean_squared_error == pytest.approx(np.mean(np.sum((Y - centers) ** 2, axis=1)), rel=1e-9)
    assert result.kind == kind
    if kind == "ntk":
        assert (result.variance, result.std, result.log_predictive_density) == (None, None, None)
    else:
        np.testing.assert_allclose(result.variance, variances, rtol=1e-9)
        np.testing.assert_allclose(result.std**2, variances, rtol=1e-9)
        density = norm.logpdf((Y - centers) / np.sqrt(variances)[:, None])
        expected = np.sum(density - 0.5 * np.log(variances)[:, None])
        assert result.log_predictive_density == pytest.approx(expected, rel=1e-9)
    matrix = leave_one_out(getattr(K, kind), Y, NOISES[noise], kind=kind, mean=MEANS[mean])
    np.testing.assert_array_equal(matrix.mean, result.mean)


def test_kare_is_its_definition_by_eigenvalues():
    """Equation of Jacot et al. with the ridge per sample: the noise is N times it."""
    ridge = 0.3 / N
    for kind in ("nngp", "ntk"):
        values, vectors = np.linalg.eigh(getattr(K, kind) / N)
        signal = np.sum((vectors.T @ Y) ** 2, axis=1)
        expected = np.mean(signal / (values + ridge) ** 2) / np.mean(1 / (values + ridge)) ** 2
        assert leave_one_out(K, Y, 0.3, kind=kind).kare == pytest.approx(expected, rel=1e-10)
    assert leave_one_out(K, Y, NOISES["per sample"]).kare is None


@pytest.mark.slow
def test_kare_and_leave_one_out_estimate_the_error_of_new_samples():
    rng, n, d, noise = np.random.default_rng(2), 200, 100, 0.5
    estimates = []
    for _ in range(16):
        x, z, slope = rng.normal(size=(n, d)), rng.normal(size=(1000, d)), rng.normal(size=d) / d**0.5
        y, y_test = (v @ slope + noise**0.5 * rng.normal(size=len(v)) for v in (x, z))
        k = x @ x.T / d
        result = leave_one_out(k, y, noise)
        risk = np.mean((z @ x.T / d @ np.linalg.solve(k + noise * np.eye(n), y) - y_test) ** 2)
        estimates.append([result.kare / risk, result.mean_squared_error / risk])
    ratios = np.array(estimates)
    spread = ratios.std(axis=0, ddof=1) / 16**0.5
    assert (spread < 0.04).all()
    assert (np.abs(ratios.mean(axis=0) - 1) < 3 * spread + 0.02).all()


def test_accuracy_is_that_of_one_hot_targets_alone():
    x = RNG.normal(size=(60, 3))
    k, classes = nd.Kernel(nngp=x @ x.T, ntk=x @ x.T + 1), np.argmax(x, axis=1)
    one_hot = np.eye(3)[classes]
    for targets in (one_hot, one_hot - 1 / 3, 2 * one_hot - 1):
        result = leave_one_out(k, targets, 0.1, kind="ntk")
        assert result.accuracy == np.mean(np.argmax(result.mean, axis=1) == classes) > 0.7
        assert "accuracy=" in repr(result)
    for targets in (x, one_hot[:, :1], one_hot + np.eye(3)[0], np.ones((60, 2))):
        result = leave_one_out(k, targets, 0.1)
        assert np.isnan(result.accuracy)
        assert "accuracy" not in repr(result)


# 50 digits


def drawn(theta, xp, inputs):
    """Returns the kernel theta_0^2 exp(-theta_1 |x - x'|^2) of NumPy, of JAX or of mpmath."""
    if xp is mpmath:
        n = len(inputs)
        return mpmath.matrix(n, n) + mpmath.matrix(
            [[theta[0] ** 2 * mpmath.exp(-theta[1] * (a - b) ** 2) for b in inputs] for a in inputs]
        )
    return theta[0] ** 2 * xp.exp(-theta[1] * (inputs[:, None] - inputs[None, :]) ** 2)


INPUTS, TARGETS, THETA = np.array([0.0, 0.25, 0.25, 1.5]), np.array([1.0, 0.5, -0.25, 2.0]), [1.25, 0.75, 0.125]


def in_fifty_digits(*theta):
    a = drawn(theta, mpmath, [mpmath.mpf(v) for v in INPUTS]) + theta[2] * mpmath.eye(4)
    r = mpmath.matrix([mpmath.mpf(v) for v in TARGETS])
    fit = (r.T * mpmath.lu_solve(a, r))[0]
    return -(fit + mpmath.log(mpmath.det(a)) + 4 * mpmath.log(2 * mpmath.pi)) / 2


def derivative(*orders):
    with mpmath.workdps(50):
        return float(mpmath.diff(in_fifty_digits, tuple(map(mpmath.mpf, THETA)), tuple(map(int, orders))))


def traced_likelihood(theta):
    return log_marginal_likelihood(drawn(theta, jnp, INPUTS), TARGETS, theta[2])


def test_the_gradient_of_the_marginal_likelihood_in_fifty_digits():
    assert log_marginal_likelihood(drawn(THETA, np, INPUTS), TARGETS, THETA[2]) == pytest.approx(
        derivative(0, 0, 0), rel=1e-13
    )
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(traced_likelihood))(jnp.array(THETA))
    assert float(value) == pytest.approx(derivative(0, 0, 0), rel=1e-13)
    np.testing.assert_allclose(gradient, [derivative(*orders) for orders in np.eye(3)], rtol=1e-12)


@pytest.mark.slow
def test_the_hessian_of_the_marginal_likelihood_in_fifty_digits():
    with jax.enable_x64(True):
        hessian = jax.jit(jax.hessian(traced_likelihood))(jnp.array(THETA))
    expected = [[derivative(*(a + b)) for b in np.eye(3)] for a in np.eye(3)]
    np.testing.assert_allclose(hessian, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_in_the_entries_of_a_kernel_is_the_textbooks():
    """Rasmussen and Williams 2006, equation 5.9: (a a^T - A^-1) / 2 for every entry."""
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda k: log_marginal_likelihood(k, Y[:, 0], 0.3)))(K.nngp)
    inverse = np.linalg.inv(K.nngp + 0.3 * np.eye(N))
    weights = inverse @ Y[:, 0]
    np.testing.assert_allclose(gradient, 0.5 * (np.outer(weights, weights) - inverse), rtol=1e-9)


# Large kernels


@pytest.mark.slow
@pytest.mark.parametrize(
    "call", [lambda k, y: log_marginal_likelihood(k, y, 1.0), lambda k, y: leave_one_out(k, y, 1.0).kare]
)
def test_the_memory_is_one_matrix_beside_a_mapped_kernel(call, tmp_path, monkeypatch):
    # Blocks of rows are then small beside the matrix, as they are for large ones.
    monkeypatch.setattr(symmetric, "_BLOCK_BYTES", 1 << 16)
    n = 500
    k = np.lib.format.open_memmap(tmp_path / "k.npy", "w+", np.float32, (n, n))
    g = np.random.default_rng(3).normal(size=(n, n)).astype(np.float32)
    k[:] = g @ g.T / n
    y = np.random.default_rng(4).normal(size=n)
    expected = call(np.asarray(k, np.float64), y)
    tracemalloc.start()
    try:
        found = call(k, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == pytest.approx(expected, rel=1e-12)
    assert peak < 1.3 * 8 * n**2


# Errors


def test_what_is_no_noise_is_refused(unchecked):
    for noise, message in (
        (-1.0, "`noise` to be finite and at least 0, got -1.0; pass a variance"),
        ("much", "`noise` to be finite and at least 0, got 'much'"),
        (np.array([0.1, -2.0] + [0.1] * 5), "`noise` to be finite and at least 0, got -2.0; pass variances"),
        (np.full(N, np.nan), "`noise` to be finite and at least 0, got nan"),
        (np.ones(3), rf"`noise` to be a number or to have shape \({N},\), got \(3,\); pass one variance"),
        (np.ones((N, 1)), rf"`noise` to be a number or to have shape \({N},\), got \({N}, 1\)"),
    ):
        for call in (log_marginal_likelihood, leave_one_out, lambda k, y, v: posterior(k, k, k, y, noise=v)):
            with pytest.raises(InputError, match=f"Expected {message}"):
                call(K, Y, noise)


def test_what_is_no_mean_is_refused(unchecked):
    for mean, message in (
        (np.ones(3), rf"`mean` to be a number or to have shape \({N},\) or \({N}, {C}\), got \(3,\); pass one value"),
        (np.ones((N, 3)), rf"`mean` .*got \({N}, 3\)"),
        (np.inf, "`mean` to be finite, got NaN or infinity"),
    ):
        for call in (log_marginal_likelihood, leave_one_out):
            with pytest.raises(InputError, match=f"Expected {message}"):
                call(K, Y, 0.1, mean=mean)
        with pytest.raises(InputError, match=f"Expected {message}"):
            posterior(K, K, K, Y, mean=mean, mean_test=0.0)
    with pytest.raises(InputError, match="`mean_test` to be a number or to have shape"):
        posterior(K, K, K, Y, mean=0.0, mean_test=np.ones(3))
    for given, options in (("mean", {"mean": 1.0}), ("mean_test", {"mean_test": 1.0})):
        with pytest.raises(InputError, match=f"`mean` and `mean_test` together, got `{given}` alone"):
            posterior(K, K, K, Y, **options)


def test_what_does_not_fit_is_refused(unchecked):
    ones: Any = np.ones((3, 3))
    for call in (log_marginal_likelihood, leave_one_out):
        with pytest.raises(InputError, match=r"Expected `k` with `noise` 0 .* definite, got a singular 3 x 3 matrix"):
            call(ones, np.ones(3), 0.0)
        with pytest.raises(InputError, match=r"Expected `k\.nngp` with `noise` 0 to 0 on its diagonal"):
            call(nd.Kernel(ones, None), np.ones(3), np.zeros(3))
        with pytest.warns(NumericalWarning, match="is not resolved: `k` with noise 1e-16 .* reciprocal condition"):
            call(np.diag([1.0, 1e-16]), np.ones(2), 1e-16)
        with pytest.raises(InputError, match=rf"`y` to have shape \({N},\) or \({N}, C\), got \(3,\)"):
            call(K, np.ones(3), 0.1)
        with pytest.raises(InputError, match="`k` to hold the NNGP, got the NTK alone"):
            call(nd.Kernel(None, K.ntk), Y, 0.1)
        with pytest.raises(InputError, match="`k` to be one `Kernel`, got 2; pick that of one output"):
            call((K, K), Y, 0.1)
        with pytest.raises(InputError, match="`k` to be a square matrix"):
            call(np.ones((2, 3)), np.ones(2), 0.1)
    with pytest.raises(InputError, match="`kind` to be one of 'nngp', 'ntk', got 'both'"):
        leave_one_out(K, Y, 0.1, kind="both")
    assert leave_one_out(K.nngp.tolist(), Y.tolist(), 0.1).mean.shape == (N, C)
