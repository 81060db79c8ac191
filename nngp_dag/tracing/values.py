"""The random arrays of a program at infinite width, as a graph of nodes.

A node stands for an array whose entries along the infinite axis are independent and identically distributed. The other
axes are finite (pixels, tokens), and their sizes are the node's shape. A node's second moments with another node are
computed by `nngp_dag.tracing.moments`. Deterministic arrays that depend on the input are `Number`s: the input itself,
and means over an infinite axis.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nngp_dag.tracing.geometry import Geometry
from nngp_dag.tracing.parameters import Weight

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Number:
    """A deterministic array.

    Attributes:
      id: The number's place in the order of creation.
      arguments: The numbers that `function` takes.
      function: The function that computes it; None for the input, for a known array and for a mean.
      known: The array if it does not depend on the input, or None.
      mean: The node whose mean over the infinite axis it is, or None.
      pair: The two nodes whose second moments it is, (*shape1, *shape2), or None.
    """

    id: int
    arguments: tuple["Number", ...] = ()
    function: Callable[..., Any] | None = None
    known: np.ndarray | None = None
    mean: "Node | None" = None
    pair: "tuple[Node, Node] | None" = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """A random array.

    Attributes:
      id: The node's place in the order of creation; a node comes after its operands.
      shape: The sizes of the finite axes.
      sources: The weights on which the node depends other than through a matrix product, as a bit mask. Nodes with
        disjoint sources are independent.
      gaussian: Whether the node is Gaussian, jointly with all other Gaussian nodes.
      random: Whether the node is random; numbers and parameters that start from a constant are not.
      offset: The mean if it is one known number at all positions and inputs, else None.
    """

    id: int
    shape: Shape
    sources: int
    gaussian: bool
    random: bool
    offset: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Node):
    """A product of a value with a weight: a matrix product or a convolution.

    Attributes:
      weight: The weight.
      operands: The parts of the value along the infinite axis with their numbers of channels; or one number.
      geometry: The sum over finite axes of the operand.
      own: The axes of the product's shape along which weights are independent.
      features: The axes of a number over which the product sums at once, in the order of the weight's rows; `geometry`
        is that of the other axes.
      centered: Whether the weight has its mean over all that the product sums over subtracted.
    """

    weight: Weight
    operands: tuple[tuple[int, "Node | Number"], ...]
    geometry: Geometry
    own: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    centered: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Parameter(Node):
    """A parameter that is added or multiplied elementwise; it has one entry for each channel or one for all.

    Attributes:
      weight: The parameter.
    """

    weight: Weight


@dataclass(frozen=True, eq=False, kw_only=True)
class Sum(Node):
    """A linear combination of nodes of one shape.

    Attributes:
      terms: The coefficients and nodes.
    """

    terms: tuple[tuple[float, Node], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """A linear map of the finite axes.

    Attributes:
      node: The operand.
      numbers: The numbers on which the map depends.
      map: The map of an array of the operand's shape, which also takes the numbers.
    """

    node: Node
    numbers: tuple[Number, ...]
    map: Callable[..., Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Nonlinear(Node):
    """An elementwise function of a Gaussian node.

    Attributes:
      node: The Gaussian node.
      function: The function of one array.
      key: A hashable value that stands for the function.
      place: The line of the model that applies it, for messages.
      label: The name of the library's function that applies it, or "".
      tuned: Trained numbers on which the function depends. It then takes their values by their keys, too; None for
        those at the start.
    """

    node: Node
    function: Callable[..., Any]
    key: Hashable
    place: str = ""
    label: str = ""
    tuned: tuple["Parameter", ...] = ()

    def apply(self, t: Any, p: Any = None) -> Any:
        """Returns the function of an array, at given values of `tuned`."""
        return self.function(t, p) if self.tuned else self.function(t)


@dataclass(frozen=True, eq=False, kw_only=True)
class Times(Node):
    """The elementwise product of two nodes.

    Attributes:
      left: The one factor.
      right: The other factor.
      place: The line of the model that multiplies, for messages.
    """

    left: Node
    right: Node
    place: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fixed(Node):
    """A number that is the same for all channels.

    Attributes:
      number: The number, of the node's shape.
    """

    number: Number


@dataclass
class Values:
    """Makes nodes and numbers. Equal arguments return the same node, so that repeated branches are computed once."""

    count: int = 0
    made: dict[Hashable, Any] = field(default_factory=dict)
    bits: dict[Hashable, int] = field(default_factory=dict)

    def _new(self, key: Hashable, make: Callable[[int], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make(self.count)
            self.count += 1
        return self.made[key]

    def bit(self, weight: Weight) -> int:
        """Returns the bit of a weight in masks of sources; weights share no entries unless they are equal."""
        return 1 << self.bits.setdefault(weight.key, len(self.bits))

    # Numbers.

    def input(self) -> Number:
        """Returns the number that stands for the input."""
        return self._new("input", Number)

    def known(self, array: Any) -> Number:
        """Returns a known array."""
        array = np.asarray(array)
        key = ("known", array.shape, array.dtype.str, array.tobytes())
        return self._new(key, lambda i: Number(i, known=array))

    def computed(self, key: Hashable, function: Callable[..., Any], *arguments: Number) -> Number:
        """Returns a function of numbers; the key stands for the function."""
        if all(a.known is not None for a in arguments):
            return self.known(function(*(a.known for a in arguments)))
        ids = tuple(a.id for a in arguments)
        return self._new(("computed", key, ids), lambda i: Number(i, tuple(arguments), function))

    def mean(self, node: Node) -> Number:
        """Returns the mean of a node over its infinite axis."""
        if node.offset is not None:
            return self.known(np.full(node.shape, node.offset))
        return self._new(("mean", node.id), lambda i: Number(i, mean=node))

    def second_moment(self, left: Node, right: Node) -> Number:
        """Returns the second moments of two nodes at one input."""
        return self._new(("pair", left.id, right.id), lambda i: Number(i, pair=(left, right)))

    # Nodes.

    def product(
        self,
        weight: Weight,
        operands: Sequence[tuple[int, Node | Number]],
        shape: Shape,
        geometry: Geometry,
        own: tuple[int, ...] = (),
        features: tuple[int, ...] = (),
        centered: bool = False,
    ) -> Node:
        """Returns the product of a value with a weight."""
        operands = tuple(operands)
        full = ("product", weight.key, tuple((n, o.id) for n, o in operands), shape, geometry, own, features, centered)
        return self._new(
            full,
            lambda i: Product(
                id=i,
                shape=shape,
                sources=self.bit(weight),
                gaussian=True,
                random=True,
                offset=0.0,
                weight=weight,
                operands=operands,
                geometry=geometry,
                own=own,
                features=features,
                centered=centered,
            ),
        )

    def parameter(self, weight: Weight, shape: Shape) -> Node:
        """Returns a parameter that acts elementwise."""
        constant = weight.distribution.std == 0
        # Sums with Gaussian values count as Gaussian where it is known by how much they are not (`tails`).
        known = not math.isnan(weight.distribution.excess_kurtosis)
        return self._new(
            ("parameter", weight.key, shape),
            lambda i: Parameter(
                id=i,
                shape=shape,
                sources=self.bit(weight),
                gaussian=constant or known,
                random=not constant,
                offset=weight.distribution.mean,
                weight=weight,
            ),
        )

    def sum(self, terms: Sequence[tuple[float, Node]]) -> Node:
        """Returns a linear combination; a single term with coefficient 1 is returned as it is."""
        merged: dict[int, tuple[float, Node]] = {}
        for c, node in terms:
            merged[node.id] = (merged.get(node.id, (0.0, node))[0] + c, node)
        kept = [(c, node) for c, node in merged.values() if c and not (isinstance(node, Fixed) and node.offset == 0)]
        terms = tuple(kept) or ((0.0, terms[0][1]),)
        if len(terms) == 1 and terms[0][0] == 1:
            return terms[0][1]
        nodes = [node for _, node in terms]
        offset = 0.0
        for c, node in terms:
            offset = None if offset is None or node.offset is None else offset + c * node.offset
        return self._new(
            ("sum", tuple((c, node.id) for c, node in terms)),
            lambda i: Sum(
                id=i,
                shape=nodes[0].shape,
                sources=_union(nodes),
                gaussian=all(node.gaussian for node in nodes),
                random=any(node.random for node in nodes),
                offset=offset,
                terms=terms,
            ),
        )

    def linear(
        self,
        key: Hashable,
        node: Node,
        shape: Shape,
        mapping: Callable[..., Any],
        numbers: Sequence[Number] = (),
        keeps_constants: bool = False,
    ) -> Node:
        """Returns a linear map of the finite axes; the key stands for the map.

        Args:
          key: The key.
          node: The operand.
          shape: The shape of the result.
          mapping: The map.
          numbers: The numbers on which the map depends.
          keeps_constants: Whether the map takes constant arrays to the same constant.
        """
        offset = node.offset if keeps_constants or node.offset == 0 else None
        return self._new(
            ("linear", key, node.id, shape, tuple(n.id for n in numbers)),
            lambda i: Linear(
                id=i,
                shape=shape,
                sources=node.sources,
                gaussian=node.gaussian,
                random=node.random,
                offset=offset,
                node=node,
                numbers=tuple(numbers),
                map=mapping,
            ),
        )

    def nonlinear(
        self,
        key: Hashable,
        node: Node,
        function: Callable[..., Any],
        place: str,
        label: str = "",
        tuned: Sequence[Parameter] = (),
    ) -> Node:
        """Returns an elementwise function of a Gaussian node; the key stands for the function.

        Args:
          key: The key.
          node: The Gaussian node.
          function: The function, see `Nonlinear`.
          place: The line of the model.
          label: The name of the library's function, or "".
          tuned: Trained numbers on which the function depends.
        """
        numbers = tuple({q.id: q for q in tuned}.values())
        return self._new(
            ("nonlinear", key, node.id),
            lambda i: Nonlinear(
                id=i,
                shape=node.shape,
                sources=node.sources | _union(numbers),
                gaussian=False,
                random=True,
                offset=None,
                node=node,
                function=function,
                key=key,
                place=place,
                label=label,
                tuned=numbers,
            ),
        )

    def times(self, left: Node, right: Node, place: str) -> Node:
        """Returns the elementwise product of two nodes."""
        left, right = sorted((left, right), key=lambda node: node.id)
        offset = None
        if not left.sources & right.sources and left.offset is not None and right.offset is not None:
            offset = left.offset * right.offset
        elif not left.sources & right.sources and 0.0 in (left.offset, right.offset):
            offset = 0.0
        return self._new(
            ("times", left.id, right.id),
            lambda i: Times(
                id=i,
                shape=left.shape,
                sources=left.sources | right.sources,
                gaussian=left.gaussian and right.gaussian and not (left.random and right.random),
                random=left.random or right.random,
                offset=offset,
                left=left,
                right=right,
                place=place,
            ),
        )

    def fixed(self, number: Number, shape: Shape) -> Node:
        """Returns a number that is the same for all channels."""
        known = number.known
        offset = float(known.flat[0]) if known is not None and known.size and (known == known.flat[0]).all() else None
        return self._new(
            ("fixed", number.id, shape),
            lambda i: Fixed(id=i, shape=shape, sources=0, gaussian=True, random=False, offset=offset, number=number),
        )


def _union(nodes: Sequence[Node]) -> int:
    mask = 0
    for node in nodes:
        mask |= node.sources
    return mask


def operands(node: Node) -> list[Node]:
    """Returns the nodes on which a node depends directly."""
    match node:
        case Product():
            return [o for _, o in node.operands if isinstance(o, Node)]
        case Sum():
            return [o for _, o in node.terms]
        case Linear():
            return [node.node]
        case Nonlinear():
            return [node.node, *node.tuned]
        case Times():
            return [node.left, node.right]
        case _:
            return []


def heads(node: Node) -> set[Product]:
    """Returns the products that a node is a sum or a function of, without a product in between."""
    found: set[Product] = set()
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if one.id in seen:
            continue
        seen.add(one.id)
        if isinstance(one, Product):
            found.add(one)
        else:
            waiting += operands(one)
    return found
