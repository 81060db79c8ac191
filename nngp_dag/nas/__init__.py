"""Architecture search without training, on NAS-Bench-201 and DARTS."""

from nngp_dag.nas.accuracy_table import AccuracyTable
from nngp_dag.nas.catalog import BUILT_IN
from nngp_dag.nas.cells import Cell, cells, sample_cells
from nngp_dag.nas.costs import flops, parameters
from nngp_dag.nas.darts import Genotype
from nngp_dag.nas.darts_network import DartsSupernet
from nngp_dag.nas.discrete import BenchNet, DartsNet
from nngp_dag.nas.filters import FILTERS, Filter, get_filter
from nngp_dag.nas.gradients import empirical_ntk
from nngp_dag.nas.measures import Found, Measures, darts_measures, nasbench201_measures
from nngp_dag.nas.network import MacroNet
from nngp_dag.nas.patterns import log_determinant, pattern_kernel
from nngp_dag.nas.regions import patches
from nngp_dag.nas.scores import SCORES, Score, Scored, get_score, goodness, load_installed, register, score_cells
from nngp_dag.nas.setting import Setting
from nngp_dag.nas.spaces import SPACES, SearchSpace, get_space
from nngp_dag.nas.state_dict import load_state_dict
from nngp_dag.nas.supernet import CellSupernet

__all__ = [
    "BUILT_IN",
    "FILTERS",
    "SCORES",
    "SPACES",
    "AccuracyTable",
    "BenchNet",
    "Cell",
    "CellSupernet",
    "DartsNet",
    "DartsSupernet",
    "Filter",
    "Found",
    "Genotype",
    "MacroNet",
    "Measures",
    "Score",
    "Scored",
    "SearchSpace",
    "Setting",
    "cells",
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
    "patches",
    "pattern_kernel",
    "register",
    "sample_cells",
    "score_cells",
]

# Last: their modules import this one.
load_installed()
