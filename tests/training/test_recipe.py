"""Learning rates step by step, losses, and every refusal of a recipe."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nngp_dag as nd
from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.graph import AvgPool, Conv, Dag, Edge, Op
from nngp_dag.training import Recipe
from nngp_dag.training.networks import build, summary_of

STEPS = 7


def expected_rate(recipe, step):
    """Returns the learning rate in plain Python."""
    eta, warm, epoch = recipe.learning_rate, recipe.warmup * STEPS, step // STEPS
    if step < warm:
        return eta * (step + 1) / warm
    if recipe.schedule == "constant":
        return eta
    if recipe.schedule == "cosine":
        return eta * (1 + math.cos(math.pi * (step - warm) / (recipe.epochs * STEPS - warm))) / 2
    milestones = recipe.milestones or (recipe.epochs // 2, recipe.epochs * 3 // 4)
    return eta * 0.1 ** sum(epoch >= milestone for milestone in milestones)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"warmup": 3},
        {"schedule": "multistep"},
        {"schedule": "multistep", "milestones": (2, 3, 11), "warmup": 2},
        {"schedule": "multistep", "milestones": (5,), "warmup": 1},
        {"schedule": "cosine"},
        {"schedule": "cosine", "warmup": 4},
    ],
)
def test_learning_rates_at_every_step(choices):
    recipe = Recipe(epochs=12, learning_rate=0.3, **choices)
    steps = range(recipe.epochs * STEPS)
    rates = recipe.learning_rates(STEPS)
    expected = [expected_rate(recipe, step) for step in steps]
    np.testing.assert_allclose([np.asarray(rates(jnp.asarray(step))) for step in steps], expected, rtol=1e-5, atol=1e-7)
    together = recipe.learning_rates_at(np.array(steps), STEPS)
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-7)
    assert len(set(np.round(expected, 6))) > 1 or not choices


def test_warmup_all_the_way_and_single_epochs():
    for schedule in ("constant", "multistep", "cosine"):
        recipe = Recipe(epochs=2, warmup=2, learning_rate=0.2, schedule=schedule)
        np.testing.assert_allclose(recipe.learning_rates_at(np.arange(84), 5)[:10], 0.02 * np.arange(1, 11), rtol=1e-5)
    short = Recipe(epochs=1, schedule="multistep", learning_rate=0.2)
    np.testing.assert_allclose(short.learning_rates_at(np.arange(84), 5)[:5], 0.2, rtol=1e-6)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_losses_by_hand(loss):
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(6, 4)).astype(np.float32), rng.integers(0, 4, 6)
    result = jax.jit(Recipe(loss=loss).losses)(outputs, labels)
    if loss == "squared":
        pairs = zip(outputs, labels, strict=True)
        expected = [0.5 * sum((y - (c == k)) ** 2 for c, y in enumerate(f)) for f, k in pairs]
    else:
        expected = [-math.log(math.exp(f[k]) / np.exp(f).sum()) for f, k in zip(outputs, labels, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "choices", [{}, {"schedule": "multistep", "milestones": (2, 5), "batch_norm": True, "momentum": 0.9}]
)
def test_recipes_survive_json(choices):
    recipe = Recipe(**choices)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"epochs": -1}, "Expected `epochs` to be a whole number, at least 1, got -1"),
        ({"batch_size": 0}, "Expected `batch_size` to be a whole number, at least 1, got 0"),
        ({"epochs": True}, "Expected `epochs` to be a finite number, got True"),
        ({"learning_rate": 0.0}, "Expected `learning_rate` to be above 0, got 0.0"),
        ({"learning_rate": -1.0}, "Expected `learning_rate` to be above 0, got -1.0"),
        ({"learning_rate": math.nan}, "Expected `learning_rate` to be a finite number, got nan"),
        ({"learning_rate": math.inf}, "Expected `learning_rate` to be a finite number, got inf"),
        ({"momentum": 1.0}, r"Expected `momentum` in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"Expected `momentum` in \[0, 1\), got -0.1"),
        ({"momentum": math.nan}, "Expected `momentum` to be a finite number, got nan"),
        ({"nesterov": True}, "Expected `momentum` above 0 with `nesterov`, got 0; set a momentum such as 0.9"),
        ({"weight_decay": -1e-3}, "Expected `weight_decay` to be at least 0, got -0.001"),
        ({"weight_decay": math.inf}, "Expected `weight_decay` to be a finite number, got inf"),
        ({"warmup": -1}, "Expected `warmup` to be a whole number, at least 0, got -1"),
        ({"warmup": 0.5}, "Expected `warmup` to be a whole number, at least 0, got 0.5"),
        ({"warmup": None}, "Expected `warmup` to be a finite number, got None"),
        ({"warmup": "1"}, "Expected `warmup` to be a finite number, got '1'"),
        ({"warmup": 6, "epochs": 5}, "Expected `warmup` to be at most `epochs`, 5, got 6"),
        ({"schedule": "linear"}, "Expected `schedule` to be one of 'constant', 'multistep', 'cosine', got 'linear'"),
        ({"loss": "hinge"}, "Expected `loss` to be one of 'cross-entropy', 'squared', got 'hinge'"),
        ({"milestones": (3,)}, r"Expected no `milestones` with `schedule` 'constant', got \(3,\)"),
        ({"milestones": (), "schedule": "multistep"}, r"Expected `milestones` to be increasing .*, got \(\)"),
        ({"milestones": (0, 3), "schedule": "multistep"}, "`milestones` to be a whole number, at least 1, got 0"),
        ({"milestones": "3", "schedule": "multistep"}, "`milestones` to be a finite number, got '3'"),
        ({"milestones": (3, 3), "schedule": "multistep"}, r"increasing numbers of epochs, got \(3, 3\)"),
        ({"milestones": (5, 3), "schedule": "multistep"}, r"increasing numbers of epochs, got \(5, 3\)"),
        ({"milestones": (3, 20), "schedule": "multistep"}, "Expected `milestones` below the 20 epochs, got 20"),
        ({"epochs": 1_000_001}, "Expected `epochs` to be at most 1,000,000, got 1000001"),
        ({"batch_norm": True, "batch_size": 1}, "Expected `batch_size` above 1 with `batch_norm`, got 1: one example"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refusals(choices, message):
    with pytest.raises(InputError, match=message):
        Recipe(**choices)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_and_lists_are_kept_as_plain_ones():
    recipe = Recipe(epochs=np.int64(9), learning_rate=1, schedule="multistep", milestones=[3, np.int32(5)])  # pyright: ignore[reportArgumentType]
    assert recipe == Recipe(epochs=9, learning_rate=1.0, schedule="multistep", milestones=(3, 5))
    assert hash(recipe) == hash(Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))))
    assert Recipe(schedule="multistep", milestones=3).milestones == (3,)  # pyright: ignore[reportArgumentType]


def test_the_largest_and_smallest_that_are_allowed():
    Recipe(epochs=3, batch_size=1, momentum=0.0, weight_decay=0.0, warmup=3)
    Recipe(epochs=1_000_000, batch_size=2, batch_norm=True)
    Recipe(epochs=3, schedule="multistep", milestones=(1, 2))


@pytest.mark.parametrize(
    ("dag", "shape", "options", "message"),
    [
        (
            Dag(3, (Edge(0, 2, Op.WEIGHTED), Edge(1, 2, Op.WEIGHTED)), num_inputs=2),
            (4,),
            {},
            "Expected a graph with one input and one output to train, got 2 and 1",
        ),
        (
            Dag(3, (Edge(0, 1, Op.WEIGHTED), Edge(1, 2, Op.SKIP)), outputs=(2, 1)),
            (4,),
            {},
            "Expected a graph with one input and one output to train, got 1 and 2",
        ),
        (
            Dag.from_code("2"),
            (64,),
            {"layer": Conv(filter_shape=(3, 3))},
            r"Expected images \(height, width, channels\) for convolutions and pooling, got inputs of shape \(64,\)",
        ),
        (
            Dag(2, (Edge(0, 1, AvgPool((2, 2))),)),
            (8, 8),
            {},
            r"Expected images \(height, width, channels\) for convolutions and pooling, got inputs of shape \(8, 8\)",
        ),
    ],
)
def test_networks_that_do_not_fit(dag, shape, options, message):
    network = Network(dag, width=4, **options)
    for call in (lambda: build(network, shape, 3, rngs=nnx.Rngs(0)), lambda: summary_of(network, shape, 3)):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("network", "shape", "batch_norm", "parameters"),
    [
        (Network("2", width=4), (2, 3), False, 6 * 4 + 4 * 4 + 4 * 5),
        (Network("2", width=4), (2, 3), True, 6 * 4 + 4 * 4 + 4 * 5 + 2 * 8),
        (Network("2", width=4, layer=Conv(filter_shape=(3, 3))), (2, 3, 1), False, 9 * 4 + 9 * 16 + 6 * 4 * 5),
        # Pooling is enough to treat the inputs as images.
        (Network(Dag(2, (Edge(0, 1, AvgPool((2, 2))),)), width=4), (2, 2, 3), False, 3 * 4 + 4 * 4 * 5),
    ],
)
@pytest.mark.slow
def test_networks_are_built_for_the_shapes_of_the_data(network, shape, batch_norm, parameters):
    net = build(network, shape, 5, batch_norm=batch_norm, rngs=nnx.Rngs(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == parameters
    assert summary_of(network, shape, 5, batch_norm=batch_norm).parameters == parameters
    outputs = net(jnp.ones((7, *shape)))
    assert isinstance(outputs, jax.Array)
    assert outputs.shape == (7, 5)


def test_options_of_the_recipe_belong_into_it():
    with pytest.raises(InputError, match=r"Expected `epochs` in `recipe`, got it as .*; pass Recipe\(epochs=...\)"):
        nd.train("2_12", nd.data.load_splits("sphere", subset=40), epochs=3)  # type: ignore[call-arg]
