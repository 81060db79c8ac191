"""Writes a traced program as a `Network`, where it is one, so that the back ends of networks compute its kernels."""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nngp_dag.activations import ABRelu, Activation, Erf, Tanh
from nngp_dag.architecture import Network
from nngp_dag.errors import NngpDagError
from nngp_dag.graph import Dag, Dense, Edge, Op, Scale
from nngp_dag.tracing.functions import Function
from nngp_dag.tracing.values import Fixed, Linear, Node, Nonlinear, Number, Parameter, Product, Sum, Times, operands

# Kinds of nodes that no network has, in words.
_NAMES = {
    Times: "products of values, such as attention or the trained scale of a layer norm",
    Linear: "a layer norm or another norm, or scalings by numbers",
    Fixed: "numbers that are added",
}


class NoNetworkError(Exception):
    """The program is no `Network`; the message says why."""


@dataclass(frozen=True)
class _Layer:
    """A weighted layer: a product, its bias, and an activation before or after it.

    Attributes:
      product: The product.
      factor: The number by which the program multiplies the product.
      bias: The bias and its factor, or None.
      activation: The activation, or None.
      order: "linear-act" or "act-linear".
      source: The node on which the layer acts; None for the input.
    """

    product: Product
    factor: float
    bias: tuple[float, Parameter] | None
    activation: Activation | None
    order: str
    source: Node | None


@dataclass
class _Lowering:
    """Collects the edges of a network while a program is read from its output."""

    functions: dict[int, Function]
    uses: Counter[int] = field(default_factory=Counter)
    places: dict[int, int] = field(default_factory=dict)
    edges: list[tuple[int, int, Any]] = field(default_factory=list)
    stem: _Layer | None = None
    layers: list[_Layer] = field(default_factory=list)
    weights: set[Any] = field(default_factory=set)
    # Nodes that others than products use.
    values: set[int] = field(default_factory=set)


def network_of(
    output: Node, nodes: tuple[Node, ...], functions: dict[int, Function], shape: tuple[int, ...], parameterization: str
) -> Network:
    """Returns the network that has a program's kernels.

    Args:
      output: The node of an output unit.
      nodes: The nodes of the program.
      functions: The functions of nodes.
      shape: The shape of one input, with the axis of inputs.
      parameterization: "own" or "ntk", see `nngp_dag.tracing.Traced`.

    Raises:
      NoNetworkError: The program is none; the message says why.
    """
    if any(math.prod(node.shape) != 1 for node in nodes):
        raise NoNetworkError("it has several pixels or tokens")
    if any(isinstance(node, Product) and node.centered for node in nodes):
        raise NoNetworkError("its weights are centered")
    if any(isinstance(node, Nonlinear) and node.tuned for node in nodes):
        raise NoNetworkError("its activations have trained numbers")
    work = _Lowering(functions)
    for node in nodes:
        work.uses.update(o.id for o in operands(node))
        if not isinstance(node, Product):
            work.values.update(o.id for o in operands(node))
    layers, rest = _layers_of_sum(work, output)
    if len(layers) != 1 or rest or layers[0].order != "act-linear":
        raise NoNetworkError("its output is no linear readout")
    (readout,) = layers
    last = _place(work, readout.source)
    if work.stem is None:
        raise NoNetworkError("no layer reads the input")
    _check_input(work.stem, shape)
    names = sorted({i for a, b, _ in work.edges for i in (a, b)} | {last})
    number = {name: i for i, name in enumerate(names)}
    if names[0] != 0 or last != names[-1]:
        raise NoNetworkError("its output is not its last node")
    all_layers = [work.stem, *work.layers, readout]
    kind = _parameterization(all_layers, parameterization)
    widths = {n for layer in (*work.layers, readout) for n, _ in layer.product.operands}
    if kind == "standard" and len(widths) > 1:
        raise NoNetworkError(f"its layers have several widths, {', '.join(map(str, sorted(widths)))}")
    edges = []
    for a, b, op in work.edges:
        edges.append(Edge(number[a], number[b], _dense(op) if isinstance(op, _Layer) else op))
    try:
        return Network(
            Dag(len(names), tuple(sorted(edges, key=lambda e: (e.target, e.source)))),
            stem=_dense(work.stem),
            readout=_dense(readout),
            parameterization=kind,
            width=max(widths),
        )
    except NngpDagError as error:
        raise NoNetworkError(str(error)) from None


def _place(work: _Lowering, node: Node | None) -> int:
    """Returns the number of the network's node that holds a value, after its incoming edges were added."""
    if node is None:
        return 0
    if node.id in work.places:
        return work.places[node.id]
    layers, rest = _layers_of_sum(work, node)
    if not rest and len(layers) == 1 and layers[0].source is None:
        # The stem alone is node 0.
        _set_stem(work, layers[0])
        work.places[node.id] = 0
        return 0
    incoming: list[tuple[int, Any]] = []
    for c, child in rest:
        incoming.append((_place(work, child), Op.SKIP if c == 1 else Scale(c)))
    for layer in layers:
        if layer.source is None:
            _set_stem(work, layer)
            incoming.append((0, Op.SKIP))
        else:
            incoming.append((_place(work, layer.source), layer))
            work.layers.append(layer)
    place = len(work.places) + 1
    while any(place <= source for source, _ in incoming):
        place += 1
    work.places[node.id] = place = max([place, *(p + 1 for p in work.places.values())])
    work.edges += [(source, place, op) for source, op in incoming]
    return place


def _set_stem(work: _Lowering, layer: _Layer) -> None:
    if work.stem is not None and work.stem.product is not layer.product:
        raise NoNetworkError("several layers read the input")
    if work.stem is not None and work.stem != layer:
        raise NoNetworkError("its first layer is used in two ways")
    work.stem = layer


def _layers_of_sum(work: _Lowering, node: Node) -> tuple[list[_Layer], list[tuple[float, Node]]]:
    """Returns the weighted layers that end in a node, and its other summands, which are nodes of their own."""
    terms = _terms(work, node)
    layers, biases, rest = [], [], []
    for c, term in terms:
        if term is not node and (work.uses[term.id] > 1 or (c != 1 and not _in_own_units(term))):
            rest.append((c, term))
        elif isinstance(term, Product):
            layers.append(_linear(work, c, term))
        elif isinstance(term, Parameter):
            biases.append((c, term))
        elif isinstance(term, Nonlinear):
            layers.append(_activated(work, term))
        else:
            rest.append((c, term))
    linear = [i for i, layer in enumerate(layers) if layer.order == "act-linear" or layer.activation is None]
    if len(biases) > len(linear):
        raise NoNetworkError("a parameter is added to a value without a matrix product")
    for i, bias in zip(linear, biases, strict=False):
        layers[i] = dataclasses.replace(layers[i], bias=bias)
        _once(work, bias[1].weight.key)
    return layers, rest


def _in_own_units(term: Node) -> bool:
    """Whether a product or a parameter has weights of variance 1, which the program scales."""
    return isinstance(term, (Product, Parameter)) and term.weight.distribution.std == 1


def _terms(work: _Lowering, node: Node) -> list[tuple[float, Node]]:
    """Returns the summands of a node; sums that are used once are part of it."""
    if not isinstance(node, Sum):
        if not isinstance(node, (Product, Parameter, Nonlinear)):
            raise NoNetworkError(f"it holds {_NAMES.get(type(node), 'other operations')}")
        return [(1.0, node)]
    found = []
    for c, child in node.terms:
        if isinstance(child, Sum) and c == 1 and work.uses[child.id] == 1:
            found += _terms(work, child)
        elif isinstance(child, (Sum, Product, Parameter, Nonlinear)):
            found.append((c, child))
        else:
            raise NoNetworkError(f"it holds {_NAMES.get(type(child), 'other operations')}")
    return found


def _once(work: _Lowering, key: Any) -> None:
    if key in work.weights:
        raise NoNetworkError("weights are shared")
    work.weights.add(key)


def _linear(work: _Lowering, c: float, product: Product, *, activated: bool = False) -> _Layer:
    """Returns a product as a layer; an activation before it is part of it, unless one follows or others use it."""
    if len(product.operands) != 1:
        raise NoNetworkError("channels are concatenated")
    _once(work, product.weight.key)
    ((_, operand),) = product.operands
    if isinstance(operand, Number):
        return _Layer(product, c, None, None, "linear-act", None)
    if isinstance(operand, Nonlinear) and not activated and operand.id not in work.values:
        return _Layer(product, c, None, _activation(work, operand), "act-linear", operand.node)
    return _Layer(product, c, None, None, "act-linear", operand)


def _activated(work: _Lowering, node: Nonlinear) -> _Layer:
    """Returns the layer of an activation after a product."""
    if work.uses[node.node.id] != 1:
        raise NoNetworkError("the argument of an activation is used elsewhere, too")
    terms = _terms(work, node.node)
    products = [(c, t) for c, t in terms if isinstance(t, Product)]
    biases = [(c, t) for c, t in terms if isinstance(t, Parameter)]
    if len(products) != 1 or len(biases) > 1 or len(terms) > 2 or any(work.uses[t.id] > 1 for _, t in terms):
        raise NoNetworkError("the argument of an activation is no single matrix product")
    layer = _linear(work, *products[0], activated=True)
    if biases:
        _once(work, biases[0][1].weight.key)
    bias = biases[0] if biases else None
    return dataclasses.replace(layer, bias=bias, activation=_activation(work, node), order="linear-act")


def _activation(work: _Lowering, node: Nonlinear) -> Activation:
    """Returns a function as an activation."""
    f = work.functions[node.id]
    if len(f.terms) == 1:
        (term,) = f.terms
        phi, scale, rate = term.phi, term.scale, term.rate
        if isinstance(phi, ABRelu) and not f.shift:
            low, high = (phi.a, phi.b) if rate > 0 else (phi.b, phi.a)
            return ABRelu(f.linear + scale * rate * low, f.linear + scale * rate * high)
        if isinstance(phi, (Erf, Tanh)) and not f.linear:
            return type(phi)(scale * phi.a, rate * phi.b, scale * phi.c + f.shift)
        if isinstance(phi, Activation) and (scale, rate, f.shift, f.linear) == (1, 1, 0, 0):
            return phi
    raise NoNetworkError(f"the function {f.name} is no activation")


def _parameterization(layers: list[_Layer], wanted: str) -> str:
    """Returns the parameterization of a network whose NTK is that of the program's own parameters."""
    if not all(p.trained for layer in layers for p in _weights(layer)):
        raise NoNetworkError("some of its parameters are not trained")
    if wanted == "ntk" or all(p.distribution.std == 1 for layer in layers for p in _weights(layer)):
        return "ntk"
    if all(layer.factor == 1 and (layer.bias is None or layer.bias[0] == 1) for layer in layers):
        return "standard"
    raise NoNetworkError("some of its parameters are scaled, others not")


def _weights(layer: _Layer) -> list[Any]:
    return [layer.product.weight, *([layer.bias[1].weight] if layer.bias is not None else [])]


def _dense(layer: _Layer) -> Dense:
    product = layer.product
    ((n, _),) = product.operands
    fan_in = n if layer.source is not None else product.weight.entries.size // product.weight.entries.shape[-1]
    b_std, columns = None, product.weight.entries.shape[-1]
    if layer.bias is not None:
        c, parameter = layer.bias
        if parameter.weight.distribution.mean != 0 or parameter.weight.entries.shape[-1] == 1 < columns:
            raise NoNetworkError("a bias does not start from mean 0, or is shared by all channels")
        b_std = abs(c) * parameter.weight.distribution.std
    w_std = abs(layer.factor) * product.weight.distribution.std * math.sqrt(fan_in)
    return Dense(activation=layer.activation, order=layer.order, w_std=w_std, b_std=b_std)


def _check_input(stem: _Layer, shape: tuple[int, ...]) -> None:
    """Checks that the first layer reads the features of the input as they are, in any order of axes."""
    ((_, number),) = stem.product.operands
    assert isinstance(number, Number)
    if number.function is None and number.known is None and number.mean is None:
        return
    chain, one = [], number
    while one.function is not None and len(one.arguments) == 1:
        chain.append(one.function)
        (one,) = one.arguments
    if one.function is not None or one.known is not None or one.mean is not None:
        raise NoNetworkError("the input is changed before the first layer")
    probe = np.random.default_rng(0).normal(size=shape)
    value = probe
    for function in reversed(chain):
        value = np.asarray(function(value))
    if value.size != probe.size or not np.array_equal(np.sort(value.ravel()), np.sort(probe.ravel())):
        raise NoNetworkError("the input is changed before the first layer")
