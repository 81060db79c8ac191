"""Graphs of network layers, their text forms and their path statistics; this package does not import JAX."""

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
