"""Estimators of scikit-learn against hand-written solves, `posterior`, and the contract of scikit-learn."""

import pickle
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import nngp_dag as nd
from nngp_dag.errors import GraphError, InputError, NumericalWarning
from nngp_dag.estimators import _matrices

# scikit-learn passes whatever a user passes, so that the type checker of the tests would come first.
pytestmark = pytest.mark.usefixtures("unchecked")

REGRESSORS: dict[str, Any] = {"nngp": nd.estimators.NNGPRegressor, "ntk": nd.estimators.NTKRegressor}
CLASSIFIERS: dict[str, Any] = {"nngp": nd.estimators.NNGPClassifier, "ntk": nd.estimators.NTKClassifier}
KINDS = ("nngp", "ntk")
X, Z = np.random.default_rng(0).normal(size=(16, 3)), np.random.default_rng(1).normal(size=(7, 3))
Y = np.stack([3 + np.sin(2 * X[:, 0]), 50 * X[:, 1] ** 2], axis=1)
LABELS = np.array(["left", "right", "up"])[np.argmax(X, axis=1)]


def _cloned(model: Any) -> Any:
    return clone(model)


@pytest.mark.sample(0, slow=36)
@parametrize_with_checks([estimator() for estimator in (*REGRESSORS.values(), *CLASSIFIERS.values())])
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def chain(x1, x2, kind):
    """Returns a kernel of the chain of code 2: stem and one layer, ReLU, He variance, linear readout."""
    k, ntk = x1 @ x2.T / x1.shape[1], 0.0
    q1, q2 = (np.sum(x**2, axis=1) / x.shape[1] for x in (x1, x2))
    for _ in range(2):
        size = np.sqrt(np.outer(q1, q2))
        angle = np.arccos(np.clip(k / size, -1, 1))
        # The variances are those of the input, since He's weights keep them.
        slope, k_next = (np.pi - angle) / np.pi, size * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
        ntk = slope * (k + ntk)
        k = k_next
    return 2 * k if kind == "nngp" else 2 * (k + ntk)


@pytest.mark.parametrize("kind", KINDS)
def test_regression_is_a_hand_written_solve_with_hand_written_kernels(kind):
    model = REGRESSORS[kind]("2", noise=0.03).fit(X, Y)
    mean, std = model.predict(Z, return_std=True)
    center, scale = Y.mean(axis=0), Y.std(axis=0)
    inverse = np.linalg.inv(chain(X, X, kind) + 0.03 * np.eye(16))
    weights = chain(Z, X, kind) @ inverse
    # The angle of an input with itself has an error of the root of the precision in this second derivation.
    np.testing.assert_allclose(mean, center + scale * (weights @ ((Y - center) / scale)), rtol=1e-6)
    prior, cross = np.diag(chain(Z, Z, "nngp")), chain(Z, X, "nngp")
    variance = prior - np.sum(weights * cross, axis=1)
    if kind == "ntk":
        variance += np.sum((weights @ chain(X, X, "nngp") - cross) * weights, axis=1)
    np.testing.assert_allclose(std, np.sqrt(variance)[:, None] * scale, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"aggregation": "mean"}, pytest.param({"activation": "erf", "b_std": 0.3}, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_regression_is_the_posterior_in_blocks_of_any_size(kind, options):
    kernels: list[Any] = [nd.kernel("2_21_112", *x, **options) for x in ((X,), (Z, X), (Z,))]
    expected = nd.posterior(kernels[0], kernels[1], kernels[2], Y, kind=kind, noise=0.2)
    for block_size in (2, 1024):
        model = REGRESSORS[kind](noise=0.2, normalize_y=False, block_size=block_size, **options).fit(X, Y)
        mean, std = model.predict(Z, return_std=True)
        np.testing.assert_allclose(mean, expected.mean, rtol=1e-10)
        np.testing.assert_allclose(std, np.stack([expected.std] * 2, axis=1), rtol=1e-8)
    _, covariance = model.predict(Z, return_cov=True)
    assert covariance.shape == (7, 7, 2)
    np.testing.assert_allclose(covariance[..., 1], expected.covariance, rtol=1e-9, atol=1e-11)


def test_predictions_are_in_units_of_the_targets_and_shaped_like_them():
    model = REGRESSORS["nngp"]("2").fit(X, Y[:, 0])
    mean, std = model.predict(Z, return_std=True)
    assert mean.shape == std.shape == (7,)
    assert model.predict(Z, return_cov=True)[1].shape == (7, 7)
    other = _cloned(model).fit(X, 7 - 100 * Y[:, 0])
    np.testing.assert_allclose(other.predict(Z), 7 - 100 * mean, rtol=1e-10)
    np.testing.assert_allclose(other.predict(Z, return_std=True)[1], 100 * std, rtol=1e-10)
    assert model.fit(X, Y[:, :1]).predict(Z).shape == (7, 1)
    np.testing.assert_allclose(model.fit(X, np.full(16, 0.1)).predict(Z), 0.1, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("nngp", "iterative"), ("ntk", "landmarks")])
def test_other_methods_solve_the_same_regression(kind, method):
    model = REGRESSORS[kind](noise=0.5, method=method, landmarks=8).fit(X, Y)
    mean, std = Y.mean(axis=0), Y.std(axis=0)
    wanted = nd.solve("2_21_112", X, (Y - mean) / std, 0.5, kind=kind, method=method, landmarks=8)
    np.testing.assert_allclose(model.predict(Z), wanted.predict(Z) * std + mean, rtol=1e-6)
    assert model.solution_.method == method
    if method == "landmarks":
        with pytest.raises(
            InputError, match="`return_std` after a fit by 'dense' or 'iterative', got one by 'landmarks'; fit with"
        ):
            model.predict(Z, return_std=True)
        return
    exact = REGRESSORS[kind](noise=0.5).fit(X, Y)
    for options in ({"return_std": True}, {"return_cov": True}):
        np.testing.assert_allclose(model.predict(Z, **options)[1], exact.predict(Z, **options)[1], rtol=1e-6)


def test_the_method_of_few_inputs_is_a_cholesky_factor():
    found, wanted = (
        REGRESSORS["nngp"](method=method).fit(X, Y[:, 0]).predict(Z, return_std=True) for method in ("auto", "dense")
    )
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InputError, match="`noise` to be above 0 for the method 'iterative', got 0"):
        REGRESSORS["nngp"](noise=0, method="iterative").fit(X, Y)
    with pytest.raises(InputError, match="did you mean 'iterative'"):
        REGRESSORS["nngp"](method="iterativ").fit(X, Y)


def test_integers_are_numbers_for_a_regressor():
    numbers = np.arange(16)
    model = REGRESSORS["ntk"]("2")
    np.testing.assert_array_equal(model.fit(X, numbers).predict(Z), _cloned(model).fit(X, 1.0 * numbers).predict(Z))


@pytest.mark.parametrize("kind", KINDS)
def test_classification_is_regression_on_centered_one_hot_targets(kind):
    model = CLASSIFIERS[kind]("2", noise=0.05).fit(X, LABELS)
    assert model.classes_.tolist() == ["left", "right", "up"]
    codes = np.searchsorted(model.classes_, LABELS)
    kernels = nd.kernel("2", X), nd.kernel("2", Z, X), nd.kernel("2", Z)
    outputs = nd.posterior(*kernels, np.eye(3)[codes] - 1 / 3, kind=kind, noise=0.05).mean
    np.testing.assert_allclose(model.decision_function(Z), outputs, rtol=1e-9, atol=1e-12)
    truth = np.array(["left", "right", "up"])[np.argmax(Z, axis=1)]
    expected = nd.kernel_regression_accuracy(
        *kernels[:2], codes, np.searchsorted(model.classes_, truth), 3, kind=kind, noise=0.05
    )
    assert model.score(Z, truth) == expected
    two = model.fit(X, X[:, 0] > 0)
    np.testing.assert_array_equal(two.predict(Z), two.decision_function(Z) > 0)


TABLES = {"diabetes": load_diabetes, "iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}


@pytest.mark.sample(0, slow=3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", TABLES)
def test_errors_on_real_tables_are_those_of_hand_written_solves(table, kind):
    x, y = TABLES[table](return_X_y=True)
    regression = table == "diabetes"
    folds = (KFold if regression else StratifiedKFold)(3, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), (REGRESSORS if regression else CLASSIFIERS)[kind]("2_21_112", noise=0.3))
    expected = np.empty(len(y))
    for train, test in folds.split(x, y):
        center, scale = x[train].mean(axis=0), x[train].std(axis=0)
        a, b = (x[train] - center) / scale, (x[test] - center) / scale
        k = getattr(nd.kernel("2_21_112", a), kind) + 0.3 * np.eye(len(a))
        cross = getattr(nd.kernel("2_21_112", b, a), kind)
        if regression:
            shifted = (y[train] - y[train].mean()) / y[train].std()
            expected[test] = y[train].mean() + y[train].std() * (cross @ np.linalg.solve(k, shifted))
        else:
            targets = np.eye(y.max() + 1)[y[train]] - 1 / (y.max() + 1)
            expected[test] = (cross @ np.linalg.solve(k, targets)).argmax(axis=1)
    found = cross_val_predict(model, x, y, cv=folds)
    if regression:
        errors = [np.sqrt(np.mean((values - y) ** 2)) for values in (found, expected)]
        assert 50 < errors[1] < 70
    else:
        errors = [np.mean(values != y) for values in (found, expected)]
        assert errors[1] < 0.15
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_grid_search_over_networks_in_a_pipeline():
    grid = {"nngpregressor__network": ["2", "2_21_112", nd.Network("2_02", aggregation="mean")]}
    pipeline = make_pipeline(StandardScaler(), REGRESSORS["nngp"]())
    search = GridSearchCV(pipeline, {**grid, "nngpregressor__noise": [1e-2, 1.0]}, cv=2).fit(X, Y[:, 0])
    assert len(search.cv_results_["params"]) == 6
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_[-1]
    assert best.network_ == nd.kernel(search.best_params_["nngpregressor__network"], X[:1]).network
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(Z), search.predict(Z))


def test_parameters_are_kept_as_given_until_fit():
    network = nd.Network("2_12", layer=nd.Dense(activation="erf", b_std=0.2))
    model = CLASSIFIERS["ntk"](network, w_std=1.1, noise=-1)
    assert model.get_params()["network"] is network
    assert _cloned(model).network == network
    assert "noise=-1" in repr(model)
    with pytest.raises(InputError, match="`noise` to be finite and at least 0, got -1"):
        model.fit(X, LABELS)
    fitted = model.set_params(noise=0.1).fit(X, LABELS)
    assert (fitted.network_.layer.w_std, fitted.network_.layer.b_std) == (1.1, 0.2)


def test_shapes_of_images_must_fit_the_rows():
    network = nd.Network("2", layer=nd.Conv(filter_shape=(3, 3)))
    rows, labels = np.random.default_rng(2).normal(size=(8, 32)), np.arange(8) % 2
    with pytest.raises(InputError, match=r"`image_shape` for a network with convolutions or pooling, got None"):
        CLASSIFIERS["nngp"](network).fit(rows, labels)
    with pytest.raises(InputError, match=r"`image_shape` to hold the 32 features of a row of `X`, got \(4, 4, 1\)"):
        CLASSIFIERS["nngp"](network, image_shape=(4, 4, 1)).fit(rows, labels)
    with pytest.raises(InputError, match=r"`image_shape` to be \(height, width, channels\), or None, got 32"):
        CLASSIFIERS["nngp"](network, image_shape=32).fit(rows, labels)


TWO_OUTPUTS = nd.Dag(3, (nd.Edge(0, 1, nd.Op.WEIGHTED), nd.Edge(0, 2, nd.Op.WEIGHTED)), outputs=(1, 2))


@pytest.mark.slow
def test_rows_become_images():
    images, labels = np.random.default_rng(2).normal(size=(8, 4, 4, 2)), np.arange(8) % 2
    network = nd.Network("2", layer=nd.Conv(filter_shape=(3, 3)))
    rows = images.reshape(8, -1)
    model = CLASSIFIERS["nngp"](network, image_shape=(4, 4, 2)).fit(rows, labels)
    k = nd.kernel(network, images).nngp
    shifted = k + 0.1 * np.eye(8)
    factor = np.tril(model.factor_)
    np.testing.assert_allclose(factor @ factor.T, shifted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(model.decision_function(rows), k @ np.linalg.solve(shifted, 2 * labels - 1.0), rtol=1e-8)


MISTAKES = {
    "a graph": (lambda: REGRESSORS["nngp"]("2_2x").fit(X, Y), GraphError, "'2x' in '2_2x'"),
    "an activation": (lambda: REGRESSORS["ntk"](activation="rleu").fit(X, Y), InputError, "did you mean 'relu'"),
    "several outputs": (
        lambda: REGRESSORS["ntk"](TWO_OUTPUTS).fit(X, Y),
        InputError,
        "`network` to have one output node, got 2",
    ),
    "a block": (lambda: REGRESSORS["ntk"](block_size=0).fit(X, Y), InputError, "`block_size`"),
    "a flag": (lambda: REGRESSORS["ntk"](normalize_y="no").fit(X, Y), InputError, "`normalize_y` to be True or False"),
    "a precision": (lambda: REGRESSORS["ntk"](dtype="half").fit(X, Y), InputError, "`dtype` to be one of"),
    "duplicates": (
        lambda: REGRESSORS["nngp"](noise=0).fit(np.ones((3, 2)), Y[:3]),
        InputError,
        "got a singular 3 x 3 matrix; pass a `noise` of about",
    ),
    "one class": (lambda: CLASSIFIERS["nngp"]().fit(X, ["a"] * 16), InputError, "at least 2 classes, got 1 class"),
    "numbers for classes": (lambda: CLASSIFIERS["nngp"]().fit(X, Y[:, 0]), ValueError, "Unknown label type"),
    "a sparse matrix": (
        lambda: REGRESSORS["nngp"]().fit(sparse.eye(16).tocsr(), Y),
        TypeError,
        "Sparse data was passed",
    ),
    "no fit": (lambda: REGRESSORS["nngp"]().predict(Z), NotFittedError, "not fitted yet"),
    "two spreads": (
        lambda: REGRESSORS["nngp"]("2").fit(X, Y).predict(Z, return_std=True, return_cov=True),
        InputError,
        "`return_std` or `return_cov`, got both",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_in_one_line(mistake):
    call, error, match = MISTAKES[mistake]
    with pytest.raises(error, match=match):
        call()


def test_a_kernel_that_is_nearly_singular_is_reported():
    x = np.concatenate([X, X * (1 + 1e-9)])
    with pytest.warns(NumericalWarning, match="a prediction is not resolved: the kernel of `X` with noise 1e-13"):
        REGRESSORS["nngp"]("2", noise=1e-13).fit(x, np.concatenate([Y, Y]))


def test_float32_kernels_are_factorized_in_float64():
    wide, narrow = (REGRESSORS["ntk"]("2", dtype=dtype).fit(X, Y) for dtype in ("float64", "float32"))
    assert narrow.factor_.dtype == np.float64
    np.testing.assert_allclose(narrow.predict(Z), wide.predict(Z), rtol=1e-4)
    assert not np.array_equal(narrow.predict(Z), wide.predict(Z))


def test_folds_of_about_equal_size_share_a_program(monkeypatch):
    sizes = {_matrices.few_sizes(rows) for rows in range(353, 361)}
    assert sizes == {384}
    for rows in (1, 2, 3, 7, 50, 999, 123_456):
        assert rows <= _matrices.few_sizes(rows) <= 1.25 * rows + 1
    x = np.random.default_rng(3).normal(size=(9, 3))  # padded to 10
    monkeypatch.setattr(_matrices, "_DIAGONAL_ROWS", 4)
    np.testing.assert_allclose(
        _matrices.matrix(nd.Network("2"), x, None, "ntk", "float64"), nd.kernel("2", x).ntk, rtol=1e-12
    )
    np.testing.assert_allclose(
        _matrices.diagonal(nd.Network("2"), x, "nngp", "float64"), np.diag(nd.kernel("2", x).nngp), rtol=1e-12
    )
