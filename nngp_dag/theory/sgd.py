"""Stochastic gradient descent at infinite width: the kernel's own learning curves, for either loss."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, ArrayLike, Float, Int, Key

from nngp_dag import forms
from nngp_dag.errors import InputError, shown
from nngp_dag.forms import described
from nngp_dag.graph.operations import check_option, check_whole
from nngp_dag.kernels import Kernel
from nngp_dag.kernels.inputs import host_array, precision_of
from nngp_dag.theory.symmetric import check_kernel, check_symmetric, is_number, symmetric_part

if TYPE_CHECKING:
    import pandas

LOSSES = ("cross-entropy", "squared")


@described
@dataclass(frozen=True, eq=False)
class LinearizedRuns:
    """What D draws of an infinitely wide, linearized network do on their training data, epoch by epoch.

    Attributes:
      losses: Mean loss of an example, (E + 1, D). Entry 0 is before training; the others are running means over the
        batches of an epoch, each before its update, as `nngp_dag.train` reports them.
      accuracies: Share of examples whose largest output is that of their class, (E + 1, D); running
        means as for the losses.
    """

    losses: Float[np.ndarray, "points draws"]
    accuracies: Float[np.ndarray, "points draws"]

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for every epoch and draw: `draw`, `epoch`, `train_loss`, `train_accuracy`.

        The last three columns are called as in the curves of `nngp_dag.train`.

        Example:
          >>> runs = LinearizedRuns(np.array([[2.0, 3.0], [1.0, 1.5]]), np.array([[0.25, 0.0], [0.5, 0.75]]))
          >>> runs.to_frame()
             draw  epoch  train_loss  train_accuracy
          0     0      0         2.0            0.25
          1     1      0         3.0            0.00
          2     0      1         1.0            0.50
          3     1      1         1.5            0.75
        """
        import pandas

        epoch, draw = np.indices(self.losses.shape).reshape(2, -1)
        values = {"train_loss": self.losses.ravel(), "train_accuracy": self.accuracies.ravel()}
        return pandas.DataFrame({"draw": draw, "epoch": epoch} | values)

    def _facts(self) -> dict[str, str]:
        epochs, draws = len(self.losses) - 1, self.losses.shape[1]
        facts = {"epochs": str(epochs), "draws": str(draws)}
        for name, values in (("loss", self.losses), ("accuracy", self.accuracies)):
            facts[name] = f"{forms.over(values[0])} → {forms.over(values[-1])}"
        return facts


def linearized_sgd(
    k: Kernel,
    labels: ArrayLike,
    learning_rate: float,
    *,
    batch_size: int,
    epochs: int,
    loss: str = "cross-entropy",
    momentum: float = 0.0,
    num_classes: int | None = None,
    draws: int = 1,
    seed: int = 0,
) -> LinearizedRuns:
    """Simulates stochastic gradient descent of the infinitely wide, linearized network on its training data.

    In function space the N x C outputs f are all there is: f(0) ~ N(0, NNGP) independently per column, and a step on
    the mean loss of a batch b of B examples, with G its gradient in the outputs of b, is

        f <- f - eta m,   m <- mu m + NTK[:, b] G / B,   G = softmax(f_b) - y_b   or   f_b - y_b (squared loss)

    Every epoch draws a new order; its last batch holds what is left. A step costs 2 N B C D operations; memory holds
    the two kernels, one factor of the NNGP in float64, 2 N C D outputs and momenta, and B N entries of the NTK. The
    steps are taken in the dtype of the kernels. The factor is of NNGP + 16 eps max(NNGP_ii) I, eps that of the kernels:
    what rounding of their entries leaves open.

    Args:
      k: The kernel of the training inputs, after the readout, (N, N); of the parameterization that is trained.
      labels: Classes, (N,).
      learning_rate: eta, on the mean loss of a batch.
      batch_size: B.
      epochs: Passes over the data, E.
      loss: Loss of an example: "cross-entropy", or "squared", 0.5 ||y - f||^2 with y one-hot.
      momentum: mu, in [0, 1).
      num_classes: Number of outputs C; by default the largest label + 1.
      draws: Number D of initializations, each with its own order of batches.
      seed: Seed of initializations and orders.

    Returns:
      `LinearizedRuns`.

    Raises:
      InputError: Shapes do not match, an option is out of range, the NNGP is not positive definite, or the outputs do
        not stay finite: `learning_rate` is too large.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> data = nd.data.load_splits("digits", subset=200).train
      >>> k = nd.kernel(nd.Dag.from_code("2_12"), data.x.reshape(200, -1), b_std=0.0)
      >>> runs = linearized_sgd(k, data.labels, 0.1, batch_size=50, epochs=5, draws=3)
      >>> runs.losses.shape, bool((runs.losses[-1] < runs.losses[0]).all())
      ((6, 3), True)

    Reference: Lee et al., NeurIPS 2019, Sections 2.2 and 2.3 (linearized training, also under other losses).
    """
    check_kernel("k", k)
    nngp, ntk = check_symmetric("k.nngp", k.nngp), check_symmetric("k.ntk", k.ntk)
    classes = host_array("labels", labels)
    if classes.shape != (len(ntk),) or not np.issubdtype(classes.dtype, np.integer):
        raise InputError(f"Expected `labels` to be {len(ntk)} integers, got {classes.dtype} of shape {classes.shape}")
    columns = int(classes.max()) + 1 if num_classes is None else num_classes
    if classes.min() < 0 or classes.max() >= columns:
        raise InputError(f"Expected `labels` from 0 to {columns - 1}, got {classes.min()} to {classes.max()}")
    batch_size = check_whole("batch_size", batch_size, 1)
    if not 1 <= batch_size <= len(ntk):
        raise InputError(f"Expected `batch_size` between 1 and the {len(ntk)} examples, got {batch_size}")
    if epochs < 1 or draws < 1:
        raise InputError(f"Expected `epochs` and `draws` to be at least 1, got {epochs} and {draws}")
    check_option("loss", loss, LOSSES)
    numbers = is_number("learning_rate", learning_rate) and is_number("momentum", momentum)
    if not (numbers and np.isfinite(learning_rate) and learning_rate > 0 and 0 <= momentum < 1):
        raise InputError(
            f"Expected `learning_rate` finite and above 0 and `momentum` in [0, 1), got "
            f"{shown(learning_rate)} and {shown(momentum)}"
        )
    start = _draw(nngp, draws * columns, seed).T.reshape(draws, columns, len(ntk))
    with precision_of(ntk.dtype):
        carry = jnp.asarray(start, ntk.dtype), jnp.zeros(start.shape, ntk.dtype)
        fixed = jnp.asarray(ntk), jnp.asarray(classes, jnp.int32)
        losses, hits = [], []
        step_sizes = jnp.asarray([learning_rate, momentum], ntk.dtype)
        values = jax.vmap(partial(_measure, loss=loss), in_axes=(0, None))(carry[0], fixed[1])
        for epoch in range(epochs + 1):
            if epoch:
                key = jax.random.fold_in(jax.random.key(seed), epoch)
                carry, values = _epoch(carry, *fixed, key, step_sizes, batch_size=batch_size, loss=loss)
            losses.append(np.asarray(values[0], np.float64) / len(ntk))
            hits.append(np.asarray(values[1], np.float64) / len(ntk))
            if not np.isfinite(losses[-1]).all():
                raise InputError(
                    f"Expected the loss to stay finite, got {losses[-1].max()} in epoch {epoch}; lower `learning_rate`"
                )
    return LinearizedRuns(np.stack(losses), np.stack(hits))


def _draw(nngp: np.ndarray, columns: int, seed: int) -> np.ndarray:
    """Returns independent columns of N(0, NNGP), (N, columns)."""
    factor = symmetric_part(nngp)
    factor[np.diag_indices_from(factor)] += 16 * np.finfo(nngp.dtype).eps * factor.diagonal().max()
    try:
        factor = scipy.linalg.cholesky(factor, lower=True, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError as error:
        raise InputError(f"Expected `k.nngp` to be positive definite, got one that is not: {error}") from None
    return factor @ np.random.default_rng(seed).standard_normal((len(nngp), columns))


def _measure(f: Float[Array, "c b"], labels: Int[Array, " b"], loss: str) -> tuple[Array, Array]:
    """Returns summed loss and number of hits."""
    own = jnp.take_along_axis(f, labels[None], axis=0)[0]
    if loss == "cross-entropy":
        values = jax.nn.logsumexp(f, axis=0) - own
    else:
        values = 0.5 * (jnp.sum(f**2, axis=0) - 2 * own + 1)
    return values.sum(), (f.argmax(axis=0) == labels).sum(dtype=jnp.int32)


@partial(jax.jit, static_argnames=("batch_size", "loss"), donate_argnums=0)
def _epoch(
    carry: tuple[Array, Array],
    ntk: Float[Array, "n n"],
    labels: Int[Array, " n"],
    key: Key[Array, ""],
    step_sizes: Float[Array, " 2"],
    *,
    batch_size: int,
    loss: str,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Takes the steps of one epoch; returns summed losses and hits, each batch before its update."""
    draws, columns, n = carry[0].shape
    targets = jax.nn.one_hot(labels, columns, dtype=ntk.dtype, axis=0)

    def step(carry: tuple[Array, ...], batch: Int[Array, " b"]) -> tuple[tuple[Array, ...], None]:
        f, velocity, losses, hits = carry
        seen = f[:, batch]
        outputs = jax.nn.softmax(seen, axis=0) if loss == "cross-entropy" else seen
        gradient = (outputs - targets[:, batch]) / len(batch)
        # Both factors are read along their rows, which a CPU does several times faster.
        velocity = step_sizes[1] * velocity + jnp.matmul(gradient, ntk[batch], precision="highest")
        value, hit = _measure(seen, labels[batch], loss)
        return (f - step_sizes[0] * velocity, velocity, losses + value, hits + hit), None

    def of_draw(of: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        f, velocity, key = of
        order = jax.random.permutation(key, n)
        whole = n // batch_size * batch_size
        start = f, velocity, jnp.zeros((), ntk.dtype), jnp.zeros((), jnp.int32)
        end, _ = jax.lax.scan(step, start, order[:whole].reshape(-1, batch_size))
        return step(end, order[whole:])[0] if whole < n else end

    # One draw after another: a step reads B rows of the NTK, other rows in each draw, so that nothing is shared.
    f, velocity, losses, hits = jax.lax.map(of_draw, (*carry, jax.random.split(key, draws)))
    return (f, velocity), (losses, hits)
