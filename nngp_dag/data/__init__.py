"""Data sets and their preprocessing."""

from nngp_dag.data.datasets import DATASETS, Dataset, load_dataset
from nngp_dag.data.files import Samples, load_file, load_source
from nngp_dag.data.preprocessing import NORMALISATION, channel_constants, normalise, one_hot, scale_to_sphere
from nngp_dag.data.splits import Part, Splits, load_splits

__all__ = [
    "DATASETS",
    "NORMALISATION",
    "Dataset",
    "Part",
    "Samples",
    "Splits",
    "channel_constants",
    "load_dataset",
    "load_file",
    "load_source",
    "load_splits",
    "normalise",
    "one_hot",
    "scale_to_sphere",
]
