import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nngp_dag.errors import InputError
from nngp_dag.graph import Dag
from nngp_dag.nets import DagNet, as_functions, descend, squared_loss

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 5)).astype(np.float32)
Y = RNG.normal(size=(12, 2)).astype(np.float32)


def create(rngs):
    return DagNet(Dag.from_code("2_12"), 5, 2, width=16, rngs=rngs)


def run(steps=6, seeds=(0, 1), lr=1e-3, **options):
    return descend(create, X, Y, optimizer=optax.sgd(lr), steps=steps, seeds=seeds, **options)


def test_full_batch_training_equals_a_plain_loop_of_gradient_steps():
    result = run(steps=6, seeds=[7])
    init, apply = as_functions(create)
    params = init(jax.random.split(jax.random.key(7))[0])
    losses = []
    step = jax.jit(jax.value_and_grad(lambda p: 0.5 * jnp.sum((apply(p, X) - Y) ** 2)))
    for _ in range(7):
        value, gradient = step(params)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)
    np.testing.assert_allclose(result.curve[0], losses, rtol=1e-5)
    assert result.curve.shape == (1, 7)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_seeds_trained_together_equal_seeds_trained_alone():
    together = run(seeds=[3, 4])
    for row, seed in enumerate((3, 4)):
        np.testing.assert_allclose(together.curve[row], run(seeds=[seed]).curve[0], rtol=1e-5)
    assert not np.allclose(together.curve[0], together.curve[1])


@pytest.mark.slow
def test_same_seed_same_bits():
    first, second = run(), run()
    np.testing.assert_array_equal(first.curve, second.curve)
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_steps_compile_once_whatever_their_number():
    traces = []

    def loss(f, y):
        traces.append(1)
        return squared_loss(f, y)

    counts = []
    for steps in (20, 100):
        traces.clear()
        run(steps=steps, loss=loss)
        counts.append(len(traces))
    # The model is traced once in the scan and once for the final loss.
    assert counts == [2, 2]


def test_any_optax_optimizer_and_loss():
    targets = np.eye(2, dtype=np.float32)[RNG.integers(0, 2, 12)]
    options = {
        "optimizer": optax.adam(1e-2),
        "steps": 30,
        "seeds": [0],
        "loss": lambda f, y: optax.softmax_cross_entropy(f, y).mean(),
    }
    result = descend(create, X, targets, **options)
    assert result.curve[0, -1] < 0.5 * result.curve[0, 0]


def test_squared_loss():
    f, y = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert squared_loss(jnp.asarray(f), jnp.asarray(y)) == pytest.approx(0.5 * ((f - y) ** 2).sum())


@pytest.mark.slow
def test_progress_is_reported_to_the_end():
    calls = []
    run(steps=60, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 60) for done in range(3, 61, 3)]


@pytest.mark.slow
def test_steps_that_do_not_divide_evenly_run_all_the_same():
    calls = []
    result = run(steps=43, on_progress=lambda done, total: calls.append(done))
    assert calls == [*range(3, 43, 3), 43]
    np.testing.assert_array_equal(result.curve[:, :6], run(steps=6).curve[:, :6])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "Expected at least 1 step and 1 seed, got 0 and 2"),
        ({"seeds": []}, "Expected at least 1 step and 1 seed, got 6 and 0"),
        ({"lr": 1e3}, "got a loss that is not finite at step [0-9]+ of seed 0; lower the learning rate"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(InputError, match=match):
        run(**options)


def test_mismatched_data():
    with pytest.raises(InputError, match=r"Expected `x` \(N, ...\) and `y` \(N, C\) with equal N"):
        descend(create, X, Y[:5], optimizer=optax.sgd(0.1), steps=1, seeds=[0])
