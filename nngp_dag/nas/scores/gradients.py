"""Scores from gradients of finite networks at initialization."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.kernels.device import on_cpu
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.nas.networks.darts_macro_net import DartsMacroNet
from nngp_dag.nas.networks.macro_net import MacroNet
from nngp_dag.nas.scores.batches import by_cells, compiled
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.any_cell import AnyCell
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.theory import spectrum

# Added to the eigenvalues of correlations, as Mellor et al. do, so that the logarithm of a zero stays finite.
_JITTER = 1e-5

# Name of the mapped axis of images, over which frozen batch norm takes its statistics.
_IMAGES = "images"

Measured = Iterator[dict[str, float | str]]


def empirical_ntk(net: MacroNet | DartsMacroNet, x: ArrayLike, cell: AnyCell) -> Float[np.ndarray, "n n"]:
    """Returns the empirical NTK of a finite network: Theta_ij = <grad f(x_i), grad f(x_j)>, f the sum of its outputs.

    The gradients are with respect to kernels, scales of batch norm and the kernel of the classifier, as in TE-NAS.
    Shifts and biases are left out. Batch norm uses the statistics of the batch: f(x_i) depends on the whole batch, and
    so does its gradient.

    Memory: n gradients of all weights, those of unused operations included, and n backward passes over the batch (on
    CPU two).

    Args:
      net: The network. All cells of one network share one compiled program.
      x: Images, (n, height, width, channels).
      cell: The cell of NAS-Bench-201, or the genotype of a `DartsMacroNet`.

    Returns:
      The symmetric matrix Theta, (n, n), float32.

    Raises:
      InputError: The images do not fit.

    Examples:
      >>> from nngp_dag.nas import Cell, MacroNet, empirical_ntk
      >>> net = MacroNet(channels=4, cells=1, rngs=nnx.Rngs(0))
      >>> x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
      >>> empirical_ntk(net, x, Cell.from_index(10353)).shape
      (3, 3)

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021, Section 3.1.1.
    """
    graph, params = nnx.split(net)
    return _symmetric(np.asarray(_ntk(graph, (params, jnp.asarray(x)), _codes(cell))))


def gradient_products(graph: Any, params: Any, x: Array, architecture: Array, *, names: str, batch_norm: str) -> Array:
    """Returns <grad f(x_i), grad f(x_j)>, (n, n), f the sum of the outputs of a network; for use in compiled programs.

    Args:
      graph: Structure of the network, as `nnx.split` returns it. The network is a function of images and an
        architecture. All its batch norms are its attribute `normalize`, which takes the name of an axis as `over`.
      params: The weights, as `nnx.split` returns them.
      x: Images, (n, height, width, channels).
      architecture: Second argument of the network.
      names: Weights that the gradients are with respect to. "weight" takes kernels, scales and the kernel of the
        classifier, whose PyTorch names end in "weight" in TE-NAS. "all" takes shifts and biases too.
      batch_norm: Batch statistics. With "live", f(x_i) and its gradient depend on all images, and each image needs a
        backward pass over the batch. With "frozen", the statistics of the batch are constants, f(x_i) depends on x_i
        alone, and one backward pass gives all gradients.
    """
    # Shifts and biases are constants here, so that JAX does not compute their gradients.
    trained, fixed = _by_name(params, lambda name: names == "all" or name not in ("shift", "bias"))

    def summed(trained: dict, x: Array) -> Array:
        net = nnx.merge(graph, _rejoined(params, trained, fixed))
        if batch_norm == "frozen" and net.batch_norm:
            net.normalize = functools.partial(net.normalize, over=_IMAGES)
        return net(x, architecture).sum(axis=1)

    if batch_norm == "frozen":
        # With frozen statistics the images do not interact, and `jax.vmap` over them is one backward pass. The mapped
        # axis has a name: batch norm still takes its statistics over the whole batch.
        one = jax.grad(lambda trained, image: summed(trained, image[None])[0])
        gradients = jax.vmap(one, (None, 0), axis_name=_IMAGES)(trained, x)
    else:
        # Row i of the Jacobian is the backward pass of the i-th unit vector; one forward pass serves all of them.
        _, backwards = jax.vjp(lambda trained: summed(trained, x), trained)
        [gradients] = lax.map(backwards, jnp.eye(len(x)), batch_size=passes_at_once(len(x)))
    return sum(map(inner_products, gradients.values()), jnp.zeros((len(x), len(x))))


def inner_products(gradients: Array) -> Array:
    """Returns the inner products <g_i, g_j>, (n, n), of gradients g, (n, ...).

    The last four axes are those of a kernel; axes between them and the first are a stack of kernels. The gradients of
    kernels that the network does not use are all zero. On CPU their products are skipped, unless `jax.vmap` maps over
    networks.
    """
    n, stack = len(gradients), math.prod(gradients.shape[1:-4])

    def product(rows: Array) -> Array:
        return jnp.dot(rows, rows.T, precision=lax.Precision.HIGHEST)

    if stack == 1 or not on_cpu():
        return product(gradients.reshape(n, -1))
    # One kernel after another, because a cell uses at most one of the two kernels of an edge.
    kernels, nothing = gradients.reshape(n, stack, -1), jnp.zeros((n, n), gradients.dtype)

    def add(i: Array, total: Array) -> Array:
        rows = lax.dynamic_index_in_dim(kernels, i, axis=1, keepdims=False)
        return total + lax.cond(rows.any(), product, lambda _: nothing, rows)

    return lax.fori_loop(0, stack, add, nothing)


def sum_of_norms(gradients: Iterable[Array]) -> Array:
    """Returns the sum of the Euclidean norms of kernels' gradients.

    The last four axes are those of a kernel, and axes before them are a stack of kernels. An array with fewer axes is
    one kernel, such as the classifier's.
    """
    squares = (jnp.square(value).sum(axis=tuple(range(-min(value.ndim, 4), 0))) for value in gradients)
    return sum((jnp.sqrt(value).sum() for value in squares), jnp.zeros(()))


def passes_at_once(images: int) -> int:
    """Returns how many backward passes run at the same time; on CPU two, because more do not fit into its caches."""
    return min(images, 2) if on_cpu() else images


def ntk_condition(cells: Sequence[AnyCell], setting: Setting) -> Measured:
    """Yields the condition number of the empirical NTK of each cell, on the first images of the setting."""
    graph, params = nnx.split(setting.network())
    shared = params, jnp.asarray(setting.images[: setting.ntk_images])
    for ntk in by_cells(_ntk, graph, shared, map(_codes, cells), setting.at_once):
        yield {"ntk_condition": _measured(condition_of, _symmetric(ntk))}


def grad_norm(cells: Sequence[AnyCell], setting: Setting) -> Measured:
    """Yields grad_norm of each cell: the sum over kernels of the Euclidean norm of the gradient of the mean loss.

    The loss is the cross entropy of the logits.
    """
    assert setting.labels is not None
    graph, params = nnx.split(setting.network())
    shared = params, jnp.asarray(setting.images), jnp.asarray(setting.labels)
    for norm in by_cells(_gradient_norm, graph, shared, map(_codes, cells), setting.at_once):
        yield {"grad_norm": _measured(_positive, norm)}


def synflow(cells: Sequence[AnyCell], setting: Setting) -> Measured:
    """Yields the logarithm of SynFlow of each cell: the sum of theta dR/dtheta over all weights theta.

    R is the sum of the outputs for an image of ones. The network has the absolute values of the weights, and no batch
    norm. SynFlow grows as a product over layers, which overflows float32, so that it is computed in float64.

    Reference: Tanaka et al., Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic Flow, NeurIPS
      2020.
    """
    # The weights are drawn before the switch to float64, so that they are the float32 draw of the other scores.
    graph, params = nnx.split(setting.network(batch_norm=False))
    with precision_of(np.dtype(np.float64)):
        params = jax.tree.map(lambda value: jnp.abs(jnp.asarray(value, jnp.float64)), params)
        x = jnp.ones((1, *setting.images.shape[1:]), jnp.float64)
    flows = by_cells(_flow, graph, (params, x), map(_codes, cells), setting.at_once)
    for _ in cells:
        with precision_of(np.dtype(np.float64)):
            flow = next(flows)
        yield {"synflow": _measured(lambda flow: np.log(_positive(flow)), flow)}


def jacob_cov(cells: Sequence[AnyCell], setting: Setting) -> Measured:
    """Yields jacob_cov of each cell: -sum_i [log(v_i + k) + 1 / (v_i + k)], with k = 1e-5.

    The v_i are the eigenvalues of the correlation matrix of the gradients of the outputs' sum with respect to the
    images.

    Reference: Mellor et al., Neural Architecture Search without Training, first version, 2020.
    """
    graph, params = nnx.split(setting.network())
    for jacobian in by_cells(
        _jacobian, graph, (params, jnp.asarray(setting.images)), map(_codes, cells), setting.at_once
    ):
        yield {"jacob_cov": _measured(_correlation_score, jacobian)}


def _codes(cell: AnyCell) -> tuple[np.ndarray]:
    return (np.array(cell.live.codes if isinstance(cell, Cell) else cell.codes),)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _measured(number: Callable[[Any], float], computed: ArrayLike) -> float | str:
    """Returns a function of the computed array as a number, or the reason why there is none."""
    try:
        return float(number(computed))
    except InputError as error:
        return str(error)


def condition_of(ntk: np.ndarray) -> float:
    """Returns the condition number λmax / λmin.

    Raises:
      InputError: λmin is not resolved, or the matrix is not a kernel.
    """
    with warnings.catch_warnings():
        # An unresolved λmin is an error below, so that a warning would repeat it.
        warnings.simplefilter("ignore", NumericalWarning)
        found = spectrum(ntk)
    if not found.resolved:
        raise InputError(f"Expected a resolved λmin, got less than {found.floor:.2g} of λmax {found.lambda_max:.2g}")
    return found.condition_number


def _positive(value: ArrayLike) -> float:
    number = float(np.asarray(value))
    if not number > 0 or not np.isfinite(number):
        raise InputError(f"Expected gradients that do not vanish and are finite, got {number:g}")
    return number


def _correlation_score(jacobian: ArrayLike) -> float:
    rows = np.asarray(jacobian, np.float64)
    rows = rows.reshape(len(rows), -1)
    spread = rows.std(axis=1)
    if not (spread > 0).all():
        raise InputError(f"Expected input gradients that vary over pixels, got none for image {int(spread.argmin())}")
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(rows)) + _JITTER
    return float(-(np.log(eigenvalues) + 1 / eigenvalues).sum())


@compiled
def _ntk(graph: Any, params: Any, x: Array, codes: Array) -> Array:
    return gradient_products(graph, params, x, codes, names="weight", batch_norm="live")


@compiled
def _gradient_norm(graph: Any, params: Any, x: Array, labels: Array, codes: Array) -> Array:
    kernels, fixed = _by_name(params, lambda name: name not in ("shift", "bias", "scale"))

    def loss(kernels: dict) -> Array:
        logits = nnx.merge(graph, _rejoined(params, kernels, fixed))(x, codes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return sum_of_norms(jax.grad(loss)(kernels).values())


@compiled
def _flow(graph: Any, params: Any, x: Array, codes: Array) -> Array:
    # All weights may enter the sum: scales and shifts have zero gradients without batch norm, and biases are 0.
    total = lambda params: nnx.merge(graph, params)(x, codes).sum()  # noqa: E731
    products = jax.tree.map(lambda value, gradient: (value * gradient).sum(), params, jax.grad(total)(params))
    return jax.tree.reduce(jnp.add, products)


@compiled
def _jacobian(graph: Any, params: Any, x: Array, codes: Array) -> Array:
    # The gradient of the sum over the batch: batch norm couples the images, so that row i is not that of image i alone.
    return jax.grad(lambda x: nnx.merge(graph, params)(x, codes).sum())(x)


def _by_name(params: Any, wanted: Callable[[str], bool]) -> tuple[dict, dict]:
    """Splits the weights into those whose last name is wanted, and the others."""
    flat = {jax.tree_util.keystr(path): (path, value) for path, value in jax.tree_util.tree_leaves_with_path(params)}
    chosen = {key: value for key, (path, value) in flat.items() if wanted(_last_name(path))}
    return chosen, {key: value for key, (_, value) in flat.items() if key not in chosen}


def _last_name(path: tuple[Any, ...]) -> str:
    return [str(entry.key) for entry in path if hasattr(entry, "key")][-1]


def _rejoined(params: Any, *parts: dict) -> Any:
    values = {key: value for part in parts for key, value in part.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: values[jax.tree_util.keystr(path)], params)
