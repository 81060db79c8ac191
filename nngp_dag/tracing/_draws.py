"""Other draws of a model's parameters: by the code that draws them, or from their distributions."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import InputError
from nngp_dag.tracing.distributions import TRUNCATED_STD
from nngp_dag.tracing.models import Leaf, ModelFunction

# Distributions whose entries are independent, with their draws of mean 0 and variance 1.
_STANDARD: dict[str, Callable[[Any, tuple[int, ...]], jax.Array]] = {
    "normal": lambda key, shape: jax.random.normal(key, shape),
    "truncated normal": lambda key, shape: jax.random.truncated_normal(key, -2.0, 2.0, shape) / TRUNCATED_STD,
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-math.sqrt(3.0), maxval=math.sqrt(3.0)),
}


def drawn(function: ModelFunction, seeds: Sequence[int]) -> list[ModelFunction]:
    """Returns a model with other parameters, one for each seed.

    A factory, an `init` and a linen module draw them themselves. The parameters of a model that was given with its
    numbers are drawn anew from their distributions: normal, truncated normal, uniform, constant and fixed ones.

    Args:
      function: The model.
      seeds: Whole numbers of at least 0. The seed of a factory gives the same numbers as `trace` with it.

    Raises:
      InputError: A parameter of a model that was given with its numbers has a distribution of another kind.

    Examples:
      >>> from nngp_dag.tracing.models import read_model
      >>> init = lambda key: {"w": jax.random.normal(key, (3, 2))}
      >>> read = read_model(lambda params, x: x @ params["w"], np.ones((2, 3)), init=init)
      >>> one, two = drawn(read, [0, 1])
      >>> bool((one.values[0] == read.values[0]).all()), bool((two.values[0] == one.values[0]).any())
      (True, False)
    """
    if function.draw is not None:
        found = []
        for seed in seeds:
            fn, values = function.draw(seed)
            found.append(dataclasses.replace(function, fn=fn, values=values))
        return found
    for leaf in function.leaves:
        if leaf.distribution.random and leaf.distribution.kind not in _STANDARD:
            raise InputError(
                f"Expected parameters with independent entries of a known kind to draw again, got `{leaf.name}` "
                f"({leaf.distribution}); pass a factory of width and rngs or key as the model"
            )
    return [dataclasses.replace(function, values=_redrawn(function, seed)) for seed in seeds]


def _redrawn(function: ModelFunction, seed: int) -> list[Any]:
    keys = jax.random.split(jax.random.key(seed), len(function.leaves))
    return [_entries(leaf, old, key) for leaf, old, key in zip(function.leaves, function.values, keys, strict=True)]


def _entries(leaf: Leaf, old: Any, key: Any) -> Any:
    of = leaf.distribution
    if not of.random or of.std == 0:
        return old
    return (of.mean + of.std * _STANDARD[of.kind](key, leaf.shape)).astype(jnp.result_type(old))


def apply_alike(functions: Sequence[ModelFunction], x: Any) -> list[list[int]]:
    """Groups draws of a model by their functions of parameters and input.

    A model may hold random numbers that are no parameters. Its draws are then different functions, which one compiled
    program cannot serve. Each group holds the places of draws that agree on the parameters of the first one.

    Args:
      functions: The draws.
      x: Inputs on which they are compared.
    """
    groups: list[tuple[ModelFunction, Any, list[int]]] = []
    for place, one in enumerate(functions):
        for first, outputs, members in groups:
            if one.fn is first.fn or np.array_equal(np.asarray(one.fn(first.values, x)), outputs):
                members.append(place)
                break
        else:
            groups.append((one, np.asarray(one.fn(one.values, x)), [place]))
    return [members for _, _, members in groups]


def gradient_factors(function: ModelFunction, parameterization: str) -> list[float]:
    """Returns the factor of the gradient of each parameter: 1, or its standard deviation in "ntk"; 0 for fixed ones."""
    if parameterization == "own":
        return [1.0 if leaf.trained else 0.0 for leaf in function.leaves]
    return [leaf.distribution.std if leaf.trained and leaf.distribution.random else 0.0 for leaf in function.leaves]
