"""Infinite-width kernels: dual activations, their propagation through a network, and a layer for neural-tangents."""

from nngp_dag.kernels._gram import gram
from nngp_dag.kernels._kernel import explain, kernel
from nngp_dag.kernels.result import Kernel

__all__ = ["Kernel", "explain", "gram", "kernel"]
