"""Functions that draw parameters of plain JAX."""

import jax
import jax.numpy as jnp


def drawn(constants=None, **shapes):
    """Returns a function of a key that draws standard normal arrays, beside arrays of one number each."""

    def init(key):
        keys = jax.random.split(key, len(shapes))
        random = {name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
        return random | {name: jnp.full(shape, value) for name, (shape, value) in (constants or {}).items()}

    return init
