"""The published formulas for lambda_min from the depths of paths, and whether their derivation covers a graph."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag import forms
from nngp_dag.architecture import normal_form
from nngp_dag.errors import InputError
from nngp_dag.forms import described
from nngp_dag.graph import Dag, as_dag, topology
from nngp_dag.graph.operations import ORDERS, check_flag, check_option
from nngp_dag.kernels import Kernel
from nngp_dag.theory.symmetric import ENTRY_EPS, check_kernel, check_symmetric, eps_of, row_blocks


@described
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

    def _facts(self) -> dict[str, str]:
        return {"value": forms.number(self.value), "violated_assumptions": repr(self.violated_assumptions)}


def path_bound(dag: Dag | str, stem_kernel: ArrayLike, *, order: str = "linear-act") -> PathBound:
    """Evaluates the published path formula for the smallest eigenvalue of the NNGP at the last node.

        lambda_min(K(H)) <= min over i != j of h_ij (P - sum over paths p of f^(d_p)(rho_ij)),

    rho_ij the correlations of K(0), h_ij = 2 q_i q_j / (q_i + q_j) the harmonic mean of its diagonal entries, and
    f(rho) = (sin(theta) + (pi - theta) cos(theta)) / pi at cos(theta) = rho, f^(d) its d-fold iterate. The published
    formula has q_i = 1. Paths enter through their depth histogram, so nothing is enumerated.

    The derivation assumes paths of equal depth into every node that a weighted edge leaves, no skips that share an
    ancestor, and no cross terms of means. Elsewhere the exact lambda_min can exceed the
    formula (by a factor of 4 for `1_11_111`, three skips in a row with all shortcuts); the result says which
    assumption fails.

    Correlations are taken to be 32 eps smaller than given, eps that of the dtype: rounding of K(0) could lift the exact
    lambda_min above the formula where inputs are nearly parallel.

    Args:
      dag: The connectivity: a `Dag`, or a code, name or cell that `Dag.parse` reads.
      stem_kernel: K(0), the NNGP of the stem's output, (N, N) with N >= 2.
      order: "linear-act" or "act-linear", the order of the kernel that is bounded.

    Raises:
      InputError: `stem_kernel` has fewer than two inputs or negative diagonal entries, or `order` is unknown.
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
    k0 = _with_diagonal("stem_kernel", stem_kernel)
    values = []
    for means, gaps, _, _ in _pairs(k0, k0):
        # 1 - f(1 - gap) grows with the gap, and less than in proportion. So beside the pair whose product of mean and
        # gap is smallest, only pairs of smaller means count.
        best = np.argmin(means * gaps)
        needed = means < means[best] * (1 - 8 * float(np.finfo(np.float64).eps))
        needed[best] = True
        means, gaps = means[needed], gaps[needed]
        values.append(_smallest(dag, means, [gap for gap, _ in _chain(dag, gaps, gaps, gaps, _slack(k0), order)]))
    return PathBound(min(values), _violated_assumptions(dag, order, activated_readout=False))


def ntk_path_bound(dag: Dag | str, stem: Kernel, *, order: str = "linear-act", readout: bool = True) -> PathBound:
    """Evaluates the published path formula for the smallest eigenvalue of the NTK.

        lambda_min(NTK) <= min over i != j of h_ij sum over paths p of ((S^(d_p)_ii + S^(d_p)_jj) / 2 - S^(d_p)_ij),

    S_ij = T_ij / sqrt(q_i q_j) with T^(d) the NTK of a chain of d weighted edges on the stem (THEORY section 3), and
    q_i and h_ij as in `path_bound`, whose assumptions and allowance for rounding these are too; the result says where
    the graph differs. Differences are formed without cancellation.

    Args:
      dag: The connectivity: a `Dag`, or a code, name or cell that `Dag.parse` reads.
      stem: K(0) and T(0), the kernels of the stem's output, (N, N) each, N >= 2, as
        `nngp_dag.kernel(Dag.from_code("1"), x, readout=False)` gives them.
      order: "linear-act" or "act-linear".
      readout: Whether the NTK is that after the readout, as `nngp_dag.kernel` gives it by default, or that of X(H).

    Returns:
      A `PathBound`, in units of the NTK.

    Raises:
      InputError: A stem kernel has fewer than two inputs or negative diagonal entries, T(0)_ii is above 0 where
        K(0)_ii is 0, or `order` is unknown.
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
    k0, t0 = _with_diagonal("stem.nngp", stem.nngp), _with_diagonal("stem.ntk", stem.ntk)
    if k0.shape != t0.shape:
        raise InputError(f"Expected `stem.nngp` and `stem.ntk` of one shape, got {k0.shape} and {t0.shape}")
    if np.diag(t0)[np.diag(k0) == 0].any():
        raise InputError("Expected `stem.ntk` to be 0 on the diagonal where `stem.nngp` is, got positive entries")
    activated_readout = readout and order == "act-linear"
    linear = readout and not activated_readout
    values = []
    for means, gap_k, gap_t, t in _pairs(k0, t0):
        chain = _chain(dag, gap_k, gap_t, t, _slack(k0), order, one_more=activated_readout)
        values.append(_smallest(dag, means, [2 * (nngp + ntk) if linear else ntk for nngp, ntk in chain]))
    return PathBound(min(values), _violated_assumptions(dag, order, activated_readout))


def _with_diagonal(name: str, kernel: ArrayLike) -> np.ndarray:
    """Returns the kernel of two inputs or more, checked for its diagonal."""
    values = check_symmetric(name, kernel)
    if len(values) < 2:
        raise InputError(f"Expected `{name}` to hold at least 2 inputs, got 1; the bound compares pairs")
    if (smallest := np.diag(values).min()) < 0:
        raise InputError(f"Expected `{name}` to have no negative diagonal entries, got {smallest:.6g}; pass a kernel")
    return values


def _pairs(k0: np.ndarray, t0: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields, in blocks of pairs, the harmonic mean of q_i and q_j, and in units of sqrt(q_i q_j) three more numbers.

    These are the gaps (K_ii + K_jj) / 2 - K_ij and (T_ii + T_jj) / 2 - T_ij, each diagonal entry over its own q, and
    the mean of T_ii and T_jj. Gaps are as large as rounding of the entries allows.
    """
    q = np.diag(k0).astype(np.float64)
    units = np.where(q == 0, 1, q)
    roots, columns = np.sqrt(units), np.arange(len(q))
    for rows in row_blocks(k0):
        above = columns[rows, None] < columns
        if not above.any():
            continue
        gaps, means = [], []
        for values in (k0, t0):
            diagonal = np.diag(values) / units
            mean = ((diagonal[rows, None] + diagonal) / 2)[above]
            entries = (values[rows] / roots[rows, None] / roots)[above]
            gaps.append(np.maximum(0, mean - entries) + _slack(values) * mean)
            means.append(mean)
        low, high = np.minimum(q[rows, None], q)[above], np.maximum(units[rows, None], units)[above]
        yield 2 * low / (1 + low / high), *gaps, means[1]


def _chain(
    dag: Dag, gap_k: np.ndarray, gap_t: np.ndarray, t: np.ndarray, slack: float, order: str, *, one_more: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the gaps of K and T of `_pairs` for chains of every depth that a path of `dag` has."""
    gaps = []
    wanted = {depth + one_more for depth in dag.depth_histogram}
    for depth in range(max(wanted) + 1):
        if depth in wanted:
            gaps.append((gap_k, gap_t))
        theta = _angle(gap_k)
        # 1 - f(1 - gap) without cancellation.
        next_k = gap_k - (np.sin(theta) - theta * np.cos(theta)) / math.pi
        mean, gap = (1 + t, gap_k + gap_t) if order == "linear-act" else (t, gap_t)
        # Of negative entries less is lost at smaller angles, which makes the larger gap.
        lost = np.where(gap > mean, _angle(gap_k * (1 - 2 * slack)), theta) / math.pi
        gap_t = (0.0 if order == "linear-act" else next_k) + lost * mean + (1 - lost) * gap
        gap_k, t = next_k, t + 1
    return gaps


def _angle(gap: np.ndarray) -> np.ndarray:
    """Returns the angle of which 1 - cos is the gap."""
    return 2 * np.arcsin(np.minimum(1, np.sqrt(gap / 2)))


def _slack(values: np.ndarray) -> float:
    """Returns how far rounding of the entries of a kernel may move correlations."""
    return 2 * ENTRY_EPS * eps_of(values)


def _smallest(dag: Dag, means: np.ndarray, gaps: list[np.ndarray]) -> float:
    """Returns the smallest, over pairs, of the mean times the sum over paths of the gaps of their depths."""
    total = np.zeros_like(means)
    for (_, count), gap in zip(sorted(dag.depth_histogram.items()), gaps, strict=True):
        parts = means * gap
        # An infinite count of gaps that are zero is zero.
        total += np.where(parts == 0, 0.0, topology.to_float(count) * np.where(parts == 0, 1.0, parts))
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
