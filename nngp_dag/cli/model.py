"""The option --model: a model of the user's own, in a Python file that the command runs."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nngp_dag.cli.network import NETWORK_OPTIONS
from nngp_dag.cli.options import NETWORK
from nngp_dag.cli.resumed import Context, given
from nngp_dag.cli.screen import note
from nngp_dag.errors import InputError, NngpDagError, did_you_mean, shorten

if TYPE_CHECKING:
    import numpy as np

    from nngp_dag.tracing import Traced

_HELP = (
    "Your own model in JAX or flax, instead of --dag, as FILE:NAME. The file is run. NAME is a module, a function or a "
    "class of width, rngs or key that makes one, or a function f(params, x) beside a function init(key) in the file. "
    "Inputs are used as they are, unless --scale-inputs is given."
)
ModelOption = Annotated[str | None, typer.Option(metavar="FILE:NAME", rich_help_panel=NETWORK, help=_HELP)]
ModelsOption = Annotated[
    list[str] | None, typer.Option(metavar="FILE:NAME", rich_help_panel=NETWORK, help=f"{_HELP} Repeat for several.")
]

# The options of the network that a model has, too.
_SHARED = ("width", "parameterization")


def check_dag_or_model(context: Context, dag: str | None, model: str | None) -> None:
    """Refuses commands without a network, with two, and options of graphs beside a model."""
    if (dag is None) == (model is None):
        got = "neither" if dag is None else "both"
        raise InputError(f"Expected --dag or --model, got {got}; a graph is written --dag 2_21_112, for example")
    if model is not None:
        check_no_architecture(context)


def check_no_architecture(context: Context) -> None:
    """Refuses options of the architecture beside models alone, which have their own."""
    for name in (*NETWORK_OPTIONS, "readout"):
        if name not in _SHARED and name in context.params and given(context, name):
            raise InputError(
                f"Expected no --{name.replace('_', '-')} with --model, got it; the model's own code says what it is"
            )


def traced_model(context: Context, text: str, x: "np.ndarray") -> "Traced":
    """Returns the model that --model names, as its kernels are read off its program.

    Args:
      context: The command; it knows whether --width and --parameterization were given.
      text: The value of --model.
      x: Inputs of the data.

    Raises:
      InputError: The file or the name does not exist, or the user's code fails.
      ModelError: The model is outside the calculus.
    """
    from nngp_dag.tracing import trace

    path, name = _parts(text)
    note(f"running {path} for its `{name}`")
    model, options = _found(path, name)
    if given(context, "width"):
        options["width"] = context.params["width"]
    traced = _own(path, lambda: trace(model, x[:8], **options))
    if not given(context, "parameterization"):
        return traced
    if (wanted := context.params["parameterization"]) != "ntk":
        raise InputError(f"Expected --parameterization ntk with --model, or none for the model's own, got {wanted}")
    return traced.with_options(parameterization="ntk")


def scaled(context: Context) -> bool:
    """Whether --scale-inputs was given; inputs of a model are used as they are by default."""
    return bool(context.params["scale_inputs"]) and given(context, "scale_inputs")


def _parts(text: str) -> tuple[Path, str]:
    file, _, name = text.rpartition(":")
    if not file or not name.isidentifier():
        raise InputError(f"Expected --model to be FILE:NAME, such as model.py:build, got {shorten(text, 100)!r}")
    path = Path(file).expanduser()
    if path.suffix != ".py":
        raise InputError(f"Expected --model to name a file .py, got {shorten(file, 100)!r}")
    if not path.is_file():
        near = path.parent.glob("*.py") if path.parent.is_dir() else ()
        raise InputError(
            f"Expected --model to name a file, got no {file}{did_you_mean(path.name, [p.name for p in near])}"
        )
    return path, name


def _found(path: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """Returns the model in a file, and the arguments of `trace` that belong to it."""
    from nngp_dag.tracing.frontends import framework
    from nngp_dag.tracing.models import _factory_parameters

    module = _run(path)
    known = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    if name not in vars(module):
        own = [key for key, value in known.items() if getattr(value, "__module__", None) == module.__name__]
        near = did_you_mean(name, known) or (f"; it defines {shorten(', '.join(own), 100)}" if own else "")
        raise InputError(f"Expected {path} to define `{name}`, got no such name{near}")
    model = vars(module)[name]
    if framework(model) == "function" and not _factory_parameters(model):
        if not _needed(model):
            model = _own(path, model)
        elif callable(init := known.get("init")):
            return model, {"init": init}
        else:
            raise InputError(
                f"Expected {path} to define `init`, a function of a key that draws parameters of `{name}`, got none; "
                f"or make `{name}` a function of width, rngs or key that returns a model"
            )
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
        return model[0], {"init" if callable(model[1]) else "params": model[1]}
    return model, {}


def _needed(function: Callable[..., Any]) -> bool:
    """Whether a function has parameters without defaults."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)


def _run(path: Path) -> Any:
    """Returns the module of a file, which is run."""
    # Dataclasses, and so linen modules, look for their module by its name.
    name = f"nngp_dag_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # As for a script, the files beside it can be imported.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    _own(path, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def _own(path: Path, call: Callable[[], Any]) -> Any:
    """Runs code of the user, whose errors become one line."""
    try:
        return call()
    except NngpDagError:
        raise
    except (Exception, SystemExit) as error:
        file = str(path.resolve())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines.append(error.lineno)
        if not lines:  # not the user's code
            raise
        text = shorten(" ".join(str(error).split()), 300)
        raise InputError(f"Expected {path} to run, got {type(error).__name__} in line {lines[-1]}: {text}") from error
