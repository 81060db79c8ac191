"""The commands nas score, nas search and nas plot."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nngp_dag.cli.last_words import latest_progress, once, same_command
from nngp_dag.cli.options import (
    COMPUTE,
    DATA,
    NETWORK,
    CifarOption,
    DataDirOption,
    DataOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    ResumeOption,
    count,
    out_option,
)
from nngp_dag.cli.outputs import hold
from nngp_dag.cli.processes import CoordinatorOption, DistributedOption, ProcessesOption, ProcessIdOption, joined
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_samples
from nngp_dag.errors import InputError

if TYPE_CHECKING:
    from nngp_dag.nas import AccuracyTable
    from nngp_dag.nas.spaces.any_cell import AnyCell

_SCORES = "nngp-dag-nas"
_BATCH = 128

FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        rich_help_panel=COMPUTE,
        help="Filter of effective depth and width: paper or released-code. DARTS has the latter alone. Repeat for "
        "both. Default: paper, for DARTS released-code.",
    ),
]
SkipOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        rich_help_panel=NETWORK,
        help="Skip cells that this filter of effective depth and width does not keep: paper or released-code. DARTS "
        "has the latter alone.",
    ),
]
SpaceOption = Annotated[
    Literal["nasbench201", "darts"], typer.Option("--space", rich_help_panel=NETWORK, help="Space of the cells.")
]
ScoreOption = Annotated[
    list[str],
    typer.Option(
        "--score",
        rich_help_panel=COMPUTE,
        help="Score: naswot, parameters, ... Repeat for several. `nngp-dag list scores` shows all.",
    ),
]
ScoresOption = Annotated[
    Path, typer.Option("--scores", rich_help_panel=DATA, help="Folder of scores from nas score.", show_default=_SCORES)
]
AccuraciesOption = Annotated[
    Path,
    typer.Option(
        "--accuracies",
        rich_help_panel=DATA,
        help="Accuracy table: a CSV or JSON file with the text of cells (arch_str, or genotype for DARTS) and "
        "accuracies in per cent.",
    ),
]
KnownOption = Annotated[
    Path | None,
    typer.Option(
        "--accuracies",
        rich_help_panel=DATA,
        help="Accuracy table, CSV or JSON, with the text of cells (arch_str, or genotype for DARTS) and accuracies in "
        "per cent. Adds the rank correlations of the scores with it. For DARTS, the genotypes come from it.",
    ),
]
ColumnOption = Annotated[
    str | None, typer.Option("--column", rich_help_panel=DATA, help="Column of the accuracy table, if it has several.")
]


def score(
    score: ScoreOption = ["naswot", "parameters", "nngp_lambda_min_exact"],  # noqa: B006
    space: SpaceOption = "nasbench201",
    sample: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=NETWORK,
            help="Number of random cells to score. Default: all 15,625 cells, for DARTS those of --accuracies.",
        ),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=NETWORK,
            help="NAS-Bench-201 cell, DARTS genotype, or a file with one of them, instead of --sample. Repeat for "
            "several.",
        ),
    ] = None,
    filter_: SkipOption = None,
    accuracies: KnownOption = None,
    column: ColumnOption = None,
    data: DataOption = None,
    dataset: CifarOption = None,
    data_dir: DataDirOption = None,
    batch: Annotated[int | None, count("Use the first N training images.", DATA, show_default=f"{_BATCH}")] = None,
    channels: Annotated[int, count("Number of channels C of the first stage.", NETWORK)] = 16,
    cells: Annotated[
        int | None,
        count(
            "Number N of cells per stage; for DARTS of normal cells, 3N + 2 cells in all. Default: 5, for DARTS 2.",
            NETWORK,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=COMPUTE, help="Seed of the weights, of the random cells, and of the shuffled labels."
        ),
    ] = 0,
    cells_at_once: Annotated[
        int | None, count("Number of networks that are computed at once. Default: 1 on CPU, 16 elsewhere.", COMPUTE)
    ] = None,
    timed: Annotated[
        bool,
        typer.Option(
            "--timed",
            rich_help_panel=COMPUTE,
            help="Compute exact kernels twice, so that their reported seconds do not include compilation.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        out_option("Folder for the scores. Scores that it already has are not computed again.", _SCORES, fresh=False),
    ] = None,
    resume: ResumeOption = False,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score cells of NAS-Bench-201 or genotypes of DARTS without training.

    A score that reads labels is computed twice: with the labels, and with shuffled labels as its control. The command
    prints both, and a sentence on what follows.

    An interrupted computation continues when the same command is given again. With --resume, the command fails if there
    is nothing to continue.
    """
    joined(distributed, coordinator, processes, process_id)
    same_command(
        lambda: (
            ", ".join(f"{done} of {total} cells by {name}" for name, (done, total) in latest_progress.items())
            or "nothing new"
        )
    )
    from nngp_dag.distributed import first_does
    from nngp_dag.nas import AccuracyTable, Setting
    from nngp_dag.nas.scores.files import ScoreDirectory, read_scores, score_folder
    from nngp_dag.nas.scores.registry import measures_of
    from nngp_dag.nas.spaces.filters import get_filter
    from nngp_dag.nas.studies.controls import control_correlations, control_remarks
    from nngp_dag.nas.studies.tables import accuracy_correlations, accuracy_correlations_table

    measures_of(score, space)
    filters = [get_filter(name, space) for name in filter_ or ()]
    known = None if accuracies is None else AccuracyTable.load(accuracies)
    if known is not None:
        # An error in the column is found before anything is computed.
        known.column(column)
    chosen = _chosen(space, sample, cell, known, seed)
    if filters:
        kept = [one for one in chosen if all(each.keeps(one.dag) for each in filters)]
        say(f"the filter keeps {len(kept):,} of {len(chosen):,} cells; the others are not scored")
        if not kept:
            raise InputError(f"Expected --filter to keep a cell, got none of {len(chosen):,}; score other cells")
        chosen = kept
    out = Path(_SCORES) if out is None else out
    if resume:
        score_folder(out).read()
    first_does(lambda: hold(out))
    samples = choose_samples(data, dataset, data_dir, batch, usual=_BATCH, images=True, default="cifar10")()
    sizes = {"channels": channels, "cells": cells, "seed": seed, "cells_at_once": cells_at_once, "space": space}
    if samples.classes:
        setting = Setting(samples.x, samples.y, classes=len(samples.classes), **sizes)
    else:
        setting = Setting(samples.x, **sizes)
    with progress() as on_progress:
        for measure, done, total in ScoreDirectory(out, setting).score(chosen, score, timed=timed):
            on_progress(measure, done, total)
    table = read_scores(out)
    status = table.status.value_counts()
    show(", ".join(f"{number:,} {name}" for name, number in status.items()))
    failed = table[table.reason != ""]
    if len(failed):
        show(f"{len(failed):,} with a score missing, such as {failed.reason.iloc[0]}")
    asked: Any = table[table.cell.isin([str(cell) for cell in chosen])]
    controls = control_correlations(asked)
    ranks = controls if known is None else accuracy_correlations(asked, known, column=column)
    if known is not None:
        show(accuracy_correlations_table(ranks))
    remarks = control_remarks(ranks)
    show(*remarks)
    say(f"wrote scores of {len(table):,} cells to {out}")
    found = {} if known is None else {"correlations": ranks.to_dict("records")}
    found |= {"controls": controls.to_dict("records"), "remarks": remarks}
    rows = asked.to_dict("records")
    result({"cells": len(table), "status": status.to_dict(), "rows": rows, **found, "files": [out]})


def _chosen(
    space: str, sample: int | None, texts: list[str] | None, known: "AccuracyTable | None", seed: int
) -> "list[AnyCell]":
    """Returns the cells to score."""
    import random

    from nngp_dag.nas import cells, sample_cells, sample_genotypes
    from nngp_dag.nas.spaces.any_cell import read_cell, space_of_all
    from nngp_dag.nas.spaces.cells import NUM_CELLS

    if sample is not None and texts:
        raise InputError("Expected --sample or --cell, got both; leave one of them out")
    if known is not None and known.space != space:
        raise InputError(f"Expected --accuracies of cells of {space}, got cells of {known.space}; pass --space")
    if texts:
        chosen = [read_cell(text) for text in texts]
        if (found := space_of_all(chosen)) != space:
            raise InputError(f"Expected --cell of {space}, got cells of {found}; pass --space {found}")
        return chosen
    most = NUM_CELLS if space == "nasbench201" else None if known is None else len(known)
    if sample is not None and (sample < 1 or (most is not None and sample > most)):
        wanted = "to be at least 1" if most is None else f"in 1 to {most:,}, the number of cells"
        raise InputError(f"Expected --sample {wanted}, got {sample:,}")
    if space == "nasbench201":
        return list(cells()) if sample is None else [*sample_cells(sample, seed)]
    if known is None:
        if sample is None:
            raise InputError("Expected --sample, --cell or --accuracies for DARTS, got none; pass --sample 100")
        return [*sample_genotypes(sample, seed)]
    listed = list(known.cells)
    if sample is not None:
        random.Random(seed).shuffle(listed)
    return listed[:sample]


def search(
    accuracies: AccuraciesOption,
    scores: ScoresOption = Path(_SCORES),
    score: ScoreOption = ["naswot"],  # noqa: B006
    filter_: FilterOption = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=DATA,
            help="Column of the accuracy table, if it has several. Repeat for one result per column.",
        ),
    ] = None,
    sample: Annotated[int, count("Number of cells that one search draws.", COMPUTE)] = 100,
    repeats: Annotated[int, count("Number of searches per score and filter.", COMPUTE)] = 500,
    seed: Annotated[int, typer.Option(rich_help_panel=COMPUTE, help="Seed of the draws.")] = 0,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Simulate searches by score, and report the accuracy of the cells found.

    A search draws random scored cells, filters them and takes the best. The command also prints the rank correlations
    of the scores with the accuracy, for scores that read labels beside those of the control with shuffled labels.
    """
    once(scores / "search.csv", scores / "accuracy.csv")
    hold(scores)
    import pandas

    from nngp_dag.nas import AccuracyTable
    from nngp_dag.nas.scores.files import read_scores
    from nngp_dag.nas.studies.controls import control_remarks
    from nngp_dag.nas.studies.tables import (
        accuracy_correlations,
        accuracy_correlations_table,
        search_summary,
        search_table,
    )
    from nngp_dag.report import output_file

    known, table = AccuracyTable.load(accuracies), read_scores(scores)
    columns = list(dict.fromkeys(column)) if column else [None]
    options = {"filters": filter_, "sample": sample, "repeats": repeats, "seed": seed}
    found = [search_table(table, known, score, column=name, **options) for name in columns]
    ranks = [accuracy_correlations(table, known, column=name) for name in columns]
    files = scores / "search.csv", scores / "accuracy.csv"
    for frames, file in zip((found, ranks), files, strict=True):
        with output_file(file, overwrite=overwrite) as path:
            pandas.concat(frames).to_csv(path, index=False)
    for searches, correlations in zip(found, ranks, strict=True):
        show(search_summary(searches, sample), accuracy_correlations_table(correlations))
        show(*control_remarks(correlations))
        if searches.left_out[0]:
            say(f"left out {searches.left_out[0]:,} scored cells without {searches.column[0]}")
    say(f"wrote search.csv, accuracy.csv to {scores}")
    both = {"searches": found, "correlations": ranks}
    result({name: pandas.concat(frames).to_dict("records") for name, frames in both.items()} | {"files": files})


def plot(
    accuracies: AccuraciesOption,
    scores: ScoresOption = Path(_SCORES),
    score: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=DATA,
            help="Score to draw. Repeat for several. Default: all scores in the folder.",
        ),
    ] = None,
    column: ColumnOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw the accuracy of cells over effective depth and width, and over their scores."""
    once(scores / "depth-width.png", scores / "scores.png")
    hold(scores)
    from nngp_dag.nas import SCORES, AccuracyTable
    from nngp_dag.nas.scores.files import read_scores
    from nngp_dag.nas.studies.plots import plot_depth_and_width, plot_scores
    from nngp_dag.report import output_file

    known, table = AccuracyTable.load(accuracies), read_scores(scores)
    with output_file(scores / "depth-width.png", overwrite=overwrite) as path:
        plot_depth_and_width(known, path, column=column)
    with output_file(scores / "scores.png", overwrite=overwrite) as path:
        plot_scores(table, known, score or [name for name in SCORES if name in table], path, column=column)
    say(f"wrote depth-width.png, scores.png to {scores}")
