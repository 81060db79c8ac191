"""Duals of tanh, silu and softplus against integrals that do not use mixtures, against samples and networks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import empirical_kernels
from scipy import special

import nngp_dag as nd
from nngp_dag.activations import Silu, Softplus, Tanh, get_activation
from nngp_dag.kernels.dual import dual, mean
from nngp_dag.nets import DagNet


def logistic(u):
    return 1 / (1 + mp.exp(-u))


# Each function and its derivative, in mpmath and in NumPy.
FUNCTIONS = {
    "tanh": (mp.tanh, lambda u: mp.sech(u) ** 2, np.tanh, lambda u: 1 / np.cosh(np.clip(u, -300, 300)) ** 2),
    "silu": (
        lambda u: u * logistic(u),
        lambda u: logistic(u) * (1 + u * logistic(-u)),
        lambda u: u * special.expit(u),
        lambda u: special.expit(u) * (1 + u * special.expit(-u)),
    ),
    "softplus": (lambda u: mp.log1p(mp.exp(u)), logistic, lambda u: np.logaddexp(u, 0), special.expit),
}
every_name = pytest.mark.parametrize("name", FUNCTIONS)
# The accuracy in the comment on the tables, with room for rounding errors of the sums.
ACCURACY = {jnp.float32: 1e-6, jnp.float64: 2e-14}


def test_names():
    assert [get_activation(name) for name in ("tanh", "silu", "swish", "softplus")] == [
        Tanh(),
        Silu(),
        Silu(),
        Softplus(),
    ]


@functools.cache
def diagonal(name, exponent):
    """Returns E[phi^2], E[phi'^2] and E[phi] for u ~ N(0, 10^exponent), with 25 digits."""
    f, df, _, _ = FUNCTIONS[name]
    with mp.workdps(25):
        s = mp.sqrt(mp.mpf(10) ** exponent)
        # The functions vary on the scale 1, the density on the scale s.
        scales = sorted({0, *(sign * s * x for sign in (-1, 1) for x in (1, 4, 12))})
        scales = sorted({*scales, *(sign * x for sign in (-1, 1) for x in (1, 4, 12, 40) if x < 12 * s)})

        def expectation(g: Any) -> float:
            integral: Any = mp.quad(lambda u: g(u) * mp.npdf(u / s) / s, scales)
            return float(integral)

        return expectation(lambda u: f(u) ** 2), expectation(lambda u: df(u) ** 2), expectation(f)


@pytest.mark.sample(5, slow=5)
@every_name
@pytest.mark.parametrize("dtype", ACCURACY)
@pytest.mark.parametrize("exponent", [-6, -2, 0, 2, 6])
def test_the_diagonal_in_high_precision(name, dtype, exponent):
    with jax.enable_x64(True):
        q = jnp.asarray(10.0**exponent, dtype)
        c, _, fd = dual(get_activation(name), q, jnp.zeros_like(q), q, q)
        m = mean(get_activation(name), q)
        found = [float(v) for v in (c + m**2, fd, m)]
    np.testing.assert_allclose(found, diagonal(name, exponent), rtol=ACCURACY[dtype], atol=1e-30)


@pytest.mark.sample(6, slow=3)
@every_name
@pytest.mark.parametrize(
    ("q1", "q2", "rho"), [(100.0, 25.0, 0.6), (100.0, 25.0, -0.8), (1e-6, 4e-6, 0.3), (30.0, 1e-4, 0.9)]
)
def test_pairs_by_trapezoids_in_the_plane(name, q1, q2, rho):
    *_, f, df = FUNCTIONS[name]
    # Trapezoids converge exponentially: the poles of the functions have distance pi / 10 from the real line in z.
    z = np.linspace(-9.5, 9.5, 801)
    density = np.exp(-(z**2) / 2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    u, v = np.sqrt(q1) * z[:, None], np.sqrt(q2) * (rho * z[:, None] + np.sqrt(1 - rho**2) * z)
    pairs = [(f(u), f(v)), (df(u), df(v))]
    exact = [density @ (a * b) @ density for a, b in pairs]
    scale = [np.sqrt((density @ (a**2 * b**0) @ density) * (density @ b**2 @ density)) for a, b in pairs]
    means = [float(density @ np.broadcast_to(v, (len(z), len(z))) @ density) for v in pairs[0]]
    variances = [float(density @ np.broadcast_to(v**2, (len(z), len(z))) @ density) for v in pairs[0]]
    variances = [second - m**2 for second, m in zip(variances, means, strict=True)]
    covariance = exact[0] - means[0] * means[1]
    gap = np.sqrt(variances[0] * variances[1]) - abs(covariance)
    for dtype, accuracy in ACCURACY.items():
        with jax.enable_x64(True):
            r = np.sqrt(q1) * np.sqrt(q2)
            found = dual(get_activation(name), *(dtype(value) for value in (rho * r, (1 - abs(rho)) * r, q1, q2)))
        # Where a variance is far below the square of the mean, trapezoids have few correct digits.
        rounding = 0, 1e-8 * gap, 0
        for value, expected, limit, lost in zip(
            found, (covariance, gap, exact[1]), (scale[0], scale[0], scale[1]), rounding, strict=True
        ):
            assert float(value) == pytest.approx(expected, abs=2 * accuracy * limit + lost)


@pytest.mark.sample(6, slow=3)
@every_name
@pytest.mark.parametrize("dtype", ACCURACY)
@pytest.mark.parametrize("exponent", [-2, 0, 2])
def test_nearly_equal_inputs_keep_their_angle(name, dtype, exponent):
    """The gap grows with slope Fd, even where rounding removes it from the covariance."""
    own, slope, m = diagonal(name, exponent)
    with jax.enable_x64(True):
        q = dtype(10.0**exponent)
        for angle in (1e-8, 1e-6):
            d = dtype(10.0**exponent * angle**2 / 2)
            c, gap, _ = dual(get_activation(name), q - d, d, q, q)
            expected = own - m**2 - slope * float(d)
            assert float(c) == pytest.approx(expected, rel=ACCURACY[dtype], abs=1e-15 * own)
            assert float(gap) == pytest.approx(slope * float(d), rel=max(4 * ACCURACY[dtype], 1e-10))
        assert float(dual(get_activation(name), q, 0 * q, q, q)[1]) == 0


@pytest.mark.sample(1, slow=1)
@every_name
def test_samples_agree_to_a_per_cent(name):
    *_, f, df = FUNCTIONS[name]
    z = np.random.default_rng(0).normal(size=(2, 400_000))
    q1, q2, rho = 2.0, 0.5, 0.7
    u, v = np.sqrt(q1) * z[0], np.sqrt(q2) * (rho * z[0] + np.sqrt(1 - rho**2) * z[1])
    r = np.sqrt(q1 * q2)
    c, _, slope = dual(get_activation(name), *map(jnp.float32, (rho * r, (1 - rho) * r, q1, q2)))
    product = mean(get_activation(name), jnp.float32(q1)) * mean(get_activation(name), jnp.float32(q2))
    for value, samples in ((c + product, f(u) * f(v)), (slope, df(u) * df(v))):
        standard_error = samples.std() / len(z[0]) ** 0.5
        assert 5 * standard_error < 0.05 * samples.mean()
        assert abs(float(value) - samples.mean()) < 5 * standard_error


@pytest.mark.nightly
@every_name
def test_finite_networks_agree(name):
    x, width = np.random.default_rng(1).normal(size=(2, 3)), 64
    dag = nd.Dag.from_code("2_12")
    options = {"activation": name, "w_std": 1.5, "b_std": 0.2}

    def create(rngs):
        return DagNet(dag, 3, 1, width=width, rngs=rngs, **options)

    [(nngp, ntk)] = empirical_kernels(create, [x], 4096)
    exact = nd.kernel(dag, x, **options)
    for samples, kernel in ((nngp, exact.nngp), (ntk, exact.ntk)):
        kernel = np.asarray(kernel)
        scale = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
        tolerance = 4 * samples.std(axis=0) / len(samples) ** 0.5 / scale + 1 / width
        assert (tolerance < 0.05).all()
        assert (np.abs(samples.mean(axis=0) - kernel) / scale < tolerance).all()


@pytest.mark.sample(0, slow=1)
@every_name
def test_gradients_need_no_memory_for_every_pair(name):
    def total(k, q):
        return sum(v.sum() for v in dual(get_activation(name), k, q - k, q, q))

    with jax.enable_x64(True):
        k, q = jnp.full((64, 64), 0.3, jnp.float64), jnp.ones((64, 64), jnp.float64)
        compiled = jax.jit(jax.grad(total, (0, 1))).lower(k, q).compile()
        # There are 196 pairs of terms, each with dozens of arrays.
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 2 * 196 * k.nbytes
        slope, other = compiled(k, q)
        step = 1e-2
        for found, low, high in ((slope, (k - step, q), (k + step, q)), (other, (k, q - step), (k, q + step))):
            expected = (float(total(*high)) - float(total(*low))) / (2 * step)
            assert float(found.sum()) == pytest.approx(expected, rel=1e-2)
