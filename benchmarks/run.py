"""Runs the benchmarks of kernels one after another, and prints their findings as one table.

Each benchmark writes a JSON file, with versions and device, to the folder of results. Failed benchmarks are listed at
the end.

    python benchmarks/run.py --data-dir TFDS [--large] [--only NAME ...] [--results benchmarks/results]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import show

HERE = Path(__file__).parent
# Arguments of each benchmark, and further ones with --large, which takes hours on CPUs and minutes on a GPU.
BENCHMARKS: dict[str, tuple[list[str], list[str]]] = {
    "import_time": ([], []),
    "one_kernel": (["--n", "1024", "4096"], ["--n", "1024", "4096", "16384", "50000"]),
    "sweep": (["--n", "256", "1024"], ["--n", "256", "1024"]),
    "gradient": ([], []),
    "scaling": ([], ["--n", "1024", "2048", "4096", "8192", "16384"]),
    "mnist_regression": (["--n", "4096"], ["--n", "16384", "50000", "60000"]),
}


def main() -> None:
    """Runs the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of tensorflow-datasets with MNIST")
    every = list(BENCHMARKS)
    parser.add_argument("--only", choices=every, nargs="+", default=every, help="benchmarks to run; default: all")
    parser.add_argument("--large", action="store_true", help="run sizes up to all of MNIST, for a GPU")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in options.only:
        out = options.results / f"{name}{'_large' * options.large}.json"
        arguments = [*BENCHMARKS[name][options.large], "--out", str(out)]
        if name != "import_time":
            arguments += ["--data-dir", str(options.data_dir)]
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments]).returncode:
            failed.append(name)
            continue
        for line in json.loads(out.read_text())["findings"]:
            met = {True: "yes", False: "NO", None: None}[line["met"]]
            rows.append({"benchmark": name} | line | {"met": met})
    if rows:
        columns = {"benchmark": "{}", "what": "{}", "measured": "{:.3g}", "asked": "{}", "met": "{}"}
        show("what the benchmarks found", rows, columns)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
