"""The dual of any other function: a series of Hermite polynomials whose coefficients come from quadrature."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.activations import Quadrature
from nngp_dag.elementwise import slope_of
from nngp_dag.kernels.dual.base import Pair, Triple, mean, ratio, register_smooth, root


@register_smooth(Quadrature, returns="gap")
def _dual_quadrature(phi: Quadrature, pair: Pair) -> Triple:
    """Computes C = sum_(n > 0) a_n(q1) a_n(q2) rho^n with a_n(q) = E[phi(sqrt(q) z) h_n(z)] (Mehler's formula).

    The coefficients come from Gauss-Hermite quadrature for the vectors of variances, so only the sum runs over the
    matrix. F' is the same sum for phi', with the term n = 0. Let res(q) = E[phi^2] - sum_n a_n^2. By Parseval and
    Cauchy-Schwarz the truncation error of C is at most sqrt(res(q1) res(q2)). It is largest where |rho| = 1;
    `quadrature_error` bounds it.
    """
    below = ratio(pair.below, pair.r)
    rho = jnp.where(pair.r > 0, 1 - below, 0)
    zero = jnp.zeros_like(pair.k)
    left, right = (_hermite_coefficients(phi.fn, phi.degree, s).at[0].set(0) for s in (pair.s1, pair.s2))
    norm1, norm2 = (root(jnp.sum(side**2, axis=0)) for side in (left, right))

    # Horner's scheme of `series` and the sum of `gap_of_series`, but as a loop, because 64 unrolled terms would take
    # seconds to compile.
    def of_values(sums: Triple, term: tuple[jax.Array, jax.Array]) -> tuple[Triple, None]:
        (value, quotient, apart), (a, b) = sums, term
        return (value * rho + a * b, quotient + value, apart + (ratio(a, norm1) - ratio(b, norm2)) ** 2), None

    (c, quotient, apart), _ = lax.scan(of_values, (zero, zero, zero), (left, right), reverse=True)
    left, right = (_hermite_coefficients(slope_of(phi.fn), phi.degree, s) for s in (pair.s1, pair.s2))

    def of_slopes(value: jax.Array, term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return value * rho + term[0] * term[1], None

    slope, _ = lax.scan(of_slopes, zero, (left, right), reverse=True)
    return c, below * quotient + norm1 * norm2 / 2 * apart, slope


@mean.register(Quadrature)
def _mean_quadrature(phi: Quadrature, q: jax.Array) -> jax.Array:
    return _hermite_coefficients(phi.fn, phi.degree, root(q))[0]


def _hermite_coefficients(fn: Callable[[jax.Array], jax.Array], terms: int, s: jax.Array) -> jax.Array:
    """Returns E[fn(s z) h_n(z)] for n < terms with h_n = He_n / sqrt(n!), (terms, *shape of `s`)."""
    points, weights = gauss_hermite(4 * terms, terms)
    z = jnp.asarray(points, s.dtype).reshape(*[1] * s.ndim, -1)
    values = fn(s[..., None] * z)
    # A TF32 product would have an error of 1e-3.
    coefficients = jnp.tensordot(values, jnp.asarray(weights, s.dtype), 1, precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(coefficients, -1, 0)


@functools.lru_cache(maxsize=16)
def gauss_hermite(nodes: int, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns quadrature points z_i, (p,), and the numbers w_i h_n(z_i), (p, terms), for z ~ N(0, 1).

    The points are the eigenvalues of the Jacobi matrix (Golub and Welsch 1969). The weights w_i are the Christoffel
    numbers 1 / sum_n h_n(z_i)^2, which keep their digits far out; weights from eigenvectors would be rounding errors
    there. The functions psi_n = h_n exp(-z^2 / 4) are bounded, so their recursion is stable and does not overflow.
    """
    off_diagonal = np.sqrt(np.arange(1.0, nodes))
    z = np.linalg.eigvalsh(np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    z = (z - z[::-1]) / 2
    psi = np.zeros((nodes, nodes))
    psi[0] = np.exp(-(z**2) / 4)
    for n in range(nodes - 1):
        psi[n + 1] = (z * psi[n] - np.sqrt(n) * psi[max(n - 1, 0)]) / np.sqrt(n + 1)
    weights = psi[0] / np.sum(psi**2, axis=0) * psi[:terms]
    # Far out the weights are negligible, but a fast-growing function may overflow there, and 0 times infinity is NaN.
    inner = psi[0] > np.finfo(np.float32).tiny
    return z[inner], weights[:, inner].T
