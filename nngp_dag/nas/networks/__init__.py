"""Finite networks of cells: one network for any cell, the supernets, and the networks of one cell for training."""
