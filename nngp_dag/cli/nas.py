"""The commands nas score, nas search and nas plot."""

from pathlib import Path
from typing import Annotated

import typer

from nngp_dag.cli.options import DataDirOption, DatasetOption, OverwriteOption
from nngp_dag.cli.screen import console, progress, say

nas = typer.Typer(help="Rank and search the cells of NAS-Bench-201 and DARTS without training.", no_args_is_help=True)

FilterOption = Annotated[list[str], typer.Option("--filter", help="paper or released-code; repeat for both.")]
ScoreOption = Annotated[
    list[str], typer.Option("--score", help="naswot, parameters, ntk_condition, ...; repeat for several.")
]
ScoresOption = Annotated[Path, typer.Option("--scores", help="Folder that nas score wrote.")]
BenchmarkOption = Annotated[Path, typer.Option("--benchmark", help="CSV or JSON with arch_str and accuracies.")]
ColumnOption = Annotated[str | None, typer.Option(help="Column of the benchmark, if it has several.")]


@nas.command()
def score(
    score: ScoreOption = ["naswot", "parameters", "nngp_lambda_min_exact"],  # noqa: B006
    sample: Annotated[int | None, typer.Option(help="So many random cells; by default all 15,625.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="A cell; repeat for several.")] = None,
    dataset: DatasetOption = "cifar10",
    data_dir: DataDirOption = None,
    batch: Annotated[int, typer.Option(help="Images, the first of the training set.")] = 128,
    channels: Annotated[int, typer.Option(help="Channels of the first stage.")] = 16,
    cells: Annotated[int, typer.Option(help="Cells of a stage.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the weights, and of the sample.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the scores; what it has is not computed again.")] = Path(
        "nngp-dag-nas"
    ),
) -> None:
    """Score cells; whatever stops it, the same command goes on where it was."""
    from nngp_dag.data import load_dataset, normalise
    from nngp_dag.errors import InputError
    from nngp_dag.nas import Cell, Setting, sample_cells
    from nngp_dag.nas import cells as every_cell
    from nngp_dag.nas.scores import measures_of
    from nngp_dag.report.nas_files import ScoreDirectory, read_scores

    measures_of(score)
    if sample is not None and cell:
        raise InputError("Expected --sample or --cell, got both; leave one of them out")
    data = load_dataset(dataset, data_dir=data_dir, subset=batch)
    setting = Setting(normalise(data), data.labels, channels=channels, cells=cells, classes=data.num_classes, seed=seed)
    chosen = [Cell.parse(text) for text in cell] if cell else []
    chosen = chosen or (list(every_cell()) if sample is None else sample_cells(sample, seed))
    with progress() as on_progress:
        for measure, done, total in ScoreDirectory(out, setting).score(chosen, score):
            on_progress(measure, done, total)
    table = read_scores(out)
    say(", ".join(f"{count:,} {status}" for status, count in table.status.value_counts().items()))
    failed = table[table.reason != ""]
    if len(failed):
        say(f"{len(failed):,} with a score missing, such as {failed.reason.iloc[0]}")
    say(f"wrote scores of {len(table):,} cells to {out}")


@nas.command()
def search(
    benchmark: BenchmarkOption,
    scores: ScoresOption = Path("nngp-dag-nas"),
    score: ScoreOption = ["naswot"],  # noqa: B006
    filter_: FilterOption = ["paper"],  # noqa: B006
    column: ColumnOption = None,
    sample: Annotated[int, typer.Option(help="Cells of one search.")] = 100,
    repeats: Annotated[int, typer.Option(help="Searches.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Search among scored cells: draw, filter, take the best; and rank correlations with the accuracy."""
    from nngp_dag.nas import Benchmark
    from nngp_dag.report import output_file
    from nngp_dag.report.nas import accuracy_correlations, search_table
    from nngp_dag.report.nas_files import read_scores
    from nngp_dag.report.tables import correlation_table, search_summary

    known, table = Benchmark.load(benchmark), read_scores(scores)
    found = search_table(table, known, score, column=column, filters=filter_, sample=sample, repeats=repeats, seed=seed)
    ranks = accuracy_correlations(table, known, column=column)
    for frame, name in ((found, "search.csv"), (ranks, "accuracy.csv")):
        with output_file(scores / name, overwrite=overwrite) as path:
            frame.to_csv(path, index=False)
    console().print(search_summary(found, sample, len(table)))
    console().print(correlation_table(ranks))
    say(f"wrote search.csv, accuracy.csv to {scores}")


@nas.command()
def plot(
    benchmark: BenchmarkOption,
    scores: ScoresOption = Path("nngp-dag-nas"),
    column: ColumnOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw accuracy over effective depth and width, and over every score."""
    from nngp_dag.nas import SCORES, Benchmark
    from nngp_dag.report import output_file
    from nngp_dag.report.nas_files import read_scores
    from nngp_dag.report.nas_plots import plot_depth_and_width, plot_scores

    known, table = Benchmark.load(benchmark), read_scores(scores)
    with output_file(scores / "depth-width.png", overwrite=overwrite) as path:
        plot_depth_and_width(known, path, column=column)
    with output_file(scores / "scores.png", overwrite=overwrite) as path:
        plot_scores(table, known, [name for name in SCORES if name in table], path, column=column)
    say(f"wrote depth-width.png, scores.png to {scores}")
