"""The command nas train."""

from pathlib import Path
from typing import Annotated

import typer

from nngp_dag.cli.last_words import Resumable, epochs_in
from nngp_dag.cli.options import (
    NETWORK,
    TRAINING,
    CifarOption,
    DataDirOption,
    DataOption,
    EvalSubsetOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    ResumeOption,
    TrainSubsetOption,
    count,
    exclusive,
    out_option,
    output,
)
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_splits

_OUT = "nngp-dag-cell"


def train_cell_command(
    genotype: Annotated[
        str, typer.Argument(metavar="GENOTYPE", help="A NAS-Bench-201 cell, a DARTS genotype, or a file with one.")
    ],
    data: DataOption = None,
    dataset: CifarOption = None,
    data_dir: DataDirOption = None,
    subset: TrainSubsetOption = None,
    eval_subset: EvalSubsetOption = None,
    channels: Annotated[int | None, count("C; by default 36 for DARTS, 16 for NAS-Bench-201.", NETWORK)] = None,
    layers: Annotated[
        int | None,
        count("Cells of a DARTS network, by default 20, or of a NAS-Bench-201 stage, 5.", NETWORK),
    ] = None,
    epochs: Annotated[int, count("Passes over the training part.", TRAINING)] = 600,
    batch_size: Annotated[int, count("Images a step.", TRAINING)] = 96,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--lr",
            "--learning-rate",
            rich_help_panel=TRAINING,
            help="Step size on the mean loss of a batch, at first; a cosine to 0.",
        ),
    ] = 0.025,
    momentum: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="Factor of the momentum, from 0 to below 1.")
    ] = 0.9,
    weight_decay: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="3e-5 in Chen et al., 3e-4 in DARTS.")
    ] = 3e-5,
    label_smoothing: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="Share of the target that all classes have.")
    ] = 0.0,
    gradient_clip: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="Largest norm of the gradient; 0 for no clipping.")
    ] = 5.0,
    auxiliary: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Weight of the auxiliary head; by default 0.4 for DARTS on 29 pixels or more.",
        ),
    ] = None,
    drop_path: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="p: epoch e of E, from 0, drops with p e / E; by default 0.2 for DARTS, else 0.",
        ),
    ] = None,
    augment: Annotated[bool, typer.Option(rich_help_panel=TRAINING, help="Random crops and mirror images.")] = True,
    cutout: Annotated[
        int, typer.Option(rich_help_panel=TRAINING, help="Side of a square of zeros; 16 in DARTS, 0 for none.")
    ] = 0,
    seeds: Annotated[int, count("Networks of the cell, with seeds 0, 1, 2, ..., as one program.", TRAINING)] = 1,
    out: Annotated[Path | None, out_option("Folder of the run.", _OUT)] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the network of a found cell on images, with curves and checkpoints; resumable at any moment."""
    from nngp_dag.training.cell_recipe import CellRecipe, read_cell
    from nngp_dag.training.cells import train_cell
    from nngp_dag.training.rundir import run_folder
    from nngp_dag.training.tables import training_rows, training_table

    exclusive(resume, overwrite)
    cell = read_cell(genotype)
    by_kind = {"channels": channels, "layers": layers, "auxiliary": auxiliary, "drop_path": drop_path}
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "gradient_clip": gradient_clip,
        "augment": augment,
        "cutout": cutout,
        **{name: value for name, value in by_kind.items() if value is not None},
    }
    # What does not depend on the images is refused before they are read.
    CellRecipe.of(cell, (), **options)
    load = choose_splits(data, dataset, data_dir, subset=subset, eval_subset=eval_subset, default="cifar10")
    out = output(_OUT, out, again=resume or overwrite)
    Resumable(out / "config.json", epochs_in(out, epochs))
    run_folder(out).check_free(resume=resume, overwrite=overwrite)
    splits = load()
    recipe = CellRecipe.of(cell, splits.train.x.shape[1:], **options)
    say(splits.statement)
    with progress() as on_progress:
        found = train_cell(
            cell, splits, recipe, seeds=seeds, out=out, resume=resume, overwrite=overwrite, on_progress=on_progress
        )
    show(training_table([found]))
    show(f"{found.parameters:,} parameters")
    files = [out / name for name in ("curves.csv", "curves.png", "config.json", "tensorboard", "checkpoints")]
    say(f"wrote {', '.join(map(str, files[:-1]))} and {files[-1]}")
    result({"data": splits.statement, "rows": training_rows([found]), "files": files})
