"""Random changes of brightness, contrast, saturation and hue, for images that are trained on."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.4, 0.2
"""The strengths of DARTS for ImageNet."""

# Weights of red, green and blue in the luma of ITU-R BT.601, which PIL and torchvision take for gray.
_GRAY = (0.299, 0.587, 0.114)

Image = Float[Array, "h w 3"]


def color_jittered(
    key: Key[Array, ""],
    images: Float[Array, "n h w 3"],
    *,
    brightness: float = BRIGHTNESS,
    contrast: float = CONTRAST,
    saturation: float = SATURATION,
    hue: float = HUE,
) -> Float[Array, "n h w 3"]:
    """Changes brightness, contrast, saturation and hue of every image, in an order of its own.

    For a strength s, the factors of the first three are uniform in [1 - s, 1 + s]. The shift of the hue is uniform in
    [-s, s], as a part of the full circle. Every change is clipped to [0, 1].

    Args:
      key: Random key.
      images: Images in [0, 1], red, green and blue.
      brightness: Strength s of the factor of all colors.
      contrast: Strength s of the factor of the distance from the image's mean gray.
      saturation: Strength s of the factor of the distance from the pixel's gray.
      hue: Strength s of the shift of the hue, at most 1/2.

    Examples:
      >>> color_jittered(jax.random.key(0), jnp.full((2, 4, 4, 3), 0.5)).shape
      (2, 4, 4, 3)

    Reference: `torchvision.transforms.ColorJitter`, and `train_imagenet.py` of the code of Liu, Simonyan, Yang, DARTS.
    """
    strengths = jnp.array([brightness, contrast, saturation, hue], images.dtype)
    center = jnp.array([1.0, 1.0, 1.0, 0.0], images.dtype)

    def one(key: Key[Array, ""], image: Image) -> Image:
        order_key, amount_key = jax.random.split(key)
        amounts = center + strengths * jax.random.uniform(amount_key, (4,), images.dtype, -1, 1)

        def changed(image: Image, change: Array) -> tuple[Image, None]:
            return lax.switch(change, _CHANGES, image, amounts[change]), None

        return lax.scan(changed, image, jax.random.permutation(order_key, 4))[0]

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def brightened(image: Image, factor: Float[Array, ""]) -> Image:
    """Returns the image times a factor."""
    return jnp.clip(image * factor, 0, 1)


def contrasted(image: Image, factor: Float[Array, ""]) -> Image:
    """Returns the image with its distance from its mean gray times a factor."""
    mean = _gray(image).mean()
    return jnp.clip(mean + factor * (image - mean), 0, 1)


def saturated(image: Image, factor: Float[Array, ""]) -> Image:
    """Returns the image with the distance of every pixel from its gray times a factor."""
    gray = _gray(image)[..., None]
    return jnp.clip(gray + factor * (image - gray), 0, 1)


def hue_shifted(image: Image, shift: Float[Array, ""]) -> Image:
    """Returns the image with its hue shifted by a part of the full circle; value and saturation stay."""
    value, least = image.max(axis=-1), image.min(axis=-1)
    chroma = value - least
    safe = jnp.where(chroma > 0, chroma, 1)
    red, green, blue = (image[..., i] for i in range(3))
    # The hue in sixths of the circle, from the largest of the three colors on.
    from_green, from_blue = 2 + (blue - red) / safe, 4 + (red - green) / safe
    sixths = jnp.where(value == red, (green - blue) / safe, jnp.where(value == green, from_green, from_blue))
    sixths = sixths + 6 * shift
    # The distance of a color falls linearly with the distance of the hue from it, and is 0 within a sixth.
    away = [jnp.mod(sixths + offset, 6) for offset in (5, 3, 1)]
    found = [value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1) for k in away]
    return jnp.clip(jnp.stack(found, axis=-1), 0, 1)


def _gray(image: Image) -> Float[Array, "h w"]:
    return sum(weight * image[..., i] for i, weight in enumerate(_GRAY))  # type: ignore[return-value]


_CHANGES = (brightened, contrasted, saturated, hue_shifted)
