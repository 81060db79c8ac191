"""Networks read from an argument and options of the architecture."""

import abc
import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypedDict, Unpack

from nngp_dag.architecture.network import OF_LAYER, Network
from nngp_dag.errors import InputError, InputWarning, ModelError, check_known, shown, warn
from nngp_dag.graph.operations import Conv, Dense, Op
from nngp_dag.graph.reading import as_dag


class Architecture(TypedDict, total=False):
    """The options of a network beside its graph: fields of its layer (the first four), and of `Network`."""

    activation: Hashable
    order: str
    w_std: float
    b_std: float | None
    layer: Dense | None
    aggregation: str
    stem: Dense | None
    readout: bool | Dense
    image_readout: str
    parameterization: str
    width: int


class NetworkSource(abc.ABC):
    """A model that may be a `Network`, such as a traced one; functions of networks take it where it is."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name of the model in tables and messages."""

    @property
    @abc.abstractmethod
    def network(self) -> Network | None:
        """The network with the model's kernels, or None."""

    @property
    @abc.abstractmethod
    def reason(self) -> str:
        """The reason why the model is no network; empty if it is one."""


def as_network(
    value: object,
    name: str = "network",
    caller: Callable[..., Any] | None = None,
    /,
    **architecture: Unpack[Architecture],
) -> Network:
    """Returns the network, with a stem, that an argument and options of the architecture stand for.

    Some edges may have convolutions of their own while no `layer` is given. The stem and plain weighted edges are then
    dense and act on every pixel by itself; an `InputWarning` says so.

    Args:
      value: A `Network`, a `Dag`, a text that `Dag.parse` reads, or a model that is a network, such as a traced one.
      name: The name of the argument in messages.
      caller: The function that was called; a misspelled option may mean one of its own parameters.
      **architecture: Fields of `Network`, or of its layer (`activation`, `order`, `w_std`, `b_std`).

    Raises:
      GraphError: `value` is no graph, see `as_dag`, or `Network` refuses it.
      InputError: `Network` refuses an option, both `layer` and an option that describes it are given, or `value` is a
        network without stem.
      ModelError: `value` is a model that is no network; the message says why.

    Examples:
      >>> network = as_network("2_12", activation="erf", aggregation="mean")
      >>> network.layer.activation, as_network(network, b_std=0.1).layer.activation
      ('erf', 'erf')
    """
    network = network_of(value, name, architecture, caller)
    if not network.has_stem:
        raise InputError(f"Expected `{name}` to have a stem, got one without; leave `has_stem` to `DagLayer`")
    return network


def network_of(
    value: object,
    name: str,
    architecture: Mapping[str, Any],
    caller: Callable[..., Any] | None = None,
    has_stem: bool | None = None,
) -> Network:
    """Reads a network as `as_network` does, but also accepts one without a stem.

    Args:
      value: A `Network`, a `Dag`, or a text that `Dag.parse` reads.
      name: The name of the argument in messages.
      architecture: Fields of `Network`, or of its layer.
      caller: The function that was called.
      has_stem: Whether the network has a stem; None leaves that to `value`.
    """
    check_known(architecture, Architecture.__annotations__, "options of the network", caller)
    options = dict(architecture)
    described = {option: options.pop(option) for option in OF_LAYER if option in options}
    layer = options.pop("layer", None)
    if layer is not None and described:
        raise InputError(
            f"Expected either `layer` or `activation`, `order`, `w_std` and `b_std`, got both; put them into "
            f"{shown(layer)}"
        )
    if has_stem is not None:
        options["has_stem"] = has_stem
    if isinstance(value, NetworkSource):
        value = _network_of_source(value, name)
    if isinstance(value, Network):
        if described:
            layer = dataclasses.replace(value.layer, **described)
        if layer is not None:
            options["layer"] = layer
        return dataclasses.replace(value, **options) if options else value
    dag = as_dag(value, name, "a `Network`, a `Dag`")
    network = Network(dag, Dense(**described) if layer is None else layer, **options)
    if layer is None:
        _warn_where_dense_beside_convolutions(network, stem_is_given=network.stem is not None)
    return network


def _network_of_source(value: NetworkSource, name: str) -> Network:
    if value.network is None:
        raise ModelError(
            f"Expected `{name}` to be a network of dense layers on a graph, got the model {value.name}, which is none: "
            f"{value.reason}; its kernels, `gram` and `compare`, and functions of its kernels are there all the same"
        )
    return value.network


def _warn_where_dense_beside_convolutions(network: Network, *, stem_is_given: bool) -> None:
    if not any(isinstance(edge.op, Conv) for edge in network.dag.live_edges):
        return
    dense = ["the stem"] if network.has_stem and not stem_is_given else []
    plain = [f"{edge.source}->{edge.target}" for edge in network.dag.live_edges if edge.op is Op.WEIGHTED]
    if plain:
        dense.append(f"the plain weighted edges {', '.join(plain[:3])}{', ...' * (len(plain) > 3)}")
    if dense:
        warn(
            f"Expected `layer` for a graph whose edges have convolutions of their own, got none: {' and '.join(dense)} "
            "will be dense and act on every pixel by itself; pass a layer, for example "
            "layer=nngp_dag.Conv(filter_shape=(3, 3)) for convolutions, or layer=nngp_dag.Dense() if dense is meant",
            InputWarning,
        )
