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

# What TE-NAS goes on with where the condition number is not a number.
_REFERENCE_NAN = 1e5

AT_ONCE = 32
"""Candidates that a search asks for at once, between two signs of progress; more are never computed side by side."""

# Bytes, on what is no CPU.
_MEMORY = 1 << 32


class Found(NamedTuple):
    """What a measure found.

    Attributes:
      values: A number per candidate, (candidates,); not finite where there is no sound one.
      reasons: Why there is none, or a note on the one there is; "" where there is nothing to say.
    """

    values: Num[np.ndarray, " candidates"]
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measures:
    """Condition numbers of NTKs and linear regions, of many architectures that share networks and images.

    An architecture is what a network is called with besides images, such as the mixture of a supernet: an argument of
    one compiled program per measure, which computes as many candidates side by side as the memory allows. The last ones
    are filled up, so that another number of candidates compiles nothing.

    Attributes:
      make_net: Called with `rngs`, makes the network of the NTK.
      make_thin: Makes the network whose linear regions are counted. Its `observed` returns the outputs and what enters
        the ReLUs.
      images: The batch of the NTK, (n, height, width, channels).
      small: Batches of images of the regions, (batches, m, height, width, channels); see `patches`.
      gradients: With respect to "all" weights, or "reference": kernels, scales and the classifier's kernel, as TE-NAS.
      batch_norm: "live", as TE-NAS: an output depends on the whole batch. "frozen": on its own image alone, with the
        statistics of the batch as constants, which takes one backward pass instead of one for every image.
      memory: Bytes that candidates side by side may take, by an estimate: gradients of all images, what a pass keeps
        for the backward pass, and as much for every backward pass that runs at once. One candidate is computed in any
        case. On CPU more side by side are no faster, so that the default is to compute one by one; elsewhere it is
        4 GiB.

    Raises:
      InputError: An option is unknown, there are fewer than two images, or the memory is below 0.

    Example:
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
    # Sizes that were found by tracing.
    memo: dict[Any, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        check_option("gradients", self.gradients, GRADIENTS)
        check_option("batch_norm", self.batch_norm, BATCH_NORMS)
        if len(self.images) < 2:
            raise InputError(f"Expected `images` to hold at least 2, whose gradients compare, got {len(self.images)}")
        if self.memory is not None and self.memory < 0:
            raise InputError(f"Expected `memory` to be a number of bytes, got {self.memory}")

    def ntk_conditions(self, architectures: Num[np.ndarray, "candidates *shape"], seed: int) -> Found:
        """Returns lambda_max / lambda_min of the NTK of the sum of the outputs.

        Args:
          architectures: One per candidate.
          seed: Seed of the weights, which all candidates share; another seed draws others.

        Returns:
          A `Found`. A candidate whose NTK is zero, not finite, or has no resolved λmin, gets NaN; with gradients
          "reference" the number that TE-NAS goes on with, of eigenvalues in float32, negative ones too, and 1e5 for
          NaN; the reason is a note then.
        """
        graph, params = nnx.split(self.make_net(rngs=nnx.Rngs(seed)))
        names, x = "all" if self.gradients == "all" else "weight", jnp.asarray(self.images)
        passes = passes_at_once(len(x)) if self.batch_norm == "live" else 1
        at_once = self._at_once(graph, params, x, architectures[0], len(x), 1 + passes)
        found = [
            self._condition((ntk + ntk.T) / 2)
            for (ntk,) in _in_blocks(_ntks, architectures, at_once, graph, names, self.batch_norm, params, x)
        ]
        return Found(np.array([value for value, _ in found], np.float64), tuple(reason for _, reason in found))

    def linear_regions(self, architectures: Num[np.ndarray, "candidates *shape"], seed: int) -> Found:
        """Returns how many different sets of ReLUs the small images turn on, exactly.

        The arguments are those of `ntk_conditions`. Where a number before a ReLU is not finite there is NaN.
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
        """How many candidates fit: each takes its gradients, and what its passes keep for the backward pass."""
        if self.memory is None and on_cpu():
            return 1
        key = graph, gradients, passes
        if key not in self.memo:
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
    """Returns the measures of NAS-Bench-201's supernet as TE-NAS takes them: N = 1, and one cell of C = 1 for regions.

    Args:
      images: The batch of the NTK.
      small: For the regions; see `patches`.
      channels: C of the supernet of the NTK.
      classes: Its outputs.
      **options: Of `Measures`.
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
    """Returns the measures of the DARTS supernet as TE-NAS takes them: a normal and a reduction cell of C = 1.

    The arguments are those of `nasbench201_measures`.
    """
    cells = functools.partial(DartsSupernet, cells=1, depth=2, classes=classes)
    net = functools.partial(cells, channels=channels, in_channels=images.shape[-1])
    return Measures(net, functools.partial(cells, channels=1, in_channels=1, stem=False), images, small, **options)


def _reference_number(ntk: np.ndarray) -> float:
    """What TE-NAS makes of an NTK, sound or not."""
    if not np.isfinite(ntk).all():
        return _REFERENCE_NAN
    eigenvalues = np.linalg.eigvalsh(ntk.astype(np.float32))
    with np.errstate(divide="ignore", invalid="ignore"):
        number = float(eigenvalues[-1] / eigenvalues[0])
    return _REFERENCE_NAN if math.isnan(number) else number


def _in_blocks(program: Callable, architectures: np.ndarray, size: int, *arguments: Any) -> Iterator[tuple]:
    """Yields what a program finds of every candidate, in blocks of one size; the last is filled up with its last."""
    for start in range(0, len(architectures), size):
        block = architectures[start : start + size]
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
    """As `jax.vmap`; one alone is computed as such, where a network may leave out what it is not called to do."""
    if len(architectures) == 1:
        return jax.tree.map(lambda value: value[None], function(architectures[0]))
    return jax.vmap(function)(architectures)
