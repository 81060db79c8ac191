"""Gaussian expectations of ramps, the powers max(x - c, 0)^j, in closed form.

A function with kinks is a sum of ramps and a smooth function. For standard normal X and Y with correlation rho let

    M_ij = E[(X - h)^i (Y - t)^j; X > h, Y > t],   h, t >= 0.

M_00 is a bivariate normal probability; it is a sum of two of Owen's functions T (Owen, 1956). Integration by parts
(Stein's lemma) gives the others from M_00 and from the moments A_j of Y on the line X = h, and B_i of X on Y = t:

    M_(i+1)j = i M_(i-1)j + rho j M_i(j-1) - h M_ij,

where i M_(i-1)j stands for A_j at i = 0, and j M_i(j-1) for B_i at j = 0. Ramps that fall to the left are ramps of -x.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr

from nngp_dag.kernels.dual import root

__all__ = ["Ramp", "Ramps", "coefficients", "mean", "second_moments"]

# Farther out than this many standard deviations, nothing is left of a ramp.
_FAR = 38.0


@dataclass(frozen=True)
class Ramp:
    """The function sum_j weights[j] max(direction (x - at), 0)^j / j!, where the power 0 is a step.

    Attributes:
      at: The place of the kink.
      direction: 1 for ramps to the right, -1 for ramps to the left; direction times `at` is not negative.
      weights: The weights of the powers 0, 1, ...
    """

    at: float
    direction: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Ramps:
    """A sum of ramps.

    Attributes:
      ramps: The ramps.
    """

    ramps: tuple[Ramp, ...]

    @property
    def name(self) -> str:
        """The name in messages."""
        return "ramps at " + ", ".join(f"{ramp.at:.6g}" for ramp in self.ramps)

    @property
    def degree(self) -> int:
        """The largest power."""
        return max(len(ramp.weights) for ramp in self.ramps) - 1

    @property
    def jumps(self) -> bool:
        """Whether a step is among the ramps."""
        return any(ramp.weights[0] != 0 for ramp in self.ramps)

    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns distances direction * at, (ramps,), directions, (ramps,), and weights, (ramps, degree + 1)."""
        weights = np.zeros((len(self.ramps), self.degree + 1))
        for row, ramp in zip(weights, self.ramps, strict=True):
            row[: len(ramp.weights)] = ramp.weights
        directions = np.array([float(ramp.direction) for ramp in self.ramps])
        return directions * np.array([ramp.at for ramp in self.ramps]), directions, weights

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the values at `x`."""
        total = jnp.zeros_like(x)
        for ramp in self.ramps:
            ahead = ramp.direction * (x - ramp.at)
            up = jnp.where(ahead > 0, ahead, 0)
            power = jnp.where(ahead > 0, jnp.ones_like(x), 0)
            for j, weight in enumerate(ramp.weights):
                total = total + weight / math.factorial(j) * power
                power = power * up
        return total


def _density(h: jax.Array) -> jax.Array:
    return jnp.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)


def _over(distance: np.ndarray, s: jax.Array) -> jax.Array:
    """Returns distances in standard deviations, (ramps, *shape of `s`), at most `_FAR`."""
    c = jnp.asarray(distance, s.dtype).reshape(-1, *[1] * s.ndim)
    inside = s[None] * _FAR > c
    return jnp.where(inside, c / jnp.where(inside, s[None], 1), jnp.where(c > 0, _FAR, 0))


def _powers(h: jax.Array, count: int) -> list[jax.Array]:
    """Returns E[max(X - h, 0)^j] for j < count."""
    found = [ndtr(-h), _density(h) - h * ndtr(-h)]
    for j in range(1, count - 1):
        found.append(j * found[j - 1] - h * found[j])
    return found[:count]


def mean(phi: Ramps, q: jax.Array, order: int = 0) -> jax.Array:
    """Returns the mean of a derivative of ramps; that of a step's derivative, a density, is included.

    Args:
      phi: The ramps.
      q: The variances.
      order: The order of the derivative, 0 or 1.
    """
    distance, directions, weights = phi.numbers()
    s = root(q)
    h = _over(distance, s)
    powers = _powers(h, phi.degree + 1)
    total = jnp.zeros_like(q)
    for j in range(phi.degree + 1):
        if j < order:
            positive = s > 0
            power = jnp.where(positive[None], _density(h) / jnp.where(positive, s, 1)[None], 0)
        else:
            power = s[None] ** (j - order) * powers[j - order] / math.factorial(j - order)
        total = total + jnp.tensordot(jnp.asarray(weights[:, j] * directions**order, q.dtype), power, 1)
    return total


def coefficients(phi: Ramps, terms: int, s: jax.Array, derivative: bool = False) -> jax.Array:
    """Returns E[f(s z) h_n(z)] for n < terms, or the same for f' without jumps, (terms, *shape of `s`).

    A step at h has the coefficients h_(n-1)(h) times the density over sqrt(n), and each integration lowers the index by
    one and divides by sqrt(n).
    """
    distance, directions, weights = phi.numbers()
    h = _over(distance, s)
    envelope = jnp.exp(-(h**2) / 4)

    def step(state: tuple[jax.Array, jax.Array], n: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        before, psi = state
        return (psi, (h * psi - jnp.sqrt(n) * before) / jnp.sqrt(n + 1)), psi

    start = envelope / math.sqrt(2 * math.pi)
    _, psi = lax.scan(step, (jnp.zeros_like(h), start), jnp.arange(terms, dtype=s.dtype))
    psi = psi * envelope[None]
    powers = _powers(h, phi.degree + 1)
    order = int(derivative)
    total = jnp.zeros((terms, *s.shape), s.dtype)
    n = np.arange(terms, dtype=float)
    for j in range(order, phi.degree + 1):
        weight = weights[:, j] * directions**order
        # The signs of h_n are those of a reflection.
        signs = np.where(directions[None] < 0, (-1.0) ** n[:, None], 1.0) * weight
        i = j - order
        head = [powers[i - m] / math.factorial(i - m) / math.sqrt(math.factorial(m)) for m in range(min(i + 1, terms))]
        rows = jnp.stack(head)
        if terms > i + 1:
            falling = np.ones(terms - i - 1)
            for m in range(i + 1):
                falling *= n[i + 1 :] - m
            scale = jnp.asarray(1 / np.sqrt(falling), s.dtype).reshape(-1, *[1] * h.ndim)
            rows = jnp.concatenate([rows, scale * psi[: terms - i - 1]])
        total = total + s[None] ** i * jnp.einsum("nr,nr...->n...", jnp.asarray(signs, s.dtype), rows)
    return total


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def _owen(h: jax.Array, a: jax.Array) -> jax.Array:
    """Returns Owen's T(h, a) for 0 <= a <= 1, the integral of exp(-h^2 (1 + x^2) / 2) / (1 + x^2) / (2 pi)."""

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        x = (1 + jnp.asarray(_NODES, a.dtype)[i]) / 2 * a
        square = 1 + x**2
        return total + jnp.asarray(_WEIGHTS, a.dtype)[i] * jnp.exp(-(h**2) / 2 * square) / square

    return a / (4 * math.pi) * lax.fori_loop(0, len(_NODES), add, jnp.zeros_like(a * h))


class _Corner(NamedTuple):
    """The quadrant X > h, Y > t for a pair with correlation rho.

    Attributes:
      h: The edge of X, at least 0.
      t: The edge of Y, at least 0.
      y: The difference t - rho h.
      w: The difference h - rho t.
      rho: The correlation.
      below: The difference 1 - rho.
      delta: The root sqrt(1 - rho^2).
    """

    h: jax.Array
    t: jax.Array
    y: jax.Array
    w: jax.Array
    rho: jax.Array
    below: jax.Array
    delta: jax.Array


@jax.custom_jvp
def _probability(at: _Corner, beyond: jax.Array) -> jax.Array:
    """Returns P(X > h, Y > t), which is the sum over both edges of Q(h) / 2 - T(h, y / (h delta)).

    Both edges are stacked, so that the program holds one integral; `beyond` is the upper tail Q at |y| / delta and at
    |w| / delta, (2, ...).
    """
    # At h = t = 0, the slope y / (h delta) is its limit for h = t.
    origin, delta = ((at.h == 0) & (at.t == 0))[None], at.delta[None]
    edge, y = jnp.stack([at.h, at.t]), jnp.stack([at.y, at.w])
    x, ahead = jnp.where(origin, delta, edge * delta), jnp.where(origin, at.below[None], jnp.abs(y))
    far = ahead > x
    m = jnp.where(far, jnp.where(origin, 0, _quotient(ahead, delta)), edge)
    larger = jnp.where(far, ahead, x)
    a = jnp.where(larger > 0, jnp.where(far, x, ahead) / jnp.where(larger > 0, larger, 1), 0)
    owen = _owen(m, a)
    tail = jnp.stack(jnp.broadcast_arrays(ndtr(-at.h), ndtr(-at.t)))
    beyond = jnp.where(origin, 0.5, beyond)
    # T(h, a) + T(a h, 1 / a) has a closed form, so that the integral is over at most [0, 1].
    part = jnp.where(far, owen + tail * beyond - beyond / 2, tail / 2 - owen)
    return jnp.where(y < 0, tail - part, part).sum(axis=0)


@_probability.defjvp
def _(primals: tuple[_Corner, jax.Array], tangents: tuple[_Corner, jax.Array]) -> tuple[jax.Array, jax.Array]:
    (at, _), (dot, _) = primals, tangents
    ahead, aside = _quotient(at.y, at.delta), _quotient(at.w, at.delta)
    positive = at.delta > 0
    # The density at the corner, where it is finite.
    sharp = jnp.where(positive, _density(at.h) * _density(ahead) / jnp.where(positive, at.delta, 1), 0)
    change = -_density(at.h) * ndtr(-ahead) * dot.h - _density(at.t) * ndtr(-aside) * dot.t
    return _probability(*primals), change + sharp * dot.rho


def _quotient(y: jax.Array, delta: jax.Array) -> jax.Array:
    """Returns y / delta, limited in size to `_FAR`, and 0 where both are 0."""
    inside = jnp.abs(y) < _FAR * delta
    return jnp.where(inside, y / jnp.where(inside, delta, 1), _FAR * jnp.sign(y))


def _on_line(count: int, density: jax.Array, y: jax.Array, delta: jax.Array, m: jax.Array, tail: jax.Array) -> list:
    """Returns the moments A_j for j < count: a normal variable of deviation delta exceeds y = m delta by its mean."""
    found = [tail, delta * _density(m) - y * tail]
    for j in range(1, count - 1):
        found.append(j * delta**2 * found[j - 1] - y * found[j])
    return [density * v for v in found[:count]]


def second_moments(
    f: Ramps, g: Ramps, k: jax.Array, gap: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns E[f(a) g(b)] and E[f'(a) g'(b)], where derivatives leave out jumps.

    Args:
      f: Ramps of the first input.
      g: Ramps of the second input.
      k: The covariances E[a b].
      gap: The gaps sqrt(q1 q2) - |k|.
      q1: The variances of the first input, of the rank of `k`.
      q2: The variances of the second input, of the rank of `k`.
    """
    s1, s2 = root(q1), root(q2)
    r = s1 * s2
    positive = r > 0
    near = jnp.where(positive, gap / jnp.where(positive, r, 1), 1)
    (c1, d1, w1), (c2, d2, w2) = f.numbers(), g.numbers()
    pairs = list(itertools.product(range(len(c1)), range(len(c2))))
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    h, t = _over(c1[left], s1), _over(c2[right], s2)
    reflect = jnp.asarray(d1[left] * d2[right], k.dtype).reshape(-1, *[1] * k.ndim)
    near = near[None]
    rho = jnp.where(k[None] < 0, near - 1, 1 - near) * reflect
    delta = jnp.broadcast_to(root(near * (2 - near)), rho.shape)
    below = jnp.where(rho > 0, near, 1 - rho)
    h, t = jnp.broadcast_to(h, rho.shape), jnp.broadcast_to(t, rho.shape)
    # Where rho is nearly 1, t - rho h comes from the difference of the distances and from the gap.
    close = rho > 0
    y = jnp.where(close, (t - h) + near * h, t - rho * h)
    w = jnp.where(close, (h - t) + near * t, h - rho * t)
    i_max, j_max = f.degree, g.degree
    m_y, m_w = _quotient(y, delta), _quotient(w, delta)
    beyond = ndtr(-jnp.abs(jnp.stack([m_y, m_w])))
    tail_y, tail_w = (jnp.where(v < 0, 1 - tail, tail) for v, tail in zip((y, w), beyond, strict=True))
    on_h = _on_line(j_max + 1, _density(h), y, delta, m_y, tail_y)
    on_t = _on_line(i_max + 1, _density(t), w, delta, m_w, tail_w)
    m: dict[tuple[int, int], jax.Array] = {(0, 0): _probability(_Corner(h, t, y, w, rho, below, delta), beyond)}
    for j in range(j_max):
        second = on_t[0] if j == 0 else j * m[0, j - 1]
        m[0, j + 1] = second + rho * on_h[j] - t * m[0, j]
    for i in range(i_max):
        for j in range(j_max + 1):
            first = on_h[j] if i == 0 else i * m[i - 1, j]
            second = on_t[i] if j == 0 else j * m[i, j - 1]
            m[i + 1, j] = first + rho * second - h * m[i, j]
    value, product = jnp.zeros_like(rho[0]), jnp.zeros_like(rho[0])
    for (i, j), moment in m.items():
        scaled = moment * (s1**i * s2**j / math.factorial(i) / math.factorial(j))[None]
        weight = w1[left, i] * w2[right, j]
        if weight.any():
            value = value + jnp.tensordot(jnp.asarray(weight, k.dtype), scaled, 1)
        if i < i_max and j < j_max:
            weight = w1[left, i + 1] * w2[right, j + 1] * d1[left] * d2[right]
            if weight.any():
                product = product + jnp.tensordot(jnp.asarray(weight, k.dtype), scaled, 1)
    return value, product
