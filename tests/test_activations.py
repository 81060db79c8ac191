"""Activations as functions, and the one list of cases that the tests of their duals use as well."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import special

import nngp_dag as nd
from nngp_dag import activations
from nngp_dag.activations import (
    ACTIVATIONS,
    ABRelu,
    Activation,
    Elu,
    Erf,
    Exp,
    Gaussian,
    Polynomial,
    Quadrature,
    RectifiedMonomial,
    Sin,
    Tanh,
    get_activation,
    hermite,
    leaky_relu,
    monomial,
    rbf,
)
from nngp_dag.errors import InputError, OutputError


@dataclass(frozen=True)
class Case:
    """An activation with its expected values.

    Attributes:
      phi: The activation.
      f: The function, in NumPy.
      df: The derivative of the function.
      exact: Dual F as a function of (k, q1, q2) in mpmath, without care for rounding. None without a closed form.
      layer: Name and arguments in neural-tangents. None where it has no such layer, or one with fewer inputs.
      kinked: Whether F is not smooth at |correlation| = 1.
      accuracy: Relative error of the formulas on the diagonal, besides rounding.
    """

    phi: Activation
    f: Callable[[Any], Any]
    df: Callable[[Any], Any]
    exact: Callable[[Any, Any, Any], Any] | None
    layer: tuple | None = None
    kinked: bool = False
    accuracy: float = 0.0

    @property
    def name(self) -> str:
        return self.phi.name


def _theta(k, q1, q2):
    return mp.acos(k / mp.sqrt(q1 * q2))


def _j(n, theta):
    """Returns J_n of Cho and Saul 2009, eqs. (6) and (4), the latter as a recurrence."""
    previous, value = mp.pi - theta, mp.sin(theta) + (mp.pi - theta) * mp.cos(theta)
    for m in range(1, n):
        previous, value = value, (2 * m + 1) * mp.cos(theta) * value + m**2 * mp.sin(theta) ** 2 * previous
    return value if n else previous


def _ab_relu(a, b, *layer):
    def exact(k, q1, q2):
        r, theta = mp.sqrt(q1 * q2), _theta(k, q1, q2)
        return (a * b * 2 * mp.pi * k + (a - b) ** 2 * r * _j(1, theta)) / (2 * mp.pi)

    a, b = mp.mpf(a), mp.mpf(b)
    x, y = float(a), float(b)
    return Case(
        ABRelu(x, y), lambda u: np.where(u > 0, y * u, x * u), lambda u: np.where(u > 0, y, x), exact, layer, True
    )


def _rectified(n):
    return Case(
        RectifiedMonomial(n),
        lambda u: (u >= 0) * u**n,
        lambda u: (u >= 0) * n * u ** max(n - 1, 0),
        lambda k, q1, q2: mp.sqrt(q1 * q2) ** n * _j(n, _theta(k, q1, q2)) / (2 * mp.pi),
        # For higher powers neural-tangents takes seconds.
        ("RectifiedMonomial", n) if n <= 3 else None,
        True,
    )


def _erf(a, b, c, *layer):
    def exact(k, q1, q2):
        scale = 2 * mp.mpf(b) ** 2
        return 2 / mp.pi * mp.mpf(a) ** 2 * mp.asin(scale * k / mp.sqrt((1 + scale * q1) * (1 + scale * q2))) + c**2

    derivative = 2 / np.sqrt(np.pi) * a * b
    return Case(
        Erf(a, b, c),
        lambda u: a * special.erf(b * u) + c,
        lambda u: derivative * np.exp(-((b * u) ** 2)),
        exact,
        layer or ("Erf", a, b, c),
    )


def _sin(phi, *layer):
    a, b, c = phi.a, phi.b, phi.c

    def exact(k, q1, q2):
        b2, mean = mp.mpf(b) ** 2, (q1 + q2) / 2
        return mp.mpf(a) ** 2 / 2 * (mp.exp(b2 * (k - mean)) - mp.cos(2 * mp.mpf(c)) * mp.exp(-b2 * (mean + k)))

    return Case(phi, lambda u: a * np.sin(b * u + c), lambda u: a * b * np.cos(b * u + c), exact, layer)


def _gaussian(a, b):
    return Case(
        Gaussian(a, b),
        lambda u: a * np.exp(b * u**2),
        lambda u: 2 * a * b * u * np.exp(b * u**2),
        lambda k, q1, q2: (
            mp.mpf(a) ** 2 / mp.sqrt((1 - 2 * mp.mpf(b) * q1) * (1 - 2 * mp.mpf(b) * q2) - 4 * mp.mpf(b) ** 2 * k**2)
        ),
        ("Gaussian", a, b),
    )


def _exp(a, b):
    return Case(
        Exp(a, b),
        lambda u: a * np.exp(b * u),
        lambda u: a * b * np.exp(b * u),
        lambda k, q1, q2: mp.mpf(a) ** 2 * mp.exp(mp.mpf(b) ** 2 * ((q1 + q2) / 2 + k)),
        ("Exp", a, b),
    )


def _polynomial(phi, *layer):
    """Returns E[u^i v^j] from the moments of independent z1 and z2, with v = alpha u + beta z2."""
    p = np.polynomial.Polynomial(phi.coefficients)

    def exact(k, q1, q2):
        if q1 == 0:
            return mp.mpf(phi.coefficients[0]) * sum(mp.mpf(c) * moment(j, q2) for j, c in enumerate(phi.coefficients))
        alpha, rest = k / q1, q2 - k**2 / q1
        return sum(
            mp.mpf(a)
            * mp.mpf(b)
            * sum(mp.binomial(j, m) * alpha**m * moment(i + m, q1) * moment(j - m, rest) for m in range(j + 1))
            for i, a in enumerate(phi.coefficients)
            for j, b in enumerate(phi.coefficients)
        )

    def moment(n, q):
        return mp.mpf(0) if n % 2 else mp.fac2(n - 1) * q ** (n // 2)

    return Case(phi, p, p.deriv(), exact, layer or None)


def _gelu_dual(k, q1, q2):
    p, alpha = (1 + q1) * (1 + q2), mp.mpf(1) / 4
    delta = mp.sqrt(p - k**2)
    rational = (q1 * q2 + k**2 * (1 - q1 * q2) / p) / delta
    return k * (alpha + mp.asin(k / mp.sqrt(p)) / (2 * mp.pi)) + rational / (2 * mp.pi)


def _gabor_dual(k, q1, q2):
    diff = 4 * (q1 * q2 - k**2)
    m = 1 + 2 * (q1 + q2) + diff
    return mp.exp(-(q1 + q2 + diff) / (2 * m)) * mp.sinh(k / m) / mp.sqrt(m)


def _tanh(a, b, c):
    return Case(
        Tanh(a, b, c),
        lambda u: a * np.tanh(b * u) + c,
        lambda u: a * b / np.cosh(b * u) ** 2,
        None,
        accuracy=1e-14,
    )


def _elu(alpha):
    return Case(
        Elu(alpha),
        lambda u: np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0))),
        lambda u: np.where(u > 0, 1, alpha * np.exp(np.minimum(u, 0))),
        None,
        kinked=alpha != 1,
    )


def _normal_cdf(u):
    return special.erfc(-u / np.sqrt(2)) / 2


CASES = [
    _ab_relu(0, 1, "Relu"),
    _ab_relu(0.01, 1, "LeakyRelu", 0.01),
    _ab_relu(-1, 1, "Abs"),
    _ab_relu(1, 1, "Identity"),
    _ab_relu(-0.3, -1.7, "ABRelu", -0.3, -1.7),
    replace(_erf(0.5, 1 / 2.4020563531719796, 0.5), layer=("Sigmoid_like",)),
    _erf(1.0, 1.0, 0.0),
    _erf(1.3, 0.7, -0.4),
    Case(
        activations.Gelu(),
        lambda u: u * _normal_cdf(u),
        lambda u: _normal_cdf(u) + u * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi),
        _gelu_dual,
        ("Gelu",),
    ),
    _sin(Sin(), "Sin"),
    _sin(activations.COS, "Cos"),
    _sin(Sin(1.4, 0.8, 0.6), "Sin", 1.4, 0.8, 0.6),
    _sin(rbf(), "Rbf"),
    _sin(rbf(0.3), "Rbf", 0.3),
    _gaussian(1.0, -1.0),
    _gaussian(1.5, -0.4),
    _exp(1.0, 1.0),
    _exp(0.7, -0.6),
    Case(
        activations.Gabor(),
        lambda u: np.exp(-(u**2)) * np.sin(u),
        lambda u: np.exp(-(u**2)) * (np.cos(u) - 2 * u * np.sin(u)),
        _gabor_dual,
        ("Gabor",),
    ),
    Case(
        activations.Sign(),
        np.sign,
        np.zeros_like,
        lambda k, q1, q2: 1 - 2 * _theta(k, q1, q2) / mp.pi,
        ("Sign",),
        True,
    ),
    *(_rectified(n) for n in range(6)),
    *(_polynomial(monomial(n), "Monomial", n) for n in (0, 1, 2, 5)),
    # neural-tangents has Hermite polynomials for unit variances only.
    *(_polynomial(hermite(n)) for n in (1, 3, 4)),
    _polynomial(Polynomial((0.3, -1.0, 0.5, 0.2)), "Polynomial", (0.3, -1.0, 0.5, 0.2)),
    *(_tanh(a, b, c) for a, b, c in ((1.0, 1.0, 0.0), (0.5, 0.5, 0.5))),
    Case(
        activations.Silu(),
        lambda u: u * special.expit(u),
        lambda u: special.expit(u) * (1 + u * special.expit(-u)),
        None,
        accuracy=1e-14,
    ),
    Case(activations.Softplus(), lambda u: np.logaddexp(u, 0), special.expit, None, accuracy=1e-14),
    _elu(1.0),
    Case(Quadrature(jax.nn.softplus), lambda u: np.logaddexp(u, 0), special.expit, None),
]

X = np.linspace(-3, 3, 41)


@pytest.mark.sample(6)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_function_and_derivative(case):
    with jax.enable_x64(True):
        x, ones = jnp.asarray(X[X != 0]), jnp.ones(X.size - 1)
        value, slope = jax.jvp(case.phi, (x,), (ones,))
        np.testing.assert_allclose(value, case.f(X[X != 0]), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(slope, case.df(X[X != 0]) * np.ones(X.size - 1), rtol=1e-12, atol=1e-15)
        assert case.phi(jnp.float32(X)).dtype == jnp.float32
        assert case.phi(jnp.zeros((2, 3))).shape == (2, 3)
        np.testing.assert_allclose(case.phi(jnp.zeros(1)), case.f(np.zeros(1)) * np.ones(1), atol=1e-16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_properties(case):
    homogeneous = isinstance(case.phi, ABRelu)
    assert case.phi.homogeneous == homogeneous
    if homogeneous:
        np.testing.assert_allclose(case.f(3.7 * X), 3.7 * case.f(X))
    assert case.phi.is_identity == (case.name == "identity")
    assert hash(replace(case.phi)) == hash(case.phi)
    assert replace(case.phi) == case.phi


def test_every_registered_activation_has_a_case():
    assert {case.phi for case in CASES} >= set(ACTIVATIONS.values())
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("phi", "name"),
    [
        *((phi, key) for key, phi in ACTIVATIONS.items() if key not in ("leaky_relu", "swish")),
        (get_activation("swish"), "silu"),
        (leaky_relu(), "leaky_relu(0.01)"),
        (ABRelu(2, 3), "abrelu(2.0,3.0)"),
        (Erf(1, 2, 0), "erf(1.0,2.0,0.0)"),
        (Polynomial([1, 2]), "polynomial(1.0,2.0)"),
        (hermite(3), "hermite(3)"),
        (monomial(2), "monomial(2)"),
        (RectifiedMonomial(2), "rectified_monomial(2)"),
        (Quadrature(jnp.tanh), "quadrature(tanh)"),
        (Quadrature(lambda x: x, "mine"), "quadrature(mine)"),
        (Quadrature(jnp.vectorize(lambda x: x)), "quadrature(<lambda>)"),
    ],
)
def test_names(phi, name):
    assert phi.name == name


def test_get_activation():
    assert get_activation(None) is get_activation("identity") is activations.IDENTITY
    assert get_activation("relu") == ABRelu(0, 1)
    phi = Quadrature(jnp.tanh)
    assert get_activation(phi) is phi


def test_bad_names():
    with pytest.raises(
        InputError, match=r"one of relu, .*, got 'sech'; any other function .*activations.Quadrature\(fn"
    ):
        get_activation("sech")
    with pytest.raises(InputError, match=r"got tanh; wrap an elementwise function: `activations.Quadrature\(fn\)`"):
        get_activation(jnp.tanh)
    with pytest.raises(InputError, match="got the class Gelu; call it first"):
        get_activation(activations.Gelu)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ABRelu(float("nan"), 1), "Expected `a` of `ABRelu` to be a finite number, got nan"),
        (lambda: ABRelu(1e160, 1), r"Expected `a` of `ABRelu` to be at most 1e\+150 in size, got 1e\+160"),
        (lambda: Elu(float("nan")), "Expected `alpha` of `Elu` to be a finite number, got nan"),
        (lambda: Erf(b=float("inf")), "Expected `b` of `Erf` to be a finite number, got inf"),
        (
            lambda: Gaussian(b=0.5),
            r"`b` of `Gaussian` to be at most 0, got 0.5; .* infinite from .* 1 / \(4 b\) = 0.5 on",
        ),
        (lambda: Polynomial(()), "`coefficients` of `Polynomial` to hold at least one number, got none"),
        (lambda: Polynomial((1.0, float("nan"))), "`coefficients` of `Polynomial` to be a finite number, got nan"),
        (lambda: RectifiedMonomial(-1), "`degree` of `RectifiedMonomial` to be a whole number, at least 0, got -1"),
        (lambda: monomial(-2), "`n` to be a whole number, at least 0, got -2"),
        (lambda: hermite(-2), "`n` to be a whole number, at least 0, got -2"),
        (lambda: rbf(0.0), "`gamma` to be greater than 0, got 0.0"),
        (lambda: rbf(float("nan")), "`gamma` to be a finite number, got nan"),
        (lambda: Quadrature(jnp.tanh, degree=0), "`degree` of `Quadrature` to be between 1 and 128, got 0"),
        (lambda: Quadrature(jnp.tanh, degree=129), "`degree` of `Quadrature` to be between 1 and 128, got 129"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_base_class_is_not_a_function():
    with pytest.raises(NotImplementedError):
        Activation()(jnp.zeros(1))


def test_a_quadrature_needs_a_function_and_is_described_alike_everywhere():
    with pytest.raises(InputError, match="Expected `fn` of `Quadrature` to be a function of an array, got 'tanh'"):
        activations.Quadrature("tanh")
    assert "0x" not in repr(activations.Quadrature(jnp.tanh))
    assert repr(activations.Quadrature(lambda x: x + 1)) != repr(activations.Quadrature(lambda x: x + 2))


SCALE = 2.0


def scaled(x, by=1.0, *, shift=0.0):
    return by * x + shift


@jax.custom_jvp
def with_a_rule(x):
    return x


with_a_rule.defjvp(lambda primals, tangents: (primals[0], 1.0 * tangents[0]))


class WithState:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return self.by * x


def multiple(v):
    return lambda x: v * x


def made_by(*values):
    """Returns functions that differ in one value only."""
    return [
        *(functools.partial(scaled, by=v) for v in values),
        *(functools.partial(lambda v, x: v * x, v) for v in values),
        *(lambda x, by=v: by * x for v in values),
        *(lambda x, *, by=v: by * x for v in values),
        *(jax.jit(lambda x, v=v: v * x) for v in values),
        *(lambda x, v=v: v[1500] * x for v in (np.arange(2000.0), np.arange(2000.0) + (np.arange(2000) == 1500))),
        *map(multiple, values),
        lambda x: (lambda y: 2.0 * y)(x),
        lambda x: (lambda y: 3.0 * y)(x),
    ]


@pytest.mark.slow
def test_functions_that_differ_are_told_apart_on_disk(monkeypatch):
    found = [repr(Quadrature(fn)) for fn in made_by(2.0, 3.0)]
    assert len({*found}) == len(found)
    assert not any("unknown" in text for text in found)
    # Functions with equal values are equal, even if they are created again.
    assert [repr(Quadrature(fn)) for fn in made_by(2.0, 3.0)] == found
    for fn in (jnp.tanh, jnp.negative, jax.nn.relu, jax.nn.mish, with_a_rule):
        assert "unknown" not in repr(Quadrature(fn))

    def by_a_global(x):
        return SCALE * x

    before = repr(Quadrature(by_a_global))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert repr(Quadrature(by_a_global)) != before
    monkeypatch.setitem(globals(), "SCALE", WithState(2.0))
    assert "unknown" in repr(Quadrature(lambda x: SCALE.by * x))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_callables_of_unknown_content_equal_nothing_on_disk(tmp_path):
    one, other = Quadrature(WithState(2.0)), Quadrature(WithState(3.0))
    assert repr(one) == repr(Quadrature(one.fn))
    assert "of unknown content" in repr(one)
    assert repr(one) != repr(other)
    x = np.random.default_rng(0).normal(size=(3, 4))
    nd.gram("2", x, activation=one, out=tmp_path / "gram", progress=False)
    with pytest.raises(OutputError, match=r"Expected the same settings as in .*got others: options\.layer"):
        nd.gram("2", x, activation=other, out=tmp_path / "gram", progress=False)


def branching(x):
    return x if x > 0 else 0 * x


@jax.custom_jvp
def without_slope(x):
    return x


without_slope.defjvps(lambda tangent, value, x: jnp.nan * tangent)


@jax.custom_vjp
def backward_only(x):
    return 2 * x


backward_only.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (np.tanh, r"to be a function of JAX arrays, got quadrature\(tanh\), .*; write it with `jax.numpy`"),
        (math.tanh, r"to be a function of JAX arrays, got quadrature\(tanh\), .*; write it with `jax.numpy`"),
        (branching, r"quadrature\(branching\), which branches on their values; use `jnp.where` instead of `if`"),
        (lambda x: (x, x), "to be elementwise, .* makes tuple of an array"),
        (jnp.sum, r"to be elementwise, .* makes shape \(\) of an array of shape \(4, 3\)"),
        (jnp.cumsum, r"to be elementwise, .* makes shape \(12,\)"),
        (jax.nn.softmax, r"to be elementwise, got quadrature\(softmax\), whose values depend on the other entries"),
        (lambda x: x - x.mean(), "whose values depend on the other entries"),
        (lambda x: jnp.sort(x, axis=0), "whose values depend on the other entries"),
        (lambda x: x > 0, "to keep the dtype, .* makes bool of float32; cast its result"),
        (lambda x: x.astype(jnp.float32), "to keep the dtype, .* makes float32 of float64"),
        (backward_only, "to have a derivative, got .*, which `jax.jvp` fails on .*; define it with `jax.custom_jvp`"),
        (
            jnp.log,
            "to be finite, .* got .*log.*, whose value is nan at x = -0.1; define it there, for example by `jnp.where`",
        ),
        (jnp.sqrt, "whose value is nan at x = -0.1"),
        (lambda x: jnp.where(x > 0, x, jnp.inf), "whose value is inf at x = -0.1"),
        (without_slope, "whose slope is nan at x = 0.05"),
        ("tanh", "to be a function of an array, got"),
    ],
)
def test_what_is_no_elementwise_function_of_jax_is_refused(fn, message):
    with pytest.raises(InputError, match=message) as error:
        Quadrature(fn)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_callables_without_a_hash_are_refused():
    class Unhashable:
        __hash__ = None  # pyright: ignore[reportAssignmentType]

        def __call__(self, x):
            return x

    with pytest.raises(InputError, match=r"to be hashable, .*; wrap it in a function"):
        Quadrature(Unhashable())


def test_quadratures_are_checked_inside_transformations_and_once():
    calls = []

    def fn(x):
        calls.append(1)
        return jnp.sin(x)

    value = jax.jit(lambda x: Quadrature(fn)(x))(jnp.ones(2))
    np.testing.assert_allclose(value, np.sin(1), rtol=1e-6)
    count = len(calls)
    Quadrature(fn)
    assert len(calls) == count
    with pytest.raises(InputError, match="depend on the other entries"):
        jax.jit(lambda x: Quadrature(lambda v: v - v.max())(x))(jnp.ones(2))
    # NumPy constants are common in such functions. They turn float32 into float64 only where JAX has float64 enabled.
    Quadrature(lambda x: np.sqrt(2.0) * x)
