"""Finite networks of cells: of any cell, of all operations at once, and of one cell, to be trained."""
