"""Fits of sums shift + linear x + scale phi(rate x) to the values of a function, for the activations of the catalog.

For a given rate, the sum is linear in its other numbers, so that they follow from least squares. The rate is found on a
grid and refined by Newton's method for the projected residual (variable projection; Golub and Pereyra 1973). A sum is
accepted if values and slopes agree with it to 1e-10 at all points, which reach beyond those of the fit.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from nngp_dag.activations import (
    ABS,
    COS,
    Elu,
    Erf,
    Exp,
    Gabor,
    Gaussian,
    Gelu,
    Polynomial,
    RectifiedMonomial,
    Sign,
    Silu,
    Sin,
    Softplus,
    Tanh,
)

Three = tuple[np.ndarray, np.ndarray, np.ndarray]

_TOLERANCE = 1e-10
# Points of the fit lie in [-_FIT, _FIT].
_FIT = 6.0
_DEGREE = 8


class Sum(NamedTuple):
    """The function shift + linear x + sum of scale phi(rate x), for `terms` with entries (scale, phi, rate)."""

    shift: float
    linear: float
    terms: tuple[tuple[float, Any, float], ...]


@functools.cache
def points() -> np.ndarray:
    """Returns the points at which functions are compared: 0 first, then points of the fit, then points far out."""
    rng = np.random.default_rng(20)
    fit = np.sort(rng.uniform(-_FIT, _FIT, 192))
    small = np.array([1e-6, 1e-4, 1e-3, 0.01, 0.03])
    middle = rng.uniform(-12, 12, 192)
    far = np.geomspace(12, 1e3, 20)
    return np.concatenate([[0.0], fit, small, -small, middle, far, -far])


class _Family(NamedTuple):
    """A function phi with NumPy, and its first two derivatives.

    Attributes:
      phi: The activation.
      values: A function x -> (phi, phi', phi'').
      bent: Whether the sum may also hold |x|.
      both: Whether negative rates give other functions.
    """

    phi: Any
    values: Callable[[np.ndarray], Three]
    bent: bool = False
    both: bool = False


def _tanh(x: np.ndarray) -> Three:
    t = np.tanh(x)
    d = 1 / np.cosh(np.clip(x, -350, 350)) ** 2
    return t, d, -2 * t * d


def _erf(x: np.ndarray) -> Three:
    d = 2 / math.sqrt(math.pi) * np.exp(-(x**2))
    return special.erf(x), d, -2 * x * d


def _gelu(x: np.ndarray) -> Three:
    p, d = special.ndtr(x), np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return x * p, p + x * d, (2 - x**2) * d


def _silu(x: np.ndarray) -> Three:
    p, other = special.expit(x), special.expit(-x)
    d = p * other
    return x * p, p + x * d, d * (2 + x * (other - p))


def _softplus(x: np.ndarray) -> Three:
    p = special.expit(x)
    return np.logaddexp(x, 0), p, p * special.expit(-x)


def _elu(x: np.ndarray) -> Three:
    low = np.minimum(x, 0)
    d = np.where(x < 0, np.exp(low), 0)
    return np.expm1(low), d, d


def _gaussian(x: np.ndarray) -> Three:
    e = np.exp(-(x**2))
    return e, -2 * x * e, (4 * x**2 - 2) * e


def _gabor(x: np.ndarray) -> Three:
    e, s, c = np.exp(-(x**2)), np.sin(x), np.cos(x)
    return e * s, e * (c - 2 * x * s), e * ((4 * x**2 - 3) * s - 4 * x * c)


def _exp(x: np.ndarray) -> Three:
    e = np.exp(np.minimum(x, 600))
    return e, e, e


_FAMILIES = (
    _Family(Gelu(), _gelu),
    _Family(Tanh(), _tanh),
    _Family(Erf(), _erf),
    _Family(Silu(), _silu),
    _Family(Softplus(), _softplus),
    _Family(Elu(), _elu, bent=True, both=True),
    _Family(Gaussian(), _gaussian),
    _Family(Exp(), _exp, both=True),
    _Family(Gabor(), _gabor),
)
_RATES = np.geomspace(1 / 32, 32, 41)
_FREQUENCIES = np.concatenate([np.geomspace(1 / 32, 0.5, 9), np.arange(0.6, 16, 0.2)])


def match(x: np.ndarray, y: np.ndarray, dy: np.ndarray) -> Sum | None:
    """Returns the sum that equals a function, or None.

    Args:
      x: The points of `points`.
      y: The function's values.
      dy: The function's slopes.
    """
    # A function may overflow far out; it is compared where it does not.
    usable = np.isfinite(y) & np.isfinite(dy) & (np.abs(y) < 1e100)
    x, y, dy = x[usable], y[usable], dy[usable]
    inner = np.abs(x) <= _FIT
    scale = max(float(np.median(np.abs(y[inner]))), float(np.median(np.abs(dy[inner]))))
    if scale == 0:
        scale = float(np.abs(y).max())
    if scale == 0:
        return Sum(0.0, 0.0, ())
    data = _Data(x, y, dy, scale)
    for found in _candidates(data):
        for rounded in (_rounded(found), found):
            if data.agrees(rounded):
                return rounded
    return None


class _Data(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    dy: np.ndarray
    scale: float

    def agrees(self, found: Sum) -> bool:
        """Whether values and slopes of a sum agree with those of the function."""
        value, slope, size = evaluate(found, self.x)
        # At 0, a kink has a slope by convention only.
        away = self.x != 0
        close = np.abs(value - self.y) <= _TOLERANCE * (np.abs(self.y) + self.scale) + 4e-16 * size
        if _jumps(found):
            close |= ~away
        steep = np.abs(slope - self.dy) <= 10 * _TOLERANCE * (np.abs(self.dy) + self.scale) + 1e-15 * size
        return bool(close.all() and (steep | ~away).all())


def _jumps(found: Sum) -> bool:
    return any(isinstance(phi, Sign) for _, phi, _ in found.terms)


def evaluate(found: Sum, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns values and slopes of a sum, and the sum of the sizes of its terms, which its rounding is relative to."""
    value, slope = found.shift + found.linear * x, np.full_like(x, found.linear)
    size = abs(found.shift) + np.abs(found.linear * x)
    for scale, phi, rate in found.terms:
        with np.errstate(over="ignore", invalid="ignore"):
            v, d = _of_activation(phi, rate * x)
        value, slope = value + scale * v, slope + scale * rate * d
        size = size + np.abs(scale * v) + np.abs(scale * rate * d)
    return value, slope, size


def _of_activation(phi: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns values and slopes of an activation by NumPy."""
    if phi == ABS:
        return np.abs(x), np.sign(x)
    if isinstance(phi, Sign):
        return np.sign(x), np.zeros_like(x)
    if isinstance(phi, RectifiedMonomial):
        up = np.maximum(x, 0)
        return up**phi.degree, phi.degree * up ** (phi.degree - 1)
    if isinstance(phi, Polynomial):
        c = np.polynomial.Polynomial(phi.coefficients)
        return c(x), c.deriv()(x)
    if isinstance(phi, Sin):
        if phi == COS:
            return np.cos(x), -np.sin(x)
        return np.sin(x), np.cos(x)
    if isinstance(phi, Elu):
        value, slope, _ = _elu(x)
        return np.maximum(x, 0) + phi.alpha * value, (x > 0) + phi.alpha * slope
    family = next(family for family in _FAMILIES if type(family.phi) is type(phi))
    value, slope, _ = family.values(x)
    return value, slope


def _rounded(found: Sum) -> Sum:
    """Returns the sum with numbers rounded to the nearest short ones: multiples of 1/120, or of eight digits."""

    def short(v: float) -> float:
        if v == 0:
            return 0.0
        multiple = round(v * 120) / 120
        if abs(multiple - v) <= 1e-9 * max(1.0, abs(v)):
            return multiple
        digits = float(f"{v:.8g}")
        return digits if abs(digits - v) <= 2e-11 * abs(v) else v

    terms = []
    for scale, phi, rate in found.terms:
        if isinstance(phi, Elu):
            phi = Elu(short(phi.alpha))
        if isinstance(phi, Polynomial):
            phi = Polynomial(tuple(short(c) if abs(c) > 1e-12 else 0.0 for c in phi.coefficients))
        terms.append((short(scale), phi, short(rate)))
    return Sum(short(found.shift), short(found.linear), tuple(terms))


def _solve(columns: list[np.ndarray], data: _Data, where: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the coefficients of columns by least squares, and the relative residual."""
    weight = 1 / (np.abs(data.y[where]) + data.scale)
    matrix = np.stack([c[where] for c in columns], axis=1) * weight[:, None]
    norms = np.sqrt((matrix**2).sum(axis=0))
    norms[norms == 0] = 1
    target = data.y[where] * weight
    solution = np.linalg.lstsq(matrix / norms, target, rcond=None)[0]
    rest = target - matrix @ (solution / norms)
    return solution / norms, float(np.sqrt((rest**2).mean()))


def _candidates(data: _Data) -> Iterator[Sum]:
    """Yields sums that may equal the function, simple ones first."""
    x = data.x
    inner = np.abs(x) <= _FIT
    away = inner & (x != 0)
    one, up = np.ones_like(x), np.abs(x)
    (shift, linear, bend), _ = _solve([one, x, up], data, away)
    if abs(bend) < 1e-12 * (abs(linear) + abs(shift)):
        yield Sum(shift, linear, ())
    yield Sum(shift, linear, ((bend, ABS, 1.0),))
    (shift, linear, bend, jump), _ = _solve([one, x, up, np.sign(x)], data, away)
    # Terms that are rounding errors are left out.
    sizes = np.array([abs(bend), abs(jump)])
    kept = [
        (v, phi, 1.0)
        for v, phi, size in zip((bend, jump), (ABS, Sign()), sizes, strict=True)
        if size > 1e-12 * (abs(shift) + abs(linear) + sizes.sum())
    ]
    yield Sum(shift, linear, tuple(kept))
    for degree in range(2, _DEGREE + 1):
        coefficients, rest = _solve([x**n for n in range(degree + 1)], data, inner)
        if rest < 1e-11:
            higher = (0.0, 0.0, *coefficients[2:])
            yield Sum(coefficients[0], coefficients[1], ((1.0, Polynomial(higher), 1.0),))
            break
    for degree in (2, 3, 4):
        (shift, linear, scale), rest = _solve([one, x, np.maximum(x, 0) ** degree], data, inner)
        if rest < 1e-11:
            yield Sum(shift, linear, ((scale, RectifiedMonomial(degree), 1.0),))
    yield from _smooth(data)


class _Table(NamedTuple):
    """Bases of sums for all families and rates: orthonormal columns at the points of the fit."""

    families: tuple[int, ...]
    rates: np.ndarray
    bases: np.ndarray


_WAVES = -1


@functools.cache
def _table() -> _Table:
    x = points()
    x = x[np.abs(x) <= _FIT]
    families, rates, columns = [], [], []
    for i, family in enumerate(_FAMILIES):
        for rate in np.concatenate([_RATES, -_RATES]) if family.both else _RATES:
            families.append(i)
            rates.append(rate)
            bend = np.abs(x) if family.bent else np.zeros_like(x)
            columns.append([np.ones_like(x), x, bend, np.minimum(family.values(rate * x)[0], 1e30)])
    for rate in _FREQUENCIES:
        families.append(_WAVES)
        rates.append(rate)
        columns.append([np.ones_like(x), x, np.sin(rate * x), np.cos(rate * x)])
    matrix = np.swapaxes(np.array(columns), 1, 2)
    norms = np.sqrt((matrix**2).sum(axis=1, keepdims=True))
    u, s, _ = np.linalg.svd(matrix / np.where(norms > 0, norms, 1), full_matrices=False)
    u = np.where(s[:, None] > 1e-10, u, 0)
    return _Table(tuple(families), np.array(rates), u)


def _smooth(data: _Data) -> Iterator[Sum]:
    """Yields sums with an activation whose rate is unknown, the best fits on the grid of rates first."""
    table = _table()
    inner = np.abs(data.x) <= _FIT
    # The table is for all points; a function that overflows near 0 is none of these.
    if inner.sum() != table.bases.shape[1]:
        return
    y = data.y[inner]
    rest = y - np.einsum("rpk,rk->rp", table.bases, np.einsum("rpk,p->rk", table.bases, y))
    found = np.sqrt((rest**2).mean(axis=1))
    families = np.array(table.families)
    starts = []
    for i in range(-1, len(_FAMILIES)):
        for sign in (1, -1):
            rows = np.flatnonzero((families == i) & (np.sign(table.rates) == sign))
            if len(rows):
                # The best rates that are no neighbors.
                order = rows[np.argsort(found[rows])]
                chosen = [order[0]]
                chosen += [r for r in order[1:6] if abs(int(r) - int(order[0])) > 1][:1]
                starts += [(found[r] / (y.std() + 1e-300), r) for r in chosen]
    for level, row in sorted(starts, key=lambda start: start[0]):
        if level > 0.3:
            return
        result = _refined(data, table.families[row], float(table.rates[row]))
        if result is not None:
            yield result


def _refined(data: _Data, index: int, rate: float) -> Sum | None:
    """Returns the sum whose rate is a zero of the projected gradient near a given rate, or None."""
    x, inner = data.x, np.abs(data.x) <= _FIT
    one = np.ones_like(x)
    family = _FAMILIES[index] if index != _WAVES else None
    rest = math.inf
    for _ in range(30):
        if not 1e-3 < abs(rate) < 1e3:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            if family is None:
                s, c = np.sin(rate * x), np.cos(rate * x)
                (_, _, a, b), rest = _solve([one, x, s, c], data, inner)
                change = x * (a * c - b * s)
                columns = [one, x, s, c, change]
            else:
                value, slope, _ = family.values(rate * x)
                columns = [one, x, value] + ([np.abs(x)] if family.bent else [])
                solution, rest = _solve(columns, data, inner)
                columns.append(solution[2] * x * slope)
        step = _solve(columns, data, inner)[0][-1]
        # A step that is too long is cut, because the linearization holds near the rate only.
        step = float(np.clip(step, -0.3 * abs(rate), 0.3 * abs(rate)))
        rate += step
        if abs(step) < 1e-15 * abs(rate) or (rest < 1e-14 and abs(step) < 1e-12 * abs(rate)):
            break
    if rest > 1e-9:
        return None
    for better in (float(f"{rate:.6g}"), round(rate * 120) / 120):
        if better and abs(better - rate) < 1e-8 * abs(rate):
            rate = better
    return _sum_at(data, family, rate)


def _sum_at(data: _Data, family: _Family | None, rate: float) -> Sum | None:
    x, inner = data.x, np.abs(data.x) <= _FIT
    one = np.ones_like(x)
    if family is None:
        (shift, linear, a, b), _ = _solve([one, x, np.sin(rate * x), np.cos(rate * x)], data, inner)
        terms = [(v, phi, rate) for v, phi in ((a, Sin()), (b, COS)) if abs(v) > 1e-12 * (abs(a) + abs(b))]
        return Sum(*_cleaned(shift, linear, abs(a) + abs(b)), tuple(terms))
    value = family.values(rate * x)[0]
    if not family.bent:
        (shift, linear, scale), _ = _solve([one, x, value], data, inner)
        return Sum(*_cleaned(shift, linear, abs(scale)), ((scale, family.phi, rate),))
    (shift, linear, low, bend), _ = _solve([one, x, value, np.abs(x)], data, inner)
    # scale elu(rate x) = scale (rate x + |rate x|) / 2 + scale alpha expm1(min(rate x, 0)).
    scale = 2 * bend / abs(rate)
    if abs(scale) < 1e-9 * abs(low):
        return None
    return Sum(*_cleaned(shift, linear - scale * rate / 2, abs(scale)), ((scale, Elu(low / scale), rate),))


def _cleaned(shift: float, linear: float, scale: float) -> tuple[float, float]:
    """Returns shift and factor, without those that are rounding errors."""
    return tuple(0.0 if abs(v) < 1e-11 * scale else v for v in (shift, linear))  # type: ignore[return-value]
