"""Checks that a function can serve as an activation: elementwise, finite, with a finite derivative."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import InputError

# The points are not sorted, so that a function that sorts its array is found out. They leave out 0: only an input of
# zeros needs the value there.
_POINTS = np.array([[0.4, -1.7, 2.6], [-0.3, 1.2, -2.9], [0.05, -0.9, 1.9], [-2.2, 0.7, -0.1]])


def check_elementwise(what: str, fn: Callable[[Any], Any], name: str) -> None:
    """Checks that a function of JAX arrays can serve as an activation.

    It must be hashable, elementwise and differentiable, and keep the dtype. Its values and slopes must be finite.

    Args:
      what: The argument in messages, such as "`fn` of `Quadrature`".
      fn: The function.
      name: The function's name in messages.

    Raises:
      InputError: One of these conditions fails.
    """
    try:
        hash(fn)
    except TypeError:
        raise InputError(f"Expected {what} to be hashable, got {name}, which is not; wrap it in a function") from None
    _check(what, fn, name, bool(jax.config.read("jax_enable_x64")))


def slope_of(fn: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns the derivative of an elementwise function."""
    return lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


# The check compiles the function, so its outcome is kept for each function.
@functools.lru_cache(maxsize=256)
def _check(what: str, fn: Callable[[Any], Any], name: str, wide: bool) -> None:
    del wide  # part of the cache's key: a NumPy constant turns float32 into float64 only where float64 is enabled
    _check_traced(what, fn, name, np.dtype(np.float32))
    # Evaluation at compile time makes the check work inside a transformation such as `jax.jit`, too.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        _check_traced(what, fn, name, np.dtype(np.float64))
        _check_values(what, fn, name)


def _check_traced(what: str, fn: Callable[[Any], Any], name: str, dtype: np.dtype) -> None:
    argument = jax.ShapeDtypeStruct(_POINTS.shape, dtype)
    try:
        result = jax.eval_shape(lambda x: fn(x), argument)
    except Exception as error:
        if isinstance(error, jax.errors.TracerBoolConversionError) or "truth value" in str(error):
            raise InputError(
                f"Expected {what} to be a function of JAX arrays, got {name}, which branches on their values; use "
                "`jnp.where` instead of `if`"
            ) from None
        raise InputError(
            f"Expected {what} to be a function of JAX arrays, got {name}, which fails on one ({_line(error)}); write "
            "it with `jax.numpy`"
        ) from None
    shape, kind = getattr(result, "shape", None), getattr(result, "dtype", None)
    if shape != argument.shape:
        shown = type(result).__name__ if shape is None else f"shape {shape}"
        raise InputError(
            f"Expected {what} to be elementwise, got {name}, which makes {shown} of an array of shape "
            f"{argument.shape}; give one that keeps shapes"
        )
    if kind != dtype:
        raise InputError(
            f"Expected {what} to keep the dtype, got {name}, which makes {kind} of {dtype}; cast its result by "
            "`.astype(x.dtype)`"
        )
    try:
        jax.eval_shape(slope_of(fn), argument)
    except Exception as error:
        raise InputError(
            f"Expected {what} to have a derivative, got {name}, which `jax.jvp` fails on ({_line(error)}); define it "
            "with `jax.custom_jvp`"
        ) from None


def _check_values(what: str, fn: Callable[[Any], Any], name: str) -> None:
    both = jax.jit(lambda x: jnp.stack([fn(x), slope_of(fn)(x)]))
    whole = np.asarray(both(_POINTS))
    check_finite(what, name, _POINTS, *whole)
    alone = np.stack([both(_POINTS[i : i + 1, j : j + 1])[:, 0, 0] for i, j in np.ndindex(_POINTS.shape)], axis=-1)
    # Compiled code may round an entry of an array and a single number differently.
    if not np.allclose(alone.reshape(whole.shape), whole, rtol=1e-9, atol=1e-11 * np.abs(whole).max()):
        raise InputError(
            f"Expected {what} to be elementwise, got {name}, whose values depend on the other entries of an array; "
            "give a function of one number at a time"
        )


def check_finite(what: str, name: str, x: np.ndarray, values: np.ndarray, slopes: np.ndarray) -> None:
    """Checks that the values and slopes of a function are finite at given points.

    Args:
      what: The argument in messages, such as "`fn` of `Quadrature`".
      name: The function's name in messages.
      x: The points.
      values: The function's values there, of the shape of `x`.
      slopes: Its derivatives there.

    Raises:
      InputError: A value or a slope is not finite; the message names the point nearest to 0.
    """
    for of, found in (("value", values), ("slope", slopes)):
        unsound = ~np.isfinite(found)
        if unsound.any():
            at = np.flatnonzero(unsound)[np.argmin(np.abs(x[unsound]))]
            raise InputError(
                f"Expected {what} to be finite, with its slope, on the whole real line, got {name}, whose {of} is "
                f"{found.flat[at]} at x = {x.flat[at] + 0.0:.3g}; define it there, for example by `jnp.where`"
            )


def _line(error: Exception) -> str:
    """Returns the first line of an error's message, shortened."""
    text = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
    return text if len(text) <= 100 else f"{text[:97]}..."
