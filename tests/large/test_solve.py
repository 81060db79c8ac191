"""Three methods against posteriors and formulas of NumPy; resuming; what is refused."""

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import CheckpointError, InputError, NumericalWarning, OutputError
from nngp_dag.large import dense
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.rows import rows_of
from nngp_dag.large.uncertainty import exact_posterior

_RNG = np.random.default_rng(0)
_X, _T = _RNG.normal(size=(300, 6)), _RNG.normal(size=(20, 6))
_Y = np.stack([np.sin(_X[:, 0]) + _X[:, 1] ** 2, _X[:, 2]], axis=1)
_NET, _RIDGE = nd.Network("2_21_112"), 0.5


def _kernels(kind="ntk", net=_NET, x=_X, t=_T):
    train, cross = nd.kernel(net, x, get=kind), nd.kernel(net, t, x, get=kind)
    return np.asarray(getattr(train, kind)), np.asarray(getattr(cross, kind))


def _exact(kind="ntk", net=_NET, x=_X, t=_T, y=_Y, ridge=_RIDGE):
    """Returns predictions, coefficients and effective dimension by their formulas."""
    k, cross = _kernels(kind, net, x, t)
    a = np.linalg.solve(k + ridge * np.eye(len(k)), y)
    values = np.linalg.eigvalsh(k)
    return cross @ a, a, np.sum(values / (values + ridge))


# Biases and erf leave the Chebyshev series, and take the loop over nodes.
_OTHER = nd.Network("2_12", layer=nd.Dense(activation="erf", b_std=0.1))


@pytest.mark.parametrize("method", ["dense", "iterative"])
@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (_NET, "ntk"),
        pytest.param(_NET, "nngp", marks=pytest.mark.slow),
        pytest.param(_OTHER, "ntk", marks=pytest.mark.nightly),
    ],
)
def test_exact_methods_equal_the_formula(method, net, kind):
    found = nd.solve(net, _X, _Y, _RIDGE, kind=kind, method=method, landmarks=40, tolerance=1e-9)
    outputs, a, dimension = _exact(kind, net)
    np.testing.assert_allclose(found.predict(_T), outputs, atol=1e-7)
    np.testing.assert_allclose(found.coefficients, a, atol=1e-6)
    assert found.residual < 1e-9
    assert found.training_rmse == pytest.approx(np.sqrt(np.mean((_RIDGE * a) ** 2)), rel=1e-5)
    assert abs(found.effective_dimension - dimension) <= 4 * found.effective_dimension_std + 1e-8 * dimension
    assert found.effective_dimension_std < 0.05 * dimension
    assert (found.method, found.approximated, found.held_out) == (method, "", None)


def test_the_posterior_has_the_same_mean():
    kernels = nd.kernel(_NET, _X), nd.kernel(_NET, _T, _X), nd.kernel(_NET, _T)
    mean = nd.posterior(*kernels, _Y, noise=_RIDGE).mean
    np.testing.assert_allclose(nd.solve(_NET, _X, _Y, _RIDGE, kind="nngp").predict(_T), mean, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("dense", "nngp"),
        pytest.param("iterative", "ntk", marks=pytest.mark.slow),
        pytest.param("dense", "ntk", marks=pytest.mark.slow),
        pytest.param("iterative", "nngp", marks=pytest.mark.slow),
    ],
)
def test_exact_methods_have_the_covariance_of_the_posterior(method, kind, tmp_path):
    kernels = nd.kernel(_NET, _X), nd.kernel(_NET, _T, _X), nd.kernel(_NET, _T)
    wanted = nd.posterior(*kernels, _Y, kind=kind, noise=_RIDGE)
    options: dict[str, Any] = {"kind": kind, "method": method, "landmarks": 40, "out": tmp_path / "o"}
    for _ in range(2):  # the second time from the file
        found = nd.solve(_NET, _X, _Y, _RIDGE, x_test=_T, **options).posterior
        assert found is not None
        np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-5)
        # Of second order in the residual for the NNGP.
        np.testing.assert_allclose(found.covariance, wanted.covariance, atol=1e-8 if kind == "nngp" else 1e-5)
        np.testing.assert_array_equal(found.covariance, found.covariance.T)
        assert found.kind == kind
    with pytest.raises(CheckpointError, match=r"solve\.x_test"):
        nd.solve(_NET, _X, _Y, _RIDGE, x_test=_T[:5], **options)


@pytest.mark.slow
def test_a_single_gpu_factorizes_like_several_devices(monkeypatch):
    wanted = nd.solve(_NET, _X, _Y, _RIDGE, kind="nngp", x_test=_T)
    monkeypatch.setattr(Team, "factors", True)
    monkeypatch.setattr(dense, "_on_host", None)
    found = nd.solve(_NET, _X, _Y, _RIDGE, kind="nngp", x_test=_T)
    np.testing.assert_allclose(found.coefficients, wanted.coefficients, rtol=1e-9, atol=1e-12)
    assert found.posterior is not None
    assert wanted.posterior is not None
    np.testing.assert_allclose(found.posterior.covariance, wanted.posterior.covariance, atol=1e-12)
    memory = nd.plan(_NET, 10_000, 784, method="dense", calibrate=False).cost.parts
    assert (memory["kernel"], memory["factor in float64"]) == (0, 8 * 10_000**2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_errors_of_variances_are_bounded_and_said(kind, tmp_path):
    kernels = nd.kernel(_NET, _X), nd.kernel(_NET, _T, _X), nd.kernel(_NET, _T)
    wanted = nd.posterior(*kernels, _Y, kind=kind, noise=_RIDGE)
    # One large input does not blur the others.
    options: dict[str, Any] = {"kind": kind, "method": "iterative", "landmarks": 10, "out": tmp_path / "o"}
    options |= {
        "tolerance": 0.2 if kind == "nngp" else 0.02,
        "x_test": _T * np.where(np.arange(20) == 19, 1e3, 1)[:, None],
    }

    def solved():
        with pytest.warns(NumericalWarning, match=r"of 20 variances may be off by more than 10%: the residual"):
            return nd.solve(_NET, _X, _Y, _RIDGE, **options)

    found, again = solved(), solved()  # the second time from the file
    np.testing.assert_array_equal(found.variance_errors, again.variance_errors)
    assert found.posterior is not None
    assert found.variance_errors is not None
    errors, bounds = (found.posterior.variance - wanted.variance)[:19], found.variance_errors[:19]
    assert (abs(errors) <= bounds).all()
    if kind == "nngp":
        # What is left out makes variances too large, never too small.
        assert errors.min() > 0
        assert errors.max() > 1e-4
    close = nd.solve(_NET, _X, _Y, _RIDGE, **(options | {"tolerance": 1e-8, "out": None}))
    assert close.variance_errors is not None
    assert (close.variance_errors[:19] < 1e-4 * wanted.variance[:19]).all()


@pytest.mark.slow
def test_landmarks_have_the_covariance_of_their_conditional():
    with pytest.warns(
        NumericalWarning, match=r"20 of 20 variances .*: landmarks leave a variance of up to .* unexplained; take"
    ):
        found = nd.solve(_NET, _X, _Y, _RIDGE, kind="nngp", method="landmarks", landmarks=40, x_test=_T)
    k, cross = _kernels("nngp")
    at = np.array([np.argmin(np.abs(_X - mark).sum(axis=1)) for mark in found.basis])
    # The prior of the rows is that of the landmarks alone, Q = C K_mm^-1 C^T.
    c, inside, to = k[:, at], k[np.ix_(at, at)], cross[:, at]
    q, q_test = c @ np.linalg.solve(inside, c.T), to @ np.linalg.solve(inside, c.T)
    weights = np.linalg.solve(q + _RIDGE * np.eye(300), q_test.T)
    wanted = np.asarray(nd.kernel(_NET, _T, get="nngp").nngp) - q_test @ weights
    assert found.posterior is not None
    np.testing.assert_allclose(found.posterior.covariance, wanted, atol=1e-9)
    np.testing.assert_allclose(found.posterior.mean, weights.T @ _Y, atol=1e-8)
    np.testing.assert_allclose(found.posterior.mean, found.predict(_T), atol=1e-9)


@pytest.mark.parametrize("kind", ["nngp", pytest.param("ntk", marks=pytest.mark.slow)])
def test_bounds_of_variances_are_close_where_the_residual_is_worst(kind):
    k, _ = _kernels(kind)
    values, vectors = np.linalg.eigh(k + _RIDGE * np.eye(300))
    kernel, right = BlockKernel(_NET, kind, (6,), np.dtype(np.float64)), _kernels(kind)[1].T
    exact = np.linalg.solve(k + _RIDGE * np.eye(300), right)
    # Along the eigenvector of the smallest eigenvalue, weights change most. The NNGP is smaller there than the NTK.
    wrong = np.outer(vectors[:, 0], np.where(np.arange(20) % 2, 3.0, -3.0))
    wanted, found = (
        exact_posterior(Team(), kernel, _X, _T, _RIDGE, exact + by, right, -values[0] * by) for by in (0 * wrong, wrong)
    )
    assert wanted.posterior is not None
    assert found.posterior is not None
    assert found.errors is not None
    errors, bounds = np.abs(found.posterior.variance - wanted.posterior.variance), found.errors
    assert (errors <= bounds).all()
    assert (bounds <= (1.5 if kind == "nngp" else 200) * errors.max()).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ridge", "options"),
    [
        ("nngp", 1e-4, {}),
        ("ntk", 1e-2, {}),
        pytest.param("ntk", 0.1, {"parameterization": "standard", "width": 64}, marks=pytest.mark.nightly),
        pytest.param("ntk", 0.1, {"readout": False}, marks=pytest.mark.nightly),
    ],
)
def test_errors_of_float32_are_within_their_estimate(kind, ridge, options):
    x, t = _X[:60], np.concatenate([_X[:3], _T])
    between = nd.kernel("2_21_112", t, x, **options)
    own = [nd.kernel("2_21_112", of, **options) for of in (x, t)]
    wanted = nd.posterior(own[0], between, own[1], _Y[:60], kind=kind, noise=ridge)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        found = nd.solve(
            "2_21_112", x.astype(np.float32), _Y[:60], ridge, x_test=t, kind=kind, method="dense", **options
        )
    assert found.posterior is not None
    assert found.variance_errors is not None
    errors = np.abs(np.diag(found.posterior.covariance) - wanted.variance)
    assert errors.max() > 1e-7  # float32 shows
    assert (errors <= found.variance_errors).all()


@pytest.mark.slow
def test_variances_by_landmarks_approach_the_exact_ones():
    x, t = np.random.default_rng(1).normal(size=(300, 2)), np.random.default_rng(2).normal(size=(9, 2))
    options: dict[str, Any] = {"kind": "nngp", "x_test": t}
    exact = nd.solve(_NET, x, x[:, 0], 1.0, **options)
    found = nd.solve(_NET, x, x[:, 0], 1.0, method="landmarks", landmarks=150, **options)
    assert exact.posterior is not None
    assert found.posterior is not None
    assert found.variance_errors is not None
    np.testing.assert_allclose(found.posterior.std, exact.posterior.std, rtol=0.03)
    assert (np.abs(found.posterior.variance - exact.posterior.variance) <= found.variance_errors).all()
    # One landmark knows nothing of a row in another direction.
    x = np.array([[1.0, 0.0]] * 30 + [[-1.0, 0.01]])
    x[:30] += 1e-3 * np.random.default_rng(3).normal(size=(30, 2))
    with pytest.warns(NumericalWarning, match="1 of 1 variances may be off by more than 10%: landmarks leave"):
        found = nd.solve(_NET, x, x[:, 0], 0.1, kind="nngp", x_test=x[-1:], method="landmarks", landmarks=1)
    exact = nd.solve(_NET, x, x[:, 0], 0.1, kind="nngp", x_test=x[-1:])
    assert exact.posterior is not None
    assert found.posterior is not None
    assert found.variance_errors is not None
    off = found.posterior.variance - exact.posterior.variance
    assert 0.5 * found.variance_errors < off <= found.variance_errors


def test_test_inputs_that_are_refused_or_flagged():
    with pytest.raises(InputError, match=r"`x_test` to have rows of shape \(6,\), got \(5,\)"):
        nd.solve(_NET, _X, _Y, _RIDGE, x_test=_T[:, :5])
    with pytest.raises(InputError, match="`x_test` to have shape"):
        nd.solve(_NET, _X, _Y, _RIDGE, x_test=3.0)
    with pytest.raises(
        InputError, match=r"'landmarks', which has no covariance for the NTK; take the NNGP, or pass arr"
    ):
        nd.solve(_NET, _X, _Y, _RIDGE, x_test=_T, method="landmarks")
    batches = [(_X[:150], _Y[:150]), (_X[150:], _Y[150:])]
    with pytest.raises(
        InputError, match="the NNGP for covariances from batches, got the NTK; take the NNGP, or pass arr"
    ):
        nd.solve(_NET, batches, None, _RIDGE, x_test=_T)
    with pytest.raises(InputError, match="take fewer test inputs"):
        nd.solve(_NET, _X, _Y, _RIDGE, x_test=np.ones((50_000, 6)), method="dense")
    with pytest.warns(
        NumericalWarning, match="2 of 2 variances may be off by more than 10%: the residual and rounding"
    ):
        nd.solve(_NET, _X[:50].astype(np.float32), _Y[:50], 1e-6, kind="nngp", x_test=_X[:2])


@pytest.mark.usefixtures("unchecked")
def test_two_arrays_are_not_taken_for_one():
    edges = [nd.Edge(s, t, nd.Op.WEIGHTED) for s, t in ((0, 2), (1, 2), (2, 3))]
    two = nd.Dag(4, tuple(edges), num_inputs=2)
    with pytest.raises(InputError, match=r"`x` to be one array, which all 2 input nodes read"):
        nd.solve(two, (_X, _X), _Y, _RIDGE)
    with pytest.raises(InputError, match=r"`x_test` to have rows of shape \(6,\)"):
        nd.solve(two, _X, _Y, _RIDGE, x_test=(_T, _T))  # type: ignore[arg-type]


def _held_out():
    return rows_of(_NET, _X, _Y).sampled(300, 0.1, 2048, seed=0).held_out


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-3)])
def test_landmarks_solve_the_regression_on_their_kernels(dtype, tolerance):
    found = nd.solve(_NET, _X.astype(dtype), _Y, _RIDGE, method="landmarks", landmarks=40)
    k, _ = _kernels()
    at = np.array([np.argmin(np.abs(_X.astype(dtype) - mark).sum(axis=1)) for mark in found.basis])
    c, inside = k[:, at], k[np.ix_(at, at)]
    a = np.linalg.solve(c.T @ c + _RIDGE * inside, c.T @ _Y)
    np.testing.assert_allclose(found.predict(_T), _kernels()[1][:, at] @ a, atol=tolerance * np.abs(_Y).max())
    assert found.training_rmse == pytest.approx(np.sqrt(np.mean((c @ a - _Y) ** 2)), rel=10 * tolerance)
    whole = c @ np.linalg.solve(inside, c.T)
    values = np.linalg.eigvalsh((whole + whole.T) / 2)
    assert found.effective_dimension == pytest.approx(np.sum(values / (values + _RIDGE)), rel=10 * tolerance)
    # Of the candidates, which the rows held out are not.
    rows = np.setdiff1d(np.arange(300), _held_out())
    left = np.trace((k - whole)[np.ix_(rows, rows)]) / np.trace(k[np.ix_(rows, rows)])
    assert found.unexplained == pytest.approx(left, rel=tolerance)
    assert found.residual < 1e-9
    assert "40 landmarks" in found.approximated


@pytest.mark.slow
def test_all_rows_as_landmarks_solve_the_whole_problem():
    # Held-out rows are no candidates, so that all the others are landmarks, and predictions are nearly the exact ones.
    found = nd.solve(_NET, _X, _Y, _RIDGE, method="landmarks", landmarks=300)
    assert len(found.basis) == 270
    outputs, _, _ = _exact()
    assert np.sqrt(np.mean((found.predict(_T) - outputs) ** 2)) < 0.1 * outputs.std()


def test_held_out_errors_are_those_of_a_solution_without_these_rows():
    found = nd.solve(_NET, _X, _Y, _RIDGE, method="landmarks", landmarks=40)
    held = found.held_out
    assert held is not None
    assert held.rows == 30
    out = _held_out()
    rest = np.setdiff1d(np.arange(300), out)
    k, _ = _kernels()
    at = np.array([np.argmin(np.abs(_X - mark).sum(axis=1)) for mark in found.basis])
    assert not set(at) & set(out)
    c = k[np.ix_(rest, at)]
    a = np.linalg.solve(c.T @ c + _RIDGE * k[np.ix_(at, at)], c.T @ _Y[rest])
    errors = k[np.ix_(out, at)] @ a - _Y[out]
    assert held.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)
    squares = np.mean(errors**2, axis=1)
    assert held.rmse_std == pytest.approx(squares.std(ddof=1) / np.sqrt(30) / (2 * held.rmse), rel=1e-6)
    agree = (k[np.ix_(out, at)] @ a).argmax(axis=1) == _Y[out].argmax(axis=1)
    assert held.accuracy == pytest.approx(agree.mean())


@pytest.mark.nightly
def test_convolutions_and_pooling():
    net = nd.Network("2", layer=nd.Conv(filter_shape=(3, 3)), image_readout="global-average")
    x, t = _RNG.normal(size=(24, 4, 4, 2)), _RNG.normal(size=(3, 4, 4, 2))
    y = x.mean(axis=(1, 2, 3))
    outputs = [nd.solve(net, x, y, 1e-2, method=method, landmarks=24).predict(t) for method in ("dense", "iterative")]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)
    np.testing.assert_allclose(outputs[0], _exact("ntk", net, x, t, y[:, None], 1e-2)[0], atol=1e-9)
    fewer = nd.solve(net, x, y, 1e-2, method="landmarks", landmarks=20)
    assert fewer.predict(t).shape == (3, 1)


def test_batches_and_files_give_the_bits_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", _X)
    np.save(tmp_path / "y.npy", _Y)
    batches = [(_X[i : i + 64], _Y[i : i + 64]) for i in range(0, 300, 64)]
    options: dict[str, Any] = {"method": "landmarks", "landmarks": 40}
    expected = nd.solve(_NET, _X, _Y, _RIDGE, **options).coefficients
    for x, y in ((batches, None), (tmp_path / "x.npy", str(tmp_path / "y.npy"))):
        np.testing.assert_array_equal(nd.solve(_NET, x, y, _RIDGE, **options).coefficients, expected)
    assert nd.solve(_NET, batches, None, _RIDGE, landmarks=40).method == "landmarks"


class Stop(Exception):  # noqa: N818
    pass


def _stopping_at(task, number):
    def report(name, done, total):
        if name == task and done >= number:
            raise Stop

    return report


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize(
    ("method", "task", "number"), [("landmarks", "rows", 200), ("iterative", "iterations", 4), ("landmarks", "rows", 0)]
)
def test_a_stopped_call_goes_on_to_the_same_bits(method, task, number, tmp_path, monkeypatch):
    monkeypatch.setattr("nngp_dag.large.checkpoint.EVERY", 0.0)
    monkeypatch.setattr("nngp_dag.large.landmarks.FLUSH", 1)
    monkeypatch.setattr("nngp_dag.large.costs._BLOCK", 64)
    call: dict[str, Any] = {"method": method, "landmarks": 40, "tolerance": 1e-10}
    expected = nd.solve(_NET, _X, _Y, _RIDGE, **call)
    with pytest.raises(Stop):
        nd.solve(_NET, _X, _Y, _RIDGE, **call, out=tmp_path / "out", on_progress=_stopping_at(task, number))
    seen = []
    found = nd.solve(
        _NET, _X, _Y, _RIDGE, **call, out=tmp_path / "out", on_progress=lambda *report: seen.append(report)
    )
    begun = next(done for name, done, _ in seen if name == task)
    assert begun >= number - 64 if task == "rows" else begun == number
    np.testing.assert_array_equal(found.coefficients, expected.coefficients)
    assert found.residual == expected.residual
    assert not any(name == "landmarks" for name, _, _ in seen)
    # A finished call returns its result, and computes nothing.
    again = nd.solve(_NET, _X, _Y, _RIDGE, **call, out=tmp_path / "out", on_progress=_stopping_at("landmarks", 0))
    for one in dataclasses.fields(found):
        if one.compare:
            np.testing.assert_equal(getattr(again, one.name), getattr(found, one.name))


@pytest.mark.slow
def test_another_ridge_compiles_nothing():
    calls = [{"method": "landmarks", "landmarks": 40}, {"method": "iterative", "landmarks": 40}]
    for call in calls:
        nd.solve(_NET, _X, _Y, _RIDGE, **call)
    with jax.no_tracing():
        for call in calls:
            nd.solve(_NET, _X, _Y, 2 * _RIDGE, **call)


def test_an_output_of_another_call_is_refused_or_replaced(tmp_path):
    nd.solve(_NET, _X, _Y, _RIDGE, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"others: solve.ridge 0.5 before, 0.25 now"):
        nd.solve(_NET, _X, _Y, 0.25, out=tmp_path)
    # All rows and targets are recognized, not only a sample of them.
    y = _Y.copy()
    y[-1, 1] += 1e-9
    for other in ((_X + 1, _Y), (_X, y)):
        with pytest.raises(CheckpointError, match=r"solve.data"):
            nd.solve(_NET, *other, _RIDGE, out=tmp_path)
    assert nd.solve(_NET, _X, _Y, 0.25, out=tmp_path, overwrite=True).ridge == 0.25
    (tmp_path / "solution.npz").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"solution.npz to hold what was written"):
        nd.solve(_NET, _X, _Y, 0.25, out=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="hold a solution"):
        nd.solve(_NET, _X, _Y, 0.25, out=tmp_path / "other", overwrite=True)


def test_iterations_that_ended_too_early_warn_again_and_go_on(tmp_path):
    call: dict[str, Any] = {"method": "iterative", "landmarks": 40, "out": tmp_path}
    for _ in range(2):
        with pytest.warns(NumericalWarning, match=r"after 3; raise `ridge`"):
            nd.solve(_NET, _X, _Y, 0.01, max_iterations=3, **call)
    seen: list[int] = []
    found = nd.solve(_NET, _X, _Y, 0.01, **call, on_progress=lambda task, done, total: seen.append(done))
    assert min(seen[seen.index(4) :]) == 4
    assert 1 not in seen[2:]
    np.testing.assert_allclose(found.predict(_T), _exact(ridge=0.01)[0], atol=1e-4)


def test_batches_that_are_shuffled_anew_are_refused():
    class Shuffled:
        passes = 0

        def __iter__(self):
            self.passes += 1
            order = np.random.default_rng(self.passes).permutation(300)
            return iter([(_X[order[:200]], _Y[order[:200]]), (_X[order[200:]], _Y[order[200:]])])

    with pytest.raises(InputError, match="same rows in every pass"):
        nd.solve(_NET, Shuffled(), None, _RIDGE, landmarks=40)


def test_iterations_that_end_too_early_are_said():
    with pytest.warns(NumericalWarning, match=r"after 2; raise `ridge`"):
        found = nd.solve(_NET, _X, _Y, 1e-3, method="iterative", landmarks=40, max_iterations=2)
    left = _Y - (_kernels()[0] + 1e-3 * np.eye(300)) @ found.coefficients
    assert found.residual == pytest.approx((np.linalg.norm(left, axis=0) / np.linalg.norm(_Y, axis=0)).max(), rel=1e-6)


@pytest.mark.slow
def test_columns_that_converge_early_and_columns_of_zeros():
    y = np.stack([np.zeros(300), _Y[:, 0]], axis=1)
    found = nd.solve(_NET, _X, y, _RIDGE, method="iterative", landmarks=20)
    assert (found.coefficients[:, 0] == 0).all()
    np.testing.assert_allclose(found.predict(_T)[:, 1], _exact()[0][:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, "`ridge` to be above 0"),
        ({"method": "exact"}, "`method`"),
        ({"kind": "other"}, "`kind`"),
        ({"landmarks": 0}, "`landmarks`"),
        ({"tolerance": 2.0}, "`tolerance` to be between 0 and 1"),
        ({"memory_budget": "10 MiB"}, "`memory_budget` for one of the methods"),
        ({"memory_budget": "10 MiB", "method": "dense"}, "'dense', which takes"),
    ],
)
def test_refused_options(options, message):
    given: dict[str, Any] = {"ridge": _RIDGE, **options}
    with pytest.raises(InputError, match=message):
        nd.solve(_NET, _X, _Y, **given)


def test_other_refusals():
    with pytest.raises(InputError, match="one output, got 2"):
        nd.solve(nd.Dag.from_edges([(0, 1, 2), (0, 2, 2)], output=[1, 2]), _X, _Y, _RIDGE)
    with pytest.raises(InputError, match="class labels"):
        nd.solve(_NET, _X, np.arange(300), _RIDGE)
    with pytest.raises(InputError, match="'dense', which needs all rows in memory"):
        nd.solve(_NET, [(_X, _Y)], None, _RIDGE, method="dense")
    with pytest.raises(InputError, match=r"rows of shape \(6,\), got \(5,\)"):
        nd.solve(_NET, _X, _Y, _RIDGE).predict(_T[:, :5])
    mesh = jax.make_mesh((1, 1), ("a", "b"))
    with pytest.raises(InputError, match="with one axis"):
        nd.solve(_NET, _X, _Y, _RIDGE, mesh=mesh)


def test_the_result_is_shown():
    found = nd.solve(_NET, _X, _Y, _RIDGE, method="landmarks", landmarks=40)
    assert repr(found).startswith("Solution(landmarks, rows=300, outputs=2, kind='ntk', ridge=0.5")
    assert "held_out_accuracy" in repr(found)
    frame = found.to_frame()
    assert (len(frame), *frame[["basis", "held_out_rows"]].iloc[0]) == (1, 40, 30)
