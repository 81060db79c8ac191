"""Rules of elementwise operations: linear combinations stay linear, other functions need one Gaussian value."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nngp_dag.tracing.arrays import Num, Par, Rand, Value, finite_of
from nngp_dag.tracing.reader import Reader, rule
from nngp_dag.tracing.rules.alignment import aligned, apply_to_parts, fixed_on, number_on, parameter_on
from nngp_dag.tracing.rules.bases import Base, bases, common_base, constant
from nngp_dag.tracing.rules.shapes import broadcast_to
from nngp_dag.tracing.rules.standardization import squared
from nngp_dag.tracing.values import Fixed, Linear, Node, Number, Parameter, Sum, operands

_UNARY = (
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "clamp", "cos", "cosh", "digamma"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "is_finite", "lgamma", "log", "log1p"),
    *("logistic", "not", "round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
)
_BINARY = (
    *("and", "atan2", "eq", "ge", "gt", "le", "lt", "max", "min", "ne", "nextafter", "or", "pow", "rem", "select_n"),
    "xor",
)
_LINEAR = ("add", "add_any", "convert_element_type", "div", "mul", "neg", "real", "stop_gradient", "sub")


@rule(*_UNARY, *_BINARY, *_LINEAR)
def elementwise(reader: Reader, equation: Any, arguments: list[Any]) -> Value:
    """Applies an elementwise operation."""
    name = equation.primitive.name
    shape = tuple(equation.outvars[0].aval.shape)
    # Axes of size 1 are repeated without an equation of their own.
    arguments = [
        broadcast_to(reader, a, shape, range(len(shape))) if a.shape and a.shape != shape else a for a in arguments
    ]
    if any(isinstance(a, Rand) for a in arguments):
        return _of_random(reader, equation, arguments)
    if any(isinstance(a, Par) for a in arguments):
        return _of_parameters(reader, name, equation.params.get("y", 2), arguments)
    return _of_numbers(reader, equation, arguments)


# Numbers.


def _of_numbers(reader: Reader, equation: Any, arguments: list[Num]) -> Num:
    """Applies an operation to numbers as they are stored."""
    name = equation.primitive.name
    growth = None
    if name in ("rsqrt", "sqrt") and arguments[0].growth is not None and arguments[0].number.known is not None:
        reader.refuse(
            "a norm of values that stay random in the limit",
            "a norm of values whose limit is 0, such as those of linear attention with independent queries and keys",
            "scale them so that they have a limit, or use the same matrix for both",
        )
    if any(a.growth is not None and not a.growth.bounded for a in arguments):
        growth = _grown(reader, equation, arguments)
        if growth is None:
            for a in arguments:
                reader.settle(a)
    (out,) = equation.outvars
    shape = tuple(out.aval.shape)
    ranked = [a for a in arguments if a.shape]
    constant = tuple(all(a.constant[i] for a in ranked) for i in range(len(shape)))
    stored = tuple(1 if c else n for n, c in zip(shape, constant, strict=True))
    params = dict(equation.params)
    if name == "convert_element_type" and np.issubdtype(params["new_dtype"], np.floating):
        return dataclasses.replace(
            arguments[0], number=reader.values.computed("float", lambda a: jnp.asarray(a, float), arguments[0].number)
        )

    def evaluate(*stored_arrays: Any) -> Any:
        arrays = [jnp.broadcast_to(jnp.asarray(a), stored) for a in stored_arrays]
        dtype = jnp.result_type(*arrays)
        if name != "select_n" and len(arrays) > 1:
            arrays = [a.astype(dtype) for a in arrays]
        return equation.primitive.bind(*arrays, **params)

    if name == "stop_gradient":
        return arguments[0]
    number = reader.values.computed((name, _hashable(params), stored), evaluate, *(a.number for a in arguments))
    return Num(number, shape, constant, growth)


def _grown(reader: Reader, equation: Any, arguments: list[Num]) -> Any:
    """Returns the growth after an operation that keeps track of it, or None."""
    name = equation.primitive.name
    first, *others = arguments
    if name in ("neg", "convert_element_type", "stop_gradient", "real"):
        return first.growth
    if name in ("mul", "div") and others and first.growth is not None and others[0].growth is None:
        c = others[0].scalar
        if c is not None and c != 0:
            return first.growth._replace(factor=first.growth.factor * (c if name == "mul" else 1 / c))
    if name == "mul" and first.growth is None and first.scalar is not None and others[0].growth is not None:
        return others[0].growth._replace(factor=others[0].growth.factor * first.scalar)
    growth = first.growth
    if growth is not None and growth.positive:
        power = {"sqrt": 0.5, "rsqrt": -0.5}.get(name)
        if power is not None:
            return growth._replace(factor=abs(growth.factor) ** power, power=growth.power * power)
    if name in ("add", "sub", "max") and growth is not None and growth.positive and others[0].growth is None:
        # A small constant, such as the epsilon of a norm, does not grow.
        return growth if others[0].scalar is not None else None
    if name == "div" and first.growth is not None and others[0].growth is not None and others[0].growth.positive:
        below = others[0].growth
        if below.size == first.growth.size and below.factor:
            return first.growth._replace(
                factor=first.growth.factor / below.factor, power=first.growth.power - below.power
            )
    if name == "div" and first.growth is None and others[0].growth is not None and others[0].growth.positive:
        of = others[0].growth
        return of._replace(factor=1 / of.factor, power=-of.power) if of.factor else None
    return None


def _hashable(params: dict[str, Any]) -> Hashable:
    return tuple(sorted((k, str(v)) for k, v in params.items()))


# Parameters alone.


def _of_parameters(reader: Reader, name: str, power: int, arguments: list[Any]) -> Value:
    par, *more = [a for a in arguments if isinstance(a, Par)]
    if name in ("integer_pow", "square") and power == 2:
        return squared(reader, par, par)
    if more and name == "mul" and more[0].leaf == par.leaf:
        return squared(reader, par, more[0])
    if more or len(arguments) > 2:
        names = " and ".join(f"`{reader.leaves[a.leaf].name}`" for a in (par, *more))
        reader.refuse(
            "parameters that act on random values", f"`{name}` of the parameters {names}", "apply one after the other"
        )
    if name in ("convert_element_type", "real"):
        return par
    if name == "neg":
        return dataclasses.replace(par, scale=-par.scale)
    others = [a for a in arguments if isinstance(a, Num)]
    c = others[0].scalar if others else None
    if c is not None and (name == "mul" or (name == "div" and arguments[0] is par)):
        return dataclasses.replace(par, scale=par.scale * (c if name == "mul" else 1 / c))
    if others and par.factor is None and (name == "mul" or (name == "div" and arguments[0] is par)):
        (num,) = others
        reader.settle(num)
        if name == "div":
            num = dataclasses.replace(num, number=reader.values.computed("reciprocal", lambda a: 1 / a, num.number))
        return dataclasses.replace(par, factor=num)
    leaf = reader.leaves[par.leaf].name
    if name == "stop_gradient":
        reader.refuse("parameters that are trained", f"`stop_gradient` of `{leaf}`", "leave it out")
    return reader.refuse(
        "a parameter to multiply or be added to a random value",
        f"`{name}` of `{leaf}` and a number" if others else f"`{name}` of `{leaf}`",
        "apply functions to values, not to parameters; pass what is not trained as a constant of the model",
    )


# Random values.


def _of_random(reader: Reader, equation: Any, arguments: list[Any]) -> Rand:
    name = equation.primitive.name
    rands = iter(aligned(reader, [a for a in arguments if isinstance(a, Rand)]))
    placed: list[Any] = [next(rands) if isinstance(a, Rand) else a for a in arguments]
    one = next(a for a in placed if isinstance(a, Rand))
    placed = [_parameter(reader, a, one) if isinstance(a, Par) else a for a in placed]
    if name in ("neg", "convert_element_type", "real"):
        if name == "convert_element_type" and not np.issubdtype(equation.params["new_dtype"], np.floating):
            to = np.dtype(equation.params["new_dtype"]).name
            reader.refuse(
                "values that stay floats", f"a random value that is converted to {to}", "compare it by > or <"
            )
        if name == "convert_element_type" and _is_truth(equation.invars[0]):
            return _function(reader, equation, placed, one)
        c = -1.0 if name == "neg" else 1.0
        return apply_to_parts(one, lambda node: reader.values.sum([(c, node)]))
    if name == "stop_gradient":
        reader.refuse("values through which gradients flow", "`stop_gradient`", "leave it out")
    if name in ("add", "add_any", "sub"):
        left, right = (fixed_on(reader, a, one) if isinstance(a, Num) else a for a in placed)
        sign = -1.0 if name == "sub" else 1.0
        return _pairwise(left, right, lambda u, v: reader.values.sum([(1.0, u), (sign, v)]))
    if name in ("mul", "div"):
        return _multiplied(reader, equation, placed, one)
    if name == "select_n" and isinstance(placed[0], Num) and len(placed) == 3:
        return _masked(reader, placed, one)
    if name in ("integer_pow", "square") and equation.params.get("y", 2) == 2:
        return apply_to_parts(one, lambda node: _product(reader, node, node))
    return _function(reader, equation, placed, one)


def _parameter(reader: Reader, par: Par, one: Rand) -> Rand:
    """Returns a parameter, times the number that it was multiplied by, on the axes of a random array."""
    rand = parameter_on(reader, par, one)
    return rand if par.factor is None else scaled(reader, rand, number_on(reader, par.factor, one.dims))


def _is_truth(variable: Any) -> bool:
    return variable.aval.dtype == bool


def _pairwise(left: Rand, right: Rand, combine: Callable[[Node, Node], Node]) -> Rand:
    parts = tuple((n, combine(u, v)) for (n, u), (_, v) in zip(left.parts, right.parts, strict=True))
    return Rand(parts, left.dims)


def scaled(reader: Reader, rand: Rand, number: Number) -> Rand:
    """Returns a random array times a number on its finite axes."""
    shape = finite_of(rand.dims)

    def scale(node: Node) -> Node:
        return reader.values.linear("scale", node, shape, lambda a, s: a * jnp.broadcast_to(s, shape), (number,))

    return apply_to_parts(rand, scale)


def _multiplied(reader: Reader, equation: Any, placed: list[Any], one: Rand) -> Rand:
    left, right = placed
    name = equation.primitive.name
    if isinstance(left, Rand) and isinstance(right, Rand):
        if name == "div":
            return _function(reader, equation, placed, one)
        return _pairwise(left, right, lambda u, v: _product(reader, u, v))
    num: Any = right if isinstance(right, Num) else left
    if name == "div" and num is left:
        return _function(reader, equation, placed, one)
    if num.scalar is not None:
        c = num.scalar if name == "mul" else 1 / num.scalar
        return apply_to_parts(one, lambda node: reader.values.sum([(c, node)]))
    if name == "div" and num.growth is not None and not num.growth.bounded:
        num = _reciprocal(reader, num)
        return scaled(reader, one, number_on(reader, num, one.dims))
    number = number_on(reader, num, one.dims)
    if name == "div":
        number = reader.values.computed("reciprocal", lambda a: 1 / a, number)
    return scaled(reader, one, number)


def _reciprocal(reader: Reader, num: Num) -> Num:
    growth = num.growth
    if growth is None or not growth.positive:
        reader.settle(num)
        raise AssertionError
    number = reader.values.computed("reciprocal", lambda a: 1 / a, num.number)
    return dataclasses.replace(
        num, number=number, growth=growth._replace(factor=1 / growth.factor, power=-growth.power)
    )


def _product(reader: Reader, u: Node, v: Node) -> Node:
    """Returns the product of two nodes: a function of one Gaussian node where both are, else a product of two."""
    for one, other in ((u, v), (v, u)):
        if isinstance(one, Fixed) and one.offset is not None:
            return reader.values.sum([(one.offset, other)])
    base = common_base([bases(reader, u), bases(reader, v)])
    if base is None or base[0].node is None:
        return reader.values.times(u, v, reader.place)
    f, g = base
    assert f.node is not None
    return reader.values.nonlinear(
        ("mul", f.key, g.key),
        f.node,
        lambda t, p=None: f.function(t, p) * g.function(t, p),
        reader.place,
        reader.label,
        (*f.tuned, *g.tuned),
    )


def _masked(reader: Reader, placed: list[Any], one: Rand) -> Rand:
    """Returns a choice by a number between two values, as a sum of both times masks."""
    number = number_on(reader, placed[0], one.dims)
    chosen = reader.values.computed("mask", lambda a: jnp.asarray(a != 0, float), number)
    left_out = reader.values.computed("other mask", lambda a: jnp.asarray(a == 0, float), number)
    parts = []
    for value, mask in ((placed[1], left_out), (placed[2], chosen)):
        if isinstance(value, Num):
            if value.scalar == 0:
                continue
            value = fixed_on(reader, value, one)
        parts.append(scaled(reader, value, mask))
    result = parts[0]
    for other in parts[1:]:
        result = _pairwise(result, other, lambda u, v: reader.values.sum([(1.0, u), (1.0, v)]))
    return result


def _function(reader: Reader, equation: Any, placed: Sequence[Any], one: Rand) -> Rand:
    """Applies a function to one Gaussian value, which all random arguments are functions of."""
    name, params = equation.primitive.name, dict(equation.params)
    parts = []
    for i, (n, _) in enumerate(one.parts):
        choices: list[list[Base]] = []
        for a in placed:
            if isinstance(a, Rand):
                choices.append(bases(reader, a.parts[i][1]))
            else:
                choices.append([constant(_scalar(reader, name, a))])
        found = common_base(choices)
        if found is None:
            _refuse_function(reader, name, [a.parts[i][1] for a in placed if isinstance(a, Rand)])
        chosen: list[Base] = found  # type: ignore[assignment]
        node = next((b.node for b in chosen if b.node is not None), None)
        if node is None:
            _refuse_function(reader, name, [a.parts[i][1] for a in placed if isinstance(a, Rand)])
        key = (name, _hashable(params), reader.label == "relu", tuple(b.key for b in chosen))
        function = _composed(equation, chosen, reader.label)
        tuned = tuple(q for b in chosen for q in b.tuned)
        made = reader.values.nonlinear(key, node, function, reader.place, reader.label, tuned)  # type: ignore[arg-type]
        parts.append((n, made))
    return Rand(tuple(parts), one.dims)


def _composed(equation: Any, chosen: Sequence[Base], label: str) -> Callable[[Any], Any]:
    primitive, params = equation.primitive, dict(equation.params)
    # `jax.nn.relu` has the derivative 0 at 0, by a rule that its program does not show; that of `max` is 1/2.
    is_relu = label == "relu" and primitive.name == "max"

    def composed(t: Any, p: Any = None) -> Any:
        arrays = [jnp.broadcast_to(jnp.asarray(b.function(t, p)), t.shape) for b in chosen]
        floats = [a.dtype for a in arrays if a.dtype.kind == "f"]
        if floats:
            arrays = [a.astype(t.dtype) if a.dtype.kind == "f" else a for a in arrays]
        if primitive.name == "convert_element_type":
            return arrays[0].astype(t.dtype)
        if is_relu:
            return jnp.where(arrays[0] > arrays[1], *arrays)
        return primitive.bind(*arrays, **params)

    return composed


def _scalar(reader: Reader, name: str, num: Num) -> float | bool:
    reader.settle(num)
    known = num.number.known
    if known is not None and known.size and (known == known.flat[0]).all():
        return bool(known.flat[0]) if known.dtype == bool else float(known.flat[0])
    return reader.refuse(
        "a function that is the same for all inputs, positions and channels",
        f"`{name}` of a random value and an array that varies",
        "add or multiply by arrays before the function, or use one number",
    )


def _not_gaussian(node: Node) -> list[Parameter]:
    """Returns the parameters in a linear combination that are not Gaussian, if all else is."""
    if isinstance(node, Parameter):
        return [] if node.gaussian else [node]
    return [p for child in operands(node) for p in _not_gaussian(child)] if isinstance(node, (Sum, Linear)) else []


def _refuse_function(reader: Reader, name: str, nodes: Sequence[Node]) -> None:
    single = len({node.id for node in nodes}) == 1
    if single and nodes[0].gaussian:
        reader.refuse(
            "a function of a Gaussian value with one mean",
            f"`{name}` of a value whose mean differs between positions or inputs",
            "add numbers after the function",
        )
    added = [leaf for node in nodes for leaf in _not_gaussian(node)]
    if single and added:
        reader.refuse(
            "a function of a Gaussian value",
            f"`{name}` of a value to which the {added[0].weight.distribution.kind} parameter `{added[0].weight.name}` "
            "is added",
            "draw it from a normal distribution, or start it from a constant",
        )
    if single:
        reader.refuse(
            "a function of a Gaussian value",
            f"`{name}` of a value that is not Gaussian, such as a sum of activations",
            "put a matrix product before it (pre-activation order)",
        )
    reader.refuse(
        "a function of one Gaussian value",
        f"`{name}` of {len({node.id for node in nodes})} random values",
        "products and sums of independent values have a closed form, other functions of two do not",
    )
