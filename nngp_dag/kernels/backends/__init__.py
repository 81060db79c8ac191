"""The back ends: Chebyshev series in the angle, a loop over nodes, unrolled steps, and a Pallas kernel for GPUs."""
