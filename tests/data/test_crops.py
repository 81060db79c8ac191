"""Crops of images: their geometry, their statistics, and the pixels that they read."""

import numpy as np
import pytest
from PIL import Image

from nngp_dag.data.crops import centrally_cropped, random_box, randomly_cropped


def test_boxes_lie_inside_and_have_the_published_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, 500, 400) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 500).all()
    assert (bottom <= 400).all()
    area, ratio = (right - left) * (bottom - top) / 200_000, (right - left) / (bottom - top)
    assert area.min() == pytest.approx(0.08, abs=0.005)
    assert area.max() > 0.97
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.02)
    # A box of area up to 0.6 always fits, and is as likely as in the uniform distribution: a share of 0.27 a piece.
    low, high = ((area > a) & (area <= a + 0.25) for a in (0.08, 0.33))
    assert low.sum() / high.sum() == pytest.approx(1, abs=4 * (2 / 1000) ** 0.5)
    small = area < 0.5
    assert np.log(ratio[small]).mean() == pytest.approx(0, abs=4 * 0.166 / small.sum() ** 0.5)
    # Every place that a box of this size can have is equally likely.
    place = left[small] / (500 - (right - left)[small])
    assert place.mean() == pytest.approx(0.5, abs=4 * 0.29 / small.sum() ** 0.5)


def test_an_image_in_which_no_box_fits_is_cropped_to_the_largest_central_one():
    rng = np.random.default_rng(0)
    assert random_box(rng, 1000, 10) == (493, 0, 506, 10)
    assert random_box(rng, 10, 1000) == (0, 493, 10, 506)


def bilinear(pixels, size, box):
    """Returns a box scaled to a square by the triangle filter, which grows with the reduction; one axis at a time."""
    left, top, right, bottom = box
    for axis, (start, end) in enumerate(((top, bottom), (left, right))):
        scale = (end - start) / size
        support = max(scale, 1)
        places = np.arange(start, end) + 0.5
        centers = start + (np.arange(size) + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs(places[None] - centers[:, None]) / support)
        weights /= weights.sum(axis=1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, np.take(pixels, range(start, end), axis), (1, axis)), 0, axis)
    return pixels


@pytest.mark.parametrize("shape", [(60, 80), (90, 40)])
def test_random_crops_are_scaled_boxes_mirrored_half_of_the_time(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    image, mirrored = Image.fromarray(pixels), 0
    for seed in range(40):
        found = randomly_cropped(image, 24, np.random.default_rng(seed))
        box = random_box(np.random.default_rng(seed), shape[1], shape[0])
        expected = bilinear(pixels.astype(float), 24, box)
        errors = [np.abs(found.astype(float) - way).max() for way in (expected, expected[:, ::-1])]
        # PIL rounds after each axis.
        assert min(errors) < 1.6
        mirrored += errors[1] < errors[0]
    assert 10 <= mirrored <= 30


@pytest.mark.parametrize("shape", [(256, 256), (300, 256), (240, 320), (100, 90)])
def test_evaluation_takes_the_center_at_256_pixels_a_side(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = centrally_cropped(Image.fromarray(pixels), 224)
    assert found.shape == (224, 224, 3)
    short = min(shape)
    high, wide = (int(256 * side / short) for side in shape)
    if short == 256:
        top, left = round((high - 224) / 2), round((wide - 224) / 2)
        np.testing.assert_array_equal(found, pixels[top : top + 224, left : left + 224])
    else:
        # The middle of the crop is the middle of the image, up to half a pixel.
        whole = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR))
        middles = [whole[i, j] for i in {high // 2, -(-high // 2)} for j in {wide // 2, -(-wide // 2)}]
        assert any((found[112, 112] == middle).all() for middle in middles)
