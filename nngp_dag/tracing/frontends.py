"""Models of flax nnx, flax linen, equinox, PyTorch and plain JAX as pure functions of a list of parameters.

Every model is opened in inference mode, on a copy: dropout is off, and batch norm uses its running statistics. Flax,
equinox and torchax, by which models of PyTorch become functions of JAX, are imported only for a model that needs them.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from nngp_dag.errors import InputError, MissingLibraryError, ModelError, shorten, shown

__all__ = ["Opened", "framework", "init_linen", "name_of", "open_model", "open_tree", "streams", "torch_seed"]

# Arguments and attributes by which models are told to train, and the value of each that means inference.
_INFERENCE = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "inference": True,
    "use_running_average": True,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A model as a pure function.

    Attributes:
      fn: Function of a list of parameters and the input.
      names: Names of the parameters, such as "layers.0.kernel".
      values: Their numbers, in the same order. They may be tracers.
      name: Name of the model's class or function.
      output_first: Whether its matrices hold outputs first, as those of equinox and PyTorch do.
      fixed: Names of parameters that are not trained.
    """

    fn: Callable[[Sequence[Any], Any], Any]
    names: tuple[str, ...]
    values: list[Any]
    name: str
    output_first: bool = False
    fixed: frozenset[str] = frozenset()


def framework(model: Any) -> str:
    """Returns "nnx", "linen", "equinox" or "torch" for a model of that library, else "function" or "other".

    Examples:
      >>> framework(lambda params, x: x), framework(3)
      ('function', 'other')
    """
    modules = [(one.__module__ or "", one.__name__) for one in type(model).__mro__]
    if any(name.startswith("flax.nnx") and one == "Module" for name, one in modules):
        return "nnx"
    if any(name.startswith("flax.linen") and one == "Module" for name, one in modules):
        return "linen"
    if any(name.partition(".")[0] == "equinox" and one == "Module" for name, one in modules):
        # Bound methods and wrapped functions of equinox are modules, too; they are models all the same.
        return "equinox"
    if any(name.startswith("torch.nn") and one == "Module" for name, one in modules):
        return "torch"
    return "function" if callable(model) else "other"


def open_model(model: Any, params: Any = None) -> Opened:
    """Returns a model as a pure function; linen modules and functions need their parameters.

    Raises:
      InputError: For a model whose call needs more than the input, or whose parameters are complex.
    """
    kind = framework(model)
    if kind == "nnx":
        return _open_nnx(model)
    if kind == "equinox":
        return _open_equinox(model)
    if kind == "torch":
        return _open_torch(model)
    if kind == "linen":
        return _open_linen(model, params)
    names, values, rebuild = open_tree(params)
    options = inference_options(model, 2)

    def fn(leaves: Sequence[Any], x: Any) -> Any:
        return model(rebuild(leaves), x, **options)

    return Opened(fn, names, values, name_of(model))


def name_of(model: Any) -> str:
    """Returns the name of a function, or of a model's class."""
    inner = getattr(model, "func", model)
    return getattr(inner, "__name__", type(inner).__name__)


def open_tree(tree: Any) -> tuple[tuple[str, ...], list[Any], Callable[[Sequence[Any]], Any]]:
    """Returns the names of a tree's real arrays, the arrays, and the function that puts others in their places.

    Leaves of other types, such as integers, stay as they are.

    Examples:
      >>> names, values, rebuild = open_tree({"layers": [{"w": np.ones(2)}], "steps": 3})
      >>> names, rebuild([5])
      (('layers.0.w',), {'layers': [{'w': 5}], 'steps': 3})
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names, values, places = [], [], []
    for place, (path, leaf) in enumerate(paths):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            dtype = np.asarray(leaf).dtype if isinstance(leaf, float | complex) else None
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            continue
        name = _path_name(path) or "params"
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise InputError(f"Expected the parameters to be real, got `{name}` of type {dtype}; split it in two")
        names.append(name)
        values.append(leaf if hasattr(leaf, "dtype") else np.asarray(leaf))
        places.append(place)
    others = [None if place in set(places) else leaf for place, (_, leaf) in enumerate(paths)]

    def rebuild(leaves: Sequence[Any]) -> Any:
        full = list(others)
        for place, leaf in zip(places, leaves, strict=True):
            full[place] = leaf
        return jax.tree_util.tree_unflatten(structure, full)

    return tuple(names), values, rebuild


def _path_name(path: Sequence[Any]) -> str:
    parts = []
    for one in path:
        # The array inside a variable of nnx, or inside a box of linen with its metadata.
        if isinstance(one, jax.tree_util.GetAttrKey) and one.name == "value" and one is path[-1] and len(path) > 1:
            continue
        key = next(getattr(one, name) for name in ("key", "idx", "name") if hasattr(one, name))
        parts.append(str(key))
    return ".".join(parts)


def inference_options(call: Callable[..., Any], positional: int) -> dict[str, Any]:
    """Returns the arguments that put a call into inference mode; `positional` ones are given already.

    Raises:
      InputError: For a call that needs other arguments, too.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return {}
    options = {}
    for place, one in enumerate(parameters):
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        if place < positional and one.kind is not one.KEYWORD_ONLY:
            continue
        if one.name in _INFERENCE and one.kind is not one.POSITIONAL_ONLY:
            options[one.name] = _INFERENCE[one.name]
        elif one.default is one.empty:
            raise InputError(
                f"Expected the model to be a function of its input, got one that needs `{one.name}`, too; "
                "pass `lambda params, x: ...` with its `params`"
            )
    return options


def _attributes(model: Any) -> dict[str, Any]:
    """Returns the fields of a module that must change for inference mode."""
    return {
        one.name: _INFERENCE[one.name]
        for one in dataclasses.fields(model)
        if one.name in _INFERENCE and (isinstance(getattr(model, one.name), bool) or getattr(model, one.name) is None)
    }


def _open_nnx(model: Any) -> Opened:
    from flax import nnx

    options = inference_options(model.__call__, 1)
    # A clone has variables of its own, so that the user's module stays in its mode.
    cloned = nnx.clone(model)
    cloned.eval()
    for _, module in nnx.iter_modules(cloned):
        for name, value in _INFERENCE.items():
            if isinstance(vars(module).get(name), bool):
                setattr(module, name, value)
    structure, parameters, rest = nnx.split(cloned, nnx.Param, ...)
    names, values, rebuild = open_tree(parameters)
    others, form = jax.tree_util.tree_flatten(rest)

    def fn(leaves: Sequence[Any], x: Any) -> Any:
        # New variables for each call, which the model may then change: counts of random numbers, for example.
        fixed = jax.tree_util.tree_unflatten(form, others)
        return nnx.merge(structure, rebuild(leaves), fixed)(x, **options)

    return Opened(fn, names, values, type(model).__name__)


@functools.cache
def _count() -> type:
    """Returns a variable of nnx that counts in numbers of NumPy."""
    from flax import nnx

    class Count(nnx.RngCount):
        """Count of the keys that a stream has given.

        While JAX traces, a count of nnx is a traced array. For each key nnx asks for its sharding, whose absence JAX
        explains by a search through all that was traced: 200 layers take 12 s.
        """

        def get_value(self, **options: Any) -> Any:
            value, index = self.get_raw_value(), options.get("index", ...)
            return value if index is ... else value[index]

        def set_value(self, value: Any, **options: Any) -> None:
            self.set_raw_value(value)

    return Count


def streams(key: Any) -> Any:
    """Returns random streams of nnx of a key, concrete or traced."""
    from flax import nnx

    rngs = nnx.Rngs(key)
    if isinstance(key, core.Tracer):
        rngs.default.count = _count()(np.uint32(0), tag="default")
    return rngs


def _open_linen(model: Any, variables: Any) -> Opened:
    options = inference_options(model.__call__, 1)
    # An argument of the call and an attribute of the module may not both be given.
    fields = {key: value for key, value in _attributes(model).items() if key not in options}
    module = model.clone(**fields) if fields else model
    if not isinstance(variables, Mapping):
        raise InputError(f"Expected `params` to be the variables of the linen module, got {shown(variables)}")
    whole = dict(variables) if "params" in variables else {"params": variables}
    names, values, rebuild = open_tree(whole.pop("params"))

    def fn(leaves: Sequence[Any], x: Any) -> Any:
        return module.apply({"params": rebuild(leaves), **whole}, x, **options)

    return Opened(fn, names, values, type(model).__name__)


def init_linen(model: Any, key: Any, x: Any) -> Any:
    """Returns fresh variables of a linen module, initialized in inference mode."""
    options = inference_options(model.__call__, 1)
    fields = {name: value for name, value in _attributes(model).items() if name not in options}
    module = model.clone(**fields) if fields else model
    return module.init(key, x, **options)


def _open_equinox(model: Any) -> Opened:
    import equinox as eqx

    options = inference_options(type(model).__call__, 2)
    parameters, static = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    names, values, rebuild = open_tree(parameters)

    def fn(leaves: Sequence[Any], x: Any) -> Any:
        network = eqx.combine(rebuild(leaves), static)
        # Modules of equinox act on one example.
        return jax.vmap(lambda one: network(one, **options))(x)

    return Opened(fn, names, values, type(model).__name__, output_first=True)


@contextlib.contextmanager
def torch_seed(key: Any) -> Iterator[None]:
    """Lets PyTorch draw numbers of a key of JAX, if it is imported, and puts its own generator back afterwards."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    data = np.zeros(1, int)
    if not isinstance(key, core.Tracer):
        with jax.ensure_compile_time_eval():
            data = np.asarray(jax.random.key_data(key))
    with torch.random.fork_rng(devices=[]):
        # The generator takes 32 bits.
        torch.manual_seed(int(np.random.SeedSequence(data.ravel().tolist()).generate_state(1)[0]))
        yield


def _open_torch(model: Any) -> Opened:
    try:
        torchax: Any = importlib.import_module("torchax")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchax":
            raise
        raise MissingLibraryError(
            "Expected `torchax` to be installed for a model of PyTorch, got no such library; install it by "
            "pip install 'nngp-dag[torch]'"
        ) from error
    environment = torchax.tensor.Environment()
    # Arrays that the model makes itself, such as masks and first states, are arrays of JAX, too.
    environment._should_use_torchax_tensor = lambda device: True  # type: ignore[method-assign]

    def draws(*arguments: Any, **options: Any) -> Any:
        raise ModelError(
            f"Expected the model {type(model).__name__} to be a function of its parameters and its input in inference "
            "mode, got one that draws random numbers; leave that out"
        )

    environment.get_and_rotate_prng_key = draws  # type: ignore[method-assign]
    try:
        module = copy.deepcopy(model).eval()
        with jax.ensure_compile_time_eval():
            arrays, call = torchax.extract_jax(module, environment)
    except Exception as error:  # the model is the caller's code, and torchax does not know all of PyTorch
        text = shorten(" ".join(str(error).split()), 200)
        raise InputError(
            f"Expected a model of PyTorch that torchax can read, got {type(error).__name__}: {text}; pass plain layers "
            "whose sizes are known, without wrappers of several devices"
        ) from error
    parameters = dict(module.named_parameters())
    names = tuple(parameters)
    buffers = {name: array for name, array in arrays.items() if name not in parameters}

    def fn(leaves: Sequence[Any], x: Any) -> Any:
        # Numbers of one type, which PyTorch does not mix; running statistics take that of the weights.
        dtype = jnp.result_type(*leaves) if leaves else x.dtype
        whole = {
            name: array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array
            for name, array in buffers.items()
        }
        given = dict(zip(names, map(jnp.asarray, leaves), strict=True))
        with _gradients_flow():
            return call({**whole, **given}, (jnp.asarray(x),))

    fixed = frozenset(name for name, one in parameters.items() if not one.requires_grad)
    values = [arrays[name] for name in names]
    return Opened(fn, names, values, type(model).__name__, output_first=True, fixed=fixed)


def _library(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]


@contextlib.contextmanager
def _gradients_flow() -> Iterator[None]:
    """Refuses that a model of PyTorch turns gradients off for a part of itself, which torchax does not follow."""
    torch = sys.modules["torch"]

    def refused(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def enter(*arguments: Any, **options: Any) -> Any:
            frame = sys._getframe(1)
            # Between this function and its caller lie frames of decorators, and in tests those of type checkers.
            while (library := _library(frame)) in ("jaxtyping", "beartype", "contextlib") and frame.f_back is not None:
                frame = frame.f_back
            if library not in ("torch", "torchax"):
                raise ModelError(
                    f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}: Expected values through which gradients "
                    "flow, got a part without them; set `requires_grad_(False)` on parameters that are not trained"
                )
            return original(*arguments, **options)

        return enter

    places = [(torch.no_grad, "__enter__"), (torch.inference_mode, "__enter__"), (torch.set_grad_enabled, "__init__")]
    with contextlib.ExitStack() as stack:
        for owner, name in places:
            original = getattr(owner, name)
            stack.callback(setattr, owner, name, original)
            setattr(owner, name, refused(original))
        yield
