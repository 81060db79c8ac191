"""Rules of weights that are standardized before use: minus the mean over their rows, divided by their norm.

A mean of n independent weights is of the size of 1 / sqrt(n) of one, as the sum over n channels that it meets is of n:
weights minus their mean act as weights on values minus their mean. A sum of squares of n weights is n times their
variance, with a relative fluctuation of sqrt(2 / n). It is a number where n is infinite, which `check_norms` tests.
"""

import dataclasses
import math
from typing import Any, NoReturn

import numpy as np

from nngp_dag.errors import NumericalWarning, warn
from nngp_dag.tracing.arrays import Groups, Num, Par, Squares, Sums, Value
from nngp_dag.tracing.reader import RULES, SUMS, Reader, rule
from nngp_dag.tracing.rules.shapes import broadcast_to

# Operations on one array that move entries.
_MOVES = frozenset(("reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims"))


@rule(SUMS)
def of_sums(reader: Reader, equation: Any, arguments: list[Any]) -> Value:
    """Applies an operation to sums of a parameter's entries, or to its squares."""
    name = equation.primitive.name
    array = next(a for a in arguments if isinstance(a, (Squares, Sums)))
    if name in _MOVES and len(arguments) == 1:
        if isinstance(array, Sums):
            return dataclasses.replace(array, numbers=RULES[name](reader, equation, [array.numbers]))
        return dataclasses.replace(array, par=RULES[name](reader, equation, [array.par]))
    if name in ("convert_element_type", "real"):
        return array
    if name == "reduce_sum" and isinstance(array, Squares):
        return _norm(reader, array, tuple(sorted(map(int, equation.params["axes"]))))
    if name in ("mul", "div") and (name == "mul" or array is arguments[0]):
        number = next((a for a in arguments if isinstance(a, Num)), None)
        if number is not None and number.scalar:
            c = number.scalar if name == "mul" else 1 / number.scalar
            return dataclasses.replace(array, scale=array.scale * c)
    if name == "sub" and isinstance(array, Sums) and isinstance(arguments[0], Par):
        shape = tuple(equation.outvars[0].aval.shape)
        if array.shape and array.shape != shape:
            numbers = broadcast_to(reader, array.numbers, shape, range(len(shape)))
            array = dataclasses.replace(array, numbers=numbers)  # type: ignore[arg-type]
        return _centered(reader, arguments[0], array)
    what = "sums of its entries" if isinstance(array, Sums) else "its squares"
    leaf = array.leaf if isinstance(array, Sums) else array.par.leaf
    return _refuse(reader, leaf, "a parameter minus its mean, or divided by its norm", f"`{name}` of {what}")


def sum_of(reader: Reader, par: Par, axes: tuple[int, ...]) -> Sums:
    """Returns the sums over axes of a parameter."""
    entries, shape = _grouped(reader, par, axes)
    numbers = np.arange(len(entries)).reshape(shape)
    return Sums(par.leaf, Par(par.leaf, numbers, shape, (False,) * len(shape)), entries, par.scale)


def squared(reader: Reader, par: Par, other: Par) -> Squares:
    """Returns the squares of a parameter's entries."""
    for one in (par, other):
        if one.factor is not None:
            _refuse(reader, par.leaf, "a parameter times itself", "one that was multiplied by an array before")
    both = [np.zeros(0) if one.groups is None else one.groups.of for one in (par, other)]
    alike = np.array_equal(both[0], both[1])
    if not np.array_equal(par.entries, other.entries) or par.shape != other.shape or not alike:
        _refuse(reader, par.leaf, "a parameter times itself", "the product of two parts of it")
    return Squares(dataclasses.replace(par, scale=1.0), par.scale * other.scale)


def _grouped(reader: Reader, par: Par, axes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns the entries over which each sum goes, (sums, entries), and the shape of the sums."""
    if par.factor is not None or any(par.repeated):
        _refuse(reader, par.leaf, "sums of entries of a parameter", "a sum of entries times an array, or repeated ones")
    kept = [i for i in range(len(par.shape)) if i not in axes]
    shape = tuple(par.shape[i] for i in kept)
    return np.transpose(par.entries, [*kept, *axes]).reshape(math.prod(shape), -1), shape


def _norm(reader: Reader, squares: Squares, axes: tuple[int, ...]) -> Num:
    """Returns the sums of squares over axes, numbers if they go over infinitely many entries."""
    par = squares.par
    entries, shape = _grouped(reader, par, axes)
    spec = reader.leaves[par.leaf].distribution
    mean_square = spec.std**2 + (spec.mean**2 if par.groups is None else -(spec.std**2) / par.groups.size)
    reader.norms.setdefault(par.leaf, []).append((reader.place, entries))
    stored = np.full((1,) * len(shape), squares.scale * entries.shape[1] * mean_square)
    return Num(reader.values.known(stored), shape, tuple(n > 1 for n in shape))


def _centered(reader: Reader, par: Par, sums: Sums) -> Par:
    """Returns a parameter minus the means of its entries over groups, such as the rows of a matrix."""
    size = sums.members.shape[1]
    groups = _numbers_of_groups(reader, sums.leaf, sums.members)
    fits = par.leaf == sums.leaf and par.factor is None and not any(par.repeated)
    if fits:
        wanted = np.broadcast_to(sums.numbers.entries, par.shape)
        fits = np.array_equal(groups[par.entries], wanted) and (
            par.groups is None or np.array_equal(par.groups.of, groups)
        )
    if not fits or not np.isclose(sums.scale * size, par.scale, rtol=1e-6):
        _refuse(reader, par.leaf, "a parameter minus the mean of its own entries", "a difference of another kind")
    return dataclasses.replace(par, groups=Groups(groups, size))


def _numbers_of_groups(reader: Reader, leaf: int, members: np.ndarray) -> np.ndarray:
    """Returns the number of the group of every entry of a parameter, -1 for entries of none."""
    groups = np.full(math.prod(reader.leaves[leaf].shape), -1)
    groups[members.ravel()] = np.repeat(np.arange(len(members)), members.shape[1])
    return groups


def read_rows(reader: Reader, par: Par, entries: np.ndarray, rows: int, *, channels: bool) -> bool:
    """Keeps the entries that a product sums over, and returns whether they are centered over just these.

    Args:
      reader: The reader.
      par: The parameter.
      entries: The positions of the entries that the product reads; the first axes are those that it sums over.
      rows: The number of these axes.
      channels: Whether it sums over channels, not over features of the input.

    Raises:
      ModelError: They are centered over other entries.
    """
    summed = entries.reshape(math.prod(entries.shape[:rows]), -1)
    reader.summed.setdefault(par.leaf, []).append((summed, channels))
    if par.groups is None:
        return False
    groups = par.groups.of[summed]
    if len(groups) != par.groups.size or np.ptp(groups, axis=0).any():
        _refuse(
            reader,
            par.leaf,
            f"weights that are centered over the {len(groups)} entries that a product sums over",
            f"means over {par.groups.size} other entries",
        )
    return True


def check_norms(reader: Reader) -> None:
    """Refuses norms over finitely many entries, which are random; warns of those over features of the input.

    Raises:
      ModelError: A norm does not go over all that a product with its parameter sums over.
    """
    for leaf, norms in reader.norms.items():
        name = reader.leaves[leaf].name
        for place, members in norms:
            reader.place = place
            groups = _numbers_of_groups(reader, leaf, members)
            covered: dict[bool, set[int]] = {True: set(), False: set()}
            for summed, channels in reader.summed.get(leaf, []):
                of = groups[summed]
                covered[channels] |= set(of[0][(of == of[0]).all(axis=0)].tolist())
            count, whole = members.shape[1], set(range(len(members)))
            if whole <= covered[True]:
                reader.infinite.setdefault(f"the norm of `{name}` goes over", count)
                continue
            if not whole <= covered[True] | covered[False]:
                _refuse(
                    reader,
                    leaf,
                    "norms over all the entries that a product with the parameter sums over",
                    f"a norm over {count} other entries, which stays random",
                )
            reader.infinite.setdefault(f"the norm of `{name}`, of features of the input, goes over", count)
            warn(
                f"{place}: weights `{name}` of the input are divided by their norm over {count} entries; kernels take "
                f"it as constant, with relative errors of order 1 / {count}, and more where means are subtracted later",
                NumericalWarning,
            )


def _refuse(reader: Reader, leaf: int, expected: str, got: str) -> NoReturn:
    reader.refuse(
        expected,
        f"{got}, of `{reader.leaves[leaf].name}`",
        "standardize weights by the mean and the standard deviation over all that the product sums over",
    )
