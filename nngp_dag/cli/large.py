"""The commands solve and plan."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nngp_dag.cli.last_words import counted, same_command
from nngp_dag.cli.network import takes_network
from nngp_dag.cli.options import (
    COMPUTE,
    DATA,
    DataDirOption,
    DataOption,
    DatasetOption,
    JsonOption,
    OverwriteOption,
    Precision,
    PrecisionOption,
    QuietOption,
    ScaleOption,
    count,
    out_option,
    parse_dag,
)
from nngp_dag.cli.processes import CoordinatorOption, DistributedOption, ProcessesOption, ProcessIdOption, joined
from nngp_dag.cli.screen import progress, result, say, show
from nngp_dag.cli.source import choose_samples
from nngp_dag.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from nngp_dag.data import Samples
    from nngp_dag.large import Plan, Solution

_OUT = "nngp-dag-solve"
_NETWORK = "Network"


class MethodOption(StrEnum):
    """Values of --method."""

    AUTO = "auto"
    DENSE = "dense"
    LANDMARKS = "landmarks"
    ITERATIVE = "iterative"


class KindOption(StrEnum):
    """Values of --kind."""

    NTK = "ntk"
    NNGP = "nngp"


_Dag = Annotated[
    str,
    typer.Option(
        rich_help_panel=_NETWORK, help="Graph: a code such as 2_21_112, DAG#1 to DAG#3, or a NAS-Bench-201 cell."
    ),
]
_Method = Annotated[
    MethodOption, typer.Option(rich_help_panel=COMPUTE, help="Method; auto takes the first one that fits into memory.")
]
_Kind = Annotated[KindOption, typer.Option(rich_help_panel=COMPUTE, help="Kernel of the regression.")]
_Landmarks = Annotated[
    int | None,
    count("Number of landmarks. Default: 4096, or 512 for the preconditioner of iterations, or fewer.", COMPUTE),
]
_Budget = Annotated[
    str, typer.Option(rich_help_panel=COMPUTE, help="Largest memory of the whole process, such as '6 GiB'.")
]


@takes_network
def solve_command(
    dag: _Dag,
    ridge: Annotated[float, typer.Option(rich_help_panel=COMPUTE, help="Ridge, above 0.")],
    data: DataOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    subset: Annotated[int | None, count("Use the first N training examples. Default: all.", DATA)] = None,
    scale_inputs: ScaleOption = True,
    kind: _Kind = KindOption.NTK,
    method: _Method = MethodOption.AUTO,
    landmarks: _Landmarks = None,
    memory_budget: _Budget = "4 GiB",
    dtype: PrecisionOption = Precision.FLOAT32,
    seed: Annotated[int, typer.Option(rich_help_panel=COMPUTE, min=0, help="Seed of the random draws.")] = 0,
    tolerance: Annotated[
        float, typer.Option(rich_help_panel=COMPUTE, help="Largest relative residual of iterations.")
    ] = 1e-6,
    test_std: Annotated[
        int | None, count("Also the standard deviations of the first N test inputs, which take longer.", COMPUTE)
    ] = None,
    out: Annotated[
        Path | None, out_option("Folder for checkpoints, solution.npz and config.json.", _OUT, fresh=False)
    ] = None,
    overwrite: OverwriteOption = False,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Solve kernel regression on a data set, also where its kernel does not fit into memory; and test it.

    Classes become one-hot targets minus 1 / C. An interrupted command continues when it is given again.
    """
    from nngp_dag.graph import Conv
    from nngp_dag.kernels._gram import bytes_of
    from nngp_dag.large import solve

    mesh = joined(distributed, coordinator, processes, process_id)
    graph = parse_dag(dag)
    bytes_of(memory_budget)
    images = isinstance(architecture["layer"], Conv)
    load = choose_samples(data, dataset, data_dir, subset, usual=10**12, scale_inputs=scale_inputs, images=images)
    out = Path(_OUT) if out is None else out
    same_command(counted("rows"))
    samples = load()
    if samples.y is None:
        raise InputError(f"Expected {samples.name} to hold labels or targets `y` to fit, got `x` alone; add `y`")
    tested = _test_part(samples, data, dataset, data_dir, scale_inputs, images)
    if test_std is not None and tested is None:
        raise InputError(f"Expected {samples.name} to hold `x_test` and `y_test` for --test-std, got none; add them")
    with progress() as on_progress:
        solution = solve(
            graph,
            samples.x.astype(dtype.value),
            _targets(samples, samples.y),
            ridge,
            x_test=None if tested is None or test_std is None else tested[0][:test_std].astype(dtype.value),
            kind=kind.value,
            method=method.value,
            landmarks=landmarks,
            memory_budget=memory_budget,
            mesh=mesh,
            out=out,
            overwrite=overwrite,
            seed=seed,
            tolerance=tolerance,
            on_progress=on_progress,
            **architecture,
        )
    facts = {"dag": str(graph), **solution.to_frame().iloc[0].to_dict()}
    if (posterior := solution.posterior) is not None:
        facts |= {"std_rows": len(posterior.std), "mean_test_std": float(posterior.std.mean())}
    if tested is not None:
        facts |= _tested(samples, solution, *tested)
    show(_table("Kernel regression", facts))
    say(f"wrote {out / 'solution.npz'}")
    result({**facts, "files": [out / "solution.npz"]})


@takes_network
def plan_command(
    dag: _Dag,
    shape: Annotated[
        str,
        typer.Option(rich_help_panel=DATA, help="Shape of all inputs: 1000000x784, or 50000x32x32x3 with --conv."),
    ],
    outputs: Annotated[int, count("Number of outputs.", DATA)] = 10,
    test_rows: Annotated[int, typer.Option(rich_help_panel=DATA, min=0, help="Test inputs for --test-std.")] = 0,
    kind: _Kind = KindOption.NTK,
    method: _Method = MethodOption.AUTO,
    landmarks: _Landmarks = None,
    memory_budget: _Budget = "4 GiB",
    dtype: PrecisionOption = Precision.FLOAT32,
    calibrate: Annotated[
        bool, typer.Option(rich_help_panel=COMPUTE, help="Measure this machine for a second, to expect times.")
    ] = True,
    json: JsonOption = False,
    quiet: QuietOption = False,
    *,
    architecture: dict[str, Any],
) -> None:
    """Print what solve would do for so many rows: the method and its reason, memory, kernel entries, and time."""
    from nngp_dag.large import plan

    if not re.fullmatch(r"[1-9]\d{0,14}(x[1-9]\d{0,9})+", shape, re.ASCII):
        raise InputError(f"Expected --shape to be a shape such as 1000000x784, got {shape[:60]!r}")
    rows, *features = map(int, shape.split("x"))
    found = plan(
        parse_dag(dag),
        rows,
        features,
        outputs=outputs,
        test_rows=test_rows,
        kind=kind.value,
        method=method.value,
        landmarks=landmarks,
        memory_budget=memory_budget,
        dtype=dtype.value,
        calibrate=calibrate,
        **architecture,
    )
    show(*_plan_tables(found))
    frame = found.to_frame()
    rates = None if found.rates is None else vars(found.rates)
    result({"method": found.method, "reason": found.reason, "rates": rates, "methods": frame.to_dict("records")})


def _plan_tables(found: "Plan") -> list[Any]:
    from rich.table import Table

    from nngp_dag.forms import in_bytes, in_time

    table = Table(title=f"{found.rows:,} rows, {found.way}")
    for name in ("method", "memory", "kernel entries", "time", ""):
        table.add_column(name)
    for cost in found.costs.values():
        seconds = "" if found.rates is None else in_time(cost.seconds(found.rates, found.devices))
        said = cost.obstacle or ("chosen" if cost.method == found.method else "")
        table.add_row(cost.method, in_bytes(cost.memory), f"{cost.entries:.3g}", seconds, said)
    parts = ", ".join(f"{name} {in_bytes(size)}" for name, size in found.cost.parts.items() if size)
    text = f"{found.method}: {found.reason}; memory: {parts}"
    if found.landmarks:
        text += f"; {found.landmarks:,} landmarks out of {found.candidates:,} rows"
    return [table, text]


def _targets(samples: "Samples", y: "np.ndarray") -> "np.ndarray":
    from nngp_dag.data import one_hot

    return one_hot(y, len(samples.classes)) - 1 / len(samples.classes) if samples.classes else y


def _test_part(
    samples: "Samples", data: Path | None, dataset: str | None, data_dir: Path | None, scale_inputs: bool, images: bool
) -> "tuple[np.ndarray, np.ndarray] | None":
    """Returns test inputs and their labels or targets; None for a file without them."""
    from nngp_dag.data import load_dataset, normalize, scale_to_sphere

    x, y = samples.x_test, samples.y_test
    if data is None:
        part = load_dataset(dataset or "digits", split="test", data_dir=data_dir)
        x, y = normalize(part), part.labels
    if x is None or y is None:
        return None
    if scale_inputs:
        x = scale_to_sphere(x).reshape(x.shape)
    return x if images else x.reshape(len(x), -1), y


def _tested(samples: "Samples", solution: "Solution", x: "np.ndarray", y: "np.ndarray") -> dict[str, Any]:
    import numpy as np

    from nngp_dag.theory import classification_accuracy

    outputs = solution.predict(x.astype(solution.basis.dtype))
    found = {"test_rows": len(x), "test_rmse": float(np.sqrt(np.mean((outputs - _targets(samples, y)) ** 2)))}
    return found | ({"test_accuracy": classification_accuracy(outputs, y)} if samples.classes else {})


def _table(title: str, facts: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        if value is not None and value != "":
            table.add_row(name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
    return table
