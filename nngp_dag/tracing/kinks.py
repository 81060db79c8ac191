"""Kinks of a function: where its value, slope or curvature jumps, found from values and slopes on a grid."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import InputError
from nngp_dag.tracing.ramps import Ramp

__all__ = ["MOST", "find_kinks"]

# Functions with more kinks than this are refused.
MOST = 16
# Grids by half-width and step; the shift of the points keeps short numbers off the grid.
_GRIDS = ((16.0, 2.0**-10), (256.0, 2.0**-6))
_SHIFT = 0.38196601125
# Points whose slopes tell the size of a function.
_NEAR = 8.0


class _Profile(NamedTuple):
    values: np.ndarray
    slopes: np.ndarray
    curvatures: np.ndarray


def _profile(fn: Callable[[jax.Array], jax.Array], x: np.ndarray) -> _Profile:
    array = jnp.asarray(x, jnp.float64)
    one = jnp.ones_like(array)

    def slope(v: jax.Array) -> jax.Array:
        return jax.jvp(fn, (v,), (one,))[1]

    slopes, curvatures = jax.jvp(slope, (array,), (one,))
    return _Profile(np.asarray(fn(array)), np.asarray(slopes), np.asarray(curvatures))


def find_kinks(fn: Callable[[jax.Array], jax.Array], name: str) -> tuple[tuple[Ramp, ...], bool]:
    """Returns the ramps that a function's jumps of value, slope and curvature stand for, and whether its slopes fit.

    Without these ramps the function has a continuous second derivative. The slopes fit if the values agree with their
    integrals nearly everywhere; those of a custom derivative need not.

    Args:
      fn: An elementwise function in float64.
      name: The function's name in messages.

    Raises:
      InputError: There are more than `MOST` kinks.
    """
    places: list[float] = []
    consistent = True
    for half, step in _GRIDS:
        x = step * (np.arange(-half / step, half / step) + _SHIFT)
        found = _profile(fn, x)
        usable = np.isfinite(found.values) & np.isfinite(found.slopes) & np.isfinite(found.curvatures)
        x, found = x[usable], _Profile(*(v[usable] for v in found))
        if len(x) < 8:
            continue
        consistent = consistent and _fit(found, step)
        suspects = _suspects(x, found, step)
        for cluster in _clusters(np.flatnonzero(suspects)):
            if len(places) > 2 * MOST:
                raise _too_many(name)
            place = _located(fn, float(x[cluster[0]]), float(x[min(cluster[-1] + 1, len(x) - 1)]))
            if place is not None and all(abs(place - other) > 2 * step for other in places):
                places.append(place)
    ramps = [ramp for place in places if (ramp := _ramp(fn, place)) is not None]
    if len(ramps) > MOST:
        raise _too_many(name)
    return tuple(sorted(ramps, key=lambda ramp: ramp.at)), consistent


def _too_many(name: str) -> InputError:
    return InputError(f"Expected `{name}` to have at most {MOST} kinks or jumps, got more; use a smoother function")


def _fit(found: _Profile, step: float) -> bool:
    """Whether the slopes are those of the values in most intervals, to a percent."""
    rise = np.diff(found.values)
    change = step / 2 * (found.slopes[1:] + found.slopes[:-1])
    return bool((np.abs(rise - change) > 0.01 * (np.abs(rise) + np.abs(change)) + 1e-13).mean() < 0.1)


def _suspects(x: np.ndarray, found: _Profile, step: float) -> np.ndarray:
    """Returns the mask of intervals in which value, slope or curvature may jump."""
    value, slope, curvature = found
    # The rule of Hermite is exact for cubic functions.
    change = np.diff(value) - step / 2 * (slope[1:] + slope[:-1]) + step**2 / 12 * np.diff(curvature)
    turn = np.diff(slope) - step / 2 * (curvature[1:] + curvature[:-1])
    bend = np.diff(curvature)
    size = np.abs(value[1:]) + np.abs(value[:-1])
    steepness = np.abs(slope[1:]) + np.abs(slope[:-1])
    # A function that levels off has slopes there that are rounding errors of those near 0.
    near = steepness[np.abs(x[1:]) < _NEAR]
    unit = max(float(np.median(steepness)), 1e-4 * float(near.max(initial=0))) + 1e-300
    curved = np.abs(curvature[1:]) + np.abs(curvature[:-1])
    return (
        _stands_out(change, 1e-10 * unit + 1e-13 * size)
        | _stands_out(turn, 1e-9 * unit + 1e-12 * steepness)
        | _stands_out(bend, 1e-7 * unit + 1e-10 * curved)
    )


def _stands_out(v: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Returns where numbers exceed those on both sides, at a distance of 3, by a factor of 10 and the noise."""
    padded = np.pad(np.abs(v), 3, mode="edge")
    return np.abs(v) > 10 * np.maximum(padded[:-6], padded[6:]) + noise


def _clusters(indices: np.ndarray) -> list[np.ndarray]:
    """Returns runs of indices with gaps below 4."""
    if not len(indices):
        return []
    return np.split(indices, np.flatnonzero(np.diff(indices) > 3) + 1)


def _located(fn: Callable[[jax.Array], jax.Array], low: float, high: float) -> float | None:
    """Returns the place of the kink in an interval, by repeated division; short numbers are preferred."""
    for candidate in (round((low + high) / 2 * 240 * m) / (240 * m) for m in (1 / 240, 1 / 24, 1, 1000 / 240)):
        if low < candidate < high:
            sides = _profile(fn, candidate + np.array([-2e-8, -1e-8, 1e-8, 2e-8]))
            if _jumps_inside(sides):
                return candidate
    while high - low > 1e-14 * max(1.0, abs(low)):
        x = np.linspace(low, high, 34)
        found = _profile(fn, x)
        step = x[1] - x[0]
        jumps = (
            np.abs(np.diff(found.values) - step / 2 * (found.slopes[1:] + found.slopes[:-1])) / step
            + np.abs(np.diff(found.slopes) - step / 2 * (found.curvatures[1:] + found.curvatures[:-1]))
            + step * np.abs(np.diff(found.curvatures))
        )
        best = int(np.argmax(jumps))
        low, high = float(x[best]), float(x[best + 1])
        # Closer than this, only a jump of the value stands out from rounding; other places follow from both sides.
        if step < 1e-9 and abs(found.values[best + 1] - found.values[best]) < 1e-6:
            break
    return (low + high) / 2


def _jumps_inside(sides: _Profile) -> bool:
    """Whether a jump lies between the middle two of four close points: it is larger than the changes beside it."""
    for v in sides:
        inner, outer = abs(v[2] - v[1]), abs(v[1] - v[0]) + abs(v[3] - v[2])
        if inner > 1e-6 * (1e-3 + abs(v[1]) + abs(v[2])) + 10 * outer:
            return True
    return False


def _ramp(fn: Callable[[jax.Array], jax.Array], place: float) -> Ramp | None:
    """Returns the ramp whose value, slope and curvature jump as those of the function do at a place."""
    if abs(place) < 1e-8:
        place = 0.0
    jumps = _jumps(fn, place)
    # A kink that was found at a distance from its place seems to have a jump. Both sides agree at its place.
    if 0 < abs(jumps[0]) < 1e-6 * abs(jumps[1]):
        place -= jumps[0] / jumps[1]
        jumps = _jumps(fn, place)
        jumps[0] = 0.0
    elif jumps[0] == 0 and 0 < abs(jumps[1]) < 1e-6 * abs(jumps[2]):
        place -= jumps[1] / jumps[2]
        jumps = _jumps(fn, place)
        jumps[:2] = 0.0, 0.0
    if not any(jumps):
        return None
    # A ramp to the left of a kink jumps by -(-1)^j in its j-th derivative.
    direction = 1 if place >= 0 else -1
    weights = tuple((v if direction > 0 else v * (-1) ** (j + 1)) + 0.0 for j, v in enumerate(jumps))
    return Ramp(float(place), direction, weights)


def _jumps(fn: Callable[[jax.Array], jax.Array], place: float) -> list[float]:
    """Returns the jumps of value, slope and curvature at a place, from Taylor series on both sides."""
    apart = 1e-5 * max(1.0, abs(place))
    found = _profile(fn, place + apart * np.array([-2.0, -1.0, 1.0, 2.0]))
    sides = []
    for near, far, e in ((1, 0, -apart), (2, 3, apart)):
        third = (found.curvatures[far] - found.curvatures[near]) / e
        curvature = found.curvatures[near] - e * third
        slope = found.slopes[near] - e * curvature - e**2 / 2 * third
        value = found.values[near] - e * slope - e**2 / 2 * curvature - e**3 / 6 * third
        sides.append((value, slope, curvature))
    scale = 1e-3 + max(abs(v) for side in sides for v in side)
    jumps = [_cleaned(float(b - a), 1e-10) for a, b in zip(*sides, strict=True)]
    limits = (1e-12, 1e-10, 1e-7)
    return [0.0 if abs(v) < limit * scale else v for v, limit in zip(jumps, limits, strict=True)]


def _cleaned(v: float, limit: float) -> float:
    """Returns a short number if it is as near as the limit."""
    short = round(v * 120) / 120
    return short if abs(short - v) <= limit * max(1.0, abs(v)) else float(v)
