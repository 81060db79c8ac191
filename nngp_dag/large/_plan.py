"""`plan`: memory, kernel entries and time of `solve` before the work, and the method with its reason."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.sharding import Mesh

from nngp_dag import forms
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_option, check_whole
from nngp_dag.kernels._gram import RESERVE, bytes_of, numbers_per_column
from nngp_dag.kernels.inputs import DTYPES, precision_of
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team

if TYPE_CHECKING:
    import pandas

METHODS = ("auto", "dense", "landmarks", "iterative")
KINDS = ("ntk", "nngp")

# Landmarks by default: of a solution, and of a preconditioner.
_LANDMARKS, _PRECONDITIONER = 4096, 512
# Candidates for each landmark. More of them cost memory, and change little: they are a uniform sample of the rows.
_CANDIDATES = 16
# Rows up to which "auto" takes the exact method whose time grows with their square.
_ITERATIVE_ROWS = 100_000
# Iterations that times and entries of the iterative method assume.
_ITERATIONS = 50
# Columns of the pivots, and of random vectors, beside those of the result.
_PIVOTS, _PROBES = 256, 8
_BLOCK = 4096
# Kernel entries times pixel covariances of a block for images. It takes a minute or less, so that little is lost.
_PIXELS = 1 << 34


# Obstacles beside memory, and what to do about them.
_IN_PASSES = "needs all rows in memory, and batches are read in passes"
_NO_COVARIANCE = "has no covariance for the NTK"
_REMEDIES = {
    _IN_PASSES: "pass arrays, or `method='auto'`",
    _NO_COVARIANCE: "take the NNGP, or pass arrays and `method='iterative'`",
}


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

    def seconds(self, rates: "Rates", devices: int) -> float:
        """Returns the expected time."""
        spread = self.entries / rates.entries + self.products / rates.products
        return spread / devices + self.algebra / rates.algebra


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


@dataclass(frozen=True, repr=False)
class Plan(Described):
    """What `solve` would do, and its cost.

    Attributes:
      method: The chosen method.
      reason: The reason for the choice.
      rows: Number of rows N.
      landmarks: Number of landmarks, of the solution or of the preconditioner; 0 for "dense".
      candidates: Number of rows among which they are chosen.
      block: Rows of a block on one device.
      devices: Number of devices.
      budget: The memory budget in bytes.
      costs: The costs of the three methods, by name.
      way: The back end that computes kernel entries.
      rates: Measured rates, or None without calibration.

    Examples:
      >>> import nngp_dag as nd
      >>> found = nd.plan("2_21_112", 1_000_000, 784, landmarks=4096, calibrate=False)
      >>> found.method, f"{found.cost.entries:.3g}"
      ('landmarks', '4.36e+09')
    """

    method: str
    reason: str
    rows: int
    landmarks: int
    candidates: int
    block: int
    devices: int
    budget: int
    costs: dict[str, Cost] = field(compare=False)
    way: str = ""
    rates: Rates | None = field(default=None, compare=False)

    @property
    def cost(self) -> Cost:
        """The cost of the chosen method."""
        return self.costs[self.method]

    @property
    def seconds(self) -> float | None:
        """The expected time without compilation; None without calibration."""
        return None if self.rates is None else self.cost.seconds(self.rates, self.devices)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with one row for every method: memory, kernel entries, expected time, and obstacle."""
        import pandas

        rows = []
        for cost in self.costs.values():
            seconds = None if self.rates is None else cost.seconds(self.rates, self.devices)
            row = {"method": cost.method, "chosen": cost.method == self.method, "memory": cost.memory}
            row |= {"entries": cost.entries, "products": cost.products, "algebra": cost.algebra}
            rows.append({**row, "seconds": seconds, "obstacle": cost.obstacle})
        return pandas.DataFrame(rows)

    def _facts(self) -> dict[str, str]:
        facts = {"": self.method, "reason": repr(self.reason), "rows": forms.count(self.rows)}
        if self.landmarks:
            facts |= {"landmarks": forms.count(self.landmarks), "candidates": forms.count(self.candidates)}
        facts |= {"memory": in_bytes(self.cost.memory), "entries": f"{self.cost.entries:.3g}"}
        if self.seconds is not None:
            facts["time"] = in_time(self.seconds)
        return facts | ({"devices": str(self.devices)} if self.devices > 1 else {})


def in_bytes(count: int) -> str:
    """Writes a number of bytes.

    Examples:
      >>> in_bytes(3 * 2**30), in_bytes(700 * 2**20)
      ('3 GiB', '700 MiB')
    """
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def in_time(seconds: float) -> str:
    """Writes a time.

    Examples:
      >>> in_time(0.5), in_time(90.0), in_time(7200.0), in_time(1e6)
      ('0.5 s', '90 s', '2 h', '11.6 days')
    """
    if seconds < 120:
        return f"{seconds:.2g} s"
    for size, name in ((60, "min"), (3600, "h")):
        if seconds < 100 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def plan(
    network: Network | Dag | str | NetworkSource,
    rows: int,
    features: int | Sequence[int],
    *,
    outputs: int = 1,
    test_rows: int = 0,
    kind: str = "ntk",
    method: str = "auto",
    landmarks: int | None = None,
    memory_budget: int | str = "4 GiB",
    mesh: Mesh | None = None,
    dtype: str = "float32",
    calibrate: bool = True,
    **architecture: Unpack[Architecture],
) -> Plan:
    """Says what `solve` would do for N rows, and what that costs, before any of it is done.

    Methods are tried in the order dense, iterative, landmarks. "auto" takes the first one that fits into the memory
    budget, and the iterative one only up to 100,000 rows. For convolutions and pooling the memory counts the
    covariances of pixels that exist at once. Time is expected from rates that are measured in about a second on one
    device: kernel entries, a matrix product, a Cholesky factor. It leaves out compilation and the reading of data.

    Args:
      network: The network, as in `kernel`.
      rows: Number of rows N.
      features: Number of features of an input, or its shape, such as (28, 28, 1).
      outputs: Number of outputs C.
      test_rows: Number of test inputs whose posterior is wanted.
      kind: "ntk" or "nngp".
      method: "auto", or the method that is wanted: "dense", "landmarks" or "iterative".
      landmarks: Number of landmarks m. By default 4,096 for a solution and 512 for a preconditioner, or fewer for few
        rows or little memory.
      memory_budget: Largest memory of the process, in bytes or as a text such as "6 GiB".
      mesh: Mesh of devices with one axis; None for one device, or for all of several processes.
      dtype: Precision of kernel entries, "float32" or "float64".
      calibrate: Whether rates are measured. Without them there are no times.
      **architecture: Options of the architecture, as in `kernel`.

    Returns:
      A `Plan`.

    Raises:
      GraphError: `network` is no graph, or its operations do not fit the images.
      InputError: An argument is out of range, or no method, or not the wanted one, fits into the memory budget.

    Examples:
      >>> import nngp_dag as nd
      >>> nd.plan("2_21_112", 5000, 784, calibrate=False).reason
      'exact, and the kernel of 5,000 rows and its factor fit into 4 GiB'
    """
    network = single_output(as_network(network, "network", plan, **architecture), plan)
    rows, outputs = check_whole("rows", rows, 1), check_whole("outputs", outputs, 1)
    test_rows = check_whole("test_rows", test_rows, 0)
    given = (features,) if isinstance(features, (int, np.integer)) else tuple(features)
    shape = tuple(check_whole("features", size, 1) for size in given)
    check_option("dtype", dtype, DTYPES)
    sizes, limits = (rows, shape, outputs, test_rows), (landmarks, memory_budget, Team(mesh), np.dtype(dtype))
    found = planned(network, *sizes, kind, method, *limits)
    if not calibrate:
        return found
    return dataclasses.replace(found, rates=_rates(BlockKernel(network, kind, _flat(network, shape), np.dtype(dtype))))


def single_output(network: Network, caller: Callable[..., Any]) -> Network:
    """Returns a network with one output and one input node.

    Raises:
      InputError: It has several.
    """
    if len(network.dag.outputs) > 1:
        raise InputError(f"Expected a graph with one output, got {len(network.dag.outputs)}; call `solve` for each")
    return network


def _flat(network: Network, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if network.image_operations else (math.prod(shape),)


def planned(
    network: Network,
    rows: int,
    shape: tuple[int, ...],
    outputs: int,
    test_rows: int,
    kind: str,
    method: str,
    landmarks: int | None,
    memory_budget: int | str,
    team: Team,
    dtype: np.dtype,
    streamed: bool = False,
) -> Plan:
    """Returns the plan without calibration.

    Args:
      network: The network.
      rows: Number of rows.
      shape: Shape of one input.
      outputs: Number of outputs.
      test_rows: Number of test inputs whose posterior is wanted.
      kind: "ntk" or "nngp".
      method: The wanted method, or "auto".
      landmarks: Number of landmarks, or None.
      memory_budget: The memory budget.
      team: The devices.
      dtype: Precision of kernel entries.
      streamed: Whether rows come in batches, which only one pass at a time can read.
    """
    check_option("kind", kind, KINDS)
    check_option("method", method, METHODS)
    budget = bytes_of(memory_budget)
    shape = _flat(network, shape)
    if landmarks is not None:
        landmarks = min(check_whole("landmarks", landmarks, 1), rows)
    kernel = BlockKernel(network, kind, shape, dtype, memory=max(2**20, (budget - RESERVE) // 4))
    features, pixels, devices = math.prod(shape), kernel.bytes_of_block, (team.size, team.factors)
    size = _Sizes(rows, features, outputs, test_rows, dtype.itemsize, pixels, budget, *devices, kind == "ntk")
    per_entry = numbers_per_column(network, shape[:-1])
    choices = {
        "dense": (0, 0, _dense(size)),
        "iterative": _iterative(size, landmarks),
        "landmarks": _landmarks(size, landmarks, per_entry),
    }
    obstacles = {name: cost.obstacle for name, (_, _, cost) in choices.items()}
    for name, (_, _, cost) in choices.items():
        if not obstacles[name] and streamed and name != "landmarks":
            obstacles[name] = _IN_PASSES
        if not obstacles[name] and name == "landmarks" and test_rows and kind == "ntk":
            obstacles[name] = _NO_COVARIANCE
        if not obstacles[name] and cost.memory > budget:
            obstacles[name] = f"takes {in_bytes(cost.memory)}, above the budget of {in_bytes(budget)}"
    chosen, reason = _chosen(method, rows, budget, obstacles)
    costs = {name: dataclasses.replace(of, obstacle=obstacles[name]) for name, (_, _, of) in choices.items()}
    m, candidates, _ = choices[chosen]
    block = _block(size, m, per_entry) if chosen == "landmarks" else 0
    return Plan(chosen, reason, rows, m, candidates, block, team.size, budget, costs, kernel.way)


def _chosen(method: str, rows: int, budget: int, obstacles: dict[str, str]) -> tuple[str, str]:
    """Returns the method, and the reason."""
    if method != "auto":
        if obstacles[method]:
            usual = "raise `memory_budget`, lower `landmarks`, take fewer test inputs, or pass `method='auto'`"
            remedy = _REMEDIES.get(obstacles[method], usual)
            raise InputError(f"Expected a method that is possible, got {method!r}, which {obstacles[method]}; {remedy}")
        return method, "asked for"
    free = [name for name, obstacle in obstacles.items() if not obstacle]
    if "dense" in free:
        return "dense", f"exact, and the kernel of {rows:,} rows and its factor fit into {in_bytes(budget)}"
    if "iterative" in free and (rows <= _ITERATIVE_ROWS or "landmarks" not in free):
        why = f", and landmarks {_NO_COVARIANCE[4:]}" if obstacles["landmarks"] == _NO_COVARIANCE else ""
        return "iterative", f"exact, and the dense method {obstacles['dense']}{why}"
    if "landmarks" in free:
        why = f"over {_ITERATIVE_ROWS:,} rows" if "iterative" in free else f"the exact method {obstacles['iterative']}"
        return "landmarks", why
    last = "iterative" if obstacles["landmarks"] == _NO_COVARIANCE else "landmarks"
    if obstacles[last] == _IN_PASSES:
        raise InputError(f"Expected the NNGP for covariances from batches, got the NTK; {_REMEDIES[_NO_COVARIANCE]}")
    raise InputError(
        f"Expected a `memory_budget` for one of the methods, got {in_bytes(budget)}: {last} {obstacles[last]}; "
        "raise it, lower `landmarks`, or take fewer test inputs"
    )


@dataclass(frozen=True)
class _Sizes:
    """The numbers on which costs depend."""

    rows: int
    features: int
    outputs: int
    tests: int
    itemsize: int
    pixels: int
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


def _dense(size: _Sizes) -> Cost:
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


def _selection(size: _Sizes, m: int, candidates: int) -> int:
    """Returns the memory of the choice of landmarks: the candidates, their factor, and two blocks of columns."""
    per_row = 2 * size.features + (-(-m // _PIVOTS) + 1) * _PIVOTS + 4 * _PIVOTS
    return int(size.itemsize * candidates * (size.features + size.share * per_row))


def _iterative(size: _Sizes, landmarks: int | None) -> tuple[int, int, Cost]:
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
    return m, candidates, Cost("iterative", sum(parts.values()), parts, float(entries), float(products), float(m**3))


def _block(size: _Sizes, m: int, per_entry: int) -> int:
    """Returns the rows of a block on one device."""
    block = _BLOCK if not per_entry else max(8, min(_BLOCK, _PIXELS // (m * per_entry)))
    while block > 64 and 4 * size.itemsize * block * (m + size.features) > size.budget // 8:
        block //= 2
    # A few rows need no large block.
    return min(block, 1 << (-(-size.rows // size.devices) - 1).bit_length())


def _landmarks(size: _Sizes, landmarks: int | None, per_entry: int) -> tuple[int, int, Cost]:
    m = landmarks or min(_LANDMARKS, max(1, size.rows // 2))
    while True:
        cost = _cost_of_landmarks(size, m, per_entry)
        if cost[2].memory <= size.budget or landmarks is not None or m <= 64:
            return cost
        m //= 2


def _cost_of_landmarks(size: _Sizes, m: int, per_entry: int) -> tuple[int, int, Cost]:
    n, b = size.rows, size.itemsize
    candidates = min(n, _CANDIDATES * m)
    while candidates > 2 * m and _selection(size, m, candidates) > (size.budget - RESERVE) * 2 // 3:
        candidates //= 2
    block = _block(size, m, per_entry)
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
    return m, candidates, Cost("landmarks", sum(parts.values()), parts, float(entries), float(products), 9.0 * m**3)


def _rates(kernel: BlockKernel) -> Rates:
    """Measures rates on one device."""
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
