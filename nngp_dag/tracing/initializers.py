"""Distributions of parameters, read from the jaxpr of the code that draws them.

A small interpreter walks the jaxpr. Keys are computed as they are; the outputs of `random_bits` become a grid of
quantiles that stands for every entry, with a number for each entry that says which random number it is. Elementwise
operations then act on the grid, operations of layout on the numbers. An entry's distribution is what the grid says;
the entries of a leaf are independent if no number occurs twice, and two leaves if they share none.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from nngp_dag.tracing.distributions import Distribution
from nngp_dag.tracing.quantiles import SOURCE, match, quantiles, rounded

__all__ = ["Reading", "blocks_of", "read_leaves"]

# Random numbers of one key, so that the numbers of different keys differ.
_STRIDE = 1 << 40


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the jaxpr says about a leaf.

    Attributes:
      distribution: Distribution of its entries; None where it cannot be read.
      reason: Why it cannot be read; empty otherwise.
      numbers: The random number behind each entry, of the leaf's shape, and of an orthogonal matrix all those behind
        it; None for other leaves.
      constant: Values of a leaf that depends on no random number.
    """

    distribution: Distribution | None
    reason: str = ""
    numbers: np.ndarray | None = None
    constant: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Known:
    """A number array, or keys; `seeded` where the values come from a key, so from the seed."""

    value: Any
    seeded: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Drawn:
    """Entries that are one function of a random number each: `grid` at its quantiles, `numbers` which one."""

    grid: np.ndarray
    numbers: np.ndarray
    bits: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Orthogonal:
    """A multiple of a matrix with orthonormal columns or rows, uniformly distributed; in any layout."""

    scale: float
    larger: int
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Triangular:
    """A function of the triangular factor that comes with an orthogonal one."""

    signs: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Unknown:
    """Anything else."""

    reason: str


_Value = _Known | _Drawn | _Orthogonal | _Triangular | _Unknown


def read_leaves(program: Any, arguments: Sequence[Any]) -> list[Reading]:
    """Returns what a closed jaxpr says about the distributions of its outputs.

    Args:
      program: Closed jaxpr of a function of keys that returns parameters.
      arguments: Concrete values of its inputs.

    Returns:
      One reading for each output.

    Examples:
      >>> init = jax.nn.initializers.he_normal()
      >>> key = jax.random.key(0)
      >>> str(read_leaves(jax.make_jaxpr(lambda key: init(key, (8, 3)))(key), [key])[0].distribution)
      'truncated normal, std 0.5'
    """
    walk = _Walk()
    inputs = [_Known(np.asarray(one) if not _is_key(one) else one, seeded=True) for one in arguments]
    outputs = walk.run(program.jaxpr, [_Known(_concrete(one)) for one in program.consts], inputs)
    return [_reading(value, variable.aval) for value, variable in zip(outputs, program.jaxpr.outvars, strict=True)]


def blocks_of(numbers: np.ndarray) -> list[int]:
    """Returns which keys the random numbers of a leaf come from, by their place in the order of use."""
    if not numbers.size:
        return []
    low, high = int(numbers.min()) // _STRIDE, int(numbers.max()) // _STRIDE
    return [low] if low == high else np.unique(numbers // _STRIDE).tolist()


def _distinct(numbers: np.ndarray) -> bool:
    """Whether no number occurs twice."""
    flat = numbers.ravel()
    # Most leaves are as they were drawn, for which sorting would take long.
    return bool(np.all(flat[1:] > flat[:-1])) or np.unique(flat).size == flat.size


def _reading(value: _Value, aval: Any) -> Reading:
    """Returns what a value says about the leaf that it is."""
    shape = tuple(aval.shape)
    if isinstance(value, _Known):
        if value.seeded:
            return Reading(None, "it is computed from the key itself")
        array = np.broadcast_to(np.asarray(value.value), shape)
        if not array.size or not np.isfinite(np.asarray(array, np.float64)).all():
            return Reading(None, "its numbers are not finite")
        first = float(array.flat[0])
        if np.all(array == array.flat[0]):
            return Reading(Distribution("constant", rounded(first), 0.0, 0.0, SOURCE), constant=array)
        fixed = Distribution("fixed", float(np.mean(array)), float(np.std(array)), 0.0, SOURCE)
        return Reading(fixed, constant=array)
    if isinstance(value, _Drawn):
        numbers = np.broadcast_to(value.numbers, shape)
        if not _distinct(numbers):
            return Reading(None, "several of its entries are the same random number")
        distribution = match(value.grid, value.bits, shape, np.dtype(aval.dtype))
        if distribution is None:
            return Reading(None, "its distribution is none that is known, and not bounded and smooth", numbers)
        return Reading(distribution, numbers=numbers)
    if isinstance(value, _Orthogonal):
        std = abs(value.scale) / math.sqrt(value.larger)
        return Reading(Distribution("orthogonal", 0.0, std, -6.0 / (value.larger + 2), SOURCE), numbers=value.numbers)
    return Reading(None, value.reason if isinstance(value, _Unknown) else "it comes from a matrix factorization")


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _concrete(value: Any) -> Any:
    """Returns a constant in double precision, keys as they are."""
    if _is_key(value):
        return value
    array = np.asarray(value)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _select(which: Any, *cases: Any) -> Any:
    if which.dtype == np.bool_:
        return np.where(which, cases[1], cases[0])
    return np.choose(which, cases)


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "clamp": lambda low, value, high: np.clip(value, low, high),
    "copy": lambda value: value,
    "copy_p": lambda value: value,
    "cos": np.cos,
    "cosh": np.cosh,
    "div": lambda a, b: np.divide(a, b) if np.asarray(a).dtype.kind == "f" else np.asarray(np.trunc(a / b), a.dtype),
    "eq": np.equal,
    "erf": scipy.special.erf,
    "erf_inv": scipy.special.erfinv,
    "erfc": scipy.special.erfc,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "integer_pow": lambda value, y: value**y,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": scipy.special.expit,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "nextafter": np.nextafter,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "reduce_precision": lambda value: value,
    "rsqrt": lambda value: 1 / np.sqrt(value),
    "select_n": _select,
    "shift_left": np.left_shift,
    "shift_right_logical": np.right_shift,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda value: value,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}
_PARAMETERS = {"integer_pow": ("y",)}
# Their outputs hold the entries of the first inputs, each at most once or several times, and nothing else.
_LAYOUT = {
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "dynamic_slice",
    "expand_dims",
    "optimization_barrier",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "stack",
    "tile",
    "transpose",
    "unstack",
}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_MOST_STEPS = 512


class _Walk:
    """One pass over a jaxpr. It remembers which keys were drawn from."""

    def __init__(self) -> None:
        self.bases: dict[bytes, int] = {}

    def run(
        self, jaxpr: Any, constants: Sequence[_Value], arguments: Sequence[_Value], wanted: Sequence[bool] | None = None
    ) -> list[_Value]:
        """Returns the values of a jaxpr's outputs; of unwanted ones anything."""
        env: dict[Any, _Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        env |= dict(zip(jaxpr.invars, arguments, strict=True))
        outputs = [one for i, one in enumerate(jaxpr.outvars) if wanted is None or wanted[i]]
        # Only what the outputs need is computed. The init of a linen module runs its whole forward pass.
        needed = {one for one in outputs if not hasattr(one, "val")}
        live = []
        for equation in reversed(jaxpr.eqns):
            if any(one in needed for one in equation.outvars):
                live.append((equation, [one in needed for one in equation.outvars]))
                needed |= {one for one in equation.invars if not hasattr(one, "val")}

        def value_of(variable: Any) -> _Value:
            if hasattr(variable, "val"):
                return _Known(_concrete(variable.val))
            return env.get(variable, _Unknown("not computed"))

        for equation, which in reversed(live):
            results = self.equation(equation, [value_of(one) for one in equation.invars], which)
            env |= dict(zip(equation.outvars, results, strict=True))
        return [value_of(one) for one in jaxpr.outvars]

    def equation(self, equation: Any, values: list[_Value], wanted: list[bool]) -> list[_Value]:
        """Returns the outputs of one equation."""
        name, parameters = equation.primitive.name, equation.params
        shapes = [tuple(one.aval.shape) for one in equation.outvars]
        if name == "random_bits":
            return [self.bits(values[0], parameters, shapes[0])]
        if name == "scan":
            return self.scan(equation, values)
        if name == "cond":
            return self.cond(equation, values, wanted)
        if name == "platform_index":
            return [_Known(np.int32(parameters["platforms"].index(None)))]
        if name != "while" and (key := next((key for key in _INNER if key in parameters), None)):
            inner = parameters[key]
            if hasattr(inner, "jaxpr"):
                constants = [_Known(_concrete(one)) for one in inner.consts]
                return self.run(inner.jaxpr, constants, values, wanted)
            return self.run(inner, [], values, wanted)
        if name == "qr":
            return [_orthogonal(values[0], equation.invars[0].aval.shape), *[_Triangular()] * (len(shapes) - 1)]
        unknown = next((one for one in values if isinstance(one, _Unknown)), None)
        if unknown is not None:
            return [unknown] * len(shapes)
        if all(isinstance(one, _Known) for one in values):
            return self.known(equation, values, shapes)
        if any(isinstance(one, _Orthogonal | _Triangular) for one in values):
            return [_after_factorization(name, values)] * len(shapes)
        if name in _ELEMENTWISE or name in ("convert_element_type", "bitcast_convert_type"):
            return [_elementwise(equation, values, shapes[0])]
        if name in _LAYOUT or name == "gather":
            return _moved(equation, values, shapes)
        return [_Unknown(f"its entries are computed together, by `{name}`")] * len(shapes)

    def bits(self, keys: _Value, parameters: dict, shape: tuple[int, ...]) -> _Value:
        """Returns fresh random integers; the same numbers again for a key that was used before."""
        if not isinstance(keys, _Known):
            return _Unknown("its key is random itself")
        data = np.asarray(jax.random.key_data(keys.value))
        rows = data.reshape(-1, *data.shape[np.ndim(keys.value) :])
        size = math.prod(parameters["shape"])
        bases = [self.bases.setdefault(row.tobytes(), len(self.bases)) for row in rows]
        numbers = np.concatenate([base * _STRIDE + np.arange(size) for base in bases]) if bases else np.arange(0)
        width = parameters["bit_width"]
        return _Drawn(quantiles(width)[0], numbers.reshape(shape), width)

    def known(self, equation: Any, values: list, shapes: list) -> list[_Value]:
        """Computes an equation of numbers."""
        name, parameters = equation.primitive.name, equation.params
        seeded = name.startswith("random_") or any(one.seeded for one in values)
        arrays = [one.value for one in values]
        keys = any(_is_key(one) for one in arrays)
        if name == "broadcast_in_dim" and not keys:
            where = parameters["broadcast_dimensions"]
            spread = np.ones(len(shapes[0]), int)
            spread[list(where)] = np.shape(arrays[0])
            return [_Known(np.broadcast_to(np.reshape(arrays[0], spread), shapes[0]), seeded)]
        if not keys and (name in _ELEMENTWISE or name == "convert_element_type"):
            return [_Known(np.broadcast_to(_apply(equation, arrays), shapes[0]), seeded)]
        cast = [
            one if _is_key(one) else jnp.asarray(one, variable.aval.dtype)
            for one, variable in zip(arrays, equation.invars, strict=True)
        ]
        try:
            results = equation.primitive.bind(*cast, **parameters)
        except (TypeError, ValueError, NotImplementedError):  # operations that exist inside a traced program only
            return [_Unknown(f"`{name}` cannot be computed by itself")] * len(shapes)
        results = results if equation.primitive.multiple_results else [results]
        return [_Known(_concrete(one), seeded) for one in results]

    def cond(self, equation: Any, values: list[_Value], wanted: list[bool]) -> list[_Value]:
        """Takes the branch that a known index names."""
        index, *operands = values
        if not isinstance(index, _Known):
            return [_Unknown("its initializer branches on random numbers")] * len(equation.outvars)
        branches = equation.params["branches"]
        branch = branches[int(np.clip(int(index.value), 0, len(branches) - 1))]
        return self.run(branch.jaxpr, [_Known(_concrete(one)) for one in branch.consts], operands, wanted)

    def scan(self, equation: Any, values: list[_Value]) -> list[_Value]:
        """Runs a loop of few steps one by one, such as an init over the keys of stacked layers."""
        parameters = equation.params
        steps, body = parameters["length"], parameters["jaxpr"]
        if steps > _MOST_STEPS:
            return [_Unknown(f"its initializer loops over {steps} steps")] * len(equation.outvars)
        constants, carried = parameters["num_consts"], parameters["num_carry"]
        fixed, carry = values[:constants], values[constants : constants + carried]
        along = values[constants + carried :]
        stacked: list[list[_Value]] = []
        order = range(steps)[::-1] if parameters["reverse"] else range(steps)
        inner = [_Known(_concrete(one)) for one in body.consts]
        for step in order:
            outputs = self.run(body.jaxpr, inner, [*fixed, *carry, *[_row(one, step) for one in along]])
            carry, rows = outputs[:carried], outputs[carried:]
            stacked.append(rows)
        stacked = stacked[::-1] if parameters["reverse"] else stacked
        shapes = [tuple(one.aval.shape) for one in equation.outvars[carried:]]
        return [*carry, *[_stack(list(rows), shape) for rows, shape in zip(zip(*stacked, strict=True), shapes)]]  # noqa: B905


def _apply(equation: Any, operands: Sequence[Any]) -> np.ndarray:
    """Computes an elementwise equation in double precision; results of half precision are rounded."""
    name, dtype = equation.primitive.name, equation.outvars[0].aval.dtype
    arrays = [np.asarray(one) for one in operands]
    if name == "bitcast_convert_type":
        result = arrays[0].view(dtype)
    elif name == "convert_element_type":
        result = arrays[0]
    else:
        options = {key: equation.params[key] for key in _PARAMETERS.get(name, ())}
        with np.errstate(all="ignore"):
            result = np.asarray(_ELEMENTWISE[name](*arrays, **options))
    if not jnp.issubdtype(dtype, jnp.floating):
        return result.astype(dtype)
    if np.dtype(dtype).itemsize < 4:
        result = np.asarray(result).astype(dtype)
    return np.asarray(result).astype(np.float64)


def _elementwise(equation: Any, values: list[_Value], shape: tuple[int, ...]) -> _Value:
    """Returns an elementwise function of random entries."""
    drawn = [one for one in values if isinstance(one, _Drawn)]
    first = drawn[0]
    if equation.primitive.name == "bitcast_convert_type":
        same = np.dtype(equation.invars[0].aval.dtype).itemsize == np.dtype(equation.outvars[0].aval.dtype).itemsize
        if not same or first.grid.dtype == np.float64:
            return _Unknown("its bits are taken from another number")
    numbers = np.broadcast_to(first.numbers, shape)
    arrays = []
    for one in values:
        if isinstance(one, _Drawn):
            if one is not first and not np.array_equal(np.broadcast_to(one.numbers, shape), numbers):
                return _Unknown("an entry is a function of several random numbers")
            arrays.append(one.grid)
        else:
            array = np.asarray(one.value)  # type: ignore[union-attr]
            if one.seeded:  # type: ignore[union-attr]
                return _Unknown("it is computed from the key itself")
            if array.size and not np.all(array == array.flat[0]):
                return _Unknown("its entries have different distributions")
            arrays.append(array.flat[0] if array.size else np.zeros(()))
    return _Drawn(np.broadcast_to(_apply(equation, arrays), first.grid.shape), numbers, first.bits)


def _moved(equation: Any, values: list[_Value], shapes: list[tuple[int, ...]]) -> list[_Value]:
    """Returns random entries in another layout."""
    name, parameters = equation.primitive.name, equation.params
    first = values[0]
    operands = values if name in ("concatenate", "stack", "optimization_barrier") else values[:1]
    if not isinstance(first, _Drawn) or not all(isinstance(one, _Drawn) for one in operands):
        return [_Unknown("random and other numbers are joined")] * len(shapes)
    if name == "optimization_barrier":
        return list(values)
    if any(one.grid is not first.grid and not np.array_equal(one.grid, first.grid) for one in operands):  # type: ignore
        return [_Unknown("its entries have different distributions")] * len(shapes)
    if name == "gather" and "CLIP" not in str(parameters["mode"]) and "PROMISE" not in str(parameters["mode"]):
        # Entries that lie outside become a fill value, which the numbers would show as one of them.
        parameters = {**parameters, "fill_value": -1}
    numbers = [one.numbers if isinstance(one, _Drawn) else one.value for one in values]  # type: ignore[union-attr]
    if name == "broadcast_in_dim":
        spread = np.ones(len(shapes[0]), int)
        spread[list(parameters["broadcast_dimensions"])] = first.numbers.shape
        moved = [np.broadcast_to(first.numbers.reshape(spread), shapes[0])]
    elif name in ("reshape", "squeeze", "expand_dims"):
        moved = [first.numbers.reshape(shapes[0])]
    elif name == "transpose":
        moved = [first.numbers.transpose(parameters["permutation"])]
    else:
        with jax.enable_x64(True):
            results = equation.primitive.bind(*[jnp.asarray(one) for one in numbers], **parameters)
        moved = [np.asarray(one) for one in (results if equation.primitive.multiple_results else [results])]
    if any(one.size and one.min() < 0 for one in moved):
        return [_Unknown("random and other numbers are joined")] * len(shapes)
    return [_Drawn(first.grid, one, first.bits) for one in moved]


def _orthogonal(value: _Value, shape: Sequence[int]) -> _Value:
    """Returns the orthogonal factor of a matrix of independent normal entries of mean 0."""
    if not isinstance(value, _Drawn):
        return value if isinstance(value, _Unknown) else _Unknown("it comes from a matrix factorization")
    distribution = match(value.grid, value.bits, shape, np.dtype(np.float32))
    independent = _distinct(value.numbers)
    if distribution is None or distribution.kind != "normal" or distribution.mean or not independent:
        return _Unknown("it comes from the factorization of a matrix that is not normal")
    return _Orthogonal(1.0, max(shape[-2:]), value.numbers)


def _after_factorization(name: str, values: list[_Value]) -> _Value:
    """Returns what becomes of an orthogonal matrix and of its triangular companion."""
    orthogonal = [one for one in values if isinstance(one, _Orthogonal)]
    if not orthogonal:
        if all(isinstance(one, _Known | _Triangular) for one in values):
            kept = all(one.signs for one in values if isinstance(one, _Triangular))
            return _Triangular(name == "sign" or (kept and name in _LAYOUT))
        return _Unknown("it comes from a matrix factorization")
    rest = [one for one in values if not isinstance(one, _Orthogonal)]
    # Signs of rows or columns make the distribution uniform, and leave the matrix orthogonal.
    signs = all(isinstance(one, _Triangular) and one.signs for one in rest)
    if len(orthogonal) == 1 and name == "mul" and rest and signs:
        return orthogonal[0]
    numbers = [np.asarray(one.value) for one in rest if isinstance(one, _Known) and not one.seeded]
    if len(orthogonal) == len(numbers) == 1 and name in ("mul", "div") and len(values) == 2:
        number = numbers[0]
        if np.all(number == number.flat[0]) and (name == "mul" or values[0] is orthogonal[0]):
            factor = float(number.flat[0])
            return dataclasses.replace(
                orthogonal[0], scale=orthogonal[0].scale * (factor if name == "mul" else 1 / factor)
            )
    if len(values) == 1 and name in (
        "reshape",
        "transpose",
        "rev",
        "squeeze",
        "expand_dims",
        "convert_element_type",
        "copy",
    ):
        return orthogonal[0]
    return _Unknown(f"an orthogonal matrix is changed by `{name}`")


def _row(value: _Value, step: int) -> _Value:
    """Returns one row of a stack."""
    if isinstance(value, _Known):
        return _Known(value.value[step], value.seeded)
    if isinstance(value, _Drawn):
        return _Drawn(value.grid, np.asarray(value.numbers[step]), value.bits)
    return value if isinstance(value, _Unknown) else _Unknown("it comes from a matrix factorization")


def _stack(rows: list[_Value], shape: tuple[int, ...]) -> _Value:
    """Returns the stack of the rows of a loop."""
    if unknown := next((one for one in rows if isinstance(one, _Unknown)), None):
        return unknown
    if rows and all(isinstance(one, _Known) for one in rows):
        seeded = any(one.seeded for one in rows)  # type: ignore[union-attr]
        arrays = [one.value for one in rows]  # type: ignore[union-attr]
        return _Known(jnp.stack(arrays) if _is_key(arrays[0]) else np.stack(arrays), seeded)
    if rows and all(isinstance(one, _Drawn) and np.array_equal(one.grid, rows[0].grid) for one in rows):  # type: ignore
        numbers = np.stack([one.numbers for one in rows]).reshape(shape)  # type: ignore[union-attr]
        return dataclasses.replace(rows[0], numbers=numbers)  # type: ignore[type-var]
    if rows and all(isinstance(one, _Orthogonal) for one in rows):
        numbers = np.concatenate([one.numbers.ravel() for one in rows])  # type: ignore[union-attr]
        same = {(one.scale, one.larger) for one in rows}  # type: ignore[union-attr]
        if len(same) == 1 and _distinct(numbers):
            return dataclasses.replace(rows[0], numbers=numbers)  # type: ignore[type-var]
    return _Unknown("a loop joins entries of different distributions")
