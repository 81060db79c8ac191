"""The DARTS network for ImageNet: its published size, and its layers against plain NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_darts_network import conv, norm, reduced, relu, separable, shaken, windows

from nngp_dag.errors import InputError
from nngp_dag.nas import Cell, DartsImageNetNet, Genotype, flops, parameters
from nngp_dag.nas.networks import darts_operations, layers
from nngp_dag.nets.abstract import OneKey

# The genotype DARTS_V2 of the published code.
DARTS_V2 = Genotype.from_pairs(
    [
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2)),
    ],
    [
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1)),
    ],
)
PAPER = {"channels": 48, "cells": 4, "classes": 1000, "stem": "imagenet"}
MIXED = Genotype.from_pairs(
    [("sep_conv_3x3", 0), ("dil_conv_3x3", 1)] + [("skip_connect", 1), ("max_pool_3x3", 0)] * 3,
    [("skip_connect", 0), ("sep_conv_3x3", 1)] + [("skip_connect", 2), ("max_pool_3x3", 1)] * 3,
)


def closed_counts():
    """Returns parameters and multiply-adds of DARTS_V2 by cells: what reads C channels, and eleven pairs of filters."""
    weights = [(27 * 24 + 2 * 24, 27 * 24, 112), (9 * 24 * 48 + 2 * 48, 9 * 24 * 48, 56)]
    weights += [(9 * 48 * 48 + 2 * 48, 9 * 48 * 48, 28)]
    before = (48, 48)
    for i in range(14):
        stage, reduction = (i >= 4) + (i >= 9), i in (4, 9)
        c, side = 48 << stage, 28 >> stage
        # Two inputs come to C channels, before a reduction cell halves the image.
        pre = sum(before) * c
        weights.append((pre + 4 * c, pre, 2 * side if reduction else side))
        if not reduction:
            # Five separable convolutions have two depthwise and two pointwise filters, the dilated one has one of each.
            weights.append((11 * (9 * c + c * c + 2 * c), 11 * (9 * c + c * c), side))
        before = before[1], 4 * c
    count = sum(parameters for parameters, *_ in weights) + 769 * 1000
    return count, sum(products * side**2 for _, products, side in weights) + 768 * 1000


@pytest.mark.slow
def test_darts_v2_has_the_published_size():
    """Published: 4.7 M parameters, and 574 M multiply-adds, which no count of the published code gives."""
    net = nnx.eval_shape(lambda: DartsImageNetNet(DARTS_V2, (224, 224, 3), auxiliary=True, rngs=OneKey()))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(nnx.state(part, nnx.Param))) for part in (net, net.head)]
    assert sizes[0] - sizes[1] == parameters(DARTS_V2, **PAPER) == closed_counts()[0] == 4_718_752
    # The head: 1 x 1 and 2 x 2 convolutions, of which the first has batch norm, and a classifier.
    assert sizes[1] == 768 * 128 + 2 * 128 + 4 * 128 * 768 + 769 * 1000
    found = flops(DARTS_V2, (224, 224, 3), **PAPER)
    assert (found - 1000) / 2 == closed_counts()[1] == 529_911_552


@pytest.mark.slow
def test_multiply_adds_are_those_of_the_convolutions_that_run(monkeypatch):
    counted = []

    def count(x, kernel, stride=1, dilation=1):
        pixels = -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
        counted.append(kernel.size * pixels)
        return jnp.zeros((len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), kernel.shape[3]))

    monkeypatch.setattr(layers, "convolved", count)
    monkeypatch.setattr(darts_operations, "convolved", count)
    for genotype, side in ((DARTS_V2, 224), (MIXED, 75)):

        def forward(x, genotype=genotype, side=side):
            net = DartsImageNetNet(genotype, (side, side, 3), rngs=OneKey())
            # The constructor runs the network too, for its batch norms.
            counted.clear()
            return net(x)

        jax.eval_shape(forward, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
        assert 2 * (sum(counted) + 768 * 1000) + 1000 == flops(genotype, (side, side, 3), **PAPER)


def plain(net, x):
    """Returns logits and those of the head by NumPy, with batch norm by the statistics of the batch."""

    def normed(x, block, stride=1):
        kernel, scale, shift = (np.asarray(value[...]) for value in (block.kernel, block.scale, block.shift))
        return norm(conv(x, kernel, stride), scale, shift)

    first = normed(x, net.stem[0], 2)
    second = normed(relu(first), net.stem[1], 2)
    before: Any = second, normed(relu(second), net.stem[2], 2)
    for number, cell in enumerate(net.cells):
        late = number in (0, 2)
        nodes = [reduced(before[0], cell.preprocess0) if late else normed(relu(before[0]), cell.preprocess0.block)]
        nodes.append(normed(relu(before[1]), cell.preprocess1.block))
        pairs = MIXED.reduce if number else MIXED.normal
        for i in range(0, 8, 2):
            total = 0
            for (name, source), blocks in zip(pairs[i : i + 2], list(cell.blocks)[i : i + 2], strict=True):
                value, stride = nodes[source], 2 if number and source < 2 else 1
                if name == "sep_conv_3x3":
                    value = separable(separable(value, blocks[0], 0, stride, 1), blocks[1], 0, 1, 1)
                elif name == "dil_conv_3x3":
                    value = separable(value, blocks[0], 0, stride, 2)
                elif name == "max_pool_3x3":
                    value = windows(value, 3, stride, 1, -np.inf).max((3, 4))
                elif stride == 2:
                    value = reduced(value, blocks[0])
                total = total + value
            nodes.append(total)
        before = before[1], np.concatenate(nodes[2:], -1)
    logits = before[1].mean((1, 2)) @ np.asarray(net.kernel[...]) + np.asarray(net.bias[...])
    x, head = relu(before[1]), net.head
    pooled = np.stack([[x[:, i : i + 5, j : j + 5].mean((1, 2)) for j in (0, 2)] for i in (0, 2)])
    x = relu(normed(np.moveaxis(pooled, 2, 0), head.first))
    x = relu(np.einsum("nijc,ijcd->nd", x, np.asarray(head.second[...])))
    return logits, x @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])


@pytest.mark.nightly
def test_the_layers_are_those_of_the_published_network():
    net = shaken(
        DartsImageNetNet(MIXED, (200, 200, 3), channels=2, layers=3, classes=5, auxiliary=True, rngs=nnx.Rngs(0))
    )
    x = np.random.default_rng(0).normal(size=(3, 200, 200, 3)).astype(np.float32)
    found = nnx.jit(lambda net, x: net.train_step(x, jax.random.key(0)))(net, x)
    for ours, theirs in zip(found, plain(net, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"at least 193 x 193 pixels for an auxiliary head, got \(192, 224\)"):
        DartsImageNetNet(DARTS_V2, (192, 224, 3), auxiliary=True, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="`channels` to be at least 2, of which the stem takes half, got 1"):
        DartsImageNetNet(DARTS_V2, (64, 64, 3), channels=1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="`stem` to be 'cifar' for a cell of NAS-Bench-201, got 'imagenet'"):
        parameters(Cell.from_index(0), stem="imagenet")
    with pytest.raises(InputError, match="`stem` to be one of 'cifar', 'imagenet', got 'none'"):
        flops(DARTS_V2, stem="none")
