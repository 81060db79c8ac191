"""The options of the network, declared once for all commands that take them."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from nngp_dag.cli.options import NETWORK, OrderOption, count

_Aggregation = Literal["sum", "scaled-sum", "mean"]
_ImageReadout = Literal["flatten", "global-average"]
_Parameterization = Literal["ntk", "standard"]


def _option(help: str) -> Any:  # noqa: A002
    return typer.Option(rich_help_panel=NETWORK, help=help)


def architecture_of(
    activation: Annotated[
        str, _option("Activation: relu, erf, gelu, ... `nngp-dag list activations` shows all.")
    ] = "relu",
    order: Annotated[
        OrderOption, _option("Order on weighted edges. linear-act: act(W x); act-linear: W act(x).")
    ] = OrderOption.LINEAR_ACT,
    w_std: Annotated[
        float | None, _option("Standard deviation of the weights times √fan-in. Default: √2 (He initialization).")
    ] = None,
    b_std: Annotated[float | None, _option("Standard deviation of the biases. Default: no biases.")] = None,
    aggregation: Annotated[
        _Aggregation, _option("Aggregation of the inputs of a node. scaled-sum: the sum times 1/√in-degree.")
    ] = "sum",
    conv: Annotated[
        int | None,
        count(
            "Side of the filters, such as 3: weighted edges and the stem are convolutions. Default: dense layers.",
            NETWORK,
        ),
    ] = None,
    image_readout: Annotated[
        _ImageReadout, _option("Readout of a network with --conv, after the last node.")
    ] = "flatten",
    parameterization: Annotated[
        _Parameterization,
        _option("Scaling of weights and step sizes with the width. The NTK of standard grows with --width."),
    ] = "ntk",
    width: Annotated[
        int,
        count(
            "Number of units, or channels, of every node of a finite network. Exact kernels do not depend on it, "
            "except the NTK of --parameterization standard.",
            NETWORK,
        ),
    ] = 1024,
) -> dict[str, Any]:
    """Returns the architecture that the options describe, as keywords of the library."""
    from nngp_dag.activations import get_activation
    from nngp_dag.graph import Conv, Dense

    get_activation(activation)
    described: dict[str, Any] = {"activation": activation, "order": OrderOption(order).value, "b_std": b_std}
    described |= {} if w_std is None else {"w_std": w_std}
    return {
        "layer": Dense(**described) if conv is None else Conv(filter_shape=(conv, conv), **described),
        "aggregation": aggregation,
        "image_readout": image_readout,
        "parameterization": parameterization,
        "width": width,
    }


NETWORK_OPTIONS = tuple(inspect.signature(architecture_of).parameters)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    annotated = {name: hint for name, hint in function.__annotations__.items() if not isinstance(hint, str)}
    return {name: hint for name, hint in annotated.items() if name != "return"}


def takes_network(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the last parameter of a command, `architecture`, by the options of the network."""
    own = [value for name, value in inspect.signature(command).parameters.items() if name != "architecture"]
    parameters = [*own, *inspect.signature(architecture_of).parameters.values()]

    def wrapped(**values: Any) -> None:
        architecture = architecture_of(**{name: values.pop(name) for name in NETWORK_OPTIONS})
        command(**values, architecture=architecture)

    hints = {name: hint for f in (command, architecture_of) for name, hint in _hints(f).items()}
    wrapped.__annotations__ = {parameter.name: hints[parameter.name] for parameter in parameters}
    wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in parameters]
    )
    wrapped.__name__, wrapped.__doc__, wrapped.__module__ = command.__name__, command.__doc__, command.__module__
    return wrapped
