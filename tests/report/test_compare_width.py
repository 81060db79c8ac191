"""`compare` with the prediction at the networks' width: a verdict that can fail, files, table and picture."""

import csv
import dataclasses
import io
import json
from typing import Any

import jax
import numpy as np
import pytest
from pictures import check, drawn
from rich.console import Console

import nngp_dag as nd
from nngp_dag.data import load_dataset, normalize, one_hot, scale_to_sphere
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.report import plot_compare
from nngp_dag.report.tables import compare_table
from nngp_dag.width import WidthEffects

DATA = load_dataset("digits", subset=10)
X, Y = scale_to_sphere(normalize(DATA)), one_hot(DATA.labels, 10)


def uneven(params, x):
    """Two hidden layers of 24 and 16 neurons, in the parameterization "ntk"."""
    for w in params[:-1]:
        x = jax.nn.relu(x @ w * (2 / len(w)) ** 0.5)
    return x @ params[-1] * (2 / len(params[-1])) ** 0.5


def uneven_params(key):
    sizes = ((64, 24), (24, 16), (16, 10))
    return [jax.random.normal(k, size) for k, size in zip(jax.random.split(key, 3), sizes, strict=True)]


@pytest.fixture(scope="module")
def plain():
    return nd.compare("2_02", X, Y, width=64, seeds=4, steps=3)[0]


def with_effects(result, bias=0.1, trusted=(True, True, True, False)):
    """Returns the comparison with a made prediction: a bias of the mean, intervals of 2 %, and a spread of 6 %."""
    infinite = np.asarray(result.expected.mean)
    mean = infinite * (1 + bias)
    effects = WidthEffects(
        width=64, learning_rate=result.learning_rate, infinite=infinite, infinite_std=infinite / 10, mean=mean,
        low=mean - 0.02 * infinite, high=mean + 0.02 * infinite, std=0.06 * infinite, frozen=infinite * (1 + bias / 2),
        frozen_error=infinite / 100, motion=0 * infinite, motion_error=0 * infinite, exponent=np.ones(4),
        trusted=np.array(trusted), drawn=16, trained={24: 12, 48: 8}, left_out={24: 0, 48: 0, 64: 0}, seconds=3.0,
        fit_widths=np.array([24, 64]), fit_bias=np.full((2, 4), bias),
        fit_low=np.full((2, 4), bias), fit_high=np.full((2, 4), bias),
    )  # fmt: skip
    return dataclasses.replace(result, width_effects=effects)


def measured(result, share):
    """Returns the comparison with measured losses that deviate from infinite width by a share."""
    curves = np.tile(np.asarray(result.expected.mean) * (1 + share), (4, 1))
    return dataclasses.replace(result, curves=curves, readout_noise=None)


def text_of(renderable, width=110):
    file = io.StringIO()
    Console(width=width, file=file).print(renderable)
    return file.getvalue()


def test_the_verdict_can_fail(plain):
    # The interval is 2 %, the standard error 6 % / sqrt(4): together sqrt(2^2 + (1.645 3)^2) = 5.3 %.
    for share, holds in ((0.1, True), (0.152, True), (0.155, False), (0.048, True), (0.045, False)):
        result = measured(with_effects(plain), share)
        at = result.deviation(2)
        assert at.predicted == pytest.approx(0.1)
        assert (at.low, at.high, at.frozen) == pytest.approx((0.08, 0.12, 0.05))
        assert (at.measured, at.error) == pytest.approx((share, 0.03))
        assert (at.holds, at.verdict) == (holds, "holds" if holds else "fails")
        assert (
            f"the prediction {at.verdict}; of 2 trusted steps it holds at {2 * holds} and fails at {2 - 2 * holds}"
            in (result.width_verdict)
        )
    assert "after step 2 deviates from infinite width by +10.0%" in result.width_verdict
    # Nothing has been predicted before the first step, and one network alone tests nothing.
    unsure = with_effects(plain, trusted=[True, False, False, False])
    assert "the prediction is not trusted; of 0 trusted steps" in unsure.width_verdict
    assert unsure.width_effects.last_trusted is None
    assert unsure.as_row()["prediction"] is None
    one = measured(with_effects(plain), 0.12)
    one = dataclasses.replace(one, curves=one.curves[:1])
    assert one.deviation(2).verdict == "not tested"
    assert "the prediction is not tested; of 2 trusted steps it holds at 0 and fails at 0" in one.width_verdict


@pytest.mark.slow
def test_losses_at_rounding_level_are_left_out(tmp_path):
    """All modes but the first have targets and variances of 0, so that one step leaves nothing."""
    options: Any = {"width": 64, "seeds": 2, "predict_width": True}
    with pytest.warns(NumericalWarning, match="lambda_min is not resolved"):
        [result] = nd.compare("2", np.ones((2, 3)), np.ones((2, 1)), steps=3, out=tmp_path, **options)
    assert (result.expected.mean >= 0).all()
    effects = result.width_effects
    assert effects is not None
    assert np.isnan(effects.bias[2:]).all()
    assert not effects.trusted[1:].any()
    assert np.isnan(result.gaps[2:]).all()
    assert "nan" not in text_of(compare_table([result])) + result.verdict
    row = json.loads((tmp_path / "compare.json").read_text())["rows"][0]
    assert row["prediction"] is None
    assert row["largest_relative_gap"] < 1


def test_noise_of_readouts_is_taken_out(plain):
    infinite = np.asarray(plain.expected.mean)
    noise = np.array([[0.3], [-0.3], [0.1], [-0.1]]) * infinite
    rest = np.array([[0.02], [-0.02], [0.01], [-0.01]]) * infinite
    result = with_effects(dataclasses.replace(plain, curves=1.1 * infinite + noise + rest, readout_noise=noise))
    at = result.deviation(1)
    assert at.measured == pytest.approx(0.1)
    assert at.error == pytest.approx(np.sqrt(0.001 / 3) / 2)
    # Student's distribution with 3 degrees of freedom.
    assert at.quantile == pytest.approx(2.353, abs=1e-3)
    alone = dataclasses.replace(result, curves=result.curves[:1], readout_noise=noise[:1])
    assert (alone.deviation(1).measured, alone.deviation(1).error) == pytest.approx((0.42, 0.06))


def test_row_table_and_curves(plain):
    result = measured(with_effects(plain), 0.2)
    row = result.as_row()
    assert (row["predicted_step"], row["prediction"], row["prediction_seconds"]) == (2, "fails", 3.0)
    assert row["predicted_deviation"] == pytest.approx(0.1)
    assert row["measured_deviation"] == pytest.approx(0.2)
    columns = result.curve_columns()
    np.testing.assert_allclose(columns["predicted_low"], 1.08 * columns["expected"])
    assert columns["predicted_trusted"].tolist() == [1, 1, 1, 0]
    assert np.isnan(plain.curve_columns()["predicted_mean"]).all()
    text = text_of(compare_table([result]))
    rows = [line.split() for line in text.splitlines()]
    assert [row[-1] for row in rows if row[:2] in (["2_02", "2"], ["2_02", "3"])] == ["fails", "trusted"]
    assert "predicted from trained networks, 12 of width 24, 8 of width 48, and 16 drawn at width 64, in 3 s" in (
        " ".join(text.split())
    )
    assert "against infinite width" not in text_of(compare_table([plain]))


def test_the_picture_shows_the_deviations(plain, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    plot_compare([measured(with_effects(plain), 0.1), plain], tmp_path / "compare.png", "a title")
    check(figures[-1])
    curves = [axes for axes in figures[-1].axes if axes.axison]
    assert len(curves) == 3
    assert sum("against infinite width" in axes.get_ylabel() for axes in curves) == 1


@pytest.mark.slow
def test_a_comparison_predicts_resumes_and_writes(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(task, done, total):
        if task == "training 2_21":
            raise StoppedError

    options: Any = {"width": 256, "seeds": 2, "steps": 5, "out": tmp_path}
    with pytest.raises(StoppedError):
        nd.compare(["2", "2_21"], X, Y, **options, on_progress=stop)
    stages = []
    results = nd.compare(["2", "2_21"], X, Y, **options, resume=True, on_progress=lambda task, *_: stages.append(task))
    assert "training 2" not in stages
    for result in results:
        effects = result.width_effects
        assert effects is not None
        assert effects.width == 256
        np.testing.assert_allclose(effects.infinite, result.expected.mean, rtol=1e-6)
        assert result.as_row()["prediction_verdict"] == result.width_verdict
    alone = nd.width_effects("2", X, Y, width=256, steps=5, learning_rate=results[0].learning_rate)
    first = results[0].width_effects
    assert first is not None
    np.testing.assert_allclose(first.mean, alone.mean, rtol=1e-5)
    assert first.trained == alone.trained
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert float(rows[3]["predicted_mean"]) == pytest.approx(alone.mean[3], rel=1e-5)
    document = json.loads((tmp_path / "compare.json").read_text())
    assert document["config"]["predict_width"] is None
    assert document["rows"][1]["prediction_verdict"] == results[1].width_verdict


@pytest.mark.slow
def test_no_prediction_says_why(plain):
    assert plain.width_effects is None
    assert plain.unpredicted == ""
    model = nd.trace(uneven, X, init=uneven_params)
    with pytest.raises(InputError, match="models with layers of one width"):
        nd.compare(model, X, Y, seeds=1, steps=1, predict_width=True)
    with pytest.raises(InputError, match="parameterization 'ntk', got 'standard'"):
        nd.compare("1", X, Y, width=32, seeds=1, steps=1, parameterization="standard", predict_width=True)
    [result] = nd.compare("1", X, Y, width=256, seeds=1, steps=1, parameterization="standard")
    assert "no prediction at its width: Expected the parameterization 'ntk'" in result.remark
    assert result.as_row()["prediction_verdict"] == result.unpredicted
