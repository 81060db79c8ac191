"""Exact kernels against finite networks: the flax model, drawn thousands of times."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import ORDERS, dags, finite_kernels

import nngp_dag as nd
from nngp_dag.graph import normal_form
from nngp_dag.kernels import dual, engine

X = np.random.default_rng(0).normal(size=(3, 6))
WIDTH, DRAWS = 128, 4096
# The corrections of order 1/width of these averages; most entries have none.
BIAS = 1 / WIDTH


def assert_agrees(samples, exact, power=0.05):
    """Agreement within 4 standard errors plus the bias, two-sided, so tight that a factor 1 + `power` would fail."""
    exact = np.asarray(exact)
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    standard_error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5 / scale
    tolerance = 4 * standard_error + BIAS
    assert (np.diag(tolerance) < power).all(), f"too few draws to see a factor of {1 + power}"
    deviation = np.abs(samples.mean(axis=0) - exact) / scale
    assert (deviation < tolerance).all(), f"off by {(deviation / tolerance).max():.2f} times the tolerance"


def check(dag, order):
    k = nd.kernel(dag, X, order=order)
    nngp, ntk = finite_kernels(dag, X.tobytes(), X.shape[1], order, WIDTH, DRAWS, seed=1)
    assert_agrees(nngp, k.nngp)
    assert_agrees(ntk, k.ntk)


SIX_NODES = nd.Dag.from_code("2_12_112_2112_11112")
PARALLEL = nd.Dag.from_edges([(0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 2, 1), (1, 3, 2), (2, 3, 1), (2, 4, 2), (3, 4, 1)])


@settings(max_examples=3, deadline=None, derandomize=True)
@example(dag=SIX_NODES)
@example(dag=PARALLEL)
@given(dag=dags())
@pytest.mark.parametrize("order", ORDERS)
def test_random_dags(order, dag):
    check(dag, order)


@pytest.mark.slow
@settings(max_examples=16, deadline=None, derandomize=True)
@given(dag=dags(min_nodes=4), order=st.sampled_from(ORDERS))
def test_many_random_dags(order, dag):
    check(dag, order)


@pytest.mark.parametrize("code", ["1_11", "1_01_222"])
def test_the_check_is_two_sided_and_sees_five_per_cent(code):
    dag = nd.Dag.from_code(code)
    k = nd.kernel(dag, X)
    nngp, ntk = finite_kernels(dag, X.tobytes(), X.shape[1], "linear-act", WIDTH, DRAWS, seed=1)
    assert_agrees(nngp, k.nngp)
    assert_agrees(ntk, k.ntk)
    for factor in (1.05, 1 / 1.05):
        for samples, exact in ((nngp, k.nngp), (ntk, k.ntk)):
            with pytest.raises(AssertionError, match="off by"):
                assert_agrees(samples * factor, exact, power=0.06)


def test_leaving_out_the_means_is_caught(monkeypatch):
    zero_mean = dual.Activation("relu", dual.RELU.dual, dual.RELU.dual_diagonal, mean=lambda q: 0 * q)
    monkeypatch.setitem(dual.ACTIVATIONS, "centred", zero_mean)
    dag = nd.Dag.from_code("1_01_222")
    wrong = nd.kernel(dag, X, activation="centred")
    nngp, _ = finite_kernels(dag, X.tobytes(), X.shape[1], "linear-act", WIDTH, DRAWS, seed=1)
    with pytest.raises(AssertionError, match="off by"):
        assert_agrees(nngp, wrong.nngp, power=0.5)


def test_leaving_out_skip_multiplicities_is_caught():
    dag = nd.Dag.from_code("1_11")  # X2 = X0 + X1 = 2 X0, so K(2) = 4 K(0)
    tables = normal_form(dag)
    single = [np.minimum(table, 1).astype(np.float32) for table in (tables.A, tables.B)]
    options = {"order": "linear-act", "activation": "relu", "readout": True}
    wrong, wrong_ntk = engine.kernel_of_inputs(*single, X.astype(np.float32), None, **options)
    nngp, ntk = finite_kernels(dag, X.tobytes(), X.shape[1], "linear-act", WIDTH, DRAWS, seed=1)
    with pytest.raises(AssertionError, match="off by"):
        assert_agrees(nngp, wrong, power=0.5)
    with pytest.raises(AssertionError, match="off by"):
        assert_agrees(ntk, wrong_ntk, power=0.5)
