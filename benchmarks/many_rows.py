"""Claims: on P devices a product computes 1 / P of the kernel each, and sends as many bytes as a formula says.

1. Bytes that the compiled programs send between devices, against the formulas of docs/guides/large.md.
2. Kernel entries per second of all devices, and rows per second of the streamed pass, over those of one device. The
   devices of a CPU share its cores, so that 1 is the best that a ratio can be there; what is missing is overhead.
3. On one device, entries per second over those of the Gram product alone, and operations per second of the dense
   factor over those of a product in float64.
4. On paper: time and efficiency up to 64 GPUs, from the formulas and rates that are passed as options.

    python benchmarks/many_rows.py [--n 4096] [--data-dir TFDS] [--devices 1 2 4] [--out FILE.json]
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from common import FEATURES, finding, gram_product, load, parser_of, save, show, timed

import nngp_dag as nd
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocked import BlockedFactor
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.ring import Ring
from nngp_dag.large.sums import compiled, zeros

NETWORK, OUTPUTS, REPEATS = nd.Network("2_21_112"), 10, 5
LANDMARKS, DIRECTIONS, BLOCK, FLUSH = 1024, 64, 512, 16
_PEER = 8192  # rows of the peers' products
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
        if team.size == 1:
            found |= of_one_device(team, kernel, x)
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


def of_one_device(team: Team, kernel: BlockKernel, x: np.ndarray) -> dict[str, float]:
    """Measures the dense factor, and products of matrices as its peers; all in the mode of float64."""
    some = jax.numpy.asarray(x[:_PEER])
    _, seconds = timed(lambda: gram_product(some), REPEATS)
    found = {"gram_per_second": len(some) ** 2 / seconds}
    wide = some.astype(np.float64)
    _, seconds = timed(lambda: gram_product(wide), REPEATS)
    found["float64_per_second"] = 2 * len(wide) ** 2 * FEATURES / seconds
    factors: list[BlockedFactor] = []

    def factor() -> None:
        factors.clear()  # there may be no memory for two
        factors.append(BlockedFactor(team, kernel, x, 1.0))

    _, seconds = timed(factor, 1)
    return found | {"factor_seconds": seconds, "factor_per_second": len(x) ** 3 / 3 / seconds}


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


class Rates(NamedTuple):
    """Rates of one GPU and its host, per second, on which the times on paper depend."""

    entries: float
    products: float
    wire: float
    reading: float
    host: float


def on_paper(n_ring: int, n_pass: int, m: int, rates: Rates) -> list[dict[str, float]]:
    """Returns seconds of one iteration and of one solution by landmarks on 1 to 64 GPUs, and their efficiencies."""
    rows = []
    for devices in (1, 2, 4, 8, 16, 32, 64):
        entries = n_ring**2 / 2 / devices / rates.entries
        ring = ring_bytes(n_ring, FEATURES, OUTPUTS + 8, devices) / rates.wire if devices > 1 else 0.0
        work = n_pass * (m * m + 2 * FEATURES * m) / devices / rates.products
        flushes = n_pass / (devices * FLUSH * 4096)
        adding = flushes * 2 * (devices - 1) / devices * pass_bytes(m, DIRECTIONS, OUTPUTS) / rates.wire
        # The next block is read while the devices work.
        reading = n_pass * FEATURES * 4 / devices / rates.reading
        row = {"devices": devices, "iteration": entries + ring, "its_wire": ring, "pass": max(work + adding, reading)}
        rows.append(
            row | {"its_work": work, "its_sums": adding, "its_reading": reading, "solution": 9 * m**3 / rates.host}
        )
    alone = rows[0]
    for row in rows:
        whole, first = (of["pass"] + of["solution"] for of in (row, alone))
        row["iteration_efficiency"] = alone["iteration"] / (row["devices"] * row["iteration"])
        row["landmarks_efficiency"] = first / (row["devices"] * whole)
    return rows


def main() -> None:
    """Runs one process for every number of devices, and prints both tables."""
    parser = parser_of(__doc__, [4096])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4], help="numbers of devices of this machine")
    rate = parser.add_argument_group("rates of one GPU and its host, per second, for the table on paper")
    rate.add_argument("--entries", type=float, default=1.7e10, help="kernel entries")
    rate.add_argument("--products", type=float, default=4e13, help="operations of products in float32")
    rate.add_argument("--wire", type=float, default=4e10, help="bytes between two GPUs")
    rate.add_argument("--reading", type=float, default=2e9, help="bytes that a process reads")
    rate.add_argument("--host", type=float, default=1e11, help="operations of factors in float64 on the host")
    parser.add_argument("--paper", type=float, nargs=2, default=(1e6, 1e8), help="rows of an iteration, of a pass")
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
    for row in rows:
        if "gram_per_second" in row:
            of_gram, of_product = (
                row["entries_per_second"] / row["gram_per_second"],
                row["factor_per_second"] / row["float64_per_second"],
            )
            findings += [
                finding("entries of a product K V per second over those of the Gram product", of_gram),
                finding("operations of the dense factor per second over those of a product in float64", of_product),
            ]
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
    n_ring, n_pass = map(int, given.paper)
    rates = Rates(*(getattr(given, name) for name in Rates._fields))
    paper = on_paper(n_ring, n_pass, 4096, rates)
    title = f"On paper, seconds: an iteration of {n_ring:,} rows, a pass over {n_pass:,} rows with 4,096 landmarks"
    show(title, paper, dict.fromkeys(paper[0], "{:.3g}"))
    claim = "On P devices a product computes 1 / P of the kernel each, and sends the bytes of its formula"
    save(given.out, claim, rows, findings, network="2_21_112", n=n, on_paper=paper, paper_rates=rates._asdict())


if __name__ == "__main__":
    main()
