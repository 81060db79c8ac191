"""Data sets and their preprocessing."""

from nngp_dag.data.datasets import DATASETS, Dataset, load_dataset
from nngp_dag.data.preprocessing import NORMALISATION, normalise, one_hot, scale_to_sphere

__all__ = [
    "DATASETS",
    "NORMALISATION",
    "Dataset",
    "load_dataset",
    "normalise",
    "one_hot",
    "scale_to_sphere",
]
