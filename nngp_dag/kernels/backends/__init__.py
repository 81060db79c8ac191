"""The ways to compute a kernel: Chebyshev series, a loop over nodes, unrolled steps, and a Pallas kernel for GPUs."""
