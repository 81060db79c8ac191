"""Training that diverges, and the largest stable learning rate by the kernel, which is neither too low nor too high."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_cases import authors_network, splits

from nngp_dag import kernel
from nngp_dag.architecture import Network
from nngp_dag.errors import DivergenceError, GraphError
from nngp_dag.nets import as_stateful_functions
from nngp_dag.training import Recipe, stable_learning_rate, tasks, train
from nngp_dag.training.networks import build
from nngp_dag.training.program import Program, on_device
from nngp_dag.training.tasks import DagTask

# Wide networks, whose kernels are close to those of infinite width, and hardly move.
WIDTH, STEPS, SEEDS = 2048, 3, range(4)
# In the parameterization "ntk", biases with b_std = 0 have no effect.
WIDE = Network("2", width=WIDTH)
CHAIN = authors_network("2", parameterization="ntk")
DATA = splits(train=24)
FULL = {"batch_size": 24, "loss": "squared"}


def top_modes(monkeypatch, network, recipe, rates):
    """Trains at one rate after another, and returns the sizes of the errors in the top mode, (steps, seeds).

    With full batches of the squared loss, an epoch is a step of gradient descent. Networks of finite width leave the
    unstable region by themselves once the loss has grown. So the test measures how the top mode begins to grow.
    """
    monkeypatch.setattr(Recipe, "learning_rates", lambda self, _: lambda step: jnp.asarray(rates)[step])
    program, device = Program(DagTask(network, recipe, DATA), len(SEEDS)), on_device(DATA)
    _, apply = as_stateful_functions(lambda rngs: build(network, (6,), 3, rngs=rngs))
    outputs_of = jax.jit(jax.vmap(lambda params, stats: apply(params, stats, DATA.train.x)[0]))
    ntk = kernel(network, DATA.train.x, get="ntk").ntk
    top = np.linalg.eigh(np.asarray(ntk, np.float64))[1][:, -1]
    state, best = program.draw(SEEDS)
    found = []
    for epoch in range(1, len(rates) + 2):
        deviations = np.asarray(outputs_of(state.params, state.stats)) - np.eye(3)[DATA.train.labels]
        found.append(np.linalg.norm(np.einsum("n,snc->sc", top, deviations), axis=-1))
        if epoch <= len(rates):
            state, best, _, _ = program.run_epoch(state, best, SEEDS, epoch, device)
    return np.array(found)


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize(
    ("code", "choices"),
    [
        ("2", {"parameterization": "ntk"}),
        ("2_21_112", {"parameterization": "ntk"}),
        ("2_12", {}),
        ("2_12", {"b_std": None}),
        ("2_12", {"activation": "erf", "order": "act-linear"}),
    ],
)
def test_the_top_mode_shrinks_below_the_rate_and_grows_above_it(monkeypatch, code, choices):
    network, recipe = authors_network(code, width=WIDTH, **choices), Recipe(epochs=2 * STEPS, **FULL)
    rate = stable_learning_rate(network, recipe, DATA)
    assert rate is not None
    rates = [0.9 * rate] * STEPS + [1.15 * rate] * STEPS
    sizes = top_modes(monkeypatch, network, recipe, rates)
    below, above = (np.log(sizes[1:] / sizes[:-1]).mean(axis=1)[at] for at in (slice(STEPS), slice(STEPS, None)))
    # A step multiplies the mode by 1 - 2 * 0.9 or 1 - 2 * 1.15. A rate with an error of a factor of 1.05 fails.
    assert np.exp(below) == pytest.approx(np.full(STEPS, 0.8), abs=0.05)
    assert np.exp(above) == pytest.approx(np.full(STEPS, 1.3), abs=0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("factor", [0.9, 1.15])
def test_with_momentum(monkeypatch, factor, nesterov):
    mu = 0.8
    recipe = Recipe(epochs=8, momentum=mu, nesterov=nesterov, **FULL)
    rate = stable_learning_rate(WIDE, recipe, DATA)
    sizes = top_modes(monkeypatch, WIDE, recipe, [factor * rate] * 8)
    # The mode p and its momentum m, from m = 0, at eta lambda = the factor times Jury's bound.
    x = factor * (2 * (1 + mu) / (1 + 2 * mu) if nesterov else 2 * (1 + mu))
    p, m, expected = 1.0, 0.0, [1.0]
    for _ in range(8):
        m = mu * m + x * p
        p -= x * p + mu * m if nesterov else m
        expected.append(p)
    assert (abs(expected[8]) > 5) == (factor > 1)
    mean = np.exp(np.log(sizes / sizes[0]).mean(axis=1))
    assert mean[1:3] == pytest.approx(np.abs(expected[1:3]), rel=0.12)


@pytest.mark.slow
def test_the_rate_by_hand():
    """The rate comes from the first examples of the training part. A softmax has at most half the curvature."""
    recipe = Recipe(**FULL)
    for choices, inputs, limit in (
        ({}, 24, 2.0),
        ({"loss": "cross-entropy"}, 24, 4.0),
        ({"batch_size": 10}, 10, 2.0),
        ({"momentum": 0.5}, 24, 3.0),
        ({"momentum": 0.5, "nesterov": True}, 24, 1.5),
    ):
        ntk = kernel("2", DATA.train.x[:inputs], b_std=0.0, get="ntk").ntk
        expected = limit * inputs / np.linalg.eigvalsh(np.asarray(ntk, np.float64)).max()
        rate = stable_learning_rate(CHAIN, dataclasses.replace(recipe, **choices), DATA)
        assert rate == pytest.approx(expected, rel=1e-5)


def test_no_rate_where_no_kernel_says_one():
    assert stable_learning_rate(CHAIN, Recipe(batch_norm=True, batch_size=8), DATA) is None


@pytest.mark.slow
def test_divergence_says_the_step_the_rate_and_what_would_be_stable(tmp_path):
    recipe = Recipe(epochs=30, learning_rate=600.0, warmup=30, **FULL)
    with pytest.raises(DivergenceError) as info:
        train({"mine": CHAIN}, DATA, recipe, seeds=[7], out=tmp_path / "run")
    message = str(info.value)
    found = re.fullmatch(
        r"Expected the loss to stay finite, got (.+) at step (\d+) \(epoch (\d+)\) of mine(, seed 7|), at learning "
        r"rate (\S+); the kernel's largest stable rate is (\S+): lower `learning_rate` below it",
        message,
    )
    assert found, message
    step, epoch, rate, stable = int(found[2]), int(found[3]), float(found[5]), float(found[6])
    # Divergence shows in the loss of a batch before its step, or in that of the other parts after an epoch.
    assert (step, bool(found[4])) == first_step_that_breaks(recipe, 7)
    assert step > 1
    assert epoch == step + 1
    assert rate == pytest.approx(20.0 * (step + 1), rel=1e-2)
    assert stable == pytest.approx(stable_learning_rate(CHAIN, recipe, DATA), rel=1e-2)
    # The curves of the epochs before are kept, and the log has the reason of the end.
    rows = (tmp_path / "run" / "curves.csv").read_text().splitlines()[1:]
    assert len(rows) == epoch
    assert (tmp_path / "run" / "train.log").read_text().splitlines()[-1] == message


def first_step_that_breaks(recipe, seed):
    """Returns the first step that overflows in the same training in NumPy, and whether the loss of a batch shows it.

    The training is in float32, because the range of the numbers decides.
    """
    state, _ = Program(DagTask(CHAIN, recipe, DATA), 1).draw([seed])
    layers: list[list[np.ndarray]] = [
        [np.asarray(tree[0]["linear"][key][...][0], np.float32) for key in ("kernel", "bias")]
        for tree in (state.params["stems"], state.params["edges"], state.params["readouts"])
    ]
    # Biases have no effect with b_std = 0, except that 0 times infinity is NaN.
    scales, zero = [np.float32((2 / len(weights)) ** 0.5) for weights, _ in layers], np.float32(0)

    def deviations(part):
        values = [part.x]
        for i, (weights, biases) in enumerate(layers):
            z = scales[i] * (values[-1] @ weights) + zero * biases
            values.append(z if i == 2 else np.maximum(z, 0))
        return values, values[3] - np.eye(3, dtype=np.float32)[part.labels]

    def finite(part):
        return np.isfinite(np.square(deviations(part)[1]).sum())

    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(recipe.epochs):
            if not finite(DATA.train):
                return step, True
            values, change = deviations(DATA.train)
            change, rate = change / 24, np.float32(recipe.learning_rates_at(np.array([step]), 1)[0])
            for i in (2, 1, 0):
                weights, biases = layers[i]
                slope = scales[i] * (values[i].T @ change), zero * change.sum(axis=0)
                change = scales[i] * (change @ weights.T) * (values[i] > 0)
                layers[i] = [weights - rate * slope[0], biases - rate * slope[1]]
            if not (finite(DATA.validation) and finite(DATA.test)):
                return step, False
    return None


@pytest.mark.slow
def test_divergence_with_batch_norm_where_no_kernel_gives_advice():
    recipe = Recipe(epochs=20, batch_size=10, learning_rate=1e20, loss="squared", batch_norm=True)
    with pytest.raises(DivergenceError, match="with batch normalization no kernel says which rate is stable: lower `"):
        train(authors_network("2_12"), DATA, recipe)


@pytest.mark.slow
def test_divergence_where_the_kernel_is_of_no_use(monkeypatch):
    def refuse(*arguments):
        raise GraphError("Expected less")

    monkeypatch.setattr(tasks, "stable_learning_rate", refuse)
    recipe = Recipe(epochs=20, batch_size=10, learning_rate=1e20, loss="squared")
    with pytest.raises(DivergenceError, match=r"which rate is stable \(Expected less\): lower `learning_rate`"):
        train(CHAIN, DATA, recipe)


@pytest.mark.slow
def test_divergence_in_the_last_step_of_all():
    """The loss before the last step is finite, but the network after it is not."""
    recipe = Recipe(epochs=1, learning_rate=1e30, **FULL)
    with pytest.raises(DivergenceError, match="Expected the loss to stay finite"):
        train(CHAIN, DATA, recipe)
