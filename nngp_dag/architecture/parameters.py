"""The numbers of a network by name: read, replaced, and kept apart from its structure where JAX traces them.

Names follow the fields of `Network`: "layer", "stem", "readout", and "edges" by the ends of each live edge. The layer
determines the stem and the readout, so its numbers are theirs, too, unless they have numbers of their own.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nngp_dag.architecture.network import Network, readout_of, stem_of
from nngp_dag.errors import InputError, check_known, shown
from nngp_dag.graph import Dag, Dense, Edge, Op, Scale
from nngp_dag.graph.operations import as_number

Numbers = dict[str, Any]
"""Numbers of an operation by name; those of its activation stand in a dictionary of their own."""


class Resolved(NamedTuple):
    """All numbers of a network, after those that were given have replaced its own.

    Attributes:
      stem: Numbers of the stem.
      readout: Numbers of the readout.
      edges: Numbers of every live edge: `weight` or `factor`, and those of its operation.
    """

    stem: Numbers
    readout: Numbers
    edges: tuple[Numbers, ...]


def parameters_of(network: Network) -> dict[str, Any]:
    """Returns the numbers of a network by name, see `Network.parameters`."""
    own = {"stem": network.stem, "readout": network.readout}
    return {
        "layer": _numbers(network.layer),
        **{name: _numbers(op) for name, op in own.items() if isinstance(op, Dense)},
        "edges": {name: _own_numbers(edge) for name, edge in _named_edges(network)},
    }


def leaves(parameters: Any) -> Iterator[Any]:
    """Yields the numbers of nested dictionaries and sequences."""
    values = list(parameters.values()) if isinstance(parameters, Mapping) else parameters
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from leaves(value)
    else:
        yield parameters


def as_numbers(name: str, given: Any, is_traced: Callable[[Any], bool] = lambda value: False) -> Any:
    """Returns nested dictionaries and sequences with numbers of Python, but for those that JAX traces.

    Raises:
      InputError: A value is not one finite real number.
    """
    if isinstance(given, Mapping):
        return {key: as_numbers(f"{name}[{key!r}]", value, is_traced) for key, value in given.items()}
    if isinstance(given, (list, tuple)):
        return tuple(as_numbers(f"{name}[{i}]", value, is_traced) for i, value in enumerate(given))
    if not is_traced(given):
        return float(as_number(name, given))
    if given.shape or given.dtype.kind in "bc":
        raise InputError(
            f"Expected `{name}` to be one real number, got {given.dtype} of shape {given.shape}; use `jax.vmap` for "
            "several"
        )
    return given


def resolved(network: Network, parameters: Mapping[str, Any]) -> Resolved:
    """Returns all numbers of a network, with the given ones in place of its own.

    Raises:
      InputError: A name is unknown.
    """
    names = dict(_named_edges(network))
    known = ["layer", *(["stem"] if network.has_stem else []), *(["readout"] if network.readout else []), "edges"]
    _check_dictionary("parameters", parameters)
    check_known(parameters, known, "parameters of the network")
    of_edges = parameters.get("edges", {})
    _check_dictionary("parameters['edges']", of_edges)
    check_known(of_edges, names, "edges of the network")
    layer = _replaced("layer", _numbers(network.layer), parameters)
    stem = _derived("stem", network.stem_op, network.stem is None, layer, parameters) if network.has_stem else {}
    readout = _derived("readout", network.readout_op, network.readout is True, layer, parameters)
    edges = []
    for name, edge in names.items():
        numbers = _replaced(name, _own_numbers(edge), of_edges, "parameters['edges']")
        edges.append(layer | numbers if edge.op is Op.WEIGHTED else numbers)
    return Resolved(stem, readout, tuple(edges))


def with_parameters(network: Network, parameters: Mapping[str, Any]) -> Network:
    """Returns the network with other numbers, see `Network.with_parameters`."""
    parameters = as_numbers("parameters", parameters)
    _check_dictionary("parameters", parameters)
    numbers = resolved(network, parameters)
    layer = _with(network.layer, _replaced("layer", _numbers(network.layer), parameters))
    stem, readout = network.stem, network.readout
    if network.has_stem and (stem is not None or "stem" in parameters):
        stem = _with(network.stem_op, numbers.stem)
    if isinstance(readout, Dense) or "readout" in parameters:
        readout = _with(network.readout_op, numbers.readout)
    # A stem or readout that the layer determines anyway is not stored.
    stem = None if network.stem is None and stem == stem_of(layer) else stem
    readout = True if network.readout is True and readout == readout_of(layer) else readout
    dag = _with_edges(network, numbers.edges) if "edges" in parameters else network.dag
    return dataclasses.replace(network, dag=dag, layer=layer, stem=stem, readout=readout)


class Labeled(NamedTuple):
    """A network in which operations differ wherever their numbers may.

    Attributes:
      network: The network; only its structure has a meaning.
      order: For each of its live edges, the position of that edge among those of the original network.
    """

    network: Network
    order: tuple[int, ...]


def with_labels(network: Network, parameters: Mapping[str, Any]) -> Labeled:
    """Returns the network with different operations on edges that have numbers of their own.

    Kernels of fields with equal operations are computed once. Operations with numbers that JAX traces cannot be
    compared, so each of them gets a label: a value of `w_std` that no other operation has. An operation of an edge's
    own that equals the layer gets one, too, because the numbers of the layer may change without it.
    """
    of_edges = parameters.get("edges", {})
    used = {op.w_std for op in network.weighted_operations}
    free = (float(number) for number in itertools.count(1) if number not in used)
    edges = []
    for name, edge in _named_edges(network):
        own = bool(set(of_edges.get(name, ())) - {"weight"})
        if isinstance(edge.op, Dense) and (own or edge.op == network.layer):
            edge = dataclasses.replace(edge, op=dataclasses.replace(edge.op, w_std=next(free)))
        edges.append(edge)
    dag = dataclasses.replace(network.dag, edges=tuple(edges))
    # A `Dag` sorts its edges, and among edges with the same ends the label may change the order.
    order = sorted(range(len(edges)), key=edges.__getitem__)
    return Labeled(dataclasses.replace(network, dag=dag), tuple(order))


def _with_edges(network: Network, numbers: Iterable[Numbers]) -> Dag:
    """Returns the graph whose edges have other numbers; nodes are added before the targets of weighted operations."""
    old, inputs = network.dag, network.dag.num_inputs
    into: list[list[tuple[Edge, Numbers]]] = [[] for _ in range(old.num_nodes)]
    for edge, of_edge in zip(old.live_edges, numbers, strict=True):
        into[edge.target].append((edge, of_edge))
    new, count, edges = list(range(inputs)), inputs, []
    for target in range(inputs, old.num_nodes):
        split = []
        for edge, of_edge in into[target]:
            op = _with(edge.op, of_edge) if isinstance(edge.op, Dense) else edge.op
            weight = of_edge.get("weight", 1)
            if "factor" in of_edge:
                op, weight = Scale(of_edge["factor"]), 1
            elif weight != 1 and op is Op.SKIP:
                op, weight = Scale(weight), 1
            if weight == 1:
                split.append((new[edge.source], op))
            else:
                edges.append(Edge(new[edge.source], count, op))
                split.append((count, Scale(weight)))
                count += 1
        new.append(count)
        edges += [Edge(source, count, op) for source, op in split]
        count += 1
    return Dag(count, tuple(edges), num_inputs=inputs, outputs=tuple(new[output] for output in old.outputs))


def _named_edges(network: Network) -> list[tuple[str, Edge]]:
    """Returns every live edge with its name: its ends, and its operation where several edges have the same ends."""
    edges = network.dag.live_edges
    ends = Counter((edge.source, edge.target) for edge in edges)
    texts = Counter(map(str, edges))
    found: Counter[str] = Counter()
    named = []
    for edge in edges:
        name = f"{edge.source}->{edge.target}" if ends[edge.source, edge.target] == 1 else str(edge)
        if texts[str(edge)] > 1:
            found[name] += 1
            name = f"{name}#{found[name]}"
        named.append((name, edge))
    return named


def _numbers(op: Dense) -> Numbers:
    from nngp_dag.activations import get_activation  # imported late, because it loads JAX

    numbers: Numbers = {"w_std": op.w_std} | ({} if op.b_std is None else {"b_std": op.b_std})
    of_activation = {} if op.activation is None else get_activation(op.activation).numbers  # type: ignore[arg-type]
    return numbers | ({"activation": of_activation} if of_activation else {})


def _own_numbers(edge: Edge) -> Numbers:
    """Returns the numbers that belong to an edge alone."""
    if isinstance(edge.op, Scale):
        return {"factor": float(edge.op.factor)}
    return {"weight": 1.0} | (_numbers(edge.op) if isinstance(edge.op, Dense) else {})


def _check_dictionary(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InputError(
            f"Expected `{name}` to be a dictionary of numbers by name, got {shown(value)}; "
            "`Network.parameters` shows its form"
        )


def _replaced(name: str, numbers: Numbers, parameters: Mapping[str, Any], where: str = "parameters") -> Numbers:
    """Returns numbers of an operation, with those that `parameters[name]` holds in place of its own."""
    given, path = parameters.get(name, {}), f"{where}[{name!r}]"
    _check_dictionary(path, given)
    check_known(given, numbers, f"numbers of '{name}'")
    if "activation" in given:
        own, of_activation = numbers["activation"], given["activation"]
        _check_dictionary(f"{path}['activation']", of_activation)
        check_known(of_activation, own, f"numbers of the activation of '{name}'")
        for key, value in of_activation.items():
            _check_form(f"{path}['activation'][{key!r}]", own[key], value)
        given = {**given, "activation": own | dict(of_activation)}
    for key in given.keys() - {"activation"}:
        _check_form(f"{path}[{key!r}]", numbers[key], given[key])
    # The constructor checks the ranges of numbers that are known.
    Dense(**{key: given[key] for key in ("w_std", "b_std") if isinstance(given.get(key), (int, float))})
    return numbers | dict(given)


def _check_form(name: str, own: Any, value: Any) -> None:
    """Checks that a value is one number, or a sequence of as many numbers as the network has there."""
    expected = f"{len(own)} numbers" if isinstance(own, tuple) else "one number"
    found = f"{len(value)} numbers" if isinstance(value, (list, tuple)) else "one number"
    if expected != found or isinstance(value, Mapping):
        raise InputError(f"Expected `{name}` to be {expected}, got {shown(value)}")


def _derived(name: str, op: Dense, from_layer: bool, layer: Numbers, parameters: Mapping[str, Any]) -> Numbers:
    """Returns the numbers of the stem or the readout, which are the layer's if it determines that operation."""
    numbers = _numbers(op)
    if from_layer:
        numbers = {key: layer[key] for key in numbers}
    return _replaced(name, numbers, parameters)


def _with(op: Any, numbers: Numbers) -> Any:
    """Returns a weighted operation with other numbers."""
    values: dict[str, Any] = {key: numbers[key] for key in ("w_std", "b_std") if key in numbers}
    if "activation" in numbers:
        from nngp_dag.activations import get_activation  # imported late, because it loads JAX

        values["activation"] = dataclasses.replace(get_activation(op.activation), **numbers["activation"])
    return dataclasses.replace(op, **values)
