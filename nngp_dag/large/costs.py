"""What the methods of `solve` cost: memory, kernel entries and operations, and the rates that turn them into a time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nngp_dag.kernels._gram import RESERVE
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.large.blocks import BlockKernel

# Landmarks by default: of a solution, and of a preconditioner.
_LANDMARKS, _PRECONDITIONER = 4096, 512
# Candidates for each landmark. More of them cost memory, and change little: they are a uniform sample of the rows.
_CANDIDATES = 16
# Iterations that times and entries of the iterative method assume.
_ITERATIONS = 50
# Columns of the pivots, and of random vectors, beside those of the result.
_PIVOTS, _PROBES = 256, 8
_BLOCK = 4096
# Kernel entries times pixel covariances of a block for images. It takes a minute or less, so that little is lost.
_PIXELS = 1 << 34


@dataclass(frozen=True)
class Rates:
    """Rates of one device, measured in about a second.

    Attributes:
      entries: Kernel entries per second.
      products: Operations per second of a matrix product in the precision of the inputs.
      algebra: Operations per second of a Cholesky factor in float64, on the host.
    """

    entries: float
    products: float
    algebra: float


@dataclass(frozen=True)
class Cost:
    """The cost of one method.

    Attributes:
      method: Its name.
      memory: Bytes that one process needs.
      parts: Bytes of every part, by name.
      entries: Number of kernel entries.
      products: Operations of matrix products on the kernel, in float32 or the precision of the inputs.
      algebra: Operations of factorizations in float64.
      obstacle: The reason why the method cannot be used; empty if it can.
    """

    method: str
    memory: int
    parts: dict[str, int]
    entries: float
    products: float
    algebra: float
    obstacle: str = ""

    def seconds(self, rates: Rates, devices: int) -> float:
        """Returns the expected time."""
        spread = self.entries / rates.entries + self.products / rates.products
        return spread / devices + self.algebra / rates.algebra


class Choice(NamedTuple):
    """One method as it would run: landmarks, rows among which they are chosen, rows of a block, and its cost."""

    landmarks: int
    candidates: int
    block: int
    cost: Cost


@dataclass(frozen=True)
class Sizes:
    """The numbers on which costs depend.

    Attributes:
      rows: Number of rows N.
      features: Number of features of one input.
      outputs: Number of outputs C.
      tests: Number of test inputs whose posterior is wanted.
      itemsize: Bytes of a kernel entry.
      pixels: Bytes of the covariances of pixels that exist at once.
      per_entry: Covariances of pixels for one kernel entry.
      budget: The memory budget in bytes.
      devices: Number of devices.
      factors: Whether the devices compute the dense factor, and not the host.
      ntk: Whether the kernel is the NTK.
    """

    rows: int
    features: int
    outputs: int
    tests: int
    itemsize: int
    pixels: int
    per_entry: int
    budget: int
    devices: int
    factors: bool
    ntk: bool

    @property
    def share(self) -> float:
        """The share of the devices that this process has."""
        return 1 / jax.process_count() if self.devices > 1 else 1.0

    def of_test(self, rows: int) -> int:
        """Returns the memory of right-hand sides with that many rows for test inputs, and of their covariance."""
        # Right-hand sides, solutions, residuals, a copy of them, and two arrays more for the kind "ntk". Each device of
        # a dense factor has a copy of its own.
        copies = 6 + (max(1, round(self.devices * self.share)) if self.factors else 0)
        return 8 * self.tests * (copies * rows + 4 * self.tests) + 3 * self.itemsize * self.tests * self.features

    def entries_of_test(self, rows: int, pairs: float) -> float:
        """Returns the kernel entries for test inputs; those of `pairs` of rows are computed for the NTK alone."""
        return self.tests * (rows + self.tests) + (self.tests * rows + pairs if self.tests and self.ntk else 0.0)


def choices(size: Sizes, landmarks: int | None) -> dict[str, Choice]:
    """Returns the three methods by name, in the order in which they are tried."""
    return {
        "dense": Choice(0, 0, 0, _dense(size)),
        "iterative": _iterative(size, landmarks),
        "landmarks": _landmarks(size, landmarks),
    }


def _dense(size: Sizes) -> Cost:
    n, several = size.rows, size.factors
    local = max(1, round(size.devices * size.share))
    # Devices compute the kernel in float64 at once, and once more for the residual. Each has all inputs.
    parts = {
        "interpreter and compiler": RESERVE,
        "inputs": size.itemsize * n * size.features * (1 + (2 * local if several else 2)),
        "kernel": 0 if several else size.itemsize * n * n,
        "factor in float64": int(8 * n * n * size.share),
        "test inputs": size.of_test(n),
        "pixels": size.pixels,
    }
    entries = n * n * (1.0 if several else 0.5) + size.entries_of_test(n, n * n / 2)
    return Cost("dense", sum(parts.values()), parts, entries, 0.0, n**3 / 3 * size.share)


def _selection(size: Sizes, m: int, candidates: int) -> int:
    """Returns the memory of the choice of landmarks: the candidates, their factor, and two blocks of columns."""
    per_row = 2 * size.features + (-(-m // _PIVOTS) + 1) * _PIVOTS + 4 * _PIVOTS
    return int(size.itemsize * candidates * (size.features + size.share * per_row))


def _iterative(size: Sizes, landmarks: int | None) -> Choice:
    n, b = size.rows, size.itemsize
    m = min(landmarks or _PRECONDITIONER, n)
    candidates = min(n, _CANDIDATES * m)
    parts = {
        "interpreter and compiler": RESERVE,
        "inputs": int(b * n * size.features * (1 + 3 * size.share)),
        "preconditioner": int(size.share * 3 * b * n * m) + 40 * m * m + _selection(size, m, candidates),
        "vectors in float64": int(8 * n * (size.outputs + size.tests + _PROBES) * (4 + 8 * size.share)),
        "test inputs": size.of_test(n),
        "pixels": size.pixels,
    }
    entries = candidates * (m + 1) + n * m + n * n * (_ITERATIONS + 2) + size.entries_of_test(n, n * n / 2)
    products = 2 * n * n * (size.outputs + size.tests + _PROBES) * (_ITERATIONS + 2) + 2 * n * m**2
    cost = Cost("iterative", sum(parts.values()), parts, float(entries), float(products), float(m**3))
    return Choice(m, candidates, 0, cost)


def _block(size: Sizes, m: int) -> int:
    """Returns the rows of a block on one device."""
    block = _BLOCK if not size.per_entry else max(8, min(_BLOCK, _PIXELS // (m * size.per_entry)))
    while block > 64 and 4 * size.itemsize * block * (m + size.features) > size.budget // 8:
        block //= 2
    # A few rows need no large block.
    return min(block, 1 << (-(-size.rows // size.devices) - 1).bit_length())


def _landmarks(size: Sizes, landmarks: int | None) -> Choice:
    m = landmarks or min(_LANDMARKS, max(1, size.rows // 2))
    while True:
        found = _of_landmarks(size, m)
        if found.cost.memory <= size.budget or landmarks is not None or m <= 64:
            return found
        m //= 2


def _of_landmarks(size: Sizes, m: int) -> Choice:
    n, b = size.rows, size.itemsize
    candidates = min(n, _CANDIDATES * m)
    while candidates > 2 * m and _selection(size, m, candidates) > (size.budget - RESERVE) * 2 // 3:
        candidates //= 2
    block = _block(size, m)
    # The choice of landmarks, the pass and the solution follow one another.
    local = max(1, round(size.devices * size.share))
    parts = {
        "interpreter and compiler": RESERVE,
        "candidates": b * candidates * size.features,
        "choice, pass or solution": max(
            _selection(size, m, candidates),
            8 * m * m * (2 + 2 * local) + 4 * b * local * block * (m + size.features),
            # The sums, their factors and the system, and copies at work; measured.
            8 * 9 * m * m,
        ),
        "targets": 8 * size.outputs * (candidates + 8 * m),
        "test inputs": size.of_test(m),
        "pixels": size.pixels,
    }
    entries = candidates * (m + 1) + n * m + size.entries_of_test(m, 0.0)
    # Panels on and above the diagonal take a little more than half of the product.
    products = n * m * m + candidates * m * m
    cost = Cost("landmarks", sum(parts.values()), parts, float(entries), float(products), 9.0 * m**3)
    return Choice(m, candidates, block, cost)


def measured(kernel: BlockKernel) -> Rates:
    """Returns the rates of one device, from a second of work."""
    random = np.random.default_rng(0)
    dtype = kernel.dtype
    with precision_of(np.dtype(np.float64)):
        rows = 2048 if not kernel.bytes_of_block else 2
        columns = min(2048, 4 * kernel.entries.columns) if not kernel.bytes_of_block else kernel.entries.columns
        x, z = (jnp.asarray(random.normal(size=(n, *kernel.shape)), dtype) for n in (rows, columns))
        entries = _repeated(jax.jit(kernel.entries.between), (kernel.weights, x, z)) * rows * columns
        wide = jnp.asarray(random.normal(size=(2048, 1024)), dtype)
        product = jax.jit(lambda v: jnp.matmul(v.T, v, precision=jax.lax.Precision.HIGHEST))
        products = _repeated(product, (wide,)) * 2 * 2048 * 1024**2
    matrix = random.normal(size=(1024, 1024))
    matrix = matrix @ matrix.T + 1024 * np.eye(1024)
    algebra = _repeated(lambda v: scipy.linalg.cholesky(v, lower=True), (matrix,)) * 1024**3 / 3
    return Rates(entries, products, algebra)


def _repeated(function: Callable[..., Any], arguments: tuple, seconds: float = 0.3) -> float:
    """Returns how often a function runs in a second."""
    jax.block_until_ready(function(*arguments))  # compiles
    best, start = math.inf, time.perf_counter()
    while time.perf_counter() - start < seconds or best == math.inf:
        before = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - before)
    return 1 / best
