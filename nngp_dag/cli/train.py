"""The command train."""

from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from nngp_dag.cli.options import (
    ActivationOption,
    AggregationOption,
    DataDirOption,
    OrderFlag,
    OrderOption,
    OverwriteOption,
    SplitsOption,
    parse_dag,
)
from nngp_dag.cli.screen import console, progress, say
from nngp_dag.errors import CheckpointError, InputError
from nngp_dag.storage import misfit

if TYPE_CHECKING:
    from typer import Context
else:
    # What typer 0.29 passes is of the base class of what it documents.
    Context = typer.Context.__base__

_MOST_TABLES = 4
# What says how to run, not what is run.
_CONTROLS = ("resume", "evaluate", "out", "overwrite")


def train(
    context: Context,
    dag: Annotated[
        list[str] | None,
        typer.Option(help="A DAG; repeat for several. Default: the three of Chen et al. 2022, Figure 3."),
    ] = None,
    dataset: SplitsOption = "digits",
    data_dir: DataDirOption = None,
    subset: Annotated[int | None, typer.Option(help="Train on the first N of the training part.")] = None,
    width: Annotated[int, typer.Option(help="Units, or channels, of every node.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 128,
    learning_rate: Annotated[
        float, typer.Option("--lr", "--learning-rate", help="Step size on the mean loss of a batch.")
    ] = 1e-3,
    momentum: Annotated[float, typer.Option(help="Factor of the momentum, from 0 to below 1.")] = 0.0,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov's momentum.")] = False,
    weight_decay: Annotated[float, typer.Option(help="Times every parameter, added to its gradient.")] = 0.0,
    epochs: Annotated[int, typer.Option(help="Passes over the training part.")] = 20,
    warmup: Annotated[int, typer.Option(help="Epochs over which the learning rate grows linearly.")] = 0,
    schedule: Annotated[str, typer.Option(help="Of the learning rate: constant, multistep or cosine.")] = "constant",
    milestone: Annotated[
        list[int] | None, typer.Option(help="Epoch at which multistep divides by 10; repeat. Default: 1/2 and 3/4.")
    ] = None,
    loss: Annotated[str, typer.Option(help="cross-entropy or squared.")] = "cross-entropy",
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="Batch normalisation after weights.")] = False,
    parameterisation: Annotated[str, typer.Option(help="standard or ntk.")] = "standard",
    activation: ActivationOption = "relu",
    order: OrderFlag = OrderOption.LINEAR_ACT,
    aggregation: AggregationOption = "sum",
    conv: Annotated[bool, typer.Option("--conv", help="Weighted edges and the stem are 3x3 convolutions.")] = False,
    image_readout: Annotated[
        str, typer.Option(help="With --conv, before the readout: global-average or flatten.")
    ] = "global-average",
    scale_inputs: Annotated[bool, typer.Option("--scale-inputs", help="Scale every input to |x|² = d.")] = False,
    seeds: Annotated[int, typer.Option(help="Networks of each DAG, with seeds 0, 1, 2, ..., as one program.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(help="Epochs between checkpoints.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; its options are taken from there.")
    ] = False,
    evaluate: Annotated[
        Path | None, typer.Option(help="Train nothing; evaluate OUT/checkpoints/NAME/best or last on the run's data.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("nngp-dag-train"),
    overwrite: OverwriteOption = False,
) -> None:
    """Train networks on images, with curves, checkpoints and TensorBoard events; resumable at any moment."""
    from nngp_dag import training
    from nngp_dag.data import load_splits
    from nngp_dag.graph import zoo
    from nngp_dag.training.rundir import check_free
    from nngp_dag.training.tables import evaluation_table, model_table, training_table

    if evaluate is not None:
        if others := [
            name for name in context.params if name not in ("evaluate", "data_dir") and _given(context, name)
        ]:
            raise InputError(f"Expected only --data-dir beside --evaluate, got {', '.join(others)}; leave them out")
        console().print(evaluation_table(training.evaluate(evaluate, data_dir=data_dir)))
        return
    if resume and overwrite:
        raise InputError("Expected --resume or --overwrite, got both; leave one of them out")
    options = {name: value for name, value in context.params.items() if name not in _CONTROLS}
    if resume:
        options = _resumed(context, out, options)
    stored = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    if _given(context, "image_readout") and not options["conv"]:
        raise InputError("Expected --image-readout beside --conv, got it alone; leave it out or add --conv")
    names = options.pop("dag") or list(zoo.FIGURE3)
    if len(set(names)) < len(names):
        raise InputError(f"Expected every --dag once, got {', '.join(names)}")
    dags = {name: parse_dag(name) for name in names}
    networks = options.pop("seeds")
    if networks < 1:
        raise InputError(f"Expected --seeds to be at least 1, got {networks}")
    source = {name: options.pop(name) for name in ("dataset", "subset", "scale_inputs", "data_dir")}
    milestones, every = options.pop("milestone"), options.pop("checkpoint_every")
    recipe = training.Recipe(
        **options
        | {
            "milestones": tuple(milestones) if milestones else None,
            "order": OrderOption(options["order"]).value,
            "conv": 3 if options["conv"] else None,
        }
    )
    check_free(out, resume=resume, overwrite=overwrite)
    data = load_splits(
        source["dataset"],
        subset=source["subset"],
        data_dir=source["data_dir"],
        scale_inputs=source["scale_inputs"],
    )
    say(data.statement)
    # Of a whole space of graphs, config.json holds the numbers.
    for name, graph in list(dags.items())[:_MOST_TABLES]:
        console().print(model_table(name, recipe.summary(graph, data.train.x.shape[1:], data.num_classes)))
    with progress() as on_progress:
        runs = training.train(
            dags,
            data,
            recipe,
            seeds=networks,
            out=out,
            resume=resume,
            overwrite=overwrite,
            checkpoint_every=every,
            config={"options": stored},
            on_progress=on_progress,
        )
    console().print(training_table(runs))
    say(f"wrote {out}/curves.csv, {out}/curves.png, {out}/config.json, {out}/tensorboard and {out}/checkpoints")


def _resumed(context: Context, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the run in a folder, but for those that are given now."""
    from nngp_dag.training.rundir import read_config

    stored = read_config(out).get("options")
    if stored is None or not set(options) <= set(stored):
        raise InputError(f"Expected the run in {out} to be one of nngp-dag train, got another; resume it in Python")
    hints = get_type_hints(train)
    if wrong := misfit(stored, {name: _shape(hints[name], stored[name]) for name in options}, "options"):
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
    return str if issubclass(kinds[0], (Path, StrEnum)) else kinds[0]


def _given(context: Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
