"""The findings of Chen et al. 2022, on real images."""

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.data import load_dataset, normalize, one_hot, scale_to_sphere


def lambda_mins(dataset):
    x = scale_to_sphere(normalize(dataset)).astype(np.float64)
    spectra = [nd.spectrum(nd.kernel(nd.zoo.named(name), x, readout=False).nngp) for name in nd.zoo.FIGURE3]
    assert all(s.resolved for s in spectra)
    return [s.lambda_min for s in spectra]


@pytest.mark.sample(1)
@pytest.mark.parametrize("subset", [16, 128, 500])
def test_lambda_min_orders_the_three_dags_on_digits(subset):
    first, second, third = lambda_mins(load_dataset("digits", subset=subset))
    assert first < second < third


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("subset", [16, 256])
def test_lambda_min_orders_the_three_dags_on_mnist(tfds_dir, subset):
    first, second, third = lambda_mins(load_dataset("mnist", subset=subset, data_dir=tfds_dir))
    assert first < second < third


@pytest.mark.nightly
def test_the_default_run_agrees_with_theory():
    data = load_dataset("digits", subset=128)
    x, y = scale_to_sphere(normalize(data)), one_hot(data.labels, 10)
    for result in nd.report.compare({name: nd.zoo.named(name) for name in nd.zoo.FIGURE3}, x, y, predict_width=False):
        assert result.curves.shape == (5, 101)
        gap = np.abs(result.gaps)
        assert gap[1:21].max() < 0.15
        assert result.conditions_met
        assert result.bound_violations == 0
