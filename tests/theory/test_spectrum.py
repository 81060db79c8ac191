"""`spectrum` against NumPy, mpmath and prescribed spectra, and its resolution floor."""

import inspect
import math
import sys
import tracemalloc
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.sparse.linalg

import nngp_dag as nd
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.theory._spectrum import Spectrum, spectra, spectrum
from nngp_dag.theory.symmetric import largest_entry, symmetric_part

EPS = 2.0**-52
MODULE = sys.modules["nngp_dag.theory._spectrum"]  # the package's attribute of that name is the function
METHODS = ["dense", "iterative"]


def random_psd(n, seed, dtype: Any = np.float64):
    g = np.random.default_rng(seed).normal(size=(n, 2 * n))
    return symmetric_part((g @ g.T / n).astype(dtype)).astype(dtype)


def prescribed(eigenvalues, seed=0):
    """Returns a matrix with these eigenvalues, up to a few EPS times the largest."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return symmetric_part((q * eigenvalues) @ q.T)


def floor_of(matrix, lambda_max):
    eps = float(np.finfo(matrix.dtype).eps)
    return 16 * eps * np.abs(matrix.astype(np.float64)).sum(axis=1).max() + len(matrix) * EPS * lambda_max


def silently(matrix, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        return spectrum(matrix, **options)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_every_field_is_that_of_numpy_in_float64(n, method, dtype):
    for seed in range(3):
        matrix = random_psd(n, seed, dtype)
        eigenvalues = np.linalg.eigvalsh(matrix.astype(np.float64))
        s = spectrum(matrix, method=method)
        assert s.lambda_min == pytest.approx(eigenvalues[0], rel=1e-11)
        assert s.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-11)
        assert s.condition_number == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-11)
        assert s.floor == pytest.approx(floor_of(matrix, eigenvalues[-1]), rel=1e-11)
        assert s.trace == pytest.approx(eigenvalues.sum(), rel=1e-11)
        assert s.effective_rank == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-11)
        assert 0 <= s.residual_min <= 1e-12 * s.lambda_max
        assert 0 <= s.residual_max <= 1e-9 * s.lambda_max
        assert s.residual == max(s.residual_min, s.residual_max)
        assert s.eigenvalues is None
        assert s.resolved


@pytest.mark.parametrize("method", ["auto", "dense"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_all_eigenvalues_are_those_of_numpy(method, dtype):
    matrix = random_psd(30, 0, dtype)
    s = spectrum(matrix, method=method, eigenvalues=True)
    assert s.eigenvalues is not None
    np.testing.assert_allclose(s.eigenvalues, np.linalg.eigvalsh(matrix.astype(np.float64)), rtol=1e-12)
    assert s.eigenvalues.dtype == np.float64
    assert (s.lambda_min, s.lambda_max) == (s.eigenvalues[0], s.eigenvalues[-1])


@pytest.mark.parametrize("n", [33, 34, 200])
def test_one_route_on_cpus_and_one_on_accelerators_agree(n, monkeypatch):
    matrices = [random_psd(n, seed) for seed in range(3)] + [prescribed(np.repeat([1e-4, 1.0], [n - 5, 5]))]
    by_lapack = spectra(matrices)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    by_jax = spectra(matrices)
    for first, second in zip(by_lapack, by_jax, strict=True):
        assert first.lambda_min == pytest.approx(second.lambda_min, rel=1e-11)
        assert first.lambda_max == pytest.approx(second.lambda_max, rel=1e-13)
        for s in (first, second):
            assert s.residual <= 1e-13 * s.lambda_max


@pytest.mark.slow
def test_nearly_constant_diagonals_with_tiny_couplings():
    """SciPy's bisection fails for some of them: orthonormal inputs, an identity with noise, weakly coupled blocks."""
    rng, matrices = np.random.default_rng(0), []
    for n in (33, 64, 129):
        for _ in range(40):
            q, _ = np.linalg.qr(rng.normal(size=(n, n)))
            noise = 1e-17 * rng.normal(size=(n, n))
            coupled = np.eye(n)
            coupled[:2, 2:] = coupled[2:, :2].T[:] = 10.0 ** rng.integers(-320, -5)
            matrices += [symmetric_part(q @ q.T), symmetric_part(np.eye(n) + noise), symmetric_part(coupled)]
    for s in spectra(matrices):
        assert s.lambda_min == pytest.approx(1, abs=1e-3)
        assert s.lambda_max == pytest.approx(1, abs=1e-3)
        assert s.residual <= 1e-12


def test_all_eigenvalues_are_not_asked_of_the_iteration():
    with pytest.raises(InputError, match="Expected `method` 'dense' or 'auto' where all eigenvalues are wanted"):
        spectrum(np.eye(3), method="iterative", eigenvalues=True)
    with pytest.raises(InputError, match="Expected `method` to be"):
        spectrum(np.eye(3), method="lanczos")


SPECTRA = {
    **{f"condition 1e{k}": np.geomspace(10.0**-k, 1, 200) for k in (2, 4, 6, 8, 10)},
    "uniform": np.linspace(1e-3, 1, 150),
    "cluster at the bottom": np.concatenate([1e-6 * (1 + 1e-8 * np.arange(5)), np.linspace(1e-3, 1, 145)]),
    "cluster at the top": np.concatenate([np.linspace(1e-3, 1, 145), 2 - 1e-8 * np.arange(5)[::-1]]),
    "wide cluster": np.concatenate([np.geomspace(1e-6, 1.001e-6, 75), np.linspace(1e-3, 1, 75)]),
    "two values": np.repeat([1e-4, 1.0], 60),
    "one small value": np.array([1e-9, *[1.0] * 99]),
    "one large value": np.array([*[1.0] * 99, 1e9]),
    "multiple of the identity": np.full(100, 3.0),
    "nearly the identity": 1 + 1e-12 * np.linspace(-1, 1, 100),
}


@pytest.mark.sample(3, slow=2)
@pytest.mark.parametrize("name", SPECTRA)
def test_both_methods_find_prescribed_ends(name):
    """The tolerance is 1e-9 relative, or the rounding error of an eigenvalue in float64, with that of the matrix."""
    eigenvalues = SPECTRA[name]
    matrix = prescribed(eigenvalues)
    rounding = 20 * EPS * eigenvalues[-1]
    found = {method: spectrum(matrix, method=method) for method in METHODS}
    for s in found.values():
        assert s.resolved
        assert s.lambda_min == pytest.approx(eigenvalues[0], rel=1e-9, abs=rounding)
        assert s.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-9)
    dense, iterative = (found[method] for method in METHODS)
    assert iterative.lambda_min == pytest.approx(dense.lambda_min, rel=1e-9, abs=rounding)
    assert iterative.lambda_max == pytest.approx(dense.lambda_max, rel=1e-9)


@pytest.mark.sample(3, slow=2)
@pytest.mark.parametrize("name", SPECTRA)
def test_each_end_is_within_its_residual_of_an_eigenvalue(name):
    """This is the residual theorem, up to rounding of the residual itself."""
    matrix = prescribed(SPECTRA[name], seed=1)
    eigenvalues = np.linalg.eigvalsh(matrix)
    for s in (spectrum(matrix, method=method) for method in METHODS):
        rounding = 20 * EPS * s.lambda_max
        assert abs(eigenvalues - s.lambda_min).min() <= s.residual_min + rounding
        assert abs(eigenvalues - s.lambda_max).min() <= s.residual_max + rounding
        # One step after the iteration; without it the residual is 1e-10 lambda_max, which may exceed lambda_min.
        assert s.residual_min <= 20 * EPS * s.lambda_max + 1e-9 * s.lambda_min
        assert s.residual_max <= 1e-9 * s.lambda_max


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [3, 6, 9])
def test_ends_are_those_of_exact_arithmetic(n, method):
    """The matrices are Hilbert matrices, rounded to float64, whose condition number at N = 9 is 5e11."""
    matrix = np.array([[1 / (i + j + 1) for j in range(n)] for i in range(n)])
    with mpmath.workdps(60):
        exact = sorted(map(float, mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True)))
    s = spectrum(matrix, method=method)
    assert s.lambda_min == pytest.approx(exact[0], rel=1e-10, abs=4 * EPS * exact[-1])
    assert s.lambda_max == pytest.approx(exact[-1], rel=1e-12)
    assert s.resolved


@pytest.mark.parametrize("method", METHODS)
def test_ends_are_those_of_the_second_difference(method):
    n = 120
    matrix = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    s = spectrum(matrix, method=method)
    assert s.lambda_min == pytest.approx(4 * math.sin(math.pi / (2 * n + 2)) ** 2, rel=1e-9)
    assert s.lambda_max == pytest.approx(4 * math.cos(math.pi / (2 * n + 2)) ** 2, rel=1e-9)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_auto_decomposes_small_matrices_and_iterates_on_large_ones(backend, monkeypatch):
    calls = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for name in ("_dense", "_iterative"):
        original = getattr(MODULE, name)
        monkeypatch.setattr(MODULE, name, lambda *a, n=name, f=original: (calls.append(n), f(*a))[1])
    monkeypatch.setattr(MODULE, "_DENSE_ROWS" if backend == "cpu" else "_DENSE_ROWS_ON_GPU", 4)
    spectrum(np.eye(4))
    spectrum(np.eye(5))
    spectrum(np.eye(5), eigenvalues=True)
    spectra([np.eye(5), np.eye(3)])
    assert calls == ["_dense", "_iterative", "_dense", "_iterative", "_dense"]


def test_an_array_of_jax_is_read_in_its_dtype():
    s = nd.spectrum(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    assert (s.lambda_min, s.lambda_max) == pytest.approx((1.0, 3.0))
    assert s.floor == pytest.approx(16 * 2.0**-23 * 3 + 2 * EPS * 3)


def test_whole_numbers_are_read_in_float64():
    s = nd.spectrum(np.array([[2, 1], [1, 2]]))
    assert (s.lambda_min, s.lambda_max) == pytest.approx((1.0, 3.0))
    assert s.floor == pytest.approx(18 * EPS * 3)


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_one_input_has_one_eigenvalue(method):
    s = spectrum(np.array([[2.5]]), method=method)
    assert (s.lambda_min, s.lambda_max, s.condition_number, s.resolved) == (2.5, 2.5, 1.0, True)
    assert (s.trace, s.effective_rank, s.residual) == (2.5, 1.0, 0.0)


def test_the_floor_depends_on_the_dtype_of_the_matrix():
    matrix = np.diag([1.0, 1e-7])
    double = nd.spectrum(matrix)
    assert double.resolved
    assert double.condition_number == pytest.approx(1e7)
    with pytest.warns(NumericalWarning, match=r"it lies below the resolution floor 1.91e-06 of a float32 matrix"):
        single = nd.spectrum(matrix.astype(np.float32))
    assert not single.resolved
    assert single.condition_number == float("inf")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("factor", "resolved"), [(0.97, False), (1.0, False), (1.03, True)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_floor_is_where_it_is_said_to_be(factor, resolved, method, dtype, recwarn):
    floor = 16 * float(np.finfo(dtype).eps) + 3 * EPS
    smallest = dtype(factor * floor)
    if factor == 1 and smallest > floor:  # float32 rounds the floor up
        smallest = np.nextafter(smallest, dtype(0))
    s = spectrum(np.diag([smallest, 1.0, 1.0]).astype(dtype), method=method)
    assert s.floor == pytest.approx(floor, rel=1e-12)
    assert s.lambda_min == pytest.approx(float(smallest), rel=0.1)
    assert s.resolved is resolved
    assert len(recwarn) == (not resolved)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_relative_errors_of_16_eps_stay_below_the_floor(dtype):
    rng = np.random.default_rng(0)
    shapes = [rng.normal(size=(n, d)) for n, d in ((2, 5), (8, 3), (30, 40), (60, 10))]
    shapes += [np.abs(x) for x in shapes]
    eps = float(np.finfo(dtype).eps)
    closest = 0.0
    for x in shapes:
        matrix = symmetric_part((x @ x.T).astype(dtype))
        s = silently(matrix.astype(dtype))
        before = np.linalg.eigvalsh(matrix)[[0, -1]]
        for trial in range(40):
            draw = rng.uniform(-1, 1, size=matrix.shape) if trial % 2 else rng.choice([-1, 1], size=matrix.shape)
            errors = np.triu(draw) + np.triu(draw, 1).T
            if trial == 0:
                errors = np.ones_like(matrix)
            # Errors are enlarged, so that rounding in this test does not hide a small floor.
            after = np.linalg.eigvalsh(matrix * (1 + 16 * 2**10 * eps * errors))[[0, -1]]
            moved = abs(after - before).max() / 2**10
            assert moved <= s.floor
            closest = max(closest, moved / s.floor)
    assert closest > 0.7  # matrices of positive entries come close


@pytest.mark.parametrize(
    ("s", "resolved"),
    [
        (Spectrum(1.0, 2.0, 0.5), True),
        (Spectrum(1.0, 2.0, 0.5, residual_min=0.4), True),
        (Spectrum(1.0, 2.0, 0.5, residual_min=0.6), False),
        (Spectrum(1.0, 2.0, 0.5, residual_max=0.6), True),
        (Spectrum(0.5, 2.0, 0.5), False),
        (Spectrum(0.0, 0.0, 0.0), False),
        (Spectrum(math.nan, 2.0, 0.5), False),
    ],
)
def test_resolved_means_above_the_floor_by_more_than_the_residual(s, resolved):
    assert s.resolved is resolved
    assert s.condition_number == (2.0 if resolved else float("inf"))


def test_a_residual_across_the_floor_is_told_apart_in_the_warning(monkeypatch):
    monkeypatch.setattr(MODULE, "_iterative", lambda *_: Spectrum(1.0, 2.0, 0.5, residual_min=0.6))
    with pytest.warns(NumericalWarning, match="its residual 6.00e-01 reaches below the resolution floor 5.00e-01"):
        spectrum(np.eye(3), method="iterative")


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_of_the_top_does_not_hide_the_bottom(method):
    """At condition number 1e12, lambda_max is known to 1e-10, but lambda_min still is above its resolution floor."""
    s = spectrum(prescribed(np.geomspace(1e-12, 1, 100)), method=method)
    assert s.resolved
    assert s.lambda_min == pytest.approx(1e-12, rel=1e-3)


def duplicated():
    x = np.random.default_rng(0).normal(size=(40, 60))
    x[7] = x[3]
    return x @ x.T


def nearly_duplicated():
    x = np.random.default_rng(0).normal(size=(40, 60))
    x[7] = x[3] * (1 + 1e-12)
    return x @ x.T


UNRESOLVED = {
    "zero, N = 1": np.zeros((1, 1)),
    "zero, N = 2": np.zeros((2, 2)),
    "zero": np.zeros((5, 5)),
    "ones, N = 2": np.ones((2, 2)),
    "ones": np.ones((50, 50)),
    "a duplicate": duplicated(),
    "nearly a duplicate": nearly_duplicated(),
    "a row of zeros": np.diag([1.0, 2.0, 0.0, 3.0]),
    "a row too small to invert": np.diag([1.0, 1.0, 1e-310]),
    "a row below the floor": np.diag([1.0, 2.0, 1e-20]),
    "low rank": prescribed(np.array([0.0] * 30 + [1.0] * 30)),
    "condition 1e17": prescribed(np.geomspace(1e-17, 1, 40)),
    "negative by rounding": np.diag([-1e-16, 1.0, 1.0, 2.0]),
    "negative by the floor": np.diag([-16 * EPS, 1.0, 1.0]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", UNRESOLVED)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_singular_to_rounding_is_not_resolved(name, dtype, method):
    matrix = UNRESOLVED[name].astype(dtype)
    with pytest.warns(NumericalWarning, match="lambda_min is not resolved.*drop duplicate inputs"):
        s = spectrum(matrix, method=method)
    exact = np.linalg.eigvalsh(matrix.astype(np.float64))
    assert not s.resolved
    assert s.condition_number == float("inf")
    assert abs(s.lambda_min - exact[0]) <= s.floor
    assert s.lambda_max == pytest.approx(exact[-1], rel=1e-9)
    assert s.residual_min <= s.floor
    assert s.effective_rank == pytest.approx(exact.sum() ** 2 / (exact**2).sum() if matrix.any() else 0.0, rel=1e-5)


@pytest.mark.parametrize(
    ("order", "dtype"),
    [
        ("linear-act", np.float64),
        ("act-linear", np.float32),
        pytest.param("linear-act", np.float32, marks=pytest.mark.nightly),
        pytest.param("act-linear", np.float64, marks=pytest.mark.nightly),
    ],
)
def test_duplicate_inputs_are_not_resolved(order, dtype):
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(6, 50)).astype(dtype)
        x[3] = x[1]
        k = nd.kernel(nd.Dag.from_code("2_21_112"), x, order=order)
        for matrix in (k.nngp, k.ntk):
            for method in METHODS:
                with pytest.warns(NumericalWarning, match="lambda_min is not resolved.*drop duplicate inputs"):
                    s = spectrum(matrix, method=method)
                assert not s.resolved


INDEFINITE = {
    "N = 1": np.array([[-1.0]]),
    "N = 2": np.diag([-1.0, 2.0]),
    "N = 4": np.diag([-1.0, 1.0, 2.0, 3.0]),
    "negative definite": -np.eye(6),
    "a large matrix": prescribed(np.linspace(-1e-3, 1, 60)),
    "just below the floor": np.diag([-1.1 * (16 + 3) * EPS, 1.0, 1.0]),
    "below twice the floor": np.diag([-2.2 * (16 + 3) * EPS, 1.0, 1.0]),
    "no diagonal": np.ones((4, 4)) - np.eye(4),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", INDEFINITE)
def test_an_indefinite_matrix_is_refused(name, method):
    message = (
        r"Expected `matrix` to be positive semi-definite, got .* below -\d.*; pass the kernel of one set of inputs"
    )
    with pytest.raises(InputError, match=message):
        spectrum(INDEFINITE[name], method=method)


def test_half_precision_is_refused():
    with pytest.raises(InputError, match="Expected `matrix` in float32 or float64, got float16"):
        nd.spectrum(np.eye(3, dtype=np.float16))


def test_a_kernel_without_duplicates_is_resolved_without_a_warning():
    x = np.random.default_rng(0).normal(size=(6, 50))
    k = nd.kernel(nd.Dag.from_code("2_21_112"), x)
    assert nd.spectrum(k.nngp).resolved
    assert nd.spectrum(k.ntk).resolved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [-1000, -700, -1, 0, 700, 1010])
def test_the_unit_of_a_matrix_changes_nothing(exponent, method):
    matrix = prescribed(np.geomspace(1e-3, 1, 40))
    plain = spectrum(matrix, method=method)
    scaled = spectrum(np.ldexp(matrix, exponent), method=method)
    for name in ("lambda_min", "lambda_max", "trace", "residual_min", "residual_max", "floor"):
        tolerance = 40 * 2.0**-1074  # residuals may be too small for all their digits
        expected = math.ldexp(getattr(plain, name), exponent)
        assert getattr(scaled, name) == pytest.approx(expected, rel=1e-12, abs=tolerance)
    assert scaled.effective_rank == plain.effective_rank
    assert scaled.resolved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers_without_all_their_digits_raise_the_floor(method, dtype):
    """Subnormal entries of a dtype have an error of half the smallest number, whatever their size."""
    smallest = float(np.finfo(dtype).smallest_subnormal)
    matrix = (smallest * 500 * prescribed(np.geomspace(1e-2, 1, 20))).astype(dtype)
    with pytest.warns(NumericalWarning, match="not resolved"):
        s = spectrum(matrix, method=method)
    assert s.lambda_max == pytest.approx(500 * smallest, rel=1e-1)
    s = spectrum(np.eye(3, dtype=dtype) * dtype(500 * smallest), method=method)
    assert s.resolved
    assert (s.lambda_min, s.lambda_max) == pytest.approx((500 * smallest, 500 * smallest), rel=1e-14, abs=0)


@pytest.mark.parametrize("method", METHODS)
def test_eigenvalues_beyond_float64_are_refused(method):
    largest = float(np.finfo(np.float64).max)
    message = "Expected `matrix` to have eigenvalues in the range of float64, got entries of 1.8e.308; scale it down"
    with pytest.raises(InputError, match=message):
        spectrum(np.diag([largest, 1.0, 1.0]), method=method)
    s = spectrum(np.full((3, 3), largest / 7) + np.diag([largest / 100] * 3), method=method)
    assert s.lambda_max == pytest.approx(largest * (3 / 7 + 0.01))
    assert all(math.isfinite(v) for v in (s.floor, s.trace, s.effective_rank, s.residual, s.condition_number))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [3, 600])
def test_the_same_bits_twice(n, method):
    """Results repeat to the bit, even for the identity, where ARPACK draws random numbers."""
    if method == "dense" and n == 600:
        n = 100
    for matrix in (random_psd(n, 0), 3 * np.eye(n), np.ones((n, n))):
        first, second = (silently(matrix, method=method) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("method", METHODS)
def test_the_rounding_of_symmetry_is_averaged(method):
    """Both methods take the symmetric part of a matrix, and so still agree."""
    matrix = prescribed(np.geomspace(1e-6, 1, 60))
    skew = np.triu(np.random.default_rng(0).normal(size=matrix.shape), 1)
    rounded = matrix + 1e-15 * skew
    s = spectrum(rounded, method=method)
    expected = np.linalg.eigvalsh((rounded + rounded.T) / 2)
    assert s.lambda_min == pytest.approx(expected[0], rel=1e-9)
    assert s.residual_min <= 1e-8 * s.lambda_min


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", METHODS)
def test_a_mapped_file_and_any_layout_are_read(tmp_path, method, dtype, monkeypatch):
    monkeypatch.setattr("nngp_dag.theory.symmetric._BLOCK_BYTES", 8 * 70 * 33)
    monkeypatch.setattr("nngp_dag.theory.symmetric._TILE", 32)
    matrix = random_psd(70, 0, dtype)
    mapped = np.memmap(tmp_path / "k", dtype=dtype, mode="w+", shape=matrix.shape)
    mapped[...] = matrix
    mapped.flush()
    big = np.zeros((140, 140), dtype)
    big[::2, ::2] = matrix
    expected = spectrum(matrix, method=method)
    for view in (
        np.memmap(tmp_path / "k", dtype=dtype, mode="r", shape=matrix.shape),
        np.asfortranarray(matrix),
        big[::2, ::2],
    ):
        s = spectrum(view, method=method)
        assert s.lambda_min == pytest.approx(expected.lambda_min, rel=1e-10)
        assert s.lambda_max == pytest.approx(expected.lambda_max, rel=1e-10)
        assert s.trace == pytest.approx(expected.trace, rel=1e-14)
        assert s.floor == pytest.approx(expected.floor, rel=1e-10)
    np.testing.assert_array_equal(mapped, matrix)


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_iteration_holds_one_matrix_in_float64(singular, dtype, monkeypatch):
    n, block = 1500, 1 << 20
    monkeypatch.setattr("nngp_dag.theory.symmetric._BLOCK_BYTES", block)
    feature = np.arange(n)
    if singular:
        feature[1] = feature[0]
    matrix = (0.5 + (feature[:, None] == feature)).astype(dtype)
    before = matrix.copy()
    silently(np.eye(600), method="iterative")  # loads the modules that are imported late
    tracemalloc.start()
    try:
        s = silently(matrix, method="iterative")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert s.resolved is not singular
    assert s.lambda_min == pytest.approx(0 if singular else 1, rel=1e-9, abs=s.floor)
    # The memory is that of blocks with their temporary arrays, and of the vectors of ARPACK.
    assert 8 * n**2 <= peak <= 8 * n**2 + 6 * block + 150 * 8 * n
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_methods_agree_on_a_larger_matrix(dtype):
    matrix = prescribed(np.geomspace(1e-3, 1, 600)).astype(dtype)
    dense, iterative = spectrum(matrix, method="dense"), spectrum(matrix)
    for name in ("lambda_min", "lambda_max", "trace", "effective_rank", "floor"):
        assert getattr(iterative, name) == pytest.approx(getattr(dense, name), rel=1e-9)


def test_an_iteration_that_does_not_converge_is_an_error(monkeypatch):
    original = scipy.sparse.linalg.eigsh
    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", lambda *a, **k: original(*a, **{**k, "maxiter": 1}))
    with pytest.raises(InputError, match=r"Expected Lanczos iterations on `matrix` to converge.*pass method='dense'"):
        spectrum(prescribed(np.linspace(0.5, 1, 200)), method="iterative")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("eigenvalues", [False, True])
def test_a_batch_is_what_its_matrices_are(dtype, eigenvalues, monkeypatch):
    monkeypatch.setattr(MODULE, "_BATCH_ENTRIES", 3 * 64)
    matrices = np.stack([random_psd(8, seed, dtype) * dtype(10.0**seed) for seed in range(7)])
    found = spectra(matrices, eigenvalues=eigenvalues)
    assert len(found) == 7
    for s, matrix in zip(found, matrices, strict=True):
        alone = spectrum(matrix, eigenvalues=eigenvalues)
        for name in ("lambda_min", "lambda_max", "floor", "trace", "effective_rank"):
            assert getattr(s, name) == pytest.approx(getattr(alone, name), rel=1e-12)
        assert (s.eigenvalues is not None) == (alone.eigenvalues is not None) == eigenvalues
        if s.eigenvalues is not None and alone.eigenvalues is not None:
            np.testing.assert_allclose(s.eigenvalues, alone.eigenvalues, rtol=1e-12)


def test_a_batch_may_mix_shapes_and_dtypes():
    matrices = [random_psd(3, 0), random_psd(5, 1, np.float32), np.eye(530), np.array([[2]])]
    for s, matrix in zip(spectra(matrices), matrices, strict=True):
        assert s == spectrum(matrix)
    mixed = spectra([random_psd(3, 0), random_psd(3, 0).astype(np.float32)])
    assert mixed[1].floor / mixed[0].floor > 2.0**28
    assert [s.lambda_min for s in spectra(iter([np.eye(2), 3 * np.eye(2)]))] == [1.0, 3.0]
    assert [s.lambda_min for s in spectra(jnp.stack([jnp.eye(2), 3 * jnp.eye(2)]))] == [1.0, 3.0]


def test_a_batch_names_what_it_refuses():
    with pytest.raises(InputError, match="Expected `matrices` to hold at least one kernel, got none"):
        spectra([])
    with pytest.raises(InputError, match=r"Expected `matrices\[1\]` to be a square matrix"):
        spectra([np.eye(2), np.ones((2, 3))])
    with pytest.raises(InputError, match=r"Expected `matrices\[1\]` to be positive semi-definite"):
        spectra([np.eye(2), -np.eye(2)])
    with pytest.raises(InputError, match=r"Expected `matrices\[1\]` to be positive semi-definite"):
        spectra([np.eye(3), -np.eye(520)])


@pytest.mark.parametrize(
    ("function", "argument"),
    [(spectrum, np.zeros((2, 2))), (spectra, np.zeros((1, 2, 2))), (spectra, [np.eye(3), np.zeros((2, 2))])],
)
def test_the_warning_points_at_the_caller(function, argument):
    # Without the type checker of the tests, which adds a stack frame.
    with pytest.warns(NumericalWarning, match="not resolved") as caught:
        inspect.unwrap(function)(argument)
    assert caught[0].filename == __file__


def test_float64_stays_local():
    nd.spectrum(random_psd(3, 0))
    assert not jax.config.read("jax_enable_x64")


@pytest.mark.parametrize("shape", [(2, 3), (4,), (), (0, 0), (2, 2, 2)])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(InputError, match="Expected `matrix` to be a square matrix, got shape"):
        nd.spectrum(np.ones(shape))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [0, 1, 69])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_is_refused(value, place, method, monkeypatch):
    """The position of the entry does not matter: every block is checked."""
    monkeypatch.setattr("nngp_dag.theory.symmetric._BLOCK_BYTES", 8 * 70 * 20)
    matrix = np.eye(70)
    matrix[place, place] = value
    assert not np.isfinite(largest_entry(matrix))
    with pytest.raises(InputError, match="Expected `matrix` to be finite, got NaN or infinity"):
        spectrum(matrix, method=method)


@pytest.mark.parametrize(("dtype", "rounding", "error"), [(np.float64, 1e-15, 1e-12), (np.float32, 1e-6, 1e-3)])
def test_rounding_may_break_symmetry_but_nothing_else_may(dtype, rounding, error, monkeypatch):
    monkeypatch.setattr("nngp_dag.theory.symmetric._TILE", 2)
    matrix = random_psd(5, 0, dtype)
    scale = matrix.max()
    for place in ((0, 1), (4, 0), (4, 3)):
        broken = matrix.copy()
        broken[place] += rounding * scale
        assert nd.spectrum(broken).resolved
        broken[place] += error * scale
        with pytest.raises(InputError, match="Expected `matrix` to be symmetric, got entries that differ"):
            nd.spectrum(broken)


def test_entries_of_opposite_sign_are_no_overflow():
    matrix = np.eye(2)
    matrix[0, 1], matrix[1, 0] = 1.7e308, -1.7e308
    with pytest.raises(InputError, match=r"Expected `matrix` to be symmetric, got entries that differ.* by inf"):
        nd.spectrum(matrix)
