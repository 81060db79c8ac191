"""Command lines: functions that parse the commands in documents, and that run commands."""

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from nngp_dag.cli import app, main


def arguments_of(line: str) -> list[str]:
    """Returns the arguments of a line that begins with nngp-dag. Two blanks and # begin a comment."""
    program, *arguments = shlex.split(re.split(r"\s{2,}#", line.strip())[0])
    assert program == "nngp-dag"
    return arguments


def check_options(line: str) -> None:
    """Raises if the command does not know an option or its value."""
    command: Any = get_command(app)
    arguments = arguments_of(line)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("nngp-dag", arguments)


def run(capsys, *arguments):
    """Returns (exit status, standard output, standard error).

    Lines of progress are left out of the latter, because only slow machines print them.
    """
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    err = re.sub(r"^nngp-dag: \d+ (s|min|h)\b.*\n", "", captured.err, flags=re.MULTILINE)
    return stop.value.code, captured.out, err
