"""The published formulas for lambda_min from the depths of paths, and whether their derivation covers a graph."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError
from nngp_dag.graph import Dag, as_dag, normal_form, topology
from nngp_dag.graph.operations import ORDERS, check_flag, check_option
from nngp_dag.kernels import Kernel
from nngp_dag.theory.symmetric import check_kernel, check_symmetric


@dataclass(frozen=True)
class PathBound:
    """The published path formula for lambda_min, and whether its derivation covers the graph.

    Attributes:
      value: The formula's value, in units of K(H); infinite where float64 cannot hold it.
      violated_assumptions: What the derivation assumes and the graph does not have; where it is empty the value is
        an upper bound on lambda_min(K(H)), otherwise it may lie below.
    """

    value: float
    violated_assumptions: tuple[str, ...]

    @property
    def is_bound(self) -> bool:
        """Whether the value is an upper bound for certain."""
        return not self.violated_assumptions


def path_bound(dag: Dag | str, stem_kernel: ArrayLike, *, order: str = "linear-act") -> PathBound:
    """Evaluates the published path formula for the smallest eigenvalue of the NNGP at the last node.

        lambda_min(K(H)) <= min over i != j of (P - sum over paths p of f^(d_p)(K(0)_ij)),

    f(rho) = (sin(theta) + (pi - theta) cos(theta)) / pi at cos(theta) = rho, f^(d) its d-fold iterate, for
    K(0)_ii = 1; a common diagonal q other than 1 scales the result by q. f increases, so the minimum lies
    at the largest K(0)_ij, and paths enter through their depth histogram, so nothing is enumerated.

    The derivation assumes paths of equal depth into every node that a weighted edge leaves, no skips that share an
    ancestor, and no cross terms of means. Elsewhere the exact lambda_min can exceed the
    formula (by a factor of 4 for `1_11_111`, three skips in a row with all shortcuts); the result says which
    assumption fails.

    Args:
      dag: The connectivity: a `Dag`, or a code, name or cell that `Dag.parse` reads.
      stem_kernel: K(0), the NNGP of the stem's output, (N, N) with N >= 2 and equal diagonal entries:
        inputs scaled to one norm.
      order: "linear-act" or "act-linear", the order of the kernel that is bounded.

    Raises:
      InputError: `stem_kernel` has fewer than two inputs or unequal diagonal entries, or `order` is unknown.
      GraphError: No path leads through `dag`.

    Example:
      >>> import numpy as np
      >>> path_bound(Dag.from_code("2_02"), np.array([[1.0, 0.5], [0.5, 1.0]]))
      PathBound(value=0.316..., violated_assumptions=())

    Reference: Chen et al., NeurIPS 2022, Section 3.3; Chen, Huang, Wang, AutoML 2023, Theorem 4.4.
    """
    check_option("order", order, ORDERS)
    dag = as_dag(dag)
    dag.require_connected()
    k0, q = _equal_diagonal("stem_kernel", stem_kernel)
    # f increases, so the minimum lies at the most correlated pair.
    pair = np.array([max(0.0, 1 - float(k0[~np.eye(len(k0), dtype=bool)].max()) / q)])
    value = _sum_over_paths(dag, [gap for gap, _ in _chain(dag, pair, pair, 0.0, order)])
    return PathBound(q * value, _violated_assumptions(dag, order, activated_readout=False))


def ntk_path_bound(dag: Dag | str, stem: Kernel, *, order: str = "linear-act", readout: bool = True) -> PathBound:
    """Evaluates the published path formula for the smallest eigenvalue of the NTK.

        lambda_min(NTK) <= min over i != j of sum over paths p of (T^(d_p)_ii - T^(d_p)_ij),

    T^(d) the NTK of a chain of d weighted edges on the stem (THEORY section 3). Its derivation assumes what that of
    `path_bound` does, and the result says where the graph differs. Differences are formed without cancellation.

    Args:
      dag: The connectivity: a `Dag`, or a code, name or cell that `Dag.parse` reads.
      stem: K(0) and T(0), the kernels of the stem's output, (N, N) each, N >= 2, with equal diagonal entries: inputs
        scaled to one norm, `nngp_dag.kernel(Dag.from_code("1"), x, readout=False)`.
      order: "linear-act" or "act-linear".
      readout: Whether the NTK is that after the readout, as `nngp_dag.kernel` gives it by default, or that of X(H).

    Returns:
      A `PathBound`, in units of the NTK.

    Raises:
      InputError: A stem kernel has fewer than two inputs or unequal diagonal entries, or `order` is unknown.
      GraphError: No path leads through `dag`.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> stem = nd.kernel(Dag.from_code("1"), 2**0.5 * np.eye(2), readout=False)
      >>> bound = ntk_path_bound(Dag.from_code("2_02"), stem)
      >>> k = nd.kernel(Dag.from_code("2_02"), 2**0.5 * np.eye(2))
      >>> bool(abs(bound.value - np.linalg.eigvalsh(k.ntk)[0]) < 1e-9), bound.is_bound
      (True, True)

    Reference: Chen, Huang, Wang, AutoML 2023, Theorem 4.6.
    """
    check_option("order", order, ORDERS)
    dag = as_dag(dag)
    dag.require_connected()
    check_kernel("stem", stem)
    readout = check_flag("readout", readout)
    (k0, q), (t0, t) = _equal_diagonal("stem.nngp", stem.nngp), _equal_diagonal("stem.ntk", stem.ntk, zero=True)
    if k0.shape != t0.shape:
        raise InputError(f"Expected `stem.nngp` and `stem.ntk` of one shape, got {k0.shape} and {t0.shape}")
    pairs = np.triu_indices(len(k0), 1)
    gap_k, gap_t = np.maximum(0, 1 - k0[pairs] / q), (t - t0[pairs]) / q
    activated_readout = readout and order == "act-linear"
    linear = readout and not activated_readout
    chain = _chain(dag, gap_k, gap_t, t / q, order, one_more=activated_readout)
    gaps = [2 * (nngp + ntk) if linear else ntk for nngp, ntk in chain]
    return PathBound(q * _sum_over_paths(dag, gaps), _violated_assumptions(dag, order, activated_readout))


def _equal_diagonal(name: str, kernel: ArrayLike, *, zero: bool = False) -> tuple[np.ndarray, float]:
    """Returns a kernel in float64 and the common value of its diagonal, which may be 0 if so said."""
    values = check_symmetric(name, kernel).astype(np.float64)
    if len(values) < 2:
        raise InputError(f"Expected `{name}` to hold at least 2 inputs, got 1; the bound compares pairs")
    diagonal = np.diag(values)
    q = float(np.mean(diagonal))
    if q < 0 or (q == 0 and not zero) or np.ptp(diagonal) > 1e-5 * q:
        raise InputError(
            f"Expected `{name}` to have equal, positive diagonal entries, got {diagonal.min():.6g} to "
            f"{diagonal.max():.6g}; scale all inputs to one norm"
        )
    return values, q


def _chain(
    dag: Dag, gap_k: np.ndarray, gap_t: np.ndarray, t: float, order: str, *, one_more: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns q - K_ij and T_ii - T_ij of pairs, over q, for chains of every depth that a path of `dag` has."""
    gaps = []
    wanted = {depth + one_more for depth in dag.depth_histogram}
    for depth in range(max(wanted) + 1):
        if depth in wanted:
            gaps.append((gap_k, gap_t))
        theta = 2 * np.arcsin(np.minimum(1, np.sqrt(gap_k / 2)))
        # 1 - f(1 - gap) without cancellation.
        next_k = gap_k - (np.sin(theta) - theta * np.cos(theta)) / math.pi
        lost = theta / math.pi
        if order == "linear-act":
            gap_t = lost * (1 + t) + (1 - lost) * (gap_k + gap_t)
        else:
            gap_t = next_k + lost * t + (1 - lost) * gap_t
        gap_k, t = next_k, t + 1
    return gaps


def _sum_over_paths(dag: Dag, gaps: list[np.ndarray]) -> float:
    """Returns the smallest, over pairs, of the sum over paths of the gaps of their depths."""
    total = np.zeros_like(gaps[0])
    for (_, count), gap in zip(sorted(dag.depth_histogram.items()), gaps, strict=True):
        # An infinite count of gaps that are zero is zero.
        total += np.where(gap == 0, 0.0, topology.to_float(count) * np.where(gap == 0, 1.0, gap))
    return float(total.min())


def _violated_assumptions(dag: Dag, order: str, activated_readout: bool) -> tuple[str, ...]:
    depths: list[set[int]] = [set() for _ in range(dag.num_nodes)]
    depths[0] = {0}
    for edge in dag.live_edges:
        step = 1 if edge.weighted else 0
        # Two depths already settle the matter; keeping more would cost quadratic time.
        depths[edge.target] |= set(sorted(depth + step for depth in depths[edge.source])[:2])
    sources = {edge.source for edge in dag.live_edges if edge.weighted}
    if activated_readout:
        sources.update(dag.outputs)
    tables = normal_form(dag)
    reasons = []
    if any(len(depths[node]) > 1 for node in sources):
        reasons.append("paths of unequal depth meet before a weighted edge")
    if tables.shared_skips:
        reasons.append("skips share an ancestor")
    if order == "linear-act" and (tables.B.sum(axis=1) > 1).any():
        reasons.append("means of activated branches add up")
    return tuple(reasons)
