"""Kernel regression on MNIST from start to end: kernel, Cholesky factor, accuracy on the test images.

The kernel is the NTK of DAG#3 between N training images, and between test and training images, in float32 or float64.
The Cholesky factor is always in float64, because the kernel is badly conditioned. The time of the kernel is compared
with the time of the Gram product, and with the roofline. The roofline is the shortest time on this device: the larger
of half the product (the matrix is symmetric) and of writing the result, both measured.

Before any timing, the benchmark checks the entries of a kernel with tiles against small blocks in float64, and that the
factor reproduces the kernel. All of MNIST in float64 needs about 110 GiB of device memory.

    python benchmarks/mnist_regression.py --data-dir TFDS [--n 4096] [--dtype float32 float64] [--out FILE]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import checked, exact_pair, finding, gram_product, largest_gap, parser_of, save, show, timed, write

import nngp_dag as nd

CLAIM = "kernel, Cholesky factor in float64 and test accuracy on MNIST"
DAG = nd.Dag.from_code("2_21_112")
NUM_CLASSES, TOLERANCE = 10, 2e-5
# Bound on the time of the kernel on a GPU, in times of the product, for these numbers of images.
PRODUCTS, ASKED_AT = 1.5, (16384, 50000)


def images(data_dir: Any, split: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    data = nd.data.load_dataset("mnist", subset=count, split=split, data_dir=data_dir)
    return nd.data.normalize(data).reshape(len(data.labels), -1), np.asarray(data.labels)


def matrix(x1: jax.Array, x2: jax.Array | None = None) -> Any:
    return nd.kernel(DAG, x1, x2, get="ntk").ntk


def measure(few: np.ndarray, train: tuple, test: tuple, dtype: str, ridge: float, repeats: int) -> dict[str, Any]:
    """Times all steps. Between steps the device holds only the kernel, and later its factor."""
    x, labels = jnp.asarray(train[0], dtype), train[1]
    gap = largest_gap([matrix(jnp.asarray(few, dtype))], exact_pair(DAG, few)[1:])
    if gap > TOLERANCE:
        raise SystemExit(f"entries differ by {gap:.1e} from float64; nothing is timed")
    product = jax.jit(gram_product)
    _, product_s = timed(lambda: product(x), repeats)
    n = len(x)
    filled = jax.jit(lambda v: jnp.full((n, n), v))
    _, write_s = timed(lambda: filled(jnp.asarray(1, dtype)), repeats)
    first_s, kernel_s = timed(lambda: matrix(x), repeats)

    @jax.jit
    def factor_of(k: jax.Array) -> jax.Array:
        k = k.astype(jnp.float64)
        return jnp.linalg.cholesky(k + ridge * jnp.trace(k) / n * jnp.eye(n), symmetrize_input=False)

    k = matrix(x)
    factor = factor_of(k)
    rows = np.arange(0, n, max(1, n // 64))
    again = np.asarray(factor[rows] @ factor[rows].T)
    shifted = np.asarray(k[rows][:, rows], np.float64) + ridge * float(jnp.trace(k.astype(jnp.float64))) / n * np.eye(
        len(rows)
    )
    if not np.allclose(again, shifted, rtol=1e-8):
        raise SystemExit("the factor does not reproduce the kernel")
    del factor
    # The factorization was compiled by the check.
    factor_s, _ = timed(lambda: factor_of(k), 0)
    factor = factor_of(k)
    del k

    def accuracy() -> jax.Array:
        targets = jnp.asarray(np.eye(NUM_CLASSES)[labels] - 1 / NUM_CLASSES)
        weights = jax.scipy.linalg.cho_solve((factor, True), targets)
        scores = matrix(jnp.asarray(test[0], dtype), x).astype(jnp.float64) @ weights
        return (scores.argmax(axis=1) == jnp.asarray(test[1])).mean()

    _, predict_s = timed(accuracy, 1)
    return {
        "n": n,
        "dtype": dtype,
        "product_s": product_s,
        "first_s": first_s,
        "kernel_s": kernel_s,
        "times_the_product": kernel_s / product_s,
        "share_of_roofline": max(product_s / 2, write_s) / kernel_s,
        "factor_s": factor_s,
        "predict_s": predict_s,
        "accuracy": float(accuracy()),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = parser_of(__doc__, (4096,))
    parser.add_argument("--dtype", choices=("float32", "float64"), nargs="+", default=["float32", "float64"])
    parser.add_argument("--test", type=int, default=10_000, help="number of test images")
    parser.add_argument("--ridge", type=float, default=1e-6, help="ridge, in units of the mean diagonal entry")
    parser.add_argument("--repeats", type=int, default=3, help="number of timed calls")
    options = parser.parse_args()
    if options.data_dir is None:
        parser.error("expected --data-dir: accuracy is that on MNIST")
    test = images(options.data_dir, "test", options.test)
    few, _ = images(options.data_dir, "train", checked())
    rows, findings = [], []
    # float64 is on throughout, for the factor; the precision of the kernel follows its inputs.
    with jax.enable_x64(True):
        for n in options.n:
            train = images(options.data_dir, "train", n)
            for dtype in options.dtype:
                row = measure(few, train, test, dtype, options.ridge, options.repeats)
                rows.append(row)
                asked: tuple = ()
                if jax.default_backend() != "cpu" and dtype == "float32" and n in ASKED_AT:
                    asked = (f"<= {PRODUCTS}", row["times_the_product"] <= PRODUCTS)
                where = f"N = {n:,}, {dtype}"
                what = f"{where}: time of the NTK over that of the product x xᵀ"
                findings.append(finding(what, row["times_the_product"], *asked))
                findings.append(finding(f"{where}: share of the test images of MNIST that are right", row["accuracy"]))
                if options.out is not None:
                    # Written after every size, because a larger one may run out of memory.
                    write(options.out, CLAIM, rows, findings)

    columns = {"n": "{:,}", "dtype": "{}", "product_s": "{:.3f}", "kernel_s": "{:.3f}", "times_the_product": "{:.2f}"}
    columns |= {"share_of_roofline": "{:.0%}", "factor_s": "{:.2f}", "predict_s": "{:.2f}", "accuracy": "{:.2%}"}
    show(f"NTK regression on MNIST, {len(test[1]):,} test images", rows, columns)
    save(options.out, CLAIM, rows, findings)


if __name__ == "__main__":
    main()
