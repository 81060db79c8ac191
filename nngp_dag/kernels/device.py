"""The dependence on the device: sizes of blocks, and the allocation of results."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class BlockSizes(NamedTuple):
    """The sizes of blocks that are computed at once.

    Attributes:
      product: Entries of a block of rows of the product of inputs; enough for efficient matrix products.
      block: Entries of each value in the unrolled recursion; in a symmetric kernel, a whole tile.
      series: Values of Chebyshev polynomials, for the stacked kernels of many networks.
      loop: Bytes of each value in the loop, which keeps one value for every slot.
      tile: Approximate rows of a tile of a symmetric kernel; enough for efficient matrix products, and few compared to
        the kernel.
      stacked_tile: Approximate rows of a tile for the stacked kernels of many networks.
      multiple: A divisor of a tile's rows; on GPUs, a multiple of the squares of `nngp_dag.kernels.backends.pallas`.
      odd: Whether a tile's rows are an odd multiple of `multiple`. Entries of a column that are a power of two apart
        compete for few lines of a CPU's cache, which takes a fifth longer.
      gpu: Whether the sizes are for a device other than a CPU.
      cell: Side of the squares in which distances of nearly equal inputs are summed; 0 means row by row.
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


# On a CPU the loop's values should stay in the caches. A GPU needs work for all its cores in every call, and a
# condition costs it about 25 microseconds.
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
    """Whether XLA compiles Triton kernels for JAX's default device: an NVIDIA GPU of capability 8.0 or later."""
    major = str(getattr(_default_device(), "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) >= 8


def _default_device() -> Any:
    return jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]


def block_sizes() -> BlockSizes:
    """Returns the sizes of blocks for JAX's default device."""
    device = _default_device()
    return _ON_CPU if getattr(device, "platform", device) == "cpu" else _ON_GPU


def unwritten(shapes: Any, blocks: BlockSizes) -> Any:
    """Returns a pytree of arrays with arbitrary content, which the caller overwrites."""
    if blocks.gpu:
        return jax.tree.map(lambda v: lax.empty(v.shape, v.dtype), shapes)
    # Every array is filled with a number of its own. Of equal arrays XLA would copy one, on a single thread.
    numbers = itertools.count()
    return jax.tree.map(lambda v: jnp.full(v.shape, next(numbers), v.dtype), shapes)


def on_cpu() -> bool:
    """Whether JAX computes on CPUs by default."""
    return jax.default_backend() == "cpu"
