"""The commands nas score, nas search, nas plot and nas train."""

from pathlib import Path
from typing import Annotated

import typer

from nngp_dag.cli.options import DataDirOption, DatasetOption, OverwriteOption, SplitsOption
from nngp_dag.cli.outputs import claims
from nngp_dag.cli.screen import console, progress, say

nas = typer.Typer(
    help="Rank and search the cells of NAS-Bench-201 and DARTS without training; train those found.",
    no_args_is_help=True,
)

FilterOption = Annotated[list[str], typer.Option("--filter", help="paper or released-code; repeat for both.")]
ScoreOption = Annotated[
    list[str], typer.Option("--score", help="naswot, parameters, ntk_condition, ...; repeat for several.")
]
ScoresOption = Annotated[Path, typer.Option("--scores", help="Folder that nas score wrote.")]
BenchmarkOption = Annotated[Path, typer.Option("--benchmark", help="CSV or JSON with arch_str and accuracies.")]


@nas.command()
@claims("out")
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
    cells_at_once: Annotated[
        int | None, typer.Option(help="Networks that one call computes; by default 16 on a GPU, 1 elsewhere.")
    ] = None,
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
    sizes = {"channels": channels, "cells": cells, "classes": data.num_classes, "seed": seed}
    setting = Setting(normalise(data), data.labels, **sizes, cells_at_once=cells_at_once)
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
@claims("scores")
def search(
    benchmark: BenchmarkOption,
    scores: ScoresOption = Path("nngp-dag-nas"),
    score: ScoreOption = ["naswot"],  # noqa: B006
    filter_: FilterOption = ["paper"],  # noqa: B006
    column: Annotated[
        list[str] | None, typer.Option(help="Column of the benchmark, if it has several; repeat for a table of each.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Cells of one search.")] = 100,
    repeats: Annotated[int, typer.Option(help="Searches.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Search among scored cells: draw, filter, take the best; and rank correlations with the accuracy."""
    import pandas

    from nngp_dag.nas import Benchmark
    from nngp_dag.report import output_file
    from nngp_dag.report.nas import accuracy_correlations, search_table
    from nngp_dag.report.nas_files import read_scores
    from nngp_dag.report.tables import correlation_table, search_summary

    known, table = Benchmark.load(benchmark), read_scores(scores)
    columns = list(dict.fromkeys(column)) if column else [None]
    options = {"filters": filter_, "sample": sample, "repeats": repeats, "seed": seed}
    found = [search_table(table, known, score, column=name, **options) for name in columns]
    ranks = [accuracy_correlations(table, known, column=name) for name in columns]
    for frames, name in ((found, "search.csv"), (ranks, "accuracy.csv")):
        with output_file(scores / name, overwrite=overwrite) as path:
            pandas.concat(frames).to_csv(path, index=False)
    for searches, correlations in zip(found, ranks, strict=True):
        console().print(search_summary(searches, sample))
        console().print(correlation_table(correlations))
        if searches.left_out[0]:
            say(f"left out {searches.left_out[0]:,} scored cells without {searches.column[0]}")
    say(f"wrote search.csv, accuracy.csv to {scores}")


@nas.command()
@claims("scores")
def plot(
    benchmark: BenchmarkOption,
    scores: ScoresOption = Path("nngp-dag-nas"),
    column: Annotated[str | None, typer.Option(help="Column of the benchmark, if it has several.")] = None,
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


@nas.command()
def train(
    genotype: Annotated[
        str, typer.Argument(metavar="GENOTYPE", help="A NAS-Bench-201 cell, a DARTS genotype, or a file with one.")
    ],
    dataset: SplitsOption = "cifar10",
    data_dir: DataDirOption = None,
    subset: Annotated[int | None, typer.Option(help="Train on the first N of the training part.")] = None,
    channels: Annotated[int | None, typer.Option(help="C; by default 36 for DARTS, 16 for NAS-Bench-201.")] = None,
    layers: Annotated[
        int | None, typer.Option(help="Cells of a DARTS network, by default 20, or of a NAS-Bench-201 stage, 5.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training part.")] = 600,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 96,
    learning_rate: Annotated[float, typer.Option("--lr", "--learning-rate", help="At first; a cosine to 0.")] = 0.025,
    momentum: Annotated[float, typer.Option(help="Factor of the momentum, from 0 to below 1.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="3e-5 in Chen et al., 3e-4 in DARTS.")] = 3e-5,
    label_smoothing: Annotated[float, typer.Option(help="Share of the target that all classes have.")] = 0.0,
    gradient_clip: Annotated[float, typer.Option(help="Largest norm of the gradient; 0 for no clipping.")] = 5.0,
    auxiliary: Annotated[
        float | None, typer.Option(help="Weight of the auxiliary head; by default 0.4 for DARTS on 29 pixels or more.")
    ] = None,
    drop_path: Annotated[
        float | None,
        typer.Option(help="p: epoch e of E, from 0, drops with p e / E; by default 0.2 for DARTS, else 0."),
    ] = None,
    augment: Annotated[bool, typer.Option(help="Random crops and mirror images.")] = True,
    cutout: Annotated[int, typer.Option(help="Side of a square of zeros; 16 in DARTS, 0 for none.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and augmentation.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, under the same options.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("nngp-dag-cell"),
    overwrite: OverwriteOption = False,
) -> None:
    """Train the network of a found cell on images, with curves and checkpoints; resumable at any moment."""
    from nngp_dag.data import load_splits
    from nngp_dag.errors import InputError
    from nngp_dag.training.cell_recipe import CellRecipe, read_cell
    from nngp_dag.training.cells import train_cell
    from nngp_dag.training.rundir import check_free

    if resume and overwrite:
        raise InputError("Expected --resume or --overwrite, got both; leave one of them out")
    cell = read_cell(genotype)
    check_free(out, resume=resume, overwrite=overwrite)
    data = load_splits(dataset, subset=subset, data_dir=data_dir)
    by_kind = {"channels": channels, "layers": layers, "auxiliary": auxiliary, "drop_path": drop_path}
    recipe = CellRecipe.of(
        cell,
        data.train.x.shape[1:],
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        gradient_clip=gradient_clip,
        augment=augment,
        cutout=cutout,
        **{name: value for name, value in by_kind.items() if value is not None},
    )
    say(data.statement)
    with progress() as on_progress:
        found = train_cell(
            cell, data, recipe, seed=seed, out=out, resume=resume, overwrite=overwrite, on_progress=on_progress
        )
    final = {part: found.history.of(part, "accuracy")[-1, 0] for part in ("train", "validation", "test")}
    say(
        f"{found.parameters:,} parameters; accuracy "
        + ", ".join(f"{part} {value:.2%}" for part, value in final.items())
    )
    say(f"wrote {out}/curves.csv, {out}/curves.png, {out}/config.json, {out}/tensorboard and {out}/checkpoints")
