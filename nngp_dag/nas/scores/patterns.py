"""NASWOT: the log-determinant of the kernel of ReLU activation patterns of an untrained network."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Int

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import check_option
from nngp_dag.nas.networks.darts_macro_net import DartsMacroNet, relu_counts
from nngp_dag.nas.networks.macro_net import MacroNet
from nngp_dag.nas.scores.batches import by_cells, compiled
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.any_cell import AnyCell
from nngp_dag.nas.spaces.cells import CONVOLUTIONS, EDGES, Cell

COUNTINGS = ("correct", "reference")


def pattern_kernel(
    net: MacroNet | DartsMacroNet, x: ArrayLike, cell: AnyCell, *, counting: str = "correct"
) -> Int[np.ndarray, "n n"]:
    """Returns the kernel of NASWOT: for every two images, the number of ReLUs that are on for both or off for both.

    Let c_i be the binary vector of the ReLUs that are on for image i. Then K_ij is the number of ReLUs minus the
    Hamming distance of c_i and c_j. ReLUs on several edges out of one node have equal patterns. They are compared once,
    and count once per edge.

    Args:
      net: The network. All cells of one network share one compiled program.
      x: Images, (n, height, width, channels).
      cell: The cell of NAS-Bench-201, or the genotype of a `DartsMacroNet`.
      counting: Number of times that a ReLU counts. With "correct", every ReLU that affects an output counts once. With
        "reference", ReLUs count as in the code of Mellor et al., which Chen et al. use too. That code takes all modules
        whose class name contains "ReLU". So the ReLU of a ReLU - convolution - batch norm block counts twice, also on
        dead edges. In a genotype's network, these are the blocks on the inputs of cells.

    Returns:
      The kernel K, (n, n), int64.

    Raises:
      InputError: The images do not fit, or `counting` is unknown.

    Examples:
      >>> from nngp_dag.nas import Setting
      >>> net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
      >>> x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
      >>> pattern_kernel(net, x, Cell.from_index(0)).diagonal()
      array([640, 640, 640])

    Reference: Mellor, Turner, Storkey, Crowley, Neural Architecture Search without Training, ICML 2021, Section 3
      (kernel matrix K_H).
    """
    check_option("counting", counting, COUNTINGS)
    graph, params = nnx.split(net)
    return np.asarray(_counted(graph, (params, jnp.asarray(x)), _gates(net, cell, counting)), np.int64)


def gates(cell: Cell, counting: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the operations to compute, (6,), and the weights of the ReLUs, (5,).

    The weights are those of nodes 0, 1 and 2, of the residual blocks, and of the last ReLU.
    """
    twice = 2 if counting == "reference" else 1
    cell = cell if counting == "reference" else cell.live
    counts = [0, 0, 0]
    for (source, _), name in zip(EDGES, cell.operations, strict=True):
        counts[source] += twice * (name in CONVOLUTIONS)
    # A node is computed only if its ReLUs count or if another computed node reads it. "reference" may count the ReLU of
    # a dead edge, whose source is then needed, but not its convolution.
    needed, operations = {3, *(node for node in range(3) if counts[node])}, list(cell.operations)
    for edge in reversed(range(len(EDGES))):
        source, target = EDGES[edge]
        if target not in needed:
            operations[edge] = "none"
        elif operations[edge] != "none":
            needed.add(source)
    return np.array(Cell(tuple(operations)).codes, np.int32), np.array([*counts, twice, 1], np.int32)


def log_determinant(kernel: np.ndarray) -> float:
    """Returns the log-determinant of a kernel, such as that of `pattern_kernel`.

    Args:
      kernel: Symmetric positive definite matrix, (n, n).

    Raises:
      InputError: The matrix is singular up to rounding, for example because two images share all patterns.

    Examples:
      >>> log_determinant(np.diag([1.0, np.e]))
      1.0

    Reference: Mellor et al., Neural Architecture Search without Training, ICML 2021, Section 3 (s = log |K_H|).
    """
    # Eigenvalues, not `slogdet`: they tell a singular matrix, of which `slogdet` returns the logarithm of rounding
    # errors. The floor is the usual bound on the rounding of an eigenvalue, n eps λmax.
    eigenvalues = np.linalg.eigvalsh(kernel.astype(np.float64))
    floor = len(kernel) * np.finfo(np.float64).eps * eigenvalues[-1]
    if eigenvalues[0] <= floor:
        rank = int((eigenvalues > floor).sum())
        raise InputError(f"Expected patterns that tell {len(kernel)} images apart, got a kernel of rank {rank}")
    return float(np.log(eigenvalues).sum())


def naswot(cells: Sequence[AnyCell], setting: Setting) -> Iterator[dict[str, float | str]]:
    """Yields NASWOT of each cell: log det K with correct counting."""
    return _naswot(cells, setting, "naswot", "correct")


def naswot_reference(cells: Sequence[AnyCell], setting: Setting) -> Iterator[dict[str, float | str]]:
    """Yields NASWOT of each cell with the counting of the released code."""
    return _naswot(cells, setting, "naswot_reference", "reference")


def _gates(net: MacroNet | DartsMacroNet, cell: AnyCell, counting: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(cell, Cell):
        return gates(cell, counting)
    assert isinstance(net, DartsMacroNet)
    return np.array(cell.codes, np.int32), relu_counts(cell, net.cells_per_stage, counting)


def _naswot(cells: Sequence[AnyCell], setting: Setting, name: str, counting: str) -> Iterator[dict[str, float | str]]:
    net = setting.network()
    graph, params = nnx.split(net)
    of_cells = (_gates(net, cell, counting) for cell in cells)
    for kernel in by_cells(_counted, graph, (params, jnp.asarray(setting.images)), of_cells, setting.at_once):
        try:
            yield {name: log_determinant(kernel)}
        except InputError as error:
            yield {name: str(error)}


@compiled
def _counted(graph: Any, params: Any, x: Array, codes: Array, weights: Array) -> Array:
    def agreements(value: Array, weight: Array) -> Array:
        # With signs s = 2c - 1 the number of equal entries is (units + s_i . s_j) / 2: one matrix product of int8,
        # which is exact. Sum and number of units have the same parity, so that the division has no remainder.
        signs = jnp.where(value.reshape(len(value), -1) > 0, 1, -1).astype(jnp.int8)
        products = lax.dot_general(signs, signs, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
        return weight * ((products + signs.shape[1]) // 2)

    start = jnp.zeros((len(x), len(x)), jnp.int32)
    return nnx.merge(graph, params).observed(x, codes, agreements, weights, start)[1]
