"""Training of several seeds at once, as one compiled program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from nngp_dag.errors import InputError
from nngp_dag.nets.model import Params, as_functions

Loss = Callable[[Array, Array], Array]


def squared_loss(f: Float[Array, "n c"], y: Float[Array, "n c"]) -> Float[Array, ""]:
    """Returns 0.5 ||y - f||^2, summed over samples and output columns, as the theory has it."""
    return 0.5 * jnp.sum((f - y) ** 2)


def cross_entropy(f: Float[Array, "n c"], y: Float[Array, "n c"]) -> Float[Array, ""]:
    """Returns the mean cross entropy of logits `f` against target distributions `y`."""
    return jnp.mean(optax.softmax_cross_entropy(f, y))


@dataclass(frozen=True)
class TrainResult:
    """What training leaves behind, for S seeds.

    Attributes:
      losses: Loss on the batch of each step, before the update, (S, steps). In full-batch training this is the
        training loss.
      final_loss: Loss on all data after the last update, (S,).
      params: The trained parameters, every leaf with leading axis S.
    """

    losses: Float[np.ndarray, "seeds steps"]
    final_loss: Float[np.ndarray, " seeds"]
    params: Params

    @property
    def curve(self) -> Float[np.ndarray, "seeds points"]:
        """Losses before the first step and after each one of full-batch training, (S, steps + 1)."""
        return np.concatenate([self.losses, self.final_loss[:, None]], axis=1)


def train(
    create: Callable[[nnx.Rngs], nnx.Module],
    x: ArrayLike,
    y: ArrayLike,
    *,
    optimiser: optax.GradientTransformation,
    steps: int,
    seeds: Sequence[int],
    batch_size: int | None = None,
    loss: Loss = squared_loss,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Trains one model per seed, all in one vmapped program whose steps run inside `lax.scan`.

    The data stay on the device. The steps compile once, and a second time where 20 does not divide them evenly. Each
    seed draws its own weights and, in mini-batch training, its own order of the data: every epoch is a fresh
    permutation, cut into whole batches.

    Args:
      create: Builds the model from random number streams.
      x: Inputs, (N, ...).
      y: Targets, (N, C).
      optimiser: An optax transformation, such as `optax.sgd(0.1)`.
      steps: Number of updates.
      seeds: One integer per network; the same seed gives the same network and the same batches.
      batch_size: Examples a step, or None for full-batch training.
      loss: (outputs, targets) -> scalar.
      on_progress: Called with (steps done, steps) about twenty times.

    Returns:
      A `TrainResult`.

    Raises:
      InputError: Shapes do not match, a number is out of range, or a loss is not finite: training diverged.

    Example:
      >>> import numpy as np, optax
      >>> from nngp_dag.graph import Dag
      >>> from nngp_dag.nets import DagNet, train
      >>> x, y = np.eye(4, dtype=np.float32), np.ones((4, 1), np.float32)
      >>> result = train(lambda rngs: DagNet(Dag.from_code("2"), 4, 1, width=64, rngs=rngs), x, y,
      ...                optimiser=optax.sgd(0.1), steps=20, seeds=[0, 1, 2])
      >>> result.curve.shape, bool((result.curve[:, -1] < result.curve[:, 0]).all())
      ((3, 21), True)
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if y.ndim != 2 or len(x) != len(y) or len(x) == 0:
        raise InputError(f"Expected `x` (N, ...) and `y` (N, C) with equal N, got {x.shape} and {y.shape}")
    if steps < 1 or not seeds:
        raise InputError(f"Expected at least 1 step and 1 seed, got {steps} and {len(seeds)}")
    if batch_size is not None and not 1 <= batch_size <= len(x):
        raise InputError(f"Expected `batch_size` between 1 and the {len(x)} examples, got {batch_size}")

    init, apply = as_functions(create)

    def loss_of(params: Params, batch: Int[Array, " b"] | None) -> Array:
        inputs, targets = (x, y) if batch is None else (x[batch], y[batch])
        return loss(apply(params, inputs), targets)

    def step(carry: tuple, batch: Int[Array, " b"] | None) -> tuple[tuple, Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    chunk = -(-steps // 20)

    @jax.jit
    def start(keys: Array) -> tuple:
        params = jax.vmap(init)(keys)
        return params, jax.vmap(optimiser.init)(params)

    # The old parameters are given up to the new ones, so that memory holds one set.
    @jax.jit(donate_argnums=0, static_argnums=2)
    def run_chunk(carry: tuple, batches: Int[Array, "chunk seeds b"] | None, length: int) -> tuple[tuple, Array]:
        return jax.lax.scan(jax.vmap(step), carry, batches, length=length)

    init_keys, batch_keys = jnp.moveaxis(
        jax.vmap(jax.random.split)(jnp.stack([jax.random.key(seed) for seed in seeds])), 1, 0
    )
    batches = None if batch_size is None else _batches(batch_keys, len(x), batch_size, steps)
    carry, losses = start(init_keys), []
    for start_step in range(0, steps, chunk):
        stop = min(start_step + chunk, steps)
        carry, values = run_chunk(carry, None if batches is None else batches[start_step:stop], stop - start_step)
        losses.append(np.asarray(values).T)
        if on_progress is not None:
            on_progress(stop, steps)
    params, _ = carry
    final = np.asarray(jax.jit(jax.vmap(lambda p: loss_of(p, None)))(params))
    result = TrainResult(np.concatenate(losses, axis=1), final, params)
    if not np.isfinite(result.curve).all():
        seed, at = (int(i[0]) for i in np.nonzero(~np.isfinite(result.curve)))
        raise InputError(
            f"Expected training to converge, got a loss that is not finite at step {at} of seed {seeds[seed]}; "
            "lower the learning rate"
        )
    return result


def _batches(keys: Array, num_examples: int, batch_size: int, steps: int) -> Int[Array, "steps seeds b"]:
    """Draws the examples of every step: a permutation an epoch, cut into whole batches."""
    per_epoch = num_examples // batch_size
    epochs = -(-steps // per_epoch)

    def of_seed(key: Array) -> Array:
        orders = jax.vmap(lambda k: jax.random.permutation(k, num_examples))(jax.random.split(key, epochs))
        return orders[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]

    return jnp.swapaxes(jax.vmap(of_seed)(keys), 0, 1)
