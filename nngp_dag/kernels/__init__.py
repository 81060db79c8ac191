"""Infinite-width kernels: dual activations, their propagation through a DAG, and the neural-tangents layer."""

from nngp_dag.kernels.kernel import Kernel, kernel

__all__ = ["Kernel", "kernel"]
