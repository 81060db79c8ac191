"""Exact infinite-width kernels of any JAX or flax model, read off its jaxpr."""

from nngp_dag.tracing._trace import trace
from nngp_dag.tracing.models import Leaf, ModelFunction
from nngp_dag.tracing.traced import Traced

__all__ = ["Leaf", "ModelFunction", "Traced", "trace"]
