"""Distributions that are told by their quantiles, such as those of an initializer at a grid of random bits."""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import scipy.optimize
import scipy.special

from nngp_dag.tracing.distributions import TRUNCATED_STD, Distribution, moments_of

__all__ = ["SOURCE", "match", "quantiles", "rounded", "snapped"]

# Quantiles that kinds are matched on: midpoints of dyadic intervals, which 23 random bits hold exactly.
_MIDPOINTS = 2048
# Orders of the two quadrature rules for the moments of other smooth distributions. Their agreement is the check.
_ORDERS = (48, 64)
# How such a distribution is known.
SOURCE = "initializer"


@functools.cache
def quantiles(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random integers at quantiles, and the quantiles; for 8 and 16 bits all that there are."""
    if bits <= 16:
        numbers = np.arange(2**bits)
        return numbers.astype(f"uint{bits}"), (numbers + 0.5) / 2**bits
    parts = [(np.arange(_MIDPOINTS) + 0.5) / _MIDPOINTS, *(_rule(order)[0] for order in _ORDERS)]
    joined = np.concatenate(parts)
    # The lowest bits are dropped when a float is made of them, so that the quantile is exact.
    return (joined * 2**23).astype(f"uint{bits}") << np.array(bits - 23, f"uint{bits}"), joined


@functools.cache
def _rule(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes and weights of a quadrature on [0, 1] whose nodes have 23 bits.

    The nodes are those of Gauss and Legendre, rounded; the weights are exact for polynomials below the order.
    """
    nodes, _ = np.polynomial.legendre.leggauss(order)
    nodes = np.round((nodes + 1) / 2 * 2**23) / 2**23
    moments = np.zeros(order)
    moments[0] = 1.0
    return nodes, np.linalg.solve(np.polynomial.legendre.legvander(2 * nodes - 1, order - 1).T, moments)


def match(values: np.ndarray, bits: int, shape: Sequence[int], dtype: np.dtype) -> Distribution | None:
    """Returns the distribution of one entry from its values at the quantiles, or None."""
    if values.dtype == np.bool_ or not np.isfinite(np.asarray(values, np.float64)).all():
        return None
    grid = np.asarray(values, np.float64)
    if bits <= 16:
        mean, second = float(grid.mean()), float(grid.var())
        kurtosis = float(np.mean((grid - mean) ** 4) / second**2 - 3) if second else 0.0
        kind = "constant" if not second else "uniform" if abs(kurtosis + 1.2) < 1e-3 else "other"
        return Distribution(kind, mean, math.sqrt(second), kurtosis, f"{SOURCE}, {dtype.name}")
    points, at = grid[:_MIDPOINTS], quantiles(bits)[1][:_MIDPOINTS]
    size = float(np.max(np.abs(points)))
    if np.ptp(grid) <= 1e-12 * size:
        return Distribution("constant", rounded(float(points[0])), 0.0, 0.0, SOURCE)
    mass = scipy.special.ndtr(2.0) - scipy.special.ndtr(-2.0)
    known = {
        "uniform": (at - 0.5) * math.sqrt(12.0),
        # Random floats of 23 bits miss the ends of (-1, 1) by 6e-8, which moves the outermost quantiles by 3e-5.
        "normal": scipy.special.ndtri(at),
        "truncated normal": scipy.special.ndtri(scipy.special.ndtr(-2.0) + mass * at) / TRUNCATED_STD,
    }
    for kind, quantile in known.items():
        middle = np.abs(at - 0.5) < 0.4 if kind == "normal" else np.ones(at.size, bool)
        slope, offset = np.polyfit(quantile[middle], points[middle], 1)
        if np.max(np.abs(slope * quantile + offset - points)) <= (1e-4 if kind == "normal" else 2e-6) * abs(slope):
            mean, std = float(offset), snapped(float(abs(slope)), shape)
            mean = 0.0 if abs(mean) < 1e-6 * std else rounded(mean)
            return Distribution(kind, mean, std, moments_of(kind), SOURCE)
    if (cut := _cut_normal(at, points)) is not None:
        return cut
    both = []
    start = _MIDPOINTS
    for order in _ORDERS:
        part, weights = grid[start : start + order], _rule(order)[1]
        start += order
        mean = float(weights @ part)
        second, fourth = float(weights @ (part - mean) ** 2), float(weights @ (part - mean) ** 4)
        both.append((mean, second, fourth))
    (mean, second, fourth), (mean2, second2, fourth2) = both[1], both[0]
    close = abs(second - second2) <= 1e-8 * abs(second) and abs(fourth - fourth2) <= 1e-6 * abs(fourth)
    if not (second > 0 and close and abs(mean - mean2) <= 1e-8 * math.sqrt(second)):
        return None
    std = math.sqrt(second)
    mean = 0.0 if abs(mean) < 1e-6 * std else rounded(mean)
    return Distribution("other", mean, snapped(std, shape), fourth / second**2 - 3, SOURCE)


def _cut_normal(at: np.ndarray, points: np.ndarray) -> Distribution | None:
    """Returns the normal distribution between two other cuts that quantiles agree with, or None."""
    few = slice(None, None, 16)

    def fit(cuts: np.ndarray, which: slice) -> tuple[np.ndarray, np.ndarray]:
        low, high = scipy.special.ndtr(cuts[0]), scipy.special.ndtr(cuts[0] + np.exp(cuts[1]))
        quantile = scipy.special.ndtri(low + (high - low) * at[which])
        if not np.isfinite(quantile).all():
            return np.zeros(2), np.full(points[which].size, 1e3)
        basis = np.stack([quantile, np.ones_like(quantile)], axis=1)
        both = np.linalg.lstsq(basis, points[which], rcond=None)[0]
        return both, basis @ both - points[which]

    size = float(np.std(points))
    start = np.array([-2.5, np.log(5.0)])
    best = scipy.optimize.least_squares(
        lambda cuts: fit(cuts, few)[1] / size, start, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    (slope, offset), residual = fit(best.x, slice(None))
    if not slope > 0 or np.max(np.abs(residual)) > 2e-6 * slope:
        return None
    low, high = float(best.x[0]), float(best.x[0] + np.exp(best.x[1]))
    mass = float(scipy.special.ndtr(high) - scipy.special.ndtr(low))
    # Moments of a standard normal variable between the cuts, by integration by parts.
    raw = [1.0]
    for power in range(1, 5):
        edges = [end ** (power - 1) * math.exp(-0.5 * end * end) / math.sqrt(2 * math.pi) for end in (low, high)]
        raw.append((power - 1) * (raw[power - 2] if power > 1 else 0.0) + (edges[0] - edges[1]) / mass)
    center = raw[1]
    second = raw[2] - center**2
    fourth = raw[4] - 4 * center * raw[3] + 6 * center**2 * raw[2] - 3 * center**4
    mean, std, kurtosis = float(offset + slope * center), float(slope * math.sqrt(second)), fourth / second**2 - 3
    mean = 0.0 if abs(mean) < 1e-6 * std else rounded(mean)
    source = f"{SOURCE}: normal, cut at {low:.4g} and {high:.4g} of its standard deviations"
    return Distribution("other", mean, rounded(std), float(kurtosis), source)


def snapped(std: float, shape: Sequence[int] = ()) -> float:
    """Returns the number that a standard deviation stands for, where float32 rounded it.

    Tried are numbers of up to six digits, and roots of small fractions over a number of inputs or outputs. The change
    is below 2e-7 of the number.

    Examples:
      >>> snapped(0.019999999552965164), snapped(0.57735026, (3, 8)) == (1 / 3) ** 0.5
      (0.02, True)
    """
    short = rounded(std)
    if short != std:
        return short
    inputs, outputs = {1}, {1}
    for cut in range(1, len(shape)):
        inputs.add(math.prod(shape[:cut]))
        outputs.add(math.prod(shape[cut:]))
        inputs.add(math.prod(shape[cut:]))
    if len(shape) >= 2:
        window = math.prod(shape[:-2])
        inputs |= {window * shape[-2], window * shape[-1], window * (shape[-2] + shape[-1]), shape[0] + shape[-1]}
    for fan in sorted(inputs | outputs):
        scale = Fraction(std * std * fan).limit_denominator(64)
        # A fraction must be much closer than chance would have it: those of denominators up to 64 lie 1e-3 apart.
        if scale and abs(float(scale) / (std * std * fan) - 1) <= 4e-7:
            return math.sqrt(float(scale) / fan)
    return std


def rounded(number: float) -> float:
    """Returns a number with six digits if it is one, up to the rounding of float32."""
    short = float(f"{number:.6g}")
    return short if abs(short - number) <= 2e-7 * abs(number) else number
