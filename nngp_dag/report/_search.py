"""`search_graph`: a graph that is best for an objective, found along the gradient of the exact kernel."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ArrayLike

from nngp_dag.architecture import Architecture, as_network
from nngp_dag.architecture.document import to_document
from nngp_dag.errors import (
    GraphError,
    InputError,
    NumericalWarning,
    as_path,
    check_callable,
    shown,
    warn,
    within_memory,
)
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_flag, check_number, check_option, check_whole
from nngp_dag.kernels import kernel
from nngp_dag.kernels.inputs import check_inputs, precision_of, real_array
from nngp_dag.report.search_files import SearchDirectory
from nngp_dag.report.search_objectives import OBJECTIVES, Objective, Settings
from nngp_dag.report.search_result import GraphSearch, rounding
from nngp_dag.report.search_space import Digits, SearchSpace
from nngp_dag.theory.symmetric import check_targets

Progress = Callable[[str, int, int], None]

_DTYPE = np.dtype(np.float64)
# Codes are scored in groups of this size, which is the size of the compiled program.
_GROUP = 64
# Bytes for relaxed networks that are evaluated at once, and those that each takes per entry of its kernel.
_BUDGET, _BYTES = 2**30, 400
_MOST_EXHAUSTIVE = 4


@within_memory("`search_graph`", "take fewer inputs or starts")
def search_graph(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    objective: str = "marginal-likelihood",
    num_nodes: int = 4,
    starts: int = 20,
    steps: int = 100,
    noise: float = 0.1,
    loss_steps: int = 100,
    rate: float = 1.0,
    step_size: float = 0.1,
    temperature: tuple[float, float] = (4.0, 0.1),
    seed: int = 0,
    exhaustive: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    **architecture: Unpack[Architecture],
) -> GraphSearch:
    """Searches for the graph that is best for an objective, along the gradient of the exact kernel.

    Every pair of nodes s < t of a graph is in one of three states: no edge, a skip, or a weighted edge. The complete
    graph has a skip and a weighted edge for every pair. Let p = softmax(logits / temperature) over the three states,
    and m the largest 1 - p_none of the pairs into a node. The skips into that node have the weights p_skip / m, and the
    weighted edges sqrt(p_weighted / m), so that their variances count with p_weighted. Where p is 0 or 1 everywhere,
    the kernel is exactly that of a code. The division by m keeps one edge into every node at full strength. Without it
    kernels could shrink to any scale while p stays between 0 and 1, which some objectives reward.

    From random logits, Adam improves the objective of the relaxed network. The temperature falls geometrically
    meanwhile, and the probabilities tend to 0 and 1. Rounding takes the largest share of every pair, and keeps an edge
    into every node, so that the code has a path to the output. A discrete descent follows. Its
    steps change one pair, or turn a weighted edge into two by means of a node that is on no path. The best code one
    step away is taken, as long as it is better. The result holds the codes before and after this descent, and
    so shows what the gradient contributed.

    The objectives are

        marginal-likelihood   `log_marginal_likelihood` with the NNGP and `noise`
        leave-one-out         the log predictive density of `leave_one_out` with the NNGP and `noise`
        nngp-lambda-min       lambda_min / (trace / N) of the NNGP: the smallest eigenvalue at equal trace
        ntk-lambda-min        the same for the NTK
        expected-loss         `expected_loss` after `loss_steps` steps with the learning rate `rate` / lambda_max of the
                              graph's own NTK, so that graphs with large kernels have no advantage; smaller is better

    All starts run as one compiled program, and all codes are scored by another. Memory grows with N^2: relaxed networks
    are evaluated together up to about 1 GiB. Everything is computed in float64. A start whose gradient is not finite
    stays where it is, and a `NumericalWarning` says how many there are.

    A good value on the training inputs is no promise for others. Compare the winner on inputs that the search did not
    see, and compare `leave-one-out` and `marginal-likelihood` with the same for shuffled targets.

    Args:
      x: Inputs, (N, ...).
      y: Targets, (N,) or (N, C); floats, or one-hot vectors for classes. None for objectives of eigenvalues.
      objective: Name of the objective.
      num_nodes: Number of nodes, the input and output nodes included, at least 2.
      starts: Number S of random starts.
      steps: Number of steps of Adam.
      noise: Variance of the noise on the targets, above 0, for "marginal-likelihood" and "leave-one-out".
      loss_steps: Number of steps of gradient descent for "expected-loss".
      rate: Learning rate times lambda_max for "expected-loss", above 0 and below 2.
      step_size: Learning rate of Adam in the logits.
      temperature: Temperature at the first step and at the last.
      seed: Seed of the random logits, which are standard normal.
      exhaustive: Whether to score every valid code, too, and to rank the ends of all starts; up to 4 nodes.
      out: Folder for search.csv, weights.csv, codes.csv, search.png and search.json; None writes nothing.
      overwrite: Whether to replace the search in `out`.
      on_progress: Function that is called with (name of the stage, done, total).
      **architecture: Options of all networks, see `nngp_dag.kernel`. The aggregation must be "sum", because other
        factors depend on the number of edges.

    Returns:
      A `GraphSearch`.

    Raises:
      InputError: An argument is out of range, shapes do not match, or the objective needs targets and there are none.
        Or every code has an objective that is not finite.
      GraphError: The aggregation is not "sum", or `nngp_dag.kernel` would refuse the complete graph.
      OutputError: `out` holds other files, cannot be written, or another process writes it.
      OutOfMemoryError: The kernels do not fit into memory.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(6, 5))
      >>> found = nd.search_graph(x, objective="ntk-lambda-min", num_nodes=3, starts=2, steps=20)
      >>> found.code, found.weights.shape
      ('2_02', (21, 3, 3))

    Reference: Liu, Simonyan, Yang, ICLR 2019 (continuous relaxation of an architecture); Kingma and Ba, ICLR 2015
    (Adam).
    """
    check_option("objective", objective, tuple(OBJECTIVES))
    found = OBJECTIVES[objective]
    settings = Settings(
        _above_zero("noise", noise), check_whole("loss_steps", loss_steps, 1), _above_zero("rate", rate)
    )
    if settings.rate >= 2:
        raise InputError(f"Expected `rate` below 2, where gradient descent is stable, got {settings.rate:g}")
    starts, steps, seed = check_whole("starts", starts, 1), check_whole("steps", steps, 1), check_whole("seed", seed, 0)
    exhaustive, overwrite = check_flag("exhaustive", exhaustive), check_flag("overwrite", overwrite)
    if (num_nodes := check_whole("num_nodes", num_nodes, 2)) > _MOST_EXHAUSTIVE and exhaustive:
        raise InputError(
            f"Expected `num_nodes` of at most {_MOST_EXHAUSTIVE} with `exhaustive`, got {num_nodes}; leave it out"
        )
    step_size, temperatures = _above_zero("step_size", step_size), _schedule(temperature, steps)
    network = as_network(SearchSpace.complete_graph(num_nodes), "network", search_graph, **architecture)
    if network.aggregation != "sum":
        raise GraphError(
            f"Expected `aggregation` to be 'sum', got {network.aggregation!r}; other factors depend on the number of "
            "edges, which the relaxation does not know"
        )
    given = real_array("x", x)
    check_inputs("x", given, network, "float64")
    inputs = np.asarray(given).astype(_DTYPE)
    targets = _targets(y, objective, found, len(inputs))
    check_callable("on_progress", on_progress)
    report = on_progress or (lambda stage, done, total: None)
    options = {
        "objective": objective, "num_nodes": num_nodes, "starts": starts, "steps": steps, **settings._asdict(),
        "step_size": step_size, "temperature": [float(temperatures[0]), float(temperatures[-1])], "seed": seed,
        "exhaustive": exhaustive, "inputs": _digest(inputs), "targets": _digest(targets),
        "network": {name: value for name, value in to_document(network).items() if name != "dag"},
    }  # fmt: skip

    def run() -> GraphSearch:
        problem = _Problem(SearchSpace(network), found, settings, inputs, targets)
        logits = np.random.default_rng(seed).normal(size=(starts, len(problem.space.pairs), 3))
        path = _descended(problem, logits, temperatures, step_size, report)
        return _finished(problem, objective, *path, temperatures, exhaustive, report)

    if out is None:
        return run()
    directory = SearchDirectory(as_path("out", out))
    with directory.opened(options, overwrite=overwrite):
        result = run()
        directory.finish(result)
    return result


class _Problem:
    """The objective as a function of probabilities of states, for many networks at once, compiled once each way."""

    def __init__(
        self, space: SearchSpace, objective: Objective, settings: Settings, x: np.ndarray, y: np.ndarray
    ) -> None:
        self.space, self.sign = space, 1 if objective.maximize else -1
        self._scores: dict[Digits, float] = {}
        self._x, self._y = x, y
        batch = max(1, _BUDGET // (_BYTES * len(x) ** 2))

        def group(log_p: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
            def kernel_at(one: jax.Array) -> Any:
                return kernel(space.network, x, get=objective.get, dtype="float64", parameters=space.parameters(one))

            # One by one: batched LAPACK calls that run at the same time wait for each other's threads forever (jaxlib
            # 0.10.2 on two cores).
            return jax.lax.map(lambda k: objective.value(k, y, settings), jax.vmap(kernel_at)(log_p))

        def relaxed(logits: jax.Array, temperature: jax.Array, x: jax.Array, y: jax.Array) -> Any:
            values = group(jax.nn.log_softmax(logits / temperature, axis=-1), x, y)
            return values.sum(), values

        @jax.jit
        def values(log_p: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
            return _in_groups(lambda some: group(some, x, y), log_p, batch)

        @jax.jit
        def gradients(logits: jax.Array, temperature: jax.Array, x: jax.Array, y: jax.Array) -> Any:
            def of_group(some: jax.Array) -> Any:
                (_, found), gradient = jax.value_and_grad(relaxed, has_aux=True)(some, temperature, x, y)
                return found, gradient

            return _in_groups(of_group, logits, batch)

        self.values, self.gradients = values, gradients

    def relaxed(self, logits: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the objective of relaxed networks, (S,), and its gradient in their logits, (S, pairs, 3)."""
        with precision_of(_DTYPE):
            value, gradient = self.gradients(jnp.asarray(logits), jnp.asarray(temperature), self._x, self._y)
            return np.asarray(value), np.asarray(gradient)

    def scored(self, codes: Iterable[Digits], report: Callable[[int, int], None] | None = None) -> dict[Digits, float]:
        """Returns the objective of codes; each code is evaluated once."""
        wanted = list(dict.fromkeys(codes))
        new = [code for code in wanted if code not in self._scores]
        for first in range(0, len(new), _GROUP):
            group = new[first : first + _GROUP]
            padded = group + group[:1] * (_GROUP - len(group))
            with precision_of(_DTYPE):
                values = np.asarray(self.values(np.stack([*map(self.space.corner, padded)]), self._x, self._y))
            self._scores |= dict(zip(group, values[: len(group)].tolist(), strict=True))
            if report is not None:
                report(first + len(group), len(new))
        return {code: self._scores[code] for code in wanted}

    def weights(self, logits: np.ndarray) -> np.ndarray:
        """Returns the shares of none, skip and weighted for logits over a temperature, (..., pairs, 3)."""
        with precision_of(_DTYPE):
            log_p = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
            return np.asarray(jax.vmap(self.space.weights)(log_p))

    def goodness(self, value: float) -> float:
        """Returns a number that is larger for better values, and -inf for one that is not finite."""
        return self.sign * value if np.isfinite(value) else -np.inf


def _in_groups(f: Callable[[jax.Array], Any], many: jax.Array, size: int) -> Any:
    """Returns a function of all networks, computed for groups of a size one after the other."""
    if len(many) <= size:
        return f(many)
    whole = len(many) // size * size
    found = jax.lax.map(f, many[:whole].reshape(-1, size, *many.shape[1:]))
    found = jax.tree.map(lambda v: v.reshape(whole, *v.shape[2:]), found)
    if whole == len(many):
        return found
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, f(many[whole:]))


def _descended(
    problem: _Problem, logits: np.ndarray, temperatures: np.ndarray, step_size: float, report: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of all starts, (steps + 1, S, pairs, 3), and their objectives, (steps + 1, S)."""
    steps = len(temperatures) - 1
    optimizer = optax.adam(step_size)
    path, values = [logits], []
    stopped = np.zeros(len(logits), bool)
    with precision_of(_DTYPE):
        update = jax.jit(optimizer.update)
        state = optimizer.init(jnp.asarray(logits))
    for step, temperature in enumerate(temperatures):
        report("gradient", step, steps)
        value, gradient = problem.relaxed(path[-1], temperature)
        values.append(value)
        if step == steps:
            break
        stopped |= ~np.isfinite(gradient).all(axis=(1, 2))
        gradient = np.where(stopped[:, None, None], 0, gradient)
        with precision_of(_DTYPE):
            # Adam minimizes.
            changes, state = update(jnp.asarray(-problem.sign * gradient), state)
            moves = np.asarray(changes)
        path.append(path[-1] + np.where(stopped[:, None, None], 0, moves))
    if stopped.any():
        warn(
            f"Expected finite gradients, got {stopped.sum()} of {len(stopped)} starts without; they stay where they "
            "were; scale the inputs, or end at a higher `temperature`",
            NumericalWarning,
        )
    return np.stack(path), np.stack(values)


def _polished(problem: _Problem, codes: Iterable[Digits], report: Progress) -> dict[Digits, Digits]:
    """Returns for each code the one where a discrete descent from it ends."""
    better: dict[Digits, Digits] = {}
    frontier = set(codes)
    while frontier:
        around = {code: list(problem.space.neighbors(code)) for code in sorted(frontier)}
        scores = problem.scored(
            [one for code, near in around.items() for one in (code, *near)],
            functools.partial(report, f"discrete descent, {len(frontier)} codes"),
        )
        good = {code: problem.goodness(value) for code, value in scores.items()}
        for code, near in around.items():
            best = max(near, key=good.__getitem__, default=code)
            better[code] = best if good[best] > good[code] + rounding(scores[code]) else code
        frontier = {best for best in better.values() if best not in better}
    return better


def _finished(
    problem: _Problem,
    objective: str,
    path: np.ndarray,
    relaxed: np.ndarray,
    temperatures: np.ndarray,
    exhaustive: bool,
    report: Progress,
) -> GraphSearch:
    """Returns the result: codes of the ends, a discrete descent from them, and the table of all codes."""
    space = problem.space
    gradient = [space.rounded(weights) for weights in problem.weights(path[-1] / temperatures[-1])]
    better = _polished(problem, gradient, report)
    table = from_all = None
    if exhaustive:
        scores = problem.scored(space.valid(), functools.partial(report, "all codes"))
        table = {space.code(digits): value for digits, value in scores.items()}
        better = _polished(problem, scores, report)
        from_all = {space.code(digits): space.code(_end(better, digits)) for digits in scores}
    ends = [_end(better, code) for code in gradient]
    scores = problem.scored([*gradient, *ends])
    good = [
        (problem.goodness(scores[end]), problem.goodness(scores[code]))
        for end, code in zip(ends, gradient, strict=True)
    ]
    if not np.isfinite(good).any():
        raise InputError(
            f"Expected an objective that float64 can hold, got {scores[ends[0]]} for {space.code(ends[0])}; scale the "
            "inputs, or lower `w_std`"
        )
    top = max(end for end, _ in good)
    near = [i for i, (end, _) in enumerate(good) if end >= top - rounding(top)]
    best = max(near, key=lambda i: good[i][1])
    return GraphSearch(
        objective=objective,
        network=dataclasses.replace(space.network, dag=Dag.from_code(space.code(ends[best]))),
        value=scores[ends[best]],
        gradient_codes=tuple(map(space.code, gradient)),
        gradient_values=np.array([scores[code] for code in gradient]),
        codes=tuple(map(space.code, ends)),
        values=np.array([scores[code] for code in ends]),
        best=best,
        temperatures=temperatures,
        relaxed=relaxed,
        weights=problem.weights(path[:, best] / temperatures[:, None, None]),
        pairs=space.pairs,
        table=table,
        ends=from_all,
    )


def _end(better: Mapping[Digits, Digits], code: Digits) -> Digits:
    while better[code] != code:
        code = better[code]
    return code


def _above_zero(name: str, value: object) -> float:
    number = check_number(name, value)
    if number <= 0:
        raise InputError(f"Expected `{name}` above 0, got {number:g}")
    return number


def _schedule(temperature: object, steps: int) -> np.ndarray:
    """Returns the temperature before each step and at the end, (steps + 1,), a geometric sequence."""
    if not isinstance(temperature, (tuple, list)) or len(temperature) != 2:
        raise InputError(f"Expected `temperature` to be a pair of numbers, first and last, got {shown(temperature)}")
    first, last = (_above_zero("temperature", value) for value in temperature)
    return np.geomspace(first, last, steps + 1)


def _targets(y: ArrayLike | None, name: str, objective: Objective, rows: int) -> np.ndarray:
    """Returns the targets, (N, C); zeros for objectives without targets."""
    if y is None and objective.needs_targets:
        raise InputError(f"Expected `y` for the objective {name!r}, got None; pass targets, or one-hot vectors")
    if not objective.needs_targets and y is not None:
        raise InputError(f"Expected no `y` for the objective {name!r}, got {shown(y)}; leave it out")
    return np.zeros((rows, 1)) if y is None else np.asarray(check_targets("y", y, rows))


def _digest(values: np.ndarray) -> dict[str, Any]:
    return {"shape": list(values.shape), "sha256": hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()}
