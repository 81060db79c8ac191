"""From small networks to other widths: power laws whose exponent drifts, and means that fall as 1 / n.

The effect of the NTK's motion falls as 1 / n at very large widths, and more slowly before: for dense spectra the last
modes move most. So the logarithm of trained over frozen loss is taken to be

    q(n) = A u^-(p + s log(u) / 2),    u = n / m, with the geometric mean m of the small widths,

whose local exponent is p at m, and p + s log(u) at n. The amplitude A is free, of either sign. The exponent p is
uniform in [-0.2, 1.5], the drift s uniform in [-0.05, 0.2]. Means and variances over all such laws, each with the
weight of its likelihood, take the place of one fit: noise, exponents and the drift all enter the variance.
"""

from typing import NamedTuple

import numpy as np

EXPONENTS, DRIFTS = (-0.2, 1.5), (-0.05, 0.2)
_GRID = 69, 11
_POWERS, _POWER_GRID = (0.3, 2.5), 23
_LAW_ERROR = 0.01


class PowerLaw(NamedTuple):
    """The posterior of a power law per step.

    Attributes:
      mean: Mean of q at the widths asked for, (widths, points).
      std: Standard deviation of q, (widths, points).
      exponent: Mean of p, (points,).
      at_bound: Whether most of the posterior of p lies in the lowest, or in the highest twentieth of its range,
        (points,).
    """

    mean: np.ndarray
    std: np.ndarray
    exponent: np.ndarray
    at_bound: np.ndarray


def power_law(widths: np.ndarray, values: np.ndarray, errors: np.ndarray, at: np.ndarray) -> PowerLaw:
    """Fits the power law to measured values, and evaluates it at other widths.

    Args:
      widths: Small widths, (W,), at least 2.
      values: Measured q, (W, points).
      errors: Standard errors of `values`, (W, points).
      at: Widths to evaluate at, (V,).

    Examples:
      >>> widths = np.array([96, 128, 192, 256])
      >>> q = 3.0 * widths[:, None] ** -0.6
      >>> law = power_law(widths, q, 0.001 * q, np.array([1024]))
      >>> bool(abs(law.exponent[0] - 0.6) < 0.08), bool(law.std[0, 0] < 0.15 * law.mean[0, 0])
      (True, True)
    """
    center = float(np.exp(np.log(widths).mean()))
    p, s = (one.ravel() for one in np.meshgrid(np.linspace(*EXPONENTS, _GRID[0]), np.linspace(*DRIFTS, _GRID[1])))

    def basis(n: np.ndarray) -> np.ndarray:
        log = np.log(n / center)[None, :]
        return np.exp(-p[:, None] * log - 0.5 * s[:, None] * log**2)

    # No law is exact to more than a hundredth of the largest value, and the grid resolves no more.
    scale = np.maximum(np.abs(values).max(axis=0), 1e-100)
    weights = 1 / np.maximum(errors, _LAW_ERROR * scale) ** 2
    b, there = basis(np.asarray(widths, float)), basis(np.asarray(at, float))
    norm = b**2 @ weights
    amplitude = b @ (weights * values) / norm
    residual = ((values[None] - amplitude[:, None, :] * b[:, :, None]) ** 2 * weights[None]).sum(axis=1)
    # The amplitude has a flat prior; its integral leaves 1 / sqrt(norm).
    log_weight = -0.5 * (residual + np.log(norm))
    weight = np.exp(log_weight - log_weight.max(axis=0))
    weight /= weight.sum(axis=0)
    q = amplitude[:, None, :] * there[:, :, None]
    mean = (weight[:, None] * q).sum(axis=0)
    variance = (weight[:, None] * ((q - mean) ** 2 + there[:, :, None] ** 2 / norm[:, None, :])).sum(axis=0)
    edge = 0.05 * (EXPONENTS[1] - EXPONENTS[0])
    low, high = weight[p < EXPONENTS[0] + edge].sum(axis=0), weight[p > EXPONENTS[1] - edge].sum(axis=0)
    return PowerLaw(mean, np.sqrt(variance), p @ weight, np.maximum(low, high) > 0.5)


def left_out_score(widths: np.ndarray, values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Returns how many standard deviations the largest width lies from the law of the others, (points,).

    Args:
      widths: Ascending widths, (W,), at least 3.
      values: Measured q, (W, points).
      errors: Standard errors of `values`, (W, points).
    """
    law = power_law(widths[:-1], values[:-1], errors[:-1], widths[-1:])
    spread = np.hypot(law.std[0], errors[-1])
    return np.divide(np.abs(law.mean[0] - values[-1]), spread, out=np.zeros_like(spread), where=spread > 0)


def inverse_width(widths: np.ndarray, values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Returns the coefficient c of the law c / n by weighted least squares, (points,).

    Args:
      widths: Widths, (W,).
      values: Measured values, (W, points).
      errors: Standard errors of `values`, (W, points).

    Examples:
      >>> widths = np.array([64.0, 128.0])
      >>> inverse_width(widths, 5 / widths[:, None], np.ones((2, 1))).round(6)
      array([5.])
    """
    inverse = 1 / np.asarray(widths, float)[:, None]
    weights = 1 / np.maximum(errors, 1e-9 * _largest(values)) ** 2
    return (weights * values * inverse).sum(axis=0) / (weights * inverse**2).sum(axis=0)


class Mean(NamedTuple):
    """A mean and its standard error, (points,) each."""

    mean: np.ndarray
    error: np.ndarray


def mean_of(values: np.ndarray) -> Mean:
    """Returns mean and standard error over the first axis."""
    return Mean(values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def anchored(widths: np.ndarray, values: np.ndarray, errors: np.ndarray, at: np.ndarray) -> Mean:
    """Returns the law a / n + b / n^r at other widths, shifted to pass through the value at the last width.

    The coefficients are free, of either sign, and r is uniform in [0.3, 2.5]: means of first order may fall more slowly
    than 1 / n before they turn to it. As in `power_law`, means and variances over all such laws take the place of one
    fit. The shift falls as 1 / n beyond the last width, fades towards
    the first one, and counts as an error.

    Args:
      widths: Widths, (W,), at least 3; the last one is that of the anchor.
      values: Measured values, (W, points).
      errors: Standard errors of `values`, (W, points), independent.
      at: Widths to evaluate at, (V,).

    Returns:
      A `Mean`, (V, points) each. At the last width it is the measured value, with an error that is not below its own.

    Examples:
      >>> widths = np.array([64.0, 128.0, 256.0, 512.0])
      >>> law = anchored(widths, 5 / widths[:, None], 0.1 / widths[:, None], np.array([512.0, 2048.0]))
      >>> (law.mean * [[512], [2048]]).round(1).ravel().tolist(), bool(law.error[0, 0] * 512 < 0.11)
      ([5.0, 5.0], True)
    """
    n = float(widths[-1])
    bend = 1 - np.linspace(*_POWERS, _POWER_GRID)[:, None]
    scale = np.abs(values).max(axis=0)
    inexact = np.where(np.arange(len(widths)) < len(widths) - 1, _LAW_ERROR, 0)[:, None] * scale
    sigma = np.maximum(np.hypot(errors, inexact), max(1e-9 * _largest(values), 1e-12))
    weights = 1 / sigma**2

    def basis(width: np.ndarray) -> np.ndarray:
        """Returns n / m, and a mixture of powers that is 0 at n and 1 at the smallest width, (powers, widths, 2)."""
        # The smallest width comes first, for the scale.
        u = np.append(widths[0], width)[None, :] / n
        # (u^(1 - r) - 1) / (1 - r), which is log u at r = 1.
        straight = np.abs(bend) < 1e-9
        safe = np.where(straight, 1, bend)
        mixed = np.where(straight, np.log(u), np.expm1(safe * np.log(u)) / safe) / u
        return np.stack([np.broadcast_to(1 / u, mixed.shape), mixed / mixed[:, :1]], axis=2)[:, 1:]

    b, there = basis(widths), basis(at)
    # Normal equations of two coefficients, in closed form.
    one, cross, two = (np.einsum("ru,up->rp", b[..., i] * b[..., j], weights) for i, j in ((0, 0), (0, 1), (1, 1)))
    right = [np.einsum("ru,up->rp", b[..., i], weights * values) for i in (0, 1)]
    determinant = one * two - cross**2
    first, second = (two * right[0] - cross * right[1]) / determinant, (one * right[1] - cross * right[0]) / determinant

    def law_at(terms: np.ndarray) -> np.ndarray:
        return terms[:, :, None, 0] * first[:, None] + terms[:, :, None, 1] * second[:, None]

    misfit = ((values - law_at(b)) ** 2 * weights).sum(axis=1)
    # Coefficients have flat priors; their integral leaves one over the root of the determinant.
    log_weight = -0.5 * (misfit + np.log(determinant))
    weight = np.exp(log_weight - log_weight.max(axis=0))
    weight /= weight.sum(axis=0)
    law, (t1, t2) = law_at(there), there.transpose(2, 0, 1)[..., None]
    mean = (weight[:, None] * law).sum(axis=0)
    noise = (t1**2 * two[:, None] - 2 * t1 * t2 * cross[:, None] + t2**2 * one[:, None]) / determinant[:, None]
    variance = (weight[:, None] * ((law - mean) ** 2 + noise)).sum(axis=0)
    # Below n the shift fades, since the small widths were measured, too.
    m = np.asarray(at, float)[:, None]
    part = np.where(m >= n, n / m, np.maximum(0, np.log(m / widths[0]) / np.log(n / widths[0])))
    shift = (values[-1] - (weight * first).sum(axis=0)) * part
    return Mean(mean + shift, np.maximum(np.sqrt(variance + shift**2), errors[-1] * part))


def _largest(values: np.ndarray) -> float:
    """Returns the largest size of the values that are finite: points without one spoil no others."""
    return float(np.abs(values).max(initial=np.finfo(float).tiny, where=np.isfinite(values)))


def log_ratio(numerator: np.ndarray, denominator: np.ndarray) -> Mean:
    """Returns the logarithm of the ratio of two means of paired values, (S, points) each, and its standard error."""
    above, below = numerator.mean(axis=0), denominator.mean(axis=0)
    influence = numerator / above - denominator / below
    return Mean(np.log(above / below), influence.std(axis=0, ddof=1) / np.sqrt(len(numerator)))


def controlled(values: np.ndarray, control: np.ndarray, expected: Mean) -> Mean:
    """Returns the mean of some values by a control variate whose expectation is known up to an error.

    Mean and error are those of the jackknife: the regression on the control variate is repeated without each value.
    The scatter about one regression would leave out the error of its slope, which matters for few values with long
    tails.

    Args:
      values: Values, (S, points), at least 3.
      control: The control variate of every value, (S, points).
      expected: Expectation of the control variate, known apart from these values.

    Examples:
      >>> z = np.array([[0.5], [1.0], [3.0]])
      >>> found = controlled(2 * z + 1, z, Mean(np.array([1.0]), np.array([0.0])))
      >>> found.mean.round(6), found.error.round(6)
      (array([3.]), array([0.]))
    """
    count, own_error = len(values), mean_of(control).error
    # Two estimates of the control variate's expectation, each with the weight of its inverse variance: an inexact one
    # does no harm.
    total = own_error**2 + expected.error**2
    share = np.divide(own_error**2, total, out=np.zeros_like(total), where=total > 0)
    mean, slope = _regressed(values, control, expected.mean, share)
    rest = [np.arange(count) != i for i in range(count)]
    others = np.array([_regressed(values[i], control[i], expected.mean, share)[0] for i in rest])
    error = np.sqrt((count - 1) / count * ((others - others.mean(axis=0)) ** 2).sum(axis=0))
    # The relation is convex for networks near their stability limit, where a regression is biased at order 1 / S.
    unbiased = count * mean - (count - 1) * others.mean(axis=0)
    return Mean(unbiased, np.hypot(error, slope * share * expected.error))


def _regressed(
    values: np.ndarray, control: np.ndarray, expected: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean by the regression on a control variate, and its slope; `share` is the weight of `expected`."""
    own = control.mean(axis=0)
    centered = control - own
    spread = (centered**2).sum(axis=0)
    slope = np.divide((values * centered).sum(axis=0), spread, out=np.zeros_like(spread), where=spread > 0)
    return values.mean(axis=0) + slope * share * (expected - own), slope
