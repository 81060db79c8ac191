"""The command compare."""

from pathlib import Path
from typing import Annotated

import typer

from nngp_dag.cli.last_words import Resumable
from nngp_dag.cli.options import (
    DataDirOption,
    DatasetOption,
    OrderFlag,
    OrderOption,
    OverwriteOption,
    ParameterisationOption,
    ScaleOption,
    SubsetOption,
    load,
    parse_dag,
    parse_float,
)
from nngp_dag.cli.screen import console, progress, say
from nngp_dag.errors import InputError


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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in --out, under the same options.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Train real networks and put their loss beside the bounds and the exact expectation."""
    words = Resumable(out / "unfinished" / "settings.json", lambda: "nothing new")
    from nngp_dag import report
    from nngp_dag.data import one_hot
    from nngp_dag.graph import zoo
    from nngp_dag.report.compare_files import finished_in
    from nngp_dag.report.tables import compare_table

    if resume and overwrite:
        raise InputError("Expected --resume or --overwrite, got both; leave one of them out")
    names = list(dag or zoo.FIGURE3)
    words.kept = lambda: f"{finished_in(out)} of {len(names)} DAGs"
    if len(set(names)) < len(names):
        raise InputError(f"Expected every --dag once, got {', '.join(names)}")
    dags = {text: parse_dag(text) for text in names}
    if seeds < 1:
        raise InputError(f"Expected --seeds to be at least 1, got {seeds}")
    eta = learning_rate if learning_rate in ("auto", "shared") else parse_float("--learning-rate", learning_rate)
    x, labels, num_classes = load(dataset, data_dir, subset, scale_inputs)
    config = {
        "dataset": dataset,
        "split": "train",
        "subset": subset,
        "features": x.shape[1],
        "classes": num_classes,
        "scale_inputs": scale_inputs,
    }
    with progress() as on_progress:
        results = report.compare(
            dags,
            x,
            one_hot(labels, num_classes),
            width=width,
            seeds=seeds,
            steps=steps,
            learning_rate=eta,
            order=order.value,
            parameterisation=parameterisation,
            out=out,
            resume=resume,
            overwrite=overwrite,
            config=config,
            on_progress=on_progress,
        )
    console().print(compare_table(results))
    say(f"wrote {out}/compare.json, {out}/curves.csv and {out}/compare.png")
