"""Claims: a traced model costs what its network costs, and long models take linear time.

1. A `DagNet` that `nd.trace` reads lowers to its network. Kernels of both are computed in turn, and are equal.
2. Chains of residual blocks of 25 to 200 blocks: the time to trace and for the first kernel, over the number of blocks.
3. A WideResNet-16 in flax on 8 images of 32 x 32 pixels: the time to trace.

    python benchmarks/trace.py [--n 2000] [--data-dir TFDS] [--out benchmarks/results/trace.json]
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from common import finding, load, parser_of, save, show
from flax import nnx

import nngp_dag as nd

REPEATS = 7
BLOCKS = (25, 50, 100, 200)
# The time per block may grow by this factor from the shortest chain to the longest, which pays no fixed cost.
GROWTH = 1.5


class Block(nnx.Module):
    """Two 3 x 3 convolutions behind ReLUs, and a skip."""

    def __init__(self, before: int, after: int, stride: int, rngs: nnx.Rngs) -> None:
        """Draws the block."""
        self.first = nnx.Conv(before, after, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.second = nnx.Conv(after, after, (3, 3), use_bias=False, rngs=rngs)
        same = before == after and stride == 1
        self.skip = None if same else nnx.Conv(before, after, (1, 1), strides=stride, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the outputs of images."""
        h = nnx.relu(x)
        return self.second(nnx.relu(self.first(h))) + (x if self.skip is None else self.skip(h))


class WideResNet(nnx.Module):
    """A WideResNet-16 without batch norm: three groups of two blocks."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Draws the network."""
        self.first = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.blocks = nnx.List()
        channels = width
        for group, factor in enumerate((1, 2, 4)):
            for i in range(2):
                self.blocks.append(Block(channels, factor * width, 2 if group and not i else 1, rngs))
                channels = factor * width
        self.readout = nnx.Linear(channels, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the outputs of images."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.readout(nnx.relu(h).mean(axis=(1, 2)))


def chain(blocks: int) -> tuple[Any, Any]:
    """Returns a residual chain in plain JAX with a tied first half, so that it is no `Network`, and its `init`."""
    width = 32

    def init(key: jax.Array) -> dict:
        keys = jax.random.split(key, blocks + 2)
        params = {f"w{i}": jax.random.normal(keys[i], (width, width)) / width**0.5 for i in range(blocks)}
        params["in"] = jax.random.normal(keys[-1], (16, width))
        return params | {"out": jax.random.normal(keys[-2], (width, 1)) / width**0.5}

    def model(params: dict, x: jax.Array) -> jax.Array:
        h = x @ params["in"]
        for i in range(blocks):
            h = h + jax.nn.relu(h) @ params[f"w{i // 2}"] / blocks**0.5
        return jax.nn.relu(h) @ params["out"]

    return model, init


def seconds(run: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Returns the time of a call, and its result."""
    start = time.perf_counter()
    value = run(*arguments, **options)
    return time.perf_counter() - start, value


def compared(network: nd.Network, x: np.ndarray) -> dict[str, float]:
    """Returns the median times of the kernels of a network and of its traced `DagNet`, which take turns."""

    def build(rngs: nnx.Rngs) -> nd.nets.DagNet:
        return nd.nets.DagNet(network, x.shape[1], 1, rngs=rngs)

    sides = {"network": network, "traced": nd.trace(build, x[:2])}
    exact = [nd.kernel(of, x[:50]).ntk for of in sides.values()]
    np.testing.assert_allclose(exact[1], exact[0], rtol=1e-6)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(REPEATS + 1):
        for name, of in sides.items():
            times[name].append(seconds(lambda of=of: jax.block_until_ready(nd.kernel(of, x).ntk))[0])
    return {name: statistics.median(of[1:]) for name, of in times.items()}


def main() -> None:
    options = parser_of(__doc__, [2000]).parse_args()
    rows, findings = [], []
    network = nd.Network("DAG#3", layer=nd.Dense(b_std=0.1), parameterization="standard", width=64)
    for n in options.n:
        medians = compared(network, load(n, options.data_dir))
        ratio = medians["traced"] / medians["network"]
        rows.append({"of": f"DagNet, N = {n:,}", "trace_s": None, "kernel_s": medians["traced"], "ratio": ratio})
        what = f"kernel of a traced DagNet over that of its network, N = {n:,}"
        findings.append(finding(what, ratio, "<= 1.1", ratio <= 1.1))
    per_block = []
    x = np.random.default_rng(0).normal(size=(32, 16))
    for blocks in BLOCKS:
        model, init = chain(blocks)
        to_trace, traced = seconds(nd.trace, model, x, init=init)
        first, _ = seconds(nd.kernel, traced, x)
        per_block.append((to_trace + first) / blocks)
        rows.append({"of": f"chain of {blocks} blocks", "trace_s": to_trace, "kernel_s": first, "ratio": None})
    growth = per_block[-1] / per_block[0]
    findings.append(
        finding(f"time per block, {BLOCKS[-1]} over {BLOCKS[0]} blocks", growth, f"<= {GROWTH:g}", growth <= GROWTH)
    )
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    to_trace, _ = seconds(nd.trace, WideResNet, images, width=16)
    rows.append({"of": "WideResNet-16, 8 images", "trace_s": to_trace, "kernel_s": None, "ratio": None})
    findings.append(finding("seconds to trace a WideResNet-16", to_trace, "<= 10", to_trace <= 10))
    show("traced models", rows, {"of": "{}", "trace_s": "{:.1f}", "kernel_s": "{:.2f}", "ratio": "{:.2f}"})
    data = "random" if options.data_dir is None else "mnist"
    save(options.out, "a traced model costs what its network costs", rows, findings, data=data)


if __name__ == "__main__":
    main()
