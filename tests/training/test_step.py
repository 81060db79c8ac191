"""Steps of the compiled program against a float64 trainer written by hand in NumPy.

The program computes in float32. After one step the error of every array must be at most 1e-6 of its largest entry.
After the second step, which has momentum, it must be at most 2e-6. Steps are large enough to change every array by at
least 0.3 % of that entry, so that an update with a relative error of 1e-3 fails.
"""

import itertools

import jax
import numpy as np
import pytest
from reference import Reference, close, flat, metrics
from training_cases import authors_network, splits

from nngp_dag.nets import as_stateful_functions
from nngp_dag.training import Recipe
from nngp_dag.training.networks import build
from nngp_dag.training.program import Program, on_device
from nngp_dag.training.tasks import DagTask

SEED, STEPS = 3, 2
DATA = splits(train=16)
# The second has a skip over two nodes beside the weighted edges, and no edge from node 0 to node 2.
CODES = ("2_21_112", "2_02_122")
LOSSES = ("cross-entropy", "squared")
# The networks of the authors, and others with scaled biases or, as by default, none.
NETWORKS = {
    "standard": {},
    "ntk": {"parameterization": "ntk", "b_std": 0.3},
    "default": {"parameterization": "ntk", "b_std": None},
}
OPTIMIZERS = {
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "plain": {},
}
# The slow tests run the whole product. test_epochs.py tests momentum, weight decay and batch norm over several epochs.
SOME = (("2_21_112", "cross-entropy", "standard", "nesterov", False),)
ALL = tuple(itertools.product(CODES, LOSSES, NETWORKS, OPTIMIZERS, (False, True)))
# A case of the default network, for the slow tests.
SLOW = (("2_02_122", "cross-entropy", "default", "plain", False),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "loss", "kind", "optimizer", "batch_norm"),
    [
        *SOME,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
        *(pytest.param(*case, marks=pytest.mark.nightly) for case in ALL if case not in (*SOME, *SLOW)),
    ],
)
def test_forward_and_steps(code, loss, kind, optimizer, batch_norm):
    rate = {"squared": 0.02, "cross-entropy": 0.1}[loss] * (1 if kind == "standard" else 4)
    if batch_norm and optimizer == "plain":
        rate *= 3
    network = authors_network(code, width=16, **NETWORKS[kind])
    recipe = Recipe(
        epochs=STEPS,
        # The whole training part, so that an epoch is a step.
        batch_size=len(DATA.train.labels),
        learning_rate=rate,
        loss=loss,
        batch_norm=batch_norm,
        **OPTIMIZERS[optimizer],
    )
    program, device = Program(DagTask(network, recipe, DATA), 1), on_device(DATA)
    assert program.task.steps_per_epoch == 1
    state, best = program.draw([SEED])
    net = Reference(network, flat(state.params, 0), flat(state.stats, 0), recipe=recipe)
    _, apply = as_stateful_functions(lambda rngs: build(network, (6,), 3, batch_norm=batch_norm, rngs=rngs))
    one = jax.tree.map(lambda leaf: leaf[0], (state.params, state.stats))
    close(jax.jit(lambda p, s: apply(p, s, DATA.train.x)[0])(*one), net.forward(DATA.train.x)[0])

    found = None
    for epoch in range(1, STEPS + 1):
        before = {name: leaf.copy() for name, leaf in net.params.items()}
        state, best, found, losses = program.run_epoch(state, best, [SEED], epoch, device)
        outputs, loss_before = net.step(*DATA.train, rate)
        np.testing.assert_allclose(losses, [[loss_before]], rtol=1e-6)
        np.testing.assert_allclose(
            found[0, :, 0], metrics(net.losses(outputs, DATA.train.labels), outputs, DATA.train.labels), rtol=1e-6
        )
        params = flat(state.params, 0)
        assert params.keys() == net.params.keys()
        for name, expected in net.params.items():
            if batch_norm and name[-2:] == ("linear", "bias") and name[0] != "readouts":
                # Batch norm removes such biases: they have no gradient, and stay near 0.
                scale = np.abs(net.params[*name[:-1], "kernel"]).max()
                np.testing.assert_allclose(params[name], expected, rtol=0, atol=1e-6 * scale)
            else:
                close(params[name], expected, epoch * 1e-6)
                assert np.abs(expected - before[name]).max() > 0.003 * np.abs(expected).max()
        stats = flat(state.stats, 0)
        assert stats.keys() == net.stats.keys()
        assert bool(stats) == batch_norm
        for name, expected in net.stats.items():
            close(stats[name], expected, epoch * 1e-6)
    assert found is not None
    for part, row in zip(("validation", "test"), found[1:, :, 0], strict=True):
        x, labels = DATA.parts[part]
        outputs, _ = net.forward(x)
        np.testing.assert_allclose(row, metrics(net.losses(outputs, labels), outputs, labels), rtol=2e-6)


# --- the trainer by hand --------------------------------------------------------------------------


def drawn(recipe, **architecture):
    """Returns random parameters and averages of a network of 2_02_122 with 6 features, width 5 and 3 classes."""
    rng = np.random.default_rng(0)
    normed = [("stems", 0), *(("edges", i) for i in range(4))]
    params = {(*layer, "linear", "kernel"): (6 if layer[0] == "stems" else 5, 5) for layer in normed}
    params |= {(*layer, "linear", "bias"): 5 for layer in normed}
    params |= {(*layer, "norm", key): 5 for layer in normed for key in ("scale", "bias")}
    params |= {("readouts", 0, "linear", "kernel"): (5, 3), ("readouts", 0, "linear", "bias"): 3}
    stats = {(*layer, "norm", key): 5 for layer in normed for key in ("mean", "var")}
    draws = {name: rng.normal(size=shape) for name, shape in params.items()}
    averages = {name: rng.uniform(0.5, 2, size=shape) for name, shape in stats.items()}
    return Reference(authors_network("2_02_122", width=5, **architecture), draws, averages, recipe=recipe)


@pytest.mark.parametrize("loss", LOSSES)
def test_its_gradient_is_the_slope_of_its_loss(loss):
    net = drawn(Recipe(batch_norm=True, loss=loss), parameterization="ntk", b_std=0.3)
    _, _, gradient = net.gradient(*DATA.train)
    rng = np.random.default_rng(0)
    assert gradient.keys() == net.params.keys()
    for name, values in gradient.items():
        direction, sides = rng.normal(size=values.shape), []
        for step in (1e-5, -1e-5):
            moved = Reference(net.network, net.params, net.stats, recipe=net.recipe)
            moved.params[name] += step * direction
            sides.append(moved.losses(moved.forward(DATA.train.x, training=True)[0], DATA.train.labels).mean())
        assert np.vdot(values, direction) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_its_averages_move_by_a_tenth_and_serve_evaluation():
    net = drawn(Recipe(batch_norm=True))
    mean, var = (net.stats["stems", 0, "norm", key].copy() for key in ("mean", "var"))
    x = DATA.train.x.astype(np.float64)
    z = x @ net.params["stems", 0, "linear", "kernel"] + net.params["stems", 0, "linear", "bias"]
    _, memory = net.forward(x)
    normed = (z - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(memory["stems", 0][2], normed, rtol=1e-10)
    _, memory = net.forward(x, training=True)
    np.testing.assert_allclose(memory["stems", 0][2].std(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(net.stats["stems", 0, "norm", "mean"], 0.9 * mean + 0.1 * z.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(net.stats["stems", 0, "norm", "var"], 0.9 * var + 0.1 * z.var(axis=0), rtol=1e-10)
