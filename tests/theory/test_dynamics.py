"""Loss curves against propagated distributions, simulated and trained models, and neural-tangents."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.kernels.neural_tangents import neural_tangents as nt
from nngp_dag.kernels.neural_tangents import stax
from nngp_dag.nets import DagNet, as_functions, descend
from nngp_dag.theory import largest_stable_learning_rate, loss_curve, modes

X = np.random.default_rng(0).normal(size=(4, 6))
TARGETS = {
    "(N,)": np.array([2.0, -3.0, 1.0, 4.0]),
    "(N, 1)": np.array([[2.0], [-3.0], [1.0], [4.0]]),
    "(N, C)": np.random.default_rng(1).normal(size=(4, 3)),
}


def make_kernel(nngp, ntk):
    with jax.enable_x64(True):
        return nd.Kernel(jnp.asarray(nngp, jnp.float64), jnp.asarray(ntk, jnp.float64))


def random_kernel(seed, n=4):
    """Returns an NNGP and an NTK without common eigenvectors."""
    g, h = np.random.default_rng(seed).normal(size=(2, n, 2 * n))
    return make_kernel(g @ g.T / n, h @ h.T / n)


def kernels():
    dags = [("2_21_112", "linear-act"), ("1_01_222", "act-linear")]
    return [nd.kernel(nd.Dag.from_code(code), X, order=order) for code, order in dags] + [random_kernel(5)]


def lambda_max(k):
    return float(np.linalg.eigvalsh(np.asarray(k.ntk))[-1])


@pytest.mark.parametrize("fraction", [0.3, 1.9])
@pytest.mark.parametrize("shape", TARGETS)
@pytest.mark.parametrize("k", kernels(), ids=["linear-act", "act-linear", "random"])
def test_the_expected_loss_is_that_of_matrix_powers(k, shape, fraction):
    y, steps = TARGETS[shape], 12
    rate = fraction / lambda_max(k)
    columns = y.reshape(4, -1)
    step = np.eye(4) - rate * np.asarray(k.ntk)
    expected = []
    for count in range(steps + 1):
        power = np.linalg.matrix_power(step, count)
        spread = columns.shape[1] * np.trace(power @ np.asarray(k.nngp) @ power)
        expected.append(0.5 * (np.sum((power @ columns) ** 2) + spread))
    loss = nd.expected_loss(k, y, rate, steps)
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


@pytest.mark.parametrize("y", [np.array([1.0, -1.0, 0.5, 2.0]), np.random.default_rng(2).normal(size=(4, 2))])
@pytest.mark.parametrize("k", kernels(), ids=["linear-act", "act-linear", "random"])
def test_the_expected_loss_is_the_mean_of_simulated_training(k, y):
    draws, steps = 100_000, 8
    rate = 0.7 / lambda_max(k)
    ntk, root = np.asarray(k.ntk), np.linalg.cholesky(np.asarray(k.nngp))
    columns = y.reshape(4, -1)
    f = root @ np.random.default_rng(3).normal(size=(draws, 4, columns.shape[1]))
    expected = nd.expected_loss(k, y, rate, steps)
    for count in range(steps + 1):
        losses = 0.5 * np.sum((columns - f) ** 2, axis=(1, 2))
        mean, error = losses.mean(), losses.std(ddof=1) / draws**0.5
        assert error < 0.01 * mean
        assert abs(expected[count] - mean) < 4 * error
        f = f - rate * ntk @ (f - columns)


def test_the_first_loss_is_that_of_the_targets_and_the_prior():
    k = random_kernel(7)
    y = TARGETS["(N, C)"]
    loss = nd.expected_loss(k, y, 0.1 / lambda_max(k), 0)
    assert loss.shape == (1,)
    assert loss[0] == pytest.approx(0.5 * (np.sum(y**2) + 3 * np.trace(np.asarray(k.nngp))), rel=1e-12)


def test_columns_add_up():
    k = random_kernel(8)
    y, rate = TARGETS["(N, C)"], 0.5 / lambda_max(k)
    apart = sum(nd.expected_loss(k, column, rate, 5) for column in y.T)
    np.testing.assert_allclose(nd.expected_loss(k, y, rate, 5), apart, rtol=1e-12)


def test_the_two_by_two_case_by_hand():
    k = make_kernel(np.eye(2), np.diag([1.0, 0.5]))
    np.testing.assert_allclose(nd.expected_loss(k, np.array([1.0, 0.0]), 1.0, 2), [1.5, 0.125, 0.03125])


def test_a_kernel_in_float32_gives_the_loss_to_its_precision():
    dag, y = nd.Dag.from_code("2_21_112"), TARGETS["(N,)"]
    double, single = (nd.kernel(dag, X.astype(dtype)) for dtype in (np.float64, np.float32))
    rate = 1 / lambda_max(double)
    loss = nd.expected_loss(single, y, rate, 10)
    np.testing.assert_allclose(loss, nd.expected_loss(double, y, rate, 10), rtol=1e-4)
    assert loss.dtype == np.float64
    assert not jax.config.read("jax_enable_x64")


def test_a_learning_rate_just_below_the_limit_is_accepted():
    k = random_kernel(9)
    loss = nd.expected_loss(k, TARGETS["(N,)"], 1.9999 / lambda_max(k), 100)
    assert (np.diff(loss) < 0).all()


def test_an_ntk_of_zero_never_diverges():
    loss = nd.expected_loss(make_kernel(np.eye(2), np.zeros((2, 2))), np.ones(2), 5.0, 2)
    np.testing.assert_allclose(loss, [2, 2, 2])


@pytest.mark.parametrize("shape", [(3,), (5, 2), (), (4, 0), (4, 1, 1), (1, 4)])
def test_targets_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"`y` to have shape \(4,\) or \(4, C\), got \("):
        nd.expected_loss(random_kernel(0), np.ones(shape), 0.01, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused(value):
    with pytest.raises(InputError, match="`y` to be finite, got NaN or infinity"):
        nd.expected_loss(random_kernel(0), np.array([1.0, value, 0.0, 0.0]), 0.01, 3)


@pytest.mark.parametrize("steps", [-1, 0.5])
def test_steps_are_counted(steps, unchecked):
    with pytest.raises(InputError, match=f"`steps` to be a whole number of at least 0, got {steps}"):
        nd.expected_loss(random_kernel(0), TARGETS["(N,)"], 0.01, steps)


@pytest.mark.slow
def test_a_kernel_between_two_sets_is_refused():
    k = nd.kernel(nd.Dag.from_code("2"), X, X[:2])
    with pytest.raises(InputError, match=r"`k\.ntk` to be a square matrix, got shape \(4, 2\)"):
        nd.expected_loss(k, TARGETS["(N,)"], 0.01, 3)
    # A square matrix, but between two different sets of inputs.
    with pytest.raises(InputError, match=r"`k\.ntk` to be symmetric"):
        nd.expected_loss(nd.kernel(nd.Dag.from_code("2"), X, X[::-1] + 1), TARGETS["(N,)"], 0.01, 3)


@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_a_kernel_that_is_not_finite_is_refused(name):
    broken = {"nngp": np.eye(4), "ntk": np.eye(4), name: np.diag([1.0, np.nan, 1.0, 1.0])}
    with pytest.raises(InputError, match=rf"`k\.{name}` to be finite"):
        nd.expected_loss(make_kernel(**broken), TARGETS["(N,)"], 0.01, 3)


def test_kernels_of_two_sizes_are_refused(unchecked):
    with pytest.raises(InputError, match=r"`k\.nngp` and `k\.ntk` of one shape, got \(3, 3\) and \(4, 4\)"):
        nd.expected_loss(make_kernel(np.eye(3), np.eye(4)), TARGETS["(N,)"], 0.01, 3)


# Standard deviations, test sets, momentum and gradient flow

OPTIMIZERS = {
    "descent": {},
    "momentum": {"momentum": 0.8},
    "nesterov": {"momentum": 0.8, "nesterov": True},
}
TEST_TARGETS = np.random.default_rng(9).normal(size=(3, 2))


def joint_features(seed, duplicates=False, rows=7, features=14):
    """Returns features of NNGP and NTK for 4 training and 3 test inputs, three of them equal with `duplicates`."""
    g, h = np.random.default_rng(seed).normal(size=(2, rows, features)) / rows**0.5
    if duplicates:
        for values in (g, h):
            values[1] = values[0]
            values[4] = values[0]
    return g, h


def blocks(nngp, ntk, n=4):
    """Returns the kernels train-train, test-train and test-test."""
    parts = [(slice(0, n), slice(0, n)), (slice(n, None), slice(0, n)), (slice(n, None), slice(n, None))]
    return [make_kernel(nngp[part], ntk[part]) for part in parts]


def joint_kernels(seed, duplicates=False):
    return blocks(*(values @ values.T for values in joint_features(seed, duplicates)))


def for_test(cross, test, targets=TEST_TARGETS):
    return {"k_test_train": cross, "k_test_test": test, "y_test": targets}


def moments(mean, covariance):
    """Returns mean and standard deviation of 0.5 ||e||^2 for columns of e with these means and this covariance."""
    variance = 0.5 * mean.shape[1] * np.trace(covariance @ covariance) + np.trace(mean.T @ covariance @ mean)
    return 0.5 * (np.sum(mean**2) + mean.shape[1] * np.trace(covariance)), np.sqrt(max(variance, 0))


def propagated(train, cross, test, y, y_test, rate, steps, momentum=0.0, nesterov=False):
    """Returns the moments of both losses, from the distribution of all errors and of the trace, step by step."""
    n, nt_ = len(y), len(y_test)
    k, c, t = (np.asarray(kernel.nngp) for kernel in (train, cross, test))
    ntk = np.concatenate([train.ntk, cross.ntk])
    # The state has the errors on both sets, and the trace a; the momentum of the weights is J^T a.
    trace = np.concatenate([np.eye(n), np.zeros((n, nt_)), momentum * np.eye(n)], axis=1)
    direction = trace.copy()
    if nesterov:
        direction = momentum * trace
        direction[:, :n] += np.eye(n)
    errors = np.eye(n + nt_, n + nt_ + n) - rate * ntk @ direction
    step = np.concatenate([errors, trace])
    mean = np.concatenate([-y, -y_test, np.zeros_like(y)])
    covariance = np.zeros((n + nt_ + n,) * 2)
    covariance[: n + nt_, : n + nt_] = np.block([[k, c.T], [c, t]])
    results = []
    for _ in range(steps + 1):
        on_train, on_test = slice(0, n), slice(n, n + nt_)
        results.append([moments(mean[part], covariance[part, part]) for part in (on_train, on_test)])
        mean, covariance = step @ mean, step @ covariance @ step.T
    return np.array(results).reshape(steps + 1, 4).T


def assert_same_moments(curve, expected):
    values = (curve.mean, curve.std, curve.test_mean, curve.test_std)
    for (mean, std), (expected_mean, expected_std) in zip(
        zip(values[::2], values[1::2], strict=True), zip(expected[::2], expected[1::2], strict=True), strict=True
    ):
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-10)
        # Where training leaves almost no spread, its square consists of rounding errors of larger terms.
        np.testing.assert_allclose(std**2, expected_std**2, rtol=1e-10, atol=1e-14 * expected_mean.max() ** 2)


@pytest.mark.parametrize("duplicates", [False, True], ids=["regular", "singular"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_the_moments_are_those_of_the_propagated_law(optimizer, duplicates, fraction):
    train, cross, test = joint_kernels(11, duplicates)
    y, options = np.random.default_rng(4).normal(size=(4, 2)), OPTIMIZERS[optimizer]
    rate = fraction * largest_stable_learning_rate(train, **options)
    curve = loss_curve(train, y, rate, 40, **options, **for_test(cross, test))
    expected = propagated(train, cross, test, y, TEST_TARGETS, rate, 40, **options)
    assert_same_moments(curve, expected)
    assert not curve.diverges
    np.testing.assert_array_equal(curve.mean, nd.expected_loss(train, y, rate, 40, **options))


def test_the_kernels_of_networks_give_the_moments_of_the_propagated_law():
    dag, x = nd.Dag.from_code("2_21_112"), np.random.default_rng(5).normal(size=(7, 6))
    kernels = nd.kernel(dag, x[:4]), nd.kernel(dag, x[4:], x[:4]), nd.kernel(dag, x[4:])
    y = TARGETS["(N, C)"][:, :2]
    rate = 1.5 / lambda_max(kernels[0])
    curve = loss_curve(kernels[0], y, rate, 25, **for_test(*kernels[1:]))
    expected = propagated(*kernels, y, TEST_TARGETS, rate, 25)
    assert_same_moments(curve, expected)


@pytest.mark.parametrize("duplicates", [False, True], ids=["regular", "singular"])
@pytest.mark.parametrize("options", [*OPTIMIZERS.values(), {"flow": True}], ids=[*OPTIMIZERS, "flow"])
def test_a_test_set_that_is_the_training_set_has_its_loss(options, duplicates):
    train, y = joint_kernels(12, duplicates)[0], TARGETS["(N, C)"]
    curve = loss_curve(train, y, 0.3 / lambda_max(train), 30, **options, **for_test(train, train, y))
    assert curve.test_mean is not None
    assert curve.test_std is not None
    np.testing.assert_allclose(curve.test_mean, curve.mean, rtol=1e-9)
    np.testing.assert_allclose(curve.test_std, curve.std, rtol=1e-9)


@pytest.mark.parametrize("duplicates", [False, True], ids=["regular", "singular"])
def test_the_spread_is_that_of_simulated_training(duplicates):
    draws, steps, y = 20_000, 6, np.random.default_rng(2).normal(size=(4, 2))
    train, cross, test = joint_kernels(13, duplicates)
    g, _ = joint_features(13, duplicates)
    rate = 1.2 / lambda_max(train)
    curve = loss_curve(train, y, rate, steps, **for_test(cross, test))
    assert curve.test_mean is not None
    assert curve.test_std is not None
    f = g @ np.random.default_rng(3).normal(size=(draws, g.shape[1], 2))
    ntk = np.concatenate([train.ntk, cross.ntk])
    for count in range(steps + 1):
        for part, targets, means, stds in (
            (slice(0, 4), y, curve.mean, curve.std),
            (slice(4, 7), TEST_TARGETS, curve.test_mean, curve.test_std),
        ):
            losses = 0.5 * np.sum((targets - f[:, part]) ** 2, axis=(1, 2))
            assert abs(losses.mean() - means[count]) < 4 * losses.std() / draws**0.5
            for factor in (1, 0.95, 1.05):  # the latter two must fail
                assert (abs(factor * losses.std() / stds[count] - 1) < 0.03) == (factor == 1)
        f = f - rate * ntk @ (f[:, :4] - y)


def run_optax(h, y, rate, steps, options):
    """Returns the losses on train and test of the linear model h theta, trained by optax from theta = 0."""
    with jax.enable_x64(True):
        features, targets = jnp.asarray(h), jnp.concatenate([jnp.asarray(y), jnp.asarray(TEST_TARGETS)])
        optimizer = optax.sgd(rate, momentum=options.get("momentum"), nesterov=options.get("nesterov", False))

        def losses(theta):
            return [0.5 * jnp.sum((features[rows] @ theta - targets[rows]) ** 2) for rows in (slice(4), slice(4, 7))]

        def step(carry, _):
            theta, state = carry
            gradient = jax.grad(lambda theta: losses(theta)[0])(theta)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(theta, updates), state), jnp.stack(losses(theta))

        theta = jnp.zeros((h.shape[1], targets.shape[1]))
        _, values = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps + 1))((theta, optimizer.init(theta)))
        return np.asarray(values).T


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_linear_model_trained_by_optax_has_this_loss(optimizer):
    options, y = OPTIMIZERS[optimizer], TARGETS["(N, C)"][:, :2]
    _, h = joint_features(14)
    train, cross, test = blocks(np.zeros((7, 7)), h @ h.T)
    rate = 0.4 * largest_stable_learning_rate(train, **options)
    curve = loss_curve(train, y, rate, 50, **options, **for_test(cross, test))
    on_train, on_test = run_optax(h, y, rate, 50, options)
    np.testing.assert_allclose(curve.mean, on_train, rtol=1e-10, atol=1e-16)
    assert curve.test_mean is not None
    np.testing.assert_allclose(curve.test_mean, on_test, rtol=1e-10, atol=1e-16)
    np.testing.assert_array_equal(curve.std, 0)
    np.testing.assert_array_equal(curve.test_std, 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_diverges_above_the_limit_and_not_below(optimizer):
    options, y = OPTIMIZERS[optimizer], TARGETS["(N, C)"][:, :2]
    _, h = joint_features(15)
    train, cross, test = blocks(np.zeros((7, 7)), h @ h.T)
    limit = largest_stable_learning_rate(train, **options)
    with pytest.warns(NumericalWarning, match=r"gradient descent diverges: learning_rate .* above the stability limit"):
        above = loss_curve(train, y, 1.02 * limit, 600, **options, **for_test(cross, test))
    below = loss_curve(train, y, 0.98 * limit, 600, **options, **for_test(cross, test))
    assert above.diverges
    assert not below.diverges
    assert above.stable_learning_rate == below.stable_learning_rate == pytest.approx(limit, rel=1e-12)
    assert above.mean[-1] > 100 * above.mean[300] > 1e4 * above.mean[0]
    assert below.mean[-1] < below.mean[300] < below.mean[0]
    for curve, factor in ((above, 1.02), (below, 0.98)):
        on_train, on_test = run_optax(h, y, factor * limit, 600, options)
        np.testing.assert_allclose(curve.mean, on_train, rtol=1e-8, atol=1e-12)
        assert curve.test_mean is not None
        np.testing.assert_allclose(curve.test_mean, on_test, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_limit_is_where_the_spectral_radius_of_a_step_passes_one(optimizer):
    options, eigenvalues = OPTIMIZERS[optimizer], [0.3, 2.0]
    mu = options.get("momentum", 0.0)
    limit = largest_stable_learning_rate(np.diag(eigenvalues), **options)

    def radius(rate):
        radii = []
        for x in rate * np.array(eigenvalues):
            trace = np.array([1, mu])
            direction = np.array([1, 0]) + mu * trace if options.get("nesterov") else trace
            radii.append(np.abs(np.linalg.eigvals(np.stack([np.array([1, 0]) - x * direction, trace]))).max())
        return max(radii)

    assert radius(limit) == pytest.approx(1, abs=1e-12)
    assert radius(1.001 * limit) > 1
    assert all(radius(fraction * limit) < 1 for fraction in np.linspace(0.001, 0.999, 200))


def test_the_limit_takes_a_kernel_or_a_matrix():
    k = random_kernel(9)
    assert largest_stable_learning_rate(k) == largest_stable_learning_rate(k.ntk)
    assert largest_stable_learning_rate(k) == pytest.approx(2 / lambda_max(k), rel=1e-12)
    assert largest_stable_learning_rate(np.zeros((2, 2)), momentum=0.5) == np.inf


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_overflows_is_infinite(optimizer):
    train, cross, test = joint_kernels(16)
    y, options = TARGETS["(N, C)"][:, :2], OPTIMIZERS[optimizer]
    rate = 50 * largest_stable_learning_rate(train, **options)
    with pytest.warns(NumericalWarning, match="diverges"):
        curve = loss_curve(train, y, rate, 400, **options, **for_test(cross, test))
    for values in (curve.mean, curve.std, curve.test_mean, curve.test_std):
        assert values is not None
        assert not np.isnan(values).any()
        # The values are finite as long as float64 can hold them.
        assert np.isfinite(values).sum() > 10
        assert values[np.isfinite(values)].max() > 1e295
        assert np.isinf(values[-1])


def test_an_ntk_of_zero_leaves_the_loss_as_it_is():
    train, cross, test = blocks(nngp := np.diag(np.arange(1.0, 8.0)), np.zeros((7, 7)))
    y = TARGETS["(N, C)"][:, :2]
    for options in ({}, {"momentum": 0.9}, {"flow": True}):
        curve = loss_curve(train, y, 5.0, 3, **options, **for_test(cross, test))
        expected = [*moments(y, nngp[:4, :4]), *moments(TEST_TARGETS, nngp[4:, 4:])]
        for values, value in zip((curve.mean, curve.std, curve.test_mean, curve.test_std), expected, strict=True):
            assert values is not None
            np.testing.assert_allclose(values, value, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "duplicates", [pytest.param(False, id="regular", marks=pytest.mark.nightly), pytest.param(True, id="singular")]
)
def test_gradient_flow_is_the_limit_of_small_steps(duplicates):
    train, cross, test = joint_kernels(17, duplicates)
    y, rate = TARGETS["(N, C)"][:, :2], 1.0
    flow = loss_curve(train, y, rate, 5, flow=True, **for_test(cross, test))
    np.testing.assert_array_equal(flow.times, np.arange(6))
    assert flow.stable_learning_rate == np.inf
    differences = []
    for parts in (4000, 8000):
        steps = loss_curve(train, y, rate / parts, 5 * parts, **for_test(cross, test))
        differences.append(
            [
                np.abs(getattr(steps, name)[parts::parts] / getattr(flow, name)[1:] - 1).max()
                for name in ("mean", "std", "test_mean", "test_std")
            ]
        )
    assert np.max(differences) < 5e-3
    np.testing.assert_allclose(np.divide(*differences), 2, rtol=0.02)


@pytest.mark.nightly
def test_gradient_flow_is_that_of_neural_tangents():
    dag, x = nd.Dag.from_code("2_21_112"), np.random.default_rng(6).normal(size=(7, 6))
    y, rate, steps = TARGETS["(N, C)"][:, :2], 0.05, 6
    kernels = nd.kernel(dag, x[:4]), nd.kernel(dag, x[4:], x[:4]), nd.kernel(dag, x[4:])
    curve = loss_curve(kernels[0], y, rate, steps, flow=True, **for_test(*kernels[1:]))
    # The loss of neural-tangents is half the mean over all entries of y, so that its time is y.size times as long.
    times = y.size * curve.times
    # neural-tangents relies on rank promotion.
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        kernel_fn = stax.serial(nd.stax.DagLayer(dag, width=64), stax.Dense(1, W_std=2**0.5))[2]
        predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x[:4], y)
        on_train = predict(t=times, get="ntk", compute_cov=True)
        on_test = predict(t=times, x_test=x[4:], get="ntk", compute_cov=True)
        for law, targets, mean, std in (
            (on_train, y, curve.mean, curve.std),
            (on_test, TEST_TARGETS, curve.test_mean, curve.test_std),
        ):
            expected = [moments(np.asarray(m) - targets, np.asarray(c)) for m, c in zip(*law, strict=True)]
            assert mean is not None
            assert std is not None
            np.testing.assert_allclose(np.stack([mean, std]).T, expected, rtol=1e-6)

        # A network whose outputs start at 0.
        one = nt.predict.gradient_descent_mse(kernels[0].ntk, y)
        f, f_test = map(np.asarray, one(times, np.zeros((4, 2)), np.zeros((3, 2)), kernels[1].ntk))
    still = [make_kernel(np.zeros_like(k.nngp), k.ntk) for k in kernels]
    curve = loss_curve(still[0], y, rate, steps, flow=True, **for_test(still[1], still[2]))
    assert curve.test_mean is not None
    np.testing.assert_allclose(curve.mean, 0.5 * np.sum((f - y) ** 2, axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(curve.test_mean, 0.5 * np.sum((f_test - TEST_TARGETS) ** 2, axis=(1, 2)), rtol=1e-6)


@pytest.mark.nightly
def test_networks_follow_the_curve_from_their_own_start():
    """Without the spread of f(0), 64 networks are enough to detect a deviation of 5 %."""
    width, steps, dag = 1024, 10, nd.Dag.from_code("2")
    x, y = np.random.default_rng(7).normal(size=(6, 5)), np.random.default_rng(8).normal(size=(6, 2))
    k = nd.kernel(dag, x)
    rate = 0.5 / lambda_max(k)

    def create(rngs):
        return DagNet(dag, 5, 2, width=width, rngs=rngs)

    data = {"x": x.astype(np.float32), "y": y.astype(np.float32), "seeds": range(64)}
    _, apply = as_functions(create)
    f0 = jax.vmap(apply, (0, None))(descend(create, **data, optimizer=optax.sgd(0.0), steps=1).params, data["x"])
    curves = descend(create, **data, optimizer=optax.sgd(rate), steps=steps).curve.astype(np.float64)
    still = make_kernel(np.zeros_like(k.nngp), k.ntk)
    exact = [nd.expected_loss(still, y - np.asarray(f, np.float64), rate, steps) for f in f0]
    for factor in (1, 0.95, 1.05):  # the latter two must fail
        gaps = (factor * curves - exact)[:, 1:] / np.mean(exact, axis=0)[1:]
        error = gaps.std(axis=0, ddof=1) / 64**0.5
        assert (np.abs(gaps.mean(axis=0)) < 4 * error + 10 / width).all() == (factor == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameterization", "options", "steps"),
    [
        pytest.param("ntk", {}, 30, id="ntk"),
        pytest.param("standard", {}, 30, id="standard", marks=pytest.mark.nightly),
        pytest.param("ntk", {"momentum": 0.5}, 15, id="momentum", marks=pytest.mark.nightly),
    ],
)
def test_trained_networks_have_these_curves(parameterization, options, steps):
    width, seeds, dag = 512, 64, nd.Dag.from_code("2")
    x, y = np.random.default_rng(7).normal(size=(6, 5)), np.random.default_rng(8).normal(size=(6, 2))
    of_width: dict[str, Any] = {"width": width} if parameterization == "standard" else {}
    k = nd.kernel(dag, x, parameterization=parameterization, **of_width)
    rate = 0.5 / lambda_max(k)
    curve = loss_curve(k, y, rate, steps, **options)
    curves = descend(
        lambda rngs: DagNet(dag, 5, 2, width=width, parameterization=parameterization, rngs=rngs),
        x.astype(np.float32),
        y.astype(np.float32),
        optimizer=optax.sgd(rate, **options),
        steps=steps,
        seeds=range(seeds),
    ).curve.astype(np.float64)
    mean, std = curves.mean(axis=0), curves.std(axis=0, ddof=1)
    for factor in (1, 0.6, 1.6):  # the latter two must fail
        # Four standard errors of the mean, three of the standard deviation, and a bias of order 1 / width.
        means_agree = np.abs(factor * mean - curve.mean) < 4 * curve.std / seeds**0.5 + 10 / width * curve.mean
        stds_agree = np.abs(factor * std / curve.std - 1) < 3 / (2 * (seeds - 1)) ** 0.5 + 10 / width
        assert means_agree.all() == stds_agree.all() == (factor == 1)


# Modes


@pytest.mark.parametrize("rate", [None, 0.3, 1.2])
def test_modes_add_up_to_the_curve(rate):
    k, y = random_kernel(21), TARGETS["(N, C)"]
    eta = None if rate is None else rate / lambda_max(k)
    result = modes(k, y, eta)
    assert (np.diff(result.eigenvalues) < 0).all()
    np.testing.assert_allclose(result.eigenvalues[::-1], np.linalg.eigvalsh(np.asarray(k.ntk)), rtol=1e-12)
    losses = [np.sum(result.losses * result.factors**count) for count in range(6)]
    np.testing.assert_allclose(losses, nd.expected_loss(k, y, eta or 1.0, 5, flow=rate is None), rtol=1e-10)
    np.testing.assert_allclose(result.factors**result.half_lives, 0.5, rtol=1e-10)


def test_modes_that_do_not_shrink_have_no_half_life():
    k = make_kernel(np.eye(3), np.diag([4.0, 1.0, 0.0]))
    np.testing.assert_array_equal(modes(k, np.ones(3)).half_lives, [np.log(2) / 8, np.log(2) / 2, np.inf])
    # Beyond the limit the first mode grows. The second vanishes after one step.
    np.testing.assert_array_equal(modes(k, np.ones(3), 1.0).half_lives, [np.inf, 0, np.inf])
    np.testing.assert_allclose(modes(k, np.ones(3), 1e-12).half_lives[1], np.log(2) / 2e-12, rtol=1e-10)


# Errors


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_is_no_step_is_refused(rate):
    k, message = random_kernel(9), f"`learning_rate` to be finite and above 0, got {rate}; pass a fraction of"
    with pytest.raises(InputError, match=message):
        nd.expected_loss(k, TARGETS["(N,)"], rate, 3)
    with pytest.raises(InputError, match=message):
        loss_curve(k, TARGETS["(N,)"], rate, 3, flow=True)
    with pytest.raises(InputError, match=message):
        modes(k, TARGETS["(N,)"], rate)


def test_the_expected_loss_warns_where_it_diverges():
    k = random_kernel(9)
    with pytest.warns(NumericalWarning, match="diverges"):
        loss = nd.expected_loss(k, TARGETS["(N,)"], 2.5 / lambda_max(k), 60)
    assert loss[-1] > 1e6 * loss[0]


def test_scalars_of_jax_do_not_lower_the_precision(unchecked):
    k, y, rate = random_kernel(9), TARGETS["(N,)"], jnp.float32(0.125)
    curve = loss_curve(k, y, rate, 20, momentum=jnp.float32(0.5))
    np.testing.assert_array_equal(curve.mean, loss_curve(k, y, 0.125, 20, momentum=0.5).mean)
    np.testing.assert_array_equal(modes(k, y, rate).factors, modes(k, y, 0.125).factors)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_out_of_range_is_refused(momentum):
    message = f"`momentum` to be at least 0 and below 1, got {momentum}"
    with pytest.raises(InputError, match=message):
        loss_curve(random_kernel(0), TARGETS["(N,)"], 0.01, 3, momentum=momentum)
    with pytest.raises(InputError, match=message):
        largest_stable_learning_rate(np.eye(2), momentum=momentum)


@pytest.mark.parametrize("options", [{"momentum": 0.5}, {"nesterov": True}])
def test_gradient_flow_has_no_momentum(options):
    with pytest.raises(InputError, match="no `momentum` with `flow`"):
        loss_curve(random_kernel(0), TARGETS["(N,)"], 0.01, 3, flow=True, **options)


def test_an_indefinite_ntk_is_refused():
    ntk = np.diag([1.0, -0.1])
    with pytest.raises(InputError, match=r"`k\.ntk` to be positive semi-definite, got the eigenvalue -0\.1"):
        loss_curve(make_kernel(np.eye(2), ntk), np.ones(2), 0.01, 3)
    with pytest.raises(InputError, match="`ntk` to be positive semi-definite"):
        largest_stable_learning_rate(ntk)


@pytest.mark.parametrize("absent", ["k_test_train", "k_test_test", "y_test"])
def test_a_part_of_what_the_test_loss_needs_is_refused(absent):
    train, cross, test = joint_kernels(0)
    options = {name: value for name, value in for_test(cross, test).items() if name != absent}
    with pytest.raises(InputError, match="`k_test_train`, `k_test_test` and `y_test` together, got 2 of them"):
        loss_curve(train, np.ones((4, 2)), 0.01, 3, **options)


def test_what_does_not_fit_the_test_set_is_refused():
    train, cross, test = joint_kernels(0)
    broken = np.full((3, 4), np.nan)
    for options, message in (
        (for_test(train, test), r"`k_test_train\.ntk` to have shape \(3, 4\), got \(4, 4\); pass test inputs first"),
        (for_test(make_kernel(cross.nngp, broken), test), r"`k_test_train\.ntk` to be finite"),
        (for_test(make_kernel(broken, cross.ntk), test), r"`k_test_train\.nngp` to be finite"),
        (for_test(cross, cross), r"`k_test_test\.nngp` to be a square matrix"),
        (for_test(cross, test, np.ones((3, 1))), r"`y_test` to have shape \(3, 2\), got \(3, 1\)"),
        (for_test(cross, test, np.ones((4, 2))), r"`y_test` to have shape \(3, 2\), got \(4, 2\)"),
        (for_test(cross, test, np.full((3, 2), np.inf)), "`y_test` to be finite"),
    ):
        with pytest.raises(InputError, match=message):
            loss_curve(train, np.ones((4, 2)), 0.01, 3, **options)


# Bad input


def test_kernels_that_no_network_has_are_refused():
    ntk = np.eye(2)
    with pytest.raises(InputError, match=r"`k\.nngp` to be positive semi-definite, got a negative eigenvalue"):
        loss_curve(nd.Kernel(np.diag([1.0, -5.0]), ntk), np.zeros(2), 0.5, 2)
    with pytest.raises(InputError, match=r"`k_test_train\.nngp` to be the covariance of test and training outputs"):
        loss_curve(
            nd.Kernel(np.eye(2), ntk),
            np.zeros(2),
            0.5,
            2,
            k_test_train=nd.Kernel(np.full((1, 2), 9.0), np.ones((1, 2))),
            k_test_test=nd.Kernel(np.eye(1), np.eye(1)),
            y_test=np.zeros(1),
        )


def test_wrong_types_get_one_line(unchecked):
    k = nd.Kernel(np.eye(2), np.eye(2))
    with pytest.raises(InputError, match="Expected `k` to be a `Kernel`, got ndarray"):
        loss_curve(np.eye(2), np.zeros(2), 0.5, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="`learning_rate` to be finite and above 0, got auto"):
        loss_curve(k, np.zeros(2), "auto", 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="`momentum` to be at least 0 and below 1, got None"):
        loss_curve(k, np.zeros(2), 0.5, 2, momentum=None)  # pyright: ignore[reportArgumentType]
    assert loss_curve(k, np.zeros(2), 0.5, 2.0).mean.shape == (3,)  # pyright: ignore[reportArgumentType]


@pytest.mark.nightly
def test_real_networks_diverge_where_the_prediction_does():
    dag, x, y = nd.Dag.from_code("2"), np.random.default_rng(7).normal(size=(6, 5)), np.ones((6, 1))
    layer = nd.Dense(activation="erf")
    k = nd.kernel(dag, x, layer=layer)
    limit = largest_stable_learning_rate(k)

    def trained(rate):
        return descend(
            lambda rngs: DagNet(dag, 5, 1, width=1024, layer=layer, rngs=rngs),
            x.astype(np.float32),
            y.astype(np.float32),
            optimizer=optax.sgd(rate),
            steps=40,
            seeds=range(3),
        ).curve

    below = trained(0.8 * limit)
    assert not loss_curve(k, y, 0.8 * limit, 40).diverges
    assert (below.max(axis=1) == below[:, 0]).all()
    assert (below[:, -1] < 0.01 * below[:, 0]).all()
    with pytest.warns(NumericalWarning, match="gradient descent diverges"):
        curve = loss_curve(k, y, 1.5 * limit, 40)
    assert curve.diverges
    assert curve.mean[-1] > 1e10 * curve.mean[0]
    # The loss grows until these networks, unlike infinitely wide ones, reach a region of smaller curvature.
    assert (trained(1.5 * limit).max(axis=1) > 5 * below[:, 0]).all()
    # With steps twice as long they diverge.
    with pytest.raises(InputError, match="Expected training to converge, got a loss that is not finite"):
        trained(3 * limit)


def test_half_a_kernel_is_refused():
    x = np.random.default_rng(0).normal(size=(4, 6))
    for get, held in (("ntk", "the NTK"), ("nngp", "the NNGP")):
        with pytest.raises(InputError, match=f"Expected `k` to hold both kernels, got {held} alone; call"):
            loss_curve(nd.kernel("2_12", x, get=get), np.eye(4), 0.01, 3)
