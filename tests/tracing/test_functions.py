"""Elementwise functions: recognition, and Gaussian expectations against quadrature over the plane and 50 digits."""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from plane import plane_moments

from nngp_dag.errors import InputError
from nngp_dag.tracing.expectations import accuracy, mean, mean_slope, second_moment, slope
from nngp_dag.tracing.functions import recognize


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


# Function, places of kinks, whether every expectation has a closed form.
FUNCTIONS = {
    "relu": (jax.nn.relu, (0,), True),
    "relu6": (jax.nn.relu6, (0, 6), True),
    "elu": (jax.nn.elu, (0,), True),
    "selu": (jax.nn.selu, (0,), True),
    "celu": (lambda x: jax.nn.celu(x, 2.0), (0,), True),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), (), True),
    "gelu (tanh)": (jax.nn.gelu, (), False),
    "silu": (jax.nn.silu, (), True),
    "softplus": (jax.nn.softplus, (), True),
    "sigmoid": (jax.nn.sigmoid, (), True),
    "log_sigmoid": (jax.nn.log_sigmoid, (), True),
    "tanh": (jnp.tanh, (), True),
    "hard_tanh": (jax.nn.hard_tanh, (-1, 1), True),
    "hard_sigmoid": (jax.nn.hard_sigmoid, (-3, 3), True),
    "hard_silu": (jax.nn.hard_silu, (-3, 3), True),
    "leaky_relu": (jax.nn.leaky_relu, (0,), True),
    "mish": (jax.nn.mish, (), False),
    "squareplus": (jax.nn.squareplus, (), False),
    "soft_sign": (jax.nn.soft_sign, (0,), False),
    "sparse_plus": (jax.nn.sparse_plus, (-1, 1), True),
    "sparse_sigmoid": (jax.nn.sparse_sigmoid, (-1, 1), True),
    "erf": (lambda x: 2 * jax.lax.erf(0.7 * x) + 1, (), True),
    "features": (lambda x: jnp.sqrt(2.0) * jnp.cos(1.3 * x + 0.4) + 0.1 * x, (), True),
    "gaussian": (lambda x: jnp.exp(-(x**2) / 2), (), True),
    "exp": (lambda x: jnp.exp(-0.3 * x), (), True),
    "gabor": (lambda x: jnp.exp(-x * x) * jnp.sin(x), (), True),
    "cubic": (lambda x: 1 + x - 2 * x**2 + x**3 / 6, (), True),
    "squared relu": (lambda x: jax.nn.relu(x) ** 2, (0,), True),
    "abs": (jnp.abs, (0,), True),
    "sign": (jnp.sign, (0,), True),
    "step": (lambda x: jnp.where(x >= 0, 1.0, 0.0), (0,), True),
    "mirrored elu": (lambda x: 0.7 * jax.nn.elu(-2 * x, 0.3) + 1, (0,), True),
    "affine": (lambda x: 2 * x + 1, (), True),
}
# Variances and correlation.
POINTS = [(1.0, 1.0, 0.5), (0.3, 4.0, -0.9), (2.0, 2.5, 0.999), (0.01, 25.0, 0.2), (4.0, 4.0, -1.0), (9.0, 9.0, 1.0)]


def _at(*values):
    return [jnp.array([float(v)]) for v in values]


def _compare(first, second, tolerance, points=POINTS):
    (f, kinks1, _), (g, kinks2, _) = FUNCTIONS[first], FUNCTIONS[second]
    known1, known2 = recognize(f), recognize(g)
    q1s, q2s, rhos = (np.array(v) for v in zip(*points, strict=True))
    pairs = jax.jit(lambda *a: second_moment(known1, known2, *a))(rhos * np.sqrt(q1s * q2s), q1s, q2s)
    alone = [np.asarray(of(known1, jnp.asarray(q1s))) for of in (mean, mean_slope)]
    for at, (q1, q2, rho) in enumerate(points):
        k = rho * np.sqrt(q1 * q2)
        value, product, mean1, slope1 = plane_moments(f, g, k, q1, q2, kinks1, kinks2)
        own1, own2 = plane_moments(f, f, q1, q1, q1, kinks1), plane_moments(g, g, q2, q2, q2, kinks2)
        for i, expected in enumerate((value, product)):
            scale = np.sqrt(own1[i] * own2[i])
            assert abs(pairs[i][at] - expected) <= tolerance[i] * scale + 1e-15, (first, second, q1, q2, rho, i)
        np.testing.assert_allclose([v[at] for v in alone], [mean1, slope1], rtol=1e-11, atol=1e-11)


# One function of each kind is in the default tier: kinked, smooth with and without a closed form, with a jump, a sum.
DEFAULT = ["relu", "relu6", "mish", "gelu", "tanh", "features", "step"]
SLOW = ["elu", "hard_silu", "soft_sign", "gelu (tanh)"]
SOME = [
    pytest.param(name, marks=[] if name in DEFAULT else [pytest.mark.slow if name in SLOW else pytest.mark.nightly])
    for name in FUNCTIONS
]


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("name", SOME)
def test_second_moments_of_one_function_equal_quadrature_over_the_plane(name):
    closed = FUNCTIONS[name][2]
    tolerance = (1e-12, 1e-12) if closed else (1e-6, 1e-4) if name == "soft_sign" else (1e-10, 1e-9)
    _compare(name, name, tolerance)
    assert (
        accuracy(recognize(FUNCTIONS[name][0]), recognize(FUNCTIONS[name][0]), np.ones(2), np.ones(2)) == 0
    ) == closed


PAIRS = [
    ("relu", "tanh", (1e-12, 1e-12)),
    ("relu", "relu6", (1e-12, 1e-12)),
    ("relu", "gelu", (1e-9, 1e-6)),
    ("elu", "relu", (1e-8, 1e-4)),
    ("elu", "selu", (1e-8, 1e-4)),
    ("sign", "relu6", (1e-12, 1e-12)),
    ("cubic", "hard_silu", (1e-12, 1e-12)),
    ("sigmoid", "tanh", (1e-12, 1e-12)),
    ("silu", "hard_tanh", (1e-12, 1e-12)),
    ("soft_sign", "mish", (1e-10, 1e-9)),
    ("gelu", "sigmoid", (1e-12, 1e-12)),
    ("affine", "hard_sigmoid", (1e-12, 1e-12)),
    ("squared relu", "softplus", (1e-11, 1e-11)),
    # Both functions have a jump in the second derivative, odd parts of which meet in no other pair.
    ("elu", "squared relu", (1e-11, 3e-8)),
]


@pytest.mark.sample(2, slow=2)
@pytest.mark.parametrize(("first", "second", "tolerance"), PAIRS)
def test_second_moments_of_two_functions_equal_quadrature_over_the_plane(first, second, tolerance):
    _compare(first, second, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu6", "mish", "elu", "soft_sign"])
def test_accuracy_bounds_the_error(name):
    f, kinks, _ = FUNCTIONS[name]
    known, relu = recognize(f), recognize(jax.nn.relu)
    q = 16.0
    for other, kinks2 in ((known, kinks), (relu, (0,))):
        bound = accuracy(known, other, np.array([q]), np.array([q]))
        value, product, _, _ = plane_moments(f, other.fn, q, q, q, kinks, kinks2)
        scales = [
            np.sqrt(plane_moments(f, f, q, q, q, kinks)[i] * plane_moments(other.fn, other.fn, q, q, q, kinks2)[i])
            for i in (0, 1)
        ]
        found = second_moment(known, other, *_at(q, q, q))
        errors = [abs(v[0] - e) / s for v, e, s in zip(found, (value, product), scales, strict=True)]
        assert max(errors) <= bound + 1e-12
        assert bound <= 0.01


@pytest.mark.slow
def test_bivariate_probabilities_have_all_digits():
    # E[1(a > 1) 1(b > 0.5)] by one integral with 30 digits.
    up = recognize(lambda x: jnp.where(x > 1, 1.0, 0.0))
    half = recognize(lambda x: jnp.where(x > 0.5, 1.0, 0.0))
    with mp.workdps(30):
        for rho in (0.3, -0.8, 0.9999):
            d = mp.sqrt(1 - mp.mpf(rho) ** 2)
            exact: Any = mp.quad(
                lambda x, d=d, rho=rho: mp.npdf(x) * mp.ncdf((mp.mpf(rho) * x - mp.mpf("0.5")) / d),
                [1, 1.05, 1.5, 4, 20],
            )
            found = second_moment(up, half, *_at(rho, 1, 1))[0][0]
            assert abs(float(found) - float(exact)) < 2e-16 + 2e-15 * float(exact)


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize("name", SOME)
def test_inputs_of_zeros_give_the_value_at_0_and_gradients_are_finite(name):
    f = FUNCTIONS[name][0]
    known = recognize(f)
    at_zero = float(f(jnp.zeros(1))[0])
    zero, one = jnp.zeros(1), jnp.ones(1)
    np.testing.assert_allclose(second_moment(known, known, zero, zero, zero)[0][0], at_zero**2, atol=1e-14)
    expected = at_zero * mean(known, one)[0]
    np.testing.assert_allclose(second_moment(known, known, zero, zero, one)[0][0], expected, atol=1e-13)
    points = [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (0.3, 1.0, 2.0)]
    arguments = [jnp.array(v) for v in zip(*points, strict=True)]
    gradients = jax.jit(jax.grad(lambda *a: sum(v.sum() for v in second_moment(known, known, *a)), (0, 1, 2)))
    assert np.isfinite(np.array(gradients(*arguments))).all()


@pytest.mark.sample(2, slow=2)
@pytest.mark.parametrize("name", [p for p in SOME if p.values[0] not in ("sign", "step")])
def test_gradients_are_those_of_differences_and_of_price(name):
    known = recognize(FUNCTIONS[name][0])
    at = np.array([0.4, 1.3, 0.8])

    @jax.jit
    def both(k, q1, q2):
        return jnp.stack(second_moment(known, known, k, q1, q2))

    # Every argument is changed on its own, to both sides.
    step = 1e-5
    shifted = at[:, None] + step * np.concatenate([np.eye(3), -np.eye(3)], axis=1)
    values = both(*jnp.asarray(shifted))
    differences = (values[:, :3] - values[:, 3:]) / (2 * step)
    here = [jnp.full((6,), v) for v in at]
    found = jax.jit(lambda *a: jnp.stack([jax.jvp(both, a, _unit(a, i))[1][:, 0] for i in range(3)], axis=1))(*here)
    np.testing.assert_allclose(found[0, 0], both(*here)[1, 0], rtol=1e-9, atol=1e-10)  # Price
    np.testing.assert_allclose(found, differences, rtol=1e-6, atol=1e-8)


def _unit(arguments, i):
    return tuple(jnp.full_like(v, float(i == j)) for j, v in enumerate(arguments))


# Every activation has a formula of its own. Ramps share theirs, and functions without a formula take long.
SLOPES = [
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith(("hard", "sparse", "soft_", "gelu (")) else [])
    for name in FUNCTIONS
]


@pytest.mark.sample(2, slow=2)
@pytest.mark.parametrize("name", SLOPES)
def test_slopes_are_those_of_stein(name):
    f, kinks, _ = FUNCTIONS[name]
    known = recognize(f)
    for q in (0.2, 3.0):
        expected = plane_moments(f, lambda x: x, q, q, q, kinks)[0] / q
        np.testing.assert_allclose(slope(known, *_at(q))[0], expected, rtol=1e-10, atol=1e-11)


NAMES = {
    "relu": "relu",
    "leaky_relu": "leaky_relu(0.01)",
    "gelu": "gelu",
    "sigmoid": "0.5 + 0.5 tanh(0.5 x)",
    "log_sigmoid": "x - softplus(x)",
    "erf": "1 + 2 erf(0.7 x)",
    "cubic": "1 + x - 2 x^2 + 0.166667 x^3",
    "affine": "1 + 2 x",
    "celu": "2 elu(0.5 x)",
    "abs": "abs",
    "step": "0.5 + 0.5 sign(x)",
}


@pytest.mark.parametrize("name", NAMES)
def test_functions_have_names_for_people(name):
    assert recognize(FUNCTIONS[name][0], "?").name == NAMES[name]


def test_float32_constants_are_read_as_they_are():
    alpha = float(np.float32(0.01))
    known = recognize(lambda x: jnp.where(x >= 0, x, np.float32(0.01) * x))
    np.testing.assert_allclose(second_moment(known, known, *_at(-1, 1, 1))[0], -alpha / 2 * 2, rtol=1e-13)


def test_equal_functions_are_recognized_once():
    first, second = recognize(lambda x: jax.nn.mish(x)), recognize(lambda x: jax.nn.mish(x))
    assert first.terms == second.terms
    assert first.fn is not second.fn


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x + jax.lax.stop_gradient(jnp.tanh(x) - x), "slopes of `bad` to be those of its values"),
        (jnp.floor, "at most 16 kinks"),
        (jnp.log, "to be finite, with its slope"),
        (lambda x: x.sum(), "to be elementwise"),
    ],
)
def test_functions_outside_the_theory_are_refused(fn, message):
    with pytest.raises(InputError, match=message):
        recognize(fn, "bad")
