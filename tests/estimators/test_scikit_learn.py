"""Estimators of scikit-learn against hand-written solves, scikit-learn's own models, and its contract."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import nngp_dag as nd

REGRESSORS = {"nngp": nd.estimators.NNGPRegressor, "ntk": nd.estimators.NTKRegressor}
CLASSIFIERS = {"nngp": nd.estimators.NNGPClassifier, "ntk": nd.estimators.NTKClassifier}


@pytest.mark.slow
@parametrize_with_checks([estimator() for estimator in (*REGRESSORS.values(), *CLASSIFIERS.values())])
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)
