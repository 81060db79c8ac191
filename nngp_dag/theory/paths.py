"""The published formulas for lambda_min from the depths of paths, and whether their derivation covers a graph."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag import forms
from nngp_dag.architecture import normal_form
from nngp_dag.errors import InputError
from nngp_dag.forms import Described
from nngp_dag.graph import Dag, as_dag, topology
from nngp_dag.graph.operations import ORDERS, check_flag, check_option
from nngp_dag.kernels import Kernel
from nngp_dag.theory.symmetric import ENTRY_EPS, check_kernel, check_symmetric, eps_of, row_blocks

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class PathBound(Described):
    """The published path formula for lambda_min, and whether its derivation covers the graph.

    Attributes:
      value: Value of the formula, in units of the kernel that is bounded; infinite where float64 overflows.
      violated_assumptions: Assumptions of the derivation that the graph violates. If there are none, the value is an
        upper bound on lambda_min; otherwise it may lie below lambda_min.

    Examples:
      >>> bound = path_bound(Dag.from_code("1_11_111"), np.array([[1.0, 0.5], [0.5, 1.0]]))
      >>> bound.is_bound, bound.violated_assumptions
      (False, ('skips share an ancestor', 'means of activated branches add up'))
    """

    value: float
    violated_assumptions: tuple[str, ...]

    @property
    def is_bound(self) -> bool:
        """Whether the derivation covers the graph, so that the value is an upper bound."""
        return not self.violated_assumptions

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table of one row, with the columns `value`, `is_bound` and `violated_assumptions`.

        Several assumptions are joined to one text by semicolons, as in `Comparisons.to_frame`.

        Examples:
          >>> PathBound(0.25, ("first", "second")).to_frame().values.tolist()
          [[0.25, False, 'first; second']]
        """
        import pandas

        assumptions = "; ".join(self.violated_assumptions)
        return pandas.DataFrame(
            {"value": [self.value], "is_bound": [self.is_bound], "violated_assumptions": [assumptions]}
        )

    def _facts(self) -> dict[str, str]:
        return {"value": forms.number(self.value), "violated_assumptions": repr(self.violated_assumptions)}


def path_bound(dag: Dag | str, stem_kernel: ArrayLike, *, order: str = "linear-act") -> PathBound:
    """Evaluates the published path formula for the smallest eigenvalue of the NNGP at the last node.

        lambda_min(K(H)) <= min over i != j of h_ij (P - sum over paths p of f^(d_p)(rho_ij))

    This is Equation (13) of docs/mathematics.md. P is the number of paths, and path p has d_p weighted edges. The
    correlations of K(0) are rho_ij, and h_ij = 2 q_i q_j / (q_i + q_j) is the harmonic mean of its diagonal entries. A
    ReLU layer maps rho = cos(theta) to f(rho) = (sin(theta) + (pi - theta) cos(theta)) / pi; f^(d) is the d-fold
    iterate. The published formula has q_i = 1. Paths enter through their depth histogram, so none is enumerated.

    The derivation makes three assumptions. All paths into a node that a weighted edge leaves have equal depth; no skips
    share an ancestor; and means add no cross terms. Elsewhere the exact lambda_min can exceed the formula, by a factor
    of 4 for `1_11_111`, three skips in a row with all shortcuts. The result names the assumptions that fail.

    Correlations are taken to be 32 eps smaller than given, where eps is that of the dtype. Rounding of K(0) could
    otherwise lift the exact lambda_min above the formula where inputs are nearly parallel.

    Args:
      dag: The connectivity: a `Dag`, or a code, name or cell that `Dag.parse` reads.
      stem_kernel: K(0), the NNGP of the stem's output, (N, N) with N >= 2.
      order: "linear-act" or "act-linear", the order of the kernel that is bounded.

    Returns:
      A `PathBound`, in units of K(H).

    Raises:
      InputError: `stem_kernel` has fewer than two inputs or negative diagonal entries, or `order` is unknown.
      GraphError: No path leads through `dag`.

    Examples:
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
        # 1 - f(1 - gap) grows with the gap, but less than in proportion. So a pair with a larger mean than that of the
        # smallest product of mean and gap cannot attain the minimum. This saves most of the arcsines.
        best = np.argmin(means * gaps)
        needed = means < means[best] * (1 - 8 * float(np.finfo(np.float64).eps))
        needed[best] = True
        means, gaps = means[needed], gaps[needed]
        values.append(_smallest(dag, means, [gap for gap, _ in _chain(dag, gaps, gaps, gaps, _slack(k0), order)]))
    return PathBound(min(values), _violated_assumptions(dag, order, activated_readout=False))


def ntk_path_bound(dag: Dag | str, stem: Kernel, *, order: str = "linear-act", readout: bool = True) -> PathBound:
    """Evaluates the published path formula for the smallest eigenvalue of the NTK.

        lambda_min(NTK) <= min over i != j of h_ij sum over paths p of ((S^(d_p)_ii + S^(d_p)_jj) / 2 - S^(d_p)_ij),

    Here S^(d)_ij = T^(d)_ij / sqrt(q_i q_j), and T^(d) is the NTK of a chain of d weighted edges on the stem. The
    numbers q_i and h_ij are those of `path_bound`, and so are the assumptions and the allowance for rounding. The
    result names the assumptions that fail. Differences are computed without cancellation.

    Args:
      dag: The connectivity: a `Dag`, or a code, name or cell that `Dag.parse` reads.
      stem: K(0) and T(0), the kernels of the stem's output, (N, N) each with N >= 2. These are
        `nngp_dag.kernel(Dag.from_code("1"), x, readout=False)`.
      order: "linear-act" or "act-linear", the order of the kernel that is bounded.
      readout: Whether to bound the NTK after the readout, the default of `nngp_dag.kernel`, or that of X(H).

    Returns:
      A `PathBound`, in units of the NTK.

    Raises:
      InputError: A stem kernel has fewer than two inputs or negative diagonal entries, T(0)_ii is above 0 where
        K(0)_ii is 0, or `order` is unknown.
      GraphError: No path leads through `dag`.

    Examples:
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
        raise InputError(
            f"Expected `stem.nngp` and `stem.ntk` of one shape, got {k0.shape} and {t0.shape}; pass those of one stem"
        )
    if np.diag(t0)[np.diag(k0) == 0].any():
        raise InputError(
            "Expected `stem.ntk` to be 0 on the diagonal where `stem.nngp` is, got positive entries; pass both kernels "
            "of one stem"
        )
    activated_readout = readout and order == "act-linear"
    linear = readout and not activated_readout
    values = []
    for means, gap_k, gap_t, t in _pairs(k0, t0):
        chain = _chain(dag, gap_k, gap_t, t, _slack(k0), order, one_more=activated_readout)
        # A linear readout with w_std^2 = 2 has the NTK 2 (K + T). A readout with an activation is one more layer.
        values.append(_smallest(dag, means, [2 * (nngp + ntk) if linear else ntk for nngp, ntk in chain]))
    return PathBound(min(values), _violated_assumptions(dag, order, activated_readout))


def _with_diagonal(name: str, kernel: ArrayLike) -> np.ndarray:
    """Returns the kernel, checked to have at least two inputs and no negative diagonal entry."""
    values = check_symmetric(name, kernel)
    if len(values) < 2:
        raise InputError(f"Expected `{name}` to hold at least 2 inputs, got 1; the bound compares pairs")
    if (smallest := np.diag(values).min()) < 0:
        raise InputError(f"Expected `{name}` to have no negative diagonal entries, got {smallest:.6g}; pass a kernel")
    return values


def _pairs(k0: np.ndarray, t0: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields, by blocks of pairs i < j, the harmonic means of q_i and q_j, two gaps, and the means of T_ii and T_jj.

    The gaps are (K_ii + K_jj) / 2 - K_ij and (T_ii + T_jj) / 2 - T_ij. They and the last mean are in units of
    sqrt(q_i q_j) off the diagonal, and of q_i on it. Gaps are as large as rounding of the entries allows.
    """
    q = np.diag(k0).astype(np.float64)
    # Correlations of an input with q = 0 would be 0 / 0. Any unit serves, since the harmonic mean of such a pair is 0.
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
        # The harmonic mean in a form without the product q_i q_j, which might overflow.
        yield 2 * low / (1 + low / high), *gaps, means[1]


def _chain(
    dag: Dag, gap_k: np.ndarray, gap_t: np.ndarray, t: np.ndarray, slack: float, order: str, *, one_more: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the gaps of K and T, as in `_pairs`, for a chain of each depth that occurs among the paths of `dag`."""
    gaps = []
    wanted = {depth + one_more for depth in dag.depth_histogram}
    for depth in range(max(wanted) + 1):
        if depth in wanted:
            gaps.append((gap_k, gap_t))
        theta = _angle(gap_k)
        # 1 - f(1 - gap) in a form without cancellation: both terms of the difference are small where the gap is.
        next_k = gap_k - (np.sin(theta) - theta * np.cos(theta)) / math.pi
        # f' multiplies K + T in Equation (7), "linear-act", and T in Equation (9), "act-linear". In these units K has
        # the diagonal 1.
        mean, gap = (1 + t, gap_k + gap_t) if order == "linear-act" else (t, gap_t)
        # f' = 1 - theta / pi multiplies the entries of the NTK, Equation (7) of docs/mathematics.md. The gap must be an
        # upper one. Negative entries (gap > mean) raise it most at the smallest angle that rounding allows.
        lost = np.where(gap > mean, _angle(gap_k * (1 - 2 * slack)), theta) / math.pi
        gap_t = (0.0 if order == "linear-act" else next_k) + lost * mean + (1 - lost) * gap
        # f(1) = f'(1) = 1, so in both orders a layer keeps the diagonal of K and adds it to that of T.
        gap_k, t = next_k, t + 1
    return gaps


def _angle(gap: np.ndarray) -> np.ndarray:
    """Returns the angle theta with 1 - cos(theta) = gap."""
    # By the half angle, since an arccos of 1 - gap would lose small gaps.
    return 2 * np.arcsin(np.minimum(1, np.sqrt(gap / 2)))


def _slack(values: np.ndarray) -> float:
    """Returns how far rounding of the entries of a kernel may move correlations."""
    return 2 * ENTRY_EPS * eps_of(values)


def _smallest(dag: Dag, means: np.ndarray, gaps: list[np.ndarray]) -> float:
    """Returns the minimum over pairs of the mean times the sum over paths of the gap of their depth."""
    total = np.zeros_like(means)
    for (_, count), gap in zip(sorted(dag.depth_histogram.items()), gaps, strict=True):
        parts = means * gap
        # Counts beyond float64 are infinite; times a gap of zero they must give zero, not NaN.
        total += np.where(parts == 0, 0.0, topology.to_float(count) * np.where(parts == 0, 1.0, parts))
    return float(total.min())


def _violated_assumptions(dag: Dag, order: str, activated_readout: bool) -> tuple[str, ...]:
    """Returns the assumptions of the path formulas that a graph violates, in words."""
    depths: list[set[int]] = [set() for _ in range(dag.num_nodes)]
    depths[0] = {0}
    for edge in dag.live_edges:
        step = 1 if edge.weighted else 0
        # Two depths suffice to tell that they differ; keeping more would cost quadratic time.
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
    # A ReLU's output has a positive mean. Where several branches meet, or one of them several times, K(t) holds cross
    # terms of their means, Equation (6) of docs/mathematics.md. The sum over paths lacks these terms.
    if order == "linear-act" and (tables.B.sum(axis=1) > 1).any():
        reasons.append("means of activated branches add up")
    return tuple(reasons)
