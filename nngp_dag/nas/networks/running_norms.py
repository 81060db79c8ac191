"""Batch norm with running statistics, and drop path, for networks in training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from nngp_dag.nas.networks.layers import Normalize, normalized, torch_uniform

# Share of the old averages that a step keeps, as in PyTorch.
_KEPT = 0.9
_EPSILON = 1e-5

Drop = Callable[[Array], Array]


class RunningNorms(nnx.Module):
    """A network in training: running statistics of all its batch norms, in the order of the calls."""

    def _start(self, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> None:
        """Draws all kernels anew, as for training, and makes room for the statistics; the network is complete by then.

        The published code for training keeps PyTorch's initial kernels. The layers come from networks that are scored,
        whose kernels have variance 2 / fan-out. With these, classifiers of few classes start with large logits.
        """
        weights = nnx.state(self, nnx.Param)
        nnx.update(self, jax.tree.map(lambda w: torch_uniform(rngs, w.shape) if w.ndim > 1 else w, weights))
        sizes: list[int] = []

        def note(x: Array, scale: Array, shift: Array) -> Array:
            sizes.append(len(scale))
            return x

        jax.eval_shape(lambda: self._forward(jnp.zeros((1, *image_shape)), note, lambda x: x, True))
        self.mean, self.variance = nnx.BatchStat(jnp.zeros(sum(sizes))), nnx.BatchStat(jnp.ones(sum(sizes)))

    def _forward(self, x: Array, normalize: Normalize, drop: Drop, training: bool) -> tuple[Array, Array | None]:
        raise NotImplementedError

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Returns the logits by the running statistics; the images do not affect one another."""
        at = 0

        def normalize(x: Array, scale: Array, shift: Array) -> Array:
            nonlocal at
            place, at = slice(at, at + len(scale)), at + len(scale)
            factor = scale * jax.lax.rsqrt(self.variance[place] + _EPSILON)
            return x * factor[None, None, None] + (shift - factor * self.mean[place])[None, None, None]

        return self._forward(x, normalize, lambda x: x, False)[0]

    def train_step(
        self, x: Float[Array, "n h w c"], key: Key[Array, ""], drop_path: Float[Array, ""] | float = 0.0
    ) -> tuple[Float[Array, "n classes"], Float[Array, "n classes"] | None]:
        """Returns the logits of a batch and those of the auxiliary head, and updates the running statistics.

        Args:
          x: Images; batch norm uses their statistics.
          key: Random key of drop path.
          drop_path: Probability p that an operation is dropped for an image. Otherwise it is scaled by 1 / (1 - p).
        """
        statistics: list[tuple[Array, Array]] = []
        drawn = 0

        def normalize(x: Array, scale: Array, shift: Array) -> Array:
            # The running variance is the unbiased estimate, as in PyTorch.
            count = x.size // len(scale)
            statistics.append((x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2)) * (count / max(count - 1, 1))))
            return normalized(x, scale, shift)

        def drop(value: Array) -> Array:
            nonlocal drawn
            drawn += 1
            kept = jax.random.bernoulli(jax.random.fold_in(key, drawn), 1 - drop_path, (len(value), 1, 1, 1))
            return jnp.where(kept, value / (1 - drop_path), 0)

        logits, auxiliary = self._forward(x, normalize, drop, True)
        for running, found in zip((self.mean, self.variance), zip(*statistics, strict=True), strict=True):
            running[...] = _KEPT * running[...] + (1 - _KEPT) * jax.lax.stop_gradient(jnp.concatenate(found))
        return logits, auxiliary
