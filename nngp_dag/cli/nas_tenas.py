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
    space: Annotated[str, typer.Option(rich_help_panel=COMPUTE, help="nasbench201 or darts.")] = "nasbench201",
    data: DataOption = None,
    dataset: CifarOption = None,
    data_dir: DataDirOption = None,
    batch: Annotated[
        int | None,
        count("First images of the training set; by default 32, of DARTS 14, and for exact 64.", DATA),
    ] = None,
    benchmark: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="CSV or JSON with arch_str and accuracies.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Column of the benchmark, if it has several.")
    ] = None,
    measure: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=COMPUTE, help="ntk, regions, or exact, which needs no network; repeat for several."
        ),
    ] = ["ntk", "regions"],  # noqa: B006
    shortcut: Annotated[
        bool,
        typer.Option(
            rich_help_panel=COMPUTE, help="Keep operations of moderate effective depth and width without evaluation."
        ),
    ] = True,
    repeats: Annotated[int, typer.Option(rich_help_panel=COMPUTE, help="Draws of weights in every round.")] = 3,
    per_round: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=COMPUTE, help="Operations that an edge loses in a round; by default 1, of DARTS 3."
        ),
    ] = None,
    ranks: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMPUTE, help="all: operations are ranked among those of all edges; edge: of their own."
        ),
    ] = "all",
    gradients: Annotated[
        str, typer.Option(rich_help_panel=COMPUTE, help="all, or reference: without shifts and biases.")
    ] = "all",
    batch_norm: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="frozen: the batch's statistics are constants; or live, as in TE-NAS, which takes longer.",
        ),
    ] = "frozen",
    seed: Annotated[int, typer.Option(rich_help_panel=COMPUTE, help="Of the weights, and of ties.")] = 0,
    out: Annotated[
        Path | None,
        out_option("Folder for the search; the same command goes on where it was.", _OUT, fresh=False),
    ] = None,
    resume: ResumeOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search a supernet by pruning, without training; whatever stops it, the same command goes on where it was.

    --resume says that there must be a search to go on with.
    """
    rounds: list[int] = []
    same_command(lambda: f"{rounds[-1]} round{'' if rounds[-1] == 1 else 's'}" if rounds else "nothing new")
    import math

    from nngp_dag.nas import AccuracyTable, get_space
    from nngp_dag.nas.pruning.files import search_folder
    from nngp_dag.nas.pruning.rounds import Pruning
    from nngp_dag.nas.pruning.search import tenas_search
    from nngp_dag.nas.pruning.tenas import PER_ROUND, batch_sizes

    if column is not None and benchmark is None:
        raise InputError(f"Expected --column only with --benchmark, got {column}; leave it out, or name a table")
    searched = get_space(space)
    known = None if benchmark is None else AccuracyTable.load(benchmark)
    if known is not None:
        known.column(column)
        if space != "nasbench201":
            raise InputError(f"Expected --benchmark only with --space nasbench201, got {space}; leave it out")
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
        say(f"{flagged} of {len(evaluated)} operations flagged, to be pruned last; log.csv says why")
    for number, row in enumerate(state.trajectory):
        if silent := [name for name in measure if row.get(name) is None]:
            say(f"round {number}: {', '.join(silent)} said nothing, since the supernet was not sound")
    say(f"{state.evaluated:,} networks measured, {state.skipped:,} left out, {state.seconds:.1f} s; wrote {out}")
    counts = {name: getattr(state, name) for name in ("evaluated", "skipped", "seconds")}
    result({"cell": str(found.cell), "accuracy": accuracy, **counts, "files": [out]})
