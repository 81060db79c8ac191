"""What the reader needs to know of JAX's programs: nested calls, and the lines of the model."""

from pathlib import Path
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

# Parameters in which calls hold their programs.
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = frozenset(
    (
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "jit",
        "pjit",
        "remat",
        "remat2",
    )
)
_TRACE = Path(__file__).parent


def body(equation: Any) -> tuple[Any, list[Any]] | None:
    """Returns the program and the constants of a call, or None if an equation is no call."""
    if equation.primitive.name not in _CALLS:
        return None
    found = next(equation.params[name] for name in _BODIES if name in equation.params)
    return (found.jaxpr, list(found.consts)) if hasattr(found, "jaxpr") else (found, [])


def has_own_derivative(equation: Any) -> bool:
    """Whether a call with a rule for its derivative has the derivative of its values, at random arguments.

    Functions of libraries, such as `jax.nn.relu`, are trusted.
    """
    if not equation.primitive.name.startswith("custom_"):
        return True
    found = next(equation.params[name] for name in _BODIES if name in equation.params)
    if not hasattr(found, "jaxpr") or of_library(found.jaxpr):
        return True
    rng = np.random.default_rng(0)
    variables = list(dict.fromkeys(v for v in equation.invars if not hasattr(v, "val")))
    given = [_drawn(rng, v.aval) for v in variables]
    names = found.jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    alone = jax.extend.core.Jaxpr([], variables, equation.outvars, [equation], debug_info=names)
    ruled = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(alone, []))
    inner = jax.extend.core.jaxpr_as_fun(found)

    def own(*arguments: Any) -> Any:
        values = dict(zip(variables, arguments, strict=True))
        return inner(*(v.val if hasattr(v, "val") else values[v] for v in equation.invars))

    with jax.ensure_compile_time_eval():
        outputs, back = jax.vjp(ruled, *given)
        _, own_back = jax.vjp(own, *given)
        seeds = [_drawn(rng, v) if v.dtype.kind == "f" else np.zeros(v.shape, jax.dtypes.float0) for v in outputs]
        pairs = zip(back(seeds), own_back(seeds), strict=True)
        floats = [(np.asarray(a), np.asarray(b)) for a, b in pairs if a.dtype != jax.dtypes.float0]
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in floats)


def _drawn(rng: np.random.Generator, aval: Any) -> Any:
    """Returns random entries of the shape and type of an array; integers and truth values are 0."""
    if np.dtype(aval.dtype).kind == "f":
        return jnp.asarray(2 * rng.normal(size=aval.shape), aval.dtype)
    return jnp.zeros(aval.shape, aval.dtype)


def needed(jaxpr: Any) -> tuple[list[Any], set[Any]]:
    """Returns the equations on which a program's results depend, in order, and the variables that they use."""
    used = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if any(v in used for v in equation.outvars):
            equations.append(equation)
            used |= {v for v in equation.invars if not hasattr(v, "val")}
    return equations[::-1], used


def inner(equation: Any) -> list[Any]:
    """Returns all programs that an equation holds."""
    found = []
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                found.append(one)
    return found


def shapes_beside(narrow: Any, wide: Any, found: dict[int, list[tuple[int, ...]]]) -> str | None:
    """Collects the shapes of the results of a program's equations in another one that differs in sizes alone.

    Args:
      narrow: The program.
      wide: The other program.
      found: The shapes by the `id` of the equation of `narrow`, to be filled in.

    Returns:
      The place of the first equation that differs in more than sizes, or None.
    """
    (narrow_equations, _), (wide_equations, _) = needed(narrow), needed(wide)
    if len(narrow_equations) != len(wide_equations):
        return place((narrow_equations or wide_equations)[-1])
    for one, other in zip(narrow_equations, wide_equations, strict=True):
        same = one.primitive is other.primitive and len(inner(one)) == len(inner(other))
        ranks = [[len(v.aval.shape) for v in e.outvars] for e in (one, other)]
        if not same or ranks[0] != ranks[1]:
            return place(one)
        found[id(one)] = [tuple(v.aval.shape) for v in other.outvars]
        for a, b in zip(inner(one), inner(other), strict=True):
            if (differing := shapes_beside(a, b, found)) is not None:
                return differing
    return None


# Folders whose lines say nothing about a model: JAX, its bridge to PyTorch, and this package's reader.
_INNER = frozenset(("jax", "jaxlib", "torchax", "tracing"))


def place(equation: Any) -> str:
    """Returns the model's file and line that made an equation, such as "model.py:12"."""
    traceback = equation.source_info.traceback
    paths = [] if traceback is None else [(Path(frame.file_name), frame.line_num) for frame in traceback.frames]
    own = [(path, line) for path, line in paths if not _of_library(path)]
    own = own or [(path, line) for path, line in paths if not _INNER & set(path.parts)]
    chosen = own[0] if own else None
    return "an unknown line" if chosen is None else f"{chosen[0].name}:{chosen[1]}"


def of_library(jaxpr: Any) -> bool:
    """Whether a program is that of a library's function, such as `jax.nn.relu`."""
    info = getattr(jaxpr, "debug_info", None)
    source = getattr(info, "func_src_info", None) or ""
    return _of_library(Path(source.split(" at ")[-1].rsplit(":", 1)[0])) if " at " in source else False


def name_of(jaxpr: Any) -> str:
    """Returns the name of the function that a program was made of."""
    return jaxpr.debug_info.func_src_info.split(" at ")[0]


def _of_library(path: Path) -> bool:
    """Whether a file is part of an installed library or of this package's reader."""
    return "site-packages" in path.parts or "dist-packages" in path.parts or _TRACE in path.parents
