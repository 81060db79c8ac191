"""Claim: importing `nngp_dag` and its kernels takes about the time of `import jax`.

The time to a first kernel is reported too, without a claim. Each statement runs in a fresh interpreter. The statements
take turns, so that all see the same load of the machine. Bytecode and file caches are warm, and the compilation cache
of JAX is off. The first kernel is that of the chain of three weighted edges on 64 inputs, from the start of the imports
to the numbers. The kernel of neural-tangents is compiled too. Before any timing, the benchmark checks that the imports
load no TensorFlow, and that both kernels agree.

    python benchmarks/import_time.py [--repeats 7] [--out benchmarks/results/import_time.json]
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import finding, largest_gap, pair, save, show, stax_chain

import nngp_dag as nd

STATEMENTS = {
    "import jax": "import jax",
    # Public names are loaded on first use, and the kernels import JAX.
    "import nngp_dag": "import nngp_dag; nngp_dag.kernel",
    "import nngp_dag.stax": "import nngp_dag.stax",
    "first kernel, nngp_dag": (
        "import numpy, nngp_dag as nd\n"
        "x = numpy.random.default_rng(0).normal(size=(64, 784)).astype('float32')\n"
        "nd.kernel(nd.zoo.chain(3), x).ntk.block_until_ready()"
    ),
    "first kernel, neural-tangents": (
        "import numpy, jax; from nngp_dag.kernels.neural_tangents import stax\n"
        "x = numpy.random.default_rng(0).normal(size=(64, 784)).astype('float32')\n"
        "layer = stax.Dense(1, W_std=2**0.5), stax.Relu()\n"
        "*_, kernel_fn = stax.serial(*layer * 4, stax.Dense(1, W_std=2**0.5))\n"
        "jax.block_until_ready(jax.jit(lambda x: tuple(kernel_fn(x, None, ('nngp', 'ntk'))))(x))"
    ),
}
# Bound on the ratio of the time of `import nngp_dag` to that of `import jax`.
IMPORTS = 1.3


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def seconds(statement: str) -> float:
    """Returns the seconds of one statement in a fresh interpreter, without the start of the interpreter."""
    return float(run(f"import time; t = time.perf_counter()\n{statement}\nprint(time.perf_counter() - t)"))


def check() -> None:
    if run("import nngp_dag, sys; nngp_dag.kernel; print('tensorflow' in sys.modules)") != "False":
        raise SystemExit("import nngp_dag loads tensorflow: nothing to time")
    x = np.random.default_rng(0).normal(size=(64, 784)).astype(np.float32)
    gap = largest_gap(pair(nd.zoo.chain(3), x), stax_chain(3)(x), diagonal=False)
    if gap > 1e-5:
        raise SystemExit(f"kernels of the chain differ by {gap:.1e}: nothing to time")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="number of timed rounds")
    parser.add_argument("--out", type=Path, help="JSON file for the results; an existing one is replaced")
    options = parser.parse_args(arguments)
    check()

    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(options.repeats + 1):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    # Without the first round, which fills the caches.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    rows = [{"what": name, "seconds": s, "over_import_jax": s / medians["import jax"]} for name, s in medians.items()]
    show("fresh interpreters", rows, {"what": "{}", "seconds": "{:.2f}", "over_import_jax": "{:.2f}"})
    imports = medians["import nngp_dag"] / medians["import jax"]
    kernels = medians["first kernel, nngp_dag"] / medians["first kernel, neural-tangents"]
    findings = [
        finding("time of `import nngp_dag` over that of `import jax`", imports, f"<= {IMPORTS}", imports <= IMPORTS),
        finding("time to the first kernel over that of neural-tangents", kernels),
    ]
    save(options.out, "import nngp_dag costs about what import jax costs", rows, findings, repeats=options.repeats)


if __name__ == "__main__":
    main()
