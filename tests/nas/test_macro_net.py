"""The macro network: against the published one, against itself, and one compilation for all cells."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nngp_dag.errors import InputError
from nngp_dag.nas import Cell, MacroNet, load_state_dict
from nngp_dag.nas.networks.layers import averaged, convolved

RICH = Cell.parse("|nor_conv_1x1~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|")


@pytest.fixture(scope="module")
def net():
    return MacroNet(channels=4, cells=2, classes=7, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 12, 3)), jnp.float32)


@pytest.fixture(scope="module")
def forward(net, x):
    """Returns the logits of a cell, by one compiled program for all cells."""
    graph, _ = nnx.split(net)
    compiled = jax.jit(lambda params, x, codes: nnx.merge(graph, params)(x, codes))
    return compiled, lambda cell, net=net: np.asarray(compiled(nnx.state(net), x, np.array(cell.codes)))


@pytest.mark.slow
def test_logits_and_features_are_those_of_the_published_network(published):
    features = nnx.jit(MacroNet.features)(published.net, published.x, jnp.array(published.cell.codes))
    np.testing.assert_allclose(features, published.values["features_train_mode"], atol=1e-5)
    np.testing.assert_allclose(published.net.classify(features), published.values["logits_train_mode"], atol=1e-4)


@pytest.mark.slow
def test_dead_edges_and_isomorphism_change_no_output(forward):
    _, logits = forward
    dead = Cell((*RICH.operations[:4], "nor_conv_3x3", "none"))
    assert dead.live != dead
    np.testing.assert_array_equal(logits(dead), logits(dead.live))
    # Two skips to the output, or one that goes through a node: the same sum.
    one = Cell.parse("|skip_connect~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|")
    other = Cell.parse("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    assert one.canonical_form == other.canonical_form
    np.testing.assert_array_equal(logits(one), logits(other))
    assert np.abs(logits(one) - logits(RICH)).max() > 1e-3


def test_pooling_leaves_padding_out():
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    expected = nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
    np.testing.assert_allclose(averaged(x), expected, atol=1e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("side", "stride"), [pytest.param(1, 1, marks=pytest.mark.slow), (3, 1), (3, 2)])
@pytest.mark.slow
def test_gradients_of_convolutions_are_those_of_jax(side, stride):
    rng = np.random.default_rng(0)
    x, kernel, back = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 4, 6, 3), (side, side, 3, 5), (2, 4 // stride, 6 // stride, 5))
    )

    def plain(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        padding = [(side // 2, side // 2)] * 2
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)

    value, gradient = jax.vjp(lambda x, kernel: convolved(x, kernel, stride), x, kernel)
    expected, their_gradient = jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for mine, theirs in zip(gradient(back), their_gradient(back), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)

    def of_each_image(function):
        one = lambda x, back: jax.vjp(function, x[None], kernel)[1](back[None])  # noqa: E731
        return jax.jit(jax.vmap(one))(x, back)

    def ours(x, kernel):
        return convolved(x, kernel, stride)

    for mine, theirs in zip(of_each_image(ours), of_each_image(plain), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-4)

    def curvature(function):
        slope = jax.grad(lambda kernel: jnp.square(jnp.tanh(function(x, kernel))).sum())
        return jax.grad(lambda kernel: jnp.square(slope(kernel)).sum())(kernel)

    expected = curvature(plain)
    np.testing.assert_allclose(curvature(ours), expected, atol=1e-4 * abs(expected).max())

    # Several backward passes over one batch.
    passes = jnp.stack([back, 2 * back])
    for mine, theirs in zip(jax.vmap(gradient)(passes), jax.vmap(their_gradient)(passes), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4)


@pytest.mark.slow
def test_a_disconnected_cell_gives_every_image_the_same_logits(forward):
    logits = forward[1](Cell.from_index(0))
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits, np.broadcast_to(logits[:1], logits.shape))


@pytest.mark.slow
def test_all_cells_share_one_compilation_which_says_what_a_call_says(forward, net, x):
    compiled, logits = forward
    for cell in (RICH, Cell.from_index(0), Cell.from_index(15_624), Cell.from_index(9_375)):
        assert np.isfinite(logits(cell)).all()
    np.testing.assert_allclose(logits(RICH), net(x, RICH), atol=1e-4)
    assert compiled._cache_size() == 1


def test_a_seed_draws_one_network():
    make = lambda seed: MacroNet(channels=4, cells=1, classes=7, rngs=nnx.Rngs(seed))  # noqa: E731
    one, again, other = (jax.tree.leaves(nnx.state(make(seed), nnx.Param)) for seed in (1, 1, 2))
    for a, b, c in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        # Scales and biases start as constants.
        assert np.ptp(a) == 0 or np.abs(a - c).max() > 0.1 * np.abs(a).max()
    assert sum(np.ptp(a) > 0 for a in one) > 5


@pytest.mark.slow
def test_weights_have_variance_two_over_fan_out(published):
    net = MacroNet(channels=16, cells=5, rngs=nnx.Rngs(0))
    for kernel, fan_out in (
        (net.stages[0].conv3, 9 * 16),
        (net.stages[2].conv1, 64),
        (net.reductions[1].conv_b.kernel, 9 * 64),
        (net.reductions[1].shortcut, 64),
    ):
        # The tolerance is 4 standard errors of a variance.
        assert np.var(kernel[...]) * fan_out / 2 == pytest.approx(1, abs=4 * (2 / kernel[...].size) ** 0.5)
    # The weights of the published network have this variance too.
    assert published.weights["cells.3.conv_a.op.1.weight"].var() * 9 * 64 / 2 == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 8, 10, 3), (6, 7, 8, 3)])
def test_images_of_another_shape_are_refused(net, shape, unchecked):
    with pytest.raises(InputError, match=r"`x` to have shape \(N, height, width, 3\)"):
        net(jnp.ones(shape), RICH)


@pytest.mark.parametrize("size", ["channels", "cells", "classes", "in_channels"])
def test_sizes_below_one_are_refused(size):
    sizes: dict[str, Any] = {size: 0}
    with pytest.raises(InputError, match=f"`{size}` to be at least 1, got 0"):
        MacroNet(**sizes, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("cells.2.layers.2.op.1.weight"), "to hold 'cells.2.layers.2.op.1.weight', got none"),
        (lambda w: w.update({"extra": np.ones(3)}), "this network and cell only, got 'extra' and 0 more"),
        (lambda w: w.update({"stem.1.bias": np.ones(3)}), r"'stem.1.bias' to have shape \(16,\)"),
        (
            lambda w: w.update({"stem.0.weight": np.ones((16, 3, 5, 5))}),
            r"'stem.0.weight' to have shape \(3, 3, 3, 16\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(published, change, message):
    weights = dict(published.weights)
    change(weights)
    with pytest.raises(InputError, match=message):
        load_state_dict(MacroNet(cells=1, rngs=nnx.Rngs(0)), weights, published.cell)


def test_weights_of_another_cell_are_refused(published):
    other = Cell(("none", *published.cell.operations[1:]))
    with pytest.raises(InputError, match=r"got 'cells\.0\.layers\.0\.op\.1\.weight' and 8 more"):
        load_state_dict(MacroNet(cells=1, rngs=nnx.Rngs(0)), published.weights, other)
