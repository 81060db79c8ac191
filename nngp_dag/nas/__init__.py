"""Architecture search without training, on NAS-Bench-201."""

from nngp_dag.nas.benchmark import Benchmark
from nngp_dag.nas.cells import Cell, cells, sample_cells
from nngp_dag.nas.filters import FILTERS, Filter, get_filter
from nngp_dag.nas.network import MacroNet
from nngp_dag.nas.state_dict import load_state_dict

__all__ = [
    "FILTERS",
    "Benchmark",
    "Cell",
    "Filter",
    "MacroNet",
    "cells",
    "get_filter",
    "load_state_dict",
    "sample_cells",
]
