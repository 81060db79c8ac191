"""The dual of any other function: a series of Hermite polynomials, its coefficients by quadrature."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.activations import Quadrature
from nngp_dag.kernels.dual.base import (
    Pair,
    gap_of_series,
    mean,
    ratio,
    register_smooth,
    root,
    series,
)


@register_smooth(Quadrature, gives_gap=True)
def _dual_quadrature(phi: Quadrature, pair: Pair) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Uses the Hermite series (Mehler) C = sum_(n > 0) a_n(q1) a_n(q2) rho^n, a_n(q) = E[phi(sqrt(q) z) h_n(z)].

    The a_n come from Gauss-Hermite quadrature on the vectors of variances, so only the sum runs over the matrix; Fd is
    the same sum for phi'. The error of C is at most sqrt(res(q1) res(q2)), res(q) = E[phi^2] - sum_n a_n^2
    (Parseval and Cauchy-Schwarz) and largest where |rho| = 1; `quadrature_error` measures it.
    """
    below = ratio(pair.below, pair.r)
    rho = jnp.where(pair.r > 0, 1 - below, 0)
    left, right = (_hermite_coefficients(phi.fn, phi.degree, s) for s in (pair.s1, pair.s2))
    left, right = ([jnp.zeros_like(a), *others] for a, *others in (left, right))
    c, _, quotient = series(left, right, rho, jnp.ones_like(rho))
    gap = gap_of_series(below * quotient, left, right)
    left, right = (_hermite_coefficients(_derivative(phi.fn), phi.degree, s) for s in (pair.s1, pair.s2))
    slope, _, _ = series(left, right, rho, rho)
    return c, gap, slope


@mean.register(Quadrature)
def _mean_quadrature(phi: Quadrature, q: jax.Array) -> jax.Array:
    return _hermite_coefficients(phi.fn, phi.degree, root(q))[0]


def quadrature_error(phi: Quadrature, q: jax.Array) -> jax.Array:
    """Bounds the relative truncation error of the dual of a `Quadrature`, for u ~ N(0, q).

    Returns the larger of res(q) / E[phi(u)^2] and the same for phi', which the NTK needs. The geometric mean of the
    values at q1 and q2 bounds the errors of F and Fd, relative to the geometric mean of their values on the diagonal,
    where the bound is the error. The series converges the faster, the farther phi is analytic beside the real line, in
    units of sqrt(q). At degree 64, in float64:

        q           0.25    1       4
        tanh        1e-17   9e-9    3e-4
        swish       1e-28   1e-17   4e-9
        softplus    1e-29   3e-20   4e-11

    (the other errors, of rounding, stay near 1e-15). Functions with a kink or a jump converge slowly and stand out:
    relu has 0.02 and sign 0.05 at every q.

    Args:
      phi: The activation.
      q: Variances, of any shape.
    """
    bounds = []
    for fn in (phi.fn, _derivative(phi.fn)):
        squares = [a**2 for a in _hermite_coefficients(fn, 4 * phi.degree, root(q), nodes=4 * phi.degree)]
        # The orders that the series leaves out, summed: a difference of sums could not be smaller than rounding.
        kept, left_out = (sum(part, start=jnp.zeros_like(q)) for part in (squares[: phi.degree], squares[phi.degree :]))
        total = kept + left_out
        bounds.append(jnp.where(total > 0, left_out / jnp.where(total > 0, total, 1), 0))
    return jnp.maximum(*bounds)


def _derivative(fn: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


def _hermite_coefficients(
    fn: Callable[[jax.Array], jax.Array], terms: int, s: jax.Array, nodes: int | None = None
) -> list[jax.Array]:
    """Returns E[fn(s z) h_n(z)] for n < terms, h_n = He_n / sqrt(n!), each of the shape of `s`."""
    points, weights = _gauss_hermite(4 * terms if nodes is None else nodes, terms)
    z = jnp.asarray(points, s.dtype).reshape(*[1] * s.ndim, -1)
    values = fn(s[..., None] * z)
    # A TF32 product would leave an error of 1e-3.
    coefficients = jnp.tensordot(values, jnp.asarray(weights, s.dtype), 1, precision=lax.Precision.HIGHEST)
    return [coefficients[..., n] for n in range(terms)]


@functools.lru_cache(maxsize=16)
def _gauss_hermite(nodes: int, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns quadrature points z_i, (p,), and w_i h_n(z_i), (p, terms), for z ~ N(0, 1).

    Points are eigenvalues of the Jacobi matrix (Golub and Welsch 1969), weights the Christoffel numbers
    1 / sum_n h_n(z_i)^2, which keep their digits at the ends, where the eigenvectors' weights would be rounding.
    The functions psi_n = h_n exp(-z^2 / 4) are bounded, so their recursion is stable and does not overflow.
    """
    off_diagonal = np.sqrt(np.arange(1.0, nodes))
    z = np.linalg.eigvalsh(np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    z = (z - z[::-1]) / 2
    psi = np.zeros((nodes, nodes))
    psi[0] = np.exp(-(z**2) / 4)
    for n in range(nodes - 1):
        psi[n + 1] = (z * psi[n] - np.sqrt(n) * psi[max(n - 1, 0)]) / np.sqrt(n + 1)
    weights = psi[0] / np.sum(psi**2, axis=0) * psi[:terms]
    # Far out the weights are nothing, and a function that grows fast might overflow and make NaN of it.
    inner = psi[0] > np.finfo(np.float32).tiny
    return z[inner], weights[:, inner].T
