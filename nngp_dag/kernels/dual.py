"""Dual activations: Gaussian expectations of a nonlinearity, in closed form.

For (u, v) ~ N(0, [[q1, k], [k, q2]]) and an activation phi with normaliser c:

    F  = c E[phi(u) phi(v)]        second moment of one edge's output
    Fd = c E[phi'(u) phi'(v)]      what a weighted edge multiplies the NTK by
    mu = sqrt(c) E[phi(u)]         mean of one edge's output

Beside k goes the half distance D = E[(u - v)^2] / 2 = (q1 + q2) / 2 - k. For two inputs that nearly coincide, k has
rounded their angle away, and D still holds it.
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
      dual: (k, D, q1, q2) -> (F, D of F, Fd), arrays that broadcast.
      dual_diagonal: q -> (F, Fd) at k = q1 = q2 = q, exactly.
      mean: q -> mu.
    """

    name: str
    dual: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
    dual_diagonal: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    mean: Callable[[jax.Array], jax.Array]


def root(x: jax.Array) -> jax.Array:
    """Returns the square root, with derivative 0 at 0: infinity there would make gradients through a `where` NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _relu_dual(
    k: jax.Array, half_distance: jax.Array, q1: jax.Array, q2: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Cho and Saul 2009, eq. (6) at n = 1 and n = 0, with c = 2, written as F = k + r h(theta).
    # Roots before the product, so that two tiny numbers do not underflow.
    s1, s2 = root(q1), root(q2)
    r = s1 * s2
    positive = r > 0
    safe_r = jnp.where(positive, r, 1)
    # The gap 1 - cos(theta) comes from D where the inputs are close in angle and in norm, else from k.
    close = half_distance < r / 2
    cos_from_k = jnp.where(positive, jnp.clip(k / safe_r, -1, 1), 0)
    gap_from_distance = jnp.clip((half_distance - (s1 - s2) ** 2 / 2) / safe_r, 0, 2)
    gap = jnp.where(close, gap_from_distance, 1 - cos_from_k)
    cos = jnp.where(close, 1 - gap_from_distance, cos_from_k)
    sin = root(gap * (1 + cos))
    theta = jnp.arctan2(sin, cos)
    r_h = r * (sin - theta * cos) / jnp.pi
    # A zero input has r = k = 0, so F = 0, as it must.
    return k + r_h, half_distance - r_h, 1 - theta / jnp.pi


RELU = Activation(
    name="relu",
    dual=_relu_dual,
    dual_diagonal=lambda q: (q, jnp.ones_like(q)),
    mean=lambda q: root(q / jnp.pi),
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
