"""Predictions at a finite time against linear maps step by step, neural-tangents, loss curves and trained networks."""

import math
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest
import scipy.linalg

import nngp_dag as nd
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.kernels.neural_tangents import neural_tangents as nt
from nngp_dag.kernels.neural_tangents import stax
from nngp_dag.nets import DagNet, as_functions, descend
from nngp_dag.theory import largest_stable_learning_rate, loss_curve, posterior

# Unpacked lists of kernels have lengths that a type checker does not know.
predict_at: Any = nd.linearized_prediction
N, NT, C = 5, 3, 2
RNG = np.random.default_rng(0)
Y, Y_TEST, F, F_TEST = RNG.normal(size=(N, C)), RNG.normal(size=(NT, C)), *RNG.normal(size=(2, N, C))
F_TEST = F_TEST[:NT]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "descent": {},
    "momentum": {"momentum": 0.8},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "flow": {"flow": True},
}


@cache
def kernels(duplicates=False) -> Any:
    """Returns kernels train-train, test-train and test-test; with duplicates, of equal inputs and of one zero input."""
    parts = [(slice(N), slice(N)), (slice(N, None), slice(N)), (slice(N, None), slice(N, None))]
    matrices = []
    for g in np.random.default_rng(1).normal(size=(2, N + NT, 2 * N)) / N**0.5:
        if duplicates:
            g[1], g[2], g[N] = g[0], 0, g[0]
        matrices.append(g @ g.T)
    return [nd.Kernel(*(matrix[part] for matrix in matrices)) for part in parts]


def maps(rate, steps, momentum=0.0, nesterov=False, flow=False, duplicates=False):
    """Returns A and B with (f, f_t) = A (f(0), f_t(0)) + B y after training, one step after the other."""
    train, cross, _ = kernels(duplicates)
    slope = np.concatenate([train.ntk, cross.ntk])
    # The state holds outputs on both sets, the targets, and the momentum of the errors.
    m, n = N + NT, 2 * (N + NT) + N
    outputs, targets, memory = slice(m), slice(m, m + N), slice(m + N, n)
    errors = np.zeros((N, n))
    errors[:, :N], errors[:, targets] = np.eye(N), -np.eye(N)
    gradient = slope @ errors
    step = np.eye(n)
    if flow:
        generator = np.zeros((n, n))
        generator[outputs] = -gradient
        total = scipy.linalg.expm(rate * steps * generator)
    else:
        step[memory] = gradient
        step[memory, memory] += momentum * np.eye(m)
        step[outputs] -= rate * (gradient + momentum * step[memory] if nesterov else step[memory])
        total = np.linalg.matrix_power(step, steps)
    return total[outputs, outputs], total[outputs, targets]


@pytest.mark.parametrize("duplicates", [False, True], ids=["regular", "singular"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_predictions_are_those_of_the_maps_of_all_outputs(steps, optimizer, duplicates):
    options = OPTIMIZERS[optimizer]
    train, cross, test = kernels(duplicates)
    rate = 0.6 / np.linalg.eigvalsh(train.ntk)[-1]
    a, b = maps(rate, steps, **options, duplicates=duplicates)
    prior = np.block([[train.nngp, cross.nngp.T], [cross.nngp, test.nngp]])
    covariance = a @ prior @ a.T
    result = predict_at(train, cross, test, Y, rate, steps, **options)
    scale = np.abs(prior).max()
    np.testing.assert_allclose(result.mean, (b @ Y)[N:], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(result.covariance, covariance[N:, N:], rtol=1e-10, atol=1e-12 * scale)
    np.testing.assert_array_equal(result.covariance, result.covariance.T)
    assert result.kind == "ntk"
    # On the training inputs themselves.
    on_train = predict_at(train, train, train, Y, rate, steps, **options)
    np.testing.assert_allclose(on_train.mean, (b @ Y)[:N], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(on_train.covariance, covariance[:N, :N], rtol=1e-10, atol=1e-11 * scale)
    # From given outputs; neither the NNGPs nor the kernel of the test inputs are needed.
    ntks = [nd.Kernel(None, k.ntk) for k in (train, cross)]
    one = predict_at(*ntks, None, Y, rate, steps, **options, initial=(F, F_TEST))
    np.testing.assert_allclose(one.mean, (a @ np.concatenate([F, F_TEST]) + b @ Y)[N:], rtol=1e-10, atol=1e-11)
    np.testing.assert_array_equal(one.covariance, np.zeros((NT, NT)))


def test_initial_outputs_may_be_shared_by_columns():
    train, cross, _ = kernels()
    whole = predict_at(train, cross, None, Y, 0.1, 5, initial=(np.tile(F[:, :1], C), np.full((NT, C), 2.0))).mean
    np.testing.assert_array_equal(predict_at(train, cross, None, Y, 0.1, 5, initial=(F[:, 0], 2)).mean, whole)
    still = predict_at(train, cross, None, Y, 0.1, 5, initial=(0, 0)).mean
    np.testing.assert_allclose(still, predict_at(*kernels(), Y, 0.1, 5).mean, rtol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_predictions_have_the_test_loss_of_the_curve(optimizer):
    options = OPTIMIZERS[optimizer]
    train, cross, test = kernels()
    rate = 0.5 / np.linalg.eigvalsh(train.ntk)[-1]
    curve = loss_curve(train, Y, rate, 8, **options, k_test_train=cross, k_test_test=test, y_test=Y_TEST)
    assert curve.test_mean is not None
    for steps, expected in enumerate(curve.test_mean):
        result = predict_at(train, cross, test, Y, rate, steps, **options)
        loss = 0.5 * (np.sum((result.mean - Y_TEST) ** 2) + C * np.trace(result.covariance))
        assert loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_end_of_training_is_the_posterior_of_the_ntk(optimizer):
    options = OPTIMIZERS[optimizer]
    train, cross, test = kernels()
    limit = posterior(train, cross, test, Y, kind="ntk")
    end = predict_at(train, cross, test, Y, 0.1, math.inf, **options)
    np.testing.assert_allclose(end.mean, limit.mean, rtol=1e-12)
    np.testing.assert_allclose(end.covariance, limit.covariance, rtol=1e-12, atol=1e-12)
    late = predict_at(train, cross, test, Y, 1e9 if "flow" in options else 0.1, 20_000, **options)
    np.testing.assert_allclose(late.mean, limit.mean, rtol=1e-8)
    np.testing.assert_allclose(late.covariance, limit.covariance, rtol=1e-8, atol=1e-9)
    one = predict_at(train, cross, None, Y, 0.1, math.inf, **options, initial=(F, F_TEST))
    np.testing.assert_allclose(one.mean, F_TEST + cross.ntk @ np.linalg.solve(train.ntk, Y - F), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("code", [pytest.param("2", marks=pytest.mark.nightly), "2_02"])
def test_gradient_flow_is_that_of_neural_tangents(code):
    x, z = np.random.default_rng(2).normal(size=(N, 4)), np.random.default_rng(3).normal(size=(NT, 4))
    of = nd.kernel(code, x), nd.kernel(code, z, x), nd.kernel(code, z)
    layer = [layer for _ in range(1 + code.count("2")) for layer in (stax.Dense(1, W_std=2**0.5), stax.Relu())]
    rate, steps = 0.05, (0, 3, 50)
    # The loss of neural-tangents is half the mean over all entries of y, so that its time is y.size times as long.
    times = Y.size * rate * np.array(steps)
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        kernel_fn = stax.serial(*layer, stax.Dense(1, W_std=2**0.5))[2]
        predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, Y)
        expected = predict(t=times, x_test=z, get="ntk", compute_cov=True)
        end = predict(t=None, x_test=z, get="ntk", compute_cov=True)
        one = nt.predict.gradient_descent_mse(of[0].ntk, Y)
        f_test = np.asarray(one(times, F, F_TEST, of[1].ntk)[1])
    for i, k in enumerate(steps):
        result = predict_at(*of, Y, rate, k, flow=True)
        np.testing.assert_allclose(result.mean, expected.mean[i], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(result.covariance, expected.covariance[i], rtol=1e-6, atol=1e-9)
        given = predict_at(*of, Y, rate, k, flow=True, initial=(F, F_TEST))
        np.testing.assert_allclose(given.mean, f_test[i], rtol=1e-6, atol=1e-9)
    result = predict_at(*of, Y, rate, math.inf, flow=True)
    np.testing.assert_allclose(result.mean, end.mean, rtol=1e-6)
    np.testing.assert_allclose(result.covariance, end.covariance, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, pytest.param({"momentum": 0.5}, marks=pytest.mark.nightly)])
def test_trained_networks_have_these_outputs(options):
    width, seeds, steps, code = 512, 64, 10, "2_12"
    rng = np.random.default_rng(4)
    x, z, y = rng.normal(size=(6, 5)), rng.normal(size=(4, 5)), 8 * rng.normal(size=(6, 2))
    of = nd.kernel(code, x), nd.kernel(code, z, x), nd.kernel(code, z)
    rate = 0.5 * largest_stable_learning_rate(of[0], **options)
    result = predict_at(*of, y, rate, steps, **options)

    def create(rngs):
        return DagNet(code, 5, 2, width=width, rngs=rngs)

    data = {"x": x.astype(np.float32), "y": y.astype(np.float32), "seeds": range(seeds)}
    params = descend(create, **data, optimizer=optax.sgd(rate, **options), steps=steps).params
    apply = jax.vmap(as_functions(create)[1], (0, None))
    outputs = np.asarray(apply(params, z.astype(np.float32)), np.float64)
    mean, std = outputs.mean(axis=0), outputs.std(axis=0, ddof=1)
    error = 4 * result.std[:, None] / seeds**0.5 + 10 / width * np.abs(result.mean).max()
    assert (np.abs(mean - result.mean) < error).all()
    assert (np.abs(result.mean) > 2 * error).any()
    for factor in (1, 0.6, 1.6):  # the latter two must fail
        close = np.abs(factor * std / result.std[:, None] - 1) < 4 / (2 * (seeds - 1)) ** 0.5 + 10 / width
        assert close.all() == (factor == 1)
    # The same networks from their own start: given initial outputs take the spread away.
    start = descend(create, **data, optimizer=optax.sgd(0.0), steps=1).params
    f, f_test = (np.asarray(apply(start, v.astype(np.float32)), np.float64) for v in (x, z))
    pairs = zip(f, f_test, strict=True)
    own = np.stack([predict_at(*of, y, rate, steps, **options, initial=pair).mean for pair in pairs])
    size = np.abs(own).max()
    for factor in (1, 0.9, 1.1):  # the latter two must fail
        gaps = factor * outputs - own
        within = np.abs(gaps.mean(axis=0)) < 4 * gaps.std(axis=0, ddof=1) / seeds**0.5 + 5 / width * size
        assert within.all() == (factor == 1)


# Divergence, files and errors


def test_divergence_warns_and_has_no_end():
    train, cross, test = kernels()
    rate = 1.1 * largest_stable_learning_rate(train)
    with pytest.warns(NumericalWarning, match="gradient descent diverges: learning_rate .* above the stability limit"):
        predict_at(train, cross, test, Y, rate, 3)
    with pytest.raises(
        InputError, match=r"`learning_rate` below the stability limit .* for infinitely many steps, got"
    ):
        predict_at(train, cross, test, Y, rate, math.inf)
    predict_at(train, cross, test, Y, rate, math.inf, flow=True)


def test_mapped_kernels_give_the_same(tmp_path):
    mapped = []
    for i, k in enumerate(kernels()):
        for name in ("nngp", "ntk"):
            np.save(tmp_path / f"{i}{name}.npy", getattr(k, name))
        mapped.append(nd.Kernel(*(np.load(tmp_path / f"{i}{name}.npy", mmap_mode="r") for name in ("nngp", "ntk"))))
    for steps in (4, math.inf):
        found, expected = (predict_at(*of, Y, 0.1, steps) for of in (mapped, kernels()))
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.covariance, expected.covariance)


def test_what_does_not_fit_is_refused(unchecked):
    train, cross, test = kernels()
    singular, wide = kernels(duplicates=True), nd.Kernel(np.full((NT, N), 99.0), cross.ntk)
    cases: Any = (
        ((cross, cross, test, Y, 0.1, 3), {}, r"`k_train_train\.ntk` to be a square matrix"),
        ((train, train, test, Y, 0.1, 3), {}, r"`k_test_train\.ntk` to have shape \(3, 5\), got \(5, 5\)"),
        ((train, test, None, Y, 0.1, 3), {"initial": (F, F_TEST)}, r"`k_test_train\.ntk` to have shape \(3, 5\)"),
        ((train, cross, None, Y, 0.1, 3), {}, "`k_test_test` to be a `Kernel`, got NoneType"),
        ((nd.Kernel(None, train.ntk), cross, test, Y, 0.1, 3), {}, "`k_train_train` to hold both kernels, got the NTK"),
        ((train, wide, test, Y, 0.1, 3), {}, r"`k_test_train\.nngp` to be the covariance of test and training outputs"),
        ((train, cross, test, np.arange(N), 0.1, 3), {}, "`y` to be numbers to regress on, got integers from 0 to 4"),
        ((train, cross, test, Y, -0.1, 3), {}, "`learning_rate` to be finite and above 0, got -0.1"),
        ((train, cross, test, Y, 0.1, 2.5), {}, "`steps` to be a whole number of at least 0, got 2.5"),
        ((train, cross, test, Y, 0.1, -math.inf), {}, "`steps` to be a whole number of at least 0, got -inf"),
        ((train, cross, test, Y, 0.1, 3), {"momentum": 1}, "`momentum` to be at least 0 and below 1, got 1"),
        ((train, cross, test, Y, 0.1, 3), {"momentum": 0.5, "flow": True}, "no `momentum` with `flow`, got 0.5"),
        ((train, cross, test, Y, 0.1, 3), {"initial": F}, r"`initial` to be the outputs .*; pass \(f_train, f_test\)"),
        (
            (train, cross, test, Y, 0.1, 3),
            {"initial": (F, F)},
            r"`initial\[1\]` to be a number or to have shape \(3,\)",
        ),
        ((train, cross, test, Y, 0.1, 3), {"initial": (np.nan, 0)}, r"`initial\[0\]` to be finite, got NaN"),
        ((nd.Kernel(train.nngp, -train.ntk), cross, test, Y, 0.1, 3), {}, r"`k_train_train\.ntk` to be positive semi"),
        ((*singular, Y, 0.1, math.inf), {}, r"`k_train_train\.ntk` with `noise` 0 .* singular"),
    )
    for arguments, options, message in cases:
        with pytest.raises(InputError, match=f"Expected {message}"):
            predict_at(*arguments, **options)
