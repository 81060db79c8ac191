"""Supernets against the discrete network and against plain second implementations, and the inputs of their ReLUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nngp_dag.errors import InputError
from nngp_dag.nas.networks.cell_supernet import CellSupernet
from nngp_dag.nas.networks.darts_supernet import DartsSupernet
from nngp_dag.nas.networks.layers import convolved, in_memory
from nngp_dag.nas.networks.macro_net import MacroNet
from nngp_dag.nas.spaces.cells import CONVOLUTIONS, EDGES, OPERATIONS, Cell

RICH = Cell.parse("|nor_conv_1x1~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|")


def one_hot(cell):
    return jnp.asarray(np.eye(5, dtype=np.float32)[list(cell.codes)][None])


def with_weights_of(macro, cell, **sizes):
    """Returns the supernet with the weights of a macro network, wherever a cell reads them."""
    net = CellSupernet(rngs=nnx.Rngs(7), **sizes)
    for name in ("kernel", "bias", "scale", "shift"):
        getattr(net, name)[...] = getattr(macro, name)[...]
    for mine, theirs in ((net.stem, macro.stem), (net.reductions, macro.reductions)):
        nnx.update(mine, nnx.state(theirs))
    for mine, theirs in zip(net.stages, macro.stages, strict=True):
        mine.conv1[...], mine.conv3[...] = theirs.conv1[...], theirs.conv3[...]
        for edge, name in enumerate(cell.operations):
            if name in CONVOLUTIONS:
                place = (slice(None), edge, CONVOLUTIONS.index(name))
                mine.scale[...] = mine.scale[...].at[place].set(theirs.scale[:, edge])
                mine.shift[...] = mine.shift[...].at[place].set(theirs.shift[:, edge])
    return net


@pytest.mark.slow
def test_a_one_hot_mixture_is_the_published_network(published):
    net = with_weights_of(published.net, published.cell, channels=16, cells=1)
    logits = nnx.jit(CellSupernet.__call__)(net, published.x, one_hot(published.cell))
    np.testing.assert_allclose(logits, published.values["logits_train_mode"], atol=1e-4)


@pytest.mark.nightly
def test_a_one_hot_mixture_is_the_discrete_network():
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    macro = MacroNet(channels=4, cells=2, rngs=nnx.Rngs(0))
    for i, stage in enumerate(macro.stages):
        stage.scale[...] = 1 + 0.1 * jax.random.normal(jax.random.key(i), stage.scale.shape)
    net = with_weights_of(macro, RICH, channels=4, cells=2)
    logits = nnx.jit(CellSupernet.__call__)(net, x, one_hot(RICH))
    np.testing.assert_allclose(logits, nnx.jit(MacroNet.__call__)(macro, x, jnp.array(RICH.codes)), atol=1e-5)


def test_mixtures_weigh_and_relus_of_what_is_off_are_zero():
    net = CellSupernet(channels=1, stages=1, stem=False, in_channels=1, batch_norm=False, rngs=nnx.Rngs(0))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (5, 3, 3, 1)))
    observed = nnx.jit(CellSupernet.observed)
    skips = np.zeros((1, 6, 5), np.float32)
    skips[0, EDGES.index((0, 3)), OPERATIONS.index("skip_connect")] = 0.5
    _, seen = observed(net, x, jnp.asarray(skips))
    np.testing.assert_allclose(seen[-1], 0.5 * x, rtol=1e-6)
    assert not any(value.any() for value in seen[:-1])
    # A convolution without a path to the output, and one with a path.
    for target, counts in ((1, False), (3, True)):
        mixture = skips.copy()
        mixture[0, EDGES.index((0, target)), OPERATIONS.index("nor_conv_3x3")] = 1
        _, seen = observed(net, x, jnp.asarray(mixture))
        assert bool(seen[0].any()) is counts
    assert not seen[1].any()


@pytest.mark.parametrize(("stride", "dilation", "side"), [(1, 1, 5), pytest.param(2, 2, 3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_filters_per_channel_are_grouped_convolutions(stride, dilation, side):
    x, kernel = (
        jax.random.normal(jax.random.key(0), (2, 7, 6, 3)),
        jax.random.normal(jax.random.key(1), (side, side, 1, 3)),
    )
    padding = [(dilation * (side // 2),) * 2] * 2

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )

    value, back = jax.vjp(lambda x, kernel: convolved(x, kernel, stride, dilation), x, kernel)
    expected, their_back = jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for mine, theirs in zip(back(expected), their_back(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "sizes", "message"),
    [
        (CellSupernet, {"stages": 0}, "`stages` to be at least 1, got 0"),
        (CellSupernet, {"stem": False}, "`in_channels` to be `channels`, 3?1?, without a stem"),
        (DartsSupernet, {"depth": 0}, "`depth` to be at least 1, got 0"),
        (DartsSupernet, {"stem": False}, "`in_channels` to be `channels`, 1, without a stem, got 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, sizes, message):
    with pytest.raises(InputError, match=message):
        make(**{"channels": 1, **sizes}, rngs=nnx.Rngs(0))


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="sides that are multiples of 4"):
        CellSupernet(channels=1, rngs=nnx.Rngs(0))(jnp.ones((2, 6, 8, 3)), jnp.ones((1, 6, 5)))


def test_what_is_in_memory_is_what_comes_and_what_goes_back():
    x = jax.random.normal(jax.random.key(0), (3, 4))

    @jax.jit
    def gradients(x):
        return jax.vmap(jax.grad(lambda x: jnp.sin(in_memory(jnp.square(x))).sum()))(x)

    np.testing.assert_allclose(gradients(x), 2 * x * jnp.cos(x**2), rtol=1e-5)
    # Both passes have a conditional, without which XLA would compute x again.
    assert str(gradients.lower(x).compile().as_text()).count(" conditional(") == 2


@pytest.mark.slow
def test_conditions_stay_conditions_under_maps():
    graph, params = nnx.split(CellSupernet(channels=2, stages=1, rngs=nnx.Rngs(0)))

    def loss(params, x, mixture):
        return nnx.merge(graph, params)(x, mixture).sum()

    arguments = params, jnp.ones((3, 3, 3, 3)), jnp.full((1, 6, 5), 1 / 5)
    mapped = tuple(jax.tree.map(lambda value: jnp.stack([value] * 2), argument) for argument in arguments)
    one, several = (
        str(jax.jit(function).lower(*values).compile().as_text()).count(" conditional(")
        for function, values in ((jax.grad(loss), arguments), (jax.vmap(jax.grad(loss)), mapped))
    )
    assert one == several > 0
