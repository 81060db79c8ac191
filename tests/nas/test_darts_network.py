"""The DARTS supernet against a plain NumPy one, and the inputs of its ReLUs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nngp_dag.nas.networks.darts_supernet import DartsSupernet, MixedEdges
from nngp_dag.nas.networks.layers import normalized
from nngp_dag.nas.spaces.darts import EDGES, OPERATIONS


def relu(x):
    return np.maximum(x, 0)


def norm(x, scale: Any = 1.0, shift: Any = 0.0):
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + shift


def windows(x, side, stride, dilation, fill):
    """Returns the window that every output pixel reads, (n, h, w, side, side, c), pixel by pixel."""
    _, height, width, _ = x.shape
    p = dilation * (side // 2)
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=fill)
    reach = dilation * (side - 1) + 1
    return np.stack(
        [
            np.stack(
                [padded[:, i : i + reach : dilation, j : j + reach : dilation] for j in range(0, width, stride)], 1
            )
            for i in range(0, height, stride)
        ],
        1,
    )


def conv(x, kernel, stride=1):
    return np.einsum("nhwijc,ijcd->nhwd", windows(x, len(kernel), stride, 1, 0), kernel)


def separable(x, block, group, stride, dilation):
    """Returns one of the operations that run side by side."""
    c = x.shape[-1]
    part = slice(group * c, (group + 1) * c)
    depthwise, pointwise = (
        np.asarray(block.depthwise[...])[:, :, 0, part],
        np.asarray(block.pointwise[...])[0, 0, :, part],
    )
    x = np.einsum("nhwijc,ijc->nhwc", windows(relu(x), len(depthwise), stride, dilation, 0), depthwise)
    return norm(x @ pointwise, np.asarray(block.scale[...])[part], np.asarray(block.shift[...])[part])


def reduced(x, block, group=0):
    groups = block.groups
    even, odd = (np.split(np.asarray(kernel[...])[0, 0], groups, axis=-1)[group] for kernel in (block.even, block.odd))
    late = np.pad(relu(x), ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1::2, 1::2]
    scale, shift = (np.split(np.asarray(value[...]), groups)[group] for value in (block.scale, block.shift))
    return norm(np.concatenate([relu(x)[:, ::2, ::2] @ even, late @ odd], -1), scale, shift)


def operation(name, x, edges, group):
    stride = edges.stride
    if name == "none":
        return 0
    if name == "max_pool_3x3":
        return windows(x, 3, stride, 1, -np.inf).max((3, 4))
    if name == "avg_pool_3x3":
        return np.nanmean(windows(x, 3, stride, 1, np.nan), (3, 4))
    if name == "skip_connect":
        return x if stride == 1 else reduced(x, edges.skip, group)
    side = name[-1]
    if name.startswith("dil"):
        return separable(x, getattr(edges, f"dil{side}"), group, stride, 2)
    first, second = getattr(edges, f"sep{side}")
    return separable(separable(x, first, group, stride, 1), second, group, 1, 1)


def shaken(net):
    """Returns a network with scales other than 1 and shifts other than 0."""
    for i, (_, module) in enumerate(nnx.iter_modules(net)):
        if hasattr(module, "scale"):
            scaled: Any = module
            scale, shift = scaled.scale, scaled.shift
            keys = jax.random.split(jax.random.key(i))
            scale[...] = 1 + 0.3 * jax.random.normal(keys[0], scale.shape)
            shift[...] = 0.3 * jax.random.normal(keys[1], shift.shape)
    return net


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.slow
def test_operations_are_those_of_darts(stride):
    edges = shaken(MixedEdges(2, 4, stride, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(3, 5, 6, 4)).astype(np.float32)
    call = nnx.jit(lambda edges, x, weights: edges(x, weights, normalized))
    for i, name in enumerate(OPERATIONS):
        found, inner = call(edges, x, np.broadcast_to(np.eye(8, dtype=np.float32)[i], (2, 8)))
        for group in range(2):
            expected = np.broadcast_to(operation(name, x, edges, group), found[..., group, :].shape)
            np.testing.assert_allclose(found[..., group, :], expected, atol=2e-5, err_msg=name)
        assert [bool(value.any()) for value in inner] == [name == "sep_conv_3x3", name == "sep_conv_5x5"]


@pytest.mark.nightly
def test_mixtures_of_the_supernet_are_those_of_a_plain_one():
    net = shaken(DartsSupernet(channels=2, cells=1, stem_multiplier=3, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    images, mixture = rng.normal(size=(3, 8, 8, 3)).astype(np.float32), rng.dirichlet(np.ones(8), (2, 14))
    mixture[0, 3] = 0
    mixture = mixture.astype(np.float32)
    plain = lambda block: (np.asarray(value[...]) for value in (block.kernel, block.scale, block.shift))  # noqa: E731
    kernel, scale, shift = plain(net.stem)
    before = (norm(conv(images, kernel), scale, shift),) * 2
    for number, cell in enumerate(net.cells):
        kernel, scale, shift = plain(cell.preprocess1.block)
        nodes: list[Any] = [None, norm(relu(before[1]) @ kernel[0, 0], scale, shift), 0, 0, 0, 0]
        if number == 2:
            nodes[0] = reduced(before[0], cell.preprocess0)
        else:
            kernel, scale, shift = plain(cell.preprocess0.block)
            nodes[0] = norm(relu(before[0]) @ kernel[0, 0], scale, shift)
        for edge, (source, target) in enumerate(EDGES):
            group = target - max(source + 1, 2)
            for weight, name in zip(mixture[int(number > 0), edge], OPERATIONS, strict=True):
                nodes[target] = nodes[target] + weight * operation(name, nodes[source], cell.edges[source], group)
        before = before[1], np.concatenate(nodes[2:], -1)
    features = relu(norm(before[1], np.asarray(net.scale[...]), np.asarray(net.shift[...]))).mean((1, 2))
    expected = features @ np.asarray(net.kernel[...])
    found = nnx.jit(DartsSupernet.__call__)(net, jnp.asarray(images), jnp.asarray(mixture))
    assert before[1].shape == (3, 2, 2, 32)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.nightly
def test_relus_of_dead_cells_and_operations_are_zero_under_vmap():
    net = DartsSupernet(channels=1, cells=1, depth=2, stem=False, in_channels=1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (20, 3, 3, 1))
    mixtures = np.zeros((2, 2, 14, 8), np.float32)
    mixtures[:, :, 0, OPERATIONS.index("sep_conv_3x3")] = 1
    mixtures[1, 1, 1, OPERATIONS.index("max_pool_3x3")] = 1
    graph, params = nnx.split(net)
    logits, seen = jax.jit(jax.vmap(lambda m: nnx.merge(graph, params).observed(x, m)))(jnp.asarray(mixtures))
    assert logits.shape == (2, 20, 10)
    # The reduction cell reads the normal cell only as its second input, which the first mixture does not use.
    first = len(seen) // 2
    assert not any(value[0].any() for value in seen[:first])
    assert any(value[1].any() for value in seen[:first])
    # The inputs of ReLUs that remain are one input, one second ReLU and one node of the reduction cell, and the last.
    assert sum(bool(value[0].any()) for value in seen) == 4
