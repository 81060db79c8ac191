"""Graphs of network layers: what they are, their text forms, path statistics and normal form. No JAX here."""

from nngp_dag.graph import zoo
from nngp_dag.graph.dag import Dag
from nngp_dag.graph.edge import Edge, Op
from nngp_dag.graph.normal_form import NormalForm, normal_form

__all__ = ["Dag", "Edge", "NormalForm", "Op", "normal_form", "zoo"]
