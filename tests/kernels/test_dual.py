import json
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from test_activations import CASES

from nngp_dag.activations import RELU, Activation, Polynomial, Quadrature, RectifiedMonomial
from nngp_dag.errors import InputError
from nngp_dag.kernels.dual import dual, gap_of, mean, quadrature_error, root
from nngp_dag.kernels.dual.arcsine import double_arcsine, less_arctan
from nngp_dag.kernels.neural_tangents import stax

CLOSED = [case for case in CASES if case.exact is not None]
mp.mp.dps = 50
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_closed_form = pytest.mark.parametrize("case", CLOSED, ids=lambda case: case.name)

# (q1, q2, correlation), with second moments whose roots make covariances exact.
POINTS = [
    (1.0, 1.0, 0.3),
    (2.25, 0.25, -0.7),
    (0.25, 1.0, 0.95),
    (1.0, 2.25, 0.0),
    (1.0, 1.0, 1.0),
    (0.25, 1.0, 1.0),
    (1.0, 1.0, -1.0),
    (2.25, 1.0, -1.0),
    (1e-4, 1.0, 0.5),
]


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def at(q1, q2, rho):
    r = np.sqrt(q1) * np.sqrt(q2)
    return rho * r, (1 - abs(rho)) * r, q1, q2


def arrays(points, dtype=jnp.float64):
    """Returns the columns k, gap, q1, q2 of points."""
    return tuple(jnp.asarray(column, dtype) for column in np.transpose([at(*p) for p in points]))


def scales(phi, q1, q2):
    """Returns the scale of C and its gap, and that of Fd: the roots of products of second moments."""
    own = [dual(phi, q, jnp.zeros_like(q), q, q) for q in (q1, q2)]
    second = [np.asarray(o.covariance + mean(phi, q) ** 2, "d") for o, q in zip(own, (q1, q2), strict=True)]
    f = np.sqrt(second[0]) * np.sqrt(second[1])
    return f, f, np.sqrt(np.asarray(own[0].slope, "d")) * np.sqrt(np.asarray(own[1].slope, "d"))


def expectations(f, df, q1, q2, rho):
    """Returns E[f(u) f(v)], E[df(u) df(v)], E[f(u)] and E[f(v)].

    The method is Gauss-Legendre in polar coordinates, between the rays where u or v changes its sign.
    """
    radius, radial = np.polynomial.legendre.leggauss(160)
    radius, radial = 7 * (radius + 1), 7 * radial
    turn, angular = np.polynomial.legendre.leggauss(64)
    rays = np.sort(np.mod([np.pi / 2, -np.pi / 2, np.arccos(rho) + np.pi / 2, np.arccos(rho) - np.pi / 2], 2 * np.pi))
    spans = np.diff([*rays, rays[0] + 2 * np.pi])[:, None] / 2
    psi = rays[:, None] + spans * (turn + 1)
    u = np.sqrt(q1) * radius[:, None] * np.cos(psi).ravel()
    v = np.sqrt(q2) * radius[:, None] * np.cos(psi - np.arccos(rho)).ravel()
    weights = (radial * radius * np.exp(-(radius**2) / 2))[:, None] * (spans * angular).ravel() / (2 * np.pi)
    f1, f2, df1, df2 = f(u), f(v), df(u), df(v)
    return [float(np.sum(weights * g)) for g in (f1 * f2, df1 * df2, f1, f2)]


def integrated(case):
    """Returns E[f(u) f(v)], C, its gap, Fd, E[f(u)] and E[f(v)] at all points, by integration."""
    rows = []
    for q1, q2, rho in POINTS:
        f, slope, *means = expectations(case.f, case.df, q1, q2, rho)
        own = [expectations(case.f, case.df, q, q, 1.0) for q in (q1, q2)]
        variances = [max(second - m**2, 0) for second, _, m, _ in own]
        covariance = f - means[0] * means[1]
        rows.append([f, covariance, np.sqrt(variances[0] * variances[1]) - abs(covariance), slope, *means])
    return rows


def assert_dual_is(case, rows):
    """Compares with the rows that `integrated` returns."""
    args = arrays(POINTS)
    c, gap, slope = dual(case.phi, *args)
    means = [np.asarray(mean(case.phi, q)) for q in args[2:]]
    scale, _, slope_scale = scales(case.phi, *args[2:])
    for i, ((q1, q2, rho), row) in enumerate(zip(POINTS, rows, strict=True)):
        found = [c[i] + means[0][i] * means[1][i], c[i], gap[i], slope[i], means[0][i], means[1][i]]
        # Where a variance is far below the square of the mean, integration has few correct digits.
        floors = [scale[i], scale[i], scale[i] * (1 if min(q1, q2) > 0.1 else 1e4), slope_scale[i], 1, 1]
        for value, expected, floor in zip(found, row, floors, strict=True):
            assert float(value) == pytest.approx(expected, rel=1e-10, abs=1e-12 * float(floor)), (q1, q2, rho)


@pytest.mark.parametrize("case", [c for c in CASES if not c.phi.compiles_slowly], ids=lambda case: case.name)
def test_against_integrals_on_disk(case, golden_dir):
    rows = json.loads((golden_dir / "duals.json").read_text())[case.name]
    # Without compilation, because no two activations share a compiled function.
    with jax.disable_jit():
        assert_dual_is(case, rows)


@pytest.mark.sample(0, slow=3)
@every_case
def test_against_integration(case, golden_dir):
    rows = integrated(case)
    assert_dual_is(case, rows)
    if not case.phi.compiles_slowly:
        on_disk = json.loads((golden_dir / "duals.json").read_text())[case.name]
        np.testing.assert_allclose(on_disk, rows, rtol=1e-11, atol=1e-13)


@pytest.mark.sample(0, slow=2)
@pytest.mark.parametrize("case", [c for c in CASES if c.layer], ids=lambda case: case.name)
def test_against_neural_tangents(case):
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(6, 4)), rng.normal(size=(5, 4))
    name, *arguments = case.layer
    with jax.numpy_rank_promotion("allow"):
        _, _, kernel_fn = stax.serial(stax.Dense(1), getattr(stax, name)(*arguments))
        theirs = kernel_fn(x, z, ("nngp", "ntk"))
    k, q1, q2 = jnp.asarray(x @ z.T / 4), jnp.asarray((x**2).mean(1))[:, None], jnp.asarray((z**2).mean(1))[None, :]
    c, _, fd = dual(case.phi, k, gap_of(k, q1, q2), q1, q2)
    f = c + mean(case.phi, q1) * mean(case.phi, q2)
    np.testing.assert_allclose(f, theirs.nngp, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(fd * k, theirs.ntk, rtol=1e-6, atol=1e-12)


def exact_variance(case, q):
    return mp.re(case.exact(mp.mpf(q), mp.mpf(q), mp.mpf(q)) - case.exact(mp.mpf(0), mp.mpf(q), mp.mpf(q)))


def exact_dual(case, gap, q1, q2, sign=1):
    """Returns C, its gap and Fd with 50 digits, for the exact values of floating-point numbers."""
    q1, q2, gap = mp.mpf(q1), mp.mpf(q2), mp.mpf(gap)
    k = sign * (mp.sqrt(q1 * q2) - gap)

    def covariance(k, q1, q2):
        return mp.re(case.exact(k, q1, q2) - case.exact(mp.mpf(0), q1, q2))

    c = covariance(k, q1, q2)
    variances = [exact_variance(case, q) for q in (q1, q2)]
    step = mp.mpf(10) ** -20 * gap
    slope = mp.re(case.exact(k + step, q1, q2) - case.exact(k - step, q1, q2)) / (2 * step)
    if case.name in ("sign", "rectified_monomial(0)"):
        slope = mp.mpf(0)
    return c, mp.sqrt(variances[0] * variances[1]) - abs(c), slope


@pytest.mark.sample(3, slow=3)
@every_closed_form
def test_to_the_last_digits(case):
    points = [(q1, q2, rho) for q1 in (0.25, 1.0, 2.25) for q2 in (0.25, 1.0) for rho in (-0.9, -0.4, 0.1, 0.6, 0.99)]
    k, gap, q1, q2 = arrays(points)
    got = dual(case.phi, k, gap, q1, q2)
    limits = scales(case.phi, q1, q2)
    for i, point in enumerate(points):
        exact = exact_dual(case, float(gap[i]), float(q1[i]), float(q2[i]), np.sign(point[2]))
        for value, reference, scale in zip(got, exact, limits, strict=True):
            assert abs(mp.mpf(float(value[i])) - reference) <= 1e-13 * max(abs(reference), 0.1 * scale[i]), point


@pytest.mark.sample(3, slow=3)
@every_closed_form
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_parallel_and_opposite_inputs_keep_the_angle(case, dtype, sign):
    """The angle is proportional to the root of the gap, and its error is of order eps."""
    eps = float(jnp.finfo(dtype).eps)
    for q1, q2 in [(1.0, 1.0), (1.7, 1.7), (1.0, 1.0 + 8 * eps), (1.0, 1.001), (0.5, 2.0)]:
        for angle in (0, 1e-6, 1e-3):
            q1, q2 = float(dtype(q1)), float(dtype(q2))
            r = np.sqrt(q1 * q2)
            gap = float(dtype(r * angle**2 / 2))
            got = dual(case.phi, dtype(sign * (r - gap)), dtype(gap), dtype(q1), dtype(q2))
            c, expected, slope = exact_dual(case, gap or mp.mpf(10) ** -40, q1, q2, sign)
            bound = float(mp.sqrt(exact_variance(case, q1) * exact_variance(case, q2)))
            # After a function that is neither even nor odd, opposite inputs no longer lie on one line.
            error = abs(np.sqrt(float(got.gap)) - float(mp.sqrt(abs(expected))))
            if not angle and case.name in ("sign", "rectified_monomial(0)"):
                expected, error = 0, abs(float(got.gap))  # of which a gap of 1e-40 would make 1e-20
            root_of_gap: Any = mp.sqrt(abs(expected))
            assert error <= 64 * eps * np.sqrt(bound) + 8 * eps * float(root_of_gap), (q1, q2, angle)
            assert float(got.covariance) == pytest.approx(float(c), rel=16 * eps, abs=32 * eps * bound)
            if angle:
                assert float(got.slope) == pytest.approx(
                    float(slope), rel=32 * eps, abs=64 * eps * bound / np.sqrt(q1 * q2)
                )


@pytest.mark.sample(6, slow=6)
@every_case
def test_diagonal_is_exact(case):
    for q in (jnp.float32(1.7), jnp.float64(0.3), jnp.float32(0), jnp.float64(0)):
        c, gap, slope = dual(case.phi, q, jnp.zeros_like(q), q, q)
        m = float(mean(case.phi, q))
        assert gap == 0
        assert c.dtype == gap.dtype == slope.dtype == q.dtype
        if q == 0:
            assert c == 0
            assert m == pytest.approx(float(case.f(0.0)), abs=1e-7)
        else:
            eps = float(jnp.finfo(q.dtype).eps)
            own = expectations(case.f, case.df, float(q), float(q), 1.0)
            assert float(c) + m**2 == pytest.approx(own[0], rel=16 * eps + case.accuracy)
            assert float(slope) == pytest.approx(own[1], rel=16 * eps + case.accuracy)
    q = jnp.float32(1.7)
    c, gap, slope = dual(RELU, q, jnp.float32(0), q, q)
    assert float(c) == pytest.approx(1.7 * (1 - 1 / np.pi) / 2, rel=3e-7)
    assert (gap, slope) == (0, 0.5)


@pytest.mark.sample(0, slow=4)
@every_case
def test_float32(case):
    rng = np.random.default_rng(3)
    points = [(q, q, np.cos(theta)) for q, theta in zip(rng.uniform(0.05, 2, 200), ANGLES, strict=True)]
    points += [(*rng.uniform(0.05, 2, 2), np.cos(theta)) for theta in ANGLES]
    single = arrays(points, jnp.float32)
    double = tuple(v.astype(jnp.float64) for v in single)
    got, expected = dual(case.phi, *single), dual(case.phi, *double)
    for value, reference, scale in zip(got, expected, scales(case.phi, *double[2:]), strict=True):
        error = np.abs(np.asarray(value, "d") - reference)
        assert (error <= 2e-6 * np.maximum(np.abs(reference), 0.3 * scale)).all()
    np.testing.assert_allclose(mean(case.phi, single[2]), mean(case.phi, double[2]), rtol=2e-6, atol=1e-7)


ANGLES = np.linspace(0.01, 3.13, 200)
EXTREMES = [
    (q1, q2, rho)
    for q1 in (0, 1e-30, 1e-12, 1e-3, 1, 1e3, 1e12, 1e30)
    for q2 in (0, 1e-30, 1e-12, 1e-3, 1, 1e3, 1e12, 1e30)
    for rho in (-1, -0.5, 0, 0.5, 1)
]


def total(phi):
    return lambda *args: jnp.stack(dual(phi, *args))


@pytest.mark.sample(1, slow=3)
@every_case
def test_extreme_scales_pass_in_float32(case):
    # For larger variances, powers overflow in intermediate results.
    powers = case.name.startswith(("monomial", "hermite", "polynomial"))
    points = [p for p in EXTREMES if not powers or max(p[:2]) <= 1e3]
    single = arrays(points, jnp.float32)
    double = tuple(v.astype(jnp.float64) for v in single)
    got, expected = (np.asarray(total(case.phi)(*args), "d") for args in (single, double))
    scale = np.stack(scales(case.phi, *double[2:]))
    fits = (scale < 1e36).all(axis=0)
    assert fits.all() or case.name.startswith(("exp", "rectified", "monomial", "hermite", "polynomial"))
    assert np.isfinite(got[:, fits]).all()
    error = np.abs(got[:, fits] - expected[:, fits])
    assert (error <= 2e-6 * scale[:, fits] + 1e-36).all()


@pytest.mark.sample(0, slow=4)
@every_case
def test_gradients_are_numbers(case):
    # Derivatives of quotients have squares, which underflow in float32 for smaller numbers.
    moderate = [p for p in EXTREMES if max(p[:2]) <= 1 and not {1e-30} & set(p[:2])]
    args = arrays([*POINTS, *moderate], jnp.float32)
    gradients = jax.grad(lambda *args: total(case.phi)(*args).sum(), (0, 1, 2, 3))(*args)
    assert all(np.isfinite(v).all() for v in gradients)
    assert np.isfinite(jax.grad(lambda q: mean(case.phi, q).sum())(args[2])).all()


@pytest.mark.sample(0, slow=4)
@every_case
def test_derivative_in_k_is_fd(case):
    if case.name in ("sign", "rectified_monomial(0)"):
        pytest.skip("the derivative counts as 0")

    def f(k, q1, q2):
        return dual(case.phi, k, gap_of(k, q1, q2), q1, q2)[0].sum()

    points = [p for p in POINTS if not (case.kinked and abs(p[2]) == 1)]
    k, gap, q1, q2 = arrays(points)
    fd = dual(case.phi, k, gap, q1, q2)[2]
    np.testing.assert_allclose(jax.grad(f)(k, q1, q2), fd, rtol=1e-9, atol=1e-12)


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("case", list({type(case.phi): case for case in CASES}.values()), ids=lambda case: case.name)
def test_compiled_for_matrices(case):
    q = jnp.asarray([0.5, 1.0, 2.0, 0.0])
    k = 0.4 * jnp.sqrt(q)[:, None] * jnp.sqrt(q)[None, :3]
    q1, q2 = q[:, None], q[None, :3]
    args = k, gap_of(k, q1, q2), q1, q2
    compiled = jax.jit(dual, static_argnums=0)(case.phi, *args)
    for value, reference in zip(compiled, dual(case.phi, *args), strict=True):
        assert value.shape == k.shape
        np.testing.assert_allclose(value, reference, rtol=1e-12, atol=1e-14)
    one = dual(case.phi, *(v[2, 1] for v in jnp.broadcast_arrays(*args)))
    np.testing.assert_allclose([v[2, 1] for v in compiled], one, rtol=1e-12, atol=1e-14)
    assert mean(case.phi, q).shape == q.shape


def test_zero_inputs_with_a_kink():
    zero, one = jnp.float32(0), jnp.float32(1)
    for phi in (RELU, RectifiedMonomial(2)):
        assert dual(phi, zero, zero, zero, one)[:2] == (0, 0)
    assert dual(RELU, zero, zero, zero, zero).slope == 0.5
    assert dual(RELU, zero, zero, zero, one).slope == 0.25


def test_antiparallel_inputs_have_no_relu_covariance():
    for t in (0, 1e-9, 1e-3, 0.1):
        gap = 2 * np.sin(t / 2) ** 2
        c, _, slope = dual(RELU, *map(jnp.float64, (gap - 1, gap, 1.0, 1.0)))
        # The second moments come from the small wedge in which both ReLUs are on.
        assert float(c) + 1 / (2 * np.pi) == pytest.approx((np.sin(t) - t * np.cos(t)) / (2 * np.pi), abs=1e-16)
        assert float(slope) == pytest.approx(t / (2 * np.pi), rel=1e-15)


# The bounds in the docstring of `quadrature_error`.
BOUNDS = {
    "tanh": (jnp.tanh, {0.25: 1e-14, 1.0: 2e-8, 4.0: 1e-3}),
    "softplus": (jax.nn.softplus, {0.25: 1e-14, 1.0: 1e-14, 4.0: 1e-10}),
    "swish": (jax.nn.swish, {0.25: 1e-14, 1.0: 1e-14, 4.0: 1e-8}),
}


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("name", BOUNDS)
def test_quadrature_error_is_as_documented_and_holds(name):
    fn, bounds = BOUNDS[name]
    phi = Quadrature(fn)

    def derivative(u):
        return jax.jvp(fn, (u,), (jnp.ones_like(u),))[1]

    for q, bound in bounds.items():
        error = float(quadrature_error(phi, jnp.float64(q)))
        assert error < bound
        f_numpy, df_numpy = (lambda u, g=g: np.asarray(g(jnp.asarray(u))) for g in (fn, derivative))
        scale, slope_scale, m, _ = expectations(f_numpy, df_numpy, q, q, 1.0)
        for rho in (1.0, 0.9, -1.0):
            c, _, fd = dual(phi, *map(jnp.float64, at(q, q, rho)))
            exact_f, exact_fd, _, _ = expectations(f_numpy, df_numpy, q, q, rho)
            # At correlation 1 the bound is the error.
            assert abs(float(c) + m**2 - exact_f) <= (1.001 * error + 1e-12) * scale
            assert abs(float(fd) - exact_fd) <= (1.001 * error + 1e-12) * slope_scale


@pytest.mark.slow
def test_quadrature_agrees_with_closed_forms_and_flags_kinks():
    by_name = {case.name: case.phi for case in CASES}
    args = arrays(POINTS)
    for name in ("gelu", "gabor"):
        numeric = Quadrature(by_name[name])
        for value, reference in zip(dual(numeric, *args), dual(by_name[name], *args), strict=True):
            limit = float(quadrature_error(numeric, args[2].max()))
            np.testing.assert_allclose(value, reference, atol=limit + 1e-12)
    for q in (0.1, 10.0):
        assert quadrature_error(Quadrature(jax.nn.relu), jnp.float64(q)) > 0.01
        assert quadrature_error(Quadrature(jnp.sign), jnp.float64(q)) > 0.01
    at_zero = quadrature_error(Quadrature(jnp.tanh), jnp.zeros((2, 1)))
    assert at_zero.shape == (2, 1)
    assert (at_zero < 1e-14).all()
    errors = [float(quadrature_error(Quadrature(jnp.tanh, degree=d), jnp.float64(1))) for d in (8, 16, 32)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.slow
def test_polynomials_are_exact_by_quadrature():
    phi = Polynomial((0.3, -1.0, 0.5, 0.2))
    numeric = Quadrature(phi, degree=5)
    for value, reference in zip(dual(numeric, *arrays(POINTS)), dual(phi, *arrays(POINTS)), strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-12, atol=1e-13)


def test_root():
    assert root(jnp.float32(4)) == 2
    assert jax.grad(root)(0.0) == 0
    assert root(jnp.float64(-1)) == 0


def test_unknown_activation():
    class Other(Activation):
        pass

    one = jnp.float64(1)
    with pytest.raises(
        InputError,
        match=r"whose dual is known, got .*class Other; register its dual .* or wrap it in `activations.Quadrature`",
    ):
        dual(Other(), one, one, one, one)
    with pytest.raises(InputError, match=r"whose mean is known, got .*class Other; register its mean"):
        mean(Other(), one)


@pytest.mark.parametrize(("dtype", "units"), [(np.float32, 4), (np.float64, 4)])
def test_arcsine_against_high_precision(dtype, units):
    eps = np.finfo(dtype).eps
    y = np.concatenate([np.linspace(0, 0.5, 301), np.geomspace(1e-30, 1e-3, 40)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found = np.asarray(double_arcsine(jnp.asarray(y), jnp.sqrt(jnp.asarray(y))), np.float64)
    with mp.workdps(40):
        exact = [2 * mp.asin(mp.sqrt(mp.mpf(float(v)))) for v in y]
        for value, expected in zip(found, exact, strict=True):
            assert abs(mp.mpf(float(value)) - expected) <= units * eps * expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_less_their_arctangent_against_high_precision(dtype):
    x = np.concatenate([-np.geomspace(1e-3, 1, 20), np.geomspace(1e-8, 1e8, 200)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found = np.asarray(less_arctan(jnp.asarray(x)), np.float64)
    with mp.workdps(40):
        exact = [mp.mpf(float(v)) - mp.atan(mp.mpf(float(v))) for v in x]
        for value, expected in zip(found, exact, strict=True):
            assert abs(mp.mpf(float(value)) - expected) <= 8 * np.finfo(dtype).eps * abs(expected)


@pytest.mark.slow
def test_the_angle_has_its_slope_at_right_angles():
    """Both halves of the formula meet at cos = 0, which orthogonal inputs reach."""
    one = jnp.asarray(1.0)
    slope = jax.grad(lambda k: dual(RELU, k, gap_of(k, one, one), one, one)[0])(jnp.asarray(0.0))
    # dF / dk = Fd = 1 / 4.
    assert float(slope) == pytest.approx(0.25, rel=1e-12)
