"""The commands show, kernel and gram."""

from pathlib import Path
from typing import Annotated

import typer

from nngp_dag.cli.last_words import counted, once, same_command
from nngp_dag.cli.options import (
    ActivationOption,
    AggregationOption,
    BStdOption,
    ConvOption,
    DagArgument,
    DataDirOption,
    DatasetOption,
    ImageReadoutOption,
    OrderFlag,
    OrderOption,
    OverwriteOption,
    ParameterisationOption,
    Precision,
    PrecisionOption,
    ScaleOption,
    SubsetOption,
    WidthOption,
    WStdOption,
    layer_of,
    load,
    parse_dag,
)
from nngp_dag.cli.screen import console, progress, say
from nngp_dag.errors import InputError


def show(
    code: DagArgument,
    png: Annotated[Path | None, typer.Option(help="Also draw the graph to this file.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Print a graph, its paths, depth histogram, effective depth and width."""
    once(*([] if png is None else [png]))
    from nngp_dag.report import output_file, plot_dag
    from nngp_dag.report.tables import dag_table

    dag = parse_dag(code)
    if png is not None:
        with output_file(png, overwrite=overwrite) as path:
            plot_dag(dag, path)
    console().print(dag_table(dag))
    if png is not None:
        say(f"wrote {png}")


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
    once(out, out.with_suffix(".png"))
    import numpy as np

    from nngp_dag.graph.operations import describe
    from nngp_dag.kernels import Kernel, kernel
    from nngp_dag.report import output_file, plot_kernel
    from nngp_dag.report.tables import spectrum_table
    from nngp_dag.theory import spectrum

    graph = parse_dag(dag)
    if out.suffix != ".npz":
        raise InputError(f"Expected --out to end in .npz, got {out}")
    with (
        output_file(out, overwrite=overwrite) as npz,
        output_file(out.with_suffix(".png"), overwrite=overwrite) as png,
    ):
        x, labels, _ = load(dataset, data_dir, subset, scale_inputs, images=conv is not None)
        layer = layer_of(activation, order, w_std, b_std, conv)
        with progress() as on_progress:
            on_progress("kernels and spectra", 0, 3)
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
            spectra = {}
            for done, (name, matrix) in enumerate({"NNGP": k.nngp, "NTK": k.ntk}.items(), start=1):
                on_progress("kernels and spectra", done, 3)
                spectra[name] = spectrum(matrix)
        console().print(spectrum_table(spectra))
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
    say(f"wrote {out} and {out.with_suffix('.png')}")


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
    same_command(counted("tiles"))
    from nngp_dag.kernels import gram

    graph = parse_dag(dag)
    x, _, _ = load(dataset, data_dir, subset, scale_inputs, images=conv is not None)
    with progress() as on_progress:
        k = gram(
            graph,
            x.astype(dtype.value),
            memory_budget=memory_budget,
            out=out,
            overwrite=overwrite,
            on_progress=on_progress,
            tile=tile,
            layer=layer_of(activation, order, w_std, b_std, conv),
            aggregation=aggregation,
            image_readout=image_readout,
            parameterisation=parameterisation,
            width=width,
        )
    rows, columns = k.nngp.shape
    say(f"NNGP and NTK, {rows} x {columns}, {dtype.value}: {out}/nngp.npy, {out}/ntk.npy and {out}/gram.json")
