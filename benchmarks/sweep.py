"""Claim: a sweep over all 729 codes of three blocks takes 100 times less time per code than neural-tangents.

neural-tangents compiles every graph separately. Its time per graph is that of three chains, for which its kernels are
right: each is traced, compiled and run once on the same images. This package makes one pass over all 729 codes: it
reads them, finds those with equal kernels, compiles one program, and computes NNGP and NTK of every distinct kernel.
The ratio is per code, with the 67 codes without a path and those with equal kernels. The ratio per distinct kernel is
printed too.

Before any timing, the benchmark checks every kernel of the batch against a single call in float64. It also checks the
chains against neural-tangents, and λmin and λmax against LAPACK.

Last, the benchmark times λmin and λmax of all kernels with residuals, which need eigenvectors. LAPACK is timed in its
fastest way to two eigenvalues with vectors (all vectors, or two calls for one each), and without vectors.

    python benchmarks/sweep.py [--n 256 1024] [--data-dir TFDS] [--out benchmarks/results/sweep.json]
"""

import time
from typing import Any

import jax
import numpy as np
import scipy.linalg
from common import exact_pair, finding, largest_gap, load, pair, parser_of, save, show, stax_chain, timed

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes

ASKED, CODES = 100, 729
CHAINS = (1, 2, 3)


def ours(x: np.ndarray) -> tuple[dict[nd.Dag, tuple[np.ndarray, np.ndarray]], int]:
    """Returns the distinct kernels of the 729 codes, each by a graph that has it, and the number of codes with one."""
    classes, found, count = new_kernel_classes(), {}, 0
    for code in nd.zoo.codes(3):
        try:
            network = as_network(nd.Dag.from_code(code))
        except nd.errors.GraphError:
            continue
        count += 1
        found.setdefault(classes.add(network), network)
    network = next(iter(found.values()))
    stacks = kernels_of_classes(classes, list(found), network, x, batch=128)
    pairs = (pair for s in stacks for pair in zip(s.digests, zip(s.nngp, s.ntk, strict=True), strict=True))
    kernels = dict(pairs)
    return {found[digest].dag: both for digest, both in kernels.items()}, count


def check(x: np.ndarray, tolerance: float) -> None:
    """Checks the results of all methods that are timed."""
    for dag, both in ours(x)[0].items():
        gap = largest_gap(both, exact_pair(dag, x))
        if gap > tolerance:
            raise SystemExit(f"kernels of {dag.code} differ by {gap:.1e}; nothing is timed")
        ends = [(s.lambda_min, s.lambda_max) for s in map(nd.spectrum, both)] if x.dtype == np.float64 else []
        for (low, high), matrix in zip(ends, both, strict=False):
            values = scipy.linalg.eigvalsh(matrix)
            if max(abs(low - values[0]), abs(high - values[-1])) > 1e-12 * values[-1]:
                raise SystemExit(f"ends of the spectrum of {dag.code} differ from LAPACK's; nothing is timed")


def by_lapack(matrix: np.ndarray, all_vectors: bool) -> None:
    """Computes λmin and λmax with their eigenvectors by LAPACK."""
    if all_vectors:
        scipy.linalg.eigh(matrix, driver="evd")
    else:
        for end in (0, len(matrix) - 1):
            scipy.linalg.eigh(matrix, subset_by_index=[end, end])


def measure(x: np.ndarray) -> dict[str, Any]:
    """Times a sweep on inputs of one dtype."""
    jax.clear_caches()
    start = time.perf_counter()
    kernels, count = ours(x)
    first = time.perf_counter() - start
    start = time.perf_counter()
    ours(x)
    again = time.perf_counter() - start
    with jax.enable_x64(x.dtype == np.float64):
        each = float(np.mean([timed(lambda edges=edges: stax_chain(edges)(x), 0)[0] for edges in CHAINS]))
    row = {
        "n": len(x),
        "dtype": x.dtype.name,
        "with_a_kernel": count,
        "different": len(kernels),
        "first_s": first,
        "again_s": again,
        "ms_a_code": 1e3 * first / CODES,
        "neural_tangents_s": each,
        "ratio": each * CODES / first,
        "ratio_per_kernel": each * len(kernels) / first,
    }
    if x.dtype == np.float64:
        # Contiguous copies: LAPACK is slow on matrices of a stack, whose rows are far apart in memory.
        matrices = [np.ascontiguousarray(matrix) for both in kernels.values() for matrix in both]
        ways = {
            "spectra_s": nd.spectrum,
            "all_vectors_s": lambda matrix: by_lapack(matrix, True),
            "two_calls_s": lambda matrix: by_lapack(matrix, False),
            "lapack_values_s": scipy.linalg.eigvalsh,
        }
        # All methods on one matrix before the next, so that a slow phase of the machine affects all of them.
        row |= dict.fromkeys(ways, 0.0)
        for matrix in matrices:
            for name, way in ways.items():
                row[name] += timed(lambda way=way, matrix=matrix: way(matrix), 0)[0]
        row["lapack_s"] = min(row.pop("all_vectors_s"), row.pop("two_calls_s"))
    return row


def main() -> None:
    """Runs the benchmark."""
    options = parser_of(__doc__, (256, 1024)).parse_args()
    rows, findings = [], []
    for n in options.n:
        x = load(n, options.data_dir)
        for edges in CHAINS:
            gap = largest_gap(pair(nd.zoo.chain(edges), x), stax_chain(edges)(x), diagonal=False)
            if gap > 1e-5:
                raise SystemExit(f"kernels of the chain of {edges} differ by {gap:.1e}; nothing is timed")
        for dtype in (np.float32, np.float64):
            check(x.astype(dtype), 1e-5 if dtype == np.float32 else 1e-12)
            row = measure(x.astype(dtype))
            rows.append(row)
            where = f"N = {n:,}, {row['dtype']}"
            asked: Any = (f">= {ASKED}", row["ratio"] >= ASKED) if n == 256 else ()
            per = f"{where}: time of neural-tangents per DAG over that of the sweep per"
            findings.append(finding(f"{per} code", row["ratio"], *asked))
            findings.append(finding(f"{per} different kernel", row["ratio_per_kernel"]))
            if "spectra_s" in row:
                times = row["spectra_s"] / row["lapack_s"]
                asked = ("<= 1", times <= 1) if n == 256 else ()
                ends = f"{where}: time of λmin and λmax with residuals over that of LAPACK"
                findings.append(finding(f"{ends} with vectors", times, *asked))
                times = row["spectra_s"] / row["lapack_values_s"]
                findings.append(finding(f"{ends} without vectors", times))

    columns = {"n": "{:,}", "dtype": "{}", "different": "{}", "first_s": "{:.2f}", "again_s": "{:.2f}"}
    columns |= {"ms_a_code": "{:.2f}", "neural_tangents_s": "{:.2f}", "ratio": "{:.0f}", "ratio_per_kernel": "{:.1f}"}
    columns |= dict.fromkeys(("spectra_s", "lapack_s", "lapack_values_s"), "{:.2f}")
    show("729 codes, NNGP and NTK", rows, columns)
    data = "random" if options.data_dir is None else "mnist"
    claim = "kernels of all 729 codes of three blocks, per code, against neural-tangents (compile and run)"
    save(options.out, claim, rows, findings, data=data)


if __name__ == "__main__":
    main()
