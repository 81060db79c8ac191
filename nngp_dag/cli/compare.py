"""The command compare."""

from pathlib import Path
from typing import Annotated

import typer

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
    overwrite: OverwriteOption = False,
) -> None:
    """Train real networks and put their loss beside the bounds and the exact expectation."""
    from nngp_dag import report
    from nngp_dag.data import one_hot
    from nngp_dag.graph import zoo
    from nngp_dag.report.compare import write_curves, write_json
    from nngp_dag.report.tables import compare_table
    from nngp_dag.storage import environment

    names = list(dag or zoo.FIGURE3)
    if len(set(names)) < len(names):
        raise InputError(f"Expected every --dag once, got {', '.join(names)}")
    dags = {text: parse_dag(text) for text in names}
    if seeds < 1:
        raise InputError(f"Expected --seeds to be at least 1, got {seeds}")
    eta = learning_rate if learning_rate in ("auto", "shared") else parse_float("--learning-rate", learning_rate)
    with report.output_directory(out, overwrite=overwrite) as staging:
        x, labels, num_classes = load(dataset, data_dir, subset, scale_inputs)
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
            **environment(),
        }
        with progress() as on_progress:
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
        console().print(compare_table(results))
    say(f"wrote {out}/compare.json, {out}/curves.csv and {out}/compare.png")
