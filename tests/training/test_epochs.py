"""Epochs of several seeds against a plain loop over the same batches, and what is compiled for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import Reference, flat, metrics
from training_cases import PARTIAL, PARTIAL_DATA, assert_same_bits, authors_network, splits

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.graph import Conv
from nngp_dag.nets import as_stateful_functions
from nngp_dag.training import Recipe, train
from nngp_dag.training.history import History
from nngp_dag.training.networks import build
from nngp_dag.training.program import Program, metrics_of, on_device
from nngp_dag.training.tasks import DagTask

# No path leads on from node 1, so that both have the same live edges: 0 -> 2, 0 -> 3, 2 -> 3 (a skip).
NETWORK, TWIN = authors_network("2_20_201"), authors_network("0_20_201")
SEEDS, EPOCHS = (5, 1), PARTIAL.epochs
# The batch size does not divide the training part, nor the block any part. Only the training part has class 2.
DATA, RECIPE = PARTIAL_DATA, PARTIAL


@pytest.fixture(scope="module")
def epochs(shared_programs, small_blocks):
    """Returns the state, best state, metrics and losses after every epoch of two seeds, evaluated in blocks of 4."""
    trainer, device = shared_programs(DagTask(NETWORK, RECIPE, DATA), len(SEEDS)), on_device(DATA)
    state, best = trainer.draw(SEEDS)
    # Copies on the host, because an epoch donates the buffers of the states that it starts from.
    host = [jax.device_get((state, best))]
    found = [trainer.evaluate(state.params, state.stats, device)]
    losses = []
    for epoch in range(1, EPOCHS + 1):
        state, best, values, of_batches = trainer.run_epoch(state, best, SEEDS, epoch, device)
        host.append(jax.device_get((state, best)))
        found.append(values)
        losses.append(of_batches)
    again = trainer.evaluate(host[-1][0].params, host[-1][0].stats, device)
    return trainer, host, np.array(found), losses, again


def order_of(seed, epoch):
    """Returns the documented order: that of the second half of the seed's key, folded with the number of the epoch."""
    key = jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], epoch)
    return np.asarray(jax.random.permutation(key, len(DATA.train.labels)))


def test_class_accuracy_is_the_mean_over_the_classes_that_occur():
    # Six examples: one of four of class 0 is right, both of class 2, and class 1 does not occur.
    found = metrics_of(jnp.float32(3.0), jnp.array([1.0, 0.0, 2.0]), jnp.array([4.0, 0.0, 2.0]))
    np.testing.assert_allclose(found, [3 / 6, 3 / 6, (1 / 4 + 1) / 2], rtol=1e-6)


@pytest.mark.slow
def test_epochs_equal_a_plain_loop_over_the_same_batches(epochs):
    trainer, host, found, losses, _ = epochs
    assert trainer.task.steps_per_epoch == 3
    rates = RECIPE.learning_rates_at(np.arange(3 * EPOCHS), 3)
    for s, seed in enumerate(SEEDS):
        net = Reference(NETWORK, flat(host[0][0].params, s), flat(host[0][0].stats, s), recipe=RECIPE)
        x, labels = DATA.train
        step = 0
        for epoch in range(1, EPOCHS + 1):
            order = order_of(seed, epoch)
            assert sorted(order) == list(range(22))
            assert not np.array_equal(order, order_of(seed, epoch + 1))
            outputs, means = [], []
            for batch in (order[:8], order[8:16], order[16:]):
                batch_outputs, mean = net.step(x[batch], labels[batch], rates[step])
                outputs.append(batch_outputs)
                means.append(mean)
                step += 1
            np.testing.assert_allclose(losses[epoch - 1][:, s], means, rtol=1e-5)
            outputs = np.concatenate(outputs)
            expected = metrics(net.losses(outputs, labels[order]), outputs, labels[order])
            np.testing.assert_allclose(found[epoch, 0, :, s], expected, rtol=1e-5)
            # The loss is a mean over examples, not over batches of different sizes.
            assert abs(np.mean(means) / expected[0] - 1) > 1e-4
            for p, part in ((1, DATA.validation), (2, DATA.test)):
                outputs, _ = net.forward(part.x)
                expected = metrics(net.losses(outputs, part.labels), outputs, part.labels)
                np.testing.assert_allclose(found[epoch, p, :, s], expected, rtol=1e-5)
        params = flat(host[-1][0].params, s)
        for name, expected in net.params.items():
            np.testing.assert_allclose(params[name], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_class_means_differ_from_overall_accuracies_and_leave_out_absent_classes(epochs):
    found = epochs[2]
    assert 2 in DATA.train.labels
    assert 2 not in DATA.validation.labels
    assert np.abs(found[:, :, 1] - found[:, :, 2]).max() > 0.01


@pytest.mark.slow
def test_evaluation_of_the_state_before_and_after(epochs):
    _, host, found, _, again = epochs
    for point, values in ((0, found[0]), (-1, again)):
        state = host[point][0]
        for s in range(len(SEEDS)):
            net = Reference(NETWORK, flat(state.params, s), flat(state.stats, s), recipe=RECIPE)
            for p, part in enumerate(DATA.parts.values()):
                outputs, _ = net.forward(part.x)
                expected = metrics(net.losses(outputs, part.labels), outputs, part.labels)
                np.testing.assert_allclose(values[p, :, s], expected, rtol=1e-5)
    np.testing.assert_array_equal(again[1:], found[-1, 1:])
    # The mean metrics over an epoch differ from those at its end.
    assert np.abs(again[0, 0] - found[-1, 0, 0]).min() > 1e-4


@pytest.mark.slow
def test_the_best_state_is_the_first_of_highest_validation_accuracy(epochs):
    _, host, found, _, _ = epochs
    accuracies = found[1:, 1, 1]
    for epoch in range(1, EPOCHS + 1):
        best = host[epoch][1]
        chosen = 1 + accuracies[:epoch].argmax(axis=0)
        assert best.epoch.tolist() == chosen.tolist()
        for s, e in enumerate(chosen):
            assert best.accuracy[s] == np.float32(accuracies[e - 1, s])
            assert_same_bits(
                [leaf[s] for leaf in jax.tree.leaves((best.params, best.stats))],
                [leaf[s] for leaf in jax.tree.leaves((host[e][0].params, host[e][0].stats))],
            )
    assert host[0][1].epoch.tolist() == [0, 0]
    assert host[0][1].accuracy.tolist() == [-1, -1]


@pytest.fixture(scope="module")
def twins():
    """Returns runs of one seed of two DAGs with equal live edges, and counts of traces and compilations."""
    counts, traced, compiled = {}, [], []
    of_epoch = Program._run_epoch

    def spy(self, *arguments):
        traced.append(self)
        return of_epoch(self, *arguments)

    def on_event(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def on_progress(name, done, total, loss):
        counts[name, done] = len(compiled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "_run_epoch", spy)
        jax.monitoring.register_event_duration_secs_listener(on_event)
        try:
            networks = {"one": NETWORK, "twin": TWIN}
            runs = train(networks, DATA, RECIPE, seeds=[SEEDS[1]], on_progress=on_progress)
        finally:
            jax.monitoring.unregister_event_duration_listener(on_event)
    return runs, counts, traced


@pytest.mark.slow
def test_seeds_together_equal_seeds_alone(epochs, twins):
    _, host, found, _, _ = epochs
    (alone, _), _, _ = twins
    # The metrics are the same with other blocks of evaluation: all examples at once.
    np.testing.assert_allclose(alone.history.values[..., 0], found[..., 1], rtol=1e-5)
    state, best = host[-1]
    for tree, single in (
        ((state.params, state.stats), (alone.params, alone.stats)),
        ((best.params, best.stats), (alone.best_params, alone.best_stats)),
    ):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(single), strict=True):
            # Biases before a batch norm are rounding errors of about 1e-9.
            np.testing.assert_allclose(a[1], b[0], rtol=0, atol=1e-5 * np.abs(b).max() + 1e-7)
            assert not np.allclose(a[0], b[0], rtol=0, atol=1e-2 * np.abs(b).max())
    assert alone.best_epoch.tolist() == [best.epoch[1]]


@pytest.mark.slow
def test_dags_with_equal_live_edges_share_one_program_which_compiles_once(twins):
    runs, counts, traced = twins
    assert len(traced) == 1
    assert list(counts) == [(name, done) for name in ("one", "twin") for done in range(EPOCHS + 1)]
    assert counts["one", 0] > 0
    # Nothing is compiled from the first epoch on, the second DAG included.
    assert counts["twin", EPOCHS] == counts["one", 1]
    first, second = runs
    assert_same_bits((first.params, first.stats), (second.params, second.stats))
    assert first.history.values.tobytes() == second.history.values.tobytes()
    assert (first.name, second.name) == ("one", "twin")
    assert str(first.dag) != str(second.dag)


@pytest.mark.slow
def test_what_a_history_says(twins):
    (run, _), _, _ = twins
    history = run.history
    assert (history.seeds, history.steps_per_epoch, history.epochs_done) == ((1,), 3, EPOCHS)
    np.testing.assert_allclose(history.learning_rates, RECIPE.learning_rates_at(3 * np.arange(EPOCHS), 3), rtol=1e-6)
    assert run.summary.parameters == sum(leaf.size for leaf in jax.tree.leaves(run.params))
    rows = list(history.rows())
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12]
    assert rows[0]["learning_rate"] == ""
    assert rows[2]["test_class_accuracy"] == history.of("test", "class_accuracy")[2, 0]


def test_epochs_to_an_accuracy_are_interpolated():
    values = np.full((4, 3, 3, 3), np.nan)
    values[:, 0, 1] = np.array([[0.1, 0.2, 0.6], [0.1, 0.3, 0.4], [0.3, 0.2, 0.6], [0.7, 0.4, 0.7]])
    mine = History("mine", (0, 1, 2), 3, np.ones(3), values)
    np.testing.assert_allclose(mine.epochs_to(0.5), [2.5, np.nan, 0.0])
    np.testing.assert_allclose(mine.epochs_to(0.3), [2.0, 1.0, 0.0])


def test_a_batch_larger_than_the_training_part():
    with pytest.raises(InputError, match=r"`batch_size` to be at most the 22 training examples, got 23; lower it"):
        train("2", DATA, Recipe(batch_size=23), width=4)


def test_a_batch_of_one_with_batch_norm():
    message = r"several examples with `batch_norm`, got 22 examples in batches of 7, which leave one; choose another"
    with pytest.raises(InputError, match=message):
        train("2", DATA, Recipe(batch_size=7, batch_norm=True), width=4)


@pytest.mark.nightly
@pytest.mark.parametrize("readout", ["flatten", "global-average"])
def test_convolutional_epochs_equal_a_plain_loop_of_gradients(readout):
    data = splits(train=22, classes=3, features=48)
    parts: dict[str, Any] = {name: part._replace(x=part.x.reshape(-1, 4, 4, 3)) for name, part in data.parts.items()}
    data = type(data)("images", **parts, num_classes=3)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.05)
    network = Network("2_12", layer=Conv(filter_shape=(3, 3), b_std=0.1), width=6, image_readout=readout)
    [run] = train(network, data, recipe, seeds=[4])
    trainer = Program(DagTask(network, recipe, data), 1)
    params = jax.tree.map(lambda leaf: leaf[0], trainer.draw([4])[0].params)
    _, apply = as_stateful_functions(lambda rngs: build(network, (4, 4, 3), 3, rngs=rngs))
    x, labels = data.train

    def loss(params, x, labels):
        outputs, _ = apply(params, nnx.State({}), x)
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], 1).mean()

    slope = jax.jit(jax.grad(loss))
    for epoch in (1, 2):
        order = order_of(4, epoch)
        for batch in (order[:8], order[8:16], order[16:]):
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, slope(params, x[batch], labels[batch]))
    for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=0, atol=1e-5 * np.abs(b).max())
