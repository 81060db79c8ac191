"""Claim: NNGP and NTK of one DAG take little more time than the Gram product, and less than those of neural-tangents.

The graphs are the chain of three weighted edges, for which neural-tangents is right, and DAG#3. Every side runs in a
process of its own. The sides take turns over several rounds, so that a slow phase of the machine affects all of them.
Times are medians after the first call, which compiles. The product is x x^T alone, by the same library in the same
precision. Memory is the growth of the peak of the process during a compiled call, with the inputs (Linux, CPU only).

Before any timing, the benchmark checks entries against small blocks in float64, on enough images to need tiles, or on
1,100 images for neural-tangents.

    python benchmarks/one_kernel.py [--n 1024 4096] [--data-dir TFDS] [--out benchmarks/results/one_kernel.json]
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import (
    FEATURES,
    checked,
    exact_pair,
    finding,
    gram_product,
    largest_gap,
    load,
    pair,
    parser_of,
    save,
    show,
    stax_chain,
    timed,
    write,
)

import nngp_dag as nd

CHAIN, MIXED = nd.zoo.chain(3), nd.Dag.from_code("2_21_112")
SIDES: dict[str, tuple[nd.Dag | None, Callable[[], Callable]]] = {
    "product": (None, lambda: jax.jit(gram_product)),
    "ours, chain": (CHAIN, lambda: lambda x: pair(CHAIN, x)),
    "neural-tangents, chain": (CHAIN, lambda: stax_chain(3)),
    "ours, DAG#3": (MIXED, lambda: lambda x: pair(MIXED, x)),
}
# Bounds: speed-up over neural-tangents, time over that of the product (on CPU and on GPU), and peak memory over that of
# inputs and results.
FASTER, PRODUCTS, PRODUCTS_ON_GPU, PEAK = 5, 3, 1.5, 1.1
TOLERANCE = 2e-5
CLAIM = "NNGP and NTK of one DAG against the Gram product and jitted neural-tangents"


def peak_growth(call: Callable[[], Any]) -> int:
    """Returns by how many bytes the peak memory during a call exceeds the memory before it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def status(name: str) -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return 1024 * int(line.split()[1])

    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def measure(side: str, x: np.ndarray, repeats: int, data_dir: Path | None) -> dict[str, float | None]:
    """Checks and times one side in this process."""
    dag, make = SIDES[side]
    function = make()
    if dag is not None:
        few = load(checked() if side.startswith("ours") else 1100, data_dir).astype(x.dtype)
        gap = largest_gap(function(jnp.asarray(few)), exact_pair(dag, few), diagonal=side.startswith("ours"))
        if gap > TOLERANCE:
            raise SystemExit(f"{side}: entries differ by {gap:.1e} from float64; nothing is timed")
    on_device = jnp.asarray(x)
    first, _ = timed(lambda: function(on_device), 0)
    growth = None
    if jax.default_backend() == "cpu":
        growth = peak_growth(lambda: jax.block_until_ready(function(on_device)))
    _, seconds = timed(lambda: function(on_device), repeats)
    return {"first_s": first, "seconds": seconds, "growth_bytes": growth}


def measured_in_rounds(n: int, options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns medians over rounds for every side; a side that runs out of memory gets a row that says so."""
    arguments = ["--n", str(n), "--repeats", str(options.repeats), "--dtype", options.dtype]
    arguments += ["--data-dir", str(options.data_dir)] * (options.data_dir is not None)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for side in options.rounds * list(SIDES):
        if side not in found:
            continue
        command = [sys.executable, __file__, *arguments, "--side", side]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode and side.startswith("neural") and "RESOURCE_EXHAUSTED" in process.stderr:
            rows.append({"n": n, "side": side, "failed": "out of memory"})
            del found[side]
            continue
        if process.returncode:
            raise SystemExit(process.stderr or process.stdout)
        found[side].append(json.loads(process.stdout.splitlines()[-1]))
    return {
        side: {
            name: None if value is None else statistics.median(one[name] for one in measured)
            for name, value in measured[0].items()
        }
        for side, measured in found.items()
    }


def main() -> None:
    """Runs the benchmark."""
    parser = parser_of(__doc__, (1024, 4096))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="precision of the kernels")
    parser.add_argument("--repeats", type=int, default=5, help="number of timed calls per round")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--side", choices=list(SIDES), help="measure this side only, in this process")
    options = parser.parse_args()
    if options.side is not None:
        x = load(options.n[0], options.data_dir).astype(options.dtype)
        with jax.enable_x64(options.dtype == "float64"):
            print(json.dumps(measure(options.side, x, options.repeats, options.data_dir)))
        return

    inputs_of = {"data": "random" if options.data_dir is None else "mnist", "dtype": options.dtype}
    rows, findings = [], []
    for n in options.n:
        found = measured_in_rounds(n, options, rows)
        size = np.dtype(options.dtype).itemsize
        for side, values in found.items():
            row = {"n": n, "side": side, **values}
            row["times_the_product"] = values["seconds"] / found["product"]["seconds"]
            inputs, results = size * n * FEATURES, size * n * n * (1 if side == "product" else 2)
            growth = values["growth_bytes"]
            row["peak_over_inputs_and_results"] = None if growth is None else (inputs + growth) / (inputs + results)
            rows.append(row)
        # The parent process never uses the device, which the processes of the sides need.
        on_cpu = found["product"]["growth_bytes"] is not None
        products, is_asked = (PRODUCTS, n == 4096) if on_cpu else (PRODUCTS_ON_GPU, n in (16384, 50000))
        if "neural-tangents, chain" in found:
            times = found["neural-tangents, chain"]["seconds"] / found["ours, chain"]["seconds"]
            asked: Any = (f">= {FASTER}", times >= FASTER) if on_cpu and is_asked else ()
            findings.append(finding(f"N = {n:,}, chain: time of neural-tangents over that of nngp_dag", times, *asked))
        for row in rows:
            if row["n"] == n and row["side"].startswith("ours"):
                for name, limit, label in (
                    ("times_the_product", products, "time of NNGP and NTK over that of the product x xᵀ"),
                    ("peak_over_inputs_and_results", PEAK, "peak of the memory over the size of inputs and results"),
                ):
                    value = row.get(name)
                    if value is not None:
                        asked = (f"<= {limit}", value <= limit) if is_asked else ()
                        what = f"N = {n:,}, {row['side'].removeprefix('ours, ')}: {label}"
                        findings.append(finding(what, value, *asked))
        if options.out is not None:
            # Written after every size, because a larger one may run out of memory.
            write(options.out, CLAIM, rows, findings, **inputs_of)

    columns = {"n": "{:,}", "side": "{}", "first_s": "{:.2f}", "seconds": "{:.4f}", "times_the_product": "{:.2f}"}
    columns["peak_over_inputs_and_results"] = "{:.2f}"
    if any("failed" in row for row in rows):
        columns["failed"] = "{}"
    show(f"NNGP and NTK, {options.dtype}, d = {FEATURES}", rows, columns)
    save(options.out, CLAIM, rows, findings, **inputs_of)


if __name__ == "__main__":
    main()
