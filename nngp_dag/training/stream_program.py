"""Training on images that are read batch by batch: one compiled program per step, instead of one per epoch."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from nngp_dag import distributed
from nngp_dag.data import ImageStream
from nngp_dag.nets.model import Params
from nngp_dag.training.history import METRICS, PARTS
from nngp_dag.training.program import AfterStep, Begun, Best, Program, State, better, metrics_of


class StreamProgram(Program):
    """The compiled training of S networks of one task, whose data are an `ImageStream`.

    Order and crops of epoch e come from a seed and e, and all other random numbers from the seed's key, e and the step.
    With several seeds every step reads a batch for each. Every process reads only the rows of its own devices.
    """

    def compile(self) -> None:
        """Does nothing: programs compile when the first batch arrives."""

    def load(self, data: Any) -> Any:
        """Returns the data, which stay where they are."""
        return data

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
        """As in `Program`."""
        begun = self.nothing_begun() if begun is None else begun
        keys, number = self.placed((self._key_data(seeds), np.asarray(epoch, np.int32)))
        done, sums, losses = int(begun.steps), self.placed(begun.sums), begun.losses.copy()
        # A step is not waited for, so that the next batch is read meanwhile.
        pending: list[Array] = []

        def known() -> Begun:
            nonlocal done
            for loss in pending:
                losses[done] = loss
                done += 1
            pending.clear()
            return Begun(np.array(done), jax.device_get(sums), losses)

        for step, images, labels in self._training_batches(data, seeds, epoch, done):
            at = self.placed(np.asarray(step, np.int32))
            state, sums, loss = self._compiled_step(state, sums, images, labels, keys, at, number)
            pending.append(loss)
            if after_step is not None:
                after_step(state, best, known)
        measured = self.evaluate(state.params, state.stats, data, skip_train=True)
        measured[PARTS.index("train")] = np.asarray(jax.vmap(metrics_of)(*jax.device_get(sums))).T
        numbers = np.moveaxis(measured, -1, 0).astype(np.float32)
        best = self._compiled_best(state, best, self.placed(numbers), number)
        return state, best, measured, known().losses

    def evaluate(self, params: Params, stats: nnx.State, data: Any, skip_train: bool = False) -> np.ndarray:
        """Returns the metrics of networks, (3 parts, 3 metrics, S).

        Of the training part as many images are measured as there are for validation, as stored.
        """
        found = np.zeros((len(PARTS), len(METRICS), self.num_seeds))
        for i, part in enumerate(PARTS):
            if skip_train and part == "train":
                continue
            count = min(data.sizes[part], data.sizes["validation"]) if part == "train" else data.sizes[part]
            sums, size = self.placed(self.nothing_begun().sums), self._evaluated_at_once(count)
            for at, (images, labels) in zip(
                range(0, count, size), self._stored_batches(data, part, size), strict=False
            ):
                number = self.placed(np.asarray(min(size, count - at), np.int32))
                sums = self._compiled_sums(params, stats, sums, images, labels, number)
            found[i] = np.asarray(jax.vmap(metrics_of)(*jax.device_get(sums))).T
        return found

    def _training_batches(
        self, data: ImageStream, seeds: Sequence[int], epoch: int, first: int
    ) -> Iterator[tuple[int, Array, Array]]:
        """Yields steps from `first` on with images, (S, n, size, size, 3), and labels, (S, n), of this process."""
        size, crops = self.task.recipe.batch_size, self.task.crops
        rows = self._rows(data.sizes["train"], size)
        with contextlib.ExitStack() as stack:
            streams = [
                data.batches("train", size, seed=seed, epoch=epoch, crops=crops, start=first, rows=rows)
                for seed in seeds
            ]
            for stream in streams:
                stack.enter_context(contextlib.closing(stream))  # type: ignore[type-var]
            steps = range(first, self.task.steps_per_epoch)
            for step, batches in zip(steps, zip(*streams, strict=True), strict=False):
                count = min(size, data.sizes["train"] - step * size)
                images, labels = (np.stack(arrays) for arrays in zip(*batches, strict=True))
                yield step, self._spread(images, count, 1), self._spread(labels, count, 1)

    def _stored_batches(self, data: ImageStream, part: str, size: int) -> Iterator[tuple[Array, Array]]:
        """Yields images and labels of a part; the last batch is filled up with repetitions of its last image."""
        rows = None if self.mesh is None else {size: distributed.rows_here(self.mesh, size)}
        last = data.sizes[part] % size
        if rows is not None and last:
            rows[last] = slice(0, last)
        for at, (images, labels) in enumerate(data.batches(part, size, rows=rows)):
            if last and at == data.sizes[part] // size:
                fill = np.minimum(np.arange(size), last - 1)
                fill = fill if rows is None else fill[rows[size]]
                images, labels = images[fill], labels[fill]
            yield self._spread(images, size), self._spread(labels, size)

    def _rows(self, count: int, size: int) -> dict[int, slice] | None:
        if self.mesh is None:
            return None
        return {n: distributed.rows_here(self.mesh, n) for n in {size, count % size} - {0}}

    def _spread(self, array: np.ndarray, count: int, axis: int = 0) -> Array:
        return jnp.asarray(array) if self.mesh is None else distributed.spread(array, self.mesh, count, axis)

    @functools.cached_property
    def _compiled_step(self) -> Any:
        def step(
            state: State,
            sums: Any,
            images: Array,
            labels: Array,
            keys: Array,
            at: Int[Array, ""],
            epoch: Int[Array, ""],
        ) -> Any:
            keys = jax.random.wrap_key_data(keys)

            def one(state: State, sums: Any, images: Array, labels: Array, key: Array, no_data: None) -> Any:
                # The keys of all steps of an epoch are those of data in memory; the order is left to the stream.
                step_keys: Array | None = self.task.batches(key, epoch)[0][1]
                # The smaller last batch, if there is one, has no key.
                step_key = None if step_keys is None else step_keys[at]
                state, seen, loss = self._step(state, (images, labels), lambda chosen: chosen, step_key, epoch)
                return state, jax.tree.map(jnp.add, sums, seen), loss

            return self._over_seeds(one, state, sums, images, labels, keys, data=None)

        return self._jit(step, donate_argnums=(0, 1))

    @functools.cached_property
    def _compiled_sums(self) -> Any:
        def add(params: Params, stats: nnx.State, sums: Any, images: Array, labels: Array, number: Array) -> Any:
            counts = jnp.arange(len(labels)) < number

            def one(params: Params, stats: nnx.State, sums: Any, _: None) -> Any:
                net = self.task.net(params, stats)
                net.eval()
                outputs = net(self.task.inputs(images))
                losses = self.task.recipe.losses(outputs, labels)
                seen = self._sums(outputs, labels, jnp.where(counts, losses, 0).sum(), counts)
                return jax.tree.map(jnp.add, sums, seen)

            return self._over_seeds(one, params, stats, sums, data=None)

        return self._jit(add)

    @functools.cached_property
    def _compiled_best(self) -> Any:
        def update(state: State, best: Best, measured: Array, epoch: Int[Array, ""]) -> Best:
            def one(state: State, best: Best, measured: Array, _: None) -> Best:
                return better(state, best, measured, epoch)

            return self._over_seeds(one, state, best, measured, data=None)

        return self._jit(update)
