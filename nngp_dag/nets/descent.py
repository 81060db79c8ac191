"""Full-batch descent of several seeds at once, the finite counterpart of the exact loss curves.

`nngp_dag.training` trains on batches of a data set, with checkpoints and evaluation.
"""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from nngp_dag.errors import InputError, shown
from nngp_dag.nets.model import as_functions

# Each seed is a network in memory.
_MOST_SEEDS = 100_000

Loss = Callable[[Array, Array], Array]


def chosen_seeds(seeds: SupportsIndex | Sequence[int]) -> list[int]:
    """Returns the seeds 0 to S - 1 for a number S, or the seeds themselves.

    Args:
      seeds: A number S, or a list of distinct whole numbers from 0 to 2^32 - 1.

    Raises:
      InputError: There is no seed, a seed occurs twice or is out of range, or there are more than 100,000.

    Examples:
      >>> chosen_seeds(3), chosen_seeds([4, 7])
      ([0, 1, 2], [4, 7])
    """
    try:
        given = range(seeds) if isinstance(seeds, SupportsIndex) else seeds
        # One more than allowed shows that there are too many, without listing all of a huge range.
        chosen = [operator.index(seed) for seed in itertools.islice(given, _MOST_SEEDS + 1)]
    except TypeError:
        raise InputError(
            f"Expected `seeds` to be a number or a list of whole numbers, got {shown(seeds)}; pass one"
        ) from None
    if len(chosen) > _MOST_SEEDS:
        raise InputError(f"Expected at most {_MOST_SEEDS:,} seeds, got {shown(seeds)}; take fewer networks")
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0 or max(chosen) >= 2**32:
        raise InputError(
            f"Expected at least one seed, all distinct and from 0 to 2^32 - 1, got {shown(seeds)}; pass their number, "
            "or a list of such seeds"
        )
    return chosen


def key_of(seed: int) -> Array:
    """Returns the random key that a seed draws a network from.

    `nngp_dag.training` splits the key of a seed, too, and draws weights from the first half and batches from the
    second. A seed so names the same network in both.
    """
    return jax.random.split(jax.random.key(seed))[0]


def squared_loss(f: Float[Array, "n c"], y: Float[Array, "n c"]) -> Float[Array, ""]:
    """Returns 0.5 ||y - f||^2, summed over samples and output columns, the loss of the theory.

    Args:
      f: Outputs, (N, C).
      y: Targets, (N, C).

    Returns:
      The loss, a scalar.

    Examples:
      >>> float(squared_loss(jnp.zeros((2, 1)), jnp.ones((2, 1))))
      1.0
    """
    return 0.5 * jnp.sum((f - y) ** 2)


@dataclass(frozen=True)
class Descent:
    """Loss curves and final parameters of full-batch descent, for S seeds.

    Attributes:
      curve: Training loss before the first step and after each one, (S, steps + 1).
      params: Parameters after the last step; every leaf has a leading axis of S seeds.

    Examples:
      >>> from nngp_dag.nets import DagNet
      >>> result = descend(lambda rngs: DagNet("2", 2, 1, width=4, rngs=rngs), np.eye(2), np.ones((2, 1)),
      ...                  optimizer=optax.sgd(0.1), steps=1, seeds=[5])
      >>> result.curve.shape, result.params["stems"][0]["linear"]["kernel"][...].shape
      ((1, 2), (1, 2, 4))
    """

    curve: Float[np.ndarray, "seeds points"]
    params: Any


def descend(
    create: Callable[[nnx.Rngs], nnx.Module],
    x: ArrayLike,
    y: ArrayLike,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    seeds: Sequence[int],
    loss: Loss = squared_loss,
    on_progress: Callable[[int, int], None] | None = None,
) -> Descent:
    """Trains one model per seed on all data at once, in one vmapped program whose steps run inside `lax.scan`.

    The steps run in up to 20 chunks of one compiled program. A shorter last chunk compiles once more.

    Args:
      create: Function that builds the model from random number streams.
      x: Inputs, (N, ...).
      y: Targets, (N, C).
      optimizer: An optax transformation, such as `optax.sgd(0.1)`.
      steps: Number of updates.
      seeds: One integer per network; equal seeds draw equal networks.
      loss: Function of outputs and targets, (N, C) each, that returns a scalar.
      on_progress: Function that is called with (steps done, steps) about twenty times.

    Returns:
      A `Descent`, the loss curves and the final parameters.

    Raises:
      InputError: Shapes do not match, a number is out of range, or training diverged to a loss that is not finite.

    Examples:
      >>> import numpy as np, optax
      >>> from nngp_dag.graph import Dag
      >>> from nngp_dag.nets import DagNet, descend
      >>> x, y = np.eye(4, dtype=np.float32), np.ones((4, 1), np.float32)
      >>> result = descend(lambda rngs: DagNet(Dag.from_code("2"), 4, 1, width=64, rngs=rngs), x, y,
      ...                  optimizer=optax.sgd(0.1), steps=20, seeds=[0, 1, 2])
      >>> result.curve.shape, bool((result.curve[:, -1] < result.curve[:, 0]).all())
      ((3, 21), True)
    """
    _check_steps(steps, seeds)
    init, apply = as_functions(create)
    keys = jnp.stack([key_of(seed) for seed in seeds])
    params = jax.jit(jax.vmap(init))(keys)
    options: Any = {"optimizer": optimizer, "steps": steps, "seeds": seeds, "loss": loss, "on_progress": on_progress}
    return descend_from(apply, params, x, y, **options)


def descend_from(
    apply: Callable[[Any, Array], Any],
    params: Any,
    x: ArrayLike,
    y: ArrayLike,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    seeds: Sequence[int],
    loss: Loss = squared_loss,
    on_progress: Callable[[int, int], None] | None = None,
) -> Descent:
    """Trains several draws of one function of parameters and inputs, like `descend`.

    Args:
      apply: Function of parameters and inputs (N, ...) that returns outputs, (N, C).
      params: Parameters, a pytree of arrays with a leading axis of S draws. Their memory is reused.
      x: Inputs, (N, ...).
      y: Targets, (N, C).
      optimizer: An optax transformation, such as `optax.sgd(0.1)`.
      steps: Number of updates.
      seeds: Seeds of the S draws, for messages.
      loss: Function of outputs and targets, (N, C) each, that returns a scalar.
      on_progress: Function that is called with (steps done, steps) about twenty times.

    Returns:
      A `Descent`, the loss curves and the final parameters.

    Raises:
      InputError: Shapes do not match, a number is out of range, or training diverged to a loss that is not finite.

    Examples:
      >>> result = descend_from(lambda w, x: x @ w, jnp.zeros((1, 2, 1)), np.eye(2), np.ones((2, 1)),
      ...                       optimizer=optax.sgd(0.5), steps=2, seeds=[0])
      >>> result.curve
      array([[1.    , 0.25  , 0.0625]], dtype=float32)
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if y.ndim != 2 or len(x) != len(y) or len(x) == 0:
        raise InputError(
            f"Expected `x` (N, ...) and `y` (N, C) with equal N, got {x.shape} and {y.shape}; pass equally many"
        )
    _check_steps(steps, seeds)

    def loss_of(params: Any) -> Array:
        return loss(apply(params, x), y)

    def step(carry: tuple, _: None) -> tuple[tuple, Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    # The new parameters take the memory of the old ones, so that only one set is held.
    @jax.jit(donate_argnums=0, static_argnums=1)
    def run_chunk(carry: tuple, length: int) -> tuple[tuple, Array]:
        return jax.lax.scan(jax.vmap(step, in_axes=(0, None)), carry, None, length=length)

    carry = params, jax.jit(jax.vmap(optimizer.init))(params)
    chunk, losses = -(-steps // 20), []
    for start_step in range(0, steps, chunk):
        stop = min(start_step + chunk, steps)
        carry, values = run_chunk(carry, stop - start_step)
        losses.append(np.asarray(values).T)
        if on_progress is not None:
            on_progress(stop, steps)
    params, _ = carry
    final = np.asarray(jax.jit(jax.vmap(loss_of))(params))
    curve = np.concatenate([*losses, final[:, None]], axis=1)
    if not np.isfinite(curve).all():
        seed, at = (int(i[0]) for i in np.nonzero(~np.isfinite(curve)))
        raise InputError(
            f"Expected training to converge, got a loss that is not finite at step {at} of seed {seeds[seed]}; "
            "lower the learning rate"
        )
    return Descent(curve, params)


def _check_steps(steps: int, seeds: Sequence[int]) -> None:
    if steps < 1 or not seeds:
        raise InputError(f"Expected at least 1 step and 1 seed, got {steps} and {len(seeds)}")
