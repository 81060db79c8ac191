"""The dual of elu against one-dimensional integrals of conditional expectations, which have no angles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import empirical_kernels
from scipy import integrate, special

import nngp_dag as nd
from nngp_dag.activations import Elu
from nngp_dag.kernels.dual import dual, elu, gap_of, mean
from nngp_dag.nets import DagNet


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def normal(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def conditional(center, width, alpha):
    """Returns E[phi(v)] and E[phi'(v)] for v ~ N(center, width^2)."""
    if width == 0:
        return (center, 1.0) if center > 0 else (alpha * np.expm1(center), alpha * np.exp(center))
    h = center / width
    # E[exp(v); v < 0] = exp(center + width^2 / 2) Phi(-h - width)
    if h + width > 0:  # without overflow
        tilted = normal(h) * special.erfcx((h + width) / np.sqrt(2)) / 2 * np.sqrt(2 * np.pi)
    else:
        tilted = np.exp(center + width**2 / 2) * special.ndtr(-h - width)
    value = center * special.ndtr(h) + width * normal(h) + alpha * (tilted - special.ndtr(-h))
    return value, special.ndtr(h) + alpha * tilted


def exact(q1, q2, rho, alpha):
    """Returns C and Fd."""
    s1, s2 = np.sqrt(q1), np.sqrt(q2)
    width = s2 * np.sqrt(1 - rho**2)

    def integrand(z, which):
        u = s1 * z
        own = ((u, 1.0) if u > 0 else (alpha * np.expm1(u), alpha * np.exp(u)))[which]
        return own * conditional(rho * s2 * z, width, alpha)[which] * normal(z)

    scales = [
        x / s for s in (s1, s2, 1, abs(rho) / np.sqrt(1 - rho**2) if abs(rho) < 1 else 1) for x in (0.3, 1, 4, 20)
    ]
    ends = sorted({0.0, 14.0, -14.0, *(sign * x for sign in (-1, 1) for x in scales if x < 14)})
    second, slope = (
        sum(
            integrate.quad(integrand, a, b, args=(which,), epsabs=0, epsrel=1e-13)[0]
            for a, b in itertools.pairwise(ends)
        )
        for which in (0, 1)
    )
    return second - conditional(0, s1, alpha)[0] * conditional(0, s2, alpha)[0], slope


POINTS = [
    (1.0, 1.0, 0.3),
    (4.0, 0.25, -0.7),
    (1e-4, 1.0, 0.5),
    (1e-2, 3e-2, -0.95),
    (100.0, 25.0, 0.9),
    (1e4, 1e4, -0.99),
    (1e6, 1.0, 0.2),
    (1e8, 3e8, 0.999),
    (1.0, 2.0, 1.0),
    (3.0, 3.0, -1.0),
]


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, *(pytest.param(a, marks=pytest.mark.nightly) for a in (-0.7, 5.0))])
def test_against_integrals_of_conditional_expectations(alpha):
    c, slope = np.transpose([exact(*p, alpha) for p in POINTS])
    for dtype, accuracy in ((jnp.float64, 1e-13), (jnp.float32, 2e-6)):
        q1, q2, rho = (np.array(v) for v in zip(*POINTS, strict=True))
        r = np.sqrt(q1) * np.sqrt(q2)
        phi = Elu(alpha)
        args = [jnp.asarray(v, dtype) for v in (rho * r, (1 - abs(rho)) * r, q1, q2)]
        found = jax.jit(dual, static_argnums=0)(phi, *args)
        own = [jax.jit(dual, static_argnums=0)(phi, q, 0 * q, q, q) for q in args[2:]]
        norms = np.sqrt(np.asarray(own[0].covariance, float)) * np.sqrt(np.asarray(own[1].covariance, float))
        gap = norms - abs(c)
        for value, expected, scale in (
            (found.covariance, c, norms),
            (found.gap, gap, norms),
            (found.slope, slope, np.sqrt(np.asarray(own[0].slope * own[1].slope, float))),
        ):
            assert (abs(np.asarray(value, float) - expected) <= accuracy * scale).all()
        means = np.array([conditional(0, np.sqrt(q), alpha)[0] for q in q1])
        assert (abs(np.asarray(mean(phi, args[2]), float) - means) <= accuracy * np.sqrt(q1)).all()


@pytest.mark.nightly
def test_nearly_equal_inputs_keep_their_angle():
    """The gap grows with slope Fd, at all variances."""
    for dtype, accuracy in ((jnp.float64, 1e-10), (jnp.float32, 4e-6)):
        q = jnp.asarray(10.0 ** np.arange(-12, 13, 3), dtype)
        d = q * dtype(1e-16) / jnp.maximum(q, 1)
        _, gap, slope = jax.jit(dual, static_argnums=0)(Elu(0.5), q - d, d, q, q)
        # Fd falls with the angle, by a fraction of at most about sqrt(2 d).
        np.testing.assert_allclose(gap, slope * d, rtol=accuracy + 3e-8)
        assert (jax.jit(dual, static_argnums=0)(Elu(0.5), q, 0 * q, q, q).gap == 0).all()


@pytest.mark.sample(1)
@pytest.mark.parametrize(("dtype", "accuracy"), [(np.float64, 2e-15), (np.float32, 1e-6)])
def test_functions_of_one_number(dtype, accuracy):
    c = np.concatenate([[0.0], np.geomspace(1e-12, 1e15, 200), np.linspace(0.1, 60, 200)]).astype(dtype)
    scaled = special.erfcx(c.astype(float) / np.sqrt(2))
    found = elu._half_normal(jnp.asarray(c))
    np.testing.assert_allclose(found, scaled, rtol=accuracy)
    some = c < 10
    expected = 1 - c[some].astype(float) * np.sqrt(np.pi / 2) * scaled[some]
    np.testing.assert_allclose(elu._m_of_radius(jnp.asarray(c))[some], expected, rtol=50 * accuracy)
    assert jnp.isfinite(jax.vmap(jax.grad(jax.grad(elu._half_normal)))(jnp.asarray(c))).all()


@pytest.mark.nightly
def test_derivatives_are_those_of_differences():
    def f(k, q1, q2):
        return dual(Elu(), k, gap_of(k, q1, q2), q1, q2).covariance

    points = [jnp.float64(v) for v in (0.4, 1.3, 0.8)]
    gradient, hessian = jax.jit(jax.grad(f, (0, 1, 2)))(*points), jax.jit(jax.hessian(f, 0))(*points)
    step = 1e-4
    for i in range(3):
        up, down = ([p + sign * step * (i == j) for j, p in enumerate(points)] for sign in (1, -1))
        assert float(gradient[i]) == pytest.approx(float(f(*up) - f(*down)) / (2 * step), rel=1e-6)
    k, *others = points
    second = (f(k + 1e-3, *others) - 2 * f(k, *others) + f(k - 1e-3, *others)) / 1e-6
    assert float(hessian) == pytest.approx(float(second), rel=1e-4)


@pytest.mark.nightly
def test_a_network_of_finite_width_has_these_kernels():
    x, width, draws = np.random.default_rng(1).normal(size=(2, 3)), 512, 400
    options = {"activation": "elu", "w_std": 1.5, "b_std": 0.2}

    def create(rngs):
        return DagNet(nd.Dag.from_code("1"), 3, 1, width=width, rngs=rngs, **options)

    [(nngp, ntk)] = empirical_kernels(create, [x], draws)
    exact_kernel = nd.kernel("1", x, **options)
    for samples, kernel in ((nngp, exact_kernel.nngp), (ntk, exact_kernel.ntk)):
        kernel = np.asarray(kernel)
        scale = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
        tolerance = 4 * samples.std(axis=0) / draws**0.5 / scale + 1 / width
        assert (tolerance < 0.05).all()
        assert (np.abs(samples.mean(axis=0) - kernel) / scale < tolerance).all()
