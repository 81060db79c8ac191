"""The command nas tenas."""

from pathlib import Path
from typing import Annotated

import typer

from nngp_dag.cli.last_words import same_command
from nngp_dag.cli.options import (
    COMPUTE,
    DATA,
    CifarOption,
    DataDirOption,
    DataOption,
    JsonOption,
    QuietOption,
    ResumeOption,
    count,
    out_option,
)
from nngp_dag.cli.outputs import hold
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_samples
from nngp_dag.errors import InputError

_OUT = "nngp-dag-tenas"


def tenas(
    space: Annotated[
        str, typer.Option(rich_help_panel=COMPUTE, help="Search space: nasbench201 or darts.")
    ] = "nasbench201",
    data: DataOption = None,
    dataset: CifarOption = None,
    data_dir: DataDirOption = None,
    batch: Annotated[
        int | None,
        count(
            "Use the first N training images for every measure. Default: 64 for exact; for the others 32, or 14 on "
            "DARTS.",
            DATA,
        ),
    ] = None,
    accuracies: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=DATA,
            help="Accuracy table: a CSV or JSON file with the text of cells (arch_str) and accuracies in per cent. It "
            "holds the accuracy of the cell that is found.",
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Column of the accuracy table, if it has several.")
    ] = None,
    measure: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=COMPUTE,
            help="Measure of a supernet. ntk: condition number of the NTK; regions: number of linear regions; exact: "
            "λmin of exact kernels, without a finite network. Repeat for several.",
        ),
    ] = ["ntk", "regions"],  # noqa: B006
    shortcut: Annotated[
        bool,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="Keep, without evaluation, operations whose removal leaves effective depth and width moderate.",
        ),
    ] = True,
    repeats: Annotated[
        int, typer.Option(rich_help_panel=COMPUTE, help="Number of draws of weights in every round.")
    ] = 3,
    per_round: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="Number of operations that an edge loses in a round. Default: 1, or 3 on DARTS.",
        ),
    ] = None,
    ranks: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="Group in which operations are ranked. all: the operations of all edges; edge: those of one edge.",
        ),
    ] = "all",
    gradients: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="Weights whose gradients form the NTK. all: all weights; reference: without shifts and biases, as in "
            "TE-NAS.",
        ),
    ] = "all",
    batch_norm: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="Batch statistics in gradients. frozen: constants; live: functions of the weights, as in TE-NAS, "
            "which takes longer.",
        ),
    ] = "frozen",
    seed: Annotated[
        int, typer.Option(rich_help_panel=COMPUTE, help="Seed of the weights, and of the order that breaks ties.")
    ] = 0,
    out: Annotated[
        Path | None,
        out_option("Folder for the search. The same command continues an unfinished search.", _OUT, fresh=False),
    ] = None,
    resume: ResumeOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search for a cell by pruning a supernet (TE-NAS), without training.

    An interrupted search continues when the same command is given again. With --resume, the command fails if there is
    nothing to continue.
    """
    rounds: list[int] = []
    same_command(lambda: f"{rounds[-1]} round{'' if rounds[-1] == 1 else 's'}" if rounds else "nothing new")
    import math

    from nngp_dag.nas import AccuracyTable, get_space
    from nngp_dag.nas.pruning.files import search_folder
    from nngp_dag.nas.pruning.rounds import Pruning
    from nngp_dag.nas.pruning.search import tenas_search
    from nngp_dag.nas.pruning.tenas import PER_ROUND, batch_sizes

    if column is not None and accuracies is None:
        raise InputError(f"Expected --column only with --accuracies, got {column}; leave it out, or name a table")
    searched = get_space(space)
    known = None if accuracies is None else AccuracyTable.load(accuracies)
    if known is not None:
        known.column(column)
        if space != "nasbench201":
            raise InputError(f"Expected --accuracies only with --space nasbench201, got {space}; leave it out")
    per_round = PER_ROUND[space] if per_round is None else per_round
    pruning = Pruning(repeats, seed, shortcut, per_round, ranks=ranks)
    sizes = batch_sizes(searched, measure, batch)
    out = Path(_OUT) if out is None else out
    if resume:
        search_folder(out).read()
    hold(out)
    usual = max(sizes.values(), default=1)
    samples = choose_samples(data, dataset, data_dir, batch, usual=usual, images=True, default="cifar10")()
    with progress() as on_progress:
        found = tenas_search(
            searched,
            samples.x,
            out,
            measure,
            pruning,
            batch=batch,
            classes=len(samples.classes) or 10,
            gradients=gradients,
            batch_norm=batch_norm,
            dataset=samples.name,
            table=known,
            column=column,
            on_progress=on_progress,
            on_round=rounds.append,
        )
    state, accuracy = found.state, found.accuracy
    show(str(found.cell))
    if accuracy is not None:
        show("accuracy not in the table" if math.isnan(accuracy) else f"accuracy {accuracy:.2f} %")
    evaluated = [decision for decision in state.decisions if decision.outcome != "skipped"]
    if flagged := sum(len(decision.changes) < len(measure) for decision in evaluated):
        say(f"{flagged} of {len(evaluated)} operations flagged, and pruned last; log.csv has the reasons")
    for number, row in enumerate(state.trajectory):
        if silent := [name for name in measure if row.get(name) is None]:
            say(f"round {number}: the supernet has no value of {', '.join(silent)}")
    say(f"{state.evaluated:,} networks measured, {state.skipped:,} left out, {state.seconds:.1f} s; wrote {out}")
    counts = {name: getattr(state, name) for name in ("evaluated", "skipped", "seconds")}
    result({"cell": str(found.cell), "accuracy": accuracy, **counts, "files": [out]})
