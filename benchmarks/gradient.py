"""Claim: a kernel's gradient in the network's numbers takes a few times as long as the kernel.

The scalar is a weighted sum of the NNGP of N inputs, as in the derivative of a marginal likelihood. The gradient is in
`w_std` and `b_std` of the layer, by reverse mode. Forward pass and gradient run in turn in one process, compiled, and
the ratio is that of their medians. Before any timing, the gradient is checked against central differences in float64.

    python benchmarks/gradient.py [--n 1000] [--data-dir TFDS] [--out benchmarks/results/gradient.json]
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finding, load, parser_of, save, show

import nngp_dag as nd

# Times as long as the forward pass: what a gradient should take at most.
ASKED = 3.0
REPEATS = 9
NUMBERS = {"w_std": 1.3, "b_std": 0.3}
LAYERS = {
    "relu, biases": nd.Dense(w_std=NUMBERS["w_std"], b_std=NUMBERS["b_std"]),
    "erf, biases": nd.Dense(activation="erf", order="act-linear", w_std=NUMBERS["w_std"], b_std=NUMBERS["b_std"]),
}


def weighted_sum(layer: nd.Dense, x: np.ndarray, weights: np.ndarray) -> Callable[[dict], jax.Array]:
    """Returns the function from `w_std` and `b_std` to the weighted sum of the NNGP of DAG#3."""
    network = nd.Network("DAG#3", layer=layer, aggregation="scaled-sum")

    def of(numbers: dict) -> jax.Array:
        return jnp.vdot(weights, nd.kernel(network, x, get="nngp", parameters={"layer": numbers}).nngp)

    return of


def check(layer: nd.Dense) -> None:
    """Checks a gradient against central differences, in float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        of = jax.jit(weighted_sum(layer, rng.normal(size=(8, 3)), rng.normal(size=(8, 8))))
        for name, slope in jax.grad(of)(NUMBERS).items():
            more, less = (of({**NUMBERS, name: NUMBERS[name] + step}) for step in (1e-5, -1e-5))
            np.testing.assert_allclose(slope, (more - less) / 2e-5, rtol=1e-6)


def compared(sides: dict[str, Callable[[dict], Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the seconds of each side's first call, and the median of later ones; the sides take turns."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(REPEATS + 1):
        for side, run in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(run(NUMBERS))
            times[side].append(time.perf_counter() - start)
    return {side: of[0] for side, of in times.items()}, {side: statistics.median(of[1:]) for side, of in times.items()}


def main() -> None:
    options = parser_of(__doc__, [1000]).parse_args()
    rows, findings = [], []
    for n in options.n:
        x = load(n, options.data_dir)
        weights = np.random.default_rng(1).normal(size=(n, n)).astype(np.float32)
        for name, layer in LAYERS.items():
            check(layer)
            of = weighted_sum(layer, x, weights)
            first, times = compared({"forward": jax.jit(of), "gradient": jax.jit(jax.value_and_grad(of))})
            ratio = times["gradient"] / times["forward"]
            rows.append({"of": name, "n": n, "ratio": ratio})
            for side in times:
                rows[-1] |= {f"{side}_ms": 1e3 * times[side], f"{side}_first_s": first[side]}
            what = f"{name}, N = {n:,}: time of value and gradient over that of the value"
            findings.append(finding(what, ratio, f"<= {ASKED:g}", ratio <= ASKED))
    formats = {"of": "{}", "n": "{:,}", "forward_ms": "{:.1f}", "gradient_ms": "{:.1f}", "ratio": "{:.2f}"}
    show("NNGP of DAG#3, float32", rows, formats | {"forward_first_s": "{:.1f}", "gradient_first_s": "{:.1f}"})
    data = "random" if options.data_dir is None else "mnist"
    save(options.out, "a gradient takes a few times as long as its kernel", rows, findings, data=data)


if __name__ == "__main__":
    main()
