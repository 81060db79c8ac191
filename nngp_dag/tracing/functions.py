"""Elementwise functions of a model, recognized from their values.

A model holds functions such as relu or `x * sigmoid(1.702 * x)` as programs. Their Gaussian expectations have closed
forms where they are sums

    f(x) = shift + linear x + sum_i scale_i phi_i(rate_i x)

with activations phi_i of `nngp_dag.activations`. `recognize` finds such a sum from values and slopes at some points: it
solves for the numbers, and accepts a sum only if it agrees to 1e-10 everywhere. Any other function is one term, whose
expectations are computed numerically; see `nngp_dag.tracing.expectations`.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.activations import ABS, COS, Polynomial
from nngp_dag.errors import InputError
from nngp_dag.tracing.kinks import find_kinks
from nngp_dag.tracing.matching import Sum, match, points
from nngp_dag.tracing.ramps import Ramps
from nngp_dag.tracing.series import terms_needed

__all__ = ["Function", "Term", "recognize"]

Map = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Term:
    """The function scale phi(rate x).

    Attributes:
      scale: Factor of the output.
      phi: The activation, or a function of unknown form (`Unknown`).
      rate: Factor of the input.
    """

    scale: float
    phi: Any
    rate: float


@dataclass(frozen=True, eq=False)
class Unknown:
    """A function that no sum of activations equals; two are equal if they are the same object.

    Attributes:
      fn: The function, elementwise. Its kinks have been taken away.
      name: The function's name in messages.
      terms: Number of terms of its Hermite series.
    """

    fn: Map
    name: str
    terms: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the values at `x`."""
        return self.fn(x)


@dataclass(frozen=True, eq=False)
class Function:
    """An elementwise function of one real number that a model applies.

    Attributes:
      fn: The function of an array of any shape; JAX can trace and differentiate it.
      name: The function's name for people, such as "relu" or "0.5 x + |x|".
      shift: The constant of the sum that equals the function.
      linear: The factor of x in that sum.
      terms: The other terms of that sum.
      at_zero: The value at 0, which the sum may miss where the function jumps.
      known: Whether every expectation of the function with itself has a closed form.

    Examples:
      >>> import jax
      >>> recognize(jax.nn.sigmoid, "logistic").name
      '0.5 + 0.5 tanh(0.5 x)'
    """

    fn: Map
    name: str
    shift: float = 0.0
    linear: float = 0.0
    terms: tuple[Term, ...] = ()
    at_zero: float = 0.0
    known: bool = True

    @property
    def is_affine(self) -> bool:
        """Whether the function is shift + linear x."""
        return not self.terms

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the values at `x`."""
        return self.fn(x)


@functools.lru_cache(maxsize=4096)
def recognize(fn: Map, name: str = "") -> Function:
    """Returns a function together with the sum of activations that equals it, if there is one.

    The result is kept for each object `fn`.

    Args:
      fn: An elementwise JAX function.
      name: The name for people where the function is not recognized.

    Raises:
      InputError: Values or slopes are not finite near 0, or the slopes are not those of the values.

    Examples:
      >>> import jax
      >>> recognize(jax.nn.relu, "max").name
      'relu'
      >>> recognize(jax.nn.mish, "mish").known
      False
    """
    name = name or getattr(fn, "__name__", "function")
    x = points()
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        array = jnp.asarray(x, jnp.float64)
        values, slopes = jax.jvp(fn, (array,), (jnp.ones_like(array),))
        if values.shape != array.shape:
            raise InputError(f"Expected `{name}` to be elementwise, got shape {values.shape} of {array.shape}")
        y, dy = np.asarray(values, np.float64), np.asarray(slopes, np.float64)
    near = np.abs(x) <= _NEAR
    if not (np.isfinite(y[near]).all() and np.isfinite(dy[near]).all()):
        at = x[near][np.flatnonzero(~(np.isfinite(y[near]) & np.isfinite(dy[near])))[0]]
        raise InputError(
            f"Expected `{name}` to be finite, with its slope, on the real line, got {name} at x = {at:.3g}; define "
            "it there, for example by `jnp.where`"
        )
    # Models apply the same function many times, each as an object of its own. Equal values mean an equal function.
    key = y.tobytes() + dy.tobytes()
    if key not in _KNOWN:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        _KNOWN[key] = _recognized(fn, name, x, y, dy)
    found = _KNOWN[key]
    return dataclasses.replace(found, fn=fn, name=name if found.name == _UNNAMED else found.name)


_KNOWN: dict[bytes, Function] = {}
_MOST = 1024
_UNNAMED = ""


def _recognized(fn: Map, name: str, x: np.ndarray, y: np.ndarray, dy: np.ndarray) -> Function:
    at_zero = float(y[0])
    found = match(x, y, dy)
    if found is not None:
        return _of_sum(fn, found, at_zero)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        ramps, consistent = find_kinks(fn, name)
        if not consistent:
            raise InputError(
                f"Expected the slopes of `{name}` to be those of its values, got others (a custom derivative or "
                "`stop_gradient`?); the kernels are those of functions whose derivative is their own"
            )
        if not ramps:
            unknown = Unknown(fn, name, terms_needed(fn))
            return Function(fn, _UNNAMED, 0.0, 0.0, (Term(1.0, unknown, 1.0),), at_zero, False)
        bent = Ramps(ramps)
        array = jnp.asarray(x, jnp.float64)
        less, dless = (np.asarray(v) for v in jax.jvp(bent, (array,), (jnp.ones_like(array),)))
        found = match(x, y - less, dy - dless)
        term = Term(1.0, bent, 1.0)
        if found is not None:
            return Function(fn, _UNNAMED, found.shift, found.linear, (*map(_term, found.terms), term), at_zero)
        unknown = without(fn, bent, name)
    return Function(fn, _UNNAMED, 0.0, 0.0, (Term(1.0, unknown, 1.0), term), at_zero, False)


def without(fn: Map, ramps: Ramps, name: str) -> Unknown:
    """Returns a function without some ramps."""

    def rest(x: jax.Array) -> jax.Array:
        return fn(x) - ramps(x)

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return Unknown(rest, name, terms_needed(rest))


def _of_sum(fn: Map, found: Sum, at_zero: float) -> Function:
    terms = tuple(map(_term, found.terms))
    return Function(fn, _described(found), found.shift, found.linear, terms, at_zero)


def _term(entry: tuple[float, Any, float]) -> Term:
    return Term(float(entry[0]), entry[1], float(entry[2]))


_NEAR = 8.0


def _described(found: Sum) -> str:
    """Returns a text such as "relu", "gelu" or "0.5 + 0.5 tanh(0.5 x)"."""
    shift, linear, terms = found.shift, found.linear, found.terms
    if shift == 0 and len(terms) == 1 and terms[0][1] == ABS:
        scale = terms[0][0]
        b, a = linear + scale, linear - scale
        if (a, b) == (0, 1):
            return "relu"
        if (a, b) == (-1, 1):
            return "abs"
        if b == 1:
            return f"leaky_relu({a:.6g})"
    parts: list[tuple[float, str]] = []
    if shift or not (linear or terms):
        parts.append((shift, ""))
    if linear:
        parts.append((linear, "x"))
    for scale, phi, rate in terms:
        inner = "x" if rate == 1 else "-x" if rate == -1 else f"{rate:.6g} x"
        if isinstance(phi, Polynomial):
            parts += [(scale * c, f"x^{n}") for n, c in enumerate(phi.coefficients) if c]
        elif phi == ABS:
            parts.append((scale * abs(rate), "|x|"))
        else:
            word = "cos" if phi == COS else phi.name
            parts.append((scale, f"{word}({inner})"))
    if len(terms) == 1 and parts == [(1.0, f"{terms[0][1].name}(x)")]:
        return terms[0][1].name
    if parts == [(1.0, "x")]:
        return "identity"
    text = ""
    for factor, what in parts:
        size = "" if abs(factor) == 1 and what else f"{abs(factor):.6g}"
        sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
        text += sign + " ".join(part for part in (size, what) if part)
    return text
