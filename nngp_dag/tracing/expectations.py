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
from nngp_dag.kernels.dual import gap_of, ratio, root
from nngp_dag.kernels.dual.base import odd_factorial
from nngp_dag.kernels.dual.logistic import mixture
from nngp_dag.tracing import ramps, series
from nngp_dag.tracing.functions import Function, Term, Unknown, without
from nngp_dag.tracing.ramps import Ramp, Ramps

__all__ = ["accuracy", "mean", "mean_slope", "second_moment", "slope"]


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


# Compiled once for two functions and shapes; long programs run step by step and call it.
compiled_second_moment = jax.jit(second_moment, static_argnums=(0, 1))


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
    """Bounds the error of `second_moment` relative to the roots of the second moments of f and g with themselves.

    The bound is that of the terms that a Hermite series leaves out, at its worst correlation, and of the quadrature of
    its coefficients. It holds for values and slopes; that of slopes is the larger one. Rounding is left out.

    Args:
      f: A recognized function.
      g: A recognized function.
      q1: Concrete variances of the first input.
      q2: Concrete variances of the second input.

    Returns:
      The bound; 0 where the expectations have closed forms, and infinity where they are not finite.

    Examples:
      >>> import jax, numpy as np
      >>> from nngp_dag.tracing.functions import recognize
      >>> mish = recognize(jax.nn.mish)
      >>> 0 < accuracy(mish, mish, np.ones(3), np.ones(3)) < 1e-9
      True
    """
    pairs = _pairs_in_series(f, g)
    if not pairs:
        return 0.0
    total = np.zeros(2)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        sides = [(v, _chosen(q)) for v, q in ((f, q1), (g, q2))]
        whole = []
        for v, q in sides:
            whole.append(np.stack([np.asarray(m) for m in compiled_second_moment(v, v, *[jnp.asarray(q)] * 3)]))
        for one, part1, other, part2, terms in pairs:
            bound = np.full(2, abs(one.scale * other.scale))
            for term, part, (_, q), own in ((one, part1, sides[0], whole[0]), (other, part2, sides[1], whole[1])):
                rest = _rest(part, terms, abs(term.rate) * np.sqrt(q)) * np.array([[1.0], [term.rate**2]])
                bound = bound * np.sqrt(np.max(rest / np.where(own > 0, own, 1), axis=1))
            total += bound
    return float(total.max()) if np.isfinite(total).all() else math.inf


def in_series(f: Function, g: Function) -> bool:
    """Whether a part of the expectations of two functions is a Hermite series, with no closed form."""
    return bool(_pairs_in_series(f, g))


def _pairs_in_series(f: Function, g: Function) -> list[tuple[Term, Any, Term, Any, int]]:
    """Returns the parts of terms whose pairs are series, with the terms, and the lengths of the series."""
    pairs = []
    for one in f.terms:
        for other in g.terms:
            if not _kind(one.phi, other.phi):
                for part1 in _taken_apart(one.phi)[1]:
                    for part2 in _taken_apart(other.phi)[1]:
                        if not (isinstance(part1, Ramps) and isinstance(part2, Ramps)):
                            pairs.append((one, part1, other, part2, min(_length(part1), _length(part2))))
    return pairs


def _chosen(q: np.ndarray) -> np.ndarray:
    """Returns some of the positive variances: all of a few, else quantiles with both ends."""
    found = np.unique(np.asarray(q, np.float64))
    found = found[found > 0]
    if not len(found):
        return np.zeros(1)
    return found if len(found) <= 12 else np.quantile(found, np.linspace(0, 1, 12))


def _rest(phi: Any, terms: int, s: np.ndarray) -> np.ndarray:
    """Returns the second moments of phi and phi' that a series leaves out, or gets wrong by quadrature, (2, *s)."""
    if isinstance(phi, Ramps):
        q = jnp.asarray(s**2)
        moments = jax.jit(lambda q: ramps.second_moments(phi, phi, q, jnp.zeros_like(q), q, q))(q)
        used = jax.jit(lambda s: _coefficients(phi, terms, s))(jnp.asarray(s))
        left = [np.asarray(m - jnp.sum(c**2, axis=0)) for m, c in zip(moments, used, strict=True)]
        return np.maximum(np.stack(left), 0) + 1e-15 * np.stack([np.asarray(m) for m in moments])
    return series.rest(phi, terms, s)


def _of_terms(rule: Any, f: Function, q: jax.Array) -> jax.Array:
    total = jnp.zeros_like(q)
    for term in f.terms:
        total = total + term.scale * rule(term.phi, term.rate, q)
    return total


def _jumps(f: Function) -> bool:
    return any(isinstance(term.phi, Sign) or (isinstance(term.phi, Ramps) and term.phi.jumps) for term in f.terms)


def _mean(phi: Any, rate: float, q: jax.Array) -> jax.Array:
    """Returns E[phi(rate u)]; it does not depend on the sign of the rate."""
    if isinstance(phi, Unknown):
        return series.coefficients(phi.fn, 1, root(rate**2 * q))[0][0]
    return ramps.mean(phi, rate**2 * q) if isinstance(phi, Ramps) else duals.mean(phi, rate**2 * q)


def _steep(phi: Any, rate: float, q: jax.Array) -> jax.Array:
    """Returns E[d/du phi(rate u)] with the derivative of automatic differentiation."""
    if isinstance(phi, Sign):
        return jnp.zeros_like(q)
    if isinstance(phi, Ramps) and phi.jumps:
        return rate * ramps.coefficients(phi, 1, root(rate**2 * q), derivative=True)[0]
    return _stein(phi, rate, q)


def _stein(phi: Any, rate: float, q: jax.Array) -> jax.Array:
    """Returns E[u phi(rate u)] / q."""
    if isinstance(phi, Unknown):
        return rate * series.coefficients(phi.fn, 1, root(rate**2 * q))[1][0]
    if isinstance(phi, Ramps):
        return rate * ramps.mean(phi, rate**2 * q, order=1)
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
    """Returns how the covariance of two terms is found: a name of a rule, or "" for numerically."""
    if _parity(phi) * _parity(psi) < 0:
        return "orthogonal"
    if isinstance(phi, Polynomial) or isinstance(psi, Polynomial):
        return "polynomial"
    if isinstance(phi, Ramps) and isinstance(psi, Ramps):
        return "ramps"
    return "dual" if isinstance(phi, Activation) and phi == psi else ""


def _pair(
    one: Term, other: Term, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the covariance of phi(rate1 a) and psi(rate2 b), and the second moment of their slopes."""
    phi, psi, kind = one.phi, other.phi, _kind(one.phi, other.phi)
    zero = jnp.zeros_like(k + q1 + q2)
    if kind == "orthogonal":
        return zero, zero
    rates = one.rate * other.rate
    k, gap, q1, q2 = rates * k, abs(rates) * gap, one.rate**2 * q1, other.rate**2 * q2
    if kind == "dual":
        c, d = _of_dual(phi, k, gap, q1, q2)
    elif kind == "ramps":
        c, d = _of_ramps(phi, psi, k, gap, q1, q2)
    elif kind == "polynomial":
        c, d = _of_series(phi, psi, k, q1, q2)
    else:
        c, d = zero, zero
        (slope1, parts1), (slope2, parts2) = _taken_apart(phi), _taken_apart(psi)
        if slope1 or slope2:
            c, d = c + slope1 * slope2 * k, d + slope1 * slope2
        for slope_, parts, q in ((slope1, parts2, q2), (slope2, parts1, q1)):
            if slope_:
                for part in parts:
                    c = c + slope_ * k * _stein(part, 1.0, q)
                    d = d + slope_ * _steep(part, 1.0, q)
        for part1 in parts1:
            for part2 in parts2:
                both_ramps = isinstance(part1, Ramps) and isinstance(part2, Ramps)
                found = _of_ramps(part1, part2, k, gap, q1, q2) if both_ramps else _of_series(part1, part2, k, q1, q2)
                c, d = c + found[0], d + found[1]
    return c, rates * d


@functools.lru_cache(maxsize=256)
def _taken_apart(phi: Any) -> tuple[float, tuple[Any, ...]]:
    """Returns a function as slope x plus ramps and functions without kinks; constants are left out.

    Series of functions with kinks converge slowly, and pairs of ramps have closed forms.
    """
    if isinstance(phi, ABRelu):
        return phi.a, (Ramps((Ramp(0.0, 1, (0.0, phi.b - phi.a)),)),)
    if isinstance(phi, Sign):
        return 0.0, (Ramps((Ramp(0.0, 1, (2.0,)),)),)
    if isinstance(phi, RectifiedMonomial):
        weights = (0.0,) * phi.degree + (float(math.factorial(phi.degree)),)
        return 0.0, (Ramps((Ramp(0.0, 1, weights),)),)
    if isinstance(phi, Elu):
        bent = Ramps((Ramp(0.0, 1, (0.0, 1.0 - phi.alpha, -phi.alpha)),))
        return 0.0, (bent, without(phi, bent, phi.name))
    return 0.0, (phi,)


# `jit` traces a dual once for given shapes; a network calls it once for each pair of layers.
@functools.partial(jax.jit, inline=True)
def _of_dual(
    phi: Activation, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    found = duals.dual(phi, k, gap, q1, q2)
    return found.covariance, found.slope


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _of_ramps(
    f: Ramps, g: Ramps, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    value, product = ramps.second_moments(f, g, k, gap, q1, q2)
    return value - ramps.mean(f, q1) * ramps.mean(g, q2), product


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _of_series(phi: Any, psi: Any, k: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the covariance and the second moment of slopes by a Hermite series; that of a polynomial is finite."""
    terms = min(_length(phi), _length(psi))
    s1, s2 = root(q1), root(q2)
    rho = jnp.clip(ratio(k, s1 * s2), -1, 1)
    (a, da), (b, db) = _coefficients(phi, terms, s1), _coefficients(psi, terms, s2)
    return series.pair_sums((a.at[0].set(0), da), (b, db), rho)


def _length(phi: Any) -> int:
    if isinstance(phi, Polynomial):
        return len(phi.coefficients)
    # The series of the catalog's smooth functions need no more terms than this at variances up to 25.
    return phi.terms if isinstance(phi, Unknown) else 2048


def _coefficients(phi: Any, terms: int, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    if isinstance(phi, Polynomial):
        q = s**2
        means = [_mean_of_derivative(phi.coefficients, n, q) for n in range(terms + 1)]
        values = [v * s**n / math.sqrt(math.factorial(n)) for n, v in enumerate(means[:terms])]
        slopes = [v * s**n / math.sqrt(math.factorial(n)) for n, v in enumerate(means[1:])]
        return jnp.stack(values), jnp.stack(slopes)
    if isinstance(phi, Ramps):
        return ramps.coefficients(phi, terms, s), ramps.coefficients(phi, terms, s, derivative=True)
    return series.coefficients(phi, terms, s)


def _mean_of_derivative(coefficients: Any, order: int, q: jax.Array) -> jax.Array:
    """Returns the mean of a derivative of a polynomial."""
    total = jnp.zeros_like(q)
    for i in reversed(range(len(coefficients[order::2]))):
        n = order + 2 * i
        total = total * q + coefficients[n] * math.perm(n, order) * odd_factorial(i)
    return total
