"""Graphs of network layers: what they are, their text forms and path statistics. No JAX here."""

from nngp_dag.graph import zoo
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import AvgPool, Conv, Dense, EdgeOperation, Op, Operation, Pool, Scale, SumPool
from nngp_dag.graph.reading import as_dag

__all__ = [
    "AvgPool",
    "Conv",
    "Dag",
    "Dense",
    "Edge",
    "EdgeOperation",
    "Op",
    "Operation",
    "Pool",
    "Scale",
    "SumPool",
    "as_dag",
    "zoo",
]
