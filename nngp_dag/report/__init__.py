"""Comparisons of theory with experiment, sweeps and searches over architectures, and their tables, plots and files."""

from nngp_dag.report._compare import compare
from nngp_dag.report._search import search_graph
from nngp_dag.report._sweep import sweep
from nngp_dag.report.comparison import Comparison, Comparisons
from nngp_dag.report.plots import plot_compare, plot_kernel
from nngp_dag.report.ranking import rank_correlations
from nngp_dag.report.search_result import GraphSearch
from nngp_dag.report.sweep_plots import plot_sweep
from nngp_dag.storage import output_directory, output_file

__all__ = [
    "Comparison",
    "Comparisons",
    "GraphSearch",
    "compare",
    "output_directory",
    "output_file",
    "plot_compare",
    "plot_kernel",
    "plot_sweep",
    "rank_correlations",
    "search_graph",
    "sweep",
]
