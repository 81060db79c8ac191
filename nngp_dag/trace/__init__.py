"""Exact infinite-width kernels of any JAX or flax model, read off its jaxpr."""
