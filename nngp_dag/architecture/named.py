"""Several networks of one call, and what they are called."""

from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any

from nngp_dag.architecture.network import Network
from nngp_dag.architecture.reading import Architecture, as_network
from nngp_dag.errors import InputError, shown
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.reading import as_dag

Given = Network | Dag | str
"""What an entry point takes for a network."""


def named(networks: Given | Iterable[Given] | Mapping[str, Given]) -> list[tuple[str, str, Given]]:
    """Returns (name, argument, network) of one network, several, or several by name; without names by their texts.

    Raises:
      GraphError: One of them is neither a network nor a graph nor a text.
      InputError: A name is no text.
    """
    given: list[tuple[Any, str, Any]] = [(None, "networks", networks)]
    if isinstance(networks, Mapping):
        given = [(name, f"networks[{name!r}]", one) for name, one in networks.items()]
    elif isinstance(networks, Iterable) and not _is_one(networks):
        given = [(None, f"networks[{i}]", one) for i, one in enumerate(networks)]
    for name, argument, one in given:
        if not isinstance(one, (Network, str)):
            as_dag(one, argument, "a `Network`, a `Dag`")
        if not isinstance(name, (str, NoneType)):
            raise InputError(f"Expected names of `networks` to be text, got {shown(name)}; pass str(name)")
    return [(str(one).strip() if name is None else name, argument, one) for name, argument, one in given]


def _is_one(networks: Any) -> bool:
    """Whether what can be iterated over is a text, or a graph of networkx or an array, which are refused."""
    numbers = getattr(getattr(networks, "dtype", None), "kind", "O") in "biufc"
    return isinstance(networks, str) or hasattr(networks, "nodes") or numbers


def named_networks(
    networks: Given | Iterable[Given] | Mapping[str, Given], architecture: Architecture, caller: Callable[..., Any]
) -> dict[str, Network]:
    """Returns networks by name, see `named`; `architecture` and `caller` as in `as_network`.

    Raises:
      GraphError, InputError: As `named` and `as_network`; or there is none, or two have one name.
    """
    given = named(networks)
    found = {name: as_network(one, argument, caller, **architecture) for name, argument, one in given}
    if not found:
        raise InputError("Expected at least one network, got none")
    if len(found) < len(given):
        names = ", ".join(name for name, _, _ in given)
        raise InputError(f"Expected networks that their texts tell apart, got {names}; pass {{name: network}}")
    return found
