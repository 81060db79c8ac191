"""Claim: `import nngp_dag` costs about what `import jax` costs.

Each import runs in a fresh interpreter, alternately, so that both meet the same machine; bytecode and file caches
are warm. Prints the medians and their ratio, and writes them as JSON where asked.

    python benchmarks/import_time.py [--out benchmarks/results/import_time.json]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

STATEMENTS = ("import jax", "import nngp_dag", "import nngp_dag.stax")


def seconds(statement: str) -> float:
    """Times one statement in a fresh interpreter, the interpreter's own start excluded."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    loaded = subprocess.run(
        [sys.executable, "-c", "import nngp_dag, sys; print('tensorflow' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if loaded != "False":
        raise SystemExit("import nngp_dag loads tensorflow: nothing to time")

    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(options.repeats + 1):
        for statement in STATEMENTS:
            times[statement].append(seconds(statement))
    # The first round fills the caches.
    medians = {statement: statistics.median(values[1:]) for statement, values in times.items()}
    ratios = {statement: medians[statement] / medians["import jax"] for statement in STATEMENTS}
    for statement in STATEMENTS:
        print(f"{statement:24s} {medians[statement]:7.3f} s   {ratios[statement]:5.2f} x import jax")
    if options.out is not None:
        result = {
            "claim": "import nngp_dag costs about what import jax costs",
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("nngp-dag", "jax", "jaxlib", "neural-tangents")},
            "repeats": options.repeats,
            "median_seconds": medians,
            "ratio_to_import_jax": ratios,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_suffix(".partial")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(temporary, options.out)


if __name__ == "__main__":
    main()
