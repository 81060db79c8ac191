"""The expected loss against simulated training and against matrix powers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError

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
    """An NNGP and an NTK that share no eigenvectors."""
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
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0001, float("nan"), float("inf")])
def test_a_learning_rate_at_which_training_diverges_is_refused(factor):
    k = random_kernel(9)
    with pytest.raises(InputError, match=r"`learning_rate` between 0 and 2 / lambda_max\(NTK\) = .*diverges beyond"):
        nd.expected_loss(k, TARGETS["(N,)"], factor / lambda_max(k), 3)


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


def test_a_kernel_between_two_sets_is_refused():
    k = nd.kernel(nd.Dag.from_code("2"), X, X[:2])
    with pytest.raises(InputError, match=r"`k\.ntk` to be a square matrix, got shape \(4, 2\)"):
        nd.expected_loss(k, TARGETS["(N,)"], 0.01, 3)
    # As many rows as columns, but of other inputs.
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
