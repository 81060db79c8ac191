"""Common code of all results on disk: atomic files, locks, documents, result directories and checkpoints.

This package imports nothing of kernels, training or reports.
"""

from nngp_dag.storage.documents import (
    check_config,
    check_same,
    difference,
    misfit,
    read_json,
    read_sealed,
    reason_of,
    write_json,
    write_sealed,
)
from nngp_dag.storage.environment import environment
from nngp_dag.storage.files import (
    as_output_error,
    claimed,
    is_occupied,
    output_directory,
    output_file,
    rename_claimed,
    sync,
)
from nngp_dag.storage.lock import LOCK, busy, locked
from nngp_dag.storage.result_directory import ResultDirectory, check_exclusive
from nngp_dag.storage.rows import Rows

__all__ = [
    "LOCK",
    "ResultDirectory",
    "Rows",
    "as_output_error",
    "busy",
    "check_config",
    "check_exclusive",
    "check_same",
    "claimed",
    "difference",
    "environment",
    "is_occupied",
    "locked",
    "misfit",
    "output_directory",
    "output_file",
    "read_json",
    "read_sealed",
    "reason_of",
    "rename_claimed",
    "sync",
    "write_json",
    "write_sealed",
]
