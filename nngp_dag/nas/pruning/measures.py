"""The measures of TE-NAS on untrained networks: condition numbers of NTKs, and linear regions."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Num

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import check_option
from nngp_dag.kernels.device import on_cpu
from nngp_dag.nas.networks.cell_supernet import CellSupernet
from nngp_dag.nas.networks.darts_supernet import DartsSupernet
from nngp_dag.nas.pruning.regions import num_distinct, sign_patterns
from nngp_dag.nas.scores.gradients import condition_of, gradient_products, passes_at_once

GRADIENTS = ("all", "reference")
BATCH_NORMS = ("frozen", "live")

# The released code of TE-NAS replaces a condition number that is NaN by this number.
_REFERENCE_NAN = 1e5

AT_ONCE = 32
"""Candidates per call of a measure, between two reports of progress. A batch of a compiled program is never larger."""

# Default memory of a batch on a GPU, in bytes.
_MEMORY = 1 << 32


class Found(NamedTuple):
    """The values of a measure on several candidates.

    Attributes:
      values: One number per candidate, (candidates,). It is not finite where the measure failed.
      reasons: One text per candidate: the reason of a failure, or a note on the value. It is "" where there is none.
    """

    values: Num[np.ndarray, " candidates"]
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measures:
    """Condition numbers of NTKs and numbers of linear regions, for many architectures with one network and one batch.

    An architecture is the second argument of a network besides the images, such as the mixture of a supernet. Each
    measure is one compiled program with the architecture as an argument. It computes as many candidates in a batch as
    the memory allows. The last batch is padded, so that another number of candidates needs no new compilation.

    Attributes:
      make_net: Function of `rngs` that makes the network of the NTK.
      make_thin: Function of `rngs` that makes the network whose linear regions are counted. Its method `observed`
        returns the outputs and the inputs of the ReLUs.
      images: Batch of images of the NTK, (n, height, width, channels).
      small: Batches of small images of the regions, (batches, m, height, width, channels); see `patches`.
      gradients: Weights that the gradients are taken with respect to. "all" takes all of them. "reference" takes
        kernels, scales and the kernel of the classifier, as TE-NAS does.
      batch_norm: Batch statistics. With "live", as in TE-NAS, an output depends on the whole batch. With "frozen" the
        statistics of the batch are constants, and an output depends on its own image alone. One backward pass then
        computes all gradients, instead of one backward pass per image.
      memory: Memory of a batch of candidates, in bytes. The estimate counts the gradients of all images and the
        intermediate arrays of the forward pass, plus the size of the latter for each concurrent backward pass. At least
        one candidate is computed at a time. None for one at a time on CPU, where batches are no faster, and 4 GiB
        elsewhere.

    Raises:
      InputError: An option is unknown, there are fewer than two images, or the memory is below 0.

    Examples:
      >>> from nngp_dag.nas import MacroNet
      >>> make = functools.partial(MacroNet, channels=4, cells=1)
      >>> x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
      >>> Measures(make, make, x, x[None]).ntk_conditions(np.zeros((1, 6), np.int32), seed=0).reasons[0][:40]
      'Expected a resolved λmin, got less than '

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021, Section 3.1.
    """

    make_net: Callable[..., Any]
    make_thin: Callable[..., Any]
    images: Float[np.ndarray, "n h w c"]
    small: Float[np.ndarray, "batches m h2 w2 c2"]
    gradients: str = "all"
    batch_norm: str = "frozen"
    memory: int | None = None
    # Bytes per candidate, by program; tracing a network for them takes seconds.
    memo: dict[Any, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses unknown options, a single image and negative memory."""
        check_option("gradients", self.gradients, GRADIENTS)
        check_option("batch_norm", self.batch_norm, BATCH_NORMS)
        if len(self.images) < 2:
            raise InputError(f"Expected `images` to hold at least 2 images, got {len(self.images)}")
        if self.memory is not None and self.memory < 0:
            raise InputError(f"Expected `memory` to be a number of bytes, got {self.memory}")

    def ntk_conditions(self, architectures: Num[np.ndarray, "candidates *shape"], seed: int) -> Found:
        """Returns the condition number λmax / λmin of the NTK of the sum of the outputs.

        Args:
          architectures: Arguments of the network, one per candidate.
          seed: Seed of the weights, which all candidates share.

        Returns:
          A `Found`. A candidate gets NaN where its NTK is zero, not finite, or its λmin is not resolved. With
          `gradients="reference"` it gets the number of TE-NAS's released code instead, and the reason becomes a note.
          That code takes the ratio of float32 eigenvalues, which may be negative, and 1e5 for NaN.
        """
        graph, params = nnx.split(self.make_net(rngs=nnx.Rngs(seed)))
        names, x = "all" if self.gradients == "all" else "weight", jnp.asarray(self.images)
        # Live statistics couple the images: each needs a backward pass of its own, and some of them run at once.
        passes = passes_at_once(len(x)) if self.batch_norm == "live" else 1
        at_once = self._at_once(graph, params, x, architectures[0], len(x), 1 + passes)
        # The products are symmetric but for rounding.
        found = [
            self._condition((ntk + ntk.T) / 2)
            for (ntk,) in _in_blocks(_ntks, architectures, at_once, graph, names, self.batch_norm, params, x)
        ]
        return Found(np.array([value for value, _ in found], np.float64), tuple(reason for _, reason in found))

    def linear_regions(self, architectures: Num[np.ndarray, "candidates *shape"], seed: int) -> Found:
        """Returns the exact number of distinct activation patterns of the ReLUs over all small images.

        Distinct patterns stand for distinct linear regions, as in TE-NAS.

        Args:
          architectures: Arguments of the network, one per candidate.
          seed: Seed of the weights, which all candidates share.

        Returns:
          A `Found`. A candidate gets NaN where an input of a ReLU is not finite.
        """
        graph, params = nnx.split(self.make_thin(rngs=nnx.Rngs(seed)))
        small = jnp.asarray(self.small)
        at_once = self._at_once(graph, params, small[0], architectures[0], 0, len(small))
        found = [
            (num_distinct(patterns), "")
            if finite
            else (math.nan, "Expected finite numbers before all ReLUs, got others")
            for patterns, finite in _in_blocks(_patterns, architectures, at_once, graph, params, small)
        ]
        return Found(np.array([value for value, _ in found], np.float64), tuple(reason for _, reason in found))

    def _at_once(self, graph: Any, params: Any, x: Array, architecture: np.ndarray, gradients: int, passes: int) -> int:
        """Returns how many candidates fit into memory, by the sizes of their gradients and intermediate arrays."""
        if self.memory is None and on_cpu():
            return 1
        key = graph, gradients, passes
        if key not in self.memo:
            # The arrays in the closure of `jax.vjp` are those that a forward pass keeps. `eval_shape` computes nothing.
            kept = jax.eval_shape(lambda p: jax.vjp(lambda p: nnx.merge(graph, p)(x, architecture), p)[1], params)
            self.memo[key] = gradients * _bytes(params) + passes * _bytes(kept)
        return min(AT_ONCE, max(1, (_MEMORY if self.memory is None else self.memory) // self.memo[key]))

    def _condition(self, ntk: np.ndarray) -> tuple[float, str]:
        try:
            if np.isfinite(ntk).all() and not ntk.any():
                raise InputError("Expected gradients that do not vanish, got an NTK of zeros")
            return condition_of(ntk), ""
        except InputError as error:
            return _reference_number(ntk) if self.gradients == "reference" else math.nan, str(error)


def nasbench201_measures(
    images: Float[np.ndarray, "n h w c"],
    small: Float[np.ndarray, "batches m h2 w2 1"],
    *,
    channels: int = 3,
    classes: int = 10,
    **options: Any,
) -> Measures:
    """Returns the measures of the supernet of NAS-Bench-201, with the network sizes of TE-NAS.

    The network of the NTK has three stages of N = 1 cell. Regions are counted on one cell with C = 1, without a stem.

    Args:
      images: Batch of images of the NTK, (n, height, width, channels).
      small: Batches of small images of the regions, with one channel; see `patches`.
      channels: Channels C of the network of the NTK.
      classes: Number of its outputs.
      **options: Further arguments of `Measures`: `gradients`, `batch_norm`, `memory`.

    Raises:
      InputError: An option is unknown, or there are fewer than two images.

    Examples:
      >>> from nngp_dag.nas import get_space, nasbench201_measures, patches
      >>> x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
      >>> measures = nasbench201_measures(x, patches(x, 0, size=20))
      >>> space = get_space("nasbench201")
      >>> measures.linear_regions(space.mixture(space.full_mask()[None]), seed=0).values > 1
      array([ True])

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021.
    """
    net = functools.partial(CellSupernet, channels=channels, cells=1, classes=classes, in_channels=images.shape[-1])
    thin = functools.partial(CellSupernet, channels=1, cells=1, stages=1, classes=classes, in_channels=1, stem=False)
    return Measures(net, thin, images, small, **options)


def darts_measures(
    images: Float[np.ndarray, "n h w c"],
    small: Float[np.ndarray, "batches m h2 w2 1"],
    *,
    channels: int = 1,
    classes: int = 10,
    **options: Any,
) -> Measures:
    """Returns the measures of the DARTS supernet, with the network sizes of TE-NAS: a normal and a reduction cell.

    Regions are counted on two cells with C = 1, without a stem.

    Args:
      images: Batch of images of the NTK, (n, height, width, channels).
      small: Batches of small images of the regions, with one channel; see `patches`.
      channels: Channels C of the network of the NTK.
      classes: Number of its outputs.
      **options: Further arguments of `Measures`: `gradients`, `batch_norm`, `memory`.

    Raises:
      InputError: An option is unknown, or there are fewer than two images.

    Examples:
      >>> from nngp_dag.nas import darts_measures, patches
      >>> x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
      >>> darts_measures(x, patches(x, 0, size=20)).small.shape
      (3, 20, 3, 3, 1)

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021.
    """
    cells = functools.partial(DartsSupernet, cells=1, depth=2, classes=classes)
    net = functools.partial(cells, channels=channels, in_channels=images.shape[-1])
    return Measures(net, functools.partial(cells, channels=1, in_channels=1, stem=False), images, small, **options)


def _reference_number(ntk: np.ndarray) -> float:
    """Returns the condition number of TE-NAS's released code, which has no test whether λmin is resolved."""
    if not np.isfinite(ntk).all():
        return _REFERENCE_NAN
    eigenvalues = np.linalg.eigvalsh(ntk.astype(np.float32))
    with np.errstate(divide="ignore", invalid="ignore"):
        number = float(eigenvalues[-1] / eigenvalues[0])
    return _REFERENCE_NAN if math.isnan(number) else number


def _in_blocks(program: Callable, architectures: np.ndarray, size: int, *arguments: Any) -> Iterator[tuple]:
    """Yields the results of a program for every candidate, in blocks of one size."""
    for start in range(0, len(architectures), size):
        block = architectures[start : start + size]
        # Copies of the last candidate fill the last block: another shape would compile another program.
        filled = np.concatenate([block, np.repeat(block[-1:], size - len(block), axis=0)])
        found = [np.asarray(part) for part in program(*arguments, filled)]
        yield from zip(*(part[: len(block)] for part in found), strict=True)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ntks(graph: Any, names: str, batch_norm: str, params: Any, x: Array, architectures: Array) -> tuple[Array]:
    one = functools.partial(gradient_products, graph, params, x, names=names, batch_norm=batch_norm)
    return (_mapped(one, architectures),)


@functools.partial(jax.jit, static_argnums=0)
def _patterns(graph: Any, params: Any, small: Array, architectures: Array) -> tuple[Array, Array]:
    def one(architecture: Array) -> tuple[Array, Array]:
        patterns, finite = lax.map(lambda x: sign_patterns(graph, params, x, architecture), small)
        return patterns.reshape(-1, patterns.shape[-1]), finite.all()

    return _mapped(one, architectures)


def _mapped(function: Callable[[Array], Any], architectures: Array) -> Any:
    """Maps a function over architectures, as `jax.vmap` does; a single one is not batched.

    Under `jax.vmap` a `lax.switch` or a `lax.cond` computes all its branches; on a single architecture only one.
    """
    if len(architectures) == 1:
        return jax.tree.map(lambda value: value[None], function(architectures[0]))
    return jax.vmap(function)(architectures)
