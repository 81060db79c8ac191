"""The only import of neural-tangents, which has been without maintenance since 2024.

Version 0.6.5 imports names that JAX has removed, and TensorFlow for one experimental function. While its modules
load, the names are put back and an empty module stands in for `neural_tangents.experimental`; afterwards
jax is left as it was found. This file can go when a release imports on current JAX without TensorFlow.
"""

import contextlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad

_EXPERIMENTAL = "neural_tangents.experimental"


def _safe_map(function: Callable[..., Any], *args: Any) -> list[Any]:
    return [function(*items) for items in _safe_zip(*args)]


def _safe_zip(*args: Any) -> list[tuple[Any, ...]]:
    return list(zip(*map(list, args), strict=True))


def _removed_names() -> Iterator[tuple[types.ModuleType, str, object]]:
    """Yields (module, name, value) for every name that neural-tangents needs and this JAX lacks."""
    wanted: list[tuple[types.ModuleType, str, object]] = [
        (jax.core, name, getattr(jax.extend.core, name))
        for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    ]
    # A key of two rule tables; no equation of a traced program refers to it any more.
    wanted.append((jax.interpreters.ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")))
    for module, name, value in wanted:
        with warnings.catch_warnings():
            # Reading a deprecated name warns; it is there all the same.
            warnings.simplefilter("ignore", DeprecationWarning)
            present = hasattr(module, name)
        if not present:
            yield module, name, value


@contextlib.contextmanager
def _patched_jax() -> Iterator[None]:
    modules = {_EXPERIMENTAL: types.ModuleType(_EXPERIMENTAL)}
    if importlib.util.find_spec("jax.util") is None:
        util: Any = types.ModuleType("jax.util")
        util.safe_map, util.safe_zip = _safe_map, _safe_zip
        modules["jax.util"] = util
    patched = list(_removed_names())
    for module, name, value in patched:
        setattr(module, name, value)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for module, name, _ in patched:
            delattr(module, name)
        for name in modules:
            del sys.modules[name]


def _load() -> tuple[Any, Any]:
    # An import that already worked, on an old JAX, is left alone.
    with contextlib.nullcontext() if "neural_tangents" in sys.modules else _patched_jax():
        import neural_tangents
        from neural_tangents import stax
    return neural_tangents, stax


neural_tangents, stax = _load()
Kernel = neural_tangents.Kernel
