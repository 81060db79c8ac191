"""Linear regions: the number of activation patterns that the ReLUs of an untrained network have on small images."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from nngp_dag.errors import InputError


def patches(
    images: Float[np.ndarray, "n h w c"], seed: int, *, batches: int = 3, size: int = 1000, side: int = 3
) -> Float[np.ndarray, "batches size side side 1"]:
    """Returns random patches of images with one channel, as TE-NAS takes them to count linear regions.

    A patch is one random channel of a random square of a random image.

    Args:
      images: Images to cut the patches out of, (n, height, width, channels).
      seed: Seed of the draws.
      batches: Number of batches. Each has its own statistics in batch norm.
      size: Number of patches per batch.
      side: Side of a patch, in pixels.

    Returns:
      The patches, (batches, size, side, side, 1).

    Raises:
      InputError: There are no images, or they are smaller than a patch.

    Examples:
      >>> patches(np.zeros((5, 8, 8, 3), np.float32), 0, size=4).shape
      (3, 4, 3, 3, 1)

    Reference: Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours, ICLR 2021, Section 3.1.2.
    """
    n, height, width, channels = images.shape
    if min(height, width) < side or not n:
        raise InputError(f"Expected `images` of at least {side} x {side} pixels, got {images.shape}")
    random = np.random.default_rng(seed)
    image, top, left, channel = (
        random.integers(limit, size=(batches, size, 1, 1))
        for limit in (
            n,
            height - side + 1,
            width - side + 1,
            channels,
        )
    )
    rows, columns = np.arange(side)[:, None], np.arange(side)
    return images[image, top + rows, left + columns, channel][..., None]


def sign_patterns(graph: Any, params: Any, x: Array, architecture: Array) -> tuple[UInt8[Array, "n bytes"], Array]:
    """Returns the activation pattern of each image, and whether all inputs of the ReLUs are finite.

    A pattern has one bit per ReLU, which is 1 where the ReLU is on, eight bits to a byte.
    """
    _, seen = nnx.merge(graph, params).observed(x, architecture)
    flat = jnp.concatenate([value.reshape(len(x), -1) for value in seen], axis=1)
    return jnp.packbits(flat > 0, axis=1), jnp.isfinite(flat).all()


def num_distinct(patterns: UInt8[np.ndarray, "n bytes"] | Bool[np.ndarray, "n bits"]) -> int:
    """Counts the distinct rows, exactly.

    Examples:
      >>> num_distinct(np.array([[True, False], [True, True], [True, False]]))
      2
    """
    # A set of bytes is exact and takes linear time; comparing all pairs by products would take quadratic time.
    return len({row.tobytes() for row in patterns})
