"""Scores from gradients of the finite, untrained network."""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from nngp_dag.nas.networks.macro_net import MacroNet
from nngp_dag.nas.scores.batches import by_cells, compiled
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.theory import spectrum

# Added to eigenvalues of correlations, as Mellor et al. do.
_JITTER = 1e-5

# The axis of a batch whose images are mapped over.
_IMAGES = "images"

Measured = Iterator[dict[str, float | str]]


def empirical_ntk(net: MacroNet, x: ArrayLike, cell: Cell) -> Float[np.ndarray, "n n"]:
    """Returns the NTK of a finite network, of the sum f of its outputs: Theta_ij = <grad f(x_i), grad f(x_j)>.

    Gradients are with respect to kernels, scales of batch norm and the classifier's kernel, but not to shifts and
    biases, as in TE-NAS. Batch norm couples the images: f(x_i) depends on the whole batch, and so does its gradient.

    Memory: n times what the network holds, for all operations of all edges, and n times a pass over the batch.

    Args:
      net: The network; all cells share one compiled program.
      x: Images, (n, height, width, channels).
      cell: The cell.

    Raises:
      InputError: The images do not fit.

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021, Section 3.1.1.
    """
    graph, params = nnx.split(net)
    return _symmetric(np.asarray(_ntk(graph, (params, jnp.asarray(x)), _codes(cell))))


def gradient_products(graph: Any, params: Any, x: Array, architecture: Array, *, names: str, batch_norm: str) -> Array:
    """Returns <grad f(x_i), grad f(x_j)>, f the sum of the outputs of a network, (n, n); for compiled programs.

    Args:
      graph: The module of a network that is called with images and an architecture, normalizes by its `normalize`
        alone, which may be told `over` what axis of images, and has its weights where `nnx.split` puts them.
      params: The weights.
      x: Images, (n, height, width, channels).
      architecture: What the network is called with besides.
      names: "weight": gradients with respect to kernels, scales and the classifier's kernel, which are called weight
        where the measure comes from; "all": shifts and biases too.
      batch_norm: "live": f(x_i) depends on all images, by the statistics of the batch, and so does its gradient,
        which takes a backward pass over the batch for every image. "frozen": the statistics are those of the batch, but
        do not change with the weights; f(x_i) depends on x_i alone, and one backward pass gives all gradients.
    """
    trained, fixed = _by_name(params, lambda name: names == "all" or name not in ("shift", "bias"))

    def summed(trained: dict, x: Array) -> Array:
        net = nnx.merge(graph, _rejoined(params, trained, fixed))
        if batch_norm == "frozen" and net.batch_norm:
            net.normalize = functools.partial(net.normalize, over=_IMAGES)
        return net(x, architecture).sum(axis=1)

    if batch_norm == "frozen":
        one = jax.grad(lambda trained, image: summed(trained, image[None])[0])
        gradients = jax.vmap(one, (None, 0), axis_name=_IMAGES)(trained, x)
    else:
        _, backwards = jax.vjp(lambda trained: summed(trained, x), trained)
        [gradients] = lax.map(backwards, jnp.eye(len(x)), batch_size=passes_at_once(len(x)))
    return sum(map(inner_products, gradients.values()), jnp.zeros((len(x), len(x))))


def inner_products(gradients: Array) -> Array:
    """Returns <g_i, g_j>, (n, n), of gradients g, (n, ...).

    The last four axes are those of a kernel. Of a stack of kernels, (n, *stack, ...), those cost no product that the
    network does not use, whose gradients are all zero; but on CPU alone, and where no `jax.vmap` goes over networks.
    """
    n, stack = len(gradients), math.prod(gradients.shape[1:-4])

    def product(rows: Array) -> Array:
        return jnp.dot(rows, rows.T, precision=lax.Precision.HIGHEST)

    if stack == 1 or not on_cpu():
        return product(gradients.reshape(n, -1))
    kernels, nothing = gradients.reshape(n, stack, -1), jnp.zeros((n, n), gradients.dtype)

    def add(i: Array, total: Array) -> Array:
        rows = lax.dynamic_index_in_dim(kernels, i, axis=1, keepdims=False)
        return total + lax.cond(rows.any(), product, lambda _: nothing, rows)

    return lax.fori_loop(0, stack, add, nothing)


def passes_at_once(images: int) -> int:
    """How many images' backward passes run side by side; on CPU no more than its caches hold."""
    return min(images, 2) if on_cpu() else images


def ntk_condition(cells: Sequence[Cell], setting: Setting) -> Measured:
    """Measures the condition number of the empirical NTK of the setting's first images."""
    graph, params = nnx.split(setting.network())
    shared = params, jnp.asarray(setting.images[: setting.ntk_images])
    for ntk in by_cells(_ntk, graph, shared, map(_codes, cells), setting.at_once):
        yield {"ntk_condition": _measured(condition_of, _symmetric(ntk))}


def grad_norm(cells: Sequence[Cell], setting: Setting) -> Measured:
    """Measures the sum over kernels of the Euclidean norms of the gradients of the mean cross entropy."""
    if setting.labels is None:
        raise InputError("Expected `labels` in the setting for grad_norm, got None; pass those of the images")
    graph, params = nnx.split(setting.network())
    shared = params, jnp.asarray(setting.images), jnp.asarray(setting.labels)
    for norm in by_cells(_gradient_norm, graph, shared, map(_codes, cells), setting.at_once):
        yield {"grad_norm": _measured(_positive, norm)}


def synflow(cells: Sequence[Cell], setting: Setting) -> Measured:
    """Measures log sum of theta dR/dtheta, R the sum of outputs for an image of ones, weights |theta|, no batch norm.

    The sum is of the size of a product over layers, so it is taken in float64.
    """
    # Drawn outside, where it is the float32 draw of the other scores.
    graph, params = nnx.split(setting.network(batch_norm=False))
    with precision_of(np.dtype(np.float64)):
        params = jax.tree.map(lambda value: jnp.abs(jnp.asarray(value, jnp.float64)), params)
        x = jnp.ones((1, *setting.images.shape[1:]), jnp.float64)
    flows = by_cells(_flow, graph, (params, x), map(_codes, cells), setting.at_once)
    for _ in cells:
        with precision_of(np.dtype(np.float64)):
            flow = next(flows)
        yield {"synflow": _measured(lambda flow: np.log(_positive(flow)), flow)}


def jacob_cov(cells: Sequence[Cell], setting: Setting) -> Measured:
    """Measures -sum_i log(v_i + k) + 1 / (v_i + k), v_i the eigenvalues of the correlations of input gradients."""
    graph, params = nnx.split(setting.network())
    for jacobian in by_cells(
        _jacobian, graph, (params, jnp.asarray(setting.images)), map(_codes, cells), setting.at_once
    ):
        yield {"jacob_cov": _measured(_correlation_score, jacobian)}


def _codes(cell: Cell) -> tuple[np.ndarray]:
    return (np.array(cell.live.codes),)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _measured(number: Callable[[Any], float], computed: ArrayLike) -> float | str:
    """Returns a number made of what was computed, or why there is none."""
    try:
        return float(number(computed))
    except InputError as error:
        return str(error)


def condition_of(ntk: np.ndarray) -> float:
    """Returns lambda_max / lambda_min.

    Raises:
      InputError: λmin is not resolved, or the matrix is no kernel.
    """
    with warnings.catch_warnings():
        # What is not resolved is an error here.
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

    # Kernels of several edges lie in one array: norms over the last four axes, the classifier's over its two.
    squares = (
        jnp.square(value).sum(axis=tuple(range(-min(value.ndim, 4), 0))) for value in jax.grad(loss)(kernels).values()
    )
    return sum((jnp.sqrt(value).sum() for value in squares), jnp.zeros(()))


@compiled
def _flow(graph: Any, params: Any, x: Array, codes: Array) -> Array:
    # Without batch norm neither scales nor shifts take part; biases are 0.
    total = lambda params: nnx.merge(graph, params)(x, codes).sum()  # noqa: E731
    products = jax.tree.map(lambda value, gradient: (value * gradient).sum(), params, jax.grad(total)(params))
    return jax.tree.reduce(jnp.add, products)


@compiled
def _jacobian(graph: Any, params: Any, x: Array, codes: Array) -> Array:
    return jax.grad(lambda x: nnx.merge(graph, params)(x, codes).sum())(x)


def _by_name(params: Any, wanted: Callable[[str], bool]) -> tuple[dict, dict]:
    """Splits weights by the last part of their names."""
    flat = {jax.tree_util.keystr(path): (path, value) for path, value in jax.tree_util.tree_leaves_with_path(params)}
    chosen = {key: value for key, (path, value) in flat.items() if wanted(_last_name(path))}
    return chosen, {key: value for key, (_, value) in flat.items() if key not in chosen}


def _last_name(path: tuple[Any, ...]) -> str:
    return [str(entry.key) for entry in path if hasattr(entry, "key")][-1]


def _rejoined(params: Any, *parts: dict) -> Any:
    values = {key: value for part in parts for key, value in part.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: values[jax.tree_util.keystr(path)], params)
