"""Networks as JSON documents: results on disk name the network that they belong to, and it can be read back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nngp_dag.architecture.network import Network, readout_of, stem_of
from nngp_dag.errors import GraphError, InputError, NngpDagError, did_you_mean, shown
from nngp_dag.graph import Dag, Dense, Edge, Op, Operation
from nngp_dag.graph.operations import EdgeOperation, name_of_class


def to_document(network: Network) -> dict[str, Any]:
    """Returns a network as a dictionary that JSON can hold.

    Activations are kept by name, or by class and parameters where they have no name. Classes of other packages are kept
    with their module. A `Quadrature` is kept as its `repr`, so equal functions have equal documents; such a document
    cannot be read back.

    Examples:
      >>> document = to_document(Network("2_12", aggregation="mean"))
      >>> document["dag"], document["aggregation"], from_document(document) == Network("2_12", aggregation="mean")
      ('2_12', 'mean', True)
    """
    fields = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    # A given stem or readout that equals the layer's own counts as none, so that equal networks have equal documents.
    stem = None if network.stem in (None, stem_of(network.layer)) else _of_operation(network.stem)
    readout: Any = network.readout
    if isinstance(readout, Dense):
        readout = True if readout == readout_of(network.layer) else _of_operation(readout)
    return fields | {
        "dag": _of_dag(network.dag),
        "layer": _of_operation(network.layer),
        "stem": stem,
        "readout": readout,
    }


def from_document(document: Mapping[str, Any]) -> Network:
    """Returns the network that a document of `to_document` describes.

    Raises:
      GraphError: The document describes no valid graph.
      InputError: The document describes no network, or holds a `Quadrature`, which cannot be read back.
    """
    try:
        fields = dict(document)
        stem, readout = fields["stem"], fields["readout"]
        fields |= {
            "dag": _dag(fields["dag"]),
            "layer": _operation(fields["layer"]),
            "stem": None if stem is None else _operation(stem),
            "readout": readout if isinstance(readout, bool) else _operation(readout),
        }
        return Network(**fields)
    except NngpDagError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"Expected the description of a network, got {shown(document)}: {error}") from None


def _of_dag(dag: Dag) -> Any:
    try:
        return dag.code
    except GraphError:
        edges = [[edge.source, edge.target, _of_operation(edge.op)] for edge in dag.edges]
        return {
            "num_nodes": dag.num_nodes,
            "num_inputs": dag.num_inputs,
            "outputs": list(dag.outputs),
            "edges": edges,
        }


def _dag(document: Any) -> Dag:
    if isinstance(document, str):
        return Dag.from_code(document)
    edges = tuple(Edge(source, target, _operation(op)) for source, target, op in document["edges"])
    outputs = tuple(document["outputs"])
    return Dag(document["num_nodes"], edges, num_inputs=document["num_inputs"], outputs=outputs)


def _of_operation(op: Operation) -> Any:
    if isinstance(op, Op):
        return op.name.lower()
    fields: dict[str, Any] = {f.name: getattr(op, f.name) for f in dataclasses.fields(op)}
    if isinstance(op, Dense):
        fields["activation"] = _of_activation(op.activation)
    return {name_of_class(type(op)): _lists(fields)}


def _lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def _operation(document: Any) -> Any:
    if isinstance(document, str):
        return Op.parse(document)
    [(name, fields)] = document.items()
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    if "activation" in fields:
        fields["activation"] = _activation(fields["activation"])
    return _class_of(name, EdgeOperation.known, "an operation")(**fields)


def _of_activation(activation: Any) -> Any:
    if activation is None or isinstance(activation, str):
        return activation
    from nngp_dag.activations import Quadrature  # imported late, because it loads JAX

    if isinstance(activation, Quadrature):
        return {"Quadrature": repr(activation)}
    fields = {f.name: getattr(activation, f.name) for f in dataclasses.fields(activation)}
    return {name_of_class(type(activation)): _lists(fields)}


def _activation(document: Any) -> Any:
    if not isinstance(document, Mapping):
        return document
    from nngp_dag.activations import Activation, Quadrature

    [(name, fields)] = document.items()
    cls = _class_of(name, Activation.known, "an activation")
    if cls is Quadrature:
        raise InputError(f"Expected an activation that a file can hold, got {shown(document)}; pass the network")
    return cls(**fields)


def _class_of(name: str, known: Mapping[str, Any], what: str) -> Any:
    if name not in known:
        raise InputError(
            f"Expected {what} whose class is defined in this process, got {name!r}; import its module first"
            f"{did_you_mean(name, known)}"
        )
    return known[name]
