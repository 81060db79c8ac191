"""The finite network of a DAG, as a flax nnx module and as a pure function."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike

from nngp_dag.activations import get_activation
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError, shown
from nngp_dag.graph import Dag, Dense
from nngp_dag.graph.operations import (
    check_flag,
    check_whole,
    check_window,
)
from nngp_dag.nets.layers import WeightedLayer, without_weights

Inputs = ArrayLike | Sequence[ArrayLike]
Params = nnx.State


class DagNet(nnx.Module):
    """A finite network with the connectivity of a DAG.

    Its infinite-width kernel is `nngp_dag.kernel` with the same options. A stem maps each input to its node. The other
    nodes are

        X(t) = a(t) * sum over edges s -> t of op(X(s)),

    and a readout maps each output node to outputs. See `nngp_dag.kernel` for the options. By default the network is
    fully connected, with ReLU, He initialization and no biases.

    Without convolutions and pooling, inputs are flattened. With them, inputs are images (N, *pixels, channels) of the
    size `image_shape`. The size is fixed because a flattening readout has weights for every pixel of the last node.

    Args:
      network: The network: a `Network`, or its graph as a `Dag`, or as a code, name or cell that `Dag.parse` reads; or
        a traced model that is one, of which this is then another model of the same kernel.
      in_features: Number of features, or of an image's channels. A graph with several inputs takes a tuple of such
        numbers, or one for all.
      out_features: Number of outputs of every readout.
      image_shape: (height, width) of images, for networks with convolutions or pooling only.
      batch_norm: Whether batch normalization follows the weights of stem and edges. No infinite-width kernel here
        describes such networks with live batch statistics.
      rngs: Random number streams. All weights come from `rngs.params`, first of stems, then of edges, then of readouts.
      **architecture: Fields of `nngp_dag.Network` and of its layer, among them `width` and `parameterization`, see
        `WeightedLayer`. Biases with b_std = 0 start at 0; "standard" trains them, "ntk" does not.

    Attributes:
      network: The architecture, with every operation filled in.
      stems: One layer per input node; `stem` is the first.
      edges: One layer per weighted edge that lies on a path to an output, in the order of `dag.live_edges`.
      readouts: One layer per output node; `readout` is the first.

    Raises:
      GraphError: No path leads through the graph, or operations do not fit the images. An edge applies its activation
        to a node that is not Gaussian at infinite width.
      InputError: A size is below 1 or missing, or an option is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nngp_dag.graph import Conv
      >>> net = DagNet(Dag.from_code("2_21_112"), 64, 10, width=128, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 64))).shape
      (5, 10)
      >>> conv = Conv(filter_shape=(3, 3))
      >>> net = DagNet(Dag.from_code("2_12"), 3, 10, width=16, layer=conv, image_shape=(8, 8), rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 8, 8, 3))).shape
      (5, 10)

    Reference: Chen et al., NeurIPS 2022, Section 3 (the architecture); He et al., ICCV 2015 (initialization); Jacot
    et al., NeurIPS 2018 (NTK parameterization).
    """

    def __init__(
        self,
        network: Network | Dag | str | NetworkSource,
        in_features: int | Sequence[int],
        out_features: int,
        *,
        image_shape: Sequence[int] | None = None,
        batch_norm: bool = False,
        rngs: nnx.Rngs | None = None,
        **architecture: Unpack[Architecture],
    ):
        """Draws all weights."""
        network = as_network(network, "network", DagNet.__init__, **architecture)
        if not network.readout:
            raise InputError(
                "Expected a network with a readout, got one without; leave `readout` True, and call `features` for the "
                "last node"
            )
        dag, width, parameterization = network.dag, network.width, network.parameterization
        batch_norm = check_flag("batch_norm", batch_norm)
        if not isinstance(rngs, nnx.Rngs):
            raise InputError(f"Expected `rngs` to be `flax.nnx.Rngs`, got {shown(rngs)}; pass nnx.Rngs(0), for example")
        channels = tuple(in_features) if isinstance(in_features, Sequence) else (in_features,) * dag.num_inputs
        if len(channels) != dag.num_inputs:
            raise InputError(
                f"Expected `in_features` to hold {dag.num_inputs} numbers, one per input node, got {shown(in_features)}"
            )
        for name, size in (("in_features", min(channels)), ("out_features", out_features)):
            check_whole(name, size, 1)
        if network.image_operations and image_shape is None:
            raise InputError("Expected `image_shape` for convolutions and pooling, got None; pass (height, width)")
        if image_shape is not None and not network.image_operations:
            raise InputError(
                f"Expected no `image_shape` without convolutions and pooling, got {image_shape}; count all values of "
                "an input in `in_features`"
            )
        image = () if image_shape is None else check_window("image_shape", image_shape)
        pixels = network.pixels(image)

        self.network = network
        self.input_shapes = tuple((*image, size) for size in channels)
        phi = network.readout_op.activation
        self.readout_activation = None if phi is None else get_activation(phi)  # type: ignore[arg-type]

        def layers(of: Iterable[tuple[Dense, int, int]], norm: bool) -> nnx.List:
            return nnx.List(
                [WeightedLayer(op, size, out, parameterization, batch_norm=norm, rngs=rngs) for op, size, out in of]
            )

        self.stems = layers(((network.stem_op, size, width) for size in channels), batch_norm)
        self.edges = layers(
            ((edge.op, width, width) for edge in network.edges if isinstance(edge.op, Dense)), batch_norm
        )
        linear = dataclasses.replace(network.readout_op, activation=None)
        read = [math.prod(pixels[node]) if network.image_readout == "flatten" else 1 for node in dag.outputs]
        self.readouts = layers(((linear, width * size, out_features) for size in read), False)

    @property
    def dag(self) -> Dag:
        """The connectivity."""
        return self.network.dag

    @property
    def stem(self) -> WeightedLayer:
        """The layer from the (first) input to node 0."""
        return self.stems[0]

    @property
    def readout(self) -> WeightedLayer:
        """The layer from the (first) output node to the outputs."""
        return self.readouts[0]

    def features(self, x: Inputs) -> Array | list[Array]:
        """Returns the last node, X(H), (N, width) or (N, *pixels, width); a list where there are several outputs.

        Args:
          x: Inputs, (N, ...). A graph with several inputs takes a list of such arrays, or one array for all.

        Raises:
          InputError: An input has the wrong shape, or the wrong number of them is given.
        """
        return _one_or_all(self._output_nodes(x))

    def __call__(self, x: Inputs) -> Array | list[Array]:
        """Returns the outputs, (N, out_features), or a list for several output nodes; for `x` see `features`."""
        outputs = []
        for node, readout in zip(self._output_nodes(x), self.readouts, strict=True):
            if self.readout_activation is not None:
                node = self.readout_activation(node)
            if self.network.image_readout == "flatten":
                node = node.reshape(len(node), math.prod(node.shape[1:]))
            elif node.ndim > 2:
                node = node.mean(axis=tuple(range(1, node.ndim - 1)))
            outputs.append(readout(node))
        return _one_or_all(outputs)

    def _output_nodes(self, x: Inputs) -> list[Array]:
        network = self.network
        nodes: dict[int, Array] = {
            node: stem(value) for node, (stem, value) in enumerate(zip(self.stems, self._inputs(x), strict=True))
        }
        layers = iter(self.edges)
        for edge in network.edges:
            value = nodes[edge.source]
            value = next(layers)(value) if isinstance(edge.op, Dense) else without_weights(edge.op, value)
            if (factor := network.factor(edge.target)) != 1:
                value = factor * value
            nodes[edge.target] = nodes[edge.target] + value if edge.target in nodes else value
        return [nodes[output] for output in network.dag.outputs]

    def _inputs(self, x: Inputs) -> list[Array]:
        """Returns one checked array per input node."""
        several = isinstance(x, (list, tuple))
        given = list(x) if several else [x] * len(self.input_shapes)  # type: ignore[arg-type]
        if len(given) != len(self.input_shapes):
            raise InputError(
                f"Expected `x` to list {len(self.input_shapes)} arrays, one per input node, got {len(given)}"
            )
        arrays = []
        for i, (value, expected) in enumerate(zip(given, self.input_shapes, strict=True)):
            array = jnp.asarray(value)
            given_shape = array.shape
            if len(expected) == 1 and array.ndim > 1:
                array = array.reshape(len(array), math.prod(array.shape[1:]))
            if array.shape[1:] != expected or array.ndim == 0:
                name = f"x[{i}]" if several else "x"
                shape = ", ".join(map(str, ("N", *expected)))
                raise InputError(f"Expected `{name}` to have shape ({shape}), got {given_shape}")
            # Weights are float32, so integers and narrower floats become float32, too.
            arrays.append(array.astype(jnp.promote_types(array.dtype, jnp.float32)))
        if len({len(array) for array in arrays}) > 1:
            raise InputError(f"Expected all arrays of `x` to hold equally many inputs, got {[*map(len, arrays)]}")
        return arrays


def _one_or_all(values: list[Array]) -> Array | list[Array]:
    return values if len(values) > 1 else values[0]


def as_functions(
    create: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[Array], Params], Callable[[Params, Inputs], Any]]:
    """Turns a model into pure functions, for `jax.vmap`, `jax.grad` and the like.

    Args:
      create: Function that builds the model from random number streams, such as
        `lambda rngs: DagNet(dag, 64, 10, width=128, rngs=rngs)`. A model with batch normalization needs
        `as_stateful_functions` instead.

    Returns:
      The functions `init(key) -> params` and `apply(params, x) -> outputs`; `params` holds every `nnx.Param`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> init, apply = as_functions(lambda rngs: DagNet(Dag.from_code("2"), 3, 1, width=8, rngs=rngs))
      >>> params = jax.vmap(init)(jax.random.split(jax.random.key(0), 5))
      >>> jax.vmap(apply, in_axes=(0, None))(params, jnp.ones((2, 3))).shape
      (5, 2, 1)
    """
    init, apply = as_stateful_functions(create)
    return lambda key: init(key)[0], lambda params, x: apply(params, nnx.State({}), x)[0]


def as_stateful_functions(
    create: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[Array], tuple[Params, nnx.State]], Callable[..., tuple[Any, nnx.State]]]:
    """Turns a model with or without batch normalization into pure functions.

    Args:
      create: Function that builds the model from random number streams, see `as_functions`.

    Returns:
      The functions `init(key) -> (params, stats)` and `apply(params, stats, x, training=False) -> (outputs, stats)`.
      `stats` holds every `nnx.BatchStat`, the running averages. Training normalizes by the batch and updates the
      averages; evaluation normalizes by the averages.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> init, apply = as_stateful_functions(
      ...     lambda rngs: DagNet(Dag.from_code("2"), 3, 1, width=8, batch_norm=True, rngs=rngs))
      >>> params, stats = init(jax.random.key(0))
      >>> outputs, stats = apply(params, stats, jnp.eye(3), training=True)
      >>> outputs.shape
      (3, 1)
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))

    def init(key: Array) -> tuple[Params, nnx.State]:
        _, params, stats = nnx.split(create(nnx.Rngs(params=key)), nnx.Param, nnx.BatchStat)
        return params, stats

    def apply(params: Params, stats: nnx.State, x: Inputs, training: bool = False) -> tuple[Any, nnx.State]:
        # A transformation of JAX may not write to captured variables, so running averages need a copy.
        model = nnx.merge(graphdef, params, stats, copy=True)
        model.train() if training else model.eval()
        outputs = model(jax.tree.map(jnp.asarray, x))
        return outputs, nnx.state(model, nnx.BatchStat)

    return init, apply
