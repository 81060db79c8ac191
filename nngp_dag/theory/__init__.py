"""What the kernels say about training: spectra, bounds and exact loss curves."""

from nngp_dag.theory.bounds import PathBound, path_bound, rate_bound, rate_bound_holds_for
from nngp_dag.theory.dynamics import expected_loss
from nngp_dag.theory.spectrum import Spectrum, spectrum

__all__ = [
    "PathBound",
    "Spectrum",
    "expected_loss",
    "path_bound",
    "rate_bound",
    "rate_bound_holds_for",
    "spectrum",
]
