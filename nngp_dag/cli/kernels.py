"""The commands show, kernel and gram."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nngp_dag.cli.last_words import counted, once, same_command
from nngp_dag.cli.model import ModelOption, check_dag_or_model, scaled, traced_model
from nngp_dag.cli.network import takes_network
from nngp_dag.cli.options import (
    COMPUTE,
    DATA,
    OUTPUT,
    DagOption,
    DataDirOption,
    DataOption,
    DatasetOption,
    JsonOption,
    OverwriteOption,
    Precision,
    PrecisionOption,
    QuietOption,
    ReadoutOption,
    ResumeOption,
    ScaleOption,
    count,
    out_option,
    output,
    parse_dag,
)
from nngp_dag.cli.processes import CoordinatorOption, DistributedOption, ProcessesOption, ProcessIdOption, joined
from nngp_dag.cli.resumed import Context
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_samples
from nngp_dag.errors import InputError
from nngp_dag.storage import check_exclusive

if TYPE_CHECKING:
    from nngp_dag.graph import Dag
    from nngp_dag.tracing import Traced

_KERNEL, _GRAM = "nngp-dag-kernel.npz", "nngp-dag-gram"
_KERNEL_SUBSET, _GRAM_SUBSET = 256, 1024


def show_command(
    code: Annotated[
        str,
        typer.Argument(metavar="CODE", help="Graph: a code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell."),
    ],
    explain: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="Shape of float32 inputs, such as 20000x784. Also print how the kernels of the graph would be "
            "computed for them, and why.",
        ),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Also draw the graph to this .png file.")
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the facts of a graph: edges, paths, depth histogram, effective depth and effective width."""
    once(*([] if png is None else [png]))
    if png is not None and png.suffix.lower() != ".png":
        raise InputError(f"Expected --png to name a file .png, got {png.name[:60]!r}; write --png {png.name[:60]}.png")
    from nngp_dag.graph.codes import nasbench201_edges
    from nngp_dag.graph.drawing import plot_dag
    from nngp_dag.report import output_file
    from nngp_dag.report.tables import dag_facts, dag_table

    dag, cell = parse_dag(code), code if code.startswith("|") else None
    said = None if explain is None else _explained(dag, explain)
    if png is not None:
        # A cell's graph counts pooling as a skip.
        with output_file(png, overwrite=overwrite) as path:
            plot_dag(dag, path, operations=nasbench201_edges(cell) if cell else [])
    show(dag_table(dag, cell), *([] if said is None else [f"kernels: {said}"]))
    if png is not None:
        say(f"wrote {png}")
    facts = dag_facts(dag, cell) | ({} if said is None else {"kernels": said})
    result(facts | ({} if png is None else {"files": [png]}))


def _explained(dag: "Dag", shape: str) -> str:
    import jax
    import numpy as np

    from nngp_dag.kernels import explain

    if not re.fullmatch(r"[1-9]\d{0,9}(x[1-9]\d{0,9})+", shape, re.ASCII):
        raise InputError(f"Expected --explain to be a shape such as 20000x784, got {shape[:60]!r}")
    return explain(dag, jax.ShapeDtypeStruct(tuple(map(int, shape.split("x"))), np.float32))


@takes_network
def kernel_command(
    context: Context,
    dag: DagOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    subset: Annotated[
        int | None, count("Use the first N training examples.", DATA, show_default=f"{_KERNEL_SUBSET}")
    ] = None,
    scale_inputs: ScaleOption = True,
    readout: ReadoutOption = True,
    dtype: PrecisionOption = Precision.FLOAT64,
    out: Annotated[
        Path | None, out_option("File .npz for the kernels. A picture .png is written beside it.", _KERNEL)
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Compute the exact NNGP and NTK of a DAG, or of your own model, on a data set.

    Prints their spectra and writes both matrices. With --model, it also prints how the model was read, and with which
    assumptions.
    """
    import numpy as np

    from nngp_dag.graph.codes import shorten
    from nngp_dag.graph.operations import Conv
    from nngp_dag.kernels import kernel
    from nngp_dag.report import output_file, plot_kernel
    from nngp_dag.report.tables import spectrum_facts, spectrum_table
    from nngp_dag.theory import spectrum

    check_dag_or_model(context, dag, model)
    graph, layer = None if dag is None else parse_dag(dag), architecture["layer"]
    if out is not None and out.suffix != ".npz":
        raise InputError(f"Expected --out to end in .npz, got {out}")
    load = choose_samples(
        data,
        dataset,
        data_dir,
        subset,
        usual=_KERNEL_SUBSET,
        scale_inputs=scale_inputs if model is None else scaled(context),
        images=model is not None or isinstance(layer, Conv),
    )
    out = output(_KERNEL, out, again=overwrite)
    picture = out.with_suffix(".png")
    once(out, picture)
    with output_file(out, overwrite=overwrite) as npz, output_file(picture, overwrite=overwrite) as png:
        samples = load()
        traced = None if model is None else traced_model(context, model, samples.x)
        with progress() as on_progress:
            on_progress("kernels and spectra", 0, 3)
            x = samples.x.astype(dtype.value)
            options: dict[str, Any] = {"readout": readout, **architecture} if traced is None else {}
            k = kernel(traced or graph or "", x, **options)
            spectra = {}
            for done, (name, matrix) in enumerate({"NNGP": k.nngp, "NTK": k.ntk}.items(), start=1):
                on_progress("kernels and spectra", done, 3)
                spectra[name] = spectrum(matrix)
        show(*([] if traced is None else [str(traced)]), spectrum_table(spectra))
        arrays: dict[str, Any] = {"nngp": np.asarray(k.nngp), "ntk": np.asarray(k.ntk)}
        of = {"dag": str(graph), "layer": repr(layer)} if model is None else {"model": model}
        arrays |= {**of, "dataset": samples.name}
        arrays |= {} if samples.y is None else {"labels": samples.y}
        # The targets of a regression have no classes.
        arrays |= {"classes": np.array(samples.classes)} if samples.classes else {}
        np.savez_compressed(npz, **arrays)
        place = "after the readout" if readout else "at the last node"
        what = f"{shorten(str(graph))}, {layer.describe()}, {place}" if model is None else shorten(model)
        title = f"{what}: first {len(samples.x)} inputs of {samples.name}"
        plot_kernel(k, png, title, labels=samples.y if samples.classes else None, classes=samples.classes)
    say(f"wrote {out} and {picture}")
    result({**_of(graph, model, traced), "kernels": spectrum_facts(spectra), "files": [out, picture]})


@takes_network
def gram_command(
    context: Context,
    dag: DagOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    subset: Annotated[
        int | None, count("Use the first N training examples.", DATA, show_default=f"{_GRAM_SUBSET}")
    ] = None,
    scale_inputs: ScaleOption = True,
    dtype: PrecisionOption = Precision.FLOAT32,
    memory_budget: Annotated[
        str, typer.Option(rich_help_panel=COMPUTE, help="Largest memory of the whole process, such as '6 GiB'.")
    ] = "4 GiB",
    tile: Annotated[
        int | None,
        count("Largest number of rows of a tile. Default: the number that the memory budget allows.", COMPUTE),
    ] = None,
    out: Annotated[Path | None, out_option("Folder for nngp.npy, ntk.npy and gram.json.", _GRAM, fresh=False)] = None,
    resume: ResumeOption = False,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Compute large exact kernels, NNGP and NTK, of a DAG or your own model, in tiles on disk, within a memory budget.

    An interrupted computation continues when the same command is given again. With --resume, the command fails if there
    is nothing to continue.
    """
    joined(distributed, coordinator, processes, process_id)
    from nngp_dag.graph import Conv
    from nngp_dag.kernels import gram
    from nngp_dag.kernels._gram import bytes_of

    check_exclusive(resume, overwrite)
    check_dag_or_model(context, dag, model)
    graph = None if dag is None else parse_dag(dag)
    bytes_of(memory_budget)
    out = Path(_GRAM) if out is None else out
    # `gram` keeps unfinished kernels in the second of these folders.
    if resume and not (out.exists() or (out.parent / f".{out.name}.partial").exists()):
        raise InputError(f"Expected {out} to hold kernels to go on with, got none; leave out --resume to start them")
    load = choose_samples(
        data,
        dataset,
        data_dir,
        subset,
        usual=_GRAM_SUBSET,
        scale_inputs=scale_inputs if model is None else scaled(context),
        images=model is not None or isinstance(architecture["layer"], Conv),
    )
    same_command(counted("tiles"))
    x = load().x
    traced = None if model is None else traced_model(context, model, x)
    if traced is not None:
        show(str(traced))
    options: dict[str, Any] = architecture if traced is None else {}
    with progress() as on_progress:
        k = gram(
            traced or graph or "",
            x.astype(dtype.value),
            memory_budget=memory_budget,
            out=out,
            overwrite=overwrite,
            on_progress=on_progress,
            tile=tile,
            **options,
        )
    rows, columns = k.nngp.shape
    files = [out / name for name in ("nngp.npy", "ntk.npy", "gram.json")]
    say(f"NNGP and NTK, {rows} x {columns}, {dtype.value}: {', '.join(map(str, files[:2]))} and {files[2]}")
    of = _of(graph, model, traced)
    result({**of, "shape": [rows, columns], "dtype": dtype.value, "files": files})


def _of(graph: "Dag | None", model: str | None, traced: "Traced | None") -> dict[str, Any]:
    """Returns the entries of a result that name its network."""
    if traced is None:
        return {"dag": str(graph)}
    return {"model": model, "dag": None if traced.dag is None else str(traced.dag), "assumptions": str(traced)}
