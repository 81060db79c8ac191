"""Parameters and floating-point operations of a network, layer by layer."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
from flax import nnx

from nngp_dag import forms
from nngp_dag.errors import InputError, shown
from nngp_dag.forms import Described
from nngp_dag.graph.operations import Dense
from nngp_dag.nets.layers import WeightedLayer
from nngp_dag.nets.model import DagNet

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LayerSummary:
    """Size and cost of one layer with weights.

    Attributes:
      name: Name of the layer: "stem", the edge as in "0 -> 2", or "readout".
      operation: Description of the operation in words.
      output_shape: Shape of the output for one example.
      parameters: Number of weights, biases, and scales and shifts of batch normalization.
      flops: Floating-point operations of a forward pass of one example. Every weight counts two and every bias one, at
        each output pixel. Activations, normalization, sums and pooling are not counted. A training step costs about
        three times as much per example.

    Examples:
      >>> from flax import nnx
      >>> net = nnx.eval_shape(lambda: DagNet("2", 784, 10, width=64, b_std=0.0, rngs=nnx.Rngs(0)))
      >>> stem = summarize(net).layers[0]
      >>> stem.name, stem.output_shape, stem.parameters, stem.flops
      ('stem', (64,), 50240, 100416)
    """

    name: str
    operation: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True, repr=False)
class ModelSummary(Described):
    """Size and cost of a network's layers with weights, in the order of computation.

    Attributes:
      layers: One `LayerSummary` per stem, weighted edge on a path, and readout.

    Examples:
      >>> from flax import nnx
      >>> summary = summarize(nnx.eval_shape(lambda: DagNet("2", 784, 10, width=64, rngs=nnx.Rngs(0))))
      >>> [layer.name for layer in summary.layers]
      ['stem', '0 -> 1', 'readout']
    """

    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass of one example, counted as in `LayerSummary`."""
        return sum(layer.flops for layer in self.layers)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for every layer and the fields of `LayerSummary` as columns.

        Examples:
          >>> ModelSummary((LayerSummary("stem", "dense-relu", (8,), 40, 80),)).to_frame()
             name   operation output_shape  parameters  flops
          0  stem  dense-relu         (8,)          40     80
        """
        import pandas

        return pandas.DataFrame.from_records([dataclasses.asdict(layer) for layer in self.layers])

    def _facts(self) -> dict[str, str]:
        sizes = {name: forms.number(getattr(self, name)) for name in ("parameters", "flops")}
        return {"layers": str(len(self.layers)), **sizes}


def summarize(model: DagNet) -> ModelSummary:
    """Counts the parameters and floating-point operations of a network.

    Args:
      model: The network, or its abstract form, `nnx.eval_shape(lambda: DagNet(...))`, which holds no weights.

    Returns:
      A `ModelSummary`, with an entry for each layer and the totals.

    Raises:
      InputError: `model` is not a `DagNet`.

    Examples:
      >>> from flax import nnx
      >>> from nngp_dag.graph import Dag
      >>> net = DagNet(Dag.from_code("2_02_002"), 784, 10, width=64, b_std=0.0, rngs=nnx.Rngs(0))
      >>> summary = summarize(net)
      >>> summary.parameters, summary.flops
      (63370, 126474)
    """
    if not isinstance(model, DagNet):
        raise InputError(f"Expected `model` to be a `DagNet`, got {shown(model)}; pass DagNet(network, ...)")
    network, dag = model.network, model.dag
    pixels = network.pixels(model.input_shapes[0][:-1])
    rows = [
        _layer("stem" if len(model.stems) == 1 else f"stem {node}", layer, pixels[node])
        for node, layer in enumerate(model.stems)
    ]
    weighted = (edge for edge in network.edges if isinstance(edge.op, Dense))
    for edge, layer in zip(weighted, model.edges, strict=True):
        rows.append(_layer(f"{edge.source} -> {edge.target}", layer, pixels[edge.target]))
    for node, layer in zip(dag.outputs, model.readouts, strict=True):
        rows.append(_layer("readout" if len(model.readouts) == 1 else f"readout {node}", layer, ()))
    return ModelSummary(tuple(rows))


def _layer(name: str, layer: WeightedLayer, pixels: tuple[int, ...]) -> LayerSummary:
    shape, bias = layer.linear.kernel.shape, layer.linear.bias
    places, channels = math.prod(pixels), shape[-1]
    return LayerSummary(
        name=name,
        operation=layer.op.describe() + (" with batch norm" if layer.norm is not None else ""),
        output_shape=(*pixels, channels),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param))),
        flops=places * (2 * math.prod(shape) + (channels if bias is not None else 0)),
    )
