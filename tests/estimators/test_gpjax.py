"""Kernels of a network in GPJax, where it is installed: values, and its own training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nngp_dag as nd

gpx: Any = pytest.importorskip("gpjax", reason="GPJax is not installed; the extra `gpjax` brings it")
from gpjax.parameters import val  # noqa: E402  # pyright: ignore[reportMissingImports]

from nngp_dag.estimators.gpjax import NNGP, NTK  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_in_gpjax")]

KERNELS: dict[str, Any] = {"nngp": NNGP, "ntk": NTK}
X, Z = np.random.default_rng(0).normal(size=(12, 3)), np.random.default_rng(1).normal(size=(4, 3))
Y = np.sin(X[:, :1]) + 0.1 * np.random.default_rng(2).normal(size=(12, 1))


@pytest.fixture
def as_in_gpjax():
    """GPJax advises float64, and relies on rank promotion."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("kind", KERNELS)
def test_values_are_those_of_the_network(kind):
    kernel = KERNELS[kind]("2_12", w_std=1.2, b_std=0.3, activation="erf", active_dims=[0, 2])
    columns = [0, 2]
    x, z = X[:, columns], Z[:, columns]
    k, cross = (getattr(nd.kernel("2_12", *a, w_std=1.2, b_std=0.3, activation="erf"), kind) for a in ((x,), (z, x)))
    np.testing.assert_allclose(kernel.gram(jnp.asarray(X)).as_matrix(), k, rtol=1e-12)
    np.testing.assert_allclose(kernel.cross_covariance(jnp.asarray(Z), jnp.asarray(X)), cross, rtol=1e-12)
    np.testing.assert_allclose(kernel.diagonal(jnp.asarray(X)).as_matrix().diagonal(), np.diag(k), rtol=1e-12)
    np.testing.assert_allclose(kernel(jnp.asarray(Z[1]), jnp.asarray(X[2])), cross[1, 2], rtol=1e-12)


def test_sums_with_other_kernels():
    kernel = NNGP("2") + gpx.kernels.RBF()
    expected = nd.kernel("2", X).nngp + gpx.kernels.RBF().gram(jnp.asarray(X)).as_matrix()
    np.testing.assert_allclose(kernel.gram(jnp.asarray(X)).as_matrix(), expected, rtol=1e-10)


def test_without_biases_there_is_one_parameter():
    kernel = NNGP("2", w_std=1.5)
    assert kernel.b_std is None
    assert len(jax.tree.leaves(kernel)) == 1
    given = NNGP("2", gpx.parameters.PositiveReal(jnp.asarray(0.7)), gpx.parameters.PositiveReal(jnp.asarray(0.2)))
    np.testing.assert_allclose(
        given.gram(jnp.asarray(X)).as_matrix(), nd.kernel("2", X, w_std=0.7, b_std=0.2).nngp, rtol=1e-10
    )


def test_its_training_ends_where_a_hand_written_one_does():
    """GPJax's loop, `nd.fit`, and adam on logarithms with a likelihood written here, reach the same maximum."""
    kernel = NNGP("2", w_std=1.0, b_std=0.3, activation="erf")
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel)
    model = prior * gpx.likelihoods.Gaussian(obs_stddev=jnp.asarray(0.5))
    trained, history = gpx.fit(
        model=model,
        objective=lambda p, d: -gpx.objectives.conjugate_mll(p, d),
        train_data=gpx.Dataset(X=jnp.asarray(X), y=jnp.asarray(Y)),
        optim=optax.adam(0.05),
        num_iters=500,
        verbose=False,
    )

    def loss(logs):
        w_std, b_std, noise = jnp.exp(logs)
        k = nd.kernel(
            "2", X, get="nngp", activation="erf", b_std=1.0, parameters={"layer": {"w_std": w_std, "b_std": b_std}}
        )
        factor = jnp.linalg.cholesky(k.nngp + noise**2 * jnp.eye(12))
        half = jax.scipy.linalg.solve_triangular(factor, jnp.asarray(Y), lower=True)
        return 0.5 * jnp.sum(half**2) + jnp.log(jnp.diag(factor)).sum() + 6 * jnp.log(2 * jnp.pi)

    logs: Any = jnp.log(jnp.asarray([1.0, 0.3, 0.5]))
    optimizer = optax.adam(0.05)
    state, step = optimizer.init(logs), jax.jit(jax.value_and_grad(loss))
    np.testing.assert_allclose(step(logs)[0], history[0], rtol=1e-4)  # GPJax adds a small jitter
    for _ in range(500):
        _, gradient = step(logs)
        updates, state = optimizer.update(gradient, state)
        logs = optax.apply_updates(logs, updates)
    found = [val(trained.prior.kernel.w_std), val(trained.prior.kernel.b_std), val(trained.likelihood.obs_stddev)]
    assert history[-1] < history[0] - 1
    w_std, b_std, noise = np.exp(logs).tolist()
    k = nd.kernel("2", X, activation="erf", w_std=w_std, b_std=b_std)
    np.testing.assert_allclose(-nd.log_marginal_likelihood(k, Y, noise**2), step(logs)[0], rtol=1e-9)
    # Loops of 500 steps stop near the maximum. Measured in nats, since flat directions are free.
    assert float(history[-1]) == pytest.approx(float(step(logs)[0]), abs=1e-3)
    assert float(step(jnp.log(jnp.asarray(found)))[0]) == pytest.approx(float(step(logs)[0]), abs=2e-3)
    fitted = nd.fit("2", X, Y, activation="erf", b_std=0.3, noise=0.25)
    assert fitted.converged
    # It ends at the maximum; 500 steps of adam stop a few thousandths of a nat before it.
    assert -1e-4 <= fitted.value + float(history[-1]) <= 5e-3
