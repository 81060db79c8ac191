"""A DAG with every operation filled in: the network that kernels describe and that finite models build."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

from nngp_dag import forms
from nngp_dag.errors import GraphError, InputError, check_known, shown
from nngp_dag.graph import codes
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import (
    IMAGE_READOUTS,
    PARAMETERIZATIONS,
    Dense,
    EdgeOperation,
    Op,
    Operation,
    as_number,
    check_flag,
    check_option,
    check_whole,
)
from nngp_dag.graph.reading import as_dag

if TYPE_CHECKING:
    from typing import Never as _Unknown

    from matplotlib.axes import Axes
else:
    _Unknown = Any

AGGREGATIONS = ("sum", "scaled-sum", "mean")
# Fields of the layer that entry points accept in place of `layer`.
OF_LAYER = ("activation", "order", "w_std", "b_std")


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Network:
    """A network: a graph, its operations, stem and readout, the aggregation at nodes, and the parameterization.

    Node t computes X(t) = a(t) * sum over live edges s -> t of op(X(s)). The factor a(t) is 1 ("sum"),
    1 / sqrt(in-degree) ("scaled-sum") or 1 / in-degree ("mean"). Only live edges count: those on a path from an input
    to an output.

    Networks are compared by the operations that they apply. So a given `stem` that equals the layer's own stem makes no
    difference.

    Attributes:
      dag: The connectivity, kept as a `Dag`. It may be given as a `Dag`, as a code, name or cell that `Dag.parse`
        reads, or as the (source, target, operation) triples of `Dag.from_edges`.
      layer: The operation of edges marked `Op.WEIGHTED`, which also determines stem and readout. In the order
        "linear-act" the stem is `layer` and the readout is linear. In the order "act-linear" the stem is linear and the
        readout starts with the activation.
      aggregation: "sum", "scaled-sum" or "mean".
      stem: The operation from the data to every input node; None for the one that `layer` determines, without layer
        norm.
      readout: Whether a readout follows the last node; otherwise the output is X(H) itself. A `Dense` in place of True
        is a readout with numbers of its own; it applies its activation, if it has one, before its weights.
      image_readout: The treatment of the pixels of X(H): "flatten" or "global-average".
      parameterization: The parameters that gradients are taken with respect to. "ntk" means parameters of variance 1.
        "standard" means weights of variance w_std^2 / fan-in; the NTK then grows with the width.
      width: Units, or channels, of every node of the finite network. Among the kernels, only the NTK of the standard
        parameterization depends on it.
      has_stem: Whether there is a stem; without one the data themselves are node 0.

    Raises:
      GraphError: `dag` is no graph, no path leads to an output, or an activation comes before the weights of an edge
        whose source is not Gaussian.
      InputError: An option or an activation is unknown or out of range.

    Examples:
      >>> network = Network("2_21_112", layer=Dense(activation="erf", order="act-linear"), aggregation="mean")
      >>> str(network), network.width
      ('2_21_112 (erf-dense, mean)', 1024)

    Reference: Chen et al., NeurIPS 2022, Section 3 (the architecture); Jacot et al., NeurIPS 2018, and Lee et al.,
    NeurIPS 2019, appendix F (parameterizations).
    """

    dag: Dag
    layer: Dense
    aggregation: str
    stem: Dense | None
    readout: bool | Dense
    image_readout: str
    parameterization: str
    width: int
    has_stem: bool

    def __init__(
        self,
        dag: Dag | str | Sequence[Sequence[Any]],
        layer: Any = None,
        aggregation: str = "sum",
        stem: Dense | None = None,
        readout: bool | Dense = True,
        image_readout: str = "flatten",
        parameterization: str = "ntk",
        width: int = 1024,
        has_stem: bool = True,
        **unknown: _Unknown,
    ) -> None:
        """Reads the graph and validates; by default `layer` is `Dense()`."""
        if of_layer := [name for name in unknown if name in OF_LAYER]:
            raise InputError(
                f"Expected `{of_layer[0]}` in `layer`, got an option of `Network`; pass layer=Dense({of_layer[0]}=...)"
            )
        check_known(unknown, [field.name for field in dataclasses.fields(Network)], "options of `Network`")
        layer = Dense() if layer is None else layer
        if not isinstance(layer, Dense):
            raise InputError(f"Expected `layer` to be a `Dense` or a `Conv`, got {shown(layer)}")
        if isinstance(readout, Dense) and readout.activation is None:
            readout = dataclasses.replace(readout, order="act-linear")  # without an activation, both orders are equal
        check_option("aggregation", aggregation, AGGREGATIONS)
        check_option("image_readout", image_readout, IMAGE_READOUTS)
        check_option("parameterization", parameterization, PARAMETERIZATIONS)
        fields = {
            "dag": Dag.from_edges(dag) if isinstance(dag, (list, tuple)) else as_dag(dag),
            "layer": layer,
            "aggregation": aggregation,
            "stem": stem,
            "readout": readout if isinstance(readout, Dense) else check_flag("readout", readout),
            "image_readout": image_readout,
            "parameterization": parameterization,
            "width": check_whole("width", width, 1),
            "has_stem": check_flag("has_stem", has_stem),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if not isinstance(self.stem, (Dense, NoneType)):
            raise InputError(f"Expected `stem` to be a `Dense` or a `Conv`, got {shown(self.stem)}")
        self.dag.require_connected()
        if self.stem is not None:
            if not self.has_stem:
                raise InputError(
                    f"Expected no `stem` where `has_stem` is False, got {self.stem!r}; leave one of them out"
                )
            if self.stem.order == "act-linear" and self.stem.activation is not None:
                raise InputError("Expected `stem` to apply its weights first, got order 'act-linear'; use 'linear-act'")
            if self.stem.layer_norm:
                raise InputError("Expected `stem` without `layer_norm`, got one; normalize the data instead")
        if isinstance(self.readout, Dense):
            self._check_readout(self.readout)
        from nngp_dag.activations import get_activation  # imported late, because it loads JAX

        operations = (self.layer, self.stem, self.readout, *(edge.op for edge in self.dag.edges))
        for op in dict.fromkeys(operations):
            if not isinstance(op, EdgeOperation):
                continue
            as_number(f"factor` of `{type(op).__name__}", op.factor)
            if op.mixes_pixels and op.window is None:
                raise InputError(
                    f"Expected a `window` of `{type(op).__name__}`, which mixes pixels, got None; say how sizes "
                    'change, such as Window((1, 1), (1, 1), "SAME")'
                )
        for activation in {op.activation for op in operations if isinstance(op, Dense)}:
            get_activation(activation)
        if not self.has_stem and self.dag.num_inputs > 1:
            raise InputError(
                f"Expected a graph with one input where there is no stem, got {self.dag.num_inputs}; without weights "
                "of their own the inputs would be correlated"
            )
        if self.image_readout != "flatten" and not self.image_operations:
            raise InputError(
                "Expected `image_readout` 'flatten' for a network without convolutions and pooling, got "
                f"{self.image_readout!r}"
            )
        self.check_gaussian(input_is_gaussian=True)

    def _check_readout(self, readout: Dense) -> None:
        if readout.window is not None:
            raise InputError(
                "Expected `readout` to be a `Dense`, got a `Conv`; `image_readout` says how the pixels are read"
            )
        if readout.order == "linear-act" and readout.activation is not None:
            raise InputError("Expected `readout` to apply its weights last, got order 'linear-act'; use 'act-linear'")
        if readout.layer_norm:
            raise InputError("Expected `readout` without `layer_norm`, got one; normalize in the last edges instead")

    @functools.cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The live edges, with `Op.WEIGHTED` replaced by `layer`."""
        return tuple(
            dataclasses.replace(edge, op=self.layer) if edge.op is Op.WEIGHTED else edge for edge in self.dag.live_edges
        )

    @functools.cached_property
    def into(self) -> tuple[tuple[Edge, ...], ...]:
        """The edges that enter each node."""
        into: list[list[Edge]] = [[] for _ in range(self.dag.num_nodes)]
        for edge in self.edges:
            into[edge.target].append(edge)
        return tuple(map(tuple, into))

    @property
    def kernel_options(self) -> dict[str, Any]:
        """The options beside the graph that kernels depend on; the width only in the standard parameterization."""
        unused = {"dag"} if self.parameterization == "standard" else {"dag", "width"}
        return {name: value for name, value in self._values.items() if name not in unused}

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        """The values that comparisons use: fields, with the layer's own stem for None, and True for its own readout."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"stem": self.stem_op} if self.has_stem else {}
        return fields | ({"readout": True} if fields["readout"] == readout_of(self.layer) else {})

    def __eq__(self, other: object) -> bool:
        """Whether two networks apply equal operations."""
        return self._values == other._values if isinstance(other, Network) else NotImplemented

    def __hash__(self) -> int:
        """Returns a hash of the values that `==` compares."""
        return hash(tuple(self._values.values()))

    @functools.cached_property
    def stem_op(self) -> Dense:
        """The stem's operation, if `has_stem` is true."""
        return self.stem or stem_of(self.layer)

    @property
    def reads_out_activated(self) -> bool:
        """Whether there is a readout that applies the activation before its weights."""
        return bool(self.readout) and self.readout_op.activation is not None

    @property
    def readout_op(self) -> Dense:
        """The readout's operation, if there is a readout."""
        if isinstance(self.readout, Dense):
            return self.readout
        own = readout_of(self.layer)
        return own if self.readout else dataclasses.replace(own, activation=None)

    @functools.cached_property
    def weighted_operations(self) -> tuple[Dense, ...]:
        """All different operations with weights, the stem's first."""
        ops = [self.stem_op] if self.has_stem else []
        return tuple(dict.fromkeys([*ops, *(edge.op for edge in self.edges if isinstance(edge.op, Dense))]))

    @functools.cached_property
    def image_operations(self) -> tuple[Operation, ...]:
        """All different operations that need images."""
        ops = [edge.op for edge in self.edges] + ([self.stem_op] if self.has_stem else [])
        return tuple(dict.fromkeys(op for op in ops if op.window))

    @functools.cached_property
    def pools(self) -> bool:
        """Whether an operation without weights mixes pixels, so that the covariances of all pixel pairs are needed."""
        return any(op.mixes_pixels for op in self.image_operations)

    @functools.cached_property
    def has_means(self) -> bool:
        """Whether some weighted operation ends with an activation, so that means may differ from 0."""
        return not all(op.output_is_gaussian for op in self.weighted_operations)

    def factor(self, node: int) -> float | int:
        """Returns a(t), the factor of the sum at a node."""
        degree = len(self.into[node])
        if self.aggregation == "sum" or degree <= 1:
            return 1
        return degree**-0.5 if self.aggregation == "scaled-sum" else 1 / degree

    def multiplicity(self, edge: Edge) -> float | int:
        """Returns the factor with which an edge without weights adds its source, pooled if it pools, to its target."""
        return self.factor(edge.target) * edge.op.factor

    def check_gaussian(self, *, input_is_gaussian: bool, reads_out: bool = False) -> None:
        """Checks that every activation acts on a Gaussian node, and that every mean is known.

        Args:
          input_is_gaussian: Whether the data are a centered Gaussian process; it matters only without a stem.
          reads_out: Whether the readout is checked, too.

        Raises:
          GraphError: An activation acts on a node that is not Gaussian, or a mean is unknown.
        """
        inputs = f"the {'stem' if self.has_stem else 'input'}"
        gaussian_input = self.stem_op.output_is_gaussian if self.has_stem else input_is_gaussian
        # For each node the reason why it is not Gaussian, and whether raw data are part of its sum. The mean of raw
        # data is unknown, so such a sum may have no activated term, and no layer norm may follow it.
        culprits: list[str | None] = [None if gaussian_input else inputs] * self.dag.num_inputs
        raw: list[bool] = [not (self.has_stem or input_is_gaussian)] * self.dag.num_inputs
        for node in range(self.dag.num_inputs, self.dag.num_nodes):
            culprit: str | None = None
            activated, raw_here = Counter[str](), False
            for edge in self.into[node]:
                op = edge.op
                if isinstance(op, Dense) and op.layer_norm and raw[edge.source]:
                    raise GraphError(
                        f"Expected the input's mean to be known at node {edge.source}, since edge {edge} normalizes "
                        "it, got an input that is not Gaussian; put a `Dense` before the layer, or give it a stem"
                    )
                if not isinstance(op, Dense):
                    culprit = culprit or culprits[edge.source]
                    raw_here |= raw[edge.source]
                    if culprits[edge.source] and not raw[edge.source]:
                        activated[str(edge)] += 1
                    continue
                if op.order == "act-linear" and op.activation is not None and culprits[edge.source]:
                    raise GraphError(
                        f"Expected node {edge.source} to be Gaussian, since edge {edge} applies its activation before "
                        f"its weights, got a sum with {culprits[edge.source]} in it, which has no closed form; give "
                        "this edge the order 'linear-act', or that one 'act-linear'"
                    )
                if not op.output_is_gaussian:
                    culprit = culprit or f"the activated edge {edge}"
                    activated[str(edge)] += 1
            if raw_here and activated:
                raise GraphError(
                    f"Expected the input's mean to be known at node {node}, where it meets the activated edge "
                    f"{next(iter(activated))}, got an input that is not Gaussian; put a `Dense` before the layer, or "
                    "give it a stem"
                )
            culprits.append(culprit)
            raw.append(raw_here)
        for output in self.dag.outputs if reads_out and self.reads_out_activated else ():
            if culprits[output]:
                raise GraphError(
                    f"Expected the output node {output} to be Gaussian, since the readout applies its activation "
                    f"before its weights, got a sum with {culprits[output]} in it, which has no closed form; use "
                    "readout=False, or the order 'linear-act' for the readout's layer"
                )

    def output_is_gaussian(self, node: int, *, input_is_gaussian: bool) -> bool:
        """Whether a node is a centered Gaussian process."""
        gaussian = [self.stem_op.output_is_gaussian if self.has_stem else input_is_gaussian] * self.dag.num_inputs
        for into in self.into[self.dag.num_inputs :]:
            gaussian.append(
                all(e.op.output_is_gaussian if isinstance(e.op, Dense) else gaussian[e.source] for e in into)
            )
        return gaussian[node]

    def __str__(self) -> str:
        """Returns the graph, the layer and the aggregation as a text."""
        return f"{self.dag} ({self.layer.describe()}, {self.aggregation})"

    @functools.cached_property
    def _changed(self) -> dict[str, str]:
        """The options beside the graph that are not at their defaults, as texts."""
        plain = _plain()
        found = {}
        for name in (field.name for field in dataclasses.fields(self) if field.name != "dag"):
            value = getattr(self, name)
            if value == getattr(plain, name) or (name == "stem" and value == stem_of(self.layer)):
                continue
            if name == "readout" and value == readout_of(self.layer):
                continue
            found[name] = forms.constructor(value) if isinstance(value, Dense) else repr(value)
        return found

    def __repr__(self) -> str:
        """Returns the call that makes the network, in one or two lines, with the options that are not at defaults."""
        try:
            dag = repr(codes.shorten(self.dag.code))
        except GraphError:
            dag = repr(self.dag)
        return forms.call("Network", {"": dag} | self._changed)

    def parameters(self) -> dict[str, Any]:
        """Returns the numbers of the network by name, a pytree that `nngp_dag.kernel` takes as `parameters`.

        Its entries are "layer", "stem" and "readout" where the network has a stem and a readout of its own, and
        "edges", by the ends of each live edge. A weighted operation has `w_std`, `b_std` if there are biases, and under
        "activation" the parameters of its activation. Every edge has a `weight` that multiplies its output, 1 at first;
        a `Scale` has its `factor` instead. Edges with the same ends are told apart by their operations.

        Examples:
          >>> network = Network("2_12", layer=Dense(activation="erf", b_std=0.1))
          >>> network.parameters()["layer"]
          {'w_std': 1.414..., 'b_std': 0.1, 'activation': {'a': 1.0, 'b': 1.0, 'c': 0.0}}
          >>> network.parameters()["edges"]
          {'0->1': {'weight': 1.0}, '0->2': {'weight': 1.0}, '1->2': {'weight': 1.0}}
        """
        from nngp_dag.architecture.parameters import parameters_of

        return parameters_of(self)

    def with_parameters(self, parameters: Mapping[str, Any]) -> "Network":
        """Returns the network with other numbers.

        A weighted edge, or one that pools, whose `weight` is not 1 becomes two: its operation leads to a node of its
        own, and a `Scale` from there to the target. A weight turns a skip into a `Scale`.

        Args:
          parameters: Numbers by name, as in `parameters`; those that are absent stay. Numbers of "layer" hold for the
            stem and the readout, too, unless the network has its own, or "stem" or "readout" has other numbers here.

        Raises:
          InputError: A name is unknown, or a number is out of its range.

        Examples:
          >>> network = Network("2_12").with_parameters({"layer": {"w_std": 1.2}, "edges": {"0->2": {"weight": 0.5}}})
          >>> network.layer.w_std, [str(edge) for edge in network.dag.edges]
          (1.2, ['0->1:weighted', '0->2:scale(0.5)', '1->2:weighted'])
        """
        from nngp_dag.architecture.parameters import with_parameters

        return with_parameters(self, parameters)

    def plot(self, axes: "Axes | None" = None, *, operations: Iterable[tuple[int, int, str]] = ()) -> "Axes":
        """Draws the graph as `Dag.plot` does, without the options of the network.

        Args:
          axes: The matplotlib axes to draw on; by default those of a new pyplot figure.
          operations: Names of the edges of a cell, (source, target, name).

        Returns:
          The axes.

        Raises:
          InputError: `axes` are not two-dimensional axes of matplotlib, or `operations` do not name edges of the graph.

        Examples:
          >>> from matplotlib.figure import Figure
          >>> len(Network("2_21_112").plot(Figure().add_subplot()).patches)
          6
        """
        return self.dag.plot(axes, operations=operations)

    def _repr_svg_(self) -> str | None:
        """The picture that notebooks show, of graphs with up to 60 nodes and 150 edges; options stand below it."""
        from nngp_dag.graph.drawing import svg_of

        options = ", ".join(f"{name}={value}" for name, value in self._changed.items())
        return svg_of(self.dag, options or "all options at their defaults")

    def _repr_html_(self) -> str | None:
        """The numbers and options that notebooks show of larger graphs."""
        from nngp_dag.graph.drawing import facts_of, is_drawn

        return None if is_drawn(self.dag) else forms.facts_html("Network", facts_of(self.dag) | self._changed)

    def pixels(self, image: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns the spatial shape of every node, for images of spatial shape `image`.

        Raises:
          GraphError: An operation does not fit the image, or edges with different output shapes meet at a node.
        """
        first = window_output(self.stem_op, image, "the stem") if self.has_stem else image
        shapes = [first] * self.dag.num_inputs
        for into in self.into[self.dag.num_inputs :]:
            outputs = [window_output(edge.op, shapes[edge.source], f"edge {edge}") for edge in into]
            for edge, output in zip(into, outputs, strict=True):
                if output != outputs[0]:
                    raise GraphError(
                        f"Expected all edges into node {edge.target} to output images of one shape, got {outputs[0]} "
                        f"from {into[0]} and {output} from {edge}; give them equal strides and padding 'SAME'"
                    )
            # A node without live edges has no shape of its own, and nothing reads it.
            shapes.append(outputs[0] if outputs else first)
        return shapes


@functools.cache
def _plain() -> Network:
    """A network whose options are at their defaults."""
    return Network(Dag.from_code("2"))


def stem_of(layer: Dense) -> Dense:
    """Returns the stem that a layer determines."""
    activation = layer.activation if layer.order == "linear-act" else None
    return dataclasses.replace(layer, activation=activation, layer_norm=False)


def readout_of(layer: Dense) -> Dense:
    """Returns the readout that a layer determines."""
    activation = layer.activation if layer.order == "act-linear" else None
    return Dense(activation=activation, order="act-linear", w_std=layer.w_std, b_std=layer.b_std)


def window_output(op: Operation, image: tuple[int, ...], what: str) -> tuple[int, ...]:
    """Returns the spatial shape of an operation's output.

    Raises:
      GraphError: The operation needs another number of spatial axes or a larger image.
    """
    if op.window is None:
        return image
    window, strides, padding = op.window
    if len(window) != len(image):
        raise GraphError(
            f"Expected images with {len(window)} spatial axes for {what}, got {len(image)}; inputs have shape "
            "(N, height, width, channels) for a window of two numbers"
        )
    if padding == "SAME":
        # A larger window would see nothing but more zeros, at a higher cost.
        if any(of > 2 * size + stride for size, of, stride in zip(image, window, strides, strict=True)):
            raise GraphError(f"Expected windows of at most twice the image, {image}, for {what}, got {window}")
        return tuple(-(-size // stride) for size, stride in zip(image, strides, strict=True))
    if any(size < of for size, of in zip(image, window, strict=True)):
        raise GraphError(f"Expected images of at least {window} pixels for {what}, got {image}; use padding 'SAME'")
    return tuple((size - of) // step + 1 for size, of, step in zip(image, window, strides, strict=True))
