"""Distributions of parameters at initialization: their moments, and what the drawn numbers say about them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

from nngp_dag.errors import InputError, did_you_mean, shown

__all__ = ["Distribution", "agreement", "check_sample", "from_given", "from_sample", "moments_of"]

# Two-sided probability of a normal variable beyond five standard deviations.
_FIVE_SIGMA = float(2 * scipy.special.ndtr(-5.0))
# Standard deviation and excess kurtosis of a standard normal variable cut at two standard deviations.
_CUT = 2.0
_MASS = float(2 * scipy.special.ndtr(_CUT) - 1)
_EDGE = _CUT * math.exp(-0.5 * _CUT**2) / math.sqrt(2 * math.pi) / _MASS
_SECOND = 1 - 2 * _EDGE
_FOURTH = 3 - 2 * (_CUT**2 + 3) * _EDGE
TRUNCATED_STD = math.sqrt(_SECOND)
_KURTOSIS = {"normal": 0.0, "truncated normal": _FOURTH / _SECOND**2 - 3, "uniform": -1.2}
# Largest distance of an entry from the mean, in standard deviations.
_SUPPORT = {"normal": math.inf, "truncated normal": _CUT / TRUNCATED_STD, "uniform": math.sqrt(3.0)}
_EQUINOX = "the default of equinox and PyTorch"
# Largest standard error of a sample's variance, as a part of it, for which one scheme alone is believed.
_LARGEST_ERROR = 0.1
_GIVEN = ("normal", "truncated normal", "uniform", "constant", "orthogonal")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Distribution of the independent entries of a parameter at initialization.

    Attributes:
      kind: One of "normal", "truncated normal", "uniform", "constant", "orthogonal", "fixed" (an array without
        randomness whose entries differ), or "other". The entries of an orthogonal matrix are uncorrelated, but
        dependent.
      mean: Mean of an entry.
      std: Standard deviation of an entry as drawn, so after truncation.
      excess_kurtosis: Fourth standardized cumulant of an entry, 0 for a normal one; NaN where it is unknown.
      source: How the distribution is known.

    Raises:
      InputError: For moments that no distribution has.
    """

    kind: str
    mean: float
    std: float
    excess_kurtosis: float = 0.0
    source: str = "given"

    def __post_init__(self) -> None:
        """Refuses moments that no distribution has."""
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std >= 0):
            raise InputError(
                f"Expected a finite mean and a standard deviation that is not negative, got {self.mean} and {self.std}"
            )
        # The fourth moment is at least the square of the second one.
        if self.excess_kurtosis < -2 - 1e-9:
            raise InputError(f"Expected an excess kurtosis of at least -2, got {self.excess_kurtosis}")

    @property
    def random(self) -> bool:
        """Whether entries differ from draw to draw."""
        return self.kind not in ("constant", "fixed")

    def __str__(self) -> str:
        """Returns the kind with its moments, such as "normal, std 0.125"."""
        if self.kind == "constant":
            return f"constant {self.mean:.6g}"
        if self.kind == "fixed":
            return "a fixed array"
        return f"{self.kind}, std {self.std:.6g}" + (f", mean {self.mean:.6g}" if self.mean else "")


def moments_of(kind: str, shape: Sequence[int] = ()) -> float:
    """Returns the excess kurtosis of a kind; an orthogonal matrix needs its shape.

    An entry of a uniformly distributed orthogonal matrix of N rows is a coordinate of a point on the sphere, which has
    the excess kurtosis -6 / (N + 2).

    Examples:
      >>> moments_of("uniform"), round(moments_of("truncated normal"), 4)
      (-1.2, -0.6345)
      >>> moments_of("orthogonal", (4, 3))
      -1.0
    """
    if kind == "orthogonal":
        return -6.0 / (max(shape[-1], math.prod(shape[:-1])) + 2)
    return _KURTOSIS.get(kind, 0.0)


def from_given(name: str, value: Any, shape: Sequence[int]) -> Distribution:
    """Returns the distribution that a person gave for a leaf.

    Args:
      name: Name of the leaf, for messages.
      value: A `Distribution`, or a pair of a kind and a number: the standard deviation of an entry as drawn, or the
        value of a constant. The text "fixed" stands for an array that is not random.
      shape: Shape of the leaf.

    Raises:
      InputError: For any other value.

    Examples:
      >>> from_given("kernel", ("normal", 0.5), (3, 2))
      Distribution(kind='normal', mean=0.0, std=0.5, excess_kurtosis=0.0, source='given')
    """
    if isinstance(value, Distribution):
        return value
    if value == "fixed":
        return Distribution("fixed", 0.0, 0.0, 0.0, "given")
    remedy = 'pass a pair such as ("normal", 0.1), of a kind and a standard deviation'
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not (pair and isinstance(value[0], str) and isinstance(value[1], int | float | np.number)):
        raise InputError(f"Expected `distributions[{name!r}]` to be a distribution, got {shown(value)}; {remedy}")
    kind, number = str(value[0]).replace("_", " "), float(value[1])
    if kind not in _GIVEN:
        raise InputError(
            f"Expected the kind in `distributions[{name!r}]` to be one of {', '.join(_GIVEN)}, "
            f"got {shown(value[0])}{did_you_mean(kind, _GIVEN)}"
        )
    if kind == "constant":
        return Distribution("constant", number, 0.0, 0.0, "given")
    if not (math.isfinite(number) and number > 0):
        raise InputError(
            f"Expected the standard deviation in `distributions[{name!r}]` to be positive, got {number}; "
            'write ("constant", value) for a parameter that is not random'
        )
    return Distribution(kind, 0.0, number, moments_of(kind, shape), "given")


@functools.cache
def _limits(size: int, kurtosis: float) -> tuple[float, float]:
    """Returns the range of a sample's variance over the true one, at the probability of five sigma.

    The variance of `size` entries about a known mean has the relative variance (kurtosis + 2) / size. The chi-squared
    distribution of that variance gives the tails of small samples.
    """
    freedom = 2 * size / max(kurtosis + 2, 1e-6)
    # Near 0 the sum of squares is as likely as that of normal entries, whatever the kurtosis.
    most = min(size, freedom)
    low = 2 * scipy.special.gammaincinv(most / 2, _FIVE_SIGMA / 2) / most
    return float(low), float(2 * scipy.special.gammainccinv(freedom / 2, _FIVE_SIGMA / 2) / freedom)


def agreement(distribution: Distribution, sample: np.ndarray) -> tuple[bool, float]:
    """Returns whether a sample agrees with a distribution at five sigma, and the distance of its variance in sigma.

    Compared are the mean, the variance about the expected mean, and the range of bounded distributions. The distance
    is a number of standard errors for large samples.
    """
    flat = np.asarray(sample, np.float64).ravel()
    # The resolution of the sample's own type limits how closely it can agree.
    resolution = 4 * float(np.finfo(_float_type(sample)).eps)
    if not distribution.random or distribution.std == 0:
        if distribution.kind == "fixed":
            return bool(np.isfinite(flat).all()), 0.0
        far = float(np.max(np.abs(flat - distribution.mean), initial=0.0))
        return bool(far <= resolution * max(1.0, abs(distribution.mean))), far
    if not np.isfinite(flat).all():
        return False, math.inf
    scaled = (flat - distribution.mean) / distribution.std
    if distribution.kind == "orthogonal":
        # The sum of squares of an orthogonal matrix is a number.
        off = float(abs(np.mean(scaled**2) - 1))
        return off < 1e-3 + resolution, off * math.sqrt(flat.size / 2)
    kurtosis = 0.0 if math.isnan(distribution.excess_kurtosis) else distribution.excess_kurtosis
    low, high = _limits(flat.size, round(kurtosis, 6))
    ratio = float(np.mean(scaled**2))
    sigma = (ratio - 1) / math.sqrt(max(kurtosis + 2, 1e-6) / flat.size)
    bound = _SUPPORT.get(distribution.kind, math.inf) * (1 + max(1e-4, resolution)) + resolution
    inside = float(np.max(np.abs(scaled))) <= bound
    centered = abs(float(np.mean(scaled))) <= 5 / math.sqrt(flat.size) + resolution
    return low - resolution <= ratio <= high + resolution and inside and centered, sigma


def check_sample(name: str, distribution: Distribution, sample: np.ndarray) -> None:
    """Raises an `InputError` if a leaf's numbers are no draw of its distribution, at five sigma.

    Trained weights are so refused, unless training moved them by less than the sampling error. For matrices the
    largest singular value is checked too, since training adds few large ones.
    """
    agrees, sigma = agreement(distribution, sample)
    flat = np.asarray(sample, np.float64)
    if not agrees:
        measured = f"standard deviation {np.std(flat):.4g} and mean {np.mean(flat):.4g}"
        off = f" ({abs(sigma):.1f} standard errors from the expected variance)" if distribution.std else ""
        raise InputError(
            f"Expected leaf `{name}` to be a fresh draw ({distribution}; {distribution.source}), got numbers of "
            f"{measured}{off}; pass parameters before training, or say how they are drawn in `distributions`"
        )
    if distribution.random and distribution.kind != "orthogonal" and distribution.mean == 0 and flat.ndim >= 2:
        rows, columns = flat.reshape(-1, flat.shape[-1]).shape
        norm, most = _spectral_norm(flat.reshape(rows, columns) / distribution.std), _largest_norm(rows, columns)
        if norm > most:
            raise InputError(
                f"Expected leaf `{name}` to have independent entries ({distribution}), got a largest singular value "
                f"{norm / most:.3g} times what such a draw can have; pass parameters before training, or whose "
                "entries are drawn independently"
            )


def _largest_norm(rows: int, columns: int) -> float:
    """Returns a bound that the spectral norm of standard entries exceeds with the probability of five sigma.

    For normal entries P(norm > sqrt(rows) + sqrt(columns) + t) <= exp(-t^2 / 2): Davidson and Szarek 2001, Theorem
    II.13. Truncated and uniform entries have lighter tails.
    """
    return math.sqrt(rows) + math.sqrt(columns) + math.sqrt(-2 * math.log(_FIVE_SIGMA))


def _spectral_norm(matrix: np.ndarray) -> float:
    """Returns a lower bound on the largest singular value, which power iteration makes close."""
    # Large matrices take time. A large singular value stands out soon, and float32 suffices for it.
    steps, dtype = (12, np.float64) if matrix.size < 10**6 else (6, np.float32)
    vector, matrix = np.random.default_rng(0).normal(size=matrix.shape[1]).astype(dtype), matrix.astype(dtype)
    for _ in range(steps):
        length = np.linalg.norm(vector)
        if not length > 0:
            return 0.0
        vector = matrix.T @ (matrix @ (vector / length))
    return float(math.sqrt(np.linalg.norm(vector)))


def _float_type(sample: Any) -> np.dtype:
    """Returns the type that limits a sample's resolution; half precision as float16."""
    dtype = np.asarray(sample).dtype
    if dtype.name == "bfloat16":
        return np.dtype(np.float16)
    return dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Scheme:
    """One of the standard ways to draw a parameter."""

    name: str
    variance: float
    kinds: tuple[str, ...] = ("normal", "truncated normal", "uniform")


def _schemes(name: str, shape: Sequence[int], output_first: bool, fan_in: int | None) -> list[_Scheme]:
    """Returns the standard schemes of a leaf.

    Args:
      name: Name of the leaf; an embedding table is known by it.
      shape: Shape of the leaf.
      output_first: Whether matrices hold outputs first, as in equinox and PyTorch.
      fan_in: Number of inputs of the matrix that a bias belongs to.
    """
    found = [_Scheme("standard normal", 1.0, ("normal",))]
    if len(shape) < 2 or (fan_in and math.prod(shape[1:]) == 1):
        return found + ([_Scheme(_EQUINOX, 1 / (3 * fan_in), ("uniform",))] if fan_in else [])
    if output_first:
        fans = {(math.prod(shape[1:]), shape[0] * math.prod(shape[2:]))}
    else:
        window = math.prod(shape[:-2])
        fans = {(window * shape[-2], window * shape[-1])}
        # Matrices with several axes of inputs or outputs, such as those of attention heads.
        fans |= {(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(1, len(shape))}
    for inputs, outputs in sorted(fans):
        found.append(_Scheme("LeCun", 1 / inputs))
        found.append(_Scheme("He", 2 / inputs))
        found.append(_Scheme("Glorot", 2 / (inputs + outputs)))
        if output_first:
            found.append(_Scheme(_EQUINOX, 1 / (3 * inputs), ("uniform",)))
    if "embed" in name.lower():
        found.append(_Scheme("the default of flax for embeddings", 1 / shape[-1], ("normal",)))
    return found


def _likelihood(distribution: Distribution, flat: np.ndarray) -> float:
    """Returns the logarithm of the density of independent entries, of one of the three kinds and mean 0."""
    scaled = flat / distribution.std
    if distribution.kind == "uniform":
        # Rounding may move an entry beyond the end; `agreement` has checked the range.
        return -flat.size * math.log(2 * math.sqrt(3) * distribution.std)
    if distribution.kind == "truncated normal":
        scaled = scaled * TRUNCATED_STD
        constant = math.log(TRUNCATED_STD / _MASS)
    else:
        constant = 0.0
    return float(-0.5 * scaled @ scaled) + flat.size * (constant - math.log(distribution.std * math.sqrt(2 * math.pi)))


def _has_kurtosis(distribution: Distribution, flat: np.ndarray) -> bool:
    """Whether the kurtosis of a sample agrees with that of its kind."""
    kurtosis = float(np.mean(flat**4) / np.mean(flat**2) ** 2 - 3)
    # The standard error of the kurtosis of n normal entries; that of bounded entries is smaller.
    return abs(kurtosis - distribution.excess_kurtosis) <= 5 * math.sqrt(24 / flat.size) + 24 / flat.size


def _fitting(schemes: list[_Scheme], sample: np.ndarray) -> list[tuple[float, str, Distribution]]:
    """Returns the log-likelihoods, schemes and distributions that agree with a sample at five sigma."""
    found = []
    flat = np.asarray(sample, np.float64).ravel()
    for scheme in schemes:
        for kind in scheme.kinds:
            one = Distribution(kind, 0.0, math.sqrt(scheme.variance), _KURTOSIS[kind], "")
            if agreement(one, sample)[0] and _has_kurtosis(one, flat):
                found.append((_likelihood(one, flat), scheme.name, one))
    return found


def from_sample(
    name: str, sample: np.ndarray, output_first: bool = False, fan_in: int | None = None
) -> tuple[Distribution | None, str]:
    """Returns the only standard distribution that a leaf's numbers agree with, and else None with the reason.

    A leaf of equal entries is a constant. A leaf of one entry is one only if it is 0 or 1, for a single random number
    says nothing. Otherwise the sample is compared with the schemes of LeCun (variance 1 / inputs), He (2 / inputs),
    Glorot (2 / (inputs + outputs)), equinox and PyTorch (uniform, 1 / (3 inputs)), and a standard normal one. Compared
    are mean, variance, range and kurtosis, and then the likelihoods, all at five sigma. The numbers of an equinox
    layer that agree with its only scheme are not compared with others.

    Args:
      name: Name of the leaf.
      sample: Numbers of the leaf.
      output_first: Whether matrices hold outputs first.
      fan_in: Number of inputs of the matrix that a bias belongs to.

    Examples:
      >>> str(from_sample("bias", np.zeros(4))[0])
      'constant 0'
    """
    flat = np.asarray(sample, np.float64).ravel()
    if not flat.size or not np.isfinite(flat).all():
        return None, "numbers that are not finite" if flat.size else "no numbers"
    if flat.max() == flat.min() and (flat.size > 1 or flat[0] in (0.0, 1.0)):
        return Distribution("constant", float(flat[0]), 0.0, 0.0, "all entries of the sample are equal"), ""
    if flat.size == 1 and not (output_first and fan_in):
        return None, f"the single number {flat[0]:.4g}"
    schemes = _schemes(name, np.shape(sample), output_first, fan_in)
    # The layers of equinox draw in one way, which explains their numbers before any other does.
    own = [one for one in schemes if output_first and one.name == _EQUINOX]
    own_fits = _fitting(own, sample)
    fitting = own_fits or _fitting(schemes, sample)
    measured = f"numbers of standard deviation {np.std(flat):.4g} and mean {np.mean(flat):.4g}"
    if not fitting:
        return None, f"{measured}, which agree with no standard scheme (those of trained parameters do not)"
    # Under a distribution, another one is K times as likely with a probability of at most 1 / K (Markov). So those that
    # are much less likely than the best of the others are excluded at five sigma, too.
    least = max(fitting, key=lambda one: one[0])[0] - math.log(len(fitting) / _FIVE_SIGMA)
    fitting = sorted((one for one in fitting if one[0] >= least), key=lambda one: -one[0])
    distribution = fitting[0][2]
    others = [one for one in fitting if not math.isclose(one[2].std, distribution.std, rel_tol=1e-9)]
    if others:
        names = " and ".join(dict.fromkeys(f"{scheme} ({one.std:.4g})" for _, scheme, one in fitting))
        return None, f"{measured}, which agree with {names}"
    error = math.sqrt((distribution.excess_kurtosis + 2) / flat.size)
    # A handful of numbers agrees with far too much. That equinox drew its own layers needs no such proof.
    if error > _LARGEST_ERROR and not own_fits:
        return None, f"{measured}, too few numbers to tell their scheme (the best guess is {fitting[0][1]})"
    kinds = {one.kind for _, _, one in fitting}
    names = " or ".join(dict.fromkeys(scheme for _, scheme, _ in fitting))
    sigma = agreement(distribution, sample)[1]
    unresolved = "; the sample is too small to tell the kind" if len(kinds) > 1 else ""
    source = f"assumed: the sample agrees with {names} alone ({sigma:+.1f} sigma of {100 * error:.2g} %{unresolved})"
    return dataclasses.replace(distribution, source=source), ""
