from typing import Any

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError

N, CLASSES = 24, 3
RNG = np.random.default_rng(0)
X = nd.data.scale_to_sphere(RNG.normal(size=(N, 6)))
LABELS = RNG.integers(0, CLASSES, N)
DAG = nd.Dag.from_code("2_21")
K = nd.kernel(DAG, X)


def run(k=K, learning_rate=0.2, **options):
    given: dict[str, Any] = {"batch_size": N, "epochs": 6, "num_classes": CLASSES} | options
    return nd.linearized_sgd(k, LABELS, learning_rate, **given)


@pytest.mark.slow
def test_full_batches_of_squared_loss_follow_the_exact_expectation():
    # Moments in the eigenbasis against draws in function space, which are a second derivation. The mean loss of the
    # trainer is L / N, so that its eta is N times the other.
    draws = 6000
    runs = run(loss="squared", momentum=0.5, draws=draws, learning_rate=0.05)
    y = np.eye(CLASSES)[LABELS]
    curve = nd.loss_curve(K, y, 0.05 / N, 6, momentum=0.5)
    # Entry e + 1 is the loss before update e, entry 0 that at the start.
    expected, std = curve.mean[:6] / N, curve.std[:6] / N
    for epoch in range(6):
        error = 4 * std[epoch] / draws**0.5
        assert runs.losses[epoch + 1].mean() == pytest.approx(expected[epoch], abs=error)
        assert error < 0.04 * expected[epoch]
    np.testing.assert_allclose(runs.losses[0], runs.losses[1], rtol=1e-12)


def test_steps_are_those_of_a_plain_loop():
    # With full batches the order of examples does not matter.
    runs = run(epochs=3, momentum=0.3, learning_rate=0.4)
    jitter = 16 * np.finfo(np.float64).eps * K.nngp.diagonal().max()
    factor = np.linalg.cholesky(np.asarray(K.nngp) + jitter * np.eye(N))
    f = factor @ np.random.default_rng(0).standard_normal((N, CLASSES))
    velocity, y = np.zeros_like(f), np.eye(CLASSES)[LABELS]
    for epoch in range(1, 4):
        p = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
        assert runs.losses[epoch, 0] == pytest.approx(-np.log(p[range(N), LABELS]).mean(), rel=1e-10)
        assert runs.accuracies[epoch, 0] == pytest.approx((f.argmax(axis=1) == LABELS).mean())
        velocity = 0.3 * velocity + np.asarray(K.ntk) @ (p - y) / N
        f = f - 0.4 * velocity


def test_the_last_batch_of_an_epoch_takes_the_mean_of_its_own_examples():
    # With the NTK 1 every example moves by its own error alone. With eta = 1, the step on two of three examples halves
    # their errors, and the step on the third sets its error to 0. Only which one is third depends on the order.
    k = nd.Kernel(nngp=np.diag([1.0, 2.0, 3.0]), ntk=np.eye(3))
    labels, draws = np.array([0, 1, 1]), 8
    options: dict[str, Any] = {"loss": "squared", "momentum": 0.0, "draws": draws}
    runs = nd.linearized_sgd(k, labels, 1.0, batch_size=2, epochs=2, **options)
    f = np.sqrt([1.0, 2.0, 3.0])[:, None] * np.random.default_rng(0).standard_normal((3, draws * 2))
    halves = 0.5 * ((f.reshape(3, draws, 2) - np.eye(2)[labels][:, None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(runs.losses[1], halves.mean(axis=0), rtol=1e-10)
    third = (halves.sum(axis=0) - 4 * 3 * runs.losses[2]) / halves
    np.testing.assert_allclose(np.abs(third - 1).min(axis=0), 0, atol=1e-9)


@pytest.mark.slow
def test_wide_networks_train_as_predicted():
    # Mini-batches with a remainder in every epoch, and cross entropy, against networks of width 512.
    part = nd.data.Part(X.astype(np.float32), LABELS)
    data = nd.data.Splits("mine", part, part, part, CLASSES)
    options: dict[str, Any] = {"batch_size": 10, "epochs": 8}
    [trained] = nd.train(DAG, data, nd.Recipe(learning_rate=0.2, **options), seeds=16, width=512)
    measured = trained.history.of("train", "loss")
    predicted = run(draws=400, **options).losses
    error = np.sqrt(measured.var(axis=1, ddof=1) / 16 + predicted.var(axis=1, ddof=1) / 400)
    gap = measured.mean(axis=1) - predicted.mean(axis=1)
    # 4 standard errors, and 1 % for the bias of width 512.
    assert (np.abs(gap) < 4 * error + 0.01 * predicted.mean(axis=1)).all()
    assert measured[-1].mean() < 0.5 * measured[0].mean()


@pytest.mark.slow
def test_same_seed_same_bits_and_float32():
    first, second = run(batch_size=7), run(batch_size=7)
    np.testing.assert_array_equal(first.losses, second.losses)
    assert not np.array_equal(first.losses, run(batch_size=7, seed=1).losses)
    single = run(nd.kernel(DAG, X.astype(np.float32)))
    np.testing.assert_allclose(single.losses, run().losses, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": N + 1}, "`batch_size` between 1 and the 24"),
        ({"epochs": 0}, "`epochs` and `draws` to be at least 1, got 0 and 1"),
        ({"loss": "hinge"}, "`loss` to be one of"),
        ({"momentum": 1.0}, "`momentum` in"),
        ({"num_classes": 2}, "`labels` from 0 to 1"),
        ({"learning_rate": 1e30, "loss": "squared"}, "lower `learning_rate`"),
        ({"k": nd.Kernel(nngp=-np.eye(N), ntk=np.eye(N))}, "positive definite"),
        ({"k": nd.Kernel(nngp=np.eye(3), ntk=np.eye(3))}, "`labels` to be 3 integers"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        run(**options)
