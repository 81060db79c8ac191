"""Bounds on the smallest eigenvalue and on the training loss: one function per theorem."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Float

from nngp_dag.errors import InputError
from nngp_dag.graph import Dag, normal_form, topology
from nngp_dag.graph.operations import ORDERS, check_option
from nngp_dag.theory.spectrum import check_symmetric


def rate_bound(
    lambda_min: float, learning_rate: float, steps: int, initial_loss: float
) -> Float[np.ndarray, "{steps}+1"]:
    """Returns the loss that gradient descent cannot exceed: (1 - eta lambda_min / 2)^k L(0) for k = 0..steps.

    L(k) = 0.5 ||y - f(k)||^2, summed over samples and output columns, under full-batch gradient descent on L. The
    theorem holds for eta small enough and a network wide enough; see `rate_bound_holds_for` for what can be checked of
    that.

    Args:
      lambda_min: Smallest eigenvalue of the NNGP at the last node, K(H), before the readout.
      learning_rate: eta.
      steps: Number of steps.
      initial_loss: L(0).

    Returns:
      The bound before the first step and after each one, (steps + 1,).

    Raises:
      InputError: An argument is negative or not finite, or eta lambda_min / 2 exceeds 1.

    Example:
      >>> rate_bound(lambda_min=0.5, learning_rate=0.4, steps=2, initial_loss=100.0)
      array([100.,  90.,  81.])

    Reference: Chen et al., NeurIPS 2022, Section 3.3; Du et al., ICML 2019, Theorem 5.1.
    """
    for name, value in (
        ("lambda_min", lambda_min),
        ("learning_rate", learning_rate),
        ("initial_loss", initial_loss),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"Expected `{name}` to be finite and at least 0, got {value}")
    check_steps(steps)
    rate = 1 - learning_rate * lambda_min / 2
    if rate < 0:
        raise InputError(
            f"Expected `learning_rate` to be at most 2 / lambda_min = {2 / lambda_min:.3g}, got {learning_rate}"
        )
    return initial_loss * rate ** np.arange(steps + 1)


def rate_bound_holds_for(
    lambda_min_nngp: float, lambda_min_ntk: float, lambda_max_ntk: float, learning_rate: float
) -> bool:
    """Whether the rate bound is a theorem for linearised training at this learning rate.

    Every mode of the error shrinks by (1 - eta lambda_i)^2 a step, lambda_i the eigenvalues of the NTK after the
    readout, so the bound holds for every y and f(0) exactly if the slowest mode obeys it:
    max_i (1 - eta lambda_i)^2 <= 1 - eta lambda_min(K(H)) / 2. The theorem's other condition, on the width, has unknown
    constants and cannot be checked by a formula: comparing with measured curves is what `compare` is for.

    Args:
      lambda_min_nngp: Smallest eigenvalue of K(H).
      lambda_min_ntk: Smallest eigenvalue of the NTK after the readout.
      lambda_max_ntk: Its largest eigenvalue.
      learning_rate: eta.

    Example:
      >>> rate_bound_holds_for(0.1, 0.5, 10.0, learning_rate=0.1), rate_bound_holds_for(0.1, 0.5, 10.0, 0.3)
      (True, False)
    """
    slowest = max((1 - learning_rate * value) ** 2 for value in (lambda_min_ntk, lambda_max_ntk))
    return bool(slowest <= 1 - learning_rate * lambda_min_nngp / 2)


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


def path_bound(dag: Dag, stem_kernel: ArrayLike, *, order: str = "linear-act") -> PathBound:
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
      dag: The connectivity.
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
    dag.require_connected()
    k0 = check_symmetric("stem_kernel", stem_kernel).astype(np.float64)
    if len(k0) < 2:
        raise InputError("Expected `stem_kernel` to hold at least 2 inputs, got 1; the bound compares pairs")
    q = float(np.mean(np.diag(k0)))
    if q <= 0 or np.ptp(np.diag(k0)) > 1e-5 * q:
        raise InputError(
            f"Expected `stem_kernel` to have equal, positive diagonal entries, got {np.diag(k0).min():.6g} to "
            f"{np.diag(k0).max():.6g}; scale all inputs to one norm"
        )
    off_diagonal = k0[~np.eye(len(k0), dtype=bool)]
    gap = max(0.0, 1 - float(off_diagonal.max()) / q)
    value, depth = 0.0, 0
    for path_depth, count in sorted(dag.depth_histogram.items()):
        while depth < path_depth:
            gap, depth = _next_gap(gap), depth + 1
        value += topology.to_float(count) * gap if gap else 0.0
    return PathBound(q * value, _violated_assumptions(dag, order))


def _next_gap(gap: float) -> float:
    """Returns 1 - f(1 - gap), formed without cancellation."""
    theta = 2 * math.asin(min(1.0, math.sqrt(gap / 2)))
    return gap - (math.sin(theta) - theta * math.cos(theta)) / math.pi


def _violated_assumptions(dag: Dag, order: str) -> tuple[str, ...]:
    depths: list[set[int]] = [set() for _ in range(dag.num_nodes)]
    depths[0] = {0}
    for edge in dag.live_edges:
        step = 1 if edge.weighted else 0
        # Two depths already settle the matter; keeping more would cost quadratic time.
        depths[edge.target] |= set(sorted(depth + step for depth in depths[edge.source])[:2])
    sources = {edge.source for edge in dag.live_edges if edge.weighted}
    tables = normal_form(dag)
    reasons = []
    if any(len(depths[node]) > 1 for node in sources):
        reasons.append("paths of unequal depth meet before a weighted edge")
    if tables.shared_skips:
        reasons.append("skips share an ancestor")
    if order == "linear-act" and (tables.B.sum(axis=1) > 1).any():
        reasons.append("means of activated branches add up")
    return tuple(reasons)


def check_steps(steps: int) -> None:
    """Raises an `InputError` unless `steps` is a whole number of at least 0."""
    if not (math.isfinite(steps) and steps >= 0 and int(steps) == steps):
        raise InputError(f"Expected `steps` to be a whole number of at least 0, got {steps}")
