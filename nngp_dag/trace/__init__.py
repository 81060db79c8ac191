"""The exact kernels of any JAX model, read off its jaxpr."""
