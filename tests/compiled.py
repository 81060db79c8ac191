"""How many programs JAX has compiled for a function, which its annotations leave out."""

from typing import Any


def programs(function: Any) -> int:
    """Returns how many programs a function under `jax.jit` keeps."""
    return function._cache_size()


def forget_programs(function: Any) -> None:
    """Drops all programs of a function under `jax.jit`."""
    function.clear_cache()
