import jax.numpy as jnp
import numpy as np
import pytest

from nngp_dag.kernels.dual import ACTIVATIONS


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_dual_against_quadrature(name):
    phi = {"relu": (lambda u: np.maximum(u, 0), lambda u: (u > 0).astype(float), 2.0)}[name]
    activation = ACTIVATIONS[name]
    # Integrate along rays: for a kinked, homogeneous phi the angle carries all the difficulty.
    angle, radius = np.linspace(0, 2 * np.pi, 200001), np.linspace(0, 12, 4001)
    for q1, q2, rho in [(1.0, 1.0, 0.3), (2.0, 0.5, -0.7), (1.5, 3.0, 0.99)]:
        u = np.sqrt(q1) * np.cos(angle)
        v = np.sqrt(q2) * (rho * np.cos(angle) + np.sqrt(1 - rho**2) * np.sin(angle))
        second = np.trapezoid(radius**3 * np.exp(-(radius**2) / 2), radius)
        f = phi[2] * np.trapezoid(phi[0](u) * phi[0](v), angle) / (2 * np.pi) * second
        fd = phi[2] * np.trapezoid(phi[1](u) * phi[1](v), angle) / (2 * np.pi)
        mean = np.trapezoid(phi[0](np.sqrt(q1) * radius) * np.exp(-(radius**2) / 2), radius) / np.sqrt(2 * np.pi)
        k = rho * np.sqrt(q1 * q2)
        got_f, got_d, got_fd = activation.dual(*(jnp.float32(a) for a in (k, (q1 + q2) / 2 - k, q1, q2)))
        assert got_f == pytest.approx(f, rel=1e-4)
        diagonals = [activation.dual_diagonal(jnp.float32(q))[0] for q in (q1, q2)]
        assert got_d == pytest.approx(float(sum(diagonals)) / 2 - f, rel=2e-4)
        assert got_fd == pytest.approx(fd, rel=1e-4)
        assert activation.mean(jnp.float32(q1)) == pytest.approx(np.sqrt(phi[2]) * mean, rel=2e-5)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_dual_diagonal_is_the_limit_of_the_dual(name):
    q = jnp.float32(1.7)
    f, d, fd = ACTIVATIONS[name].dual(q, 0 * q, q, q)
    assert (f, fd) == ACTIVATIONS[name].dual_diagonal(q)
    assert d == 0


def test_antiparallel_inputs_have_no_relu_covariance():
    q = jnp.float32(2.0)
    f, d, fd = ACTIVATIONS["relu"].dual(-q, 2 * q, q, q)
    assert f == pytest.approx(0, abs=1e-6)
    assert d == pytest.approx(float(q), rel=1e-6)
    assert fd == pytest.approx(0, abs=1e-6)
