"""The command sweep."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nngp_dag.cli.last_words import Resumable, counted
from nngp_dag.cli.network import takes_network
from nngp_dag.cli.options import (
    COMPUTE,
    DATA,
    NETWORK,
    OUTPUT,
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
)
from nngp_dag.cli.outputs import hold
from nngp_dag.cli.processes import CoordinatorOption, DistributedOption, ProcessesOption, ProcessIdOption, joined
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_samples
from nngp_dag.errors import InputError
from nngp_dag.storage import check_exclusive

_OUT = "nngp-dag-sweep"
_SUBSET = 128


@takes_network
def sweep(
    dag: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=NETWORK,
            help="Graph: a code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell. Repeat for several.",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=NETWORK, help="All codes with this number of blocks, 1 to 4. 3 blocks are 729 codes."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=NETWORK,
            help="Text file with one code or cell per line. A line that begins with # is a comment.",
        ),
    ] = None,
    space: Annotated[
        Literal["nasbench201"] | None,
        typer.Option(rich_help_panel=NETWORK, help="All cells of a search space: the 15,625 of NAS-Bench-201."),
    ] = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    subset: Annotated[int | None, count("Use the first N training examples.", DATA, show_default=f"{_SUBSET}")] = None,
    scale_inputs: ScaleOption = True,
    readout: ReadoutOption = True,
    bounds: Annotated[
        bool, typer.Option("--bounds", rich_help_panel=COMPUTE, help="Add proven bounds on λmin to the table.")
    ] = False,
    dtype: PrecisionOption = Precision.FLOAT64,
    memory_budget: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMPUTE, help="Largest memory of the kernels that are computed at once, such as '6 GiB'."
        ),
    ] = "4 GiB",
    plot: Annotated[
        bool,
        typer.Option(
            "--plot", rich_help_panel=OUTPUT, help="Also draw sweep.png: λmin over depth and number of paths."
        ),
    ] = False,
    out: Annotated[Path | None, out_option("Folder for the tables, sweep.csv and others.", _OUT)] = None,
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
    """Rank many DAGs by the spectra of their exact kernels, without training.

    Exactly one of --dag, --nodes, --file and --space names the graphs.
    """
    joined(distributed, coordinator, processes, process_id)
    from nngp_dag.distributed import first_does
    from nngp_dag.graph import Conv
    from nngp_dag.report import output_file
    from nngp_dag.report._sweep import sweep as sweep_dags
    from nngp_dag.report.ranking import rank_correlations
    from nngp_dag.report.sweep_plots import plot_sweep
    from nngp_dag.report.tables import bounds_table, correlation_table, sweep_summary, sweep_table

    check_exclusive(resume, overwrite)
    dags, what = _listed(dag, nodes, file, space)
    images = isinstance(architecture["layer"], Conv)
    load = choose_samples(
        data,
        dataset,
        data_dir,
        subset,
        usual=_SUBSET,
        scale_inputs=scale_inputs,
        images=images,
    )
    out = output(_OUT, out, again=resume or overwrite)
    Resumable(out / "config.json", counted("kernel classes"))
    first_does(lambda: hold(out))
    samples = load()
    with progress() as on_progress:
        table = sweep_dags(
            dags,
            samples.x,
            readout=readout,
            bounds=bounds,
            dtype=dtype.value,
            memory_budget=memory_budget,
            out=out,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            **architecture,
        )
    valid: Any = table[table["valid"]]
    found = rank_correlations(
        valid,
        ("nngp_lambda_min", "ntk_lambda_min"),
        ("num_paths", "effective_depth", "effective_width", "nngp_trace"),
    )
    show(sweep_table(table), *([bounds_table(table)] if bounds else []), correlation_table(found))
    say(sweep_summary(table))
    files = ["sweep.csv", "sweep.parquet", "classes.csv", "correlations.csv", "config.json"]
    files += ["sweep.png"] if plot else []

    def write() -> None:
        with output_file(out / "correlations.csv", overwrite=True) as path:
            found.to_csv(path, index=False)
        if plot:
            with output_file(out / "sweep.png", overwrite=True) as path:
                plot_sweep(table, path, f"{what} on {len(samples.x):,} inputs of {samples.name}")

    first_does(write)
    say(f"wrote {', '.join(files)} to {out}")
    result(
        {
            "rows": table.to_dict("records"),
            "correlations": found.to_dict("records"),
            "files": [out / name for name in files],
        }
    )


def _listed(dag: list[str] | None, nodes: int | None, file: Path | None, space: str | None) -> tuple[list[str], str]:
    """Returns the texts of the graphs, and a name for the whole list."""
    from nngp_dag.graph import zoo

    given = {"--dag": dag, "--nodes": nodes, "--file": file, "--space": space}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError(f"Expected one of {', '.join(given)}, got {' and '.join(named) or 'none'}")
    if nodes is not None:
        found, what = list(zoo.codes(nodes)), f"all codes of {nodes} blocks"
    elif file is not None:
        try:
            lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
            found, what = [line for line in lines if line and not line.startswith("#")], file.name
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Expected --file to be a readable text file, got {file}: {error}") from None
        if not found:
            raise InputError(f"Expected a code on every line of {file}, got none")
        found = [zoo.FIGURE3.get(name.upper(), name) for name in found]
    elif space is not None:
        found, what = list(zoo.nasbench201()), "NAS-Bench-201"
    else:
        found = [zoo.FIGURE3.get(name.upper(), name) for name in dag or ()]
        what = f"{len(found)} DAGs"
    return found, what
