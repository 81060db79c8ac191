"""Bounds on lambda_min that always hold: from above by pairs of inputs, from below for ReLU graphs.

For the lower end, every weighted edge contributes a covariance C(s) = F(s) - mu mu^T to the kernel of its target.
Equation (6) of docs/mathematics.md adds them up: K(t) = sum_s A[t, s] C(s) + m m^T. Let R be the correlations of K(s),
and f(rho) = sum_r a_r rho^r the power series of the ReLU kernel, with all a_r >= 0. Subtracting the means removes
exactly the term r = 0. With o for entrywise products and powers,

    C(s) = D^(1/2) (sum over r >= 1 of a_r R^(o r)) D^(1/2),   D = g diag K(s),  g = w_std^2 / 2

Three inequalities bound lambda_min from there, Equation (15) of docs/mathematics.md:

    Gershgorin  lambda_min(sum over r >= p of a_r R^(o r)) >= min_i sum over r >= p of a_r (1 - sum_(j != i) |rho_ij|^r)
    Schur       lambda_min(R^(o r)) >= lambda_min(R)
    Weyl        lambda_min(K(t)) >= sum_s A[t, s] lambda_min(C(s))

The NTK follows with f'(rho) = sum_r b_r rho^r and T(t) = sum_s A[t, s] g f'(R(s)) o (K(s) + T(s)), Equation (7). For
positive semi-definite matrices lambda_min(X o Y) >= lambda_min(X) min_i Y_ii, and X and Y may be exchanged.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
from jaxtyping import ArrayLike, Float

from nngp_dag import forms
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.architecture.interpreter import Algebra, Sum, run
from nngp_dag.architecture.program import program_by_rows
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.forms import Described
from nngp_dag.graph import Dag, Dense
from nngp_dag.kernels import Kernel, kernel
from nngp_dag.kernels.inputs import check_inputs, real_array
from nngp_dag.theory._cholesky import outer
from nngp_dag.theory._spectrum import spectrum
from nngp_dag.theory.symmetric import ENTRY_EPS, check_symmetric, row_blocks

if TYPE_CHECKING:
    import pandas

# Powers r at which |rho|^r is summed over a row. It stands in for all powers up to the next of the list, and beyond the
# last one. Since |rho|^r falls with r, this can only lower the bound.
_POWERS = np.concatenate([[1], 2 * np.unique(np.round(1.12 ** np.arange(98)).astype(np.int64))])
_EPS = float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True, repr=False)
class Bracket(Described):
    """Lower and upper bound on lambda_min, in units of the kernel.

    Attributes:
      lower: Lower bound on lambda_min; 0 where the derivation finds nothing better.
      upper: Upper bound on lambda_min.

    Examples:
      >>> bracket = lambda_min_bracket("2_12", np.eye(3)).nngp
      >>> 0 < bracket.lower < bracket.upper
      True
    """

    lower: float
    upper: float

    def _facts(self) -> dict[str, str]:
        return {"lower": forms.number(self.lower), "upper": forms.number(self.upper)}


class Brackets(NamedTuple):
    """Brackets on lambda_min of both kernels of a network.

    Attributes:
      nngp: Bracket on the smallest eigenvalue of the NNGP.
      ntk: Bracket on the smallest eigenvalue of the NTK.

    Examples:
      >>> nngp, ntk = lambda_min_bracket("2_12", np.eye(3))
      >>> nngp.lower < ntk.lower
      True
    """

    nngp: Bracket
    ntk: Bracket

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with the columns `kernel`, "nngp" or "ntk", `lower` and `upper`.

        Examples:
          >>> Brackets(Bracket(0.1, 0.5), Bracket(0.2, 3.0)).to_frame().values.tolist()
          [['nngp', 0.1, 0.5], ['ntk', 0.2, 3.0]]
        """
        import pandas

        rows = ({"kernel": name, **dataclasses.asdict(bracket)} for name, bracket in self._asdict().items())
        return pandas.DataFrame.from_records(list(rows))

    def _facts(self) -> dict[str, str]:
        return {name: repr(bracket) for name, bracket in self._asdict().items()}

    def __repr__(self) -> str:
        """Returns both brackets in one or two lines."""
        return forms.call("Brackets", self._facts())

    def _repr_html_(self) -> str:
        rows = ([name, *bracket._facts().values()] for name, bracket in self._asdict().items())
        return forms.rows_html("Brackets on lambda_min", ["kernel", "lower", "upper"], rows)


def principal_minor_bound(matrix: ArrayLike) -> float:
    """Returns an upper bound on the smallest eigenvalue of any symmetric matrix, from its 2 x 2 principal submatrices.

        lambda_min(K) <= min over i < j of (K_ii + K_jj)/2 - sqrt(((K_ii - K_jj)/2)^2 + K_ij^2)

    The right side is the smaller eigenvalue of K[{i, j}, {i, j}]; the eigenvalues of a submatrix interlace with those
    of K. This is Equation (14) of docs/mathematics.md. It takes O(N^2) time and reads the matrix by blocks of rows.

    Args:
      matrix: A symmetric kernel, (N, N).

    Returns:
      The bound, in units of the matrix's entries.

    Raises:
      InputError: `matrix` is not square, symmetric and finite.

    Examples:
      >>> principal_minor_bound(np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]))
      1.0

    Reference: Horn and Johnson, Matrix Analysis, Theorem 4.3.17 (Cauchy interlacing).
    """
    values = check_symmetric("matrix", matrix)
    diagonal = np.diagonal(values).astype(np.float64)
    bound = float(diagonal.min())
    for rows in row_blocks(values):
        block = values[rows].astype(np.float64)
        left = diagonal[rows, None]
        half, mean = (left - diagonal) / 2, (left + diagonal) / 2
        # hypot squares nothing, so large and small kernels neither overflow nor underflow.
        smaller = mean - np.hypot(half, block)
        # A diagonal entry pairs an input with itself; it is a bound of its own, and `bound` starts with it.
        smaller[np.arange(len(block)), np.arange(len(diagonal))[rows]] = np.inf
        bound = min(bound, float(smaller.min()))
    return bound


def lambda_min_bracket(
    network: Network | Dag | str | NetworkSource, x: ArrayLike, **architecture: Unpack[Architecture]
) -> Brackets:
    """Returns brackets on lambda_min of NNGP and NTK of a ReLU network that hold for every graph.

    The upper end is `principal_minor_bound` of the exact kernel, Equation (14) of docs/mathematics.md. The lower end,
    Equation (15), follows the graph from the smallest eigenvalue of the data's own Gram matrix. It combines the power
    series of the ReLU kernel, Schur products, Gershgorin discs and Weyl's inequality. The correlations at every node
    are exact.

    Both ends are computed in float64, with an allowance for rounding. Every node that a weighted edge leaves takes
    O(N^2) time and an N x N matrix.

    Args:
      network: The network, see `nngp_dag.kernel`. It consists of skips, scales and fully connected edges with ReLU,
        without biases, in the NTK parameterization.
      x: Inputs, (N, ...).
      **architecture: Options of the network, see `nngp_dag.kernel`.

    Returns:
      A `Bracket` for the NNGP and one for the NTK, in units of these kernels.

    Raises:
      InputError: `x` is refused by `nngp_dag.kernel`, or the network is not of the kind above.
      GraphError: No path leads through the graph.

    Examples:
      >>> import nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(4, 300))
      >>> nngp, ntk = lambda_min_bracket(nd.Dag.from_code("2_21_112"), x)
      >>> k = nd.kernel(nd.Dag.from_code("2_21_112"), x)
      >>> 0 < ntk.lower <= nd.spectrum(k.ntk).lambda_min <= ntk.upper
      True

    Reference: Oymak and Soltanolkotabi, IEEE JSAIT 2020 (series and Schur products); Nguyen, Mondelli, Montufar, ICML
    2021 (deep ReLU networks); Horn and Johnson, Topics in Matrix Analysis, section 5.3 (Schur products).
    """
    network = as_network(network, "network", lambda_min_bracket, **architecture)
    _check_relu(network)
    data = np.asarray(real_array("x", x), np.float64)
    check_inputs("x", data, network)
    exact = kernel(network, data)
    lower = _lower(network, data.reshape(len(data), -1))
    return Brackets(*(_rounded(low, np.asarray(k)) for low, k in zip(lower, (exact.nngp, exact.ntk), strict=True)))


def _rounded(lower: float, k: np.ndarray) -> Bracket:
    """Widens a bracket by an allowance for rounding in sums and eigenvalues."""
    # The trace bounds lambda_max, and sqrt(N) times the trace bounds the row sums of |K|. So this is at least the
    # resolution floor of Equation (12) of docs/mathematics.md wherever a pair exists.
    allowance = ENTRY_EPS * _EPS * len(k) * float(np.trace(k))
    return Bracket(max(0.0, lower - allowance), principal_minor_bound(k) + allowance)


def _check_relu(network: Network) -> None:
    dag = network.dag
    if network.parameterization != "ntk":
        raise InputError(
            f"Expected the NTK parameterization, got `parameterization` {network.parameterization!r}; for other "
            "networks `principal_minor_bound` bounds lambda_min from above"
        )
    if dag.num_inputs > 1 or len(dag.outputs) > 1:
        raise InputError(
            f"Expected a graph with one input and one output, got {dag.num_inputs} and {len(dag.outputs)}; bound the "
            "outputs one by one, with inputs side by side"
        )
    places = [("the stem", network.stem_op), *((f"edge {edge}", edge.op) for edge in network.edges)]
    if network.readout:
        places.append(("the readout", network.readout_op))
    for where, op in places:
        if not isinstance(op, Dense):
            if op.mixes_pixels:
                raise InputError(f"Expected skips, scales and fully connected edges, got {where}")
        elif op.window or op.activation not in ("relu", None) or op.b_std or op.layer_norm:
            raise InputError(
                f"Expected fully connected edges with ReLU, no biases and no layer norm, got {where} with {op!r}; "
                "for other networks `principal_minor_bound` bounds lambda_min from above"
            )


def _lower(network: Network, data: Float[np.ndarray, "n d"]) -> tuple[float, float]:
    """Returns lower bounds on lambda_min of NNGP and NTK."""
    program = program_by_rows(network)
    (output,) = network.dag.outputs
    k_in = outer(data) / data.shape[1]
    at_stem = _Node(Kernel(k_in, np.zeros_like(k_in)), _smallest_of_data(k_in, data.shape[1]), 0.0)
    exact = {0: _last_nodes(network, Dag.from_code("1"), data)[0]}
    sources = sorted({step.node for step in program.structure.steps if step.node and step.fields} | {output})
    every = dataclasses.replace(network.dag, outputs=tuple(sources))
    exact |= zip(sources, _last_nodes(network, every, data), strict=True)

    stem = _field(network.stem_op, at_stem)
    weights, bounds = program.weights.tolist(), _LowerBounds(program.operations, exact)
    nodes = run(program.structure, weights, None, [stem], [None], bounds)
    if not network.readout:
        return nodes[output]
    return _field(network.readout_op, _Node(exact[output], *nodes[output]))


class _LowerBounds(Algebra):
    """The algebra of lower bounds on lambda_min of NNGP and NTK, for `run`."""

    def __init__(self, operations: Sequence[Dense], exact: Mapping[int, Kernel]) -> None:
        """Takes the operations of the program and the exact kernels of the nodes that weighted edges leave."""
        self._operations, self._exact = operations, exact

    def add(self, of: Sum) -> tuple[float, float]:
        """Adds the bounds of independent fields, by Weyl's inequality; adding m m^T lowers no eigenvalue."""
        nngp, ntk = zip(*of.values, strict=True)
        return float(np.dot(of.weights, nngp)), float(np.dot(of.weights, ntk))

    def apply(
        self, operation: int, slot: int, of: Sum, node: tuple[float, float], mean: None
    ) -> tuple[tuple[float, float], None]:
        """Returns the lower bounds of a field, the output of an edge."""
        del slot, mean
        assert of.step.node is not None
        return _field(self._operations[operation], _Node(self._exact[of.step.node], *node)), None


def _last_nodes(network: Network, dag: Dag, data: np.ndarray) -> list[Kernel]:
    """Returns the kernels of the output nodes of `dag`, before the readout, with the options of `network`."""
    kernels = kernel(dataclasses.replace(network, dag=dag, readout=False), data)
    return list(kernels) if isinstance(kernels, tuple) else [kernels]


class _Node(NamedTuple):
    """Exact kernels of a node and lower bounds on their lambda_min."""

    exact: Kernel
    nngp: float
    ntk: float


def _smallest_of_data(k_in: np.ndarray, features: int) -> float:
    # The Gram matrix of N inputs has at most as high a rank as there are features.
    if len(k_in) > features:
        return 0.0
    # A lower bound must stand below the computed value by all of its errors. If nothing is left, it is 0.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        s = spectrum(k_in)
    return max(0.0, s.lambda_min - s.floor - s.residual_min)


def _field(op: Dense, node: _Node) -> tuple[float, float]:
    """Returns lower bounds on lambda_min of C and of the NTK of an edge's output."""
    k, t = np.asarray(node.exact.nngp), np.asarray(node.exact.ntk)
    if op.activation is None:
        return op.w_std**2 * node.nngp, op.w_std**2 * (node.nngp + node.ntk)
    gain, q = op.w_std**2 / 2, np.diag(k)
    if q.min() <= 0:
        # An input whose kernel vanishes has a zero row.
        return 0.0, 0.0
    roots = np.sqrt(q)
    beyond = _gershgorin(k / roots[:, None] / roots)
    # A diagonal scaling from both sides multiplies lambda_min by at least its smallest factor. This is 1 / max q from K
    # to its correlations, and min q back to C.
    smallest = node.nngp / q.max()
    value, slope = _series()
    covariance = q.min() * _best(value, smallest, 1.0, beyond(value))
    # The NTK of the field is f' o M, where M is K + T for "linear-act" and T for "act-linear", Equations (7) and (9).
    # The term r = 0 of f' is 1/2, so M enters with half of its own bound.
    m_low, m = (node.nngp + node.ntk, k + t) if op.order == "linear-act" else (node.ntk, t)
    m_min = max(0.0, float(np.diag(m).min()))
    tangents = m_low / 2 + _best(slope, max(m_low, smallest * m_min), m_min, beyond(slope))
    if op.order == "act-linear":
        # Equation (9) also adds F itself. F = C + mu mu^T, and mu mu^T lowers no eigenvalue.
        tangents += covariance
    return gain * covariance, gain * tangents


def _best(series: np.ndarray, schur: float, scale: float, tails: np.ndarray) -> float:
    """Returns the best bound over all splits of a series: Schur before the split, Gershgorin from there on."""
    before = np.concatenate([[0.0], np.cumsum(series)])
    return float((before * schur + scale * tails).max())


def _gershgorin(correlations: np.ndarray):
    """Returns a function that maps a series to Gershgorin's bound on its powers from every split on, at least 0."""
    with np.errstate(divide="ignore"):
        # Rounding must not lower a correlation: parallel inputs would seem to differ, and their eigenvalue is 0. High
        # powers by logarithms cost one exponential each.
        logarithms = np.minimum(0.0, np.log(np.abs(correlations)) + ENTRY_EPS * _EPS)
    np.fill_diagonal(logarithms, -np.inf)
    sums = np.stack([np.exp(power * logarithms).sum(axis=1) for power in _POWERS], axis=1)

    def beyond(series: np.ndarray) -> np.ndarray:
        tails = np.cumsum((series * (1 - sums))[:, ::-1], axis=1)[:, ::-1].min(axis=0)
        return np.maximum(0.0, np.append(tails, 0.0))

    return beyond


@functools.cache
def _series() -> tuple[np.ndarray, np.ndarray]:
    """Returns the coefficients of f and f', summed from each of `_POWERS` to the next, without the term r = 0.

    With arcsin(rho) = sum_k alpha_k rho^(2k + 1), the series are f' = 1/2 + arcsin(rho) / pi and f its integral.
    """
    k = np.arange(_POWERS[-1] // 2)
    alpha = np.cumprod(np.concatenate([[1.0], (2 * k[1:] - 1) / (2 * k[1:])])) / (2 * k + 1)
    value, slope = np.zeros((2, _POWERS[-1] + 1))
    slope[2 * k + 1] = alpha / math.pi
    value[1] = 0.5
    value[2 * k + 2] = alpha / math.pi / (2 * k + 2)
    parts = [np.add.reduceat(c[: _POWERS[-1]], _POWERS[:-1]) for c in (value, slope)]
    # The last entry holds all remaining powers. The coefficients sum to f(1) = f'(1) = 1, the terms r = 0 included,
    # which are 1 / pi and 1 / 2.
    return np.append(parts[0], 1 - 1 / math.pi - parts[0].sum()), np.append(parts[1], 0.5 - parts[1].sum())
