"""Options by which several processes and devices work on one command."""

from typing import TYPE_CHECKING, Annotated

import typer

from nngp_dag.cli.options import COMPUTE
from nngp_dag.cli.screen import screen
from nngp_dag.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

DistributedOption = Annotated[
    bool,
    typer.Option(
        "--distributed",
        rich_help_panel=COMPUTE,
        help="Use all devices of all processes. All run the same command; SLURM, Open MPI and Kubernetes are "
        "detected. Elsewhere pass --coordinator, --processes and --process-id too, or none for one process.",
    ),
]
CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", rich_help_panel=COMPUTE, help="Address of process 0, which all processes can reach."
    ),
]
ProcessesOption = Annotated[int | None, typer.Option(rich_help_panel=COMPUTE, help="Number of processes.")]
ProcessIdOption = Annotated[int | None, typer.Option(rich_help_panel=COMPUTE, help="Number of this process, from 0.")]

NAMES = ("distributed", "coordinator", "processes", "process_id")
"""Names of these options, which do not affect results and are not stored."""


def joined(distributed: bool, coordinator: str | None, processes: int | None, process_id: int | None) -> "Mesh | None":
    """Returns the mesh of all devices, or None without --distributed; other processes than the first print nothing."""
    if not distributed:
        values = (coordinator, processes, process_id)
        if given := [name for name, value in zip(NAMES[1:], values, strict=True) if value is not None]:
            raise InputError(f"Expected --{given[0].replace('_', '-')} beside --distributed, got it alone; add that")
        return None
    from nngp_dag import distributed as runtime

    mesh = runtime.join(coordinator, processes, process_id)
    screen.silent = not runtime.is_first()
    return mesh
