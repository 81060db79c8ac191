"""Digests of functions that are equal in every process, so that files can say which function they belong to."""

import functools
import hashlib
import sys
import uuid
from collections.abc import Callable, Hashable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax
import numpy as np

# Functions of these libraries are identified by name alone, because files record the versions of the libraries.
_LIBRARIES = {"jax", "jaxlib", "flax", "numpy", "scipy", "nngp_dag", *sys.stdlib_module_names}


class _UnknownError(Exception):
    """Something whose content cannot be read, such as an object with a state."""


def fingerprint(fn: Callable[..., Any]) -> str:
    """Returns a digest of a function's code and defaults, and of the constants and functions that it reads.

    The content of some functions cannot be read, such as that of callable objects. The result is then a text that is
    unique to this process, so that it equals nothing on disk.
    """
    return known_fingerprint(fn) or f"of unknown content, here {_token(fn)}"


def known_fingerprint(fn: Callable[..., Any]) -> str | None:
    """Returns the digest of `fingerprint`, or None where the function's content cannot be read."""
    try:
        return hashlib.sha256(repr(_content(fn, ())).encode()).hexdigest()[:16]
    except (_UnknownError, ValueError, RecursionError):  # the last two: empty closure cells, and endless nesting
        return None


@functools.cache
def _token(fn: Hashable) -> str:
    return uuid.uuid4().hex[:16]


def _content(value: Any, within: tuple[int, ...]) -> Any:
    """Returns a value's content as texts and tuples of texts; `within` lists the ids of the enclosing functions."""
    if id(value) in within:
        return "itself"
    again = functools.partial(_content, within=within)
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *map(again, value)
    if isinstance(value, (set, frozenset)):
        return "set", *sorted(map(repr, map(again, value)))
    if isinstance(value, dict):
        return "dict", *((again(key), again(of)) for key, of in value.items())
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.dtype != object:
        array = np.asarray(value)
        return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, CodeType):
        return value.co_code.hex(), value.co_names, tuple(map(again, value.co_consts))
    again = functools.partial(_content, within=(*within, id(value)))
    if isinstance(value, functools.partial):
        return "partial", *map(again, (value.func, value.args, value.keywords))
    module, name = getattr(value, "__module__", None) or "", getattr(value, "__name__", "")
    if module.partition(".")[0] in _LIBRARIES and getattr(sys.modules.get(module), name, None) is value:
        return module, name
    if isinstance(value, FunctionType):
        closure = tuple(cell.cell_contents for cell in value.__closure__ or ())
        read = tuple(value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__)
        return tuple(map(again, (value.__code__, value.__defaults__, value.__kwdefaults__, closure, read)))
    # A function that JAX has transformed: by `jit`, or by `custom_jvp`, whose derivative is a function of its own.
    if type(value).__module__.partition(".")[0] in ("jax", "jaxlib") and hasattr(value, "__wrapped__"):
        return tuple(again(getattr(value, part, None)) for part in ("__wrapped__", "jvp"))
    raise _UnknownError


def _names(code: CodeType) -> list[str]:
    """Returns the names that a code object, and the functions defined in it, look up."""
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return sorted({*code.co_names, *inner})
