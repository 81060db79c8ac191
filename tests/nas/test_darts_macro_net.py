"""The network of DARTS for all genotypes against the network of one genotype, and a count of its ReLUs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nngp_dag.errors import InputError
from nngp_dag.nas import DartsMacroNet, DartsNet, Genotype, flops, parameters, sample_genotypes
from nngp_dag.nas.networks import darts_operations
from nngp_dag.nas.networks.darts_macro_net import relu_counts
from nngp_dag.nas.networks.layers import normalized, unchanged

# Every operation occurs in both cells, also on the inputs. The normal cell has a node without input from the image.
EVERY = Genotype.from_pairs(
    [
        *[("sep_conv_5x5", 0), ("max_pool_3x3", 1), ("none", 0), ("none", 1)],
        *[("dil_conv_5x5", 3), ("avg_pool_3x3", 2), ("skip_connect", 2), ("sep_conv_3x3", 4)],
    ],
    [
        *[("skip_connect", 0), ("dil_conv_3x3", 1), ("sep_conv_3x3", 1), ("max_pool_3x3", 0)],
        *[("dil_conv_5x5", 1), ("avg_pool_3x3", 0), ("skip_connect", 3), ("sep_conv_5x5", 4)],
    ],
)
# The normal cell does not read the cell before it, so that some cells have no effect.
HALF = Genotype.from_pairs([("sep_conv_3x3", 0), ("skip_connect", 0)] * 4, EVERY.reduce)
CHANNELS, CELLS = 2, 1


@pytest.fixture(scope="module")
def net():
    return DartsMacroNet(channels=CHANNELS, cells=CELLS, rngs=nnx.Rngs(0))


def single(net, genotype, image_shape=(8, 8, 3)):
    """Returns the network of one genotype with the weights that it reads in the network of all."""
    one = DartsNet(genotype, image_shape, channels=CHANNELS, layers=3 * CELLS + 2, rngs=nnx.Rngs(1))
    copy = lambda to, of: nnx.update(to, nnx.state(of))  # noqa: E731
    copy(one.stem, net.stem)
    one.kernel[...], one.bias[...] = net.kernel[...], net.bias[...]
    for to, of in zip(one.cells, net.cells, strict=True):
        copy(to.preprocess0, of.preprocess0)
        copy(to.preprocess1, of.preprocess1)
        for j, ((name, _), blocks) in enumerate(zip(to.pairs, to.blocks, strict=True)):
            stacks: list[Any]
            if name.startswith("sep"):
                stacks = [*getattr(of, f"sep{name[-1]}")]
            elif name.startswith("dil"):
                stacks = [getattr(of, f"dil{name[-1]}")]
            else:
                stacks = [of.skip]
            for block, stack in zip(blocks, stacks if len(blocks) else [], strict=True):
                for weight in ("depthwise", "pointwise", "even", "odd", "scale", "shift"):
                    if hasattr(block, weight):
                        getattr(block, weight)[...] = getattr(stack, weight)[...][j]
    return one


def images(n=4, side=8):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, side, side, 3)), jnp.float32)


@pytest.mark.nightly
@pytest.mark.parametrize("genotype", [EVERY, HALF, *sample_genotypes(2, seed=3)])
def test_the_network_of_all_genotypes_is_that_of_one(net, genotype):
    x = images()
    run = nnx.jit(DartsMacroNet.__call__)
    expected, _ = single(net, genotype)._forward(x, normalized, lambda x: x, False)
    np.testing.assert_allclose(run(net, x, jnp.array(genotype.codes)), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_outputs_of_a_genotype_without_pooling_add_up_to_zero_over_the_batch(net):
    # Hence scores from gradients of that sum do not exist for DARTS.
    cell = [("sep_conv_3x3", 0), ("skip_connect", 1), *[("dil_conv_5x5", 0), ("sep_conv_5x5", 1)] * 3]
    run, sums = nnx.jit(DartsMacroNet.__call__), []
    for genotype in (Genotype.from_pairs(cell, cell), EVERY):
        logits = run(net, images(), jnp.array(genotype.codes))
        sums.append(float(abs(logits.sum(axis=0)).max() / abs(logits).max()))
    assert sums[0] < 1e-4
    assert sums[1] > 1e-2


@pytest.mark.nightly
def test_images_with_odd_sides_and_no_batch_norm():
    net = DartsMacroNet(channels=CHANNELS, cells=CELLS, batch_norm=False, rngs=nnx.Rngs(2))
    x = images(2, 7)
    expected, _ = single(net, EVERY, (7, 7, 3))._forward(x, unchanged, lambda x: x, False)
    np.testing.assert_allclose(net(x, EVERY), expected, rtol=2e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"shape \(N, height, width, 3\)"):
        net(jnp.ones((2, 8, 8, 1)), EVERY)


def relus_of(net, genotype, x, monkeypatch):
    """Returns, for each ReLU of the network of one genotype: its input, times in the released code, and whether the
    logits depend on it.
    """
    one, seen, twice = single(net, genotype), [], []

    original = nnx.relu
    preprocess = darts_operations.Preprocess.__call__

    def marked(self, x, normalize):
        twice.append(len(seen))
        return preprocess(self, x, normalize)

    def run(moves):
        seen.clear()
        twice.clear()

        def relu(value):
            seen.append(value)
            move = moves[len(seen) - 1] if moves is not None else 0.0
            return original(value) + move

        with monkeypatch.context() as patch:
            patch.setattr(nnx, "relu", relu)
            patch.setattr(darts_operations.Preprocess, "__call__", marked)
            logits, _ = one._forward(x, normalized, lambda x: x, False)
        return logits

    run(None)
    values, doubled = list(seen), list(twice)
    weight = np.random.default_rng(1).normal(size=(len(x), 10))
    gradients = jax.grad(lambda moves: (run(moves) * weight).sum())([jnp.zeros_like(value) for value in values])
    live = [bool((abs(g) > 1e-12).any()) and bool((abs(v) > 0).any()) for g, v in zip(gradients, values, strict=True)]
    return values, [2 if i in doubled else 1 for i in range(len(values))], live


@pytest.mark.nightly
@pytest.mark.parametrize("genotype", [EVERY, HALF])
def test_every_relu_is_counted_as_stated(net, genotype, monkeypatch):
    from nngp_dag.nas import pattern_kernel

    x = images()
    values, times, live = relus_of(net, genotype, x, monkeypatch)
    assert not all(live)
    assert 2 in times
    for counting, weights in (("correct", np.array(live, int)), ("reference", np.array(times))):
        expected = np.zeros((len(x), len(x)), np.int64)
        for value, weight in zip(values, weights, strict=True):
            on = np.asarray(value).reshape(len(x), -1) > 0
            expected += weight * (on[:, None] == on[None]).sum(-1)
        found = pattern_kernel(net, x, genotype, counting=counting)
        assert found[0, 0] == expected[0, 0]
        # Sums in another order may move a few inputs of ReLUs to the other side of 0.
        assert abs(found - expected).max() <= 4


def test_relus_of_a_genotype_by_hand():
    # Only normal cells of one kind: 8 separable convolutions each, from inputs 0 and 1.
    cell = [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)] * 4
    counts = relu_counts(Genotype.from_pairs(cell, cell), 1, "correct")
    # The stem is read by both inputs of the first cell and by the second; the last cell by none.
    assert counts[:6].tolist() == [3, 2, 2, 2, 1, 0]
    assert counts[6:].reshape(5, 13).tolist() == [[4, 4, 0, 0, 0] + [1] * 8] * 5
    # In the released code, all but the two factorized reductions after reduction cells count twice.
    reference = relu_counts(Genotype.from_pairs(cell, cell), 1, "reference")
    assert reference[:6].tolist() == [6, 3, 4, 3, 2, 0]


@pytest.mark.parametrize("genotype", [EVERY, pytest.param(sample_genotypes(1, seed=0)[0], marks=pytest.mark.slow)])
def test_parameters_are_those_of_the_network(genotype):
    net = nnx.eval_shape(lambda: DartsNet(genotype, (8, 8, 3), channels=3, layers=5, classes=7, rngs=nnx.Rngs(0)))
    held = sum(np.prod(value.shape) for value in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert parameters(genotype, channels=3, cells=1, classes=7) == held


def test_flops_of_a_genotype_by_hand():
    # A cell of skips, C = 1 and N = 1, on images of 4 x 4 x 3: stem, inputs of cells, and skips of reduction cells.
    skips = Genotype.from_pairs(*[[("skip_connect", 0), ("skip_connect", 1)] * 4] * 2)
    stem = 16 * 27 * 3
    first = 16 * (3 + 3)
    second = 16 * (3 * 2 + 4 * 2) + 4 * 8 * 2 * 2
    third = 4 * (4 * 2) + 4 * (8 * 2)
    fourth = 4 * (8 * 4 + 8 * 4) + 1 * 8 * 4 * 4
    fifth = 1 * (8 * 4) + 1 * (16 * 4)
    expected = 2 * (stem + first + second + third + fourth + fifth + 16 * 10) + 10
    assert flops(skips, (4, 4, 3), channels=1, cells=1) == expected
