"""The empirical NTK by layers against derivatives in all parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.graph import Conv
from nngp_dag.nets import DagNet, as_functions, empirical_ntk

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
NETWORKS = {
    "relu": nd.Network("2_21_112", width=12),
    "mean": nd.Network("2_21_112", layer=nd.Dense(activation="erf", order="act-linear", b_std=0.3), aggregation="mean"),
    "standard": nd.Network("2_02", layer=nd.Dense(activation="tanh", b_std=0.0), parameterization="standard"),
    "layer norm": nd.Network("2_12", layer=nd.Dense(activation="gelu", layer_norm=True, b_std=0.5)),
    "linear stem": nd.Network("1_22", layer=nd.Dense(activation="sin", w_std=0.7), stem=nd.Dense(activation=None)),
}


def create_of(network, units=3, **options):
    return lambda rngs: DagNet(network, X.shape[1], units, rngs=rngs, **options)


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("name", NETWORKS)
def test_ntk_of_all_pairs_of_outputs(name):
    create = create_of(dataclasses.replace(NETWORKS[name], width=8))
    init, apply = as_functions(create)
    params = init(jax.random.key(3))
    f, _, ntk = empirical_ntk(create)(params, jnp.asarray(X))
    np.testing.assert_allclose(f, apply(params, jnp.asarray(X)), rtol=1e-5, atol=1e-6)
    net = create(nnx.Rngs(0))
    nnx.update(net, params)
    # `empirical` has the inputs first, (N, N, C, C).
    expected = nd.empirical(net, X, outputs="pairs").transpose(0, 2, 1, 3)
    np.testing.assert_allclose(ntk, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_refusals():
    with pytest.raises(InputError, match="without batch normalization"):
        empirical_ntk(create_of(NETWORKS["relu"], batch_norm=True))
    with pytest.raises(InputError, match="network of dense layers"):
        empirical_ntk(lambda rngs: DagNet("2", 3, 1, layer=Conv(filter_shape=(3, 3)), image_shape=(4, 4), rngs=rngs))
    with pytest.raises(InputError, match="DagNet, got Linear"):
        empirical_ntk(lambda rngs: nnx.Linear(2, 2, rngs=rngs))  # type: ignore[arg-type]

    class Scaled(DagNet):
        def __init__(self, rngs):
            super().__init__("2", 3, 1, width=4, rngs=rngs)
            self.scale = nnx.Param(jnp.ones(()))

    with pytest.raises(InputError, match="no parameters but weights and biases"):
        empirical_ntk(lambda rngs: Scaled(rngs))


@pytest.mark.parametrize("name", ["mean", pytest.param("standard", marks=pytest.mark.slow)])
def test_nngp_is_the_covariance_over_readouts(name):
    # Of 4,000 output units with the same hidden weights, each has readout weights of its own.
    create = create_of(dataclasses.replace(NETWORKS[name], width=8), units=4000)
    init, apply = as_functions(create)
    params = init(jax.random.key(1))
    f = np.asarray(apply(params, jnp.asarray(X)), np.float64)
    few = create_of(dataclasses.replace(NETWORKS[name], width=8), units=1)
    smaller = jax.tree.map(
        lambda a, b: a[tuple(map(slice, b.shape))], params, jax.eval_shape(as_functions(few)[0], jax.random.key(0))
    )
    _, nngp, _ = empirical_ntk(few)(smaller, jnp.asarray(X))
    size = np.sqrt(np.outer(np.diag(nngp), np.diag(nngp)))
    np.testing.assert_allclose(f @ f.T / 4000 / size, nngp / size, atol=4 * 2**0.5 / 4000**0.5)
