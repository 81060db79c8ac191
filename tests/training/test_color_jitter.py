"""Random changes of colors, against formulas for one pixel and the statistics of their strengths."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nngp_dag.training.color_jitter import (
    HUE,
    brightened,
    color_jittered,
    contrasted,
    hue_shifted,
    saturated,
)

JITTERED = jax.jit(color_jittered, static_argnames=("brightness", "contrast", "saturation", "hue"))
PIXELS = np.random.default_rng(0).uniform(size=(5, 4, 3)).astype(np.float32)
GRAY = PIXELS @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("shift", [-0.2, 0.05, 0.2, 0.5])
def test_hue_is_shifted_as_by_the_standard_library(shift):
    extremes = np.array([[[0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [1, 0, 0]]], np.float32)
    image = np.concatenate([PIXELS, extremes])
    expected = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place].tolist())
        expected[place] = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
    np.testing.assert_allclose(hue_shifted(jnp.asarray(image), jnp.float32(shift)), expected, atol=2e-6)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_factors_scale_the_distance_from_black_from_the_mean_gray_and_from_the_gray_of_the_pixel(factor):
    image, amount = jnp.asarray(PIXELS), jnp.float32(factor)
    for change, center in ((brightened, 0.0), (contrasted, GRAY.mean()), (saturated, GRAY[..., None])):
        expected = np.clip(center + factor * (PIXELS - center), 0, 1)
        np.testing.assert_allclose(change(image, amount), expected, atol=1e-6)


def test_strengths_are_uniform_and_images_differ():
    # One change at a time, on a pixel that no clipping reaches.
    pixel = jnp.broadcast_to(jnp.array([0.5, 0.4, 0.3]), (2000, 1, 1, 3))
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    found = np.asarray(JITTERED(jax.random.key(0), pixel, **none | {"brightness": 0.4}))[:, 0, 0, 0] / 0.5
    # The range, the mean and the standard deviation of a uniform number; 4 standard errors.
    assert found.min() == pytest.approx(0.6, abs=0.003)
    assert found.max() == pytest.approx(1.4, abs=0.003)
    assert found.mean() == pytest.approx(1, abs=4 * 0.8 / 12**0.5 / 2000**0.5)
    assert found.std() == pytest.approx(0.8 / 12**0.5, rel=0.05)
    hues = np.asarray(JITTERED(jax.random.key(1), pixel, **none | {"hue": HUE}))[:, 0, 0]
    turned = np.array([colorsys.rgb_to_hsv(*color.tolist())[0] for color in hues])
    turned = (turned - colorsys.rgb_to_hsv(0.5, 0.4, 0.3)[0] + 0.5) % 1 - 0.5
    assert (turned.min(), turned.max()) == pytest.approx((-0.2, 0.2), abs=0.002)
    assert turned.std() == pytest.approx(0.4 / 12**0.5, rel=0.05)


def test_brightness_changes_before_contrast_for_half_of_the_images():
    # A pixel of 0.9 and one of 0.1, b in [0.8, 1.2] and c in [0, 2]. For c > 1.25 the dark pixel becomes 0. The bright
    # one then stays below 1 if b < 1, where contrast comes first, and if b (0.5 + 0.4 c) < 1, where it comes last.
    image = jnp.broadcast_to(jnp.array([[[0.9, 0.9, 0.9], [0.1, 0.1, 0.1]]]), (8000, 1, 2, 3))
    found = JITTERED(jax.random.key(0), image, brightness=0.2, contrast=1.0, saturation=0.0, hue=0.0)
    bright, dark = np.asarray(found)[:, 0, 0, 0], np.asarray(found)[:, 0, 1, 0]
    first, last = 0.375 / 2, 0.375 * (np.log(1.25) - 0.2) / 0.12
    share = ((dark < 1e-6) & (bright < 1 - 1e-6)).mean()
    assert share == pytest.approx((first + last) / 2, abs=4 * (0.13 * 0.87 / 8000) ** 0.5)
    assert abs(first - last) > 0.1
