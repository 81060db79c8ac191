"""NASWOT: how well the ReLUs of an untrained network tell the images of a batch apart."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Int

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import check_option
from nngp_dag.nas.networks.macro_net import MacroNet
from nngp_dag.nas.scores.batches import by_cells, compiled
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.cells import CONVOLUTIONS, EDGES, Cell

COUNTINGS = ("correct", "reference")


def pattern_kernel(net: MacroNet, x: ArrayLike, cell: Cell, *, counting: str = "correct") -> Int[np.ndarray, "n n"]:
    """Counts, for every two images of a batch, the ReLUs that are on for both or off for both.

    K = sum over ReLUs of x x' + (1 - x)(1 - x)', x_i = 1 where the ReLU's input is positive for image i. With signs
    s = 2 x - 1 that is (units + s s') / 2 for a layer, one product of small integers, exact. Edges that leave one node
    have ReLUs of equal pattern, which are counted as often as there are edges but compared once.

    Args:
      net: The network; all cells share one compiled program.
      x: Images, (n, height, width, channels).
      cell: The cell.
      counting: "correct" counts every ReLU that changes an output once. "reference" counts as the code that Mellor et
        al. released, and Chen et al. built on, does: it looks for classes whose names contain ReLU, so that the
        activation of every ReLU - convolution - batch norm counts twice, on dead edges too.

    Returns:
      (n, n), int64.

    Raises:
      InputError: The images do not fit, or `counting` is unknown.

    Example:
      >>> from nngp_dag.nas import Setting
      >>> net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
      >>> x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
      >>> pattern_kernel(net, x, Cell.from_index(0)).diagonal()
      array([640, 640, 640])

    Reference: Mellor, Turner, Storkey, Crowley, Neural Architecture Search without Training, ICML 2021, Section 3.
    """
    check_option("counting", counting, COUNTINGS)
    graph, params = nnx.split(net)
    return np.asarray(_counted(graph, (params, jnp.asarray(x)), gates(cell, counting)), np.int64)


def gates(cell: Cell, counting: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the operations to compute, (6,), and how often to count the ReLUs of nodes, blocks and the end, (5,)."""
    twice = 2 if counting == "reference" else 1
    cell = cell if counting == "reference" else cell.live
    counts = [0, 0, 0]
    for (source, _), name in zip(EDGES, cell.operations, strict=True):
        counts[source] += twice * (name in CONVOLUTIONS)
    # What nothing counts or reads need not be computed.
    needed, operations = {3, *(node for node in range(3) if counts[node])}, list(cell.operations)
    for edge in reversed(range(len(EDGES))):
        source, target = EDGES[edge]
        if target not in needed:
            operations[edge] = "none"
        elif operations[edge] != "none":
            needed.add(source)
    return np.array(Cell(tuple(operations)).codes, np.int32), np.array([*counts, twice, 1], np.int32)


def log_determinant(kernel: np.ndarray) -> float:
    """Returns log det K.

    Raises:
      InputError: K is singular to rounding: two images share all patterns, or nothing tells them apart.
    """
    eigenvalues = np.linalg.eigvalsh(kernel.astype(np.float64))
    floor = len(kernel) * np.finfo(np.float64).eps * eigenvalues[-1]
    if eigenvalues[0] <= floor:
        rank = int((eigenvalues > floor).sum())
        raise InputError(f"Expected patterns that tell {len(kernel)} images apart, got a kernel of rank {rank}")
    return float(np.log(eigenvalues).sum())


def naswot(cells: Sequence[Cell], setting: Setting) -> Iterator[dict[str, float | str]]:
    """Measures log det K of every cell, with correct counting."""
    return _naswot(cells, setting, "naswot", "correct")


def naswot_reference(cells: Sequence[Cell], setting: Setting) -> Iterator[dict[str, float | str]]:
    """Measures log det K of every cell, as the released code counts."""
    return _naswot(cells, setting, "naswot_reference", "reference")


def _naswot(cells: Sequence[Cell], setting: Setting, name: str, counting: str) -> Iterator[dict[str, float | str]]:
    graph, params = nnx.split(setting.network())
    of_cells = (gates(cell, counting) for cell in cells)
    for kernel in by_cells(_counted, graph, (params, jnp.asarray(setting.images)), of_cells, setting.at_once):
        try:
            yield {name: log_determinant(kernel)}
        except InputError as error:
            yield {name: str(error)}


@compiled
def _counted(graph: Any, params: Any, x: Array, codes: Array, weights: Array) -> Array:
    def agreements(value: Array, weight: Array) -> Array:
        signs = jnp.where(value.reshape(len(value), -1) > 0, 1, -1).astype(jnp.int8)
        products = lax.dot_general(signs, signs, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
        return weight * ((products + signs.shape[1]) // 2)

    start = jnp.zeros((len(x), len(x)), jnp.int32)
    return nnx.merge(graph, params).observed(x, codes, agreements, weights, start)[1]
