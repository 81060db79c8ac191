"""Hyperparameters of a network and the noise, fitted to data through the exact kernel."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import ArrayLike, Float

from nngp_dag import forms
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError, NumericalWarning, check_known, shown, warn
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import as_number, check_number, check_option, check_whole
from nngp_dag.kernels import Kernel, kernel
from nngp_dag.kernels.inputs import check_inputs, precision_of
from nngp_dag.theory.evidence import leave_one_out, log_marginal_likelihood
from nngp_dag.theory.symmetric import check_noise, check_targets

if TYPE_CHECKING:
    import optax
    import pandas

OBJECTIVES = ("marginal-likelihood", "leave-one-out")

# Bounds of numbers that have no bounds of their own. Those of the noise are in units of the targets' mean square.
_BOUNDS = {"w_std": (0.1, 10.0), "b_std": (1e-3, 10.0)}
_NOISE = (1e-6, 10.0)

# The step of central differences of gradients, in the logarithm of a number.
_STEP = 1e-4


@dataclass(frozen=True, repr=False)
class Fit(Described):
    """Numbers of a network that maximize an objective, and how far they can be trusted.

    Attributes:
      network: The network with the fitted numbers.
      noise: The variance of the noise: a number, or one per input, (N,).
      value: The objective at the fitted numbers, a sum of log densities.
      converged: Whether the best run ended where the gradient along the free directions is below the tolerance.
      message: The reason for which the best run ended.
      names: Names of the fitted numbers, such as "layer.w_std", "edges.0->2.weight" and "noise".
      numbers: The fitted numbers, (P,).
      std: Their standard errors, (P,), from the curvature of the objective at its maximum (Laplace's approximation, in
        the logarithm of numbers that are positive). NaN for numbers at a bound, and where the objective is not concave.
      lower: Lower bounds, (P,).
      upper: Upper bounds, (P,).
      history: The objective after every step of the best run, (steps + 1,).
      path: The numbers after every step of the best run, (steps + 1, P).
      restarts: The objective that each run reached, (restarts,).

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(12, 2))
      >>> result = fit("2", x, x.sum(axis=1), noise=0.1)
      >>> result.converged, result.names
      (True, ('layer.w_std', 'noise'))
    """

    network: Network
    noise: float | np.ndarray
    value: float
    converged: bool
    message: str
    names: tuple[str, ...]
    numbers: Float[np.ndarray, " p"]
    std: Float[np.ndarray, " p"]
    lower: Float[np.ndarray, " p"]
    upper: Float[np.ndarray, " p"]
    history: Float[np.ndarray, " points"]
    path: Float[np.ndarray, "points p"]
    restarts: Float[np.ndarray, " runs"]

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """Names of the numbers that ended at a bound, so that wider bounds may reach a larger value."""
        near = 1e-3 * (_scale(self.upper, self.lower) - _scale(self.lower, self.lower))
        scaled = _scale(self.numbers, self.lower)
        low = scaled - _scale(self.lower, self.lower) <= near
        high = _scale(self.upper, self.lower) - scaled <= near
        return tuple(name for name, at in zip(self.names, low | high, strict=True) if at)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for every fitted number: `name`, `value`, `std`, `lower`, `upper`, `at_bound`."""
        import pandas

        columns = {"name": self.names, "value": self.numbers, "std": self.std, "lower": self.lower, "upper": self.upper}
        return pandas.DataFrame(columns | {"at_bound": [name in self.at_bounds for name in self.names]})

    def _facts(self) -> dict[str, str]:
        numbers = zip(self.names, self.numbers, self.std, strict=True)
        facts = {name: forms.spread(value, std) for name, value, std in numbers}
        facts |= {"value": forms.number(self.value), "converged": str(self.converged)}
        return facts | ({"at_bounds": ", ".join(self.at_bounds)} if self.at_bounds else {})


def fit(
    network: Network | Dag | str | NetworkSource,
    x: ArrayLike,
    y: ArrayLike,
    *,
    noise: ArrayLike = 0.1,
    bounds: Mapping[str, Any] | None = None,
    objective: str = "marginal-likelihood",
    mean: ArrayLike = 0.0,
    optimizer: "optax.GradientTransformation | None" = None,
    steps: int = 100,
    restarts: int = 1,
    seed: int = 0,
    tolerance: float = 1e-5,
    **architecture: Unpack[Architecture],
) -> Fit:
    """Fits numbers of a network, and the noise, to data through the exact NNGP kernel.

    The marginal likelihood and the leave-one-out log predictive density are differentiated through the kernel, in
    float64. One compiled program serves all steps and restarts. A step takes O(N^3) operations for the Cholesky factor,
    and a few times those of the kernel.

    Positive numbers are fitted in their logarithm. Without an `optimizer` the method is L-BFGS-B of SciPy, which keeps
    to the bounds. An optimizer of optax takes plain steps, and numbers that leave their bounds are moved back.

    Args:
      network: The network, as in `nngp_dag.kernel`, with one output; a traced model must be a network.
      x: Inputs, (N, ...).
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes.
      noise: Variance of the noise on the targets at the start, or one fixed variance per input, (N,).
      bounds: The numbers to fit, named as in `Network.parameters` and with the key "noise", each with its (lower,
        upper) bound. By default the layer's `w_std` and, if there are biases, `b_std`, and the noise if it is one
        number.
      objective: "marginal-likelihood" (`nngp_dag.log_marginal_likelihood`) or "leave-one-out", the log predictive
        density of `nngp_dag.leave_one_out`.
      mean: Prior mean of the outputs at the inputs: a number, (N,), or (N, C).
      optimizer: An optimizer of optax, such as `optax.adam(0.05)`, or None.
      steps: Largest number of steps of a run.
      restarts: Number of runs. The first starts from the network's own numbers, the others from random ones within the
        bounds, uniform in the logarithm of positive numbers.
      seed: Seed of the random starts.
      tolerance: The run has converged once the gradient of the objective per sample is below this, in every direction
        that does not leave the bounds.
      **architecture: Options of the architecture, as in `nngp_dag.kernel`.

    Returns:
      A `Fit`. A `NumericalWarning` is issued if the best run did not converge.

    Raises:
      GraphError: `nngp_dag.kernel` refuses the network.
      InputError: An argument is out of range, a name is unknown, or the objective is not finite at the start.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(12, 2))
      >>> result = nd.fit("2_12", x, np.sin(x[:, 0]), activation="erf", bounds={"layer": {"w_std": (0.2, 5.0)}})
      >>> result.names, bool(result.network.layer.w_std == result.numbers[0])
      (('layer.w_std',), True)

    Reference: Rasmussen and Williams 2006, Section 5.4; Byrd et al., SIAM J. Sci. Comput. 1995 (L-BFGS-B).
    """
    network = as_network(network, "network", fit, **architecture)
    if len(network.dag.outputs) > 1:
        raise InputError(f"Expected a network with one output, got {len(network.dag.outputs)}; fit them one by one")
    check_option("objective", objective, OBJECTIVES)
    steps, restarts = check_whole("steps", steps, 1), check_whole("restarts", restarts, 1)
    seed = check_whole("seed", seed, 0)
    if check_number("tolerance", tolerance) <= 0:
        raise InputError(f"Expected `tolerance` to be above 0, got {tolerance}; 1e-5 is the default")
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise InputError(f"Expected `optimizer` to be one of optax, got {shown(optimizer)}; pass optax.adam(0.05)")
    rows = len(check_inputs("x", x, network)[0])
    targets = check_targets("y", y, rows)
    noise = check_noise(noise, rows)
    space = _space(network, targets, noise, bounds)
    with precision_of(np.dtype(np.float64)):
        evaluate = _evaluation(network, x, targets, noise, mean, objective, space)
        starts = _starts(space, restarts, np.random.default_rng(seed))
        first = evaluate(starts[0])
        if not math.isfinite(first[0]):
            raise InputError(
                f"Expected the {objective} to be finite at the start, got {-first[0]:.3g}; raise `noise`, or "
                "start from other numbers"
            )
        descend = _by_scipy if optimizer is None else functools.partial(_by_optax, optimizer)
        runs = [descend(evaluate, space, start, steps, tolerance * rows) for start in starts]
        best = min(runs, key=lambda run: run.values[-1])
        std = _standard_errors(evaluate, space, best)
    fitted = space.parameters(best.path[-1])
    variance: Any = fitted.pop("noise", noise)
    result = Fit(
        network=network.with_parameters(fitted),
        noise=float(variance) if np.ndim(variance) == 0 else np.asarray(variance),
        value=-float(best.values[-1]),
        converged=best.converged,
        message=best.message,
        names=space.names,
        numbers=space.numbers(best.path[-1]),
        std=std,
        lower=space.lower,
        upper=space.upper,
        history=-np.array(best.values),
        path=np.array([space.numbers(point) for point in best.path]),
        restarts=-np.array([run.values[-1] for run in runs]),
    )
    if not result.converged:
        warn(f"the fit has not converged: {result.message}; raise `steps`, or pass other `bounds`", NumericalWarning)
    return result


def _scale(numbers: Any, lower: Any) -> Any:
    """Returns the logarithm of numbers whose lower bound is positive, and other numbers as they are."""
    return np.where(lower > 0, np.log(np.where(lower > 0, numbers, 1)), numbers)


class _Space(NamedTuple):
    """The numbers that are fitted.

    Attributes:
      keys: The keys of each number in the dictionary of parameters, one after another.
      start: The numbers of the network, (P,).
      lower: Lower bounds, (P,).
      upper: Upper bounds, (P,).
    """

    keys: tuple[tuple[Any, ...], ...]
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the numbers."""
        return tuple(".".join(map(str, key)) for key in self.keys)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of the points at which the objective is evaluated."""
        return _scale(self.lower, self.lower), _scale(self.upper, self.lower)

    def numbers(self, point: Any) -> Any:
        """Returns the numbers at a point: the exponentials of those that are positive."""
        xp = jnp if isinstance(point, jax.Array) else np
        positive = self.lower > 0
        return xp.where(positive, xp.exp(xp.where(positive, point, 0)), point)

    def parameters(self, point: Any) -> dict[str, Any]:
        """Returns the numbers at a point as a dictionary for `nngp_dag.kernel`, with the key "noise" beside it."""
        found: dict[str, Any] = {}
        numbers = self.numbers(point)
        for i, key in enumerate(self.keys):
            inner = found
            for part in key[:-1]:
                inner = inner.setdefault(part, {})
            inner[key[-1]] = numbers[i] if isinstance(numbers, jax.Array) else float(numbers[i])
        return found


def _space(network: Network, targets: np.ndarray, noise: Any, bounds: Mapping[str, Any] | None) -> _Space:
    known: dict[str, Any] = {**network.parameters()} | ({"noise": noise} if np.ndim(noise) == 0 else {})
    if bounds is None:
        layer = {name: limits for name, limits in _BOUNDS.items() if name in known["layer"]}
        unit = float(np.mean(targets**2)) or 1.0
        bounds = {"layer": layer} | ({"noise": tuple(unit * end for end in _NOISE)} if "noise" in known else {})
    if "noise" in bounds and "noise" not in known:
        raise InputError("Expected no bounds of `noise`, which is fixed where there is one per input; leave them out")
    keys, start, lower, upper = [], [], [], []
    for key, number, limits in _paired("bounds", (), bounds, known):
        name = ".".join(map(str, key))
        ends = tuple(limits) if isinstance(limits, (tuple, list, np.ndarray)) else ()
        if len(ends) != 2:
            raise InputError(f"Expected the bounds of `{name}` to be two numbers (lower, upper), got {shown(limits)}")
        ends = tuple(
            float(as_number(f"{end} bound of {name}", value))
            for end, value in zip(("lower", "upper"), ends, strict=True)
        )
        if not ends[0] < ends[1]:
            raise InputError(f"Expected the lower bound of `{name}` below the upper one, got {shown(limits)}")
        if key[-1] in ("w_std", "noise") and ends[0] <= 0:
            raise InputError(f"Expected the lower bound of `{name}` to be positive, got {ends[0]:g}")
        if isinstance(number, tuple):
            raise InputError(f"Expected `bounds` of single numbers, got {name}, a sequence; it cannot be fitted")
        keys.append(key)
        start.append(min(max(float(number), ends[0]), ends[1]))
        lower.append(float(ends[0]))
        upper.append(float(ends[1]))
    if not keys:
        raise InputError(
            "Expected `bounds` to name at least one number to fit, got none; leave it out for w_std, b_std"
        )
    return _Space(tuple(keys), *map(np.array, (start, lower, upper)))


def _paired(name: str, key: tuple[Any, ...], bounds: Any, known: Any) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yields the keys, value and bounds of every number that `bounds` names."""
    if not isinstance(known, Mapping):
        yield key, known, bounds
        return
    if not isinstance(bounds, Mapping):
        raise InputError(f"Expected `{name}` to be a dictionary of (lower, upper) by name, got {shown(bounds)}")
    check_known(bounds, known, f"numbers in `{name}`")
    for part, of_part in bounds.items():
        yield from _paired(f"{name}['{part}']", (*key, part), of_part, known[part])


# A point, and the negative objective and its gradient there.
_Evaluation = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _evaluation(
    network: Network, x: ArrayLike, targets: np.ndarray, noise: Any, mean: ArrayLike, objective: str, space: _Space
) -> _Evaluation:
    """Returns a function that evaluates the negative objective with its gradient; it compiles once."""

    def negative(point: jax.Array) -> jax.Array:
        numbers = space.parameters(point)
        variance = numbers.pop("noise", noise)
        # Numbers that are not fitted stay constants of the program.
        found: Kernel = kernel(network, x, get="nngp", dtype="float64", parameters=numbers)
        if objective == "marginal-likelihood":
            return -log_marginal_likelihood(found, targets, variance, mean=mean)
        density = leave_one_out(found, targets, variance, mean=mean).log_predictive_density
        return -density

    compiled = jax.jit(jax.value_and_grad(negative))

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = compiled(jnp.asarray(point, jnp.float64))
        if not np.isfinite(value):  # the matrix has no Cholesky factor; line searches then take shorter steps
            return math.inf, np.zeros_like(point)
        return float(value), np.asarray(gradient, np.float64)

    return evaluate


def _starts(space: _Space, restarts: int, rng: np.random.Generator) -> list[np.ndarray]:
    own = _scale(space.start, space.lower)
    return [own, *(rng.uniform(*space.box) for _ in range(restarts - 1))]


class _Run(NamedTuple):
    """One run: the points and the negative objective after every step, and how it ended."""

    path: list[np.ndarray]
    values: list[float]
    converged: bool
    message: str


def _slope(space: _Space, point: np.ndarray, gradient: np.ndarray) -> float:
    """Returns the largest entry of the gradient in a direction that does not leave the bounds."""
    lower, upper = space.box
    free = ~((point <= lower) & (gradient > 0)) & ~((point >= upper) & (gradient < 0))
    return float(np.abs(np.where(free, gradient, 0)).max())


def _ended(space: _Space, path: list[np.ndarray], values: list[float], slope: float, tolerance: float) -> _Run:
    converged = slope <= tolerance
    message = f"after {len(path) - 1} steps the gradient is {slope:.2g} (tolerance {tolerance:.2g})"
    return _Run(path, values, converged, message)


def _by_scipy(evaluate: _Evaluation, space: _Space, start: np.ndarray, steps: int, tolerance: float) -> _Run:
    path, known = [start], {start.tobytes(): evaluate(start)}

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        found = known[point.tobytes()] = evaluate(point)
        return (1e300, found[1]) if math.isinf(found[0]) else found  # SciPy expects finite numbers

    scipy.optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(*space.box, strict=True)),
        callback=lambda point: path.append(np.array(point)),
        options={"maxiter": steps, "gtol": tolerance, "ftol": 0.0},
    )
    values = [known[point.tobytes()][0] for point in path]
    return _ended(space, path, values, _slope(space, path[-1], known[path[-1].tobytes()][1]), tolerance)


def _by_optax(
    optimizer: Any, evaluate: _Evaluation, space: _Space, start: np.ndarray, steps: int, tolerance: float
) -> _Run:
    import optax

    optimizer = optax.with_extra_args_support(optimizer)
    point, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    path, values, slope = [], [], math.inf
    for step in range(steps + 1):
        value, gradient = evaluate(np.asarray(point))
        path.append(np.asarray(point))
        values.append(value)
        slope = _slope(space, path[-1], gradient)
        if slope <= tolerance or step == steps:
            break
        updates, state = optimizer.update(jnp.asarray(gradient), state, point, value=value, grad=jnp.asarray(gradient))
        moved: Any = optax.apply_updates(point, updates)
        point = jnp.clip(moved, *map(jnp.asarray, space.box))
    return _ended(space, path, values, slope, tolerance)


def _standard_errors(evaluate: _Evaluation, space: _Space, run: _Run) -> np.ndarray:
    """Returns standard errors from the curvature at the maximum, by central differences of the gradient."""
    point, (lower, upper) = run.path[-1], space.box
    errors = np.full(len(point), np.nan)
    inside = np.flatnonzero((point - lower > _STEP) & (upper - point > _STEP))
    if not len(inside):
        return errors
    rows = []
    for i in inside:
        move = np.zeros_like(point)
        move[i] = _STEP
        rows.append((evaluate(point + move)[1] - evaluate(point - move)[1])[inside] / (2 * _STEP))
    hessian = (np.array(rows) + np.array(rows).T) / 2
    try:
        np.linalg.cholesky(hessian)
    except np.linalg.LinAlgError:
        return errors
    scaled = np.sqrt(np.diag(np.linalg.inv(hessian)))
    # The error of a logarithm is relative to the number.
    errors[inside] = scaled * np.where(space.lower > 0, space.numbers(point), 1.0)[inside]
    return errors
