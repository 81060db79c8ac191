"""Data sets, files of your own, and their preprocessing for kernels and training."""

from nngp_dag.data.datasets import DATASETS, Dataset, load_dataset
from nngp_dag.data.files import Samples, load_file, load_source
from nngp_dag.data.preprocessing import NORMALIZATION, channel_constants, normalize, one_hot, scale_to_sphere
from nngp_dag.data.splits import Part, Splits, load_splits
from nngp_dag.data.stream import ImageStream, load_stream

__all__ = [
    "DATASETS",
    "NORMALIZATION",
    "Dataset",
    "ImageStream",
    "Part",
    "Samples",
    "Splits",
    "channel_constants",
    "load_dataset",
    "load_file",
    "load_source",
    "load_splits",
    "load_stream",
    "normalize",
    "one_hot",
    "scale_to_sphere",
]
