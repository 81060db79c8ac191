"""Claim: the time of kernels is linear in nodes and in DAGs, and quadratic in inputs.

- Nodes: the graphs are ladders, whose number of paths grows exponentially, on 64 inputs. With biases, the recursion
  runs for every pair of inputs; without biases, the kernels are Chebyshev series in the angle.
- DAGs: the graphs are random, with 8 nodes and distinct kernels, on 64 inputs. Batches of about equal size share a
  compiled program.
- Inputs: the graph is the chain of three weighted edges.

Times are medians after the first call, which compiles and computes the series. The exponent is the slope of log time
over log size, for the upper half of the sizes. Before any timing, the benchmark checks ladders and the chain against
small blocks in float64, and random graphs in a batch against one call each.

    python benchmarks/scaling.py [--n 512 1024 2048 4096 8192] [--data-dir TFDS] [--out benchmarks/results/scaling.json]
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from common import checked, exact_pair, finding, largest_gap, load, pair, parser_of, save, show, timed

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes

NODES, DAGS = (16, 32, 64, 128, 256, 512), (32, 64, 128, 256, 512, 1024)
INPUTS, BATCH, REPEATS = 64, 128, 15
# Scaled sums, because sums grow exponentially along a ladder, and leave float32 after about 200 nodes.
LADDER: dict[str, Any] = {"order": "act-linear", "aggregation": "scaled-sum", "get": "ntk"}
BIASES: dict[str, Any] = {"b_std": 0.1}
# Bounds on the measured exponents of linear and of quadratic time.
LINEAR, QUADRATIC = 1.15, 2.15


def random_networks(count: int) -> list:
    """Returns networks of random graphs with 8 nodes and distinct kernels."""
    rng, classes, networks = np.random.default_rng(0), new_kernel_classes(), {}
    while len(networks) < count:
        code = "_".join("".join(map(str, rng.choice(3, size=t))) for t in range(1, 8))
        try:
            network = as_network(nd.Dag.from_code(code))
        except nd.errors.GraphError:
            continue
        networks.setdefault(classes.add(network), network)
    return list(networks.values())


def in_batches(networks: Sequence[Any], x: np.ndarray) -> np.ndarray:
    """Returns the NTKs of networks, (networks, N, N), computed in batches."""
    classes = new_kernel_classes()
    outputs = [classes.add(network) for network in networks]
    stacks = kernels_of_classes(classes, outputs, networks[0], x, batch=min(BATCH, len(networks)))
    return np.concatenate([stack.ntk for stack in stacks])


def check(x: np.ndarray, many: np.ndarray) -> None:
    networks = random_networks(DAGS[0])
    for batched, network in list(zip(in_batches(networks, x), networks, strict=True))[::8]:
        np.testing.assert_allclose(batched, nd.kernel(network, x, get="ntk").ntk, rtol=1e-4)
    chain = nd.zoo.chain(3)
    gap = largest_gap(pair(chain, many), exact_pair(chain, many))
    if gap > 2e-5:
        raise SystemExit(f"kernels of the chain differ by {gap:.1e}; nothing is timed")
    ladder = nd.zoo.ladder(NODES[0])
    for options in (LADDER, LADDER | BIASES):
        exact = nd.kernel(ladder, x.astype(np.float64), **options).ntk
        np.testing.assert_allclose(nd.kernel(ladder, x, **options).ntk, exact, rtol=1e-4)


def main() -> None:
    """Runs the benchmark."""
    options = parser_of(__doc__, (512, 1024, 2048, 4096, 8192)).parse_args()
    few = load(INPUTS, options.data_dir)
    check(few, load(checked(), options.data_dir))
    networks = random_networks(DAGS[-1])
    all_inputs = jnp.asarray(load(max(options.n), options.data_dir))

    def of_nodes(size: int) -> Callable[[], Any]:
        return lambda: nd.kernel(nd.zoo.ladder(size), few, **LADDER, **BIASES)

    def of_nodes_in_series(size: int) -> Callable[[], Any]:
        return lambda: nd.kernel(nd.zoo.ladder(size), few, **LADDER)

    def of_dags(size: int) -> Callable[[], Any]:
        return lambda: in_batches(networks[:size], few)

    def of_inputs(size: int) -> Callable[[], Any]:
        return lambda: pair(nd.zoo.chain(3), all_inputs[:size])

    rows, findings = [], []
    axes = (
        ("nodes", "ladders with biases: exponent of time in the number of nodes", NODES, of_nodes, LINEAR),
        (
            "nodes, Chebyshev series",
            "ladders without biases (Chebyshev series): exponent of time in the number of nodes",
            NODES,
            of_nodes_in_series,
            LINEAR,
        ),
        ("DAGs", "random DAGs in batches: exponent of time in the number of DAGs", DAGS, of_dags, LINEAR),
        ("inputs", "chain: exponent of time in the number of inputs", sorted(options.n), of_inputs, QUADRATIC),
    )
    for axis, label, sizes, call, limit in axes:
        for size in sizes:
            first, seconds = timed(call(size), REPEATS)
            rows.append({"of": axis, "size": size, "first_s": first, "ms": 1e3 * seconds})
        upper = [row for row in rows if row["of"] == axis][len(sizes) // 2 :]
        logs = [np.log([row[name] for row in upper]) for name in ("size", "ms")]
        slope = float(np.polyfit(logs[0], logs[1], 1)[0])
        findings.append(finding(label, slope, f"<= {limit}", slope <= limit))

    show("NTK, float32", rows, {"of": "{}", "size": "{:,}", "first_s": "{:.2f}", "ms": "{:.2f}"})
    data = "random" if options.data_dir is None else "mnist"
    save(options.out, "time is linear in nodes and DAGs, quadratic in inputs", rows, findings, data=data)


if __name__ == "__main__":
    main()
