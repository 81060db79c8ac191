"""Products of the channels of two values, as in linear attention that is written q (k' v).

The array of all products of channels, k' v, is neither Gaussian nor a number. It is kept as its two factors until it is
multiplied by a third value along the channels of one of them: q (k' v) is (q k') v, where q k' is a number.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from nngp_dag.tracing.arrays import Axes, Grown, Num, Outer, Rand, Value
from nngp_dag.tracing.reader import OUTER, RULES, Reader, rule
from nngp_dag.tracing.rules.alignment import apply_to_parts
from nngp_dag.tracing.rules.products import averaged, mixed

# Operations on one array that move entries.
_MOVES = frozenset(("reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "rev"))
# Operations that change at most the sign; types are not followed.
_CASTS = frozenset(("convert_element_type", "real", "neg"))


@rule(OUTER)
def outer_product(reader: Reader, equation: Any, arguments: list[Any]) -> Value:
    """Applies an operation to an outer product of channels, or to a value times a sum that still grows."""
    name = equation.primitive.name
    outer = next((a for a in arguments if isinstance(a, Outer)), None)
    if outer is None:
        return _of_grown(reader, equation, arguments)
    if name == "dot_general":
        contracted, batch = equation.params["dimension_numbers"]
        return _multiplied(reader, arguments, contracted, batch)
    order = outer.order or tuple(range(len(outer.shape)))
    params = equation.params
    if name == "transpose":
        return dataclasses.replace(outer, order=tuple(order[i] for i in params["permutation"]))
    if name == "squeeze" and all(order[i] < 0 for i in params["dimensions"]):
        return dataclasses.replace(outer, order=tuple(o for i, o in enumerate(order) if i not in params["dimensions"]))
    if name == "broadcast_in_dim" and math.prod(params["shape"]) == math.prod(outer.shape):
        places = dict(zip(params["broadcast_dimensions"], order, strict=True))
        return dataclasses.replace(outer, order=tuple(places.get(i, -1) for i in range(len(params["shape"]))))
    if name == "neg" or (name in _CASTS and np.issubdtype(equation.outvars[0].aval.dtype, np.floating)):
        return dataclasses.replace(outer, scale=-outer.scale if name == "neg" else outer.scale)
    if name in ("mul", "div") and len(arguments) == 2:
        number = next((a for a in arguments if isinstance(a, Num)), None)
        if number is not None and number.scalar and (name == "mul" or outer is arguments[0]):
            c = number.scalar if name == "mul" else 1 / number.scalar
            return dataclasses.replace(outer, scale=outer.scale * c)
    return _refuse(reader, f"`{name}` of it")


def _multiplied(reader: Reader, arguments: list[Any], contracted: Any, batch: Any) -> Value:
    """Returns the product of an outer product with a random value, along the channels of one factor."""
    at = 0 if isinstance(arguments[0], Outer) else 1
    outer, value = arguments[at], arguments[1 - at]
    if not isinstance(value, Rand):
        _refuse(reader, "a product with something else than a random value")
    axes = outer.axes
    summed, shared = [axes[i] for i in contracted[at]], [axes[i] for i in batch[at]]
    free = [axis for i, axis in enumerate(axes) if i not in (*contracted[at], *batch[at])]
    side = summed[0][0] if summed else ""
    if side == "left":
        one, of_one, other, of_other = outer.left, outer.of_left, outer.right, outer.of_right
    else:
        one, of_one, other, of_other = outer.right, outer.of_right, outer.left, outer.of_left
    # Of the one factor, all own axes are summed over, and the axes of the batch are shared by all three arrays.
    if sorted(summed) != [(side, i) for i in range(len(of_one.free))] or side == "batch" or not summed:
        _refuse(reader, "a product along other axes")
    whole = sorted(shared) == [("batch", i) for i in range(len(of_one.batch))]
    if not whole or free != sorted(free) or ("none", 0) in free:
        _refuse(reader, "a product along other axes, or axes of size 1 beside the channels")
    numbers = [i for _, i in shared]
    taken = (*contracted[1 - at], *batch[1 - at])
    of_value = Axes(
        tuple(contracted[1 - at]), tuple(batch[1 - at]), tuple(i for i in range(len(value.shape)) if i not in taken)
    )
    scores = averaged(
        reader,
        value,
        one,
        of_value,
        Axes(
            tuple(of_one.free[i] for _, i in summed), tuple(of_one.batch[i] for i in numbers), tuple(of_one.contracted)
        ),
    )
    # The axes of the scores are those of the batch, of the value, and those that the outer product summed over.
    count, rows = len(numbers), len(of_value.free)
    of_scores = Axes(
        tuple(range(count + rows, len(scores.shape))), tuple(range(count)), tuple(range(count, count + rows))
    )
    of_other = Axes(of_other.contracted, tuple(of_other.batch[i] for i in numbers), of_other.free)
    bare = dataclasses.replace(scores, growth=None)
    result = mixed(reader, other, bare, of_other, of_scores, rand_first=at == 0)
    result = _times(reader, result, outer.scale)
    growth = scores.growth
    return result if growth is None else _released(result, growth._replace(factor=growth.factor * outer.scale))


def _of_grown(reader: Reader, equation: Any, arguments: Sequence[Any]) -> Value:
    """Applies an operation to a value times a sum over channels, until the program divides by their number."""
    name = equation.primitive.name
    at = next(i for i, a in enumerate(arguments) if isinstance(a, Grown))
    grown = arguments[at]
    if len(arguments) == 1 and name in _MOVES | _CASTS:
        return _released(RULES[name](reader, equation, [grown.rand]), grown.growth)
    other = arguments[1 - at] if name in ("mul", "div") else None
    if isinstance(other, Num) and (name == "mul" or at == 0):
        sign, of = (1, other.growth) if name == "mul" else (-1, other.growth)
        factor = other.scalar if of is None else of.factor
        bare = [grown.rand if i == at else dataclasses.replace(other, growth=None) for i in range(2)]
        if of is None:
            # Numbers that depend on the input do not grow with the width. Of known ones the largest effect counts.
            known = other.number.known
            if factor is None and known is not None:
                sizes = np.abs(known[known != 0])
                factor = float(sizes.max() if name == "mul" else sizes.min()) if sizes.size else None
            factor = factor or 1.0
            growth = grown.growth._replace(factor=grown.growth.factor * factor**sign)
            return _released(RULES[name](reader, equation, bare), growth)
        if of.size == grown.growth.size and of.factor and (name == "mul" or of.positive):
            growth = grown.growth._replace(
                factor=grown.growth.factor * of.factor**sign, power=grown.growth.power + sign * of.power
            )
            return _released(RULES[name](reader, equation, bare), growth)
    reader.settle(Num(reader.values.known(0.0), (), (), grown.growth))
    raise AssertionError("a sum that grows is refused")


def _times(reader: Reader, rand: Rand, c: float) -> Rand:
    return apply_to_parts(rand, lambda node: reader.values.sum([(c, node)]))


def _released(rand: Any, growth: Any) -> Rand | Grown:
    """Returns a value as it is once the factors of the program cancel the growth."""
    return rand if growth.bounded else Grown(rand, growth)


def _refuse(reader: Reader, got: str) -> NoReturn:
    reader.refuse(
        "an outer product of channels to be multiplied along the channels of one factor, as in q (k' v)",
        got,
        "write linear attention as (q k') v or as q (k' v)",
    )
