"""`plan`: memory, kernel entries and time of `solve` before the work, and the method with its reason."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from jax.sharding import Mesh

from nngp_dag import forms
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_option, check_whole
from nngp_dag.kernels._gram import RESERVE, bytes_of, numbers_per_column
from nngp_dag.kernels.inputs import DTYPES
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.costs import Cost, Rates, Sizes, choices, measured
from nngp_dag.large.mesh import Team

if TYPE_CHECKING:
    import pandas

METHODS = ("auto", "dense", "landmarks", "iterative")
KINDS = ("ntk", "nngp")

# Rows up to which "auto" takes the exact method whose time grows with their square.
_ITERATIVE_ROWS = 100_000

# Obstacles beside memory, and what to do about them.
_IN_PASSES = "needs all rows in memory, and batches are read in passes"
_NO_COVARIANCE = "has no covariance for the NTK"
_REMEDIES = {
    _IN_PASSES: "pass arrays, or `method='auto'`",
    _NO_COVARIANCE: "take the NNGP, or pass arrays and `method='iterative'`",
}


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
        facts |= {"memory": forms.in_bytes(self.cost.memory), "entries": f"{self.cost.entries:.3g}"}
        if self.seconds is not None:
            facts["time"] = forms.in_time(self.seconds)
        return facts | ({"devices": str(self.devices)} if self.devices > 1 else {})


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
    return dataclasses.replace(
        found, rates=measured(BlockKernel(network, kind, _flat(network, shape), np.dtype(dtype)))
    )


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
    size = Sizes(
        rows=rows,
        features=math.prod(shape),
        outputs=outputs,
        tests=test_rows,
        itemsize=dtype.itemsize,
        pixels=kernel.bytes_of_block,
        per_entry=numbers_per_column(network, shape[:-1]),
        budget=budget,
        devices=team.size,
        factors=team.factors,
        ntk=kind == "ntk",
    )
    found = choices(size, landmarks)
    obstacles = dict.fromkeys(found, "")
    for name, choice in found.items():
        if streamed and name != "landmarks":
            obstacles[name] = _IN_PASSES
        elif name == "landmarks" and test_rows and kind == "ntk":
            obstacles[name] = _NO_COVARIANCE
        elif choice.cost.memory > budget:
            obstacles[name] = (
                f"takes {forms.in_bytes(choice.cost.memory)}, above the budget of {forms.in_bytes(budget)}"
            )
    chosen, reason = _chosen(method, rows, budget, obstacles)
    costs = {name: dataclasses.replace(of.cost, obstacle=obstacles[name]) for name, of in found.items()}
    m, candidates, block, _ = found[chosen]
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
        return "dense", f"exact, and the kernel of {rows:,} rows and its factor fit into {forms.in_bytes(budget)}"
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
        f"Expected a `memory_budget` for one of the methods, got {forms.in_bytes(budget)}: {last} {obstacles[last]}; "
        "raise it, lower `landmarks`, or take fewer test inputs"
    )
