"""The only import of neural-tangents, which has not been maintained since 2024.

Version 0.6.5 imports names that JAX has removed, and it imports TensorFlow for one experimental function. While its
modules load, these names are restored, and an empty module replaces `neural_tangents.experimental`. Afterwards JAX is
as it was before. For other changes of JAX and SciPy, functions inside neural-tangents' modules `predict` and
`empirical` are replaced. This file can be removed once a release works with current JAX and without TensorFlow.
"""

import contextlib
import functools
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.extend.source_info_util
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
    # neural-tangents uses this primitive as a key of two tables of rules; no traced program contains it any more.
    wanted.append((jax.interpreters.ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")))
    for module, name, value in wanted:
        with warnings.catch_warnings():
            # Reading a deprecated name warns, but the name is still present.
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


def _patch_predict(predict: Any) -> None:
    """Replaces `jax` and `sp` in the module `predict` by objects with the few names that it uses."""
    # For a traced kernel, for example under vmap, JAX's `eval_context` now raises an error.
    core = types.SimpleNamespace(eval_context=jax.ensure_compile_time_eval)
    predict.jax = types.SimpleNamespace(core=core, default_backend=jax.default_backend)
    # SciPy has renamed the argument `eigvals` to `subset_by_index`.
    eigvalsh = predict.sp.linalg.eigvalsh
    linalg = types.SimpleNamespace(eigvalsh=lambda a, eigvals: eigvalsh(a, subset_by_index=eigvals))
    predict.sp = types.SimpleNamespace(linalg=linalg)


def _patch_empirical(empirical: Any) -> None:
    """Replaces three functions and a few names in `empirical`, so that structured derivatives work on current JAX."""

    def primals_out_and_pullback(
        fn: Any, mode: Any, j_rules: bool, s_rules: bool, fwd: bool | None, *primals: Any
    ) -> Any:
        leaves, tree = jax.tree.flatten(primals)
        with jax.disable_jit():
            out, linear = jax.linearize(lambda *x: fn(*tree.unflatten(x)), *leaves)
            closed = jax.make_jaxpr(linear)(*leaves)
        undefined = [jax.interpreters.ad.UndefinedPrimal(v.aval) for v in closed.jaxpr.invars]

        def pullback(*cotangents: Any) -> Any:
            cts, rules = tuple(jax.tree.leaves(cotangents)), {"_j_rules": j_rules, "_s_rules": s_rules, "_fwd": fwd}
            return tree.unflatten(empirical._backward_pass(closed.jaxpr, mode, closed.consts, undefined, cts, **rules))

        return out, pullback

    def eqn_vjp(eqn: Any, cotangent: Any, *values: Any) -> Any:
        if eqn is None:
            return (cotangent,)
        return jax.interpreters.ad.get_primitive_transpose(eqn.primitive)(cotangent, *values, **eqn.params)

    def flops(function: Callable[..., Any], optimize: bool, *args: Any, **kwargs: Any) -> float:
        lowered = jax.jit(function).lower(*args, **kwargs)
        analysis: Any = (lowered.compile() if optimize else lowered).cost_analysis()
        return analysis["flops"]

    empirical._get_primals_out_and_pullback = primals_out_and_pullback
    empirical._eqn_vjp_fn = eqn_vjp
    empirical._get_flops = flops
    ad: Any = types.ModuleType("ad")
    ad.__getattr__ = functools.partial(getattr, jax.interpreters.ad)
    ad.source_info_util, ad.config = jax.extend.source_info_util, types.SimpleNamespace(jax_enable_checks=False)
    empirical.ad = ad
    # Current JAX has no arrays of the second type.
    empirical.core = types.SimpleNamespace(ShapedArray=jax.core.ShapedArray, DShapedArray=None)


def _load() -> tuple[Any, Any]:
    # If the caller has imported neural-tangents already, it works with the installed JAX and needs no changes.
    first = "neural_tangents" not in sys.modules
    with _patched_jax() if first else contextlib.nullcontext():
        import neural_tangents
        from neural_tangents import stax
    if first:
        _patch_predict(sys.modules["neural_tangents._src.predict"])
        _patch_empirical(sys.modules["neural_tangents._src.empirical"])
    return neural_tangents, stax


neural_tangents, stax = _load()
Kernel = neural_tangents.Kernel
