"""Claim: NASWOT of a NAS-Bench-201 cell costs at most a quarter of 2.4 s, the reference's time on one thread.

The reference builds a network for every cell and runs it forwards and backwards, in PyTorch: batch 128, C = 16, N = 5.
Ours is one compiled program for all cells, run forwards. Checked before any timing: the kernel of patterns against its
definition, ReLU by ReLU in float32. The device computes on one thread if the process is bound to one core:

    taskset -c 0 python benchmarks/naswot.py [--cells 50] [--out benchmarks/results/naswot.json]
"""

import argparse
import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import nngp_dag as nd
from nngp_dag.nas import Cell, MacroNet, log_determinant, pattern_kernel, sample_cells
from nngp_dag.nas.patterns import gates

REFERENCE_SECONDS = 2.4
ASKED = 4


def check(net: MacroNet, x: jax.Array, cell: Cell) -> None:
    """Stops unless the kernel of patterns is what its definition says."""

    def compared(value: jax.Array, weight: jax.Array) -> jax.Array:
        on = (value.reshape(len(x), -1) > 0).astype(jnp.float32)
        return weight * (on @ on.T + (1 - on) @ (1 - on).T)

    operations, weights = map(jnp.array, gates(cell, "correct"))
    expected = nnx.jit(lambda net: net.observed(x, operations, compared, weights, jnp.zeros((len(x),) * 2))[1])(net)
    found = pattern_kernel(net, x, cell)
    # Compiled apart, the two may round an input of a ReLU to different sides of 0.
    gap = np.abs(found - np.asarray(expected)).max() / found.max()
    if gap > 1e-4:
        raise SystemExit(f"the kernel of patterns is off by {gap:.1e}; nothing is timed")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    net = MacroNet(rngs=nnx.Rngs(options.seed))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(options.batch, 32, 32, 3)), jnp.float32)
    cells = [cell for cell in sample_cells(options.cells, options.seed) if cell.status != "disconnected"]
    check(net, x[:16], cells[0])
    start = time.perf_counter()
    pattern_kernel(net, x, cells[0])
    compiling = time.perf_counter() - start
    seconds, processor = [], []
    for cell in cells:
        start, before = time.perf_counter(), time.process_time()
        log_determinant(pattern_kernel(net, x, cell))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - before)
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
        "asked": ASKED,
    }
    Console().print_json(json.dumps(document))
    if options.out is not None:
        with nd.report.output_file(options.out, overwrite=True) as path:
            path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
