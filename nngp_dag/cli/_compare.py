"""The command compare."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nngp_dag.cli.last_words import Resumable
from nngp_dag.cli.model import ModelsOption, check_no_architecture, scaled, traced_model
from nngp_dag.cli.network import takes_network
from nngp_dag.cli.options import (
    DATA,
    TRAINING,
    DagsOption,
    DataDirOption,
    DataOption,
    DatasetOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    ResumeOption,
    ScaleOption,
    count,
    out_option,
    output,
    parse_dag,
    parse_rate,
)
from nngp_dag.cli.resumed import Context
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_samples
from nngp_dag.errors import InputError
from nngp_dag.storage import check_exclusive

_OUT = "nngp-dag-compare"
_SUBSET = 128


@takes_network
def compare(
    context: Context,
    dag: DagsOption = None,
    model: ModelsOption = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    subset: Annotated[int | None, count("Use the first N training examples.", DATA, show_default=f"{_SUBSET}")] = None,
    scale_inputs: ScaleOption = True,
    seeds: Annotated[int, count("Number of networks trained per DAG, with seeds 0, 1, 2, ...", TRAINING)] = 5,
    steps: Annotated[int, count("Number of steps of full-batch gradient descent.", TRAINING)] = 100,
    learning_rate: Annotated[
        str,
        typer.Option(
            "--learning-rate",
            "--lr",
            rich_help_panel=TRAINING,
            help="Step size of gradient descent. auto: 1 / λmax(NTK) for each DAG; shared: the smallest of these for "
            "all DAGs; or a number. The loss is summed over examples, ½‖y − f‖². (The step size of train refers to the "
            "mean loss of a batch.)",
        ),
    ] = "auto",
    predict_width: Annotated[
        bool | None,
        typer.Option(
            "--predict-width/--no-predict-width",
            rich_help_panel=TRAINING,
            show_default="for widths of at least 256",
            help="Predict the mean loss at the network's width from smaller networks, which are trained for that.",
        ),
    ] = None,
    out: Annotated[Path | None, out_option("Folder for compare.json, curves.csv, compare.png.", _OUT)] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Train finite networks, or your own models, and compare their loss with the theory.

    The theory is the bounds and the exact expected loss. A model is drawn and trained itself, at its own width.
    """
    from nngp_dag import report
    from nngp_dag.graph import zoo
    from nngp_dag.report.compare_files import finished_in
    from nngp_dag.report.tables import compare_table

    check_exclusive(resume, overwrite)
    names, models = list(dag or ([] if model else zoo.FIGURE3)), list(model or ())
    for option, given in (("--dag", names), ("--model", models)):
        if len(set(given)) < len(given):
            raise InputError(f"Expected every {option} once, got {', '.join(given)}")
    if models and not names:
        check_no_architecture(context)
    dags = {text: parse_dag(text) for text in names}
    eta = parse_rate("--learning-rate", learning_rate)
    scale_inputs = scaled(context) if models else scale_inputs
    load = choose_samples(
        data, dataset, data_dir, subset, usual=_SUBSET, scale_inputs=scale_inputs, images=bool(models)
    )
    out = output(_OUT, out, again=resume or overwrite)
    Resumable(out / "dags" / "settings.json", lambda: f"{finished_in(out)} of {len(names) + len(models)} networks")
    samples = load()
    traced = {text: traced_model(context, text, samples.x) for text in models}
    config = {
        "dataset": samples.name,
        "split": "train",
        "subset": len(samples.x),
        "features": samples.x[0].size,
        "classes": len(samples.classes) or None,
        "scale_inputs": scale_inputs,
    }
    options: dict[str, Any] = architecture if dags else {}
    with progress() as on_progress:
        results = report.compare(
            {**dags, **traced},
            samples.x,
            samples.targets,
            seeds=seeds,
            steps=steps,
            learning_rate=eta,
            predict_width=predict_width,
            out=out,
            resume=resume,
            overwrite=overwrite,
            config=config,
            on_progress=on_progress,
            **options,
        )
    show(compare_table(results))
    files = [out / name for name in ("compare.json", "curves.csv", "compare.png")]
    say(f"wrote {', '.join(map(str, files[:2]))} and {files[2]}")
    result({"config": config, "rows": [row.as_row() for row in results], "files": files})
