"""Finite networks for training: `DagNet`s that fit the shapes of a data set."""

import math

from flax import nnx

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.nets import DagNet, ModelSummary, summarize


def build(
    network: Network, input_shape: tuple[int, ...], num_classes: int, *, batch_norm: bool = False, rngs: nnx.Rngs
) -> DagNet:
    """Builds a network for inputs of one shape.

    Args:
      network: The architecture.
      input_shape: Shape of an input: (height, width, channels) for networks with convolutions or pooling, else any.
      num_classes: Number of outputs.
      batch_norm: Whether batch normalization follows the weights of stem and edges.
      rngs: Random number streams for the weights.

    Raises:
      InputError: The network needs images and the inputs are of another shape, or the graph has several inputs or
        outputs.
    """
    dag = network.dag
    if dag.num_inputs > 1 or len(dag.outputs) > 1:
        raise InputError(
            f"Expected a graph with one input and one output to train, got {dag.num_inputs} and {len(dag.outputs)}"
        )
    if not network.image_operations:
        return DagNet(network, math.prod(input_shape), num_classes, batch_norm=batch_norm, rngs=rngs)
    if len(input_shape) != 3:
        raise InputError(
            f"Expected images (height, width, channels) for convolutions and pooling, got inputs of shape "
            f"{input_shape}; take a network without them or choose another data set"
        )
    return DagNet(network, input_shape[-1], num_classes, image_shape=input_shape[:2], batch_norm=batch_norm, rngs=rngs)


def summary_of(
    network: Network, input_shape: tuple[int, ...], num_classes: int, *, batch_norm: bool = False
) -> ModelSummary:
    """Counts parameters and floating-point operations of a network, without drawing weights.

    Args:
      network: The architecture.
      input_shape: Shape of an input: (height, width, channels) for networks with convolutions or pooling, else any.
      num_classes: Number of outputs.
      batch_norm: Whether batch normalization follows the weights of stem and edges.

    Raises:
      InputError: The network needs images and the inputs are of another shape, or the graph has several inputs or
        outputs.

    Examples:
      >>> summary_of(Network("2_12", width=32), (8, 8, 1), 10).parameters
      4416
    """
    return summarize(
        nnx.eval_shape(lambda: build(network, input_shape, num_classes, batch_norm=batch_norm, rngs=nnx.Rngs(0)))
    )
