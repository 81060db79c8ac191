"""Claim: NASWOT of a NAS-Bench-201 cell takes at most a quarter of 2.4 s, the time of the reference on one thread.

The reference is PyTorch code with batch 128, C = 16 and N = 5. For every cell it builds a network, and runs a forward
and a backward pass. This package has one compiled program for all cells, and runs the forward pass only. Before any
timing, the benchmark checks the kernel of patterns against its definition, on a plain network that is unrolled here.

PyTorch is not a dependency. Where it is installed, it computes as the reference does, in turns with this package, for
the first cells without dead edges. It must find the same kernels, and the ratio of the seconds on this machine is
printed too. The device computes on one thread if the process is bound to one core:

    taskset -c 0 python benchmarks/naswot.py [--cells 50] [--out benchmarks/results/naswot.json]
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch_peer
from flax import nnx
from rich.console import Console

import nngp_dag as nd
from nngp_dag.nas import Cell, MacroNet, log_determinant, pattern_kernel, sample_cells

REFERENCE_SECONDS = 2.4
ASKED = 4


def relu_inputs(net: MacroNet, x: jax.Array, cell: Cell) -> Iterator[np.ndarray]:
    """Yields the input of every ReLU that affects an output, (images, units), in a plain network, edge by edge."""

    def convolved(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
        padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)

    def normed(x: jax.Array) -> jax.Array:
        # Scales are 1 and shifts 0 at initialization.
        return (x - x.mean((0, 1, 2))[None, None, None]) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)[None, None, None]

    def pooled(x: jax.Array, side: int, stride: int) -> jax.Array:
        return nnx.avg_pool(x, (side, side), (stride, stride), padding="SAME", count_include_pad=False)

    def flat(x: jax.Array) -> np.ndarray:
        return np.asarray(x).reshape(len(x), -1)

    paths = ((3,), (0, 4), (1, 5), (0, 2, 5))
    live = {edge for path in paths if all(cell.operations[i] != "none" for i in path) for edge in path}
    assert net.stem is not None
    x = normed(convolved(x, net.stem.kernel[...]))
    for i, stage in enumerate(net.stages):
        if i:
            block = net.reductions[i - 1]
            yield flat(x)
            inner = normed(convolved(nnx.relu(x), block.conv_a.kernel[...], 2))
            yield flat(inner)
            shortcut = convolved(pooled(x, 2, 2), block.shortcut[...])
            x = normed(convolved(nnx.relu(inner), block.conv_b.kernel[...])) + shortcut
        for k in range(len(stage.scale[...])):
            nodes = [x, *[jnp.zeros_like(x)] * 3]
            for edge, (source, target) in enumerate(((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))):
                name, value = cell.operations[edge], nodes[source]
                if edge not in live:
                    continue
                if name in ("nor_conv_1x1", "nor_conv_3x3"):
                    yield flat(value)
                    kernels = stage.conv1[...] if name == "nor_conv_1x1" else stage.conv3[...]
                    value = normed(convolved(nnx.relu(value), kernels[k, edge]))
                nodes[target] = nodes[target] + (pooled(value, 3, 1) if name == "avg_pool_3x3" else value)
            x = nodes[3]
    yield flat(normed(x))


def by_definition(net: MacroNet, x: jax.Array, cell: Cell) -> np.ndarray:
    """Returns the numbers of ReLUs that are on for both or off for both of two images, one ReLU after another."""
    on = np.concatenate([values > 0 for values in relu_inputs(net, x, cell)], axis=1)
    return (on[:, None] == on[None]).sum(axis=-1)


def check(net: MacroNet, x: jax.Array, cell: Cell) -> None:
    """Raises unless the kernel of patterns agrees with its definition."""
    found, expected = pattern_kernel(net, x, cell), by_definition(net, x, cell)
    # Two programs may round the input of a ReLU to different sides of 0.
    gap = np.abs(found - expected).max() / found.max()
    if (found.diagonal() != expected.diagonal()).any() or gap > 1e-4:
        raise SystemExit(f"the kernel of patterns is off by {gap:.1e}; nothing is timed")


def by_torch(net: MacroNet, x: np.ndarray, cell: Cell) -> np.ndarray:
    """Returns the kernel as the reference computes it: both passes, and two float32 products for every ReLU."""
    network, images = torch_peer.Network(net, np.eye(5, dtype=np.float32)[np.array(cell.codes)]), torch_peer.images(x)
    kernel = np.zeros((len(x), len(x)))

    def count(outputs: Any) -> None:
        on = (outputs.detach().reshape(len(outputs), -1) > 0).float()
        kernel[...] += (on @ on.T).numpy() + ((1 - on) @ (1 - on).T).numpy()

    network.on_relu = count
    images.requires_grad_(True)
    outputs = network(images)
    outputs.backward(torch_peer.one_thread().ones_like(outputs))
    return kernel


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=50, help="number of random cells")
    parser.add_argument("--peer-cells", type=int, default=5, help="number of cells for PyTorch, if it is installed")
    parser.add_argument("--batch", type=int, default=128, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of cells and weights")
    parser.add_argument("--out", type=Path, help="JSON file for the results; an existing one is replaced")
    options = parser.parse_args()

    net = MacroNet(rngs=nnx.Rngs(options.seed))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(options.batch, 32, 32, 3)), jnp.float32)
    cells = [cell for cell in sample_cells(options.cells, options.seed) if cell.status != "disconnected"]
    for cell in cells[:3]:
        check(net, x[:16], cell)
    start = time.perf_counter()
    pattern_kernel(net, x, cells[0])
    compiling = time.perf_counter() - start
    seconds, processor = [], []
    for cell in cells:
        start, before = time.perf_counter(), time.process_time()
        log_determinant(pattern_kernel(net, x, cell))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - before)
    own_seconds, peer_seconds = [], []
    if importlib.util.find_spec("torch") is not None:
        compared = [cell for cell in cells if cell.live == cell][: options.peer_cells]
        by_torch(net, np.asarray(x), compared[0])  # the first call imports PyTorch and warms up
        for cell in compared:
            start = time.perf_counter()
            theirs = by_torch(net, np.asarray(x), cell)
            middle = time.perf_counter()
            found = pattern_kernel(net, x, cell)
            log_determinant(found)
            own_seconds.append(time.perf_counter() - middle)
            peer_seconds.append(middle - start)
            gap = np.abs(found - theirs).max() / found.max()
            if gap > 1e-3:
                raise SystemExit(f"the kernel of patterns is off PyTorch's by {gap:.1e}")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    mean = float(np.mean(seconds))
    document = {
        "claim": f"NASWOT of a cell costs at most 1/{ASKED} of {REFERENCE_SECONDS} s",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "threads": threads,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        "cells": len(cells),
        "batch": options.batch,
        "seconds_to_compile_once": compiling,
        "seconds_per_cell": {"mean": mean, "median": float(np.median(seconds)), "largest": max(seconds)},
        "processor_seconds_per_cell": float(np.mean(processor)),
        "ratio": REFERENCE_SECONDS / mean,
        "beside_pytorch": None
        if not peer_seconds
        else {
            "cells": len(peer_seconds),
            "seconds_per_cell": float(np.mean(own_seconds)),
            "pytorch_seconds_per_cell": float(np.mean(peer_seconds)),
            "ratio": float(np.mean(peer_seconds) / np.mean(own_seconds)),
        },
        "asked": ASKED,
    }
    Console().print_json(json.dumps(document))
    if options.out is not None:
        with nd.report.output_file(options.out, overwrite=True) as path:
            path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
