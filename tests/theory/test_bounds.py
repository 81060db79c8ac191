"""The rate bound, against simulation."""

import math

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError

ORDERS = ["linear-act", "act-linear"]


def on_sphere(num_inputs, seed):
    """Returns random inputs with |x|^2 = d = 6."""
    x = np.random.default_rng(seed).normal(size=(num_inputs, 6))
    return x * (6 / (x**2).sum(axis=1, keepdims=True)) ** 0.5


def last_node(code, x, order):
    return np.asarray(nd.kernel(nd.Dag.from_code(code), x, order=order, readout=False).nngp)


def test_the_rate_bound_is_its_closed_form():
    bound = nd.rate_bound(lambda_min=0.3, learning_rate=0.7, steps=50, initial_loss=12.5)
    expected = [12.5]
    for _ in range(50):
        expected.append(expected[-1] * (1 - 0.7 * 0.3 / 2))
    np.testing.assert_allclose(bound, expected, rtol=1e-12)
    assert nd.rate_bound(0.5, 0.4, 2, 100.0) == pytest.approx([100, 90, 81], rel=1e-14)


@pytest.mark.parametrize(("lambda_min", "learning_rate"), [(0.0, 0.1), (1.0, 0.0)])
def test_no_eigenvalue_or_no_step_is_no_progress(lambda_min, learning_rate):
    np.testing.assert_array_equal(nd.rate_bound(lambda_min, learning_rate, 3, 2.0), [2, 2, 2, 2])


def test_the_largest_admitted_rate_bounds_by_zero():
    np.testing.assert_array_equal(nd.rate_bound(4.0, 0.5, 2, 3.0), [3, 0, 0])
    assert nd.rate_bound(1.0, 0.1, 0, 3.0).tolist() == [3]


@pytest.mark.parametrize("name", ["lambda_min", "learning_rate", "initial_loss"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_rate_bound_of_impossible_numbers_is_refused(name, value):
    arguments = {"lambda_min": 0.5, "learning_rate": 0.5, "initial_loss": 1.0, name: value}
    with pytest.raises(InputError, match=f"Expected `{name}` to be finite and at least 0, got {value}"):
        nd.rate_bound(**arguments, steps=3)


def test_a_learning_rate_beyond_the_bound_is_refused():
    with pytest.raises(InputError, match=r"`learning_rate` to be at most 2 / lambda_min = 4, got 4\.1"):
        nd.rate_bound(0.5, 4.1, 3, 1.0)


@pytest.mark.parametrize("steps", [-1, 2.5])
def test_steps_of_a_rate_bound_are_counted(steps, unchecked):
    with pytest.raises(InputError, match="`steps` to be a whole number of at least 0"):
        nd.rate_bound(0.5, 0.1, steps, 1.0)


def exceeds_the_rate_bound(ntk, lambda_min, learning_rate, error, steps=30):
    """Returns whether the loss of gradient descent on linear dynamics from y - f(0) = error ever exceeds the bound."""
    bound = nd.rate_bound(lambda_min, learning_rate, steps, 0.5 * float(error @ error))
    losses = []
    for _ in range(steps + 1):
        losses.append(0.5 * error @ error)
        error = error - learning_rate * ntk @ error
    return bool((np.array(losses) > bound * (1 + 1e-9) + 1e-300).any())


@pytest.mark.parametrize("seed", range(40))
def test_the_rate_bound_holds_exactly_where_it_is_said_to(seed):
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    eigenvalues = np.sort(rng.uniform(0.1, 2, size=4))
    ntk = (rotation * eigenvalues) @ rotation.T
    lambda_ntk, lambda_max = eigenvalues[[0, -1]]
    lambda_nngp = rng.uniform(0.1, 6) * lambda_ntk
    # Learning rates near those at which the fastest or the slowest mode reaches the bound, and random ones.
    fastest = (2 * lambda_max - lambda_nngp / 2) / lambda_max**2
    slowest = (2 * lambda_ntk - lambda_nngp / 2) / lambda_ntk**2
    rates = [rng.uniform(0.01, 2) / lambda_max, 0.98 * fastest, 1.02 * fastest, 0.98 * slowest, 1.02 * slowest]
    rates = [rate for rate in rates if 0 < rate <= 2 / lambda_nngp]
    for rate in rates:
        errors = [*rotation.T, *rng.normal(size=(10, 4))]
        exceeded = [exceeds_the_rate_bound(ntk, lambda_nngp, rate, error) for error in errors]
        if nd.rate_bound_holds_for(lambda_nngp, lambda_ntk, lambda_max, rate):
            assert not any(exceeded)
        else:
            assert any(exceeded[:4])


def test_both_ends_of_the_spectrum_can_break_the_rate_bound():
    assert nd.rate_bound_holds_for(0.1, 0.5, 10.0, learning_rate=0.1)
    assert not nd.rate_bound_holds_for(0.1, 0.5, 10.0, learning_rate=0.3)
    assert not nd.rate_bound_holds_for(2.0, 0.4, 1.0, learning_rate=0.5)
    assert nd.rate_bound_holds_for(0.0, 0.4, 1.0, learning_rate=2.0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("code", ["2_02_002", "1_01_222", "2_21_112"])
def test_the_expected_loss_keeps_the_rate_bound_where_it_holds(code, order):
    x = on_sphere(5, seed=0)
    dag = nd.Dag.from_code(code)
    k = nd.kernel(dag, x, order=order)
    s = nd.spectrum(k.ntk)
    lambda_min = nd.spectrum(last_node(code, x, order)).lambda_min
    rate = 1 / s.lambda_max
    assert nd.rate_bound_holds_for(lambda_min, s.lambda_min, s.lambda_max, rate)
    loss = nd.expected_loss(k, np.sign(x[:, 0]), rate, 40)
    assert (loss <= nd.rate_bound(lambda_min, rate, 40, loss[0]) * (1 + 1e-12)).all()
