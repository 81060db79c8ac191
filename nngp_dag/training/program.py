"""Compiled programs of a task: one epoch of training for all seeds, and their evaluation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from nngp_dag import distributed
from nngp_dag.data import Splits
from nngp_dag.kernels.device import on_cpu
from nngp_dag.nets.model import Params
from nngp_dag.training.history import METRICS, PARTS
from nngp_dag.training.tasks import Batch, Task

# Inputs and labels of every part, by its name, on the device.
Device = dict[str, tuple[Array, Array]]


class State(NamedTuple):
    """State of training; every leaf has a leading axis of S seeds.

    Attributes:
      params: Trained parameters.
      stats: Running averages of batch normalization.
      optimizer: State of the optimizer, its momenta and number of steps.
    """

    params: Params
    stats: nnx.State
    optimizer: PyTree


class Best(NamedTuple):
    """State of every seed after its best epoch, the first one with the highest validation accuracy.

    Attributes:
      params: Parameters after the best epoch.
      stats: Running averages after the best epoch.
      accuracy: Validation accuracy after the best epoch, (S,); -1 before the first epoch.
      epoch: Number of the best epoch, counted from 1, (S,).
    """

    params: Params
    stats: nnx.State
    accuracy: Float[Array, " seeds"]
    epoch: Int[Array, " seeds"]


class Begun(NamedTuple):
    """What is known of an epoch after some of its steps.

    Attributes:
      steps: Number of these steps, ().
      sums: Losses, hits per class and examples per class, summed over them; every array has a leading axis of S seeds.
      losses: Loss of every batch of the epoch before its update, (steps per epoch, S); NaN for batches to come.
    """

    steps: np.ndarray
    sums: tuple[np.ndarray, ...]
    losses: np.ndarray


# Called after a step with the states, and with a function that returns what is known of the epoch.
AfterStep = Callable[[State, Best, Callable[[], Begun]], None]


class Program:
    """The compiled training of S networks of one task.

    All random numbers of epoch e come from the key of a seed and from e. The state after an epoch is therefore a
    function of the state before it, the seed and e alone. This makes resuming exact.

    Args:
      task: The task that is trained.
      num_seeds: Number S of seeds.
      mesh: Devices among which every batch is divided; None for one device. All of them hold the same states, and
        batch norm takes the statistics of the whole batch.
    """

    def __init__(self, task: Task, num_seeds: int, mesh: Mesh | None = None):
        """Stores the task; compilation waits for `compile` or the first use."""
        self.task, self.num_seeds, self.num_classes, self.mesh = task, num_seeds, task.data.num_classes, mesh
        self._optimizer = task.recipe.optimizer(task.steps_per_epoch)
        self._epoch: Callable[..., Any] | None = None
        self._evaluation: Callable[..., Any] | None = None

    @property
    def abstract_state(self) -> tuple[State, Best]:
        """Shapes and dtypes of the states that `draw` returns."""
        return jax.eval_shape(self._draw, self._keys(range(self.num_seeds)))

    def compile(self) -> None:
        """Compiles training and evaluation ahead of their first use, which would compile them otherwise."""
        self._compile_evaluation()
        if self._epoch is None:
            state, best = self.abstract_state
            keys, epoch = self._key_data(range(self.num_seeds)), jax.ShapeDtypeStruct((), jnp.int32)
            # The new state takes the memory of the old one, so that only one of each is held.
            train = self._jit(self._run_epoch, donate_argnums=(0, 1))
            self._epoch = train.lower(*self._abstract((state, best, keys, epoch, self._data()))).compile()

    def _compile_evaluation(self) -> None:
        if self._evaluation is None:
            state, _ = self.abstract_state
            arguments = self._abstract((state.params, state.stats, self._data()))
            self._evaluation = self._jit(self._evaluate_all).lower(*arguments).compile()

    def _data(self) -> PyTree:
        """Returns shapes and dtypes of the data."""
        return jax.eval_shape(lambda: on_device(self.task.data))  # type: ignore[arg-type]

    def _jit(self, function: Callable[..., Any], **options: Any) -> Any:
        """Returns a function under `jax.jit`, whose results all devices hold."""
        if self.mesh is not None:
            options["out_shardings"] = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(function, **options)

    def _abstract(self, tree: PyTree) -> PyTree:
        """Returns shapes and dtypes of arrays that all devices hold."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    def placed(self, tree: PyTree) -> PyTree:
        """Returns arrays that all devices of the mesh hold; those given if there is no mesh."""
        return tree if self.mesh is None else distributed.replicated(tree, self.mesh)

    def _divided(self, rows: Array, axis: int = 0) -> Array:
        """Divides the rows of an array among the devices, inside a compiled program."""
        if self.mesh is None:
            return rows
        sharding = NamedSharding(self.mesh, distributed.rows_spec(self.mesh, rows.shape[axis], axis))
        return jax.lax.with_sharding_constraint(rows, sharding)

    def load(self, data: Any) -> Any:
        """Copies the data of the task to all devices."""
        return self.placed(on_device(data))

    def draw(self, seeds: Sequence[int]) -> tuple[State, Best]:
        """Draws the networks of all seeds, with a best state of accuracy -1."""
        return self._draw(self._keys(seeds))

    def nothing_begun(self) -> Begun:
        """Returns what is known of an epoch before its first step."""
        sums = tuple(np.zeros((self.num_seeds, *zeros.shape), np.float32) for zeros in self._no_sums)
        return Begun(np.array(0), sums, np.full((self.task.steps_per_epoch, self.num_seeds), np.nan, np.float32))

    def run_epoch(
        self,
        state: State,
        best: Best,
        seeds: Sequence[int],
        epoch: int,
        data: Any,
        begun: Begun | None = None,
        after_step: AfterStep | None = None,
    ) -> tuple[State, Best, np.ndarray, np.ndarray]:
        """Trains all seeds for one epoch and evaluates them; the memory of the given states is reused.

        Args:
          state: State after the epoch before, or after the steps that `begun` counts.
          best: Best state so far.
          seeds: Seeds of the networks, see `draw`.
          epoch: Number of the epoch, counted from 1.
          data: The parts of the data, see `load`.
          begun: Steps of this epoch that were taken before, if its data are a stream.
          after_step: Called after every step, if the data are a stream. Data in memory train in one program per epoch.

        Returns:
          Both states, the metrics, (3 parts, 3 metrics, S), and the loss of every batch before its update, (steps, S).
        """
        self.compile()
        assert self._epoch is not None
        keys, number = self.placed((self._key_data(seeds), np.asarray(epoch, np.int32)))
        state, best, metrics, losses = self._epoch(state, best, keys, number, data)
        return state, best, np.asarray(metrics, np.float64), np.asarray(losses)

    def evaluate(self, params: Params, stats: nnx.State, data: Device) -> np.ndarray:
        """Returns the metrics of networks, (3 parts, 3 metrics, S)."""
        self._compile_evaluation()
        assert self._evaluation is not None
        return np.asarray(self._evaluation(params, stats, data), np.float64)

    def _keys(self, seeds: Sequence[int]) -> Key[Array, " seeds"]:
        return jnp.stack([jax.random.key(seed) for seed in seeds])

    def _key_data(self, seeds: Sequence[int]) -> np.ndarray:
        """Returns the keys as numbers, since typed keys cannot be placed on the devices of other processes."""
        return np.asarray(jax.random.key_data(self._keys(seeds)))

    def _draw(self, keys: Key[Array, " seeds"]) -> tuple[State, Best]:
        # The operations run one by one, and each compiles once for all networks. One program for all would take seconds
        # to compile for every network.
        drawn = [self.task.draw(key) for key in keys]
        params, stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
        best = Best(
            jax.tree.map(jnp.copy, params),
            jax.tree.map(jnp.copy, stats),
            jnp.full(self.num_seeds, -1, jnp.float32),
            jnp.zeros(self.num_seeds, jnp.int32),
        )
        return State(params, stats, jax.vmap(self._optimizer.init)(params)), best

    def _over_seeds(self, function: Callable[..., Any], *arguments: Any, data: Device | None) -> Any:
        """Maps a function over the leading axis of seeds."""
        # One seed goes without vmap, whose batched products are slower by a third. On CPU, batched convolutions take
        # about twice as long as one after another. Small dense networks gain from vmap.
        if self.num_seeds == 1:
            outputs = function(*jax.tree.map(lambda a: a[0], arguments), data)
            return jax.tree.map(lambda a: a[None], outputs)
        if self.task.of_images and on_cpu():
            return jax.lax.map(lambda a: function(*a, data), arguments)
        return jax.vmap(lambda *a: function(*a, data))(*arguments)

    def _run_epoch(
        self, state: State, best: Best, keys: Array, epoch: Int[Array, ""], data: Device
    ) -> tuple[State, Best, Array, Array]:
        keys = jax.random.wrap_key_data(keys)

        def run(state: State, best: Best, key: Array, data: Device) -> tuple[State, Best, Array, Array]:
            state, sums, losses = self._train(state, key, epoch, data)
            metrics = self._evaluate(state.params, state.stats, data, skip_train=True)
            metrics = metrics.at[PARTS.index("train")].set(metrics_of(*sums))
            return state, better(state, best, metrics, epoch), metrics, losses

        state, best, metrics, losses = self._over_seeds(run, state, best, keys, data=data)
        return state, best, jnp.moveaxis(metrics, 0, -1), losses.T

    def _train(
        self, state: State, key: Key[Array, ""], epoch: Int[Array, ""], data: Device
    ) -> tuple[State, tuple[Array, ...], Array]:
        """Takes the steps of an epoch.

        Returns:
          The state, the sums of losses, hits per class and examples per class, and the losses of the batches.
        """
        x, labels = data["train"]
        batches, last = self.task.batches(key, epoch)

        def step(carry: tuple[State, tuple[Array, ...]], batch: Batch) -> tuple[Any, Array]:
            (state, sums), (chosen, step_key) = carry, batch
            examples = lambda chosen: (self._divided(x[chosen]), labels[chosen])  # noqa: E731
            state, seen, loss = self._step(state, self._divided(chosen), examples, step_key, epoch)
            return (state, jax.tree.map(jnp.add, sums, seen)), loss

        carry, losses = jax.lax.scan(step, (state, self._no_sums), batches)
        if last is not None:
            carry, loss = step(carry, last)
            losses = jnp.append(losses, loss)
        return *carry, losses

    def _step(
        self, state: State, chosen: Any, examples: Callable[[Any], tuple[Array, Array]], key: Any, epoch: Array
    ) -> tuple[State, tuple[Array, ...], Array]:
        """Takes one step.

        Args:
          state: The state before.
          chosen: Arrays with a row for every example of the batch.
          examples: Function that turns rows of `chosen` into inputs and labels.
          key: Key of the step, or None.
          epoch: Number of the epoch.

        Returns:
          The state after, the sums of `_sums`, and the loss of the batch.
        """

        def gradient_of(stats: nnx.State, chosen: Any, key: Any) -> tuple[Any, nnx.State, tuple[Array, ...], Array]:
            inputs, targets = examples(chosen)

            def loss_of(params: Params) -> tuple[Array, tuple[Array, Array, nnx.State]]:
                net = self.task.net(params, stats)
                total, loss, outputs = self.task.loss(net, inputs, targets, key, epoch)
                return total, (loss, outputs, nnx.state(net, nnx.BatchStat))

            gradient, (loss, outputs, stats_after) = jax.grad(loss_of, has_aux=True)(state.params)
            return gradient, stats_after, self._sums(outputs, targets, loss * len(targets)), loss

        count = len(jax.tree.leaves(chosen)[0])
        part = self.task.recipe.batch_size // self.task.recipe.accumulate
        if count <= part:
            gradient, stats, seen, loss = gradient_of(state.stats, chosen, key)
        else:
            gradient, stats, seen = self._accumulated(gradient_of, state, chosen, key, part)
            loss = seen[0] / count
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        params: Params = optax.apply_updates(state.params, updates)  # type: ignore[assignment]
        return State(params, stats, optimizer), seen, loss

    def _accumulated(
        self, gradient_of: Callable[..., Any], state: State, chosen: Any, key: Any, part: int
    ) -> tuple[Any, nnx.State, tuple[Array, ...]]:
        """Returns the mean gradient, the running averages and the sums of a batch, part by part."""
        count = len(jax.tree.leaves(chosen)[0])
        whole, rest = divmod(count, part)
        keys = None if key is None else jax.random.split(key, whole + bool(rest))

        def split(rows: Array) -> Array:
            # Every whole-th row belongs to one part, so that no row leaves its device.
            return jnp.moveaxis(rows[: whole * part].reshape(part, whole, *rows.shape[1:]), 1, 0)

        def add(carry: Any, one: Any, size: int = part) -> tuple[Any, None]:
            total, stats, sums = carry
            gradient, stats, seen, _ = gradient_of(stats, *one)
            total = jax.tree.map(lambda a, b: a + size / count * b, total, gradient)
            return (total, stats, jax.tree.map(jnp.add, sums, seen)), None

        carry = (jax.tree.map(jnp.zeros_like, state.params), state.stats, self._no_sums)
        parts = jax.tree.map(lambda rows: self._divided(split(rows), 1), chosen)
        carry, _ = jax.lax.scan(add, carry, (parts, None if keys is None else keys[:whole]))
        if rest:
            last = jax.tree.map(lambda rows: rows[whole * part :], chosen)
            carry, _ = add(carry, (last, None if keys is None else keys[whole]), rest)
        return carry

    def _evaluate_all(self, params: Params, stats: nnx.State, data: Device) -> Array:
        return jnp.moveaxis(self._over_seeds(self._evaluate, params, stats, data=data), 0, -1)

    def _evaluate(self, params: Params, stats: nnx.State, data: Device, skip_train: bool = False) -> Array:
        """Returns the metrics of one network, (3 parts, 3 metrics)."""
        net = self.task.net(params, stats)
        net.eval()

        def of(x: Array, labels: Array) -> Array:
            def add(sums: tuple[Array, ...], block: Int[Array, " b"]) -> tuple[tuple[Array, ...], None]:
                # The last block is padded with examples that do not count, so that all blocks have one shape.
                block = self._divided(block)
                counts, block = block < len(x), jnp.minimum(block, len(x) - 1)
                outputs = net(self.task.inputs(self._divided(x[block])))
                losses = self.task.recipe.losses(outputs, labels[block])
                seen = self._sums(outputs, labels[block], jnp.where(counts, losses, 0).sum(), counts)
                return jax.tree.map(jnp.add, sums, seen), None

            size = self._evaluated_at_once(len(x))
            blocks = jnp.arange(-(-len(x) // size) * size).reshape(-1, size)
            sums, _ = jax.lax.scan(add, self._no_sums, blocks)
            return metrics_of(*sums)

        return jnp.stack(
            [
                jnp.zeros(len(METRICS), jnp.float32) if skip_train and part == "train" else of(*data[part])
                for part in PARTS
            ]
        )

    def _evaluated_at_once(self, examples: int) -> int:
        """Returns the number of examples of a block, a multiple of the number of devices."""
        devices = 1 if self.mesh is None else self.mesh.size
        return -(-min(self.task.evaluation_batch, examples) // devices) * devices

    @property
    def _no_sums(self) -> tuple[Array, Array, Array]:
        zeros = jnp.zeros(self.num_classes, jnp.float32)
        return jnp.zeros((), jnp.float32), zeros, zeros

    def _sums(self, outputs: Array, labels: Array, loss: Array, counts: Array | float = 1.0) -> tuple[Array, ...]:
        """Returns the summed loss, hits per class, and examples per class."""
        hits = (outputs.argmax(axis=-1) == labels).astype(jnp.float32)
        zeros, ones = jnp.zeros(self.num_classes, jnp.float32), jnp.ones(len(labels), jnp.float32)
        return loss, zeros.at[labels].add(hits * counts), zeros.at[labels].add(ones * counts)


def better(state: State, best: Best, metrics: Float[Array, "3 3"], epoch: Int[Array, ""]) -> Best:
    """Returns the best state after an epoch with these metrics."""
    accuracy = metrics[PARTS.index("validation"), METRICS.index("accuracy")]
    # Only a strictly better epoch replaces the best one, so that the first of equal ones stays.
    better = accuracy > best.accuracy
    found = Best(state.params, state.stats, accuracy, epoch)
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best)


def metrics_of(loss: Float[Array, ""], hits: Float[Array, " c"], examples: Float[Array, " c"]) -> Float[Array, " 3"]:
    """Returns the mean loss, the accuracy, and the mean accuracy of the classes that occur."""
    of_class = hits / jnp.maximum(examples, 1)
    occurs = (examples > 0).sum()
    metrics = [loss / examples.sum(), hits.sum() / examples.sum(), of_class.sum() / occurs]
    return jnp.stack(metrics).astype(jnp.float32)


def on_device(data: Splits) -> Device:
    """Copies the parts of a data set to the device, for all networks."""
    return {
        name: (jnp.asarray(part.x, jnp.float32), jnp.asarray(part.labels, jnp.int32))
        for name, part in data.parts.items()
    }
