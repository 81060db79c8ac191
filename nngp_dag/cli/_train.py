"""The command train."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nngp_dag.cli.last_words import Resumable, epochs_in, once
from nngp_dag.cli.network import NETWORK_OPTIONS, architecture_of, takes_network
from nngp_dag.cli.options import (
    DATA,
    NETWORK,
    OUTPUT,
    TRAINING,
    AccumulateOption,
    DagsOption,
    DataDirOption,
    DataOption,
    EvalSubsetOption,
    HeldOutOption,
    ImageSizeOption,
    JsonOption,
    OrderOption,
    OverwriteOption,
    QuietOption,
    ResumeRunOption,
    SplitsOption,
    StreamOption,
    TrainSubsetOption,
    count,
    out_option,
    output,
    parse_dag,
)
from nngp_dag.cli.processes import CoordinatorOption, DistributedOption, ProcessesOption, ProcessIdOption, joined
from nngp_dag.cli.resumed import Context, as_path, as_stored, command_that_resumes, given, options_of
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_splits
from nngp_dag.errors import InputError
from nngp_dag.storage import check_exclusive

_MOST_TABLES = 4
_OUT = "nngp-dag-train"


@takes_network
def train(
    context: Context,
    dag: DagsOption = None,
    data: DataOption = None,
    dataset: SplitsOption = None,
    data_dir: DataDirOption = None,
    subset: TrainSubsetOption = None,
    eval_subset: EvalSubsetOption = None,
    stream: StreamOption = False,
    image_size: ImageSizeOption = None,
    held_out: HeldOutOption = None,
    scale_inputs: Annotated[
        bool,
        typer.Option(
            "--scale-inputs",
            rich_help_panel=DATA,
            help="Scale every input to |x|² = d. (Commands that compute kernels do so by default.)",
        ),
    ] = False,
    batch_norm: Annotated[
        bool,
        typer.Option(
            "--batch-norm",
            rich_help_panel=NETWORK,
            help="Batch normalization after the weights of the stem and of every edge.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(rich_help_panel=TRAINING, help="Number of examples per step.")] = 128,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--lr",
            "--learning-rate",
            rich_help_panel=TRAINING,
            help="Learning rate: the step size on the mean loss of a batch. (The step size of compare refers to the "
            "loss summed over examples.)",
        ),
    ] = 0.05,
    momentum: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="Factor of the momentum, at least 0 and below 1.")
    ] = 0.0,
    nesterov: Annotated[
        bool, typer.Option("--nesterov", rich_help_panel=TRAINING, help="Use Nesterov momentum.")
    ] = False,
    weight_decay: Annotated[
        float,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Factor of the weight decay: this number times every parameter is added to its gradient.",
        ),
    ] = 0.0,
    epochs: Annotated[
        int, typer.Option(rich_help_panel=TRAINING, help="Number of passes over the training part.")
    ] = 20,
    warmup: Annotated[
        int,
        typer.Option(
            rich_help_panel=TRAINING, help="Number of first epochs over which the learning rate grows linearly to --lr."
        ),
    ] = 0,
    schedule: Annotated[
        Literal["constant", "multistep", "cosine"],
        typer.Option(
            rich_help_panel=TRAINING,
            help="Learning rate after the warm-up. multistep: divided by 10 at every milestone; cosine: down to 0.",
        ),
    ] = "constant",
    milestone: Annotated[
        list[int] | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Epoch at which multistep divides the learning rate by 10. Repeat for several. Default: 1/2 and 3/4 "
            "of the epochs.",
        ),
    ] = None,
    loss: Annotated[
        Literal["cross-entropy", "squared"],
        typer.Option(rich_help_panel=TRAINING, help="Loss of one example. squared: ½‖y − f‖² with y one-hot."),
    ] = "cross-entropy",
    accumulate: AccumulateOption = 1,
    seeds: Annotated[
        int, count("Number of networks per DAG, with seeds 0, 1, 2, ..., trained as one program.", TRAINING)
    ] = 1,
    checkpoint_every: Annotated[int, count("Number of epochs between checkpoints.", OUTPUT)] = 1,
    out: Annotated[Path | None, out_option("Folder of the run.", _OUT)] = None,
    resume: ResumeRunOption = False,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="Checkpoint to evaluate on the data of its run, without training: OUT/checkpoints/NAME/best or last.",
        ),
    ] = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Train networks on labeled data, with curves, checkpoints and TensorBoard events.

    A run may be interrupted at any time; --resume continues it.
    """
    from nngp_dag import training
    from nngp_dag.architecture import as_network
    from nngp_dag.distributed import first_does
    from nngp_dag.graph import zoo
    from nngp_dag.training.rundir import run_folder
    from nngp_dag.training.tables import (
        evaluation_table,
        model_table,
        training_rows,
        training_table,
    )
    from nngp_dag.training.trainer import check_batch_size

    if evaluate is not None:
        once()
        beside = ("evaluate", "data_dir", "json", "quiet")
        if others := [name for name in context.params if name not in beside and given(context, name)]:
            raise InputError(f"Expected only --data-dir beside --evaluate, got {', '.join(others)}; leave them out")
        found = training.evaluate(evaluate, data_dir=data_dir)
        show(evaluation_table(found))
        result(found.rows())
        return
    mesh = joined(distributed, coordinator, processes, process_id)
    check_exclusive(resume, overwrite)
    out = output(_OUT, out, again=resume or overwrite)
    options = options_of(context, out, resume=resume)
    stored = as_stored(options)
    if given(context, "image_readout") and not options["conv"]:
        raise InputError("Expected --image-readout beside --conv, got it alone; leave it out or add --conv")
    names = options.pop("dag") or list(zoo.FIGURE3)
    if len(set(names)) < len(names):
        raise InputError(f"Expected every --dag once, got {', '.join(names)}")
    dags = {name: parse_dag(name) for name in names}
    seeds = options.pop("seeds")
    keys = ("data", "dataset", "subset", "eval_subset", "scale_inputs", "data_dir", "stream", "image_size", "held_out")
    source = {name: options.pop(name) for name in keys}
    milestones, every = options.pop("milestone"), options.pop("checkpoint_every")
    # A resumed run reads the order from its config.json, as a text.
    options["order"] = OrderOption(options["order"])
    architecture = architecture_of(**{name: options.pop(name) for name in NETWORK_OPTIONS})
    recipe = training.Recipe(**options, milestones=tuple(milestones) if milestones else None)
    kept = epochs_in(out, recipe.epochs * len(dags))
    Resumable(out / "config.json", kept, command_that_resumes(context, out))
    load = choose_splits(**{**source, "data": as_path(source["data"]), "data_dir": as_path(source["data_dir"])})
    first_does(lambda: run_folder(out).check_free(resume=resume, overwrite=overwrite))
    splits = load()
    say(splits.statement)
    check_batch_size(recipe.batch_size, splits)
    shape, batch_norm = splits.input_shape, recipe.batch_norm
    networks = {name: as_network(dag, **architecture) for name, dag in dags.items()}
    # Only the first few tables are printed; config.json has the sizes of all networks. A resumed run has printed its
    # tables before, and whether it has these networks is not known yet.
    for name, network in [] if resume else list(networks.items())[:_MOST_TABLES]:
        show(model_table(name, training.summary_of(network, shape, splits.num_classes, batch_norm=batch_norm)))
    with progress() as on_progress:
        runs = training.train(
            networks,
            splits,
            recipe,
            seeds=seeds,
            out=out,
            resume=resume,
            overwrite=overwrite,
            checkpoint_every=every,
            config={"options": stored},
            on_progress=on_progress,
            mesh=mesh,
        )
    show(training_table(runs))
    files = [out / name for name in ("curves.csv", "curves.png", "config.json", "tensorboard", "checkpoints")]
    say(f"wrote {', '.join(map(str, files[:-1]))} and {files[-1]}")
    result({"data": splits.statement, "rows": training_rows(runs), "files": files})
