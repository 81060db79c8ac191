"""Gaussian expectations of functions without closed forms, by series of Hermite polynomials.

With h_n = He_n / sqrt(n!), a_n(q) = E[f(sqrt(q) z) h_n(z)] and the same b_n for g, Mehler's formula (1866) is

    E[f(a) g(b)] = sum_n a_n(q1) b_n(q2) rho^n.

The numbers a_n come from quadrature for the vectors of variances; only the sum runs over pairs. Let res_f be
E[f^2] - sum_n a_n^2 over the terms that are summed. By Parseval and Cauchy-Schwarz, what is left out is at most
sqrt(res_f res_g) |rho|^N.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.elementwise import slope_of
from nngp_dag.kernels.dual import ratio, root

__all__ = ["coefficients", "moments", "nodes", "pair_sums"]

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


def coefficients(fn, terms: int, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns E[f(s z) h_n] and E[f'(s z) h_n] for n < terms, each (terms, *shape of `s`).

    The functions psi_n = h_n exp(-z^2 / 4) are bounded, so that their recursion does not overflow; a loop runs it,
    because a table of them would be a large constant of the compiled program.
    """
    points, weights = nodes(terms)
    z = jnp.asarray(points, s.dtype)
    envelope = jnp.exp(-(z**2) / 4)
    argument = s.reshape(-1, 1) * z
    weight = jnp.asarray(weights / math.sqrt(2 * math.pi), s.dtype) * envelope
    both = jnp.concatenate([fn(argument), slope_of(fn)(argument)]) * weight

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


def moments(f, g, terms: tuple[int, int], k: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns E[f(a) g(b)] and E[f'(a) g'(b)] by the series, with at most the given numbers of terms for f and g."""
    count = min(terms)
    s1, s2 = root(q1), root(q2)
    rho = jnp.clip(ratio(k, s1 * s2), -1, 1)
    return pair_sums(coefficients(f, count, s1), coefficients(g, count, s2), rho)
