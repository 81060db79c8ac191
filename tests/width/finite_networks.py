"""Kernels of finite networks of this package: NNGPs, given all weights but the readout's, and NTKs of one output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import nngp_dag as nd

# The graphs of Chen et al. 2022, a chain of 6 layers, and a random graph of skips and weighted edges.
GRAPHS = {
    "dag1": "2_02_002",
    "dag2": "2_01_222",
    "dag3": "2_21_112",
    "chain6": "2_02_002_0002_00002_000002",
    "random": "2_12_021_2102_10221",
}


def inputs() -> np.ndarray:
    """Returns 8 digits on the sphere of radius sqrt(64), as the probes have them."""
    data = nd.data.load_dataset("digits", subset=8)
    return np.asarray(nd.data.scale_to_sphere(nd.data.normalize(data)), np.float64).reshape(8, -1)


def targets(rows: int) -> np.ndarray:
    """Returns normal targets."""
    return np.random.default_rng(1).normal(size=rows)


# The functionals of the comparison, with their arguments.
FUNCTIONALS = {
    "entry": {},
    "trace": {},
    "log_det": {},
    "prediction": {"y": targets(7)},
    "alignment": {"y": targets(8)},
}


def nngps(network: nd.Network, x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the NNGPs of `count` networks with weights of their own, (count, N, N), float64."""
    readout, width = network.readout_op, network.width
    with jax.enable_x64(True):
        data = jnp.asarray(x, jnp.float64)

        @functools.partial(jax.jit)
        def sample(keys: jax.Array) -> jax.Array:
            def one(key: jax.Array) -> jax.Array:
                net = nd.nets.DagNet(network, x.shape[1], 1, rngs=nnx.Rngs(params=key))
                values = net.features(data)
                values = values if net.readout_activation is None else net.readout_activation(values)
                return readout.w_std**2 * values @ values.T / width + (readout.b_std or 0.0) ** 2

            return jax.lax.map(one, keys)

        keys = jax.random.split(jax.random.key(seed), count)
        return np.concatenate([np.asarray(sample(part)) for part in np.split(keys, max(1, count // 250))])


def ntks(network: nd.Network, x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the NTKs of `count` networks with weights of their own and one output, (count, N, N), float64."""

    def create(rngs: nnx.Rngs) -> nd.nets.DagNet:
        return nd.nets.DagNet(network, x.shape[1], 1, rngs=rngs)

    init, _ = nd.nets.as_functions(create)
    of_params = nd.nets.empirical_ntk(create)
    with jax.enable_x64(True):
        data = jnp.asarray(x, jnp.float64)

        @jax.jit
        def sample(keys: jax.Array) -> jax.Array:
            return jax.lax.map(lambda key: of_params(init(key), data)[2][:, 0, :, 0], keys)

        keys = jax.random.split(jax.random.key(seed), count)
        return np.concatenate([np.asarray(sample(part)) for part in np.split(keys, max(1, count // 1000))])
