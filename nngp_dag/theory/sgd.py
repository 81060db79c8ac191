"""Stochastic gradient descent at infinite width: the kernel's own learning curves, for either loss."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from nngp_dag import forms
from nngp_dag.errors import InputError, shown
from nngp_dag.forms import Described
from nngp_dag.graph.operations import check_option, check_whole
from nngp_dag.kernels import Kernel
from nngp_dag.kernels.inputs import host_array, precision_of
from nngp_dag.theory._cholesky import cholesky
from nngp_dag.theory.symmetric import check_kernel, check_symmetric, is_number, symmetric_part

if TYPE_CHECKING:
    import pandas

LOSSES = ("cross-entropy", "squared")


@dataclass(frozen=True, eq=False, repr=False)
class LinearizedRuns(Described):
    """Losses and accuracies of D draws of an infinitely wide, linearized network on their training data, per epoch.

    Attributes:
      losses: Mean loss per example, (E + 1, D). Entry 0 is before training. The others are running means over the
        batches of an epoch, each before its update, as `nngp_dag.train` reports them.
      accuracies: Share of examples whose largest output is that of their class, (E + 1, D), in the same running means.

    Examples:
      >>> k = Kernel(nngp=np.eye(2), ntk=np.eye(2))
      >>> runs = linearized_sgd(k, np.array([0, 1]), 0.5, batch_size=1, epochs=2, draws=4)
      >>> runs.losses.shape, runs.accuracies.shape
      ((3, 4), (3, 4))
    """

    losses: Float[np.ndarray, "points draws"]
    accuracies: Float[np.ndarray, "points draws"]

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for every epoch and draw: `draw`, `epoch`, `train_loss`, `train_accuracy`.

        The last three columns are called as in the curves of `nngp_dag.train`.

        Examples:
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

    The N x C outputs f are the whole state. They start at f(0) ~ N(0, NNGP), independently per column. A step on the
    mean loss of a batch b of B examples, whose gradient in the outputs of b is G / B, is

        m <- mu m + NTK[:, b] G / B,   f <- f - eta m,   G = softmax(f_b) - y_b   or   f_b - y_b (squared loss)

    With full batches, squared loss and mu = 0 this is Equation (17) of docs/mathematics.md for the mean loss.

    Every epoch draws a new order of the examples; its last batch may be smaller. A step costs 2 N B C D operations for
    D draws. Memory holds the two kernels and a factor of the NNGP in float64. Outputs and momenta are 2 N C D numbers,
    and a step reads B N entries of the NTK. Steps are taken in the dtype of the kernels. Before the NNGP is factorized,
    16 eps max(NNGP_ii) is added to its diagonal, which is the size of rounding errors in its entries.

    Args:
      k: The kernel of the training inputs, after the readout, (N, N), in the parameterization that is trained.
      labels: Classes, whole numbers from 0 to C - 1, (N,).
      learning_rate: Learning rate eta on the mean loss of a batch.
      batch_size: Number B of examples per batch.
      epochs: Number E of passes over the data.
      loss: Loss per example: "cross-entropy", or "squared", 0.5 ||y - f||^2 with one-hot y.
      momentum: Coefficient mu of the momentum, in [0, 1).
      num_classes: Number of outputs C; by default the largest label + 1.
      draws: Number D of initializations, each with its own order of batches.
      seed: Seed of initializations and orders.

    Returns:
      `LinearizedRuns`, the loss and accuracy of every draw before training and in each epoch.

    Raises:
      InputError: Shapes do not match, an option is out of range, or the NNGP is not positive definite. The loss does
        not stay finite, because `learning_rate` is too large.

    Examples:
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
        raise InputError(
            f"Expected `labels` to be {len(ntk)} integers, got {classes.dtype} of shape {classes.shape}; pass one "
            "class per input"
        )
    columns = int(classes.max()) + 1 if num_classes is None else num_classes
    if classes.min() < 0 or classes.max() >= columns:
        raise InputError(
            f"Expected `labels` from 0 to {columns - 1}, got {classes.min()} to {classes.max()}; raise `num_classes`, "
            "or renumber the labels"
        )
    batch_size = check_whole("batch_size", batch_size, 1)
    if not 1 <= batch_size <= len(ntk):
        raise InputError(f"Expected `batch_size` between 1 and the {len(ntk)} examples, got {batch_size}; lower it")
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
                # The order of an epoch depends on the seed and the epoch alone, not on the number of epochs.
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
    """Returns independent columns drawn from N(0, NNGP), (N, columns)."""
    # Rounding of the entries may have made small eigenvalues negative. The shift is as large as that error.
    factor = symmetric_part(nngp)
    factor[np.diag_indices_from(factor)] += 16 * np.finfo(nngp.dtype).eps * factor.diagonal().max()
    try:
        # The matrix is symmetric, and its transpose in Fortran order.
        factor = cholesky(factor.T, clean=True)
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"Expected `k.nngp` to be positive definite, got another matrix: {error}; pass the kernel of one "
            "set of inputs"
        ) from None
    return factor @ np.random.default_rng(seed).standard_normal((len(nngp), columns))


def _measure(f: Float[Array, "c b"], labels: Int[Array, " b"], loss: str) -> tuple[Array, Array]:
    """Returns the summed loss and the number of correctly classified examples of one draw."""
    own = jnp.take_along_axis(f, labels[None], axis=0)[0]
    if loss == "cross-entropy":
        values = jax.nn.logsumexp(f, axis=0) - own
    else:
        # ||y - f||^2 with one-hot y, expanded; no array of targets is needed.
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
    """Takes the steps of one epoch; returns the new state, and losses and hits summed over batches before updates."""
    draws, columns, n = carry[0].shape
    targets = jax.nn.one_hot(labels, columns, dtype=ntk.dtype, axis=0)

    def step(carry: tuple[Array, ...], batch: Int[Array, " b"]) -> tuple[tuple[Array, ...], None]:
        f, velocity, losses, hits = carry
        seen = f[:, batch]
        outputs = jax.nn.softmax(seen, axis=0) if loss == "cross-entropy" else seen
        gradient = (outputs - targets[:, batch]) / len(batch)
        # NTK[:, b] is read as the rows b, which the symmetry allows: a CPU reads rows several times faster. XLA's
        # default precision would round the factors to tf32 or bfloat16 on accelerators.
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

    # One draw after another: each draw has its own batches, so the rows of the NTK that a step reads are not shared.
    f, velocity, losses, hits = jax.lax.map(of_draw, (*carry, jax.random.split(key, draws)))
    return (f, velocity), (losses, hits)
