"""The command list."""

from typing import Annotated, Literal

import typer

from nngp_dag.cli.options import JsonOption
from nngp_dag.cli.screen import result, show


def list_command(
    what: Annotated[
        Literal["activations", "datasets", "scores", "spaces", "dags"],
        typer.Argument(metavar="WHAT", help="Kind of names: activations, datasets, scores, spaces or dags."),
    ],
    json: JsonOption = False,
) -> None:
    """List the values that options accept, with a short description of each."""
    from rich.table import Table

    rows = _names(what)
    table = Table("name", "what it is", box=None, padding=(0, 2, 0, 0))
    for name, about in rows.items():
        table.add_row(name, about)
    show(table)
    result([{"name": name, "about": about} for name, about in rows.items()])


def _names(what: str) -> dict[str, str]:
    """Returns the names of a kind, with a short description of each."""
    if what == "activations":
        from nngp_dag.activations import ACTIVATIONS

        return {name: repr(activation) for name, activation in ACTIVATIONS.items()}
    if what == "datasets":
        from nngp_dag.data.datasets import DATASETS, split_names

        return {name: f"splits {', '.join(split_names(name))}" for name in DATASETS}
    if what == "scores":
        from nngp_dag.nas import SCORES

        return {
            name: f"{score.cost}, the {'higher' if score.higher_is_better else 'lower'} the better; {score.reference}"
            for name, score in SCORES.items()
        }
    if what == "spaces":
        from nngp_dag.nas import SPACES

        return {name: f"operations {', '.join(space.operations)}" for name, space in SPACES.items()}
    from nngp_dag.graph import zoo

    return {name: f"code {code}" for name, code in zoo.FIGURE3.items()}
