"""Dual activations: Gaussian expectations of a nonlinearity, in closed form.

For (u, v) ~ N(0, [[q1, k], [k, q2]]) and an activation phi with normaliser c:

    F  = c E[phi(u) phi(v)]        second moment of one edge's output
    Fd = c E[phi'(u) phi'(v)]      what a weighted edge multiplies the NTK by
    mu = sqrt(c) E[phi(u)]         mean of one edge's output
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nngp_dag.errors import InputError


@dataclass(frozen=True)
class Activation:
    """A nonlinearity, as the kernels see it; all functions work elementwise.

    Attributes:
      name: Its name in the API.
      dual: (k, q1, q2) -> (F, Fd), arrays that broadcast.
      dual_diagonal: q -> (F, Fd) at k = q1 = q2 = q, exactly.
      mean: q -> mu.
    """

    name: str
    dual: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    dual_diagonal: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    mean: Callable[[jax.Array], jax.Array]


def _sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0: there infinity would turn gradients through a `where` into NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _relu_dual(k: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Cho and Saul 2009, eq. (6) at n = 1 and n = 0, with c = 2. The root of each q is taken first, so that the
    # product of two tiny numbers does not underflow. A zero input has r = 0 and correlation 0: F = 0, as it must.
    r = _sqrt(q1) * _sqrt(q2)
    positive = r > 0
    cos = jnp.where(positive, jnp.clip(k / jnp.where(positive, r, 1), -1, 1), 0)
    sin = _sqrt((1 - cos) * (1 + cos))
    theta = jnp.arctan2(sin, cos)
    return r * (sin + (jnp.pi - theta) * cos) / jnp.pi, (jnp.pi - theta) / jnp.pi


RELU = Activation(
    name="relu",
    dual=_relu_dual,
    dual_diagonal=lambda q: (q, jnp.ones_like(q)),
    mean=lambda q: _sqrt(q / jnp.pi),
)

ACTIVATIONS = {activation.name: activation for activation in (RELU,)}


def get_activation(name: str) -> Activation:
    """Returns a registered activation.

    Raises:
      InputError: `name` is not registered.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"Expected `activation` to be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
