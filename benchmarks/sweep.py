"""Claim: kernels of all 729 DAGs with 3 hidden nodes cost at least 100 times less per DAG than neural-tangents' each.

neural-tangents compiles every graph anew; its time for a graph is taken from three chains, whose kernels it gets right,
each traced, compiled and run once on the same images. Ours is one pass over all 729 codes: reading them, finding which
have equal kernels, compiling one program, and NNGP and NTK of every different one, in float64 and in float32. Checked
before any timing: the chains' kernels agree to 1e-5 off the diagonal, on which its NTK in float32 is off by 4e-4. Last,
spectra of all kernels, beside all eigenvalues of each by LAPACK.

    python benchmarks/sweep.py [--n 256] [--data-dir TFDS] [--out benchmarks/results/sweep.json]
"""

import argparse
import datetime
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.linalg
from rich.console import Console
from rich.table import Table

import nngp_dag as nd
from nngp_dag.graph import build_network
from nngp_dag.graph.laws import Laws
from nngp_dag.kernels.kernel import make_rules
from nngp_dag.kernels.many import kernels_of_laws
from nngp_dag.kernels.neural_tangents import stax

ASKED = 100
CHAINS = (1, 2, 3)
PACKAGES = ("nngp-dag", "jax", "jaxlib", "neural-tangents", "numpy", "scipy")


def theirs(num_layers: int, x: np.ndarray) -> tuple[Any, float]:
    """Returns neural-tangents' kernels of a chain, and the seconds from its layers to its numbers."""
    start = time.perf_counter()
    layer = stax.Dense(1, W_std=2**0.5), stax.Relu()
    *_, kernel_fn = stax.serial(*(layer * (num_layers + 1)), stax.Dense(1, W_std=2**0.5))
    found = jax.block_until_ready(jax.jit(lambda x: kernel_fn(x, None, ("nngp", "ntk")))(x))
    return found, time.perf_counter() - start


def ours(x: np.ndarray) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """Returns the kernels of every different network of the 729 codes, and how many codes have one."""
    laws, found, count = Laws(), {}, 0
    for code in nd.zoo.codes(3):
        try:
            network = build_network(nd.Dag.from_code(code))
        except nd.errors.GraphError:
            continue
        count += 1
        found.setdefault(laws.add(network), network)
    network = next(iter(found.values()))
    stacks = kernels_of_laws(laws, list(found), network, x, readout=True, rules=make_rules("ntk", None), batch=128)
    kernels = {law: pair for s in stacks for law, pair in zip(s.laws, zip(s.nngp, s.ntk, strict=True), strict=True)}
    return kernels, count


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[256, 1024], help="images")
    parser.add_argument("--data-dir", type=Path, help="folder of tensorflow-datasets with MNIST; none: random")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    rows = []
    for n in options.n:
        if options.data_dir is None:
            x = np.random.default_rng(0).normal(size=(n, 784)).astype(np.float32)
        else:
            images = nd.data.load_dataset("mnist", subset=n, data_dir=options.data_dir)
            x = nd.data.normalise(images).reshape(n, -1).astype(np.float32)
        for layers in CHAINS:
            k = nd.kernel(nd.zoo.chain(layers), x)
            off = ~np.eye(n, dtype=bool)
            for mine, other in zip((k.nngp, k.ntk), theirs(layers, x)[0], strict=True):
                gap = float(np.abs(np.asarray(mine) - np.asarray(other))[off].max() / np.abs(other).max())
                if gap > 1e-5:
                    raise SystemExit(f"kernels of the chain of {layers} differ by {gap:.1e}; nothing is timed")
        for dtype in (np.float32, np.float64):
            data = x.astype(dtype)
            jax.clear_caches()
            start = time.perf_counter()
            kernels, count = ours(data)
            first = time.perf_counter() - start
            start = time.perf_counter()
            kernels, count = ours(data)
            again = time.perf_counter() - start
            with jax.enable_x64(dtype == np.float64):
                chains = [theirs(layers, data)[1] for layers in CHAINS]
            # Spectra are in float64 whatever the kernels are in, so they are timed once.
            start = time.perf_counter()
            for pair in kernels.values() if dtype == np.float64 else ():
                for matrix in pair:
                    nd.spectrum(matrix)
            spectra = time.perf_counter() - start
            start = time.perf_counter()
            for pair in kernels.values() if dtype == np.float64 else ():
                for matrix in pair:
                    scipy.linalg.eigvalsh(matrix)
            lapack = time.perf_counter() - start
            per_dag = first / 729
            rows.append(
                {
                    "n": n,
                    "dtype": np.dtype(dtype).name,
                    "codes": 729,
                    "with_a_kernel": count,
                    "different_kernels": len(kernels),
                    "seconds_first": first,
                    "seconds_again": again,
                    "seconds_per_code": per_dag,
                    "neural_tangents_seconds_per_graph": float(np.mean(chains)),
                    "ratio": float(np.mean(chains)) / per_dag,
                    "ratio_per_different_kernel": float(np.mean(chains)) / (first / len(kernels)),
                    "seconds_spectra": spectra if dtype == np.float64 else None,
                    "seconds_lapack_eigenvalues": lapack if dtype == np.float64 else None,
                }
            )

    document = {
        "claim": "kernels of all 729 DAGs with 3 hidden nodes, per DAG, against neural-tangents (compile and run)",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "data": "mnist" if options.data_dir is not None else "random",
        "asked": ASKED,
        "rows": rows,
    }
    table = Table(title="729 codes, NNGP and NTK; s: seconds; NT: a graph by neural-tangents", title_justify="left")
    headings = (
        "N",
        "dtype",
        "kernels",
        "first s",
        "again s",
        "ms a code",
        "NT s a graph",
        "ratio",
        "spectra s",
        "LAPACK s",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        spectra = [row["seconds_spectra"], row["seconds_lapack_eigenvalues"]]
        table.add_row(
            str(row["n"]),
            row["dtype"],
            str(row["different_kernels"]),
            f"{row['seconds_first']:.2f}",
            f"{row['seconds_again']:.2f}",
            f"{1e3 * row['seconds_per_code']:.2f}",
            f"{row['neural_tangents_seconds_per_graph']:.2f}",
            f"{row['ratio']:.0f}",
            *("" if value is None else f"{value:.1f}" for value in spectra),
        )
    console = Console(width=120)
    console.print(table)
    console.print(f"asked for: {ASKED}")
    if options.out is not None:
        with nd.report.output_file(options.out, overwrite=True) as path:
            path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
