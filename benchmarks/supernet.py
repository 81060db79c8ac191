"""Claim: an NTK takes at most half the time of the reference on one thread, and a tenth with frozen batch statistics.

The reference is PyTorch code with live batch statistics and 32 images. It takes 0.7 to 1.35 s per NTK of a
NAS-Bench-201 network around one cell, with C = 16 and N = 1. It takes 0.28 to 0.44 s for the supernet with C = 3. This
package has compiled programs with the cell or the mixture as an argument. Before any timing, the benchmark checks
entries of the live NTK against one backward pass per image.

PyTorch is not a dependency. Where it is installed, it computes the same NTKs as the authors do, with one backward pass
per image, in turns with this package. Both must agree, and the ratio of the seconds on this machine is printed too. The
device computes on one thread if the process is bound to one core:

    taskset -c 0 python benchmarks/supernet.py [--repeats 3] [--out benchmarks/results/supernet.json]
"""

import argparse
import functools
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch_peer
from common import finding, save, show, timed
from flax import nnx

from nngp_dag.nas import MacroNet, sample_cells
from nngp_dag.nas.networks.cell_supernet import CellSupernet
from nngp_dag.nas.scores.gradients import gradient_products

# Smallest and largest seconds of the reference.
REFERENCE = {"one cell, 16 channels": (0.7, 1.35), "supernet, 3 channels": (0.28, 0.44)}
SHARES = {"live": 1 / 2, "frozen": 1 / 10}


@functools.partial(jax.jit, static_argnums=(0, 1))
def measured(graph: Any, batch_norm: str, params: Any, x: jax.Array, architecture: jax.Array) -> jax.Array:
    return gradient_products(graph, params, x, architecture, names="weight", batch_norm=batch_norm)


def check(graph: Any, params: Any, x: jax.Array, architecture: jax.Array, found: jax.Array) -> None:
    """Raises unless two entries of the NTK agree with those of two plain backward passes."""

    @jax.jit
    def gradient(params: Any, i: jax.Array) -> Any:
        return jax.grad(lambda params: nnx.merge(graph, params)(x, architecture)[i].sum())(params)

    def trained(i: int) -> list[np.ndarray]:
        flat, _ = jax.tree_util.tree_flatten_with_path(gradient(params, jnp.int32(i)))
        names = ("'shift'", "'bias'")
        return [np.asarray(value, np.float64) for path, value in flat if not any(n in str(path) for n in names)]

    first, second = trained(0), trained(1)
    for i, j, value in ((0, 0, found[0, 0]), (0, 1, found[0, 1])):
        expected = sum(float((a * b).sum()) for a, b in zip((first, second)[i], (first, second)[j], strict=True))
        # Two programs may round the input of a ReLU to different sides of 0.
        if abs(float(value) - expected) > 1e-2 * abs(float(found[0, 0])):
            raise SystemExit(f"the NTK is off: {float(value):.6g} for {expected:.6g}; nothing is timed")


def peer(net: Any, mixture: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    """Returns a function that computes the NTK as the authors do, in PyTorch, with one backward pass per image."""
    network = torch_peer.Network(net, mixture)
    torch, images = torch_peer.one_thread(), torch_peer.images(x)

    def ntk() -> np.ndarray:
        logits, rows = network(images), []
        for i in range(len(images)):
            for weight in (*network.trained, *network.others):
                weight.grad = None
            logits[i].sum().backward(retain_graph=True)
            rows.append(torch.cat([weight.grad.reshape(-1) for weight in network.trained]))
        gradients = torch.stack(rows)
        return (gradients @ gradients.T).numpy()

    return ntk


def compare(found: np.ndarray, expected: np.ndarray) -> None:
    """Raises unless both sides have the same NTK."""
    gap = np.abs(found - expected).max() / np.abs(expected).max()
    if not gap <= 1e-2:
        raise SystemExit(f"the NTK is off PyTorch's by {gap:.1e} of its largest entry; nothing is timed")


def row(network: str, batch_norm: str, seconds: list[float]) -> dict[str, Any]:
    """Returns one row of the table."""
    times = {"seconds": float(np.mean(seconds)), "least": min(seconds), "most": max(seconds)}
    return {"network": network, "batch_norm": batch_norm, **times}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="number of timed calls")
    parser.add_argument("--batch", type=int, default=32, help="number of images")
    parser.add_argument("--cells", type=int, default=4, help="number of random cells for the network around one cell")
    parser.add_argument("--out", type=Path, help="JSON file for the results; an existing one is replaced")
    options = parser.parse_args()

    x = jnp.asarray(np.random.default_rng(0).normal(size=(options.batch, 32, 32, 3)), jnp.float32)
    cells = [cell for cell in sample_cells(4 * options.cells, 0) if cell.status == "connected"][: options.cells]
    mixture = np.full((1, 6, 5), 1 / 4, np.float32)
    mixture[..., 0] = 0
    jobs = {
        "one cell, 16 channels": (
            MacroNet(channels=16, cells=1, rngs=nnx.Rngs(0)),
            [np.array(c.live.codes) for c in cells],
        ),
        "supernet, 3 channels": (CellSupernet(channels=3, cells=1, rngs=nnx.Rngs(0)), [mixture]),
    }
    rows, findings, ours = [], [], {}
    for name, (net, architectures) in jobs.items():
        graph, params = nnx.split(net)
        for batch_norm, share in SHARES.items():
            start = time.perf_counter()
            found = jax.block_until_ready(measured(graph, batch_norm, params, x, architectures[0]))
            compiling = time.perf_counter() - start
            if batch_norm == "live":
                check(graph, params, x, architectures[0], found)
            seconds = [
                timed(lambda a=a, b=batch_norm, g=graph, p=params: measured(g, b, p, x, a), options.repeats)[1]
                for a in architectures
            ]
            least, most = REFERENCE[name]
            asked = f"{share * least:.3f} to {share * most:.3f}"
            rows.append(row(name, batch_norm, seconds) | {"compiling": compiling, "asked": asked})
            met = min(seconds) <= share * least and max(seconds) <= share * most
            what = f"{name}, {batch_norm} batch statistics: seconds per NTK"
            findings.append(finding(what, rows[-1]["seconds"], asked, met))
            ours[name, batch_norm] = float(np.mean(seconds))
        if importlib.util.find_spec("torch") is None:
            continue
        theirs = []
        for architecture in architectures:
            weights = np.eye(5, dtype=np.float32)[architecture] if architecture.ndim == 1 else architecture[0]
            run = peer(net, weights, np.asarray(x))
            compare(np.asarray(measured(graph, "live", params, x, architecture)), run())
            theirs.append(timed(run, options.repeats)[1])
        rows.append(row(name, "live, PyTorch", theirs))
        for batch_norm, share in SHARES.items():
            what = f"{name}, {batch_norm} batch statistics: time per NTK over that of PyTorch, live"
            ratio = ours[name, batch_norm] / float(np.mean(theirs))
            findings.append(finding(what, ratio, f"at most {share:g}", ratio <= share))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    formats = {
        "network": "{}",
        "batch_norm": "{}",
        "asked": "{}",
        **dict.fromkeys(("seconds", "least", "most"), "{:.3f}"),
    }
    show("seconds per NTK", rows, formats | {"compiling": "{:.1f}"})
    save(options.out, "an NTK costs at most half, frozen a tenth, of the reference's", rows, findings, threads=threads)


if __name__ == "__main__":
    main()
