"""Front ends: models of nnx, linen, equinox and plain JAX as functions of their parameters, with distributions."""

import functools
import math
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nngp_dag.errors import InputError
from nngp_dag.tracing import frontends, models
from nngp_dag.tracing.distributions import Distribution

# Tests read attributes of results that may be None, and pass arguments of wrong types.
read_model: Any = models.read_model
INIT = jax.nn.initializers
X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


class Net(nnx.Module):
    """All that a model may hold: a list, norms, dropout, a tied layer, an initializer of its own."""

    def __init__(self, width, *, rngs):
        self.layers = nnx.List([nnx.Linear(6, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.tied = self.layers[1]
        self.batch_norm = nnx.BatchNorm(width, rngs=rngs)
        self.layer_norm = nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.readout = nnx.Linear(width, 1, kernel_init=INIT.normal(0.02), use_bias=False, rngs=rngs)

    def __call__(self, x):
        for layer in (*self.layers, self.tied):
            x = nnx.relu(layer(x))
        return self.readout(self.dropout(self.layer_norm(self.batch_norm(x))))


NET = {
    "batch_norm.bias": "constant 0",
    "batch_norm.scale": "constant 1",
    "layer_norm.bias": "constant 0",
    "layer_norm.scale": "constant 1",
    "layers.0.bias": "constant 0",
    "layers.0.kernel": "truncated normal, std 0.408248",
    "layers.1.bias": "constant 0",
    "layers.1.kernel": "truncated normal, std 0.125",
    "readout.kernel": "normal, std 0.02",
}


class Dense(linen.Module):
    """A linen module that is told to train by an argument."""

    width: int

    @linen.compact
    def __call__(self, x, train: bool = True):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(self.width)(x))
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x))
        return linen.Dense(1, kernel_init=INIT.he_uniform())(x)


DENSE = {
    "BatchNorm_0.bias": "constant 0",
    "BatchNorm_0.scale": "constant 1",
    "Dense_0.bias": "constant 0",
    "Dense_0.kernel": "truncated normal, std 0.408248",
    "Dense_1.bias": "constant 0",
    "Dense_1.kernel": f"uniform, std {(2 / 32) ** 0.5:.6g}",
}


class ByAttribute(linen.Module):
    """A linen module that is told to train by an attribute."""

    train: bool = True

    @linen.compact
    def __call__(self, x):
        return linen.Dropout(0.5, deterministic=not self.train)(linen.Dense(8)(x))


def tanh_net(params, x):
    return jnp.tanh(x @ params["w"][0]) @ params["w"][1] / params["steps"]


def tanh_init(key, width=64):
    one, two = jax.random.split(key)
    weights = [jax.random.normal(one, (6, width)), jax.random.normal(two, (width, 1)) / width**0.5]
    return {"w": weights, "steps": 2}


def described(read):
    return {leaf.name: str(leaf.distribution) for leaf in read.leaves}


def test_nnx_class_is_a_factory():
    read = read_model(Net, X, width=64)
    assert described(read) == NET
    assert (read.name, read.width) == ("Net", 64)
    assert all(leaf.trained for leaf in read.leaves)
    wide = {leaf.name: leaf.wide for leaf in read.leaves}
    assert wide["layers.0.kernel"] == (False, True)
    assert wide["layers.1.kernel"] == (True, True)
    assert wide["readout.kernel"] == (True, False)
    assert [leaf.shape for leaf in read.leaves] == [tuple(value.shape) for value in read.values]


def test_nnx_function_equals_the_model_in_inference_mode():
    model = Net(64, rngs=nnx.Rngs(3))
    # Running statistics that differ from those at initialization.
    model.batch_norm.mean[...] = jnp.linspace(-1, 1, 64)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    read = read_model(model, X, distributions={"readout.kernel": ("normal", 0.02)})
    assert model.dropout.deterministic is False
    assert model.batch_norm.use_running_average is False
    result = read.fn(read.values, X)
    model.eval()
    np.testing.assert_allclose(result, model(X), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    # Twice the readout, twice the output: the leaves are in the order of their names.
    names = [leaf.name for leaf in read.leaves]
    doubled = [2 * value if name == "readout.kernel" else value for name, value in zip(names, read.values, strict=True)]
    np.testing.assert_allclose(jax.jit(read.fn)(doubled, X), 2 * result, rtol=1e-5)
    assert read.build is None


def test_nnx_instance_is_judged_by_its_sample():
    model = Net(64, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"leaf `readout.kernel` to be known, .* pass distributions={'readout.kernel'"):
        read_model(model, X)
    read = read_model(model, X, distributions={"readout.*": ("normal", 0.02)})
    assert described(read) == NET
    sources = {leaf.name: leaf.distribution.source for leaf in read.leaves}
    assert "LeCun alone" in sources["layers.0.kernel"]
    assert sources["readout.kernel"] == "given"
    assert all(leaf.wide is None for leaf in read.leaves)


def test_trained_weights_are_refused():
    model = Net(64, rngs=nnx.Rngs(0))
    kernel = model.layers[1].kernel
    # Along one direction, so that the variance stays within its sampling error.
    direction = jnp.ones((64, 64)) / 64
    kernel[...] = kernel[...] + 1.5 * direction
    given = {"readout.kernel": ("normal", 0.02)}
    with pytest.raises(
        InputError, match=r"`layers.1.kernel` .* no standard scheme \(those of trained parameters do not"
    ):
        read_model(model, X, distributions=given)
    with pytest.raises(InputError, match=r"`layers.1.kernel` to be a fresh draw .* mean 0\.02"):
        read_model(model, X, distributions={**given, "layers.1.kernel": ("normal", 0.125)})
    model = Net(64, rngs=nnx.Rngs(0))
    scale: Any = model.layer_norm.scale
    scale[...] = scale[...].at[0].set(1.5)
    with pytest.raises(InputError, match=r"`layer_norm.scale` to be known"):
        read_model(model, X, distributions=given)


@pytest.mark.parametrize("factor", [1.05, 1 / 1.05])
def test_a_given_distribution_is_checked(factor):
    model = nnx.Linear(60, 400, use_bias=False, rngs=nnx.Rngs(0))
    x = np.ones((2, 60), np.float32)
    std = 60**-0.5
    kept = read_model(model, x, distributions={"kernel": ("truncated normal", std)}).leaves[0].distribution
    assert kept.std == std
    with pytest.raises(InputError, match=r"`kernel` to be a fresh draw .* standard errors"):
        read_model(model, x, distributions={"kernel": ("normal", factor * std)})


def test_distributions_by_name_pattern_and_initializer(unchecked):
    model = Net(64, rngs=nnx.Rngs(0))
    one = Distribution("normal", 0.0, 0.02, source="the paper")
    given = {"readout.kernel": one, "*.kernel": INIT.lecun_normal(), "layers.?.bias": ("constant", 0)}
    read = read_model(model, X, distributions=given)
    assert described(read) == NET
    sources = {leaf.name: leaf.distribution.source for leaf in read.leaves}
    assert sources["readout.kernel"] == "the paper"
    assert sources["layers.0.kernel"] == "initializer"
    assert sources["layers.1.bias"] == "given"
    for value, message in (
        ({"readout.kernl": one}, "did you mean 'readout.kernel'"),
        ({"nothing like it": one}, "the leaves are batch_norm.bias"),
        ({"readout.kernel": lambda: 3}, "to be an initializer"),
        ({"readout.kernel": lambda key, shape, dtype: jax.random.exponential(key, shape)}, "none that is known"),
        ([one], "to be a mapping"),
    ):
        with pytest.raises(InputError, match=message):
            read_model(model, X, distributions=value)


def test_linen_init_is_read():
    read = read_model(Dense(32), X)
    assert described(read) == DENSE
    # With variables of one's own, the distributions still come from the init.
    variables = Dense(32).init(jax.random.key(3), X, train=False)
    given = read_model(Dense(32), X, params=variables)
    assert described(given) == DENSE
    assert {leaf.distribution.source for leaf in given.leaves} == {"initializer"}
    expected: Any = Dense(32).apply(variables, X, train=False)
    np.testing.assert_allclose(given.fn(given.values, X), expected, rtol=1e-6)
    assert given.build is None
    for factory in (Dense, lambda width: Dense(width)):
        wide = read_model(factory, X, width=32)
        assert described(wide) == DENSE
        assert {leaf.name: leaf.wide for leaf in wide.leaves}["Dense_1.kernel"] == (True, False)


def test_linen_refusals():
    variables = Dense(32).init(jax.random.key(3), X, train=False)
    with pytest.raises(InputError, match="its batch statistics too"):
        read_model(Dense(32), X, params=variables["params"])
    trained = jax.tree.map(lambda leaf: 1.2 * leaf, variables)
    with pytest.raises(InputError, match=r"`BatchNorm_0.scale` to be a fresh draw \(constant 1"):
        read_model(Dense(32), X, params=trained)
    with pytest.raises(InputError, match="names and shapes that the init draws"):
        read_model(Dense(16), X, params=variables)
    with pytest.raises(InputError, match="to be the variables of the linen module, got 3"):
        read_model(Dense(32), X, params=3)


def test_linen_mode_by_attribute():
    model = ByAttribute()
    read = read_model(model, X)
    variables = model.clone(train=False).init(jax.random.key(0), X)
    expected: Any = model.clone(train=False).apply(variables, X)
    np.testing.assert_allclose(read.fn(read.values, X), expected, rtol=1e-6)
    assert model.train is True


def test_plain_functions():
    read = read_model(tanh_net, X, init=tanh_init)
    assert described(read) == {"w.0": "normal, std 1", "w.1": "normal, std 0.125"}
    expected = tanh_net(tanh_init(jax.random.key(0)), X)
    np.testing.assert_allclose(read.fn(read.values, X), expected, rtol=1e-6)
    assert read.name == "tanh_net"
    params = tanh_init(jax.random.key(5))
    # The sample of 64 numbers does not tell LeCun's scheme from He's.
    with pytest.raises(InputError, match=r"leaf `w.1` to be known, got .* He .* and LeCun"):
        read_model(tanh_net, X, params=params)
    given = read_model(tanh_net, X, params=params, distributions={"w.1": ("normal", 0.125)})
    assert "standard normal alone" in given.leaves[0].distribution.source
    assert described(read_model(tanh_net, X, params=params, init=tanh_init)) == described(read)
    # A factory of the function and its parameters.
    pair = read_model(lambda width, key: (tanh_net, tanh_init(key, width)), X, width=16)
    assert described(pair)["w.1"] == "normal, std 0.25"
    assert pair.leaves[1].wide == (True, False)


def test_other_draws_and_widths():
    read = read_model(Net, X, width=16)
    other, wider = read.build(seed=1), read.build(width=64)
    assert not np.array_equal(other.values[5], read.values[5])
    assert described(other) == described(read)
    assert described(wider) == NET
    again = read.build(seed=0)
    np.testing.assert_array_equal(again.values[5], read.values[5])
    expected = Net(16, rngs=nnx.Rngs(1)).layers[0].kernel[...]
    np.testing.assert_array_equal(other.values[5], expected)
    drawn = read_model(tanh_net, X, init=tanh_init).build(seed=5)
    np.testing.assert_array_equal(drawn.values[0], tanh_init(jax.random.key(5))["w"][0])
    # Keys that the factory makes itself are read all the same; then there is one draw only.
    fixed = read_model(lambda width: Net(width, rngs=nnx.Rngs(0)), X, width=64)
    assert described(fixed) == NET
    assert fixed.build is None


def test_factories_with_other_arguments():
    def build(width=64, depth=2, *, key):
        keys = jax.random.split(key, depth)
        return tanh_net, {**tanh_init(keys[0], width), "steps": depth}

    assert read_model(build, X).width == 64
    assert read_model(functools.partial(build, depth=3), X, width=32).leaves[0].shape == (6, 32)


def test_stacked_layers():
    class Stack(nnx.Module):
        def __init__(self, width, *, rngs):
            @nnx.split_rngs(splits=5)
            @nnx.vmap
            def layers(rngs):
                return nnx.Linear(width, width, rngs=rngs)

            self.first, self.layers = nnx.Linear(6, width, rngs=rngs), layers(rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def step(x, layer):
                return nnx.relu(layer(x))

            return step(self.first(x), self.layers)

    read = read_model(Stack, X, width=16)
    leaf = next(leaf for leaf in read.leaves if leaf.name == "layers.kernel")
    assert (leaf.shape, leaf.wide) == ((5, 16, 16), (False, True, True))
    # Each layer has 16 inputs, not 5 x 16.
    assert str(leaf.distribution) == "truncated normal, std 0.25"


def test_recurrent_cells_have_orthogonal_weights():
    class Cell(nnx.Module):
        def __init__(self, width, *, rngs):
            self.cell = nnx.SimpleCell(6, width, rngs=rngs)

        def __call__(self, x):
            return self.cell(jnp.zeros((len(x), self.cell.hidden_features)), x)[1]

    read = read_model(Cell, X, width=16)
    kinds = {leaf.name: leaf.distribution for leaf in read.leaves}
    orthogonal = next(one for one in kinds.values() if one.kind == "orthogonal")
    assert orthogonal.std == pytest.approx(0.25)
    assert orthogonal.excess_kurtosis == pytest.approx(-6 / 18)


def test_models_may_change_their_own_state():
    class Recurrent(nnx.Module):
        def __init__(self, width, *, rngs):
            # The cell draws its first state from its random stream, and so counts in each call.
            self.layer = nnx.RNN(nnx.LSTMCell(6, width, rngs=rngs))
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.layer(x))

    series = np.stack([X, X])
    read = read_model(Recurrent, series, width=8)
    model = Recurrent(8, rngs=nnx.Rngs(0))
    model.eval()
    for _ in range(2):
        np.testing.assert_allclose(read.fn(read.values, series), model(series), rtol=1e-5)


def test_traced_streams_give_the_keys_of_nnx():
    def draw(key):
        rngs = frontends.streams(key)
        first, dropout, (split,) = rngs.params(), rngs.dropout.fork(), jax.random.split(rngs(), 1)
        return [jax.random.key_data(one) for one in (first, rngs.params(), dropout(), dropout(), split)]

    key = jax.random.key(5)
    for traced, concrete in zip(jax.jit(draw)(key), draw(key), strict=True):
        np.testing.assert_array_equal(traced, concrete)


def test_embeddings_and_attention():
    class Tokens(nnx.Module):
        def __init__(self, width, *, rngs):
            self.embed = nnx.Embed(21, width, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(num_heads=4, in_features=width, decode=False, rngs=rngs)

        def __call__(self, x):
            return self.attention(self.embed(x))

    tokens = np.arange(6).reshape(2, 3)
    read = read_model(Tokens, tokens, width=64)
    found = {leaf.name: leaf for leaf in read.leaves}
    assert found["embed.embedding"].distribution.std == pytest.approx(0.125)
    query = found["attention.query.kernel"]
    assert query.distribution.std == pytest.approx(0.125)
    assert (query.shape, query.wide) == ((64, 4, 16), (True, False, True))
    # The numbers alone say the same, where they are enough.
    names = [name for name in found if not name.endswith("bias")]
    sampled = read_model(Tokens(64, rngs=nnx.Rngs(1)), tokens)
    for leaf in sampled.leaves:
        if leaf.name in names:
            assert leaf.distribution.std == pytest.approx(found[leaf.name].distribution.std), leaf.name


def test_keys_used_twice_are_refused():
    def draw(key):
        return {"a": jax.random.normal(key, (6, 30)), "b": jax.random.normal(key, (30, 20)) / 30**0.5}

    def apply(params, x):
        return x @ params["a"] @ params["b"]

    with pytest.raises(InputError, match="`a` and `b` drawn from the same key"):
        read_model(apply, X, init=draw)
    given = {"a": ("normal", 1.0), "b": ("normal", 30**-0.5)}
    with pytest.raises(InputError, match="the same or correlated ones"):
        read_model(apply, X, params=draw(jax.random.key(0)), distributions=given)

    def orthogonal(key):
        return {"a": INIT.orthogonal()(key, (6, 30)), "b": INIT.orthogonal()(key, (30, 20))}

    with pytest.raises(InputError, match="`a` and `b` drawn from the same key"):
        read_model(apply, X, init=orthogonal)

    def small(key):
        return {"a": jax.random.normal(key, (6, 2)), "b": jax.random.normal(key, (2, 1)) / 2**0.5}

    given["b"] = ("normal", 2**-0.5)
    with pytest.raises(InputError, match="the same or correlated ones"):
        read_model(apply, X, params=small(jax.random.key(0)), distributions=given)


def test_numbers_of_numpy_are_judged_by_their_sample():
    rng = np.random.default_rng(0)

    def draw(key):
        return {"w": [rng.normal(size=(6, 60)).astype(np.float32), np.zeros((60, 1), np.float32)], "steps": 1}

    read = read_model(tanh_net, X, init=draw)
    assert described(read) == {"w.0": "normal, std 1", "w.1": "constant 0"}
    assert "the sample" in read.leaves[0].distribution.source
    # An array without randomness is one, whatever its entries.
    fixed = read_model(lambda width: (tanh_net, {"w": [np.eye(6, width), np.ones((width, 1))], "steps": 1}), X, width=8)
    assert described(fixed) == {"w.0": "a fixed array", "w.1": "constant 1"}


def test_initializers_that_need_numbers_are_judged_by_their_sample():
    def draw(key):
        first, second = jax.random.split(key)
        weights = np.asarray(jax.random.normal(first, (6, 60)))
        return {"w": [weights, np.asarray(jax.random.normal(second, (60, 60)))], "steps": 1}

    read = read_model(tanh_net, X, init=draw)
    assert all("the sample agrees" in leaf.distribution.source for leaf in read.leaves)


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Dropped(eqx.Module):
        mlp: Any
        dropout: Any
        norm: Any

        def __init__(self, width, key):
            self.mlp = eqx.nn.MLP(6, 1, width, 2, key=key)
            self.dropout, self.norm = eqx.nn.Dropout(0.5), eqx.nn.LayerNorm(6)

        def __call__(self, x):
            return self.mlp(self.dropout(self.norm(x)))

    read = read_model(Dropped, X, width=32)
    found = {leaf.name: leaf for leaf in read.leaves}
    assert str(found["mlp.layers.1.weight"].distribution) == f"uniform, std {(1 / 96) ** 0.5:.6g}"
    assert str(found["mlp.layers.0.bias"].distribution) == f"uniform, std {(1 / 18) ** 0.5:.6g}"
    assert str(found["norm.weight"].distribution) == "constant 1"
    assert found["mlp.layers.0.weight"].wide == (True, False)
    model = Dropped(32, jax.random.key(0))
    expected = jax.vmap(eqx.nn.inference_mode(model))(X)
    np.testing.assert_allclose(read.fn(read.values, X), expected, rtol=1e-5)
    # The instance, by its numbers.
    sampled = read_model(model, X)
    for leaf in sampled.leaves:
        assert leaf.distribution.std == pytest.approx(found[leaf.name].distribution.std), leaf.name
    assert model.dropout.inference is False
    np.testing.assert_allclose(sampled.fn(sampled.values, X), expected, rtol=1e-5)


def test_equinox_models_with_a_state_are_refused():
    eqx = pytest.importorskip("equinox")

    class Normed(eqx.Module):
        norm: Any

        def __init__(self):
            self.norm = eqx.nn.BatchNorm(6, "batch", mode="batch")

        def __call__(self, x, state):
            return self.norm(x, state)

    with pytest.raises(InputError, match="got one that needs `state`, too"):
        read_model(Normed(), X)


def test_arguments_that_do_not_belong_are_refused(unchecked):
    model = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
    for arguments, options, message in (
        (
            (3, X),
            {},
            r"a module of nnx, linen, equinox or PyTorch, a function f\(params, x\), or a factory of .*, got 3",
        ),
        ((tanh_net, X), {}, "the parameters of tanh_net, got none"),
        ((model, X), {"width": 8}, "the model Linear of one width"),
        ((model, X), {"params": {}}, "no `params` for a module of nnx"),
        ((model, X), {"init": tanh_init}, "`init` to be the function .* module of nnx"),
        ((tanh_net, X), {"init": 3}, "`init` to be the function .* got 3"),
        ((Net, X), {}, "`width` for the factory Net"),
        ((Net, X), {"width": 0}, "positive integer, got 0"),
        ((Net, X), {"width": 2.5}, "positive integer, got 2.5"),
        ((lambda key: model, X), {"width": 3}, "a factory with a parameter `width`"),
        ((lambda key: 3, X), {}, "to return a module"),
        ((lambda width: model, X), {"width": 3}, "shapes that grow with `width`"),
        ((lambda params, x, scale: x, X), {"params": {"w": np.ones(3)}}, "needs `scale`, too"),
        ((lambda params, x: x, X), {"params": {"w": 3}}, "to have parameters"),
        ((lambda params, x: x, X), {"params": {"w": np.ones(3, complex)}}, "real, got `w` of type complex128"),
        (
            (model, X[:, :5]),
            {"distributions": {"kernel": INIT.lecun_normal()}},
            "Linear to run on `x` in inference mode, got TypeError",
        ),
    ):
        with pytest.raises(InputError, match=message):
            read_model(*arguments, **options)


def test_widths_must_double():
    class Affine(nnx.Module):
        def __init__(self, width, *, rngs):
            self.dense = nnx.Linear(6, width + 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    with pytest.raises(InputError, match=r"`dense.bias` to stay or to double .* \(19,\) and \(35,\)"):
        read_model(Affine, X, width=16)

    class Deeper(nnx.Module):
        def __init__(self, width, *, rngs):
            self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(width)])

        def __call__(self, x):
            return self.layers[0](x)

    with pytest.raises(InputError, match=r"the same parameters at the widths 2 and 4"):
        read_model(Deeper, X, width=2)


def test_moments_of_an_untied_sum_hold():
    # The whole chain: kernels that the distributions predict, against many draws of the model itself.
    read = read_model(tanh_net, X, init=functools.partial(tanh_init, width=8))
    first, second = (leaf.distribution for leaf in read.leaves)

    @jax.jit
    @jax.vmap
    def output(key):
        params = tanh_init(key, 8)
        return read.fn(params["w"], X[:1])[0, 0] ** 2

    samples = np.asarray(output(jax.random.split(jax.random.key(0), 40000)), np.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    std = first.std * float(np.linalg.norm(X[0].astype(np.float64)))
    hidden = weights @ np.tanh(std * nodes) ** 2 / math.sqrt(2 * math.pi)
    expected = 8 * second.std**2 * hidden / 4
    error = samples.std() / math.sqrt(samples.size)
    assert abs(samples.mean() - expected) < 4 * error
    assert 4 * error < 0.05 * expected
