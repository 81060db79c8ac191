"""What commands share: their options, and the graphs, layers and outputs that these name."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nngp_dag.cli.screen import screen
from nngp_dag.errors import InputError

if TYPE_CHECKING:
    from typer import CallbackParam as Parameter

    from nngp_dag.graph import Dag
else:
    # What typer 0.29 passes is of the base class of what it documents.
    Parameter = typer.CallbackParam.__base__

# Panels of the help.
DATA, NETWORK, TRAINING, COMPUTE, OUTPUT = "Data", "Network", "Training", "Compute", "Output"


class OrderOption(StrEnum):
    """Values of --order."""

    LINEAR_ACT = "linear-act"
    ACT_LINEAR = "act-linear"


class Precision(StrEnum):
    """Values of --dtype."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


def at_least_one(param: Parameter, value: Any) -> Any:
    """Refuses numbers below 1."""
    if value is not None and value < 1:
        raise InputError(f"Expected {param.opts[0]} to be at least 1, got {value}")
    return value


def count(help: str, panel: str, **others: Any) -> Any:  # noqa: A002
    """Returns an option that takes a number of at least 1."""
    return typer.Option(help=help, rich_help_panel=panel, callback=at_least_one, **others)


def _set_quiet(value: bool) -> bool:
    screen.quiet |= value
    return value


def _set_json(value: bool) -> bool:
    screen.json |= value
    return value


# Which data.
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=DATA,
        help="Your own data, instead of --dataset: an .npz file of x (N, d) or (N, height, width, channels), y and, if "
        "there are any, x_test and y_test; or a .csv file whose column y, label, labels, target or class, else the "
        "last, is the target. Integers and texts are classes, floats are targets of a regression. Inputs are taken as "
        "they are, not normalized.",
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        show_default="digits",
        rich_help_panel=DATA,
        help="digits, mnist, fashion_mnist, cifar10, cifar100, svhn_cropped or sphere; normalized.",
    ),
]
SplitsOption = Annotated[
    str | None,
    typer.Option(
        show_default="digits",
        rich_help_panel=DATA,
        help="digits, mnist, ..., sphere, or another image set of tensorflow-datasets, as name/config; normalized.",
    ),
]
CifarOption = Annotated[
    str | None,
    typer.Option(
        show_default="cifar10",
        rich_help_panel=DATA,
        help="An image set: digits, mnist, ..., or another of tensorflow-datasets, as name/config; normalized.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=DATA,
        help="Folder of tensorflow-datasets; without it, that library's default. Sets are "
        "downloaded into it if they are not there.",
    ),
]
TrainSubsetOption = Annotated[int | None, count("Train on the first N of the training part.", DATA)]
EvalSubsetOption = Annotated[
    int | None, count("Validate and test on at most the first N of these parts; by default on all of them.", DATA)
]
ScaleOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=DATA,
        help="Scale every input to |x|² = d, or keep its norm. (train does not scale unless asked.)",
    ),
]

# Which network.
DagOption = Annotated[
    str,
    typer.Option(rich_help_panel=NETWORK, help="A code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell."),
]
DagsOption = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=NETWORK, help="A DAG; repeat for several. Default: the three of Chen et al. 2022, Figure 3."
    ),
]
ReadoutOption = Annotated[
    bool, typer.Option(rich_help_panel=NETWORK, help="Kernels after the readout, or at the last node.")
]

# How to compute, and where to put it.
PrecisionOption = Annotated[Precision, typer.Option(rich_help_panel=COMPUTE, help="Precision of the kernels.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", rich_help_panel=OUTPUT, help="Go on with what is in --out, under the same options.")
]
ResumeRunOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=OUTPUT,
        help="Go on with the run in --out; its options are taken from there, but for those given now.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace existing results.")]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", callback=_set_json, rich_help_panel=OUTPUT, help="Print the result as JSON, and nothing beside it."
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_set_quiet, rich_help_panel=OUTPUT, help="No progress, no notes; results and errors."
    ),
]


def out_option(help: str, default: str, *, fresh: bool = True) -> Any:  # noqa: A002
    """Returns the option --out; `fresh` says that by default nothing that exists is touched."""
    shown = f"{default}, or {numbered(default, 2)}, ... where that exists" if fresh else default
    return typer.Option(help=help, show_default=shown, rich_help_panel=OUTPUT)


def numbered(name: str, number: int) -> str:
    """Returns a name of an output with a number: out-2, or out-2.npz."""
    path = Path(name)
    return name if number == 1 else f"{path.stem}-{number}{path.suffix}"


def output(default: str, given: Path | None, *, again: bool = False) -> Path:
    """Returns where results go: where they are asked to, else the first free of NAME, NAME-2, NAME-3, ...

    With `again`, for --resume and --overwrite, it is the last of these that is taken.
    """
    if given is not None:
        return given
    number = 1
    while Path(numbered(default, number)).exists():
        number += 1
    return Path(numbered(default, max(1, number - 1) if again else number))


def parse_dag(text: str) -> "Dag":
    """Returns the graph of a name, a NAS-Bench-201 cell or a code."""
    from nngp_dag.graph import Dag

    return Dag.parse(text)


def parse_rate(option: str, text: str) -> str | float:
    """Returns the step size that stands for an option: auto, shared, or a number."""
    if text in ("auto", "shared"):
        return text
    try:
        rate = float(text)
    except ValueError:
        raise InputError(f"Expected {option} to be auto, shared or a number, got {text!r}") from None
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"Expected {option} to be finite and above 0, got {rate}")
    return rate
