"""Several networks of one call, with their names."""

from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any

from nngp_dag.architecture.network import Network
from nngp_dag.architecture.reading import Architecture, NetworkSource, as_network
from nngp_dag.errors import InputError, shown
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.reading import as_dag

Given = Network | Dag | str | NetworkSource
"""The types that an entry point accepts as a network."""


def named(networks: Given | Iterable[Given] | Mapping[str, Given]) -> list[tuple[str, str, Given]]:
    """Returns (name, argument, network) for each of one or several networks.

    Args:
      networks: One network, several, or a mapping from names to networks.

    Returns:
      Triples of a name, the argument as messages call it, and the network as it was given. Networks without a name are
      named by their texts, and models by their names.

    Raises:
      GraphError: One of them is neither a network nor a graph nor a text.
      InputError: A name is not a text.
    """
    given: list[tuple[Any, str, Any]] = [(None, "networks", networks)]
    if isinstance(networks, Mapping):
        given = [(name, f"networks[{name!r}]", one) for name, one in networks.items()]
    elif isinstance(networks, Iterable) and not _is_one(networks):
        given = [(None, f"networks[{i}]", one) for i, one in enumerate(networks)]
    for name, argument, one in given:
        if not isinstance(one, (Network, str, NetworkSource)):
            as_dag(one, argument, "a `Network`, a `Dag`")
        if not isinstance(name, (str, NoneType)):
            raise InputError(f"Expected names of `networks` to be text, got {shown(name)}; pass str(name)")
    return [(_text(one) if name is None else name, argument, one) for name, argument, one in given]


def _text(one: Given) -> str:
    return one.name if isinstance(one, NetworkSource) else str(one).strip()


def _is_one(networks: Any) -> bool:
    """Whether an iterable is a single value: a text, or a networkx graph or an array, which are refused later."""
    numbers = getattr(getattr(networks, "dtype", None), "kind", "O") in "biufc"
    return isinstance(networks, str) or hasattr(networks, "nodes") or numbers


def named_networks(
    networks: Given | Iterable[Given] | Mapping[str, Given], architecture: Architecture, caller: Callable[..., Any]
) -> dict[str, Network]:
    """Returns networks by name.

    Args:
      networks: One network, several, or a mapping from names to networks; see `named`.
      architecture: Options of the architecture, see `as_network`.
      caller: The function that was called with them, see `as_network`.

    Raises:
      GraphError: One of them is no network, see `named` and `as_network`.
      InputError: An option is invalid, there is no network, or two networks have the same name.
    """
    given = named(networks)
    found = {name: as_network(one, argument, caller, **architecture) for name, argument, one in given}
    if not found:
        raise InputError("Expected at least one network, got none")
    if len(found) < len(given):
        names = ", ".join(name for name, _, _ in given)
        raise InputError(f"Expected networks whose texts differ, got {names}; pass {{name: network}}")
    return found
