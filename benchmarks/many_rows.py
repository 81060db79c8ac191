"""Claims: on P devices a product computes 1 / P of the kernel each, and sends as many bytes as a formula says.

1. Bytes that the compiled programs send between devices, against the formulas of docs/guides/large.md.
2. Kernel entries per second of all devices, and rows per second of the streamed pass, over those of one device. The
   devices of a CPU share its cores, so that 1 is the best that a ratio can be there; what is missing is overhead.
3. On paper: time and efficiency up to 64 GPUs, from the formulas and rates that are passed as options.

    python benchmarks/many_rows.py [--n 4096] [--data-dir TFDS] [--devices 1 2 4] [--out FILE.json]
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import FEATURES, finding, load, parser_of, save, show, timed

import nngp_dag as nd
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.ring import Ring
from nngp_dag.large.sums import compiled, zeros

NETWORK, OUTPUTS, REPEATS = nd.Network("2_21_112"), 10, 5
LANDMARKS, DIRECTIONS, BLOCK, FLUSH = 1024, 64, 512, 16
SIZES = {"f32": 4, "f64": 8, "s32": 4, "s64": 8, "u32": 4}


def ring_bytes(n: int, features: int, columns: int, devices: int) -> float:
    """Returns the bytes that one device sends in a product K V for V of `columns` columns in float64."""
    share, turns, facing = n / devices, (devices - 1) // 2, devices % 2 == 0
    with_sums = share * (4 * features + 16 * columns)
    back = 8 * share * columns if turns else 0
    return turns * with_sums + back + facing * share * (4 * features + 16 * columns)


def pass_bytes(m: int, directions: int, columns: int) -> float:
    """Returns the bytes that are added up over all devices after every `FLUSH` blocks of the streamed pass."""
    numbers = m * m + directions * m + directions**2 + (m + directions + 1) * columns + 1
    return 8.0 * numbers


def sent(program: str, operation: str) -> float:
    """Returns the bytes of the results of a collective operation in the text of a compiled program."""
    total = 0.0
    for line in program.splitlines():
        found = re.search(rf"= (.*?) {operation}(-start)?\(", line)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[1]) if found else ():
            total += SIZES[dtype] * np.prod([int(size) for size in shape.split(",") if size])
    return total


def measured(n: int, data_dir: Path | None) -> dict[str, float]:
    """Measures all devices of this process."""
    x, team = load(n, data_dir), Team(nd.distributed.mesh())
    kernel = BlockKernel(NETWORK, "ntk", (FEATURES,), np.dtype(np.float32))
    random = np.random.default_rng(0)
    found: dict[str, float] = {"devices": team.size}
    with precision_of(np.dtype(np.float64)):
        ring = Ring(team, kernel, x, 0.0)
        columns = ring.dealt(random.normal(size=(n, OUTPUTS)))
        _, seconds = timed(lambda: ring.product(columns), REPEATS)
        found["entries"] = ring.entries / (REPEATS + 1)
        found["entries_per_second"] = n * n / seconds
        text = ring.compiled_product(columns).as_text()
        found["ring_bytes"] = permuted(text, team.size)

        steps = compiled(team, kernel.entries, kernel.dtype, LANDMARKS, DIRECTIONS)
        total, own = steps.start(zeros(LANDMARKS, DIRECTIONS, OUTPUTS))
        rows = BLOCK * 4 // team.size * team.size
        dealt = [team.dealt(v) for v in (x[:rows], random.normal(size=(rows, OUTPUTS)), np.ones(rows))]
        v = np.linalg.qr(random.normal(size=(LANDMARKS, DIRECTIONS)))[0].astype(np.float32)
        weights, marks, vectors = (jax.tree.map(team.everywhere, of) for of in (kernel.weights, x[:LANDMARKS], v))

        def add() -> Any:
            nonlocal own
            own = steps.add(own, weights, *dealt, marks, vectors)
            return own

        _, seconds = timed(add, REPEATS)
        found["rows_per_second"] = rows / seconds
        text = steps.flush.lower(total, own).compile().as_text()
        found["pass_bytes"] = sent(text, "all-reduce") if team.size > 1 else 0.0
    return found


def permuted(text: str, devices: int) -> float:
    """Returns the bytes that one device sends in a product: those in the loop over turns, and those after it."""
    turns = (devices - 1) // 2
    parts = {name: sent(body, "collective-permute") for name, body in computations(text)}
    entry = parts.pop("ENTRY")
    return entry + turns * sum(parts.values()) if turns else entry


def computations(text: str) -> list[tuple[str, str]]:
    """Returns the names and bodies of the computations of a compiled program."""
    found = []
    for body in re.split(r"\n(?=\S)", text):
        name = "ENTRY" if body.startswith("ENTRY") else body.partition(" ")[0]
        found.append((name, body))
    return found


def on_paper(n: int, m: int, entry_rate: float, flops: float, wire: float, reading: float) -> list[dict[str, float]]:
    """Returns times of one iteration and of one pass for 1 to 64 devices, and their efficiencies."""
    rows = []
    alone = n * n / 2 / entry_rate, n * (m * m + 2 * FEATURES * m) / flops
    for devices in (1, 2, 4, 8, 16, 32, 64):
        entries = n * n / 2 / devices / entry_rate
        ring = ring_bytes(n, FEATURES, OUTPUTS + 8, devices) / wire if devices > 1 else 0.0
        work = alone[1] / devices
        flushes = n / (devices * FLUSH * 4096)
        adding = flushes * 2 * (devices - 1) / devices * pass_bytes(m, DIRECTIONS, OUTPUTS) / wire
        rows.append(
            {
                "devices": devices,
                "iteration": entries + ring,
                "iteration_wire": ring,
                "iteration_efficiency": alone[0] / (devices * (entries + ring)),
                "pass": work + adding,
                "pass_wire": adding,
                "pass_efficiency": alone[1] / (devices * (work + adding)),
                "reading": n * FEATURES * 4 / reading,
            }
        )
    return rows


def main() -> None:
    """Runs one process for every number of devices, and prints both tables."""
    parser = parser_of(__doc__, [4096])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4], help="numbers of devices of this machine")
    parser.add_argument("--entry-rate", type=float, default=1e11, help="kernel entries per second of one GPU")
    parser.add_argument(
        "--flops", type=float, default=4e13, help="operations per second of float32 products of one GPU"
    )
    parser.add_argument("--wire", type=float, default=4e10, help="bytes per second between two GPUs")
    parser.add_argument("--reading", type=float, default=2e9, help="bytes per second that a process reads")
    parser.add_argument("--paper-rows", type=float, nargs=2, default=(1e6, 1e8), help="rows of an iteration, of a pass")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    [n] = given.n
    if given.worker:
        print(json.dumps(measured(n, given.data_dir)))
        return
    rows = []
    for devices in given.devices:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, __file__, "--worker", "--n", str(n)]
        command += ["--data-dir", str(given.data_dir)] if given.data_dir else []
        run = subprocess.run(
            command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=True
        )
        rows.append(json.loads(run.stdout.splitlines()[-1]))
    formats = {
        "devices": "{:.0f}",
        "entries": "{:.3g}",
        "entries_per_second": "{:.3g}",
        "ring_bytes": "{:,.0f}",
        "rows_per_second": "{:.0f}",
        "pass_bytes": "{:,.0f}",
    }
    show(f"Measured: N = {n:,}, {LANDMARKS:,} landmarks, {OUTPUTS} outputs", rows, formats)
    findings = []
    for row in rows[1:]:
        devices = int(row["devices"])
        of_ring = row["ring_bytes"] / ring_bytes(n, FEATURES, OUTPUTS, devices)
        of_pass = row["pass_bytes"] / pass_bytes(LANDMARKS, DIRECTIONS, OUTPUTS)
        what = f"{devices} devices:"
        findings += [
            finding(f"{what} bytes of a product over those of the formula", of_ring, "1", abs(of_ring - 1) < 1e-3),
            finding(f"{what} bytes added up over those of the formula", of_pass, "1", abs(of_pass - 1) < 1e-3),
            finding(
                f"{what} rate of a product over that of one", row["entries_per_second"] / rows[0]["entries_per_second"]
            ),
            finding(f"{what} rate of the pass over that of one", row["rows_per_second"] / rows[0]["rows_per_second"]),
        ]
    iteration, streamed = map(int, given.paper_rows)
    paper = on_paper(iteration, 4096, given.entry_rate, given.flops, given.wire, given.reading)
    for row, other in zip(
        paper, on_paper(streamed, 4096, given.entry_rate, given.flops, given.wire, given.reading), strict=True
    ):
        row |= {name: other[name] for name in ("pass", "pass_wire", "pass_efficiency", "reading")}
    shown = dict.fromkeys(paper[0], "{:.3g}")
    show(f"On paper: an iteration of {iteration:,} rows, a pass over {streamed:,} rows, in seconds", paper, shown)
    rates = {name: getattr(given, name) for name in ("entry_rate", "flops", "wire", "reading")}
    claim = "On P devices a product computes 1 / P of the entries, and sends the bytes of its formula"
    save(given.out, claim, rows, findings, network="2_21_112", n=n, on_paper=paper, paper_rates=rates)


if __name__ == "__main__":
    main()
