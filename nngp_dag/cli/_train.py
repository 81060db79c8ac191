"""The command train."""

import shlex
from enum import EnumType, StrEnum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from nngp_dag.cli.last_words import Resumable, epochs_in, once
from nngp_dag.cli.network import NETWORK_OPTIONS, architecture_of, takes_network
from nngp_dag.cli.options import (
    DATA,
    NETWORK,
    OUTPUT,
    TRAINING,
    DagsOption,
    DataDirOption,
    DataOption,
    EvalSubsetOption,
    JsonOption,
    OrderOption,
    OverwriteOption,
    QuietOption,
    SplitsOption,
    TrainSubsetOption,
    count,
    exclusive,
    out_option,
    output,
    parse_dag,
)
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_splits
from nngp_dag.errors import CheckpointError, InputError, shown
from nngp_dag.interrupt import program
from nngp_dag.storage import misfit

if TYPE_CHECKING:
    from typer import Context
else:
    # What typer 0.29 passes is of the base class of what it documents.
    Context = typer.Context.__base__

_MOST_TABLES = 4
_OUT = "nngp-dag-train"
# What says how to run, not what is run.
_CONTROLS = ("resume", "evaluate", "out", "overwrite", "json", "quiet")


@takes_network
def train(
    context: Context,
    dag: DagsOption = None,
    data: DataOption = None,
    dataset: SplitsOption = None,
    data_dir: DataDirOption = None,
    subset: TrainSubsetOption = None,
    eval_subset: EvalSubsetOption = None,
    scale_inputs: Annotated[
        bool,
        typer.Option(
            "--scale-inputs",
            rich_help_panel=DATA,
            help="Scale every input to |x|² = d. (Commands that compute kernels do so unless told otherwise.)",
        ),
    ] = False,
    batch_norm: Annotated[
        bool, typer.Option("--batch-norm", rich_help_panel=NETWORK, help="Batch normalization after weights.")
    ] = False,
    batch_size: Annotated[int, typer.Option(rich_help_panel=TRAINING, help="Examples a step.")] = 128,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--lr",
            "--learning-rate",
            rich_help_panel=TRAINING,
            help="Step size on the mean loss of a batch; that of compare is on the loss summed over examples.",
        ),
    ] = 0.05,
    momentum: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="Factor of the momentum, from 0 to below 1.")
    ] = 0.0,
    nesterov: Annotated[
        bool, typer.Option("--nesterov", rich_help_panel=TRAINING, help="Nesterov's momentum.")
    ] = False,
    weight_decay: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, help="Times every parameter, added to its gradient.")
    ] = 0.0,
    epochs: Annotated[int, typer.Option(rich_help_panel=TRAINING, help="Passes over the training part.")] = 20,
    warmup: Annotated[
        int, typer.Option(rich_help_panel=TRAINING, help="Epochs over which the learning rate grows linearly.")
    ] = 0,
    schedule: Annotated[
        Literal["constant", "multistep", "cosine"], typer.Option(rich_help_panel=TRAINING, help="Of the learning rate.")
    ] = "constant",
    milestone: Annotated[
        list[int] | None,
        typer.Option(
            rich_help_panel=TRAINING, help="Epoch at which multistep divides by 10; repeat. Default: 1/2 and 3/4."
        ),
    ] = None,
    loss: Annotated[
        Literal["cross-entropy", "squared"], typer.Option(rich_help_panel=TRAINING, help="Of one example.")
    ] = "cross-entropy",
    seeds: Annotated[int, count("Networks of each DAG, with seeds 0, 1, 2, ..., as one program.", TRAINING)] = 1,
    checkpoint_every: Annotated[int, count("Epochs between checkpoints.", OUTPUT)] = 1,
    out: Annotated[Path | None, out_option("Folder of the run.", _OUT)] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=OUTPUT,
            help="Go on with the run in --out; its options are taken from there, but for those given now.",
        ),
    ] = False,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="Train nothing; evaluate OUT/checkpoints/NAME/best or last on the run's data.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Train networks on images, with curves, checkpoints and TensorBoard events; resumable at any moment."""
    from nngp_dag import training
    from nngp_dag.architecture import as_network
    from nngp_dag.graph import zoo
    from nngp_dag.training.rundir import run_folder
    from nngp_dag.training.tables import (
        evaluation_rows,
        evaluation_table,
        model_table,
        training_rows,
        training_table,
    )
    from nngp_dag.training.trainer import check_batch_size

    if evaluate is not None:
        once()
        beside = ("evaluate", "data_dir", "json", "quiet")
        if others := [name for name in context.params if name not in beside and _given(context, name)]:
            raise InputError(f"Expected only --data-dir beside --evaluate, got {', '.join(others)}; leave them out")
        found = training.evaluate(evaluate, data_dir=data_dir)
        show(evaluation_table(found))
        result(evaluation_rows(found))
        return
    exclusive(resume, overwrite)
    out = output(_OUT, out, again=resume or overwrite)
    options: dict[str, Any] = {name: value for name, value in context.params.items() if name not in _CONTROLS}
    if resume:
        options = _resumed(context, out, options)
    # Absolute, so that the run resumes from anywhere.
    stored = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in options.items()}
    if _given(context, "image_readout") and not options["conv"]:
        raise InputError("Expected --image-readout beside --conv, got it alone; leave it out or add --conv")
    names = options.pop("dag") or list(zoo.FIGURE3)
    if len(set(names)) < len(names):
        raise InputError(f"Expected every --dag once, got {', '.join(names)}")
    dags = {name: parse_dag(name) for name in names}
    seeds = options.pop("seeds")
    keys = ("data", "dataset", "subset", "eval_subset", "scale_inputs", "data_dir")
    source = {name: options.pop(name) for name in keys}
    milestones, every = options.pop("milestone"), options.pop("checkpoint_every")
    # Of a run that goes on, what it was begun with; then it is a text.
    options["order"] = OrderOption(options["order"])
    architecture = architecture_of(**{name: options.pop(name) for name in NETWORK_OPTIONS})
    recipe = training.Recipe(**options, milestones=tuple(milestones) if milestones else None)
    again = f"{program()} train --resume --out {shlex.quote(str(out))}"
    Resumable(out / "config.json", epochs_in(out, recipe.epochs * len(dags)), again)
    # As texts, where config.json has them.
    data, data_dir = (None if source[name] is None else Path(source[name]) for name in ("data", "data_dir"))
    load = choose_splits(
        data,
        source["dataset"],
        data_dir,
        subset=source["subset"],
        eval_subset=source["eval_subset"],
        scale_inputs=source["scale_inputs"],
    )
    run_folder(out).check_free(resume=resume, overwrite=overwrite)
    splits = load()
    say(splits.statement)
    check_batch_size(recipe.batch_size, splits)
    # Of a whole space of graphs, config.json holds the numbers.
    shape, batch_norm = splits.train.x.shape[1:], recipe.batch_norm
    networks = {name: as_network(dag, **architecture) for name, dag in dags.items()}
    # A run that goes on has printed them; whether it is of these networks is not known yet.
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
        )
    show(training_table(runs))
    files = [out / name for name in ("curves.csv", "curves.png", "config.json", "tensorboard", "checkpoints")]
    say(f"wrote {', '.join(map(str, files[:-1]))} and {files[-1]}")
    result({"data": splits.statement, "rows": training_rows(runs), "files": files})


def _resumed(context: Context, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the run in a folder, but for those that are given now."""
    from nngp_dag.training.rundir import run_folder

    stored = run_folder(out).read().get("options")
    if stored is None or not set(options) <= set(stored):
        raise InputError(f"Expected the run in {out} to be one of nngp-dag train, got another; resume it in Python")
    hints = get_type_hints(train)
    wrong = misfit(stored, {name: _shape(hints[name], stored[name]) for name in options}, "options")
    for name in options:
        choices = _choices(hints[name])
        if not wrong and choices and stored[name] not in (None, *choices):
            wrong = f"{shown(stored[name])} as {name}, which is one of {', '.join(choices)}"
    if wrong:
        raise CheckpointError(
            f"Expected {out / 'config.json'} to hold options of nngp-dag train, got {wrong}; mend it, or start anew "
            "with --overwrite"
        )

    return {name: value if _given(context, name) else stored[name] for name, value in options.items()}


def _shape(hint: Any, value: object) -> Any:
    """Returns the shape that the stored value of an option has."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return type(None)
    if get_origin(kinds[0]) is list:
        return [*get_args(kinds[0])]
    as_text = get_origin(kinds[0]) is Literal or issubclass(kinds[0], (Path, StrEnum))
    return str if as_text else kinds[0]


def _choices(hint: Any) -> list[str]:
    """Returns the values of an option that has a few; none for others."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if get_origin(kinds[0]) is Literal:
        return [str(choice) for choice in get_args(kinds[0])]
    return [str(choice) for choice in kinds[0]] if isinstance(kinds[0], EnumType) else []


def _given(context: Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
