"""Finite networks: flax modules for any DAG, their parameter counts and FLOPs, and full-batch descent with optax."""

from nngp_dag.nets.descent import Descent, chosen_seeds, descend, descend_from, squared_loss
from nngp_dag.nets.layers import WeightedLayer
from nngp_dag.nets.model import DagNet, as_functions, as_stateful_functions
from nngp_dag.nets.summary import LayerSummary, ModelSummary, summarize
from nngp_dag.nets.tangent import empirical_ntk

__all__ = [
    "DagNet",
    "Descent",
    "LayerSummary",
    "ModelSummary",
    "WeightedLayer",
    "as_functions",
    "as_stateful_functions",
    "chosen_seeds",
    "descend",
    "descend_from",
    "empirical_ntk",
    "squared_loss",
    "summarize",
]
