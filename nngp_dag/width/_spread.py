"""`width_spread`: the spread of a number that NNGP or NTK determines, over initializations at finite width."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import jax
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag import forms
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError, NumericalWarning, shown, warn
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_option, check_whole
from nngp_dag.kernels import kernel
from nngp_dag.kernels.inputs import check_inputs, host_array, precision_of
from nngp_dag.width.functionals import Functional, functional_of
from nngp_dag.width.influence import Curvature, curvature_of, influence_of, rounding_of
from nngp_dag.width.neurons import moments_of
from nngp_dag.width.recursion import recursion_of
from nngp_dag.width.simulation import Simulated, departure_of, simulated
from nngp_dag.width.tangents import tangent_recursion_of

if TYPE_CHECKING:
    import pandas

# First order is trusted if simulated networks depart from its standard deviation by at most the first number, and with
# two standard errors by at most the second.
_DEPARTURE, _WITH_ERROR = 0.05, 0.1

# So many times the networks are drawn where two standard errors leave open which side of the first number they are on.
_MORE = 4

# Numbers that are added for Cholesky factors may change the functional by this share of one neuron's influence.
_ROUNDING = 1e-4

# More draws tell nothing more.
_MOST_NEURONS, _MOST_NETWORKS = 10**9, 10**6

# Wider networks are not simulated. Departures fall as 1 / width, so those of this width are scaled.
_WIDEST = 1024


@dataclass(frozen=True, repr=False)
class WidthSpread(Described):
    """The spread of a functional g of NNGP or NTK over initializations of a network of finite width n.

    Attributes:
      value: g at infinite width.
      std: Standard deviation of g over initializations to first order, sqrt(Var h / n) with the influence h of one
        neuron.
      std_error: Standard error of `std`, from the number of drawn neurons.
      width: Neurons n of every node.
      second_order: E d2g[h, h] / (2 n), the mean of g minus `value` to first order in 1 / n. It holds for the NNGP, and
        activations without jumps. NaN for the NTK, whose `bias` is simulated alone.
      second_order_error: Standard error of `second_order`.
      bias: The mean of g minus `value` over simulated networks, to every order; NaN if none were simulated, or
        if it is not finite for one of them.
      bias_error: Standard error of `bias`.
      departure: Standard deviation of simulated networks, over `std`, minus 1, to every order; NaN where `bias` is. So
        std * (1 + departure) is the simulated standard deviation.
      departure_error: Standard error of `departure`.
      shares: The share of every node s in the variance, Cov(h_s, h) / Var h, {node: share}. They add up to 1. Nodes
        that share summands are correlated, so a share may be negative.
      kind: "nngp" or "ntk", the kernel of g.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> spread = nd.width_spread("2_02", np.eye(3), "trace", width=512)
      >>> spread.trusted, sorted(spread.shares)
      (True, [0, 1, 2])
    """

    value: float
    std: float
    std_error: float
    width: int
    second_order: float
    second_order_error: float
    bias: float
    bias_error: float
    departure: float
    departure_error: float
    shares: dict[int, float]
    kind: str = "nngp"

    @property
    def trusted(self) -> bool:
        """Whether `std` is within 5 % of simulated networks, and within 10 % with two standard errors."""
        size, two_errors = self._size_of_departure()
        return bool(size <= _DEPARTURE and size + two_errors <= _WITH_ERROR)

    def _size_of_departure(self) -> tuple[float, float]:
        """Returns the absolute value of `departure` and two standard errors of it, that of `std` included."""
        error = math.hypot(self.departure_error, self.std_error / self.std if self.std else 0.0)
        return abs(self.departure), 2 * error

    def to_frame(self) -> "pandas.DataFrame":
        """Returns the shares as a table with the columns `node`, `share` and `variance`.

        Examples:
          >>> import numpy as np, nngp_dag as nd
          >>> nd.width_spread("2", np.eye(2), "trace", networks=0).to_frame().node.tolist()
          [0, 1]
        """
        import pandas

        rows = [(node, share, share * self.std**2) for node, share in self.shares.items()]
        return pandas.DataFrame(rows, columns=["node", "share", "variance"])

    def _facts(self) -> dict[str, str]:
        shares = ", ".join(f"{node}: {share:.0%}" for node, share in self.shares.items())
        facts = {"value": forms.number(self.value), "std": f"{self.std:.4g}", "width": str(self.width)}
        facts |= {"kind": self.kind} if self.kind != "nngp" else {"second_order": f"{self.second_order:.3g}"}
        if not math.isnan(self.departure):
            facts |= {"bias": f"{self.bias:.3g}", "departure": f"{self.departure:+.1%}"}
        return facts | {"trusted": str(self.trusted), "shares": f"{{{shares}}}"}


def width_spread(
    network: Network | Dag | str | NetworkSource,
    x: ArrayLike | Sequence[ArrayLike],
    functional: str | Functional,
    *,
    kind: str = "nngp",
    index: Sequence[int] | None = None,
    y: ArrayLike | None = None,
    noise: float = 0.0,
    neurons: int = 100_000,
    networks: int = 400,
    seed: int = 0,
    **architecture: Unpack[Architecture],
) -> WidthSpread:
    """Returns the spread over initializations of a number that NNGP or NTK of a network of finite width determine.

    The NNGP of a finite network is the covariance of its outputs, given the weights of all layers but the readout:

        K = w_std^2 / n sum_k v_k v_k^T + b_std^2,    v = X(H), or phi(X(H)) in the order "act-linear"

    for the n neurons k of the last node. Let G_s be the second moments that node s hands on to weighted edges, x_s the
    values of one neuron on all inputs, and D_s = dg / dG_s for a functional g. Then, to first order,

        Var g = Var h / n,    h = sum_s (x_s^T D_s x_s - <D_s, G_s>).

    The values x_s of all nodes are one joint draw, since skips pass on the values of the same neuron. The matrices D_s
    come from one reverse pass, and Var h from drawn neurons. All is computed in float64.

    The NTK of a finite network with one output unit is a sum over its weighted edges e,

        NTK = sum_e (w_std^2 G_e + b_std^2) D_e,    D_e = 1/n sum_k d_k d_k^T

    elementwise, in the parameterization "ntk". Here d_k is sqrt(n) times the derivative of the output in preactivation
    k of the edge, and D_e is 1 for the readout. Then h has a term of the same form for every D_e. Forward and backward
    draws at one index of neurons are independent.

    The result is checked by networks of width n, up to 1,024, whose kernels are drawn exactly in distribution.
    Departures of wider networks are those of width 1,024, scaled as 1 / n. A `NumericalWarning` says where first order
    is not enough, for example for the smallest eigenvalue of a nearly singular kernel.

    The time of a drawn neuron is N^2 per weighted edge, that of a simulated network n N^2 + N^3. The NTK takes up to
    twice as long.

    Args:
      network: The network, see `nngp_dag.kernel`; its layers are fully connected, without layer norm.
      x: Inputs, (N, ...), or a list of such arrays, one per input node.
      functional: A function of the kernel K, (N, N), that JAX can differentiate and that returns a number, or a name:
        "entry"       K[i, j] for `index` (i, j)
        "trace"       the sum of the diagonal
        "log_det"     log det(K + noise I)
        "data_fit"    y^T (K + noise I)^-1 y
        "prediction"  kernel regression at the last input, from the targets y of all others
        "alignment"   y^T K y / (||K||_F ||y||^2)
        "lambda_min"  the smallest eigenvalue
      kind: "nngp", or "ntk" for the NTK of one output unit in the network's parameterization.
      index: The row and the column of "entry"; (0, 1) by default.
      y: Targets of "data_fit" and "alignment", (N,), or of "prediction", (N - 1,).
      noise: Noise variance of "log_det", "data_fit" and "prediction".
      neurons: Number of drawn neurons, rounded up to a multiple of 4,096.
      networks: Number of simulated networks; 0 for no check. Four times as many are drawn where two standard errors
        leave open whether the departure is above 5 %. Less than 8 tell no errors, so that the result is not trusted.
      seed: Seed of all draws.
      **architecture: Options of the network, see `nngp_dag.kernel`, among them `width`.

    Returns:
      A `WidthSpread`.

    Raises:
      InputError: `nngp_dag.kernel` refuses the network or the inputs, or an argument does not fit. The network has
        convolutions, pooling or layer norm, or for the NTK no readout. The functional is not finite, or rounding
        decides its derivative.
      GraphError: The network has several outputs, or `nngp_dag.kernel` refuses the graph.
      ModelError: A traced model is no `Network`, for example since it has a layer norm.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(4, 30))
      >>> spread = nd.width_spread("2_21_112", x, "log_det", width=256)
      >>> spread.width, spread.trusted, round(spread.std, 1)
      (256, True, 0.4)
      >>> spread = nd.width_spread("2_21_112", x, "trace", kind="ntk", width=256)
      >>> spread.trusted, round(spread.std / spread.value, 2)
      (True, 0.11)

    Reference: von Mises, Ann. Math. Stat. 1947 (expansion in the empirical distribution); Hampel, JASA 1974 (influence
    functions).
    """
    network = as_network(network, "network", width_spread, **architecture)
    neurons, networks = check_whole("neurons", neurons, 2), check_whole("networks", networks, 0)
    # Streams that overlap with none of another seed.
    streams = np.random.SeedSequence(check_whole("seed", seed, 0)).spawn(4)
    check_option("kind", kind, ("nngp", "ntk"))
    if networks == 1:
        raise InputError("Expected `networks` to be 0 or at least 2, got 1; the default is 400")
    for name, count, most in (("neurons", neurons, _MOST_NEURONS), ("networks", networks, _MOST_NETWORKS)):
        if count > most:
            raise InputError(f"Expected `{name}` to be at most {most:,}, got {shown(count)}; draw fewer")
    of_nngp = recursion_of(network)
    if isinstance(x, (list, tuple)) and network.dag.num_inputs > 1:
        arrays: ArrayLike | list[np.ndarray] = [host_array(f"x[{i}]", of) for i, of in enumerate(x)]
    else:
        arrays = host_array("x", x)
    data = [np.asarray(of, np.float64) for of in check_inputs("x", arrays, network, "float64")]
    recursion = of_nngp if kind == "nngp" else tangent_recursion_of(network, tuple(of.shape[1] for of in data))
    with precision_of(np.dtype(np.float64)):
        function = functional_of(functional, len(data[0]), index=index, y=y, noise=noise)
        exact = jax.numpy.asarray(getattr(kernel(network, arrays, get=kind, dtype="float64"), kind))
        value, slope = jax.value_and_grad(function)(exact)
        if not (np.isfinite(value) and np.isfinite(slope).all()):
            raise InputError(
                f"Expected a functional that is finite and smooth at the {kind.upper()}, got {float(value):.4g} and "
                f"derivatives up to {float(abs(slope).max()):.4g}; add `noise`, or drop inputs that are equal"
            )
        k_in = [moments_of(of) for of in data]
        limit = recursion.limit(k_in, slope)
        influence = influence_of(recursion, limit, neurons, streams[0])
        _check_rounding(rounding_of(limit), influence.variance**0.5, abs(float(value)))
        n = network.width
        second = Curvature(math.nan, math.nan)
        if kind == "nngp":
            second = curvature_of(of_nngp, k_in, function, float(value), max(2, neurons // 25), streams[1])
        std = (influence.variance / n) ** 0.5
        result = WidthSpread(
            value=float(value),
            std=std,
            std_error=influence.error / influence.variance / 2 * std,
            width=n,
            second_order=second.mean / n,
            second_order_error=second.error / n,
            bias=math.nan,
            bias_error=math.nan,
            departure=math.nan,
            departure_error=math.nan,
            shares={node: share / influence.variance for node, share in influence.covariances.items()},
            kind=kind,
        )
        if networks:
            drawn = min(n, _WIDEST)

            def checked(found: Simulated) -> WidthSpread:
                of_drawn = departure_of(found, result.value, influence.variance / drawn)
                departure, departure_error, bias, bias_error = (v * drawn / n for v in of_drawn)
                return dataclasses.replace(
                    result, bias=bias, bias_error=bias_error, departure=departure, departure_error=departure_error
                )

            draw = functools.partial(simulated, recursion, k_in, function, limit, drawn)
            found = draw(networks, streams[2])
            size, two_errors = checked(found)._size_of_departure()
            if size - two_errors <= _DEPARTURE < size + two_errors:
                more = draw((_MORE - 1) * networks, streams[3])
                found = Simulated(*(np.concatenate(parts) for parts in zip(found, more, strict=True)))
            result = checked(found)
    if networks and not result.trusted:
        warn(_message(functional, result), NumericalWarning)
    return result


def _check_rounding(rounding: float, size: float, value: float) -> None:
    """Refuses functionals that do not vary, or whose derivative is so large that rounding decides it."""
    if not size > 1e-12 * value:
        raise InputError(
            "Expected a functional that varies with the kernel of a finite network, got one without derivative there; "
            "take another one"
        )
    if not rounding <= _ROUNDING * size:
        raise InputError(
            "Expected a functional whose derivative rounding does not decide, got one that changes by "
            f"{rounding / size:.1e} of a neuron's influence; add `noise`, or drop inputs that are nearly equal"
        )


def _message(functional: str | Functional, spread: WidthSpread) -> str:
    name = functional if isinstance(functional, str) else shown(functional)
    if not math.isfinite(spread.departure):
        return (
            f"Expected {name} of simulated networks of width {min(spread.width, _WIDEST)} to be finite, got others; "
            "take a wider network or fewer inputs, since the rank of kernels is at most the width, or add `noise`"
        )
    return (
        f"Expected the standard deviation of {name} at width {spread.width} within 5 % of first order, got "
        f"{spread.departure:+.1%} ± {spread.departure_error:.1%} in simulated networks; use std * (1 + departure), a "
        "wider network, or more `networks`"
    )
