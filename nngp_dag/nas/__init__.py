"""Architecture search without training, on NAS-Bench-201."""

from nngp_dag.nas.cells import Cell, cells, sample_cells
from nngp_dag.nas.filters import FILTERS, Filter, get_filter

__all__ = [
    "FILTERS",
    "Cell",
    "Filter",
    "cells",
    "get_filter",
    "sample_cells",
]
