"""What commands share: their options, and the graphs, layers and data that these name."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nngp_dag.errors import InputError

if TYPE_CHECKING:
    from nngp_dag.graph import Dag, Dense


class OrderOption(StrEnum):
    """Values of --order."""

    LINEAR_ACT = "linear-act"
    ACT_LINEAR = "act-linear"


class Precision(StrEnum):
    """Values of --dtype."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


DagArgument = Annotated[
    str,
    typer.Argument(metavar="CODE", help="A code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell."),
]
DatasetOption = Annotated[
    str, typer.Option(help="digits, mnist, fashion_mnist, cifar10, cifar100, svhn_cropped or sphere.")
]
SplitsOption = Annotated[
    str, typer.Option(help="digits, mnist, ..., sphere, or another image set of tensorflow-datasets, as name/config.")
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder of tensorflow-datasets; without it, that library's default.")
]
SubsetOption = Annotated[int, typer.Option(help="Take the first N training examples.")]
ScaleOption = Annotated[
    bool, typer.Option(help="Scale every input to |x|² = d, which the path formula needs; or keep its norm.")
]
OrderFlag = Annotated[OrderOption, typer.Option(help="On weighted edges: act(W x), or W act(x).")]
ActivationOption = Annotated[str, typer.Option(help="relu, leaky_relu, abs, erf, gelu, sin, cos, rbf, gaussian, ...")]
WStdOption = Annotated[float | None, typer.Option(help="Std of weights times √fan-in; by default √2 (He).")]
BStdOption = Annotated[float | None, typer.Option(help="Std of biases; by default there are none.")]
AggregationOption = Annotated[str, typer.Option(help="How nodes add up: sum, scaled-sum (by 1/√in-degree) or mean.")]
ConvOption = Annotated[int | None, typer.Option(help="Weighted edges are convolutions with filters of this side.")]
ImageReadoutOption = Annotated[str, typer.Option(help="With --conv, after the last node: flatten or global-average.")]
ParameterisationOption = Annotated[str, typer.Option(help="ntk, or standard, whose NTK grows with --width.")]
WidthOption = Annotated[int | None, typer.Option(help="Width of the finite network; for --parameterisation standard.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Precision of the kernels.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")]


def parse_dag(text: str) -> "Dag":
    """Returns the graph of a name, a NAS-Bench-201 cell or a code."""
    from nngp_dag.graph import Dag

    return Dag.parse(text)


def parse_float(option: str, text: str) -> float:
    """Returns the number that stands for an option."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"Expected {option} to be auto, shared or a number, got {text!r}") from None


def layer_of(
    activation: str, order: OrderOption, w_std: float | None, b_std: float | None, conv: int | None
) -> "Dense":
    """The operation of weighted edges."""
    from nngp_dag.graph.operations import HE_STD, Conv, Dense

    w_std = HE_STD if w_std is None else w_std
    if conv is None:
        return Dense(activation=activation, order=order.value, w_std=w_std, b_std=b_std)
    return Conv(filter_shape=(conv, conv), activation=activation, order=order.value, w_std=w_std, b_std=b_std)


def load(
    dataset: str, data_dir: Path | None, subset: int, scale_inputs: bool, *, images: bool = False
) -> tuple[Any, Any, int]:
    """Inputs, (N, d) or images, their labels and the number of classes."""
    from nngp_dag.data import load_dataset, normalise, scale_to_sphere

    data = load_dataset(dataset, data_dir=data_dir, subset=subset)
    x = normalise(data)
    shape = x.shape if images else (len(x), -1)
    return (scale_to_sphere(x) if scale_inputs else x).reshape(shape), data.labels, data.num_classes
