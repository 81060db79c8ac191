"""Networks drawn at one width, and what becomes of each: linearized at infinite width, frozen, and trained.

Every network starts from its own outputs f(0), with the error e(0) = f(0) - y. Three curves of the loss follow from it:

    control    e(k + 1) = e(k) - eta NTK e(k), with the NTK of infinite width
    frozen     e(k + 1) = e(k) - eta K e(k), with the network's empirical NTK K at initialization
    trained    gradient descent in all parameters

Frozen minus control is the part of the bias that the deviation of the NTK at initialization explains; trained over
frozen is the part of its motion. The control itself has a bias, since the NNGP of a finite network deviates, too. Given
the hidden weights, f(0) is Gaussian, so that the mean of the control over readouts has a closed form.

The response is the derivative of the frozen curve in the direction K - NTK, at K = NTK. It is bilinear in e(0), and of
first order in the deviation of K, so that its mean is c / n with small corrections.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse.linalg
from flax import nnx

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.nets import DagNet, as_functions, descend_from, empirical_ntk
from nngp_dag.nets.descent import key_of

# Largest number of parameters of the networks that train at once.
_AT_ONCE = 1 << 25
# Smaller matrices are decomposed.
_SMALL = 64


@dataclass(frozen=True)
class Training:
    """Data and descent, the same for all widths.

    Attributes:
      network: The network; its width is not used.
      x: Inputs, (N, d), in float32.
      y: Targets, (N, C), in float64.
      ntk: The NTK at infinite width, (N, N).
      learning_rate: Learning rate eta.
      steps: Number of steps.
    """

    network: Network
    x: np.ndarray
    y: np.ndarray
    ntk: np.ndarray
    learning_rate: float
    steps: int

    @functools.cached_property
    def modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues and eigenvectors of the NTK."""
        eigenvalues, vectors = np.linalg.eigh(self.ntk)
        return eigenvalues, vectors


@dataclass(frozen=True)
class Sample:
    """The loss curves of S networks of one width, (S, steps + 1) each.

    Attributes:
      width: Neurons of every node.
      control: Linearized training at infinite width, from each network's f(0).
      readouts: Mean of the control over readouts, given the hidden weights.
      frozen: Linearized training of each network; infinite where it overflows.
      response: Response of the frozen curve to the deviation of the NTK.
      stable: Whether eta lambda_max of the network's NTK is below a limit, (S,).
      trained: Training of the stable networks, (stable networks, steps + 1); None if they were not trained.
    """

    width: int
    control: np.ndarray
    readouts: np.ndarray
    frozen: np.ndarray
    response: np.ndarray
    stable: np.ndarray
    trained: np.ndarray | None = None


def sample(
    training: Training,
    width: int,
    networks: int,
    seed: int,
    *,
    limit: float = 2.0,
    train: bool,
    on_progress: Callable[[int, int], None],
) -> Sample:
    """Draws networks of one width, and follows them.

    Networks beyond the limit are not trained. Beyond 2 their frozen curves grow without bound, and somewhat below the
    mode of lambda_max decays slowly, while training moves the NTK to smaller eigenvalues at once.

    Args:
      training: Data and descent.
      width: Neurons of every node.
      networks: Number S of networks.
      seed: Seed of all draws.
      limit: Largest eta lambda_max of stable networks, at most 2.
      train: Whether to train the networks.
      on_progress: Function that is called with (networks done, networks), where a trained one counts again.

    Raises:
      InputError: Training diverged.
    """
    d, units = training.x.shape[1], training.y.shape[1]

    def create(rngs: nnx.Rngs) -> DagNet:
        return DagNet(training.network, d, units, width=width, rngs=rngs)

    init, apply = as_functions(create)
    shapes = jax.eval_shape(init, jax.random.key(0))
    at_once = max(1, _AT_ONCE // sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    at_start = jax.jit(empirical_ntk(create))
    total, curves, stable, trained = networks * (1 + train), [], [], []
    for number in range(networks):
        start = at_start(_drawn(shapes, seed, width, number), training.x)
        f, nngp, ntk = (np.asarray(value, np.float64) for value in start)
        control, frozen, response = linear_curves(training, f, ntk)
        curves.append((control, mean_over_readouts(training, nngp), frozen, response))
        stable.append(training.learning_rate * largest_eigenvalue(ntk) < limit)
        on_progress(number + 1, total)
    kept = np.flatnonzero(stable).tolist()
    for start in range(0, len(kept) if train else 0, at_once):
        group = kept[start : start + at_once]
        params = [_drawn(shapes, seed, width, number) for number in group]
        stacked = jax.tree.map(lambda *of: jnp.asarray(np.stack(of)), *params)
        try:
            trained.append(_trained(apply, stacked, training, group))
        except InputError:
            raise InputError(
                f"Expected small networks, of width {width}, to train, got losses that are not finite; lower "
                "`learning_rate`, scale the targets down, or pass wider `widths`"
            ) from None
        on_progress(networks + start + len(group), total)
    control, readouts, frozen, response = np.array(curves).transpose(1, 0, 2)
    empty = np.empty((0, training.steps + 1))
    return Sample(
        width,
        control,
        readouts,
        frozen,
        response,
        np.array(stable),
        np.concatenate([empty, *trained]) if train else None,
    )


def _drawn(shapes: Any, seed: int, width: int, number: int) -> Any:
    """Returns the parameters of one network: in the parameterization "ntk", all are standard normal.

    They are drawn by NumPy. JAX would compile programs for every width, which takes longer than all the rest.
    """
    rng = np.random.default_rng([seed, width, number])
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, leaf.dtype)), shapes)


def _trained(apply: Callable[..., Any], params: Any, training: Training, seeds: Sequence[int]) -> np.ndarray:
    x, y = training.x, training.y.astype(np.float32)
    options: dict[str, Any] = {"optimizer": optax.sgd(training.learning_rate), "steps": training.steps, "seeds": seeds}
    return descend_from(apply, params, x, y, **options).curve.astype(np.float64)


def largest_eigenvalue(ntk: np.ndarray) -> float:
    """Returns lambda_max of an empirical NTK, (N, C, N, C)."""
    size = ntk.shape[0] * ntk.shape[1]
    matrix = ntk.reshape(size, size)
    if size < _SMALL:
        return float(np.linalg.eigvalsh(matrix)[-1])
    # Lanczos iterations take a hundredth of the time of a decomposition. Products by XLA do not wait for the threads of
    # BLAS, which takes many times as long where other work shares the cores.
    options: dict[str, Any] = {"which": "LA", "tol": 1e-4, "return_eigenvectors": False}
    with precision_of(np.dtype(np.float64)):
        on_device = jnp.asarray(matrix, jnp.float64)
        # Its type stubs do not know its arguments.
        operator: Any = scipy.sparse.linalg.LinearOperator
        product = operator(matrix.shape, lambda v: np.asarray(_product(on_device, v.ravel())), dtype=np.float64)
        start = np.random.default_rng(0).normal(size=size)
        return float(scipy.sparse.linalg.eigsh(product, 1, v0=start, **options)[0])


_product = jax.jit(jnp.matmul)


def linear_curves(training: Training, f: np.ndarray, ntk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns control, frozen curve and response of one network, (steps + 1,) each.

    Args:
      training: Data and descent.
      f: Outputs at initialization, (N, C).
      ntk: The empirical NTK, (N, C, N, C).
    """
    with precision_of(np.dtype(np.float64)):
        arrays = (jnp.asarray(of, jnp.float64) for of in (training.y, training.ntk, f, ntk))
        curves = np.asarray(_linear_curves(*arrays, training.learning_rate, training.steps))
    control, frozen, response = curves
    # The frozen error of an unstable network grows until float64 overflows.
    return control, np.where(np.isfinite(frozen), frozen, np.inf), response


@functools.partial(jax.jit, static_argnames="steps")
def _linear_curves(y: jax.Array, limit: jax.Array, f: jax.Array, ntk: jax.Array, eta: Any, steps: int) -> jax.Array:
    """Returns the three curves of `linear_curves`, (3, steps + 1); one program serves all widths."""
    matrix = ntk.reshape(f.size, f.size)

    def step(state: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        control, frozen, change = state
        losses = jnp.stack([0.5 * jnp.sum(control**2), 0.5 * jnp.sum(frozen**2), jnp.sum(control * change)])
        # One product for both errors reads the matrix once.
        moved = matrix @ jnp.stack([control.ravel(), frozen.ravel()], axis=1)
        along, own = moved[:, 0].reshape(f.shape), moved[:, 1].reshape(f.shape)
        change = change - eta * (limit @ (change - control) + along)
        return (control - eta * (limit @ control), frozen - eta * own, change), losses

    # The last entry is the derivative of the frozen error in the direction of ntk - limit.
    start = (f - y, f - y, jnp.zeros_like(f))
    return jax.lax.scan(step, start, None, length=steps + 1)[1].T


def mean_over_readouts(training: Training, nngp: np.ndarray) -> np.ndarray:
    """Returns the mean of the control over readouts, (steps + 1,), for the NNGP of hidden weights, (N, N)."""
    _, vectors = training.modes
    units = training.y.shape[1]
    sizes = np.sum((vectors.T @ training.y) ** 2, axis=1) + units * np.sum(vectors * (nngp @ vectors), axis=0)
    return _loss_of_modes(training, sizes)


def _loss_of_modes(training: Training, sizes: np.ndarray) -> np.ndarray:
    """Returns the loss of linearized training, (steps + 1,), from the squared error in every mode of the NTK."""
    factors = 1 - training.learning_rate * training.modes[0]
    return 0.5 * factors ** (2 * np.arange(training.steps + 1)[:, None]) @ sizes


def noise_of_readouts(training: Training, width: int, seeds: Sequence[int]) -> np.ndarray:
    """Returns the part of each network's loss that the draw of its readout explains, (S, steps + 1).

    It is the control minus its mean over readouts, so its own mean is 0. Losses minus this part have the same mean, and
    most of their spread is gone.

    Args:
      training: Data and descent.
      width: Neurons of every node.
      seeds: Seeds of the networks, as `nngp_dag.nets.descend` draws them.
    """
    d, units = training.x.shape[1], training.y.shape[1]

    def create(rngs: nnx.Rngs) -> DagNet:
        return DagNet(training.network, d, units, width=width, rngs=rngs)

    init, start_of = as_functions(create)[0], empirical_ntk(create)
    # Compiled, the NTK that is not asked for is not computed.
    outputs_of = jax.jit(lambda key, x: start_of(init(key), x)[:2])
    found = []
    for seed in seeds:
        f, nngp = (np.asarray(value, np.float64) for value in outputs_of(key_of(seed), training.x))
        sizes = np.sum((training.modes[1].T @ (f - training.y)) ** 2, axis=1)
        found.append(_loss_of_modes(training, sizes) - mean_over_readouts(training, nngp))
    return np.array(found)
