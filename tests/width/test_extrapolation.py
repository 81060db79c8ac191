"""Laws in the width against planted ones, and intervals against their coverage."""

import numpy as np
import pytest

from nngp_dag.width.extrapolation import (
    DRIFTS,
    EXPONENTS,
    Mean,
    anchored,
    controlled,
    inverse_width,
    left_out_score,
    log_ratio,
    mean_of,
    power_law,
)

WIDTHS = np.array([96.0, 128.0, 192.0, 256.0])
CENTER = np.exp(np.log(WIDTHS).mean())


def planted(amplitude, p, s, n):
    log = np.log(np.asarray(n)[:, None] / CENTER)
    return amplitude * np.exp(-p * log - 0.5 * s * log**2)


@pytest.mark.parametrize("amplitude", [0.3, -0.02])
def test_recovers_a_planted_law(amplitude):
    p, s = np.array([0.3, 0.6, 1.0]), 0.075
    q = planted(amplitude, p, s, WIDTHS)
    law = power_law(WIDTHS, q, 1e-4 * np.abs(q), np.array([256.0, 1024.0]))
    np.testing.assert_allclose(law.exponent, p, atol=0.04)
    np.testing.assert_allclose(law.mean[0], q[-1], rtol=0.01)
    # The drift is not known, and costs a seventh at four times the largest width.
    there = planted(amplitude, p, s, [1024.0])[0]
    np.testing.assert_allclose(law.mean[1], there, rtol=0.04)
    assert ((law.std[1] > 0.005 * np.abs(there)) & (law.std[1] < 0.2 * np.abs(there))).all()
    assert not law.at_bound.any()


def test_intervals_cover():
    rng, points = np.random.default_rng(0), 4000
    p, s, noise = rng.uniform(*EXPONENTS, points), rng.uniform(*DRIFTS, points), 0.04
    q = planted(0.3, p, s, [*WIDTHS, 1024.0])
    measured = q[:-1] + 0.3 * noise * rng.normal(size=(4, points))
    law = power_law(WIDTHS, measured, np.full((4, points), 0.3 * noise), np.array([1024.0]))
    inside = np.abs(q[-1] - law.mean[0]) < 1.645 * law.std[0]
    assert 0.87 < inside.mean() < 0.94
    # The intervals are not wide because they say nothing.
    assert np.median(law.std[0] / q[-1]) < 0.2


def test_exponents_at_a_bound_are_flagged():
    q = planted(1.0, np.array([-0.4, 0.7, 1.9]), 0.0, WIDTHS)
    assert power_law(WIDTHS, q, 0.01 * q, WIDTHS).at_bound.tolist() == [True, False, True]
    # Where there is no motion at all, nothing is predicted, and nothing fails.
    law = power_law(WIDTHS, np.zeros((4, 1)), np.zeros((4, 1)), WIDTHS)
    assert (law.mean == 0).all()
    assert np.isfinite(law.std).all()


def test_left_out_width():
    rng, points = np.random.default_rng(1), 2000
    q, error = planted(0.3, 0.6, 0.075, WIDTHS) * np.ones((1, points)), 0.01
    noisy = q + error * rng.normal(size=q.shape)
    calm = left_out_score(WIDTHS, noisy, np.full(q.shape, error))
    assert 0.4 < np.median(calm) < 1
    noisy[-1] *= 2
    assert (left_out_score(WIDTHS, noisy, np.full(q.shape, error)) > 3).mean() > 0.9


def test_inverse_width():
    coefficients = np.array([3.0, -2.0])
    values = coefficients / WIDTHS[:, None]
    np.testing.assert_allclose(inverse_width(WIDTHS, values, np.ones((4, 2))), coefficients, rtol=1e-12)
    # A width with a large error does not count.
    values[0] += 1
    errors = np.ones((4, 2))
    errors[0] = 1e6
    np.testing.assert_allclose(inverse_width(WIDTHS, values, errors), coefficients, rtol=1e-4)
    # Of two widths the one with a quarter of the variance counts four times, and each by 1 / n^2.
    two = inverse_width(np.array([1.0, 2.0]), np.array([[1.0], [1.0]]), np.array([[2.0], [1.0]]))
    np.testing.assert_allclose(two, (0.25 * 1 + 0.5) / (0.25 + 0.25))


N = 1024.0
AT = np.array([128.0, 512.0, N, 4096.0])


def test_anchored_law_passes_through_the_last_value():
    widths = np.append(WIDTHS, N)
    values = 50 / widths[:, None] ** np.array([0.5, 1.0, 1.5])
    values[-1] *= 1.1
    errors = 0.01 * values
    found = anchored(widths, values, errors, AT)
    np.testing.assert_allclose(found.mean[2], values[-1], rtol=1e-10)
    # A shift by 10 % is an error of 10 %, and counts in proportion at other widths.
    assert (found.error[2] >= errors[-1]).all()
    # Values that are not finite, or all 0, spoil no others.
    values[:, 0], values[:, 2], errors[:, 2] = np.nan, 0.0, 0.0
    again = anchored(widths, values, errors, AT)
    np.testing.assert_allclose([again.mean[:, 1], again.error[:, 1]], [found.mean[:, 1], found.error[:, 1]])
    assert (again.mean[:, 2] == 0).all()
    assert (again.error[:, 2] < 1e-9).all()


@pytest.mark.parametrize("p", [0.5, 0.7, 1.0])
def test_anchored_intervals_know_that_laws_differ(p):
    # Biases of frozen networks may fall more slowly than 1 / n before they turn to it.
    rng, points = np.random.default_rng(5), 1000
    widths = np.append(WIDTHS, N)
    truth = 0.3 * (WIDTHS[0] / widths[:, None]) ** p
    there = 0.3 * (WIDTHS[0] / AT[:, None]) ** p
    errors = 0.05 * truth * np.ones(points)
    found = anchored(widths, truth + errors * rng.normal(size=errors.shape), errors, AT)
    inside = (np.abs(found.mean - there) < 1.645 * found.error).mean(axis=1)
    assert (inside > 0.86).all()
    # A law that is tied to 1 / n would miss by 30 to 100 %.
    assert (np.abs(found.mean.mean(axis=1) / there[:, 0] - 1) < 0.03).all()
    assert (found.error.mean(axis=1) < 0.2 * there[:, 0]).all()


def test_anchored_intervals_cover():
    rng, points = np.random.default_rng(4), 2000
    widths, c, r = np.append(WIDTHS, N), rng.normal(size=(2, points)), rng.uniform(0.3, 2.5, points)

    def law(n):
        u = n[:, None] / WIDTHS[0]
        return 0.2 * (c[0] / u + c[1] / u**r)

    errors = np.array([0.02, 0.02, 0.015, 0.01, 0.004])[:, None] * np.ones(points)
    found = anchored(widths, law(widths) + errors * rng.normal(size=errors.shape), errors, AT)
    scores = (found.mean - law(AT)) / found.error
    inside = (np.abs(scores) < 1.645).mean(axis=1)
    assert ((inside > 0.87) & (inside < 0.97)).all()


def test_log_ratio_of_means():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(3000, 20, 1))
    above, below = np.exp(0.5 * z), np.exp(0.4 * z) * (1 + 0.2 * rng.uniform(-1, 1, z.shape))
    found = [log_ratio(a, b) for a, b in zip(above, below, strict=True)]
    scores = np.array([(f.mean - (0.125 - 0.08)) / f.error for f in found])
    assert 0.85 < (np.abs(scores) < 1.73).mean() < 0.92
    with_errors = np.array([f.error for f in found])
    assert np.sqrt((with_errors**2).mean()) == pytest.approx(np.std([f.mean for f in found]), rel=0.05)


@pytest.mark.parametrize("known", [0.0, 0.3, 1e6])
def test_control_variate(known):
    # One point for each of 4,000 samples of 16 values.
    rng = np.random.default_rng(3)
    z, rest = rng.normal(size=(16, 4000)), rng.normal(size=(16, 4000))
    values = 1 + 2 * z + 0.5 * rest
    # The control variate has mean 0; what is said of it is off by as much as is said, too.
    said = known * rng.normal(size=4000) if known < 10 else np.full(4000, 7.0)
    means, errors = controlled(values, z, Mean(said, np.full(4000, known)))
    assert means.mean() == pytest.approx(1, abs=4 * means.std() / 4000**0.5)
    expected = {0.0: 0.25 / 16, 0.3: 0.25 / 16 + 4 / (16 + 1 / 0.09), 1e6: 4.25 / 16}[known]
    # With a slope from 16 values the variance is larger by 1 / 13 at least, and the jackknife adds a little.
    assert 0.92 < means.var() / expected < 1.2
    # The jackknife of 16 values errs upwards.
    assert 0.92 < (errors**2).mean() / expected < 1.25


def test_mean_of():
    found = mean_of(np.array([[1.0], [3.0]]))
    np.testing.assert_allclose([found.mean, found.error], [[2.0], [1.0]])
