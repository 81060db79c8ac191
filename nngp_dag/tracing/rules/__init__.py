"""The rules of JAX's primitives, one file per kind."""

from nngp_dag.tracing.rules import control, convolutions, elementwise, gathers, outer, products, shapes, sums

__all__ = ["control", "convolutions", "elementwise", "gathers", "outer", "products", "shapes", "sums"]
