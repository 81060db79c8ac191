"""Scores of untrained cells, their registry, and scores on disk."""
