"""Claim: `spectrum` finds λmin and λmax of MNIST kernels 5 times as fast as eigh, and of 20,000 images within 12 GiB.

The matrices are NTKs of MNIST images in float64, N = 512 to 4096. Before any timing, the benchmark checks that λmin and
λmax equal those of `numpy.linalg.eigh` to 1e-6. The methods take turns, and the result is the ratio of their median
times.

Then `gram` writes the NTK of 20,000 images to disk, in float32 and in float64. A process of its own maps the file and
calls `spectrum`. The benchmark reads its peak resident memory (VmHWM, with interpreter, JAX and the pages of the mapped
file). λmin and λmax must enclose those of the first 4096 images (Cauchy's interlacing theorem). The benchmark needs
Linux, and disk space for one pair of matrices in float64 (6 GiB) in the temporary folder (TMPDIR).

    python benchmarks/spectrum_mnist.py [--quick] [--out benchmarks/results/spectrum_mnist.json]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import nngp_dag as nd
from nngp_dag.data import load_dataset, normalize, scale_to_sphere
from nngp_dag.kernels._gram import gram
from nngp_dag.theory import Spectrum, spectrum

CODE = "2_21_112"
DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"
SIZES = (512, 1024, 2048, 4096)
# Bounds of the claim: relative error, speed-up, and bytes of memory.
ACCURACY, SPEED_UP, MEMORY = 1e-6, 5, 12 * 2**30
# The program of the child process, which computes the spectrum.
CHILD = """
import json, sys, time, warnings
import numpy as np
from nngp_dag.theory import spectrum
warnings.simplefilter("ignore")
matrix = np.load(sys.argv[1], mmap_mode="r", allow_pickle=False)
start = time.perf_counter()
s = spectrum(matrix)
seconds = time.perf_counter() - start
lines = dict(line.split(":") for line in open("/proc/self/status"))
peak, mapped = (int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "RssFile"))
result = {name: getattr(s, name) for name in
          ("lambda_min", "lambda_max", "floor", "residual_min", "residual_max", "trace", "effective_rank", "resolved")}
print(json.dumps(result | {"seconds": seconds, "peak_bytes": peak, "mapped_bytes_at_end": mapped}))
"""


def ends(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[-1])


def timed(methods: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of every method; the methods take turns."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(matrix: np.ndarray, repeats: int) -> tuple[dict[str, Any], Spectrum]:
    """Checks the spectrum of one matrix, which also warms up, and times it."""
    eigenvalues, _ = np.linalg.eigh(matrix)
    ours, dense = spectrum(matrix, method="iterative"), spectrum(matrix, method="dense")
    errors = [abs(a / b - 1) for a, b in zip((ours.lambda_min, ours.lambda_max), ends(eigenvalues), strict=True)]
    if max(errors) > ACCURACY or not ours.resolved or not dense.resolved:
        raise SystemExit(f"N = {len(matrix)}: relative errors {errors}, {ours}")
    seconds = timed(
        {
            "iterative": lambda: spectrum(matrix, method="iterative"),
            "dense": lambda: spectrum(matrix, method="dense"),
            "eigh": lambda: np.linalg.eigh(matrix),
            "eigvalsh": lambda: np.linalg.eigvalsh(matrix),
        },
        repeats,
    )
    row = {
        "n": len(matrix),
        "lambda_min": ours.lambda_min,
        "lambda_max": ours.lambda_max,
        "floor": ours.floor,
        "residual_min": ours.residual_min,
        "residual_max": ours.residual_max,
        "relative_error_lambda_min": errors[0],
        "relative_error_lambda_max": errors[1],
        "relative_error_lambda_min_of_dense": abs(dense.lambda_min / float(eigenvalues[0]) - 1),
        "repeats": repeats,
        "seconds": seconds,
        "ratio": {name: seconds[name] / seconds["iterative"] for name in ("eigh", "eigvalsh", "dense")},
    }
    return row, ours


def large(x: np.ndarray, part: Spectrum) -> dict[str, Any]:
    """Computes a kernel on disk, and its spectrum in a child process."""
    with tempfile.TemporaryDirectory(prefix="spectrum-mnist-") as folder:
        out = Path(folder, "gram")
        start = time.perf_counter()
        gram(nd.Dag.from_code(CODE), x, memory_budget="4 GiB", out=out)
        gram_seconds = time.perf_counter() - start
        child = subprocess.run([sys.executable, "-c", CHILD, str(out / "ntk.npy")], capture_output=True, text=True)
    if child.returncode != 0:
        raise SystemExit(f"the process of {len(x)} images ended with status {child.returncode}\n{child.stderr}")
    row = {"n": len(x), "dtype": str(x.dtype), "gram_seconds": gram_seconds} | json.loads(child.stdout)
    # The part is in float64. Rounding of entries to float32 can move λmin and λmax by the resolution floor.
    if row["lambda_min"] > part.lambda_min + row["floor"] or row["lambda_max"] < part.lambda_max - row["floor"]:
        raise SystemExit(f"the ends do not enclose those of the first {SIZES[-1]} images: {row}")
    if row["peak_bytes"] > MEMORY:
        raise SystemExit(f"a process exceeded {MEMORY} bytes: {row}")
    return row


def show(rows: list[dict[str, Any]], large_rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"NTK of MNIST, {CODE}, {os.cpu_count()} cores")
    headings = "N", "λmin", "λmax", "floor", "error", "iterative s", "dense", "eigh", "eigvalsh", "peak GiB"
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        error = max(row["relative_error_lambda_min"], row["relative_error_lambda_max"])
        table.add_row(
            str(row["n"]),
            f"{row['lambda_min']:.6g}",
            f"{row['lambda_max']:.6g}",
            f"{row['floor']:.1e}",
            f"{error:.1e}",
            f"{row['seconds']['iterative']:.2f}",
            *(f"{row['ratio'][name]:.1f} x" for name in ("dense", "eigh", "eigvalsh")),
            "",
        )
    for row in large_rows:
        numbers = f"{row['lambda_min']:.6g}{'' if row['resolved'] else ' ?'}", f"{row['lambda_max']:.6g}"
        floor, peak = f"{row['floor']:.1e}", f"{row['peak_bytes'] / 2**30:.2f}"
        table.add_row(f"{row['n']} {row['dtype']}", *numbers, floor, "", f"{row['seconds']:.0f}", "", "", "", peak)
    Console(width=max(120, Console().width)).print(table)
    print("error: relative, against eigh; x: seconds over those of the iteration; ?: below the floor")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="number of timed calls")
    parser.add_argument("--quick", action="store_true", help="leave out the large kernels")
    parser.add_argument("--large", type=int, default=20_000, help="number of images of the large kernels")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of tensorflow-datasets with MNIST")
    parser.add_argument("--out", type=Path, help="JSON file for the results; an existing one is replaced")
    options = parser.parse_args(arguments)

    images = SIZES[-1] if options.quick else max(SIZES[-1], options.large)
    x = scale_to_sphere(normalize(load_dataset("mnist", data_dir=options.data_dir, subset=images)))
    kernel = gram(nd.Dag.from_code(CODE), x[: SIZES[-1]].astype(np.float64), memory_budget="4 GiB")
    matrix, rows, whole = np.asarray(kernel.ntk), [], None
    for n in SIZES:
        row, whole = compare(np.ascontiguousarray(matrix[:n, :n]), options.repeats)
        rows.append(row)
    assert whole is not None
    large_rows = [] if options.quick else [large(x.astype(dtype), whole) for dtype in (np.float32, np.float64)]

    show(rows, large_rows)
    ratio = rows[-1]["ratio"]["eigh"]
    if ratio < SPEED_UP:
        raise SystemExit(f"only {ratio:.1f} times as fast as eigh")
    if options.out is not None:
        result = {
            "claim": f"Both ends equal those of eigh to {ACCURACY}, {SPEED_UP} times as fast at N = {SIZES[-1]}; "
            f"{images} images in {MEMORY / 2**30:g} GiB",
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("nngp-dag", "jax", "jaxlib", "numpy", "scipy")},
            "dag": CODE,
            "dtype": "float64",
            "rows": rows,
            "large": large_rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_suffix(".partial")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(temporary, options.out)


if __name__ == "__main__":
    main()
