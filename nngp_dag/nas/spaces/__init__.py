"""Cells, genotypes, search spaces, and what is known of their members without a network."""
