"""Graphs of network layers: what they are, their text forms, path statistics and normal form. No JAX here."""

from nngp_dag.graph import zoo
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.network import Network, build_network
from nngp_dag.graph.normal_form import NormalForm, normal_form
from nngp_dag.graph.operations import AvgPool, Conv, Dense, Op, Operation, Scale
from nngp_dag.graph.reading import as_dag

__all__ = [
    "AvgPool",
    "Conv",
    "Dag",
    "Dense",
    "Edge",
    "Network",
    "NormalForm",
    "Op",
    "Operation",
    "Scale",
    "as_dag",
    "build_network",
    "normal_form",
    "zoo",
]
