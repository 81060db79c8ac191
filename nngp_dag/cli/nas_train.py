"""The command nas train."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nngp_dag.cli.last_words import Resumable, epochs_in
from nngp_dag.cli.options import (
    NETWORK,
    TRAINING,
    AccumulateOption,
    CifarOption,
    DataDirOption,
    DataOption,
    EvalSubsetOption,
    HeldOutOption,
    ImageSizeOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    ResumeRunOption,
    StreamOption,
    TrainSubsetOption,
    count,
    out_option,
    output,
)
from nngp_dag.cli.processes import CoordinatorOption, DistributedOption, ProcessesOption, ProcessIdOption, joined
from nngp_dag.cli.resumed import Context, as_path, as_stored, command_that_resumes, given, options_of
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_splits
from nngp_dag.errors import InputError
from nngp_dag.storage import check_exclusive

_OUT = "nngp-dag-cell"


def train_cell_command(
    context: Context,
    cell: Annotated[
        str | None,
        typer.Argument(
            metavar="CELL",
            show_default=False,
            help="NAS-Bench-201 cell, DARTS genotype, or a file with one of them. Not needed with --resume.",
        ),
    ] = None,
    data: DataOption = None,
    dataset: CifarOption = None,
    data_dir: DataDirOption = None,
    subset: TrainSubsetOption = None,
    eval_subset: EvalSubsetOption = None,
    stream: StreamOption = False,
    image_size: ImageSizeOption = None,
    held_out: HeldOutOption = None,
    recipe: Annotated[
        Literal["usual", "imagenet"],
        typer.Option(
            rich_help_panel=TRAINING,
            help="Values of all options that are not given. imagenet: those of DARTS cells on ImageNet, streamed: "
            "--stem imagenet, C = 48, 14 cells, 250 epochs of batch 768, rate 0.5 after a warmup of 5, smoothing 0.1, "
            "color jitter.",
        ),
    ] = "usual",
    stem: Annotated[
        Literal["cifar", "imagenet"],
        typer.Option(
            rich_help_panel=NETWORK,
            help="First layers: one convolution, or for DARTS the three that reduce images of ImageNet eightfold.",
        ),
    ] = "cifar",
    channels: Annotated[
        int | None,
        count("Number of channels C of the first cells. Default: 36 for DARTS, 16 for NAS-Bench-201.", NETWORK),
    ] = None,
    layers: Annotated[
        int | None,
        count(
            "Number of cells: of the whole network for DARTS (default 20), per stage for NAS-Bench-201 (default 5).",
            NETWORK,
        ),
    ] = None,
    epochs: Annotated[int, count("Number of passes over the training part.", TRAINING)] = 600,
    batch_size: Annotated[int, count("Number of images per step.", TRAINING)] = 96,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--lr",
            "--learning-rate",
            rich_help_panel=TRAINING,
            help="Learning rate of the first epoch, without --warmup: the step size on the mean loss of a batch. It "
            "falls to 0 on half a cosine.",
        ),
    ] = 0.025,
    warmup: Annotated[
        int,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Number W of first epochs in which the learning rate is 1/W, 2/W, ... of --lr.",
        ),
    ] = 0,
    momentum: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="Factor of the momentum, at least 0 and below 1.")
    ] = 0.9,
    weight_decay: Annotated[
        float,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Factor of the weight decay: this number times every parameter is added to its gradient. It is 3e-5 "
            "in Chen et al., and 3e-4 in DARTS.",
        ),
    ] = 3e-5,
    label_smoothing: Annotated[
        float,
        typer.Option(
            rich_help_panel=TRAINING, help="Share of the target, below 1, that is spread equally over all classes."
        ),
    ] = 0.0,
    gradient_clip: Annotated[
        float,
        typer.Option(rich_help_panel=TRAINING, help="Largest Euclidean norm of the gradient. 0 for no clipping."),
    ] = 5.0,
    auxiliary: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Weight of the loss of the auxiliary head of DARTS. 0 for no head. Default: 0.4 for images of at "
            "least 29 pixels per side, else 0.",
        ),
    ] = None,
    drop_path: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Probability p of drop path. Epoch e of E, counted from 0, uses p e / E. Default: 0.2 for DARTS, "
            "else 0.",
        ),
    ] = None,
    augment: Annotated[
        bool, typer.Option(rich_help_panel=TRAINING, help="Crop and mirror training images at random, or keep them.")
    ] = True,
    cutout: Annotated[
        int,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Side, in pixels, of a random square of zeros in training images. It is 16 in DARTS; 0 for none.",
        ),
    ] = 0,
    color_jitter: Annotated[
        bool,
        typer.Option(
            "--color-jitter",
            rich_help_panel=TRAINING,
            help="Change brightness, contrast, saturation and hue of streamed training images at random.",
        ),
    ] = False,
    accumulate: AccumulateOption = 1,
    seeds: Annotated[int, count("Number of networks, with seeds 0, 1, 2, ..., trained as one program.", TRAINING)] = 1,
    out: Annotated[Path | None, out_option("Folder of the run.", _OUT)] = None,
    resume: ResumeRunOption = False,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the network of a cell on images, with curves and checkpoints.

    A run may be interrupted at any time; --resume continues it.
    """
    mesh = joined(distributed, coordinator, processes, process_id)
    from nngp_dag.distributed import first_does
    from nngp_dag.nas.spaces.any_cell import read_cell
    from nngp_dag.training.cell_recipe import IMAGENET, CellRecipe
    from nngp_dag.training.cells import train_cell
    from nngp_dag.training.rundir import run_folder
    from nngp_dag.training.tables import training_rows, training_table

    check_exclusive(resume, overwrite)
    out = output(_OUT, out, again=resume or overwrite)
    options = options_of(context, out, resume=resume)
    # A resumed run has stored the values of its recipe.
    if options["recipe"] == "imagenet" and not resume:
        preset = {**IMAGENET, "stream": True, "dataset": "imagenet2012"}
        options |= {name: value for name, value in preset.items() if not given(context, name)}
    text = options.pop("cell")
    if text is None:
        raise InputError("Expected a cell of NAS-Bench-201, a genotype or a file with one, got none; pass it as CELL")
    parsed = read_cell(text)
    # The cell itself is stored, because a file with it may change.
    stored = as_stored({**options, "cell": str(parsed)})
    seeds = options.pop("seeds")
    del options["recipe"]
    keys = ("data", "dataset", "data_dir", "subset", "eval_subset", "stream", "image_size", "held_out")
    source = {name: options.pop(name) for name in keys}
    # The defaults of options that are not given depend on the cell; `CellRecipe.of` has them.
    options = {name: value for name, value in options.items() if value is not None}
    # Checks all options that do not depend on the images, before the images are read.
    epochs = CellRecipe.of(parsed, (), **options).epochs
    source |= {name: as_path(source[name]) for name in ("data", "data_dir")}
    load = choose_splits(**source, default="cifar10")
    Resumable(out / "config.json", epochs_in(out, epochs), command_that_resumes(context, out))
    first_does(lambda: run_folder(out).check_free(resume=resume, overwrite=overwrite))
    splits = load()
    cell_recipe = CellRecipe.of(parsed, splits.input_shape, **options)
    say(splits.statement)
    with progress() as on_progress:
        found = train_cell(
            parsed,
            splits,
            cell_recipe,
            seeds=seeds,
            out=out,
            resume=resume,
            overwrite=overwrite,
            config={"options": stored},
            on_progress=on_progress,
            mesh=mesh,
        )
    show(training_table([found]))
    show(f"{found.parameters:,} parameters")
    files = [out / name for name in ("curves.csv", "curves.png", "config.json", "tensorboard", "checkpoints")]
    say(f"wrote {', '.join(map(str, files[:-1]))} and {files[-1]}")
    result({"data": splits.statement, "rows": training_rows([found]), "files": files})
