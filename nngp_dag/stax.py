"""Layers for `neural_tangents.stax`. Importing this module imports neural-tangents."""

from nngp_dag.kernels.stax_layer import DagLayer

__all__ = ["DagLayer"]
