"""Claim: NNGP and NTK of 20,000 MNIST images fit into 6 GiB, and a killed run resumes to the same bits.

One process computes both matrices without a break. A second process is killed about half way, and a third one
continues. The checks are: 200 entries equal those of a direct call of `kernel` in float64, both matrices are exactly
symmetric, and the files of both runs have equal SHA-256. The peak resident memory of every process (VmHWM, with
interpreter, JAX and inputs) is below the budget. The benchmark needs Linux, and disk space for one pair of matrices in
the temporary folder (TMPDIR).

    python benchmarks/gram_mnist.py [--n 20000] [--budget 6] [--out benchmarks/results/gram_mnist.json]
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

CODE = "2_21_112"
DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"
# The program of the child processes, which computes the matrices.
CHILD = """
import sys, time
import numpy as np
from nngp_dag import Dag
from nngp_dag.kernels._gram import gram
x = np.load(sys.argv[1])
start = time.perf_counter()
gram(Dag.from_code(sys.argv[2]), x, memory_budget=int(sys.argv[3]), out=sys.argv[4])
seconds = time.perf_counter() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(seconds, int(peak) * 1024)
"""


def start(inputs: Path, budget: int, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(inputs), CODE, str(budget), str(out)], stdout=subprocess.PIPE, text=True
    )


def finish(child: subprocess.Popen) -> dict[str, float]:
    """Waits for a process, and returns its seconds in `gram` and its peak memory in bytes."""
    output, _ = child.communicate()
    if child.returncode != 0:
        raise SystemExit(f"a process ended with status {child.returncode}")
    seconds, peak = output.split()
    return {"seconds": float(seconds), "peak_bytes": int(peak)}


def kill_half_way(child: subprocess.Popen, journal: Path, tiles: int, seconds_per_tile: float) -> dict[str, float]:
    """Kills a process within a tile, after half of all tiles."""
    begin = time.perf_counter()
    while not journal.exists() or journal.stat().st_size < tiles // 2:
        if child.poll() is not None:
            raise SystemExit("the process that was to be killed has ended: raise --n")
        time.sleep(0.02)
    time.sleep(seconds_per_tile / 2)
    status = Path(f"/proc/{child.pid}/status").read_text()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    if child.returncode != -signal.SIGKILL:
        raise SystemExit("the process that was to be killed has ended: raise --n")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    return {
        "seconds": time.perf_counter() - begin,
        "peak_bytes": int(peak) * 1024,
        "tiles_done": journal.stat().st_size,
    }


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check(x: np.ndarray, out: Path, entries: int = 200) -> float:
    """Returns the largest relative error of entries against a direct call in float64, and checks exact symmetry."""
    from nngp_dag import Dag, kernel

    rows, columns = np.random.default_rng(0).integers(len(x), size=(2, entries))
    columns[:5] = rows[:5]
    direct = kernel(Dag.from_code(CODE), x[rows].astype(np.float64), x[columns].astype(np.float64))
    worst = 0.0
    for name in ("nngp", "ntk"):
        whole = np.load(out / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        expected = np.diagonal(getattr(direct, name))
        worst = max(worst, float(abs(whole[rows, columns] / expected - 1).max()))
        for i in range(0, len(x), 1000):
            if not (whole[i : i + 1000] == whole[:, i : i + 1000].T).all():
                raise SystemExit(f"{name} is not symmetric")
    if worst > 1e-5:
        raise SystemExit(f"an entry differs from a direct call by {worst:.1e}")
    return worst


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000, help="number of images")
    parser.add_argument("--budget", type=float, default=6, help="memory of a process, in GiB")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of tensorflow-datasets with MNIST")
    parser.add_argument("--out", type=Path, help="JSON file for the results; an existing one is replaced")
    options = parser.parse_args(arguments)

    from nngp_dag.data import load_dataset, normalize, scale_to_sphere

    budget = int(options.budget * 2**30)
    x = scale_to_sphere(normalize(load_dataset("mnist", data_dir=options.data_dir, subset=options.n)))
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gram-mnist-") as folder:
        inputs, out = Path(folder, "x.npy"), Path(folder, "gram")
        np.save(inputs, x)
        runs["unbroken"] = finish(start(inputs, budget, out))
        tile = json.loads((out / "gram.json").read_text())["tile"][0]
        parts = -(-len(x) // tile)
        tiles = parts * (parts + 1) // 2
        error = check(x, out)
        names = ("nngp.npy", "ntk.npy", "gram.json")
        hashes = {name: sha256(out / name) for name in names}
        shutil.rmtree(out)

        journal = Path(folder, ".gram.partial", "journal")
        child = start(inputs, budget, out)
        runs["killed"] = kill_half_way(child, journal, tiles, runs["unbroken"]["seconds"] / tiles)
        runs["resumed"] = finish(start(inputs, budget, out))
        if {name: sha256(out / name) for name in names} != hashes:
            raise SystemExit("the resumed files differ from those of the unbroken run")

    print(f"{len(x)} images, {tiles} tiles of {tile} rows, largest relative error of 200 entries {error:.1e}")
    for name, run in runs.items():
        print(
            f"{name:9s} {run['seconds']:7.1f} s   peak {run['peak_bytes'] / 2**30:5.2f} GiB of {budget / 2**30:.2f} GiB"
        )
    print(f"killed after {runs['killed']['tiles_done']} tiles; the resumed files have the bits of the unbroken run")
    if max(run["peak_bytes"] for run in runs.values()) > budget:
        raise SystemExit("a process exceeded the budget")
    if options.out is not None:
        result = {
            "claim": f"NNGP and NTK of {len(x)} MNIST images fit into {options.budget:g} GiB, and a killed run resumes "
            "to the same bits",
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("nngp-dag", "jax", "jaxlib", "numpy")},
            "dag": CODE,
            "n": len(x),
            "dtype": str(x.dtype),
            "budget_bytes": budget,
            "tile": tile,
            "tiles": tiles,
            "runs": runs,
            "largest_relative_error_of_200_entries": error,
            "sha256": hashes,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_suffix(".partial")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(temporary, options.out)


if __name__ == "__main__":
    main()
