"""What all results on disk share; the ground floor, which knows nothing of kernels, training or reports."""

from nngp_dag.storage.environment import environment
from nngp_dag.storage.files import as_output_error, output_directory, output_file

__all__ = ["as_output_error", "environment", "output_directory", "output_file"]
