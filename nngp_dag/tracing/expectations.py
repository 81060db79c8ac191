"""Gaussian expectations of products of two elementwise functions, means included.

For (a, b) ~ N(0, [[q1, k], [k, q2]]) and sums f(x) = shift + linear x + sum_i scale_i phi_i(rate_i x),

    E[f(a) g(b)] = E f(a) E g(b) + linear_f linear_g k + (linear_f S_g + linear_g S_f) k + sum_ij Cov[phi_i, psi_j]

with S_f = E[f'(a)] over the terms beside linear x (Stein's lemma). A covariance of two terms is in closed form where
both have the same activation, at any rates, and 0 where one is odd and the other even. Others are numerical.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.activations import (
    ABRelu,
    Activation,
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
from nngp_dag.kernels import dual as duals
from nngp_dag.kernels.dual import gap_of, root, size
from nngp_dag.kernels.dual.base import odd_factorial
from nngp_dag.kernels.dual.logistic import mixture
from nngp_dag.tracing import series
from nngp_dag.tracing.functions import Function, Term

__all__ = ["accuracy", "mean", "mean_slope", "second_moment", "slope"]

_TERMS = 512


def second_moment(f: Function, g: Function, k: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns E[f(a) g(b)] and E[f'(a) g'(b)] for (a, b) ~ N(0, [[q1, k], [k, q2]]).

    The derivatives are those of automatic differentiation: a jump has the slope 0.

    Args:
      f: A recognized function.
      g: A recognized function; it may differ from `f`.
      k: The covariances E[a b].
      q1: The variances E[a^2], of the rank of `k`.
      q2: The variances E[b^2], of the rank of `k`.

    Returns:
      Both second moments, of the shape to which the arguments broadcast.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nngp_dag.tracing.functions import recognize
      >>> relu = recognize(jax.nn.relu)
      >>> value, slope = second_moment(relu, relu, jnp.ones(2), jnp.ones(2), jnp.ones(2))
      >>> value.tolist(), slope.tolist()
      ([0.5, 0.5], [0.5, 0.5])
    """
    shape = jnp.broadcast_shapes(k.shape, q1.shape, q2.shape)
    gap = gap_of(k, q1, q2)
    mean1, mean2 = mean(f, q1), mean(g, q2)
    value = mean1 * mean2 + f.linear * g.linear * k
    product = jnp.full(shape, f.linear * g.linear, k.dtype)
    if f.linear and g.terms:
        value, product = value + f.linear * k * _of_terms(_stein, g, q2), product + f.linear * _of_terms(_steep, g, q2)
    if g.linear and f.terms:
        value, product = value + g.linear * k * _of_terms(_stein, f, q1), product + g.linear * _of_terms(_steep, f, q1)
    for one in f.terms:
        for other in g.terms:
            c, d = _pair(one, other, k, gap, q1, q2)
            value, product = value + one.scale * other.scale * c, product + one.scale * other.scale * d
    return jnp.broadcast_to(value, shape), jnp.broadcast_to(product, shape)


def mean(f: Function, q: jax.Array) -> jax.Array:
    """Returns E[f(a)] for a ~ N(0, q), of the shape of `q`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nngp_dag.tracing.functions import recognize
      >>> mean(recognize(jnp.square), jnp.array([0.0, 2.0])).tolist()
      [0.0, 2.0]
    """
    value = jnp.full_like(q, f.shift)
    for term in f.terms:
        value = value + term.scale * _mean(term.phi, term.rate, q)
    if _jumps(f):
        value = jnp.where(q > 0, value, f.at_zero)
    return value


def slope(f: Function, q: jax.Array) -> jax.Array:
    """Returns the factor s of Stein's lemma, E[c f(a)] = Cov(c, a) s, for a ~ N(0, q) and jointly Gaussian c.

    It is E[f'(a)], where a jump of f counts as it does in that lemma; `mean_slope` leaves jumps out.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nngp_dag.tracing.functions import recognize
      >>> slope(recognize(jax.nn.relu), jnp.ones(1)).tolist()
      [0.5]
    """
    return f.linear + _of_terms(_stein, f, q)


def mean_slope(f: Function, q: jax.Array) -> jax.Array:
    """Returns E[f'(a)] for a ~ N(0, q) with the derivative of automatic differentiation, which leaves out jumps.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nngp_dag.tracing.functions import recognize
      >>> mean_slope(recognize(jnp.sign), jnp.ones(1)).tolist()
      [0.0]
    """
    return f.linear + _of_terms(_steep, f, q)


def accuracy(f: Function, g: Function, q1: np.ndarray, q2: np.ndarray) -> float:
    """Bounds the relative error of `second_moment`; 0 where it is in closed form."""
    del q1, q2
    closed = all(_kind(one.phi, other.phi) for one in f.terms for other in g.terms)
    return 0.0 if closed else math.inf


def _of_terms(rule: Any, f: Function, q: jax.Array) -> jax.Array:
    total = jnp.zeros_like(q)
    for term in f.terms:
        total = total + term.scale * rule(term.phi, term.rate, q)
    return total


def _jumps(f: Function) -> bool:
    return any(isinstance(term.phi, Sign) for term in f.terms)


def _mean(phi: Any, rate: float, q: jax.Array) -> jax.Array:
    """Returns E[phi(rate u)]; the means of functions that are not even depend on the sign of the rate."""
    if not isinstance(phi, Activation):
        return series.coefficients(lambda x: phi(rate * x), 1, root(q))[0][0]
    value = duals.mean(phi, rate**2 * q)
    return value


def _steep(phi: Any, rate: float, q: jax.Array) -> jax.Array:
    """Returns E[d/du phi(rate u)] with the derivative of automatic differentiation."""
    return jnp.zeros_like(q) if isinstance(phi, Sign) else _stein(phi, rate, q)


def _stein(phi: Any, rate: float, q: jax.Array) -> jax.Array:
    """Returns E[u phi(rate u)] / q."""
    if not isinstance(phi, Activation):
        return series.coefficients(lambda x: phi(rate * x), 1, root(q))[1][0]
    return rate * _mean_derivative(phi, rate**2 * q)


@functools.singledispatch
def _mean_derivative(phi: Any, q: jax.Array) -> jax.Array:
    raise NotImplementedError(type(phi))


@_mean_derivative.register(ABRelu)
def _(phi: ABRelu, q: jax.Array) -> jax.Array:
    return jnp.full_like(q, (phi.a + phi.b) / 2)


@_mean_derivative.register(Sign)
def _(phi: Sign, q: jax.Array) -> jax.Array:
    # Twice the density at 0. An input of zeros has no covariance, so that its factor does not matter.
    positive = q > 0
    return jnp.where(positive, math.sqrt(2 / math.pi) / jnp.sqrt(jnp.where(positive, q, 1)), 0)


@_mean_derivative.register(Erf)
def _(phi: Erf, q: jax.Array) -> jax.Array:
    return 2 / math.sqrt(math.pi) / jnp.sqrt(1 + 2 * q)


@_mean_derivative.register(Tanh)
def _(phi: Tanh, q: jax.Array) -> jax.Array:
    # tanh(x) is 2 sum_n p_n Phi(2 x / s_n) - 1.
    terms = [4 * p / s / jnp.sqrt(2 * math.pi * (1 + 4 * q / s**2)) for s, p in mixture(q.dtype)]
    return sum(terms, start=jnp.zeros_like(q))


@_mean_derivative.register(Gelu)
@_mean_derivative.register(Silu)
@_mean_derivative.register(Softplus)
def _(phi: Any, q: jax.Array) -> jax.Array:
    # f(x) - f(-x) = x for all three.
    return jnp.full_like(q, 0.5)


@_mean_derivative.register(Elu)
def _(phi: Elu, q: jax.Array) -> jax.Array:
    # E[exp(u); u < 0] is half of E[exp(-|u|)], and E[|u| - 1 + exp(-|u|)] is twice the mean of elu.
    half = duals.mean(Elu(1.0), q) + 0.5 - root(q) / math.sqrt(2 * math.pi)
    return 0.5 + phi.alpha * half


@_mean_derivative.register(Sin)
def _(phi: Sin, q: jax.Array) -> jax.Array:
    return math.cos(phi.c) * jnp.exp(-q / 2) if phi.parity >= 0 else jnp.zeros_like(q)


@_mean_derivative.register(Exp)
def _(phi: Exp, q: jax.Array) -> jax.Array:
    return jnp.exp(q / 2)


@_mean_derivative.register(Gaussian)
def _(phi: Gaussian, q: jax.Array) -> jax.Array:
    return jnp.zeros_like(q)


@_mean_derivative.register(Gabor)
def _(phi: Gabor, q: jax.Array) -> jax.Array:
    v = q / (1 + 2 * q)
    return (1 - 2 * v) * jnp.exp(-v / 2) / jnp.sqrt(1 + 2 * q)


@_mean_derivative.register(Polynomial)
def _(phi: Polynomial, q: jax.Array) -> jax.Array:
    return duals.mean(Polynomial(tuple(n * c for n, c in enumerate(phi.coefficients))[1:]), q)


@_mean_derivative.register(RectifiedMonomial)
def _(phi: RectifiedMonomial, q: jax.Array) -> jax.Array:
    return phi.degree * duals.mean(RectifiedMonomial(phi.degree - 1), q)


def _parity(phi: Any) -> int:
    """Returns 1 for an odd function, -1 for an even one, else 0."""
    if isinstance(phi, (Erf, Tanh, Sign, Gabor)):
        return 1
    if isinstance(phi, ABRelu):
        return -1 if phi.a == -phi.b else 0
    if isinstance(phi, Gaussian):
        return -1
    if isinstance(phi, Sin):
        return phi.parity
    if isinstance(phi, Polynomial):
        odd, even = any(phi.coefficients[1::2]), any(phi.coefficients[0::2])
        return 0 if odd and even else 1 if odd else -1
    return 0


def _kind(phi: Any, psi: Any) -> str:
    """Returns how the covariance of two terms is found: "orthogonal", "polynomial", "dual", or "" for numerically."""
    if _parity(phi) * _parity(psi) < 0:
        return "orthogonal"
    if isinstance(phi, Polynomial) and isinstance(psi, Polynomial):
        return "polynomial"
    return "dual" if isinstance(phi, Activation) and phi == psi else ""


def _pair(
    one: Term, other: Term, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the covariance of phi(rate1 a) and psi(rate2 b), and the second moment of their slopes."""
    kind = _kind(one.phi, other.phi)
    if kind == "orthogonal":
        return jnp.zeros_like(k), jnp.zeros_like(k)
    if not kind:
        value, product = _numeric(one, other, k, q1, q2)
        return value - _mean(one.phi, one.rate, q1) * _mean(other.phi, other.rate, q2), product
    rates = one.rate * other.rate
    k, gap, q1, q2 = rates * k, size_of(rates) * gap, one.rate**2 * q1, other.rate**2 * q2
    if kind == "polynomial":
        c, d = _of_polynomials(one.phi, other.phi, k, q1, q2)
    else:
        c, d = _of_dual(one.phi, k, gap, q1, q2)
    return c, rates * d


def size_of(v: float) -> float:
    """Returns the size of a number."""
    return abs(v)


# `jit` traces a dual once for given shapes; a network calls it once for each pair of layers.
@functools.partial(jax.jit, inline=True)
def _of_dual(
    phi: Activation, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    found = duals.dual(phi, k, gap, q1, q2)
    return found.covariance, found.slope


def _of_polynomials(
    f: Polynomial, g: Polynomial, k: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the covariance sum_(l > 0) E[f^(l)] E[g^(l)] k^l / l! and its derivative in k (Price's theorem)."""
    count = min(len(f.coefficients), len(g.coefficients))
    value, derivative = jnp.zeros_like(k), jnp.zeros_like(k)
    for order in range(count - 1, -1, -1):
        a, b = (_mean_of_derivative(p.coefficients, order, q) for p, q in ((f, q1), (g, q2)))
        term = a * b / math.factorial(order) if order else jnp.zeros_like(k)
        value, derivative = value * k + term, derivative * k + value
    return value, derivative


def _mean_of_derivative(coefficients: Any, order: int, q: jax.Array) -> jax.Array:
    """Returns the mean of a derivative of a polynomial."""
    total = jnp.zeros_like(q)
    for i in reversed(range(len(coefficients[order::2]))):
        n = order + 2 * i
        total = total * q + coefficients[n] * math.perm(n, order) * odd_factorial(i)
    return total


def _numeric(one: Term, other: Term, k: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, product = series.moments(_scaled(one), _scaled(other), (_TERMS, _TERMS), k, q1, q2)
    return value, product


def _scaled(term: Term) -> Any:
    return lambda x: term.phi(term.rate * x)
