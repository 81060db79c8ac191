"""A bound on the error of the dual of a `Quadrature`, from a quadrature rule that is independent and finer."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike
from numpy.typing import DTypeLike

from nngp_dag.activations import Quadrature
from nngp_dag.elementwise import check_finite, slope_of
from nngp_dag.errors import InputError
from nngp_dag.kernels.dual.quadrature import gauss_hermite

# Numbers of panels with eight Gauss-Legendre points each on |z| <= _END; they are refined until two rules agree. No
# number is a multiple of another, so that no frequency can hide from two rules. All are even, so that a kink at 0 lies
# between two panels.
_PANELS = (2048, 3546, 6142, 10638, 18426)
_POINTS = 8
_END, _TAIL = 37.0, 30.0
# The relative change that ends the refinement, and the change between the two finest rules that refuses the function.
_SETTLED, _UNSETTLED = 1e-9, 1e-2
# Points farther out than this many standard deviations have a weight below 1e-21.
_NEEDED = 10.0
# Number of points in one call of the compiled function.
_CHUNK = 8192
_DOUBLE = np.dtype(np.float64)


def quadrature_error(phi: Quadrature, q: ArrayLike, dtype: DTypeLike = _DOUBLE) -> np.ndarray:
    """Bounds the relative error of the dual of a `Quadrature`, for u ~ N(0, q).

    The kernel sums b_n^2 rho^n in place of a_n^2 rho^n, where b_n is the quadrature of a_n = E[phi(u) h_n]. Here a_n
    and E[phi^2] come from panels of Gauss-Legendre points, refined until they agree to 1e-9. For two inputs of one
    variance, the error of F is at most

        sum_n |b_n^2 - a_n^2| + E[phi^2] - sum_n a_n^2

    with sums over the terms of the series (Parseval). The first sum is the error of quadrature, and the rest that of
    truncation. The result is this bound over E[phi^2], or the same for phi', which the NTK needs; the larger of both.
    The series converges fast if phi is analytic in a wide strip around the real line, in units of sqrt(q). At degree
    64, in float64:

        q           0.25    1       4
        tanh        1e-15   9e-9    3e-4
        swish       1e-15   1e-15   4e-9
        softplus    1e-15   1e-15   4e-11

    The series of functions with a kink or a jump converge slowly: relu has 0.04 and sign 0.08 at every q.

    Args:
      phi: The activation.
      q: Variances, of any shape.
      dtype: The precision of the kernel, in which phi and phi' must not overflow. The bound does not include rounding.

    Returns:
      The bounds, of the shape of `q`.

    Raises:
      InputError: phi, phi' or one of their second moments is not finite, or the finest rule does not resolve them.
    """
    variances = np.asarray(q, np.float64)
    bounds = [_error_at(phi, value, np.dtype(dtype)) for value in variances.ravel().tolist()]
    return np.array(bounds).reshape(variances.shape)


@functools.lru_cache(maxsize=4096)
def _error_at(phi: Quadrature, q: float, dtype: np.dtype) -> float:
    s = math.sqrt(q)
    points, weights = gauss_hermite(4 * phi.degree, phi.degree)
    _check_sound(phi, q, points, _values(phi, s * points, dtype))
    used = _values(phi, s * points)
    change = np.zeros(2)
    z, weighted, moments = _moments(phi, q, _PANELS[0])
    for panels in _PANELS[1:]:
        previous = moments
        z, weighted, moments = _moments(phi, q, panels)
        change = np.abs(moments - previous) / np.where(moments > 0, moments, 1)
        if (change < _SETTLED).all():
            break
    if (change > _UNSETTLED).any():
        raise InputError(
            f"Expected `fn` of `Quadrature` to be resolved by {_PANELS[-1] * _POINTS} points, got {phi.name}, whose "
            f"second moments still change by {change.max():.1g} at the variance {q:.3g}: they are infinite, or it "
            "varies too fast; use a smoother function"
        )
    expected = _coefficients(weighted, z, phi.degree)
    found = used @ weights
    left_out = np.maximum(moments - (expected**2).sum(axis=1), 0)
    errors = np.abs(found**2 - expected**2).sum(axis=1) + left_out
    return float(np.max(errors / np.where(moments > 0, moments, 1) + change))


def _moments(phi: Quadrature, q: float, panels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the points z, phi and phi' there times the weights, (2, points), and both second moments, (2,)."""
    z, density = _rule(panels)
    values = _values(phi, math.sqrt(q) * z)
    near = np.abs(z) < _NEEDED
    _check_sound(phi, q, z[near], values[:, near])
    with np.errstate(over="ignore"):
        # The weights' roots come before the squares, since squared values might overflow.
        parts = (np.where(np.isnan(values), 0, values) * np.sqrt(density)) ** 2
        moments, tails = parts.sum(axis=1), parts[:, np.abs(z) > _TAIL].sum(axis=1)
    if not (np.isfinite(moments).all() and (tails <= _SETTLED * moments).all()):
        raise _grows(phi, q)
    return z, np.where(np.isfinite(values), values, 0) * density, moments


def _grows(phi: Quadrature, q: float) -> InputError:
    return InputError(
        f"Expected `fn` of `Quadrature` to have finite E[phi(u)^2] and E[phi'(u)^2], got {phi.name}, which grows too "
        f"fast for the variance {q:.3g}; reduce `w_std` or scale the inputs down"
    )


def _check_sound(phi: Quadrature, q: float, z: np.ndarray, values: np.ndarray) -> None:
    """Checks that values and slopes are finite at points that matter.

    Raises:
      InputError: They are not; the message tells fast growth from a point where the function is undefined.
    """
    unsound = ~np.isfinite(values).all(axis=0)
    # Infinity far out is overflow. Infinity near 0, or NaN anywhere, means that the function is undefined there.
    if unsound.any() and not np.isnan(values).any() and np.abs(z[unsound]).min() > 1 and q > 0:
        raise _grows(phi, q)
    check_finite("`fn` of `Quadrature`", phi.name, math.sqrt(q) * z, *values)


@functools.lru_cache(maxsize=64)
def _compiled(fn: Callable[[jax.Array], jax.Array]) -> Callable[[np.ndarray], jax.Array]:
    return jax.jit(lambda x: jnp.stack([fn(x), slope_of(fn)(x)]))


def _values(phi: Quadrature, x: np.ndarray, dtype: np.dtype = _DOUBLE) -> np.ndarray:
    """Returns phi and phi' at points, (2, points)."""
    compiled = _compiled(phi.fn)
    padded = np.zeros(-(-len(x) // _CHUNK) * _CHUNK, dtype)
    padded[: len(x)] = x
    with jax.enable_x64(True):
        parts = [np.asarray(compiled(part)) for part in padded.reshape(-1, _CHUNK)]
    return np.concatenate(parts, axis=1)[:, : len(x)]


@functools.lru_cache(maxsize=len(_PANELS))
def _rule(panels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns points z, and weights times the normal density; the panels have equal lengths in arsinh(z / 4)."""
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    half = math.asinh(_END / 4) / panels
    middles = half * np.arange(1 - panels, panels, 2)
    t = (middles[:, None] + half * nodes).ravel()
    z = 4 * np.sinh(t)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return z, density * 4 * np.cosh(t) * half * np.tile(weights, panels)


def _coefficients(weighted: np.ndarray, z: np.ndarray, terms: int) -> np.ndarray:
    """Returns sum_i weighted[:, i] h_n(z_i) for n < terms with h_n = He_n / sqrt(n!), (2, terms)."""
    before, value = np.zeros_like(z), np.ones_like(z)
    columns = []
    for n in range(terms):
        columns.append(weighted @ value)
        before, value = value, (z * value - math.sqrt(n) * before) / math.sqrt(n + 1)
    return np.stack(columns, axis=1)
