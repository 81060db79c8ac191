"""Normalization, the sphere, and one-hot targets."""

import doctest

import numpy as np
import pytest

from nngp_dag.data import (
    DATASETS,
    NORMALIZATION,
    Dataset,
    channel_constants,
    load_dataset,
    normalize,
    one_hot,
    preprocessing,
    scale_to_sphere,
)
from nngp_dag.errors import DataError, InputError


def test_every_set_has_constants():
    assert tuple(NORMALIZATION) == DATASETS


def test_digits_become_standard():
    x = normalize(load_dataset("digits", split="all"))
    assert x.dtype == np.float32
    assert x.shape == (1797, 8, 8, 1)
    # The constants have four decimals, so that mean and standard deviation have errors of up to 5e-5 / 0.376.
    assert abs(x.mean(dtype=np.float64)) < 1.4e-4
    assert abs(x.std(dtype=np.float64) - 1) < 1.4e-4


@pytest.mark.nightly
def test_mnist_constants_are_those_of_the_training_set(tfds_dir):
    x = normalize(load_dataset("mnist", data_dir=tfds_dir))
    assert abs(x.mean(dtype=np.float64)) < 1.7e-4
    assert abs(x.std(dtype=np.float64) - 1) < 1.7e-4


def test_each_channel_has_its_own_constants():
    images = np.zeros((2, 1, 1, 3), np.float32)
    images[1] = 1
    x = normalize(Dataset("cifar10", images, np.array([0, 1]), num_classes=10))
    expected = [[-0.49139968 / 0.2023, -0.48215827 / 0.1994, -0.44653124 / 0.2010]]
    expected += [[0.50860032 / 0.2023, 0.51784173 / 0.1994, 0.55346876 / 0.2010]]
    np.testing.assert_allclose(x[:, 0, 0], expected, rtol=1e-6)


@pytest.mark.slow
def test_cifar10_is_near_standard(tfds_dir):
    x = normalize(load_dataset("cifar10", subset=2000, data_dir=tfds_dir))
    # The standard deviations of the paper are those within one image. Over many images they are about 20 % larger.
    assert np.abs(x.mean(axis=(0, 1, 2))).max() < 0.1
    assert np.all((x.std(axis=(0, 1, 2)) > 1.1) & (x.std(axis=(0, 1, 2)) < 1.4))


def test_constants_of_images_are_mean_and_deviation():
    images = np.random.default_rng(0).uniform(size=(5, 4, 3, 2)).astype(np.float32) * [1, 0.5]
    constants = channel_constants(images.astype(np.float32))
    np.testing.assert_allclose(constants, (images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))), atol=6e-5)
    x = normalize(Dataset("mine", images.astype(np.float32), np.arange(5), num_classes=5), constants)
    assert np.abs(x.mean(axis=(0, 1, 2))).max() < 1e-3
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=1e-3)
    with pytest.raises(DataError, match=r"every channel of images to vary, got standard deviations \[0.0\]"):
        channel_constants(images[..., :1].astype(np.float32) * 0)


def test_sphere_is_used_as_it_is():
    sphere = load_dataset("sphere")
    assert np.array_equal(normalize(sphere), sphere.images)


def test_normalize_refusals():
    images, labels = np.zeros((1, 2, 2, 1), np.float32), np.array([0])
    with pytest.raises(DataError, match=r"Expected `dataset` to be one of digits, .*got 'mine', which has no"):
        normalize(Dataset("mine", images, labels, num_classes=1))
    with pytest.raises(DataError, match=r"cifar10 to have 3 channels.*of shape \(1, 2, 2, 1\)"):
        normalize(Dataset("cifar10", images, labels, num_classes=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_to_sphere(dtype):
    x = np.random.default_rng(0).standard_normal((5, 4, 3, 2)).astype(dtype)
    scaled = scale_to_sphere(x)
    assert scaled.dtype == dtype
    assert scaled.shape == (5, 24)
    flat = x.reshape(5, 24)
    np.testing.assert_allclose(np.sum(scaled**2, axis=1), 24, rtol=10 * np.finfo(dtype).eps)
    cosine = np.sum(scaled * flat, axis=1) / np.sqrt(24 * np.sum(flat**2, axis=1))
    np.testing.assert_allclose(cosine, 1, rtol=10 * np.finfo(dtype).eps)


def test_scale_to_sphere_neither_overflows_nor_vanishes():
    x = np.array([[3e200, 4e200], [3e-200, 4e-200], [0.0, -5e-324]])
    expected = np.sqrt(2) * np.array([[0.6, 0.8], [0.6, 0.8], [0, -1]])
    np.testing.assert_allclose(scale_to_sphere(x), expected, rtol=1e-15)


def test_scale_to_sphere_takes_integers():
    assert scale_to_sphere(np.array([[3, 4]], np.uint8)).dtype == np.float32


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(3), r"Expected `x` to have shape \(N, ...\).*got shape \(3,\)"),
        (np.ones((0, 3)), r"at least one input and one feature, got shape \(0, 3\)"),
        (np.array([[1.0], [np.inf], [np.nan]]), r"Expected `x` to be finite, got NaN or infinity in row 1"),
        (np.array([[1.0, 0], [0, 0]]), r"only zeros in row 1; remove that input, or shift all inputs"),
    ],
)
def test_scale_to_sphere_refusals(x, message):
    with pytest.raises(InputError, match=message):
        scale_to_sphere(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8])
def test_one_hot(dtype):
    encoded = one_hot(np.array([2, 0, 2]), 4, dtype)
    assert encoded.dtype == dtype
    assert encoded.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0]), r"one-dimensional array of integers, got float64 of shape \(2,\)"),
        (np.array([[0, 1]]), r"one-dimensional array of integers, got int64 of shape \(1, 2\)"),
        (np.array([0, 3]), r"to lie in 0 to num_classes - 1 = 2, got 3 at index 1"),
        (np.array([-1]), r"to lie in 0 to num_classes - 1 = 2, got -1 at index 0"),
    ],
)
def test_one_hot_refusals(labels, message):
    with pytest.raises(InputError, match=message):
        one_hot(labels, 3)


def test_examples_run():
    assert doctest.testmod(preprocessing).failed == 0
