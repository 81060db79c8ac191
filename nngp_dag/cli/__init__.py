"""The command line: reads options, calls the library, prints. No mathematics here.

Heavy modules are imported inside the commands, so that `--help` and error messages are quick.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from nngp_dag import interrupt
from nngp_dag.cli.compare import compare
from nngp_dag.cli.kernels import gram_command, kernel_command, show
from nngp_dag.cli.nas import nas
from nngp_dag.cli.nas_tenas import tenas
from nngp_dag.cli.screen import show_warning
from nngp_dag.cli.sweep import sweep
from nngp_dag.cli.train import train
from nngp_dag.errors import NngpDagError, NumericalWarning

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact infinite-width kernels of networks with any DAG connectivity, theory and real training.",
)
app.command()(show)
app.command("kernel")(kernel_command)
app.command("gram")(gram_command)
app.command()(compare)
app.command()(train)
app.command()(sweep)
nas.command()(tenas)
app.add_typer(nas, name="nas")


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(version("nngp-dag"))
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a bad input prints one line and exits with status 2, an interruption 128 + signal."""
    if arguments is None:
        arguments = sys.argv[1:]
    with interrupt.handled(arguments):
        _run(arguments)


def _run(arguments: Sequence[str]) -> NoReturn:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", NumericalWarning)
            warnings.showwarning = show_warning
            status = app(args=arguments or ["--help"], prog_name="nngp-dag", standalone_mode=False)
    except NngpDagError as error:
        message = str(error)
    except TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
    except Exception as error:
        # JAX has no type of its own for it.
        if "out of memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        message = "Expected the work to fit into memory, got out of memory; lower --subset, --width or --seeds"
    else:
        interrupt.on_interrupt(lambda: "the command had ended")
        sys.exit(status if isinstance(status, int) else 0)
    print(f"nngp-dag: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
