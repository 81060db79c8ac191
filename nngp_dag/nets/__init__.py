"""Finite networks: flax modules for any DAG, and their training with optax."""

from nngp_dag.nets.layers import WeightedLayer
from nngp_dag.nets.model import DagNet, as_functions, as_stateful_functions
from nngp_dag.nets.summary import LayerSummary, ModelSummary, summarise
from nngp_dag.nets.training import TrainResult, cross_entropy, squared_loss, train

__all__ = [
    "DagNet",
    "LayerSummary",
    "ModelSummary",
    "TrainResult",
    "WeightedLayer",
    "as_functions",
    "as_stateful_functions",
    "cross_entropy",
    "squared_loss",
    "summarise",
    "train",
]
