"""Options that several commands share, and functions that read their values."""

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
    # typer 0.29 passes an object of the base class of the documented class.
    Parameter = typer.CallbackParam.__base__

# Titles of the panels of the help.
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


# Data.
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=DATA,
        help="File with your own data, instead of --dataset. An .npz file has x, (N, d) or (N, height, width, "
        "channels), y, and optionally x_test and y_test. In a .csv file, the column y, label, labels, target or class "
        "is the target, or else the last column. Integers and texts are classes; floats are targets of a regression. "
        "Inputs are not normalized.",
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        show_default="digits",
        rich_help_panel=DATA,
        help="Data set: digits, mnist, fashion_mnist, cifar10, cifar100, svhn_cropped or sphere. Inputs are "
        "normalized.",
    ),
]
SplitsOption = Annotated[
    str | None,
    typer.Option(
        show_default="digits",
        rich_help_panel=DATA,
        help="Data set: digits, mnist, ..., sphere, or another image set of tensorflow-datasets, as name/config. "
        "Inputs are normalized.",
    ),
]
CifarOption = Annotated[
    str | None,
    typer.Option(
        show_default="cifar10",
        rich_help_panel=DATA,
        help="Image set: digits, mnist, ..., or another one of tensorflow-datasets, as name/config. Inputs are "
        "normalized.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=DATA,
        help="Folder of tensorflow-datasets. A set that is missing there is downloaded into it. Default: the default "
        "folder of that library.",
    ),
]
TrainSubsetOption = Annotated[
    int | None, count("Train on the first N examples of the training part. Default: all.", DATA)
]
EvalSubsetOption = Annotated[
    int | None,
    count("Use at most the first N examples of the validation part and of the test part. Default: all.", DATA),
]
StreamOption = Annotated[
    bool,
    typer.Option(
        "--stream",
        rich_help_panel=DATA,
        help="Read the images of --dataset batch by batch, scaled to --image-size, instead of all into memory.",
    ),
]
ImageSizeOption = Annotated[int | None, count("Side, in pixels, of images that are streamed. Default: 224.", DATA)]
HeldOutOption = Annotated[
    int | None,
    count("Number of training images of a streamed set for validation. Default: a tenth.", DATA),
]
ScaleOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=DATA,
        help="Scale every input to |x|² = d, or keep its norm. (train keeps it by default.)",
    ),
]

# Network.
DagOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=NETWORK, help="Graph: a code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell."
    ),
]
DagsOption = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=NETWORK,
        help="Graph: a code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell. Repeat for several. Default: "
        "DAG#1 to DAG#3, the three of Chen et al. 2022, Figure 3.",
    ),
]
ReadoutOption = Annotated[
    bool, typer.Option(rich_help_panel=NETWORK, help="Compute kernels after the readout, or at the last node.")
]

# Training.
AccumulateOption = Annotated[
    int,
    count(
        "Number of parts of a batch whose gradients are averaged one after another, for batches that do not fit into "
        "memory. Batch norm takes the statistics of a part.",
        TRAINING,
    ),
]

# Computation and output.
PrecisionOption = Annotated[Precision, typer.Option(rich_help_panel=COMPUTE, help="Precision of the kernels.")]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", rich_help_panel=OUTPUT, help="Continue the unfinished work in --out, with the same options."
    ),
]
ResumeRunOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=OUTPUT,
        help="Continue the run in --out. Options are those of the run, unless they are given now.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace existing results.")]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", callback=_set_json, rich_help_panel=OUTPUT, help="Print the result as JSON, and nothing else."
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_set_quiet, rich_help_panel=OUTPUT, help="Print results and errors only."),
]


def out_option(help: str, default: str, *, fresh: bool = True) -> Any:  # noqa: A002
    """Returns the option --out. With `fresh`, its default is a name that does not exist yet."""
    shown = f"{default}, or {numbered(default, 2)}, ... where that exists" if fresh else default
    return typer.Option(help=help, show_default=shown, rich_help_panel=OUTPUT)


def numbered(name: str, number: int) -> str:
    """Returns the name of an output with a number, such as out-2 or out-2.npz."""
    path = Path(name)
    return name if number == 1 else f"{path.stem}-{number}{path.suffix}"


def output(default: str, given: Path | None, *, again: bool = False) -> Path:
    """Returns the path of the results: the given one, or else the first of NAME, NAME-2, NAME-3, ... that is free.

    With `again`, for --resume and --overwrite, it is the last of these that exists.
    """
    if given is not None:
        return given
    number = 1
    while Path(numbered(default, number)).exists():
        number += 1
    return Path(numbered(default, max(1, number - 1) if again else number))


def parse_dag(text: str) -> "Dag":
    """Returns the graph of a name such as DAG#1, a NAS-Bench-201 cell, or a code."""
    from nngp_dag.graph import Dag

    return Dag.parse(text)


def parse_rate(option: str, text: str) -> str | float:
    """Returns the value of a step-size option: auto, shared, or a number."""
    if text in ("auto", "shared"):
        return text
    try:
        rate = float(text)
    except ValueError:
        raise InputError(f"Expected {option} to be auto, shared or a number, got {text!r}") from None
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"Expected {option} to be finite and above 0, got {rate}")
    return rate
