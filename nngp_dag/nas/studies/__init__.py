"""Scores beside the accuracies of trained cells: searches, correlations and pictures."""
