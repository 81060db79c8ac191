"""`spectrum` against NumPy, and where it says that it cannot tell."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError, NumericalWarning


def random_psd(n, seed, dtype=np.float64):
    g = np.random.default_rng(seed).normal(size=(n, 2 * n))
    return (g @ g.T / n).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
@pytest.mark.parametrize("seed", range(3))
def test_extremes_are_those_of_numpy_in_float64(n, seed, dtype):
    matrix = random_psd(n, seed, dtype)
    eigenvalues = np.linalg.eigvalsh(matrix.astype(np.float64))
    s = nd.spectrum(matrix)
    assert s.lambda_min == pytest.approx(eigenvalues[0], rel=1e-11)
    assert s.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-11)
    assert s.condition_number == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-11)
    assert s.floor == pytest.approx(n * np.finfo(dtype).eps * eigenvalues[-1], rel=1e-11)
    assert s.resolved


def test_an_array_of_jax_is_read_in_its_dtype():
    s = nd.spectrum(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    assert (s.lambda_min, s.lambda_max) == pytest.approx((1.0, 3.0))
    assert s.floor == pytest.approx(2 * 2.0**-23 * 3)


def test_whole_numbers_are_read_in_float64():
    s = nd.spectrum(np.array([[2, 1], [1, 2]]))
    assert (s.lambda_min, s.lambda_max) == pytest.approx((1.0, 3.0))
    assert s.floor == pytest.approx(2 * 2.0**-52 * 3)


def test_one_input_has_one_eigenvalue():
    s = nd.spectrum(np.array([[2.5]]))
    assert (s.lambda_min, s.lambda_max, s.condition_number, s.resolved) == (2.5, 2.5, 1.0, True)


def test_the_floor_depends_on_the_dtype_of_the_matrix():
    matrix = np.diag([1.0, 1e-7])
    double = nd.spectrum(matrix)
    assert double.resolved
    assert double.condition_number == pytest.approx(1e7)
    with pytest.warns(NumericalWarning, match="below the floor 2.38e-07 of a float32 matrix"):
        single = nd.spectrum(matrix.astype(np.float32))
    assert not single.resolved
    assert single.condition_number == float("inf")
    assert single.floor / double.floor == pytest.approx(2.0**29)


@pytest.mark.parametrize(("factor", "resolved"), [(0.97, False), (1.03, True)])
def test_the_floor_is_where_it_is_said_to_be(factor, resolved, recwarn):
    s = nd.spectrum(np.diag([factor * 3 * 2.0**-52, 1.0, 1.0]))
    assert s.resolved is resolved
    assert len(recwarn) == (not resolved)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("order", ["linear-act", "act-linear"])
@pytest.mark.parametrize("seed", range(3))
def test_duplicate_inputs_are_not_resolved(seed, order, dtype):
    x = np.random.default_rng(seed).normal(size=(6, 50)).astype(dtype)
    x[3] = x[1]
    k = nd.kernel(nd.Dag.from_code("2_21_112"), x, order=order)
    for matrix in (k.nngp, k.ntk):
        with pytest.warns(NumericalWarning, match="lambda_min is not resolved.*drop duplicate inputs"):
            s = nd.spectrum(matrix)
        assert not s.resolved
        assert s.condition_number == float("inf")


def test_half_precision_is_refused():
    with pytest.raises(InputError, match="Expected `matrix` in float32 or float64, got float16"):
        nd.spectrum(np.eye(3, dtype=np.float16))


def test_a_kernel_without_duplicates_is_resolved_without_a_warning():
    x = np.random.default_rng(0).normal(size=(6, 50))
    k = nd.kernel(nd.Dag.from_code("2_21_112"), x)
    assert nd.spectrum(k.nngp).resolved
    assert nd.spectrum(k.ntk).resolved


@pytest.mark.parametrize("matrix", [np.zeros((1, 1)), np.zeros((3, 3)), np.diag([-1.0, 2.0])])
def test_a_zero_or_negative_eigenvalue_is_not_resolved(matrix):
    with pytest.warns(NumericalWarning, match="not resolved"):
        s = nd.spectrum(matrix)
    assert s.condition_number == float("inf")


def test_the_warning_points_at_the_caller():
    # Without the type checker of the tests, which puts a frame of its own between.
    with pytest.warns(NumericalWarning, match="not resolved") as caught:
        inspect.unwrap(nd.spectrum)(np.zeros((2, 2)))
    assert caught[0].filename == __file__


def test_float64_stays_local():
    nd.spectrum(random_psd(3, 0))
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("shape", [(2, 3), (4,), (), (0, 0), (2, 2, 2)])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(InputError, match="Expected `matrix` to be a square matrix, got shape"):
        nd.spectrum(np.ones(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_is_refused(value):
    matrix = np.eye(3)
    matrix[1, 1] = value
    with pytest.raises(InputError, match="Expected `matrix` to be finite, got NaN or infinity"):
        nd.spectrum(matrix)


@pytest.mark.parametrize(("dtype", "rounding", "error"), [(np.float64, 1e-15, 1e-12), (np.float32, 1e-6, 1e-3)])
def test_rounding_may_break_symmetry_but_nothing_else_may(dtype, rounding, error):
    matrix = random_psd(3, 0, dtype)
    scale = matrix.max()
    matrix[0, 1] += rounding * scale
    assert nd.spectrum(matrix).resolved
    matrix[0, 1] += error * scale
    with pytest.raises(InputError, match="Expected `matrix` to be symmetric, got entries that differ"):
        nd.spectrum(matrix)
