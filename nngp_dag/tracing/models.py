"""Front ends of `nd.trace`: any model as a pure function of its parameters, with their distributions.

The parameters are drawn once. Their distributions are read from the code that draws them where there is any: a factory,
a linen module's init, or `init`. Otherwise the numbers must agree with one standard scheme, or the person is asked.
Whatever their source, all distributions are checked against the numbers.
"""

import dataclasses
import fnmatch
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import InputError, NngpDagError, did_you_mean, shorten, shown
from nngp_dag.tracing import distributions as moments
from nngp_dag.tracing.distributions import Distribution
from nngp_dag.tracing.frontends import Opened, framework, init_linen, name_of, open_model, streams, torch_seed
from nngp_dag.tracing.initializers import Reading, blocks_of, read_leaves

__all__ = ["Leaf", "ModelFunction", "read_model"]

# Parameters of a factory. Any other one must have a default.
_FACTORY = ("width", "rngs", "key")
# What JAX raises where code needs the numbers of a traced array.
_NEEDS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
# How many entries of two leaves are compared for independence.
_COMPARED = 256


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter array of a model.

    Attributes:
      name: Path to it, such as "layers.0.kernel".
      shape: Shape.
      distribution: Distribution of its entries at initialization.
      trained: Whether training changes it.
      wide: For each axis, whether it grows with the width; None where no factory says so.
    """

    name: str
    shape: tuple[int, ...]
    distribution: Distribution
    trained: bool = True
    wide: tuple[bool, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFunction:
    """A model as a pure function of its parameters, in inference mode.

    Attributes:
      fn: Function of a list of parameters, in the order of `leaves`, and the input.
      leaves: The parameters.
      values: Their numbers, as drawn, in the same order and in the model's own types.
      name: Name of the model's class or function.
      build: Function of `seed` and `width` that reads another draw of the model; None for a model that is given with
        its numbers.
      width: Width that the factory was called with, if it has one.
      draw: Function of a seed that returns `fn` and `values` of another draw, without reading distributions again;
        None where `build` is.
      twice: Function that draws the model at twice that width; None for a model without a width.
    """

    fn: Callable[[Sequence[Any], Any], Any]
    leaves: tuple[Leaf, ...]
    values: list[Any]
    name: str
    build: Callable[..., "ModelFunction"] | None = None
    width: int | None = None
    draw: Callable[[int], tuple[Callable[[Sequence[Any], Any], Any], list[Any]]] | None = None
    twice: Callable[[], Opened] | None = None


def read_model(
    model: Any,
    x: Any,
    *,
    params: Any = None,
    init: Callable[..., Any] | None = None,
    width: int | None = None,
    distributions: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> ModelFunction:
    """Returns a model as a pure function of its parameters, with the distribution of each.

    Distributions come from `distributions`, else from the jaxpr of the code that draws the parameters (a factory, a
    linen module's init, `init`), else from the numbers. The standard deviation of a normal, truncated normal or uniform
    initializer is exact up to the rounding of float32.

    Args:
      model: An `nnx.Module`; a linen module; an equinox module, which acts on one example; a function `f(params, x)`;
        or a factory of any of these: a callable of some of `width`, `rngs` and `key`. A factory may also return a pair
        of a function and its parameters.
      x: Input of the model, with the axis of examples first.
      params: Parameters of a function, or variables of a linen module, before training.
      init: Function of a key that returns the parameters of a function.
      width: Width for a factory. The model of twice the width is built, too, to know which axes are infinite.
      distributions: Distributions by name or pattern, such as `{"*.kernel": ("normal", 0.1)}`. A value is a
        `Distribution`, a pair of a kind and a standard deviation, `("constant", value)`, "fixed" for an array that is
        not random, or an initializer, a function of a key, a shape and a type.
      seed: Seed of the draw.

    Raises:
      InputError: For a model of no known kind, one that fails on `x`, parameters whose distribution cannot be known,
        parameters that are no fresh draw of it, and arguments that do not belong to the model.

    Examples:
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, width, *, rngs):
      ...         self.hidden = nnx.Linear(3, width, rngs=rngs)
      ...         self.readout = nnx.Linear(width, 1, use_bias=False, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.readout(nnx.relu(self.hidden(x)))
      >>> read = read_model(Net, np.ones((2, 3), np.float32), width=64)
      >>> for leaf in read.leaves:
      ...     print(leaf.name, leaf.shape, leaf.distribution)
      hidden.bias (64,) constant 0
      hidden.kernel (3, 64) truncated normal, std 0.57735
      readout.kernel (64, 1) truncated normal, std 0.125
    """
    if distributions is not None and not isinstance(distributions, Mapping):
        raise InputError(f"Expected `distributions` to be a mapping from names, got {shown(distributions)}")
    source = _source(model, x, params, init, width)
    opened = source.open(seed)
    names, values = opened.names, opened.values
    if not names:
        raise InputError(f"Expected `model` to have parameters, got {name_of(model)} without any")
    readings, reason = _readings(source, seed, opened)
    given = _given(distributions or {}, opened)
    found = {}
    problems = []
    for place, name in enumerate(names):
        distribution, why = given.get(name), ""
        if distribution is None and readings is not None:
            distribution, why = _read(readings[place], values[place])
        if distribution is None and (readings is None or why.endswith("numpy")):
            distribution, other = moments.from_sample(
                name, np.asarray(values[place]), opened.output_first, _fan_in(place, opened)
            )
            why = f"{other}{reason}"
        if distribution is None:
            problems.append((name, why))
        else:
            found[name] = distribution
    if problems:
        (name, why), others = problems[0], len(problems) - 1
        more = f" (and {others} more: {', '.join(shown(one) for one, _ in problems[1:4])})" if others else ""
        raise InputError(
            f"Expected the distribution of leaf `{name}`{more} to be known, got {why}; pass "
            f'distributions={{{name!r}: ("normal", std)}}, or a factory of width and rngs or key as the model'
        )
    for name, value in zip(names, values, strict=True):
        moments.check_sample(name, found[name], np.asarray(value))
    _check_independence(opened, found, readings)
    wide = _wide_axes(source, opened)
    leaves = tuple(
        Leaf(name, tuple(np.shape(value)), found[name], name not in opened.fixed, axes)
        for name, value, axes in zip(names, values, wide, strict=True)
    )
    _check_call(opened, x)

    def build(seed: int = seed, width: int | None = width) -> ModelFunction:
        return read_model(model, x, init=init, width=width, distributions=distributions, seed=seed)

    def draw(seed: int) -> tuple[Callable[[Sequence[Any], Any], Any], list[Any]]:
        other = source.open(seed)
        return other.fn, other.values

    twice = None
    if source.trace is not None and source.width is not None:
        twice = functools.partial(source.trace, jax.random.key(seed), 2 * source.width)
    again: Any = {"build": build, "draw": draw} if source.draws else {}
    return ModelFunction(opened.fn, leaves, values, opened.name, width=source.width, twice=twice, **again)


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """Where a model comes from.

    Attributes:
      open: Function of a seed that returns the model, with the parameters given or drawn.
      trace: Function of a key and a width that draws the parameters, for the jaxpr; None if there is none.
      draws: Whether another seed gives another sample.
      width: Width of a factory.
      reads: Whether the jaxpr of the draw tells the distributions.
    """

    open: Callable[[int], Opened]
    trace: Callable[[Any, int | None], Opened] | None
    draws: bool
    width: int | None = None
    reads: bool = True


def _source(model: Any, x: Any, params: Any, init: Any, width: int | None) -> _Source:
    """Returns where a model comes from, and refuses arguments that do not belong to it."""
    if width is not None and (isinstance(width, bool) or not isinstance(width, int | np.integer) or width < 1):
        raise InputError(f"Expected `width` to be a positive integer, got {shown(width)}")
    kind = framework(model)
    if kind == "other":
        raise InputError(
            "Expected `model` to be a module of nnx, linen, equinox or PyTorch, a function f(params, x), or a factory "
            f"of {', '.join(_FACTORY)}, got {shown(model)}"
        )
    if kind == "function" and params is None and init is None and (accepted := _factory_parameters(model)):
        return _factory(model, x, accepted, width)
    if width is not None:
        raise InputError(
            f"Expected a factory with a parameter `width`, got the model {name_of(model)} of one width; leave `width` "
            "out, or pass a function of width and rngs or key that returns the model"
        )
    if init is not None and (kind != "function" or not callable(init)):
        what = shown(init) if kind == "function" else f"it with a module of {kind}"
        raise InputError(f"Expected `init` to be the function of a key that draws a function's parameters, got {what}")
    if params is not None and kind in ("nnx", "equinox", "torch"):
        raise InputError(f"Expected no `params` for a module of {kind}, which holds its own, got {shown(params)}")
    if kind in ("nnx", "equinox", "torch"):
        opened = open_model(model)
        return _Source(lambda seed: opened, None, False)
    if kind == "linen":
        draw = lambda key, _: open_model(model, init_linen(model, key, x))  # noqa: E731
    elif init is not None:
        draw = lambda key, _: open_model(model, init(key))  # noqa: E731
    else:
        draw = None
    if params is not None:
        opened = open_model(model, params)
        return _Source(lambda seed: opened, draw, False)
    if draw is None:
        raise InputError(
            f"Expected the parameters of {name_of(model)}, got none; pass `params`, or `init`, a function of a key "
            f"that draws them, or make the model a factory of {', '.join(_FACTORY)}"
        )
    return _Source(lambda seed: draw(jax.random.key(seed), None), draw, True)


def _factory_parameters(model: Callable[..., Any]) -> tuple[str, ...]:
    """Returns which of `width`, `rngs` and `key` a factory takes; nothing for a callable that is none."""
    parameters = _parameters(model)
    known = [one for one in parameters if one.name in _FACTORY and one.kind is not one.POSITIONAL_ONLY]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    others = [one for one in parameters if one not in known and one.kind not in variadic]
    return () if any(one.default is one.empty for one in others) else tuple(one.name for one in known)


def _parameters(model: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the parameters of a callable; of a class those of its `__init__`, which a metaclass may hide."""
    try:
        if isinstance(model, type):
            return list(inspect.signature(model.__init__).parameters.values())[1:]
        return list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):
        return []


def _factory(model: Callable[..., Any], x: Any, accepted: tuple[str, ...], width: int | None) -> _Source:
    """Returns a factory's models by width and key."""
    if width is not None and "width" not in accepted:
        raise InputError(f"Expected a factory with a parameter `width`, got {name_of(model)}({', '.join(accepted)})")
    default = next((one.default for one in _parameters(model) if one.name == "width"), None)
    if width is None and default is inspect.Parameter.empty:
        raise InputError(f"Expected `width` for the factory {name_of(model)}({', '.join(accepted)}), got none")
    # A width that the caller leaves out is the factory's default, and then grows as any other.
    width = int(width) if width is not None else default if isinstance(default, int) else None

    def draw(key: Any, width: int | None) -> Opened:
        arguments: dict[str, Any] = {"width": width} if width is not None else {}
        if "rngs" in accepted:
            arguments["rngs"] = streams(key)
        if "key" in accepted:
            arguments["key"] = key
        with torch_seed(key):
            made = model(**arguments)
        kind = framework(made)
        if kind in ("nnx", "equinox", "torch"):
            return open_model(made)
        if kind == "linen":
            return open_model(made, init_linen(made, jax.random.fold_in(key, 1), x))
        if isinstance(made, tuple) and len(made) == 2 and callable(made[0]):
            return open_model(*made)
        raise InputError(
            f"Expected the factory {name_of(model)} to return a module, or a pair of a function f(params, x) and its "
            f"parameters, got {shown(made)}"
        )

    def opened(seed: int) -> Opened:
        return draw(jax.random.key(seed), width)

    if "rngs" in accepted or "key" in accepted:
        return _Source(opened, draw, True, width)
    # A factory of the width alone returns the same numbers for each seed, unless its module is drawn here.
    with torch_seed(jax.random.key(0)):
        kind = framework(model(width=width))
    # PyTorch draws outside of programs of JAX, where nothing can be read but the numbers.
    return _Source(opened, draw, kind in ("linen", "torch"), width, reads=kind != "torch")


def _readings(source: _Source, seed: int, opened: Opened) -> tuple[list[Reading] | None, str]:
    """Returns what the jaxpr of the draw says about each parameter; or None, with the reason."""
    if source.trace is None or not source.reads:
        return None, ""
    key = jax.random.key(seed)
    names: list[tuple[str, ...]] = []

    def leaves(key: Any) -> list[Any]:
        drawn = source.trace(key, source.width)  # type: ignore[misc]
        names.append(drawn.names)
        return [jnp.asarray(one) for one in drawn.values]

    try:
        program = jax.make_jaxpr(leaves)(key)
    except _NEEDS_NUMBERS:
        return None, "; its initializer needs concrete numbers, so that it cannot be read"
    shapes = [tuple(one.shape) for one in program.out_avals]
    expected = [tuple(np.shape(one)) for one in opened.values]
    if names[0] != opened.names or shapes != expected:
        different = next(
            (
                f"`{a}` {b} where the init has `{c}` {d}"
                for a, b, c, d in zip(opened.names, expected, names[0], shapes, strict=False)
                if (a, b) != (c, d)
            ),
            f"{len(expected)} leaves where the init has {len(shapes)}",
        )
        raise InputError(f"Expected `params` to have the names and shapes that the init draws, got {different}")
    return read_leaves(program, [key]), ""


def _read(reading: Reading, value: Any) -> tuple[Distribution | None, str]:
    """Returns the distribution that a jaxpr says; a fixed array must be that of the sample."""
    if reading.distribution is None:
        return None, f"an initializer that cannot be read: {reading.reason}"
    if reading.distribution.kind == "fixed" and not np.allclose(reading.constant, np.asarray(value), rtol=1e-5, atol=0):  # type: ignore
        # Numbers that differ from call to call without a key come from NumPy's generator, for example.
        return None, "numbers that do not come from JAX's random keys, such as those of numpy"
    return reading.distribution, ""


def _fan_in(place: int, opened: Opened) -> int | None:
    """Returns the number of inputs of the matrix beside a bias; None for other leaves."""
    prefix, _, last = opened.names[place].rpartition(".")
    if last != "bias":
        return None
    beside = [
        value
        for name, value in zip(opened.names, opened.values, strict=True)
        if name.rpartition(".")[0] == prefix and name.rpartition(".")[2] in ("kernel", "weight")
    ]
    if len(beside) != 1 or np.ndim(beside[0]) < 2:
        return None
    shape = np.shape(beside[0])
    return math.prod(shape[1:]) if opened.output_first else math.prod(shape[:-1])


def _given(distributions: Mapping[str, Any], opened: Opened) -> dict[str, Distribution]:
    """Returns the distributions that a person gave, by leaf. A name beats a pattern, a later pattern an earlier one."""
    found = {}
    shapes = {name: tuple(np.shape(one)) for name, one in zip(opened.names, opened.values, strict=True)}
    for pattern, value in sorted(distributions.items(), key=lambda pair: pair[0] in shapes):
        names = [pattern] if pattern in shapes else [one for one in shapes if fnmatch.fnmatchcase(one, str(pattern))]
        if not names:
            near = did_you_mean(pattern, shapes) or f"; the leaves are {shorten(', '.join(shapes), 300)}"
            raise InputError(f"Expected `distributions` to name leaves of the model, got {shown(pattern)}{near}")
        for name in names:
            found[name] = _of_initializer(name, value, shapes[name]) if callable(value) else None
            if found[name] is None:
                found[name] = moments.from_given(name, value, shapes[name])
    return found


def _of_initializer(name: str, initializer: Callable[..., Any], shape: tuple[int, ...]) -> Distribution:
    """Returns the distribution of an initializer's entries."""
    key = jax.random.key(0)
    try:
        program = jax.make_jaxpr(lambda key: initializer(key, shape, jnp.float32))(key)
        (reading,) = read_leaves(program, [key])
    except NngpDagError:
        raise
    except Exception as error:  # an initializer is the caller's code
        text = shorten(" ".join(str(error).split()), 200)
        raise InputError(
            f"Expected `distributions[{name!r}]` to be an initializer (key, shape, dtype) -> array, got: {text}"
        ) from error
    if reading.distribution is None:
        raise InputError(
            f"Expected `distributions[{name!r}]` to be an initializer of a known distribution, got one where "
            f"{reading.reason}; pass a pair of a kind and a standard deviation"
        )
    return reading.distribution


def _check_independence(opened: Opened, found: Mapping[str, Distribution], readings: list[Reading] | None) -> None:
    """Raises an `InputError` for two leaves that hold the same random numbers, as those drawn from one key do."""
    random = [i for i, name in enumerate(opened.names) if found[name].random and found[name].std]
    remedy = "draw each parameter from a key of its own, or use one parameter twice"
    if readings is not None:
        owner: dict[int, int] = {}
        for i in random:
            numbers = readings[i].numbers
            for block in blocks_of(numbers) if numbers is not None else ():
                j = owner.setdefault(int(block), i)
                if j != i and np.intersect1d(readings[j].numbers, numbers).size:  # type: ignore[arg-type]
                    raise InputError(
                        f"Expected leaves of independent numbers, got `{opened.names[j]}` and `{opened.names[i]}` "
                        f"drawn from the same key; {remedy}"
                    )
    rows = []
    for i in random:
        distribution = found[opened.names[i]]
        flat = np.asarray(opened.values[i]).ravel()[:_COMPARED].astype(np.float64)
        rows.append((flat - distribution.mean) / distribution.std)
    for one, other in _correlated(rows):
        raise InputError(
            f"Expected leaves of independent numbers, got `{opened.names[random[one]]}` and "
            f"`{opened.names[random[other]]}` with the same or correlated ones; {remedy}"
        )


def _correlated(rows: list[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Yields pairs of standardized samples whose first numbers are equal or correlated, beyond six sigma.

    Draws of any two shapes from one key begin with the same numbers.
    """
    large = [i for i, row in enumerate(rows) if row.size >= _COMPARED]
    stack = np.array([rows[i] for i in large]).reshape(len(large), _COMPARED)
    for one, other in np.argwhere(np.triu(np.abs(stack @ stack.T) > 6 * math.sqrt(_COMPARED), 1)):
        yield large[one], large[other]
    for one, row in enumerate(rows):
        for other in range(len(rows)) if row.size < _COMPARED else ():
            # A pair of small samples is met twice otherwise.
            if other == one or (rows[other].size < _COMPARED and other < one):
                continue
            size = min(row.size, rows[other].size)
            a, b = row[:size], rows[other][:size]
            correlated = size >= 50 and abs(float(a @ b)) > 6 * math.sqrt(size)
            # A few numbers may correlate by chance, but do not agree to four digits.
            if correlated or (size >= 2 and np.max(np.abs(a - b)) <= 1e-4 * (1 + np.max(np.abs(a)))):
                yield one, other


def _wide_axes(source: _Source, opened: Opened) -> list[tuple[bool, ...] | None]:
    """Returns which axes of each leaf double with the width.

    Raises:
      InputError: For leaves that come or go, and for axes that grow otherwise.
    """
    if source.width is None or source.trace is None:
        return [None] * len(opened.names)
    names: list[tuple[str, ...]] = []

    def leaves(key: Any) -> list[Any]:
        drawn = source.trace(key, 2 * source.width)  # type: ignore
        names.append(drawn.names)
        return [jnp.asarray(one) for one in drawn.values]

    try:
        doubled = jax.eval_shape(leaves, jax.random.key(0))
    except _NEEDS_NUMBERS:
        doubled = leaves(jax.random.key(0))
    names = [names[-1]]
    if names[0] != opened.names:
        different = sorted(set(names[0]) ^ set(opened.names))
        raise InputError(
            f"Expected the same parameters at the widths {source.width} and {2 * source.width}, got "
            f"{shown(different[0] if different else names[0])} at one of them only; let the width change shapes alone"
        )
    found: list[tuple[bool, ...] | None] = []
    for name, value, other in zip(opened.names, opened.values, doubled, strict=True):
        shape, larger = tuple(np.shape(value)), tuple(other.shape)
        if len(shape) != len(larger) or any(b not in (a, 2 * a) for a, b in zip(shape, larger, strict=False)):
            raise InputError(
                f"Expected the axes of leaf `{name}` to stay or to double from width {source.width} to "
                f"{2 * source.width}, got the shapes {shape} and {larger}; make them multiples of the width"
            )
        found.append(tuple(a != b for a, b in zip(shape, larger, strict=True)))
    if not any(any(axes) for axes in found if axes):
        raise InputError(
            f"Expected shapes that grow with `width`, got the same at {source.width} and {2 * source.width}"
        )
    return found


def _check_call(opened: Opened, x: Any) -> None:
    """Raises an `InputError` for a model that fails on its input."""
    try:
        jax.eval_shape(opened.fn, opened.values, x)
    except NngpDagError:
        raise
    except Exception as error:  # the model is the caller's code, and may raise anything
        text = shorten(" ".join(str(error).split()), 300)
        remedy = "call it with this `x` yourself to see the whole error"
        if opened.output_first:
            remedy = "modules of equinox are called with one example each, those of PyTorch with a batch"
        elif "collection" in text:
            remedy = "pass all variables of a linen module as `params`, its batch statistics too"
        raise InputError(
            f"Expected the model {opened.name} to run on `x` in inference mode, got {type(error).__name__}: {text}; "
            f"{remedy}"
        ) from error
