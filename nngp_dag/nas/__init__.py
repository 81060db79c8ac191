"""Architecture search without training, on NAS-Bench-201 and DARTS."""

from nngp_dag.nas.networks.bench_net import BenchNet
from nngp_dag.nas.networks.cell_supernet import CellSupernet
from nngp_dag.nas.networks.darts_macro_net import DartsMacroNet
from nngp_dag.nas.networks.darts_net import DartsImageNetNet, DartsNet
from nngp_dag.nas.networks.darts_supernet import DartsSupernet
from nngp_dag.nas.networks.macro_net import MacroNet
from nngp_dag.nas.networks.state_dict import load_state_dict
from nngp_dag.nas.pruning.expected_kernels import ExpectedKernels
from nngp_dag.nas.pruning.files import SearchDirectory
from nngp_dag.nas.pruning.measures import Found, Measures, darts_measures, nasbench201_measures
from nngp_dag.nas.pruning.regions import patches
from nngp_dag.nas.pruning.rounds import Measure, Pruning, prune
from nngp_dag.nas.pruning.search import FoundCell, tenas_search
from nngp_dag.nas.pruning.tenas import batch_sizes, tenas_measures
from nngp_dag.nas.scores.catalog import BUILT_IN
from nngp_dag.nas.scores.files import ScoreDirectory, read_scores
from nngp_dag.nas.scores.gradients import empirical_ntk
from nngp_dag.nas.scores.patterns import log_determinant, pattern_kernel
from nngp_dag.nas.scores.registry import (
    SCORES,
    Score,
    Scored,
    get_score,
    goodness,
    load_installed,
    register,
    score_cells,
)
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.accuracy_table import AccuracyTable
from nngp_dag.nas.spaces.any_cell import parse_cell
from nngp_dag.nas.spaces.cells import Cell, cells, sample_cells
from nngp_dag.nas.spaces.costs import flops, parameters
from nngp_dag.nas.spaces.darts import Genotype, sample_genotypes
from nngp_dag.nas.spaces.filters import FILTERS, Filter, get_filter
from nngp_dag.nas.spaces.search_space import SPACES, SearchSpace, get_space
from nngp_dag.nas.studies.controls import control_correlations, control_remarks
from nngp_dag.nas.studies.plots import plot_depth_and_width, plot_scores
from nngp_dag.nas.studies.searches import Searches, search
from nngp_dag.nas.studies.tables import (
    accuracy_correlations,
    accuracy_correlations_table,
    search_summary,
    search_table,
)

__all__ = [
    "BUILT_IN",
    "FILTERS",
    "SCORES",
    "SPACES",
    "AccuracyTable",
    "BenchNet",
    "Cell",
    "CellSupernet",
    "DartsImageNetNet",
    "DartsMacroNet",
    "DartsNet",
    "DartsSupernet",
    "ExpectedKernels",
    "Filter",
    "Found",
    "FoundCell",
    "Genotype",
    "MacroNet",
    "Measure",
    "Measures",
    "Pruning",
    "Score",
    "ScoreDirectory",
    "Scored",
    "SearchDirectory",
    "SearchSpace",
    "Searches",
    "Setting",
    "accuracy_correlations",
    "accuracy_correlations_table",
    "batch_sizes",
    "cells",
    "control_correlations",
    "control_remarks",
    "darts_measures",
    "empirical_ntk",
    "flops",
    "get_filter",
    "get_score",
    "get_space",
    "goodness",
    "load_state_dict",
    "log_determinant",
    "nasbench201_measures",
    "parameters",
    "parse_cell",
    "patches",
    "pattern_kernel",
    "plot_depth_and_width",
    "plot_scores",
    "prune",
    "read_scores",
    "register",
    "sample_cells",
    "sample_genotypes",
    "score_cells",
    "search",
    "search_summary",
    "search_table",
    "tenas_measures",
    "tenas_search",
]

# Last: their modules import this one.
load_installed()
