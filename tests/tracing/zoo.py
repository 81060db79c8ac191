"""Models of many kinds, and the kernels of their finite networks by Monte Carlo.

Every model has one output unit, which is linear in the weights of its head. The mean over these weights is therefore
taken exactly: the NNGP of a finite network is that of its head alone, given all other parameters. The NTK is the sum
over all parameters of products of gradients. Both are means over fresh draws by the model's own initializer.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nngp_dag as nd
from nngp_dag.tracing import trace

CASES: dict[str, "Case"] = {}


@dataclass(frozen=True)
class Net:
    """A model of one width.

    Attributes:
      model: What `trace` takes.
      options: Its other arguments.
      init: The function of a key that draws the parameters and the arrays that are not trained.
      apply: The function of both and the input.
    """

    model: Any
    options: dict[str, Any]
    init: Callable[[Any], tuple[Any, Any]]
    apply: Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Case:
    """A model of the zoo.

    Attributes:
      name: Its name.
      net: The function of a width that returns it.
      x: The inputs.
      head: Patterns of the names of the parameters in which the output is linear.
      head_std: Standard deviation of a head by its shape; the root of the reciprocal fan-in if left out.
      width: The smaller of the two widths of Monte Carlo.
      draws: The number of draws of a first attempt at each width.
      batch_axis: As in `trace`.
      dag: The arguments of `nngp_dag.kernel` that give the same kernels in the NTK parameterization, or None.
      stax: The function that returns the same network of neural-tangents, or None.
    """

    name: str
    net: Callable[[int], Net]
    x: np.ndarray
    head: tuple[str, ...]
    head_std: Callable[[tuple[int, ...]], float] | None = None
    width: int = 64
    draws: int = 4096
    batch_axis: int | None = 0
    dag: Callable[[], tuple[Any, dict[str, Any]]] | None = None
    stax: Callable[[], Any] | None = None
    kernels: tuple[str, ...] = ("nngp", "ntk")
    traced: dict[str, Any] = field(default_factory=dict)


def add(case: Case) -> None:
    """Adds a case."""
    assert case.name not in CASES
    CASES[case.name] = case


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns fixed inputs of order one."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


X = numbers(3, 6)


# Plain JAX: a model is a function of a dictionary and the input, with a table of parameters.


def drawn(key: Any, shape: tuple[int, ...], how: Any) -> Any:
    """Draws a parameter: `how` is a standard deviation, a constant as ("constant", c), or None for LeCun's."""
    if isinstance(how, tuple):
        return jnp.full(shape, how[1], float)
    std = math.prod(shape[:-1]) ** -0.5 if how is None else how
    return std * jax.random.normal(key, shape)


def plain_net(table: dict[str, Any], function: Callable[..., Any]) -> Net:
    """Returns a model of plain JAX; a value of the table is a shape, or a pair of a shape and how it is drawn."""
    full: dict[str, Any] = {name: one if isinstance(one[0], tuple) else (one, None) for name, one in table.items()}

    def init(key: Any) -> dict[str, Any]:
        keys = jax.random.split(key, len(full))
        return {name: drawn(k, *one) for k, (name, one) in zip(keys, full.items(), strict=True)}

    return Net(function, {"init": init}, lambda key: (init(key), None), lambda p, _, x: function(p, x))


def factory_net(table: Callable[[int], dict[str, Any]], function: Callable[..., Any], width: int) -> Net:
    """Returns a model of plain JAX as a factory, so that it is known which axes grow with the width."""

    def make(width: int, key: Any) -> Any:
        return function, plain_net(table(width), function).init(key)[0]

    net = plain_net(table(width), function)
    return Net(make, {"width": width}, net.init, net.apply)


def plain(
    table: Callable[[int], dict[str, Any]],
    x: np.ndarray = X,
    head: Any = ("v",),
    factory: bool = True,
    **options: Any,
) -> Any:
    """Registers a function `f(p, x)` of plain JAX as a case, as a factory of the width or by its init alone."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def net(width: int) -> Net:
            return factory_net(table, function, width) if factory else plain_net(table(width), function)

        add(Case(function.__name__, net, x, head, **options))
        return function

    return register


# Monte Carlo.

# The tests' own options let XLA optimize little, which is slow for thousands of networks.
_OPTIONS = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


def samples(case: Case, width: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns NNGP and NTK of `draws` finite networks, (draws, outputs, outputs) each, as float64.

    The networks are of float32, whose rounding is far below the standard error.
    """
    net = case.net(width)

    def one(key: Any) -> tuple[Any, Any]:
        params, rest = net.init(key)
        flat, structure = jax.tree_util.tree_flatten_with_path(params)
        names = [
            ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path) for path, _ in flat
        ]

        def outputs(leaves: list[Any]) -> Any:
            return net.apply(jax.tree.unflatten(structure, leaves), rest, x).reshape(-1)

        jacobians = jax.jacrev(outputs)([leaf for _, leaf in flat])
        nngp = ntk = 0
        for name, jacobian in zip(names, jacobians, strict=True):
            rows = jacobian.reshape(len(jacobian), -1)
            gram = rows @ rows.T
            ntk += gram
            if any(fnmatch.fnmatch(name, pattern) for pattern in case.head):
                shape = jacobian.shape[1:]
                std = case.head_std(shape) if case.head_std else math.prod(shape[:-1]) ** -0.5
                nngp += std**2 * gram
        return nngp, ntk

    x = case.x if case.x.dtype.kind in "iu" else case.x.astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        keys = jax.random.split(jax.random.key(seed), draws)
        nngp, ntk = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=16), compiler_options=_OPTIONS)(keys)
        return np.asarray(nngp, np.float64), np.asarray(ntk, np.float64)


def exact(case: Case, width: int, parameterization: str = "own") -> tuple[np.ndarray, np.ndarray]:
    """Returns NNGP and NTK of the traced model at a width."""
    net = case.net(width)
    with jax.numpy_rank_promotion("allow"):
        traced = trace(net.model, case.x, batch_axis=case.batch_axis, **(net.options | case.traced))
        traced = dataclasses.replace(traced, parameterization=parameterization)
        nngp, ntk = traced.kernels(case.x, ntk="ntk" in case.kernels)
    return np.asarray(nngp), np.asarray(ntk)


@dataclass(frozen=True)
class Agreement:
    """How exact kernels agree with Monte Carlo.

    Attributes:
      deviation: Deviation of the mean, extrapolated to infinite width, relative to the exact diagonal.
      standard_error: Its standard error.
    """

    deviation: np.ndarray
    standard_error: np.ndarray

    @property
    def sigma(self) -> float:
        """The largest deviation in standard errors."""
        return float(np.max(np.abs(self.deviation) / self.standard_error))


def agreement(of_widths: list[tuple[np.ndarray, np.ndarray]]) -> Agreement:
    """Compares pairs of samples and exact kernels at a width n and at 2n.

    The bias of a finite network is of order 1 / n. In 2 d(2n) - d(n), where d is the deviation relative to the exact
    diagonal, it cancels to the next order.
    """
    deviations, errors = [], []
    for drawn, expected in of_widths:
        scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        deviations.append((drawn.mean(axis=0) - expected) / scale)
        errors.append(drawn.std(axis=0, ddof=1) / len(drawn) ** 0.5 / scale)
    if len(deviations) == 1:
        return Agreement(deviations[0], errors[0])
    error = np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2)
    return Agreement(2 * deviations[1] - deviations[0], np.maximum(error, 1e-6))


def dag_kernels(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns `nngp_dag.kernel` of the network that a case equals."""
    assert case.dag is not None
    network, options = case.dag()
    found = nd.kernel(network, case.x, **options)
    return np.asarray(found.nngp), np.asarray(found.ntk)
