"""What depends on the device: how much is computed at once, and how results are allocated. `choose` alone asks."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class BlockSizes(NamedTuple):
    """How much is computed at once.

    Attributes:
      product: Entries of a block of rows of the product of inputs, large enough for matrix products.
      block: Entries of each value in the recursion that is unrolled; in a symmetric kernel, a whole tile.
      series: Values of Chebyshev polynomials for a stack of kernels that are series in the angle.
      loop: Bytes of each value in the loop, of which it keeps one for every node.
      tile: Rows that a tile of a symmetric kernel has, about: enough for matrix products, and small beside the kernel.
      stacked_tile: The same where the kernels of many networks come at once.
      multiple: What a tile's rows are a multiple of; on GPUs, of the squares of `nngp_dag.kernels.backends.pallas`.
      odd: Whether they are an odd multiple: entries of a column that lie a power of two apart share few lines of a
        CPU's cache, which takes a fifth longer.
      gpu: Whether this is for a device that is no CPU.
      cell: Side of the squares in which distances of inputs that nearly coincide are summed; 0: row by row.
    """

    product: int
    block: int
    series: int
    loop: int
    tile: int
    stacked_tile: int
    multiple: int
    odd: bool
    gpu: bool
    cell: int


# On CPUs what the loop keeps is to stay in the caches; a GPU wants work for all its cores in every call, and waits some
# 25 microseconds for every condition.
_ON_CPU = BlockSizes(
    product=1 << 19,
    block=1 << 18,
    series=1 << 22,
    loop=1 << 16,
    tile=360,
    stacked_tile=256,
    multiple=8,
    odd=True,
    gpu=False,
    cell=0,
)
_ON_GPU = BlockSizes(
    product=1 << 26,
    block=1 << 26,
    series=1 << 26,
    loop=1 << 24,
    tile=2048,
    stacked_tile=2048,
    multiple=64,
    odd=False,
    gpu=True,
    cell=16,
)


def compiles_triton() -> bool:
    """Whether JAX's default device is a GPU that XLA compiles Triton's kernels for: NVIDIA's, since capability 8.0."""
    major = str(getattr(_default_device(), "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) >= 8


def _default_device() -> Any:
    return jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]


def block_sizes() -> BlockSizes:
    """Returns the sizes for JAX's default device."""
    device = _default_device()
    return _ON_CPU if getattr(device, "platform", device) == "cpu" else _ON_GPU


def unwritten(shapes: Any, blocks: BlockSizes) -> Any:
    """Returns a pytree of arrays that are to be overwritten, and hold anything."""
    if blocks.gpu:
        return jax.tree.map(lambda v: lax.empty(v.shape, v.dtype), shapes)
    # Of different numbers: XLA would fill one array and copy it, on one thread.
    numbers = itertools.count()
    return jax.tree.map(lambda v: jnp.full(v.shape, next(numbers), v.dtype), shapes)


def on_cpu() -> bool:
    """Whether JAX computes on CPUs by default; all that depends on it asks here."""
    return jax.default_backend() == "cpu"
