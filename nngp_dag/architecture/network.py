"""A DAG with every operation filled in: the network that kernels describe and that finite models build."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Hashable
from types import NoneType
from typing import Any

from nngp_dag.errors import GraphError, InputError, InputWarning, shown, warn
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import HE_STD, AvgPool, Conv, Dense, Op, Scale, check_flag, check_option, describe
from nngp_dag.graph.reading import as_dag

AGGREGATIONS = ("sum", "scaled-sum", "mean")


@dataclasses.dataclass(frozen=True)
class Network:
    """The architecture: a graph, its operations, its stems and how nodes add up.

    X(t) = a(t) * sum over live edges s -> t of op(X(s)), a(t) = 1 ("sum"), 1 / sqrt(in-degree) ("scaled-sum") or
    1 / in-degree ("mean"). Only live edges count, those on a path from an input to an output.

    Attributes:
      dag: The connectivity.
      layer: The operation of edges marked `Op.WEIGHTED`, and of stem and readout: in the order "linear-act" the stem is
        `layer` and the readout is linear; in the order "act-linear" the stem is linear and the readout starts with
        the activation.
      aggregation: "sum", "scaled-sum" or "mean".
      stem: The operation from the data to every input node, if not that of `layer` (without layer norm).
      has_stem: Without a stem the data themselves are node 0.

    Raises:
      GraphError: No path leads to an output, or an activation comes before the weights of an edge whose source is not
        Gaussian.
      InputError: An option is unknown.
    """

    dag: Dag
    layer: Dense = dataclasses.field(default_factory=Dense)
    aggregation: str = "sum"
    stem: Dense | None = None
    has_stem: bool = True

    def __post_init__(self) -> None:
        """Fills in the stem and validates."""
        check_option("aggregation", self.aggregation, AGGREGATIONS)
        object.__setattr__(self, "has_stem", check_flag("has_stem", self.has_stem))
        if not isinstance(self.stem, (Dense, NoneType)):
            raise InputError(f"Expected `stem` to be a `Dense` or a `Conv`, got {shown(self.stem)}")
        self.dag.require_connected()
        if self.stem is not None and not self.has_stem:
            raise InputError(f"Expected no `stem` where `has_stem` is False, got {self.stem!r}; leave one of them out")
        if self.stem is None:
            activation = self.layer.activation if self.layer.order == "linear-act" else None
            stem = dataclasses.replace(self.layer, activation=activation, layer_norm=False)
            object.__setattr__(self, "stem", stem)
        elif self.stem.order == "act-linear" and self.stem.activation is not None:
            raise InputError("Expected `stem` to apply its weights first, got order 'act-linear'; use 'linear-act'")
        elif self.stem.layer_norm:
            raise InputError("Expected `stem` without `layer_norm`, got one; normalize the data instead")
        if not self.has_stem and self.dag.num_inputs > 1:
            raise InputError(
                f"Expected a graph with one input where there is no stem, got {self.dag.num_inputs}; without weights "
                "of their own the inputs would be correlated"
            )
        self.check_gaussian(input_is_gaussian=True)

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
    def stem_op(self) -> Dense:
        """The stem's operation."""
        assert self.stem is not None
        return self.stem

    @property
    def reads_out_activated(self) -> bool:
        """Whether the readout applies the activation before its weights."""
        return self.layer.order == "act-linear" and self.layer.activation is not None

    @functools.cached_property
    def weighted_operations(self) -> tuple[Dense, ...]:
        """Every different operation with weights, the stem's first."""
        ops = [self.stem_op] if self.has_stem else []
        return tuple(dict.fromkeys([*ops, *(edge.op for edge in self.edges if isinstance(edge.op, Dense))]))

    @functools.cached_property
    def image_operations(self) -> tuple[AvgPool | Conv, ...]:
        """Every different operation that needs images."""
        ops = [edge.op for edge in self.edges] + ([self.stem_op] if self.has_stem else [])
        return tuple(dict.fromkeys(op for op in ops if isinstance(op, (AvgPool, Conv))))

    @functools.cached_property
    def pools(self) -> bool:
        """Whether some operation without weights mixes pixels, so that their covariances must all be kept."""
        return any(isinstance(op, AvgPool) for op in self.image_operations)

    @functools.cached_property
    def has_means(self) -> bool:
        """Whether some weighted operation ends with an activation, so that means may differ from 0."""
        return not all(op.output_is_gaussian for op in self.weighted_operations)

    def factor(self, node: int) -> float | int:
        """a(t), the scale of the sum at a node."""
        degree = len(self.into[node])
        if self.aggregation == "sum" or degree <= 1:
            return 1
        return degree**-0.5 if self.aggregation == "scaled-sum" else 1 / degree

    def multiplicity(self, edge: Edge) -> float | int:
        """How often an edge without weights adds its (pooled) source to its target."""
        return self.factor(edge.target) * (edge.op.factor if isinstance(edge.op, Scale) else 1)

    def check_gaussian(self, *, input_is_gaussian: bool, reads_out: bool = False) -> None:
        """Raises a `GraphError` where an activation meets a node that is not Gaussian, or a mean is unknown.

        Args:
          input_is_gaussian: Of a network without stem: whether the data are a centered Gaussian process.
          reads_out: Whether the readout follows.
        """
        inputs = f"the {'stem' if self.has_stem else 'input'}"
        gaussian_input = self.stem_op.output_is_gaussian if self.has_stem else input_is_gaussian
        # What makes each node not Gaussian, and for networks without stem where the raw input is part of a sum.
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
        """Returns the graph and what it applies."""
        return f"{self.dag} ({describe(self.layer)}, {self.aggregation})"

    def pixels(self, image: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns the spatial shape of every node, for images of spatial shape `image`.

        Raises:
          GraphError: Operations do not fit the image, or edges of different output shapes meet at a node.
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
            # Nodes without live edges take no part.
            shapes.append(outputs[0] if outputs else first)
        return shapes


def window_output(op: object, image: tuple[int, ...], what: str) -> tuple[int, ...]:
    """Returns the spatial shape of an operation's output.

    Raises:
      GraphError: It needs another number of spatial axes or a larger image.
    """
    if not isinstance(op, (AvgPool, Conv)):
        return image
    window = op.window_shape if isinstance(op, AvgPool) else op.filter_shape
    if len(window) != len(image):
        raise GraphError(
            f"Expected images with {len(window)} spatial axes for {what}, got {len(image)}; inputs have shape "
            "(N, height, width, channels) for a window of two numbers"
        )
    if op.padding == "SAME":
        return tuple(-(-size // stride) for size, stride in zip(image, op.strides or (), strict=True))
    if any(size < of for size, of in zip(image, window, strict=True)):
        raise GraphError(f"Expected images of at least {window} pixels for {what}, got {image}; use padding 'SAME'")
    return tuple((size - of) // step + 1 for size, of, step in zip(image, window, op.strides or (), strict=True))


def build_network(
    dag: Dag | str,
    *,
    activation: Hashable = "relu",
    order: str = "linear-act",
    w_std: float = HE_STD,
    b_std: float | None = None,
    layer: Any = None,
    aggregation: str = "sum",
    stem: Dense | None = None,
    has_stem: bool = True,
) -> Network:
    """Builds a network from the options that kernels and finite models share.

    Where edges have convolutions of their own and no `layer` is given, the stem and plain weighted edges are dense, on
    every pixel by itself; an `InputWarning` says so.

    Raises:
      GraphError: As for `Network`; or `dag` is no graph, see `as_dag`.
      InputError: As for `Network`; or both `layer` and one of the options that describe it are given.
    """
    dag = as_dag(dag)
    described = Dense(activation=activation, order=order, w_std=w_std, b_std=b_std)
    if layer is None:
        network = Network(dag, described, aggregation, stem, has_stem)
        _warn_where_dense_beside_convolutions(network, stem_is_given=stem is not None)
        return network
    if described != Dense():
        raise InputError(
            "Expected either `layer` or `activation`, `order`, `w_std` and `b_std`, got both; put them into "
            f"{shown(layer)}"
        )
    if not isinstance(layer, Dense):
        raise InputError(f"Expected `layer` to be a `Dense` or a `Conv`, got {shown(layer)}")
    return Network(dag, layer, aggregation, stem, has_stem)


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
            "will be dense, on every pixel by itself; pass such as layer=nngp_dag.Conv(filter_shape=(3, 3)) for "
            "convolutions there too, or layer=nngp_dag.Dense() if dense is meant",
            InputWarning,
        )
