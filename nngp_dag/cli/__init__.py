"""The command line: reads options, calls the library and prints results; it computes nothing itself.

Large modules are imported inside the commands, so that `--help` and error messages appear at once.
"""

import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from nngp_dag import __version__, interrupt
from nngp_dag.cli._compare import compare
from nngp_dag.cli._search import search_command
from nngp_dag.cli._sweep import sweep
from nngp_dag.cli._train import train
from nngp_dag.cli.catalog import list_command
from nngp_dag.cli.kernels import gram_command, kernel_command, show_command
from nngp_dag.cli.large import plan_command, solve_command
from nngp_dag.cli.nas import plot, score, search
from nngp_dag.cli.nas_tenas import tenas
from nngp_dag.cli.nas_train import train_cell_command
from nngp_dag.cli.options import QuietOption
from nngp_dag.cli.outputs import released
from nngp_dag.cli.screen import screen as wanted
from nngp_dag.cli.screen import show_warning
from nngp_dag.errors import InputWarning, NngpDagError, NumericalWarning, did_you_mean, is_out_of_memory

_CELL = "'|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|'"
_SETTINGS: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "no_args_is_help": True}


def _examples(*commands: str) -> str:
    """Returns the examples below the help of a command; typer joins lines unless a blank line separates them."""
    return "\n\n".join(("Examples:", *(f"nngp-dag {command}" for command in commands)))


app = typer.Typer(
    pretty_exceptions_enable=False,
    help="Exact infinite-width kernels (NNGP, NTK) of networks whose layers form a DAG, theory, and training.",
    epilog=_examples("compare", "compare --data my.npz", "show 2_21_112", "list activations"),
    **_SETTINGS,
)
nas = typer.Typer(
    help="Rank and search cells of NAS-Bench-201 and DARTS without training, and train the cells found.",
    epilog=_examples("nas score --score naswot --sample 100 --out scores", "nas tenas --space darts --out found"),
    **_SETTINGS,
)


def _add(to: typer.Typer, name: str, function: Callable[..., None], *examples: str) -> None:
    """Adds a command, with examples of its use in the help."""
    whole = f"nas {name}" if to is nas else name
    epilog = _examples(*(f"{whole} {example}".strip() for example in examples))
    to.command(name, epilog=epilog, context_settings=_SETTINGS["context_settings"])(function)


_add(app, "show", show_command, "2_21_112 --png graph.png", "2_21_112 --explain 20000x784", f"{_CELL} --json")
_add(
    app,
    "kernel",
    kernel_command,
    "--dag 2_21_112 --data my.npz --out kernel.npz",
    "--dag DAG#1 --conv 3 --activation erf --b-std 0.1 --image-readout global-average --subset 32",
    "--model model.py:build --width 512 --data my.npz",
)
_add(
    app,
    "gram",
    gram_command,
    "--dag 2_21_112 --dataset mnist --subset 20000 --memory-budget '6 GiB' --out mnist",
    "--dag 2_21_112 --dataset mnist --subset 20000 --memory-budget '6 GiB' --out mnist --resume",
)
_add(
    app,
    "plan",
    plan_command,
    "--dag 2_21_112 --shape 1000000x784 --landmarks 4096 --memory-budget '6 GiB'",
    "--dag 2_12 --conv 3 --shape 50000x32x32x3",
)
_add(
    app,
    "solve",
    solve_command,
    "--dag 2_21_112 --dataset mnist --ridge 0.01 --method landmarks --landmarks 2048 --out mnist-solution",
    "--dag 2_12 --data my.npz --ridge 0.1 --memory-budget '6 GiB' --json",
)
_add(
    app,
    "compare",
    compare,
    "",
    "--data my.csv --dag 2_21_112 --seeds 3 --out mine",
    "--model model.py:build --data my.npz",
)
_add(
    app,
    "train",
    train,
    "--dag 2_21_112 --dataset mnist --lr 0.01 --epochs 5 --seeds 5 --out run",
    "--resume --epochs 10 --out run",
    "--conv 3 --batch-norm --width 32 --subset 500 --epochs 2",
)
_add(app, "sweep", sweep, "--nodes 3 --plot", "--space nasbench201 --data my.npz --out cells")
_add(
    app,
    "search",
    search_command,
    "--objective leave-one-out --starts 50 --out found",
    "--data my.npz --objective ntk-lambda-min --num-nodes 3 --exhaustive",
)
_add(app, "list", list_command, "activations", "scores --json")
_add(
    nas,
    "score",
    score,
    "--score naswot --sample 100 --out scores",
    "--cell CELL --data my.npz --score parameters",
    "--score leave_one_out --batch 512 --accuracies accuracy.csv --out scores",
    "--space darts --score naswot --sample 100 --filter released-code --out darts",
)
_add(nas, "search", search, "--accuracies accuracy.csv --scores scores --score naswot")
_add(nas, "plot", plot, "--accuracies accuracy.csv --scores scores")
_add(
    nas,
    "train",
    train_cell_command,
    f"{_CELL} --subset 500 --eval-subset 500 --epochs 5 --out cell",
    "--resume --out cell",
)
_add(nas, "tenas", tenas, "--space nasbench201 --out found", "--space darts --measure exact --out darts")
app.add_typer(nas, name="nas")


def _print_version(asked: bool) -> bool:
    if asked:
        print(__version__)
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    pass


def _message(error: TyperException, arguments: Sequence[str]) -> str:
    """Returns the message of an error in the options of a command, as one line."""
    if near := getattr(error, "possibilities", None):
        return f"{error.message}; did you mean {near[0]!r}?"
    message = error.format_message().replace("Value error, ", "")
    if choice := re.fullmatch(r"Invalid value for '(.*?)': '(.*)' is not one of (.*)\.", message, re.DOTALL):
        name, value, known = choice.groups()
        near = did_you_mean(value, re.findall("'(.*?)'", known))
        return f"Expected {name} to be one of {known}, got {value[:60]!r}{near}"
    context: Any = getattr(error, "ctx", None)
    if re.match("Missing option '--dag'|Got unexpected extra argument", message) and any(
        "--dag" in option.opts for option in context.command.params
    ):
        # `show` takes the graph as its first word, so that people write it there for other commands too.
        [word] = arguments[arguments.index(context.info_name) + 1 :][:1] or ["-"]
        if not word.startswith("-"):
            return f"{message.rstrip('.')}; did you mean --dag {shlex.quote(word)}?"
    return message


def _with_options(message: str, arguments: Sequence[str]) -> str:
    """Returns a message of the library with the names of options in place of the names of arguments."""
    command: Any = typer.main.get_command(app)
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    for option in command.params:
        flags = [flag for flag in option.opts if flag.startswith("--")]
        if flags:
            # For an option that may be repeated, the library's argument has the plural as its name.
            # A parameter of Python ends in "_" where its name would hide a built-in function.
            argument = option.name.rstrip("_")
            for name in (argument, f"{argument}s") if option.multiple else (argument,):
                message = re.sub(f"`{name}(=True)?`", max(flags, key=len), message)
    return message


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits.

    The status is 0 on success, 2 after an invalid input, which prints one line, and 128 + signal after an interruption.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    wanted.reset()
    with interrupt.handled(arguments):
        _run(arguments)


def _run(arguments: Sequence[str]) -> NoReturn:
    try:
        with released(), warnings.catch_warnings():
            for category in (NumericalWarning, InputWarning):
                warnings.simplefilter("always", category)
            warnings.showwarning = show_warning
            status = app(args=arguments or ["--help"], prog_name="nngp-dag", standalone_mode=False)
    except NngpDagError as error:
        message = str(error)
    except TyperException as error:
        message = _message(error, arguments)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = "Expected the work to fit into memory, got out of memory; lower --subset, --width or --seeds"
    else:
        interrupt.on_interrupt(lambda: "the command had ended")
        sys.exit(status if isinstance(status, int) else 0)
    print(f"nngp-dag: error: {' '.join(_with_options(message, arguments).split())}", file=sys.stderr)
    if "nngp_dag.distributed" in sys.modules:
        sys.modules["nngp_dag.distributed"].leave(2)
    sys.exit(2)
