"""Cells, genotypes and search spaces, their costs, filters, and accuracies from tables."""
