"""Gaussian expectations of functions without closed forms, by series of Hermite polynomials.

With h_n = He_n / sqrt(n!), a_n(q) = E[f(sqrt(q) z) h_n(z)] and the same b_n for g, Mehler's formula (1866) is

    E[f(a) g(b)] = sum_n a_n(q1) b_n(q2) rho^n.

The numbers a_n come from quadrature for the vectors of variances; only the sum runs over pairs. Let res_f be
E[f^2] - sum_n a_n^2 over the terms that are summed. By Parseval and Cauchy-Schwarz, what is left out is at most
sqrt(res_f res_g) |rho|^N.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.elementwise import slope_of

__all__ = ["coefficients", "nodes", "pair_sums", "terms_needed"]

Map = Callable[[jax.Array], jax.Array]

# The integrals are over |z| <= _END; the density is below 1e-55 beyond.
_END = 16.0


@functools.lru_cache(maxsize=16)
def nodes(terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns points z, (p,), and Gauss-Legendre weights for the measure dz, (p,), enough for h_n with n < terms.

    The points lie in two panels that meet at 0, where most functions have their kinks.
    """
    count = 128 + terms // 4
    t, w = np.polynomial.legendre.leggauss(count)
    z = _END * (1 + t) / 2
    return np.concatenate([-z[::-1], z]), _END / 2 * np.concatenate([w[::-1], w])


def coefficients(fn: Map, terms: int, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns E[f(s z) h_n] and E[f'(s z) h_n] for n < terms, each (terms, *shape of `s`).

    The functions psi_n = h_n exp(-z^2 / 4) are bounded, so that their recursion does not overflow; a loop runs it,
    because a table of them would be a large constant of the compiled program.
    """
    points, weights = nodes(terms)
    z = jnp.asarray(points, s.dtype)
    envelope = jnp.exp(-(z**2) / 4)
    argument = s.reshape(-1, 1) * z[None]
    weight = jnp.asarray(weights / math.sqrt(2 * math.pi), s.dtype) * envelope
    both = jnp.concatenate([fn(argument), slope_of(fn)(argument)]) * weight[None]

    def step(state: tuple[jax.Array, jax.Array], n: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        before, psi = state
        after = (z * psi - jnp.sqrt(n) * before) / jnp.sqrt(n + 1)
        return (psi, after), both @ psi

    _, sums = lax.scan(step, (jnp.zeros_like(z), envelope), jnp.arange(terms, dtype=s.dtype))
    values, slopes = jnp.split(sums, 2, axis=1)
    return values.reshape(terms, *s.shape), slopes.reshape(terms, *s.shape)


def pair_sums(
    left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array], rho: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns sum_n a_n b_n rho^n for the coefficients of values, and for those of slopes.

    Args:
      left: The coefficients of f and f' from `coefficients`, each (terms, *shape of q1).
      right: The coefficients of g and g', each (terms, *shape of q2).
      rho: The correlations.
    """
    terms = min(left[0].shape[0], right[0].shape[0])

    def step(
        sums: tuple[jax.Array, jax.Array], rows: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        a, da, b, db = rows
        return (sums[0] * rho + a * b, sums[1] * rho + da * db), None

    shape = jnp.broadcast_shapes(rho.shape, left[0].shape[1:], right[0].shape[1:])
    zero = jnp.zeros(shape, rho.dtype)
    rows = tuple(v[:terms] for v in (*left, *right))
    return lax.scan(step, (zero, zero), rows, reverse=True)[0]


# Numbers of terms that are tried, the standard deviation at which a series must have converged, and the relative size
# of the rest of the squares of its coefficients that is left then.
_COUNTS = (64, 128, 256, 512, 1024, 2048)
_WIDEST = 5.0
_CONVERGED = np.array([1e-11, 2e-9])  # of values, of slopes


@functools.lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Returns the points for the longest series, and psi_n times the weights there, (terms, points)."""
    points, weights = nodes(_COUNTS[-1])
    psi = np.empty((_COUNTS[-1], len(points)))
    envelope = np.exp(-(points**2) / 4)
    psi[0], before = envelope, np.zeros_like(points)
    for n in range(_COUNTS[-1] - 1):
        psi[n + 1] = (points * psi[n] - math.sqrt(n) * before) / math.sqrt(n + 1)
        before = psi[n]
    return points, psi * (weights * envelope / math.sqrt(2 * math.pi))


def terms_needed(fn: Map) -> int:
    """Returns the number of terms with which the series of a function converges at variances up to 25, at most 2048."""
    points, weighted = _table()
    x = jnp.asarray(_WIDEST * points)
    both = np.stack([np.asarray(fn(x)), np.asarray(slope_of(fn)(x))], axis=1)
    squares = (weighted @ np.where(np.isfinite(both), both, 0)) ** 2
    for count in _COUNTS[:-1]:
        # The rest of the longest series tells whether a shorter one has converged.
        if (squares[count:].sum(axis=0) <= _CONVERGED * squares.sum(axis=0)).all():
            return count
    return _COUNTS[-1]


def rest(fn: Map, terms: int, s: np.ndarray) -> np.ndarray:
    """Returns E[f^2] - sum_n a_n^2 plus the error of the sum by quadrature, for f and f', (2, *shape of `s`).

    The finer rule has 8192 points in 512 panels.
    """
    t, w = np.polynomial.legendre.leggauss(16)
    half = _END / 512
    z = (half * np.arange(-511, 512, 2)[:, None] + half * t).ravel()
    weight = half * np.tile(w, 512) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    used = [np.asarray(c) for c in jax.jit(lambda s: coefficients(fn, terms, s))(jnp.asarray(s))]
    x = jnp.asarray(s[:, None] * z)
    values = np.stack([np.asarray(v) for v in jax.jit(lambda x: (fn(x), slope_of(fn)(x)))(x)])
    found = (weight * values**2).sum(axis=-1)
    before, psi = np.zeros_like(z), np.ones_like(z)
    weighted = values * weight
    sums, wrong = np.zeros_like(found), np.zeros_like(found)
    for n in range(terms):
        a = weighted @ psi
        sums += a**2
        wrong += np.abs(a**2 - np.stack([c[n] for c in used]) ** 2)
        before, psi = psi, (z * psi - math.sqrt(n) * before) / math.sqrt(n + 1)
    return np.maximum(found - sums, 0) + wrong + 1e-15 * found
