"""Distributions of parameters at initialization: their moments, and what the drawn numbers say about them."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ..errors import InputError, did_you_mean, shown

__all__ = ["Distribution", "agreement", "check_sample", "from_given", "from_sample", "moments_of"]

# Two-sided probability of a normal variable beyond five standard deviations.
_FIVE_SIGMA = float(2 * stats.norm.sf(5))
# Standard deviation and excess kurtosis of a standard normal variable cut at two standard deviations.
_CUT = 2.0
_MASS = 2 * stats.norm.cdf(_CUT) - 1
_SECOND = 1 - 2 * _CUT * stats.norm.pdf(_CUT) / _MASS
_FOURTH = 3 - 2 * (_CUT**3 + 3 * _CUT) * stats.norm.pdf(_CUT) / _MASS
TRUNCATED_STD = float(math.sqrt(_SECOND))
_KURTOSIS = {"normal": 0.0, "truncated normal": float(_FOURTH / _SECOND**2 - 3), "uniform": -1.2}
# Largest distance of an entry from the mean, in standard deviations.
_SUPPORT = {"normal": math.inf, "truncated normal": _CUT / TRUNCATED_STD, "uniform": math.sqrt(3.0)}
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
    low, high = stats.chi2.ppf(_FIVE_SIGMA / 2, freedom), stats.chi2.isf(_FIVE_SIGMA / 2, freedom)
    return float(low / freedom), float(high / freedom)


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


def _spectral_norm(matrix: np.ndarray, steps: int = 12) -> float:
    """Returns a lower bound on the largest singular value, which power iteration makes close."""
    vector = np.random.default_rng(0).normal(size=matrix.shape[1])
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
    if len(shape) < 2:
        default = [_Scheme("the default of equinox and PyTorch", 1 / (3 * fan_in), ("uniform",))] if fan_in else []
        # The layers of equinox draw their biases in no other way.
        return default if default and output_first else found + default
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
            found.append(_Scheme("the default of equinox and PyTorch", 1 / (3 * inputs), ("uniform",)))
    if "embed" in name.lower():
        found.append(_Scheme("the default of flax for embeddings", 1 / shape[-1], ("normal",)))
    return found


def _kind_of(sample: np.ndarray, std: float, kinds: Iterable[str]) -> tuple[Distribution | None, bool]:
    """Returns the kind whose kurtosis and range agree with a sample, and whether only one does."""
    flat = np.asarray(sample, np.float64).ravel()
    fitting = []
    kurtosis = float(np.mean((flat / std) ** 4) / np.mean((flat / std) ** 2) ** 2 - 3)
    for kind in kinds:
        distribution = Distribution(kind, 0.0, std, _KURTOSIS[kind], "")
        # The standard error of the kurtosis of n normal entries; that of bounded entries is smaller.
        close = abs(kurtosis - _KURTOSIS[kind]) <= 5 * math.sqrt(24 / flat.size) + 24 / flat.size
        if close and agreement(distribution, sample)[0]:
            fitting.append((abs(kurtosis - _KURTOSIS[kind]), distribution))
    return (min(fitting, key=lambda pair: pair[0])[1] if fitting else None), len(fitting) == 1


def from_sample(
    name: str, sample: np.ndarray, output_first: bool = False, fan_in: int | None = None
) -> tuple[Distribution | None, str]:
    """Returns the only standard distribution that a leaf's numbers agree with, and else None with the reason.

    A leaf of equal entries is a constant. A leaf of one entry is one only if it is 0 or 1, for a single random number
    says nothing. Otherwise the sample is compared with the schemes of LeCun (variance 1 / inputs), He (2 / inputs),
    Glorot (2 / (inputs + outputs)), equinox and PyTorch (uniform, 1 / (3 inputs)), and a standard normal one, at
    five sigma.

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
    found: dict[float, tuple[Distribution, bool, list[str], float]] = {}
    for scheme in _schemes(name, np.shape(sample), output_first, fan_in):
        std = math.sqrt(scheme.variance)
        distribution, only = _kind_of(sample, std, scheme.kinds)
        if distribution is not None:
            key = next((known for known in found if math.isclose(known, scheme.variance, rel_tol=1e-9)), None)
            if key is None:
                found[scheme.variance] = distribution, only, [scheme.name], agreement(distribution, sample)[1]
            elif scheme.name not in found[key][2]:
                found[key][2].append(scheme.name)
    measured = f"numbers of standard deviation {np.std(flat):.4g}"
    if len(found) > 1:
        schemes = " and ".join(f"{' or '.join(names)} ({one.std:.4g})" for one, _, names, _ in found.values())
        return None, f"{measured}, which agree with {schemes}"
    if not found:
        return None, f"{measured}, which agree with no standard scheme"
    ((distribution, only, names, sigma),) = found.values()
    unresolved = "" if only else "; the sample is too small to tell the kind"
    source = f"the sample agrees with {' or '.join(names)} alone ({sigma:+.1f} sigma{unresolved})"
    return dataclasses.replace(distribution, source=source), ""
