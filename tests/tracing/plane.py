"""Gaussian expectations of pairs of functions by quadrature over the plane, with panels that end at kinks."""

import jax
import jax.numpy as jnp
import numpy as np

END = 9.5


def _panels(ends, count):
    """Returns points and weights for panels with given ends, (..., panels + 1)."""
    t, w = np.polynomial.legendre.leggauss(count)
    half, middle = np.diff(ends) / 2, (ends[..., 1:] + ends[..., :-1]) / 2
    z = middle[..., None] + half[..., None] * t
    return z.reshape(*ends.shape[:-1], -1), (half[..., None] * w).reshape(*ends.shape[:-1], -1)


def _values(fn, x):
    x = jnp.asarray(x)
    value, slope = jax.jvp(fn, (x,), (jnp.ones_like(x),))
    return np.asarray(value), np.asarray(slope)


def _density(z):
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def plane_moments(f, g, k, q1, q2, kinks1=(), kinks2=(), width=0.25):
    """Returns E[f(a) g(b)], E[f'(a) g'(b)], E[f(a)], E[f'(a)] for (a, b) ~ N(0, [[q1, k], [k, q2]]).

    The outer variable is a, the inner one the part of b that is independent of a.
    """
    s1, s2 = np.sqrt(q1), np.sqrt(q2)
    rho = k / (s1 * s2)
    delta = np.sqrt(max(1 - rho**2, 0.0))
    ends = list(np.arange(-END, END + width / 2, width)) + [c / s1 for c in kinks1]
    if rho:
        # Near these places the inner kink crosses the density of the inner variable.
        grades = [0.0, *(sign * delta * v for v in (0.5, 1, 2, 3, 4, 6, 8) for sign in (1, -1))]
        ends += [(c / s2 + grade) / rho for c in kinks2 for grade in grades]
    ends = np.unique(np.clip(ends, -END, END))
    z, w = _panels(ends, 16)
    w = w * _density(z)
    fa, dfa = _values(f, s1 * z)
    if delta:
        inner = [np.full_like(z, e) for e in np.arange(-END, END + 0.5, 1.0 if delta * s2 < 2 else 0.5)]
        inner += [np.clip((c / s2 - rho * z) / delta, -END, END) for c in kinks2]
        y, v = _panels(np.sort(np.stack(inner, axis=-1), axis=-1), 16)
        gb, dgb = _values(g, s2 * (rho * z[:, None] + delta * y))
        gb, dgb = (np.sum(v * _density(y) * u, axis=1) for u in (gb, dgb))
    else:
        gb, dgb = _values(g, s2 * rho * z)
    return tuple(float(np.sum(w * u)) for u in (fa * gb, dfa * dgb, fa, dfa))
