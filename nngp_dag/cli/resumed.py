"""Options of a resumed run: those that are not given now are read from the folder of the run."""

import shlex
from enum import EnumType, StrEnum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import typer

from nngp_dag.cli import processes
from nngp_dag.errors import CheckpointError, InputError, shown
from nngp_dag.interrupt import program
from nngp_dag.storage import misfit

if TYPE_CHECKING:
    from typer import Context
else:
    # typer 0.29 passes an object of the base class of the documented class.
    Context = typer.Context.__base__

# Options that do not affect the result of a run, and are never read from its folder.
_CONTROLS = ("resume", "evaluate", "out", "overwrite", "json", "quiet", *processes.NAMES)


def options_of(context: Context, out: Path, *, resume: bool) -> dict[str, Any]:
    """Returns the options of a run. With `resume`, those that are not given now come from the folder of the run."""
    options = {name: value for name, value in context.params.items() if name not in _CONTROLS}
    return _resumed(context, out, options) if resume else options


def as_stored(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options for config.json. Paths are absolute, so that the run resumes from any folder."""
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in options.items()}


def as_path(option: Path | str | None) -> Path | None:
    """Returns an option that was given as a path, or stored as a text, as a path."""
    return None if option is None else Path(option)


def command_that_resumes(context: Context, out: Path) -> str:
    """Returns the command that resumes a run, quoted for a shell."""
    _, _, name = context.command_path.partition(" ")
    return f"{program()} {name} --resume --out {shlex.quote(str(out))}"


def given(context: Context, name: str) -> bool:
    """Returns whether an option is given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _resumed(context: Context, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    from nngp_dag.training.rundir import run_folder

    command, stored = context.command_path, run_folder(out).read().get("options")
    if stored and set(stored) < set(options):
        absent = ", ".join(sorted(set(options) - set(stored)))
        raise InputError(
            f"Expected the run in {out} to have all options of {command}, got one of another version, without "
            f"{absent}; start again with --overwrite"
        )
    if stored is None or not set(options) <= set(stored):
        raise InputError(f"Expected the run in {out} to be one of {command}, got another; resume it in Python")
    hints = get_type_hints(context.command.callback)
    wrong = misfit(stored, {name: _shape(hints[name], stored[name]) for name in options}, "options")
    for name in options:
        choices = _choices(hints[name])
        if not wrong and choices and stored[name] not in (None, *choices):
            wrong = f"{shown(stored[name])} as {name}, which is one of {', '.join(choices)}"
    if wrong:
        raise CheckpointError(
            f"Expected {out / 'config.json'} to hold options of {command}, got {wrong}; correct it, or start again "
            "with --overwrite"
        )
    return {name: value if given(context, name) else stored[name] for name, value in options.items()}


def _shape(hint: Any, value: object) -> Any:
    """Returns the shape, as `misfit` takes it, of the stored value of an option."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return type(None)
    if get_origin(kinds[0]) is list:
        return [*get_args(kinds[0])]
    as_text = get_origin(kinds[0]) is Literal or issubclass(kinds[0], (Path, StrEnum))
    return str if as_text else kinds[0]


def _choices(hint: Any) -> list[str]:
    """Returns the allowed values of an option, or an empty list where any value is allowed."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if get_origin(kinds[0]) is Literal:
        return [str(choice) for choice in get_args(kinds[0])]
    return [str(choice) for choice in kinds[0]] if isinstance(kinds[0], EnumType) else []
