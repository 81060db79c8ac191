"""The error estimate of a `Quadrature`, against integrals in closed form, and for functions without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.activations import Quadrature
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.kernels.accuracy import REFUSED
from nngp_dag.kernels.dual import dual, mean, quadrature_error

ONE = nd.Dag.from_code("2")
INPUT = np.ones((1, 4))


FUNCTIONS = {
    "sin(2 u)": lambda u: jnp.sin(2 * u),
    "sin(6 u)": lambda u: jnp.sin(6 * u),
    "sin(8 u)": lambda u: jnp.sin(8 * u),
    "sin(16 u)": lambda u: jnp.sin(16 * u),
    "sin(32 u)": lambda u: jnp.sin(32 * u),
    "cos(100 u)": lambda u: jnp.cos(100 * u),
    "cos(1e7 u)": lambda u: jnp.cos(1e7 * u),
    "step": lambda u: jnp.tanh(1000 * u),
    "bump": lambda u: jnp.exp(-1e4 * (u - 1) ** 2),
    "u with a bump": lambda u: u + jnp.exp(-1e6 * (u - 1) ** 2),
    "relu": lambda u: jnp.maximum(u, 0),
    "shifted relu": lambda u: jnp.maximum(u, 0.3),
    "sign": jnp.sign,
    "exp(u^2 / 5)": lambda u: jnp.exp(u**2 / 5),
    "exp(u^2 / 4)": lambda u: jnp.exp(u**2 / 4),
    "u^20": lambda u: u**20,
    "root": lambda u: jnp.sqrt(jnp.abs(u)),
    "inverse": lambda u: 1 / u,
    "naive logistic": lambda u: jnp.exp(u) / (1 + jnp.exp(u)),
}


def sine(b):
    return lambda q: ((1 - np.exp(-2 * b**2 * q)) / 2, b**2 * (1 + np.exp(-2 * b**2 * q)) / 2)


# E[phi^2] and E[phi'^2] at a variance.
EXACT = {
    **{f"sin({b} u)": sine(b) for b in (2, 6, 8, 16, 32)},
    "relu": lambda q: (q / 2, 0.5),
    "sign": lambda q: (1.0, 0.0),
    "exp(u^2 / 5)": lambda q: ((1 - 0.8 * q) ** -0.5, 0.16 * q * (1 - 0.8 * q) ** -1.5),
    "u^20": lambda q: (
        float(np.prod(np.arange(1.0, 40, 2))) * q**20,
        400 * float(np.prod(np.arange(1.0, 38, 2))) * q**19,
    ),
}


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize("name", EXACT)
def test_the_error_holds_or_the_function_is_refused(name):
    with jax.enable_x64(True):
        for variance in (0.04, 1.0):
            q = jnp.float64(variance)
            error = float(quadrature_error(Quadrature(FUNCTIONS[name]), variance))
            phi = Quadrature(FUNCTIONS[name])
            c, _, fd = dual(phi, q, 0 * q, q, q)
            for found, exact in zip((c + mean(phi, q) ** 2, fd), EXACT[name](variance), strict=True):
                assert abs(float(found) - exact) <= (1.01 * error + 1e-12) * abs(exact)


@pytest.mark.parametrize(
    "name",
    ["sin(8 u)", "sin(16 u)", "sin(32 u)", "cos(100 u)", "cos(1e7 u)", "step", "bump", "u with a bump"],
)
def test_what_varies_faster_than_the_points_is_far_off(name):
    assert quadrature_error(Quadrature(FUNCTIONS[name]), 1.0) > 2 * REFUSED


@pytest.mark.parametrize("name", ["relu", "shifted relu", "sign", "sin(6 u)"])
def test_kinks_and_jumps_are_seen_and_usable(name):
    assert 1e-6 < quadrature_error(Quadrature(FUNCTIONS[name]), 1.0) < REFUSED


@pytest.mark.parametrize(
    ("name", "q", "message"),
    [
        ("exp(u^2 / 4)", 1.0, "grows too fast for the variance 1; reduce `w_std`"),
        ("exp(u^2 / 5)", 4.0, "grows too fast for the variance 4"),
        ("root", 1.0, "second moments still change by .*: they are infinite, or it varies too fast"),
        ("root", 0.0, "whose slope is inf at x = 0;"),
        ("inverse", 1.0, "second moments still change by"),
        ("inverse", 0.0, "whose value is -?inf at x = 0;"),
    ],
)
def test_second_moments_that_are_infinite_are_refused(name, q, message):
    with pytest.raises(InputError, match=message):
        quadrature_error(Quadrature(FUNCTIONS[name]), q)


def test_overflow_counts_in_the_precision_of_the_kernel():
    phi = Quadrature(FUNCTIONS["naive logistic"])
    assert quadrature_error(phi, 36.0) < 0.1
    with pytest.raises(InputError, match="whose value is nan at x = "):
        quadrature_error(phi, 36.0, np.float32)


@pytest.mark.slow
def test_kernels_say_so():
    options = {"w_std": 1.0, "readout": False}
    with pytest.raises(
        InputError,
        match=r"of quadrature\(waves\) at the stem to have an error of at most 25%, got .* at variance 1; raise",
    ):
        nd.kernel(ONE, INPUT, activation=Quadrature(FUNCTIONS["sin(32 u)"], "waves"), **options)
    with pytest.warns(NumericalWarning, match=r"at the stem to be accurate to 1e-06, got an error of up to 0.04 of"):
        k = nd.kernel(ONE, INPUT, activation=Quadrature(FUNCTIONS["relu"]), **options)
    assert float(k.nngp[0, 0]) == pytest.approx(0.25, rel=0.04)


@pytest.mark.slow
def test_the_largest_error_may_lie_between_the_extremes():
    """A bump is out of reach at the smallest variance, and a small part of the second moment at the largest."""

    def fn(u):
        return 1e-3 * u**2 + jnp.exp(-200 * (u - 3) ** 2) * 1e-3

    least, between, largest = quadrature_error(Quadrature(fn), np.array([0.01, 1.0, 1e4]))
    assert between > 10 * max(least, largest)
    x = np.array([[0.1], [100.0]])
    stem = nd.Dense(activation=Quadrature(fn), w_std=1.0)
    with pytest.warns(NumericalWarning, match=r"of E\[phi\(u\)\^2\] or .* at variance"):
        nd.kernel(ONE, x, layer=nd.Dense(activation=None, w_std=1.0), stem=stem)
