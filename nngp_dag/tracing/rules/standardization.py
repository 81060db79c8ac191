"""Rules of weights that are standardized before use: minus the mean over their rows, divided by their norm.

A mean of n independent weights is of the size of 1 / sqrt(n) of one, as the sum over n channels that it meets is of n:
weights minus their mean act as weights on values minus their mean. A sum of squares of n weights is n times their
variance. Its relative fluctuation, of sqrt(2 / n), is left out. That is exact where n is infinite; for the features of
an input it is not, which `check_norm` states.
"""

import dataclasses
from typing import NoReturn

import numpy as np

from nngp_dag.errors import NumericalWarning, warn
from nngp_dag.tracing.arrays import Groups, Num, Par, Sums
from nngp_dag.tracing.reader import Reader


def sum_of(reader: Reader, par: Par, axes: tuple[int, ...]) -> Num | Par:
    """Returns the sums over axes of a parameter, or of its squares."""
    if par.sums is not None or par.factor is not None or any(par.repeated):
        refuse(reader, par, "sums of entries of a parameter", "a sum of something else made of it")
    kept = [i for i in range(len(par.shape)) if i not in axes]
    shape = tuple(par.shape[i] for i in kept)
    entries = np.transpose(par.entries, [*kept, *axes]).reshape(int(np.prod(shape)), -1)
    count = entries.shape[1]
    if par.squared:
        spec = reader.leaves[par.leaf].distribution
        if par.groups is None:
            mean_square = spec.std**2 + spec.mean**2
        else:
            mean_square = spec.std**2 * (1 - 1 / par.groups.size)
        reader.norms[par.leaf] = count
        stored = np.full((1,) * len(shape), par.scale * count * mean_square)
        return Num(reader.values.known(stored), shape, tuple(n > 1 for n in shape))
    sums = Sums(tuple(map(tuple, entries.tolist())), par.scale)
    numbers = np.arange(len(entries)).reshape(shape)
    return Par(par.leaf, numbers, shape, (False,) * len(shape), sums=sums)


def squared(reader: Reader, par: Par) -> Par:
    """Returns the squares of a parameter's entries, to be summed."""
    if par.squared or par.sums is not None or par.factor is not None:
        refuse(reader, par, "squares of entries of a parameter", "a square of something else made of it")
    return dataclasses.replace(par, scale=par.scale**2, squared=True)


def centered(reader: Reader, par: Par, sums: Par) -> Par:
    """Returns a parameter minus the means of its entries over groups, such as the rows of a matrix."""
    assert sums.sums is not None
    members = np.array(sums.sums.members)
    groups = np.full(int(np.prod(reader.leaves[par.leaf].shape)), -1)
    groups[members.ravel()] = np.repeat(np.arange(len(members)), members.shape[1])
    size = members.shape[1]
    fits = par.leaf == sums.leaf and par.factor is None and not any(par.repeated)
    if (
        not fits
        or not np.isclose(sums.scale * sums.sums.scale * size, par.scale, rtol=1e-6)
        or not np.array_equal(groups[par.entries], np.broadcast_to(sums.entries, par.shape))
        or (par.groups is not None and not np.array_equal(par.groups.of, groups))
    ):
        refuse(reader, par, "a parameter minus the mean of its own entries", "a difference of another kind")
    return dataclasses.replace(par, groups=Groups(groups, size))


def check_centered(reader: Reader, par: Par, entries: np.ndarray, rows: int) -> bool:
    """Returns whether a parameter's entries are centered, over all that a product sums.

    Args:
      reader: The reader.
      par: The parameter.
      entries: The positions of the entries that the product reads; the first axes are those that it sums over.
      rows: The number of these axes.

    Raises:
      ModelError: They are centered over other entries.
    """
    if par.groups is None:
        return False
    groups = par.groups.of[entries.reshape(int(np.prod(entries.shape[:rows])), -1)]
    if len(groups) != par.groups.size or np.ptp(groups, axis=0).any():
        refuse(
            reader,
            par,
            f"weights that are centered over the {len(groups)} entries that a product sums over",
            f"means over {par.groups.size} entries",
        )
    return True


def check_norm(reader: Reader, par: Par) -> None:
    """Warns of weights that act on features of the input and were divided by their norm, which is then random."""
    if par.leaf in reader.norms:
        count = reader.norms[par.leaf]
        warn(
            f"{reader.place}: weights `{reader.leaves[par.leaf].name}` are divided by their norm over {count} entries "
            f"only; kernels take it as constant, with errors of order 1 / {count}, and more where means are "
            "subtracted later",
            NumericalWarning,
        )


def refuse(reader: Reader, par: Par, expected: str, got: str) -> NoReturn:
    """Refuses a parameter that is changed in another way."""
    reader.refuse(
        expected,
        f"{got}, of `{reader.leaves[par.leaf].name}`",
        "standardize weights by the mean and the standard deviation over all that the product sums over",
    )
