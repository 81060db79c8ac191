"""Claim: the time of the kernels of a graph is linear in its nodes, while that of nested stax is exponential.

Every node of a ladder has a weighted edge from the node before, and a skip from the node before that one. The numbers
of its paths are Fibonacci numbers. `neural_tangents.stax` has no shared nodes: a ladder is nested `FanOut`, `parallel`,
`FanInSum`, and every node is computed once per path that leaves it. The two branches of a ladder have no random field
in common, so that stax is right here: the last column checks the ratio of its variance to the exact one. The time of
stax is that of one call, without `jax.jit`.

    python benchmarks/ladder.py --stax-seconds 60
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import nngp_dag as nd
from nngp_dag.kernels.neural_tangents import stax

HE = 2**0.5
ORDER = "act-linear"


def nested_stax(num_nodes: int) -> Callable:
    """Returns the ladder in stax with a readout, in the order that stax accepts (weights last)."""
    edge = [stax.Relu(), stax.Dense(1, W_std=HE)]

    def node(t: int) -> list:
        if t == 0:
            return [stax.Dense(1, W_std=HE)]
        weighted = stax.serial(*node(t - 1), *edge)
        if t == 1:
            return [weighted]
        return [stax.FanOut(2), stax.parallel(weighted, stax.serial(*node(t - 2), stax.Identity())), stax.FanInSum()]

    return stax.serial(*node(num_nodes - 1), *edge)[2]


def timed(function: Callable, repeats: int) -> tuple[float, float]:
    """Returns the seconds of the first call, which compiles, and the median seconds of the others."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return times[0], statistics.median(times[1:])


def check(x: np.ndarray) -> None:
    """Checks a ladder without skips, which is a chain, against stax, which is right for chains."""
    edge = [stax.Relu(), stax.Dense(1, W_std=HE)]
    plain = stax.serial(stax.Dense(1, W_std=HE), *edge * 5, *edge)[2]
    ours = nd.kernel(nd.zoo.chain(5), x, order=ORDER)
    off_diagonal = ~np.eye(len(x), dtype=bool)  # the diagonal of stax's float32 NTK has an error of 4e-4
    for get in ("nngp", "ntk"):
        value, reference = np.asarray(getattr(ours, get)), np.asarray(plain(x, None, get))
        np.testing.assert_allclose(value[off_diagonal], reference[off_diagonal], rtol=1e-5)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = Path(__file__).parent / "results" / "ladder.json"
    parser.add_argument("--inputs", type=int, default=8, help="number of inputs")
    parser.add_argument("--repeats", type=int, default=20, help="number of timed calls")
    parser.add_argument("--stax-seconds", type=float, default=60.0, help="largest seconds per call of nested stax")
    parser.add_argument("--out", type=Path, default=out, help="JSON file for the results")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="`FanIn` layers assume independent inputs")
    x = np.random.default_rng(0).normal(size=(arguments.inputs, 16)).astype(np.float32)
    check(x)

    rows, bearable = [], True
    for num_nodes in (6, 8, 10, 12, 14, 20, 40, 80, 160, 320, 640, 1280, 2560):
        dag = nd.zoo.ladder(num_nodes)
        # Sums grow exponentially along a ladder, and leave float32 after about 200 nodes. Scaled sums cost as much.
        options = {"order": ORDER, "aggregation": "sum" if num_nodes <= 80 else "scaled-sum"}
        first, each = timed(lambda dag=dag, options=options: nd.kernel(dag, x, **options), arguments.repeats)
        row = {"nodes": num_nodes, "paths": float(dag.num_paths) if num_nodes < 1400 else None}
        row |= {"first_call_s": first, "each_call_ms": 1e3 * each, "us_per_node": 1e6 * each / num_nodes}
        if bearable:
            kernel_fn = nested_stax(num_nodes)
            start = time.perf_counter()
            theirs = kernel_fn(x, None, ("nngp", "ntk"))
            row["stax_s"] = time.perf_counter() - start
            exact = np.diag(nd.kernel(dag, x, order=ORDER).nngp)
            row["stax_ratio"] = row["stax_s"] / each
            row["stax_variance_over_exact"] = float(np.mean(np.diag(theirs.nngp) / exact))
            bearable = row["stax_s"] < arguments.stax_seconds / 3
        rows.append(row)

    table = Table(title=f"Ladders, {arguments.inputs} inputs, NNGP and NTK, float32")
    for column in (
        "nodes",
        "first call s",
        "each call ms",
        "us per node",
        "nested stax s",
        "ratio",
        "stax var / exact",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        stax_cells = [
            form.format(row[key]) if key in row else ""
            for key, form in (("stax_s", "{:.2f}"), ("stax_ratio", "{:.0f}"), ("stax_variance_over_exact", "{:.3f}"))
        ]
        table.add_row(
            str(row["nodes"]),
            f"{row['first_call_s']:.2f}",
            f"{row['each_call_ms']:.2f}",
            f"{row['us_per_node']:.1f}",
            *stax_cells,
        )
    Console().print(table)
    slope = np.polyfit(np.log([r["nodes"] for r in rows[-5:]]), np.log([r["each_call_ms"] for r in rows[-5:]]), 1)[0]
    print(f"time against nodes, from {rows[-5]['nodes']} on: exponent {slope:.2f}")

    result = {
        "date": datetime.date.today().isoformat(),
        "device": str(jax.devices()[0].device_kind),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("nngp-dag", "jax", "neural-tangents")},
        "inputs": arguments.inputs,
        "exponent": slope,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
