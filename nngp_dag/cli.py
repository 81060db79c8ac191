"""The command line: reads options, calls the library, prints. No mathematics here.

Heavy modules are imported inside the commands, so that `--help` and error messages are quick.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from nngp_dag.errors import InputError, NngpDagError, NumericalWarning

if TYPE_CHECKING:
    from nngp_dag.graph import Dag, Dense

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact infinite-width kernels of networks with any DAG connectivity, theory and real training.",
)


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


@app.command()
def show(
    code: DagArgument,
    png: Annotated[Path | None, typer.Option(help="Also draw the graph to this file.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Print a graph, its paths, depth histogram, effective depth and width."""
    from nngp_dag.report import output_file, plot_dag
    from nngp_dag.report.tables import dag_table

    dag = _parse_dag(code)
    if png is not None:
        with output_file(png, overwrite=overwrite) as path:
            plot_dag(dag, path)
    _console().print(dag_table(dag))
    if png is not None:
        _say(f"wrote {png}")


@app.command("kernel")
def kernel_command(
    dag: Annotated[str, typer.Option(help="A code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell.")],
    dataset: DatasetOption = "digits",
    data_dir: DataDirOption = None,
    subset: SubsetOption = 256,
    activation: ActivationOption = "relu",
    order: OrderFlag = OrderOption.LINEAR_ACT,
    w_std: WStdOption = None,
    b_std: BStdOption = None,
    aggregation: AggregationOption = "sum",
    conv: ConvOption = None,
    image_readout: ImageReadoutOption = "flatten",
    parameterisation: ParameterisationOption = "ntk",
    width: WidthOption = None,
    readout: Annotated[bool, typer.Option(help="Kernels after the readout, or at the last node.")] = True,
    scale_inputs: ScaleOption = True,
    dtype: PrecisionOption = Precision.FLOAT64,
    out: Annotated[Path, typer.Option(help="Write this .npz, and a picture beside it.")] = Path("nngp-dag-kernel.npz"),
    overwrite: OverwriteOption = False,
) -> None:
    """Compute the exact NNGP and NTK of a DAG on a data set."""
    import numpy as np

    from nngp_dag.graph.operations import describe
    from nngp_dag.kernels import Kernel, kernel
    from nngp_dag.report import output_file, plot_kernel
    from nngp_dag.report.tables import spectrum_table
    from nngp_dag.theory import spectrum

    graph = _parse_dag(dag)
    if out.suffix != ".npz":
        raise InputError(f"Expected --out to end in .npz, got {out}")
    with (
        output_file(out, overwrite=overwrite) as npz,
        output_file(out.with_suffix(".png"), overwrite=overwrite) as png,
    ):
        x, labels, _ = _load(dataset, data_dir, subset, scale_inputs, images=conv is not None)
        layer = _layer(activation, order, w_std, b_std, conv)
        k = kernel(
            graph,
            x.astype(dtype.value),
            layer=layer,
            aggregation=aggregation,
            image_readout=image_readout,
            parameterisation=parameterisation,
            width=width,
            readout=readout,
        )
        _console().print(spectrum_table({"NNGP": spectrum(k.nngp), "NTK": spectrum(k.ntk)}))
        np.savez_compressed(
            npz,
            nngp=np.asarray(k.nngp),
            ntk=np.asarray(k.ntk),
            labels=labels,
            dag=str(graph),
            layer=repr(layer),
            dataset=dataset,
        )
        by_class = np.argsort(labels, kind="stable")
        ordered = Kernel(*(np.asarray(matrix)[np.ix_(by_class, by_class)] for matrix in (k.nngp, k.ntk)))
        plot_kernel(ordered, png, f"{graph!r}, {describe(layer)}, first {len(x)} of {dataset}")
    _say(f"wrote {out} and {out.with_suffix('.png')}")


@app.command("gram")
def gram_command(
    dag: Annotated[str, typer.Option(help="A code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell.")],
    dataset: DatasetOption = "digits",
    data_dir: DataDirOption = None,
    subset: SubsetOption = 1024,
    activation: ActivationOption = "relu",
    order: OrderFlag = OrderOption.LINEAR_ACT,
    w_std: WStdOption = None,
    b_std: BStdOption = None,
    aggregation: AggregationOption = "sum",
    conv: ConvOption = None,
    image_readout: ImageReadoutOption = "flatten",
    parameterisation: ParameterisationOption = "ntk",
    width: WidthOption = None,
    scale_inputs: ScaleOption = True,
    dtype: PrecisionOption = Precision.FLOAT32,
    memory_budget: Annotated[str, typer.Option(help="Memory of the whole process, such as '6 GiB'.")] = "4 GiB",
    tile: Annotated[int | None, typer.Option(help="Rows of a tile at most; by default what the budget allows.")] = None,
    out: Annotated[Path, typer.Option(help="Directory for nngp.npy, ntk.npy and gram.json.")] = Path("nngp-dag-gram"),
    overwrite: OverwriteOption = False,
) -> None:
    """Compute large kernels in tiles on disk, within a memory budget; interrupted, the same command continues."""
    from nngp_dag.kernels import gram

    graph = _parse_dag(dag)
    x, _, _ = _load(dataset, data_dir, subset, scale_inputs, images=conv is not None)
    k = gram(
        graph,
        x.astype(dtype.value),
        memory_budget=memory_budget,
        out=out,
        overwrite=overwrite,
        tile=tile,
        layer=_layer(activation, order, w_std, b_std, conv),
        aggregation=aggregation,
        image_readout=image_readout,
        parameterisation=parameterisation,
        width=width,
    )
    rows, columns = k.nngp.shape
    _say(f"NNGP and NTK, {rows} x {columns}, {dtype.value}: {out}/nngp.npy, {out}/ntk.npy and {out}/gram.json")


@app.command()
def compare(
    dag: Annotated[
        list[str] | None,
        typer.Option(help="A DAG; repeat for several. Default: the three of Chen et al. 2022, Figure 3."),
    ] = None,
    dataset: DatasetOption = "digits",
    data_dir: DataDirOption = None,
    subset: SubsetOption = 128,
    width: Annotated[int, typer.Option(help="Units of every node of the trained networks.")] = 1024,
    seeds: Annotated[int, typer.Option(help="Networks trained per DAG, with seeds 0, 1, 2, ...")] = 5,
    steps: Annotated[int, typer.Option(help="Steps of full-batch gradient descent.")] = 100,
    learning_rate: Annotated[
        str,
        typer.Option(help="auto: 1 / λmax(NTK) of each DAG; shared: the smallest of these for all; or a number."),
    ] = "auto",
    order: OrderFlag = OrderOption.LINEAR_ACT,
    parameterisation: ParameterisationOption = "ntk",
    scale_inputs: ScaleOption = True,
    out: Annotated[Path, typer.Option(help="Directory for compare.json, curves.csv, compare.png.")] = Path(
        "nngp-dag-compare"
    ),
    overwrite: OverwriteOption = False,
) -> None:
    """Train real networks and put their loss beside the bounds and the exact expectation."""
    from nngp_dag import report
    from nngp_dag.data import one_hot
    from nngp_dag.graph import zoo
    from nngp_dag.report.compare import write_curves, write_json
    from nngp_dag.report.tables import compare_table

    names = list(dag or zoo.FIGURE3)
    if len(set(names)) < len(names):
        raise InputError(f"Expected every --dag once, got {', '.join(names)}")
    dags = {text: _parse_dag(text) for text in names}
    if seeds < 1:
        raise InputError(f"Expected --seeds to be at least 1, got {seeds}")
    eta = learning_rate if learning_rate in ("auto", "shared") else _parse_float("--learning-rate", learning_rate)
    with report.output_directory(out, overwrite=overwrite) as staging:
        x, labels, num_classes = _load(dataset, data_dir, subset, scale_inputs)
        config = {
            "dags": {name: str(graph) for name, graph in dags.items()},
            "dataset": dataset,
            "split": "train",
            "subset": subset,
            "features": x.shape[1],
            "classes": num_classes,
            "scale_inputs": scale_inputs,
            "width": width,
            "seeds": list(range(seeds)),
            "steps": steps,
            "learning_rate": eta,
            "order": order.value,
            "parameterisation": parameterisation,
            **_environment(),
        }
        with _progress() as on_progress:
            results = report.compare(
                dags,
                x,
                one_hot(labels, num_classes),
                width=width,
                seeds=range(seeds),
                steps=steps,
                learning_rate=eta,
                order=order.value,
                parameterisation=parameterisation,
                on_progress=on_progress,
            )
        write_json(staging / "compare.json", results, config)
        write_curves(staging / "curves.csv", results)
        networks = f"{seeds} network{'s' if seeds > 1 else ''} of width {width}"
        title = f"{len(x)} images of {dataset}: bound, exact expectation, and {networks}"
        report.plot_compare(results, staging / "compare.png", title)
        _console().print(compare_table(results))
    _say(f"wrote {out}/compare.json, {out}/curves.csv and {out}/compare.png")


def _parse_dag(text: str) -> "Dag":
    from nngp_dag.graph import Dag, zoo

    if text.upper() in zoo.FIGURE3:
        return zoo.named(text)
    return Dag.from_nasbench201(text) if text.startswith("|") else Dag.from_code(text)


def _parse_float(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"Expected {option} to be auto, shared or a number, got {text!r}") from None


def _layer(activation: str, order: OrderOption, w_std: float | None, b_std: float | None, conv: int | None) -> "Dense":
    """The operation of weighted edges."""
    from nngp_dag.graph.operations import HE_STD, Conv, Dense

    w_std = HE_STD if w_std is None else w_std
    if conv is None:
        return Dense(activation=activation, order=order.value, w_std=w_std, b_std=b_std)
    return Conv(filter_shape=(conv, conv), activation=activation, order=order.value, w_std=w_std, b_std=b_std)


def _load(
    dataset: str, data_dir: Path | None, subset: int, scale_inputs: bool, *, images: bool = False
) -> tuple[Any, Any, int]:
    """Inputs, (N, d) or images, their labels and the number of classes."""
    from nngp_dag.data import load_dataset, normalise, scale_to_sphere

    data = load_dataset(dataset, data_dir=data_dir, subset=subset)
    x = normalise(data)
    shape = x.shape if images else (len(x), -1)
    return (scale_to_sphere(x) if scale_inputs else x).reshape(shape), data.labels, data.num_classes


def _environment() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    import jax

    packages = ("nngp-dag", "jax", "flax", "optax", "numpy")
    return {
        "device": str(jax.devices()[0].device_kind),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _console() -> Any:
    from rich.console import Console

    return Console()


def _say(text: str) -> None:
    # Not through rich, which would wrap a path that is to be copied.
    print(text)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Shows one bar per task, with the time left, on the error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done)

        yield update


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"nngp-dag: warning: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a bad input prints one line and exits with status 2."""
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", NumericalWarning)
            warnings.showwarning = _show_warning
            status = app(args=arguments or ["--help"], prog_name="nngp-dag", standalone_mode=False)
    except NngpDagError as error:
        message = str(error)
    except TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # JAX has no type of its own for it.
        if "out of memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        message = "Expected the work to fit into memory, got out of memory; lower --subset, --width or --seeds"
    else:
        sys.exit(status if isinstance(status, int) else 0)
    print(f"nngp-dag: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
