"""Layers for `neural_tangents.stax`, in one place; importing it imports neural-tangents."""

from nngp_dag.kernels.stax_layer import DagLayer

__all__ = ["DagLayer"]
