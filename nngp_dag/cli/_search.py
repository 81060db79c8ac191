"""The command search."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nngp_dag.cli.last_words import once
from nngp_dag.cli.network import takes_network
from nngp_dag.cli.options import (
    COMPUTE,
    DATA,
    NETWORK,
    DataDirOption,
    DataOption,
    DatasetOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    ReadoutOption,
    ScaleOption,
    count,
    out_option,
    output,
)
from nngp_dag.cli.outputs import hold
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_samples

_OUT = "nngp-dag-search"
_SUBSET = 64


class ObjectiveOption(StrEnum):
    """Values of --objective."""

    MARGINAL_LIKELIHOOD = "marginal-likelihood"
    LEAVE_ONE_OUT = "leave-one-out"
    NNGP_LAMBDA_MIN = "nngp-lambda-min"
    NTK_LAMBDA_MIN = "ntk-lambda-min"
    EXPECTED_LOSS = "expected-loss"


def _number(help: str) -> Any:  # noqa: A002
    return typer.Option(help=help, rich_help_panel=COMPUTE)


@takes_network
def search_command(
    objective: Annotated[
        ObjectiveOption,
        _number("Objective. λmin is taken at equal trace; the expected loss is the only one that is minimized."),
    ] = ObjectiveOption.MARGINAL_LIKELIHOOD,
    num_nodes: Annotated[int, count("Number of nodes, the input and output nodes included.", NETWORK)] = 4,
    data: DataOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    subset: Annotated[int | None, count("Use the first N training examples.", DATA, show_default=f"{_SUBSET}")] = None,
    scale_inputs: ScaleOption = True,
    readout: ReadoutOption = True,
    starts: Annotated[int, count("Number of random starts.", COMPUTE)] = 20,
    steps: Annotated[int, count("Number of steps of Adam.", COMPUTE)] = 100,
    noise: Annotated[float, _number("Variance of the noise, for marginal-likelihood and leave-one-out.")] = 0.1,
    loss_steps: Annotated[int, count("Number of steps of gradient descent, for expected-loss.", COMPUTE)] = 100,
    rate: Annotated[float, _number("Learning rate times λmax of the graph's own NTK, for expected-loss.")] = 1.0,
    step_size: Annotated[float, _number("Learning rate of Adam.")] = 0.1,
    seed: Annotated[int, _number("Seed of the random starts.")] = 0,
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive", rich_help_panel=COMPUTE, help="Also score every code, and rank the results among them."
        ),
    ] = False,
    out: Annotated[Path | None, out_option("Folder for search.csv, search.png and others.", _OUT)] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Search for the graph that is best for an objective, along the gradient of its exact kernel.

    A search is short, so that an interrupted one starts again.
    """
    from nngp_dag.graph import Conv
    from nngp_dag.report import search_graph
    from nngp_dag.report.tables import search_summary, search_table

    needs_targets = objective not in (ObjectiveOption.NNGP_LAMBDA_MIN, ObjectiveOption.NTK_LAMBDA_MIN)
    images = isinstance(architecture["layer"], Conv)
    load = choose_samples(data, dataset, data_dir, subset, usual=_SUBSET, scale_inputs=scale_inputs, images=images)
    out = output(_OUT, out, again=overwrite)
    once(out / "search.json")
    hold(out)
    samples = load()
    with progress() as on_progress:
        found = search_graph(
            samples.x,
            samples.targets if needs_targets else None,
            objective=objective.value,
            num_nodes=num_nodes,
            starts=starts,
            steps=steps,
            noise=noise,
            loss_steps=loss_steps,
            rate=rate,
            step_size=step_size,
            seed=seed,
            exhaustive=exhaustive,
            out=out,
            overwrite=overwrite,
            on_progress=on_progress,
            readout=readout,
            **architecture,
        )
    show(search_table(found))
    say(search_summary(found, f"{len(samples.x):,} inputs of {samples.name}"))
    names = ["search.csv", "weights.csv", *(["codes.csv"] if exhaustive else []), "search.png", "search.json"]
    say(f"wrote {', '.join(names)} to {out}")
    result(
        {
            "code": found.code,
            "value": found.value,
            "objective": found.objective,
            "starts": found.to_frame().to_dict("records"),
            "files": [out / name for name in names],
        }
    )
