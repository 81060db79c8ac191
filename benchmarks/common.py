"""Parts that the benchmarks of kernels share: inputs, neural-tangents as the peer, timing, and output of results."""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import nngp_dag as nd
from nngp_dag.kernels.device import block_sizes
from nngp_dag.kernels.neural_tangents import stax

FEATURES = 784
PACKAGES = ("nngp-dag", "jax", "jaxlib", "neural-tangents", "numpy", "scipy")


def parser_of(doc: str | None, sizes: Sequence[int]) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks of kernels have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=list(sizes), help="numbers of images")
    parser.add_argument("--data-dir", type=Path, help="folder of tensorflow-datasets with MNIST; without it: random")
    parser.add_argument("--out", type=Path, help="JSON file for the results; an existing one is replaced")
    return parser


def load(n: int, data_dir: Path | None) -> np.ndarray:
    """Returns inputs, (n, 784), float32: images of MNIST, or Gaussian numbers without a folder."""
    if data_dir is None:
        return np.random.default_rng(0).normal(size=(n, FEATURES)).astype(np.float32)
    images = nd.data.load_dataset("mnist", subset=n, data_dir=data_dir)
    return nd.data.normalize(images).reshape(n, -1).astype(np.float32)


def gram_product(x: jax.Array) -> jax.Array:
    """Returns x x^T, at the highest precision of the dtype on every device."""
    return jnp.matmul(x, x.T, precision="highest")


def stax_chain(weighted_edges: int) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """Returns the compiled NNGP and NTK of neural-tangents for a chain, of which its kernels are right."""
    layer = stax.Dense(1, W_std=2**0.5), stax.Relu()
    *_, kernel_fn = stax.serial(*layer * (weighted_edges + 1), stax.Dense(1, W_std=2**0.5))
    return jax.jit(lambda x: tuple(kernel_fn(x, None, ("nngp", "ntk"))))


def pair(dag: nd.Dag, x: Any, x2: Any = None) -> tuple[Any, Any]:
    """Returns the NNGP and NTK of this package."""
    k = nd.kernel(dag, x, x2)
    return k.nngp, k.ntk


def exact_pair(dag: nd.Dag, x: np.ndarray) -> tuple[Any, Any]:
    """Returns the NNGP and NTK of this package in float64, by small blocks of two sets of inputs.

    Such blocks use neither tiles nor symmetry, and so check both.
    """
    # At least four blocks per side, all of one shape where that is possible.
    wide, size = x.astype(np.float64), max(1, len(x) // 4)
    blocks = [
        [pair(dag, wide[i : i + size], wide[j : j + size]) for j in range(0, len(x), size)]
        for i in range(0, len(x), size)
    ]
    nngp, ntk = (np.block([[block[which] for block in row] for row in blocks]) for which in (0, 1))
    return nngp, ntk


def checked() -> int:
    """Returns a number of images that makes the kernel use tiles on this device, with a remainder."""
    return max(1100, 2 * block_sizes().tile + 76)


def largest_gap(found: Sequence[Any], expected: Sequence[Any], diagonal: bool = True) -> float:
    """Returns the largest difference, relative to the largest entry.

    The NTK of neural-tangents has an error of 4e-4 on its diagonal.
    """
    compared = np.ones(np.shape(expected[0]), bool) if diagonal else ~np.eye(len(expected[0]), dtype=bool)
    return max(
        float(np.abs(np.asarray(f) - np.asarray(e))[compared].max() / np.abs(np.asarray(e)).max())
        for f, e in zip(found, expected, strict=True)
    )


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Returns the seconds of the first call, which compiles, and the median seconds of the others."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return times[0], statistics.median(times[1:]) if repeats else times[0]


def finding(what: str, measured: float, asked: str | None = None, met: bool | None = None) -> dict[str, Any]:
    """Returns one line of the table of `run.py`: a ratio, and its bound, if there is one."""
    return {"what": what, "measured": measured, "asked": asked, "met": met}


def show(title: str, rows: Sequence[dict[str, Any]], formats: dict[str, str]) -> None:
    """Prints rows as a table with the columns of `formats`; None is printed as a blank."""
    table = Table(title=title, title_justify="left")
    for name in formats:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0].get(name), str) else "right")
    for row in rows:
        cells = ((row.get(name), form) for name, form in formats.items())
        table.add_row(*("" if value is None else form.format(value) for value, form in cells))
    Console(width=130).print(table)


def save(out: Path | None, claim: str, rows: Sequence[dict[str, Any]], findings: Sequence[dict], **more: Any) -> None:
    """Prints the findings and, with a file, writes them with rows, versions and device."""
    for line in findings:
        verdict = "" if line["met"] is None else f" (asked: {line['asked']}; {'met' if line['met'] else 'NOT met'})"
        print(f"{line['what']}: {line['measured']:.3g}{verdict}")
    if out is not None:
        write(out, claim, rows, findings, **more)
        print(f"wrote {out}")


def write(out: Path, claim: str, rows: Sequence[dict[str, Any]], findings: Sequence[dict], **more: Any) -> None:
    """Writes the results to a JSON file, and replaces an existing one."""
    document = {
        "claim": claim,
        "date": datetime.date.today().isoformat(),
        "device": str(jax.devices()[0].device_kind),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        **more,
        "findings": list(findings),
        "rows": list(rows),
    }
    with nd.report.output_file(out, overwrite=True) as path:
        path.write_text(json.dumps(document, indent=2) + "\n")
